//! People decide through the status subresource: approve a version, pause, resume and abort a rollout. A command with
//! another digest or step is refused, and the admission policy refuses another's name and any other status write.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use graftwork_api::serving_endpoint::RolloutState;
use graftwork_api::{LoRAAdapter, ServingEndpoint};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::Stage;
use crate::cluster::MINUTE;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let rollout = json!({"strategy": "Canary", "canary": {"steps": [{"setWeight": 20}, {"pause": {}}, {"setWeight": 60}, {"pause": {}}]}});
    stage.seed_with_adapters().await?;
    stage
        .apply(&super::super::manifests::endpoint(
            "assistants",
            &["colours"],
            1,
            &rollout,
        ))
        .await?;
    let gate =
        json!({"rules": [{"metric": "exact_match", "minimum": "0.3"}], "approval": "Manual"});
    stage.import("colours", "amber", &gate).await?;
    let adapter: LoRAAdapter = stage.get("colours").await?.context("adapter")?;
    let version = adapter
        .status
        .context("status")?
        .versions
        .first()
        .cloned()
        .context("version")?;
    ensure!(
        version.stage.as_str() == "Candidate",
        "an import waits for a person: {version:?}"
    );

    spoofing_is_refused(&stage, &version.digest).await?;
    stage.proved(
        "the admission policy refuses another's name and foreign fields",
        start.elapsed(),
    );

    approve(&stage, "colours", 1, &version.digest).await?;
    stage.stable("assistants", "colours", 1, 2 * MINUTE).await?;
    stage.proved("an approved version is served", start.elapsed());

    stage.import("colours", "basalt", &gate).await?;
    let adapter: LoRAAdapter = stage.get("colours").await?.context("adapter")?;
    let versions = adapter.status.context("status")?.versions;
    let second = versions
        .iter()
        .find(|version| version.version == 2)
        .context("version 2")?;
    approve(&stage, "colours", 2, &second.digest).await?;
    stage
        .rollout_state(&[RolloutState::Paused], 2 * MINUTE)
        .await?;
    let candidate = stage.served().await?.candidate.context("candidate")?;
    ensure!(candidate.weight == 20, "{candidate:?}");

    let answer = stage
        .command("wrong-digest", "Promote", &version.digest, None)
        .await?;
    ensure!(
        answer.outcome.as_str() == "Refused",
        "a command for another digest: {answer:?}"
    );
    let step = stage.served().await?.rollout.context("rollout")?.step;
    let answer = stage
        .command("wrong-step", "Promote", &second.digest, Some(step + 7))
        .await?;
    ensure!(
        answer.outcome.as_str() == "Refused",
        "a command for another step: {answer:?}"
    );

    let answer = stage
        .command("resume", "Resume", &second.digest, Some(step))
        .await?;
    ensure!(answer.outcome.as_str() != "Refused", "{answer:?}");
    stage
        .endpoint("assistants", MINUTE, "weight 60", |endpoint| {
            let served = endpoint
                .status
                .as_ref()?
                .adapters
                .iter()
                .find(|served| served.name == "colours")?;
            (served.candidate.as_ref()?.weight == 60).then_some(())
        })
        .await?;
    let answer = stage
        .command("abort", "Abort", &second.digest, None)
        .await?;
    ensure!(answer.outcome.as_str() != "Refused", "{answer:?}");
    stage
        .rollout_state(&[RolloutState::RolledBack], MINUTE)
        .await?;
    stage.stable_is("colours", 1).await?;
    stage.proved("Resume, refused commands and Abort", start.elapsed());
    Ok(())
}

/// Approves a version and waits for the answer.
pub async fn approve(
    stage: &Stage,
    adapter: &str,
    version: u32,
    digest: &str,
) -> anyhow::Result<()> {
    let target = format!("version/{version}");
    let id = format!("approve-{version}");
    let command = json!({"id": id, "verb": "Approve", "digest": digest, "user": stage.world.user, "reason": "looked at it"});
    let cluster = &stage.world.cluster;
    cluster
        .patch_status::<LoRAAdapter>(
            &stage.namespace,
            adapter,
            json!({"commands": {&target: command}}),
        )
        .await?;
    let answer = cluster
        .wait_for::<LoRAAdapter, _>(
            &stage.namespace,
            adapter,
            MINUTE,
            "the answer to Approve",
            |adapter| {
                adapter?
                    .status
                    .as_ref()?
                    .answers
                    .get(&target)
                    .filter(|answer| answer.id == id)
                    .cloned()
            },
        )
        .await?;
    ensure!(answer.outcome.as_str() != "Refused", "{answer:?}");
    Ok(())
}

async fn spoofing_is_refused(stage: &Stage, digest: &str) -> anyhow::Result<()> {
    let spoofed = json!({"commands": {"version/1": {"id": "spoof", "verb": "Approve", "digest": digest, "user": "somebody-else"}}});
    refused::<LoRAAdapter>(stage, "colours", spoofed, "user must be your own name").await?;
    refused::<LoRAAdapter>(
        stage,
        "colours",
        json!({"approved": 1}),
        "written by the operator only",
    )
    .await?;
    refused::<ServingEndpoint>(
        stage,
        "assistants",
        json!({"readyReplicas": 77}),
        "written by the operator only",
    )
    .await?;
    let takeover = json!({"apiVersion": "graftwork.dev/v1alpha1", "kind": "LoRAAdapter", "status": {"conditions": []}});
    let parameters = PatchParams::apply("somebody").force();
    let api = stage.world.cluster.api::<LoRAAdapter>(&stage.namespace);
    // An apply with an empty list owns nothing and changes nothing; the stage must still be the operator's.
    let _ = api
        .patch_status("colours", &parameters, &Patch::Apply(takeover))
        .await;
    let adapter = api.get("colours").await?;
    ensure!(
        adapter
            .status
            .is_some_and(|status| !status.conditions.is_empty()),
        "conditions were taken over"
    );
    Ok(())
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
    match stage
        .world
        .cluster
        .patch_status::<K>(&stage.namespace, name, status.clone())
        .await
    {
        Ok(_) => bail!("the API server accepted {status}"),
        Err(kube::Error::Api(error)) if error.message.contains(why) => Ok(()),
        Err(error) => bail!("{status} was refused for another reason: {error}"),
    }
}
