//! A trainer is killed, suspended and resumed, and killed again: each attempt goes on from a checkpoint, and the run
//! ends with the digest of one that was left alone. Pods that are taken away cost no retry, a process that is killed does.
//! Of the one that is left alone, status has progress within five seconds.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::TrainingRun;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::json;

use super::Stage;
use super::stage::condition;
use crate::cluster::{MINUTE, wait};
use crate::manifests::{self, Training};

/// The run that is disturbed.
const RUN: &str = "killed";
/// Label selector of its trainers.
const TRAINERS: &str = "app.kubernetes.io/component=trainer,app.kubernetes.io/instance=killed";

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage.seed().await?;
    stage
        .apply(&manifests::dataset(
            "topics",
            "definitions and their topics",
            "topics.jsonl",
        ))
        .await?;
    stage.apply(&training("steady")).await?;
    let watched = stage.watch_run("steady", 5 * MINUTE).await?;
    let steady = stage.run_complete("steady", MINUTE).await?;
    stage.proved(
        &format!("the uninterrupted run: {}", watched.ensure_timely()?),
        start.elapsed(),
    );

    stage.apply(&training(RUN)).await?;
    let checkpoint = at_step(&stage, 15).await?;
    kill(&stage).await?;
    let from = goes_on(&stage, 2, checkpoint).await?;
    stage.proved(
        &format!("killed: goes on at {from}, the checkpoint was of {checkpoint}"),
        start.elapsed(),
    );

    let checkpoint = at_step(&stage, 40).await?;
    suspend(&stage).await?;
    set_suspend(&stage, false).await?;
    let from = goes_on(&stage, 3, checkpoint).await?;
    stage.proved(
        &format!("suspended and resumed: goes on at {from}, the checkpoint was of {checkpoint}"),
        start.elapsed(),
    );

    let checkpoint = at_step(&stage, 65).await?;
    let by_signal = kill_process(&stage).await?;
    let from = goes_on(&stage, 4, checkpoint).await?;
    let how = if by_signal { "kill -9" } else { "killed again" };
    stage.proved(
        &format!("{how}: goes on at {from}, the checkpoint was of {checkpoint}"),
        start.elapsed(),
    );

    let killed = stage.run_complete(RUN, 5 * MINUTE).await?;
    let (steady, killed) = (
        steady.status.context("status")?,
        killed.status.context("status")?,
    );
    let attempts = killed.attempts.context("attempts")?;
    // A pod that is taken away costs no retry; a process that ends by itself does.
    let (evicted, failed) = if by_signal { (1, 1) } else { (2, 0) };
    ensure!(
        (attempts.started, attempts.evicted, attempts.failed) == (4, evicted, failed),
        "{attempts:?}"
    );
    let digests = (
        steady.result.context("result")?.digest,
        killed.result.context("result")?.digest,
    );
    ensure!(digests.0 == digests.1, "the digests differ: {digests:?}");
    ensure!(
        steady.metrics == killed.metrics,
        "the metrics differ: {:?}, {:?}",
        steady.metrics,
        killed.metrics
    );
    stage.proved("the same digest and metrics", start.elapsed());
    Ok(())
}

/// Some fifteen seconds of training.
fn training(name: &str) -> DynamicObject {
    let mut run = Training {
        name,
        dataset: "topics",
        adapter: "",
        steps: 100,
        rank: 8,
        batch: 32,
        checkpoint_every: 10,
        ..Training::default()
    }
    .object_without_adapter();
    run.data["spec"]["evaluation"] = json!({"metrics": ["Loss"], "maximumRows": 50});
    run
}

/// Waits until the run has taken so many steps; the step of the checkpoint that its status names then.
async fn at_step(stage: &Stage, step: u64) -> anyhow::Result<u64> {
    let what = format!("step {step} and a checkpoint");
    stage
        .world
        .cluster
        .wait_for::<TrainingRun, _>(&stage.namespace, RUN, 3 * MINUTE, &what, |run| {
            let status = run?.status.as_ref()?;
            let reached = status.progress.as_ref()?.step >= step;
            reached.then_some(status.checkpoint.as_ref()?.step)
        })
        .await
}

/// Takes the trainer's pod away with no grace; it may still have a second in which it saves.
async fn kill(stage: &Stage) -> anyhow::Result<()> {
    let pod = running_trainer(stage).await?;
    let name = pod.metadata.name.context("the pod has no name")?;
    stage.world.cluster.kill_pod(&stage.namespace, &name).await
}

/// Kills the trainer's process, which saves nothing more; whether that was possible. Where the node is another machine,
/// its pod is taken away.
async fn kill_process(stage: &Stage) -> anyhow::Result<bool> {
    let pod = running_trainer(stage).await?;
    let killed = stage.world.cluster.kill_process(&pod, "trainer").await?;
    if !killed {
        kill(stage).await?;
    }
    Ok(killed)
}

async fn running_trainer(stage: &Stage) -> anyhow::Result<Pod> {
    let pods = stage.world.cluster.pods(&stage.namespace, TRAINERS).await?;
    let phase = |pod: &Pod| pod.status.as_ref()?.phase.clone();
    pods.into_iter()
        .find(|pod| phase(pod).as_deref() == Some("Running"))
        .context("no running trainer: the run is over before it could be killed")
}

async fn set_suspend(stage: &Stage, suspend: bool) -> anyhow::Result<()> {
    let patch = json!({"spec": {"suspend": suspend}});
    stage
        .world
        .cluster
        .api::<TrainingRun>(&stage.namespace)
        .patch(RUN, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// Suspends the run and waits until it says so and nothing of it runs.
async fn suspend(stage: &Stage) -> anyhow::Result<()> {
    set_suspend(stage, true).await?;
    let cluster = &stage.world.cluster;
    let what = "the reason Suspended";
    let attempts = cluster
        .wait_for::<TrainingRun, _>(&stage.namespace, RUN, MINUTE, what, |run| {
            let status = run?.status.as_ref()?;
            let succeeded = condition(&status.conditions, "Succeeded")?;
            let suspended = succeeded.reason == "Suspended" && succeeded.status == "Unknown";
            status.attempts.filter(|_| suspended)
        })
        .await?;
    ensure!(attempts.started == attempts.ended, "{attempts:?}");
    wait("the trainer to be gone", MINUTE, || async {
        let pods = cluster.pods(&stage.namespace, TRAINERS).await?;
        let running = pods.iter().any(|pod| {
            let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
            !matches!(phase, Some("Succeeded" | "Failed"))
        });
        Ok((!running).then_some(()))
    })
    .await
}

/// The first step that the attempt reports; fails where it lies before the checkpoint. What the trainer reports before
/// it has read the checkpoint has no total.
async fn goes_on(stage: &Stage, attempt: u32, checkpoint: u64) -> anyhow::Result<u64> {
    let mut old = None;
    let what = format!("the first step of attempt {attempt}");
    let first = stage
        .world
        .cluster
        .wait_for::<TrainingRun, _>(&stage.namespace, RUN, MINUTE, &what, |run| {
            let status = run?.status.as_ref()?;
            if status.attempts?.started < attempt {
                return None;
            }
            let progress = status.progress.as_ref()?;
            // The report of the attempt before stays until there is another.
            let old = old.get_or_insert_with(|| progress.last_update_time.clone());
            let is_new = progress.last_update_time != *old && progress.total_steps > 0;
            is_new.then_some(progress.step)
        })
        .await?;
    ensure!(
        first >= checkpoint,
        "attempt {attempt} began at step {first}, the checkpoint was of step {checkpoint}"
    );
    Ok(first)
}
