//! `POST /v1/chat/completions`.

use graftwork_model::tokenizer::ChatMessage;
use serde_json::Value;

use super::ApiError;
use super::fields::{Fields, Neutral};
use super::parameters::{Parameters, read_token_limit};

/// Messages of one conversation.
pub const MAXIMUM_MESSAGES: usize = 4096;

const NEUTRAL: &[(&str, Neutral)] = &[
    ("tools", Neutral::Empty),
    ("tool_choice", Neutral::Text(&["none", "auto"])),
    ("parallel_tool_calls", Neutral::Boolean),
    ("functions", Neutral::Empty),
    ("function_call", Neutral::Text(&["none", "auto"])),
    ("response_format", Neutral::TextType),
    ("modalities", Neutral::TextList),
    ("reasoning_effort", Neutral::Text(&["none"])),
    ("verbosity", Neutral::Text(&["medium"])),
    ("prediction", Neutral::Empty),
];

/// Message fields at which nothing changes.
const NEUTRAL_MESSAGE: &[(&str, Neutral)] =
    &[("tool_calls", Neutral::Empty), ("refusal", Neutral::Empty)];

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// How to generate; without a token limit, up to the context's end.
    pub parameters: Parameters,
    /// The conversation.
    pub messages: Vec<ChatMessage>,
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
        fields.neutral(NEUTRAL)?;
        fields.finish()?;
        Ok(Self {
            parameters,
            messages,
        })
    }
}

/// Takes a conversation.
///
/// # Errors
/// 400 naming what is wrong with which message.
pub(super) fn read_messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, ApiError> {
    let list = match fields.take("messages") {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(Value::Array(_)) => return Err(fields.wrong("messages", "is empty")),
        Some(other) => return Err(fields.wrong_type("messages", "a list", &other)),
        None => return Err(fields.wrong("messages", "is missing")),
    };
    if list.len() > MAXIMUM_MESSAGES {
        let problem = format!(
            "has {} entries, the limit is {MAXIMUM_MESSAGES}; leave the oldest out",
            list.len()
        );
        return Err(fields.wrong("messages", &problem));
    }
    list.into_iter()
        .enumerate()
        .map(|(index, value)| {
            let mut message = fields.element("messages", index, value)?;
            let role = match message.text("role")?.as_deref() {
                // OpenAI's newer word for the same.
                Some("developer" | "system") => "system",
                Some("user") => "user",
                Some("assistant") => "assistant",
                Some(_) => {
                    return Err(message.wrong(
                        "role",
                        "must be one of system, developer, user and assistant",
                    ));
                }
                None => return Err(message.wrong("role", "is missing")),
            };
            let content = read_content(&mut message)?;
            message.neutral(NEUTRAL_MESSAGE)?;
            message.finish()?;
            Ok(ChatMessage {
                role: role.to_owned(),
                content,
            })
        })
        .collect()
}

/// A text, or a list of text parts, which are joined.
fn read_content(message: &mut Fields) -> Result<String, ApiError> {
    match message.take("content") {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for (index, part) in parts.into_iter().enumerate() {
                let mut part = message.element("content", index, part)?;
                if part.text("type")?.as_deref() != Some("text") {
                    return Err(part.wrong("type", "must be \"text\": the model reads text only"));
                }
                text.push_str(
                    &part
                        .text("text")?
                        .ok_or_else(|| part.wrong("text", "is missing"))?,
                );
                part.finish()?;
            }
            Ok(text)
        }
        Some(other) => {
            Err(message.wrong_type("content", "a string or a list of text parts", &other))
        }
        None => Err(message.wrong("content", "is missing")),
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
    fn messages_are_read_with_text_parts_joined() {
        let request = parse(
            r#""messages": [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "refusal": null, "tool_calls": []}
            ]"#,
        )
        .unwrap();
        let read: Vec<_> = request
            .messages
            .iter()
            .map(|m| (m.role.as_str(), m.content.as_str()))
            .collect();
        assert_eq!(
            read,
            [("system", "be brief"), ("user", "ab"), ("assistant", "c")]
        );
    }

    #[test]
    fn a_conversation_has_a_limit_that_is_named() {
        let messages = vec![r#"{"role": "user", "content": "x"}"#; 4097].join(",");
        let error = parse(&format!(r#""messages": [{messages}]"#)).unwrap_err();
        assert!(
            error.message.contains("4097") && error.message.contains("4096"),
            "{error}"
        );
    }

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
            (r#""tools": [{"type": "function"}]"#, "tools"),
            (
                r#""response_format": {"type": "json_object"}"#,
                "response_format",
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
        for (messages, param) in [
            ("[]", "messages"),
            ("3", "messages"),
            ("[3]", "messages[0]"),
            (r#"[{"role": "tool", "content": "x"}]"#, "messages[0].role"),
            (r#"[{"role": "user"}]"#, "messages[0].content"),
            (
                r#"[{"role": "user", "content": "x", "name": "y"}]"#,
                "messages[0].name",
            ),
            (
                r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#,
                "messages[0].content[0].type",
            ),
        ] {
            let error = parse(&format!(r#""messages": {messages}"#)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        }
    }
}
