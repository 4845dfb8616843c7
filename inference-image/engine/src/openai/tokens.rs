//! `POST /tokenize` and `/detokenize`, with vLLM's field names.

use graftwork_model::tokenizer::ChatMessage;
use serde_json::Value;

use super::ApiError;
use super::fields::{Fields, Neutral};
use super::messages::read_messages;
use super::tools::read_list;

/// What is to be cut into tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// As `/v1/completions` cuts a prompt.
    Prompt {
        /// The text.
        text: String,
        /// Whether with what the tokenizer puts before a text.
        with_special: bool,
    },
    /// As `/v1/chat/completions` cuts a conversation.
    Chat {
        /// The conversation.
        messages: Vec<ChatMessage>,
        /// What the answer may call.
        tools: Vec<Value>,
        /// Whether the assistant's answer is opened at the end.
        opens_answer: bool,
    },
}

/// A request for tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizeRequest {
    /// What the client named, if anything: all models here share a tokenizer.
    pub model: Option<String>,
    /// What to cut.
    pub text: Text,
    /// Whether the tokens' texts are wanted too.
    pub with_texts: bool,
}

impl TokenizeRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 naming what is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.text("model")?;
        let with_texts = fields.boolean("return_token_strs")?.unwrap_or(false);
        let text = match fields.text("prompt")? {
            Some(text) => Text::Prompt {
                text,
                with_special: fields.boolean("add_special_tokens")?.unwrap_or(true),
            },
            None => {
                // The template writes them where they belong.
                fields.neutral(&[("add_special_tokens", Neutral::False)])?;
                Text::Chat {
                    messages: read_messages(&mut fields)?,
                    tools: read_list(&mut fields)?.list,
                    opens_answer: fields.boolean("add_generation_prompt")?.unwrap_or(true),
                }
            }
        };
        fields.finish()?;
        Ok(Self {
            model,
            text,
            with_texts,
        })
    }
}

/// A request for the text of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// As in [`TokenizeRequest`].
    pub model: Option<String>,
    /// The tokens.
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 naming what is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.text("model")?;
        let tokens = match fields.take("tokens") {
            Some(Value::Array(ids)) => ids
                .iter()
                .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
                .collect::<Option<Vec<u32>>>()
                .ok_or_else(|| fields.wrong("tokens", "holds something that is no token id"))?,
            Some(other) => return Err(fields.wrong_type("tokens", "a list of token ids", &other)),
            None => return Err(fields.wrong("tokens", "is missing")),
        };
        fields.finish()?;
        Ok(Self { model, tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenize(body: &str) -> Result<TokenizeRequest, ApiError> {
        TokenizeRequest::parse(body.as_bytes())
    }

    #[test]
    fn a_prompt_or_a_conversation_is_read() {
        let prompt = tokenize(r#"{"prompt": "x"}"#).unwrap();
        let expected = Text::Prompt {
            text: "x".into(),
            with_special: true,
        };
        assert_eq!((prompt.model, prompt.text), (None, expected));
        let chat = tokenize(
            r#"{"model": "a", "messages": [{"role": "user", "content": "x"}],
                "add_generation_prompt": false, "return_token_strs": true}"#,
        )
        .unwrap();
        assert!(chat.with_texts);
        assert!(matches!(
            chat.text,
            Text::Chat {
                opens_answer: false,
                ..
            }
        ));
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        for (body, param) in [
            ("{}", "messages"),
            (r#"{"prompt": ["x"]}"#, "prompt"),
            (r#"{"prompt": "x", "messages": []}"#, "messages"),
            (
                r#"{"messages": [{"role": "user", "content": "x"}], "add_special_tokens": true}"#,
                "add_special_tokens",
            ),
            (r#"{"prompt": "x", "other": 1}"#, "other"),
        ] {
            let error = tokenize(body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        }
        for body in [
            r#"{"tokens": [1.5]}"#,
            r#"{"tokens": "1"}"#,
            r#"{"tokens": [-1]}"#,
            "{}",
        ] {
            let error = DetokenizeRequest::parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("tokens"), "{error}");
        }
    }
}
