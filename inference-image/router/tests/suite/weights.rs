//! Requests without a pause while a candidate's weight changes: none fails, each is answered by one version, and the
//! table that counts is the newest that was acknowledged before the request began.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::rig::engine::FakeEngine;
use crate::rig::{Rig, candidate, question, stream_question, table};
use axum::body::Body;
use axum::extract::State;
use graftwork_contract::endpoint::HEADER_ADAPTER;
use http::{Request, header};
use http_body_util::BodyExt as _;
use router::choice::place;
use router::forward::forward;
use router::state::Shared;
use tokio::sync::mpsc;

const CALLERS: usize = 64;
const USERS: usize = 500;

/// Weights by generation, and how far they have come.
struct Changes {
    weights: Vec<u32>,
    /// The newest whose push has begun.
    begun: AtomicUsize,
    /// The newest whose push was answered.
    applied: AtomicUsize,
    requests: usize,
    sent: AtomicUsize,
    /// Answers by version.
    answered: [AtomicUsize; 2],
}

impl Changes {
    /// A weight that grows, with every tenth step a fall to nothing.
    fn new(changes: usize, requests: usize) -> Self {
        let weight = |step: usize| match step % 10 {
            9 => 0,
            _ => (step * 100 / changes) as u32,
        };
        Self {
            weights: (0..=changes).map(weight).collect(),
            begun: AtomicUsize::new(0),
            applied: AtomicUsize::new(0),
            requests,
            sent: AtomicUsize::new(0),
            answered: [const { AtomicUsize::new(0) }; 2],
        }
    }

    /// Asks until all requests were sent, and calls for the next change whenever its time has come.
    async fn ask(self: Arc<Self>, shared: Arc<Shared>, next: mpsc::UnboundedSender<()>) {
        loop {
            let turn = self.sent.fetch_add(1, Ordering::SeqCst);
            if turn >= self.requests {
                return;
            }
            if turn.is_multiple_of(self.requests / (self.weights.len() - 1)) {
                next.send(()).unwrap();
            }
            let user = format!("user-{}", turn % USERS);
            let before = self.applied.load(Ordering::SeqCst);
            let adapter = answer(&shared, &user, turn.is_multiple_of(4)).await;
            let after = self.begun.load(Ordering::SeqCst);
            let weights = &self.weights[before..=after];
            let place = place("salt", &user);
            let may_be = match adapter.as_str() {
                "m@v1" => weights.iter().any(|weight| place >= *weight),
                "m@v2" => weights.iter().any(|weight| place < *weight),
                other => panic!("{other}"),
            };
            assert!(may_be, "{adapter} at place {place} under {weights:?}");
            let is_candidate = adapter == "m@v2";
            self.answered[usize::from(is_candidate)].fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// The version that the answer's header names, which every byte of the answer is from.
async fn answer(shared: &Arc<Shared>, user: &str, is_stream: bool) -> String {
    let body = if is_stream {
        stream_question(user)
    } else {
        question(user)
    };
    let body = body.to_string();
    let request = Request::post("/v1/chat/completions")
        .header(header::CONTENT_LENGTH, body.len())
        .body(Body::from(body))
        .unwrap();
    let answer = forward(State(shared.clone()), request).await;
    assert_eq!(answer.status(), 200);
    let adapter = answer.headers()[HEADER_ADAPTER]
        .to_str()
        .unwrap()
        .to_owned();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(!is_stream || text.ends_with("data: [DONE]\n\n"), "{text}");
    assert!(
        text.contains(&format!("from {adapter}")),
        "{adapter}: {text}"
    );
    let other = if adapter == "m@v1" { "m@v2" } else { "m@v1" };
    assert!(
        !text.contains(&format!("from {other}")),
        "{adapter}: {text}"
    );
    adapter
}

async fn no_request_sees_an_old_weight(changes: usize, requests: usize) {
    let engines = [FakeEngine::start().await, FakeEngine::start().await];
    let both = [&engines[0], &engines[1]];
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(Some(candidate(0)), &both)).await;
    let state = Arc::new(Changes::new(changes, requests));
    let (next, mut wanted) = mpsc::unbounded_channel();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let shared = rig.router.shared.clone();
            tokio::spawn(state.clone().ask(shared, next.clone()))
        })
        .collect();
    drop(next);
    for change in 1..=changes {
        wanted.recv().await.unwrap();
        state.begun.store(change, Ordering::SeqCst);
        rig.push(&table(Some(candidate(state.weights[change])), &both))
            .await;
        state.applied.store(change, Ordering::SeqCst);
        // Headers of so many requests would fill the memory.
        for engine in both {
            engine.forget();
        }
    }
    for caller in callers {
        caller.await.unwrap();
    }
    let answered = state
        .answered
        .each_ref()
        .map(|count| count.load(Ordering::SeqCst));
    assert!(
        answered.iter().all(|count| *count > requests / 10),
        "{answered:?}"
    );
    let mut counts = rig.counts().await;
    counts.sort_unstable();
    let counts: Vec<(u32, usize, u64)> = counts
        .into_iter()
        .map(|(version, completed, errors, _)| (version, completed as usize, errors))
        .collect();
    assert_eq!(counts, [(1, answered[0], 0), (2, answered[1], 0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_requests_through_a_hundred_weights_get_one_version_each_and_the_newest()
{
    no_request_sees_an_old_weight(100, 100_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make soak"]
async fn a_million_requests_through_a_thousand_weights_get_one_version_each_and_the_newest() {
    no_request_sees_an_old_weight(1_000, 1_000_000).await;
}
