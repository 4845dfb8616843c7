//! A GPU profile makes the right Job, and the scheduler places it once a node offers the resource. The node only
//! advertises it: the CPU image runs.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::TrainingRun;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::fixture::marker_rows;
use super::stage::condition;
use super::{Stage, audit_log};
use crate::cluster::{MINUTE, wait};
use crate::manifests::{self, Training};
use crate::report::not_proved;

const RESOURCE: &str = "nvidia.com/gpu";

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    if audit_log().is_none() {
        not_proved(
            "that runs wait for a GPU and get one: what a node of yours offers is left alone",
        );
        return Ok(());
    }
    let outcome = on_gpu(&stage).await;
    let back = advertise(&stage, None).await;
    outcome?;
    back
}

/// The node offers a GPU where this ends: the caller takes it away.
async fn on_gpu(stage: &Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    advertise(stage, None).await?;
    stage.seed().await?;
    stage
        .apply(&manifests::rows("amber", &marker_rows("amber")))
        .await?;
    stage
        .apply(&manifests::config_map_dataset("amber", "amber"))
        .await?;
    let training = Training {
        name: "on-gpu",
        dataset: "amber",
        adapter: "",
        steps: 10,
        rank: 4,
        batch: 16,
        checkpoint_every: 5,
        ..Training::default()
    };
    let mut run = training.object_without_adapter();
    run.data["spec"]["compute"] = json!({"profile": "gpu"});
    stage.apply(&run).await?;
    let queued = stage
        .world
        .cluster
        .wait_for::<TrainingRun, _>(
            &stage.namespace,
            "on-gpu",
            MINUTE,
            "the reason Queued",
            |run| {
                let succeeded = condition(&run?.status.as_ref()?.conditions, "Succeeded")?;
                (succeeded.reason == "Queued").then(|| succeeded.message.clone())
            },
        )
        .await?;
    stage.proved(
        &format!("without a GPU the run is queued: {queued}"),
        start.elapsed(),
    );

    let pod = wait("the trainer's pod", MINUTE, || async {
        Ok(stage
            .world
            .cluster
            .pods(&stage.namespace, "app.kubernetes.io/component=trainer")
            .await?
            .into_iter()
            .next())
    })
    .await?;
    check(&pod)?;
    advertise(stage, Some(1)).await?;
    stage.run_complete("on-gpu", 3 * MINUTE).await?;
    stage.proved(
        "with one it was scheduled and has completed",
        start.elapsed(),
    );
    Ok(())
}

fn check(pod: &Pod) -> anyhow::Result<()> {
    let spec = pod.spec.as_ref().context("spec")?;
    let limits: &BTreeMap<_, _> = spec
        .containers
        .first()
        .and_then(|c| c.resources.as_ref())
        .and_then(|r| r.limits.as_ref())
        .context("limits")?;
    ensure!(
        limits
            .get(RESOURCE)
            .is_some_and(|quantity| quantity.0 == "1"),
        "limits: {limits:?}"
    );
    let tolerations = spec.tolerations.clone().unwrap_or_default();
    ensure!(
        tolerations
            .iter()
            .any(|t| t.key.as_deref() == Some(RESOURCE)),
        "tolerations: {tolerations:?}"
    );
    Ok(())
}

/// Makes the local cluster's node offer `count` GPUs, or none.
async fn advertise(stage: &Stage, count: Option<u32>) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(stage.world.cluster.client.clone());
    let node = nodes
        .list(&ListParams::default().limit(1))
        .await?
        .items
        .into_iter()
        .next()
        .context("no node")?;
    let name = node.metadata.name.context("a node without a name")?;
    let count = count.map_or(Value::Null, |count| json!(count.to_string()));
    let patch =
        json!({"status": {"capacity": {RESOURCE: count}, "allocatable": {RESOURCE: count}}});
    nodes
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}
