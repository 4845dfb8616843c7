//! People decide through the status subresource: they approve and reject versions, and pause, resume, abort, retry,
//! promote and roll back under traffic. A command with another digest or step is refused, and the admission policy
//! refuses another's name and any other status write.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use graftwork_api::lora_adapter::AdapterVersion;
use graftwork_api::serving_endpoint::{PausedBy, RolloutState};
use graftwork_api::{Answer, Dataset, LoRAAdapter, ServingEndpoint, TrainingRun};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::Stage;
use super::stage::ENGINES;
use super::traffic::{Load, expectations};
use crate::cluster::{MINUTE, wait};
use crate::manifests::{self, Training};

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let rollout = json!({"strategy": "Canary", "canary": {"steps": [{"setWeight": 20}, {"pause": {}}, {"setWeight": 60}, {"pause": {}}]}});
    stage.seed_with_adapters().await?;
    stage
        .apply(&manifests::endpoint(
            "assistants",
            &["colours"],
            1,
            &rollout,
        ))
        .await?;
    let gate =
        json!({"rules": [{"metric": "exact_match", "minimum": "0.3"}], "approval": "Manual"});
    stage.import("colours", "amber", &gate).await?;
    let first = waits_for_approval(&stage, 1).await?;
    spoofing_is_refused(&stage, &first.digest).await?;
    stage.proved(
        "the admission policy refuses another's name and foreign fields",
        start.elapsed(),
    );
    judge(&stage, &first, "Approve", true).await?;
    stage.stable("assistants", "colours", 1, 2 * MINUTE).await?;
    stage.proved("an approved version is served", start.elapsed());

    let pods = stage.start_times(ENGINES).await?;
    let expect = expectations(&[
        ("colours", 1, "amber"),
        ("colours", 2, "basalt"),
        ("colours", 3, "rambling"),
    ]);
    let traffic = stage.start_traffic(&Load::new("load", &expect)).await?;
    stage.import("colours", "basalt", &gate).await?;
    let second = waits_for_approval(&stage, 2).await?;
    judge(&stage, &second, "Approve", true).await?;
    paused(&stage, 2, 20).await?;
    traffic.seen("colours@v2").await?;
    pauses(&stage, &first, &second).await?;
    stage.proved(
        "Pause and Resume, and what comes late is refused",
        start.elapsed(),
    );

    obeyed(&stage, "Abort", &second, None).await?;
    stage
        .rollout_state(&[RolloutState::RolledBack], MINUTE)
        .await?;
    stage.stable_is("colours", 1).await?;
    stage.proved("Abort", start.elapsed());
    obeyed(&stage, "Retry", &second, None).await?;
    paused(&stage, 2, 20).await?;
    obeyed(&stage, "Promote", &second, None).await?;
    stage.stable("assistants", "colours", 2, MINUTE).await?;
    stage.proved("Retry and Promote", start.elapsed());
    goes_back(&stage, &first, &second).await?;
    stage.proved("Rollback", start.elapsed());

    stage.import("colours", "rambling", &gate).await?;
    let third = waits_for_approval(&stage, 3).await?;
    judge(&stage, &third, "Reject", true).await?;
    let third = stage
        .version("colours", 3, "Rejected", |version| {
            version.stage.as_str() == "Rejected"
        })
        .await?;
    ensure!(
        third.reason.as_deref() == Some("RejectedByUser"),
        "{third:?}"
    );
    judge(&stage, &third, "Approve", false).await?;
    stage.stable_is("colours", 1).await?;
    stage.proved("Reject is final", start.elapsed());

    let summary = traffic.stop().await?;
    ensure!(
        summary.of("colours@v1") > 0 && summary.of("colours@v2") > 0,
        "{summary:?}"
    );
    ensure!(
        summary.of("colours@v3") == 0,
        "a version that was never approved saw traffic: {summary:?}"
    );
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted"
    );
    stage.proved("no request failed, no pod restarted", start.elapsed());
    Ok(())
}

/// The version once its files are verified: an import has no metrics, so a person has to approve it.
async fn waits_for_approval(stage: &Stage, number: u32) -> anyhow::Result<AdapterVersion> {
    let version = stage
        .version("colours", number, "waiting for approval", |version| {
            version.reason.as_deref() == Some("AwaitingApproval")
        })
        .await?;
    ensure!(version.stage.as_str() == "Candidate", "{version:?}");
    Ok(version)
}

/// Waits for the pause of the step with that weight.
async fn paused(stage: &Stage, version: u32, weight: u32) -> anyhow::Result<()> {
    let what = format!("v{version} to be paused at {weight} %");
    stage
        .endpoint("assistants", 2 * MINUTE, &what, |endpoint| {
            let mut served = endpoint.status.as_ref()?.adapters.iter();
            let colours = served.find(|served| served.name == "colours")?;
            let candidate = colours.candidate.as_ref()?;
            let rollout = colours.rollout.as_ref()?;
            let there = rollout.state == RolloutState::Paused
                && rollout.paused_by == Some(PausedBy::Step)
                && (candidate.version, candidate.weight) == (version, weight);
            there.then_some(())
        })
        .await
}

/// At the first pause: commands that come late, a person's Pause over the step's own, and Resume of both.
async fn pauses(
    stage: &Stage,
    first: &AdapterVersion,
    second: &AdapterVersion,
) -> anyhow::Result<()> {
    let step = stage.served().await?.rollout.context("rollout")?.step;
    let at = |answer: &Answer, words: &str| {
        answer.outcome.as_str() == "Refused" && answer.message.contains(words)
    };
    let answer = stage
        .command("wrong-digest", "Promote", &first.digest, None)
        .await?;
    ensure!(
        at(&answer, &second.digest),
        "a command for another digest: {answer:?}"
    );
    let answer = stage
        .command("wrong-step", "Promote", &second.digest, Some(step + 7))
        .await?;
    ensure!(
        at(&answer, &format!("at step {step}")),
        "a command for another step: {answer:?}"
    );
    let answer = stage
        .command("too-early", "Retry", &second.digest, None)
        .await?;
    ensure!(at(&answer, "under way"), "Retry of a candidate: {answer:?}");

    obeyed(stage, "Pause", second, Some(step)).await?;
    let held = stage.served().await?.rollout.context("rollout")?;
    ensure!(
        held.state == RolloutState::Paused && held.paused_by == Some(PausedBy::Command),
        "{held:?}"
    );
    // The first Resume ends the person's pause, the second that of the step.
    obeyed(stage, "Resume", second, Some(step)).await?;
    paused(stage, 2, 20).await?;
    let answer = stage
        .command("resume-again", "Resume", &second.digest, Some(step))
        .await?;
    ensure!(answer.outcome.as_str() == "Done", "{answer:?}");
    paused(stage, 2, 60).await
}

/// Rollback from v2 to v1 is a rollout like any other; the version that was left is not followed again.
async fn goes_back(
    stage: &Stage,
    first: &AdapterVersion,
    second: &AdapterVersion,
) -> anyhow::Result<()> {
    obeyed(stage, "Rollback", first, None).await?;
    paused(stage, 1, 20).await?;
    let answer = stage
        .command("promote-old", "Promote", &first.digest, None)
        .await?;
    ensure!(answer.outcome.as_str() != "Refused", "{answer:?}");
    stage.stable("assistants", "colours", 1, MINUTE).await?;
    let endpoint: ServingEndpoint = stage.get("assistants").await?.context("endpoint")?;
    let rejected = endpoint.status.context("status")?.rejected;
    ensure!(
        rejected
            .iter()
            .any(|it| it.digest == second.digest && it.reason == "RolledBackByUser"),
        "{rejected:?}"
    );
    let served = stage.served().await?;
    ensure!(
        served.candidate.is_none(),
        "v2 is tried again by itself: {served:?}"
    );
    Ok(())
}

/// Gives a command that has to be taken. Its id is the verb: each is said once.
async fn obeyed(
    stage: &Stage,
    verb: &str,
    version: &AdapterVersion,
    step: Option<u32>,
) -> anyhow::Result<()> {
    let answer = stage
        .command(&verb.to_lowercase(), verb, &version.digest, step)
        .await?;
    ensure!(
        matches!(answer.outcome.as_str(), "Accepted" | "Done"),
        "{verb}: {answer:?}"
    );
    Ok(())
}

/// Approves or rejects a version and waits for the answer, which is that it is done, or refused.
async fn judge(
    stage: &Stage,
    version: &AdapterVersion,
    verb: &str,
    done: bool,
) -> anyhow::Result<()> {
    let target = format!("version/{}", version.version);
    let id = format!("{}-{}", verb.to_lowercase(), version.version);
    let command = json!({
        "id": id, "verb": verb, "digest": version.digest, "user": stage.world.user, "reason": "looked at it",
    });
    let cluster = &stage.world.cluster;
    cluster
        .patch_status::<LoRAAdapter>(
            &stage.namespace,
            "colours",
            json!({"commands": {&target: command}}),
        )
        .await?;
    let what = format!("the answer to {verb}");
    let answer = cluster
        .wait_for::<LoRAAdapter, _>(&stage.namespace, "colours", MINUTE, &what, |adapter| {
            adapter?
                .status
                .as_ref()?
                .answers
                .get(&target)
                .filter(|answer| answer.id == id && answer.outcome.as_str() != "Accepted")
                .cloned()
        })
        .await?;
    let expected = if done { "Done" } else { "Refused" };
    ensure!(answer.outcome.as_str() == expected, "{verb}: {answer:?}");
    Ok(())
}

/// What the policies say of every field of status but the commands.
const OPERATORS: &str = "written by the operator only";

async fn spoofing_is_refused(stage: &Stage, digest: &str) -> anyhow::Result<()> {
    let spoofed = |verb: &str| json!({"id": "spoof", "verb": verb, "digest": digest, "user": "somebody-else"});
    let own = "user must be your own name";
    let approve = json!({"commands": {"version/1": spoofed("Approve")}});
    refused::<LoRAAdapter>(stage, "colours", approve, own).await?;
    let promote = json!({"commands": {"adapter/colours": spoofed("Promote")}});
    refused::<ServingEndpoint>(stage, "assistants", promote, own).await?;

    // A Dataset and a run that nothing becomes of, for want of a ConfigMap.
    stage
        .apply(&manifests::config_map_dataset("nothing", "nothing"))
        .await?;
    let training = Training {
        name: "nothing",
        dataset: "nothing",
        ..Training::default()
    };
    stage.apply(&training.object_without_adapter()).await?;
    let generation = json!({"observedGeneration": 77});
    refused::<Dataset>(stage, "nothing", generation.clone(), OPERATORS).await?;
    refused::<TrainingRun>(stage, "nothing", generation, OPERATORS).await?;
    refused::<LoRAAdapter>(stage, "colours", json!({"approved": 1}), OPERATORS).await?;
    let ready = json!({"readyReplicas": 77});
    refused::<ServingEndpoint>(stage, "assistants", ready, OPERATORS).await?;
    replacement_is_refused(stage).await?;

    // By server-side apply too, which could take fields over from the operator.
    let ready = json!({
        "type": "Ready", "status": "False", "reason": "Mine", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let takeover = json!({
        "apiVersion": "graftwork.dev/v1alpha1", "kind": "LoRAAdapter", "status": {"conditions": [ready]},
    });
    let api = stage.world.cluster.api::<LoRAAdapter>(&stage.namespace);
    let parameters = PatchParams::apply("somebody").force();
    let outcome = api
        .patch_status("colours", &parameters, &Patch::Apply(takeover))
        .await;
    ensure_refused(outcome, "conditions by server-side apply", OPERATORS)
}

/// By PUT, with all that the operator has written but for one number.
async fn replacement_is_refused(stage: &Stage) -> anyhow::Result<()> {
    let api = stage.world.cluster.api::<ServingEndpoint>(&stage.namespace);
    wait("a PUT that meets no other write", MINUTE, || async {
        let mut endpoint = api.get("assistants").await?;
        endpoint.status.get_or_insert_default().ready_replicas = 77;
        let outcome = api
            .replace_status("assistants", &PostParams::default(), &endpoint)
            .await;
        // The operator has written since it was read.
        if matches!(&outcome, Err(kube::Error::Api(error)) if error.is_conflict()) {
            return Ok(None);
        }
        Ok(Some(ensure_refused(outcome, "a status by PUT", OPERATORS)))
    })
    .await?
}

async fn refused<K>(
    stage: &Stage,
    name: &str,
    status: serde_json::Value,
    why: &str,
) -> anyhow::Result<()>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
    K::DynamicType: Default,
{
    let outcome = stage
        .world
        .cluster
        .patch_status::<K>(&stage.namespace, name, status.clone())
        .await;
    ensure_refused(outcome, &status.to_string(), why)
}

fn ensure_refused<T>(outcome: kube::Result<T>, what: &str, why: &str) -> anyhow::Result<()> {
    match outcome {
        Ok(_) => bail!("the API server accepted {what}"),
        Err(kube::Error::Api(error)) if error.message.contains(why) => Ok(()),
        Err(error) => bail!("{what} was refused for another reason: {error}"),
    }
}
