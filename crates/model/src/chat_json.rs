//! JSON in chat templates: values go in as the templates' own, and `tojson` prints them as transformers
//! does (Python's `json.dumps` with `ensure_ascii=False`), not as minijinja does for HTML.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

/// Levels of a value that `tojson` prints: `serde_json` reads no deeper ones.
const MAXIMUM_DEPTH: usize = 130;

/// A JSON value as a template sees it, keys in their order.
pub(crate) fn to_template(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::from(text.clone()),
        Json::Array(items) => items.iter().map(to_template).collect(),
        Json::Object(fields) => Value::from_pairs(
            fields
                .iter()
                .map(|(name, value)| (name.clone(), to_template(value))),
        ),
    }
}

/// The filter `tojson`, with the arguments that transformers gives it.
pub(crate) fn tojson(value: &Value, indent: Option<usize>, named: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => named.get::<Option<usize>>("indent")?,
    };
    if named.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) {
        let problem = "tojson(ensure_ascii=true) is not supported";
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    named.assert_all_used()?;
    let mut out = String::new();
    write(value, indent, 0, &mut out)?;
    Ok(out)
}

fn write(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    if depth > MAXIMUM_DEPTH {
        let problem = "tojson: the value is nested too deeply";
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::Map => {
            out.push('{');
            let mut count = 0;
            for key in value.try_iter()? {
                next_item(count, indent, depth + 1, out);
                write_text(&key.to_string(), out);
                out.push_str(": ");
                write(&value.get_item(&key)?, indent, depth + 1, out)?;
                count += 1;
            }
            end_items(count, indent, depth, out);
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut count = 0;
            for item in value.try_iter()? {
                next_item(count, indent, depth + 1, out);
                write(&item, indent, depth + 1, out)?;
                count += 1;
            }
            end_items(count, indent, depth, out);
            out.push(']');
        }
        _ => write_text(&value.to_string(), out),
    }
    Ok(())
}

/// What stands before an item.
fn next_item(before: usize, indent: Option<usize>, depth: usize, out: &mut String) {
    match (before, indent) {
        (0, None) => {}
        (_, None) => out.push_str(", "),
        (0, Some(width)) => new_line(width * depth, out),
        (_, Some(width)) => {
            out.push(',');
            new_line(width * depth, out);
        }
    }
}

/// What stands after the last item.
fn end_items(count: usize, indent: Option<usize>, depth: usize, out: &mut String) {
    if let (1.., Some(width)) = (count, indent) {
        new_line(width * depth, out);
    }
}

fn new_line(spaces: usize, out: &mut String) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', spaces));
}

fn write_text(text: &str, out: &mut String) {
    out.push_str(&Json::from(text).to_string());
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};
    use serde_json::json;

    use super::*;

    fn printed(expression: &str, value: &Json) -> Result<String, Error> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_filter("tojson", tojson);
        environment.render_str(expression, context! { v => to_template(value) })
    }

    /// Texts as Python's `json.dumps(..., ensure_ascii=False)` prints them.
    #[test]
    fn json_is_printed_as_python_prints_it() {
        let value =
            json!({"b": [1, -2, 1.5, true, null], "a": {"t": "<é'\"\n&>"}, "e": [], "o": {}});
        let line = r#"{"b": [1, -2, 1.5, true, null], "a": {"t": "<é'\"\n&>"}, "e": [], "o": {}}"#;
        assert_eq!(printed("{{ v | tojson }}", &value).unwrap(), line);
        let small = json!({"b": [1, {"c": 2}], "e": []});
        let lines = "{\n  \"b\": [\n    1,\n    {\n      \"c\": 2\n    }\n  ],\n  \"e\": []\n}";
        for expression in ["{{ v | tojson(indent=2) }}", "{{ v | tojson(2) }}"] {
            assert_eq!(printed(expression, &small).unwrap(), lines);
        }
    }

    #[test]
    fn an_argument_that_would_change_the_text_is_refused() {
        assert!(printed("{{ v | tojson(ensure_ascii=false) }}", &json!("é")).is_ok());
        for expression in [
            "{{ v | tojson(ensure_ascii=true) }}",
            "{{ v | tojson(sort_keys=true) }}",
        ] {
            assert!(printed(expression, &json!("é")).is_err(), "{expression}");
        }
    }
}
