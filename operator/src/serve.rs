//! `/metrics`, `/healthz` and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use graftwork_api::conditions::condition;
use graftwork_operator_core::conditions;

use crate::cache::{Caches, Kind, Touches};
use crate::lease::Term;
use crate::metrics::Metrics;

/// What the endpoints show.
#[derive(Clone)]
pub struct Shown {
    /// Only who leads says how objects stand.
    pub term: Arc<Term>,
    /// Counters.
    pub metrics: Metrics,
    /// For gauges that are computed when they are read.
    pub caches: Caches,
    /// For the depth of queues.
    pub touches: Touches,
    /// Set once the caches are filled.
    pub ready: Arc<AtomicBool>,
}

/// Serves until the process ends, and logs where: port 0 is any free one.
///
/// # Errors
/// Where the address can't be had.
pub async fn serve(address: SocketAddr, shown: Shown) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    tracing::info!(listen = %bound, "serves metrics and probes");
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router(shown)).await {
            tracing::error!(%error, "the metrics server ended");
        }
    });
    Ok(())
}

/// The paths.
pub fn router(shown: Shown) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .with_state(shown)
}

async fn ready(State(shown): State<Shown>) -> (StatusCode, &'static str) {
    if shown.ready.load(Ordering::Acquire) {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "caches are being filled")
    }
}

async fn metrics(State(shown): State<Shown>) -> String {
    let leads = shown.term.holds();
    shown.metrics.leads(leads);
    if leads {
        count_objects(&shown);
    }
    for kind in Kind::ALL {
        shown.metrics.queue(kind, shown.touches.waiting(kind));
    }
    shown.metrics.print()
}

fn count_objects(shown: &Shown) {
    let runs = shown.caches.runs.state();
    shown.metrics.runs(runs.iter().filter_map(|run| {
        let status = run.0.as_ref().ok()?.status.as_ref()?;
        let succeeded = conditions::find(&status.conditions, condition::SUCCEEDED)?;
        Some(succeeded.reason.clone())
    }));
    let endpoints = shown.caches.endpoints.state();
    shown.metrics.rollouts(
        endpoints
            .iter()
            .filter_map(|endpoint| endpoint.0.as_ref().ok()?.status.as_ref())
            .flat_map(|status| &status.adapters)
            .map(|adapter| {
                let rollout = adapter.rollout.as_ref();
                rollout.map_or("Stable".to_owned(), |rollout| rollout.state.to_string())
            }),
    );
}
