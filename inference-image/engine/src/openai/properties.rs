//! Whatever is sent: the readers of requests answer, and say what is wrong.

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::ApiError;
use super::chat::ChatRequest;
use super::completion::CompletionRequest;
use super::parameters::{MAXIMUM_CHOICES, MAXIMUM_STOPS};
use super::tokens::{DetokenizeRequest, TokenizeRequest};

const NAMES: [&str; 26] = [
    "model",
    "prompt",
    "messages",
    "tokens",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "echo",
    "best_of",
    "ignore_eos",
    "repetition_penalty",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
];

/// Any JSON, small; with the words that requests are made of.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3_i64..200).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "user",
            "assistant",
            "system",
            "tool",
            "function",
            "text",
            "none",
            "auto"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let name = prop_oneof![
            Just("role".to_owned()),
            Just("content".to_owned()),
            Just("type".to_owned()),
            Just("include_usage".to_owned()),
            prop::sample::select(vec![
                "tool_calls",
                "tool_call_id",
                "function",
                "arguments",
                "id"
            ])
            .prop_map(str::to_owned),
            "[0-9]{1,3}",
            ".{0,6}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn request() -> impl Strategy<Value = Map<String, Value>> {
    let name = prop_oneof![
        9 => prop::sample::select(NAMES.to_vec()).prop_map(str::to_owned),
        1 => ".{0,10}",
    ];
    prop::collection::vec((name, value()), 0..8).prop_map(|fields| {
        let mut request: Map<String, Value> = fields.into_iter().collect();
        // Or most would end at the first field.
        request.insert("model".to_owned(), Value::from("a"));
        request
    })
}

fn check(error: &ApiError) -> Result<(), TestCaseError> {
    prop_assert!((400..500).contains(&error.status.as_u16()), "{error}");
    prop_assert!(!error.message.is_empty());
    prop_assert!(error.message.len() < 1000, "{error}");
    Ok(())
}

fn read_by_all(body: &[u8]) -> Result<(), TestCaseError> {
    match CompletionRequest::parse(body) {
        Ok(request) => {
            prop_assert!(!request.prompts.is_empty());
            prop_assert!((1..=MAXIMUM_CHOICES as usize).contains(&request.parameters.choices));
            prop_assert!(request.parameters.stop.len() <= MAXIMUM_STOPS);
            prop_assert!(request.parameters.sampling.temperature.is_finite());
        }
        Err(error) => check(&error)?,
    }
    match ChatRequest::parse(body) {
        Ok(request) => prop_assert!(!request.messages.is_empty()),
        Err(error) => check(&error)?,
    }
    if let Err(error) = TokenizeRequest::parse(body) {
        check(&error)?;
    }
    if let Err(error) = DetokenizeRequest::parse(body) {
        check(&error)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_bytes_are_read_or_refused_with_a_reason(body in prop::collection::vec(any::<u8>(), 0..200)) {
        read_by_all(&body)?;
    }

    #[test]
    fn any_text_is_read_or_refused_with_a_reason(body in "[\\[\\]{}:,\"a-z0-9.eE+ \\\\-]{0,120}") {
        read_by_all(body.as_bytes())?;
    }

    #[test]
    fn any_values_of_any_fields_are_read_or_refused_with_a_reason(request in request()) {
        read_by_all(Value::Object(request).to_string().as_bytes())?;
    }
}
