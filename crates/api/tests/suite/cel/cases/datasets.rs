//! Rules of Datasets.

use serde_json::{Value, json};

use super::{Case, case};

/// All of them.
pub fn cases() -> Vec<Case> {
    [source_cases(), dataset_cases(), transform_cases()]
        .into_iter()
        .flatten()
        .collect()
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
            "secretRef belongs to a uri on the network: leave it out",
            source(json!({"name": "a", "uri": "s3://data/a", "secretRef": {"name": "store"}})),
            source(json!({"name": "a", "uri": "pvc://data/a", "secretRef": {"name": "store"}})),
        ),
        case(
            "datasets",
            "timeoutSeconds and maximumRows are limits of a query: leave them out, or name postgres",
            source(
                json!({"name": "a", "postgres": query, "timeoutSeconds": 60, "maximumRows": 10}),
            ),
            source(json!({"name": "a", "uri": "pvc://data/a", "timeoutSeconds": 60})),
        ),
        case(
            "datasets",
            "timeoutSeconds and maximumRows are limits of a query: leave them out, or name postgres",
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
