//! Names that somebody else's objects have: it is said, and those stay as they are.

use anyhow::{Context as _, ensure};
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::super::Stage;
use super::{READ, SHOWN, api_of, expect, run_with};
use crate::manifests;

/// Who writes what the operator makes.
const OPERATOR: &str = "graftwork-operator";

/// Children of endpoints and runs whose names are taken.
pub async fn refused(stage: &Stage) -> anyhow::Result<()> {
    for (kind, suffix) in [
        ("Deployment", "engine"),
        ("Deployment", "router"),
        ("ConfigMap", "router"),
        ("Service", "engines"),
    ] {
        let owner = format!("{}-{suffix}", kind.to_lowercase());
        let name = format!("{owner}-{suffix}");
        let foreign = foreign(stage, kind, &name)?;
        stage.apply(&foreign).await?;
        let endpoint = manifests::endpoint(&owner, &[], 0, &json!({}));
        expect(
            stage,
            endpoint,
            "Ready",
            SHOWN,
            &["ObjectNotOurs", kind, &name],
        )
        .await?;
        ensure_not_taken_over(stage, &foreign).await?;
    }
    // What a run is made of is known once its inputs were read.
    for (kind, owner, name) in [
        ("Job", "job-taken", "job-taken-1"),
        ("ConfigMap", "config-taken", "config-taken-trainer"),
    ] {
        let foreign = foreign(stage, kind, name)?;
        stage.apply(&foreign).await?;
        let run = run_with(owner, |_| {});
        expect(
            stage,
            run,
            "Succeeded",
            READ,
            &["Unknown", "ObjectNotOurs", kind, name],
        )
        .await?;
        ensure_not_taken_over(stage, &foreign).await?;
    }
    Ok(())
}

/// An object that does nothing.
fn foreign(stage: &Stage, kind: &str, name: &str) -> anyhow::Result<DynamicObject> {
    let pod = |restart_policy: &str| {
        json!({
            "metadata": {"labels": {"a": "b"}},
            "spec": {
                "restartPolicy": restart_policy,
                "containers": [{"name": "main", "image": stage.world.installation.image("e2e")}],
            },
        })
    };
    let (version, body) = match kind {
        "Deployment" => (
            "apps/v1",
            json!({"spec": {
                "replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": pod("Always"),
            }}),
        ),
        "Job" => (
            "batch/v1",
            json!({"spec": {"suspend": true, "template": pod("Never")}}),
        ),
        "Service" => (
            "v1",
            json!({"spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}}),
        ),
        _ => ("v1", json!({"data": {"a": "b"}})),
    };
    let mut object: Value =
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
    for (field, value) in body.as_object().into_iter().flatten() {
        object[field.as_str()] = value.clone();
    }
    Ok(serde_json::from_value(object)?)
}

async fn ensure_not_taken_over(stage: &Stage, foreign: &DynamicObject) -> anyhow::Result<()> {
    let name = foreign.metadata.name.as_deref().context("name")?;
    let metadata = api_of(stage, foreign)?.get(name).await?.metadata;
    let mut managers = metadata.managed_fields.iter().flatten();
    ensure!(
        metadata.deletion_timestamp.is_none()
            && metadata.owner_references.iter().flatten().next().is_none()
            && managers.all(|entry| entry.manager.as_deref() != Some(OPERATOR)),
        "{name} was taken over: {metadata:?}"
    );
    Ok(())
}
