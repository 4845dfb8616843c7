//! `tools` and how they may be called.

use serde_json::{Map, Value, json};

use super::ApiError;
use super::fields::Fields;
use crate::constraint::check;

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
    /// The names of those that may be called.
    pub names: Vec<String>,
    /// Whether the first call ends the answer.
    pub only_one: bool,
    /// The tools of which the answer has to be one call; none: whether and what to call is the model's choice.
    pub forced: Vec<Forced>,
}

impl Tools {
    /// Whether the model is shown tools that it may not call, and calls others only where it likes to.
    pub fn is_narrowed(&self) -> bool {
        self.forced.is_empty() && self.names.len() < self.list.len()
    }
}

/// A tool that the answer has to call, or one of those of which it has to call one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forced {
    /// Its place in `tools`.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// The schema of its arguments: of objects alone.
    pub arguments: Value,
}

/// What `tool_choice` says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// To call nothing.
    Nothing,
    /// To do what the model likes, and to call any tool.
    Model,
    /// To call any of the tools.
    Any,
    /// To do what the model likes, and to call none but these.
    ModelAmong(Vec<usize>),
    /// To call one of these.
    AnyAmong(Vec<usize>),
}

impl Choice {
    /// Whether the answer has to be a call.
    fn forces(&self) -> bool {
        matches!(self, Self::Any | Self::AnyAmong(_))
    }

    /// Whether the tool at this place may be called.
    fn allows(&self, index: usize) -> bool {
        match self {
            Self::Nothing => false,
            Self::Model | Self::Any => true,
            Self::ModelAmong(tools) | Self::AnyAmong(tools) => tools.contains(&index),
        }
    }
}

/// Takes the tools and how they may be called; none where there is nothing to call.
///
/// # Errors
/// 400 naming what is wrong with which tool.
pub(super) fn read_tools(fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
    let Given {
        list,
        names,
        strict,
    } = read_list(fields)?;
    let choice = read_choice(fields, &names)?;
    let only_one = !fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    // A tool that the model does not see is one that it can't call.
    if choice == Choice::Nothing || list.is_empty() {
        return Ok(None);
    }
    if !choice.forces()
        && let Some(index) = strict.iter().find(|index| choice.allows(**index))
    {
        let param = format!("tools[{index}].function.strict");
        let message = format!(
            "{param} = true is only supported where tool_choice forces a call; leave it out, send false, or send tool_choice = \"required\""
        );
        return Err(ApiError::unsupported(param, message));
    }
    let mut allowed = Vec::new();
    let mut forced = Vec::new();
    for (index, (tool, name)) in list.iter().zip(names).enumerate() {
        if !choice.allows(index) {
            continue;
        }
        if choice.forces() {
            forced.push(Forced {
                index,
                name: name.clone(),
                arguments: read_arguments(index, tool)?,
            });
        }
        allowed.push(name);
    }
    Ok(Some(Tools {
        only_one: only_one || !forced.is_empty(),
        list,
        names: allowed,
        forced,
    }))
}

/// Takes `tool_choice`.
fn read_choice(fields: &mut Fields, names: &[String]) -> Result<Choice, ApiError> {
    if fields.is_object("tool_choice")
        && let Some(mut choice) = fields.object("tool_choice")?
    {
        return match choice.text("type")?.as_deref() {
            Some("function") => read_named(choice, names),
            Some("allowed_tools") => read_allowed(choice, names),
            _ => Err(choice.wrong("type", "must be \"function\" or \"allowed_tools\"")),
        };
    }
    let Some(given) = fields.take("tool_choice") else {
        return Ok(Choice::Model);
    };
    match given.as_str() {
        Some("none") => Ok(Choice::Nothing),
        Some("auto") => Ok(Choice::Model),
        Some("required") if names.is_empty() => {
            Err(fields.wrong("tool_choice", "is \"required\", but there are no tools"))
        }
        Some("required") => Ok(Choice::Any),
        _ => Err(fields.unsupported(
            "tool_choice",
            &given,
            "send \"auto\", \"none\", \"required\", {\"type\": \"function\", \"function\": {\"name\": ...}} or {\"type\": \"allowed_tools\", ...}",
        )),
    }
}

/// The tool that `tool_choice` names; its `type` was read.
fn read_named(mut choice: Fields, names: &[String]) -> Result<Choice, ApiError> {
    let index = read_name(&mut choice, names)?;
    choice.finish()?;
    Ok(Choice::AnyAmong(vec![index]))
}

/// Those of the tools that `tool_choice` allows to be called; its `type` was read.
fn read_allowed(mut choice: Fields, names: &[String]) -> Result<Choice, ApiError> {
    let mut allowed = choice
        .object("allowed_tools")?
        .ok_or_else(|| choice.wrong("allowed_tools", "is missing"))?;
    let forces = match allowed.text("mode")?.as_deref() {
        Some("auto") => false,
        Some("required") => true,
        _ => return Err(allowed.wrong("mode", "must be \"auto\" or \"required\"")),
    };
    let given = match allowed.take("tools") {
        None => return Err(allowed.wrong("tools", "is missing")),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(allowed.wrong_type("tools", "a list", &other)),
    };
    if given.is_empty() {
        let problem = "is empty; name a tool, or send tool_choice = \"none\"";
        return Err(allowed.wrong("tools", problem));
    }
    if given.len() > MAXIMUM_TOOLS {
        let problem = format!("has {} entries, the limit is {MAXIMUM_TOOLS}", given.len());
        return Err(allowed.wrong("tools", &problem));
    }
    let mut tools = Vec::with_capacity(given.len());
    for (index, value) in given.into_iter().enumerate() {
        let mut tool = allowed.element("tools", index, value)?;
        if tool.text("type")?.as_deref() != Some("function") {
            return Err(tool.wrong("type", "must be \"function\""));
        }
        tools.push(read_name(&mut tool, names)?);
        tool.finish()?;
    }
    allowed.finish()?;
    choice.finish()?;
    Ok(if forces {
        Choice::AnyAmong(tools)
    } else {
        Choice::ModelAmong(tools)
    })
}

/// The place of the tool that `function` names.
fn read_name(fields: &mut Fields, names: &[String]) -> Result<usize, ApiError> {
    let mut function = fields
        .object("function")?
        .ok_or_else(|| fields.wrong("function", "is missing"))?;
    let name = function
        .text("name")?
        .ok_or_else(|| function.wrong("name", "is missing"))?;
    let Some(index) = names.iter().position(|known| *known == name) else {
        return Err(function.wrong("name", "is not the name of one of the tools"));
    };
    function.finish()?;
    Ok(index)
}

/// The schema that the arguments of a forced call keep to.
fn read_arguments(index: usize, tool: &Value) -> Result<Value, ApiError> {
    let Some(Value::Object(parameters)) = tool.pointer("/function/parameters") else {
        // Such a tool takes none.
        return Ok(json!({"type": "object", "additionalProperties": false}));
    };
    let can_be_object = match parameters.get("type") {
        None => true,
        Some(Value::Array(types)) => types.iter().any(|name| name == "object"),
        Some(name) => name == "object",
    };
    let checked = if can_be_object {
        let mut schema = parameters.clone();
        schema.insert("type".to_owned(), Value::from("object"));
        let schema = Value::Object(schema);
        check(&schema)
            .map(|()| schema)
            .map_err(|error| error.to_string())
    } else {
        Err("/type must be object, as arguments are".to_owned())
    };
    checked.map_err(|problem| ApiError::arguments(index, &problem))
}

/// A list of tools.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// For the template.
    pub(super) list: Vec<Value>,
    /// Their names.
    names: Vec<String>,
    /// The places of those whose arguments have to keep to their schemas.
    strict: Vec<usize>,
}

/// Takes the list of tools.
///
/// # Errors
/// As in [`read_tools`].
pub(super) fn read_list(fields: &mut Fields) -> Result<Given, ApiError> {
    let given = match fields.take("tools") {
        None => return Ok(Given::default()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(fields.wrong_type("tools", "a list", &other)),
    };
    if given.len() > MAXIMUM_TOOLS {
        let problem = format!("has {} entries, the limit is {MAXIMUM_TOOLS}", given.len());
        return Err(fields.wrong("tools", &problem));
    }
    let mut list = Vec::with_capacity(given.len());
    let mut names = Vec::with_capacity(given.len());
    let (mut bytes, mut strict) = (0, Vec::new());
    for (index, value) in given.into_iter().enumerate() {
        let (name, tool, is_strict) = read_tool(fields.element("tools", index, value)?)?;
        if is_strict {
            strict.push(index);
        }
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
    Ok(Given {
        list,
        names,
        strict,
    })
}

/// A tool's name, what the template prints (nothing but what was read), and whether it is strict.
fn read_tool(mut tool: Fields) -> Result<(String, Value, bool), ApiError> {
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
    let is_strict = function.boolean("strict")?.unwrap_or(false);
    function.finish()?;
    tool.finish()?;
    let tool = json!({"type": "function", "function": read});
    Ok((name, tool, is_strict))
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
    fn a_choice_that_forces_a_call_names_the_tools_and_their_arguments() {
        let list = format!(
            r##""tools": [{}, {{"type": "function", "function": {{"name": "g", "parameters":
                {{"properties": {{"a": {{"$ref": "#/$defs/b"}}}}, "$defs": {{"b": {{"type": "integer"}}}}}}}}}}]"##,
            tool("f")
        );
        let tools = |choice: &str| read(&format!("{list}, {choice}")).unwrap().unwrap();
        let free = tools(r#""tool_choice": "auto""#);
        assert_eq!((free.forced, free.only_one), (vec![], false));
        let any = tools(r#""tool_choice": "required""#);
        assert!(any.only_one, "a forced answer is one call");
        let names: Vec<&str> = any.forced.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(names, ["f", "g"]);
        assert_eq!(
            any.forced[0].arguments,
            json!({"type": "object", "additionalProperties": false})
        );
        let one = tools(&format!(r#""tool_choice": {}"#, tool("g")));
        let [forced] = one.forced.as_slice() else {
            panic!("{:?}", one.forced);
        };
        assert_eq!((forced.index, forced.name.as_str()), (1, "g"));
        assert_eq!(forced.arguments["type"], "object");
        assert_eq!(forced.arguments["$defs"]["b"]["type"], "integer");
        assert_eq!(one.names, ["g"]);
        assert_eq!(one.list.len(), 2, "the model sees all of them");
    }

    /// A choice of these tools.
    fn allowed(mode: &str, names: &[&str]) -> String {
        let tools: Vec<String> = names.iter().map(|name| tool(name)).collect();
        format!(
            r#""tool_choice": {{"type": "allowed_tools", "allowed_tools": {{"mode": "{mode}", "tools": [{}]}}}}"#,
            tools.join(",")
        )
    }

    #[test]
    fn allowed_tools_are_those_that_may_be_called_of_all_that_the_model_sees() {
        let list = format!(r#""tools": [{}, {}, {}]"#, tool("f"), tool("g"), tool("h"));
        let whole = read(&list).unwrap().unwrap();
        assert!(!whole.is_narrowed());
        for mode in ["auto", "required"] {
            let tools = read(&format!("{list}, {}", allowed(mode, &["h", "f", "h"])));
            let tools = tools.unwrap().unwrap();
            assert_eq!(tools.list, whole.list);
            assert_eq!(tools.names, ["f", "h"]);
            let forced: Vec<usize> = tools.forced.iter().map(|tool| tool.index).collect();
            let is_forced = mode == "required";
            assert_eq!(forced, if is_forced { vec![0, 2] } else { vec![] });
            assert_eq!(
                (tools.only_one, tools.is_narrowed()),
                (is_forced, !is_forced)
            );
        }
        let all = read(&format!("{list}, {}", allowed("auto", &["f", "g", "h"])));
        assert_eq!(all.unwrap().unwrap(), whole);
    }

    #[test]
    fn a_strict_tool_is_refused_among_those_that_the_model_may_call_and_need_not() {
        let strict = tool("f").replace(r#""f""#, r#""f", "strict": true"#);
        let list = format!(r#""tools": [{strict}, {}]"#, tool("g"));
        assert!(read(&format!("{list}, {}", allowed("auto", &["g"]))).is_ok());
        assert!(read(&format!("{list}, {}", allowed("required", &["f"]))).is_ok());
        let error = read(&format!("{list}, {}", allowed("auto", &["g", "f"]))).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tools[0].function.strict"));
    }

    #[test]
    fn what_is_wrong_with_allowed_tools_is_named_by_its_place() {
        let choice = |inner: &str| {
            format!(r#""tool_choice": {{"type": "allowed_tools", "allowed_tools": {inner}}}"#)
        };
        let many = vec!["f"; 129];
        for (choice, param, part) in [
            (
                r#""tool_choice": {"type": "allowed_tools"}"#.to_owned(),
                "tool_choice.allowed_tools",
                "missing",
            ),
            (choice("[]"), "tool_choice.allowed_tools", "an object"),
            (
                choice(r#"{"tools": []}"#),
                "tool_choice.allowed_tools.mode",
                "\"required\"",
            ),
            (
                allowed("none", &["f"]),
                "tool_choice.allowed_tools.mode",
                "\"auto\"",
            ),
            (
                choice(r#"{"mode": "auto"}"#),
                "tool_choice.allowed_tools.tools",
                "missing",
            ),
            (
                choice(r#"{"mode": "auto", "tools": {}}"#),
                "tool_choice.allowed_tools.tools",
                "a list",
            ),
            (
                allowed("auto", &[]),
                "tool_choice.allowed_tools.tools",
                "empty",
            ),
            (
                allowed("auto", &many),
                "tool_choice.allowed_tools.tools",
                "128",
            ),
            (
                allowed("required", &["f", "g"]),
                "tool_choice.allowed_tools.tools[1].function.name",
                "one of the tools",
            ),
            (
                choice(r#"{"mode": "auto", "tools": [{"type": "mcp"}]}"#),
                "tool_choice.allowed_tools.tools[0].type",
                "\"function\"",
            ),
            (
                choice(r#"{"mode": "auto", "tools": [{"type": "function", "name": "f"}]}"#),
                "tool_choice.allowed_tools.tools[0].function",
                "missing",
            ),
            (
                allowed("auto", &["f"]).replace(r#""f""#, r#""f", "strict": true"#),
                "tool_choice.allowed_tools.tools[0].function.strict",
                "not a parameter",
            ),
            (
                allowed("auto", &["f"]).replace(r#""mode""#, r#""extra": 1, "mode""#),
                "tool_choice.allowed_tools.extra",
                "not a parameter",
            ),
            (
                allowed("auto", &["f"]).replace(
                    r#""type": "allowed_tools""#,
                    r#""mode": "auto", "type": "allowed_tools""#,
                ),
                "tool_choice.mode",
                "not a parameter",
            ),
        ] {
            let error = read(&format!(r#""tools": [{}], {choice}"#, tool("f"))).unwrap_err();
            assert_eq!(error.status, 400);
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert!(error.message.contains(part), "{part:?} is not in {error}");
        }
    }

    #[test]
    fn a_strict_tool_is_taken_where_its_schema_is_kept_to_or_it_is_not_called() {
        let strict = tool("f").replace(r#""f""#, r#""f", "strict": true"#);
        let list = format!(r#""tools": [{strict}, {}]"#, tool("g"));
        for choice in [r#""required""#.to_owned(), tool("f"), tool("g")] {
            let tools = read(&format!(r#"{list}, "tool_choice": {choice}"#));
            assert!(tools.unwrap().is_some(), "{choice}");
        }
        assert_eq!(read(&format!(r#"{list}, "tool_choice": "none""#)), Ok(None));
        let error = read(&list).unwrap_err();
        assert_eq!(error.code, Some("unsupported_parameter"));
    }

    #[test]
    fn parameters_that_can_not_be_kept_to_are_refused_only_where_a_call_is_forced() {
        for (parameters, part) in [
            (
                r#"{"type": "string"}"#,
                "parameters can't be kept to, as tool_choice asks: /type must be object",
            ),
            (
                r#"{"properties": {"a": {"nullable": true}}}"#,
                "/properties/a/nullable",
            ),
        ] {
            let list = format!(
                r#""tools": [{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}]"#
            );
            assert!(read(&list).unwrap().is_some());
            let error = read(&format!(r#"{list}, "tool_choice": "required""#)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("tools[0].function.parameters"));
            assert!(error.message.contains(part), "{error}");
        }
        let list = r#""tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": ["null", "object"]}}}]"#;
        let tools = read(&format!(r#"{list}, "tool_choice": "required""#)).unwrap();
        assert_eq!(
            tools.unwrap().forced[0].arguments,
            json!({"type": "object"})
        );
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
                format!(r#""tools": [{}], "tool_choice": "any""#, tool("f")),
                "tool_choice",
                r#"tool_choice = "any""#,
            ),
            (
                r#""tools": [], "tool_choice": "required""#.to_owned(),
                "tool_choice",
                "no tools",
            ),
            (
                format!(r#""tools": [{}], "tool_choice": {}"#, tool("f"), tool("g")),
                "tool_choice.function.name",
                "one of the tools",
            ),
            (
                format!(
                    r#""tools": [{}], "tool_choice": {{"type": "mcp"}}"#,
                    tool("f")
                ),
                "tool_choice.type",
                "\"function\"",
            ),
        ] {
            let error = read(&body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert!(error.message.contains(part), "{part:?} is not in {error}");
        }
    }
}
