//! Chat templates: the Jinja program with which a model's authors turn messages into text.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

/// Instructions that a template may take: far above any real one, and an endless loop ends here.
const FUEL: u64 = 1_000_000;
const NAME: &str = "chat_template";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A template that does not work, or refuses its messages.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model has no template.
    #[error(
        "the model has no chat template: neither chat_template.jinja nor chat_template in tokenizer_config.json"
    )]
    None,
    /// The template's syntax.
    #[error("the model's chat template can't be parsed: {0}")]
    Syntax(String),
    /// The template ended with an error, often one of its own (`raise_exception`).
    #[error("the model's chat template refuses the messages: {0}")]
    Render(String),
    /// What an assistant says can't be told from the rest.
    #[error(
        "the model's chat template changes earlier turns when a later one is added, so that the assistant's tokens are unknown"
    )]
    NotIncremental,
}

/// A parsed template with the tokens that it may print.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Parses a template as Hugging Face transformers does: block lines vanish, Python's methods of
    /// strings, lists and dicts work. `strftime_now` is left undefined on purpose: templates that
    /// know it then print a fixed date, and the same row gives the same tokens on any day.
    ///
    /// # Errors
    /// [`ChatError::Syntax`].
    pub fn parse(source: String, bos: Option<&str>, eos: Option<&str>) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| ChatError::Syntax(error.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| ChatError::Syntax(error.to_string()))?;
        Ok(Self {
            environment,
            bos: bos.unwrap_or_default().to_owned(),
            eos: eos.unwrap_or_default().to_owned(),
        })
    }

    /// The text of `messages`; with `add_generation_prompt` up to where the assistant begins.
    ///
    /// # Errors
    /// [`ChatError::Render`].
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let refuse = |error: Error| ChatError::Render(error.to_string());
        let template = self.environment.get_template(NAME).map_err(refuse)?;
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| {
                context! { role => message.role.as_str(), content => message.content.as_str() }
            })
            .collect();
        template
            .render(context! {
                messages => messages,
                add_generation_prompt => add_generation_prompt,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
            })
            .map_err(refuse)
    }

    /// The text of `messages` with the byte ranges that the assistant wrote, end tokens included:
    /// from where a generation prompt would end to where the turn ends.
    ///
    /// # Errors
    /// [`ChatError::NotIncremental`] where a later turn changes the text of an earlier one.
    pub fn render_with_answers(
        &self,
        messages: &[ChatMessage],
    ) -> Result<(String, Vec<std::ops::Range<usize>>), ChatError> {
        let text = self.render(messages, false)?;
        let mut answers = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if message.role != "assistant" {
                continue;
            }
            let (before, through) = (
                messages.get(..index).unwrap_or_default(),
                messages.get(..=index).unwrap_or_default(),
            );
            let prompt = self.render(before, true)?;
            let answered = self.render(through, false)?;
            if !answered.starts_with(&prompt) || !text.starts_with(&answered) {
                return Err(ChatError::NotIncremental);
            }
            answers.push(prompt.len()..answered.len());
        }
        Ok((text, answers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
        }
    }

    const CHATML: &str = "{% for message in messages %}\n\
        {{ '<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>\n' }}\n\
        {% endfor %}\n\
        {% if add_generation_prompt %}\n    {{ '<|im_start|>assistant\n' }}\n{% endif %}\n";

    #[test]
    fn blocks_vanish_and_python_methods_work() {
        let template = ChatTemplate::parse(CHATML.to_owned(), None, None).unwrap();
        let text = template.render(&[message("user", " <b> ")], true).unwrap();
        let expected = "<|im_start|>user\n<b><|im_end|>\n\n    <|im_start|>assistant\n\n";
        assert_eq!(
            text, expected,
            "as jinja2 with trim_blocks and lstrip_blocks prints it"
        );
    }

    #[test]
    fn answers_are_found_with_their_end_token() {
        let source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
        let template = ChatTemplate::parse(source.to_owned(), Some("<s>"), Some("</s>")).unwrap();
        let turns = [
            message("user", "a"),
            message("assistant", "b"),
            message("user", "c"),
            message("assistant", "d"),
        ];
        let (text, answers) = template.render_with_answers(&turns).unwrap();
        let answers: Vec<&str> = answers.into_iter().map(|range| &text[range]).collect();
        assert_eq!(answers, ["b</s>", "d</s>"]);
    }

    #[test]
    fn a_template_that_rewrites_the_past_is_refused() {
        let source =
            "{% for m in messages %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}";
        let template = ChatTemplate::parse(source.to_owned(), None, None).unwrap();
        let turns = [
            message("user", "a"),
            message("assistant", "b"),
            message("user", "c"),
        ];
        assert!(matches!(
            template.render_with_answers(&turns),
            Err(ChatError::NotIncremental)
        ));
    }

    #[test]
    fn a_templates_own_error_is_told_and_an_endless_one_ends() {
        let source = "{{ raise_exception('roles must alternate') }}";
        let template = ChatTemplate::parse(source.to_owned(), None, None).unwrap();
        let text = template.render(&[], false).unwrap_err().to_string();
        assert!(text.contains("roles must alternate"), "{text}");
        let source =
            "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}";
        let template = ChatTemplate::parse(source.to_owned(), None, None).unwrap();
        assert!(template.render(&[], false).is_err());
        assert!(ChatTemplate::parse("{% if %}".to_owned(), None, None).is_err());
    }
}
