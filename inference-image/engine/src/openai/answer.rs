//! Answers: whole bodies and the chunks of a stream, for both endpoints.

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
}

impl FinishReason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
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

impl AnswerHead {
    /// The body of an answer that is not streamed.
    pub fn whole(
        &self,
        text: &str,
        tokens: &[TokenText],
        finish: FinishReason,
        usage: Usage,
    ) -> Value {
        let logprobs = self.logprobs_json(tokens, 0);
        let choice = match self.endpoint {
            Endpoint::Completion => json!({
                "index": 0,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": finish.as_str(),
            }),
            Endpoint::Chat => json!({
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": logprobs,
                "finish_reason": finish.as_str(),
            }),
        };
        let object = match self.endpoint {
            Endpoint::Completion => "text_completion",
            Endpoint::Chat => "chat.completion",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "usage": usage.to_json(),
        })
    }

    /// The chunk that opens a chat stream; completions have none.
    pub fn opening(&self) -> Option<Value> {
        (self.endpoint == Endpoint::Chat).then(|| {
            self.chunk(&json!([{
                "index": 0,
                "delta": {"role": "assistant", "content": "", "refusal": null},
                "logprobs": null,
                "finish_reason": null,
            }]))
        })
    }

    /// A chunk with text. `offset` is the number of characters of the tokens before.
    pub fn piece(&self, text: &str, tokens: &[TokenText], offset: usize) -> Value {
        let logprobs = self.logprobs_json(tokens, offset);
        self.chunk(&match self.endpoint {
            Endpoint::Completion => json!([{
                "index": 0, "text": text, "logprobs": logprobs, "finish_reason": null,
            }]),
            Endpoint::Chat => json!([{
                "index": 0, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null,
            }]),
        })
    }

    /// The chunk that ends the choice.
    pub fn closing(&self, finish: FinishReason) -> Value {
        self.chunk(&match self.endpoint {
            Endpoint::Completion => json!([{
                "index": 0, "text": "", "logprobs": null, "finish_reason": finish.as_str(),
            }]),
            Endpoint::Chat => json!([{
                "index": 0, "delta": {}, "logprobs": null, "finish_reason": finish.as_str(),
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

    fn logprobs_json(&self, tokens: &[TokenText], mut offset: usize) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        match self.endpoint {
            Endpoint::Completion => {
                let offsets: Vec<usize> = tokens
                    .iter()
                    .map(|token| {
                        let at = offset;
                        offset += token.token.chars().count();
                        at
                    })
                    .collect();
                let top: Vec<Value> = tokens
                    .iter()
                    .map(|token| token.top.iter().cloned().collect())
                    .collect();
                json!({
                    "tokens": tokens.iter().map(|t| &t.token).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
                    "top_logprobs": top,
                    "text_offset": offsets,
                })
            }
            Endpoint::Chat => {
                let content: Vec<Value> = tokens
                    .iter()
                    .map(|token| {
                        let mut entry = chat_logprob(&token.token, token.logprob);
                        if let Some(entry) = entry.as_object_mut() {
                            let top = token.top.iter().map(|(text, p)| chat_logprob(text, *p));
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

fn chat_logprob(token: &str, logprob: f32) -> Value {
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
            logprob: -0.5,
            top: vec![("z".into(), -0.25)],
        }
    }

    #[test]
    fn text_offsets_count_characters_over_chunks() {
        let head = head(Endpoint::Completion);
        let whole = head.whole(
            "\u{e4}b",
            &[token("\u{e4}"), token("b")],
            FinishReason::Length,
            Usage::default(),
        );
        let chunk = head.piece("b", &[token("b")], 1);
        assert_eq!(
            whole.pointer("/choices/0/logprobs/text_offset"),
            Some(&json!([0, 1]))
        );
        assert_eq!(
            chunk.pointer("/choices/0/logprobs/text_offset"),
            Some(&json!([1]))
        );
        assert_eq!(
            chunk.pointer("/choices/0/logprobs/top_logprobs/0/z"),
            Some(&json!(-0.25))
        );
    }

    #[test]
    fn a_cut_character_has_no_bytes() {
        let chunk = head(Endpoint::Chat).piece("", &[token("\u{fffd}"), token("ab")], 0);
        let bytes = |i| chunk.pointer(&format!("/choices/0/logprobs/content/{i}/bytes"));
        assert_eq!(bytes(0), Some(&Value::Null));
        assert_eq!(bytes(1), Some(&json!([97, 98])));
    }

    #[test]
    fn with_usage_every_chunk_names_it_and_the_last_has_it() {
        let head = head(Endpoint::Chat);
        assert_eq!(head.piece("a", &[], 0).get("usage"), Some(&Value::Null));
        let last = head.usage(Usage {
            prompt: 3,
            completion: 2,
        });
        assert_eq!(last.pointer("/usage/total_tokens"), Some(&json!(5)));
        assert_eq!(last.get("choices"), Some(&json!([])));
    }
}
