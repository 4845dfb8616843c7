//! GitOps: server-side apply with force, twice, as Argo CD does it, leaves no difference in any of the four kinds, takes
//! no field from the operator and writes no child; client-side apply creates, changes and then leaves alone; the
//! generated examples and the custom resource definitions apply either way.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::{Dataset, LoRAAdapter, ServingEndpoint, TrainingRun};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::Resource;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::Stage;
use super::fixture::marker_rows;
use super::stage::OURS;
use crate::cluster::{MINUTE, documents, wait};
use crate::manifests::{self, CLAIM, Training};

/// Argo CD's field manager.
const ARGO: &str = "argocd-controller";
/// The operator's.
const OPERATOR: &str = "graftwork-operator";
/// By which Argo CD knows what is its own; it would prune a child that carries it.
const TRACKING: &str = "argocd.argoproj.io/tracking-id";
/// By which a client-side apply knows what it wrote before.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Name of what is applied client-side.
const BY_CLIENT: &str = "by-client";

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage
        .apply(&manifests::rows("amber", &marker_rows("amber")))
        .await?;
    let wanted = in_git();
    // Dataset and run; adapter and endpoint need a claim that is filled.
    for object in &wanted[..2] {
        stage.apply(object).await?;
    }
    let rollout = json!({"strategy": "Immediate"});
    stage.serve_amber(1, &rollout).await?;
    stage.dataset_ready("amber").await?;
    let before = stage.settled_children().await?;
    apply_twice(&stage, &wanted).await?;
    stage.proved("no difference after two applies", start.elapsed());

    apply_by_client(&stage).await?;
    stage.dataset_ready(BY_CLIENT).await?;
    stage.proved("client-side apply of each kind", start.elapsed());

    fields_are_their_owners(&stage).await?;
    let now = stage.endpoint_children().await?;
    ensure!(
        now == before,
        "children were written: before {before:#?}, now {now:#?}"
    );
    stage.stable_is("colours", 1).await?;
    stage.proved("every field is its owner's", start.elapsed());

    // Last: an example has the name of the endpoint.
    apply_files(&stage).await?;
    stage.proved(
        "every example is accepted, and no spec is invalid",
        start.elapsed(),
    );
    Ok(())
}

/// One of each kind, with the label and the annotation by which Argo CD tracks them.
fn in_git() -> [DynamicObject; 4] {
    let mut objects = one_of_each("amber", "colours", "assistants", 1);
    let uri = format!("pvc://{CLAIM}/adapters/amber");
    objects[2].data["spec"]["import"] = json!({"uri": uri});
    for object in &mut objects {
        let name = object.metadata.name.clone().unwrap_or_default();
        object
            .metadata
            .labels
            .get_or_insert_default()
            .insert("app.kubernetes.io/instance".to_owned(), "gitops".to_owned());
        object
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(TRACKING.to_owned(), format!("gitops:{name}"));
    }
    objects
}

/// A Dataset and a run of it that waits, both named `data`, an adapter, and an endpoint that serves it.
fn one_of_each(data: &str, adapter: &str, endpoint: &str, replicas: u32) -> [DynamicObject; 4] {
    let mut run = Training {
        name: data,
        dataset: data,
        ..Training::default()
    }
    .object_without_adapter();
    run.data["spec"]["suspend"] = json!(true);
    [
        manifests::config_map_dataset(data, "amber"),
        run,
        manifests::adapter(adapter, &json!({}), None),
        manifests::endpoint(
            endpoint,
            &[adapter],
            replicas,
            &json!({"strategy": "Immediate"}),
        ),
    ]
}

async fn apply_twice(stage: &Stage, wanted: &[DynamicObject]) -> anyhow::Result<()> {
    let parameters = PatchParams::apply(ARGO).force();
    for object in wanted {
        let name = object.metadata.name.as_deref().context("name")?;
        let types = object.types.clone().context("kind")?;
        let kind: kube::core::GroupVersionKind = (&types).try_into()?;
        let api = dynamic(stage, &ApiResource::from_gvk(&kind));
        let patch = Patch::Apply(object);
        let apply = || api.patch(name, &parameters, &patch);
        let (first, second) = (apply().await?, apply().await?);
        ensure!(
            first.metadata.generation == second.metadata.generation,
            "{name}: the second apply made a new generation"
        );
        ensure!(
            first.data["spec"] == second.data["spec"],
            "{name}: the second apply changed the spec"
        );
        ensure!(
            managed_by(&first, ARGO) == managed_by(&second, ARGO),
            "{name}: the second apply changed what Argo CD owns"
        );
    }
    let file = list_file(wanted)?;
    let manager = format!("--field-manager={ARGO}");
    // `kubectl diff` exits with 1 where there is a difference.
    let diff = [
        "-n",
        &stage.namespace,
        "diff",
        "--server-side",
        "--force-conflicts",
        &manager,
        "-f",
        file.path().to_str().context("path")?,
    ];
    stage
        .world
        .cluster
        .kubectl(&diff)
        .await
        .context("there is a difference after two applies")?;
    Ok(())
}

/// What a manager owns, with the times at which it wrote.
fn managed_by(object: &DynamicObject, manager: &str) -> Vec<Value> {
    let entries = object.metadata.managed_fields.iter().flatten();
    entries
        .filter(|entry| entry.manager.as_deref() == Some(manager))
        .map(|entry| json!(entry))
        .collect()
}

/// The objects as one file.
fn list_file(objects: &[DynamicObject]) -> anyhow::Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new()?;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    std::fs::write(file.path(), list.to_string())?;
    Ok(file)
}

/// `kubectl apply` of one of each kind: made, left alone, changed, and without a difference then.
async fn apply_by_client(stage: &Stage) -> anyhow::Result<()> {
    let mut objects = one_of_each(BY_CLIENT, BY_CLIENT, BY_CLIENT, 0);
    kubectl_apply(stage, &objects, ["created"; 4]).await?;
    kubectl_apply(stage, &objects, ["unchanged"; 4]).await?;
    for (object, (section, field, value)) in objects.iter_mut().zip([
        ("validation", "minimumRows", json!(11)),
        // A run's spec stays as it is.
        ("checkpoint", "keep", json!(2)),
        ("gate", "approval", json!("Manual")),
        ("engine", "maximumBatchSize", json!(8)),
    ]) {
        object.data["spec"][section][field] = value;
    }
    let words = ["configured", "unchanged", "configured", "configured"];
    kubectl_apply(stage, &objects, words).await?;
    for object in &objects {
        let types = object.types.clone().context("kind")?;
        let kind: kube::core::GroupVersionKind = (&types).try_into()?;
        let live = dynamic(stage, &ApiResource::from_gvk(&kind))
            .get(BY_CLIENT)
            .await?;
        let annotations = live.metadata.annotations.unwrap_or_default();
        let last: Value = serde_json::from_str(
            annotations
                .get(LAST_APPLIED)
                .with_context(|| format!("{} has no {LAST_APPLIED}", types.kind))?,
        )?;
        ensure!(
            last["spec"] == object.data["spec"],
            "{}: {LAST_APPLIED} is {last}",
            types.kind
        );
    }
    let file = list_file(&objects)?;
    let path = file.path().to_str().context("path")?;
    stage
        .world
        .cluster
        .kubectl(&["-n", &stage.namespace, "diff", "-f", path])
        .await
        .context("there is a difference after a client-side apply")?;
    Ok(())
}

/// Applies client-side; what kubectl says of each object, in their order.
async fn kubectl_apply(
    stage: &Stage,
    objects: &[DynamicObject],
    words: [&str; 4],
) -> anyhow::Result<()> {
    let file = list_file(objects)?;
    let path = file.path().to_str().context("path")?;
    let said = stage
        .world
        .cluster
        .kubectl(&["-n", &stage.namespace, "apply", "-f", path])
        .await?;
    let ends: Vec<&str> = said
        .lines()
        .filter_map(|line| line.rsplit(' ').next())
        .collect();
    ensure!(ends == words, "not {words:?}: {said}");
    Ok(())
}

/// Definitions and examples, client-side and server-side.
async fn apply_files(stage: &Stage) -> anyhow::Result<()> {
    for folder in ["crds", "examples"] {
        for way in [
            &["--dry-run=server"][..],
            &["--dry-run=server", "--server-side", "--force-conflicts"],
        ] {
            let arguments = [&["-n", &stage.namespace, "apply", "-f", folder], way].concat();
            stage
                .world
                .cluster
                .kubectl(&arguments)
                .await
                .with_context(|| format!("apply {folder} {way:?}"))?;
        }
    }
    let mut examples = Vec::new();
    for entry in std::fs::read_dir("examples")? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        for object in documents(&text)? {
            let applied = stage.apply(&object).await;
            examples.push(applied.with_context(|| path.display().to_string())?);
        }
    }
    for example in &examples {
        ensure_valid(stage, example).await?;
    }
    Ok(())
}

/// The API server's yes is not the operator's: once it has looked at the newest spec of an object of ours, it calls
/// none invalid.
async fn ensure_valid(stage: &Stage, example: &DynamicObject) -> anyhow::Result<()> {
    let types = example.types.clone().context("kind")?;
    if types.api_version != "graftwork.dev/v1alpha1" {
        return Ok(());
    }
    let name = example.metadata.name.as_deref().context("name")?;
    let kind: kube::core::GroupVersionKind = (&types).try_into()?;
    let api = dynamic(stage, &ApiResource::from_gvk(&kind));
    let what = format!("the operator to look at {} {name}", types.kind);
    let conditions = wait(&what, MINUTE, || async {
        let live = api.get(name).await?;
        let all = live.data["status"]["conditions"].as_array().cloned();
        let looked_at = |condition: &Value| {
            (condition["type"] == "Ready" || condition["type"] == "Succeeded")
                && condition["observedGeneration"].as_i64() == live.metadata.generation
        };
        Ok(all.filter(|all| all.iter().any(looked_at)))
    })
    .await?;
    let invalid = conditions.iter().find(|it| it["reason"] == "InvalidSpec");
    ensure!(
        invalid.is_none(),
        "the example {} {name}: {invalid:?}",
        types.kind
    );
    Ok(())
}

/// Of the four kinds the operator owns status only. Of its children nobody who applied the four kinds owns anything,
/// and Argo CD does not take them for its own.
async fn fields_are_their_owners(stage: &Stage) -> anyhow::Result<()> {
    for resource in [
        ApiResource::erase::<Dataset>(&()),
        ApiResource::erase::<TrainingRun>(&()),
        ApiResource::erase::<LoRAAdapter>(&()),
        ApiResource::erase::<ServingEndpoint>(&()),
    ] {
        let all = dynamic(stage, &resource);
        let mut written = 0;
        for object in all.list(&ListParams::default()).await?.items {
            for entry in managed_by(&object, OPERATOR) {
                written += 1;
                ensure!(
                    entry["subresource"] == "status",
                    "the operator owns a part of {} {:?}: {entry}",
                    resource.kind,
                    object.metadata.name
                );
            }
        }
        ensure!(written > 0, "the operator wrote no {}", resource.kind);
    }
    children_are_ours::<Deployment>(stage).await?;
    children_are_ours::<Service>(stage).await?;
    children_are_ours::<ConfigMap>(stage).await?;
    children_are_ours::<Job>(stage).await
}

async fn children_are_ours<K>(stage: &Stage) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()>,
{
    let resource = ApiResource::erase::<K>(&());
    let children = dynamic(stage, &resource)
        .list(&ListParams::default().labels(OURS))
        .await?
        .items;
    ensure!(!children.is_empty(), "there is no {}", resource.kind);
    for child in children {
        let name = child.metadata.name.clone().unwrap_or_default();
        let foreign = [
            ARGO,
            "kubectl-client-side-apply",
            crate::cluster::FIELD_MANAGER,
        ];
        ensure!(
            !managed_by(&child, OPERATOR).is_empty()
                && foreign.iter().all(|it| managed_by(&child, it).is_empty()),
            "{} {name} is not the operator's own: {:?}",
            resource.kind,
            child.metadata.managed_fields
        );
        let annotations = child.metadata.annotations.unwrap_or_default();
        ensure!(
            !annotations.contains_key(TRACKING),
            "{} {name} would be pruned by Argo CD",
            resource.kind
        );
    }
    Ok(())
}

fn dynamic(stage: &Stage, resource: &ApiResource) -> Api<DynamicObject> {
    Api::namespaced_with(
        stage.world.cluster.client.clone(),
        &stage.namespace,
        resource,
    )
}
