//! What the KV cache remembers saves work and changes no answer.

use crate::harness::process::{Process, push};
use crate::harness::{Answer, BASE, Files, Server, read};
use axum::http::Request;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

const REUSED: &str = "graftwork_engine_prefix_reused_tokens_total";
const SYSTEM: &str = "You answer in one short line, and politely, whoever asks.";

fn chat(model: &str, turns: &[&str]) -> Value {
    let mut messages = vec![json!({"role": "user", "content": SYSTEM})];
    for (turn, text) in turns.iter().enumerate() {
        let role = if turn % 2 == 0 { "assistant" } else { "user" };
        messages.push(json!({"role": role, "content": text}));
    }
    json!({
        "model": model, "messages": messages, "max_tokens": 20, "seed": 7, "temperature": 0.8,
        "logprobs": true, "top_logprobs": 3,
    })
}

/// Everything of an answer that its request decides.
fn content(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text);
    json!([answer.json()["choices"], answer.json()["usage"]])
}

async fn start(files: &mut Files) -> Server {
    files.config.adapters = vec![files.adapter("a", 1, 1), files.adapter("b", 1, 2)];
    let server = files.start().await;
    server.settled().await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_computed_once_and_every_turn_is_what_a_fresh_engine_says() {
    let mut files = Files::new();
    let server = start(&mut files).await;
    let turns: [&[&str]; 3] = [
        &[],
        &["yes", "and what else?"],
        &["yes", "and what else?", "nothing", "thanks, then once more"],
    ];
    let mut before = 0.0;
    for (turn, turns) in turns.into_iter().enumerate() {
        for model in ["a", "b", crate::harness::BASE] {
            let warm = server
                .post("/v1/chat/completions", &chat(model, turns))
                .await;
            let fresh = Files::start(&files).await;
            fresh.settled().await;
            let alone = fresh
                .post("/v1/chat/completions", &chat(model, turns))
                .await;
            assert_eq!(content(&warm), content(&alone), "{model}, turn {turn}");
            assert!(
                fresh.metric(REUSED).await < 1.0,
                "a fresh engine knows nothing"
            );
        }
        let reused = server.metric(REUSED).await;
        if turn == 0 {
            assert!(
                reused < 1.0,
                "the same words of another adapter are no help"
            );
        } else {
            assert!(
                reused >= before + 3.0 * 48.0,
                "turn {turn}: {reused} tokens"
            );
        }
        before = reused;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_with_log_probabilities_computes_every_row_and_says_the_same() {
    let mut files = Files::new();
    let server = start(&mut files).await;
    let plain = json!({
        "model": "a", "prompt": SYSTEM, "max_tokens": 4, "seed": 1, "ignore_eos": true,
    });
    server.complete(plain.clone()).await;
    let mut scored = plain.clone();
    scored["echo"] = json!(true);
    scored["logprobs"] = json!(2);
    let first = server.complete(scored.clone()).await;
    let again = server.complete(scored).await;
    assert_eq!(content(&first), content(&again));
    assert!(server.metric(REUSED).await < 1.0);
    let logprobs = &first.json()["choices"][0]["logprobs"]["token_logprobs"];
    assert_eq!(
        logprobs.as_array().unwrap().len(),
        SYSTEM.len() + 1 + 4,
        "the prompt's tokens, its first among them, and the answer's"
    );
    server.complete(plain).await;
    assert!(server.metric(REUSED).await >= 48.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_full_of_memories_still_takes_every_request() {
    let mut files = Files::new();
    files.config.maximum_batch_size = 2;
    files.config.maximum_context_tokens = 128;
    let server = start(&mut files).await;
    // 2 x 128 tokens fit; each of 20 texts leaves more than 60 behind.
    for round in 0..20 {
        let prompt = format!("{round:>4} {SYSTEM}");
        let body = json!({"model": "b", "prompt": prompt, "max_tokens": 30, "temperature": 0});
        let answer = server.complete(body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    server
        .wait_for_metric("graftwork_engine_kv_blocks_used ", 0.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_router_kept_is_the_answer_of_the_adapter_that_is_asked_for() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 1, 1), files.adapter("b", 1, 2)];
    files.write_config();
    let engine = Process::engine(&files).await;
    let router = Process::router_that_keeps(&files, 1 << 20).await;
    let mut control = router.control().await;
    push(&mut control, &files.config.adapters, &[engine.http], 1).await;
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
    let ask = async |address: std::net::SocketAddr, model: &str| {
        // A prompt that is scored tells adapters apart.
        let body = json!({
            "model": model, "prompt": SYSTEM, "max_tokens": 4, "temperature": 0, "echo": true, "logprobs": 2,
        });
        let request = Request::post(format!("http://{address}/v1/completions"))
            .header("content-type", "application/json")
            .body(Full::from(body.to_string()))
            .unwrap();
        read(client.request(request).await.unwrap()).await
    };
    let models = ["a", "b", BASE];
    let mut alone = vec![];
    for model in models {
        alone.push(content(&ask(engine.http, model).await));
    }
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2]);
    for is_kept in [false, true] {
        for (model, alone) in models.iter().zip(&alone) {
            let answer = ask(router.http, model).await;
            assert_eq!(content(&answer), *alone, "{model}");
            assert_eq!(answer.headers.contains_key("x-graftwork-cache"), is_kept);
            assert!(answer.adapter().starts_with(&format!("{model}@")));
        }
    }
}
