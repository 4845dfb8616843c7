//! `POST /v1/completions` and `/v1/chat/completions`: permit, parse, pin, tokenise, submit, answer.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use graftwork_contract::endpoint::{
    HEADER_ADAPTER, HEADER_REQUEST_ID, base_header, parse_adapter_header,
};
use graftwork_model::sampler::SamplingParams;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::record::Record;
use super::{Engine, RETRY_AFTER_SECONDS, stream};
use crate::clock;
use crate::device::{Event, Job};
use crate::openai::ApiError;
use crate::openai::answer::{AnswerHead, Endpoint, FinishReason, Usage};
use crate::openai::chat::ChatRequest;
use crate::openai::completion::{CompletionRequest, Prompt};
use crate::openai::parameters::Parameters;
use crate::registry::Lease;
use crate::registry::state::{AcquireError, Target};
use crate::transcript::Transcript;

/// Bytes of a request's body: several times the text that any context holds.
const MAXIMUM_BODY_BYTES: usize = 8 << 20;

/// A request that the device has begun.
pub(super) struct Running {
    pub(super) head: AnswerHead,
    pub(super) parameters: Parameters,
    pub(super) events: Events,
    pub(super) prompt_tokens: usize,
}

/// The events of one request, the first of which was already awaited.
pub(super) struct Events {
    engine: Arc<Engine>,
    first: Option<Event>,
    receiver: mpsc::Receiver<Event>,
    /// The request's place: taken until the answer is written, not only until it is computed.
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Events {
    /// The next event.
    ///
    /// # Errors
    /// Where there will be no answer.
    pub(super) async fn next(&mut self) -> Result<Event, ApiError> {
        let event = if let Some(event) = self.first.take() {
            event
        } else {
            tokio::select! {
                event = self.receiver.recv() => event
                    .ok_or_else(|| ApiError::internal("the compute thread has ended"))?,
                () = self.engine.abort.cancelled() => return Err(ApiError::stopping()),
            }
        };
        match event {
            Event::Failed(message) => Err(ApiError::internal(message)),
            event => Ok(event),
        }
    }

    /// Waits for the first event, so that what fails before it has a status of its own.
    async fn await_first(&mut self) -> Result<(), ApiError> {
        self.first = Some(self.next().await?);
        Ok(())
    }
}

pub(super) async fn completions(State(engine): State<Arc<Engine>>, request: Request) -> Response {
    handle(engine, Endpoint::Completion, request).await
}

pub(super) async fn chat_completions(
    State(engine): State<Arc<Engine>>,
    request: Request,
) -> Response {
    handle(engine, Endpoint::Chat, request).await
}

async fn handle(engine: Arc<Engine>, endpoint: Endpoint, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let request_id = parts
        .headers
        .get(HEADER_REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .map_or_else(new_id, str::to_owned);
    let mut record = Record::new(Arc::clone(&engine.metrics), request_id.clone());
    let begun = begin(&engine, endpoint, &parts.headers, body, &mut record).await;
    let ran = record.ran.clone();
    let mut response = match begun {
        Ok(running) if running.parameters.stream => stream::response(engine, running, record),
        Ok(running) => match whole(&engine, running, &mut record).await {
            Ok(response) => {
                record.end(200);
                response
            }
            Err(error) => refuse(error, &mut record),
        },
        Err(error) => refuse(error, &mut record),
    };
    set_header(&mut response, HEADER_REQUEST_ID, &request_id);
    if let Some(ran) = ran {
        set_header(&mut response, HEADER_ADAPTER, &ran);
    }
    response
}

fn refuse(error: ApiError, record: &mut Record) -> Response {
    record.end(error.status.as_u16());
    error.into_response()
}

fn set_header(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
}

/// 32 hexadecimal digits.
fn new_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Everything up to the first event.
async fn begin(
    engine: &Arc<Engine>,
    endpoint: Endpoint,
    headers: &HeaderMap,
    body: Body,
    record: &mut Record,
) -> Result<Running, ApiError> {
    let body = axum::body::to_bytes(body, MAXIMUM_BODY_BYTES)
        .await
        .map_err(|_| {
            ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "invalid_request_error",
                format!(
                    "the body did not arrive whole, or has more than {MAXIMUM_BODY_BYTES} bytes"
                ),
            )
        })?;
    let permit = Arc::clone(&engine.permits)
        .try_acquire_owned()
        .map_err(|_| ApiError::overloaded(engine.permit_count, RETRY_AFTER_SECONDS))?;
    let permit = Arc::new(permit);
    let (parameters, input) = match endpoint {
        Endpoint::Completion => {
            let request = CompletionRequest::parse(&body)?;
            (request.parameters, Input::Prompt(request.prompt))
        }
        Endpoint::Chat => {
            let request = ChatRequest::parse(&body)?;
            (request.parameters, Input::Chat(request.messages))
        }
    };
    let lease = pin(engine, headers, &parameters.model, record).await?;
    let prompt = tokenise(engine, input).await?;
    record.prompt(prompt.len());
    let prompt_tokens = prompt.len();
    let maximum_new_tokens = parameters
        .maximum_new_tokens
        .unwrap_or_else(|| engine.context_tokens.saturating_sub(prompt_tokens).max(1));
    if prompt_tokens + maximum_new_tokens > engine.context_tokens {
        return Err(ApiError::context_length(
            engine.context_tokens,
            prompt_tokens,
            maximum_new_tokens,
        ));
    }
    let (sender, receiver) = mpsc::channel(maximum_new_tokens + 1);
    let job = Job {
        prompt,
        maximum_new_tokens,
        sampling: SamplingParams {
            temperature: parameters.temperature,
            top_p: parameters.top_p,
            top_k: 0,
            min_p: 0.0,
        },
        seed: parameters.seed.unwrap_or_else(rand::random),
        logprobs: parameters.logprobs,
        lease,
        events: sender,
        permit: Arc::clone(&permit),
    };
    engine
        .device
        .submit(job)
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let mut events = Events {
        engine: Arc::clone(engine),
        first: None,
        receiver,
        _permit: permit,
    };
    events.await_first().await?;
    let prefix = match endpoint {
        Endpoint::Completion => "cmpl",
        Endpoint::Chat => "chatcmpl",
    };
    Ok(Running {
        head: AnswerHead {
            endpoint,
            id: format!("{prefix}-{}", new_id()),
            created: clock::unix_seconds(),
            model: parameters.model.clone(),
            include_usage: parameters.include_usage,
            logprobs: parameters.logprobs.is_some(),
        },
        parameters,
        events,
        prompt_tokens,
    })
}

/// Decides what runs: the router's header before `model`, and never the base model for an unknown
/// name.
async fn pin(
    engine: &Engine,
    headers: &HeaderMap,
    model: &str,
    record: &mut Record,
) -> Result<Option<Lease>, ApiError> {
    let target = match headers.get(HEADER_ADAPTER) {
        None => {
            if engine.base_name.as_deref() == Some(model) {
                record.runs(model, "base".to_owned(), base_header(model));
                return Ok(None);
            }
            Target::Default(model.to_owned())
        }
        Some(value) => {
            let value = value.to_str().unwrap_or_default();
            match parse_adapter_header(value) {
                Some((name, Some(version))) => Target::Exactly(name.to_owned(), version),
                Some((name, None)) if engine.base_name.as_deref() == Some(name) => {
                    record.runs(name, "base".to_owned(), base_header(name));
                    return Ok(None);
                }
                Some((_, None)) => {
                    return Err(ApiError::version_not_here(
                        value,
                        "its base model is not offered under that name",
                    ));
                }
                None => {
                    return Err(ApiError::invalid(
                        HEADER_ADAPTER,
                        format!(
                            "header {HEADER_ADAPTER} must be <adapter>@v<version> or <base>@base"
                        ),
                    ));
                }
            }
        }
    };
    let acquired = engine
        .registry
        .acquire(target)
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    match acquired {
        Ok(lease) => {
            record.runs(
                lease.name(),
                format!("v{}", lease.version()),
                lease.header(),
            );
            Ok(Some(lease))
        }
        Err(AcquireError::UnknownName(name)) => Err(ApiError::model_not_found(&name)),
        Err(AcquireError::NotHere { name, version, why }) => Err(ApiError::version_not_here(
            &graftwork_contract::endpoint::adapter_header(&name, version),
            &why,
        )),
    }
}

enum Input {
    Prompt(Prompt),
    Chat(Vec<graftwork_model::tokenizer::ChatMessage>),
}

/// Tokens of the prompt, at least one. Runs beside the reactor: a long text takes a while.
async fn tokenise(engine: &Arc<Engine>, input: Input) -> Result<Vec<u32>, ApiError> {
    let engine = Arc::clone(engine);
    let task = tokio::task::spawn_blocking(move || match input {
        Input::Prompt(Prompt::Tokens(tokens)) => {
            match tokens.iter().find(|id| **id as usize >= engine.vocabulary) {
                None => Ok(tokens),
                Some(id) => Err(ApiError::invalid(
                    "prompt",
                    format!(
                        "prompt holds token id {id}, the model's vocabulary has {}",
                        engine.vocabulary
                    ),
                )),
            }
        }
        Input::Prompt(Prompt::Text(text)) => engine
            .tokenizer
            .encode_prompt(&text)
            .map_err(|error| ApiError::invalid("prompt", error.to_string())),
        Input::Chat(messages) => engine
            .tokenizer
            .encode_chat_prompt(&messages)
            .map_err(|error| ApiError::invalid("messages", error.to_string())),
    });
    let tokens = task
        .await
        .map_err(|error| ApiError::internal(error.to_string()))??;
    if tokens.is_empty() {
        return Err(ApiError::invalid("prompt", "prompt has no tokens"));
    }
    Ok(tokens)
}

/// Gathers the answer into one body.
async fn whole(
    engine: &Engine,
    mut running: Running,
    record: &mut Record,
) -> Result<Response, ApiError> {
    let stops = std::mem::take(&mut running.parameters.stop);
    let mut transcript = Transcript::new(&engine.tokenizer, stops);
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let finish = loop {
        match running.events.next().await? {
            Event::Token(sampled) => {
                record.token();
                let piece = transcript.push(&sampled).map_err(undecodable)?;
                text.push_str(&piece.text);
                tokens.extend(piece.token);
                if piece.stopped {
                    break FinishReason::Stop;
                }
            }
            Event::Finished(finish) => {
                let piece = transcript.finish().map_err(undecodable)?;
                text.push_str(&piece.text);
                break if piece.stopped {
                    FinishReason::Stop
                } else {
                    finish
                };
            }
            Event::Failed(message) => return Err(ApiError::internal(message)),
        }
    };
    let usage = Usage {
        prompt: running.prompt_tokens,
        completion: transcript.tokens(),
    };
    Ok(Json(running.head.whole(&text, &tokens, finish, usage)).into_response())
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err asks for"
)]
pub(super) fn undecodable(error: graftwork_model::tokenizer::TokenizerError) -> ApiError {
    ApiError::internal(error.to_string())
}
