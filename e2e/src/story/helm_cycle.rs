//! `helm upgrade` restarts no engine; `helm uninstall` keeps definitions, objects and serving; installing again goes on
//! where it stopped.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::ServingEndpoint;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use serde_json::json;

use super::Stage;
use super::stage::{self, ENGINES, FAST_LEASE};
use super::train_then_serve::expectations;
use crate::cluster::MINUTE;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage
        .serve_amber(1, &json!({"strategy": "Immediate"}))
        .await?;
    let pods = stage.start_times(ENGINES).await?;
    let (cluster, installation) = (&stage.world.cluster, &stage.world.installation);
    let expect = expectations(&[("colours", 1, "amber")]);
    let load = stage
        .start_load(
            "load",
            "assistants",
            &[
                "--model",
                "colours",
                "--seconds",
                "40",
                "--callers",
                "4",
                "--max-tokens",
                "4",
                "--expect",
                &expect,
                "--prompt-template",
                stage::PROMPT,
            ],
        )
        .await?;
    let changed = [
        FAST_LEASE,
        &["logLevel=debug", "resources.requests.cpu=60m"],
    ]
    .concat();
    installation.install(cluster, &changed).await?;
    stage.stable_is("colours", 1).await?;
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted by the upgrade"
    );
    stage.proved("an upgrade restarts no engine", start.elapsed());

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
    let summary = stage.load_summary(&load, 2 * MINUTE).await?;
    ensure!(summary.failed == 0, "{summary:?}");
    stage.proved(
        "uninstalled: definitions, objects and serving are kept",
        start.elapsed(),
    );

    installation.install(cluster, FAST_LEASE).await?;
    stage.import("colours", "basalt", &json!({})).await?;
    stage.stable("assistants", "colours", 2, MINUTE).await?;
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted by the new installation"
    );
    stage.proved("installed again: it goes on", start.elapsed());
    Ok(())
}
