//! Every CEL rule of the definitions, evaluated on an object that keeps it and on one that breaks
//! it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics fails"
)]

use std::collections::BTreeSet;

use graftwork_api::{crds, examples};
use kube_cel::Validator;
use serde_json::{Value, json};

/// One rule: the message it is known by, a patch that keeps it and one that breaks it.
struct Case {
    plural: &'static str,
    message: &'static str,
    keeps: Value,
    breaks: Value,
    /// Where the rule compares with the object before.
    transition: bool,
}

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

fn case(plural: &'static str, message: &'static str, keeps: Value, breaks: Value) -> Case {
    Case {
        plural,
        message,
        keeps,
        breaks,
        transition: false,
    }
}

fn immutable(message: &'static str, breaks: Value) -> Case {
    Case {
        plural: "trainingruns",
        message,
        keeps: json!({"spec": {"suspend": true}}),
        breaks,
        transition: true,
    }
}

fn steps(steps: Value) -> Value {
    json!({"spec": {"rollout": {"canary": {"steps": steps}}}})
}

fn source_cases() -> Vec<Case> {
    let source = |source: Value| json!({"spec": {"sources": [source]}});
    let query = json!({"secretRef": {"name": "warehouse"}, "query": "SELECT 1"});
    vec![
        case(
            "datasets",
            "a source has exactly one of configMapRef, uri and postgres",
            source(json!({"name": "a", "configMapRef": {"name": "rows", "key": "a.jsonl"}})),
            source(
                json!({"name": "a", "configMapRef": {"name": "rows", "key": "a.jsonl"}, "uri": "pvc://data/a"}),
            ),
        ),
        case(
            "datasets",
            "a source has exactly one of configMapRef, uri and postgres",
            source(json!({"name": "a", "uri": "pvc://data/a"})),
            source(json!({"name": "a"})),
        ),
        case(
            "datasets",
            "a source has exactly one of configMapRef, uri and postgres",
            source(json!({"name": "a", "postgres": query})),
            source(json!({"name": "a", "postgres": query, "uri": "pvc://data/a"})),
        ),
        case(
            "datasets",
            "secretRef belongs to a uri on the network",
            source(json!({"name": "a", "uri": "s3://data/a", "secretRef": {"name": "store"}})),
            source(json!({"name": "a", "uri": "pvc://data/a", "secretRef": {"name": "store"}})),
        ),
        case(
            "datasets",
            "timeoutSeconds and maximumRows are limits of a query",
            source(
                json!({"name": "a", "postgres": query, "timeoutSeconds": 60, "maximumRows": 10}),
            ),
            source(json!({"name": "a", "uri": "pvc://data/a", "timeoutSeconds": 60})),
        ),
        case(
            "datasets",
            "timeoutSeconds and maximumRows are limits of a query",
            source(json!({"name": "a", "uri": "pvc://data/a"})),
            source(json!({"name": "a", "uri": "pvc://data/a", "maximumRows": 10})),
        ),
        case(
            "datasets",
            "weight is above 0 and at most 1000",
            source(json!({"name": "a", "uri": "pvc://data/a", "weight": "0.25"})),
            source(json!({"name": "a", "uri": "pvc://data/a", "weight": "0.0"})),
        ),
        case(
            "datasets",
            "weight is above 0 and at most 1000",
            source(json!({"name": "a", "uri": "pvc://data/a", "weight": "1000"})),
            source(json!({"name": "a", "uri": "pvc://data/a", "weight": "1000.5"})),
        ),
    ]
}

fn dataset_cases() -> Vec<Case> {
    let split = |train: u32| json!({"spec": {"split": {"trainPercent": train, "validationPercent": 10, "testPercent": 10}}});
    let privacy = |classification: &str, privacy: Value| json!({"spec": {"classification": classification, "privacy": privacy}});
    let timed = "column is needed with method Time, and with no other";
    let restricted = "Restricted data needs privacy with a mode other than Allow";
    let keyed = "pseudonymKeyRef is needed with mode Pseudonymise";
    let idle = "pseudonymKeyRef is needed with mode Pseudonymise, and else only with transform";
    let key = json!({"name": "pseudonyms", "key": "key"});
    let asked = |score: &str| {
        let analyzer = json!({"url": "http://presidio.privacy.svc:3000", "minimumScore": score});
        privacy("Public", json!({"mode": "Redact", "analyzer": analyzer}))
    };
    let invalid =
        |percent: &str| json!({"spec": {"validation": {"maximumInvalidPercent": percent}}});
    vec![
        case(
            "datasets",
            "trainPercent, validationPercent and testPercent sum to 100",
            split(80),
            split(81),
        ),
        case(
            "datasets",
            timed,
            json!({"spec": {"split": {"method": "Time", "column": "day"}}}),
            json!({"spec": {"split": {"method": "Time"}}}),
        ),
        case(
            "datasets",
            timed,
            json!({"spec": {"split": {"method": "Random"}}}),
            json!({"spec": {"split": {"method": "Random", "column": "day"}}}),
        ),
        case(
            "datasets",
            restricted,
            privacy("Restricted", json!({"mode": "Redact"})),
            privacy("Restricted", json!({"mode": "Allow"})),
        ),
        case(
            "datasets",
            restricted,
            privacy("Internal", json!({"mode": "Allow"})),
            privacy("Restricted", Value::Null),
        ),
        case(
            "datasets",
            restricted,
            json!({"spec": {"classification": null, "privacy": null}}),
            privacy("Restricted", Value::Null),
        ),
        case(
            "datasets",
            keyed,
            privacy(
                "Restricted",
                json!({"mode": "Pseudonymise", "pseudonymKeyRef": key}),
            ),
            privacy("Restricted", json!({"mode": "Pseudonymise"})),
        ),
        case(
            "datasets",
            idle,
            privacy("Public", json!({"mode": "Reject", "columns": ["prompt"]})),
            privacy("Public", json!({"mode": "Reject", "pseudonymKeyRef": key})),
        ),
        case(
            "datasets",
            "minimumScore is at most 1",
            asked("1.0"),
            asked("1.5"),
        ),
        case(
            "datasets",
            "maximumTokensPerRow needs baseModel",
            json!({"spec": {"validation": {"maximumTokensPerRow": 4096}, "baseModel": {"uri": "pvc://models/base"}}}),
            json!({"spec": {"validation": {"maximumTokensPerRow": 4096}}}),
        ),
        case(
            "datasets",
            "maximumInvalidPercent is at most 100",
            invalid("100"),
            invalid("100.1"),
        ),
    ]
}

fn transform_cases() -> Vec<Case> {
    let idle = "pseudonymKeyRef is needed with mode Pseudonymise, and else only with transform";
    let renamed = "columns of sources have no place beside transform: name columns there, with AS";
    let sharded = "shards have no place beside transform: one pod runs the SQL";
    let key = json!({"name": "pseudonyms", "key": "key"});
    let plain = json!([{"name": "a", "uri": "pvc://data/a"}]);
    let mapped = json!([{"name": "a", "uri": "pvc://data/a", "columns": {"prompt": "question"}}]);
    vec![
        case(
            "datasets",
            idle,
            json!({"spec": {"transform": "SELECT 1", "sources": plain, "privacy": {"mode": "Redact", "pseudonymKeyRef": key}}}),
            json!({"spec": {"classification": "Public", "privacy": {"mode": "Redact", "pseudonymKeyRef": key}}}),
        ),
        case(
            "datasets",
            renamed,
            json!({"spec": {"transform": "SELECT 1", "sources": plain}}),
            json!({"spec": {"transform": "SELECT 1", "sources": mapped}}),
        ),
        case(
            "datasets",
            sharded,
            json!({"spec": {"transform": "SELECT 1", "sources": plain, "shards": 1}}),
            json!({"spec": {"transform": "SELECT 1", "sources": plain, "shards": 2}}),
        ),
        case(
            "datasets",
            sharded,
            json!({"spec": {"sources": plain, "shards": 64}}),
            json!({"spec": {"transform": "SELECT 1", "sources": plain, "shards": 64}}),
        ),
    ]
}

fn run_cases() -> Vec<Case> {
    let lora = |lora: Value| json!({"spec": {"method": {"lora": lora}}});
    let objective = |objective: Value| {
        let method = json!({"lora": {"dropout": "0"}});
        json!({"spec": {"objective": objective, "method": method}})
    };
    let method = |method: Value| json!({"spec": {"method": method}});
    vec![
        case(
            "trainingruns",
            "alpha is above 0 and at most 65536",
            lora(json!({"alpha": "65536"})),
            lora(json!({"alpha": "0"})),
        ),
        case(
            "trainingruns",
            "dropout is at least 0 and below 1",
            lora(json!({"dropout": "0.9"})),
            lora(json!({"dropout": "1"})),
        ),
        case(
            "trainingruns",
            "subject belongs to type Evaluate and is needed there",
            json!({"spec": {"adapterRef": null, "method": {
                "type": "Evaluate", "subject": {"adapterRef": {"name": "topics"}, "version": 3}
            }}}),
            json!({"spec": {"adapterRef": null, "method": {"type": "Evaluate"}}}),
        ),
        case(
            "trainingruns",
            "adapterRef, initialAdapterRef and objective do not go with method type Evaluate",
            json!({"spec": {"adapterRef": null}}),
            method(json!({
                "type": "Evaluate", "subject": {"adapterRef": {"name": "topics"}, "version": 3}
            })),
        ),
        case(
            "trainingruns",
            "output belongs to type Full and is needed there",
            json!({"spec": {"adapterRef": null, "method": {
                "type": "Full", "output": {"uri": "pvc://models/topics"}
            }}}),
            json!({"spec": {"adapterRef": null, "method": {"type": "Full"}}}),
        ),
        case(
            "trainingruns",
            "adapterRef, initialAdapterRef and objective DPO do not go with method type Full",
            json!({"spec": {"adapterRef": null}}),
            method(json!({"type": "Full", "output": {"uri": "pvc://models/topics"}})),
        ),
        case(
            "trainingruns",
            "method.lora.dropout is 0 under objective DPO, whose reference drops nothing",
            objective(json!({"type": "DPO"})),
            json!({"spec": {"objective": {"type": "DPO"}, "method": {"lora": {"dropout": "0.05"}}}}),
        ),
        case(
            "trainingruns",
            "beta belongs to type DPO",
            objective(json!({"type": "DPO", "beta": "0.1"})),
            objective(json!({"type": "SFT", "beta": "0.1"})),
        ),
        case(
            "trainingruns",
            "beta is above 0 and at most 100",
            objective(json!({"type": "DPO", "beta": "100"})),
            objective(json!({"type": "DPO", "beta": "0"})),
        ),
        case(
            "trainingruns",
            "quantization belongs to type QLoRA and is needed there",
            method(json!({"type": "QLoRA", "quantization": "Q4_K"})),
            method(json!({"type": "QLoRA"})),
        ),
        case(
            "trainingruns",
            "quantization belongs to type QLoRA and is needed there",
            method(json!({"type": "LoRA"})),
            method(json!({"type": "LoRA", "quantization": "Q8_0"})),
        ),
    ]
}

fn hyperparameter_cases() -> Vec<Case> {
    let hyper = |hyper: Value| json!({"spec": {"hyperparameters": hyper}});
    let multiple = "batchSize, which is 32 where it is left out, is a multiple of microBatchSize";
    vec![
        case(
            "trainingruns",
            "epochs and maximumSteps exclude each other",
            hyper(json!({"epochs": 2, "maximumSteps": null})),
            hyper(json!({"epochs": 2})),
        ),
        case(
            "trainingruns",
            "microBatchSize is at most batchSize, which is 32 where it is left out",
            hyper(json!({"batchSize": 8, "microBatchSize": 8})),
            hyper(json!({"batchSize": 8, "microBatchSize": 16})),
        ),
        case(
            "trainingruns",
            multiple,
            hyper(json!({"batchSize": 12, "microBatchSize": 4})),
            hyper(json!({"batchSize": 12, "microBatchSize": 5})),
        ),
        case(
            "trainingruns",
            multiple,
            hyper(json!({"batchSize": 4, "microBatchSize": null})),
            hyper(json!({"batchSize": 4, "microBatchSize": 3})),
        ),
        case(
            "trainingruns",
            "earlyStopping needs validateEverySteps",
            hyper(json!({"earlyStopping": {"patience": 3}, "validateEverySteps": 100})),
            hyper(json!({"earlyStopping": {"patience": 3}})),
        ),
        case(
            "trainingruns",
            "checkpoint.keepBest needs hyperparameters.validateEverySteps",
            json!({"spec": {
                "checkpoint": {"keepBest": true}, "hyperparameters": {"validateEverySteps": 100}
            }}),
            json!({"spec": {"checkpoint": {"keepBest": true}}}),
        ),
        case(
            "trainingruns",
            "learningRate is above 0 and at most 1",
            hyper(json!({"learningRate": "8e-5"})),
            hyper(json!({"learningRate": "0.0"})),
        ),
        case(
            "trainingruns",
            "learningRate is above 0 and at most 1",
            hyper(json!({"learningRate": "1"})),
            hyper(json!({"learningRate": "1.01"})),
        ),
        case(
            "trainingruns",
            "weightDecay is at most 1",
            hyper(json!({"weightDecay": "0.1"})),
            hyper(json!({"weightDecay": "1.1"})),
        ),
        case(
            "trainingruns",
            "maximumGradientNorm is at most 1000",
            hyper(json!({"maximumGradientNorm": "0"})),
            hyper(json!({"maximumGradientNorm": "1e4"})),
        ),
    ]
}

fn immutable_run_cases() -> Vec<Case> {
    let lora = |lora: Value| json!({"spec": {"method": {"lora": lora}}});
    let objective = |objective: Value| json!({"spec": {"objective": objective}});
    let hyper = |hyper: Value| json!({"spec": {"hyperparameters": hyper}});
    vec![
        immutable(
            "baseModel is immutable",
            json!({"spec": {"baseModel": {"uri": "pvc://models/other"}}}),
        ),
        immutable(
            "datasetRef is immutable",
            json!({"spec": {"datasetRef": {"version": 2}}}),
        ),
        immutable(
            "adapterRef is immutable",
            json!({"spec": {"adapterRef": null}}),
        ),
        immutable(
            "adapterRef is immutable",
            json!({"spec": {"adapterRef": {"name": "other"}}}),
        ),
        immutable(
            "initialAdapterRef is immutable",
            json!({"spec": {"initialAdapterRef": {"name": "topics", "version": 2}}}),
        ),
        immutable("objective is immutable", objective(json!({"type": "DPO"}))),
        immutable("method is immutable", lora(json!({"rank": 16}))),
        immutable("hyperparameters is immutable", hyper(json!({"seed": 8}))),
        immutable(
            "compute is immutable",
            json!({"spec": {"compute": {"profile": "large"}}}),
        ),
        immutable(
            "checkpoint is immutable",
            json!({"spec": {"checkpoint": {"keep": 5}}}),
        ),
        immutable(
            "evaluation is immutable",
            json!({"spec": {"evaluation": {"maximumRows": 5}}}),
        ),
        immutable(
            "limits is immutable",
            json!({"spec": {"limits": {"retries": 5}}}),
        ),
    ]
}

fn adapter_cases() -> Vec<Case> {
    let rule = |rule: Value| json!({"spec": {"gate": {"rules": [rule]}}});
    let confidence = |text: &str| json!({"spec": {"gate": {"confidence": text}}});
    let limits = "a rule has exactly one of minimum, maximum, minimumImprovementPoints, maximumRegressionPoints and maximumIncreasePercent";
    vec![
        case(
            "loraadapters",
            limits,
            rule(json!({"metric": "loss", "maximum": "2"})),
            rule(json!({"metric": "loss"})),
        ),
        case(
            "loraadapters",
            limits,
            rule(json!({"metric": "loss", "maximumRegressionPoints": "2"})),
            rule(json!({"metric": "loss", "minimum": "1", "maximum": "2"})),
        ),
        case(
            "loraadapters",
            limits,
            rule(json!({"metric": "latency_p95", "maximumIncreasePercent": "5"})),
            rule(json!({"metric": "latency_p95", "maximumIncreasePercent": "5", "maximum": "2"})),
        ),
        case(
            "loraadapters",
            "confidence is at least 0.5 and below 1",
            confidence("0.99"),
            confidence("1"),
        ),
        case(
            "loraadapters",
            "confidence is at least 0.5 and below 1",
            confidence("0.5"),
            confidence("0.4"),
        ),
    ]
}

fn endpoint_cases() -> Vec<Case> {
    let rule = |rule: Value| json!({"spec": {"rollout": {"analysis": {"rules": [rule]}}}});
    let named = |name: &str| json!({"metadata": {"name": name}});
    let name = "metadata.name becomes a Service: a DNS label that starts with a letter, at most 50 characters";
    let rise = "setWeight rises from step to step";
    let first = "the first step is a setWeight";
    let either = "a step has exactly one of setWeight and pause";
    vec![
        case(
            "servingendpoints",
            name,
            named(&"a".repeat(50)),
            named(&"a".repeat(51)),
        ),
        case("servingendpoints", name, named("a-1"), named("a.b")),
        case("servingendpoints", name, named("a"), named("1a")),
        case(
            "servingendpoints",
            rise,
            steps(json!([{"setWeight": 1}, {"pause": {}}, {"setWeight": 2}])),
            steps(json!([{"setWeight": 2}, {"pause": {}}, {"setWeight": 1}])),
        ),
        case(
            "servingendpoints",
            rise,
            steps(json!([{"setWeight": 2}, {"setWeight": 3}])),
            steps(json!([{"setWeight": 2}, {"setWeight": 2}])),
        ),
        case(
            "servingendpoints",
            first,
            steps(json!([{"setWeight": 2}])),
            steps(json!([{"pause": {}}, {"setWeight": 2}])),
        ),
        case(
            "servingendpoints",
            either,
            steps(json!([{"setWeight": 2}, {"pause": {"seconds": 3}}])),
            steps(json!([{"setWeight": 2, "pause": {}}])),
        ),
        case(
            "servingendpoints",
            either,
            steps(json!([{"setWeight": 2}])),
            steps(json!([{"setWeight": 2}, {}])),
        ),
        case(
            "servingendpoints",
            "a rule has exactly one of maximum and maximumIncreasePercent",
            rule(json!({"metric": "error_rate", "maximum": "0.01"})),
            rule(json!({"metric": "error_rate", "maximum": "0.01", "maximumIncreasePercent": "5"})),
        ),
        case(
            "servingendpoints",
            "a rule has exactly one of maximum and maximumIncreasePercent",
            rule(json!({"metric": "latency_p95", "maximumIncreasePercent": "5"})),
            rule(json!({"metric": "latency_p95"})),
        ),
    ]
}

fn engine_cases() -> Vec<Case> {
    let amounts = [
        ("adapterMemory", "1Mi", "1023Ki"),
        ("diskCache", "1.5Gi", "0"),
        ("keyValueCache", "1048576", "1M"),
    ];
    let engine = |field: &str, amount: &str| json!({"spec": {"engine": {field: amount}}});
    let cases = amounts.map(|(field, keeps, breaks)| {
        case(
            "servingendpoints",
            "an amount of memory or disk is at least 1Mi",
            engine(field, keeps),
            engine(field, breaks),
        )
    });
    cases.into()
}

fn cases() -> Vec<Case> {
    [
        source_cases(),
        dataset_cases(),
        transform_cases(),
        run_cases(),
        hyperparameter_cases(),
        immutable_run_cases(),
        adapter_cases(),
        endpoint_cases(),
        engine_cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
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
        let message = format!("{field} is immutable");
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
