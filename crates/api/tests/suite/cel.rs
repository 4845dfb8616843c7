//! Every CEL rule of the definitions, evaluated on an object that keeps it and on one that breaks
//! it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics fails"
)]

mod cases;

use std::collections::BTreeSet;

use graftwork_api::{crds, examples};
use kube_cel::Validator;
use serde_json::{Value, json};

use cases::cases;

fn schema(plural: &str) -> Value {
    let all = crds::all().unwrap();
    let (_, crd) = all.iter().find(|(name, _)| name == plural).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// The example of a kind, which every rule accepts.
fn base(plural: &str) -> Value {
    let file = match plural {
        "datasets" => "dataset.yaml",
        "trainingruns" => "training-run.yaml",
        "loraadapters" => "lora-adapter.yaml",
        _ => "serving-endpoint.yaml",
    };
    let all = examples::all().unwrap();
    all.into_iter()
        .find(|example| example.file == file)
        .unwrap()
        .objects
        .remove(0)
}

/// JSON merge patch (RFC 7386).
fn patched(mut target: Value, patch: &Value) -> Value {
    let Some(fields) = patch.as_object() else {
        return patch.clone();
    };
    if !target.is_object() {
        target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            target[key] = patched(target[key].take(), value);
        }
    }
    target
}

fn messages(plural: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema(plural), object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors
            .into_vec()
            .into_iter()
            .map(|error| error.message)
            .collect(),
    }
}

#[test]
fn rules_accept_what_keeps_them() {
    for case in cases() {
        let before = base(case.plural);
        let object = patched(before.clone(), &case.keeps);
        let old = case.transition.then_some(&before);
        let found = messages(case.plural, &object, old);
        assert!(
            found.is_empty(),
            "{}: {} on {}",
            case.message,
            found.join("; "),
            case.keeps
        );
    }
}

#[test]
fn rules_refuse_what_breaks_them() {
    for case in cases() {
        let before = base(case.plural);
        let object = patched(before.clone(), &case.breaks);
        let old = case.transition.then_some(&before);
        let found = messages(case.plural, &object, old);
        assert!(
            found
                .iter()
                .any(|message| message.starts_with(case.message)),
            "{} is not among {found:?} on {}",
            case.message,
            case.breaks
        );
    }
}

#[test]
fn every_rule_has_a_case() {
    fn collect(schema: &Value, found: &mut BTreeSet<String>) {
        match schema {
            Value::Object(fields) => {
                for rule in fields
                    .get("x-kubernetes-validations")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    found.insert(rule["message"].as_str().unwrap().to_owned());
                }
                fields.values().for_each(|value| collect(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    for plural in [
        "datasets",
        "trainingruns",
        "loraadapters",
        "servingendpoints",
    ] {
        let mut rules = BTreeSet::new();
        collect(&schema(plural), &mut rules);
        let tested: BTreeSet<String> = cases()
            .iter()
            .filter(|case| case.plural == plural)
            .map(|case| case.message.to_owned())
            .collect();
        assert_eq!(rules, tested, "{plural}");
    }
}

/// A field that is added to a run's spec gets an immutability rule, or this fails.
#[test]
fn every_field_of_a_run_but_suspend_is_immutable() {
    let schema = schema("trainingruns");
    let spec = &schema["properties"]["spec"];
    let rules = spec["x-kubernetes-validations"].as_array().unwrap();
    for field in spec["properties"]
        .as_object()
        .unwrap()
        .keys()
        .filter(|field| *field != "suspend")
    {
        let message = format!("{field} is immutable: make a new TrainingRun");
        assert!(
            rules.iter().any(|rule| rule["message"] == message.as_str()),
            "{message}"
        );
    }
}

#[test]
fn every_example_is_accepted() {
    for example in examples::all().unwrap() {
        for object in example.objects {
            let plural = match object["kind"].as_str().unwrap() {
                "Dataset" => "datasets",
                "TrainingRun" => "trainingruns",
                "LoRAAdapter" => "loraadapters",
                "ServingEndpoint" => "servingendpoints",
                _ => continue,
            };
            assert_eq!(
                messages(plural, &object, None),
                Vec::<String>::new(),
                "{}",
                example.file
            );
        }
    }
}
