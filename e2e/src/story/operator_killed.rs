//! The leading operator is killed five times in a run and five times in a rollout, under traffic: the end is the same as
//! without, with one Job for the run, no orphan and no failed request. With every operator away for three minutes
//! during a canary, training goes on and traffic is back on the stable version.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use graftwork_api::serving_endpoint::RolloutState;
use graftwork_api::{TrainingRun, TrainingRunStatus};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions};
use rand::RngExt as _;
use serde_json::json;

use super::Stage;
use super::canary_promotes::rollout;
use super::stage::{ENGINES, condition};
use super::traffic::{Load, Traffic, expectations};
use crate::cluster::{MINUTE, wait};
use crate::install::{Installation, RELEASE};
use crate::manifests::{self, Training};

/// Kills in the run, and as many in the rollout.
const KILLS: usize = 5;
/// Longest wait before a kill. A leader follows another after some seconds, and a run and a rollout have to last for
/// five of them.
const MOMENT_MILLISECONDS: u64 = 2000;
/// How long every operator is away.
const AWAY: Duration = Duration::from_secs(180);
/// The run in which leaders are killed.
const KILLED: &str = "killed";
/// The same run, in which nobody is.
const ALONE: &str = "alone";

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    // Pauses so long that the rollout lasts for five leaders.
    stage.serve_amber(1, &rollout(40)).await?;
    let pods = stage.start_times(ENGINES).await?;
    stage
        .apply(&manifests::dataset(
            "topics",
            "definitions and their topics",
            "topics.jsonl",
        ))
        .await?;
    stage.apply(&training(KILLED)).await?;
    let expect = expectations(&[
        ("colours", 1, "amber"),
        ("colours", 2, "basalt"),
        ("colours", 3, "rambling"),
    ]);
    let traffic = stage
        .start_traffic(&beside_training("during-kills", &expect))
        .await?;
    is_training(&stage, KILLED).await?;
    let mut killed = BTreeSet::new();
    for _ in 0..KILLS {
        killed.insert(kill_leader(&stage).await?);
        ensure_unfinished(&stage).await?;
    }
    ensure!(killed.len() == KILLS, "{killed:?}");
    stage.proved(&format!("killed in the run: {killed:?}"), start.elapsed());

    stage.import("colours", "basalt", &json!({})).await?;
    stage.weight(10, 2 * MINUTE).await?;
    let mut killed = BTreeSet::new();
    for _ in 0..KILLS {
        killed.insert(kill_leader(&stage).await?);
        let served = stage.served().await?;
        ensure!(
            served.candidate.is_some_and(|it| it.version == 2),
            "the rollout was over after {} kills: its pauses are too short for this machine",
            killed.len()
        );
    }
    ensure!(killed.len() == KILLS, "{killed:?}");
    stage.proved(
        &format!("killed in the rollout: {killed:?}"),
        start.elapsed(),
    );
    stage.promoted(2, 4 * MINUTE).await?;
    let summary = traffic.stop().await?;
    ensure!(
        summary.of("colours@v1") > 0 && summary.of("colours@v2") > 0,
        "{summary:?}"
    );
    stage.proved(
        "promoted as without kills, and no request failed in any of them",
        start.elapsed(),
    );

    let killed = stage.run_complete(KILLED, 5 * MINUTE).await?;
    let killed = killed.status.context("status")?;
    one_attempt(&stage, KILLED, &killed).await?;
    stage.ensure_no_orphan().await?;
    stage.proved("the run is complete by one Job, no orphan", start.elapsed());

    everybody_away(&stage, &expect).await?;
    let alone = stage.run_complete(ALONE, 5 * MINUTE).await?;
    let alone = alone.status.context("status")?;
    one_attempt(&stage, ALONE, &alone).await?;
    ensure_same(&killed, &alone)?;
    stage.ensure_no_orphan().await?;
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted"
    );
    stage.proved(
        "a run without kills, and without an operator, ends the same",
        start.elapsed(),
    );
    Ok(())
}

/// A minute and more of training: longer than five leaders follow each other.
fn training(name: &str) -> DynamicObject {
    let mut training = Training {
        name,
        dataset: "topics",
        adapter: "",
        steps: 700,
        rank: 8,
        batch: 32,
        checkpoint_every: 50,
        ..Training::default()
    }
    .object_without_adapter();
    training.data["spec"]["evaluation"] = json!({"metrics": ["Loss"], "maximumRows": 50});
    training
}

/// Traffic for minutes, at a pace that leaves something for the training.
fn beside_training<'a>(job: &'a str, expect: &'a str) -> Load<'a> {
    Load {
        think_milliseconds: 150,
        ..Load::new(job, expect)
    }
}

async fn is_training(stage: &Stage, run: &str) -> anyhow::Result<()> {
    stage
        .world
        .cluster
        .wait_for::<TrainingRun, _>(
            &stage.namespace,
            run,
            2 * MINUTE,
            "the reason Training",
            |run| {
                let succeeded = condition(&run?.status.as_ref()?.conditions, "Succeeded")?;
                (succeeded.reason == "Training").then_some(())
            },
        )
        .await
}

/// A kill after the end of the training proves nothing: the trainer's Job must still run.
async fn ensure_unfinished(stage: &Stage) -> anyhow::Result<()> {
    let jobs = jobs_of(stage, KILLED).await?;
    let active = jobs.iter().any(|job| {
        job.status
            .as_ref()
            .is_some_and(|status| status.active == Some(1))
    });
    ensure!(
        active,
        "the training was over before the last kill: it has too few steps for this machine"
    );
    Ok(())
}

/// Waits for a leader that lives, lets it work for a moment, and deletes its pod with no grace.
async fn kill_leader(stage: &Stage) -> anyhow::Result<String> {
    let moment = Duration::from_millis(rand::rng().random_range(200..MOMENT_MILLISECONDS));
    wait("a living leader", MINUTE, || living_leader(stage)).await?;
    // A moment of its work that nobody chose.
    tokio::time::sleep(moment).await;
    let system = &stage.world.installation.system_namespace;
    let pods = stage.world.cluster.api::<Pod>(system);
    let leader = wait("a living leader", MINUTE, || async {
        let Some(leader) = living_leader(stage).await? else {
            return Ok(None);
        };
        let (name, uid) = (leader.metadata.name, leader.metadata.uid);
        let name = name.context("a pod without a name")?;
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid,
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        // One that went by itself meanwhile was not killed.
        match pods.delete(&name, &parameters).await {
            Ok(_) => Ok(Some(name)),
            Err(kube::Error::Api(error)) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    stage.proved(&format!("killed {leader}"), moment);
    Ok(leader)
}

/// The pod that the Lease names, where it is ready and stays. For some seconds after a kill the Lease names the dead.
async fn living_leader(stage: &Stage) -> anyhow::Result<Option<Pod>> {
    let (cluster, system) = (
        &stage.world.cluster,
        &stage.world.installation.system_namespace,
    );
    let lease = cluster
        .api::<Lease>(system)
        .get_opt("graftwork-operator")
        .await?;
    let Some(holder) = lease
        .and_then(|lease| lease.spec)
        .and_then(|spec| spec.holder_identity)
    else {
        return Ok(None);
    };
    let pods = cluster
        .pods(system, Installation::operator_selector())
        .await?;
    Ok(pods
        .into_iter()
        .find(|pod| holds(&holder, pod) && is_ready(pod)))
}

/// The identity is the pod's name and a suffix of the process.
fn holds(holder: &str, pod: &Pod) -> bool {
    let name = pod.metadata.name.as_deref();
    holder.rsplit_once('-').map(|(name, _)| name) == name && name.is_some()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn jobs_of(stage: &Stage, run: &str) -> anyhow::Result<Vec<Job>> {
    let selector = format!("app.kubernetes.io/component=trainer,app.kubernetes.io/instance={run}");
    let jobs = stage
        .world
        .cluster
        .api::<Job>(&stage.namespace)
        .list(&ListParams::default().labels(&selector))
        .await?;
    Ok(jobs.items)
}

/// One attempt, one Job, and a Job with one pod.
async fn one_attempt(stage: &Stage, run: &str, status: &TrainingRunStatus) -> anyhow::Result<()> {
    let attempts = status.attempts.context("attempts")?;
    ensure!(
        (attempts.started, attempts.failed, attempts.evicted) == (1, 0, 0),
        "{run}: {attempts:?}"
    );
    let jobs = jobs_of(stage, run).await?;
    let [job] = jobs.as_slice() else {
        anyhow::bail!("{run} has {} Jobs", jobs.len());
    };
    let status = job.status.clone().unwrap_or_default();
    ensure!(
        status.succeeded == Some(1) && status.failed.unwrap_or_default() == 0,
        "{run}: {status:?}"
    );
    Ok(())
}

/// The same end: what was pinned, how far it went, what was measured, and the bits of the result.
fn ensure_same(killed: &TrainingRunStatus, alone: &TrainingRunStatus) -> anyhow::Result<()> {
    let end = |status: &TrainingRunStatus| {
        let steps = status.progress.as_ref().map(|it| (it.step, it.total_steps));
        let conditions: Vec<_> = status
            .conditions
            .iter()
            .map(|it| (it.type_.clone(), it.status.clone(), it.reason.clone()))
            .collect();
        (
            status.result.as_ref().map(|it| it.digest.clone()),
            status.resolved.clone(),
            steps,
            status.metrics.clone(),
            conditions,
        )
    };
    let (killed, alone) = (end(killed), end(alone));
    ensure!(
        killed == alone,
        "the ends differ: with kills {killed:?}, without {alone:?}"
    );
    Ok(())
}

/// A canary is paused at half of the callers and a run trains when every operator goes. The operators come back however
/// this ends: the stories after it need them.
async fn everybody_away(stage: &Stage, expect: &str) -> anyhow::Result<()> {
    let steps =
        json!({"strategy": "Canary", "canary": {"steps": [{"setWeight": 50}, {"pause": {}}]}});
    stage
        .apply(&manifests::endpoint("assistants", &["colours"], 1, &steps))
        .await?;
    stage.import("colours", "rambling", &json!({})).await?;
    stage
        .rollout_state(&[RolloutState::Paused], 2 * MINUTE)
        .await?;
    stage.apply(&training(ALONE)).await?;
    is_training(stage, ALONE).await?;
    let traffic = stage
        .start_traffic(&beside_training("away", expect))
        .await?;
    let story = while_away(stage, expect, &traffic).await;
    let back = scale_operator(stage, 2).await;
    story?;
    back?;
    stage
        .rollout_state(&[RolloutState::Paused], 2 * MINUTE)
        .await?;
    let summary = traffic.stop().await?;
    ensure!(
        summary.of("colours@v2") > 0 && summary.of("colours@v3") > 0,
        "{summary:?}"
    );
    stage.proved(
        "the operators are back, no request failed",
        Duration::from_secs_f64(summary.seconds),
    );
    Ok(())
}

async fn while_away(stage: &Stage, expect: &str, traffic: &Traffic) -> anyhow::Result<()> {
    traffic.seen("colours@v2").await?;
    traffic.seen("colours@v3").await?;
    scale_operator(stage, 0).await?;
    let gone = Instant::now();
    stage.proved("every operator is gone", Duration::ZERO);
    // A candidate's weight is a lease of two minutes, which nobody renews now.
    tokio::time::sleep(AWAY).await;
    let summary = stage.ask_two_thousand(&Load::new("later", expect)).await?;
    ensure!(
        summary.only("colours@v2"),
        "after three minutes without an operator: {summary:?}"
    );
    stage.proved(
        "without an operator, traffic went back to stable",
        gone.elapsed(),
    );
    Ok(())
}

/// Scales the operator, until just so many of its pods are there, and ready.
pub async fn scale_operator(stage: &Stage, replicas: u32) -> anyhow::Result<()> {
    let (cluster, system) = (
        &stage.world.cluster,
        &stage.world.installation.system_namespace,
    );
    let patch = json!({"spec": {"replicas": replicas}});
    cluster
        .api::<Deployment>(system)
        .patch(RELEASE, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    wait("the operator to be scaled", MINUTE, || async {
        let pods = cluster
            .pods(system, Installation::operator_selector())
            .await?;
        let there = pods.len() == replicas as usize && pods.iter().all(is_ready);
        Ok(there.then_some(()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ready: &str, deleting: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z")},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_leader_lives_where_its_pod_is_ready_and_stays() {
        assert!(is_ready(&pod("a", "True", false)));
        assert!(!is_ready(&pod("a", "False", false)));
        assert!(!is_ready(&pod("a", "True", true)));
        let holder = "graftwork-7d9f-abcde-00c0ffee";
        assert!(holds(holder, &pod("graftwork-7d9f-abcde", "True", false)));
        assert!(!holds(holder, &pod("graftwork-7d9f-abcd", "True", false)));
        assert!(!holds("", &pod("graftwork-7d9f-abcde", "True", false)));
    }
}
