//! Endpoints: adapters that are not there, and a spec that goes bad while it serves.

use anyhow::ensure;
use graftwork_api::ServingEndpoint;
use graftwork_api::lora_adapter::AdapterVersion;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::super::Stage;
use super::super::stage::condition;
use super::super::traffic::{Load, expectations};
use super::{READ, SHOWN, expect, says};
use crate::cluster::wait;
use crate::manifests::{self, CLAIM};

/// Conditions of endpoints that can't be.
pub async fn refused(stage: &Stage) -> anyhow::Result<()> {
    let absent = manifests::endpoint("no-adapter", &["absent"], 0, &json!({}));
    expect(
        stage,
        absent,
        "AdaptersPending",
        SHOWN,
        &["AdapterNotFound", "spec.adapters[absent].adapterRef.name"],
    )
    .await?;
    let mut no_version = manifests::endpoint("no-version", &["colours"], 0, &json!({}));
    no_version.data["spec"]["adapters"][0]["version"] = json!(9);
    expect(
        stage,
        no_version,
        "AdaptersPending",
        SHOWN,
        &["VersionNotFound", "spec.adapters[colours].version", "9"],
    )
    .await
}

/// The endpoint that serves is given one bad spec after another, under traffic: it says so, nothing that it made is
/// written, and no request fails.
pub async fn serving(stage: &Stage) -> anyhow::Result<()> {
    let rollout = json!({"strategy": "Immediate"});
    let good = manifests::endpoint("assistants", &["colours"], 1, &rollout);
    let bad = |change: fn(&mut Value)| -> DynamicObject {
        let mut endpoint = good.clone();
        change(&mut endpoint.data["spec"]);
        endpoint
    };
    let expected = expectations(&[("colours", 1, "amber")]);
    let before = stage.endpoint_children().await?;
    ensure!(before.len() >= 6, "children: {before:#?}");
    let traffic = stage.start_traffic(&Load::new("load", &expected)).await?;
    for (endpoint, within, words) in [
        (
            bad(|spec| spec["engine"]["computeProfile"] = json!("absent")),
            SHOWN,
            &[
                "ComputeProfileNotFound",
                "spec.engine.computeProfile",
                "absent",
            ][..],
        ),
        (
            bad(|spec| spec["baseModel"]["name"] = json!("colours")),
            SHOWN,
            &["InvalidSpec", "spec.adapters[0].name", "colours"],
        ),
        (
            bad(|spec| spec["engine"]["maximumContextTokens"] = json!(4096)),
            READ,
            &[
                "InvalidSpec",
                "spec.engine.maximumContextTokens",
                "4096",
                "512",
            ],
        ),
        (
            bad(|spec| spec["engine"]["keyValueCache"] = json!("64Gi")),
            SHOWN,
            &[
                "InvalidSpec",
                "spec.engine.keyValueCache",
                "64Gi",
                "resources.limits.memory",
            ],
        ),
        (
            bad(|spec| spec["engine"]["keyValueCache"] = json!("1Mi")),
            READ,
            &["InvalidSpec", "spec.engine.keyValueCache", "1Mi", "1536Ki"],
        ),
        (
            bad(|spec| spec["baseModel"]["uri"] = json!("pvc://nowhere/base-model")),
            SHOWN,
            &["BaseModelNotFound", "spec.baseModel.uri", "nowhere"],
        ),
        (
            bad(|spec| spec["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/text"))),
            READ,
            &["BaseModelNotFound", "spec.baseModel.uri", "config.json"],
        ),
        (
            bad(|spec| spec["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/absent"))),
            READ,
            &["BaseModelNotFound", "spec.baseModel.uri", "absent"],
        ),
        (
            bad(|spec| spec["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/other-kind"))),
            READ,
            &["BaseModelUnsupported", "spec.baseModel.uri", "mamba"],
        ),
    ] {
        says(stage, &endpoint, "Ready", within, words).await?;
        let now = stage.endpoint_children().await?;
        ensure!(
            now == before,
            "{words:?}: children were written: before {before:#?}, now {now:#?}"
        );
    }
    stage.apply(&good).await?;
    stage
        .endpoint("assistants", READ, "Ready=True again", is_ready)
        .await?;
    let now = stage.endpoint_children().await?;
    ensure!(
        now == before,
        "back to the good spec: before {before:#?}, now {now:#?}"
    );
    adapter_goes_bad(stage).await?;
    let now = stage.endpoint_children().await?;
    ensure!(
        now == before,
        "a bad adapter: before {before:#?}, now {now:#?}"
    );
    traffic.stop().await?;
    additions_go(stage).await
}

/// What somebody adds to a configuration and to a pod template is taken out.
async fn additions_go(stage: &Stage) -> anyhow::Result<()> {
    const ROUTER: &str = "assistants-router";
    let maps = stage.world.cluster.api::<ConfigMap>(&stage.namespace);
    let deployments = stage.world.cluster.api::<Deployment>(&stage.namespace);
    let somebody = PatchParams {
        field_manager: Some("somebody".to_owned()),
        ..PatchParams::default()
    };
    let key = json!({"data": {"theirs": "1"}});
    maps.patch(ROUTER, &somebody, &Patch::Merge(key)).await?;
    let container = json!({"name": "router", "env": [{"name": "THEIRS", "value": "1"}]});
    let variable = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
    let patched = deployments
        .patch(ROUTER, &somebody, &Patch::Strategic(variable))
        .await?;
    ensure!(
        json!(patched.spec).to_string().contains("THEIRS"),
        "nothing was added"
    );
    wait("what somebody added to be gone", SHOWN, || async {
        let data = maps.get(ROUTER).await?.data.unwrap_or_default();
        ensure!(data.len() == 1, "keys: {:?}", data.keys());
        let spec = json!(deployments.get(ROUTER).await?.spec).to_string();
        ensure!(!spec.contains("THEIRS"), "{spec}");
        Ok(Some(()))
    })
    .await
}

/// The adapter that the endpoint serves is given a folder that is none: it says so, and its version stays in
/// production.
async fn adapter_goes_bad(stage: &Stage) -> anyhow::Result<()> {
    let adapter = |path: &str| {
        let uri = format!("pvc://{CLAIM}/{path}");
        manifests::adapter("colours", &json!({}), Some(&uri))
    };
    says(
        stage,
        &adapter("adapters/absent"),
        "Ready",
        READ,
        &["ImportFailed", "spec.import", "absent"],
    )
    .await?;
    let in_production = |version: &AdapterVersion| version.stage.as_str() == "Production";
    stage
        .version("colours", 1, "in production", in_production)
        .await?;
    stage.apply(&adapter("adapters/amber")).await?;
    stage.stable_is("colours", 1).await
}

/// Ready at the newest generation.
fn is_ready(endpoint: &ServingEndpoint) -> Option<()> {
    let ready = condition(&endpoint.status.as_ref()?.conditions, "Ready")?;
    let newest = ready.observed_generation == endpoint.metadata.generation;
    (ready.status == "True" && newest).then_some(())
}
