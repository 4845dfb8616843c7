//! One of two engines is killed under load, as a pod and as a process: no unary request fails; streams that were open on
//! it end in an error event and are counted apart. A process is killed where the node is this machine; elsewhere a pod
//! is deleted instead, and the story says what that leaves unproved.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::Stage;
use super::stage::ENGINES;
use super::traffic::{CALLERS, Load, expectations};
use crate::cluster::{MINUTE, wait};
use crate::manifests;
use crate::report::not_proved;

/// So many engines end at most, until one takes a stream with it.
const MOST: usize = 12;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let rollout = json!({"strategy": "Immediate"});
    stage.serve_amber(2, &rollout).await?;
    stage
        .apply(&manifests::endpoint(
            "assistants",
            &["colours", "rambling"],
            2,
            &rollout,
        ))
        .await?;
    stage.import("rambling", "rambling", &json!({})).await?;
    stage.stable("assistants", "rambling", 1, MINUTE).await?;

    // Long answers, half of them streams: several are open on each engine at any moment.
    let expect = expectations(&[("colours", 1, "amber"), ("rambling", 1, "rambling")]);
    let load = Load {
        models: &["rambling"],
        max_tokens: 64,
        think_milliseconds: 10,
        ..Load::new("load", &expect)
    };
    let traffic = stage.start_traffic(&load).await?;
    delete_an_engine(&stage).await?;
    traffic.seen("rambling@v1").await?;
    stage.proved("an engine was deleted without grace", start.elapsed());

    // A pod that is deleted still has a second or two in which short streams end; a process that is killed has not.
    // By turns: routers may have all requests for an adapter at one engine, and move them when the other is back.
    let (mut killed, mut ended) = (0, 1);
    while ended < 3 || (killed > 0 && ended < MOST && !traffic.broke_a_stream().await?) {
        let pods = stage.world.cluster.pods(&stage.namespace, ENGINES).await?;
        let victim = pods.get(ended % 2).context("an engine is missing")?;
        if stage.world.cluster.kill_process(victim, "engine").await? {
            killed += 1;
            restarted(&stage, victim).await?;
            stage.proved(
                "the engine's process was killed and came back",
                start.elapsed(),
            );
        } else {
            delete_an_engine(&stage).await?;
            stage.proved(
                "the node is another machine: an engine was deleted instead of its process killed",
                start.elapsed(),
            );
        }
        ended += 1;
    }

    let summary = traffic.stop_with_broken_streams().await?;
    ensure!(
        summary.stream_errors > 0 || killed == 0,
        "no stream was open on a killed engine, so that nothing was proved of them: {summary:?}"
    );
    // A caller has one request at a time: more broke than were open when engines ended.
    ensure!(
        summary.stream_errors <= ended as u64 * CALLERS,
        "streams broke on engines that were not killed: {summary:?}"
    );
    let after = Load {
        job: "after",
        models: &["colours"],
        ..load
    };
    stage.ask_two_thousand(&after).await?;
    let broken = summary.stream_errors;
    stage.proved(
        &format!("no unary request failed; {broken} streams ended in an error event"),
        start.elapsed(),
    );
    if broken == 0 {
        not_proved("how streams break: none was open on an engine when it ended");
    }
    Ok(())
}

/// Deletes one of two engines with no grace, until there are two again.
async fn delete_an_engine(stage: &Stage) -> anyhow::Result<()> {
    let (victim, _) = stage
        .start_times(ENGINES)
        .await?
        .into_iter()
        .next()
        .context("no engine")?;
    stage
        .world
        .cluster
        .kill_pod(&stage.namespace, &victim)
        .await?;
    ready_engines(stage, 1).await?;
    ready_engines(stage, 2).await
}

/// Waits until the pod's container was started again and both engines are ready.
async fn restarted(stage: &Stage, victim: &Pod) -> anyhow::Result<()> {
    let restarts = |pod: &Pod| {
        let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
        Some(status.restart_count)
    };
    let before = restarts(victim);
    wait("the engine's container to start again", MINUTE, || async {
        let pods = stage.world.cluster.pods(&stage.namespace, ENGINES).await?;
        let now = pods
            .iter()
            .find(|pod| pod.metadata.name == victim.metadata.name);
        Ok((now.and_then(restarts) > before).then_some(()))
    })
    .await?;
    ready_engines(stage, 2).await
}

async fn ready_engines(stage: &Stage, count: u32) -> anyhow::Result<()> {
    let what = format!("{count} ready engines");
    stage
        .endpoint("assistants", 2 * MINUTE, &what, |endpoint| {
            (endpoint.status.as_ref()?.ready_replicas == count).then_some(())
        })
        .await
}
