//! The whole loop with the artifact store in a bucket: rows from an S3 server become a version there, a run trains on it,
//! the adapter is served, and no claim is made for any of it. A Secret that comes late is found; with the server away,
//! engines go on with what they have; the key stands nowhere.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::Dataset;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::ListParams;
use serde_json::json;

use super::Stage;
use super::fixture::marker_rows;
use super::rows::shown_nowhere;
use super::s3::{KEY, KEY_ID, Server, dataset};
use super::stage::{FAST_LEASE, condition};
use super::traffic::{Load, expectations};
use crate::cluster::{MINUTE, wait};
use crate::install::Installation;
use crate::manifests::{self, CLAIM, Training};

/// The store beside the source, in the bucket that the Secret of both is for.
const IN_BUCKET: &[&str] = &[
    "store.url=s3://corpus/store",
    "store.secretName=corpus",
    "store.allow[0]=10.98.0.0/30",
];

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let Some(mut server) = Server::start(&stage).await? else {
        return Ok(());
    };
    let (cluster, installation) = (&stage.world.cluster, &stage.world.installation);
    let told = async {
        let values = [FAST_LEASE, IN_BUCKET].concat();
        installation.install(cluster, &values).await?;
        operators_are_new(&stage).await?;
        the_loop(&stage, &mut server).await
    };
    let told = told.await;
    // The store of every other story is a volume, however this one ends.
    let back = installation.install(cluster, FAST_LEASE).await;
    told?;
    back?;
    operators_are_new(&stage).await
}

/// No operator of before is left: it would make a claim.
async fn operators_are_new(stage: &Stage) -> anyhow::Result<()> {
    let system = &stage.world.installation.system_namespace;
    wait("the operators of before to be gone", MINUTE, || async {
        let selector = Installation::operator_selector();
        let pods = stage.world.cluster.pods(system, selector).await?;
        let going =
            |pod: &k8s_openapi::api::core::v1::Pod| pod.metadata.deletion_timestamp.is_some();
        Ok((pods.len() == 2 && !pods.iter().any(going)).then_some(()))
    })
    .await
}

async fn the_loop(stage: &Stage, server: &mut Server) -> anyhow::Result<()> {
    let start = Instant::now();
    stage.seed().await?;
    let rows = marker_rows("amber");
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    server.put("faq/rows.jsonl", &text).await?;
    stage
        .apply(&dataset("amber", "s3://corpus/faq/*.jsonl")?)
        .await?;
    says_what_is_missing(stage).await?;
    stage.apply(&server.secret(&[])?).await?;
    // The kubelet brings a Secret that comes late in its own time.
    stage
        .world
        .cluster
        .wait_for::<Dataset, _>(
            &stage.namespace,
            "amber",
            4 * MINUTE,
            "version 1",
            |dataset| {
                let latest = dataset?.status.as_ref()?.latest.as_ref()?;
                (latest.version == 1).then_some(())
            },
        )
        .await?;
    let version = stage.dataset_ready("amber").await?;
    ensure!((version.version, version.rows) == (1, 400), "{version:?}");
    stage.proved(
        "without a Secret the store is said to have none; with it, 400 rows are version 1",
        start.elapsed(),
    );

    let gate = json!({"rules": [{"metric": "exact_match", "minimumImprovementPoints": "2"}], "approval": "Automatic"});
    stage
        .apply(&manifests::adapter("amber", &gate, None))
        .await?;
    let rollout = json!({"strategy": "Immediate"});
    stage
        .apply(&manifests::endpoint("assistants", &["amber"], 1, &rollout))
        .await?;
    let training = Training {
        name: "amber-1",
        dataset: "amber",
        adapter: "amber",
        steps: 40,
        rank: 4,
        batch: 16,
        checkpoint_every: 20,
        ..Training::default()
    };
    stage.train(&training).await?;
    stage.stable("assistants", "amber", 1, 3 * MINUTE).await?;
    stage.proved("the run's adapter is approved and served", start.elapsed());

    lies_in_the_bucket(stage, server).await?;
    stage.proved(
        "dataset, run and adapter are in the bucket, and there is no claim",
        start.elapsed(),
    );

    let expect = expectations(&[("amber", 1, "amber")]);
    let load = |job| Load {
        models: &["amber"],
        ..Load::new(job, &expect)
    };
    let answers = stage.ask_two_thousand(&load("load")).await?;
    ensure!(answers.only("amber@v1"), "{answers:?}");
    server.down().await?;
    let away = stage.ask_two_thousand(&load("away")).await?;
    ensure!(away.only("amber@v1"), "with the server away: {away:?}");
    server.up().await?;
    stage.proved(
        "four thousand answers with the adapter's words, half of them with the server away",
        start.elapsed(),
    );

    shown_nowhere(stage, "amber", &[KEY, KEY_ID]).await?;
    stage.proved(
        "the key is in no status, event, configuration or log",
        start.elapsed(),
    );
    Ok(())
}

/// The keeper runs without the Secret, and says so through the Dataset.
async fn says_what_is_missing(stage: &Stage) -> anyhow::Result<()> {
    let words = [
        "StorageUnavailable",
        "s3://corpus/store",
        "no Secret corpus",
    ];
    let what = format!("the condition to say {words:?}");
    stage
        .world
        .cluster
        .wait_for::<Dataset, _>(&stage.namespace, "amber", 2 * MINUTE, &what, |dataset| {
            let ready = condition(&dataset?.status.as_ref()?.conditions, "Ready")?;
            let text = format!("{} {}", ready.reason, ready.message);
            words.iter().all(|word| text.contains(word)).then_some(())
        })
        .await
}

/// The layout is that of a volume, below the namespace's name; the only claim is the base model's.
async fn lies_in_the_bucket(stage: &Stage, server: &Server) -> anyhow::Result<()> {
    let part = format!("store/{}", stage.namespace);
    for (folder, file) in [
        ("datasets/amber/versions", "1.json"),
        ("adapters/amber/versions/1", "created.json"),
    ] {
        let key = format!("{part}/{folder}/{file}");
        ensure!(server.has(&key), "{key} is not in the bucket");
    }
    let runs = server.below(&format!("{part}/runs/amber-1"))?;
    for file in ["resolved.json", "result.json"] {
        ensure!(
            runs.iter().any(|path| path.ends_with(file)),
            "{file} is not among {runs:?}"
        );
    }
    let checkpoint = runs.iter().find(|path| path.contains("/checkpoints/"));
    ensure!(checkpoint.is_none(), "a finished run keeps {checkpoint:?}");
    let claims = stage
        .world
        .cluster
        .api::<PersistentVolumeClaim>(&stage.namespace)
        .list(&ListParams::default())
        .await
        .context("list claims")?;
    let names: Vec<_> = claims
        .items
        .iter()
        .filter_map(|claim| claim.metadata.name.as_deref())
        .collect();
    ensure!(names == [CLAIM], "claims: {names:?}");
    Ok(())
}
