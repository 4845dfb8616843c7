//! `POST /v1/completions` and `/v1/chat/completions`: permit, parse, pin, tokenise, submit, answer.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use graftwork_contract::endpoint::{HEADER_ADAPTER, HEADER_ENGINE, HEADER_REQUEST_ID, base_header};
use graftwork_listen::clock;
use graftwork_model::tokenizer::{ChatMessage, TokenizerError};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::choices::{Choices, Shape, Step};
use super::events::Events;
use super::json::{Asked, compile};
use super::preparing::Preparing;
use super::record::Record;
use super::target::{Named, named, refused};
use super::tools::tool_use;
use super::{Engine, body, stream};
use crate::constraint::Constraint;
use crate::device::{Event, Job};
use crate::openai::ApiError;
use crate::openai::answer::{AnswerHead, Choice, Endpoint, FinishReason, Usage};
use crate::openai::chat::ChatRequest;
use crate::openai::completion::{CompletionRequest, Prompt};
use crate::openai::parameters::Parameters;
use crate::registry::Lease;
use crate::transcript::Echo;

/// A request that the device has begun.
pub(super) struct Running {
    pub(super) head: AnswerHead,
    pub(super) shape: Shape,
    pub(super) stream: bool,
    pub(super) events: Events,
    /// Tokens of all prompts.
    pub(super) prompt_tokens: usize,
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
    let engine_revision = engine.revision.clone();
    let mut record = Record::new(Arc::clone(&engine.metrics), request_id.clone());
    let begun = begin(&engine, endpoint, &parts.headers, body, &mut record).await;
    let ran = record.ran.clone();
    let mut response = match begun {
        Ok(running) if running.stream => stream::response(engine, running, record),
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
    set_header(&mut response, HEADER_ENGINE, &engine_revision);
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
    let body = body::read(&engine.bodies, body).await?;
    let mut permit = engine.places(1)?;
    let mut preparing = Preparing::new(&engine.metrics);
    let (parameters, input, tools, asked) = match endpoint {
        Endpoint::Completion => {
            let request = engine.beside.read(body, CompletionRequest::parse).await?;
            let input = Input::Prompts(request.prompts, request.echo);
            (request.parameters, input, None, Asked::Text)
        }
        Endpoint::Chat => {
            let request = engine.beside.read(body, ChatRequest::parse).await?;
            let plan = tool_use(engine, &request.messages, request.tools)?;
            let input = Input::Chat(request.messages, plan.list);
            let asked = Asked::of(request.schema, plan.forced, plan.narrowed);
            (request.parameters, input, plan.wanted, asked)
        }
    };
    check_bias(&parameters, engine.vocabulary)?;
    let (prompts, answers) = (input.prompts(), parameters.choices);
    let count = prompts * answers;
    if count > engine.permit_count {
        return Err(ApiError::too_many_answers(
            prompts,
            answers,
            engine.permit_count,
        ));
    }
    // Each answer takes a place of its own.
    permit.merge(engine.places(count - 1)?);
    let named = named(engine, headers, &parameters.model)?;
    if let Named::Adapter(target) = &named {
        preparing.wants(target.name());
    }
    let lease = pin(engine, named, record).await?;
    let is_echo = matches!(input, Input::Prompts(_, true));
    let prompts = tokenise(engine, input).await?;
    let prompt_tokens = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    record.prompt(prompt_tokens);
    let permit = Arc::new(permit);
    let wanted = Wanted {
        parameters: &parameters,
        input: match endpoint {
            Endpoint::Completion => "prompt",
            Endpoint::Chat => "messages",
        },
        is_echo,
        constraints: compile(engine, asked, count).await?,
        lease: lease.map(Arc::new),
        permit: Arc::clone(&permit),
    };
    let receivers = wanted.submit(engine, &prompts).await?;
    record.takes(count);
    drop(preparing);
    let mut events = Events::new(Arc::clone(engine), receivers, permit);
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
            model: parameters.model,
            include_usage: parameters.include_usage,
            logprobs: parameters.logprobs.is_some(),
        },
        shape: Shape {
            echoes: if is_echo { prompts } else { Vec::new() },
            answers,
            count,
            stops: parameters.stop,
            logprobs: parameters.logprobs.is_some(),
            tools,
        },
        stream: parameters.stream,
        events,
        prompt_tokens,
    })
}

/// What all answers of a request share.
struct Wanted<'a> {
    parameters: &'a Parameters,
    /// The field with the prompts.
    input: &'static str,
    is_echo: bool,
    /// One for each answer, or none.
    constraints: Vec<Constraint>,
    lease: Option<Arc<Lease>>,
    permit: Arc<OwnedSemaphorePermit>,
}

impl Wanted<'_> {
    /// Hands all answers to the device, those of one prompt after each other; where they are heard of.
    async fn submit(
        mut self,
        engine: &Engine,
        prompts: &[Echo],
    ) -> Result<Vec<mpsc::Receiver<Event>>, ApiError> {
        let limits = prompts
            .iter()
            .map(|prompt| new_tokens(engine, self.parameters, prompt.tokens.len(), self.input))
            .collect::<Result<Vec<usize>, ApiError>>()?;
        let mut receivers = Vec::new();
        for (prompt, limit) in prompts.iter().zip(limits) {
            // The same seed for each prompt: it gets what it would get alone.
            let seed = self.parameters.seed.unwrap_or_else(rand::random);
            for choice in 0..self.parameters.choices {
                let (sender, receiver) = mpsc::channel(limit + 2);
                receivers.push(receiver);
                let constraint = self.constraints.pop();
                let job = self.job(&prompt.tokens, limit, (seed, choice), (constraint, sender));
                engine
                    .device
                    .submit(job)
                    .await
                    .map_err(|error| ApiError::internal(error.to_string()))?;
            }
        }
        Ok(receivers)
    }

    fn job(
        &self,
        prompt: &[u32],
        maximum_new_tokens: usize,
        (seed, choice): (u64, usize),
        (constraint, events): (Option<Constraint>, mpsc::Sender<Event>),
    ) -> Job {
        let parameters = self.parameters;
        Job {
            prompt: prompt.to_vec(),
            maximum_new_tokens,
            sampling: parameters.sampling,
            adjustments: parameters.adjustments.clone(),
            seed,
            choice: u32::try_from(choice).unwrap_or(u32::MAX),
            ignore_eos: parameters.ignore_eos,
            logprobs: parameters.logprobs,
            prompt_logprobs: self.is_echo && parameters.logprobs.is_some(),
            constraint,
            lease: self.lease.clone(),
            events,
            permit: Arc::clone(&self.permit),
        }
    }
}

/// Biases are of tokens that the model has.
fn check_bias(parameters: &Parameters, vocabulary: usize) -> Result<(), ApiError> {
    let biases = &parameters.adjustments.logit_bias;
    match biases.iter().find(|(id, _)| *id as usize >= vocabulary) {
        None => Ok(()),
        Some((id, _)) => Err(ApiError::invalid(
            "logit_bias",
            format!("logit_bias names token {id}, the model's vocabulary has {vocabulary}"),
        )),
    }
}

/// How many tokens an answer to a prompt of so many may have.
fn new_tokens(
    engine: &Engine,
    parameters: &Parameters,
    prompt_tokens: usize,
    input: &str,
) -> Result<usize, ApiError> {
    let context = engine.context_tokens;
    let wanted = parameters
        .maximum_new_tokens
        .unwrap_or_else(|| context.saturating_sub(prompt_tokens).max(1));
    if prompt_tokens + wanted > context {
        return Err(ApiError::context_length(
            context,
            prompt_tokens,
            wanted,
            input,
        ));
    }
    Ok(wanted)
}

/// Pins what runs.
async fn pin(
    engine: &Engine,
    named: Named,
    record: &mut Record,
) -> Result<Option<Lease>, ApiError> {
    let target = match named {
        Named::Base(name) => {
            record.runs(&name, "base".to_owned(), base_header(&name));
            return Ok(None);
        }
        Named::Adapter(target) => target,
    };
    let acquired = engine
        .registry
        .acquire(target)
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let lease = acquired.map_err(refused)?;
    record.runs(
        lease.name(),
        format!("v{}", lease.version()),
        lease.header(),
    );
    Ok(Some(lease))
}

enum Input {
    /// Whether they are given back is the second.
    Prompts(Vec<Prompt>, bool),
    /// With the tools that the answer may call.
    Chat(Vec<ChatMessage>, Vec<Value>),
}

impl Input {
    fn prompts(&self) -> usize {
        match self {
            Self::Prompts(prompts, _) => prompts.len(),
            Self::Chat(..) => 1,
        }
    }

    /// Of the texts that are to be cut into tokens.
    fn bytes(&self) -> usize {
        match self {
            Self::Prompts(prompts, _) => prompts.iter().map(Prompt::bytes).sum(),
            Self::Chat(messages, tools) => {
                let calls = messages.iter().flat_map(|message| &message.tool_calls);
                let arguments: usize = calls.map(|call| call.arguments.len()).sum();
                let texts: usize = messages.iter().map(|message| message.content.len()).sum();
                let tools: usize = tools.iter().map(|tool| tool.to_string().len()).sum();
                texts + arguments + tools
            }
        }
    }
}

/// Tokens of each prompt, at least one. Runs beside the reactor: a long text takes a while.
async fn tokenise(engine: &Arc<Engine>, input: Input) -> Result<Vec<Echo>, ApiError> {
    let (engine, beside) = (Arc::clone(engine), &engine.beside);
    let tokens = beside.run_on(input.bytes(), move || match input {
        Input::Prompts(prompts, is_echo) => prompts
            .into_iter()
            .map(|prompt| read_prompt(&engine, prompt, is_echo))
            .collect::<Result<Vec<Echo>, ApiError>>(),
        Input::Chat(messages, tools) => engine
            .tokenizer
            .encode_tool_prompt(&messages, &tools)
            .map(|tokens| {
                let text = String::new();
                vec![Echo { text, tokens }]
            })
            .map_err(|error| ApiError::invalid("messages", error.to_string())),
    });
    let prompts = tokens.await??;
    if prompts.iter().any(|prompt| prompt.tokens.is_empty()) {
        return Err(ApiError::invalid("prompt", "prompt has no tokens"));
    }
    Ok(prompts)
}

/// A prompt as tokens and, where it is given back, as text.
fn read_prompt(engine: &Engine, prompt: Prompt, is_echo: bool) -> Result<Echo, ApiError> {
    let failed = |error: TokenizerError| ApiError::invalid("prompt", error.to_string());
    match prompt {
        Prompt::Tokens(tokens) => {
            engine.check_tokens("prompt", &tokens)?;
            let text = if is_echo {
                engine.tokenizer.decode(&tokens, true).map_err(failed)?
            } else {
                String::new()
            };
            Ok(Echo { text, tokens })
        }
        Prompt::Text(text) => {
            let tokens = engine.tokenizer.encode_prompt(&text).map_err(failed)?;
            Ok(Echo { text, tokens })
        }
    }
}

/// Gathers the answers into one body.
async fn whole(
    engine: &Engine,
    running: Running,
    record: &mut Record,
) -> Result<Response, ApiError> {
    let Running {
        head,
        shape,
        mut events,
        prompt_tokens,
        ..
    } = running;
    let mut choices = Choices::new(&engine.tokenizer, shape);
    let mut steps = (0..choices.count())
        .map(|index| choices.open(index))
        .collect::<Result<Vec<Step>, ApiError>>()?;
    while let Some((index, event)) = events.next().await? {
        let step = choices.take(index, &event, record)?;
        if step.finish.is_some() {
            events.close(index);
        }
        if let Some(so_far) = steps.get_mut(index) {
            so_far.text.push_str(&step.text);
            so_far.calls.extend(step.calls);
            so_far.tokens.extend(step.tokens);
            so_far.finish = step.finish;
        }
    }
    let answers: Vec<Choice> = steps
        .into_iter()
        .map(|step| Choice {
            text: step.text,
            calls: step.calls,
            tokens: step.tokens,
            // Every sequence says how it ended before its channel closes.
            finish: step.finish.unwrap_or(FinishReason::Length),
        })
        .collect();
    let usage = Usage {
        prompt: prompt_tokens,
        completion: choices.tokens(),
    };
    Ok(Json(head.whole(&answers, usage)).into_response())
}
