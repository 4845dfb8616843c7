//! Pieces of schema that several kinds share.

use serde_json::{Value, json};

/// `x-kubernetes-validations` from pairs of rule and message.
pub(crate) fn rules(rules: &[(&str, &str)]) -> Value {
    rules
        .iter()
        .map(|(rule, message)| json!({"rule": rule, "message": message}))
        .collect()
}

/// The same for a value that is text: the refused value is said too.
pub(crate) fn bounds(rules: &[(&str, &str)]) -> Value {
    rules
        .iter()
        .map(|(rule, message)| {
            let expression = format!("'{message}, not ' + self");
            json!({"rule": rule, "message": message, "messageExpression": expression})
        })
        .collect()
}

/// A digest as it is written everywhere: `sha256:` and 64 hexadecimal digits.
pub const DIGEST_PATTERN: &str = "^sha256:[0-9a-f]{64}$";

/// A small map from names to names.
pub(crate) fn names(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "minLength": 1, "maxLength": 253},
    })
}

/// The conditions of a kind: a list that is a map by `type`, as `metav1.Condition` has it.
pub(crate) fn conditions(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {"type": "string", "maxLength": 63, "description": "What is stated."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
                "reason": {
                    "type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[A-Za-z][A-Za-z0-9]*$",
                    "description": "Why, in one word with a stable meaning; docs/conditions.md lists them with their remedies.",
                },
                "message": {"type": "string", "maxLength": 4096, "description": "Why, in words: the failing value, the limit and the field."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When status last changed."},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0, "description": "metadata.generation that the condition was computed from."},
            },
        },
    })
}
