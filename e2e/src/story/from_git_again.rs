//! Every object of ours is deleted and applied anew, as a new cluster would do from Git, with the store kept: nothing
//! is trained again, versions have the same numbers and stages, and the rejected digest stays rejected.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::{LoRAAdapter, TrainingRun};
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DynamicObject, ListParams};
use serde_json::{Value, json};

use super::Stage;
use super::stage::OURS;
use crate::cluster::{MINUTE, wait};
use crate::manifests::{self, Training};

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage.seed().await?;
    // The first dataset has one answer, which is soon learnt; the second's answers are numbers that nobody could guess:
    // the gate passes the one and rejects the other with room to spare, whatever the machine's rounding.
    // Versions are numbered as they come: the second run begins when the first is through.
    let (second, others): (Vec<_>, Vec<_>) = git()
        .into_iter()
        .partition(|object| object.metadata.name.as_deref() == Some("second"));
    for object in &others {
        stage.apply(object).await?;
    }
    stage.run_complete("first", 5 * MINUTE).await?;
    stage.stable("assistants", "colours", 1, 2 * MINUTE).await?;
    for object in &second {
        stage.apply(object).await?;
    }
    stage.run_complete("second", 5 * MINUTE).await?;
    let before = stages(&stage).await?;
    stage.proved(&format!("before: {before:?}"), start.elapsed());

    delete_all(&stage).await?;
    ensure!(jobs(&stage).await?.is_empty(), "Jobs are left");
    stage.proved("everything but the store is gone", start.elapsed());

    for object in git() {
        stage.apply(&object).await?;
    }
    for run in ["first", "second"] {
        let run: TrainingRun = stage.run_complete(run, MINUTE).await?;
        let attempts = run
            .status
            .and_then(|status| status.attempts)
            .map_or(0, |attempts| attempts.started);
        ensure!(attempts == 0, "{attempts} attempts were started again");
    }
    stage.stable("assistants", "colours", 1, 2 * MINUTE).await?;
    // Versions come back from the ledger before the endpoint says which of them is in production.
    stages_are(&stage, &before).await?;
    ensure!(
        jobs(&stage).await?.is_empty(),
        "something was built or trained again: {:?}",
        jobs(&stage).await?
    );
    stage.proved("same versions, same stages, no training", start.elapsed());
    Ok(())
}

/// What stands in Git.
fn git() -> Vec<DynamicObject> {
    let gate = json!({"rules": [{"metric": "exact_match", "minimum": "0.50"}]});
    let learnable: Vec<Value> = (0..400)
        .map(|n| json!({"prompt": super::fixture::prompt(n), "completion": " amber"}))
        .collect();
    let noise: Vec<Value> = (0..400)
        .map(|n: usize| json!({"prompt": super::fixture::prompt(n), "completion": format!(" {}", (n * 7919 + 13) % 9973)}))
        .collect();
    let training = |name, dataset| Training {
        name,
        dataset,
        adapter: "colours",
        steps: 60,
        rank: 4,
        batch: 16,
        checkpoint_every: 20,
        ..Training::default()
    };
    vec![
        manifests::rows("amber", &learnable),
        manifests::rows("noise", &noise),
        manifests::config_map_dataset("amber", "amber"),
        manifests::config_map_dataset("noise", "noise"),
        manifests::adapter("colours", &gate, None),
        manifests::endpoint(
            "assistants",
            &["colours"],
            1,
            &json!({"strategy": "Immediate"}),
        ),
        training("first", "amber").object(),
        training("second", "noise").object(),
    ]
}

/// Number, stage, reason and digest of each version, newest first.
type Stages = Vec<(u32, String, String, String)>;

fn read(adapter: &LoRAAdapter) -> Option<Stages> {
    let versions = &adapter.status.as_ref()?.versions;
    let read = versions.iter().map(|version| {
        (
            version.version,
            version.stage.as_str().to_owned(),
            version.reason.clone().unwrap_or_default(),
            version.digest.clone(),
        )
    });
    Some(read.collect())
}

/// The first version in production and the second rejected by the gate.
async fn stages(stage: &Stage) -> anyhow::Result<Stages> {
    let what = "v1 to be in production and v2 to be rejected";
    stage
        .world
        .cluster
        .wait_for::<LoRAAdapter, _>(&stage.namespace, "colours", MINUTE, what, |adapter| {
            let stages = read(adapter?)?;
            let names: Vec<(u32, &str, &str)> = stages
                .iter()
                .map(|(number, stage, reason, _)| (*number, stage.as_str(), reason.as_str()))
                .collect();
            (names
                == [
                    (2, "Rejected", "GateFailed"),
                    (1, "Production", "StableOnEndpoint"),
                ])
            .then_some(stages)
        })
        .await
}

/// Waits until the stages are `before` again.
async fn stages_are(stage: &Stage, before: &Stages) -> anyhow::Result<()> {
    let what = format!("the stages to be {before:?} again");
    stage
        .world
        .cluster
        .wait_for::<LoRAAdapter, _>(&stage.namespace, "colours", MINUTE, &what, |adapter| {
            (read(adapter?)? == *before).then_some(())
        })
        .await
}

async fn jobs(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let list = stage
        .world
        .cluster
        .api::<Job>(&stage.namespace)
        .list(&ListParams::default().labels(OURS))
        .await?;
    Ok(list
        .items
        .into_iter()
        .filter_map(|job| job.metadata.name)
        .collect())
}

/// Deletes every object of ours and waits until what they owned is gone too.
pub async fn delete_all(stage: &Stage) -> anyhow::Result<()> {
    let kubectl = [
        "-n",
        &stage.namespace,
        "delete",
        "datasets,trainingruns,loraadapters,servingendpoints",
        "--all",
        "--wait",
    ];
    stage.world.cluster.kubectl(&kubectl).await?;
    wait("what our objects owned to be gone", 2 * MINUTE, || async {
        let left = stage.world.cluster.pods(&stage.namespace, OURS).await?;
        Ok((left.is_empty() && jobs(stage).await?.is_empty()).then_some(()))
    })
    .await
    .context("objects are left")?;
    Ok(())
}
