//! The OpenAI API over HTTP, with a real tiny model.

use crate::harness::{Answer, BASE, Files, Server};
use futures::future::join_all;
use graftwork_model::fixture::TinyShape;
use graftwork_model::tokenizer::TextTokenizer;
use serde_json::{Value, json};

fn request(model: &str, prompt: &str, tokens: usize) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_names_what_ran_and_counts_its_tokens() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 3, 1)];
    let server = files.start().await;
    let answer = server.complete(request("a", "hello", 6)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.adapter(), "a@v3");
    let json = answer.json();
    assert_eq!(json["object"], "text_completion");
    assert_eq!(json["model"], "a");
    assert_eq!(json["choices"][0]["finish_reason"], "length");
    // BOS and one token per byte.
    assert_eq!(
        json["usage"],
        json!({"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12})
    );
    let base = server.complete(request(BASE, "hello", 6)).await;
    assert_eq!(base.adapter(), "tiny@base");
    assert_ne!(
        base.content(),
        answer.content(),
        "the adapter changes the model"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_listed_with_root_and_parent() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    let server = files.start().await;
    let list = server.get(server.http, "/v1/models").await.json();
    let read: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| {
            (
                card["id"].clone(),
                card["root"].clone(),
                card["parent"].clone(),
            )
        })
        .collect();
    let folder = files.config.adapters[0].folder.clone();
    assert_eq!(
        read,
        [
            (json!(BASE), json!(BASE), Value::Null),
            (json!("a"), json!(folder), json!(BASE)),
        ]
    );
    assert_eq!(
        server.get(server.http, "/v1/models/a").await.json()["id"],
        "a"
    );
    assert_eq!(server.get(server.http, "/v1/models/b").await.status, 404);
}

/// Prompts and models of different lengths, some of them the same.
fn mixed() -> Vec<Value> {
    let models = ["a", "b", BASE, "a", "c", BASE, "b", "a"];
    models
        .iter()
        .enumerate()
        .map(|(index, model)| {
            let mut body = request(model, &"word ".repeat(3 * index + 1), 24);
            body["logprobs"] = json!(3);
            if index % 3 == 2 {
                body["temperature"] = json!(0.9);
                body["seed"] = json!(index);
            }
            body
        })
        .collect()
}

fn choice(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["choices"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_log_probabilities_do_not_depend_on_who_shares_the_batch() {
    let mut files = Files::new();
    files.config.adapters = vec![
        files.adapter("a", 1, 1),
        files.adapter("b", 1, 2),
        files.adapter("c", 1, 3),
    ];
    let server = files.start().await;
    let bodies = mixed();
    let mut alone = vec![];
    for body in &bodies {
        alone.push(choice(&server.complete(body.clone()).await));
    }
    let passes_alone = server.metric("graftwork_engine_forward_passes_total").await;
    for round in 0..3 {
        let together = join_all(bodies.iter().map(|body| server.complete(body.clone()))).await;
        let together: Vec<Value> = together.iter().map(choice).collect();
        // Numbers are printed with as many digits as tell them apart: equal text is equal bits.
        assert_eq!(together, alone, "round {round}");
    }
    let passes = server.metric("graftwork_engine_forward_passes_total").await - passes_alone;
    assert!(
        passes < 2.0 * passes_alone,
        "{passes} passes for three rounds, {passes_alone} for one round alone: they must share"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_lost_its_blocks_answers_as_if_nothing_had_happened() {
    // 32 blocks of 32 KiB: one whole context.
    let shape = TinyShape {
        hidden: 64,
        layers: 4,
        heads: 4,
        kv_heads: 4,
        ..TinyShape::default()
    };
    let mut files = Files::with_shape(shape);
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    let mut options = files.options();
    options.kv_cache_mib = 1;
    let server = files.start_with(options).await;
    let bodies: Vec<_> = (0..4)
        .map(|index| {
            let mut body = request("a", &format!("prompt {index}"), 180);
            body["temperature"] = json!(1);
            body["seed"] = json!(index);
            body["logit_bias"] = json!({});
            body
        })
        .collect();
    let mut alone = vec![];
    for body in &bodies {
        alone.push(choice(&server.complete(body.clone()).await));
    }
    assert!((server.metric("graftwork_engine_preemptions_total").await).abs() < 0.5);
    let together = join_all(bodies.iter().map(|body| server.complete(body.clone()))).await;
    assert!(server.metric("graftwork_engine_preemptions_total").await >= 1.0);
    assert_eq!(together.iter().map(choice).collect::<Vec<_>>(), alone);
    server
        .wait_for_metric("graftwork_engine_kv_blocks_used", 0.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_joins_to_the_whole_answer_and_ends_with_done() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    let server = files.start().await;
    let mut body = request("a", "hello", 40);
    let whole = server.complete(body.clone()).await;
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let streamed = server.complete(body).await;
    assert_eq!(streamed.adapter(), "a@v1");
    assert_eq!(
        streamed.headers["content-type"].to_str().unwrap(),
        "text/event-stream"
    );
    let mut events = streamed.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let chunks: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(text, whole.content());
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage["usage"], whole.json()["usage"]);
    assert_eq!(
        chunks.last().unwrap()["choices"][0]["finish_reason"],
        whole.json()["choices"][0]["finish_reason"]
    );
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_goes_through_the_models_template() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    let server = files.start().await;
    let body = json!({
        "model": "a", "temperature": 0, "max_completion_tokens": 8, "logprobs": true, "top_logprobs": 2,
        "messages": [{"role": "user", "content": "hi"}],
    });
    let answer = server.post("/v1/chat/completions", &body).await;
    let json = answer.json();
    assert_eq!(json["object"], "chat.completion");
    assert_eq!(json["choices"][0]["message"]["role"], "assistant");
    let logprobs = json["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(logprobs.len(), 8);
    assert_eq!(
        logprobs[0]["logprob"], logprobs[0]["top_logprobs"][0]["logprob"],
        "greedy takes the most probable token"
    );
    // What the template makes of it: <|bos|><|user|>hi<|assistant|>
    assert_eq!(json["usage"]["prompt_tokens"], 5);
    let mut streaming = body.clone();
    streaming["stream"] = json!(true);
    let streamed = server.post("/v1/chat/completions", &streaming).await;
    let chunks: Vec<Value> = streamed
        .events()
        .iter()
        .filter(|event| *event != "[DONE]")
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, answer.content());
}

#[tokio::test(flavor = "multi_thread")]
async fn token_ids_are_a_prompt_too() {
    let files = Files::new();
    let server = files.start().await;
    let base = std::path::Path::new(&files.config.base_path);
    let ids = TextTokenizer::load(base)
        .unwrap()
        .encode_prompt("ab")
        .unwrap();
    let body = json!({"model": BASE, "prompt": ids, "max_tokens": 8, "temperature": 0});
    let by_ids = server.complete(body).await;
    let by_text = server.complete(request(BASE, "ab", 8)).await;
    assert_eq!(choice(&by_ids), choice(&by_text));
    assert_eq!(by_ids.json()["usage"]["prompt_tokens"], 3);
    let outside = json!({"model": BASE, "prompt": [260]});
    let refused = server.complete(outside).await;
    assert_eq!(
        (refused.status.as_u16(), refused.error("param")),
        (400, json!("prompt"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_those_that_completions_and_chats_see_and_read_back() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    let server = files.start().await;
    let cut = server
        .post(
            "/tokenize",
            &json!({"model": "a", "prompt": "h\u{e9}", "return_token_strs": true}),
        )
        .await;
    assert_eq!((cut.status.as_u16(), cut.adapter()), (200, "a@v1"));
    let cut = cut.json();
    assert_eq!(
        (&cut["count"], &cut["max_model_len"]),
        (&json!(4), &json!(512))
    );
    assert_eq!(cut["token_strs"][0], "<|bos|>");
    let by_ids = json!({"model": "a", "prompt": cut["tokens"], "max_tokens": 8, "temperature": 0});
    let by_text = request("a", "h\u{e9}", 8);
    assert_eq!(
        choice(&server.complete(by_ids).await),
        choice(&server.complete(by_text).await)
    );
    let plain = json!({"prompt": "h\u{e9}", "add_special_tokens": false});
    let plain = server.post("/tokenize", &plain).await.json()["tokens"].clone();
    assert_eq!(
        plain.as_array().unwrap()[..],
        cut["tokens"].as_array().unwrap()[1..]
    );
    let joined = server.post("/detokenize", &json!({"tokens": plain})).await;
    assert_eq!(joined.json()["prompt"], "h\u{e9}");

    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat = json!({"model": BASE, "messages": messages, "max_tokens": 1});
    let seen =
        server.post("/v1/chat/completions", &chat).await.json()["usage"]["prompt_tokens"].clone();
    let chat = server
        .post("/tokenize", &json!({"model": BASE, "messages": messages}))
        .await;
    assert_eq!(
        (chat.adapter(), &chat.json()["count"]),
        ("tiny@base", &seen)
    );

    for (path, body, status) in [
        ("/tokenize", json!({"model": "nobody", "prompt": "x"}), 404),
        ("/detokenize", json!({"tokens": [260]}), 400),
        ("/detokenize", json!({"model": "a"}), 400),
    ] {
        let refused = server.post(path, &body).await;
        assert_eq!(refused.status, status, "{path} {body}");
        assert!(refused.error("message").is_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_described_path_takes_its_methods() {
    let server = Files::new().start().await;
    let document = server.get(server.http, "/openapi.json").await.json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{model}", BASE);
        for method in methods.as_object().unwrap().keys() {
            let answer = match method.as_str() {
                "get" => server.get(server.http, &path).await,
                _ => server.post(&path, &json!({})).await,
            };
            // An empty request is refused for what it lacks, not for its path.
            let expected = if method == "get" { 200 } else { 400 };
            assert_eq!(answer.status, expected, "{method} {path}: {}", answer.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_repeats_an_answer_and_another_one_does_not() {
    let server = Files::new().start().await;
    let mut body = request(BASE, "x", 32);
    body["temperature"] = json!(1.0);
    body["seed"] = json!(5);
    let first = server.complete(body.clone()).await.content();
    assert_eq!(server.complete(body.clone()).await.content(), first);
    body["seed"] = json!(6);
    assert_ne!(server.complete(body).await.content(), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_text_ends_the_answer_before_itself() {
    let server = Files::new().start().await;
    let whole = server.complete(request(BASE, "x", 40)).await.content();
    let stop: String = whole.chars().skip(5).take(2).collect();
    let mut body = request(BASE, "x", 40);
    body["stop"] = json!([stop]);
    let stopped = server.complete(body).await;
    assert_eq!(stopped.json()["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped.content(), whole[..whole.find(&stop).unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_served_is_said_in_openais_shape() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    let server = files.start().await;
    let unknown = server.complete(request("nobody", "x", 1)).await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.error("code"), "model_not_found");
    assert_eq!(unknown.adapter(), "", "nothing ran");

    let mut body = request("a", "x", 1);
    body["best_of"] = json!(3);
    let unsupported = server.complete(body).await;
    assert_eq!(unsupported.status, 400);
    assert_eq!(unsupported.error("param"), "best_of");
    assert_eq!(unsupported.error("type"), "invalid_request_error");

    let long = server.complete(request("a", &"x".repeat(500), 20)).await;
    assert_eq!(long.status, 400);
    assert_eq!(long.error("code"), "context_length_exceeded");
    let message = long.error("message").as_str().unwrap().to_owned();
    assert!(
        message.contains("512") && message.contains("521"),
        "{message}"
    );
    assert_eq!(long.error("param"), "max_tokens", "a shorter answer fits");
    let longer = server.complete(request("a", &"x".repeat(600), 1)).await;
    assert_eq!(longer.error("param"), "prompt", "no answer does");
    let messages = json!([{"role": "user", "content": "x".repeat(600)}]);
    let chat = json!({"model": "a", "messages": messages});
    let longer = server.post("/v1/chat/completions", &chat).await;
    assert_eq!(longer.error("code"), "context_length_exceeded");
    assert_eq!(longer.error("param"), "messages");

    let route = server.post("/v1/embeddings", &json!({})).await;
    assert_eq!(route.status, 404);
    assert!(
        route
            .error("message")
            .as_str()
            .unwrap()
            .contains("/v1/embeddings")
    );
    assert_eq!(server.get(server.http, "/v1/completions").await.status, 405);
    assert_eq!(
        server
            .metric("graftwork_engine_requests_total{code=\"404\"")
            .await,
        1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_routers_header_decides_before_the_model_does() {
    let mut files = Files::new();
    let mut older = files.adapter("a", 1, 1);
    older.is_default = false;
    files.config.adapters = vec![older, files.adapter("a", 2, 2)];
    let server = files.start().await;
    let ask = |header: &'static str| {
        let server = &server;
        async move {
            let headers = [("x-graftwork-adapter", header)];
            server
                .post_with("/v1/completions", &request("a", "x", 8), &headers)
                .await
        }
    };
    let default = server.complete(request("a", "x", 8)).await;
    assert_eq!(default.adapter(), "a@v2");
    let older = ask("a@v1").await;
    assert_eq!(older.adapter(), "a@v1");
    assert_ne!(older.content(), default.content());
    assert_eq!(ask("tiny@base").await.adapter(), "tiny@base");
    for missing in ["a@v9", "b@v1", "other@base"] {
        let answer = ask(missing).await;
        assert_eq!(answer.status, 404, "{missing}");
        assert_eq!(answer.error("code"), "version_not_here", "{missing}");
    }
    assert_eq!(ask("nonsense").await.status, 400);
}

async fn long_stream(server: &Server) -> axum::http::Response<hyper::body::Incoming> {
    let mut body = request(BASE, "x", 500);
    body["stream"] = json!(true);
    body["temperature"] = json!(0);
    let response = server.open("/v1/completions", &body, &[]).await;
    assert_eq!(response.status(), 200);
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_place_is_told_when_to_come_back_and_a_client_that_leaves_makes_one() {
    let mut files = Files::with_shape(TinyShape {
        hidden: 128,
        intermediate: 512,
        layers: 6,
        ..TinyShape::default()
    });
    files.config.maximum_batch_size = 1;
    let mut options = files.options();
    options.maximum_waiting = 0;
    let server = files.start_with(options).await;
    let stream = long_stream(&server).await;
    let refused = server.complete(request(BASE, "x", 1)).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.headers["retry-after"], "5", "nothing ended yet");
    assert_eq!(refused.error("code"), "rate_limit_exceeded");
    drop(stream);
    server
        .wait_for_metric("graftwork_engine_running_requests", 0.0)
        .await;
    assert_eq!(server.complete(request(BASE, "x", 1)).await.status, 200);
    let left = "graftwork_engine_requests_total{code=\"499\"";
    assert_eq!(server.metric(left).await, 1.0, "it did not run to its end");
    server
        .wait_for_metric("graftwork_engine_running_requests", 0.0)
        .await;
    let stream = long_stream(&server).await;
    let refused = server.complete(request(BASE, "x", 1)).await;
    let seconds: u32 = refused.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    let said = format!("try again in {seconds} s");
    assert!(refused.text.contains(&said), "{}", refused.text);
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_its_whole_answer_frees_its_place_too() {
    let files = Files::with_shape(TinyShape {
        hidden: 128,
        intermediate: 512,
        layers: 6,
        ..TinyShape::default()
    });
    let server = files.start().await;
    let body = request(BASE, "x", 500);
    tokio::select! {
        answer = server.complete(body) => panic!("it came to its end: {}", answer.text),
        () = server.wait_for_metric("graftwork_engine_running_requests ", 1.0) => {}
    }
    server
        .wait_for_metric("graftwork_engine_requests_total{code=\"499\"", 1.0)
        .await;
    server
        .wait_for_metric("graftwork_engine_kv_blocks_used", 0.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_requests_tokens_and_times() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    let server = files.start().await;
    server.complete(request("a", "abc", 5)).await;
    server
        .wait_for_metric("graftwork_engine_resident_adapters", 1.0)
        .await;
    let text = server.get(server.metrics, "/metrics").await.text;
    for line in [
        "graftwork_engine_requests_total{code=\"200\",model=\"a\",version=\"v1\"} 1",
        "graftwork_engine_prompt_tokens_total{model=\"a\",version=\"v1\"} 4",
        "graftwork_engine_generated_tokens_total{model=\"a\",version=\"v1\"} 5",
        "graftwork_engine_time_to_first_token_seconds_count 1",
        "graftwork_engine_time_per_output_token_seconds_count 1",
        "graftwork_engine_resident_adapters 1",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    assert_eq!(server.get(server.metrics, "/healthz").await.status, 200);
    assert_eq!(server.get(server.metrics, "/readyz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn vllms_names_are_there_where_asked_for_and_name_the_adapters_in_use() {
    let mut files = Files::with_shape(TinyShape {
        hidden: 128,
        intermediate: 512,
        layers: 6,
        ..TinyShape::default()
    });
    files.config.adapters = vec![files.adapter("a", 1, 1), files.adapter("b", 1, 2)];
    files.config.maximum_batch_size = 1;
    let mut options = files.options();
    options.vllm_metrics = true;
    let server = files.start_with(options).await;
    let mut long = request("a", "x", 500);
    long["stream"] = json!(true);
    let stream = server.open("/v1/completions", &long, &[]).await;
    let waits = server.complete(request("b", "x", 1));
    let seen = async {
        let info = "vllm:lora_requests_info{max_lora=\"8\",running_lora_adapters=\"a\",waiting_lora_adapters=\"b\"}";
        crate::harness::eventually(
            || async {
                let text = server.get(server.metrics, "/metrics").await.text;
                text.contains(info)
                    && text.contains("vllm:num_requests_waiting{model_name=\"tiny\"} 1")
            },
            "both adapters in vLLM's words",
        )
        .await;
        drop(stream);
    };
    let (answer, ()) = tokio::join!(waits, seen);
    assert_eq!(answer.status, 200);

    let plain = Files::new().start().await;
    let text = plain.get(plain.metrics, "/metrics").await.text;
    assert!(!text.contains("vllm:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_its_adapters_weights_counts_as_waiting() {
    let mut files = Files::with_shape(TinyShape {
        hidden: 128,
        intermediate: 512,
        layers: 6,
        ..TinyShape::default()
    });
    files.config.adapters = vec![files.adapter("a", 1, 1), files.adapter("b", 1, 2)];
    // The one that runs keeps the only place in memory.
    files.config.maximum_loaded_adapters = 1;
    let mut options = files.options();
    options.vllm_metrics = true;
    let server = files.start_with(options).await;
    let mut long = request("a", "x", 500);
    long["stream"] = json!(true);
    let stream = server.open("/v1/completions", &long, &[]).await;
    let waits = server.complete(request("b", "x", 1));
    let seen = async {
        crate::harness::eventually(
            || async {
                let text = server.get(server.metrics, "/metrics").await.text;
                text.contains("vllm:num_requests_waiting{model_name=\"tiny\"} 1")
                    && text.contains("waiting_lora_adapters=\"b\"")
                    && text.contains("graftwork_engine_waiting_requests 0")
            },
            "a request that is in no queue yet",
        )
        .await;
        drop(stream);
    };
    let (answer, ()) = tokio::join!(waits, seen);
    assert_eq!(answer.status, 200);
    server
        .wait_for_metric("graftwork_engine_preparing_requests ", 0.0)
        .await;
    let text = server.get(server.metrics, "/metrics").await.text;
    assert!(text.contains("vllm:time_to_first_token_seconds_count{model_name=\"tiny\"} "));
}
