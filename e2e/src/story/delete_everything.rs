//! When every object of ours is deleted, all that the operator made goes too, but the store's claim, which is labelled
//! and kept; what belongs to others is not touched.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Service};
use kube::api::ListParams;
use serde_json::json;

use super::Stage;
use super::from_git_again::delete_all;
use super::stage::OURS;
use crate::cluster::{MINUTE, wait};

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage
        .serve_amber(1, &json!({"strategy": "Immediate"}))
        .await?;
    let theirs: ConfigMap = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs"}, "data": {"a": "b"},
    }))?;
    let cluster = &stage.world.cluster;
    let theirs = cluster
        .api::<ConfigMap>(&stage.namespace)
        .create(&Default::default(), &theirs)
        .await?;
    delete_all(&stage).await?;
    let ours = ListParams::default().labels(OURS);
    wait("everything of ours to be gone", 2 * MINUTE, || async {
        let left = [
            cluster
                .api::<Deployment>(&stage.namespace)
                .list(&ours)
                .await?
                .items
                .len(),
            cluster
                .api::<Service>(&stage.namespace)
                .list(&ours)
                .await?
                .items
                .len(),
            cluster
                .api::<ConfigMap>(&stage.namespace)
                .list(&ours)
                .await?
                .items
                .len(),
            cluster.pods(&stage.namespace, OURS).await?.len(),
        ];
        Ok((left == [0; 4]).then_some(()))
    })
    .await?;
    let claims = cluster
        .api::<PersistentVolumeClaim>(&stage.namespace)
        .list(&ours)
        .await?
        .items;
    ensure!(claims.len() == 1, "the store's claim is kept: {claims:?}");
    let after: ConfigMap = stage
        .get("theirs")
        .await?
        .context("another's ConfigMap is gone")?;
    ensure!(
        after.metadata.resource_version == theirs.metadata.resource_version,
        "another's ConfigMap was touched"
    );
    stage.proved("only the claim is left", start.elapsed());
    Ok(())
}
