//! `POST /v1/completions`.

use serde_json::Value;

use super::ApiError;
use super::fields::{Fields, Neutral};
use super::parameters::{MAXIMUM_CHOICES, Parameters, read_token_limit};

/// Tokens where the request says nothing, as in OpenAI.
const DEFAULT_NEW_TOKENS: usize = 16;

/// Most probable tokens beside each chosen one, as in OpenAI.
const MAXIMUM_LOGPROBS: i64 = 5;

const NEUTRAL: &[(&str, Neutral)] = &[("suffix", Neutral::Empty)];

/// What the answer continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Text, which is cut into tokens here.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Of the text; token ids take no work.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(_) => 0,
        }
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// How to generate.
    pub parameters: Parameters,
    /// What to continue, each by itself.
    pub prompts: Vec<Prompt>,
    /// Whether the prompt stands before its answer.
    pub echo: bool,
}

impl CompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 naming what is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut parameters = Parameters::read(&mut fields)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        // An answer of nothing is of use only behind its prompt, whose log-probabilities it has.
        let least = i64::from(!echo);
        parameters.maximum_new_tokens =
            Some(read_token_limit(&mut fields, "max_tokens", least)?.unwrap_or(DEFAULT_NEW_TOKENS));
        parameters.logprobs = fields
            .whole("logprobs", 0..=MAXIMUM_LOGPROBS)?
            .map(|count| count as usize);
        if let Some(best_of) = fields.whole("best_of", 1..=MAXIMUM_CHOICES)?
            && best_of as usize != parameters.choices
        {
            return Err(ApiError::unsupported(
                "best_of",
                format!(
                    "best_of is {best_of} and n is {}: this engine gives every choice that it generates; leave best_of out, or send n = best_of and choose",
                    parameters.choices
                ),
            ));
        }
        let prompts = read_prompts(&mut fields)?;
        fields.neutral(NEUTRAL)?;
        fields.finish()?;
        Ok(Self {
            parameters,
            prompts,
            echo,
        })
    }
}

/// A text, token ids, or a list of either.
fn read_prompts(fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    match fields.take("prompt") {
        None => Err(fields.wrong("prompt", "is missing")),
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) if items.is_empty() => {
            Err(fields.wrong("prompt", "is empty: send a text or token ids"))
        }
        Some(Value::Array(items)) if items.iter().all(Value::is_number) => {
            Ok(vec![read_tokens(fields, &items)?])
        }
        Some(Value::Array(items)) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(ids) => read_tokens(fields, &ids),
                other => Err(wrong_prompt(fields, &other)),
            })
            .collect(),
        Some(other) => Err(wrong_prompt(fields, &other)),
    }
}

fn wrong_prompt(fields: &Fields, value: &Value) -> ApiError {
    fields.wrong_type(
        "prompt",
        "a string, a list of token ids, or a list of either",
        value,
    )
}

fn read_tokens(fields: &Fields, ids: &[Value]) -> Result<Prompt, ApiError> {
    if ids.is_empty() {
        return Err(fields.wrong("prompt", "has an entry without a token id"));
    }
    ids.iter()
        .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect::<Option<_>>()
        .map(Prompt::Tokens)
        .ok_or_else(|| fields.wrong("prompt", "holds something among token ids that is none"))
}

#[cfg(test)]
mod tests {
    use graftwork_model::sampler::{Adjustments, SamplingParams};

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
                choices: 1,
                sampling: SamplingParams::default(),
                adjustments: Adjustments::default(),
                seed: None,
                stop: vec![],
                ignore_eos: false,
                maximum_new_tokens: Some(16),
                stream: false,
                include_usage: false,
                logprobs: None,
            }
        );
        assert_eq!(request.prompts, [Prompt::Text("x".into())]);
        assert!(!request.echo);
    }

    #[test]
    fn a_prompt_is_a_text_or_token_ids_or_a_list_of_either() {
        let text = |text: &str| Prompt::Text(text.into());
        for (prompt, expected) in [
            (r#""x""#, vec![text("x")]),
            ("[5, 6]", vec![Prompt::Tokens(vec![5, 6])]),
            (r#"["x", "y"]"#, vec![text("x"), text("y")]),
            (
                "[[5, 6], [7]]",
                vec![Prompt::Tokens(vec![5, 6]), Prompt::Tokens(vec![7])],
            ),
            (r#"["x", [7]]"#, vec![text("x"), Prompt::Tokens(vec![7])]),
        ] {
            let request = parse(&format!(r#"{{"model": "a", "prompt": {prompt}}}"#)).unwrap();
            assert_eq!(request.prompts, expected);
        }
    }

    #[test]
    fn a_prompt_can_be_scored_without_an_answer() {
        let body = r#"{"model": "a", "prompt": "x", "echo": true, "max_tokens": 0, "logprobs": 1}"#;
        let request = parse(body).unwrap();
        assert_eq!(
            (request.echo, request.parameters.maximum_new_tokens),
            (true, Some(0))
        );
    }

    #[test]
    fn best_of_is_read_where_it_asks_for_what_is_given_anyway() {
        let request = parse(r#"{"model": "a", "prompt": "x", "n": 4, "best_of": 4}"#).unwrap();
        assert_eq!(request.parameters.choices, 4);
        let error = parse(r#"{"model": "a", "prompt": "x", "best_of": 3}"#).unwrap_err();
        assert!(error.message.contains("best_of is 3 and n is 1"), "{error}");
    }

    #[test]
    fn what_can_not_be_done_is_named() {
        for (fields, param) in [
            (r#""prompt": []"#, "prompt"),
            (r#""prompt": [[]]"#, "prompt"),
            (r#""prompt": ["a", 5]"#, "prompt"),
            (r#""prompt": [[5, "a"]]"#, "prompt"),
            (r#""prompt": [{}]"#, "prompt"),
            (r#""prompt": [-1]"#, "prompt"),
            (r#""prompt": [1.5]"#, "prompt"),
            (r#""prompt": 4"#, "prompt"),
            (r#""suffix": "x", "prompt": "x""#, "suffix"),
            (r#""n": 129, "prompt": "x""#, "n"),
            (r#""n": 0, "prompt": "x""#, "n"),
            (r#""best_of": 2, "prompt": "x""#, "best_of"),
            (r#""echo": 1, "prompt": "x""#, "echo"),
            (
                r#""echo": true, "max_tokens": -1, "prompt": "x""#,
                "max_tokens",
            ),
            (r#""logprobs": 6, "prompt": "x""#, "logprobs"),
            (r#""max_tokens": 0, "prompt": "x""#, "max_tokens"),
            (r#""temperature": 2.1, "prompt": "x""#, "temperature"),
            (r#""top_p": 0, "prompt": "x""#, "top_p"),
            (r#""stop": ["a", 1], "prompt": "x""#, "stop"),
            (r#""stop": "", "prompt": "x""#, "stop"),
            (r#""stream_options": {}, "prompt": "x""#, "stream_options"),
            (r#""top_k": 1.5, "prompt": "x""#, "top_k"),
            (r#""logit_bias": [], "prompt": "x""#, "logit_bias"),
            (r#""guided_regex": "a", "prompt": "x""#, "guided_regex"),
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
}
