//! Old versions of a dataset go, but not one that a run was made for: neither while the run is there, nor when only the
//! store knows of it. What stays can be trained on again; what went is said to be missing.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::{Dataset, TrainingRun};
use kube::api::{DeleteParams, DynamicObject};
use serde_json::json;

use super::Stage;
use super::fixture::marker_rows;
use super::stage::condition;
use crate::cluster::MINUTE;
use crate::manifests::{self, Training};

const NAME: &str = "letters";
/// Rows of version 1; each later version has one more.
const FIRST: usize = 100;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage.seed().await?;
    let mut dataset = manifests::config_map_dataset(NAME, NAME);
    dataset.data["spec"]["retention"] = json!({"versions": 2});
    write(&stage, 1).await?;
    stage.apply(&dataset).await?;
    let first = stage.dataset_ready(NAME).await?;
    ensure!(first.version == 1, "{first:?}");
    stage.apply(&training("first", 1)).await?;
    stage.run_complete("first", 5 * MINUTE).await?;
    stage.proved("a run was trained on version 1", start.elapsed());

    for version in 2..=5 {
        write(&stage, version).await?;
        has(&stage, |listed| listed.first() == Some(&version)).await?;
    }
    has(&stage, |listed| listed == [5, 4, 1]).await?;
    stage.proved(
        "of five versions the newest two stay, and the one that a run is of",
        start.elapsed(),
    );

    let runs = stage.world.cluster.api::<TrainingRun>(&stage.namespace);
    runs.delete("first", &DeleteParams::default()).await?;
    write(&stage, 6).await?;
    has(&stage, |listed| listed == [6, 5, 1]).await?;
    stage.proved(
        "without the run's object, what the store says of it keeps version 1",
        start.elapsed(),
    );

    stage.apply(&training("again", 1)).await?;
    stage.run_complete("again", 5 * MINUTE).await?;
    stage.apply(&training("late", 2)).await?;
    let said = stage
        .world
        .cluster
        .wait_for::<TrainingRun, _>(
            &stage.namespace,
            "late",
            MINUTE,
            "the reason WaitingForDataset",
            |run| {
                let succeeded = condition(&run?.status.as_ref()?.conditions, "Succeeded")?;
                let waits = succeeded.reason == "WaitingForDataset";
                waits.then(|| succeeded.message.clone())
            },
        )
        .await?;
    ensure!(said.contains("version 2"), "{said}");
    stage.proved(
        &format!("version 1 is trained on again; of version 2: {said}"),
        start.elapsed(),
    );
    Ok(())
}

/// Writes the rows of a version.
async fn write(stage: &Stage, version: u32) -> anyhow::Result<()> {
    let count = FIRST + version as usize;
    let rows: Vec<_> = marker_rows("amber").into_iter().take(count).collect();
    stage.apply(&manifests::rows(NAME, &rows)).await?;
    Ok(())
}

/// Waits until the numbers of the versions in status, newest first, are as they should be.
async fn has(stage: &Stage, right: impl Fn(&[u32]) -> bool) -> anyhow::Result<()> {
    stage
        .world
        .cluster
        .wait_for::<Dataset, _>(
            &stage.namespace,
            NAME,
            MINUTE,
            "the versions that stay",
            |dataset| {
                let versions = &dataset?.status.as_ref()?.versions;
                let listed: Vec<u32> = versions.iter().map(|version| version.version).collect();
                right(&listed).then_some(())
            },
        )
        .await
        .context("versions of the Dataset")
}

/// A short training on a version, published to nothing.
fn training(name: &str, version: u32) -> DynamicObject {
    let training = Training {
        name,
        dataset: NAME,
        adapter: "",
        steps: 10,
        rank: 4,
        batch: 16,
        checkpoint_every: 5,
        ..Training::default()
    };
    let mut run = training.object_without_adapter();
    run.data["spec"]["datasetRef"]["version"] = json!(version);
    run
}
