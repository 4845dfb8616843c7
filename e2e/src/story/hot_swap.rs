//! Under load an endpoint is scaled up, a version is swapped at once on both engines, the endpoint is scaled down, and
//! its engine is replaced for new arguments, resources and another image: nothing fails and no answer mixes two versions.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::Stage;
use super::stage::{ENGINES, condition};
use super::traffic::{Load, expectations};
use crate::cluster::{MINUTE, wait};
use crate::manifests;
use crate::report::not_proved;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let rollout = json!({"strategy": "Immediate"});
    stage.serve_amber(1, &rollout).await?;
    let expect = expectations(&[("colours", 1, "amber"), ("colours", 2, "basalt")]);
    let traffic = stage.start_traffic(&Load::new("load", &expect)).await?;

    scale(&stage, 2).await?;
    let pods = stage.start_times(ENGINES).await?;
    stage.proved("kubectl scale made a second engine", start.elapsed());

    stage.import("colours", "basalt", &json!({})).await?;
    stage.stable("assistants", "colours", 2, MINUTE).await?;
    traffic.seen("colours@v2").await?;
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted by the swap"
    );
    stage.proved("swapped on two engines", start.elapsed());

    scale(&stage, 1).await?;
    stage.proved("kubectl scale took an engine away", start.elapsed());
    let before = stage.start_times(ENGINES).await?;
    let mut endpoint = manifests::endpoint("assistants", &["colours"], 1, &rollout);
    endpoint.data["spec"]["engine"] = json!({
        "maximumBatchSize": 8, "maximumLoadedAdapters": 8, "computeProfile": "other",
        // As the base is stored: the answers stay what they are.
        "quantization": "BF16",
        "adapterMemory": "64Mi", "diskCache": "64Mi", "keyValueCache": "64Mi",
    });
    stage.apply(&endpoint).await?;
    engines(&stage, 1).await?;
    // The old one goes when the new one is ready and what it was asked is answered.
    wait("the engine to be replaced", 2 * MINUTE, || async {
        let after = stage.start_times(ENGINES).await?;
        let replaced = after.len() == 1 && after.iter().all(|pod| !before.contains(pod));
        Ok(replaced.then_some(()))
    })
    .await?;
    stage.stable_is("colours", 2).await?;
    has_other_profile(&stage).await?;
    stage.proved(
        "what the endpoint asks anew of its engine replaced it",
        start.elapsed(),
    );
    if stage.world.installation.another_inference.is_none() {
        not_proved("another image under traffic: GRAFTWORK_ANOTHER_INFERENCE names none");
    }

    let summary = traffic.stop().await?;
    ensure!(
        summary.of("colours@v1") > 0 && summary.of("colours@v2") > 0,
        "one of the versions was never seen: {summary:?}"
    );
    let last = stage.ask_two_thousand(&Load::new("after", &expect)).await?;
    ensure!(last.only("colours@v2"), "after the swap: {last:?}");
    stage.proved("no request failed", start.elapsed());
    Ok(())
}

/// Every engine has what the profile `other` gives.
async fn has_other_profile(stage: &Stage) -> anyhow::Result<()> {
    let pods = stage.world.cluster.pods(&stage.namespace, ENGINES).await?;
    for pod in &pods {
        let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
        let container = container.context("an engine without a container")?;
        let another = stage.world.installation.another_inference.as_ref();
        ensure!(
            another.is_none_or(|image| container.image.as_ref() == Some(image)),
            "the engine runs {:?}, not {another:?}",
            container.image
        );
        let resources = container
            .resources
            .as_ref()
            .context("an engine without resources")?;
        let requests = resources.requests.as_ref().and_then(|it| it.get("cpu"));
        ensure!(
            requests.is_some_and(|quantity| quantity.0 == "110m"),
            "{resources:?}"
        );
        let volumes = pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        let sizes: Vec<&str> = volumes
            .filter_map(|volume| volume.empty_dir.as_ref()?.size_limit.as_ref())
            .map(|size| size.0.as_str())
            .collect();
        ensure!(sizes == ["67108864"], "limits of emptyDirs: {sizes:?}");
    }
    Ok(())
}

/// `kubectl scale`, until there are just so many engines.
async fn scale(stage: &Stage, replicas: u32) -> anyhow::Result<()> {
    let wanted = format!("--replicas={replicas}");
    let kubectl = [
        "-n",
        &stage.namespace,
        "scale",
        "servingendpoint/assistants",
        &wanted,
    ];
    stage.world.cluster.kubectl(&kubectl).await?;
    engines(stage, replicas).await
}

/// Waits until the newest spec is served by just so many engines, and no other is left.
async fn engines(stage: &Stage, count: u32) -> anyhow::Result<()> {
    let what = format!("{count} engines of the newest spec");
    stage
        .endpoint("assistants", 2 * MINUTE, &what, |endpoint| {
            let status = endpoint.status.as_ref()?;
            let ready = condition(&status.conditions, "Ready")?;
            let newest = ready.observed_generation == endpoint.metadata.generation;
            let settled = condition(&status.conditions, "Reconciling").is_none();
            let there = (status.replicas, status.ready_replicas) == (count, count);
            (ready.status == "True" && newest && settled && there).then_some(())
        })
        .await
}
