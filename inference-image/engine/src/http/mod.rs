//! The OpenAI HTTP server.

mod beside;
mod body;
mod choices;
mod events;
mod generate;
mod json;
mod models;
mod preparing;
mod record;
mod stream;
mod target;
mod tokens;
mod tools;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use graftwork_contract::openapi;
use graftwork_listen::body::Room;
use graftwork_listen::clock;
use graftwork_model::tokenizer::TextTokenizer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

pub use beside::Beside;
pub use body::room;

use crate::constraint::Grammars;
use crate::device::Device;
use crate::ended::retry_after;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::openai::ApiError;
use crate::openai::error::cut;
use crate::registry::AdapterRegistry;

/// What the handlers need.
#[derive(Debug)]
pub struct Engine {
    /// Pins versions.
    pub registry: AdapterRegistry,
    /// Computes.
    pub device: Device,
    /// Cuts prompts and joins answers.
    pub tokenizer: TextTokenizer,
    /// Makes answers JSON of a schema; none: the model's tokenizer does not allow it.
    pub grammars: Option<Grammars>,
    /// Token ids below this are the model's.
    pub vocabulary: usize,
    /// Tokens of prompt and answer together.
    pub context_tokens: usize,
    /// How the bare base model is called; none: it is not offered.
    pub base_name: Option<String>,
    /// Memory of the bodies that are read, or wait for it.
    pub bodies: Room,
    /// Works beside the reactor's threads.
    pub beside: Beside,
    /// One permit for each request that runs or waits.
    pub permits: Arc<Semaphore>,
    /// How many there are.
    pub permit_count: usize,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether the engine is stopping.
    pub health: Health,
    /// Cancelled where running requests must end now.
    pub abort: CancellationToken,
    /// Unix seconds of the start.
    pub started: u64,
    /// What computes here: base model, build and instruction set.
    pub revision: String,
}

impl Engine {
    /// Places for so many answers.
    ///
    /// # Errors
    /// 429 where so many are not free.
    fn places(&self, count: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let wanted = u32::try_from(count).unwrap_or(u32::MAX);
        Arc::clone(&self.permits)
            .try_acquire_many_owned(wanted)
            .map_err(|_| ApiError::overloaded(self.permit_count, self.retry_after(count)))
    }

    /// Seconds until so many places may be free.
    fn retry_after(&self, count: usize) -> u32 {
        let missing = count.saturating_sub(self.permits.available_permits());
        let waiting = usize::try_from(self.metrics.waiting.get()).unwrap_or(0);
        let rate = self.metrics.ended.per_second(clock::now());
        retry_after(missing, waiting, rate)
    }

    /// Token ids of a request's `field` are the model's.
    ///
    /// # Errors
    /// 400 naming the first that is not.
    fn check_tokens(&self, field: &str, tokens: &[u32]) -> Result<(), ApiError> {
        match tokens.iter().find(|id| **id as usize >= self.vocabulary) {
            None => Ok(()),
            Some(id) => Err(ApiError::invalid(
                field,
                format!(
                    "{field} holds token id {id}, the model's vocabulary has {}",
                    self.vocabulary
                ),
            )),
        }
    }
}

/// A path and what answers each of its methods.
type Route = (&'static str, fn() -> MethodRouter<Arc<Engine>>);

/// Every route. What `/openapi.json` describes is compared with it.
const ROUTES: [Route; 7] = [
    ("/v1/models", || get(models::list)),
    ("/v1/models/{*model}", || get(models::one)),
    ("/v1/completions", || post(generate::completions)),
    ("/v1/chat/completions", || post(generate::chat_completions)),
    ("/tokenize", || post(tokens::tokenize)),
    ("/detokenize", || post(tokens::detokenize)),
    ("/openapi.json", || get(description)),
];

/// The routes of the OpenAI API.
pub fn router(engine: Arc<Engine>) -> Router {
    ROUTES
        .iter()
        .fold(Router::new(), |router, (path, methods)| {
            router.route(path, methods())
        })
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(
            Arc::clone(&engine),
            close_while_draining,
        ))
        .with_state(engine)
}

/// What the API takes and answers.
async fn description() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        openapi::DOCUMENT,
    )
}

/// While the engine stops, every answer asks its client to connect anew, which leads elsewhere, so
/// that no idle connection is left to break.
async fn close_while_draining(
    State(engine): State<Arc<Engine>>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = next.run(request).await;
    if engine.health.is_draining() {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn no_such_route(request: Request) -> Response {
    let message = format!(
        "there is no {} here; GET /openapi.json lists what there is",
        cut(request.uri().path())
    );
    ApiError::refused(StatusCode::NOT_FOUND, "unknown_url", message).into_response()
}

async fn no_such_method(request: Request) -> Response {
    let message = format!(
        "{} does not take {}",
        cut(request.uri().path()),
        cut(request.method().as_str())
    );
    ApiError::refused(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    )
    .into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else_is() {
        let document: Value = serde_json::from_str(openapi::DOCUMENT).unwrap();
        let described: BTreeSet<&str> = document["paths"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let served: BTreeSet<String> = ROUTES
            .iter()
            .map(|(path, _)| path.replace("{*", "{"))
            .collect();
        let served: BTreeSet<&str> = served.iter().map(String::as_str).collect();
        assert_eq!(described, served);
    }
}
