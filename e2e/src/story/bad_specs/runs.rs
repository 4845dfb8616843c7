//! Runs: references that lead nowhere, bases that can't be trained, hyperparameters that do not fit.

use anyhow::{Context as _, bail};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use graftwork_api::{LoRAAdapter, TrainingRun};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::super::Stage;
use super::super::fixture::Files;
use super::super::stage::condition;
use super::{READ, SHOWN, contains, expect, run_with};
use crate::manifests::{self, CLAIM};

/// Conditions of runs that can't be.
pub async fn refused(stage: &Stage) -> anyhow::Result<()> {
    let unknown = run_with("no-dataset", |spec| {
        spec["datasetRef"] = json!({"name": "absent"});
    });
    expect(
        stage,
        unknown,
        "Succeeded",
        SHOWN,
        &["WaitingForDataset", "spec.datasetRef.name", "absent"],
    )
    .await?;
    let unknown = run_with("no-profile", |spec| {
        spec["compute"] = json!({"profile": "absent"});
    });
    expect(
        stage,
        unknown,
        "Succeeded",
        SHOWN,
        &[
            "Unknown",
            "ComputeProfileNotFound",
            "spec.compute.profile",
            "absent",
            "default",
        ],
    )
    .await?;
    let no_claim = run_with("no-claim", |spec| {
        let benchmark = json!({"name": "quiz", "uri": "pvc://absent/quiz.jsonl"});
        spec["evaluation"]["benchmarks"] = json!([benchmark]);
    });
    expect(
        stage,
        no_claim,
        "Succeeded",
        SHOWN,
        &[
            "ClaimNotFound",
            "spec.evaluation.benchmarks[quiz].uri",
            "absent",
        ],
    )
    .await?;
    let no_base = run_with("no-base", |spec| {
        spec["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/absent"));
    });
    expect(
        stage,
        no_base,
        "Succeeded",
        READ,
        &["BaseModelNotFound", "spec.baseModel.uri", "absent"],
    )
    .await?;
    let no_config = run_with("no-config", |spec| {
        spec["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/text"));
    });
    expect(
        stage,
        no_config,
        "Succeeded",
        READ,
        &["BaseModelNotFound", "spec.baseModel.uri", "config.json"],
    )
    .await?;
    let unsupported = run_with("unsupported", |spec| {
        spec["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/other-kind"));
    });
    expect(
        stage,
        unsupported,
        "Succeeded",
        READ,
        &["BaseModelUnsupported", "spec.baseModel.uri", "mamba"],
    )
    .await?;
    unfit(stage).await?;
    for_another_base(stage).await?;
    immutable(stage).await
}

/// Runs that do not go with their base model, or with their rows.
async fn unfit(stage: &Stage) -> anyhow::Result<()> {
    let rank = run_with("rank-above", |spec| {
        spec["method"]["lora"]["rank"] = json!(1000);
    });
    expect(
        stage,
        rank,
        "Succeeded",
        READ,
        &[
            "False",
            "InvalidSpec",
            "spec.method.lora.rank",
            "1000",
            "192",
        ],
    )
    .await?;
    let module = run_with("unknown-module", |spec| {
        spec["method"]["lora"]["targetModules"] = json!(["q_proj", "z_proj"]);
    });
    expect(
        stage,
        module,
        "Succeeded",
        READ,
        &["InvalidSpec", "spec.method.lora.targetModules", "z_proj"],
    )
    .await?;
    let pairs = run_with("pairs", |spec| spec["objective"] = json!({"type": "DPO"}));
    expect(
        stage,
        pairs,
        "Succeeded",
        READ,
        &["InvalidSpec", "spec.objective.type", "Preference", "amber"],
    )
    .await
}

/// A run's spec stays as it is, field by field, but for `suspend`.
async fn immutable(stage: &Stage) -> anyhow::Result<()> {
    let name = "immutable";
    let run = run_with(name, |spec| spec["datasetRef"] = json!({"name": "absent"}));
    stage.apply(&run).await?;
    for (field, value) in [
        ("baseModel", json!({"uri": "pvc://another/model"})),
        ("datasetRef", json!({"name": "amber"})),
        ("adapterRef", json!({"name": "colours"})),
        ("method", json!({"lora": {"rank": 8}})),
        ("hyperparameters", json!({"learningRate": "1e-3"})),
        ("compute", json!({"profile": "gpu"})),
        ("checkpoint", json!({"everySteps": 7})),
        ("evaluation", json!({"maximumNewTokens": 9})),
        ("limits", json!({"retries": 5})),
    ] {
        match change(stage, name, json!({(field): value})).await {
            Ok(_) => bail!("another {field} was accepted"),
            Err(error) => contains(&error.to_string(), &[&format!("{field} is immutable")])?,
        }
    }
    change(stage, name, json!({"suspend": true})).await?;
    let what = "the reason Suspended";
    stage
        .world
        .cluster
        .wait_for::<TrainingRun, _>(&stage.namespace, name, SHOWN, what, |run| {
            let succeeded = condition(&run?.status.as_ref()?.conditions, "Succeeded")?;
            (succeeded.reason == "Suspended").then_some(())
        })
        .await?;
    let api = stage.world.cluster.api::<TrainingRun>(&stage.namespace);
    api.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// Merges a change into a run's spec.
async fn change(stage: &Stage, name: &str, change: Value) -> kube::Result<TrainingRun> {
    let api = stage.world.cluster.api::<TrainingRun>(&stage.namespace);
    let patch = Patch::Merge(json!({"spec": change}));
    api.patch(name, &PatchParams::default(), &patch).await
}

/// A folder with a config.json of an architecture that is not implemented.
pub fn unsupported_model() -> (String, Files) {
    let config =
        json!({"model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": 64});
    ("other-kind".to_owned(), configuration(&config))
}

/// What makes a copy of the base model another one: a key that changes nothing is enough for another digest.
pub fn other_base() -> anyhow::Result<(String, Files)> {
    let mut config: Value =
        serde_json::from_str(include_str!("../../../demo-data/base-model/config.json"))
            .context("the base model's config.json")?;
    config["transformers_version"] = json!("another");
    Ok(("other-base".to_owned(), configuration(&config)))
}

fn configuration(config: &Value) -> Files {
    let file = BASE64_STANDARD.encode(config.to_string());
    Files::from([("config.json".to_owned(), file)])
}

/// A run, and an endpoint, on one base with an adapter that is for another.
async fn for_another_base(stage: &Stage) -> anyhow::Result<()> {
    let mut adapter = manifests::adapter("elsewhere", &json!({}), None);
    adapter.data["spec"]["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/other-base"));
    stage.apply(&adapter).await?;
    let what = "the digest of its base model";
    let digest = stage
        .world
        .cluster
        .wait_for::<LoRAAdapter, _>(&stage.namespace, "elsewhere", READ, what, |adapter| {
            Some(
                adapter?
                    .status
                    .as_ref()?
                    .base_model
                    .as_ref()?
                    .digest
                    .clone(),
            )
        })
        .await?;
    let run = run_with("for-elsewhere", |spec| {
        spec["adapterRef"] = json!({"name": "elsewhere"});
    });
    expect(
        stage,
        run,
        "Succeeded",
        READ,
        &[
            "BaseModelMismatch",
            "spec.baseModel.uri",
            "elsewhere",
            &digest,
        ],
    )
    .await?;
    expect(
        stage,
        manifests::endpoint("of-elsewhere", &["elsewhere"], 0, &json!({})),
        "AdaptersPending",
        READ,
        &[
            "BaseModelMismatch",
            "spec.adapters[elsewhere].adapterRef.name",
            &digest,
        ],
    )
    .await
}
