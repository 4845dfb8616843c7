//! Server-sent events: chunks as tokens come, `[DONE]` at the end, and an error event where there is
//! no end.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event as ServerSentEvent, Sse};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use super::Engine;
use super::choices::{Choices, Step};
use super::generate::Running;
use super::record::Record;
use crate::openai::answer::{AnswerHead, Usage};

pub(super) fn response(engine: Arc<Engine>, running: Running, mut record: Record) -> Response {
    let Running {
        head,
        shape,
        mut events,
        prompt_tokens,
        ..
    } = running;
    let chunks = async_stream::stream! {
        let mut choices = Choices::new(&engine.tokenizer, shape);
        for index in 0..choices.count() {
            if let Some(opening) = head.opening(index) {
                yield event(&opening);
            }
            match choices.open(index) {
                Ok(step) => for chunk in chunks_of(&head, index, &step) {
                    yield event(&chunk);
                },
                Err(error) => {
                    record.end(error.status.as_u16());
                    yield event(&error.to_json());
                    return;
                }
            }
        }
        loop {
            let step = match events.next().await {
                Ok(None) => break,
                Ok(Some((index, next))) => {
                    choices.take(index, &next, &mut record).map(|step| (index, step))
                }
                Err(error) => Err(error),
            };
            match step {
                Ok((index, step)) => {
                    for chunk in chunks_of(&head, index, &step) {
                        yield event(&chunk);
                    }
                    if step.finish.is_some() {
                        events.close(index);
                    }
                }
                Err(error) => {
                    record.end(error.status.as_u16());
                    yield event(&error.to_json());
                    return;
                }
            }
        }
        if head.include_usage {
            let usage = Usage {
                prompt: prompt_tokens,
                completion: choices.tokens(),
            };
            yield event(&head.usage(usage));
        }
        record.end(200);
        yield Ok(ServerSentEvent::default().data("[DONE]"));
    };
    Sse::new(chunks).into_response()
}

/// The chunks of one step: text where there is some, then calls, and the end where it is one.
fn chunks_of(head: &AnswerHead, index: usize, step: &Step) -> Vec<Value> {
    let text = step
        .has_text()
        .then(|| head.piece(index, &step.text, &step.tokens));
    let calls = (!step.calls.is_empty()).then(|| head.calls(index, step.calls_before, &step.calls));
    let end = step.finish.map(|finish| head.closing(index, finish));
    text.into_iter().chain(calls).chain(end).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "the item type of Sse")]
fn event(chunk: &Value) -> Result<ServerSentEvent, Infallible> {
    Ok(ServerSentEvent::default().data(chunk.to_string()))
}
