//! Bounds of values that are text: the API server names the value that it refuses, and the bound.

use graftwork_api::crds;
use kube_cel::Validator;
use serde_json::{Value, json};

/// Values of which each bound refuses one.
const OUTSIDE: [&str; 2] = ["1e9", "0"];

/// Every schema in `schema` of a value that is text and has a bound.
fn bounded(schema: &Value, found: &mut Vec<Value>) {
    match schema {
        Value::Object(fields) => {
            let rule = schema.pointer("/x-kubernetes-validations/0/rule");
            let is_bound = rule.and_then(Value::as_str).is_some_and(|rule| {
                rule.starts_with("double(self)") || rule.starts_with("quantity(self)")
            });
            if is_bound {
                found.push(schema.clone());
            }
            fields.values().for_each(|value| bounded(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| bounded(value, found)),
        _ => {}
    }
}

#[test]
fn a_value_out_of_bounds_is_named_beside_the_bound() {
    let mut schemas = Vec::new();
    for (_, definition) in crds::all().unwrap() {
        bounded(&definition, &mut schemas);
    }
    assert!(schemas.len() >= 12, "{}", schemas.len());
    for schema in schemas {
        let bound = schema["x-kubernetes-validations"][0]["message"].as_str();
        let refused = OUTSIDE.iter().find_map(|value| {
            let refusal = Validator::new().validate(&schema, &json!(value), None);
            Some((value, refusal.err()?.into_vec()))
        });
        let (value, errors) = refused.unwrap();
        let said = format!("{}, not {value}", bound.unwrap());
        assert_eq!(errors[0].message, said);
    }
}
