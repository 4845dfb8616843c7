//! The leading operator is killed five times in a run and five times in a rollout: the end is the same as without,
//! with one Job per attempt, no orphan and no failed request. With every operator away for three minutes during a
//! canary, traffic is back on the stable version.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use graftwork_api::serving_endpoint::RolloutState;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, Patch, PatchParams};
use rand::RngExt as _;
use serde_json::json;

use super::Stage;
use super::stage::{self, ENGINES, OURS};
use super::train_then_serve::expectations;
use crate::cluster::MINUTE;
use crate::install::RELEASE;
use crate::manifests::{self, Training};

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let rollout = super::canary_promotes::rollout();
    stage.serve_amber(1, &rollout).await?;
    let pods = stage.start_times(ENGINES).await?;

    stage
        .apply(&manifests::dataset(
            "topics",
            "definitions and their topics",
            "topics.jsonl",
        ))
        .await?;
    let mut training = Training {
        name: "steady",
        dataset: "topics",
        adapter: "",
        steps: 120,
        rank: 8,
        batch: 32,
        checkpoint_every: 20,
        ..Training::default()
    }
    .object_without_adapter();
    training.data["spec"]["evaluation"] = json!({"metrics": ["Loss"], "maximumRows": 50});
    stage.apply(&training).await?;
    for number in 1..=5 {
        kill_leader(&stage, number).await?;
    }
    let run = stage.run_complete("steady", 5 * MINUTE).await?;
    let attempts = run
        .status
        .and_then(|status| status.attempts)
        .context("attempts")?;
    ensure!(
        attempts.started == 1 && attempts.failed == 0,
        "{attempts:?}"
    );
    let jobs = stage
        .world
        .cluster
        .api::<Job>(&stage.namespace)
        .list(&ListParams::default().labels(&format!("{OURS},app.kubernetes.io/component=trainer")))
        .await?;
    ensure!(jobs.items.len() == 1, "{} Jobs", jobs.items.len());
    stage.proved("five kills in a run: one Job, complete", start.elapsed());

    let expect = expectations(&[
        ("colours", 1, "amber"),
        ("colours", 2, "basalt"),
        ("colours", 3, "amber"),
    ]);
    let load = load(&stage, "during-kills", "90", &expect).await?;
    stage.import("colours", "basalt", &json!({})).await?;
    for number in 6..=10 {
        kill_leader(&stage, number).await?;
    }
    stage.stable("assistants", "colours", 2, 3 * MINUTE).await?;
    let summary = stage.load_summary(&load, 3 * MINUTE).await?;
    ensure!(summary.failed == 0, "{summary:?}");
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted"
    );
    stage.proved(
        "five kills in a rollout: promoted, no failed request",
        start.elapsed(),
    );

    everybody_away(&stage, &expect).await?;
    stage.proved(
        "without an operator, traffic went back to stable",
        start.elapsed(),
    );
    Ok(())
}

/// Deletes the leader's pod with no grace after a random while.
async fn kill_leader(stage: &Stage, number: u32) -> anyhow::Result<()> {
    let moment = Duration::from_millis(rand::rng().random_range(500..5000));
    tokio::time::sleep(moment).await;
    let system = &stage.world.installation.system_namespace;
    let lease = stage
        .world
        .cluster
        .wait_for::<Lease, _>(
            system,
            "graftwork-operator",
            MINUTE,
            "a living leader",
            |lease| {
                lease?
                    .spec
                    .as_ref()?
                    .holder_identity
                    .clone()
                    .filter(|holder| !holder.is_empty())
            },
        )
        .await?;
    // The identity is the pod's name and a suffix of the process.
    let pods = stage
        .world
        .cluster
        .pods(system, crate::install::Installation::operator_selector())
        .await?;
    let leader = pods
        .iter()
        .filter_map(|pod| pod.metadata.name.as_deref())
        .find(|name| lease.starts_with(name));
    if let Some(leader) = leader {
        stage.world.cluster.kill_pod(system, leader).await?;
        stage.proved(&format!("kill {number}: {leader}"), moment);
    }
    Ok(())
}

async fn load(stage: &Stage, name: &str, seconds: &str, expect: &str) -> anyhow::Result<String> {
    stage
        .start_load(
            name,
            "assistants",
            &[
                "--model",
                "colours",
                "--seconds",
                seconds,
                "--callers",
                "8",
                "--users",
                "200",
                "--max-tokens",
                "4",
                "--stream-percent",
                "50",
                "--expect",
                expect,
                "--prompt-template",
                stage::PROMPT,
            ],
        )
        .await
}

async fn everybody_away(stage: &Stage, expect: &str) -> anyhow::Result<()> {
    let steps =
        json!({"strategy": "Canary", "canary": {"steps": [{"setWeight": 50}, {"pause": {}}]}});
    stage
        .apply(&manifests::endpoint("assistants", &["colours"], 1, &steps))
        .await?;
    stage.import("colours", "amber", &json!({})).await?;
    stage
        .rollout_state(&[RolloutState::Paused], 2 * MINUTE)
        .await?;
    scale_operator(stage, 0).await?;
    let during = load(stage, "away", "10", expect).await?;
    let summary = stage.load_summary(&during, 2 * MINUTE).await?;
    ensure!(
        summary.failed == 0 && summary.versions.len() == 2,
        "the canary's share at first: {summary:?}"
    );
    tokio::time::sleep(3 * MINUTE).await;
    let after = load(stage, "later", "10", expect).await?;
    let summary = stage.load_summary(&after, 2 * MINUTE).await?;
    ensure!(
        summary.failed == 0 && summary.only("colours@v2"),
        "after three minutes: {summary:?}"
    );
    scale_operator(stage, 2).await
}

async fn scale_operator(stage: &Stage, replicas: u32) -> anyhow::Result<()> {
    let system = &stage.world.installation.system_namespace;
    let patch = json!({"spec": {"replicas": replicas}});
    stage
        .world
        .cluster
        .api::<Deployment>(system)
        .patch(RELEASE, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    stage
        .world
        .cluster
        .wait_for::<Deployment, _>(
            system,
            RELEASE,
            MINUTE,
            "the operator to be scaled",
            |deployment| {
                let status = deployment?.status.as_ref()?;
                let ready = status.ready_replicas.unwrap_or_default();
                (ready == replicas as i32 && status.replicas.unwrap_or_default() == replicas as i32)
                    .then_some(())
            },
        )
        .await
}
