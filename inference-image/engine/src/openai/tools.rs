//! `tools` and how they may be called.

use serde_json::{Map, Value, json};

use super::ApiError;
use super::fields::{Fields, Neutral};

/// Tools of one request, as in OpenAI.
pub const MAXIMUM_TOOLS: usize = 128;
/// Bytes of a tool's name, as in OpenAI.
pub const MAXIMUM_NAME_BYTES: usize = 64;
/// Bytes of all tools together, as JSON: the template writes them into the prompt.
pub const MAXIMUM_BYTES: usize = 256 << 10;

/// Tools that the answer may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// For the template: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub list: Vec<Value>,
    /// Their names.
    pub names: Vec<String>,
    /// Whether the first call ends the answer.
    pub only_one: bool,
}

/// Takes the tools and how they may be called; none where there is nothing to call.
///
/// # Errors
/// 400 naming what is wrong with which tool.
pub(super) fn read_tools(fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
    let (list, names) = read_list(fields)?;
    let calls_none = match fields.take("tool_choice") {
        Some(Value::String(choice)) if choice == "none" => true,
        Some(Value::String(choice)) if choice == "auto" => false,
        None => false,
        Some(other) => {
            return Err(fields.unsupported(
                "tool_choice",
                &other,
                "whether and what to call is the model's choice here; send \"auto\" or \"none\"",
            ));
        }
    };
    let only_one = !fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    // A tool that the model does not see is one that it can't call.
    Ok((!calls_none && !list.is_empty()).then_some(Tools {
        list,
        names,
        only_one,
    }))
}

/// Takes the list of tools.
///
/// # Errors
/// As in [`read_tools`].
pub(super) fn read_list(fields: &mut Fields) -> Result<(Vec<Value>, Vec<String>), ApiError> {
    let given = match fields.take("tools") {
        None => return Ok((Vec::new(), Vec::new())),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(fields.wrong_type("tools", "a list", &other)),
    };
    if given.len() > MAXIMUM_TOOLS {
        let problem = format!("has {} entries, the limit is {MAXIMUM_TOOLS}", given.len());
        return Err(fields.wrong("tools", &problem));
    }
    let mut list = Vec::with_capacity(given.len());
    let mut names = Vec::with_capacity(given.len());
    let mut bytes = 0;
    for (index, value) in given.into_iter().enumerate() {
        let (name, tool) = read_tool(fields.element("tools", index, value)?)?;
        if names.contains(&name) {
            return Err(fields.wrong("tools", &format!("has two tools of the name {name:?}")));
        }
        bytes += tool.to_string().len();
        names.push(name);
        list.push(tool);
    }
    if bytes > MAXIMUM_BYTES {
        let problem = format!(
            "has {bytes} bytes, the limit is {MAXIMUM_BYTES}; leave some out or shorten their descriptions"
        );
        return Err(fields.wrong("tools", &problem));
    }
    Ok((list, names))
}

/// A tool's name, and what the template prints: nothing but what was read.
fn read_tool(mut tool: Fields) -> Result<(String, Value), ApiError> {
    if tool.text("type")?.as_deref() != Some("function") {
        return Err(tool.wrong("type", "must be \"function\""));
    }
    let mut function = tool
        .object("function")?
        .ok_or_else(|| tool.wrong("function", "is missing"))?;
    let name = function
        .text("name")?
        .ok_or_else(|| function.wrong("name", "is missing"))?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.len() > MAXIMUM_NAME_BYTES || !name.bytes().all(is_name) {
        let problem =
            format!("must be 1 to {MAXIMUM_NAME_BYTES} of the characters a-z, A-Z, 0-9, _ and -");
        return Err(function.wrong("name", &problem));
    }
    let mut read = Map::new();
    read.insert("name".to_owned(), Value::from(name.as_str()));
    if let Some(description) = function.text("description")? {
        read.insert("description".to_owned(), Value::from(description));
    }
    match function.take("parameters") {
        None => {}
        Some(Value::Object(schema)) => {
            read.insert("parameters".to_owned(), Value::Object(schema));
        }
        Some(other) => {
            return Err(function.wrong_type("parameters", "an object, a JSON Schema", &other));
        }
    }
    function.neutral(&[("strict", Neutral::False)])?;
    function.finish()?;
    tool.finish()?;
    Ok((name, json!({"type": "function", "function": read})))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Option<Tools>, ApiError> {
        let mut fields = Fields::parse(format!("{{{body}}}").as_bytes()).unwrap();
        let tools = read_tools(&mut fields)?;
        fields.finish().map(|()| tools)
    }

    fn tool(name: &str) -> String {
        format!(r#"{{"type": "function", "function": {{"name": "{name}"}}}}"#)
    }

    #[test]
    fn tools_are_read_in_one_order_without_what_templates_need_not_print() {
        let tools = read(
            r#""tools": [{"function": {"strict": false, "parameters": {"type": "object"},
                "description": "d", "name": "f"}, "type": "function"}], "tool_choice": "auto""#,
        )
        .unwrap()
        .unwrap();
        assert_eq!(
            tools.list[0].to_string(),
            r#"{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"}}}"#
        );
        assert_eq!((tools.names, tools.only_one), (vec!["f".to_owned()], false));
    }

    #[test]
    fn tools_that_may_not_be_called_are_not_shown() {
        let list = format!(r#""tools": [{}]"#, tool("f"));
        assert_eq!(read(&format!(r#"{list}, "tool_choice": "none""#)), Ok(None));
        assert_eq!(read(r#""tools": [], "tool_choice": "auto""#), Ok(None));
        let one = read(&format!(r#"{list}, "parallel_tool_calls": false"#));
        assert!(one.unwrap().unwrap().only_one);
    }

    #[test]
    fn what_can_not_be_read_is_named_with_its_limit() {
        let many: Vec<String> = (0..129).map(|index| tool(&format!("f{index}"))).collect();
        let large = r#"{"type": "function", "function": {"name": "f", "description": "D"}}"#
            .replace('D', &"d".repeat(1 << 18));
        let strict = tool("f").replace(r#""f""#, r#""f", "strict": true"#);
        let list = tool("f").replace(r#""f""#, r#""f", "parameters": []"#);
        for (body, param, part) in [
            (r#""tools": 3"#.to_owned(), "tools", "a list"),
            (format!(r#""tools": [{}]"#, many.join(",")), "tools", "128"),
            (format!(r#""tools": [{large}]"#), "tools", "262144"),
            (
                format!(r#""tools": [{0}, {0}]"#, tool("f")),
                "tools",
                "\"f\"",
            ),
            (
                format!(r#""tools": [{}]"#, tool(&"n".repeat(65))),
                "tools[0].function.name",
                "64",
            ),
            (
                format!(r#""tools": [{}]"#, tool("a b")),
                "tools[0].function.name",
                "A-Z",
            ),
            (
                format!(r#""tools": [{strict}]"#),
                "tools[0].function.strict",
                "false",
            ),
            (
                format!(r#""tools": [{list}]"#),
                "tools[0].function.parameters",
                "JSON Schema",
            ),
            (
                r#""tools": [{"type": "web_search"}]"#.to_owned(),
                "tools[0].type",
                "function",
            ),
            (
                format!(r#""tools": [{}], "tool_choice": "required""#, tool("f")),
                "tool_choice",
                r#"tool_choice = "required""#,
            ),
            (
                format!(r#""tools": [{0}], "tool_choice": {0}"#, tool("f")),
                "tool_choice",
                "\"auto\" or \"none\"",
            ),
        ] {
            let error = read(&body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert!(error.message.contains(part), "{part:?} is not in {error}");
        }
    }
}
