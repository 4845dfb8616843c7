//! One of two engines is killed under load: no unary request fails; streams that were open on it end in an error
//! event and are counted apart.

use std::time::Instant;

use anyhow::{Context as _, ensure};
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
    let expect = expectations(&[("colours", 1, "amber")]);
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
                "40",
                "--callers",
                "16",
                "--users",
                "200",
                "--max-tokens",
                "8",
                "--stream-percent",
                "25",
                "--expect",
                &expect,
                "--prompt-template",
                stage::PROMPT,
            ],
        )
        .await?;
    for _ in 0..2 {
        stage
            .endpoint("assistants", 2 * MINUTE, "two ready engines", |endpoint| {
                (endpoint.status.as_ref()?.ready_replicas == 2).then_some(())
            })
            .await?;
        stage.busy("load", 100).await?;
        let pods = stage.start_times(ENGINES).await?;
        let (victim, _) = pods.first().context("no engine")?;
        stage
            .world
            .cluster
            .kill_pod(&stage.namespace, victim)
            .await?;
        stage.proved(&format!("killed {victim}"), start.elapsed());
        stage
            .endpoint("assistants", MINUTE, "an engine less", |endpoint| {
                (endpoint.status.as_ref()?.ready_replicas < 2).then_some(())
            })
            .await?;
    }
    let summary = stage.load_summary(&load, 5 * MINUTE).await?;
    ensure!(summary.failed == 0 && summary.total >= 2000, "{summary:?}");
    stage.proved(
        &format!(
            "no unary request failed; {} streams ended in an error event",
            summary.stream_errors
        ),
        start.elapsed(),
    );
    Ok(())
}
