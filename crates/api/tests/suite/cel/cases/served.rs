//! Rules of LoRAAdapters and ServingEndpoints.

use serde_json::{Value, json};

use super::{Case, case};

/// All of them.
pub fn cases() -> Vec<Case> {
    [adapter_cases(), endpoint_cases(), engine_cases()]
        .into_iter()
        .flatten()
        .collect()
}

fn steps(steps: Value) -> Value {
    json!({"spec": {"rollout": {"canary": {"steps": steps}}}})
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
