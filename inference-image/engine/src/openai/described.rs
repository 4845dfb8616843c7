//! `/openapi.json` says what the readers read: each of their fields, no other, and the same limits.

use std::collections::BTreeSet;

use graftwork_contract::openapi;
use serde_json::Value;

use super::ApiError;
use super::chat::ChatRequest;
use super::completion::CompletionRequest;
use super::fields::asked;
use super::tokens::{DetokenizeRequest, TokenizeRequest};

fn schema(name: &str) -> Value {
    let document: Value = serde_json::from_str(openapi::DOCUMENT).unwrap();
    document["components"]["schemas"][name].clone()
}

/// Properties at every depth, as `messages[].role`.
fn described(schema: &Value, prefix: &str, names: &mut BTreeSet<String>) {
    for variant in schema["oneOf"].as_array().into_iter().flatten() {
        described(variant, prefix, names);
    }
    if let Some(items) = schema.get("items") {
        described(items, &format!("{prefix}[]"), names);
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        described(property, &path, names);
        names.insert(path);
    }
}

/// `messages[3].role` as `messages[].role`.
fn without_positions(path: &str) -> String {
    let mut inside = false;
    path.chars()
        .filter(|character| {
            match character {
                '[' => inside = true,
                ']' => inside = false,
                _ => return !inside,
            }
            true
        })
        .collect()
}

/// A format with every field that there is; it does not go together with tools.
const JSON: &str = r#""messages": [{"role": "user", "content": "x"}], "response_format":
    {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}"#;

type Reader = fn(&str) -> Result<(), ApiError>;

fn read_completion(body: &str) -> Result<(), ApiError> {
    CompletionRequest::parse(body.as_bytes()).map(|_| ())
}

fn read_chat(body: &str) -> Result<(), ApiError> {
    ChatRequest::parse(body.as_bytes()).map(|_| ())
}

fn read_tokenize(body: &str) -> Result<(), ApiError> {
    TokenizeRequest::parse(body.as_bytes()).map(|_| ())
}

fn read_detokenize(body: &str) -> Result<(), ApiError> {
    DetokenizeRequest::parse(body.as_bytes()).map(|_| ())
}

/// A conversation and tools with every field that there is.
const PARTS: &str = r#""messages": [
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "7"}
    ],
    "tools": [{"type": "function", "function": {"name": "f"}}]"#;

/// A choice with every field that there is.
const CHOICE: &str = r#"{"type": "function", "function": {"name": "f"}}"#;

/// Another one.
const ALLOWED: &str = r#"{"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools":
    [{"type": "function", "function": {"name": "f"}}]}}"#;

#[test]
fn every_field_that_is_read_is_described_and_no_other() {
    let streams = r#""stream": true, "stream_options": {}"#;
    let cases: [(&str, Reader, Vec<String>); 4] = [
        (
            "CompletionRequest",
            read_completion,
            vec![format!(r#"{{"model": "a", "prompt": "x", {streams}}}"#)],
        ),
        (
            "ChatCompletionRequest",
            read_chat,
            vec![
                format!(r#"{{"model": "a", {PARTS}, {streams}}}"#),
                format!(r#"{{"model": "a", {PARTS}, "tool_choice": {CHOICE}}}"#),
                format!(r#"{{"model": "a", {PARTS}, "tool_choice": {ALLOWED}}}"#),
                format!(r#"{{"model": "a", {JSON}}}"#),
            ],
        ),
        (
            "TokenizeRequest",
            read_tokenize,
            vec![r#"{"prompt": "x"}"#.to_owned(), format!("{{{PARTS}}}")],
        ),
        (
            "DetokenizeRequest",
            read_detokenize,
            vec![r#"{"tokens": [1]}"#.to_owned()],
        ),
    ];
    for (name, read, bodies) in cases {
        let asked: BTreeSet<String> = bodies
            .iter()
            .flat_map(|body| asked::during(|| read(body).unwrap()))
            .map(|path| without_positions(&path))
            .collect();
        let mut names = BTreeSet::new();
        described(&schema(name), "", &mut names);
        assert_eq!(asked, names, "{name}");
    }
}

#[test]
fn a_number_beyond_its_described_limit_is_refused_by_name() {
    let cases: [(&str, Reader, &str); 2] = [
        (
            "CompletionRequest",
            read_completion,
            r#""model": "a", "prompt": "x", "echo": true"#,
        ),
        (
            "ChatCompletionRequest",
            read_chat,
            r#""model": "a", "logprobs": true, "messages": [{"role": "user", "content": "x"}]"#,
        ),
    ];
    for (name, read, rest) in cases {
        let mut checked = 0;
        for (field, property) in schema(name)["properties"].as_object().unwrap() {
            for (limit, beyond) in [("maximum", 1), ("minimum", -1)] {
                let Some(limit) = property[limit].as_i64() else {
                    continue;
                };
                let value = i128::from(limit) + beyond;
                let error = read(&format!(r#"{{{rest}, "{field}": {value}}}"#)).unwrap_err();
                assert_eq!(error.param.as_deref(), Some(field.as_str()), "{error}");
                assert_eq!(error.status, 400);
                let edge = read(&format!(r#"{{{rest}, "{field}": {limit}}}"#));
                // best_of has to be n.
                assert!(field == "best_of" || edge.is_ok(), "{field}: {edge:?}");
                checked += 1;
            }
        }
        assert!(checked >= 15, "{name}: only {checked} limits");
    }
}
