//! Tools: what the model is told of them, what is forced, and what is refused. With a real tiny model, whose
//! answers are noise: calls that it makes by itself are tested where they are parsed.

use std::path::PathBuf;

use crate::harness::{BASE, Files, Server};
use graftwork_model::base::base_digest;
use graftwork_model::fixture::TinyShape;
use graftwork_model::tokenizer::TextTokenizer;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// As Qwen's, shortened.
const TEMPLATE: &str = "{{ bos_token }}{% for tool in tools or [] %}<tool_call>{{ tool | tojson }}{% endfor %}\
    {% for m in messages %}<{{ m.role }}>{{ m.content }}\
    {% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}\
    {% endfor %}";

async fn started(template: Option<&str>) -> Server {
    let mut files = files();
    if let Some(template) = template {
        set_template(&mut files, template);
    }
    files.start().await
}

fn files() -> Files {
    // Room for tools in a prompt, and for white space wherever JSON may have some.
    let mut files = Files::with_shape(TinyShape {
        positions: 1536,
        ..TinyShape::default()
    });
    files.config.maximum_context_tokens = 1536;
    files
}

fn set_template(files: &mut Files, template: &str) {
    let base = PathBuf::from(&files.config.base_path);
    std::fs::write(base.join("chat_template.jinja"), template).unwrap();
    files.config.base_digest = base_digest(&base).unwrap().parse().unwrap();
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

/// A request whose answer has to be a call: of `count` with a number below 100, or of `stop` without arguments.
fn forced(choice: &Value, seed: u64) -> Value {
    json!({
        "model": BASE, "messages": [{"role": "user", "content": "hi"}], "seed": seed, "tool_choice": choice,
        "tools": [
            {"type": "function", "function": {"name": "count", "parameters": {
                "properties": {"n": {"$ref": "#/$defs/small"}}, "required": ["n"], "additionalProperties": false,
                "$defs": {"small": {"type": "integer", "minimum": 0, "maximum": 99}},
            }}},
            {"type": "function", "function": {"name": "stop"}},
        ],
    })
}

/// The name of what was called, with arguments that keep to the tool's schema.
fn called(call: &Value) -> String {
    let function = &call["function"];
    let arguments = function["arguments"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    let name = function["name"].as_str().unwrap();
    match name {
        "count" => assert!(arguments["n"].as_u64().is_some_and(|n| n < 100), "{call}"),
        "stop" => assert_eq!(arguments, json!({}), "{call}"),
        _ => panic!("{call}"),
    }
    name.to_owned()
}

#[tokio::test]
async fn a_forced_answer_is_one_call_that_keeps_to_its_schema_in_every_format() {
    for mention in [
        "<tool_call> arguments",
        "[TOOL_CALLS]",
        "[TOOL_CALLS][ARGS]",
        "<|start_header_id|> ipython",
    ] {
        let template = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}";
        let mut server = started(Some(&format!("{template}{{# {mention} #}}"))).await;
        let named = json!({"type": "function", "function": {"name": "stop"}});
        for (choice, seed) in [
            (json!("required"), 1),
            (json!("required"), 2),
            (named.clone(), 1),
        ] {
            let answer = server.post(CHAT, &forced(&choice, seed)).await;
            assert_eq!(answer.status, 200, "{mention}: {}", answer.text);
            let answered = answer.json()["choices"][0].clone();
            assert_eq!(answered["finish_reason"], "tool_calls", "{mention}");
            assert_eq!(answered["message"]["content"], Value::Null, "{mention}");
            let calls = answered["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), 1, "{mention}");
            let name = called(&calls[0]);
            assert!(choice != named || name == "stop", "{mention}");
        }
        server.terminate();
    }
}

/// A choice of the tool `stop` alone.
fn allowed(mode: &str) -> Value {
    let stop = json!({"type": "function", "function": {"name": "stop"}});
    json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [stop]}})
}

#[tokio::test]
async fn allowed_tools_leave_the_prompt_as_it_is_and_a_forced_call_is_one_of_them_in_every_format()
{
    for mention in [
        "<tool_call> arguments",
        "[TOOL_CALLS]",
        "[TOOL_CALLS][ARGS]",
        "<|start_header_id|> ipython",
    ] {
        let template = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}";
        let mut server = started(Some(&format!("{template}{{# {mention} #}}"))).await;
        let mut free = forced(&json!("auto"), 1);
        free["max_tokens"] = json!(1);
        let free = server.post(CHAT, &free).await.json();
        for seed in [1, 2] {
            let answer = server.post(CHAT, &forced(&allowed("required"), seed)).await;
            assert_eq!(answer.status, 200, "{mention}: {}", answer.text);
            let answer = answer.json();
            let calls = &answer["choices"][0]["message"]["tool_calls"];
            assert_eq!(called(&calls[0]), "stop", "{mention}");
            assert_eq!(
                answer["usage"]["prompt_tokens"], free["usage"]["prompt_tokens"],
                "{mention}"
            );
        }
        let mut narrowed = forced(&allowed("auto"), 1);
        narrowed["max_tokens"] = json!(1);
        let narrowed = server.post(CHAT, &narrowed).await.json();
        assert_eq!(narrowed["usage"], free["usage"], "{mention}");
        server.terminate();
    }
}

#[tokio::test]
async fn a_call_that_the_model_opens_by_itself_goes_on_as_one_of_the_allowed_tools() {
    let mut files = files();
    // A token of its own opens a call, as in Qwen's vocabulary.
    let base = PathBuf::from(&files.config.base_path);
    let tokenizer = base.join("tokenizer.json");
    let renamed = std::fs::read_to_string(&tokenizer).unwrap();
    let renamed = renamed.replace("<|user|>", "<tool_call>");
    std::fs::write(&tokenizer, renamed).unwrap();
    set_template(
        &mut files,
        &format!("{TEMPLATE}{{# arguments </tool_call> #}}"),
    );
    let mark = TextTokenizer::load(&base).unwrap();
    let mark = mark.token_to_id("<tool_call>").unwrap();
    let mut server = files.start().await;
    // The model opens calls wherever it may.
    let mut body = forced(&allowed("auto"), 1);
    body["logit_bias"] = json!({});
    body["logit_bias"][mark.to_string()] = json!(100);
    body["temperature"] = json!(0);
    body["max_tokens"] = json!(50);
    let answer = server.post(CHAT, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let text = answer.content();
    let call = "<tool_call>\n{\"name\": \"stop\", \"arguments\":";
    assert!(
        text.starts_with(&format!("{call}<tool_call>\n{{")),
        "{text}"
    );
    body["tool_choice"] = json!("auto");
    let text = server.post(CHAT, &body).await.content();
    assert!(text.starts_with("<tool_call><tool_call>"), "{text}");
    server.terminate();
}

#[tokio::test]
async fn a_forced_call_is_the_same_in_a_stream_and_beside_other_choices() {
    let template = format!("{TEMPLATE}{{# arguments </tool_call> #}}");
    let mut server = started(Some(&template)).await;
    let mut body = forced(&json!("required"), 5);
    let alone =
        server.post(CHAT, &body).await.json()["choices"][0]["message"]["tool_calls"][0]["function"]
            .clone();
    body["n"] = json!(3);
    let many = server.post(CHAT, &body).await.json();
    for choice in many["choices"].as_array().unwrap() {
        called(&choice["message"]["tool_calls"][0]);
    }
    let first = &many["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(*first, alone);
    body["n"] = json!(1);
    body["stream"] = json!(true);
    let mut events = server.post(CHAT, &body).await.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let chunks: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let calls: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0"))
        .collect();
    assert_eq!(calls.len(), 1, "{chunks:?}");
    assert_eq!(calls[0]["function"], alone);
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
    server.terminate();
}

#[tokio::test]
async fn a_forced_call_that_its_limit_cuts_off_is_text_and_one_that_no_schema_allows_is_refused() {
    let template = format!("{TEMPLATE}{{# arguments </tool_call> #}}");
    let mut server = started(Some(&template)).await;
    let mut body = forced(&json!("required"), 1);
    body["max_tokens"] = json!(11);
    let answer = server.post(CHAT, &body).await;
    assert_eq!(answer.content(), "<tool_call>");
    assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
    let unmet = json!({"type": "string", "minLength": 3, "maxLength": 2});
    body["tools"][1]["function"]["parameters"] =
        json!({"properties": {"a": unmet}, "required": ["a"]});
    let answer = server.post(CHAT, &body).await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    assert_eq!(answer.error("param"), "tools[1].function.parameters");
    server.terminate();
}
