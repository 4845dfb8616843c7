//! Replicas that follow do not count the cluster's objects a second time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use graftwork_operator::cache::Caches;
use graftwork_operator::lease::Term;
use graftwork_operator::metrics::Metrics;
use graftwork_operator::serve::{Shown, router};
use http::Request;
use serde_json::{Value, json};
use tower::ServiceExt as _;

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
