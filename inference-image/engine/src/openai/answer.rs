//! Answers: whole bodies and the chunks of a stream, for both endpoints.

use graftwork_model::tool_calls::ToolCall;
use serde_json::{Value, json};

use crate::transcript::TokenText;

/// Which endpoint's shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/completions`.
    Completion,
    /// `/v1/chat/completions`.
    Chat,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence token or a stop text.
    Stop,
    /// The token limit.
    Length,
    /// The answer calls tools.
    ToolCalls,
}

impl FinishReason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// Tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// In the prompt.
    pub prompt: usize,
    /// In the answer.
    pub completion: usize,
}

impl Usage {
    fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

/// What every chunk of an answer repeats.
#[derive(Debug, Clone)]
pub struct AnswerHead {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// `cmpl-...` or `chatcmpl-...`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// As the client named it.
    pub model: String,
    /// Whether chunks say `"usage": null`.
    pub include_usage: bool,
    /// Whether log-probabilities were asked for.
    pub logprobs: bool,
}

/// One answer of a body that is not streamed.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The answer, behind its prompt where that is given back.
    pub text: String,
    /// What it calls.
    pub calls: Vec<ToolCall>,
    /// Where log-probabilities are asked for.
    pub tokens: Vec<TokenText>,
    /// Why it ended.
    pub finish: FinishReason,
}

impl AnswerHead {
    /// The body of an answer that is not streamed.
    pub fn whole(&self, choices: &[Choice], usage: Usage) -> Value {
        let choices: Vec<Value> = choices
            .iter()
            .enumerate()
            .map(|(index, choice)| {
                let logprobs = self.logprobs_json(&choice.tokens);
                match self.endpoint {
                    Endpoint::Completion => json!({
                        "index": index,
                        "text": choice.text,
                        "logprobs": logprobs,
                        "finish_reason": choice.finish.as_str(),
                    }),
                    Endpoint::Chat => json!({
                        "index": index,
                        "message": message(choice),
                        "logprobs": logprobs,
                        "finish_reason": choice.finish.as_str(),
                    }),
                }
            })
            .collect();
        let object = match self.endpoint {
            Endpoint::Completion => "text_completion",
            Endpoint::Chat => "chat.completion",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage.to_json(),
        })
    }

    /// The chunk that opens a choice of a chat stream; completions have none.
    pub fn opening(&self, index: usize) -> Option<Value> {
        (self.endpoint == Endpoint::Chat).then(|| {
            self.chunk(&json!([{
                "index": index,
                "delta": {"role": "assistant", "content": "", "refusal": null},
                "logprobs": null,
                "finish_reason": null,
            }]))
        })
    }

    /// A chunk with text.
    pub fn piece(&self, index: usize, text: &str, tokens: &[TokenText]) -> Value {
        let logprobs = self.logprobs_json(tokens);
        self.chunk(&match self.endpoint {
            Endpoint::Completion => json!([{
                "index": index, "text": text, "logprobs": logprobs, "finish_reason": null,
            }]),
            Endpoint::Chat => json!([{
                "index": index, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null,
            }]),
        })
    }

    /// A chunk with calls, each whole; `before` is how many the choice had so far.
    pub fn calls(&self, index: usize, before: usize, calls: &[ToolCall]) -> Value {
        let calls: Vec<Value> = (before..)
            .zip(calls)
            .map(|(position, call)| {
                let mut call = call_json(call);
                if let Some(call) = call.as_object_mut() {
                    call.insert("index".to_owned(), json!(position));
                }
                call
            })
            .collect();
        self.chunk(&json!([{
            "index": index, "delta": {"tool_calls": calls}, "logprobs": null, "finish_reason": null,
        }]))
    }

    /// The chunk that ends a choice.
    pub fn closing(&self, index: usize, finish: FinishReason) -> Value {
        self.chunk(&match self.endpoint {
            Endpoint::Completion => json!([{
                "index": index, "text": "", "logprobs": null, "finish_reason": finish.as_str(),
            }]),
            Endpoint::Chat => json!([{
                "index": index, "delta": {}, "logprobs": null, "finish_reason": finish.as_str(),
            }]),
        })
    }

    /// The chunk with the usage, after the closing one.
    pub fn usage(&self, usage: Usage) -> Value {
        let mut chunk = self.chunk(&json!([]));
        if let Some(object) = chunk.as_object_mut() {
            object.insert("usage".to_owned(), usage.to_json());
        }
        chunk
    }

    fn chunk(&self, choices: &Value) -> Value {
        let object = match self.endpoint {
            Endpoint::Completion => "text_completion",
            Endpoint::Chat => "chat.completion.chunk",
        };
        let mut chunk = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if self.include_usage
            && let Some(chunk) = chunk.as_object_mut()
        {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        chunk
    }

    fn logprobs_json(&self, tokens: &[TokenText]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        match self.endpoint {
            Endpoint::Completion => json!({
                "tokens": tokens.iter().map(|t| &t.token).collect::<Vec<_>>(),
                "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
                "top_logprobs": tokens.iter().map(completion_top).collect::<Vec<_>>(),
                "text_offset": tokens.iter().map(|t| t.offset).collect::<Vec<_>>(),
            }),
            Endpoint::Chat => {
                let content: Vec<Value> = tokens
                    .iter()
                    .map(|token| {
                        let mut entry = chat_logprob(&token.token, token.logprob);
                        if let Some(entry) = entry.as_object_mut() {
                            let top = token
                                .top
                                .iter()
                                .map(|(text, logprob)| chat_logprob(text, Some(*logprob)));
                            entry.insert("top_logprobs".to_owned(), top.collect());
                        }
                        entry
                    })
                    .collect();
                json!({"content": content, "refusal": null})
            }
        }
    }
}

/// What the assistant says; no text where it only calls.
fn message(choice: &Choice) -> Value {
    if choice.calls.is_empty() {
        return json!({"role": "assistant", "content": choice.text, "refusal": null});
    }
    let text = (!choice.text.is_empty()).then_some(&choice.text);
    let calls: Vec<Value> = choice.calls.iter().map(call_json).collect();
    json!({"role": "assistant", "content": text, "refusal": null, "tool_calls": calls})
}

fn call_json(call: &ToolCall) -> Value {
    json!({
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    })
}

/// The most probable tokens and always the chosen one, by text. Tokens of one text (parts of characters)
/// share an entry, which holds the best of them: who compares the chosen token with the greatest entry
/// learns whether it was the most probable one.
fn completion_top(token: &TokenText) -> Value {
    let Some(logprob) = token.logprob else {
        return Value::Null;
    };
    let mut top = serde_json::Map::new();
    let chosen = (&token.token, logprob);
    for (text, logprob) in token.top.iter().map(|(text, p)| (text, *p)).chain([chosen]) {
        top.entry(text.as_str()).or_insert_with(|| json!(logprob));
    }
    Value::Object(top)
}

fn chat_logprob(token: &str, logprob: Option<f32>) -> Value {
    // The bytes of a cut character are not known to a text decoder.
    let bytes = (!token.contains('\u{fffd}')).then(|| token.as_bytes().to_vec());
    json!({"token": token, "logprob": logprob, "bytes": bytes})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(endpoint: Endpoint) -> AnswerHead {
        AnswerHead {
            endpoint,
            id: "x".into(),
            created: 1,
            model: "m".into(),
            include_usage: true,
            logprobs: true,
        }
    }

    fn token(text: &str) -> TokenText {
        TokenText {
            token: text.into(),
            logprob: Some(-0.5),
            top: vec![("z".into(), -0.25)],
            offset: 7,
        }
    }

    fn choice(text: &str) -> Choice {
        Choice {
            text: text.into(),
            calls: vec![],
            tokens: vec![],
            finish: FinishReason::Length,
        }
    }

    fn call(id: &str) -> ToolCall {
        ToolCall {
            id: id.into(),
            name: "f".into(),
            arguments: "{}".into(),
        }
    }

    #[test]
    fn calls_stand_beside_the_text_and_in_a_stream_each_has_its_position() {
        let calling = Choice {
            calls: vec![call("a")],
            finish: FinishReason::ToolCalls,
            ..choice("")
        };
        let whole = head(Endpoint::Chat).whole(&[calling], Usage::default());
        let expected = json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        ]});
        assert_eq!(whole.pointer("/choices/0/message"), Some(&expected));
        assert_eq!(
            whole.pointer("/choices/0/finish_reason"),
            Some(&json!("tool_calls"))
        );
        let chunk = head(Endpoint::Chat).calls(1, 2, &[call("c"), call("d")]);
        assert_eq!(chunk.pointer("/choices/0/index"), Some(&json!(1)));
        let positions: Vec<_> = (0..2)
            .map(|i| chunk.pointer(&format!("/choices/0/delta/tool_calls/{i}/index")))
            .collect();
        assert_eq!(positions, [Some(&json!(2)), Some(&json!(3))]);
    }

    #[test]
    fn every_choice_has_its_index_in_a_body_and_in_a_stream() {
        for endpoint in [Endpoint::Completion, Endpoint::Chat] {
            let head = head(endpoint);
            let whole = head.whole(&[choice("a"), choice("b")], Usage::default());
            assert_eq!(whole.pointer("/choices/1/index"), Some(&json!(1)));
            let text = whole
                .pointer("/choices/1/text")
                .or(whole.pointer("/choices/1/message/content"));
            assert_eq!(text, Some(&json!("b")));
            for chunk in [head.piece(2, "x", &[]), head.closing(2, FinishReason::Stop)] {
                assert_eq!(chunk.pointer("/choices/0/index"), Some(&json!(2)));
            }
        }
        assert_eq!(head(Endpoint::Completion).opening(0), None);
        let opening = head(Endpoint::Chat).opening(3).unwrap();
        assert_eq!(opening.pointer("/choices/0/index"), Some(&json!(3)));
    }

    #[test]
    fn a_completions_log_probabilities_hold_the_chosen_token_and_name_each_text_once() {
        let mut cut = token("\u{fffd}");
        cut.top = vec![("\u{fffd}".into(), -0.25), ("\u{fffd}".into(), -2.0)];
        let first = TokenText {
            logprob: None,
            top: vec![],
            ..token("<s>")
        };
        let tokens = [first, token("a"), cut];
        let chunk = head(Endpoint::Completion).piece(0, "", &tokens);
        assert_eq!(
            chunk.pointer("/choices/0/logprobs"),
            Some(&json!({
                "tokens": ["<s>", "a", "\u{fffd}"],
                "token_logprobs": [null, -0.5, -0.5],
                "top_logprobs": [null, {"z": -0.25, "a": -0.5}, {"\u{fffd}": -0.25}],
                "text_offset": [7, 7, 7],
            }))
        );
    }

    #[test]
    fn a_cut_character_has_no_bytes() {
        let chunk = head(Endpoint::Chat).piece(0, "", &[token("\u{fffd}"), token("ab")]);
        let bytes = |i| chunk.pointer(&format!("/choices/0/logprobs/content/{i}/bytes"));
        assert_eq!(bytes(0), Some(&Value::Null));
        assert_eq!(bytes(1), Some(&json!([97, 98])));
    }

    #[test]
    fn with_usage_every_chunk_names_it_and_the_last_has_it() {
        let head = head(Endpoint::Chat);
        assert_eq!(head.piece(0, "a", &[]).get("usage"), Some(&Value::Null));
        let last = head.usage(Usage {
            prompt: 3,
            completion: 2,
        });
        assert_eq!(last.pointer("/usage/total_tokens"), Some(&json!(5)));
        assert_eq!(last.get("choices"), Some(&json!([])));
    }
}
