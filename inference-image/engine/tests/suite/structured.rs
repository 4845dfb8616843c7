//! Answers that are JSON of a schema. With a real tiny model, which knows no JSON: what comes out is
//! JSON because nothing else can.

use crate::harness::{Answer, BASE, Files, Server};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 99},
            "w": {"enum": ["x", "yes"]},
        },
        "required": ["n", "w"], "additionalProperties": false,
    })
}

fn format() -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema()}})
}

/// Longer than white space at every place makes it.
fn request(seed: u64) -> Value {
    json!({
        "model": BASE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 480, "seed": seed,
        "response_format": format(),
    })
}

async fn answered(server: &Server, body: &Value) -> Answer {
    let answer = server.post(CHAT, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer
}

fn assert_fits(text: &str) {
    let json: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(json["n"].as_u64().is_some_and(|n| n < 100), "{text}");
    assert!(
        ["x", "yes"].contains(&json["w"].as_str().unwrap()),
        "{text}"
    );
}

#[tokio::test]
async fn an_answer_is_json_of_its_schema_and_ends_where_it_is_whole() {
    let mut server = Files::new().start().await;
    for seed in 0..4 {
        let answer = answered(&server, &request(seed)).await;
        assert_fits(&answer.content());
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
    }
    let mut greedy = request(0);
    greedy["temperature"] = json!(0);
    assert_fits(&answered(&server, &greedy).await.content());
    server.terminate();
}

#[tokio::test]
async fn the_same_seed_gives_the_same_json_in_any_company_streamed_or_not() {
    let mut server = Files::new().start().await;
    let alone = answered(&server, &request(5)).await.content();
    let mut many = request(5);
    many["n"] = json!(4);
    let free = json!({
        "model": BASE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 60, "seed": 1,
        "ignore_eos": true,
    });
    let (many, _) = tokio::join!(answered(&server, &many), answered(&server, &free));
    let choices = many.json()["choices"].as_array().unwrap().clone();
    for choice in &choices {
        assert_fits(choice["message"]["content"].as_str().unwrap());
    }
    assert_eq!(choices[0]["message"]["content"], alone);
    let mut stream = request(5);
    stream["stream"] = json!(true);
    let mut events = answered(&server, &stream).await.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let text: String = events
        .iter()
        .map(|event| serde_json::from_str::<Value>(event).unwrap())
        .filter_map(|chunk| {
            let content = chunk.pointer("/choices/0/delta/content")?;
            content.as_str().map(str::to_owned)
        })
        .collect();
    assert_eq!(text, alone);
    server.terminate();
}

#[tokio::test]
async fn a_token_limit_cuts_an_object_off_and_says_so() {
    let mut server = Files::new().start().await;
    let mut body = request(1);
    body["response_format"] = json!({"type": "json_object"});
    body["max_tokens"] = json!(1);
    let answer = answered(&server, &body).await;
    assert_eq!(answer.content(), "{");
    assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
    server.terminate();
}

#[tokio::test]
async fn a_bias_does_not_lead_out_of_the_schema() {
    let mut server = Files::new().start().await;
    let text = json!({"prompt": "}", "add_special_tokens": false});
    let cut = server.post("/tokenize", &text).await.json();
    let brace = cut["tokens"][0].as_u64().unwrap();
    let mut body = request(2);
    body["logit_bias"] = json!({(brace.to_string()): 100});
    assert_fits(&answered(&server, &body).await.content());
    server.terminate();
}

#[tokio::test]
async fn a_schema_that_can_not_be_met_or_read_is_refused_with_its_place() {
    let mut server = Files::new().start().await;
    let unmet = json!({"type": "string", "minLength": 3, "maxLength": 2});
    for (schema, part) in [
        (
            json!({"properties": {"a": {"type": "text"}}}),
            "/properties/a/type",
        ),
        (
            json!({"type": "object", "properties": {"a": unmet}, "required": ["a"]}),
            "can't be used",
        ),
    ] {
        let mut body = request(1);
        body["response_format"]["json_schema"]["schema"] = schema;
        let answer = server.post(CHAT, &body).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert!(answer.text.contains(part), "{}", answer.text);
    }
    server.terminate();
}
