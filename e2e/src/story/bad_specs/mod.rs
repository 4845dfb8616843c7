//! Bad input gets a condition that names the field, or is refused by the API server; what runs already stays
//! untouched. What is unusual but right works: long names, sources that change.

mod adapters;
mod datasets;
mod endpoints;
mod names;
mod runs;
mod taken;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use graftwork_api::labels;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use super::Stage;
use super::fixture::marker_rows;
use super::stage::ENGINES;
use crate::cluster::wait;
use crate::manifests::{self, Training};

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
    fill_claim(&stage).await?;
    stage.dataset_ready("amber").await?;
    let pods = stage.start_times(ENGINES).await?;

    refused_by_the_api_server(&stage).await?;
    stage.proved(
        "the API server refuses what its schema can tell",
        start.elapsed(),
    );
    datasets::refused(&stage).await?;
    stage.proved("datasets", start.elapsed());
    datasets::versions(&stage).await?;
    stage.proved("sources that change, or do not", start.elapsed());
    runs::refused(&stage).await?;
    stage.proved("runs", start.elapsed());
    adapters::refused(&stage).await?;
    stage.proved("adapters", start.elapsed());
    endpoints::refused(&stage).await?;
    stage.proved("endpoints", start.elapsed());
    taken::refused(&stage).await?;
    stage.proved("names that others have", start.elapsed());
    being_deleted(&stage).await?;
    stage.proved("references to what is being deleted", start.elapsed());
    endpoints::serving(&stage).await?;
    stage.proved("the endpoint that serves, under traffic", start.elapsed());
    names::long(&stage).await?;
    stage.proved("names of 253 characters", start.elapsed());

    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted"
    );
    stage.stable_is("colours", 1).await
}

/// Folders with something wrong in them, and one with rows.
async fn fill_claim(stage: &Stage) -> anyhow::Result<()> {
    let trained = stage.world.adapters.get(&stage.world).await?;
    let amber = trained.get("amber").context("adapter amber")?;
    let folders = [
        runs::unsupported_model(),
        runs::other_base()?,
        adapters::other_width(amber)?,
        adapters::other_rank(amber)?,
        datasets::rows_on_claim(40),
    ];
    // Another base model is one with other files.
    let copies = ["/demo/base-model=/demo/other-base"];
    stage.put("misfits", &copies, &folders).await
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
    let two_limits = json!({"rules": [{"metric": "loss", "minimum": "1", "maximum": "2"}]});
    let mut no_source = manifests::config_map_dataset("no-source", "amber");
    no_source.data["spec"]["sources"] = json!([{"name": "rows"}]);
    let mut split = manifests::config_map_dataset("split", "amber");
    split.data["spec"]["split"]["trainPercent"] = json!(81);
    for (object, words) in [
        (
            run_with("rank-0", |spec| spec["method"]["lora"]["rank"] = json!(0)),
            &["spec.method.lora.rank", "greater than or equal to 1"][..],
        ),
        (
            run_with("rate-0", |spec| {
                spec["hyperparameters"]["learningRate"] = json!("0");
            }),
            &[
                "spec.hyperparameters.learningRate",
                "learningRate is above 0 and at most 1",
            ],
        ),
        (
            no_source,
            &[
                "spec.sources[0]",
                "a source has exactly one of configMapRef, uri and postgres",
            ],
        ),
        (split, &["spec.split", "sum to 100"]),
        (
            manifests::adapter("two-limits", &two_limits, None),
            &["spec.gate.rules[0]", "a rule has exactly one of minimum"],
        ),
        (
            manifests::endpoint("falling", &[], 1, &steps),
            &[
                "spec.rollout.canary.steps",
                "setWeight rises from step to step",
            ],
        ),
        (
            manifests::endpoint(&"l".repeat(253), &[], 1, &json!({})),
            &["metadata.name", "at most 50 characters"],
        ),
    ] {
        match stage.apply(&object).await {
            Ok(_) => bail!("{:?} was accepted", object.metadata.name),
            Err(error) => contains(&format!("{error:#}"), words)?,
        }
    }
    Ok(())
}

/// A run that names a Dataset, and an endpoint that names a LoRAAdapter, that are being deleted and can't go yet.
async fn being_deleted(stage: &Stage) -> anyhow::Result<()> {
    let objects = [
        manifests::config_map_dataset("going", "amber"),
        manifests::adapter("leaving", &json!({}), None),
    ];
    let outcome = refer_to_deleted(stage, &objects).await;
    // Whatever came of it: nobody else takes the finalizer away, and the namespace could never go.
    for object in &objects {
        let api = api_of(stage, object)?;
        let name = object.metadata.name.as_deref().context("name")?;
        let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        match api.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(error)) if error.is_not_found() => {}
            other => drop(other?),
        }
    }
    outcome
}

async fn refer_to_deleted(stage: &Stage, objects: &[DynamicObject]) -> anyhow::Result<()> {
    for object in objects {
        let mut held = object.clone();
        held.metadata.finalizers = Some(vec!["example.com/held-by-somebody".to_owned()]);
        stage.apply(&held).await?;
        let name = object.metadata.name.as_deref().context("name")?;
        let api = api_of(stage, object)?;
        api.delete(name, &DeleteParams::default()).await?;
        let there = api.get(name).await?;
        ensure!(
            there.metadata.deletion_timestamp.is_some(),
            "{name} is not being deleted"
        );
    }
    let run = run_with("of-going", |spec| {
        spec["datasetRef"] = json!({"name": "going"});
    });
    expect(
        stage,
        run,
        "Succeeded",
        SHOWN,
        &[
            "WaitingForDataset",
            "spec.datasetRef.name",
            "going",
            "is being deleted",
        ],
    )
    .await?;
    expect(
        stage,
        manifests::endpoint("of-leaving", &["leaving"], 0, &json!({})),
        "AdaptersPending",
        SHOWN,
        &[
            "AdapterNotFound",
            "spec.adapters[leaving].adapterRef.name",
            "is being deleted",
        ],
    )
    .await
}

/// The objects of an object's kind.
fn api_of(stage: &Stage, object: &DynamicObject) -> anyhow::Result<Api<DynamicObject>> {
    let types = object.types.clone().context("kind")?;
    let kind: GroupVersionKind = (&types).try_into()?;
    Ok(Api::namespaced_with(
        stage.world.cluster.client.clone(),
        &stage.namespace,
        &ApiResource::from_gvk(&kind),
    ))
}

/// Applies an object, waits until its condition says each of `words`, and deletes it.
async fn expect(
    stage: &Stage,
    object: DynamicObject,
    type_: &str,
    within: Duration,
    words: &[&str],
) -> anyhow::Result<()> {
    says(stage, &object, type_, within, words).await?;
    let name = object.metadata.name.as_deref().context("name")?;
    api_of(stage, &object)?
        .delete(name, &DeleteParams::default())
        .await?;
    Ok(())
}

/// Applies an object and waits until its condition says each of `words`.
async fn says(
    stage: &Stage,
    object: &DynamicObject,
    type_: &str,
    within: Duration,
    words: &[&str],
) -> anyhow::Result<()> {
    let name = object.metadata.name.as_deref().context("name")?;
    let api = api_of(stage, object)?;
    stage.apply(object).await?;
    let what = format!("{name}: {type_} to say {words:?}");
    wait(&what, within, || async {
        let text = api.get(name).await?.data["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == type_)
            .map(|it| format!("{} {} {}", it["status"], it["reason"], it["message"]))
            .unwrap_or_default();
        contains(&text, words).map(Some)
    })
    .await
}

/// The Jobs of one component of an object, each with what is another as soon as somebody touches it.
async fn jobs(
    stage: &Stage,
    (component, kind, owner): (&str, &str, &str),
) -> anyhow::Result<Vec<(Option<String>, Option<i64>, bool)>> {
    let selector = labels::to_text(&labels::selector(component, kind, owner));
    let api = stage.world.cluster.api::<Job>(&stage.namespace);
    let jobs = api.list(&ListParams::default().labels(&selector)).await?;
    let touched = |job: Job| {
        let metadata = job.metadata;
        let deleting = metadata.deletion_timestamp.is_some();
        (metadata.uid, metadata.generation, deleting)
    };
    Ok(jobs.items.into_iter().map(touched).collect())
}

/// Gives objects specs that can't work, each with what it then says, while a Job of `of` is at work: it is left alone.
/// Good specs follow.
async fn go_bad_beside_a_job(
    stage: &Stage,
    of: (&str, &str, &str),
    objects: &[(&DynamicObject, DynamicObject, &[&str])],
) -> anyhow::Result<()> {
    let before = wait(&format!("a Job of {of:?}"), READ, || async {
        let jobs = jobs(stage, of).await?;
        Ok((!jobs.is_empty()).then_some(jobs))
    })
    .await?;
    for (_, bad, words) in objects {
        says(stage, bad, "Ready", READ, words).await?;
    }
    let now = jobs(stage, of).await?;
    ensure!(
        now == before,
        "the Job of {of:?} was touched: {before:?}, now {now:?}"
    );
    for (good, ..) in objects {
        stage.apply(good).await?;
    }
    Ok(())
}

fn contains(text: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(text.contains(word), "{text:?} does not name {word:?}");
    }
    Ok(())
}
