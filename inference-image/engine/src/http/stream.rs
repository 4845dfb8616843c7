//! Server-sent events: chunks as tokens come, `[DONE]` at the end, and an error event where there is
//! no end.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event as ServerSentEvent, Sse};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use super::Engine;
use super::generate::{Running, undecodable};
use super::record::Record;
use crate::device::Event;
use crate::openai::ApiError;
use crate::openai::answer::{FinishReason, Usage};
use crate::transcript::{TokenText, Transcript};

pub(super) fn response(engine: Arc<Engine>, mut running: Running, mut record: Record) -> Response {
    let chunks = async_stream::stream! {
        let stops = std::mem::take(&mut running.parameters.stop);
        let mut writer = Writer {
            transcript: Transcript::new(&engine.tokenizer, stops),
            tokens: Vec::new(),
            offset: 0,
        };
        if let Some(opening) = running.head.opening() {
            yield event(&opening);
        }
        loop {
            let step = match running.events.next().await {
                Ok(next) => writer.take(&next, &mut record),
                Err(error) => Err(error),
            };
            match step {
                Ok(step) => {
                    if !step.text.is_empty() || !writer.tokens.is_empty() {
                        let chunk =
                            running.head.piece(&step.text, &writer.tokens, writer.offset);
                        writer.sent();
                        yield event(&chunk);
                    }
                    let Some(finish) = step.finish else { continue };
                    yield event(&running.head.closing(finish));
                    if running.parameters.include_usage {
                        let usage = Usage {
                            prompt: running.prompt_tokens,
                            completion: writer.transcript.tokens(),
                        };
                        yield event(&running.head.usage(usage));
                    }
                    record.end(200);
                    yield Ok(ServerSentEvent::default().data("[DONE]"));
                    return;
                }
                Err(error) => {
                    record.end(error.status.as_u16());
                    yield event(&error.to_json());
                    return;
                }
            }
        }
    };
    Sse::new(chunks).into_response()
}

/// What one event adds to the stream.
struct Step {
    text: String,
    finish: Option<FinishReason>,
}

struct Writer<'a> {
    transcript: Transcript<'a>,
    /// Tokens with log-probabilities that no chunk has held yet.
    tokens: Vec<TokenText>,
    /// Characters of the tokens before.
    offset: usize,
}

impl Writer<'_> {
    fn take(&mut self, event: &Event, record: &mut Record) -> Result<Step, ApiError> {
        match event {
            Event::Token(sampled) => {
                record.token();
                let piece = self.transcript.push(sampled).map_err(undecodable)?;
                self.tokens.extend(piece.token);
                Ok(Step {
                    text: piece.text,
                    finish: piece.stopped.then_some(FinishReason::Stop),
                })
            }
            Event::Finished(finish) => {
                let piece = self.transcript.finish().map_err(undecodable)?;
                Ok(Step {
                    text: piece.text,
                    finish: Some(if piece.stopped {
                        FinishReason::Stop
                    } else {
                        *finish
                    }),
                })
            }
            Event::Failed(message) => Err(ApiError::internal(message.clone())),
        }
    }

    fn sent(&mut self) {
        for token in self.tokens.drain(..) {
            self.offset += token.token.chars().count();
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the item type of Sse")]
fn event(chunk: &Value) -> Result<ServerSentEvent, Infallible> {
    Ok(ServerSentEvent::default().data(chunk.to_string()))
}
