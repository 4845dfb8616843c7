//! `response_format`: answers that are JSON.

use serde_json::{Value, json};

use super::ApiError;
use super::fields::{Fields, Neutral};
use crate::constraint::check;

/// Bytes of a schema's name, as in OpenAI.
const MAXIMUM_NAME_BYTES: usize = 64;

/// Takes the schema that answers are to be JSON of; none for plain text.
///
/// # Errors
/// 400 naming what is wrong, in a schema with its place.
pub(super) fn read_format(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let Some(mut format) = fields.object("response_format")? else {
        return Ok(None);
    };
    let schema = match format.text("type")?.as_deref() {
        Some("text") => None,
        Some("json_object") => Some(json!({"type": "object"})),
        Some("json_schema") => {
            let schema = format
                .object("json_schema")?
                .ok_or_else(|| format.wrong("json_schema", "is missing"))?;
            Some(read_schema(schema)?)
        }
        _ => {
            return Err(format.wrong("type", "must be one of text, json_object and json_schema"));
        }
    };
    format.finish()?;
    Ok(schema)
}

fn read_schema(mut fields: Fields) -> Result<Value, ApiError> {
    let name = fields
        .text("name")?
        .ok_or_else(|| fields.wrong("name", "is missing"))?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.len() > MAXIMUM_NAME_BYTES || !name.bytes().all(is_name) {
        let problem =
            format!("must be 1 to {MAXIMUM_NAME_BYTES} of the characters a-z, A-Z, 0-9, _ and -");
        return Err(fields.wrong("name", &problem));
    }
    // Whatever `strict` says: answers keep to the schema.
    fields.boolean("strict")?;
    fields.neutral(&[("description", Neutral::Any)])?;
    let schema = fields
        .take("schema")
        .ok_or_else(|| fields.wrong("schema", "is missing"))?;
    if let Err(error) = check(&schema) {
        return Err(fields.wrong("schema", &format!("can't be used: {error}")));
    }
    fields.finish()?;
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: &str) -> Result<Option<Value>, ApiError> {
        let body = format!(r#"{{"response_format": {format}}}"#);
        read_format(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn each_kind_of_format_is_read() {
        assert_eq!(read(r#"{"type": "text"}"#), Ok(None));
        assert_eq!(read("null"), Ok(None));
        let object = json!({"type": "object"});
        assert_eq!(read(r#"{"type": "json_object"}"#), Ok(Some(object.clone())));
        let schema = r#"{"type": "json_schema", "json_schema":
            {"name": "n", "description": "d", "strict": true, "schema": {"type": "object"}}}"#;
        assert_eq!(read(schema), Ok(Some(object)));
    }

    #[test]
    fn what_can_not_be_read_is_named_and_in_a_schema_with_its_place() {
        for (format, param, part) in [
            ("3", "response_format", "an object"),
            ("{}", "response_format.type", "json_schema"),
            (
                r#"{"type": "grammar"}"#,
                "response_format.type",
                "json_object",
            ),
            (
                r#"{"type": "json_object", "x": 1}"#,
                "response_format.x",
                "not a parameter",
            ),
            (
                r#"{"type": "json_schema"}"#,
                "response_format.json_schema",
                "missing",
            ),
            (
                r#"{"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}"#,
                "response_format.json_schema.name",
                "64",
            ),
            (
                r#"{"type": "json_schema", "json_schema": {"name": "n"}}"#,
                "response_format.json_schema.schema",
                "missing",
            ),
            (
                r#"{"type": "json_schema", "json_schema": {"name": "n",
                    "schema": {"properties": {"a": {"type": "text"}}}}}"#,
                "response_format.json_schema.schema",
                "/properties/a/type must be one of null",
            ),
        ] {
            let error = read(format).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert_eq!(error.status, 400);
            assert!(error.message.contains(part), "{part:?} is not in {error}");
        }
    }
}
