//! What `/metrics` shows: replicas that follow do not count the cluster's objects a second time, and what
//! fails, takes long or waits can be seen.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use graftwork_operator::cache::Caches;
use graftwork_operator::controllers::run_all;
use graftwork_operator::lease::Term;
use graftwork_operator::metrics::Metrics;
use graftwork_operator::serve::{Shown, router};
use http::{Method, Request};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::carry_out::{context_with_queues, dataset};
use crate::fake_api::{Answer, FakeApi};

fn run() -> Value {
    json!({
        "apiVersion": "graftwork.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": "r", "namespace": "team", "uid": "u", "resourceVersion": "4"},
        "spec": {
            "baseModel": {"uri": "pvc://models/tiny"},
            "datasetRef": {"name": "d"},
            "method": {"type": "LoRA", "lora": {}},
        },
        "status": {"conditions": [{
            "type": "Succeeded", "status": "Unknown", "reason": "Training", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    })
}

async fn scrape(term: Arc<Term>) -> String {
    let api = FakeApi::new(|_, _, _| Answer::Take).with("trainingruns", vec![run()]);
    let (caches, touches, _receivers) = Caches::start(&api.client());
    caches.ready().await;
    let shown = Shown {
        term,
        metrics: Metrics::new().unwrap(),
        caches,
        touches,
        ready: Arc::new(AtomicBool::new(true)),
    };
    read(shown).await
}

async fn read(shown: Shown) -> String {
    let request = Request::get("/metrics")
        .body(axum::body::Body::empty())
        .unwrap();
    let answer = router(shown).oneshot(request).await.unwrap();
    let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20)
        .await
        .unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn only_the_leader_counts_runs() {
    let leads = scrape(Term::forever()).await;
    assert!(leads.contains("graftwork_leader 1"), "{leads}");
    let line = "graftwork_training_runs{reason=\"Training\"} 1";
    assert!(leads.contains(line), "{leads}");
    let follows = scrape(Term::new()).await;
    assert!(follows.contains("graftwork_leader 0"), "{follows}");
    assert!(!follows.contains("graftwork_training_runs{"), "{follows}");
}

/// The value of a series; 0 where it is not there.
fn value(metrics: &str, series: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_failing_reconcile_moves_errors_durations_and_the_depth_of_the_queue() {
    const OBJECTS: i32 = 20;
    const AT_ONCE: f64 = 16.0;
    let datasets = (0..OBJECTS).map(|number| {
        let mut dataset = serde_json::to_value(dataset()).unwrap();
        dataset["metadata"]["name"] = json!(format!("x-{number}"));
        dataset["metadata"]["uid"] = json!(format!("u-{number}"));
        dataset
    });
    // No write is ever answered: each look ends at the deadline of its first one.
    let api = FakeApi::new(|method, _, _| match *method {
        Method::GET => Answer::Status(404, "NotFound"),
        _ => Answer::Silence,
    })
    .with("datasets", datasets.collect());
    let term = Term::forever();
    let (context, queues) = context_with_queues(&api, &term).await;
    let shown = Shown {
        term,
        metrics: context.metrics.clone(),
        caches: context.caches.clone(),
        touches: context.touches.clone(),
        ready: Arc::new(AtomicBool::new(true)),
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(run_all(Arc::new(context), queues, stop.clone()));

    let depth = "graftwork_queue_depth{kind=\"Dataset\"}";
    let errors = "graftwork_reconcile_errors_total{category=\"deadline\",kind=\"Dataset\"}";
    let ended = "graftwork_reconciles_total{kind=\"Dataset\"}";
    let timed = "graftwork_reconcile_duration_seconds_count{kind=\"Dataset\"}";
    // Within the deadline of the first looks, which do not end.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let text = read(shown.clone()).await;
    let waiting = f64::from(OBJECTS) - AT_ONCE;
    for (series, expected) in [(depth, waiting), (errors, 0.0), (ended, 0.0), (timed, 0.0)] {
        let value = value(&text, series);
        assert!((value - expected).abs() < 0.5, "{series} {value}: {text}");
    }
    // Just past the deadline of the first looks.
    tokio::time::sleep(Duration::from_millis(9500)).await;
    let text = read(shown).await;
    assert!(value(&text, depth) < 0.5, "{text}");
    for series in [errors, ended, timed] {
        assert!(value(&text, series) >= AT_ONCE, "{series}: {text}");
    }
    stop.cancel();
    running.abort();
}
