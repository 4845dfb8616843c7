//! Start and end of the process.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{BASE, Files, Server, eventually, read};
use graftwork_model::fixture::TinyShape;
use serde_json::{Value, json};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

fn slow() -> Files {
    Files::with_shape(TinyShape {
        hidden: 128,
        intermediate: 512,
        layers: 6,
        ..TinyShape::default()
    })
}

fn request(tokens: usize, stream: bool) -> Value {
    json!({"model": BASE, "prompt": "x", "max_tokens": tokens, "temperature": 0, "stream": stream})
}

async fn serving(server: &Server) -> ServingStatus {
    let address = format!("http://{}", server.grpc);
    let channel = tonic::transport::Endpoint::from_shared(address)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = HealthClient::new(channel);
    let request = HealthCheckRequest {
        service: "graftwork.engine.v1.Engine".into(),
    };
    client.check(request).await.unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_engine_is_not_ready_still_accepts_and_finishes_what_runs() {
    let files = slow();
    let mut options = files.options();
    options.drain_delay_seconds = 1;
    let mut server = files.start_with(options).await;
    assert_eq!(serving(&server).await, ServingStatus::Serving);
    let stream = server
        .open("/v1/completions", &request(500, true), &[])
        .await;
    server.terminate();
    eventually(
        || async { server.get(server.metrics, "/readyz").await.status == 503 },
        "not ready",
    )
    .await;
    assert_eq!(serving(&server).await, ServingStatus::NotServing);
    assert_eq!(server.get(server.metrics, "/healthz").await.status, 200);
    let late = server.complete(request(2, false)).await;
    assert_eq!(late.status, 200, "endpoints may not have caught up");
    assert_eq!(late.headers["connection"], "close");
    let streamed = read(stream).await;
    assert_eq!(streamed.events().last().map(String::as_str), Some("[DONE]"));
    (&mut server.ended).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_a_stream_ends_with_an_error_event() {
    let files = slow();
    let mut options = files.options();
    options.drain_limit_seconds = 0;
    let mut server = files.start_with(options).await;
    let stream = server
        .open("/v1/completions", &request(500, true), &[])
        .await;
    server.terminate();
    let streamed = read(stream).await;
    let last: Value = serde_json::from_str(streamed.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "engine_stopping");
    (&mut server.ended).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_model_with_another_digest_is_not_served() {
    let mut files = Files::new();
    files.config.base_digest = graftwork_contract::Digest::of(b"another");
    files.write_config();
    let error = engine::run::Running::start(files.options())
        .await
        .unwrap_err();
    let message = format!("{error:#}");
    assert!(
        message.contains("has digest sha256:")
            && message.contains(files.config.base_digest.as_str()),
        "{message}"
    );
}

#[test]
fn the_process_ends_with_0_after_sigterm() {
    let files = Files::new();
    files.write_config();
    let here = "127.0.0.1:0";
    let mut child = Command::new(env!("CARGO_BIN_EXE_engine"))
        .arg("--config")
        .arg(files.config_path())
        .arg("--store")
        .arg(files.store())
        .args([
            "--listen-http",
            here,
            "--listen-grpc",
            here,
            "--listen-metrics",
            here,
        ])
        .args(["--pod-uid", "p", "--drain-delay-seconds", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.any(|line| line.unwrap().contains("\"message\":\"ready\""));
    assert!(ready);
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
    let limit = std::time::Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if std::time::Instant::now() > limit {
            child.kill().unwrap();
            panic!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(0), "{:?}", rest.join().unwrap());
}

#[test]
fn a_process_that_cannot_start_leaves_why_where_the_kubelet_reads_it() {
    let mut files = Files::new();
    files.config.key_value_cache_bytes = Some(1 << 10);
    files.write_config();
    let log = files.options().termination_file;
    let engine = || {
        let here = "127.0.0.1:0";
        Command::new(env!("CARGO_BIN_EXE_engine"))
            .arg("--config")
            .arg(files.config_path())
            .arg("--store")
            .arg(files.store())
            .arg("--termination-file")
            .arg(&log)
            .args(["--listen-http", here, "--listen-grpc", here])
            .args(["--listen-metrics", here, "--pod-uid", "p"])
            .output()
            .unwrap()
    };
    assert_eq!(engine().status.code(), Some(1));
    assert!(!log.exists(), "outside a pod no file is made");
    std::fs::write(&log, "what a process before left, which was longer").unwrap();
    assert_eq!(engine().status.code(), Some(1));
    let left = std::fs::read_to_string(&log).unwrap();
    assert!(
        left.starts_with("spec.engine.keyValueCache of 1024 bytes holds 0 tokens, the context has"),
        "{left}"
    );
    assert!(left.ends_with("lower maximumContextTokens"), "{left}");
}
