//! The listeners, from start to drained.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use graftwork_contract::endpoint::{HEADER_REQUEST_ID, adapter_header};
use graftwork_contract::openapi;
use graftwork_contract::proto::router::v1::router_server::RouterServer;
use graftwork_listen::crew::Crew;
use graftwork_listen::{Listener, clock};
use http::{HeaderValue, Request, StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use crate::control::Publisher;
use crate::failure::Failure;
use crate::forward::forward;
use crate::mounted::Mounted;
use crate::page::page;
use crate::probe::probe_engines;
use crate::request::request_id;
use crate::settings::Settings;
use crate::state::Shared;
use crate::table::{Model, Table};

/// How long streams have to end once they must.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How often gRPC health follows readiness.
const HEALTH_INTERVAL: Duration = Duration::from_millis(200);

/// A router that runs.
#[derive(Debug)]
pub struct Running {
    /// Address of the OpenAI API, and of the Open Inference Protocol (gRPC).
    pub http: SocketAddr,
    /// Address of gRPC.
    pub grpc: SocketAddr,
    /// Address of the metrics.
    pub metrics: SocketAddr,
    /// What its requests share.
    pub shared: Arc<Shared>,
    front: Listener,
    /// What the front's connections run on.
    _crew: Crew,
    back: Listener,
    grpc_task: JoinHandle<Result<(), tonic::transport::Error>>,
    watchers: Vec<JoinHandle<()>>,
}

/// Reads the configuration and opens the listeners.
///
/// # Errors
/// Where the configuration is unusable or an address is taken.
pub async fn start(settings: &Settings) -> anyhow::Result<Running> {
    let (mounted, config) = Mounted::open(&settings.config)?;
    let mut limits = settings.limits();
    let configured = usize::try_from(config.response_cache_bytes).unwrap_or(usize::MAX);
    limits.cache_bytes = limits.cache_bytes.max(configured);
    let shared = Arc::new(Shared::new(
        &config.endpoint,
        Table::from_config(&config)?,
        limits,
    )?);
    let publisher = Publisher::new(shared.clone(), &config, &settings.pod_uid)?;

    let http = bind("--listen-http", settings.listen_http).await?;
    let metrics = bind("--listen-metrics", settings.listen_metrics).await?;
    let grpc = bind("--listen-grpc", settings.listen_grpc).await?;
    let (http_address, metrics_address, grpc_address) = (
        http.local_addr()?,
        metrics.local_addr()?,
        grpc.local_addr()?,
    );

    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("", tonic_health::ServingStatus::NotServing)
        .await;
    let watchers = vec![
        tokio::spawn(report_health(shared.clone(), reporter)),
        tokio::spawn(probe_engines(shared.clone())),
        tokio::spawn(mounted.watch(shared.clone(), publisher.clone(), config.engines_host)),
    ];
    let back = Listener::new(CancellationToken::new());
    let stop = back.stop().clone();
    let grpc_task = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(health)
            .add_service(RouterServer::new(publisher))
            .serve_with_incoming_shutdown(TcpListenerStream::new(grpc), stop.cancelled_owned()),
    );
    let front = Listener::new(CancellationToken::new());
    let readiness = shared.clone();
    let routes = graftwork_open_inference::serve(front_routes(shared.clone()), move || {
        readiness.is_ready()
    })?;
    let crew = Crew::start().context("threads that serve requests")?;
    front.serve_on(http, routes, crew.members().to_vec());
    back.serve(metrics, back_routes(shared.clone()));
    tracing::info!(%http_address, %grpc_address, %metrics_address, endpoint = config.endpoint, "router started");
    Ok(Running {
        http: http_address,
        grpc: grpc_address,
        metrics: metrics_address,
        shared,
        front,
        _crew: crew,
        back,
        grpc_task,
        watchers,
    })
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{flag} {address}"))
}

impl Running {
    /// Stops being ready, accepts for `delay` more, finishes what runs, and closes everything. What still runs `limit`
    /// after the begin is told so: streams end in an error event. Counters can be read until the last request ended.
    ///
    /// # Errors
    /// Where the gRPC server broke.
    pub async fn drain(self, delay: Duration, limit: Duration) -> anyhow::Result<()> {
        self.shared.begin_drain();
        tracing::info!(?delay, "draining");
        tokio::time::sleep(delay).await;
        let left = limit.saturating_sub(delay);
        if tokio::time::timeout(left, self.front.finish())
            .await
            .is_err()
        {
            tracing::warn!(?limit, "requests still run; they are ended");
            self.shared.last_call.cancel();
            // Requests that wait for an engine's first byte have nothing to lose by a closed connection.
            let _ = tokio::time::timeout(LAST_WORDS, self.front.finish()).await;
        }
        self.back.finish().await;
        self.grpc_task.await??;
        for watcher in self.watchers {
            watcher.abort();
        }
        tracing::info!("drained");
        Ok(())
    }
}

/// A path and what answers each of its methods.
type Route = (&'static str, fn() -> MethodRouter<Arc<Shared>>);

/// Every route that `/openapi.json` describes.
const ROUTES: [Route; 7] = [
    ("/v1/chat/completions", || post(forward)),
    ("/v1/completions", || post(forward)),
    ("/tokenize", || post(forward)),
    ("/detokenize", || post(forward)),
    ("/v1/models", || get(models)),
    ("/v1/models/{*model}", || get(model)),
    ("/openapi.json", || get(description)),
];

fn front_routes(shared: Arc<Shared>) -> Router {
    ROUTES
        .iter()
        .fold(Router::new(), |router, (path, methods)| {
            router.route(path, methods())
        })
        .route("/", get(page))
        .fallback(async |request: Request<Body>| Failure::UnknownPath {
            path: request.uri().path().to_owned(),
        })
        .method_not_allowed_fallback(async |request: Request<Body>| Failure::Method {
            path: request.uri().path().to_owned(),
            method: request.method().to_string(),
        })
        .layer(axum::middleware::from_fn_with_state(
            shared.clone(),
            close_while_draining,
        ))
        .layer(axum::middleware::from_fn(with_request_id))
        .with_state(shared)
}

async fn description() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        openapi::DOCUMENT,
    )
}

/// Clients that keep connections open learn with their next answer that they should open another one,
/// which goes to another pod; otherwise the end of the drain would meet them in the middle of a request.
async fn close_while_draining(
    State(shared): State<Arc<Shared>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let mut response = next.run(request).await;
    if shared.is_draining() {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What a client calls its request comes back whatever answers it.
async fn with_request_id(request: Request<Body>, next: Next) -> Response {
    let id = request_id(request.headers());
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(HEADER_REQUEST_ID).or_insert(id);
    response
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    let table = shared.table.load();
    let data: Vec<Value> = table
        .models
        .values()
        .map(|model| card(&shared, &table, model))
        .collect();
    axum::Json(json!({"object": "list", "data": data})).into_response()
}

async fn model(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    let table = shared.table.load();
    match table.models.get(&name) {
        Some(model) => axum::Json(card(&shared, &table, model)).into_response(),
        None => Failure::UnknownModel { model: name }.into_response(),
    }
}

/// What the lists say about a model: `root` is its stable version, `parent` what it was made for.
fn card(shared: &Shared, table: &Table, model: &Model) -> Value {
    let version = &model.stable;
    let (root, parent) = match version.number {
        Some(number) => (
            adapter_header(&version.model, number),
            table.base_name.as_deref(),
        ),
        None => (version.model.to_string(), None),
    };
    json!({
        "id": &*version.model,
        "object": "model",
        "created": shared.started_unix_seconds,
        "owned_by": "graftwork",
        "root": root,
        "parent": parent,
    })
}

fn back_routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(shared)
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    if shared.is_ready() {
        "ok".into_response()
    } else if shared.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining").into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "no engine has answered yet",
        )
            .into_response()
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let format = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    match shared
        .metrics
        .render(&shared.table.load(), &shared.engines(), clock::now())
    {
        Ok(text) => (format, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn report_health(shared: Arc<Shared>, reporter: tonic_health::server::HealthReporter) {
    let mut was_ready = false;
    loop {
        let is_ready = shared.is_ready();
        if is_ready != was_ready {
            let status = if is_ready {
                tonic_health::ServingStatus::Serving
            } else {
                tonic_health::ServingStatus::NotServing
            };
            reporter.set_service_status("", status).await;
            was_ready = is_ready;
        }
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else_is() {
        let document: Value = serde_json::from_str(openapi::DOCUMENT).unwrap();
        let described: BTreeSet<String> = document["paths"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        let served: BTreeSet<String> = ROUTES
            .iter()
            .map(|(path, _)| path.replace("{*", "{"))
            .collect();
        assert_eq!(described, served);
    }
}
