//! A version that passes its gate and answers without end is canaried and taken back by itself; status names metric,
//! value, limit and samples, and the digest is not tried again until someone says Retry.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::serving_endpoint::RolloutState;
use serde_json::json;

use super::Stage;
use super::stage::{self, condition};
use crate::cluster::MINUTE;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let rollout = json!({
        "strategy": "Canary",
        "canary": {"steps": [{"setWeight": 30}, {"pause": {"seconds": 120}}]},
        "analysis": {
            "intervalSeconds": 4, "minimumRequests": 20, "failureLimit": 1,
            "rules": [{"metric": "error_rate", "maximum": "0.01"}, {"metric": "latency_p95", "maximumIncreasePercent": "100"}],
        },
    });
    stage.serve_amber(1, &rollout).await?;
    let load = stage
        .start_load(
            "load",
            "assistants",
            &[
                "--model",
                "colours",
                "--seconds",
                "90",
                "--callers",
                "8",
                "--users",
                "200",
                "--max-tokens",
                "256",
                "--prompt-template",
                stage::PROMPT,
            ],
        )
        .await?;
    stage.import("colours", "rambling", &json!({})).await?;
    stage
        .rollout_state(&[RolloutState::RolledBack], 2 * MINUTE)
        .await?;
    stage.proved("v2 was taken back", start.elapsed());

    // The state is decided first and observed in the conditions after that.
    let status = stage
        .endpoint(
            "assistants",
            MINUTE,
            "the condition RolledBack",
            |endpoint| {
                let status = endpoint.status.as_ref()?;
                (condition(&status.conditions, "RolledBack")?.status == "True")
                    .then(|| status.clone())
            },
        )
        .await?;
    let rejected = status.rejected.first().context("nothing is rejected")?;
    ensure!(
        rejected.version == 2 && rejected.message.contains("latency_p95"),
        "{rejected:?}"
    );
    ensure!(
        rejected.message.contains("requests"),
        "the message names no samples: {rejected:?}"
    );
    let ready = condition(&status.conditions, "Ready").context("Ready")?;
    let rolled_back = condition(&status.conditions, "RolledBack").context("RolledBack")?;
    ensure!(
        ready.status == "True" && rolled_back.status == "True",
        "{:?}",
        status.conditions
    );
    let served = stage.served().await?;
    ensure!(
        served
            .stable
            .as_ref()
            .is_some_and(|stable| stable.version == 1),
        "{served:?}"
    );
    let columns = stage
        .world
        .cluster
        .kubectl(&["-n", &stage.namespace, "get", "graft"])
        .await?;
    ensure!(columns.contains("assistants"), "{columns}");

    let summary = stage.load_summary(&load, 3 * MINUTE).await?;
    ensure!(summary.failed == 0, "failed requests: {summary:?}");

    let answer = stage
        .command("again", "Retry", &rejected.digest, None)
        .await?;
    ensure!(answer.outcome.as_str() != "Refused", "{answer:?}");
    stage
        .rollout_state(
            &[
                RolloutState::Preparing,
                RolloutState::Stepping,
                RolloutState::Paused,
            ],
            MINUTE,
        )
        .await?;
    stage.proved("Retry canaries it again", start.elapsed());
    Ok(())
}
