//! A plan is carried out in a fixed order; what fails stops what depends on it, and nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fake_api::{Answer, FakeApi};
use graftwork_api::{Dataset, DatasetStatus};
use graftwork_operator::api::{ApiError, Class, Clients};
use graftwork_operator::controllers::{Failure, carry_out, decide};
use graftwork_operator::keys;
use graftwork_operator::lease::Term;
use graftwork_operator::metrics::Metrics;
use graftwork_operator::{
    cache::{Caches, Touch},
    context::{Context, Parts},
};
use graftwork_operator_core::plan::{Actions, Child, ChildKind, Decision, Delete, Event};
use graftwork_operator_core::settings::Settings;
use http::Method;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

pub fn settings() -> Settings {
    serde_json::from_value(json!({
        "images": {"trainer": "t", "inference": "i"},
        "computeProfiles": {"default": {}}
    }))
    .unwrap()
}

pub async fn context(api: &FakeApi, term: Arc<Term>) -> Context {
    context_with_queues(api, &term).await.0
}

/// A context, and what its caches and pods ask to be looked at.
pub async fn context_with_queues(
    api: &FakeApi,
    term: &Arc<Term>,
) -> (Context, [UnboundedReceiver<Touch>; 5]) {
    let clients = Clients {
        client: api.client(),
        streams: api.client(),
        in_cluster: true,
    };
    let (caches, touches, queues) = Caches::start(&clients.client);
    caches.ready().await;
    let keys = keys::from_seed([7; 32], None);
    let metrics = Metrics::new().unwrap();
    let parts = Parts {
        clients,
        caches,
        touches,
        settings: settings(),
        metrics,
        identity: "test".to_owned(),
    };
    (parts.context(keys, Arc::clone(term)), queues)
}

pub fn dataset() -> Dataset {
    serde_json::from_value(json!({
        "apiVersion": "graftwork.dev/v1alpha1",
        "kind": "Dataset",
        "metadata": {"name": "x", "namespace": "team", "uid": "u", "resourceVersion": "41", "generation": 2},
        "spec": {
            "sources": [{"name": "s", "uri": "pvc://a/b"}],
            "format": {"type": "Text"}
        },
        "status": {"observedGeneration": 1}
    }))
    .unwrap()
}

pub fn status(generation: i64) -> DatasetStatus {
    DatasetStatus {
        observed_generation: Some(generation),
        ..DatasetStatus::default()
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("team".to_owned()),
        ..ObjectMeta::default()
    }
}

pub fn everything() -> Actions<DatasetStatus> {
    Actions {
        // In the wrong order on purpose.
        apply: vec![
            Child::Deployment(Box::new(Deployment {
                metadata: named("deployment"),
                ..Deployment::default()
            })),
            Child::Claim(Box::new(PersistentVolumeClaim {
                metadata: named("claim"),
                ..PersistentVolumeClaim::default()
            })),
            Child::ConfigMap(Box::new(ConfigMap {
                metadata: named("map"),
                ..ConfigMap::default()
            })),
        ],
        create: vec![Job {
            metadata: named("job"),
            ..Job::default()
        }],
        delete: vec![Delete {
            kind: ChildKind::Job,
            name: "old".to_owned(),
            uid: "old-uid".to_owned(),
            grace_seconds: None,
        }],
        status: Some(status(2)),
        events: vec![Event::normal("Ready", "it is")],
        ..Actions::default()
    }
}

const ORDER: [&str; 7] = [
    "POST configmaps",
    "POST persistentvolumeclaims",
    "POST deployments",
    "POST jobs",
    "DELETE jobs/old",
    "PATCH datasets/x/status",
    "POST events",
];

fn written(object: &Value) -> Answer {
    let mut whole = serde_json::to_value(dataset()).unwrap();
    whole["status"] = object["status"].clone();
    Answer::Object(whole)
}

/// Takes everything.
pub fn take(_: &Method, path: &str, body: &Value) -> Answer {
    if path == "datasets/x/status" {
        written(body)
    } else if path == "jobs/old" {
        Answer::Object(
            json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 200}),
        )
    } else {
        Answer::Take
    }
}

#[tokio::test]
async fn writes_come_in_their_order_and_status_names_the_version_that_was_read() {
    let api = FakeApi::new(take);
    let context = context(&api, Term::forever()).await;
    carry_out(&context, &dataset(), &everything())
        .await
        .unwrap();
    assert_eq!(api.lines(), ORDER);
    let writes = api.writes();
    assert_eq!(writes[4].body["preconditions"]["uid"], "old-uid");
    let patch = &writes[5].body;
    assert_eq!(patch["metadata"]["resourceVersion"], "41");
    assert_eq!(patch["status"], json!({"observedGeneration": 2}));
}

#[tokio::test]
async fn a_decision_is_written_alone() {
    let api = FakeApi::new(take);
    let context = context(&api, Term::forever()).await;
    let decision = Decision {
        status: status(3),
        events: vec![Event::normal("Started", "x")],
    };
    let next = decide(&context, &dataset(), &decision)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(next.status, Some(status(3)));
    assert_eq!(api.lines(), ["PATCH datasets/x/status", "POST events"]);
}

#[tokio::test]
async fn a_conflict_is_one_and_sends_no_event() {
    let api = FakeApi::new(|method, path, body| {
        if path == "datasets/x/status" {
            Answer::Status(409, "Conflict")
        } else {
            take(method, path, body)
        }
    });
    let context = context(&api, Term::forever()).await;
    let failure = carry_out(&context, &dataset(), &everything())
        .await
        .unwrap_err();
    assert!(matches!(failure, Failure::Api(error) if error.class() == Class::Conflict));
    assert_eq!(api.lines(), ORDER[..6]);
}

#[tokio::test]
async fn a_write_that_fails_stops_what_comes_after_but_not_the_status() {
    let api = FakeApi::new(|method, path, body| {
        if path.starts_with("persistentvolumeclaims") {
            Answer::Status(403, "exceeded quota")
        } else {
            take(method, path, body)
        }
    });
    let context = context(&api, Term::forever()).await;
    let failure = carry_out(&context, &dataset(), &everything())
        .await
        .unwrap_err();
    assert!(failure.to_string().contains("exceeded quota"), "{failure}");
    assert_eq!(
        api.lines(),
        [
            "POST configmaps",
            "POST persistentvolumeclaims",
            "PATCH datasets/x/status",
            "POST events",
            "POST events",
        ]
    );
    let writes = api.writes();
    assert_eq!(writes[2].body["status"]["observedGeneration"], 2);
    assert_eq!(writes[4].body["reason"], "ChildRefused");
}

#[tokio::test]
async fn a_status_that_says_the_same_is_not_written() {
    let api = FakeApi::new(take);
    let context = context(&api, Term::forever()).await;
    let actions = Actions {
        status: Some(status(1)),
        events: vec![Event::normal("Ready", "it is")],
        ..Actions::default()
    };
    carry_out(&context, &dataset(), &actions).await.unwrap();
    assert_eq!(api.lines(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_costs_ten_seconds() {
    let api = FakeApi::new(|method, _, _| {
        if *method == Method::GET {
            Answer::Status(404, "NotFound")
        } else {
            Answer::Silence
        }
    });
    let context = context(&api, Term::forever()).await;
    let actions = Actions {
        create: everything().create,
        ..Actions::default()
    };
    let started = tokio::time::Instant::now();
    let failure = carry_out(&context, &dataset(), &actions).await.unwrap_err();
    assert!(
        matches!(failure, Failure::Api(ApiError::Deadline)),
        "{failure}"
    );
    assert_eq!(started.elapsed().as_secs(), 10);
}

#[tokio::test]
async fn nothing_is_begun_when_the_term_is_over() {
    let api = FakeApi::new(take);
    let context = context(&api, Term::new()).await;
    let started = Instant::now();
    let failure = carry_out(&context, &dataset(), &everything())
        .await
        .unwrap_err();
    assert!(
        matches!(failure, Failure::Api(ApiError::NotLeading)),
        "{failure}"
    );
    assert_eq!(api.lines(), Vec::<String>::new());
    assert!(started.elapsed() < Duration::from_secs(5));
}
