//! `operator run --plan-only` from a shell: it says what would be done, or ends with a reason.

use std::time::Duration;

use graftwork_operator::cache::Caches;
use graftwork_operator::lease::Term;
use graftwork_operator::plan_only::{check_definitions, fill, plan_all};
use serde_json::{Value, json};

use crate::carry_out::context;
use crate::fake_api::{Answer, FakeApi};

fn nothing() -> FakeApi {
    FakeApi::new(|_, _, _| Answer::Status(404, "NotFound"))
}

#[tokio::test]
async fn definitions_that_are_missing_are_named_with_the_remedy() {
    check_definitions(&nothing().client()).await.unwrap();
    let api = nothing()
        .refusing("datasets", 404)
        .refusing("servingendpoints", 404);
    let error = check_definitions(&api.client())
        .await
        .unwrap_err()
        .to_string();
    for part in [
        "datasets.graftwork.dev, servingendpoints.graftwork.dev",
        "v1alpha1",
        "operator crds",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("trainingruns"), "{error}");
}

#[tokio::test]
async fn a_user_who_may_not_list_is_told_of_what() {
    let api = nothing().refusing("loraadapters", 403);
    let error = check_definitions(&api.client())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("LoRAAdapter") && error.contains("403"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_ends_the_wait_and_is_named() {
    let api = nothing().refusing("deployments", 403).silent_about("pods");
    let (caches, _touches, _receivers) = Caches::start(&api.client());
    let within = Duration::from_secs(30);
    let error = fill(&caches, within).await.unwrap_err().to_string();
    assert!(error.contains("Deployment, Pod were"), "{error}");
    assert!(error.contains("30 s"), "{error}");
}

#[tokio::test]
async fn every_object_gets_a_line_and_nothing_is_written() {
    let dataset = json!({
        "apiVersion": "graftwork.dev/v1alpha1",
        "kind": "Dataset",
        "metadata": {"name": "x", "namespace": "team", "uid": "u", "resourceVersion": "41"},
        "spec": {
            "sources": [{"name": "s", "configMapRef": {"name": "rows", "key": "a.jsonl"}}],
            "format": {"type": "Text"},
        },
    });
    let unreadable = json!({
        "apiVersion": "graftwork.dev/v1alpha1",
        "kind": "Dataset",
        "metadata": {"name": "y", "namespace": "team", "uid": "v", "resourceVersion": "42"},
        "spec": {"sources": "not a list"},
    });
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "team", "uid": "n", "resourceVersion": "1"},
    });
    let api = nothing()
        .with("datasets", vec![dataset, unreadable])
        .with("namespaces", vec![namespace]);
    let context = context(&api, Term::forever()).await;
    let mut lines: Vec<Value> = Vec::new();
    plan_all(&context, |line| lines.push(line.clone()))
        .await
        .unwrap();
    let kinds: Vec<_> = lines.iter().map(|line| line["kind"].clone()).collect();
    assert_eq!(kinds, ["Namespace", "Dataset"]);
    let keeper = lines[0]["apply"].as_array().unwrap();
    assert!(
        keeper.iter().any(|child| child["kind"] == "Deployment"),
        "the namespace would get its keeper: {keeper:?}"
    );
    let ready = &lines[1]["status"]["conditions"][0];
    assert_eq!(ready["reason"], "SourceNotFound", "{}", lines[1]);
    assert_eq!(api.lines(), Vec::<String>::new());
}
