//! The `CustomResourceDefinition`s as they are installed.
//!
//! `T::crd()` of the derive is a draft: it prints formats that the API server does not know, lets
//! `null` stand where a value is optional, and leaves numbers without bounds. [`all`] mends that.

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::{Dataset, LoRAAdapter, ServingEndpoint, TrainingRun};

/// Largest integer that JSON readers with floating-point numbers keep (2^53 - 1).
const LARGEST_INTEGER: i64 = 9_007_199_254_740_991;

/// Where the definitions stand in the repository. The chart has copies, because Helm reads nothing
/// outside of its own folder.
pub const FOLDERS: [&str; 2] = ["crds", "charts/graftwork/files/crds"];

/// Every definition, by the plural that its file is named after.
///
/// # Errors
/// Where a definition is no JSON: a bug of the derive, which the tests would show.
pub fn all() -> Result<Vec<(String, Value)>, serde_json::Error> {
    [
        definition::<Dataset>,
        definition::<LoRAAdapter>,
        definition::<ServingEndpoint>,
        definition::<TrainingRun>,
    ]
    .into_iter()
    .map(|definition| definition())
    .collect()
}

/// All definitions as one stream of YAML documents.
///
/// # Errors
/// Where a definition is no YAML: a bug of the derive, which the tests would show.
pub fn all_yaml() -> Result<String, CrdError> {
    let mut text = String::new();
    for (_, definition) in all()? {
        text.push_str("---\n");
        text.push_str(&serde_yaml_ng::to_string(&definition)?);
    }
    Ok(text)
}

/// Why definitions could not be printed.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// Not JSON.
    #[error("print a definition as json")]
    Json(#[from] serde_json::Error),
    /// Not YAML.
    #[error("print a definition as yaml")]
    Yaml(#[from] serde_yaml_ng::Error),
}

fn definition<T: CustomResourceExt>() -> Result<(String, Value), serde_json::Error> {
    let mut definition = serde_json::to_value(T::crd())?;
    if let Some(versions) = definition
        .pointer_mut("/spec/versions")
        .and_then(Value::as_array_mut)
    {
        for schema in versions
            .iter_mut()
            .filter_map(|version| version.pointer_mut("/schema/openAPIV3Schema"))
        {
            mend(schema);
            if let Some(status) = schema.pointer_mut("/properties/status") {
                drop_defaults(status);
            }
        }
    }
    if let Some(metadata) = definition
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
    {
        metadata.insert(
            "labels".to_owned(),
            json!({(crate::labels::PART_OF): crate::labels::PRODUCT}),
        );
    }
    // Removing a key moves others where maps keep their order.
    definition.sort_all_objects();
    Ok((
        T::crd_name()
            .split('.')
            .next()
            .unwrap_or_default()
            .to_owned(),
        definition,
    ))
}

/// Mends a schema and all schemas below it.
fn mend(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    object.remove("nullable");
    object.remove("title");
    if let Some(values) = object.get_mut("enum").and_then(Value::as_array_mut) {
        values.retain(|value| !value.is_null());
    }
    bound_integer(object);
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            mend(inner);
        }
    }
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(mend);
    }
}

/// A status says what was observed: the API server must not fill it in.
fn drop_defaults(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    object.remove("default");
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            drop_defaults(inner);
        }
    }
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(drop_defaults);
    }
}

/// Gives an unsigned integer a format that the API server knows, and bounds.
fn bound_integer(schema: &mut Map<String, Value>) {
    if schema.get("type").and_then(Value::as_str) != Some("integer") {
        return;
    }
    let largest = match schema.get("format").and_then(Value::as_str) {
        Some("uint64" | "int64") => LARGEST_INTEGER,
        _ => i64::from(i32::MAX),
    };
    schema.insert("format".to_owned(), json!("int64"));
    for (key, default) in [("minimum", 0), ("maximum", largest)] {
        // schemars writes bounds as floating-point numbers.
        let bound = schema
            .get(key)
            .and_then(Value::as_f64)
            .map_or(default, |bound| bound as i64);
        schema.insert(key.to_owned(), json!(bound));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `check` with the path and the schema of every value that an object may hold.
    fn visit(path: &str, schema: &Value, check: &mut impl FnMut(&str, &Value)) {
        check(path, schema);
        if let Some(properties) = schema["properties"].as_object() {
            for (name, inner) in properties {
                visit(&format!("{path}.{name}"), inner, check);
            }
        }
        for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
            if schema[key].is_object() {
                visit(&format!("{path}{suffix}"), &schema[key], check);
            }
        }
    }

    fn schemas() -> Vec<(String, Value)> {
        all()
            .unwrap()
            .into_iter()
            .map(|(name, crd)| {
                (
                    name,
                    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone(),
                )
            })
            .collect()
    }

    #[test]
    fn everything_is_bounded_and_structural() {
        for (name, schema) in schemas() {
            for part in ["spec", "status"] {
                visit(
                    &format!("{name}.{part}"),
                    &schema["properties"][part],
                    &mut |path, value| {
                        let has = |key: &str| !value[key].is_null();
                        match value["type"].as_str() {
                            Some("string") => assert!(
                                has("maxLength") || has("enum") || value["format"] == "date-time",
                                "{path} has no maxLength"
                            ),
                            Some("integer") => {
                                assert!(has("minimum") && has("maximum"), "{path} has no bounds");
                            }
                            Some("array") => {
                                assert!(has("maxItems"), "{path} has no maxItems");
                                assert!(
                                    has("x-kubernetes-list-type"),
                                    "{path} does not say how it merges"
                                );
                            }
                            Some("object") => assert!(
                                has("properties") || has("maxProperties"),
                                "{path} has no maxProperties"
                            ),
                            Some("boolean") => {}
                            other => panic!("{path} has type {other:?}"),
                        }
                        for key in [
                            "oneOf", "anyOf", "allOf", "not", "$ref", "const", "nullable",
                        ] {
                            assert!(!has(key), "{path} has {key}");
                        }
                        assert!(
                            !value["format"]
                                .as_str()
                                .unwrap_or_default()
                                .starts_with('u'),
                            "{path}"
                        );
                        assert!(
                            has("description") || path.ends_with("[]") || path.ends_with("{}"),
                            "{path} has no description"
                        );
                    },
                );
            }
        }
    }

    #[test]
    fn a_status_has_no_defaults() {
        for (name, schema) in schemas() {
            visit(
                &name,
                &schema["properties"]["status"],
                &mut |path, value| {
                    assert!(value["default"].is_null(), "{path} has a default");
                },
            );
        }
    }

    #[test]
    fn definitions_are_small_enough_for_client_side_apply() {
        for (name, definition) in all().unwrap() {
            let size = serde_json::to_string(&definition).unwrap().len();
            assert!(size < 200_000, "{name} is {size} bytes");
        }
    }

    #[test]
    fn conditions_merge_by_type() {
        for (name, schema) in schemas() {
            let conditions = &schema["properties"]["status"]["properties"]["conditions"];
            assert_eq!(
                conditions["x-kubernetes-list-map-keys"],
                json!(["type"]),
                "{name}"
            );
        }
    }

    #[test]
    fn every_kind_is_listed_by_the_category() {
        for (name, definition) in all().unwrap() {
            assert_eq!(
                definition["spec"]["names"]["categories"],
                json!(["graft"]),
                "{name}"
            );
            assert_eq!(definition["spec"]["scope"], "Namespaced", "{name}");
            assert!(
                definition["spec"]["versions"][0]["subresources"]["status"].is_object(),
                "{name}"
            );
        }
    }
}
