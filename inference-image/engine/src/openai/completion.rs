//! `POST /v1/completions`.

use serde_json::Value;

use super::ApiError;
use super::fields::{Fields, Neutral};
use super::parameters::{Parameters, read_token_limit};

/// Tokens where the request says nothing, as in OpenAI.
const DEFAULT_NEW_TOKENS: usize = 16;

const NEUTRAL: &[(&str, Neutral)] = &[
    ("best_of", Neutral::One),
    ("echo", Neutral::False),
    ("suffix", Neutral::Empty),
];

/// What the answer continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Text, which is cut into tokens here.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// How to generate.
    pub parameters: Parameters,
    /// What to continue.
    pub prompt: Prompt,
}

impl CompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 naming what is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut parameters = Parameters::read(&mut fields)?;
        parameters.maximum_new_tokens =
            Some(read_token_limit(&mut fields, "max_tokens")?.unwrap_or(DEFAULT_NEW_TOKENS));
        parameters.logprobs = fields.whole("logprobs", 0..=5)?.map(|count| count as usize);
        let prompt = read_prompt(&mut fields)?;
        fields.neutral(NEUTRAL)?;
        fields.finish()?;
        Ok(Self { parameters, prompt })
    }
}

fn read_prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    let value = fields
        .take("prompt")
        .ok_or_else(|| ApiError::invalid("prompt", "prompt is missing"))?;
    prompt_of(fields, value)
}

fn prompt_of(fields: &Fields, value: Value) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(items) if items.is_empty() => {
            Err(fields.wrong("prompt", "is empty: send a text or token ids"))
        }
        Value::Array(items) if items.iter().all(Value::is_number) => items
            .iter()
            .map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<_>>()
            .map(Prompt::Tokens)
            .ok_or_else(|| fields.wrong("prompt", "holds a number that is no token id")),
        Value::Array(mut items) => match (items.pop(), items.len()) {
            (Some(only @ (Value::String(_) | Value::Array(_))), 0) => prompt_of(fields, only),
            (_, before) => Err(ApiError::unsupported(
                "prompt",
                format!(
                    "prompt has {} entries, this engine takes 1 per request",
                    before + 1
                ),
            )),
        },
        other => Err(fields.wrong_type("prompt", "a string or a list of token ids", &other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<CompletionRequest, ApiError> {
        CompletionRequest::parse(body.as_bytes())
    }

    #[test]
    fn openai_defaults_hold() {
        let request = parse(r#"{"model": "a", "prompt": "x"}"#).unwrap();
        assert_eq!(
            request.parameters,
            Parameters {
                model: "a".into(),
                temperature: 1.0,
                top_p: 1.0,
                seed: None,
                stop: vec![],
                maximum_new_tokens: Some(16),
                stream: false,
                include_usage: false,
                logprobs: None,
            }
        );
        assert_eq!(request.prompt, Prompt::Text("x".into()));
    }

    #[test]
    fn a_prompt_is_a_text_or_token_ids_also_as_the_only_entry_of_a_list() {
        for (prompt, expected) in [
            (r#"["x"]"#, Prompt::Text("x".into())),
            ("[5, 6]", Prompt::Tokens(vec![5, 6])),
            ("[[5, 6]]", Prompt::Tokens(vec![5, 6])),
        ] {
            let request = parse(&format!(r#"{{"model": "a", "prompt": {prompt}}}"#)).unwrap();
            assert_eq!(request.prompt, expected);
        }
    }

    #[test]
    fn what_can_not_be_done_is_named() {
        for (fields, param) in [
            (r#""prompt": ["a", "b"]"#, "prompt"),
            (r#""prompt": []"#, "prompt"),
            (r#""prompt": [-1]"#, "prompt"),
            (r#""prompt": [1.5]"#, "prompt"),
            (r#""prompt": 4"#, "prompt"),
            (r#""suffix": "x", "prompt": "x""#, "suffix"),
            (r#""n": 2, "prompt": "x""#, "n"),
            (r#""n": 0, "prompt": "x""#, "n"),
            (r#""best_of": 2, "prompt": "x""#, "best_of"),
            (r#""echo": true, "prompt": "x""#, "echo"),
            (r#""logprobs": 6, "prompt": "x""#, "logprobs"),
            (r#""max_tokens": 0, "prompt": "x""#, "max_tokens"),
            (r#""temperature": 2.1, "prompt": "x""#, "temperature"),
            (r#""top_p": 0, "prompt": "x""#, "top_p"),
            (r#""stop": ["a","b","c","d","e"], "prompt": "x""#, "stop"),
            (r#""stop": "", "prompt": "x""#, "stop"),
            (r#""stream_options": {}, "prompt": "x""#, "stream_options"),
            (r#""top_k": 3, "prompt": "x""#, "top_k"),
            (r#""logit_bias": {"1": 2}, "prompt": "x""#, "logit_bias"),
            (r#""stream": 1, "prompt": "x""#, "stream"),
        ] {
            let error = parse(&format!(r#"{{"model": "a", {fields}}}"#)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{fields}: {error}");
            assert_eq!(error.status, 400, "{fields}");
        }
        assert_eq!(
            parse(r#"{"prompt": "x"}"#).unwrap_err().param.as_deref(),
            Some("model")
        );
    }

    #[test]
    fn more_than_one_choice_is_refused_with_the_limit() {
        let error = parse(r#"{"model": "a", "prompt": "x", "n": 3}"#).unwrap_err();
        assert!(error.message.contains("at most 1 choice"), "{error}");
    }
}
