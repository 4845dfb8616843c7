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

/// Whether a text has a pattern of the schema.
fn fits(place: &str, text: &str) -> bool {
    let schema = schema();
    let pattern = schema.pointer(place).unwrap()["pattern"].as_str().unwrap();
    let program = cel::Program::compile("text.matches(pattern)").unwrap();
    let mut context = cel::Context::default();
    context.add_variable_from_value("text", text);
    context.add_variable_from_value("pattern", pattern);
    program.execute(&context).unwrap() == cel::Value::Bool(true)
}

#[test]
fn levels_and_networks_that_are_none_are_refused_by_helm() {
    for (level, fine) in [
        ("info", true),
        ("info,kube=warn", true),
        ("graftwork_operator=debug", true),
        ("graftwork_operator::lease=trace,off", true),
        ("loud", false),
        ("info,loud", false),
        ("kube=loud", false),
        ("", false),
    ] {
        assert_eq!(fits("/properties/logLevel", level), fine, "{level}");
    }
    for place in ["store", "dataSources"] {
        let place = format!("/properties/{place}/properties/allow/items");
        for (entry, fine) in [
            ("10.0.0.0/8", true),
            ("10.1.2.3", true),
            ("fd00::/8", true),
            ("minio.storage.svc", true),
            (".corp.example", true),
            ("10.0.0.0/99", false),
            ("fd00::/129", false),
            ("http://minio", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(fits(&place, entry), fine, "{entry}");
        }
    }
}
