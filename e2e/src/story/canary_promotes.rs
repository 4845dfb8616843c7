//! A newer version is canaried 10 -> 50 -> 100 under live traffic and promoted by itself: no request fails, every
//! answer is its version's, and no pod restarts.

use std::time::Instant;

use anyhow::ensure;
use serde_json::json;

use super::Stage;
use super::stage::ENGINES;
use super::traffic::{Load, expectations};
use crate::cluster::MINUTE;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage.serve_amber(1, &rollout(8)).await?;
    let pods = stage.start_times(ENGINES).await?;
    stage.proved("v1 is served", start.elapsed());

    let expect = expectations(&[("colours", 1, "amber"), ("colours", 2, "basalt")]);
    let traffic = stage.start_traffic(&Load::new("load", &expect)).await?;
    stage.import("colours", "basalt", &json!({})).await?;
    for weight in [10, 50] {
        stage.weight(weight, 2 * MINUTE).await?;
        traffic.seen("colours@v2").await?;
        traffic.seen("colours@v1").await?;
        stage.proved(&format!("{weight} % of callers get v2"), start.elapsed());
    }
    stage.promoted(2, 2 * MINUTE).await?;
    stage.proved("v2 is stable", start.elapsed());

    traffic.stop().await?;
    let after = stage.ask_two_thousand(&Load::new("after", &expect)).await?;
    ensure!(after.only("colours@v2"), "after the promotion: {after:?}");
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted"
    );
    stage.proved("no request failed, no pod restarted", start.elapsed());
    Ok(())
}

/// Steps with pauses of some seconds; latency is compared loosely, because tests share a machine with others.
pub fn rollout(pause_seconds: u32) -> serde_json::Value {
    let pause = json!({"pause": {"seconds": pause_seconds}});
    json!({
        "strategy": "Canary",
        "canary": {"steps": [{"setWeight": 10}, pause, {"setWeight": 50}, pause]},
        "analysis": {
            "intervalSeconds": 4, "minimumRequests": 20, "failureLimit": 1,
            "rules": [{"metric": "error_rate", "maximum": "0.01"}, {"metric": "latency_p95", "maximumIncreasePercent": "300"}],
        },
        "progressDeadlineSeconds": 300,
    })
}
