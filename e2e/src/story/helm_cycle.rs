//! Helm refuses values that the chart does not have. Under traffic: `helm upgrade`, with other settings and another image of the engines, restarts no engine and no
//! router; `helm uninstall` keeps definitions, objects and serving; installing again goes on where it stopped.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::ServingEndpoint;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use super::Stage;
use super::stage::{ENGINES, FAST_LEASE};
use super::traffic::{Load, expectations};
use crate::cluster::{MINUTE, wait};
use crate::install::RELEASE;
use crate::manifests;

/// Label selector of the routers of `assistants`.
const ROUTERS: &str = "app.kubernetes.io/instance=assistants,app.kubernetes.io/component=router";
/// A tag that no node has: no pod may ever need it in this story.
const OTHER_TAG: &str = "another-version";

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    values_are_checked(&stage).await?;
    stage.proved("a mistyped value is refused by its name", start.elapsed());
    let rollout = json!({"strategy": "Immediate"});
    stage.serve_amber(1, &rollout).await?;
    let pods = pods(&stage).await?;
    let expect = expectations(&[("colours", 1, "amber"), ("colours", 2, "basalt")]);
    let traffic = stage.start_traffic(&Load::new("load", &expect)).await?;

    let (cluster, installation) = (&stage.world.cluster, &stage.world.installation);
    let tag = format!("images.inference.tag={OTHER_TAG}");
    let changed = [
        FAST_LEASE,
        &["logLevel=debug", "resources.requests.cpu=60m", &tag],
    ]
    .concat();
    installation.install(cluster, &changed).await?;
    other_image_is_used(&stage).await?;
    stage.stable_is("colours", 1).await?;
    ensure!(
        self::pods(&stage).await? == pods,
        "an engine or router was restarted by the upgrade"
    );
    stage.proved(
        "an upgrade with another image restarts no engine",
        start.elapsed(),
    );

    installation.uninstall(cluster).await?;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    definitions
        .get("servingendpoints.graftwork.dev")
        .await
        .context("the definition is gone")?;
    stage
        .get::<ServingEndpoint>("assistants")
        .await?
        .context("the endpoint is gone")?;
    let away = stage.ask_two_thousand(&Load::new("away", &expect)).await?;
    ensure!(away.only("colours@v1"), "uninstalled: {away:?}");
    ensure!(
        self::pods(&stage).await? == pods,
        "an engine or router was restarted by the removal"
    );
    stage.proved(
        "uninstalled: definitions, objects and serving are kept",
        start.elapsed(),
    );

    installation.install(cluster, FAST_LEASE).await?;
    stage.import("colours", "basalt", &json!({})).await?;
    stage.stable("assistants", "colours", 2, MINUTE).await?;
    traffic.seen("colours@v2").await?;
    ensure!(
        self::pods(&stage).await? == pods,
        "an engine or router was restarted by the new installation"
    );
    traffic.stop().await?;
    stage.proved(
        "installed again: it goes on, and no request failed",
        start.elapsed(),
    );
    Ok(())
}

/// Helm names a value that the chart does not have or can't use; names of pull Secrets become references to them.
async fn values_are_checked(stage: &Stage) -> anyhow::Result<()> {
    for (value, words) in [
        ("replica=2", "additional properties 'replica' not allowed"),
        ("replicas=two", "at '/replicas': got string, want integer"),
        ("store.size=20GB", "at '/store/size'"),
        ("images.operator.tag=1", "at '/images/operator/tag'"),
        (
            "computeProfiles.default.resource.limits.cpu=1",
            "at '/computeProfiles/default': additional properties 'resource' not allowed",
        ),
    ] {
        let refusal = template(stage, value)
            .await
            .err()
            .with_context(|| format!("{value} is taken"))?
            .to_string();
        ensure!(refusal.contains(words), "{value}: {refusal}");
    }
    template(stage, "global.region=north").await?;
    let printed = template(stage, "images.pullSecrets[0]=registry").await?;
    ensure!(
        printed.contains("imagePullSecrets:\n  - {name: \"registry\"}\n"),
        "images.pullSecrets is no reference: {printed}"
    );
    Ok(())
}

async fn template(stage: &Stage, value: &str) -> anyhow::Result<String> {
    let chart = &stage.world.installation.chart;
    let chart = chart.to_str().context("the chart's path is not UTF-8")?;
    let arguments = ["template", RELEASE, chart, "--set", value];
    stage.world.cluster.helm(&arguments).await
}

async fn pods(stage: &Stage) -> anyhow::Result<Vec<(String, String)>> {
    Ok([
        stage.start_times(ENGINES).await?,
        stage.start_times(ROUTERS).await?,
    ]
    .concat())
}

/// The upgrade has arrived where an endpoint that is made after it gets the new image; that of `assistants` stays.
async fn other_image_is_used(stage: &Stage) -> anyhow::Result<()> {
    // Without engines. Its router never starts, for want of the image.
    let fresh = manifests::endpoint("fresh", &[], 0, &json!({}));
    stage.apply(&fresh).await?;
    wait("a new endpoint to get the new image", MINUTE, || async {
        let image = engine_image(stage, "fresh-engine").await?;
        Ok(image.ends_with(OTHER_TAG).then_some(()))
    })
    .await?;
    let image = engine_image(stage, "assistants-engine").await?;
    ensure!(!image.ends_with(OTHER_TAG), "engines are to run {image}");
    stage
        .world
        .cluster
        .api::<ServingEndpoint>(&stage.namespace)
        .delete("fresh", &DeleteParams::default())
        .await?;
    Ok(())
}

async fn engine_image(stage: &Stage, deployment: &str) -> anyhow::Result<String> {
    let deployment: Deployment = stage
        .get(deployment)
        .await?
        .with_context(|| format!("there is no Deployment {deployment}"))?;
    deployment
        .spec
        .and_then(|spec| spec.template.spec)
        .and_then(|pod| pod.containers.into_iter().next())
        .and_then(|container| container.image)
        .context("a Deployment without an image")
}
