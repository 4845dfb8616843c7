//! Asks engines that are new or ejected whether they answer, so that no request has to find out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use graftwork_listen::clock;
use http::Request;
use http_body_util::{BodyExt as _, Full};

use crate::engine::Engine;
use crate::state::Shared;

const INTERVAL: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(2);

/// Probes for ever, each engine on its own so that one which hangs delays nobody.
pub async fn probe_engines(shared: Arc<Shared>) {
    let mut running: Vec<(Arc<Engine>, tokio::task::JoinHandle<()>)> = Vec::new();
    loop {
        running.retain(|(_, task)| !task.is_finished());
        for engine in shared.engines() {
            let is_running = running
                .iter()
                .any(|(running, _)| Arc::ptr_eq(running, &engine));
            if !is_running && engine.wants_probe(clock::now()) {
                let task = tokio::spawn(probe(shared.clone(), engine.clone()));
                running.push((engine, task));
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn probe(shared: Arc<Shared>, engine: Arc<Engine>) {
    let was_ejected = engine.is_ejected();
    let answered = tokio::time::timeout(TIMEOUT, answers(&shared, &engine))
        .await
        .unwrap_or(false);
    engine.note_probe(answered, clock::now());
    if was_ejected && answered {
        tracing::info!(engine = %engine.authority(), "engine is back");
    }
}

async fn answers(shared: &Shared, engine: &Engine) -> bool {
    let uri = format!("http://{}/v1/models", engine.authority());
    let Ok(request) = Request::get(uri).body(Full::<Bytes>::default()) else {
        return false;
    };
    match shared.client.request(request).await {
        Ok(response) if response.status().is_success() => {
            response.into_body().collect().await.is_ok()
        }
        _ => false,
    }
}
