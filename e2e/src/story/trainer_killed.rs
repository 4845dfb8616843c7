//! A trainer is killed twice: the run resumes from its checkpoints and ends with the digest of a run that was never
//! killed. A kill costs no retry.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::TrainingRun;
use kube::api::DynamicObject;
use serde_json::json;

use super::Stage;
use crate::cluster::{MINUTE, wait};
use crate::manifests::{self, Training};

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
    let steady = stage.run_complete("steady", 5 * MINUTE).await?;
    stage.proved("the uninterrupted run", start.elapsed());

    stage.apply(&training("killed")).await?;
    for step in [15, 40] {
        stage
            .world
            .cluster
            .wait_for::<TrainingRun, _>(
                &stage.namespace,
                "killed",
                3 * MINUTE,
                &format!("step {step}"),
                |run| (run?.status.as_ref()?.progress.as_ref()?.step >= step).then_some(()),
            )
            .await?;
        let pods = stage
            .world
            .cluster
            .pods(
                &stage.namespace,
                "app.kubernetes.io/component=trainer,app.kubernetes.io/instance=killed",
            )
            .await?;
        let pod = pods
            .iter()
            .find(|pod| {
                pod.status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref())
                    == Some("Running")
            })
            .and_then(|pod| pod.metadata.name.clone())
            .context("no running trainer")?;
        stage.world.cluster.kill_pod(&stage.namespace, &pod).await?;
        wait("the pod to be gone", MINUTE, || async {
            Ok(stage
                .get::<k8s_openapi::api::core::v1::Pod>(&pod)
                .await?
                .is_none()
                .then_some(()))
        })
        .await?;
        stage.proved(&format!("killed {pod}"), start.elapsed());
    }
    let killed = stage.run_complete("killed", 5 * MINUTE).await?;
    let (steady, killed) = (
        steady.status.context("status")?,
        killed.status.context("status")?,
    );
    let attempts = killed.attempts.context("attempts")?;
    ensure!(
        attempts.started == 3 && attempts.failed == 0,
        "{attempts:?}"
    );
    let digests = (
        steady.result.context("result")?.digest,
        killed.result.context("result")?.digest,
    );
    ensure!(digests.0 == digests.1, "the digests differ: {digests:?}");
    stage.proved("the same digest after two kills", start.elapsed());
    Ok(())
}

/// About twenty seconds of training.
fn training(name: &str) -> DynamicObject {
    let mut run = Training {
        name,
        dataset: "topics",
        adapter: "",
        steps: 80,
        rank: 8,
        batch: 32,
        checkpoint_every: 10,
        ..Training::default()
    }
    .object_without_adapter();
    run.data["spec"]["evaluation"] = json!({"metrics": ["Loss"], "maximumRows": 50});
    run
}
