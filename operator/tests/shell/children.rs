//! Children are created where their name is free, and nobody else's object is ever written.

use graftwork_api::labels;
use graftwork_operator::api::{ApiError, Class};
use graftwork_operator::controllers::{Failure, carry_out};
use graftwork_operator::lease::Term;
use graftwork_operator_core::plan::{Actions, Child};
use http::Method;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use crate::carry_out::{context, dataset};
use crate::fake_api::{Answer, FakeApi, Write};

/// A Service `x` as the API server has it, of the owner of that UID.
fn service(owner: &str, ports: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "x", "namespace": "team", "uid": "s", "resourceVersion": "7",
            "labels": {labels::MANAGED_BY: labels::OPERATOR},
            "ownerReferences": [{
                "apiVersion": "graftwork.dev/v1alpha1", "kind": "Dataset", "name": "x",
                "uid": owner, "controller": true,
            }],
        },
        "spec": {"ports": ports},
    })
}

fn ports(number: u16) -> Value {
    json!([{"port": number}])
}

/// The same, with its fields as a create of ours leaves them.
fn created(mut service: Value) -> Value {
    service["metadata"]["managedFields"] = json!([{
        "apiVersion": "v1", "manager": "graftwork-operator", "operation": "Update",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:ports": {}}},
    }]);
    service
}

/// The Service with port 80 is to be there, and belongs to the Dataset.
fn wanted() -> Actions<graftwork_api::DatasetStatus> {
    let mut service: Service = serde_json::from_value(service("u", &ports(80))).unwrap();
    service.metadata.uid = None;
    service.metadata.resource_version = None;
    Actions {
        apply: vec![Child::Service(Box::new(service))],
        ..Actions::default()
    }
}

/// Writes of one look, and how it ended.
async fn look(api: &FakeApi) -> (Vec<Write>, Result<(), Failure>) {
    let context = context(api, Term::forever()).await;
    let outcome = carry_out(&context, &dataset(), &wanted()).await;
    (api.writes(), outcome.map(|_| ()))
}

fn lines(writes: &[Write]) -> Vec<String> {
    writes.iter().map(Write::line).collect()
}

fn is_conflict(outcome: &Result<(), Failure>) -> bool {
    matches!(outcome, Err(Failure::Api(error)) if error.class() == Class::Conflict)
}

/// A server on which the name is taken by this object.
fn taken(by: Value) -> FakeApi {
    FakeApi::new(move |method, path, _| match (method, path) {
        (&Method::POST, "services") => Answer::Status(409, "AlreadyExists"),
        (&Method::GET, "services/x") => Answer::Object(by.clone()),
        _ => Answer::Take,
    })
}

#[tokio::test]
async fn a_child_is_created_and_what_the_create_holds_is_given_to_server_side_apply() {
    let api = FakeApi::new(|method, _, _| match *method {
        Method::POST => Answer::Object(created(service("u", &ports(80)))),
        _ => Answer::Take,
    });
    let (writes, outcome) = look(&api).await;
    outcome.unwrap();
    assert_eq!(lines(&writes), ["POST services", "PATCH services/x"]);
    let annotations = &writes[0].body["metadata"]["annotations"];
    assert!(annotations[labels::CONTENT_HASH_ANNOTATION].is_string());
    let metadata = &writes[1].body["metadata"];
    assert_eq!(metadata["resourceVersion"], "7");
    assert_eq!(metadata["uid"], "s");
    let fields = metadata["managedFields"].as_array().unwrap();
    assert_eq!(fields.len(), 1);
    assert_eq!(fields[0]["operation"], "Apply");
    assert_eq!(fields[0]["fieldsV1"], json!({"f:spec": {"f:ports": {}}}));
    assert_eq!(writes[1].body["spec"], Value::Null);
}

#[tokio::test]
async fn a_name_that_somebody_took_since_the_look_is_left_alone_and_looked_at_again() {
    let mut unlabelled = service("somebody", &ports(1));
    unlabelled["metadata"]["labels"] = json!({});
    for theirs in [unlabelled, service("another-endpoint", &ports(1))] {
        let (writes, outcome) = look(&taken(theirs)).await;
        assert_eq!(lines(&writes), ["POST services"]);
        assert!(is_conflict(&outcome), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_cached_object_of_another_owner_is_not_written_though_it_carries_our_labels() {
    let theirs = service("another-endpoint", &ports(1));
    let api = taken(theirs.clone()).with("services", vec![theirs]);
    let (writes, outcome) = look(&api).await;
    assert_eq!(lines(&writes), ["POST services"]);
    assert!(is_conflict(&outcome), "{outcome:?}");
}

#[tokio::test]
async fn a_child_that_lost_our_labels_is_found_by_its_owner_and_gets_them_back() {
    let mut unlabelled = service("u", &ports(80));
    unlabelled["metadata"]["labels"] = json!({});
    let (writes, outcome) = look(&taken(unlabelled)).await;
    outcome.unwrap();
    assert_eq!(lines(&writes), ["POST services", "PATCH services/x"]);
    let metadata = &writes[1].body["metadata"];
    assert_eq!(metadata["uid"], "s", "that one and no other");
    assert_eq!(metadata["labels"][labels::MANAGED_BY], labels::OPERATOR);
}

#[tokio::test]
async fn what_a_create_holds_is_given_over_before_the_next_apply() {
    let known = created(service("u", &ports(1)));
    let api = FakeApi::new(|_, _, _| Answer::Take).with("services", vec![known.clone()]);
    let (writes, outcome) = look(&api).await;
    outcome.unwrap();
    assert_eq!(lines(&writes), ["PATCH services/x"; 2]);
    assert!(writes[0].body["metadata"]["managedFields"].is_array());
    assert_eq!(writes[1].body["spec"]["ports"], ports(80));

    // Somebody wrote to it meanwhile: nothing is applied to what was not given over.
    let api = FakeApi::new(|_, _, body| {
        if body["metadata"]["managedFields"].is_array() {
            Answer::Status(409, "Conflict")
        } else {
            Answer::Take
        }
    });
    let (writes, outcome) = look(&api.with("services", vec![known])).await;
    assert_eq!(lines(&writes), ["PATCH services/x"]);
    assert!(is_conflict(&outcome), "{outcome:?}");
}

#[tokio::test]
async fn a_created_child_that_somebody_writes_to_at_once_is_given_over_at_a_later_look() {
    let api = FakeApi::new(|method, _, _| match *method {
        Method::POST => Answer::Object(created(service("u", &ports(80)))),
        _ => Answer::Status(409, "Conflict"),
    });
    let (writes, outcome) = look(&api).await;
    assert_eq!(lines(&writes), ["POST services", "PATCH services/x"]);
    outcome.unwrap();
}

#[tokio::test]
async fn a_create_that_fails_otherwise_is_an_error_and_patches_nothing() {
    let api = FakeApi::new(|method, _, _| match *method {
        Method::POST => Answer::Status(503, "ServiceUnavailable"),
        _ => Answer::Take,
    });
    let (writes, outcome) = look(&api).await;
    assert_eq!(lines(&writes), ["POST services"]);
    assert!(
        matches!(&outcome, Err(Failure::Api(ApiError::Kube(_))) if !is_conflict(&outcome)),
        "{outcome:?}"
    );
}
