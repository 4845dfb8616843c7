//! Schemas, tools and choices that can't be had, and names that an answer would rather not repeat.

use super::{CHAT, COMPLETIONS, Case, PATHS, with_field};

/// A format with this schema.
fn format(schema: &str) -> String {
    format!(r#"{{"type": "json_schema", "json_schema": {{"name": "n", "schema": {schema}}}}}"#)
}

/// Formats of answers, most of them with a schema that can't be kept to, or costs too much.
pub(super) fn formats() -> Vec<Case> {
    let deep = format!("{}{{}}{}", r#"{"items": "#.repeat(40), "}".repeat(40));
    let deepest = format!("{}{{}}{}", r#"{"items": "#.repeat(100), "}".repeat(100));
    let large = format!(r#"{{"enum": ["{}"]}}"#, "x".repeat(70_000));
    let pattern = format!(
        r#"{{"type": "string", "pattern": "{}"}}"#,
        "a?".repeat(1000)
    );
    let many = format!(r#"{{"enum": [{}]}}"#, vec!["\"a\""; 20_000].join(","));
    let schemas = [
        r#"{"type": "text"}"#,
        r#"{"type": []}"#,
        r#"{"not": {}}"#,
        r#"{"if": {}, "then": {}}"#,
        r#"{"$ref": "https://elsewhere/schema"}"#,
        r#"{"$ref": "file:///etc/passwd"}"#,
        r##"{"$ref": "#/nowhere"}"##,
        r##"{"$ref": "#"}"##,
        r##"{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}"##,
        r#"{"properties": []}"#,
        r#"{"properties": {"a": 1}}"#,
        r#"{"required": "a"}"#,
        r#"{"anyOf": []}"#,
        r#"{"enum": []}"#,
        r#"{"pattern": 1}"#,
        r#"{"format": "credit-card"}"#,
        r#"{"minLength": -1}"#,
        r#"{"maxItems": 99999999999}"#,
        r#"{"maxProperties": 1e30}"#,
        r#"{"minimum": "1"}"#,
        r#"{"type": "object", "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 2}}, "required": ["a"]}"#,
        "[]",
        "true",
        "\"{}\"",
        &deep,
        &deepest,
        &large,
        &many,
        &pattern,
    ];
    let formats = [
        "1",
        "true",
        "\"json\"",
        "[]",
        "{}",
        r#"{"type": 1}"#,
        r#"{"type": "xml"}"#,
        r#"{"type": "json_object", "schema": {}}"#,
        r#"{"type": "json_schema"}"#,
        r#"{"type": "json_schema", "json_schema": {}}"#,
        r#"{"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}"#,
        r#"{"type": "json_schema", "json_schema": {"name": "n"}}"#,
    ];
    let case = |value: &str| with_field(CHAT, "response_format", value);
    let of_schemas = schemas.iter().map(|schema| case(&format(schema)));
    of_schemas
        .chain(formats.iter().map(|value| case(value)))
        .collect()
}

/// Tools that are none, and choices among them.
pub(super) fn tools() -> Vec<Case> {
    let function = |fields: &str| format!(r#"[{{"type": "function", "function": {{{fields}}}}}]"#);
    let long = "n".repeat(65);
    let many = vec![r#"{"type": "function", "function": {"name": "f"}}"#; 129].join(",");
    let tools = [
        "1".to_owned(),
        "\"x\"".to_owned(),
        "{}".to_owned(),
        "[1]".to_owned(),
        "[null]".to_owned(),
        "[[]]".to_owned(),
        "[{}]".to_owned(),
        r#"[{"type": "web_search"}]"#.to_owned(),
        r#"[{"type": "function"}]"#.to_owned(),
        function(""),
        function(r#""name": """#),
        function(r#""name": "a b""#),
        function(&format!(r#""name": "{long}""#)),
        function(r#""name": "f", "parameters": 1"#),
        function(r#""name": "f", "strict": "yes""#),
        function(&format!(
            r#""name": "f", "description": "{}""#,
            "d".repeat(300_000)
        )),
        format!("[{many}]"),
    ];
    let choices = [
        "1",
        "true",
        "[]",
        "{}",
        "\"always\"",
        "\"required\"",
        r#"{"type": "function"}"#,
        r#"{"type": "function", "function": {}}"#,
        r#"{"type": "function", "function": {"name": 1}}"#,
        r#"{"type": "function", "function": {"name": "nobody"}}"#,
        r#"{"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "nobody"}}]}}"#,
    ];
    let tools = tools.iter().map(|value| with_field(CHAT, "tools", value));
    let choices = choices.map(|value| with_field(CHAT, "tool_choice", value));
    let others = [
        (CHAT, "parallel_tool_calls", "1"),
        (CHAT, "top_logprobs", "21"),
        (CHAT, "logprobs", "1"),
        (COMPLETIONS, "logprobs", "6"),
        (COMPLETIONS, "logprobs", "-1"),
        (COMPLETIONS, "echo", "1"),
    ];
    let others = others.map(|(path, field, value)| with_field(path, field, value));
    tools.chain(choices).chain(others).collect()
}

/// Names of fields and models that are as long as a body may be, or nearly so.
pub(super) fn names() -> Vec<Case> {
    let long = "x".repeat(1 << 20);
    let model = format!("\"{long}\"");
    let text = format!(r#""\"{}\"""#, "x".repeat(60_000));
    let called = format!(
        r#"[{{"role": "assistant", "tool_calls": [{{"id": "c", "type": "function", "function": {{"name": "f", "arguments": {text}}}}}]}}]"#
    );
    let mut cases = vec![with_field(CHAT, "messages", &called)];
    for path in PATHS {
        cases.push(with_field(path, &long, "1"));
        cases.push(with_field(path, "model", &model));
    }
    cases
}
