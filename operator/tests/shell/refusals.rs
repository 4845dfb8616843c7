//! What the API server refuses stands in a condition, in its words, for as long as it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use graftwork_api::{Condition, Dataset, TrainingRun};
use graftwork_operator::controllers::{Reconciled, carry_out, reconcile_storage};
use graftwork_operator::lease::Term;
use graftwork_operator::observe::keeper;
use graftwork_operator_core::hindered::Hindrance;
use graftwork_operator_core::observed::Found;
use graftwork_operator_core::plan::Actions;
use graftwork_operator_core::run;
use http::Method;
use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use crate::carry_out::{context, dataset, everything, status, take};
use crate::fake_api::{Answer, FakeApi};

/// What a plan says while it builds.
fn building() -> Actions<graftwork_api::DatasetStatus> {
    let mut status = status(2);
    status.conditions = vec![
        serde_json::from_value::<Condition>(json!({
            "type": "Ready", "status": "Unknown", "reason": "Building", "message": "wait",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 2,
        }))
        .unwrap(),
    ];
    Actions {
        apply: everything().apply,
        status: Some(status),
        ..Actions::default()
    }
}

fn with_status(body: &Value) -> Dataset {
    let mut whole = serde_json::to_value(dataset()).unwrap();
    whole["status"] = body["status"].clone();
    serde_json::from_value(whole).unwrap()
}

#[tokio::test]
async fn a_refusal_is_a_condition_with_the_servers_words_and_goes_when_the_write_is_taken() {
    for code in [403, 422] {
        let api = FakeApi::new(move |method, path, body| {
            if path.starts_with("deployments") {
                Answer::Status(code, "exceeded quota: team-quota")
            } else {
                take(method, path, body)
            }
        });
        let refusing = context(&api, Term::forever()).await;
        carry_out(&refusing, &dataset(), &building())
            .await
            .unwrap_err();
        let writes = api.writes();
        let written = writes
            .iter()
            .find(|it| it.path.ends_with("/status"))
            .unwrap();
        let ready = &written.body["status"]["conditions"][0];
        assert_eq!(ready["status"], "False");
        assert_eq!(ready["reason"], "ChildRefused");
        assert_eq!(ready["observedGeneration"], 2);
        let message = ready["message"].as_str().unwrap();
        assert!(message.contains("exceeded quota: team-quota"), "{message}");
        assert_eq!(writes.last().unwrap().body["reason"], "ChildRefused");

        // The same again: nothing new is said.
        let refused = with_status(&written.body);
        let before = api.writes().len();
        carry_out(&refusing, &refused, &building())
            .await
            .unwrap_err();
        let again = api.lines().split_off(before);
        assert!(
            !again
                .iter()
                .any(|line| line.contains("status") || line.contains("events")),
            "{again:?}"
        );

        let api = FakeApi::new(take);
        let taking = context(&api, Term::forever()).await;
        carry_out(&taking, &refused, &building()).await.unwrap();
        let writes = api.writes();
        let written = writes
            .iter()
            .find(|it| it.path.ends_with("/status"))
            .unwrap();
        let conditions = written.body["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 1, "Reconciling is gone: {conditions:?}");
        assert_eq!(conditions[0]["reason"], "Building");
    }
}

#[tokio::test]
async fn a_refusal_hides_no_invalid_spec_and_is_told_all_the_same() {
    let api = FakeApi::new(|method, path, body| {
        if path == "jobs/old" {
            Answer::Status(403, "jobs may not be deleted on Fridays")
        } else {
            take(method, path, body)
        }
    });
    let condition = |kind: &str, status: &str| {
        serde_json::from_value::<Condition>(json!({
            "type": kind, "status": status, "reason": "InvalidSpec", "message": "spec.sources[0].uri: x",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 2,
        }))
        .unwrap()
    };
    let mut status = status(2);
    status.conditions = vec![condition("Ready", "False"), condition("Stalled", "True")];
    let invalid = Actions {
        delete: everything().delete,
        status: Some(status),
        ..Actions::default()
    };
    let context = context(&api, Term::forever()).await;
    carry_out(&context, &dataset(), &invalid).await.unwrap_err();
    let writes = api.writes();
    let bodies = |path: &str| {
        let of_path = writes.iter().filter(|it| it.path.ends_with(path));
        of_path.map(|it| it.body.clone()).collect::<Vec<_>>()
    };
    let written = bodies("/status").remove(0);
    let reasons = written["status"]["conditions"].as_array().unwrap();
    assert!(
        reasons.iter().all(|it| it["reason"] == "InvalidSpec"),
        "{reasons:?}"
    );
    let events = bodies("events");
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["reason"], "WriteRefused");
    let note = events[0]["note"].as_str().unwrap();
    assert!(note.contains("Fridays"), "{note}");
}

#[tokio::test]
async fn a_status_that_may_not_be_written_is_an_event() {
    let api = FakeApi::new(|method, path, body| {
        if path == "datasets/x/status" {
            Answer::Status(422, "status.versions is written by the operator only")
        } else {
            take(method, path, body)
        }
    });
    let context = context(&api, Term::forever()).await;
    carry_out(&context, &dataset(), &building())
        .await
        .unwrap_err();
    let writes = api.writes();
    let event = &writes.last().unwrap().body;
    assert_eq!(event["reason"], "WriteRefused");
    let note = event["note"].as_str().unwrap();
    assert!(note.contains("written by the operator only"), "{note}");
}

fn run_with_class(class: &str) -> TrainingRun {
    serde_json::from_value(json!({
        "apiVersion": "graftwork.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": "r", "namespace": "team", "uid": "u", "resourceVersion": "4"},
        "spec": {
            "baseModel": {"uri": "pvc://models/tiny"},
            "datasetRef": {"name": "d"},
            "method": {"type": "LoRA", "lora": {}},
            "compute": {"priorityClassName": class},
        },
    }))
    .unwrap()
}

#[tokio::test]
async fn a_run_whose_pods_are_refused_says_so_in_the_words_of_its_jobs_newest_event() {
    let event = |second: u32, note: &str| {
        json!({
            "metadata": {"name": note, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "eventTime": null, "regarding": {"kind": "Job", "name": "r-1"}, "reason": "FailedCreate", "note": note,
        })
    };
    let events = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "EventList", "metadata": {},
        "items": [event(1, "old"), event(3, "exceeded quota: few"), event(2, "older")],
    });
    let api = FakeApi::new(move |method, path, _| {
        assert_eq!((method, path), (&Method::GET, "events"));
        Answer::Object(events.clone())
    });
    let context = context(&api, Term::forever()).await;
    let (mut run, observed, at) = (run_with_class(""), without_pod(), after_its_job);
    run.spec.compute.priority_class_name = None;
    assert_eq!(run.hindrance(&context, &observed, at(3)).await, None);
    let hindrance = run.hindrance(&context, &observed, at(4)).await.unwrap();
    assert_eq!(
        hindrance,
        Hindrance {
            refused: true,
            message: "pods of Job r-1 are refused: exceeded quota: few".to_owned(),
        }
    );
}

const JOB_CREATED: &str = "2026-01-01T00:00:00Z";

/// A run whose Job has no pod.
fn without_pod() -> run::Observed {
    let job: Job = serde_json::from_value(json!({
        "metadata": {"name": "r-1", "namespace": "team", "uid": "j", "creationTimestamp": JOB_CREATED},
    }))
    .unwrap();
    run::Observed {
        job: Found::Ours(Box::new(job)),
        ..run::Observed::default()
    }
}

/// So many seconds after that Job was made.
fn after_its_job(seconds: i64) -> jiff::Timestamp {
    let created: jiff::Timestamp = JOB_CREATED.parse().unwrap();
    created + jiff::SignedDuration::from_secs(seconds)
}

#[tokio::test]
async fn a_run_whose_priority_class_does_not_exist_says_so() {
    let api = FakeApi::new(|method, path, _| {
        assert_eq!(*method, Method::GET);
        match path {
            "priorityclasses/high" => Answer::Object(json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "high"},
            })),
            "priorityclasses/secret" => Answer::Status(403, "Forbidden"),
            _ => Answer::Status(404, "NotFound"),
        }
    });
    let context = context(&api, Term::forever()).await;
    let (observed, at) = (without_pod(), after_its_job);
    let unknown = run_with_class("hihg");
    assert_eq!(unknown.hindrance(&context, &observed, at(3)).await, None);
    let hindrance = unknown
        .hindrance(&context, &observed, at(20))
        .await
        .unwrap();
    assert!(hindrance.refused);
    for part in ["spec.compute.priorityClassName", "hihg", "r-1"] {
        assert!(hindrance.message.contains(part), "{}", hindrance.message);
    }
    for other in ["high", "secret"] {
        let run = run_with_class(other);
        let hindrance = run.hindrance(&context, &observed, at(20)).await.unwrap();
        assert!(!hindrance.refused, "{other}");
        assert!(
            hindrance.message.contains("events"),
            "{}",
            hindrance.message
        );
    }
}

#[tokio::test]
async fn a_keeper_that_is_refused_is_explained_to_the_objects_of_its_namespace() {
    let refuses = Arc::new(AtomicBool::new(true));
    let refusing = Arc::clone(&refuses);
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "team", "uid": "n", "resourceVersion": "1"},
    });
    let api = FakeApi::new(move |method, path, _| {
        if *method == Method::GET {
            Answer::Status(404, "NotFound")
        } else if path.starts_with("deployments") && refusing.load(Ordering::SeqCst) {
            Answer::Status(403, "exceeded quota: team-quota")
        } else {
            Answer::Take
        }
    })
    .with("namespaces", vec![namespace])
    .with("datasets", vec![serde_json::to_value(dataset()).unwrap()]);
    let context = context(&api, Term::forever()).await;
    let namespace = context.caches.namespaces.state().remove(0);
    let why = || keeper::peer(&context, "team").unwrap_err();
    assert!(!why().contains("quota"), "{}", why());
    reconcile_storage(&context, &namespace).await.unwrap_err();
    assert!(why().contains("exceeded quota: team-quota"), "{}", why());
    refuses.store(false, Ordering::SeqCst);
    reconcile_storage(&context, &namespace).await.unwrap();
    assert!(!why().contains("quota"), "{}", why());
}
