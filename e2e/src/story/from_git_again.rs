//! Every object of ours is deleted and applied anew, as a new cluster would do from Git, with the store kept: nothing
//! is trained again, versions have the same numbers and stages, what was rejected, by a gate or by a live rollback,
//! stays rejected, and a version that was in its canary is not served to everybody: its canary begins anew.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::serving_endpoint::RolloutState;
use graftwork_api::{LoRAAdapter, TrainingRun};
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DynamicObject, ListParams};
use serde_json::{Value, json};

use super::Stage;
use super::stage::{OURS, condition};
use crate::cluster::{MINUTE, wait};
use crate::manifests::{self, CLAIM, Training};

/// The adapter that is trained; `colours` is imported.
const TRAINED: &str = "answers";
/// What stands in Git of `colours`: the version that is in its canary.
const IMPORTED: &str = "rambling";
/// A version's number, its stage, and the reason.
type Standing = (u32, &'static str, &'static str);
/// Each adapter, and where its versions stand before and after, newest first.
const STAGES: [(&str, &[Standing]); 2] = [
    (
        TRAINED,
        &[
            (2, "Rejected", "GateFailed"),
            (1, "Production", "StableOnEndpoint"),
        ],
    ),
    (
        "colours",
        &[
            (3, "Approved", "GatePassed"),
            (2, "Rejected", "RolledBackOnEndpoint"),
            (1, "Production", "StableOnEndpoint"),
        ],
    ),
];

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage.seed_with_adapters().await?;
    // The first dataset has one answer, which is soon learnt; the second's answers are numbers that nobody could guess:
    // the gate passes the one and rejects the other with room to spare, whatever the machine's rounding.
    // Versions are numbered as they come: the second run begins when the first is through.
    let (later, first): (Vec<_>, Vec<_>) = git().into_iter().partition(|object| {
        ["second", "colours"].contains(&object.metadata.name.as_deref().unwrap_or_default())
    });
    for object in &first {
        stage.apply(object).await?;
    }
    taken_back(&stage).await?;
    stage.proved("colours v2 was taken back", start.elapsed());
    stage.run_complete("first", 5 * MINUTE).await?;
    stage.stable("assistants", TRAINED, 1, 2 * MINUTE).await?;
    for object in &later {
        stage.apply(object).await?;
    }
    in_its_canary(&stage).await?;
    stage.run_complete("second", 5 * MINUTE).await?;
    let before = stages(&stage).await?;
    stage.proved(&format!("before: {before:?}"), start.elapsed());

    delete_all(&stage).await?;
    ensure!(jobs(&stage).await?.is_empty(), "Jobs are left");
    stage.proved("everything but the store is gone", start.elapsed());

    for object in git() {
        stage.apply(&object).await?;
    }
    goes_on(&stage).await?;
    stage.proved("v1 serves, and v3 is in its canary", start.elapsed());
    for run in ["first", "second"] {
        let run: TrainingRun = stage.run_complete(run, MINUTE).await?;
        let attempts = run
            .status
            .and_then(|status| status.attempts)
            .map_or(0, |attempts| attempts.started);
        ensure!(attempts == 0, "{attempts} attempts were started again");
    }
    // Versions come back from the ledger before the endpoint says which of them is in production.
    let after = stages(&stage).await?;
    ensure!(after == before, "before {before:?}, now {after:?}");
    ensure!(
        jobs(&stage).await?.is_empty(),
        "something was built or trained again: {:?}",
        jobs(&stage).await?
    );
    stage.proved("same versions, same stages, no training", start.elapsed());
    Ok(())
}

/// `colours` has a first version; the second is canaried, and taken back before anyone judged it.
async fn taken_back(stage: &Stage) -> anyhow::Result<()> {
    stage.import("colours", "amber", &json!({})).await?;
    stage.stable("assistants", "colours", 1, 2 * MINUTE).await?;
    stage.import("colours", "basalt", &json!({})).await?;
    stage
        .rollout_state(&[RolloutState::Paused], 2 * MINUTE)
        .await?;
    let candidate = stage.served().await?.candidate.context("no candidate")?;
    let answer = stage
        .command("no", "Abort", &candidate.digest, None)
        .await?;
    ensure!(answer.outcome.as_str() != "Refused", "{answer:?}");
    stage
        .rollout_state(&[RolloutState::RolledBack], MINUTE)
        .await?;
    Ok(())
}

/// The third version of `colours` waits in its canary for a person.
async fn in_its_canary(stage: &Stage) -> anyhow::Result<()> {
    stage.weight(10, 2 * MINUTE).await?;
    stage.rollout_state(&[RolloutState::Paused], MINUTE).await?;
    let served = stage.served().await?;
    let versions = (
        served.stable.as_ref().map(|it| it.version),
        served.candidate.as_ref().map(|it| it.version),
    );
    ensure!(versions == (Some(1), Some(3)), "{served:?}");
    Ok(())
}

/// Waits until both adapters are stable at v1 on the endpoint that was made anew, and v3 of `colours` is in its canary
/// again. Nothing else is tried on the way, and v3 never serves alone.
async fn goes_on(stage: &Stage) -> anyhow::Result<()> {
    let mut wrong = None;
    let what = "both adapters to be stable at v1, and v3 of colours to be in its canary";
    stage
        .endpoint("assistants", 2 * MINUTE, what, |endpoint| {
            let status = endpoint.status.as_ref()?;
            let mut settled = 0;
            for served in &status.adapters {
                let stable = served.stable.as_ref().map(|it| it.version);
                let candidate = served.candidate.as_ref().map(|it| it.version);
                let state = served.rollout.as_ref().map(|it| &it.state);
                let expected = match (stable, candidate) {
                    (None | Some(1), None | Some(1)) => true,
                    (Some(1), Some(3)) => served.name == "colours",
                    _ => false,
                };
                if !expected {
                    wrong = Some(served.clone());
                }
                let rests = if served.name == "colours" {
                    candidate == Some(3) && state == Some(&RolloutState::Paused)
                } else {
                    candidate.is_none()
                };
                settled += usize::from(stable == Some(1) && rests);
            }
            let ready = condition(&status.conditions, "Ready")?.status == "True";
            (ready && settled == 2).then_some(())
        })
        .await?;
    ensure!(wrong.is_none(), "{wrong:?} was not to be");
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
        adapter: TRAINED,
        steps: 60,
        rank: 4,
        batch: 16,
        checkpoint_every: 20,
        ..Training::default()
    };
    let import = format!("pvc://{CLAIM}/adapters/{IMPORTED}");
    let rollout = json!({
        "strategy": "Canary", "canary": {"steps": [{"setWeight": 10}, {"pause": {}}]},
    });
    vec![
        manifests::rows("amber", &learnable),
        manifests::rows("noise", &noise),
        manifests::config_map_dataset("amber", "amber"),
        manifests::config_map_dataset("noise", "noise"),
        manifests::adapter(TRAINED, &gate, None),
        manifests::adapter("colours", &json!({}), Some(&import)),
        manifests::endpoint("assistants", &[TRAINED, "colours"], 1, &rollout),
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

/// Whether the store has it on record that the endpoint serves v1: after that, status may be lost.
fn is_on_record(name: &str, adapter: &LoRAAdapter) -> bool {
    let mut last = adapter.status.iter().flat_map(|it| &it.last_served);
    last.any(|it| it.endpoint == "assistants" && it.adapter == name && it.version == 1)
}

/// The versions of each adapter, once they stand where they have to, and are on record.
async fn stages(stage: &Stage) -> anyhow::Result<Vec<Stages>> {
    let mut all = Vec::new();
    for (name, expected) in STAGES {
        let what = format!("its versions to be {expected:?}");
        let stages = stage
            .world
            .cluster
            .wait_for::<LoRAAdapter, _>(&stage.namespace, name, MINUTE, &what, |adapter| {
                let adapter = adapter.filter(|it| is_on_record(name, it))?;
                let stages = read(adapter)?;
                let names: Vec<(u32, &str, &str)> = stages
                    .iter()
                    .map(|(number, stage, reason, _)| (*number, stage.as_str(), reason.as_str()))
                    .collect();
                (names == expected).then_some(stages)
            })
            .await?;
        all.push(stages);
    }
    Ok(all)
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
