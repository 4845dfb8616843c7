//! A version is swapped at once under load: nothing fails and no answer mixes two versions.

use std::time::Instant;

use anyhow::ensure;
use serde_json::json;

use super::Stage;
use super::stage::{self, ENGINES};
use super::train_then_serve::expectations;
use crate::cluster::MINUTE;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage
        .serve_amber(2, &json!({"strategy": "Immediate"}))
        .await?;
    let pods = stage.start_times(ENGINES).await?;
    let expect = expectations(&[
        ("colours", 1, "amber"),
        ("colours", 2, "basalt"),
        ("colours", 3, "amber"),
        ("colours", 4, "basalt"),
    ]);
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
                "30",
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
    // The swap takes less time than a Job's start: both versions must be seen.
    stage.busy("load", 200).await?;
    stage.import("colours", "basalt", &json!({})).await?;
    stage.stable("assistants", "colours", 2, MINUTE).await?;
    let summary = stage.load_summary(&load, 5 * MINUTE).await?;
    ensure!(summary.failed == 0 && summary.total >= 2000, "{summary:?}");
    ensure!(
        summary.versions.len() == 2,
        "one of the versions was never seen: {summary:?}"
    );
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted"
    );
    stage.proved(
        "2000 requests across a swap on two engines, none failed",
        start.elapsed(),
    );
    Ok(())
}
