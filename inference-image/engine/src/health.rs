//! Readiness as one value that everybody watches, and the probes' HTTP routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// Where the process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The base model is being loaded.
    LoadingBase,
    /// The mounted adapters' headers are being read.
    ReadingAdapters,
    /// Requests are welcome.
    Ready,
    /// The process was told to stop; it still answers.
    Draining,
    /// The compute thread has died, or stands still: only a restart helps.
    Dead,
}

/// A handle of the value.
#[derive(Debug, Clone)]
pub struct Health(Arc<watch::Sender<Readiness>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Readiness::LoadingBase)))
    }
}

impl Health {
    /// Moves on; draining and death are not taken back by a start that ends late.
    pub fn set(&self, next: Readiness) {
        self.0.send_if_modified(|current| {
            let moves = rank(next) > rank(*current);
            if moves {
                *current = next;
            }
            moves
        });
    }

    /// The value now.
    pub fn get(&self) -> Readiness {
        *self.0.borrow()
    }

    /// Whether the process was told to stop.
    pub fn is_draining(&self) -> bool {
        self.get() == Readiness::Draining
    }

    /// Follows the value.
    pub fn watch(&self) -> watch::Receiver<Readiness> {
        self.0.subscribe()
    }
}

const fn rank(readiness: Readiness) -> u8 {
    match readiness {
        Readiness::LoadingBase => 0,
        Readiness::ReadingAdapters => 1,
        Readiness::Ready => 2,
        Readiness::Draining => 3,
        Readiness::Dead => 4,
    }
}

/// `/healthz`, `/readyz` and `/metrics`.
pub fn router(health: Health, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(health)
        .route(
            "/metrics",
            get(move || async move {
                let kind = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
                (kind, metrics.text())
            }),
        )
}

async fn healthz(State(health): State<Health>) -> impl IntoResponse {
    match health.get() {
        Readiness::Dead => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the compute thread has died, or stands still\n",
        ),
        _ => (StatusCode::OK, "ok\n"),
    }
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let wait = StatusCode::SERVICE_UNAVAILABLE;
    match health.get() {
        Readiness::LoadingBase => (wait, "loading the base model\n"),
        Readiness::ReadingAdapters => (wait, "reading the adapters' headers\n"),
        Readiness::Ready => (StatusCode::OK, "ok\n"),
        Readiness::Draining => (wait, "stopping\n"),
        Readiness::Dead => (wait, "the compute thread has died, or stands still\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_ends_late_does_not_make_a_stopping_engine_ready() {
        let health = Health::default();
        health.set(Readiness::ReadingAdapters);
        health.set(Readiness::Draining);
        health.set(Readiness::Ready);
        assert!(health.is_draining());
        health.set(Readiness::Dead);
        assert_eq!(health.get(), Readiness::Dead);
    }
}
