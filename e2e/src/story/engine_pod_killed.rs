//! One of two engines is killed under load, twice: no unary request fails; streams that were open on it end in an error
//! event and are counted apart.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::Stage;
use super::stage::ENGINES;
use super::traffic::{CALLERS, Load, expectations};
use crate::cluster::MINUTE;
use crate::manifests;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let rollout = json!({"strategy": "Immediate"});
    stage.serve_amber(2, &rollout).await?;
    let models = ["colours", "rambling"];
    stage
        .apply(&manifests::endpoint("assistants", &models, 2, &rollout))
        .await?;
    stage.import("rambling", "rambling", &json!({})).await?;
    stage.stable("assistants", "rambling", 1, MINUTE).await?;

    // Half of the requests ask for long answers, and half of those are streams: some are open at any moment.
    let expect = expectations(&[("colours", 1, "amber"), ("rambling", 1, "rambling")]);
    let load = Load {
        models: &models,
        max_tokens: 64,
        think_milliseconds: 10,
        ..Load::new("load", &expect)
    };
    let traffic = stage.start_traffic(&load).await?;
    for _ in 0..2 {
        ready_engines(&stage, 2).await?;
        traffic.seen("rambling@v1").await?;
        let pods = stage.start_times(ENGINES).await?;
        let (victim, _) = pods.first().context("no engine")?;
        stage
            .world
            .cluster
            .kill_pod(&stage.namespace, victim)
            .await?;
        stage.proved(&format!("killed {victim}"), start.elapsed());
        ready_engines(&stage, 1).await?;
    }
    ready_engines(&stage, 2).await?;
    stage.proved("there are two engines again", start.elapsed());

    let summary = traffic.stop_with_broken_streams().await?;
    ensure!(
        summary.stream_errors > 0,
        "no stream was open on a killed engine, so that nothing was proved of them: {summary:?}"
    );
    // A caller has one request at a time: more broke than were open on the two engines.
    ensure!(
        summary.stream_errors <= 2 * CALLERS,
        "streams broke on engines that were not killed: {summary:?}"
    );
    let after = Load {
        job: "after",
        ..load
    };
    stage.ask_two_thousand(&after).await?;
    stage.proved(
        &format!(
            "no unary request failed; {} streams ended in an error event",
            summary.stream_errors
        ),
        start.elapsed(),
    );
    Ok(())
}

async fn ready_engines(stage: &Stage, count: u32) -> anyhow::Result<()> {
    let what = format!("{count} ready engines");
    stage
        .endpoint("assistants", 2 * MINUTE, &what, |endpoint| {
            (endpoint.status.as_ref()?.ready_replicas == count).then_some(())
        })
        .await
}
