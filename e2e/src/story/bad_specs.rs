//! Bad input gets a condition that names the field, or is refused by the API server; what runs already stays
//! untouched.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use super::Stage;
use super::fixture::marker_rows;
use super::stage::ENGINES;
use crate::cluster::wait;
use crate::manifests::{self, CLAIM, Training};

/// For what the API server shows.
const SHOWN: Duration = Duration::from_secs(5);
/// For what the keeper or a Job must read.
const READ: Duration = Duration::from_secs(30);

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage
        .serve_amber(1, &json!({"strategy": "Immediate"}))
        .await?;
    stage
        .apply(&manifests::rows("amber", &marker_rows("amber")))
        .await?;
    stage
        .apply(&manifests::config_map_dataset("amber", "amber"))
        .await?;
    stage.dataset_ready("amber").await?;
    let pods = stage.start_times(ENGINES).await?;

    refused_by_the_api_server(&stage).await?;
    stage.proved(
        "the API server refuses what its schema can tell",
        start.elapsed(),
    );
    datasets(&stage).await?;
    stage.proved("datasets", start.elapsed());
    runs(&stage).await?;
    stage.proved("runs", start.elapsed());
    adapters(&stage).await?;
    stage.proved("adapters", start.elapsed());
    endpoints(&stage).await?;
    stage.proved("endpoints", start.elapsed());
    long_names(&stage).await?;
    stage.proved("names of 253 characters", start.elapsed());

    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted"
    );
    stage.stable_is("colours", 1).await
}

fn run_with(name: &str, change: impl FnOnce(&mut Value)) -> DynamicObject {
    let training = Training {
        name,
        dataset: "amber",
        adapter: "",
        steps: 5,
        rank: 4,
        batch: 16,
        checkpoint_every: 5,
        ..Training::default()
    };
    let mut run = training.object_without_adapter();
    change(&mut run.data["spec"]);
    run
}

async fn refused_by_the_api_server(stage: &Stage) -> anyhow::Result<()> {
    let steps = json!({"canary": {"steps": [{"setWeight": 50}, {"setWeight": 10}]}});
    for (object, words) in [
        (
            run_with("rank-0", |spec| spec["method"]["lora"]["rank"] = json!(0)),
            &["rank"][..],
        ),
        (
            run_with("rate-0", |spec| {
                spec["hyperparameters"]["learningRate"] = json!("0")
            }),
            &["learningRate"],
        ),
        (
            manifests::endpoint("falling", &[], 1, &steps),
            &["setWeight rises"],
        ),
        (
            manifests::endpoint(&"long".repeat(20), &[], 1, &json!({})),
            &["metadata.name"],
        ),
    ] {
        match stage.apply(&object).await {
            Ok(_) => bail!("{:?} was accepted", object.metadata.name),
            Err(error) => contains(&format!("{error:#}"), words)?,
        }
    }
    Ok(())
}

async fn datasets(stage: &Stage) -> anyhow::Result<()> {
    let bad = [
        json!({"prompt": "a", "completion": "b"}),
        json!({"prompt": "a"}),
        json!({"prompt": 7, "completion": "b"}),
    ];
    stage.apply(&manifests::rows("bad-rows", &bad)).await?;
    expect(
        stage,
        manifests::config_map_dataset("no-config-map", "absent"),
        "Ready",
        SHOWN,
        &["SourceNotFound", "absent", "spec.sources"],
    )
    .await?;
    let mut no_key = manifests::config_map_dataset("no-key", "amber");
    no_key.data["spec"]["sources"][0]["configMapRef"]["key"] = json!("other.jsonl");
    expect(
        stage,
        no_key,
        "Ready",
        SHOWN,
        &["SourceNotFound", "other.jsonl", "spec.sources"],
    )
    .await?;
    let mut no_claim = manifests::config_map_dataset("no-claim", "amber");
    no_claim.data["spec"]["sources"] = json!([{"name": "rows", "uri": "pvc://absent/rows.jsonl"}]);
    expect(
        stage,
        no_claim,
        "Ready",
        SHOWN,
        &["SourceNotFound", "absent", "spec.sources"],
    )
    .await?;
    expect(
        stage,
        manifests::config_map_dataset("malformed", "bad-rows"),
        "Ready",
        READ,
        &["DataError", "maximumInvalidPercent"],
    )
    .await?;
    Ok(())
}

async fn runs(stage: &Stage) -> anyhow::Result<()> {
    let unknown = run_with("no-dataset", |spec| {
        spec["datasetRef"] = json!({"name": "absent"})
    });
    expect(
        stage,
        unknown,
        "Succeeded",
        SHOWN,
        &["WaitingForDataset", "absent", "datasetRef"],
    )
    .await?;
    let unknown = run_with("no-profile", |spec| {
        spec["compute"] = json!({"profile": "absent"})
    });
    expect(
        stage,
        unknown,
        "Succeeded",
        SHOWN,
        &["ComputeProfileNotFound", "absent", "default"],
    )
    .await?;
    let no_base = run_with("no-base", |spec| {
        spec["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/absent"))
    });
    expect(
        stage,
        no_base,
        "Succeeded",
        READ,
        &["BaseModelNotFound", "absent"],
    )
    .await?;
    let no_config = run_with("no-config", |spec| {
        spec["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/text"))
    });
    expect(
        stage,
        no_config,
        "Succeeded",
        READ,
        &["BaseModelNotFound", "config.json"],
    )
    .await?;
    unsupported_model(stage).await?;
    let unsupported = run_with("unsupported", |spec| {
        spec["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/mamba"))
    });
    expect(
        stage,
        unsupported,
        "Succeeded",
        READ,
        &["BaseModelUnsupported", "mamba"],
    )
    .await?;
    let rank = run_with("rank-above", |spec| {
        spec["method"]["lora"]["rank"] = json!(1000)
    });
    expect(
        stage,
        rank,
        "Succeeded",
        READ,
        &["InvalidSpec", "rank", "1000", "192"],
    )
    .await?;
    let module = run_with("unknown-module", |spec| {
        spec["method"]["lora"]["targetModules"] = json!(["q_proj", "z_proj"])
    });
    expect(
        stage,
        module,
        "Succeeded",
        READ,
        &["InvalidSpec", "z_proj", "targetModules"],
    )
    .await?;
    Ok(())
}

/// A folder with a config.json of an architecture that is not implemented.
async fn unsupported_model(stage: &Stage) -> anyhow::Result<()> {
    let config =
        json!({"model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": 64});
    let object = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mamba"}, "data": {"config.json": config.to_string()},
    }))?;
    stage.apply(&object).await?;
    let mounts = [
        ("demo", "/demo", manifests::claim_source()),
        ("mamba", "/mamba", json!({"configMap": {"name": "mamba"}})),
    ];
    let arguments = ["seed", "--copy", "/mamba=/demo/mamba"].map(str::to_owned);
    let job = manifests::job(
        "seed-mamba",
        &stage.world.installation.image("e2e"),
        &arguments,
        &mounts,
    );
    stage
        .world
        .cluster
        .run_job_to_end(&stage.namespace, &job, READ * 2)
        .await
}

async fn adapters(stage: &Stage) -> anyhow::Result<()> {
    let import = |name: &str, path: &str| {
        manifests::adapter(name, &json!({}), Some(&format!("pvc://{CLAIM}/{path}")))
    };
    expect(
        stage,
        import("no-folder", "adapters/absent"),
        "Ready",
        READ,
        &["ImportFailed", "absent"],
    )
    .await?;
    expect(
        stage,
        import("not-an-adapter", "text"),
        "Ready",
        READ,
        &["ImportFailed", "adapter_config.json"],
    )
    .await?;
    let mut wrong_digest = import("wrong-digest", "adapters/amber");
    wrong_digest.data["spec"]["import"]["digest"] = json!(format!("sha256:{}", "0".repeat(64)));
    expect(
        stage,
        wrong_digest,
        "Ready",
        READ,
        &["DigestMismatch", "000000"],
    )
    .await?;
    let mut other_base = import("other-base", "adapters/amber");
    other_base.data["spec"]["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/absent"));
    expect(
        stage,
        other_base,
        "Ready",
        READ,
        &["BaseModelNotFound", "absent"],
    )
    .await?;
    Ok(())
}

async fn endpoints(stage: &Stage) -> anyhow::Result<()> {
    let absent = manifests::endpoint("no-adapter", &["absent"], 0, &json!({}));
    expect(
        stage,
        absent,
        "AdaptersPending",
        SHOWN,
        &["AdapterNotFound", "absent"],
    )
    .await?;
    let foreign: Deployment = serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "taken-engine"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "main", "image": stage.world.installation.image("e2e")}]},
        }},
    }))?;
    stage
        .world
        .cluster
        .api::<Deployment>(&stage.namespace)
        .create(&Default::default(), &foreign)
        .await?;
    let taken = manifests::endpoint("taken", &[], 0, &json!({}));
    expect(
        stage,
        taken,
        "Ready",
        SHOWN,
        &["ObjectNotOurs", "taken-engine"],
    )
    .await?;
    let deployment: Deployment = stage
        .get("taken-engine")
        .await?
        .context("the foreign Deployment is gone")?;
    ensure!(
        deployment
            .metadata
            .owner_references
            .is_none_or(|owners| owners.is_empty()),
        "it was adopted"
    );
    Ok(())
}

/// A Dataset and a run whose names are as long as names may be work like others.
async fn long_names(stage: &Stage) -> anyhow::Result<()> {
    let name = |start: &str| {
        format!("{start}{}", "-x".repeat((253 - start.len()) / 2))
            .chars()
            .take(253)
            .collect::<String>()
    };
    let (dataset, run) = (name("data"), name("runs"));
    stage
        .apply(&manifests::config_map_dataset(&dataset, "amber"))
        .await?;
    stage.dataset_ready(&dataset).await?;
    stage
        .apply(&run_with(&run, |spec| {
            spec["datasetRef"] = json!({"name": dataset})
        }))
        .await?;
    stage.run_complete(&run, READ * 4).await?;
    Ok(())
}

/// Applies an object and waits until its condition says each of `words`.
async fn expect(
    stage: &Stage,
    object: DynamicObject,
    type_: &str,
    within: Duration,
    words: &[&str],
) -> anyhow::Result<()> {
    let name = object.metadata.name.clone().context("name")?;
    let types = object.types.clone().context("kind")?;
    let kind: GroupVersionKind = (&types).try_into()?;
    let api: Api<DynamicObject> = Api::namespaced_with(
        stage.world.cluster.client.clone(),
        &stage.namespace,
        &ApiResource::from_gvk(&kind),
    );
    stage.apply(&object).await?;
    let what = format!("{} {name}: {type_} to say {words:?}", types.kind);
    wait(&what, within, || async {
        let text = api.get(&name).await?.data["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == type_)
            .map(|condition| format!("{} {}", condition["reason"], condition["message"]))
            .unwrap_or_default();
        contains(&text, words).map(Some)
    })
    .await?;
    if types.kind != "Dataset" || name != "amber" {
        api.delete(&name, &Default::default()).await?;
    }
    Ok(())
}

fn contains(text: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(text.contains(word), "{text:?} does not name {word:?}");
    }
    Ok(())
}
