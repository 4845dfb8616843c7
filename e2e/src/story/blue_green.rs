//! Blue-green between two versions: the candidate is reachable by header only, then takes all traffic at once when
//! a person says so.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::serving_endpoint::RolloutState;
use serde_json::json;

use super::Stage;
use super::stage;
use super::train_then_serve::expectations;
use crate::cluster::MINUTE;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let rollout = json!({
        "strategy": "BlueGreen",
        "blueGreen": {"autoPromote": false, "previewSeconds": 5, "scaleDownDelaySeconds": 5},
    });
    stage.serve_amber(1, &rollout).await?;
    stage.import("colours", "basalt", &json!({})).await?;
    stage
        .rollout_state(&[RolloutState::Paused], 2 * MINUTE)
        .await?;

    let expect = expectations(&[("colours", 1, "amber"), ("colours", 2, "basalt")]);
    let common = [
        "--model",
        "colours",
        "--requests",
        "100",
        "--callers",
        "8",
        "--max-tokens",
        "4",
        "--expect",
        &expect,
        "--prompt-template",
        stage::PROMPT,
    ];
    let plain = stage.start_load("plain", "assistants", &common).await?;
    let summary = stage.load_summary(&plain, 2 * MINUTE).await?;
    ensure!(
        summary.failed == 0 && summary.only("colours@v1"),
        "without the header: {summary:?}"
    );
    let header = [&common[..], &["--version", "candidate"]].concat();
    let preview = stage.start_load("preview", "assistants", &header).await?;
    let summary = stage.load_summary(&preview, 2 * MINUTE).await?;
    ensure!(
        summary.failed == 0 && summary.only("colours@v2"),
        "with the header: {summary:?}"
    );
    stage.proved("the candidate is reachable by header only", start.elapsed());

    let candidate = stage.served().await?.candidate.context("no candidate")?;
    let answer = stage
        .command("go", "Promote", &candidate.digest, None)
        .await?;
    ensure!(answer.outcome.as_str() != "Refused", "{answer:?}");
    stage.stable("assistants", "colours", 2, 2 * MINUTE).await?;
    let after = stage.start_load("after", "assistants", &common).await?;
    let summary = stage.load_summary(&after, 2 * MINUTE).await?;
    ensure!(
        summary.failed == 0 && summary.only("colours@v2"),
        "after the promotion: {summary:?}"
    );
    stage.proved("all traffic moved at once", start.elapsed());
    Ok(())
}
