//! Requests that nobody in their right mind sends: each is answered with what is wrong, or cut off, and the
//! engine goes on as if it had not been there.

mod schemas;

use std::net::SocketAddr;
use std::time::Duration;

use crate::harness::process::{Process, push};
use crate::harness::{BASE, Files};
use graftwork_model::fixture::TinyShape;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What to send, and what it is called where it goes wrong.
struct Case {
    name: String,
    bytes: Vec<u8>,
    /// Whether the connection may end without an answer.
    may_close: bool,
}

fn request(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn post(path: &str, body: &[u8]) -> Case {
    let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
    Case {
        name: format!("{path} {shown}"),
        bytes: request(path, "", body),
        may_close: false,
    }
}

fn raw(name: &str, bytes: impl Into<Vec<u8>>) -> Case {
    Case {
        name: name.to_owned(),
        bytes: bytes.into(),
        may_close: true,
    }
}

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const PATHS: [&str; 4] = [COMPLETIONS, CHAT, "/tokenize", "/detokenize"];

/// A request that is fine but for one field, whose value is JSON text.
fn with_field(path: &str, field: &str, value: &str) -> Case {
    let mut body = match path {
        CHAT => {
            json!({"model": BASE, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1})
        }
        "/tokenize" => json!({"model": BASE, "prompt": "x"}),
        "/detokenize" => json!({"model": BASE, "tokens": [1]}),
        _ => json!({"model": BASE, "prompt": "x", "max_tokens": 1}),
    };
    body.as_object_mut().unwrap().remove(field);
    let text = body.to_string();
    let text = format!("{},\"{field}\":{value}}}", &text[..text.len() - 1]);
    post(path, text.as_bytes())
}

/// No JSON, or none that can be held.
fn bodies() -> Vec<Case> {
    let deep = "[".repeat(200_000);
    let deep_objects = r#"{"a":"#.repeat(100_000);
    let bodies: [&[u8]; 22] = [
        b"",
        b"{",
        b"[",
        b"null",
        b"1",
        b"\"x\"",
        b"[{}]",
        b"{}",
        b"{]",
        b"{\"model\": }",
        b"{'model': 'tiny'}",
        b"{\"model\": \"tiny\",}",
        b"{\"model\": \"tiny\"} {}",
        b"{\"model\": \"\xff\xfe\"}",
        b"{\"model\": \"\\ud800\"}",
        b"{\"model\": \"\\x\"}",
        b"{\"model\": NaN}",
        b"{\"model\": 1e999}",
        b"{\"model\": 0x10}",
        b"\xef\xbb\xbf{}",
        deep.as_bytes(),
        deep_objects.as_bytes(),
    ];
    let of = |path: &'static str| bodies.map(|body| post(path, body));
    PATHS.into_iter().flat_map(of).collect()
}

/// Values of the wrong type or out of range.
fn values() -> Vec<Case> {
    let mut cases = vec![];
    let whole = [
        "\"1\"",
        "1.5",
        "true",
        "[]",
        "{}",
        "18446744073709551615",
        "99999999999999999999",
        "1e30",
    ];
    let number = ["\"1\"", "true", "[]", "{}", "1e9", "-1e9"];
    let flag = ["1", "\"true\"", "[]", "{}"];
    for path in [COMPLETIONS, CHAT] {
        for field in ["n", "seed", "max_tokens", "top_k"] {
            cases.extend(whole.map(|value| with_field(path, field, value)));
        }
        for field in [
            "temperature",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        ] {
            cases.extend(number.map(|value| with_field(path, field, value)));
        }
        for field in ["stream", "ignore_eos"] {
            cases.extend(flag.map(|value| with_field(path, field, value)));
        }
        for value in [
            "1",
            "[]",
            "{}",
            "true",
            "\"nobody\"",
            "\"\"",
            "\"../../etc\"",
            "\"tiny@v1\"",
        ] {
            cases.push(with_field(path, "model", value));
        }
        let many = format!("[{}]", ["\"x\""; 17].join(","));
        let long = format!("\"{}\"", "x".repeat(2000));
        for value in ["1", "true", "{}", "[1]", "[\"\"]", "\"\"", &many, &long] {
            cases.push(with_field(path, "stop", value));
        }
        let many = (0..2000).map(|id| format!("\"{id}\": 1"));
        let many = format!("{{{}}}", many.collect::<Vec<_>>().join(","));
        for value in [
            "1",
            "[]",
            "{\"x\": 1}",
            "{\"-1\": 1}",
            "{\"1\": \"x\"}",
            "{\"1\": 1e9}",
            "{\"999999\": 1}",
            "{\"4294967296\": 1}",
            "{\"7\": 1, \"07\": 1}",
            &many,
        ] {
            cases.push(with_field(path, "logit_bias", value));
        }
        for value in ["1", "\"x\"", "[]", "{}", "{\"include_usage\": true}"] {
            cases.push(with_field(path, "stream_options", value));
        }
        for field in [
            "__proto__",
            "constructor",
            "guided_json",
            "lora_request",
            "\\u0000",
        ] {
            cases.push(with_field(path, field, "1"));
        }
    }
    cases
}

/// Prompts, conversations and tokens that are none.
fn inputs() -> Vec<Case> {
    let mut cases = vec![];
    let long = format!("\"{}\"", "x".repeat(100_000));
    for value in [
        "null",
        "1",
        "true",
        "{}",
        "[]",
        "[[]]",
        "[null]",
        "[true]",
        "[\"a\", 1]",
        "[-1]",
        "[1.5]",
        "[999999]",
        "[4294967296]",
        "[[1], [\"a\"]]",
        "[[[[1]]]]",
        "[1, [1]]",
        &long,
    ] {
        cases.push(with_field(COMPLETIONS, "prompt", value));
    }
    let many = format!(
        "[{}]",
        vec![r#"{"role": "user", "content": ""}"#; 5000].join(",")
    );
    for value in [
        "null",
        "1",
        "\"x\"",
        "{}",
        "[]",
        "[1]",
        "[null]",
        "[[]]",
        "[{}]",
        r#"[{"role": "user"}]"#,
        r#"[{"content": "x"}]"#,
        r#"[{"role": 1, "content": "x"}]"#,
        r#"[{"role": "root", "content": "x"}]"#,
        r#"[{"role": "user", "content": 1}]"#,
        r#"[{"role": "user", "content": {}}]"#,
        r#"[{"role": "user", "content": [1]}]"#,
        r#"[{"role": "user", "content": [{"type": "text"}]}]"#,
        r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]"#,
        r#"[{"role": "user", "content": "x", "name": "{{ 7 * 7 }}"}]"#,
        r#"[{"role": "user", "content": "x", "tool_calls": [1]}]"#,
        &many,
    ] {
        cases.push(with_field(CHAT, "messages", value));
    }
    for value in [
        "null", "1", "\"1\"", "{}", "[-1]", "[1.5]", "[\"a\"]", "[999999]", "[[1]]",
    ] {
        cases.push(with_field("/detokenize", "tokens", value));
    }
    for value in ["null", "1", "[]", "{}", "[1]"] {
        cases.push(with_field("/tokenize", "prompt", value));
    }
    for header in [
        "",
        "x",
        "a@",
        "a@1",
        "@v1",
        "a@v",
        "a@v-1",
        "a@v99999999999",
        "a@v1.5",
        "nobody@v1",
        "nobody@base",
        "a@v1@v1",
    ] {
        let body = json!({"model": BASE, "prompt": "x", "max_tokens": 1}).to_string();
        cases.push(Case {
            name: format!("x-graftwork-adapter: {header}"),
            bytes: request(
                COMPLETIONS,
                &format!("x-graftwork-adapter: {header}\r\n"),
                body.as_bytes(),
            ),
            may_close: false,
        });
    }
    cases
}

/// Requests that are hardly HTTP.
fn protocol() -> Vec<Case> {
    let line = |line: &str| {
        let text = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        raw(line, text)
    };
    let lines = [
        "GET /v1/completions",
        "PUT /v1/completions",
        "DELETE /v1/chat/completions",
        "PATCH /tokenize",
        "POST /v1/models",
        "GET /",
        "GET /v1",
        "GET /v1/completions/",
        "GET //v1/completions",
        "GET /v1/../../etc/passwd",
        "GET /%00",
        "GET /v1/models/nobody",
        "GET /v1/models/%ff%fe",
        "BREW /v1/completions",
        "GET http://elsewhere/v1/nothing",
    ];
    let mut cases: Vec<Case> = lines.map(line).into();
    cases.push(line(&format!("GET /{}", "a".repeat(100_000))));
    let head = |headers: &str, body: &str| {
        format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n{body}"
        )
    };
    let many = (0..500).map(|n| format!("x-{n}: 1\r\n"));
    let long = format!("x-long: {}\r\n", "a".repeat(2 << 20));
    for (name, bytes) in [
        ("no HTTP", "GARBAGE\r\n\r\n".to_owned()),
        (
            "a TLS hello",
            "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\r\n\r\n".to_owned(),
        ),
        ("another version", "GET / HTTP/9.9\r\n\r\n".to_owned()),
        ("no version", "GET /\r\n\r\n".to_owned()),
        ("a length below zero", head("content-length: -1\r\n", "")),
        ("a length that is none", head("content-length: x\r\n", "")),
        (
            "a length of all numbers",
            head("content-length: 99999999999999999999999\r\n", "{}"),
        ),
        (
            "two lengths",
            head("content-length: 2\r\ncontent-length: 3\r\n", "{}x"),
        ),
        (
            "more promised than sent",
            head("content-length: 1000\r\n", "{\"model\""),
        ),
        (
            "less promised than sent",
            head("content-length: 3\r\n", "{\"model\": \"tiny\"}"),
        ),
        ("no body", head("", "")),
        (
            "a chunk without a size",
            head("transfer-encoding: chunked\r\n", "x\r\n{}\r\n0\r\n\r\n"),
        ),
        (
            "a chunk of all numbers",
            head("transfer-encoding: chunked\r\n", "fffffffffffffffff\r\n{}"),
        ),
        (
            "a chunk that is cut",
            head("transfer-encoding: chunked\r\n", "ff\r\n{}"),
        ),
        (
            "an unknown encoding",
            head("transfer-encoding: rot13\r\n", "{}"),
        ),
        ("a header without a colon", head("nothing\r\n", "{}")),
        ("a header with a zero", head("x: a\0b\r\n", "{}")),
        (
            "a header with a space in its name",
            head("x y: a\r\n", "{}"),
        ),
        (
            "five hundred headers",
            head(&many.collect::<String>(), "{}"),
        ),
        ("a header of megabytes", head(&long, "{}")),
    ] {
        cases.push(raw(name, bytes));
    }
    let large = vec![b' '; (8 << 20) + 1];
    cases.push(raw(
        "a body above the limit",
        request(COMPLETIONS, "", &large),
    ));
    cases
}

/// Bodies of megabytes whose values, read, each take many times what they are sent in.
fn dense() -> Vec<Case> {
    let kinds = [("token ids", "1,"), ("objects", r#"{"":0},"#)];
    let cases = kinds.map(|(name, value)| {
        let values = value.repeat((8 << 20) / value.len() - 8);
        let dense = format!(r#"{{"model":"tiny","prompt":[{values}1]}}"#);
        raw(
            &format!("a body of nothing but {name}"),
            request(COMPLETIONS, "", dense.as_bytes()),
        )
    });
    cases.into()
}

/// Every case, each with an answer of its own.
fn all() -> Vec<Case> {
    let usual = [bodies(), values(), inputs(), protocol(), dense()];
    let named = [schemas::formats(), schemas::tools(), schemas::names()];
    usual.into_iter().chain(named).flatten().collect()
}

/// Sends a case and no more; everything that comes back. Where nothing comes for a second, no more is sent.
async fn send(address: SocketAddr, case: &Case) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The engine may have heard enough before everything was sent.
    let _ = stream.write_all(&case.bytes).await;
    let mut answer = vec![];
    let mut silent_seconds = 0;
    loop {
        let read = stream.read_buf(&mut answer);
        match tokio::time::timeout(Duration::from_secs(1), read).await {
            Ok(Ok(0) | Err(_)) => return answer,
            Ok(Ok(_)) => {}
            Err(_) => {
                silent_seconds += 1;
                let _ = stream.shutdown().await;
            }
        }
        assert!(silent_seconds < 10, "{}: it stays open", case.name);
    }
}

fn check(case: &Case, answer: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    if answer.is_empty() && case.may_close {
        return;
    }
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    assert!(
        status.is_some_and(|status| status.starts_with('4')),
        "{}: {text}",
        case.name
    );
    if case.may_close {
        return;
    }
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let message = body["error"]["message"].as_str().unwrap_or_default();
    assert!(!message.is_empty(), "{}: {body}", case.name);
    assert!(
        message.len() < 4096,
        "{}: {} bytes",
        case.name,
        message.len()
    );
    // What was sent is not sent back in the name of what is wrong, either.
    assert!(text.len() < 8192, "{}: {} bytes", case.name, text.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_are_refused_and_leave_nothing_behind() {
    let files = Files::new();
    let server = files.start().await;
    let good = json!({"model": BASE, "prompt": "hello", "max_tokens": 6, "temperature": 0});
    let before = server.complete(good.clone()).await;
    assert_eq!(before.status, 200, "{}", before.text);
    let cases = all();
    assert!(cases.len() >= 400, "{} cases", cases.len());
    for case in &cases {
        check(case, &send(server.http, case).await);
    }
    let after = server.complete(good).await;
    assert_eq!(after.json()["choices"], before.json()["choices"]);
    for gauge in ["running_requests", "waiting_requests", "kv_blocks_used"] {
        server
            .wait_for_metric(&format!("graftwork_engine_{gauge} "), 0.0)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_to_a_router_and_its_engine_end_neither_and_stay_within_memory() {
    const BOUND: usize = 256 << 20;
    let files = Files::new();
    files.write_config();
    let mut engine = Process::engine(&files).await;
    let mut router = Process::router(&files).await;
    push(&mut router.control().await, &[], &[engine.http], 1).await;
    let good = post(
        COMPLETIONS,
        json!({"model": BASE, "prompt": "hello", "max_tokens": 6, "temperature": 0})
            .to_string()
            .as_bytes(),
    );
    let answer = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        body["choices"].clone()
    };
    let before = answer(send(router.http, &good).await);
    let begun = [engine.peak_bytes(), router.peak_bytes()];
    let cases = all();
    for case in &cases {
        // Whoever has lost the connection without an answer may have met a panic.
        check(case, &send(engine.http, case).await);
        // A router has a page there, and names the version itself.
        if case.name != "GET /" && !case.name.starts_with("x-graftwork-adapter") {
            check(case, &send(router.http, case).await);
        }
        engine.assert_unharmed();
        router.assert_unharmed();
    }
    assert_eq!(answer(send(router.http, &good).await), before);
    for (process, begun) in [&engine, &router].into_iter().zip(begun) {
        let grown = process.peak_bytes() - begun;
        assert!(grown < BOUND, "{grown} bytes more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_send_nothing_more_take_no_place_from_others() {
    let files = Files::new();
    let server = files.start().await;
    // More than there are places: 8 that run and 64 that wait.
    let mut silent = vec![];
    for n in 0..100 {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        let begun: &[u8] = if n % 2 == 0 {
            b"POST /v1/completions HTTP/1.1\r\nhost"
        } else {
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
        };
        stream.write_all(begun).await.unwrap();
        silent.push(stream);
    }
    let good = json!({"model": BASE, "prompt": "hello", "max_tokens": 6});
    let answer = server.complete(good).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

/// Reads until the first event of a stream is there.
async fn begun(stream: &mut TcpStream) {
    let mut seen = vec![];
    while !seen.windows(6).any(|bytes| bytes == b"data: ") {
        let read = stream.read_buf(&mut seen).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_that_vanish_in_mid_stream_free_every_place_and_block_at_once() {
    const CLIENTS: u32 = 250;
    const TOKENS: u32 = 3_500;
    let mut files = Files::with_shape(TinyShape {
        positions: 4_096,
        ..TinyShape::default()
    });
    // All of them run at one time, and none would come to its end for a long time.
    files.config.maximum_batch_size = CLIENTS;
    files.config.maximum_context_tokens = 4_096;
    let server = files.start().await;
    let body = json!({
        "model": BASE, "prompt": "hello", "max_tokens": TOKENS, "stream": true, "ignore_eos": true,
    })
    .to_string();
    let bytes = request(COMPLETIONS, "", body.as_bytes());
    for wave in 1..=4 {
        let mut streams = vec![];
        for _ in 0..CLIENTS {
            let mut stream = TcpStream::connect(server.http).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            streams.push(stream);
        }
        for stream in &mut streams {
            begun(stream).await;
        }
        let running = server.metric("graftwork_engine_running_requests ").await;
        assert!((running - f64::from(CLIENTS)).abs() < 1e-9, "{running}");
        drop(streams);
        for gauge in ["running_requests", "waiting_requests", "kv_blocks_used"] {
            server
                .wait_for_metric(&format!("graftwork_engine_{gauge} "), 0.0)
                .await;
        }
        // Nobody's place was freed by the end of an answer.
        server
            .wait_for_metric(
                "graftwork_engine_requests_total{code=\"499\"",
                f64::from(wave * CLIENTS),
            )
            .await;
    }
    let generated = server
        .metric("graftwork_engine_generated_tokens_total")
        .await;
    let asked = f64::from(4 * CLIENTS * TOKENS);
    assert!(generated < asked / 2.0, "{generated} of {asked} tokens");
    let good = json!({"model": BASE, "prompt": "hello", "max_tokens": 6});
    assert_eq!(server.complete(good).await.status, 200);
}
