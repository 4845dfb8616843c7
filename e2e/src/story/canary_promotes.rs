//! A newer version is canaried 10 -> 50 -> 100 under live traffic and promoted by itself: no request fails, every
//! answer is its version's, and no pod restarts.

use std::time::Instant;

use anyhow::ensure;
use serde_json::json;

use super::Stage;
use super::stage::{self, ENGINES};
use super::train_then_serve::expectations;
use crate::cluster::MINUTE;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage.serve_amber(1, &rollout()).await?;
    let pods = stage.start_times(ENGINES).await?;
    stage.proved("v1 is served", start.elapsed());

    let expect = expectations(&[("colours", 1, "amber"), ("colours", 2, "basalt")]);
    let load = stage
        .start_load(
            "load",
            "assistants",
            &[
                "--model",
                "colours",
                "--requests",
                "2000",
                "--minimum-seconds",
                "60",
                "--callers",
                "16",
                "--users",
                "200",
                "--max-tokens",
                "4",
                "--stream-percent",
                "50",
                "--expect",
                &expect,
                "--prompt-template",
                stage::PROMPT,
            ],
        )
        .await?;
    stage.import("colours", "basalt", &json!({})).await?;
    stage.stable("assistants", "colours", 2, 3 * MINUTE).await?;
    stage.proved("v2 is stable", start.elapsed());

    let summary = stage.load_summary(&load, 5 * MINUTE).await?;
    ensure!(summary.failed == 0, "failed requests: {summary:?}");
    ensure!(summary.total >= 2000, "too few requests: {summary:?}");
    for version in ["colours@v1", "colours@v2"] {
        ensure!(
            summary
                .versions
                .get(version)
                .is_some_and(|seen| seen.requests > 0),
            "{version} was never seen: {summary:?}"
        );
    }
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted"
    );
    stage.proved("no request failed, no pod restarted", start.elapsed());
    Ok(())
}

/// Steps of some seconds; latency is compared loosely, because tests share a machine with others.
pub fn rollout() -> serde_json::Value {
    json!({
        "strategy": "Canary",
        "canary": {"steps": [{"setWeight": 10}, {"pause": {"seconds": 8}}, {"setWeight": 50}, {"pause": {"seconds": 8}}]},
        "analysis": {
            "intervalSeconds": 4, "minimumRequests": 20, "failureLimit": 1,
            "rules": [{"metric": "error_rate", "maximum": "0.01"}, {"metric": "latency_p95", "maximumIncreasePercent": "300"}],
        },
        "progressDeadlineSeconds": 300,
    })
}
