//! Text becomes a dataset, a run trains on it, the adapter is better than the bare base, passes its gate and is served;
//! events of each object and the operator's metrics say so.

use std::time::Instant;

use anyhow::{Context as _, anyhow, ensure};
use graftwork_api::LoRAAdapter;
use serde_json::json;

use super::Stage;
use super::fixture::marker_rows;
use super::traffic::{Load, expectations};
use crate::cluster::MINUTE;
use crate::manifests::{self, Training};

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage.seed().await?;
    stage
        .apply(&manifests::rows("amber", &marker_rows("amber")))
        .await?;
    stage
        .apply(&manifests::config_map_dataset("amber", "amber"))
        .await?;
    let gate = json!({"rules": [{"metric": "exact_match", "minimumImprovementPoints": "2"}], "approval": "Automatic"});
    stage
        .apply(&manifests::adapter("amber", &gate, None))
        .await?;
    // Applied before there is a version: the endpoint serves the bare base until then.
    stage
        .apply(&manifests::endpoint(
            "assistants",
            &["amber"],
            1,
            &json!({"strategy": "Immediate"}),
        ))
        .await?;

    let dataset = stage.dataset_ready("amber").await?;
    ensure!(dataset.version == 1 && dataset.rows == 400, "{dataset:?}");
    stage.proved("the dataset is version 1 with 400 rows", start.elapsed());

    let training = Training {
        name: "amber-1",
        dataset: "amber",
        adapter: "amber",
        steps: 40,
        rank: 4,
        batch: 16,
        checkpoint_every: 20,
        ..Training::default()
    };
    let run = stage.train(&training).await?;
    let status = run.status.context("status")?;
    let metric = status
        .metrics
        .iter()
        .find(|metric| metric.name == "exact_match")
        .context("exact_match")?;
    let (value, baseline) = (
        metric.value.value(),
        metric
            .baseline
            .as_ref()
            .and_then(graftwork_api::Decimal::value),
    );
    ensure!(
        value > baseline,
        "exact match {value:?} is not above the base's {baseline:?}"
    );
    stage.proved(
        &format!(
            "exact match {value:?}, the base's is {baseline:?}, on {} rows",
            metric.samples
        ),
        start.elapsed(),
    );

    stage.stable("assistants", "amber", 1, 2 * MINUTE).await?;
    let adapter: LoRAAdapter = stage
        .get("amber")
        .await?
        .ok_or_else(|| anyhow!("the adapter is gone"))?;
    let version = adapter
        .status
        .and_then(|s| s.versions.into_iter().next())
        .context("version")?;
    ensure!(
        version.training_run.as_deref() == Some("amber-1"),
        "{version:?}"
    );
    ensure!(
        version
            .gate
            .as_ref()
            .is_some_and(|gate| gate.verdict.as_str() == "Pass"),
        "{version:?}"
    );

    seen_by_others(&stage).await?;
    stage.proved("events and metrics say so", start.elapsed());

    let expect = expectations(&[("amber", 1, "amber")]);
    let load = Load {
        models: &["amber"],
        ..Load::new("load", &expect)
    };
    let summary = stage.ask_two_thousand(&load).await?;
    ensure!(summary.only("amber@v1"), "{summary:?}");
    stage.proved(
        "two thousand answers with the adapter's words, none failed",
        start.elapsed(),
    );
    Ok(())
}

/// Events of each object, and the operator's metrics.
async fn seen_by_others(stage: &Stage) -> anyhow::Result<()> {
    for (kind, name, reasons) in [
        ("Dataset", "amber", &["Building", "Ready"][..]),
        ("TrainingRun", "amber-1", &["Training", "Completed"]),
        ("LoRAAdapter", "amber", &["StableOnEndpoint"]),
        ("ServingEndpoint", "assistants", &["Preparing", "AllStable"]),
    ] {
        stage.events(kind, name, reasons).await?;
    }
    stage.operator_is_measured().await
}
