//! Rows of a dataset as tokens, and which of these the model learns.

use super::words::Placed;
use super::{TextTokenizer, TokenizerError};
use crate::chat::{ChatError, ChatMessage};

/// Tokens of one training row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedExample {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Whether each token is a training target.
    pub loss_mask: Vec<bool>,
}

impl TextTokenizer {
    /// A Text row: every token is a target, the end included.
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn example_text(&self, text: &str) -> Result<TokenizedExample, TokenizerError> {
        let mut tokens = self.encode_prompt(text)?;
        tokens.push(self.eos.ok_or(TokenizerError::NoEos)?);
        Ok(TokenizedExample {
            loss_mask: vec![true; tokens.len()],
            tokens,
        })
    }

    /// A Completion row: the completion's tokens and the end are targets. The prompt is cut into
    /// tokens by itself, as it is when it is served.
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn example_completion(
        &self,
        prompt: &str,
        completion: &str,
    ) -> Result<TokenizedExample, TokenizerError> {
        let mut tokens = self.encode_prompt(prompt)?;
        let mut loss_mask = vec![false; tokens.len()];
        tokens.extend(self.encode(completion, false)?);
        tokens.push(self.eos.ok_or(TokenizerError::NoEos)?);
        loss_mask.resize(tokens.len(), true);
        Ok(TokenizedExample { tokens, loss_mask })
    }

    /// A Chat row: what the assistant says is a target, each turn's end included. See
    /// [`crate::chat::ChatTemplate::render_with_answers`].
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn example_chat(
        &self,
        messages: &[ChatMessage],
    ) -> Result<TokenizedExample, TokenizerError> {
        let template = self.template.as_ref().ok_or(ChatError::None)?;
        let transcript = template.render_with_answers(messages)?;
        let words = self.words.as_ref();
        if let Some(placed) = words.and_then(|it| it.encode(&self.tokenizer, &transcript.text)) {
            let is_answer = |token: &Placed| transcript.is_answer((token.start, token.end));
            return Ok(TokenizedExample {
                loss_mask: placed.iter().map(is_answer).collect(),
                tokens: placed.iter().map(|token| token.id).collect(),
            });
        }
        self.cuts
            .check(&transcript.text)
            .map_err(TokenizerError::Tokenize)?;
        let encoding = self
            .tokenizer
            .encode(transcript.text.as_str(), false)
            .map_err(|error| TokenizerError::Tokenize(error.to_string()))?;
        let loss_mask = encoding
            .get_offsets()
            .iter()
            .map(|offsets| transcript.is_answer(*offsets))
            .collect();
        Ok(TokenizedExample {
            tokens: encoding.get_ids().to_vec(),
            loss_mask,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{TinyShape, write_tiny_base};
    use crate::tokenizer::CHAT_TEMPLATE_FILE;
    use crate::tokenizer::tests::tokenizer;

    #[test]
    fn a_completion_row_begins_with_the_tokens_that_serving_sees() {
        let tokenizer = tokenizer();
        let row = tokenizer.example_completion("Colour:", " blue").unwrap();
        let prompt = tokenizer.encode_prompt("Colour:").unwrap();
        assert_eq!(row.tokens[..prompt.len()], prompt);
        assert_eq!(row.tokens.last().copied(), tokenizer.eos());
        let targets: Vec<u32> = row
            .tokens
            .iter()
            .zip(&row.loss_mask)
            .filter_map(|(token, target)| target.then_some(*token))
            .collect();
        assert_eq!(tokenizer.decode(&targets, true).unwrap(), " blue");
        assert_eq!(targets.last().copied(), tokenizer.eos());
        assert_eq!(tokenizer.decode(&prompt, true).unwrap(), "Colour:");
    }

    #[test]
    fn a_chat_row_learns_the_answers_and_begins_with_the_tokens_that_serving_sees() {
        let tokenizer = tokenizer();
        let turns = [
            ChatMessage::new("user", "Colour?"),
            ChatMessage::new("assistant", "blue"),
        ];
        let row = tokenizer.example_chat(&turns).unwrap();
        let prompt = tokenizer.encode_chat_prompt(&turns[..1]).unwrap();
        assert_eq!(row.tokens[..prompt.len()], prompt);
        assert!(row.loss_mask[..prompt.len()].iter().all(|target| !target));
        assert!(row.loss_mask[prompt.len()]);
        let answer: Vec<u32> = row.tokens[prompt.len()..].to_vec();
        assert!(tokenizer.decode(&answer, true).unwrap().starts_with("blue"));
    }

    #[test]
    fn a_templates_generation_blocks_are_the_targets() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        let template = "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' }}\
            {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
            {{ eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}";
        std::fs::write(dir.path().join(CHAT_TEMPLATE_FILE), template).unwrap();
        let tokenizer = TextTokenizer::load(dir.path()).unwrap();
        let turns = [
            ("user", "é?"),
            ("assistant", "né"),
            ("user", "!"),
            ("assistant", "ok"),
        ];
        let turns = turns.map(|(role, content)| ChatMessage::new(role, content));
        let row = tokenizer.example_chat(&turns).unwrap();
        let targets: Vec<u32> = row
            .tokens
            .iter()
            .zip(&row.loss_mask)
            .filter_map(|(token, target)| target.then_some(*token))
            .collect();
        assert_eq!(tokenizer.decode(&targets, false).unwrap(), "néok");
        let eos = tokenizer.eos().unwrap();
        assert!(
            row.tokens.contains(&eos) && !targets.contains(&eos),
            "it stands outside"
        );
    }
}
