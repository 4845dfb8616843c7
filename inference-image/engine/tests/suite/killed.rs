//! Kill -9 of engines under load: two engines and a router, each a process of its own as in a pod.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::harness::process::{Process, push};
use crate::harness::{Answer, Files, eventually, read};
use axum::http::Request;
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const MODELS: [&str; 2] = ["a", "b"];
const UNARY_CALLERS: usize = 6;
const STREAM_CALLERS: usize = 8;

/// What clients ask for without a pause, and what became of it.
struct Load {
    router: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    /// Text of a greedy answer by model and whether it is a stream.
    expected: BTreeMap<(&'static str, bool), String>,
    ended: AtomicBool,
    kills: AtomicUsize,
    /// How many were killed when each stream's caller began what it does now.
    begun_after: [AtomicUsize; STREAM_CALLERS],
    unary: AtomicUsize,
    streams: AtomicUsize,
    broken: AtomicUsize,
}

/// A stream's text, and whether it came to its end.
struct Streamed {
    text: String,
    is_whole: bool,
}

impl Load {
    fn new(router: SocketAddr) -> Self {
        Self {
            router,
            client: Client::builder(TokioExecutor::new()).build_http(),
            expected: BTreeMap::new(),
            ended: AtomicBool::new(false),
            kills: AtomicUsize::new(0),
            begun_after: [const { AtomicUsize::new(0) }; STREAM_CALLERS],
            unary: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            broken: AtomicUsize::new(0),
        }
    }

    async fn ask(&self, model: &str, is_stream: bool) -> Answer {
        let tokens = if is_stream { 300 } else { 8 };
        let body = json!({
            "model": model, "prompt": "hello", "max_tokens": tokens, "temperature": 0,
            "ignore_eos": true, "stream": is_stream,
        });
        let request = Request::post(format!("http://{}/v1/completions", self.router))
            .header("content-type", "application/json")
            .body(Full::from(body.to_string()))
            .unwrap();
        read(self.client.request(request).await.unwrap()).await
    }

    async fn stream(&self, model: &str) -> Streamed {
        let answer = self.ask(model, true).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let mut events = answer.events();
        let last = events.pop().expect("a stream has a last event");
        let is_whole = last == "[DONE]";
        assert!(is_whole || last.contains("stream_truncated"), "{last}");
        let text = events.iter().map(|event| {
            let event: Value = serde_json::from_str(event).unwrap();
            event["choices"][0]["text"].as_str().unwrap().to_owned()
        });
        Streamed {
            text: text.collect(),
            is_whole,
        }
    }

    /// Asks for answers in one piece, of which none may fail.
    async fn call(self: Arc<Self>, caller: usize) {
        for turn in caller.. {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            let model = MODELS[turn % 2];
            let answer = self.ask(model, false).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            assert_eq!(answer.content(), self.expected[&(model, false)]);
            self.unary.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Asks for streams: one that breaks was right as far as it came, and is asked for once more.
    async fn listen(self: Arc<Self>, caller: usize) {
        for turn in caller.. {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            let kills = self.kills.load(Ordering::SeqCst);
            self.begun_after[caller].store(kills, Ordering::SeqCst);
            let model = MODELS[turn % 2];
            let expected = &self.expected[&(model, true)];
            let mut streamed = self.stream(model).await;
            if !streamed.is_whole {
                assert!(expected.starts_with(&streamed.text), "{}", streamed.text);
                self.broken.fetch_add(1, Ordering::SeqCst);
                streamed = self.stream(model).await;
            }
            assert!(streamed.is_whole, "a client tried once more, in vain");
            assert_eq!(&streamed.text, expected);
            self.streams.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Sum of the samples of a process's metric whose line starts with `name`.
    async fn metric(&self, metrics: SocketAddr, name: &str) -> f64 {
        let request = Request::get(format!("http://{metrics}/metrics"))
            .body(Full::default())
            .unwrap();
        let answer = read(self.client.request(request).await.unwrap()).await;
        let lines = answer.text.lines().filter(|line| line.starts_with(name));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Whether every caller of streams is done with what it began before the last kill, a second attempt included.
    fn is_over_the_last_kill(&self) -> bool {
        let kills = self.kills.load(Ordering::SeqCst);
        let begun = self.begun_after.iter();
        begun
            .map(|after| after.load(Ordering::SeqCst))
            .all(|after| after == kills)
    }
}

fn addresses(engines: &[Process; 2]) -> [SocketAddr; 2] {
    [engines[0].http, engines[1].http]
}

async fn kills_cost_their_own_streams_alone(kills: usize) {
    let mut files = Files::new();
    files.config.threads = 1;
    files.config.adapters = vec![files.adapter("a", 1, 1), files.adapter("b", 1, 2)];
    files.write_config();
    let mut engines = [Process::engine(&files).await, Process::engine(&files).await];
    let router = Process::router(&files).await;
    let mut control = router.control().await;
    push(
        &mut control,
        &files.config.adapters,
        &addresses(&engines),
        1,
    )
    .await;

    let mut load = Load::new(router.http);
    for model in MODELS {
        let unary = load.ask(model, false).await.content();
        let stream = load.stream(model).await;
        assert!(stream.is_whole);
        load.expected.insert((model, false), unary);
        load.expected.insert((model, true), stream.text);
    }
    assert_ne!(load.expected[&("a", true)], load.expected[&("b", true)]);
    let load = Arc::new(load);
    let mut callers = JoinSet::new();
    for caller in 0..UNARY_CALLERS {
        callers.spawn(Arc::clone(&load).call(caller));
    }
    for caller in 0..STREAM_CALLERS {
        callers.spawn(Arc::clone(&load).listen(caller));
    }

    for kill in 0..kills {
        let (victim, survivor) = (kill % 2, 1 - kill % 2);
        let metrics = engines[victim].metrics;
        eventually(
            || async {
                let running = load.metric(metrics, "graftwork_engine_running_requests ");
                load.is_over_the_last_kill() && running.await > 1.5
            },
            "load on the engine that is killed next",
        )
        .await;
        engines[victim].child.kill().await.unwrap();
        load.kills.fetch_add(1, Ordering::SeqCst);
        engines[victim] = Process::engine(&files).await;
        push(
            &mut control,
            &files.config.adapters,
            &addresses(&engines),
            kill as u64 + 2,
        )
        .await;
        // Whoever loses a stream leaves it on its engine, which counts that as 499.
        for code in ["4", "5"] {
            let code = format!("graftwork_engine_requests_total{{code=\"{code}");
            let failed = load.metric(engines[survivor].metrics, &code).await;
            assert!(
                failed.abs() < 1e-9,
                "{failed} requests broke on the other engine"
            );
        }
    }
    load.ended.store(true, Ordering::SeqCst);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    let [unary, streams, broken] =
        [&load.unary, &load.streams, &load.broken].map(|count| count.load(Ordering::SeqCst));
    assert!(
        unary > kills && streams > kills,
        "{unary} answers, {streams} streams"
    );
    assert!(
        (1..=kills * STREAM_CALLERS).contains(&broken),
        "{broken} streams broke in {kills} kills"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_costs_its_own_open_streams_and_none_after_one_retry_of_the_client() {
    kills_cost_their_own_streams_alone(6).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "longer: make soak"]
async fn twenty_kills_cost_their_own_open_streams_and_none_after_one_retry_of_the_client() {
    kills_cost_their_own_streams_alone(20).await;
}
