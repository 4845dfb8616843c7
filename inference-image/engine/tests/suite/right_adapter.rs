//! Each answer is that of the version which its header names, whatever comes and goes meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::{Answer, BASE, Files, Server};
use futures::future::join_all;
use graftwork_contract::endpoint::{BaseFormat, EngineAdapter, base_header};
use graftwork_model::fixture::TinyShape;
use serde_json::{Value, json};

const ADAPTERS: usize = 16;
const CALLERS: usize = 24;
const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const REUSED: &str = "graftwork_engine_prefix_reused_tokens_total";
/// Fills blocks of the KV cache, which only requests of the same version may share.
const LONG: &str = "the same beginning for every adapter, longer than two blocks";
/// The kind whose answers tell versions apart: it scores a prompt.
const SCORED: usize = 4;
const KINDS: usize = 7;

/// What each version answered to each kind of request when nobody else was there.
type Expected = BTreeMap<(String, usize), Value>;

/// The bare base is one more beside the adapters.
fn name(index: usize) -> String {
    if index == ADAPTERS {
        return BASE.to_owned();
    }
    format!("adapter-{index}")
}

/// Greedy, sampled with everything that changes a draw, several prompts, a scored prompt, and two turns of a chat. Even
/// kinds begin alike with odd ones, and with no other even one.
fn requests(model: &str) -> [(&'static str, Value); KINDS] {
    let user = |text: &str| json!({"role": "user", "content": text});
    let continued = format!("{LONG}, and an end of its own");
    [
        (
            COMPLETIONS,
            json!({"model": model, "prompt": "hello", "max_tokens": 12, "temperature": 0}),
        ),
        (
            COMPLETIONS,
            json!({
                "model": model, "prompt": "hello", "max_tokens": 8, "n": 2, "seed": 3, "top_p": 0.8,
                "presence_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {"7": 1},
            }),
        ),
        (
            COMPLETIONS,
            json!({"model": model, "prompt": ["hello", LONG], "max_tokens": 8, "seed": 4}),
        ),
        (
            COMPLETIONS,
            json!({"model": model, "prompt": continued, "max_tokens": 8, "temperature": 0}),
        ),
        (
            COMPLETIONS,
            json!({
                "model": model, "prompt": LONG, "max_tokens": 4, "seed": 5, "echo": true,
                "logprobs": 2,
            }),
        ),
        (
            CHAT,
            json!({
                "model": model, "messages": [user(LONG)], "max_tokens": 8, "temperature": 0,
                "logprobs": true, "top_logprobs": 2,
            }),
        ),
        (
            CHAT,
            json!({
                "model": model, "max_tokens": 8, "seed": 6, "temperature": 0.9, "top_k": 40,
                "messages": [user(LONG), {"role": "assistant", "content": "yes"}, user("and then?")],
            }),
        ),
    ]
}

/// What does not differ between two answers to the same question.
fn content(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let json = answer.json();
    json!([json["choices"], json["usage"]])
}

/// Each version's answers, asked one at a time on engines that know nothing which could be of use: for the even kinds
/// one, for the odd ones another.
async fn alone(files: &mut Files, versions: &[EngineAdapter]) -> Expected {
    files.config.adapters = versions.to_vec();
    files.config.maximum_loaded_adapters = versions.len() as u32;
    files.config.threads = 1;
    let mut all: Vec<(String, String)> = versions
        .iter()
        .map(|version| {
            let header = format!("{}@v{}", version.name, version.version);
            (version.name.clone(), header)
        })
        .collect();
    all.push((BASE.to_owned(), base_header(BASE)));
    let mut answers = Expected::new();
    for parity in 0..2 {
        let fresh = files.start().await;
        for (model, header) in &all {
            let requests = requests(model).into_iter().enumerate();
            for (kind, (path, body)) in requests.filter(|(kind, _)| kind % 2 == parity) {
                let headers = [("x-graftwork-adapter", header.as_str())];
                let answer = fresh.post_with(path, &body, &headers).await;
                assert_eq!(answer.adapter(), header.as_str());
                answers.insert((header.clone(), kind), content(&answer));
            }
        }
        assert!(
            fresh.metric(REUSED).await < 1.0,
            "the same words of another adapter are no help"
        );
    }
    let scored = answers.iter().filter(|((_, kind), _)| *kind == SCORED);
    let distinct: BTreeSet<String> = scored.map(|(_, answer)| answer.to_string()).collect();
    assert_eq!(distinct.len(), all.len(), "versions can be told apart");
    answers
}

/// The list of one moment: of each adapter its first version, its second, or none.
fn list(versions: &[[EngineAdapter; 2]], moment: usize) -> Vec<EngineAdapter> {
    let one = |(index, versions): (usize, &[EngineAdapter; 2])| {
        versions.get((index + moment) % 3).cloned()
    };
    versions.iter().enumerate().filter_map(one).collect()
}

/// What all callers did.
#[derive(Default)]
struct Calls {
    sent: AtomicUsize,
    answered: AtomicUsize,
    /// Of these, by the bare base.
    of_base: AtomicUsize,
}

/// Asks for one adapter after the other until all callers together had so many answers.
async fn call(server: &Server, calls: &Calls, limit: usize, expected: &Expected) {
    while calls.answered.load(Ordering::Relaxed) < limit {
        let turn = calls.sent.fetch_add(1, Ordering::Relaxed);
        let (model, kind) = (name(turn * 5 % (ADAPTERS + 1)), turn % KINDS);
        let requests = requests(&model);
        let (path, body) = &requests[kind];
        let answer = server.post(path, body).await;
        if answer.status == 404 {
            assert_eq!(answer.error("code"), "model_not_found");
            continue;
        }
        let header = answer.adapter().to_owned();
        let is_base = model == BASE;
        assert_eq!(header == base_header(BASE), is_base, "{header}");
        assert!(header.starts_with(&format!("{model}@")), "{header}");
        let wanted = &expected[&(header.clone(), kind)];
        assert_eq!(&content(&answer), wanted, "{header}, kind {kind}");
        calls.answered.fetch_add(1, Ordering::Relaxed);
        calls
            .of_base
            .fetch_add(usize::from(is_base), Ordering::Relaxed);
    }
}

async fn every_answer_is_right(answers: usize, format: Option<BaseFormat>) {
    // Of widths that blocks of 32 fit.
    let mut files = Files::with_shape(TinyShape {
        hidden: 64,
        intermediate: 96,
        ..TinyShape::default()
    });
    files.config.quantization = format;
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
    let expected = alone(&mut files, &all).await;

    // So few fit in memory that adapters go in and out all the time. What they began with stays in the KV cache.
    files.config.adapters = vec![];
    files.config.maximum_loaded_adapters = 4;
    files.config.maximum_batch_size = 16;
    files.config.threads = 2;
    let server = files.start().await;
    server.sync(&list(&versions, 0), 1).await.unwrap();
    let (calls, done) = (Calls::default(), AtomicBool::new(false));
    let callers = async {
        join_all((0..CALLERS).map(|_| call(&server, &calls, answers, &expected))).await;
        done.store(true, Ordering::Relaxed);
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
    let ((), moments) = tokio::join!(callers, changes);
    let of_base = calls.of_base.load(Ordering::Relaxed);
    assert!(of_base > answers / 50, "{of_base} answers by the base");
    assert!(moments > 3, "the list changed {moments} times");
    assert!(server.metric(REUSED).await > 0.0, "the prefix cache is on");
    server
        .wait_for_metric("graftwork_engine_kv_blocks_used ", 0.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_the_one_that_its_version_gives_alone_while_adapters_come_and_go() {
    every_answer_is_right(1_500, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_over_a_base_that_is_held_in_blocks_of_eight_bits() {
    every_answer_is_right(1_000, Some(BaseFormat::Q8_0)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: make soak"]
async fn twenty_thousand_answers_are_the_ones_that_their_versions_give_alone() {
    every_answer_is_right(20_000, None).await;
    every_answer_is_right(20_000, Some(BaseFormat::Q8_0)).await;
}
