//! `POST /tokenize` and `/detokenize`: how the model's tokenizer cuts a text, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use graftwork_contract::endpoint::{HEADER_ADAPTER, adapter_header, base_header};
use graftwork_model::tokenizer::TokenizerError;
use serde_json::{Value, json};

use super::target::{Named, named, refused};
use super::tools::tool_format;
use super::{Engine, body};
use crate::openai::ApiError;
use crate::openai::tokens::{DetokenizeRequest, Text, TokenizeRequest};

pub(super) async fn tokenize(
    State(engine): State<Arc<Engine>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let body = body::read(&engine.bodies, body).await?;
    let _place = engine.places(1)?;
    let request = engine.beside.read(body, TokenizeRequest::parse).await?;
    let runs = runs(&engine, &parts.headers, request.model.as_deref()).await?;
    answer(runs, engine, move |engine| cut(engine, &request)).await
}

pub(super) async fn detokenize(
    State(engine): State<Arc<Engine>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let body = body::read(&engine.bodies, body).await?;
    let _place = engine.places(1)?;
    let request = engine.beside.read(body, DetokenizeRequest::parse).await?;
    let runs = runs(&engine, &parts.headers, request.model.as_deref()).await?;
    answer(runs, engine, move |engine| join(engine, &request)).await
}

/// The value of `x-graftwork-adapter`, where the request names something. The tokenizer is the base
/// model's whichever adapter it is, but an unknown name is told so here too.
async fn runs(
    engine: &Engine,
    headers: &HeaderMap,
    model: Option<&str>,
) -> Result<Option<String>, ApiError> {
    let Some(model) = model else { return Ok(None) };
    match named(engine, headers, model)? {
        Named::Base(name) => Ok(Some(base_header(&name))),
        Named::Adapter(target) => {
            let found = engine
                .registry
                .find(target)
                .await
                .map_err(|error| ApiError::internal(error.to_string()))?;
            let version = found.map_err(refused)?;
            Ok(Some(adapter_header(&version.name, version.number)))
        }
    }
}

/// Computes beside the reactor: a long text takes a while.
async fn answer(
    runs: Option<String>,
    engine: Arc<Engine>,
    compute: impl FnOnce(&Engine) -> Result<Value, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let beside = engine.beside.clone();
    let value = beside.run(move || compute(&engine)).await??;
    let mut response = Json(value).into_response();
    if let Some(runs) = runs.and_then(|runs| HeaderValue::from_str(&runs).ok()) {
        response
            .headers_mut()
            .insert(HeaderName::from_static(HEADER_ADAPTER), runs);
    }
    Ok(response)
}

fn cut(engine: &Engine, request: &TokenizeRequest) -> Result<Value, ApiError> {
    let tokenizer = &engine.tokenizer;
    let (field, tokens) = match &request.text {
        Text::Prompt {
            text,
            with_special: true,
        } => ("prompt", tokenizer.encode_prompt(text)),
        Text::Prompt {
            text,
            with_special: false,
        } => ("prompt", tokenizer.encode(text, false)),
        Text::Chat {
            messages,
            tools,
            opens_answer,
        } => {
            tool_format(engine, messages, !tools.is_empty())?;
            let text = tokenizer.render_tools(messages, tools, *opens_answer);
            let tokens = text
                .map_err(TokenizerError::from)
                .and_then(|text| tokenizer.encode(&text, false));
            ("messages", tokens)
        }
    };
    let tokens = tokens.map_err(|error| ApiError::invalid(field, error.to_string()))?;
    let texts = request.with_texts.then(|| {
        tokens
            .iter()
            .map(|id| tokenizer.id_to_token(*id).unwrap_or_default())
            .collect::<Vec<_>>()
    });
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": engine.context_tokens,
        "tokens": tokens,
        "token_strs": texts,
    }))
}

fn join(engine: &Engine, request: &DetokenizeRequest) -> Result<Value, ApiError> {
    engine.check_tokens("tokens", &request.tokens)?;
    let text = engine
        .tokenizer
        .decode(&request.tokens, false)
        .map_err(|error| ApiError::invalid("tokens", error.to_string()))?;
    Ok(json!({"prompt": text}))
}
