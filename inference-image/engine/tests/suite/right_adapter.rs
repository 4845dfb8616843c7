//! Each answer is that of the version which its header names, whatever comes and goes meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Answer, Files, Server};
use futures::future::join_all;
use graftwork_contract::endpoint::EngineAdapter;
use serde_json::{Value, json};

const ADAPTERS: usize = 16;
const CALLERS: usize = 12;
const REQUESTS_OF_EACH: usize = 50;
/// Fills blocks of the KV cache, which only requests of the same version may share.
const LONG: &str = "the same beginning for every adapter, longer than two blocks";

fn name(index: usize) -> String {
    format!("adapter-{index}")
}

/// Greedy, sampled with everything that changes a draw, several prompts, and a scored prompt.
fn bodies(model: &str) -> [Value; 4] {
    [
        json!({"model": model, "prompt": "hello", "max_tokens": 12, "temperature": 0}),
        json!({
            "model": model, "prompt": "hello", "max_tokens": 8, "n": 2, "seed": 3, "top_p": 0.8,
            "presence_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {"7": 1},
        }),
        json!({"model": model, "prompt": ["hello", LONG], "max_tokens": 8, "seed": 4}),
        json!({
            "model": model, "prompt": LONG, "max_tokens": 4, "seed": 5, "echo": true, "logprobs": 2,
        }),
    ]
}

/// What does not differ between two answers to the same question.
fn content(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let json = answer.json();
    json!([json["choices"], json["usage"]])
}

/// Each version's answers, asked one at a time on an engine that holds them all.
async fn alone(server: &Server, versions: &[EngineAdapter]) -> BTreeMap<(String, usize), Value> {
    let mut answers = BTreeMap::new();
    for version in versions {
        let header = format!("{}@v{}", version.name, version.version);
        for (kind, body) in bodies(&version.name).into_iter().enumerate() {
            let headers = [("x-graftwork-adapter", header.as_str())];
            let answer = server.post_with("/v1/completions", &body, &headers).await;
            assert_eq!(answer.adapter(), header);
            answers.insert((header.clone(), kind), content(&answer));
        }
    }
    answers
}

/// The list of one moment: of each adapter its first version, its second, or none.
fn list(versions: &[[EngineAdapter; 2]], moment: usize) -> Vec<EngineAdapter> {
    let one = |(index, versions): (usize, &[EngineAdapter; 2])| {
        versions.get((index + moment) % 3).cloned()
    };
    versions.iter().enumerate().filter_map(one).collect()
}

/// Asks for one adapter after the other; how many answers there were.
async fn call(
    server: &Server,
    caller: usize,
    expected: &BTreeMap<(String, usize), Value>,
) -> usize {
    let mut answered = 0;
    for turn in 0..REQUESTS_OF_EACH {
        let model = name((caller * 7 + turn * 5) % ADAPTERS);
        let kind = (caller + turn) % 4;
        let body = bodies(&model)[kind].clone();
        let answer = server.complete(body).await;
        if answer.status == 404 {
            assert_eq!(answer.error("code"), "model_not_found");
            continue;
        }
        let header = answer.adapter().to_owned();
        assert!(header.starts_with(&format!("{model}@v")), "{header}");
        let wanted = &expected[&(header.clone(), kind)];
        assert_eq!(&content(&answer), wanted, "{header}, kind {kind}");
        answered += 1;
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_the_one_that_its_version_gives_alone_while_adapters_come_and_go() {
    let mut files = Files::new();
    let versions: Vec<[EngineAdapter; 2]> = (0..ADAPTERS)
        .map(|index| {
            [1, 2].map(|number| {
                files.adapter(&name(index), number, (index * 2) as u64 + u64::from(number))
            })
        })
        .collect();
    let mut all: Vec<EngineAdapter> = versions.iter().flatten().cloned().collect();
    for version in &mut all {
        version.is_default = version.version == 1;
    }
    files.config.adapters = all.clone();
    files.config.maximum_loaded_adapters = 2 * ADAPTERS as u32;
    let fresh = files.start().await;
    let expected = alone(&fresh, &all).await;
    drop(fresh);
    let distinct: std::collections::BTreeSet<String> = expected
        .iter()
        .filter(|((_, kind), _)| *kind == 3)
        .map(|(_, answer)| answer.to_string())
        .collect();
    assert_eq!(distinct.len(), all.len(), "versions can be told apart");

    // So few fit in memory that adapters go in and out all the time.
    files.config.adapters = vec![];
    files.config.maximum_loaded_adapters = 4;
    let server = files.start().await;
    server.sync(&list(&versions, 0), 1).await.unwrap();
    let done = AtomicBool::new(false);
    let callers = async {
        let callers = (0..CALLERS).map(|caller| call(&server, caller, &expected));
        let answered = join_all(callers).await;
        done.store(true, Ordering::Relaxed);
        answered.into_iter().sum::<usize>()
    };
    let changes = async {
        let mut moment = 1;
        while !done.load(Ordering::Relaxed) {
            server
                .sync(&list(&versions, moment), moment as u64 + 1)
                .await
                .unwrap();
            moment += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        moment
    };
    let (answered, moments) = tokio::join!(callers, changes);
    assert!(
        answered > CALLERS * REQUESTS_OF_EACH / 3,
        "{answered} answers"
    );
    assert!(moments > 3, "the list changed {moments} times");
    server
        .wait_for_metric("graftwork_engine_kv_blocks_used", 0.0)
        .await;
}
