//! Helm refuses values that the chart does not have. Under traffic: `helm upgrade`, with other settings and another
//! image of the engines, restarts no engine and no router; `helm uninstall` keeps the four definitions, objects and
//! serving, and leaves nothing else but key and Lease; installing again goes on where it stopped; and an operator that
//! runs from a shell instead does all that one in the cluster does.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::ServingEndpoint;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::json;

use super::Stage;
use super::fixture::marker_rows;
use super::operator_killed::scale_operator;
use super::shell::Operator;
use super::stage::{ENGINES, FAST_LEASE};
use super::traffic::{Load, Traffic, expectations};
use crate::cluster::{MINUTE, wait};
use crate::install::RELEASE;
use crate::manifests::{self, Training};

/// Label selector of the routers of `assistants`.
const ROUTERS: &str = "app.kubernetes.io/instance=assistants,app.kubernetes.io/component=router";
/// A tag that no node has: no pod may ever need it in this story.
const OTHER_TAG: &str = "another-version";

/// The four kinds.
const KINDS: [&str; 4] = ["Dataset", "LoRAAdapter", "ServingEndpoint", "TrainingRun"];
/// What the chart is made of, each at least once.
const OF_RELEASE: &[&str] = &[
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "Deployment",
    "Role",
    "RoleBinding",
    "Service",
    "ServiceAccount",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    values_are_checked(&stage).await?;
    stage.proved("a mistyped value is refused by its name", start.elapsed());
    apply_one_of_each(&stage).await?;
    let rollout = json!({"strategy": "Immediate"});
    stage.serve_amber(1, &rollout).await?;
    let pods = pods(&stage).await?;
    let expect = expectations(&[
        ("colours", 1, "amber"),
        ("colours", 2, "basalt"),
        ("colours", 3, "rambling"),
    ]);
    let traffic = stage.start_traffic(&Load::new("load", &expect)).await?;

    let (cluster, installation) = (&stage.world.cluster, &stage.world.installation);
    let tag = format!("images.inference.tag={OTHER_TAG}");
    let changed = [
        FAST_LEASE,
        &["logLevel=debug", "resources.requests.cpu=60m", &tag],
    ]
    .concat();
    installation.install(cluster, &changed).await?;
    other_image_is_used(&stage).await?;
    stage.stable_is("colours", 1).await?;
    ensure!(
        self::pods(&stage).await? == pods,
        "an engine or router was restarted by the upgrade"
    );
    stage.proved(
        "an upgrade with another image restarts no engine",
        start.elapsed(),
    );

    let dataset = stage.dataset_ready("amber").await?;
    let kept = kept(&stage).await?;
    let release = stage.of_release().await?;
    for kind in OF_RELEASE {
        ensure!(
            release.iter().any(|(known, _)| known == kind),
            "no {kind} of the chart is there to be removed: {release:?}"
        );
    }
    installation.uninstall(cluster).await?;
    nothing_else_is_left(&stage).await?;
    ensure_kept(&stage, &kept).await?;
    let away = stage.ask_two_thousand(&Load::new("away", &expect)).await?;
    ensure!(away.only("colours@v1"), "uninstalled: {away:?}");
    ensure!(
        self::pods(&stage).await? == pods,
        "an engine or router was restarted by the removal"
    );
    stage.proved(
        "uninstalled: definitions, objects and serving are kept, and nothing else",
        start.elapsed(),
    );

    // The user of the stories may write status from here on, as one who runs the operator from a shell.
    let user = stage.world.user.replace(',', r"\,");
    let user = format!("operatorUsers[0]={user}");
    let values = [FAST_LEASE, &[user.as_str()]].concat();
    installation.install(cluster, &values).await?;
    stage.import("colours", "basalt", &json!({})).await?;
    stage.stable("assistants", "colours", 2, MINUTE).await?;
    traffic.seen("colours@v2").await?;
    ensure_kept(&stage, &kept).await?;
    let same = stage.dataset_ready("amber").await?;
    ensure!(same == dataset, "before {dataset:?}, now {same:?}");
    stage.proved("installed again: it goes on", start.elapsed());

    from_a_shell(&stage, &traffic).await?;
    ensure!(
        self::pods(&stage).await? == pods,
        "an engine or router was restarted by another operator"
    );
    traffic.stop().await?;
    stage.proved(
        "an operator from a shell goes on, and no request failed",
        start.elapsed(),
    );
    Ok(())
}

/// Helm names a value that the chart does not have or can't use; names of pull Secrets become references to them.
async fn values_are_checked(stage: &Stage) -> anyhow::Result<()> {
    // Helm 3.18 took another validator: its words, and those of before.
    for (value, words) in [
        (
            "replica=2",
            [
                "additional properties 'replica' not allowed",
                "Additional property replica is not allowed",
            ],
        ),
        (
            "replicas=two",
            [
                "at '/replicas': got string, want integer",
                "replicas: Invalid type. Expected: integer",
            ],
        ),
        ("store.size=20GB", ["at '/store/size'", "store.size: "]),
        (
            "images.operator.tag=1",
            ["at '/images/operator/tag'", "images.operator.tag: "],
        ),
        (
            "computeProfiles.default.resource.limits.cpu=1",
            [
                "at '/computeProfiles/default': additional properties 'resource' not allowed",
                "computeProfiles.default: Additional property resource is not allowed",
            ],
        ),
        (
            "leaderElection.renewDeadlineSeconds=20",
            ["leaderElection: retrySeconds 2 < renewDeadlineSeconds 20 < leaseSeconds 15 must rise";
                2],
        ),
        (
            "store.secretName=bucket",
            ["name the bucket in store.url"; 2],
        ),
    ] {
        let refusal = template(stage, value)
            .await
            .err()
            .with_context(|| format!("{value} is taken"))?
            .to_string();
        ensure!(
            words.iter().any(|words| refusal.contains(words)),
            "{value}: {refusal}"
        );
    }
    template(stage, "global.region=north").await?;
    let printed = template(stage, "images.pullSecrets[0]=registry").await?;
    ensure!(
        printed.contains("imagePullSecrets:\n  - {name: \"registry\"}\n"),
        "images.pullSecrets is no reference: {printed}"
    );
    Ok(())
}

async fn template(stage: &Stage, value: &str) -> anyhow::Result<String> {
    let chart = &stage.world.installation.chart;
    let chart = chart.to_str().context("the chart's path is not UTF-8")?;
    let arguments = ["template", RELEASE, chart, "--set", value];
    stage.world.cluster.helm(&arguments).await
}

/// A Dataset, and a run of it that waits, beside the adapter and the endpoint.
async fn apply_one_of_each(stage: &Stage) -> anyhow::Result<()> {
    stage
        .apply(&manifests::rows("amber", &marker_rows("amber")))
        .await?;
    stage
        .apply(&manifests::config_map_dataset("amber", "amber"))
        .await?;
    let mut run = Training {
        name: "waits",
        dataset: "amber",
        ..Training::default()
    }
    .object_without_adapter();
    run.data["spec"]["suspend"] = json!(true);
    stage.apply(&run).await?;
    Ok(())
}

/// Kind, name and UID of the definitions and of the objects of the four kinds.
async fn kept(stage: &Stage) -> anyhow::Result<BTreeSet<(String, String, String)>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(stage.world.cluster.client.clone());
    let mut kept = BTreeSet::new();
    for definition in definitions.list(&ListParams::default()).await?.items {
        if definition.spec.group == "graftwork.dev" {
            let metadata = definition.metadata;
            kept.insert((
                "CustomResourceDefinition".to_owned(),
                metadata.name.unwrap_or_default(),
                metadata.uid.unwrap_or_default(),
            ));
        }
    }
    ensure!(kept.len() == KINDS.len(), "definitions: {kept:?}");
    for object in stage.inventory().await? {
        if KINDS.contains(&object.kind.as_str()) {
            kept.insert((object.kind, object.name, object.uid));
        }
    }
    for kind in KINDS {
        ensure!(
            kept.iter().any(|(known, _, _)| known == kind),
            "there is no {kind}: {kept:?}"
        );
    }
    Ok(kept)
}

/// The same definitions and objects as before: none is gone, and none was made anew.
async fn ensure_kept(
    stage: &Stage,
    before: &BTreeSet<(String, String, String)>,
) -> anyhow::Result<()> {
    let now = kept(stage).await?;
    ensure!(now == *before, "before {before:#?}, now {now:#?}");
    Ok(())
}

/// Nothing of the chart is left anywhere, and in the operator's namespace only what the operator itself made: the key
/// that pods of all endpoints go on to trust, and its Lease.
async fn nothing_else_is_left(stage: &Stage) -> anyhow::Result<()> {
    wait("the release to be gone", MINUTE, || async {
        let left = stage.of_release().await?;
        ensure!(left.is_empty(), "left of the release: {left:?}");
        Ok(Some(()))
    })
    .await?;
    let system = Stage {
        namespace: stage.world.installation.system_namespace.clone(),
        ..stage.clone()
    };
    let left: BTreeSet<(String, String)> = system
        .inventory()
        .await?
        .into_iter()
        .filter(|object| object.name.contains("graftwork"))
        .map(|object| (object.kind, object.name))
        .collect();
    let expected = [
        ("Lease", "graftwork-operator"),
        ("Secret", "graftwork-operator-signing-key"),
    ]
    .map(|(kind, name)| (kind.to_owned(), name.to_owned()));
    ensure!(left == BTreeSet::from(expected), "left: {left:?}");
    Ok(())
}

/// No operator is in the cluster, and one runs beside the story: it reads files through the keeper, tells engines and
/// routers, writes status, and ends when it is asked to. The operators come back however this ends.
async fn from_a_shell(stage: &Stage, traffic: &Traffic) -> anyhow::Result<()> {
    let story = without_operators(stage, traffic).await;
    let back = scale_operator(stage, 2).await;
    story?;
    back
}

async fn without_operators(stage: &Stage, traffic: &Traffic) -> anyhow::Result<()> {
    scale_operator(stage, 0).await?;
    let mut operator = Operator::start(stage).await?;
    let told = async {
        stage.import("colours", "rambling", &json!({})).await?;
        stage.stable("assistants", "colours", 3, MINUTE).await?;
        traffic.seen("colours@v3").await
    };
    match told.await {
        Ok(()) => operator.stop().await,
        Err(error) => Err(operator.told(error)),
    }
}

async fn pods(stage: &Stage) -> anyhow::Result<Vec<(String, String)>> {
    Ok([
        stage.start_times(ENGINES).await?,
        stage.start_times(ROUTERS).await?,
    ]
    .concat())
}

/// The upgrade has arrived where an endpoint that is made after it gets the new image; that of `assistants` stays.
async fn other_image_is_used(stage: &Stage) -> anyhow::Result<()> {
    // Without engines. Its router never starts, for want of the image.
    let fresh = manifests::endpoint("fresh", &[], 0, &json!({}));
    stage.apply(&fresh).await?;
    wait("a new endpoint to get the new image", MINUTE, || async {
        let image = engine_image(stage, "fresh-engine").await?;
        Ok(image.ends_with(OTHER_TAG).then_some(()))
    })
    .await?;
    let image = engine_image(stage, "assistants-engine").await?;
    ensure!(!image.ends_with(OTHER_TAG), "engines are to run {image}");
    stage
        .world
        .cluster
        .api::<ServingEndpoint>(&stage.namespace)
        .delete("fresh", &DeleteParams::default())
        .await?;
    Ok(())
}

async fn engine_image(stage: &Stage, deployment: &str) -> anyhow::Result<String> {
    let deployment: Deployment = stage
        .get(deployment)
        .await?
        .with_context(|| format!("there is no Deployment {deployment}"))?;
    deployment
        .spec
        .and_then(|spec| spec.template.spec)
        .and_then(|pod| pod.containers.into_iter().next())
        .and_then(|container| container.image)
        .context("a Deployment without an image")
}
