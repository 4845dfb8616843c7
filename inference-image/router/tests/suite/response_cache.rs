//! Answers that are given twice.

use crate::rig::engine::FakeEngine;
use crate::rig::{Rig, candidate, config, question, table};
use graftwork_contract::endpoint::HEADER_CACHE;
use serde_json::{Value, json};

const ON: [&str; 2] = ["--response-cache-bytes", "1000000"];

/// A question with one answer.
fn greedy(user: &str) -> Value {
    let mut body = question(user);
    body["temperature"] = json!(0);
    body
}

async fn one(flags: &[&str]) -> (FakeEngine, Rig) {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(flags).await;
    rig.push(&table(None, &[&engine])).await;
    (engine, rig)
}

#[tokio::test]
async fn the_configuration_turns_it_on_too() {
    let engine = FakeEngine::start().await;
    let mut mounted = config("nowhere");
    mounted.response_cache_bytes = 100_000;
    let mut rig = Rig::start_with(&mounted, &[]).await;
    rig.push(&table(None, &[&engine])).await;
    for _ in 0..3 {
        assert_eq!(rig.ask(greedy("u")).await.status, 200);
    }
    assert_eq!(engine.seen().len(), 1);
}

#[tokio::test]
async fn off_unless_asked_for() {
    let (engine, rig) = one(&[]).await;
    for _ in 0..3 {
        assert_eq!(rig.ask(greedy("u")).await.status, 200);
    }
    assert_eq!(engine.seen().len(), 3);
}

#[tokio::test]
async fn the_same_request_of_the_same_caller_is_answered_once_and_says_so() {
    let (engine, mut rig) = one(&ON).await;
    let first = rig.ask(greedy("u")).await;
    let again = rig.ask(greedy("u")).await;
    assert_eq!(engine.seen().len(), 1);
    assert_eq!((again.adapter(), &again.text), ("m@v1", &first.text));
    assert!(first.headers.get(HEADER_CACHE).is_none());
    assert_eq!(again.headers[HEADER_CACHE], "hit");
    assert_eq!(
        rig.counts().await,
        [(1, 1, 0, 1)],
        "an answer that was kept does not judge its version"
    );
    rig.ask(greedy("v")).await;
    assert_eq!(engine.seen().len(), 2, "another caller asks anew");
    let mut other = greedy("u");
    other["max_tokens"] = json!(7);
    rig.ask(other).await;
    assert_eq!(engine.seen().len(), 3, "so does another request");
    rig.ask(question("u")).await;
    rig.ask(question("u")).await;
    assert_eq!(engine.seen().len(), 5, "and whatever is left to chance");
}

#[tokio::test]
async fn no_version_answers_for_another() {
    let (engine, mut rig) = one(&ON).await;
    assert_eq!(rig.ask(greedy("u")).await.adapter(), "m@v1");
    rig.push(&table(Some(candidate(100)), &[&engine])).await;
    assert_eq!(rig.ask(greedy("u")).await.adapter(), "m@v2");
    assert_eq!(rig.ask(greedy("u")).await.adapter(), "m@v2");
    assert_eq!(engine.seen().len(), 2);
}

#[tokio::test]
async fn while_an_engine_has_not_said_what_it_is_nothing_is_looked_up() {
    let (engine, mut rig) = one(&ON).await;
    rig.ask(greedy("u")).await;
    let new = FakeEngine::start().await;
    rig.push(&table(None, &[&engine, &new])).await;
    rig.ask(greedy("u")).await;
    assert_eq!(engine.seen().len() + new.seen().len(), 2);
}
