//! Engines that die, refuse, hang and come back; clients that leave; routers that stop.

use std::time::{Duration, Instant};

use crate::rig::engine::{Behaviour, FakeEngine};
use crate::rig::{Rig, candidate, config, digest, question, stream_question, table, until};
use graftwork_contract::endpoint::CODE_VERSION_NOT_HERE;
use graftwork_contract::proto::router::v1 as wire;
use http_body_util::BodyExt as _;
use serde_json::json;

async fn two() -> ([FakeEngine; 2], Rig) {
    let engines = [FakeEngine::start().await, FakeEngine::start().await];
    let mut rig = Rig::start(&["--answer-timeout", "1s"]).await;
    rig.push(&table(None, &[&engines[0], &engines[1]])).await;
    (engines, rig)
}

/// The engine that `m@v1` goes to first, and the other.
async fn home_first((engines, rig): ([FakeEngine; 2], Rig)) -> (FakeEngine, FakeEngine, Rig) {
    assert_eq!(rig.ask(question("u")).await.status, 200);
    let [one, two] = engines;
    if one.seen().len() == 1 {
        (one, two, rig)
    } else {
        (two, one, rig)
    }
}

#[tokio::test]
async fn an_engine_that_dies_before_or_within_the_answer_costs_no_request() {
    for behaviour in [
        Behaviour::Abort,
        Behaviour::Cut,
        Behaviour::Status(503, "draining"),
        Behaviour::Status(502, "bad_gateway"),
        Behaviour::Status(404, CODE_VERSION_NOT_HERE),
        Behaviour::Status(429, "busy"),
    ] {
        let (home, other, mut rig) = home_first(two().await).await;
        home.behave_once(behaviour);
        let answer = rig.ask(question("u")).await;
        assert_eq!(answer.status, 200, "{behaviour:?}: {}", answer.text);
        assert_eq!(
            answer.json()["choices"][0]["message"]["content"],
            "from m@v1"
        );
        assert_eq!(
            (home.seen().len(), other.seen().len()),
            (2, 1),
            "{behaviour:?}"
        );
        assert_eq!(
            rig.counts().await,
            [(1, 2, 0, 1)],
            "{behaviour:?} is no failed request"
        );
        assert!((rig.metric("graftwork_router_retries_total").await - 1.0).abs() < 0.1);
    }
}

#[tokio::test]
async fn an_engine_that_fails_what_another_answers_is_left_out_after_three_times() {
    let (home, other, rig) = home_first(two().await).await;
    home.behave(Behaviour::Status(503, "broken"));
    for _ in 0..4 {
        assert_eq!(rig.ask(question("u")).await.status, 200);
    }
    assert_eq!(
        (home.seen().len(), other.seen().len()),
        (1 + 3, 4),
        "the fourth went to the other one at once"
    );
    assert!((rig.metric("graftwork_router_ejections_total").await - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn where_nobody_has_the_version_the_fallback_answers_and_is_named() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    let mut table = table(None, &[&engine]);
    table.engines[0].lacks = vec![digest(1).to_string()];
    rig.push(&table).await;
    let answer = rig.ask(question("u")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (503, "no_engine"),
        "nobody said that something else may answer"
    );
    table.models[0].fallback = "tiny".into();
    rig.push(&table).await;
    for body in [question("u"), stream_question("u")] {
        let answer = rig.ask(body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.adapter(), "tiny@base");
    }
    assert!((rig.metric("graftwork_router_fallbacks_total").await - 2.0).abs() < 0.1);
}

#[tokio::test]
async fn where_a_model_has_no_version_yet_its_stand_in_answers_and_is_named() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    let mut table = table(None, &[&engine]);
    table.models.clear();
    rig.push(&table).await;
    let answer = rig.ask(question("u")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (404, "model_not_found"),
        "nobody said that something else may answer"
    );
    table.stand_ins = vec![wire::StandIn {
        name: "m".into(),
        model: "tiny".into(),
    }];
    rig.push(&table).await;
    for body in [question("u"), stream_question("u")] {
        let answer = rig.ask(body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.adapter(), "tiny@base");
    }
    assert!((rig.metric("graftwork_router_fallbacks_total").await - 2.0).abs() < 0.1);
}

#[tokio::test]
async fn a_candidate_that_breaks_falls_back_to_stable_and_is_judged_all_the_same() {
    let ([one, two], mut rig) = two().await;
    let mut table = table(Some(candidate(100)), &[&one, &two]);
    table.models[0].fallback = "m".into();
    rig.push(&table).await;
    for engine in [&one, &two] {
        engine.behave_once(Behaviour::Status(503, "out_of_memory"));
    }
    let answer = rig.ask(question("u")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.adapter()),
        (200, "m@v1"),
        "{}",
        answer.text
    );
    let counts = rig.counts().await;
    assert!(
        counts.contains(&(2, 1, 1, 1)),
        "the failure is the candidate's: {counts:?}"
    );
    assert!(counts.contains(&(1, 1, 0, 1)), "{counts:?}");
}

#[tokio::test]
async fn a_stream_that_dies_before_its_first_event_is_begun_on_another_engine() {
    let (home, other, rig) = home_first(two().await).await;
    home.behave_once(Behaviour::Abort);
    let answer = rig.ask(stream_question("u")).await;
    assert!(answer.text.ends_with("data: [DONE]\n\n"));
    assert_eq!(other.seen().len(), 1);
}

#[tokio::test]
async fn a_stream_that_dies_later_ends_in_an_error_event() {
    let (home, other, mut rig) = home_first(two().await).await;
    for behaviour in [Behaviour::Cut, Behaviour::EndWithoutDone] {
        home.behave_once(behaviour);
        until("the home engine is back", async || {
            rig.metric("graftwork_router_engines{state=\"healthy\"}")
                .await
                > 1.5
        })
        .await;
        let answer = rig.ask(stream_question("u")).await;
        assert!(answer.whole, "the client's connection ends properly");
        let events: Vec<_> = answer.text.split_terminator("\n\n").collect();
        assert_eq!(events.len(), 2, "half an event is dropped: {}", answer.text);
        for event in &events {
            let data = event.strip_prefix("data: ").unwrap();
            serde_json::from_str::<serde_json::Value>(data).unwrap();
        }
        assert!(
            events[1].contains(r#""code":"stream_truncated""#),
            "{}",
            events[1]
        );
    }
    assert!(other.seen().is_empty());
    assert_eq!(rig.counts().await, [(1, 3, 2, 1)]);
}

#[tokio::test]
async fn a_large_answer_that_breaks_after_it_began_is_cut_and_counted() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&["--answer-buffer-bytes", "100000"]).await;
    rig.push(&table(None, &[&engine])).await;
    engine.behave(Behaviour::Large {
        bytes: 320 << 10,
        cut: false,
    });
    let answer = rig.ask(question("u")).await;
    assert_eq!((answer.whole, answer.text.len()), (true, 320 << 10));
    engine.behave(Behaviour::Large {
        bytes: 320 << 10,
        cut: true,
    });
    let answer = rig.ask(question("u")).await;
    assert!(!answer.whole);
    assert_eq!(rig.counts().await, [(1, 2, 1, 1)]);
}

#[tokio::test]
async fn what_all_engines_say_is_passed_on() {
    let (engines, mut rig) = two().await;
    for (status, code) in [
        (503, "draining"),
        (500, "boom"),
        (400, "bad"),
        (404, "other"),
    ] {
        let _ = engines
            .each_ref()
            .map(|engine| engine.behave(Behaviour::Status(status, code)));
        let answer = rig.ask(question("u")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (status, code)
        );
    }
    let _ = engines
        .each_ref()
        .map(|engine| engine.behave(Behaviour::Status(429, "full")));
    let before = engines
        .iter()
        .map(|engine| engine.seen().len())
        .sum::<usize>();
    for _ in 0..5 {
        assert_eq!(rig.ask(question("u")).await.code(), "full");
    }
    let after = engines
        .iter()
        .map(|engine| engine.seen().len())
        .sum::<usize>();
    assert!(
        (6..10).contains(&(after - before)),
        "once both are known to be full, nobody is sent around"
    );
    let _ = engines
        .each_ref()
        .map(|engine| engine.behave(Behaviour::Status(404, CODE_VERSION_NOT_HERE)));
    let answer = rig.ask(question("u")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (503, "no_engine")
    );
    let _ = engines
        .each_ref()
        .map(|engine| engine.behave(Behaviour::Abort));
    let answer = rig.ask(question("u")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (502, "engine_failed")
    );
    let _ = engines
        .each_ref()
        .map(|engine| engine.behave(Behaviour::Slow(Duration::from_secs(60))));
    let answer = rig.ask(question("u")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (504, "engine_silent")
    );
    // 503, 500, no_engine, 502 and 504 are errors; 400, 404 and five 429 are not.
    assert_eq!(rig.counts().await, [(1, 12, 5, 1)]);
}

#[tokio::test]
async fn a_dead_engine_is_ejected_and_probed_until_it_is_back() {
    let (home, other, rig) = home_first(two().await).await;
    let address = home.kill().await;
    for _ in 0..20 {
        assert_eq!(rig.ask(question("u")).await.status, 200);
    }
    assert_eq!(other.seen().len(), 20);
    assert!(
        rig.metric("graftwork_router_retries_total").await < 1.5,
        "one request finds out"
    );
    assert!((rig.metric("graftwork_router_ejections_total").await - 1.0).abs() < 0.1);

    let home = FakeEngine::start_at(address).await;
    until("the home engine serves again", async || {
        rig.ask(question("u")).await.status == 200 && !home.seen().is_empty()
    })
    .await;
    assert!(
        rig.metric("graftwork_router_retries_total").await < 1.5,
        "a probe found out, no request"
    );
}

#[tokio::test]
async fn an_engine_that_is_silent_before_its_first_byte_is_ejected() {
    let (home, other, rig) = home_first(two().await).await;
    home.behave(Behaviour::Slow(Duration::from_secs(60)));
    let answer = rig.ask(question("u")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (504, "engine_silent")
    );
    assert!((rig.metric("graftwork_router_ejections_total").await - 1.0).abs() < 0.1);
    assert_eq!(other.seen().len(), 0, "no time was left for another one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_engine_under_load_fails_no_unary_request_and_ends_streams_in_an_error_event() {
    let ([one, other], mut rig) = two().await;
    for engine in [&one, &other] {
        engine.behave(Behaviour::Slow(Duration::from_millis(20)));
    }
    let (client, address) = (rig.client.clone(), rig.router.http);
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let client = client.clone();
            tokio::spawn(async move {
                for turn in 0..40 {
                    let body = question(&format!("{caller}-{turn}"));
                    let request =
                        http::Request::post(format!("http://{address}/v1/chat/completions"))
                            .body(body.to_string().into())
                            .unwrap();
                    let answer = crate::rig::read(client.request(request).await.unwrap()).await;
                    assert_eq!(answer.status, 200, "{}", answer.text);
                }
            })
        })
        .collect();
    until("both run", async || one.open() > 2 && other.open() > 2).await;
    one.kill().await;
    for caller in callers {
        caller.await.unwrap();
    }
    let (_, completed, errors, _) = rig.counts().await[0];
    assert_eq!((completed, errors), (640, 0));
    assert!(rig.metric("graftwork_router_retries_total").await > 2.5);
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_engine() {
    let (home, other, mut rig) = home_first(two().await).await;
    home.behave(Behaviour::Endless);
    let mut response = rig.open(rig.chat(&stream_question("u"), &[])).await;
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(home.open(), 1);
    drop(response);
    until("the stream is cancelled", async || home.open() == 0).await;

    home.behave(Behaviour::Slow(Duration::from_secs(60)));
    let asking = tokio::time::timeout(Duration::from_millis(300), rig.ask(question("u")));
    assert!(asking.await.is_err());
    until("the request is cancelled", async || home.open() == 0).await;
    assert_eq!(other.open(), 0);
    assert_eq!(
        rig.counts().await,
        [(1, 1, 0, 1)],
        "who leaves is not counted"
    );
    let cancelled = "graftwork_router_requests_total{code=\"cancelled\"";
    assert!((rig.metric(cancelled).await - 2.0).abs() < 0.1);
    assert!(
        rig.metric("graftwork_router_in_flight_requests")
            .await
            .abs()
            < 0.1
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_engine_back() {
    let (home, _other, rig) = home_first(two().await).await;
    home.behave(Behaviour::Large {
        bytes: 64 << 20,
        cut: false,
    });
    let rig_small = {
        // As a stream nothing is held back to become whole.
        let mut rig = Rig::start(&["--answer-buffer-bytes", "1000"]).await;
        rig.push(&table(None, &[&home])).await;
        rig
    };
    let response = rig_small.open(rig_small.chat(&question("u"), &[])).await;
    // Time in which a router that held all of it back would have read it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(home.open(), 1, "64 MiB do not fit in between");
    let answer = crate::rig::read(response).await;
    assert_eq!((answer.whole, answer.text.len()), (true, 64 << 20));
    drop(rig);
}

#[tokio::test]
async fn engines_that_the_operator_does_not_know_yet_help_out_for_stable_versions() {
    let (listed, found) = (FakeEngine::start().await, FakeEngine::start().await);
    let mut rig = Rig::start_with(&config(&found.address.to_string()), &[]).await;
    rig.push(&table(Some(candidate(50)), &[&listed])).await;
    until("DNS is asked", async || {
        !rig.router.shared.found.load().is_empty()
    })
    .await;
    for user in 0..20 {
        assert_eq!(rig.ask(question(&user.to_string())).await.status, 200);
    }
    assert!(found.seen().is_empty());
    listed.kill().await;
    let mut on_candidate = 0;
    for user in 0..20 {
        let user = user.to_string();
        let answer = rig.ask(question(&user)).await;
        if router::choice::place("salt", &user) < 50 {
            on_candidate += 1;
            // 502 where a connection from before broke, 503 where nobody is there to connect to.
            assert!(
                [502, 503].contains(&answer.status.as_u16()),
                "{}",
                answer.status
            );
        } else {
            assert_eq!((answer.status.as_u16(), answer.adapter()), (200, "m@v1"));
        }
    }
    assert!(on_candidate > 0);
    assert_eq!(found.seen().len(), 20 - on_candidate);
}

#[tokio::test]
async fn ready_means_that_an_engine_has_answered_and_lasts() {
    let mut rig = Rig::start_with(&config("127.0.0.1:1"), &[]).await;
    let ready = async |rig: &Rig| rig.get(rig.router.metrics, "/readyz").await.status.as_u16();
    // Time in which a router that takes silence for an answer would be ready.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        ready(&rig).await,
        503,
        "nothing answers at the mounted name"
    );
    assert_eq!(rig.get(rig.router.metrics, "/healthz").await.status, 200);
    let answer = rig.ask(question("u")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (503, "no_engine"),
        "nobody broke: there is nobody"
    );

    let engine = FakeEngine::start().await;
    rig.push(&table(None, &[&engine])).await;
    until("the engine is probed", async || ready(&rig).await == 200).await;
    engine.kill().await;
    rig.push(&table(None, &[])).await;
    assert_eq!(
        ready(&rig).await,
        200,
        "a 503 is better than a refused connection"
    );
}

#[tokio::test]
async fn a_drain_accepts_for_a_while_finishes_what_runs_and_ends() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(None, &[&engine])).await;
    until("ready", async || rig.router.shared.is_ready()).await;
    let channel = tonic::transport::Endpoint::new(format!("http://{}", rig.router.grpc))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let mut serving = async || {
        let request = tonic_health::pb::HealthCheckRequest {
            service: String::new(),
        };
        health.check(request).await.unwrap().into_inner().status
    };
    until("gRPC health serves", async || serving().await == 1).await;

    let (http, metrics, client) = (rig.router.http, rig.router.metrics, rig.client.clone());
    let ask = async |body: serde_json::Value| {
        let request = http::Request::post(format!("http://{http}/v1/chat/completions"))
            .body(body.to_string().into())
            .unwrap();
        let response = client.request(request).await?;
        Ok::<_, hyper_util::client::legacy::Error>(crate::rig::read(response).await)
    };
    engine.behave(Behaviour::Slow(Duration::from_secs(3)));
    let slow = ask(question("slow"));
    let draining = async {
        until("the slow request runs", async || engine.open() == 1).await;
        engine.behave(Behaviour::Answer);
        let began = Instant::now();
        let drain = tokio::spawn(
            rig.router
                .drain(Duration::from_millis(700), Duration::from_secs(60)),
        );
        // In the midst of the 700 ms in which it still accepts.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let ready = http::Request::get(format!("http://{metrics}/readyz"))
            .body(http_body_util::Full::default())
            .unwrap();
        assert_eq!(client.request(ready).await.unwrap().status(), 503);
        assert_eq!(serving().await, 2);
        let late = ask(question("late")).await.unwrap();
        assert_eq!(late.status, 200, "still accepted");
        assert_eq!(
            late.headers["connection"], "close",
            "the next one goes elsewhere"
        );
        // Past the end of the 700 ms.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(
            ask(question("too late")).await.is_err(),
            "nothing is accepted any more"
        );
        assert!(!drain.is_finished(), "the slow request still runs");
        drain.await.unwrap().unwrap();
        assert!(began.elapsed() > Duration::from_secs(2));
    };
    let (slow, ()) = tokio::join!(slow, draining);
    assert_eq!(slow.unwrap().status, 200);
}

#[tokio::test]
async fn a_stream_that_outlives_the_drain_ends_in_an_error_event() {
    let engine = FakeEngine::start().await;
    engine.behave(Behaviour::Endless);
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(None, &[&engine])).await;
    let stream = rig.open(rig.chat(&stream_question("a"), &[])).await;
    let reading = tokio::spawn(crate::rig::read(stream));
    until("the stream runs", async || engine.open() == 1).await;
    rig.router
        .drain(Duration::from_millis(10), Duration::from_millis(200))
        .await
        .unwrap();
    let answer = reading.await.unwrap();
    let last = answer
        .text
        .trim_end()
        .rsplit('\n')
        .next()
        .unwrap()
        .to_owned();
    assert!(last.contains("stream_truncated"), "{last}");
}

#[tokio::test]
async fn bodies_beyond_the_memory_for_them_are_refused() {
    let engine = FakeEngine::start().await;
    engine.behave(Behaviour::Slow(Duration::from_secs(2)));
    let mut rig = Rig::start(&["--held-bytes", "4096", "--body-limit-bytes", "4096"]).await;
    rig.push(&table(None, &[&engine])).await;
    let mut large = question("a");
    large["metadata"] = json!("x".repeat(3000));
    let first = tokio::spawn(rig.client.request(rig.chat(&large, &[])));
    until("the first one runs", async || engine.open() == 1).await;
    let second = rig.ask(large.clone()).await;
    assert_eq!(second.status, 429);
    assert_eq!(second.headers["retry-after"], "1");
    assert!(second.text.contains("4096 bytes"), "{}", second.text);
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    engine.behave(Behaviour::Answer);
    assert_eq!(rig.ask(large).await.status, 200, "the room came back");
}

#[tokio::test]
async fn clients_that_send_no_more_of_their_bodies_take_no_room_from_others() {
    use tokio::io::AsyncWriteExt as _;
    const HEAD: &str = "POST /v1/completions HTTP/1.1\r\nhost: x\r\n";
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(None, &[&engine])).await;
    // Whole, they would be twice what a router holds.
    let mut silent = Vec::new();
    for length in [
        "content-length: 8388608\r\n\r\n{",
        "transfer-encoding: chunked\r\n\r\n1\r\n{",
    ] {
        for _ in 0..16 {
            let mut stream = tokio::net::TcpStream::connect(rig.router.http)
                .await
                .unwrap();
            stream
                .write_all(format!("{HEAD}{length}").as_bytes())
                .await
                .unwrap();
            silent.push(stream);
        }
    }
    for _ in 0..20 {
        assert_eq!(rig.ask(question("u")).await.status, 200);
    }
}

/// A process that does not outlive its test.
struct Guarded(std::process::Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_process_drains_on_sigterm_and_exits_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, json!(config("127.0.0.1:1")).to_string()).unwrap();
    let router = std::process::Command::new(env!("CARGO_BIN_EXE_router"))
        .args(["--pod-uid", "pod", "--drain-delay", "100ms", "--config"])
        .arg(&path)
        .args([
            "--listen-http",
            "127.0.0.1:0",
            "--listen-grpc",
            "127.0.0.1:0",
        ])
        .args(["--listen-metrics", "127.0.0.1:0"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut router = Guarded(router);
    let router = &mut router.0;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(router.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains("router started")));
    let kill = std::process::Command::new("kill")
        .arg(router.id().to_string())
        .status()
        .unwrap();
    assert!(kill.success());
    assert_eq!(router.wait().unwrap().code(), Some(0));
    assert!(lines.any(|line| line.unwrap().contains("\"drained\"")));
}

#[test]
fn a_router_that_cannot_start_leaves_why_where_the_kubelet_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("termination-log");
    std::fs::write(&log, "").unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, "{\"endpoint\": 5}").unwrap();
    let router = std::process::Command::new(env!("CARGO_BIN_EXE_router"))
        .args(["--pod-uid", "pod", "--config"])
        .arg(&path)
        .arg("--termination-file")
        .arg(&log)
        .output()
        .unwrap();
    assert_eq!(router.status.code(), Some(1));
    let left = std::fs::read_to_string(&log).unwrap();
    assert!(left.contains("config.json"), "{left}");
}
