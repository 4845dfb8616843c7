//! What a request may ask for: choices, batches, penalties, biases, scored prompts. With a real tiny model.

use std::path::Path;

use crate::harness::{Answer, BASE, Files, Server};
use graftwork_model::tokenizer::TextTokenizer;
use serde_json::{Value, json};

/// A sampled request, the same each time, whose answers are all of the same length.
fn request(prompt: Value, tokens: usize) -> Value {
    json!({
        "model": BASE, "prompt": prompt, "max_tokens": tokens, "temperature": 1, "seed": 5,
        "ignore_eos": true,
    })
}

fn with(mut body: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

async fn started() -> (Server, TextTokenizer) {
    let files = Files::new();
    let tokenizer = TextTokenizer::load(Path::new(&files.config.base_path)).unwrap();
    (files.start().await, tokenizer)
}

/// Texts of a whole answer, in the order of their indices.
fn texts(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let json = answer.json();
    let choices = json["choices"].as_array().unwrap();
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
    }
    choices.iter().map(text_of).collect()
}

fn text_of(choice: &Value) -> String {
    let text = choice.get("text").or(choice.pointer("/message/content"));
    text.and_then(Value::as_str).unwrap().to_owned()
}

/// Texts of a stream, joined by index.
fn streamed(answer: &Answer, count: usize) -> Vec<String> {
    let mut texts = vec![String::new(); count];
    let mut events = answer.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", answer.text);
    for event in events {
        let chunk: Value = serde_json::from_str(&event).unwrap();
        for choice in chunk["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            texts[index] += choice["text"].as_str().unwrap();
        }
    }
    texts
}

/// The id of a letter.
fn id(tokenizer: &TextTokenizer, letter: &str) -> String {
    tokenizer.encode(letter, false).unwrap()[0].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_differ_repeat_with_their_seed_and_do_not_depend_on_how_many_there_are() {
    let (server, _) = started().await;
    let three = with(request(json!("hello"), 24), json!({"n": 3}));
    let answer = server.complete(three.clone()).await;
    let first = texts(&answer);
    assert_eq!(first.len(), 3);
    assert!(first[0] != first[1] && first[1] != first[2] && first[0] != first[2]);
    assert_eq!(texts(&server.complete(three.clone()).await), first);
    let one = server.complete(request(json!("hello"), 24)).await;
    assert_eq!(texts(&one), first[..1]);
    let usage = &answer.json()["usage"];
    assert_eq!(usage["prompt_tokens"], 6, "the prompt counts once");
    assert_eq!(usage["completion_tokens"], 72);
    let stream = server.complete(with(three, json!({"stream": true}))).await;
    assert_eq!(streamed(&stream, 3), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_has_choices_too() {
    let (server, _) = started().await;
    let body = json!({
        "model": BASE, "n": 2, "seed": 3, "max_tokens": 16,
        "messages": [{"role": "user", "content": "hi"}],
    });
    let answer = server.post("/v1/chat/completions", &body).await;
    let texts = texts(&answer);
    assert_eq!(texts.len(), 2);
    assert_ne!(texts[0], texts[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_of_one_request_get_what_each_gets_alone() {
    let (server, tokenizer) = started().await;
    let ids = tokenizer.encode_prompt("some tokens").unwrap();
    let prompts = [
        json!("a"),
        json!("a somewhat longer prompt"),
        json!(ids),
        json!("a"),
    ];
    let mut alone = vec![];
    for prompt in &prompts {
        let body = with(request(prompt.clone(), 12), json!({"n": 2}));
        alone.extend(texts(&server.complete(body).await));
    }
    let together = with(request(json!(prompts), 12), json!({"n": 2}));
    let answer = server.complete(together).await;
    assert_eq!(texts(&answer), alone);
    let expected: usize = [2, 25, ids.len(), 2].iter().sum();
    assert_eq!(answer.json()["usage"]["prompt_tokens"], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bias_bans_and_forces_and_penalties_wear_it_off() {
    let (server, tokenizer) = started().await;
    let (x, y) = (id(&tokenizer, "x"), id(&tokenizer, "y"));
    let greedy = |fields: Value| {
        with(
            with(request(json!("a"), 24), json!({"temperature": 0})),
            fields,
        )
    };
    let forced = greedy(json!({"logit_bias": {x.as_str(): 100}}));
    assert_eq!(texts(&server.complete(forced).await), ["x".repeat(24)]);
    let both = json!({x.as_str(): 50, y.as_str(): 50});
    let alternating = greedy(json!({"logit_bias": both, "frequency_penalty": 2}));
    let text = texts(&server.complete(alternating).await).remove(0);
    for letter in ["x", "y"] {
        let count = text.matches(letter).count();
        assert!(
            (6..=18).contains(&count),
            "{count} times {letter} in {text}"
        );
    }
    assert_eq!(text.len(), 24, "nothing else was drawn");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_leave_one_token_are_greedy_whatever_the_temperature() {
    let (server, _) = started().await;
    let greedy = with(request(json!("abc"), 24), json!({"temperature": 0}));
    let expected = texts(&server.complete(greedy).await);
    for fields in [
        json!({"top_k": 1}),
        json!({"min_p": 1}),
        json!({"top_p": 1e-6}),
    ] {
        let hot = with(request(json!("abc"), 24), json!({"temperature": 2}));
        let answer = server.complete(with(hot, fields.clone())).await;
        assert_eq!(texts(&answer), expected, "{fields}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_text_ends_an_answer_unless_the_request_ignores_it() {
    let (server, tokenizer) = started().await;
    let eos = tokenizer.eos().unwrap().to_string();
    let body = with(request(json!("a"), 5), json!({"logit_bias": {eos: 100}}));
    let ending = with(body.clone(), json!({"ignore_eos": false}));
    let ended = server.complete(ending).await.json();
    assert_eq!(ended["choices"][0]["finish_reason"], "stop");
    assert_eq!(ended["usage"]["completion_tokens"], 0);
    let went_on = server.complete(body).await.json();
    assert_eq!(went_on["choices"][0]["finish_reason"], "length");
    assert_eq!(went_on["usage"]["completion_tokens"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_choice_that_stops_leaves_the_others_alone() {
    let (server, _) = started().await;
    let four = with(request(json!("x"), 48), json!({"n": 4}));
    let whole = texts(&server.complete(four.clone()).await);
    let stop: String = whole[1].chars().skip(4).take(1).collect();
    let stopped = server.complete(with(four, json!({"stop": stop}))).await;
    let expected: Vec<String> = whole
        .iter()
        .map(|text| text.split(&stop).next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(texts(&stopped), expected);
    let places = server.wait_for_metric("graftwork_engine_kv_blocks_used", 0.0);
    places.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echoed_prompt_stands_before_the_answer_also_in_a_stream() {
    let (server, tokenizer) = started().await;
    let ids = tokenizer.encode_prompt("as ids").unwrap();
    let prompts = json!(["as text", ids]);
    let plain = texts(&server.complete(request(prompts.clone(), 8)).await);
    let body = with(request(prompts, 8), json!({"echo": true}));
    let echoed = texts(&server.complete(body.clone()).await);
    assert_eq!(
        echoed,
        [
            format!("as text{}", plain[0]),
            format!("as ids{}", plain[1])
        ]
    );
    for fields in [
        json!({"stream": true}),
        json!({"stream": true, "logprobs": 2}),
    ] {
        let stream = server.complete(with(body.clone(), fields)).await;
        assert_eq!(streamed(&stream, 2), echoed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scored_text_has_the_log_probabilities_with_which_it_was_generated() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    let tokenizer = TextTokenizer::load(Path::new(&files.config.base_path)).unwrap();
    let server = files.start().await;
    // Letters alone, so that the answer's text says its tokens; biases are not in log-probabilities.
    let letters: serde_json::Map<String, Value> = ["a", "b", "c", "d", "e", "f", "g", "h"]
        .iter()
        .map(|letter| (id(&tokenizer, letter), json!(100)))
        .collect();
    // Longer than a pass, so that the prompt is scored in several chunks.
    let prompt = tokenizer.encode_prompt(&"word ".repeat(40)).unwrap();
    let body = with(
        request(json!(prompt), 20),
        json!({"model": "a", "logit_bias": letters, "logprobs": 3}),
    );
    let generated = server.complete(body).await;
    let text = texts(&generated).remove(0);
    assert_eq!(text.len(), 20, "{text}");
    let generated = generated.json()["choices"][0]["logprobs"].clone();

    let mut scored_ids = prompt.clone();
    scored_ids.extend(tokenizer.encode(&text, false).unwrap());
    let scored = server
        .complete(json!({
            "model": "a", "prompt": scored_ids, "max_tokens": 0, "echo": true, "logprobs": 3,
        }))
        .await
        .json();
    let logprobs = &scored["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    assert_eq!(list("tokens").len(), scored_ids.len(), "no token more");
    assert_eq!(list("token_logprobs")[0], Value::Null);
    assert_eq!(list("top_logprobs")[0], Value::Null);
    assert!(list("token_logprobs")[1..].iter().all(Value::is_number));
    for name in ["token_logprobs", "top_logprobs", "tokens"] {
        let tail = list(name)[prompt.len()..].to_vec();
        // Numbers are printed with as many digits as tell them apart: equal text is equal bits.
        assert_eq!(json!(tail), generated[name], "{name}");
    }
    assert_eq!(scored["usage"]["completion_tokens"], 0);
    assert_eq!(scored["choices"][0]["finish_reason"], "length");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_fills_the_context_can_be_scored_and_a_longer_one_is_refused() {
    let (server, _) = started().await;
    let score = |tokens: usize| json!({"model": BASE, "prompt": vec![7; tokens], "max_tokens": 0, "echo": true, "logprobs": 0});
    let fits = server.complete(score(512)).await;
    assert_eq!(fits.status, 200, "{}", fits.text);
    let scores = fits.json()["choices"][0]["logprobs"]["token_logprobs"].clone();
    assert_eq!(scores.as_array().unwrap().len(), 512);
    let long = server.complete(score(513)).await;
    assert_eq!(
        (long.status.as_u16(), long.error("code")),
        (400, json!("context_length_exceeded"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn more_answers_than_there_are_places_are_refused_with_the_limit() {
    let (server, _) = started().await;
    // 8 that run and 64 that wait.
    let many = server
        .complete(with(request(json!("x"), 1), json!({"n": 73})))
        .await;
    assert_eq!(
        (many.status.as_u16(), many.error("param")),
        (400, json!("n"))
    );
    let message = many.error("message").as_str().unwrap().to_owned();
    assert!(
        message.contains("73") && message.contains("72"),
        "{message}"
    );
    let prompts = vec!["x"; 37];
    let body = with(request(json!(prompts), 1), json!({"n": 2}));
    let many = server.complete(body).await;
    assert_eq!(many.error("param"), "prompt");
    let all = server
        .complete(with(request(json!("x"), 1), json!({"n": 72})))
        .await;
    assert_eq!(texts(&all).len(), 72);
    server
        .wait_for_metric("graftwork_engine_running_requests", 0.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bias_of_a_token_that_the_model_does_not_have_is_refused() {
    let (server, _) = started().await;
    let body = with(request(json!("x"), 1), json!({"logit_bias": {"260": 1}}));
    let refused = server.complete(body).await;
    assert_eq!(
        (refused.status.as_u16(), refused.error("param")),
        (400, json!("logit_bias"))
    );
    let message = refused.error("message").as_str().unwrap().to_owned();
    assert!(message.contains("260"), "{message}");
}
