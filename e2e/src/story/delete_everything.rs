//! When every object of ours is deleted, all that the operator made goes too, of whatever kind, but the store's claim,
//! which is labelled and kept; what belongs to others is not touched.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::labels;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};
use serde_json::json;

use super::Stage;
use super::fixture::marker_rows;
use super::from_git_again::delete_all;
use super::inventory::Object;
use crate::cluster::{MINUTE, wait};
use crate::manifests::{self, Training};

/// The claim that outlives everything.
const STORE: &str = "graftwork-store";

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage.seed_with_adapters().await?;
    stage
        .apply(&manifests::rows("amber", &marker_rows("amber")))
        .await?;
    make_theirs(&stage).await?;
    let others = stage.inventory().await?;

    stage
        .serve_seeded(1, &json!({"strategy": "Immediate"}))
        .await?;
    stage
        .apply(&manifests::config_map_dataset("amber", "amber"))
        .await?;
    let training = Training {
        name: "short",
        dataset: "amber",
        adapter: "",
        steps: 5,
        rank: 4,
        batch: 16,
        checkpoint_every: 5,
        ..Training::default()
    };
    stage.apply(&training.object_without_adapter()).await?;
    stage.run_complete("short", 3 * MINUTE).await?;
    let full = stage.inventory().await?;
    for kind in [
        "ConfigMap",
        "Service",
        "Deployment",
        "Job",
        "Pod",
        "PersistentVolumeClaim",
    ] {
        ensure!(
            full.iter().any(|object| object.ours && object.kind == kind),
            "nothing of kind {kind} is there to be deleted: {full:#?}"
        );
    }
    stage.proved("something of every kind is there", start.elapsed());

    delete_all(&stage).await?;
    let left = wait("everything of ours to be gone", 2 * MINUTE, || async {
        let left = new_ones(&stage.inventory().await?, &others);
        Ok((left.len() <= 1).then_some(left))
    })
    .await;
    let left = match left {
        Ok(left) => left,
        Err(error) => {
            let left = new_ones(&stage.inventory().await?, &others);
            return Err(error.context(format!("left: {left:#?}")));
        }
    };
    ensure!(
        left.iter()
            .all(|object| (object.kind.as_str(), object.name.as_str())
                == ("PersistentVolumeClaim", STORE))
            && left.len() == 1,
        "not just the store's claim is left: {left:#?}"
    );
    claim_is_labelled(&stage).await?;
    stage.proved("only the store's claim is left", start.elapsed());

    let now = stage.inventory().await?;
    for object in &others {
        ensure!(
            now.contains(object),
            "{} {} of others was touched: {object:?}",
            object.kind,
            object.name
        );
    }
    theirs_is_whole(&stage).await?;
    stage.proved("nothing of others was touched", start.elapsed());
    Ok(())
}

/// Objects that were not there before.
fn new_ones(now: &[Object], before: &[Object]) -> Vec<Object> {
    now.iter()
        .filter(|object| before.iter().all(|known| known.uid != object.uid))
        .cloned()
        .collect()
}

/// A `ConfigMap`, a Secret and a Deployment of somebody else; some have names and labels much like ours.
async fn make_theirs(stage: &Stage) -> anyhow::Result<()> {
    let labels = json!({"app.kubernetes.io/instance": "assistants", "app.kubernetes.io/managed-by": "somebody"});
    let objects = [
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "assistants-settings", "labels": labels}, "data": {"a": "b"},
        }),
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "theirs", "labels": labels}, "stringData": {"a": "b"},
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "assistants-page", "labels": labels},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "main", "image": stage.world.installation.image("e2e")}]},
            }},
        }),
    ];
    for object in objects {
        stage.apply(&serde_json::from_value(object)?).await?;
    }
    // Its controller makes a ReplicaSet and writes an annotation, once.
    stage
        .world
        .cluster
        .wait_for::<Deployment, _>(
            &stage.namespace,
            "assistants-page",
            MINUTE,
            "to be looked at by its controller",
            |deployment| {
                let deployment = deployment?;
                let observed = deployment.status.as_ref()?.observed_generation;
                (observed == deployment.metadata.generation).then_some(())
            },
        )
        .await
}

async fn theirs_is_whole(stage: &Stage) -> anyhow::Result<()> {
    let map: ConfigMap = stage
        .get("assistants-settings")
        .await?
        .context("another's ConfigMap is gone")?;
    let page: Deployment = stage
        .get("assistants-page")
        .await?
        .context("another's Deployment is gone")?;
    ensure!(
        map.data.is_some_and(|data| data.len() == 1),
        "another's ConfigMap was changed"
    );
    for metadata in [map.metadata, page.metadata] {
        ensure!(
            metadata.owner_references.is_none_or(|it| it.is_empty())
                && metadata.labels.is_some_and(
                    |it| it.get(labels::MANAGED_BY).map(String::as_str) == Some("somebody")
                ),
            "{:?} was adopted",
            metadata.name
        );
    }
    Ok(())
}

async fn claim_is_labelled(stage: &Stage) -> anyhow::Result<()> {
    let claim: PersistentVolumeClaim = stage.get(STORE).await?.context("the store's claim")?;
    let metadata = claim.metadata;
    let labels = metadata.labels.unwrap_or_default();
    for (key, value) in [
        (labels::PART_OF, labels::PRODUCT),
        (labels::MANAGED_BY, labels::OPERATOR),
        (labels::COMPONENT, labels::component::STORE),
    ] {
        ensure!(
            labels.get(key).map(String::as_str) == Some(value),
            "the claim has no label {key}={value}: {labels:?}"
        );
    }
    ensure!(
        metadata.deletion_timestamp.is_none()
            && metadata.owner_references.is_none_or(|it| it.is_empty()),
        "the claim goes with something"
    );
    let phase = claim.status.and_then(|status| status.phase);
    ensure!(phase.as_deref() == Some("Bound"), "the claim is {phase:?}");
    Ok(())
}
