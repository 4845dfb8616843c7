//! Adapters come, change and go while requests run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Files, Server, eventually, fence, me, now, operator_key, read, sync_body};
use ed25519_dalek::SigningKey;
use engine::registry::SYNC_METHOD;
use futures::future::join_all;
use graftwork_contract::adapter::{MANIFEST_FILE, WEIGHTS_FILE};
use graftwork_contract::endpoint::EngineAdapter;
use graftwork_contract::proto::call::v1::SignedCall;
use graftwork_contract::proto::engine::v1::AdapterState;
use graftwork_contract::signing::{Addressee, Fence, sign};
use graftwork_model::fixture::TinyShape;
use serde_json::{Value, json};
use tonic::Code;

fn request(model: &str, prompt: &str, tokens: usize) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0})
}

fn states(
    statuses: &[graftwork_contract::proto::engine::v1::AdapterStatus],
) -> Vec<(String, AdapterState)> {
    statuses
        .iter()
        .map(|status| {
            (
                format!("{}@v{}", status.name, status.version),
                status.state(),
            )
        })
        .collect()
}

fn no_default(adapter: &EngineAdapter) -> EngineAdapter {
    EngineAdapter {
        is_default: false,
        ..adapter.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_list_is_answered_with_states_and_ends_verified_or_resident() {
    let mut files = Files::new();
    files.config.maximum_loaded_adapters = 1;
    let server = files.start().await;
    let list = [files.adapter("a", 1, 1), files.adapter("b", 4, 2)];
    let reply = server.sync(&list, 1).await.unwrap();
    assert_eq!(
        (reply.pod_uid.as_str(), reply.generation),
        (crate::harness::POD, 1)
    );
    assert_eq!(reply.base_digest, files.config.base_digest.as_str());
    for adapter in &reply.adapters {
        assert!(
            adapter.state() != AdapterState::Unspecified,
            "headers are read before the answer"
        );
    }
    assert_eq!(
        states(&server.settled().await),
        [
            ("a@v1".to_owned(), AdapterState::Resident),
            ("b@v4".to_owned(), AdapterState::Verified)
        ]
    );
    assert_eq!(
        server.complete(request("b", "x", 2)).await.adapter(),
        "b@v4"
    );
    assert_eq!(
        states(&server.settled().await)[1].1,
        AdapterState::Resident,
        "the one that is used takes the place"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_more_adapters_than_fit_in_memory_take_turns() {
    let mut files = Files::new();
    files.config.maximum_loaded_adapters = 1;
    let names = ["a", "b", "c"];
    files.config.adapters = names
        .iter()
        .zip(1..)
        .map(|(name, seed)| files.adapter(name, 1, seed))
        .collect();
    let server = files.start().await;
    let mut expected = BTreeMap::new();
    for name in names {
        expected.insert(
            name,
            server.complete(request(name, "x", 12)).await.content(),
        );
    }
    let asked: Vec<_> = names.iter().cycle().take(24).collect();
    let answers = join_all(
        asked
            .iter()
            .map(|name| server.complete(request(name, "x", 12))),
    )
    .await;
    for (name, answer) in asked.iter().zip(answers) {
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.content(), expected[**name]);
    }
    assert!(server.metric("graftwork_engine_resident_adapters").await <= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_on_disk_serve_without_the_store_and_a_broken_one_is_read_from_it_again() {
    let mut files = Files::new();
    files.config.maximum_loaded_adapters = 1;
    files.config.adapters = vec![files.adapter("a", 1, 1), files.adapter("b", 1, 2)];
    let cache = tempfile::tempdir().unwrap();
    let mut options = files.options();
    options.adapter_cache = Some(cache.path().join("adapters"));
    let server = files.start_with(options).await;
    server.settled().await;
    let mut expected = vec![];
    for name in ["a", "b"] {
        expected.push(server.complete(request(name, "x", 12)).await.content());
    }
    let copies = || std::fs::read_dir(cache.path().join("adapters")).unwrap();
    assert_eq!(copies().count(), 2);
    for copy in copies() {
        change_byte(&copy.unwrap().path().join(WEIGHTS_FILE), 3);
    }
    // Each takes the other's place in memory, and is loaded anew.
    let check = async || {
        for (name, expected) in ["a", "b", "a"].iter().zip(expected.iter().cycle()) {
            let answer = server.complete(request(name, "x", 12)).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            assert_eq!(answer.content(), *expected, "{name}");
        }
    };
    check().await;
    std::fs::remove_dir_all(files.store()).unwrap();
    check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_under_load_fails_nobody_and_mixes_no_versions() {
    let files = Files::new();
    let versions: Vec<_> = (1..=6)
        .map(|n| files.adapter("a", n, u64::from(n)))
        .collect();
    let server = files.start().await;
    server.sync(&versions[..1], 1).await.unwrap();
    // What each version answers to each prompt, asked one at a time.
    let prompts: Vec<String> = (0..8).map(|n| format!("prompt {n}")).collect();
    let mut expected = BTreeMap::new();
    server.sync(&versions, 2).await.unwrap_err();
    let hidden: Vec<_> = versions.iter().skip(1).map(no_default).collect();
    let all: Vec<_> = versions[..1].iter().cloned().chain(hidden).collect();
    server.sync(&all, 3).await.unwrap();
    for version in &versions {
        for prompt in &prompts {
            let header = format!("a@v{}", version.version);
            let headers = [("x-graftwork-adapter", header.as_str())];
            let body = request("a", prompt, 16);
            let answer = server.post_with("/v1/completions", &body, &headers).await;
            expected.insert((header.clone(), prompt.clone()), answer.content());
        }
    }
    let done = AtomicBool::new(false);
    let seen = Mutex::new(BTreeSet::new());
    let callers = join_all(prompts.iter().map(|prompt| {
        let (server, done, expected, seen) = (&server, &done, &expected, &seen);
        async move {
            while !done.load(Ordering::Relaxed) {
                let answer = server.complete(request("a", prompt, 16)).await;
                assert_eq!(answer.status, 200, "{}", answer.text);
                let header = answer.adapter().to_owned();
                assert_eq!(
                    answer.content(),
                    expected[&(header.clone(), prompt.clone())],
                    "{header}"
                );
                seen.lock().unwrap().insert(header);
            }
        }
    }));
    let swaps = async {
        for (generation, version) in (4..).zip(&versions) {
            // The older ones leave the list while requests may still run on them.
            server
                .sync(std::slice::from_ref(version), generation)
                .await
                .unwrap();
            let header = format!("a@v{}", version.version);
            eventually(
                || async { seen.lock().unwrap().contains(&header) },
                "an answer of the newest version",
            )
            .await;
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(callers, swaps);
    eventually(
        || async { server.metric("graftwork_engine_resident_adapters").await <= 1.0 },
        "memory of the older versions",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_stream_keeps_its_version_and_its_end_frees_the_memory() {
    let files = Files::with_shape(TinyShape {
        hidden: 64,
        layers: 4,
        ..TinyShape::default()
    });
    let (first, second) = (files.adapter("a", 1, 1), files.adapter("a", 2, 2));
    let server = files.start().await;
    server.sync(std::slice::from_ref(&first), 1).await.unwrap();
    let whole = server.complete(request("a", "x", 480)).await.content();
    let mut body = request("a", "x", 480);
    body["stream"] = json!(true);
    let stream = server.open("/v1/completions", &body, &[]).await;
    server.sync(std::slice::from_ref(&second), 2).await.unwrap();
    assert_eq!(
        server.complete(request("a", "x", 4)).await.adapter(),
        "a@v2"
    );
    let gone = [("x-graftwork-adapter", "a@v1")];
    let answer = server
        .post_with("/v1/completions", &request("a", "x", 4), &gone)
        .await;
    assert_eq!(answer.error("code"), "version_not_here");
    let streamed = read(stream).await;
    assert_eq!(streamed.adapter(), "a@v1");
    let text: String = streamed
        .events()
        .iter()
        .filter(|event| *event != "[DONE]")
        .map(|event| serde_json::from_str::<Value>(event).unwrap())
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(text, whole);
    server
        .wait_for_metric("graftwork_engine_resident_adapters", 1.0)
        .await;
}

/// Breaks a file in place.
fn change_byte(path: &std::path::Path, from_end: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - from_end;
    bytes[at] ^= 0x55;
    crate::harness::write_whole(path, &bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_adapters_are_refused_by_reason_and_keep_nobody_out() {
    let mut files = Files::new();
    let good = files.adapter("good", 1, 1);
    let flipped = files.adapter("flipped", 1, 2);
    change_byte(&files.folder(&flipped).join(WEIGHTS_FILE), 3);
    let cut = files.adapter("cut", 1, 3);
    let weights = files.folder(&cut).join(WEIGHTS_FILE);
    let bytes = std::fs::read(&weights).unwrap();
    crate::harness::write_whole(&weights, &bytes[..bytes.len() / 2]);
    let missing = files.adapter("missing", 1, 4);
    let manifest = files.folder(&missing).join(MANIFEST_FILE);
    let late = std::fs::read(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    let mut outside = files.adapter("outside", 1, 5);
    outside.folder = "../elsewhere".into();
    let mut other = files.adapter("other", 1, 6);
    other.digest = good.digest.clone();
    let foreign_files = Files::with_shape(TinyShape {
        hidden: 64,
        ..TinyShape::default()
    });
    let foreign = foreign_files.adapter("foreign", 1, 7);
    let target = files.folder(&foreign);
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    std::fs::rename(foreign_files.folder(&foreign), &target).unwrap();
    let list = vec![good, flipped, cut, missing, outside, other, foreign];
    files.config.adapters = list.clone();
    let server = files.start().await;
    let statuses = server.settled().await;
    let reasons: BTreeMap<_, _> = statuses
        .iter()
        .map(|status| (status.name.as_str(), status.reason.as_str()))
        .collect();
    assert_eq!(
        reasons,
        BTreeMap::from([
            ("good", ""),
            ("flipped", "DigestMismatch"),
            ("cut", "AdapterFilesInvalid"),
            ("missing", "AdapterFilesNotFound"),
            ("outside", "InvalidFolder"),
            ("other", "DigestMismatch"),
            ("foreign", "AdapterIncompatible"),
        ])
    );
    assert!(
        statuses
            .iter()
            .all(|s| s.reason.is_empty() == s.message.is_empty())
    );
    assert_eq!(server.complete(request("good", "x", 2)).await.status, 200);
    let answer = server.complete(request("flipped", "x", 2)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.error("code")),
        (404, json!("version_not_here"))
    );

    // What was not there is taken once it is, without a push.
    assert_eq!(
        statuses
            .iter()
            .filter(|status| status.may_pass)
            .map(|status| status.name.as_str())
            .collect::<Vec<_>>(),
        ["missing"]
    );
    crate::harness::write_whole(&manifest, &late);
    crate::harness::eventually(
        || async {
            states(&server.settled().await).contains(&("missing@v1".into(), AdapterState::Resident))
        },
        "the late adapter",
    )
    .await;

    // Mended files are taken with the next push; the others stay as they are.
    change_byte(&files.folder(&list[1]).join(WEIGHTS_FILE), 3);
    server.sync(&list, 1).await.unwrap();
    crate::harness::eventually(
        || async {
            states(&server.settled().await).contains(&("flipped@v1".into(), AdapterState::Resident))
        },
        "the mended adapter",
    )
    .await;
    let states: BTreeMap<_, _> = states(&server.settled().await).into_iter().collect();
    assert_eq!(states["cut@v1"], AdapterState::Refused);
    assert_eq!(
        server.complete(request("flipped", "x", 2)).await.status,
        200
    );
}

async fn refused(server: &Server, call: SignedCall) -> Code {
    server.engine().await.sync(call).await.unwrap_err().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_taken_only_from_the_operator_for_this_pod_and_in_order() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    let server = files.start().await;
    let body = sync_body(&[files.adapter("b", 1, 2)]);
    let signed = |key: &SigningKey, to: &Addressee, fence: Fence, at: u64| {
        sign(key, SYNC_METHOD, body.clone(), to, fence, at)
    };
    let key = operator_key();
    let good = || signed(&key, &me(), fence(5), now());

    let unsigned = SignedCall {
        signature: vec![],
        ..good()
    };
    assert_eq!(refused(&server, unsigned).await, Code::Unauthenticated);
    let foreign = signed(&SigningKey::from_bytes(&[9; 32]), &me(), fence(5), now());
    assert_eq!(refused(&server, foreign).await, Code::Unauthenticated);
    for to in [
        Addressee {
            owner_uid: "another endpoint".into(),
            ..me()
        },
        Addressee {
            pod_uid: "another pod".into(),
            ..me()
        },
    ] {
        let call = signed(&key, &to, fence(5), now());
        assert_eq!(refused(&server, call).await, Code::FailedPrecondition);
    }
    let expired = signed(&key, &me(), fence(5), now() - 3600);
    assert_eq!(refused(&server, expired).await, Code::FailedPrecondition);
    let nonsense = sign(&key, SYNC_METHOD, vec![0xff], &me(), fence(9), now());
    assert_eq!(refused(&server, nonsense).await, Code::InvalidArgument);
    let twice = [files.adapter("b", 1, 2), files.adapter("b", 1, 2)];
    assert_eq!(
        server.sync(&twice, 9).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(
        states(&server.settled().await)[0].0,
        "a@v1",
        "nothing was changed"
    );

    server.engine().await.sync(good()).await.unwrap();
    assert_eq!(states(&server.settled().await)[0].0, "b@v1");
    let stale = signed(&key, &me(), fence(4), now());
    assert_eq!(refused(&server, stale).await, Code::FailedPrecondition);
    let reply = server.status().await;
    assert_eq!((reply.lease_epoch, reply.generation), (1, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mounted_list_is_followed_until_one_is_pushed() {
    let mut files = Files::new();
    let server = files.start().await;
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    files.write_config();
    eventually(
        || async { server.status().await.adapters.len() == 1 },
        "the mounted list",
    )
    .await;
    let pushed = [files.adapter("b", 1, 2)];
    server.sync(&pushed, 1).await.unwrap();
    // Keys are followed all the same, which also shows that the change was seen.
    let new_key = SigningKey::from_bytes(&[8; 32]);
    files.config.operator_keys = vec![graftwork_contract::signing::print_key(
        &new_key.verifying_key(),
    )];
    files.config.adapters.push(files.adapter("c", 1, 3));
    files.write_config();
    eventually(
        || async {
            let call = sign(
                &new_key,
                SYNC_METHOD,
                sync_body(&pushed),
                &me(),
                fence(2),
                now(),
            );
            server.engine().await.sync(call).await.is_ok()
        },
        "the new key",
    )
    .await;
    assert_eq!(states(&server.settled().await)[0].0, "b@v1");
    assert_eq!(
        server.sync(&pushed, 3).await.unwrap_err().code(),
        Code::Unauthenticated
    );
}
