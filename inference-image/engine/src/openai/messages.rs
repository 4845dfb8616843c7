//! The conversation of a request.

use std::collections::BTreeMap;

use graftwork_model::tokenizer::ChatMessage;
use graftwork_model::tool_calls::ToolCall;
use serde_json::{Map, Value};

use super::ApiError;
use super::error::cut;
use super::fields::{Fields, Neutral};

/// Messages of one conversation.
pub const MAXIMUM_MESSAGES: usize = 4096;
/// Calls of one message.
pub const MAXIMUM_CALLS: usize = 128;
/// Bytes of one call's arguments.
pub const MAXIMUM_ARGUMENT_BYTES: usize = 64 << 10;
/// Bytes of a call's id.
pub const MAXIMUM_ID_BYTES: usize = 256;

/// Message fields at which nothing changes.
const NEUTRAL: &[(&str, Neutral)] = &[("refusal", Neutral::Empty)];

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
    // Names of the tools that were called so far, by the calls' ids.
    let mut called = BTreeMap::new();
    let mut messages = Vec::with_capacity(list.len());
    for (index, value) in list.into_iter().enumerate() {
        let mut message = fields.element("messages", index, value)?;
        let read = read_message(&mut message, &called)?;
        message.neutral(NEUTRAL)?;
        message.finish()?;
        let calls = read.tool_calls.iter();
        called.extend(calls.map(|call| (call.id.clone(), call.name.clone())));
        messages.push(read);
    }
    Ok(messages)
}

fn read_message(
    message: &mut Fields,
    called: &BTreeMap<String, String>,
) -> Result<ChatMessage, ApiError> {
    let role = match message.text("role")?.as_deref() {
        // OpenAI's newer word for the same.
        Some("developer" | "system") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool") => "tool",
        Some(_) => {
            return Err(message.wrong(
                "role",
                "must be one of system, developer, user, assistant and tool",
            ));
        }
        None => return Err(message.wrong("role", "is missing")),
    };
    let tool_calls = if role == "assistant" {
        read_calls(message)?
    } else {
        message.neutral(&[("tool_calls", Neutral::Empty)])?;
        Vec::new()
    };
    let content = match read_content(message)? {
        Some(content) => content,
        // As OpenAI gives calls out.
        None if !tool_calls.is_empty() => String::new(),
        None => return Err(message.wrong("content", "is missing")),
    };
    let mut read = ChatMessage::new(role, content);
    read.tool_calls = tool_calls;
    if role == "tool" {
        let id = message
            .text("tool_call_id")?
            .ok_or_else(|| message.wrong("tool_call_id", "is missing"))?;
        let Some(name) = called.get(&id) else {
            return Err(message.wrong(
                "tool_call_id",
                "names no tool call of an earlier message; send the assistant's message with its tool_calls before the answers",
            ));
        };
        // Older clients name the tool here too.
        read.name = message.text("name")?.or_else(|| Some(name.clone()));
        read.tool_call_id = Some(id);
    }
    Ok(read)
}

/// A text, or a list of text parts, which are joined.
fn read_content(message: &mut Fields) -> Result<Option<String>, ApiError> {
    match message.take("content") {
        Some(Value::String(text)) => Ok(Some(text)),
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
            Ok(Some(text))
        }
        Some(other) => {
            Err(message.wrong_type("content", "a string or a list of text parts", &other))
        }
        None => Ok(None),
    }
}

fn read_calls(message: &mut Fields) -> Result<Vec<ToolCall>, ApiError> {
    let list = match message.take("tool_calls") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(message.wrong_type("tool_calls", "a list", &other)),
    };
    if list.len() > MAXIMUM_CALLS {
        let problem = format!("has {} entries, the limit is {MAXIMUM_CALLS}", list.len());
        return Err(message.wrong("tool_calls", &problem));
    }
    list.into_iter()
        .enumerate()
        .map(|(index, value)| read_call(message.element("tool_calls", index, value)?))
        .collect()
}

fn read_call(mut call: Fields) -> Result<ToolCall, ApiError> {
    let id = call
        .text("id")?
        .filter(|id| !id.is_empty())
        .ok_or_else(|| call.wrong("id", "is missing"))?;
    if id.len() > MAXIMUM_ID_BYTES {
        let problem = format!("has {} bytes, the limit is {MAXIMUM_ID_BYTES}", id.len());
        return Err(call.wrong("id", &problem));
    }
    if call.text("type")?.as_deref() != Some("function") {
        return Err(call.wrong("type", "must be \"function\""));
    }
    let mut function = call
        .object("function")?
        .ok_or_else(|| call.wrong("function", "is missing"))?;
    let name = function
        .text("name")?
        .filter(|name| !name.is_empty())
        .ok_or_else(|| function.wrong("name", "is missing"))?;
    let arguments = function
        .text("arguments")?
        .ok_or_else(|| function.wrong("arguments", "is missing"))?;
    if arguments.len() > MAXIMUM_ARGUMENT_BYTES {
        let problem = format!(
            "has {} bytes, the limit is {MAXIMUM_ARGUMENT_BYTES}",
            arguments.len()
        );
        return Err(function.wrong("arguments", &problem));
    }
    if let Err(error) = serde_json::from_str::<Map<String, Value>>(&arguments) {
        let problem = error.to_string();
        let problem = format!("must be the text of a JSON object: {}", cut(&problem));
        return Err(function.wrong("arguments", &problem));
    }
    function.finish()?;
    call.finish()?;
    Ok(ToolCall {
        id,
        name,
        arguments,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(messages: &str) -> Result<Vec<ChatMessage>, ApiError> {
        let body = format!(r#"{{"messages": {messages}}}"#);
        read_messages(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    const CALL: &str = r#"{"role": "assistant", "content": null, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]}"#;

    #[test]
    fn messages_are_read_with_text_parts_joined() {
        let messages = read(
            r#"[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "refusal": null, "tool_calls": []}
            ]"#,
        )
        .unwrap();
        let read: Vec<_> = messages
            .iter()
            .map(|m| (m.role.as_str(), m.content.as_str()))
            .collect();
        assert_eq!(
            read,
            [("system", "be brief"), ("user", "ab"), ("assistant", "c")]
        );
    }

    #[test]
    fn calls_and_their_answers_are_read_and_an_answer_knows_its_tool() {
        let answer = r#"{"role": "tool", "tool_call_id": "c1", "content": "7"}"#;
        let messages = read(&format!("[{CALL}, {answer}]")).unwrap();
        let expected = ToolCall {
            id: "c1".into(),
            name: "f".into(),
            arguments: r#"{"a": 1}"#.into(),
        };
        assert_eq!(messages[0].tool_calls, [expected]);
        assert_eq!(messages[0].content, "");
        let answer = &messages[1];
        assert_eq!(
            (answer.role.as_str(), answer.content.as_str()),
            ("tool", "7")
        );
        assert_eq!(answer.tool_call_id.as_deref(), Some("c1"));
        assert_eq!(answer.name.as_deref(), Some("f"));
    }

    #[test]
    fn every_limit_is_named_with_the_value_that_exceeds_it() {
        let many = vec![r#"{"role": "user", "content": "x"}"#; 4097].join(",");
        let many_calls = vec!["0"; 129].join(",");
        let many_calls = format!(r#"{{"role": "assistant", "tool_calls": [{many_calls}]}}"#);
        let long = CALL.replace(": 1}", &format!(": {}}}", "1".repeat(65_600)));
        let long_id = CALL.replace("c1", &"c".repeat(257));
        for (messages, parts) in [
            (many, ["4097", "4096"]),
            (many_calls, ["129", "128"]),
            (long_id, ["257", "256"]),
            (long, ["65607", "65536"]),
        ] {
            let error = read(&format!("[{messages}]")).unwrap_err();
            for part in parts {
                assert!(error.message.contains(part), "{part:?} is not in {error}");
            }
        }
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        let call = |from: &str, to: &str| format!("[{}]", CALL.replace(from, to));
        let answers = |id: &str| {
            format!(r#"[{CALL}, {{"role": "tool", "tool_call_id": "{id}", "content": "x"}}]"#)
        };
        for (messages, param) in [
            ("[]".to_owned(), "messages"),
            ("3".to_owned(), "messages"),
            ("[3]".to_owned(), "messages[0]"),
            (
                r#"[{"role": "function", "content": "x"}]"#.to_owned(),
                "messages[0].role",
            ),
            (r#"[{"role": "user"}]"#.to_owned(), "messages[0].content"),
            (
                r#"[{"role": "assistant", "tool_calls": []}]"#.to_owned(),
                "messages[0].content",
            ),
            (
                r#"[{"role": "user", "content": "x", "name": "y"}]"#.to_owned(),
                "messages[0].name",
            ),
            (
                r#"[{"role": "user", "content": "x", "tool_calls": [1]}]"#.to_owned(),
                "messages[0].tool_calls",
            ),
            (
                r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#.to_owned(),
                "messages[0].content[0].type",
            ),
            (answers("c2"), "messages[1].tool_call_id"),
            (call("\"id\": \"c1\", ", ""), "messages[0].tool_calls[0].id"),
            (
                call("\"function\",", "\"other\","),
                "messages[0].tool_calls[0].type",
            ),
            (
                call("{\\\"a\\\": 1}", "{\\\"a\\\": }"),
                "messages[0].tool_calls[0].function.arguments",
            ),
            (
                call("{\\\"a\\\": 1}", "[1]"),
                "messages[0].tool_calls[0].function.arguments",
            ),
        ] {
            let error = read(&messages).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        }
    }

    #[test]
    fn arguments_that_are_no_json_are_refused_with_the_place() {
        let error = read(&format!("[{}]", CALL.replace(": 1}", ": }"))).unwrap_err();
        assert!(error.message.contains("line 1 column 7"), "{error}");
    }
}
