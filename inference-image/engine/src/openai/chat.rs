//! `POST /v1/chat/completions`.

use graftwork_model::tokenizer::ChatMessage;
use serde_json::Value;

use super::ApiError;
use super::fields::{Fields, Neutral};
use super::format::read_format;
use super::messages::read_messages;
use super::parameters::{Parameters, read_token_limit};
use super::tools::{Tools, read_tools};

const NEUTRAL: &[(&str, Neutral)] = &[
    ("functions", Neutral::Empty),
    ("function_call", Neutral::Text(&["none", "auto"])),
    ("modalities", Neutral::TextList),
    ("reasoning_effort", Neutral::Text(&["none"])),
    ("verbosity", Neutral::Text(&["medium"])),
    ("prediction", Neutral::Empty),
];

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// How to generate; without a token limit, up to the context's end.
    pub parameters: Parameters,
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    /// What the answer may call.
    pub tools: Option<Tools>,
    /// The schema that the answer is to be JSON of.
    pub schema: Option<Value>,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 naming what is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut parameters = Parameters::read(&mut fields)?;
        let older = read_token_limit(&mut fields, "max_tokens", 1)?;
        let newer = read_token_limit(&mut fields, "max_completion_tokens", 1)?;
        if let (Some(older), Some(newer)) = (older, newer)
            && older != newer
        {
            let problem = format!(
                "is {older} and max_completion_tokens is {newer}: send one of them, they mean the same"
            );
            return Err(fields.wrong("max_tokens", &problem));
        }
        parameters.maximum_new_tokens = newer.or(older);
        let wanted = fields.boolean("logprobs")?.unwrap_or(false);
        let top = fields.whole("top_logprobs", 0..=20)?;
        if top.is_some() && !wanted {
            return Err(fields.wrong("top_logprobs", "is only allowed with logprobs = true"));
        }
        parameters.logprobs = wanted.then(|| top.unwrap_or(0) as usize);
        let messages = read_messages(&mut fields)?;
        let tools = read_tools(&mut fields)?;
        let schema = read_format(&mut fields)?;
        if schema.is_some() && tools.is_some() {
            let problem = "leaves no place for calls of tools; leave one of them out, or send tool_choice = \"none\"";
            return Err(fields.wrong("response_format", problem));
        }
        if schema.is_some() && parameters.ignore_eos {
            let problem =
                "is true, but JSON ends where it is whole; leave it out, or response_format";
            return Err(fields.wrong("ignore_eos", problem));
        }
        let is_forced = tools.as_ref().is_some_and(|tools| !tools.forced.is_empty());
        if is_forced && parameters.ignore_eos {
            let problem = "is true, but a call ends where it is whole; leave it out, or send tool_choice = \"auto\"";
            return Err(fields.wrong("ignore_eos", problem));
        }
        fields.neutral(NEUTRAL)?;
        fields.finish()?;
        Ok(Self {
            parameters,
            messages,
            tools,
            schema,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<ChatRequest, ApiError> {
        ChatRequest::parse(format!(r#"{{"model": "a", {fields}}}"#).as_bytes())
    }

    const HI: &str = r#""messages": [{"role": "user", "content": "hi"}]"#;

    #[test]
    fn both_names_of_the_token_limit_are_read() {
        for limit in [
            r#""max_tokens": 5"#,
            r#""max_completion_tokens": 5"#,
            r#""max_tokens": 5, "max_completion_tokens": 5"#,
        ] {
            let request = parse(&format!("{HI}, {limit}")).unwrap();
            assert_eq!(request.parameters.maximum_new_tokens, Some(5));
        }
        assert_eq!(parse(HI).unwrap().parameters.maximum_new_tokens, None);
    }

    #[test]
    fn values_that_change_nothing_are_accepted() {
        parse(&format!(
            r#"{HI}, "tools": [], "tool_choice": "auto", "parallel_tool_calls": true, "store": false,
            "presence_penalty": 0, "frequency_penalty": 0.0, "user": "u", "metadata": {{"a": "b"}},
            "response_format": {{"type": "text"}}, "modalities": ["text"], "service_tier": "auto",
            "logit_bias": {{}}, "n": 1, "audio": null, "logprobs": false, "safety_identifier": "x""#
        ))
        .unwrap();
    }

    #[test]
    fn what_can_not_be_done_is_named() {
        for (fields, param) in [
            (r#""tools": [{"type": "function"}]"#, "tools[0].function"),
            (r#""messages": []"#, "messages"),
            (r#""tool_choice": "required""#, "tool_choice"),
            (
                r#""response_format": {"type": "regex"}"#,
                "response_format.type",
            ),
            (
                r#""response_format": {"type": "json_object"}, "ignore_eos": true"#,
                "ignore_eos",
            ),
            (
                r#""response_format": {"type": "json_object"},
                "tools": [{"type": "function", "function": {"name": "f"}}]"#,
                "response_format",
            ),
            (
                r#""tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required",
                "ignore_eos": true"#,
                "ignore_eos",
            ),
            (r#""reasoning_effort": "high""#, "reasoning_effort"),
            (r#""store": true"#, "store"),
            (r#""top_logprobs": 3"#, "top_logprobs"),
            (r#""logprobs": true, "top_logprobs": 21"#, "top_logprobs"),
            (
                r#""max_tokens": 3, "max_completion_tokens": 4"#,
                "max_tokens",
            ),
            (r#""audio": {}"#, "audio"),
            (r#""prompt": "x""#, "prompt"),
        ] {
            let error = parse(&format!("{HI}, {fields}")).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        }
    }
}
