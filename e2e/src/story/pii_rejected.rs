//! Rows with personal data are refused where the spec says so: counted by type, named by line, and shown nowhere, by one
//! pod and by several alike.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use graftwork_api::Dataset;
use graftwork_api::dataset::DatasetVersion;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DynamicObject, ListParams};
use serde_json::{Value, json};

use super::Stage;
use super::fixture::marker_rows;
use super::stage::condition;
use crate::cluster::MINUTE;
use crate::manifests;

const NAME: &str = "letters";
/// The same rows, read by several pods.
const IN_PARTS: &str = "letters-in-parts";
/// As many as these.
const PARTS: i32 = 3;
/// Personal data of each of two types, on the lines after the good ones.
const FOUND: [&str; 3] = [
    "jane.doe@example.com",
    "DE89370400440532013000",
    "john.roe@example.org",
];
/// Rows without any.
const GOOD: usize = 60;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut allowed = manifests::config_map_dataset(NAME, NAME);
    allowed.data["spec"]["classification"] = json!("Restricted");
    allowed.data["spec"]["privacy"] = json!({"mode": "Allow"});
    match stage.apply(&allowed).await {
        Ok(_) => bail!("Restricted data was accepted with mode Allow"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains("Restricted data needs privacy"), "{text}");
        }
    }
    stage.proved(
        "the API server refuses Restricted data with mode Allow",
        start.elapsed(),
    );

    stage.apply(&manifests::rows(NAME, &rows())).await?;
    let mut dataset = allowed;
    dataset.data["spec"]["privacy"] = json!({"mode": "Reject"});
    stage.apply(&dataset).await?;
    let what = "Ready=False that names the first row and the limit";
    let said = stage
        .world
        .cluster
        .wait_for::<Dataset, _>(&stage.namespace, NAME, MINUTE, what, |dataset| {
            let ready = condition(&dataset?.status.as_ref()?.conditions, "Ready")?;
            let line = format!(
                "source rows line {}: completion holds personal data (email)",
                GOOD + 1
            );
            let words = [
                "3 of 63 rows",
                "spec.validation.maximumInvalidPercent",
                &line,
            ];
            let all = words.iter().all(|word| ready.message.contains(word));
            (ready.reason == "DataError" && all).then(|| ready.message.clone())
        })
        .await?;
    let refused: Dataset = stage.get(NAME).await?.context("the Dataset is gone")?;
    let status = refused.status.context("status")?;
    ensure!(status.versions.is_empty(), "{status:?}");
    stage.proved(&format!("no version: {said}"), start.elapsed());

    dataset.data["spec"]["validation"]["maximumInvalidPercent"] = json!("10");
    stage.apply(&dataset).await?;
    let latest = stage.dataset_ready(NAME).await?;
    ensure!((latest.version, latest.rows) == (1, 60), "{latest:?}");
    let built: Dataset = stage.get(NAME).await?.context("the Dataset is gone")?;
    let versions = built.status.context("status")?.versions;
    let version = versions.first().context("no version")?;
    let lines: Vec<u64> = version.rejected.iter().map(|row| row.line).collect();
    ensure!(
        version.rows.rejected == 3
            && lines == [61, 62, 63]
            && version.findings.get("email") == Some(&2)
            && version.findings.get("iban") == Some(&1),
        "{version:?}"
    );
    stage.proved(
        "where the limit allows it they are left out, counted by type and named by line",
        start.elapsed(),
    );

    in_parts(&stage, &dataset, version).await?;
    stage.proved(
        "three pods of an Indexed Job and one that takes their rows together make the same version",
        start.elapsed(),
    );

    shown_nowhere(&stage).await?;
    stage.proved(
        "what was found is in no status, event or log",
        start.elapsed(),
    );
    Ok(())
}

/// Another Dataset of the same spec, but for its parts, makes the version that the first one has.
async fn in_parts(
    stage: &Stage,
    dataset: &DynamicObject,
    alone: &DatasetVersion,
) -> anyhow::Result<()> {
    let mut parted = manifests::config_map_dataset(IN_PARTS, NAME);
    parted.data["spec"] = dataset.data["spec"].clone();
    parted.data["spec"]["shards"] = json!(PARTS);
    stage.apply(&parted).await?;
    stage.dataset_ready(IN_PARTS).await?;
    let built: Dataset = stage
        .get(IN_PARTS)
        .await?
        .context("the Dataset in parts is gone")?;
    let versions = built.status.context("status")?.versions;
    let made = versions.first().context("no version in parts")?;
    ensure!(
        made.digest == alone.digest
            && made.rows == alone.rows
            && made.rejected == alone.rejected
            && made.findings == alone.findings,
        "by one pod {alone:?}, in parts {made:?}"
    );
    let jobs = stage
        .world
        .cluster
        .api::<Job>(&stage.namespace)
        .list(&ListParams::default())
        .await
        .context("list Jobs")?;
    let start = format!("{IN_PARTS}-parts-");
    let parts = jobs.items.iter().find(|job| {
        let name = job.metadata.name.as_deref();
        name.is_some_and(|name| name.starts_with(&start))
    });
    let parts = parts.context("no Job has made parts")?;
    let mode = parts
        .spec
        .as_ref()
        .and_then(|spec| spec.completion_mode.as_deref());
    let succeeded = parts.status.as_ref().and_then(|status| status.succeeded);
    ensure!(
        (mode, succeeded) == (Some("Indexed"), Some(PARTS)),
        "{mode:?}, {succeeded:?} of {PARTS} parts"
    );
    Ok(())
}

fn rows() -> Vec<Value> {
    let good = marker_rows("amber").into_iter().take(GOOD);
    let bad = FOUND.iter().map(
        |text| json!({"prompt": "Whose is it?", "completion": format!("It is that of {text}.")}),
    );
    good.chain(bad).collect()
}

/// Fails where anything but the rows' ConfigMap shows what was found.
async fn shown_nowhere(stage: &Stage) -> anyhow::Result<()> {
    let cluster = &stage.world.cluster;
    let builders = "app.kubernetes.io/component=dataset-builder";
    for (arguments, sign) in [
        (&["get", "graft,pods,jobs,events", "-o", "yaml"][..], NAME),
        (&["logs", "--selector", builders, "--tail=-1"][..], "source"),
    ] {
        let arguments = [&["-n", &stage.namespace], arguments].concat();
        let text = cluster.kubectl(&arguments).await?;
        ensure!(text.contains(sign), "nothing was looked at: {arguments:?}");
        for found in FOUND {
            let line = text.lines().find(|line| line.contains(found));
            ensure!(line.is_none(), "{found} is shown: {line:?}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bad_rows_stand_after_the_good_ones() {
        let rows = rows();
        assert_eq!(rows.len(), GOOD + FOUND.len());
        for (index, row) in rows.iter().enumerate() {
            let text = row.to_string();
            let bad = FOUND.iter().any(|found| text.contains(found));
            assert_eq!(bad, index >= GOOD, "{text}");
        }
    }
}
