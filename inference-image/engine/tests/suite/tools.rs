//! Tools: what the model is told of them, and what is refused. With a real tiny model, whose answers
//! are noise: calls in answers are tested where they are parsed.

use std::path::PathBuf;

use crate::harness::{BASE, Files, Server};
use graftwork_model::base::base_digest;
use serde_json::{Value, json};

/// As Qwen's, shortened.
const TEMPLATE: &str = "{{ bos_token }}{% for tool in tools or [] %}<tool_call>{{ tool | tojson }}{% endfor %}\
    {% for m in messages %}<{{ m.role }}>{{ m.content }}\
    {% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}\
    {% endfor %}";

async fn started(template: Option<&str>) -> Server {
    let mut files = Files::new();
    if let Some(template) = template {
        let base = PathBuf::from(&files.config.base_path);
        std::fs::write(base.join("chat_template.jinja"), template).unwrap();
        files.config.base_digest = base_digest(&base).unwrap().parse().unwrap();
    }
    files.start().await
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])
}

fn conversation() -> Value {
    json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ])
}

async fn prompt(server: &Server, body: Value) -> String {
    let cut = server.post("/tokenize", &body).await;
    assert_eq!(cut.status, 200, "{}", cut.text);
    let tokens = json!({"tokens": cut.json()["tokens"]});
    let joined = server.post("/detokenize", &tokens).await;
    joined.json()["prompt"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_template_prints_tools_their_calls_and_their_answers_for_both_routes() {
    // Mentions what a call looks like, so that the format is known.
    let template = format!("{TEMPLATE}{{# arguments </tool_call> #}}");
    let mut server = started(Some(&template)).await;
    let body = json!({"messages": conversation(), "tools": tools()});
    let text = prompt(&server, body.clone()).await;
    assert_eq!(
        text,
        "<|bos|><tool_call>{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\"}}}\
         <user>hi<assistant>f{\"a\": 1}<tool>7"
    );
    let tokens = server.post("/tokenize", &body).await.json()["count"].clone();
    let mut chat = body;
    chat["model"] = json!(BASE);
    chat["max_tokens"] = json!(2);
    let answer = server.post("/v1/chat/completions", &chat).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["usage"]["prompt_tokens"], tokens);
    chat["tool_choice"] = json!("none");
    let hidden = server.post("/v1/chat/completions", &chat).await.json();
    assert!(hidden["usage"]["prompt_tokens"].as_u64() < tokens.as_u64());
    server.terminate();
}

#[tokio::test]
async fn a_stream_with_tools_has_the_text_of_the_whole_answer() {
    let template = format!("{TEMPLATE}{{# arguments </tool_call> #}}");
    let mut server = started(Some(&template)).await;
    let mut body = json!({
        "model": BASE, "messages": conversation(), "tools": tools(), "max_tokens": 40, "seed": 3,
        "ignore_eos": true,
    });
    let whole = server.post("/v1/chat/completions", &body).await;
    body["stream"] = json!(true);
    let stream = server.post("/v1/chat/completions", &body).await;
    let mut events = stream.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", stream.text);
    let text: String = events
        .iter()
        .map(|event| serde_json::from_str::<Value>(event).unwrap())
        .filter_map(|chunk| {
            let content = chunk.pointer("/choices/0/delta/content")?;
            content.as_str().map(str::to_owned)
        })
        .collect();
    assert_eq!(text, whole.content());
    server.terminate();
}

#[tokio::test]
async fn a_model_that_knows_no_tools_refuses_them_by_name() {
    let mut server = started(None).await;
    let hi = json!([{"role": "user", "content": "hi"}]);
    for (path, messages, tools, param) in [
        ("/v1/chat/completions", hi.clone(), tools(), "tools"),
        ("/tokenize", hi, tools(), "tools"),
        (
            "/v1/chat/completions",
            conversation(),
            json!([]),
            "messages[1]",
        ),
    ] {
        let body = json!({"model": BASE, "messages": messages, "tools": tools});
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert_eq!(answer.error("param"), param);
        assert_eq!(answer.error("code"), "unsupported_parameter");
        let message = answer.error("message");
        assert!(
            message
                .as_str()
                .unwrap()
                .contains("Llama 3, Mistral, Hermes")
        );
    }
    server.terminate();
}
