//! Second attempts beside slow first ones.

use std::time::Duration;

use crate::rig::engine::{Behaviour, FakeEngine};
use crate::rig::{Rig, question, stream_question, table, until};
use serde_json::json;

const FOR_EVER: Behaviour = Behaviour::Slow(Duration::from_secs(60));
/// Far longer than a quick answer takes on a busy machine.
const HEDGED: [&str; 2] = ["--hedge-after", "500ms"];
/// Answers some time after a second attempt has begun.
const LATER: Behaviour = Behaviour::Slow(Duration::from_secs(2));

/// The engine that `m@v1` goes to first, and the other, behind a router with these flags.
async fn home_first(flags: &[&str]) -> (FakeEngine, FakeEngine, Rig) {
    loop {
        let (one, two) = (FakeEngine::start().await, FakeEngine::start().await);
        let mut rig = Rig::start(flags).await;
        rig.push(&table(None, &[&one, &two])).await;
        assert_eq!(rig.ask(question("u")).await.status, 200);
        if hedges(&rig).await > 0 {
            // The machine stood still for that long.
            continue;
        }
        return if one.seen().len() == 1 {
            (one, two, rig)
        } else {
            (two, one, rig)
        };
    }
}

async fn hedges(rig: &Rig) -> usize {
    rig.metric("graftwork_router_hedges_total").await as usize
}

#[tokio::test]
async fn nobody_is_asked_twice_unless_the_flag_says_so() {
    let (home, other, rig) = home_first(&[]).await;
    home.behave(LATER);
    assert_eq!(rig.ask(question("u")).await.status, 200);
    assert_eq!((other.seen().len(), hedges(&rig).await), (0, 0));
}

#[tokio::test]
async fn a_slow_engine_is_given_up_once_another_one_has_answered() {
    let (home, other, mut rig) = home_first(&HEDGED).await;
    assert_eq!(rig.ask(question("u")).await.status, 200);
    assert_eq!(other.seen().len(), 0, "who is quick is asked alone");
    home.behave(FOR_EVER);
    let answer = rig.ask(question("u")).await;
    assert_eq!((answer.status.as_u16(), answer.adapter()), (200, "m@v1"));
    let stream = rig.ask(stream_question("u")).await;
    assert_eq!(
        stream.text.matches("from m@v1").count(),
        3,
        "{}",
        stream.text
    );
    assert!(stream.text.ends_with("data: [DONE]\n\n"));
    assert_eq!((other.seen().len(), hedges(&rig).await), (2, 2));
    until("the slow engine is free", async || home.open() == 0).await;
    assert_eq!(rig.counts().await, [(1, 4, 0, 1)], "each counts once");
}

#[tokio::test]
async fn the_first_engine_answers_where_the_second_one_can_not() {
    let (home, other, mut rig) = home_first(&HEDGED).await;
    home.behave(LATER);
    for behaviour in [Behaviour::Abort, Behaviour::Status(503, "draining")] {
        other.behave_once(behaviour);
        let answer = rig.ask(question("u")).await;
        assert_eq!(answer.status, 200, "{behaviour:?}: {}", answer.text);
        until("the other engine is back", async || {
            rig.metric("graftwork_router_engines{state=\"healthy\"}")
                .await
                > 1.5
        })
        .await;
    }
    assert_eq!((other.seen().len(), hedges(&rig).await), (2, 2));
    assert_eq!(rig.counts().await, [(1, 3, 0, 1)]);
}

#[tokio::test]
async fn an_engine_that_has_as_much_to_do_is_not_asked_too() {
    let (home, other, rig) = home_first(&HEDGED).await;
    for engine in [&home, &other] {
        engine.behave(LATER);
    }
    // Of the base's requests that nobody sends, each engine gets one.
    let ask = || rig.ask(json!({"model": "tiny"}));
    let (one, two) = tokio::join!(ask(), ask());
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (200, 200));
    assert_eq!((home.seen().len(), other.seen().len()), (2, 1));
    assert_eq!(hedges(&rig).await, 0);
}
