//! What a JSON Schema may hold, told with the place (RFC 6901) of what it may not.
//!
//! Keywords are those that llguidance makes grammars of; it passes over some others in silence.

use std::panic::AssertUnwindSafe;

use llguidance::derivre::{RegexAst, RegexBuilder};
use llguidance::panic_utils::catch_unwind;
use serde_json::{Map, Value};

/// Bytes of a schema, as compact JSON.
pub const MAXIMUM_SCHEMA_BYTES: usize = 64 << 10;
/// Schemas inside each other.
const MAXIMUM_DEPTH: usize = 32;
/// Of a length or a number of items or properties.
const MAXIMUM_COUNT: u64 = 10_000;
/// Bytes of a regular expression.
const MAXIMUM_PATTERN_BYTES: usize = 1024;

/// Characters of a place in a message.
const MAXIMUM_PLACE: usize = 300;

const TYPES: [&str; 7] = [
    "null", "boolean", "number", "integer", "string", "array", "object",
];
const FORMATS: [&str; 10] = [
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
];

/// What is wrong with a schema, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {problem}", named(.place))]
pub struct SchemaError {
    /// A JSON Pointer into the schema.
    pub place: String,
    /// What is wrong, and what may stand there.
    pub problem: String,
}

fn named(place: &str) -> &str {
    if place.is_empty() {
        "the schema"
    } else {
        place
    }
}

/// Looks a schema through.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(schema: &Value) -> Result<(), SchemaError> {
    let bytes = schema.to_string().len();
    if bytes > MAXIMUM_SCHEMA_BYTES {
        let problem = format!("has {bytes} bytes, the limit is {MAXIMUM_SCHEMA_BYTES}");
        return wrong("", problem);
    }
    match schema {
        Value::Object(fields) => check_fields(schema, fields, "", 0),
        _ => wrong("", "must be an object"),
    }
}

fn wrong<T>(place: &str, problem: impl Into<String>) -> Result<T, SchemaError> {
    Err(SchemaError {
        // Names in it are somebody's.
        place: place.chars().take(MAXIMUM_PLACE).collect(),
        problem: problem.into(),
    })
}

fn check_schema(
    root: &Value,
    schema: &Value,
    place: &str,
    depth: usize,
) -> Result<(), SchemaError> {
    if depth > MAXIMUM_DEPTH {
        return wrong(
            place,
            format!("is nested deeper than {MAXIMUM_DEPTH} schemas"),
        );
    }
    match schema {
        Value::Bool(_) => Ok(()),
        Value::Object(fields) => check_fields(root, fields, place, depth),
        _ => wrong(place, "must be a schema: an object, true or false"),
    }
}

fn check_fields(
    root: &Value,
    fields: &Map<String, Value>,
    place: &str,
    depth: usize,
) -> Result<(), SchemaError> {
    for (name, value) in fields {
        let place = &below(place, name);
        match name.as_str() {
            "type" => check_type(value, place)?,
            "properties" | "patternProperties" | "$defs" | "definitions" => {
                let Some(schemas) = value.as_object() else {
                    return wrong(place, "must be an object of schemas");
                };
                for (name, schema) in schemas {
                    check_schema(root, schema, &below(place, name), depth + 1)?;
                }
            }
            "anyOf" | "oneOf" | "allOf" | "prefixItems" => {
                let schemas = value.as_array().filter(|schemas| !schemas.is_empty());
                let Some(schemas) = schemas else {
                    return wrong(place, "must be a list of schemas, not empty");
                };
                for (index, schema) in schemas.iter().enumerate() {
                    check_schema(root, schema, &below(place, &index.to_string()), depth + 1)?;
                }
            }
            "items" | "additionalItems" | "additionalProperties" => {
                check_schema(root, value, place, depth + 1)?;
            }
            "enum" if value.as_array().is_some_and(|values| !values.is_empty()) => {}
            "enum" => return wrong(place, "must be a list, not empty"),
            "required" => {
                let names = value.as_array();
                if !names.is_some_and(|names| names.iter().all(Value::is_string)) {
                    return wrong(place, "must be a list of names");
                }
            }
            "minItems" | "maxItems" | "minProperties" | "maxProperties" | "minLength"
            | "maxLength" => check_count(value, place)?,
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
                if !value.is_number() {
                    return wrong(place, "must be a number");
                }
            }
            "pattern" => check_pattern(value, place)?,
            "format" => {
                if !value
                    .as_str()
                    .is_some_and(|format| FORMATS.contains(&format))
                {
                    return wrong(place, format!("must be one of {}", FORMATS.join(", ")));
                }
            }
            "$ref" => check_reference(root, value, place)?,
            "const" | "$schema" | "$id" | "id" | "$anchor" | "$comment" | "title"
            | "description" | "default" | "readOnly" | "writeOnly" | "examples"
            | "contentMediaType" | "contentEncoding" => {}
            _ => {
                return wrong(place, "is no keyword that this engine has; leave it out");
            }
        }
    }
    Ok(())
}

fn check_type(value: &Value, place: &str) -> Result<(), SchemaError> {
    let is_type = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
    let is_list = |names: &Vec<Value>| !names.is_empty() && names.iter().all(is_type);
    if is_type(value) || value.as_array().is_some_and(is_list) {
        return Ok(());
    }
    wrong(
        place,
        format!("must be one of {}, or a list of them", TYPES.join(", ")),
    )
}

fn check_count(value: &Value, place: &str) -> Result<(), SchemaError> {
    if value.as_u64().is_some_and(|count| count <= MAXIMUM_COUNT) {
        return Ok(());
    }
    let given = if value.is_number() {
        format!("is {value}, it ")
    } else {
        String::new()
    };
    wrong(
        place,
        format!("{given}must be a whole number from 0 to {MAXIMUM_COUNT}"),
    )
}

fn check_pattern(value: &Value, place: &str) -> Result<(), SchemaError> {
    match value.as_str().map(str::len) {
        None => wrong(place, "must be a regular expression"),
        Some(bytes) if bytes > MAXIMUM_PATTERN_BYTES => {
            let problem = format!("has {bytes} bytes, the limit is {MAXIMUM_PATTERN_BYTES}");
            wrong(place, problem)
        }
        Some(_) => Ok(()),
    }
}

/// References stay in the schema: nothing is fetched.
fn check_reference(root: &Value, value: &Value, place: &str) -> Result<(), SchemaError> {
    let target = value.as_str().and_then(|target| target.strip_prefix('#'));
    let Some(pointer) = target.filter(|pointer| root.pointer(pointer).is_some()) else {
        let problem =
            "must name a place of this schema that is there, for example \"#/$defs/item\"";
        return wrong(place, problem);
    };
    if is_endless(root, pointer) {
        let problem = format!(
            "leads to references alone, in a circle or more than {MAXIMUM_DEPTH} of them; one must end at a schema"
        );
        return wrong(place, problem);
    }
    Ok(())
}

/// Whether references lead to references, and not to an end.
fn is_endless(root: &Value, pointer: &str) -> bool {
    let mut next = Some(pointer);
    for _ in 0..=MAXIMUM_DEPTH {
        let Some(pointer) = next else {
            return false;
        };
        let reference = root.pointer(pointer).and_then(|schema| schema.get("$ref"));
        next = reference.and_then(|it| it.as_str()?.strip_prefix('#'));
    }
    true
}

/// The first regular expression that can't be had, of a schema that [`check`] accepted and that became no grammar.
/// It costs what a grammar does: not for where others wait.
pub fn blame(schema: &Value) -> Option<SchemaError> {
    blame_below(schema, "")
}

fn blame_below(schema: &Value, place: &str) -> Option<SchemaError> {
    schema.as_object()?.iter().find_map(|(name, value)| {
        let place = &below(place, name);
        match name.as_str() {
            "pattern" => blame_pattern(value.as_str()?, place),
            "patternProperties" => value.as_object()?.iter().find_map(|(pattern, schema)| {
                let place = &below(place, pattern);
                blame_pattern(pattern, place).or_else(|| blame_below(schema, place))
            }),
            "properties" | "$defs" | "definitions" => value
                .as_object()?
                .iter()
                .find_map(|(name, schema)| blame_below(schema, &below(place, name))),
            "anyOf" | "oneOf" | "allOf" | "prefixItems" => {
                let mut schemas = value.as_array()?.iter().enumerate();
                schemas.find_map(|(index, schema)| {
                    blame_below(schema, &below(place, &index.to_string()))
                })
            }
            "items" | "additionalItems" | "additionalProperties" => blame_below(value, place),
            _ => None,
        }
    })
}

fn blame_pattern(pattern: &str, place: &str) -> Option<SchemaError> {
    let expression = RegexAst::SearchRegex(pattern.to_owned());
    let made = catch_unwind(AssertUnwindSafe(|| RegexBuilder::new().mk(&expression)));
    let error = made.err()?.to_string();
    wrong::<()>(place, describe(&error)).err()
}

/// What the library says of a regular expression, in one line.
fn describe(error: &str) -> String {
    let what = if error.starts_with("lookarounds") {
        "\\b, \\B, and ^ or $ anywhere but at its ends are not supported"
    } else {
        // The expression and a mark below it come first.
        error
            .rsplit_once("error: ")
            .map_or("it can't be read", |(_, what)| what.trim())
    };
    format!("is no regular expression that this engine has: {what}")
}

/// The pointer of a field.
fn below(place: &str, name: &str) -> String {
    format!("{place}/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_of_everything_that_there_is_passes() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "t", "type": "object",
            "properties": {
                "a": {"type": ["string", "null"], "minLength": 1, "maxLength": 9, "pattern": "^x+$"},
                "b": {"type": "array", "items": {"$ref": "#/$defs/c"}, "minItems": 0, "maxItems": 3},
                "c": {"anyOf": [{"const": 1}, {"enum": ["x"]}, true]},
                "d": {"type": "string", "format": "date"},
                "e": {"type": "number", "minimum": 0.5, "multipleOf": 0.5},
            },
            "required": ["a"], "additionalProperties": false,
            "$defs": {"c": {"type": "integer", "description": "whole"}},
        });
        assert_eq!(check(&schema), Ok(()));
    }

    #[test]
    fn a_schema_may_lead_back_to_itself_below_a_property() {
        let list =
            json!({"properties": {"next": {"$ref": "#"}, "other": {"$ref": "#/properties/next"}}});
        assert_eq!(check(&list), Ok(()));
    }

    #[test]
    fn a_regular_expression_that_cannot_be_had_is_told_with_its_place() {
        for (schema, place, part) in [
            (
                json!({"properties": {"a": {"pattern": "(x"}}}),
                "/properties/a/pattern",
                "has: unclosed group",
            ),
            (
                json!({"anyOf": [{"pattern": "^x$"}, {"items": {"pattern": "x(?=y)"}}]}),
                "/anyOf/1/items/pattern",
                "look-around",
            ),
            (
                json!({"patternProperties": {"^ok$": true, "[z-a]": true}}),
                "/patternProperties/[z-a]",
                "invalid character class range",
            ),
            (json!({"pattern": "\\bx"}), "/pattern", "\\b, \\B"),
            (json!({"pattern": "x^y"}), "/pattern", "at its ends"),
        ] {
            assert_eq!(check(&schema), Ok(()));
            let error = blame(&schema).unwrap();
            assert_eq!(error.place, place, "{error}");
            assert!(error.problem.contains(part), "{error}");
            assert!(!error.problem.contains('\n'), "{error}");
        }
        let names = json!({
            "properties": {"pattern": {"type": "string"}}, "const": {"pattern": "("}, "pattern": "^a/[0-9]+$",
        });
        assert_eq!(blame(&names), None);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let mut deep = json!({"type": "string"});
        for _ in 0..40 {
            deep = json!({"items": deep});
        }
        let deepest = "/items".repeat(33);
        let pattern = "x".repeat(1025);
        for (schema, place, part) in [
            (json!([]), "", "an object"),
            (json!({"x-guidance": {}}), "/x-guidance", "keyword"),
            (
                json!({"properties": {"a/b": {"nullable": true}}}),
                "/properties/a~1b/nullable",
                "keyword",
            ),
            (
                json!({"anyOf": [true, {"type": "text"}]}),
                "/anyOf/1/type",
                "integer",
            ),
            (json!({"items": [true]}), "/items", "true or false"),
            (json!({"$defs": 3}), "/$defs", "object of schemas"),
            (json!({"required": [1]}), "/required", "names"),
            (json!({"maxItems": 10_001}), "/maxItems", "10001"),
            (json!({"minLength": -1}), "/minLength", "from 0 to 10000"),
            (json!({"maximum": "1"}), "/maximum", "number"),
            (json!({"format": "regex"}), "/format", "date-time"),
            (json!({"pattern": pattern}), "/pattern", "1024"),
            (json!({"enum": []}), "/enum", "not empty"),
            (json!({"$ref": "https://example.com/a"}), "/$ref", "#/$defs"),
            (json!({"$ref": "#/$defs/none"}), "/$ref", "that is there"),
            (json!({"$ref": "#"}), "/$ref", "in a circle"),
            (
                json!({"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
                "/items/$ref",
                "in a circle",
            ),
            (deep, deepest.as_str(), "32"),
            (json!({"title": "x".repeat(70_000)}), "", "65536"),
        ] {
            let error = check(&schema).unwrap_err();
            assert_eq!(error.place, place, "{error}");
            assert!(error.problem.contains(part), "{error}");
        }
    }
}
