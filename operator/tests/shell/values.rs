//! The chart's values and their schema, by which Helm refuses what the chart does not have.

use std::collections::BTreeSet;

use graftwork_operator_core::settings::{
    ComputeProfile, ContainerSettings, DataSources, EngineSettings, LeaderElection, ProfileImages,
    RouterSettings, SpotNodes, StoreSettings,
};
use serde_json::Value;

/// What a parent chart may set, and this one does not read.
const OF_A_PARENT: [&str; 2] = ["global", "enabled"];

fn chart(file: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/graftwork");
    std::fs::read_to_string(format!("{folder}/{file}")).unwrap()
}

fn schema() -> Value {
    serde_json::from_str(&chart("values.schema.json")).unwrap()
}

fn keys(object: &Value) -> BTreeSet<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

/// What a reference stands for.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// Values without a schema and schemas without a value. A compute profile need not have every field.
fn differences(root: &Value, path: &str, value: &Value, schema: &Value) -> Vec<String> {
    let schema = resolved(root, schema);
    let Some(values) = value.as_object() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in values {
        let path = format!("{path}.{key}");
        let any = Some(&schema["additionalProperties"]).filter(|any| any.is_object());
        match schema["properties"].get(key).or(any) {
            Some(known) => found.extend(differences(root, &path, value, known)),
            None => found.push(format!("{path} is not in the schema")),
        }
    }
    let Some(properties) = schema["properties"].as_object() else {
        return found;
    };
    for key in properties.keys() {
        let optional = path.starts_with(".computeProfiles")
            || (path.is_empty() && OF_A_PARENT.contains(&key.as_str()));
        if !values.contains_key(key) && !optional {
            found.push(format!("{path}.{key} is in the schema alone"));
        }
    }
    found
}

/// Where the schema lists fields and takes others too.
fn open_objects(path: &str, schema: &Value) -> Vec<String> {
    let Some(object) = schema.as_object() else {
        return Vec::new();
    };
    let closed = object.get("additionalProperties") == Some(&Value::Bool(false));
    let mut found = Vec::new();
    if object.contains_key("properties") && !closed {
        found.push(path.to_owned());
    }
    for (key, inner) in object {
        found.extend(open_objects(&format!("{path}/{key}"), inner));
    }
    found
}

#[test]
fn every_value_of_the_chart_has_a_schema_and_every_schema_a_value() {
    let schema = schema();
    let values: Value = serde_yaml_ng::from_str(&chart("values.yaml")).unwrap();
    let found = differences(&schema, "", &values, &schema);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn the_schema_has_the_fields_that_the_operator_reads() {
    let schema = schema();
    for (place, settings) in [
        (
            "/properties/store",
            serde_json::to_value(StoreSettings::default()),
        ),
        (
            "/properties/dataSources",
            serde_json::to_value(DataSources::default()),
        ),
        (
            "/properties/engine",
            serde_json::to_value(EngineSettings::default()),
        ),
        (
            "/properties/router",
            serde_json::to_value(RouterSettings::default()),
        ),
        (
            "/properties/leaderElection",
            serde_json::to_value(LeaderElection::default()),
        ),
        (
            "/definitions/container",
            serde_json::to_value(ContainerSettings::default()),
        ),
        (
            "/definitions/computeProfile",
            serde_json::to_value(ComputeProfile::default()),
        ),
        (
            "/definitions/computeProfile/properties/spot",
            serde_json::to_value(SpotNodes::default()),
        ),
        (
            "/definitions/computeProfile/properties/images",
            serde_json::to_value(ProfileImages::default()),
        ),
    ] {
        let listed = &schema.pointer(place).unwrap()["properties"];
        assert_eq!(keys(listed), keys(&settings.unwrap()), "{place}");
    }
}

#[test]
fn a_mistyped_field_is_refused_at_every_depth() {
    assert_eq!(open_objects("", &schema()), Vec::<String>::new());
}
