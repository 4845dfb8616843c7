//! What was decided is not acted against because a cache is slow.

use std::time::Duration;

use graftwork_api::Dataset;
use graftwork_operator::controllers::{Freshest, decide, freshest};
use graftwork_operator::lease::Term;
use graftwork_operator::trail::{Freshness, LOOK_AGAIN, WAIT};
use graftwork_operator_core::plan::Decision;
use http::Method;
use serde_json::{Value, json};

use crate::carry_out::{context, dataset, status};
use crate::fake_api::{Answer, FakeApi};

fn at_version(version: &str) -> Dataset {
    let mut dataset = dataset();
    dataset.metadata.resource_version = Some(version.to_owned());
    dataset
}

/// The object at `version` with the status of `body`.
fn answer(version: &str, body: &Value) -> Answer {
    let mut whole = serde_json::to_value(at_version(version)).unwrap();
    whole["status"] = body["status"].clone();
    Answer::Object(whole)
}

fn version_of(freshest: Freshest<Dataset>) -> String {
    match freshest {
        Freshest::Object(object) => object.metadata.resource_version.unwrap(),
        other => panic!("it may be acted on: {other:?}"),
    }
}

fn server() -> FakeApi {
    FakeApi::new(|method, path, body| match (method, path) {
        (&Method::PATCH, "datasets/x/status") => answer("42", body),
        (&Method::GET, "datasets/x") => answer("43", &json!({"status": {"observedGeneration": 2}})),
        _ => Answer::Take,
    })
}

fn decision() -> Decision<graftwork_api::DatasetStatus> {
    Decision {
        status: status(2),
        events: Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_older_than_our_last_decision_is_not_acted_on() {
    let context = context(&server(), Term::forever()).await;
    let read = at_version("41");
    assert_eq!(version_of(freshest(&context, &read).await.unwrap()), "41");
    decide(&context, &read, &decision()).await.unwrap().unwrap();
    tokio::time::advance(WAIT.saturating_sub(Duration::from_millis(1))).await;
    let later = freshest(&context, &read).await.unwrap();
    assert!(matches!(later, Freshest::Later(pause) if pause == LOOK_AGAIN));
    for delivered in ["42", "57"] {
        let delivered = at_version(delivered);
        let version = delivered.metadata.resource_version.clone().unwrap();
        let fresh = freshest(&context, &delivered).await.unwrap();
        assert_eq!(version_of(fresh), version, "our write, or a later event");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_does_not_catch_up_is_passed_by() {
    let context = context(&server(), Term::forever()).await;
    let read = at_version("41");
    decide(&context, &read, &decision()).await.unwrap();
    tokio::time::advance(WAIT).await;
    let live = freshest(&context, &read).await.unwrap();
    assert_eq!(version_of(live), "43", "what the API server has");
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_gone_while_the_cache_is_behind_is_left_alone() {
    let api = FakeApi::new(|method, path, body| match (method, path) {
        (&Method::PATCH, "datasets/x/status") => answer("42", body),
        _ => Answer::Status(404, "NotFound"),
    });
    let context = context(&api, Term::forever()).await;
    let read = at_version("41");
    decide(&context, &read, &decision()).await.unwrap();
    tokio::time::advance(WAIT).await;
    let gone = freshest(&context, &read).await.unwrap();
    assert!(matches!(gone, Freshest::Gone), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn a_decision_whose_answer_was_lost_is_looked_up() {
    for (stored, is_current) in [("42", false), ("41", true)] {
        let api = FakeApi::new(move |method, path, _| match (method, path) {
            (&Method::PATCH, "datasets/x/status") => Answer::Silence,
            _ => answer(stored, &json!({"status": {"observedGeneration": 2}})),
        });
        let context = context(&api, Term::forever()).await;
        let read = at_version("41");
        decide(&context, &read, &decision()).await.unwrap_err();
        let later = freshest(&context, &read).await.unwrap();
        assert!(matches!(later, Freshest::Later(_)), "{later:?}");
        tokio::time::advance(WAIT).await;
        let live = freshest(&context, &read).await.unwrap();
        assert_eq!(version_of(live), stored);
        let freshness = context.trail.freshness("u", "41");
        assert_eq!(freshness == Freshness::Current, is_current, "{stored}");
    }
}
