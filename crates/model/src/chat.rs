//! Chat templates: the Jinja program with which a model's authors turn messages into text.
//!
//! What the assistant wrote is known exactly where the template says so with `{% generation %}`.
//! minijinja has no tags of others, so that one becomes a filter block, which it knows: blocks of both
//! kinds treat white space alike. Other templates are rendered turn by turn.

use std::ops::Range;

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::chat_json::{to_template, tojson};
use crate::tool_calls::{ARGUMENTS_MARK, ToolCall, ToolFormat};

/// Instructions that a template may take: far above any real one, and an endless loop ends here. What they hold in
/// memory is not counted: each may double a text, and only the container's limit ends that.
const FUEL: u64 = 1_000_000;
/// The template as it is rendered for serving.
const NAME: &str = "chat_template";
/// The template that puts marks around what the assistant wrote.
const MARKED: &str = "marked_chat_template";
/// The marks: code points that are never characters (Unicode, section 23.7).
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];
/// What `strftime_now` prints: the date that Llama's templates name where they don't know today's.
const DATE: DateTime = jiff::civil::date(2024, 7, 26).at(0, 0, 0, 0);

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
    /// Tools that the assistant called in this turn.
    #[serde(skip)]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a turn of role `tool` answers.
    #[serde(skip)]
    pub tool_call_id: Option<String>,
    /// Which tool that was, for templates that print it.
    #[serde(skip)]
    pub name: Option<String>,
}

impl ChatMessage {
    /// A turn without tools.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }

    /// As templates see it: only what is there, since some ask whether `tool_calls` is defined.
    fn to_template(&self) -> Result<Value, ChatError> {
        let mut fields = vec![
            ("role", Value::from(self.role.as_str())),
            ("content", Value::from(self.content.as_str())),
        ];
        if !self.tool_calls.is_empty() {
            let calls = self
                .tool_calls
                .iter()
                .map(|call| {
                    // Templates print the arguments with `tojson`, so that they must be no text.
                    let arguments: serde_json::Value = serde_json::from_str(&call.arguments)
                        .map_err(|error| ChatError::Arguments(error.to_string()))?;
                    let function = json!({"name": call.name, "arguments": arguments});
                    let call = json!({"id": call.id, "type": "function", "function": function});
                    Ok(to_template(&call))
                })
                .collect::<Result<Value, ChatError>>()?;
            fields.push(("tool_calls", calls));
        }
        let names = [("tool_call_id", &self.tool_call_id), ("name", &self.name)];
        for (field, text) in names {
            fields.extend(text.as_deref().map(|text| (field, Value::from(text))));
        }
        Ok(Value::from_pairs(fields))
    }
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
    #[error("the model's chat template refuses the messages: {problem}")]
    Render {
        /// Kind, words and place.
        problem: String,
        /// Whether the words stand in the template, so that they repeat nothing of the messages.
        is_fixed: bool,
    },
    /// What an assistant says can't be told from the rest.
    #[error(
        "the model's chat template changes earlier turns when a later one is added (some drop earlier thinking), so that the assistant's tokens are unknown; it works with one answer in a row, or with a template that has {{% generation %}}"
    )]
    NotIncremental,
    /// A call's arguments are no JSON.
    #[error("a tool call's arguments are not valid JSON: {0}")]
    Arguments(String),
    /// A message holds a character that the marks need.
    #[error("a message holds U+FDD0 or U+FDD1, which are no characters")]
    Mark,
}

/// A conversation as text, and which of its bytes the assistant wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// The text.
    pub text: String,
    /// What the assistant wrote, end tokens included.
    pub answers: Vec<Range<usize>>,
    /// Whether the template said so. Then a token that is an answer's in part is the answer's, as in
    /// transformers; else one that begins in it.
    pub is_marked: bool,
}

impl Transcript {
    /// Whether the token of these bytes is the assistant's.
    pub fn is_answer(&self, (start, end): (usize, usize)) -> bool {
        self.answers.iter().any(|answer| {
            if self.is_marked {
                start < answer.end && end > answer.start
            } else {
                answer.contains(&start)
            }
        })
    }
}

/// A parsed template with the tokens that it may print.
pub struct ChatTemplate {
    environment: Environment<'static>,
    tool_format: Option<ToolFormat>,
    marks_arguments: bool,
    has_generation: bool,
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
    /// strings, lists and dicts work. `strftime_now` prints one fixed date: the same row gives the
    /// same tokens on any day, in training and in serving.
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
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            jiff::fmt::strtime::format(&format, DATE)
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        environment.add_filter("tojson", tojson);
        environment.add_filter("graftwork_plain", |body: String| body);
        let [start, end] = MARKS;
        environment.add_filter("graftwork_marked", move |body: String| {
            format!("{start}{body}{end}")
        });
        let tool_format = ToolFormat::of_template(&source);
        let marks_arguments = source.contains(ARGUMENTS_MARK);
        let marked = with_generation(&source, "graftwork_marked");
        let has_generation = marked != source;
        for (name, text) in [
            (NAME, with_generation(&source, "graftwork_plain")),
            (MARKED, marked),
        ] {
            environment
                .add_template_owned(name, text)
                .map_err(|error| ChatError::Syntax(error.to_string()))?;
        }
        Ok(Self {
            environment,
            tool_format,
            marks_arguments,
            has_generation,
            bos: bos.unwrap_or_default().to_owned(),
            eos: eos.unwrap_or_default().to_owned(),
        })
    }

    /// How a model that was trained with this template calls tools; none: it does not.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        self.tool_format
    }

    /// What stands around the arguments of an answer that is one call of the tool `name`; none: the model calls none.
    pub(crate) fn around_arguments(&self, name: &str) -> Option<(String, &'static str)> {
        let format = self.tool_format?;
        Some(format.around(name, self.marks_arguments))
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
        self.render_template(NAME, messages, &[], add_generation_prompt)
    }

    /// As [`Self::render`], with tools that the assistant may call, as OpenAI's API describes them.
    ///
    /// # Errors
    /// [`ChatError::Render`].
    pub fn render_with_tools(
        &self,
        messages: &[ChatMessage],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        self.render_template(NAME, messages, tools, add_generation_prompt)
    }

    fn render_template(
        &self,
        name: &str,
        messages: &[ChatMessage],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let refuse = |error: Error| {
            let template = self.environment.get_template(name);
            let source = template.map_or_else(|_| String::new(), |it| it.source().to_owned());
            ChatError::Render {
                is_fixed: error.detail().is_none_or(|words| source.contains(words)),
                problem: error.to_string(),
            }
        };
        let template = self.environment.get_template(name).map_err(refuse)?;
        let messages = messages
            .iter()
            .map(ChatMessage::to_template)
            .collect::<Result<Value, ChatError>>()?;
        let tools: Value = if tools.is_empty() {
            Value::from(())
        } else {
            tools.iter().map(to_template).collect()
        };
        template
            .render(context! {
                messages => messages,
                tools => tools,
                documents => (),
                add_generation_prompt => add_generation_prompt,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
            })
            .map_err(refuse)
    }

    /// The text of `messages` with what the assistant wrote, end tokens included: what stands in the
    /// template's `{% generation %}`, or without that from where a generation prompt would end to
    /// where the turn ends.
    ///
    /// # Errors
    /// [`ChatError::NotIncremental`] where a later turn changes the text of an earlier one and the
    /// template does not say who wrote what.
    pub fn render_with_answers(&self, messages: &[ChatMessage]) -> Result<Transcript, ChatError> {
        if self.has_generation {
            // One mark after the other: a single character is looked for many bytes at a time.
            let has_mark =
                |turn: &ChatMessage| MARKS.iter().any(|mark| turn.content.contains(*mark));
            if messages.iter().any(has_mark) {
                return Err(ChatError::Mark);
            }
            return Ok(unmark(&self.render_template(
                MARKED,
                messages,
                &[],
                false,
            )?));
        }
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
        Ok(Transcript {
            text,
            answers,
            is_marked: false,
        })
    }
}

/// The template with its `{% generation %}` blocks as blocks of a filter.
fn with_generation(source: &str, filter: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        rest = tag;
        let Some((inside, after)) = tag.split_once("%}") else {
            break;
        };
        let word = inside.trim_start_matches(['-', '+']);
        let replaced = match word.trim_end_matches(['-', '+']).trim() {
            "generation" => inside.replacen("generation", &format!("filter {filter}"), 1),
            "endgeneration" => inside.replacen("endgeneration", "endfilter", 1),
            _ => inside.to_owned(),
        };
        out.push_str(&replaced);
        out.push_str("%}");
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Takes the marks out and keeps where they were.
fn unmark(marked: &str) -> Transcript {
    let [open, close] = MARKS;
    let mut text = String::with_capacity(marked.len());
    let mut answers = Vec::new();
    let mut opens = marked.match_indices(open).map(|(at, _)| at).peekable();
    let mut closes = marked.match_indices(close).map(|(at, _)| at).peekable();
    let (mut start, mut from) = (None, 0);
    loop {
        let (at, mark) = match (opens.peek().copied(), closes.peek().copied()) {
            (Some(at), other) if other.is_none_or(|other| at < other) => {
                opens.next();
                (at, open)
            }
            (_, Some(at)) => {
                closes.next();
                (at, close)
            }
            _ => break,
        };
        text.push_str(marked.get(from..at).unwrap_or_default());
        from = at + mark.len_utf8();
        if mark == open {
            start.get_or_insert(text.len());
        } else {
            answers.extend(start.take().map(|start| start..text.len()));
        }
    }
    text.push_str(marked.get(from..).unwrap_or_default());
    Transcript {
        text,
        answers,
        is_marked: true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage::new(role, content)
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
    fn marks_are_taken_out_wherever_they_stand() {
        let [open, close] = MARKS;
        let pieces = ["", "é", "answer"].map(str::to_owned);
        let [open, close] = [open, close].map(String::from);
        let pieces = [&pieces[0], &pieces[1], &pieces[2], &open, &close];
        for number in 0..5_usize.pow(6) {
            let marked: String = (0..6)
                .map(|digit| pieces[number / 5_usize.pow(digit) % 5].as_str())
                .collect();
            // Character by character, as one would write it down first.
            let (mut text, mut answers, mut start) = (String::new(), Vec::new(), None);
            for character in marked.chars() {
                match MARKS.iter().position(|mark| *mark == character) {
                    Some(0) => start = start.or(Some(text.len())),
                    Some(_) => answers.extend(start.take().map(|start| start..text.len())),
                    None => text.push(character),
                }
            }
            let found = unmark(&marked);
            assert_eq!((found.text, found.answers), (text, answers), "{marked:?}");
        }
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
        let transcript = template.render_with_answers(&turns).unwrap();
        assert_eq!(answers(&transcript), ["b</s>", "d</s>"]);
    }

    fn answers(transcript: &Transcript) -> Vec<&str> {
        let ranges = transcript.answers.iter().cloned();
        ranges.map(|range| &transcript.text[range]).collect()
    }

    /// Text and answers as jinja2 3.1 with transformers' extension gives them.
    #[test]
    fn generation_blocks_are_the_answers_and_treat_white_space_as_jinja2_does() {
        let source = "{% for m in messages %}\n[{{ m.role }}]\n    {% if m.role == 'assistant' %}\n    \
            {%- generation -%}\n      {{ m.content }}!\n    {% endgeneration %}\n    \
            {% else %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n";
        let template = ChatTemplate::parse(source.to_owned(), None, None).unwrap();
        let turns = [message("user", "a"), message("assistant", "b")];
        let transcript = template.render_with_answers(&turns).unwrap();
        assert_eq!(transcript.text, "[user]\na\n[assistant]\nb!\n");
        assert_eq!(answers(&transcript), ["b!\n"]);
        assert_eq!(template.render(&turns, false).unwrap(), transcript.text);
        // A token that reaches into the answer is the answer's.
        let start = transcript.answers[0].start;
        assert!(transcript.is_answer((start - 1, start + 1)));
        assert!(!transcript.is_answer((start - 2, start)));
        let turns = [message("assistant", "a\u{fdd0}")];
        assert!(matches!(
            template.render_with_answers(&turns),
            Err(ChatError::Mark)
        ));
    }

    /// As Qwen 3's, shortened: the last answer has its thinking, earlier ones lose it.
    const FORGETFUL: &str = "{% for m in messages %}{% if m.role == 'assistant' %}[assistant]\
        GEN{% if loop.last %}<think></think>{% endif %}{{ m.content }}{{ eos_token }}DNE\
        {% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}\
        {% if add_generation_prompt %}[assistant]{% endif %}";

    #[test]
    fn a_template_that_drops_earlier_thinking_works_for_one_answer_or_with_generation_blocks() {
        let turns = [
            message("user", "a"),
            message("assistant", "b"),
            message("user", "c"),
            message("assistant", "d"),
        ];
        let parse = |source: String| ChatTemplate::parse(source, None, Some("$")).unwrap();
        let plain = parse(FORGETFUL.replace("GEN", "").replace("DNE", ""));
        let one = plain.render_with_answers(&turns[..2]).unwrap();
        assert_eq!(answers(&one), ["<think></think>b$"]);
        let text = plain.render_with_answers(&turns).unwrap_err().to_string();
        assert!(text.contains("drop earlier thinking"), "{text}");
        assert!(text.ends_with("that has {% generation %}"), "{text}");
        let exact = parse(
            FORGETFUL
                .replace("GEN", "{% generation %}")
                .replace("DNE", "{% endgeneration %}"),
        );
        let many = exact.render_with_answers(&turns).unwrap();
        assert_eq!(
            many.text,
            "[user]a[assistant]b$[user]c[assistant]<think></think>d$"
        );
        assert_eq!(answers(&many), ["b$", "<think></think>d$"]);
    }

    #[test]
    fn the_date_is_the_same_on_any_day_and_tools_are_none() {
        let source = "{{ strftime_now('%d %b %Y') }} {{ tools is none }} {{ '%}' }}";
        let template = ChatTemplate::parse(source.to_owned(), None, None).unwrap();
        assert_eq!(template.render(&[], false).unwrap(), "26 Jul 2024 True %}");
        let source = "{{ strftime_now('%') }}";
        let template = ChatTemplate::parse(source.to_owned(), None, None).unwrap();
        assert!(template.render(&[], false).is_err());
    }

    /// As Qwen 2.5's, shortened; the text is what jinja2 3.1 makes of it with transformers' settings.
    #[test]
    fn tools_their_calls_and_their_answers_are_printed_as_the_template_says() {
        let source = "{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}\
            {{- '\\n</tools>\\n' }}{%- endif %}{%- for message in messages %}\
            {%- if message.tool_calls is defined %}{%- for call in message.tool_calls %}\
            {%- set call = call.function %}{{- '<tool_call>{\"name\": \"' ~ call.name ~ '\", \"arguments\": ' }}\
            {{- call.arguments | tojson }}{{- '}</tool_call>\\n' }}{%- endfor %}\
            {%- elif message.role == 'tool' %}{{- '[' ~ message.tool_call_id ~ ' ' ~ message.name ~ ']' ~ message.content ~ '\\n' }}\
            {%- else %}{{- message.content ~ '\\n' }}{%- endif %}{%- endfor %}";
        let template = ChatTemplate::parse(source.to_owned(), None, None).unwrap();
        assert_eq!(template.tool_format(), Some(ToolFormat::Hermes));
        let mut asked = message("assistant", "");
        asked.tool_calls = vec![ToolCall {
            id: "c1".into(),
            name: "f".into(),
            arguments: r#"{"b":"<é>","a":1}"#.into(),
        }];
        let mut answered = message("tool", "7");
        answered.tool_call_id = Some("c1".into());
        answered.name = Some("f".into());
        let tools = [json!({"type": "function", "function": {"name": "f"}})];
        let turns = [message("user", "hi"), asked, answered];
        let text = template.render_with_tools(&turns, &tools, true).unwrap();
        assert_eq!(
            text,
            "<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\"}}\n</tools>\nhi\n\
            <tool_call>{\"name\": \"f\", \"arguments\": {\"b\": \"<é>\", \"a\": 1}}</tool_call>\n[c1 f]7\n"
        );
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
        let is_fixed = |source: &str| {
            let template = ChatTemplate::parse(source.to_owned(), None, None).unwrap();
            let messages = [ChatMessage::new("user", "4111 1111")];
            let error = template.render(&messages, false).unwrap_err();
            matches!(error, ChatError::Render { is_fixed: true, .. })
        };
        assert!(is_fixed(source));
        assert!(!is_fixed(
            "{{ raise_exception('odd: ' + messages[0].content) }}"
        ));
        assert!(!is_fixed("{{ raise_exception(messages[0].content[:4]) }}"));
        let source =
            "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}";
        let template = ChatTemplate::parse(source.to_owned(), None, None).unwrap();
        assert!(template.render(&[], false).is_err());
        assert!(ChatTemplate::parse("{% if %}".to_owned(), None, None).is_err());
    }

    /// What templates are made of.
    const PIECES: [&str; 24] = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        " for m in messages ",
        " endfor ",
        " if ",
        " else ",
        " endif ",
        " set x = ",
        "messages",
        "m.content",
        "m['role']",
        "[0]",
        "[1:]",
        ".strip()",
        " | upper",
        " + ",
        "'text'",
        " loop.last ",
        "\n",
        "é",
    ];

    proptest! {
        #[test]
        fn what_a_user_writes_is_printed_and_never_run(
            content in "([a-z]|\\{\\{|\\}\\}|\\{%|%\\}|\\{#|[ é\n'\"]){0,30}",
        ) {
            let source = "{% for m in messages %}[{{ m.content }}]{% endfor %}";
            let template = ChatTemplate::parse(source.to_owned(), None, None).unwrap();
            let text = template.render(&[message("user", &content)], true).unwrap();
            prop_assert_eq!(text, format!("[{content}]"));
        }

        #[test]
        fn any_template_prints_something_or_says_why_not(
            pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..25),
        ) {
            let messages = [message("user", "a"), message("assistant", "b")];
            match ChatTemplate::parse(pieces.concat(), Some("<s>"), Some("</s>")) {
                Ok(template) => {
                    if let Err(error) = template.render_with_answers(&messages) {
                        prop_assert!(!error.to_string().is_empty());
                    }
                }
                Err(error) => prop_assert!(matches!(error, ChatError::Syntax(_)), "{error}"),
            }
        }
    }
}
