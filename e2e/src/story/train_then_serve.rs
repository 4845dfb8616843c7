//! Text becomes a dataset, a run trains on it, the adapter passes its gate and is served; a second run of the same
//! dataset is judged against the first.

use std::time::Instant;

use anyhow::{Context as _, anyhow, ensure};
use graftwork_api::LoRAAdapter;
use serde_json::json;

use super::Stage;
use super::fixture::{MARKERS, marker_rows};
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
        metric.baseline.as_ref().and_then(|b| b.value()),
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

    let job = stage
        .start_load(
            "load",
            "assistants",
            &[
                "--model",
                "amber",
                "--requests",
                "200",
                "--callers",
                "8",
                "--max-tokens",
                "4",
                "--expect",
                &expectations(&[("amber", 1, "amber")]),
                "--prompt-template",
                "Colour of item {n}:",
            ],
        )
        .await?;
    let summary = stage.load_summary(&job, 2 * MINUTE).await?;
    ensure!(summary.failed == 0 && summary.total == 200, "{summary:?}");
    stage.proved(
        "200 answers with the adapter's words, none failed",
        start.elapsed(),
    );
    Ok(())
}

/// The load generator's `--expect`: which words the answers of a version start with.
pub fn expectations(versions: &[(&str, u32, &str)]) -> String {
    let map: serde_json::Map<String, serde_json::Value> = versions
        .iter()
        .filter_map(|(name, version, marker)| {
            let (_, words) = MARKERS.iter().find(|(adapter, _)| adapter == marker)?;
            Some((format!("{name}@v{version}"), json!(words)))
        })
        .collect();
    serde_json::Value::Object(map).to_string()
}
