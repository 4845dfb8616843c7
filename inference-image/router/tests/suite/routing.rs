//! Versions, leases, tables and counters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::rig::engine::{Behaviour, FakeEngine};
use crate::rig::{Rig, call, candidate, config, digest, question, read, table, until};
use graftwork_contract::endpoint::{
    HEADER_ADAPTER, HEADER_CALLER, HEADER_REQUEST_ID, HEADER_VERSION,
};
use graftwork_contract::proto::router::v1 as wire;
use graftwork_contract::signing::Fence;
use graftwork_contract::{endpoint, latency};
use http::Request;
use http_body_util::Full;
use serde_json::json;

#[tokio::test]
async fn the_mounted_table_serves_until_one_is_pushed_and_is_read_again_until_then() {
    let engine = FakeEngine::start().await;
    let mut mounted = config(&engine.address.to_string());
    let mut rig = Rig::start_with(&mounted, &[]).await;
    until("an engine is found", async || {
        rig.ask(question("u")).await.status == 200
    })
    .await;
    assert_eq!(rig.ask(question("u")).await.adapter(), "m@v1");

    mounted.models[0].version = 5;
    rig.write_config(&mounted);
    until("the file is read again", async || {
        rig.ask(question("u")).await.adapter() == "m@v5"
    })
    .await;

    rig.push(&table(Some(candidate(100)), &[&engine])).await;
    assert_eq!(rig.ask(question("u")).await.adapter(), "m@v2");
    mounted.models[0].version = 6;
    rig.write_config(&mounted);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(
        rig.ask(question("u")).await.adapter(),
        "m@v2",
        "a pushed table stays"
    );
}

#[tokio::test]
async fn the_models_are_listed_with_root_and_parent() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(Some(candidate(10)), &[&engine])).await;
    let list = rig.get(rig.router.http, "/v1/models").await.json();
    let line = |id| {
        let models = list["data"].as_array().unwrap();
        let model = models.iter().find(|model| model["id"] == id).unwrap();
        (model["root"].clone(), model["parent"].clone())
    };
    assert_eq!(list["object"], "list");
    assert_eq!(line("m"), (json!("m@v1"), json!("tiny")));
    assert_eq!(line("tiny"), (json!("tiny"), json!(null)));
}

#[tokio::test]
async fn one_model_is_shown_and_an_unknown_one_is_not() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(None, &[&engine])).await;
    let one = rig.get(rig.router.http, "/v1/models/m").await;
    assert_eq!(one.headers[HEADER_REQUEST_ID].len(), 32);
    assert_eq!(
        (one.status.as_u16(), &one.json()["root"]),
        (200, &json!("m@v1"))
    );
    let none = rig.get(rig.router.http, "/v1/models/x").await;
    assert_eq!(
        (none.status.as_u16(), none.code().as_str()),
        (404, "model_not_found")
    );
    let description = rig.get(rig.router.http, "/openapi.json").await.json();
    assert_eq!(description["openapi"], "3.1.0");
}

#[tokio::test]
async fn the_page_is_for_who_reads_html_and_lets_no_foreign_script_run() {
    let rig = Rig::start(&[]).await;
    let ask = async |accept: &str| {
        let request = Request::get(format!("http://{}/", rig.router.http))
            .header("accept", accept)
            .body(Full::default())
            .unwrap();
        read(rig.open(request).await).await
    };
    let page = ask("text/html,*/*;q=0.8").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    let (_, nonce) = policy.split_once("script-src 'nonce-").unwrap();
    let nonce = &nonce[..32];
    assert!(page.text.contains(&format!("<script nonce=\"{nonce}\">")));
    assert!(!page.text.contains("{nonce}"));
    let again = ask("text/html").await;
    assert!(!again.text.contains(nonce), "it is drawn anew");
    let other = ask("application/json").await;
    assert_eq!(
        (other.status.as_u16(), other.code().as_str()),
        (404, "unknown_url")
    );
}

#[tokio::test]
async fn what_the_tokenizer_answers_says_nothing_about_a_version() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(None, &[&engine])).await;
    let request = Request::post(format!("http://{}/tokenize", rig.router.http))
        .body(Full::from(r#"{"model": "m", "prompt": "x"}"#))
        .unwrap();
    let answer = read(rig.open(request).await).await;
    assert_eq!((answer.status.as_u16(), answer.adapter()), (200, "m@v1"));
    let completed = async |rig: &mut Rig| {
        let counts = rig.counts().await;
        counts
            .iter()
            .map(|(_, completed, ..)| completed)
            .sum::<u64>()
    };
    assert_eq!(completed(&mut rig).await, 0);
    rig.ask(question("u")).await;
    assert_eq!(completed(&mut rig).await, 1);
    let requests = rig.metric("graftwork_router_requests_total").await;
    assert!((requests - 2.0).abs() < 1e-9, "{requests}");
}

#[tokio::test]
async fn callers_stay_and_move_once_as_the_weight_grows() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    let users: Vec<_> = (0..200).map(|user| format!("user-{user}")).collect();
    let mut before = BTreeSet::new();
    for weight in [0, 10, 50, 100] {
        rig.push(&table(Some(candidate(weight)), &[&engine])).await;
        let mut on_candidate = BTreeSet::new();
        for user in &users {
            let by_user = rig.ask(question(user)).await;
            let by_header = rig
                .ask_with(question("somebody else"), &[(HEADER_CALLER, user)])
                .await;
            assert_eq!(by_user.adapter(), by_header.adapter(), "{user}");
            if by_user.adapter() == "m@v2" {
                on_candidate.insert(user.clone());
            }
        }
        assert!(before.is_subset(&on_candidate), "nobody moves back");
        let expected: BTreeSet<_> = users
            .iter()
            .filter(|user| router::choice::place("salt", user) < weight)
            .cloned()
            .collect();
        assert_eq!(on_candidate, expected);
        before = on_candidate;
    }
    assert_eq!(before.len(), 200);
}

#[tokio::test]
async fn nameless_conversations_with_the_base_are_spread_and_each_stays_on_its_engine() {
    let (one, two) = (FakeEngine::start().await, FakeEngine::start().await);
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(None, &[&one, &two])).await;
    for conversation in 0..20 {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let mut turns = vec![turn("user", &format!("question {conversation}"))];
        let before = (one.seen().len(), two.seen().len());
        for _ in 0..3 {
            let answer = rig.ask(json!({"model": "tiny", "messages": turns})).await;
            assert_eq!(answer.adapter(), "tiny@base");
            turns.extend([turn("assistant", "yes"), turn("user", "and then?")]);
        }
        let asked = (one.seen().len() - before.0, two.seen().len() - before.1);
        assert!(asked == (3, 0) || asked == (0, 3), "{asked:?}");
    }
    assert!(!one.seen().is_empty() && !two.seen().is_empty());
}

#[tokio::test]
async fn a_conversation_with_an_adapter_goes_on_where_it_was_sent_when_its_engine_was_full() {
    let (one, two) = (FakeEngine::start().await, FakeEngine::start().await);
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(None, &[&one, &two])).await;
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let chat = |content: &str| json!({"model": "m", "messages": [turn("user", content)]});
    rig.ask(chat("where does m go?")).await;
    let (usual, other) = if one.seen().is_empty() {
        (&two, &one)
    } else {
        (&one, &two)
    };
    usual.behave(Behaviour::Endless);
    let mut streams = vec![];
    for _ in 0..2 {
        let mut body = chat("a long one");
        body["stream"] = json!(true);
        streams.push(rig.open(rig.chat(&body, &[])).await);
    }
    assert_eq!((usual.open(), other.open()), (2, 0));
    rig.ask(chat("mine")).await;
    assert_eq!(other.seen().len(), 1, "it has room");
    drop(streams);
    usual.behave(Behaviour::Answer);
    until("the streams end", async || usual.open() == 0).await;
    let turns = [
        turn("user", "mine"),
        turn("assistant", "yes"),
        turn("user", "and then?"),
    ];
    rig.ask(json!({"model": "m", "messages": turns})).await;
    assert_eq!(other.seen().len(), 2, "it knows the conversation");
    let turns = [
        turn("user", "yours"),
        turn("assistant", "yes"),
        turn("user", "and then?"),
    ];
    rig.ask(json!({"model": "m", "messages": turns})).await;
    assert_eq!(other.seen().len(), 2, "and no other");
}

#[tokio::test]
async fn nameless_requests_are_split_by_chance() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(Some(candidate(30)), &[&engine])).await;
    let mut moved = 0;
    for _ in 0..1000 {
        let answer = rig.ask(json!({"model": "m", "messages": []})).await;
        moved += u32::from(answer.adapter() == "m@v2");
    }
    // 300 expected, with a deviation of 14.5: six of them either way.
    assert!((213..=387).contains(&moved), "{moved}");
}

#[tokio::test]
async fn the_header_reaches_a_candidate_that_has_no_weight_yet() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    let ask = async |rig: &Rig, side| rig.ask_with(question("u"), &[(HEADER_VERSION, side)]).await;

    rig.push(&table(None, &[&engine])).await;
    let answer = ask(&rig, "candidate").await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (404, "no_candidate")
    );

    rig.push(&table(
        Some(wire::Candidate {
            by_header: true,
            ..candidate(0)
        }),
        &[&engine],
    ))
    .await;
    assert_eq!(ask(&rig, "candidate").await.adapter(), "m@v2");
    assert_eq!(ask(&rig, "stable").await.adapter(), "m@v1");
    assert_eq!(rig.ask(question("u")).await.adapter(), "m@v1");
    assert!(
        engine
            .seen()
            .iter()
            .all(|headers| !headers.contains_key(HEADER_VERSION))
    );
    let answer = ask(&rig, "canary").await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (400, "invalid_version")
    );
}

#[tokio::test]
async fn a_candidate_goes_when_its_lease_is_not_renewed() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    let leased = wire::Candidate {
        lease_seconds: 1,
        by_header: true,
        ..candidate(100)
    };
    rig.push(&table(Some(leased), &[&engine])).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(
            rig.ask(question("u")).await.adapter(),
            "m@v2",
            "renewed in time"
        );
        rig.push(&table(Some(leased_again()), &[&engine])).await;
    }
    assert!(
        (rig.metric("graftwork_router_candidate_weight_percent")
            .await
            - 100.0)
            .abs()
            < 0.1
    );
    until("the lease ends", async || {
        rig.ask(question("u")).await.adapter() == "m@v1"
    })
    .await;
    let answer = rig
        .ask_with(question("u"), &[(HEADER_VERSION, "candidate")])
        .await;
    assert_eq!(answer.code(), "no_candidate");
    assert!(
        rig.metric("graftwork_router_candidate_weight_percent")
            .await
            .abs()
            < 0.1
    );

    rig.push(&table(Some(leased_again()), &[&engine])).await;
    assert_eq!(
        rig.ask(question("u")).await.adapter(),
        "m@v2",
        "another push brings it back"
    );
}

fn lease_ends(rig: &Rig) -> std::time::Instant {
    let table = rig.router.shared.table.load();
    table.models["m"].candidate.as_ref().unwrap().lease_ends
}

#[tokio::test]
async fn a_push_that_is_sent_again_renews_no_lease() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    let push = |weight, generation| {
        let fence = Fence {
            lease_epoch: 1,
            generation,
        };
        call(&table(Some(candidate(weight)), &[&engine]), fence)
    };
    let first = push(10, 1);
    rig.grpc.sync(first.clone()).await.unwrap();
    let ends = lease_ends(&rig);
    for _ in 0..3 {
        let reply = rig.grpc.sync(first.clone()).await.unwrap().into_inner();
        assert_eq!((reply.lease_epoch, reply.generation), (1, 1));
        assert_eq!(lease_ends(&rig), ends);
    }
    let other = rig.grpc.sync(push(20, 1)).await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::FailedPrecondition);
    assert_eq!(lease_ends(&rig), ends);
    rig.grpc.sync(push(10, 2)).await.unwrap();
    assert!(lease_ends(&rig) > ends);
}

fn leased_again() -> wire::Candidate {
    wire::Candidate {
        lease_seconds: 1,
        by_header: true,
        ..candidate(100)
    }
}

#[tokio::test]
async fn a_candidate_that_no_engine_has_gets_nothing() {
    let (one, two) = (FakeEngine::start().await, FakeEngine::start().await);
    let mut rig = Rig::start(&[]).await;
    let mut lacking = table(Some(candidate(100)), &[&one, &two]);
    lacking.engines[0].lacks.push(digest(2).to_string());
    rig.push(&lacking).await;
    for _ in 0..20 {
        assert_eq!(rig.ask(question("u")).await.adapter(), "m@v2");
    }
    assert!(one.seen().is_empty());
    lacking.engines[1].lacks.push(digest(2).to_string());
    rig.push(&lacking).await;
    assert_eq!(rig.ask(question("u")).await.adapter(), "m@v1");
    let answer = rig
        .ask_with(question("u"), &[(HEADER_VERSION, "candidate")])
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (503, "no_engine")
    );
}

#[tokio::test]
async fn a_push_that_is_not_the_operators_or_is_old_changes_nothing() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    let fence = |lease_epoch, generation| Fence {
        lease_epoch,
        generation,
    };
    let good = table(Some(candidate(100)), &[&engine]);
    let stable = table(None, &[&engine]);

    let mut unsigned = call(&good, fence(1, 1));
    unsigned.signature.clear();
    let refused = rig.grpc.sync(unsigned).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    let mut elsewhere = call(&good, fence(1, 1));
    elsewhere.owner_uid = "another endpoint".into();
    let refused = rig.grpc.sync(elsewhere).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert_eq!(rig.router.shared.table.load().fence, None);

    rig.grpc.sync(call(&good, fence(2, 5))).await.unwrap();
    for old in [fence(2, 4), fence(1, 9)] {
        let refused = rig.grpc.sync(call(&stable, old)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    }
    let invalid = table(Some(candidate(101)), &[&engine]);
    let refused = rig
        .grpc
        .sync(call(&invalid, fence(2, 6)))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert_eq!(
        rig.ask(question("u")).await.adapter(),
        "m@v2",
        "the good table still serves"
    );
    assert!((rig.metric("graftwork_router_table_generation").await - 5.0).abs() < 0.1);
    // The invalid table keeps out no good one of its pair.
    rig.grpc.sync(call(&stable, fence(2, 6))).await.unwrap();
    assert_eq!(rig.ask(question("u")).await.adapter(), "m@v1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_change_under_load_and_no_request_is_lost() {
    let engines = [FakeEngine::start().await, FakeEngine::start().await];
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(None, &[&engines[0]])).await;
    let rig = Arc::new(tokio::sync::Mutex::new(rig));
    let (client, address) = {
        let rig = rig.lock().await;
        (rig.client.clone(), rig.router.http)
    };
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut versions = BTreeMap::<String, u32>::new();
                for turn in 0..100 {
                    let body = if turn % 3 == 0 {
                        crate::rig::stream_question(&format!("{caller}-{turn}"))
                    } else {
                        question(&format!("{caller}-{turn}"))
                    };
                    let request =
                        http::Request::post(format!("http://{address}/v1/chat/completions"))
                            .body(body.to_string().into())
                            .unwrap();
                    let answer = crate::rig::read(client.request(request).await.unwrap()).await;
                    assert_eq!(answer.status, 200, "{}", answer.text);
                    assert!(turn % 3 != 0 || answer.text.ends_with("data: [DONE]\n\n"));
                    let said = format!("from {}", answer.adapter());
                    assert!(answer.text.contains(&said), "{said}: {}", answer.text);
                    *versions.entry(answer.adapter().to_owned()).or_default() += 1;
                }
                versions
            })
        })
        .collect();
    let swaps = async {
        let mut rig = rig.lock().await;
        for swap in 0u32.. {
            let pair = [&engines[0], &engines[1]];
            let engines = &pair[..=(swap as usize % 2)];
            rig.push(&table(
                (swap % 3 > 0).then(|| candidate(swap % 101)),
                engines,
            ))
            .await;
        }
    };
    let versions = tokio::select! {
        versions = futures::future::join_all(callers) => versions,
        () = swaps => unreachable!(),
    };
    let mut counts = BTreeMap::<String, u32>::new();
    for (version, count) in versions.into_iter().flat_map(Result::unwrap) {
        *counts.entry(version).or_default() += count;
    }
    assert_eq!(counts.values().sum::<u32>(), 1600);
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["m@v1", "m@v2"]);
    assert!(
        rig.lock().await.generation > 20,
        "{}",
        rig.lock().await.generation
    );
}

#[tokio::test]
async fn counters_tell_versions_errors_callers_and_latency() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(
        Some(wire::Candidate {
            by_header: true,
            ..candidate(0)
        }),
        &[&engine],
    ))
    .await;
    engine.behave(Behaviour::Slow(Duration::from_millis(100)));
    for user in ["ann", "bob", "ann"] {
        assert_eq!(rig.ask(question(user)).await.status, 200);
    }
    engine.behave(Behaviour::Status(500, "boom"));
    for _ in 0..2 {
        let answer = rig
            .ask_with(question("eve"), &[(HEADER_VERSION, "candidate")])
            .await;
        assert_eq!(answer.status, 500);
    }
    engine.behave(Behaviour::Status(400, "bad"));
    rig.ask(question("ann")).await;
    rig.ask(json!({"model": "unknown"})).await;
    engine.behave(Behaviour::Answer);
    rig.ask(json!({"model": "tiny"})).await;

    assert_eq!(
        rig.counts().await,
        [(1, 4, 0, 2), (2, 2, 2, 1), (0, 1, 0, 1)]
    );
    let request = wire::StatsRequest {
        from_milliseconds_ago: 900_000,
        to_milliseconds_ago: 0,
    };
    let reply = rig.grpc.stats(request).await.unwrap().into_inner();
    assert!(!reply.covered, "the process is younger than the window");
    assert_eq!(reply.boot_id, rig.router.shared.boot_id);
    let slow: Vec<_> = reply.versions[0]
        .latency
        .iter()
        .map(|b| (b.index, b.count))
        .collect();
    assert_eq!(
        slow.iter().map(|(_, count)| count).sum::<u64>(),
        3,
        "the 400 has no latency"
    );
    let median = latency::quantile(&slow, 0.5).unwrap();
    assert!((100.0..1000.0).contains(&median), "{median}");
    assert!(reply.versions[1].latency.is_empty());
    let wrong = wire::StatsRequest {
        from_milliseconds_ago: 5,
        to_milliseconds_ago: 5,
    };
    assert_eq!(
        rig.grpc.stats(wrong).await.unwrap_err().code(),
        tonic::Code::InvalidArgument
    );

    let count = async |labels: &str| {
        rig.metric(&format!("graftwork_router_requests_total{{{labels}}}"))
            .await
    };
    assert!(
        (count(r#"code="200",endpoint="assistants",model="m",version="v1""#).await - 3.0).abs()
            < 0.1
    );
    assert!(
        (count(r#"code="500",endpoint="assistants",model="m",version="v2""#).await - 2.0).abs()
            < 0.1
    );
    assert!(
        (count(r#"code="404",endpoint="assistants",model="",version="""#).await - 1.0).abs() < 0.1
    );
    assert!(
        rig.metric("graftwork_router_in_flight_requests")
            .await
            .abs()
            < 0.1
    );
}

#[tokio::test]
async fn engines_are_told_the_version_and_clients_the_truth() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&["--body-limit-bytes", "1000"]).await;
    rig.push(&table(None, &[&engine])).await;
    let forged = [(HEADER_ADAPTER, "m@v9"), (HEADER_REQUEST_ID, "abc")];
    let answer = rig.ask_with(question("u"), &forged).await;
    assert_eq!(answer.adapter(), "m@v1");
    assert_eq!(answer.headers[HEADER_REQUEST_ID], "abc");
    assert!(!answer.headers.contains_key("keep-alive"), "hop by hop");
    assert_eq!(engine.seen()[0][HEADER_ADAPTER], "m@v1");
    assert_eq!(engine.seen()[0][HEADER_REQUEST_ID], "abc");
    assert_eq!(engine.seen()[0]["host"], engine.address.to_string());

    let base = rig.ask(json!({"model": "tiny"})).await;
    assert_eq!(
        endpoint::parse_adapter_header(base.adapter()),
        Some(("tiny", None))
    );

    let unknown = rig.ask(json!({"model": "m@v1"})).await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.code().as_str()),
        (404, "model_not_found")
    );
    let large = rig
        .ask(json!({"model": "m", "prompt": "x".repeat(1000)}))
        .await;
    assert_eq!(large.status, 413);
    assert!(large.text.contains("limit of 1000 bytes"), "{}", large.text);
    let malformed = rig.ask(json!(["m"])).await;
    assert_eq!(
        (malformed.status.as_u16(), malformed.code().as_str()),
        (400, "invalid_body")
    );
    let elsewhere = rig.get(rig.router.http, "/v1/embeddings").await;
    assert_eq!(
        (elsewhere.status.as_u16(), elsewhere.code().as_str()),
        (404, "unknown_url")
    );
    let method = rig.get(rig.router.http, "/v1/completions").await;
    assert_eq!(
        (method.status.as_u16(), method.code().as_str()),
        (405, "method_not_allowed")
    );
    assert_eq!(engine.seen().len(), 2);
}

/// Sends a request's head and the begin of its body, and no more; what comes back until the connection ends.
async fn begin(address: std::net::SocketAddr, ends: bool) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let begun = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{\"mo";
    stream.write_all(begun).await.unwrap();
    if ends {
        stream.shutdown().await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_body_that_stops_half_way_is_a_408_and_no_engine_hears_of_it() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&["--body-timeout", "100ms"]).await;
    rig.push(&table(None, &[&engine])).await;
    let answer = begin(rig.router.http, false).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"request_timeout\""), "{answer}");
    // A client that ends its side is gone, or hears that its body is not whole.
    let answer = begin(rig.router.http, true).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
        "{answer}"
    );
    let fine = rig.ask(question("u")).await;
    assert_eq!(fine.adapter(), "m@v1");
    assert_eq!(engine.seen().len(), 1);
}

#[tokio::test]
async fn every_request_behind_an_acknowledged_push_follows_it() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    // How soon a push is acknowledged is `make bench-router`'s.
    for turn in 0..50 {
        let (weight, version) = if turn % 2 == 0 {
            (100, "m@v2")
        } else {
            (0, "m@v1")
        };
        rig.push(&table(Some(candidate(weight)), &[&engine])).await;
        let ask = |user: String| rig.ask(question(&user));
        let answers = futures::future::join_all((0..4).map(|n| ask(format!("u{n}")))).await;
        for answer in answers {
            assert_eq!(answer.adapter(), version, "push {turn}");
        }
    }
}
