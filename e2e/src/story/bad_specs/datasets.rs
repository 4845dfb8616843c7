//! Datasets: sources that are missing, rows that are broken, and when a source that changes makes a version.

use anyhow::{Context as _, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use graftwork_api::Dataset;
use graftwork_api::dataset::{DatasetVersion, LatestVersion, RejectedRow};
use graftwork_api::labels::{self, component};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::super::Stage;
use super::super::fixture::{Files, marker_rows};
use super::super::stage::condition;
use super::{READ, SHOWN, expect, go_bad_beside_a_job, says};
use crate::manifests::{self, CLAIM};

/// Conditions of Datasets that can't be built.
pub async fn refused(stage: &Stage) -> anyhow::Result<()> {
    let bad = [
        json!({"prompt": "a", "completion": "b"}),
        json!({"prompt": "a"}),
        json!({"prompt": 7, "completion": "b"}),
    ];
    let mut rows = manifests::rows("bad-rows", &bad);
    let text = rows.data["data"]["rows.jsonl"].as_str().context("rows")?;
    rows.data["data"]["rows.jsonl"] = json!(format!("{text}{{\"prompt\": \n"));
    stage.apply(&rows).await?;
    expect(
        stage,
        manifests::config_map_dataset("no-config-map", "absent"),
        "Ready",
        SHOWN,
        &[
            "SourceNotFound",
            "spec.sources[rows].configMapRef.name",
            "absent",
        ],
    )
    .await?;
    let mut no_key = manifests::config_map_dataset("no-key", "amber");
    no_key.data["spec"]["sources"][0]["configMapRef"]["key"] = json!("other.jsonl");
    expect(
        stage,
        no_key,
        "Ready",
        SHOWN,
        &[
            "SourceNotFound",
            "spec.sources[rows].configMapRef.key",
            "other.jsonl",
        ],
    )
    .await?;
    let mut no_claim = manifests::config_map_dataset("no-claim", "amber");
    no_claim.data["spec"]["sources"] = json!([{"name": "rows", "uri": "pvc://absent/rows.jsonl"}]);
    expect(
        stage,
        no_claim,
        "Ready",
        SHOWN,
        &["SourceNotFound", "spec.sources[rows].uri", "absent"],
    )
    .await?;
    let mut no_zone = manifests::config_map_dataset("no-zone", "amber");
    no_zone.data["spec"]["schedule"] = json!({"cron": "0 1 * * *", "timeZone": "Europe/Atlantis"});
    expect(
        stage,
        no_zone,
        "Ready",
        SHOWN,
        &["InvalidSpec", "spec.schedule.timeZone", "Europe/Atlantis"],
    )
    .await?;
    expect(
        stage,
        manifests::config_map_dataset("malformed", "bad-rows"),
        "Ready",
        READ,
        &[
            "DataError",
            "spec.validation.maximumInvalidPercent",
            "source rows line 2: completion is missing",
            "source rows line 3: prompt is not a string",
            "source rows line 4: is not JSON",
        ],
    )
    .await
}

/// When a source makes a version: a `ConfigMap` at once and only where rows differ, a volume on the annotation.
pub async fn versions(stage: &Stage) -> anyhow::Result<()> {
    config_map(stage).await?;
    claim(stage).await
}

/// Rows of which lines 2 and 3 are broken, and `good` that are not.
fn mixed_rows(good: usize) -> Vec<Value> {
    let mut rows: Vec<Value> = marker_rows("amber").into_iter().take(good).collect();
    rows.insert(1, json!({"prompt": "a"}));
    rows.insert(2, json!({"prompt": 7, "completion": "b"}));
    rows
}

async fn config_map(stage: &Stage) -> anyhow::Result<()> {
    stage
        .apply(&manifests::rows("mixed", &mixed_rows(38)))
        .await?;
    let mut dataset = manifests::config_map_dataset("mixed", "mixed");
    dataset.data["spec"]["validation"]["maximumInvalidPercent"] = json!("10");
    stage.apply(&dataset).await?;
    let mut bad = dataset.clone();
    bad.data["spec"]["schedule"] = json!({"cron": "0 1 * * *", "timeZone": "Europe/Atlantis"});
    let words = ["InvalidSpec", "spec.schedule.timeZone"];
    let job = (component::DATASET_BUILDER, "Dataset", "mixed");
    go_bad_beside_a_job(stage, job, &[(&dataset, bad, &words)]).await?;
    let first = stage.dataset_ready("mixed").await?;
    ensure!((first.version, first.rows) == (1, 38), "{first:?}");
    let version = newest(stage, "mixed").await?;
    let rejected = |line, rule: &str| RejectedRow {
        file: None,
        source: "rows".to_owned(),
        line,
        rule: rule.to_owned(),
    };
    ensure!(
        version.rows.rejected == 2
            && version.rejected
                == [
                    rejected(2, "completion is missing"),
                    rejected(3, "prompt is not a string"),
                ],
        "{version:?}"
    );

    // Other bytes, the same rows: they are looked at, and are no new version.
    let since = ready_since(stage).await?;
    let mut spaced = manifests::rows("mixed", &mixed_rows(38));
    let text = spaced.data["data"]["rows.jsonl"]
        .as_str()
        .context("rows")?
        .replace("\":", "\": ");
    spaced.data["data"]["rows.jsonl"] = json!(text);
    stage.apply(&spaced).await?;
    let same = stage
        .world
        .cluster
        .wait_for::<Dataset, _>(
            &stage.namespace,
            "mixed",
            READ,
            "Ready=True after another build",
            |dataset| {
                let status = dataset?.status.as_ref()?;
                let ready = condition(&status.conditions, "Ready")?;
                let again = ready.status == "True" && ready.last_transition_time != since;
                status.latest.clone().filter(|_| again)
            },
        )
        .await?;
    ensure!(
        same == first,
        "the same rows made a version: {first:?}, {same:?}"
    );

    stage
        .apply(&manifests::rows("mixed", &mixed_rows(39)))
        .await?;
    let second = version_of(stage, "mixed", 2).await?;
    ensure!(
        second.rows == 39 && second.digest != first.digest,
        "{second:?}"
    );

    // A source that goes: it is said, and what was built stays.
    dataset.data["spec"]["sources"][0]["configMapRef"]["key"] = json!("gone.jsonl");
    let field = "spec.sources[rows].configMapRef.key";
    says(
        stage,
        &dataset,
        "Ready",
        SHOWN,
        &["SourceNotFound", field, "gone.jsonl"],
    )
    .await?;
    let kept = version_of(stage, "mixed", 2).await?;
    ensure!(kept == second, "before {second:?}, now {kept:?}");
    Ok(())
}

/// Since when the Dataset `mixed` is ready.
async fn ready_since(stage: &Stage) -> anyhow::Result<graftwork_api::Time> {
    let dataset: Dataset = stage.get("mixed").await?.context("the Dataset is gone")?;
    let conditions = dataset.status.context("status")?.conditions;
    let ready = condition(&conditions, "Ready").context("Ready")?;
    Ok(ready.last_transition_time.clone())
}

/// The folder `rows` of the claim with a file of so many rows.
pub fn rows_on_claim(count: usize) -> (String, Files) {
    let text: String = marker_rows("basalt")
        .iter()
        .take(count)
        .map(|row| format!("{row}\n"))
        .collect();
    let file = ("rows.jsonl".to_owned(), BASE64_STANDARD.encode(text));
    ("rows".to_owned(), Files::from([file]))
}

async fn claim(stage: &Stage) -> anyhow::Result<()> {
    let mut dataset = manifests::config_map_dataset("on-claim", "");
    dataset.data["spec"]["sources"] =
        json!([{"name": "rows", "uri": format!("pvc://{CLAIM}/rows/rows.jsonl")}]);
    // Measured by the base model on the same claim.
    dataset.data["spec"]["baseModel"] = json!({"uri": manifests::BASE_URI});
    dataset.data["spec"]["validation"]["maximumTokensPerRow"] = json!(512);
    stage.apply(&dataset).await?;
    let first = stage.dataset_ready("on-claim").await?;
    ensure!((first.version, first.rows) == (1, 40), "{first:?}");
    let measured = newest(stage, "on-claim").await?;
    let tokens = measured.tokens.context("no tokens were counted")?;
    ensure!(
        tokens.train > 0 && (1..=512).contains(&tokens.longest_row),
        "{tokens:?}"
    );
    stage.put("more-rows", &[], &[rows_on_claim(50)]).await?;
    let still = newest(stage, "on-claim").await?;
    ensure!(
        still.version == 1,
        "nobody said that the volume changed: {still:?}"
    );
    let second = refresh(stage, "once").await?;
    ensure!((second.version, second.rows) == (2, 50), "{second:?}");
    let parent = newest(stage, "on-claim").await?.parent;
    ensure!(parent == Some(1), "the version before is {parent:?}");
    let same = refresh(stage, "twice").await?;
    ensure!(
        same == second,
        "the same file made a version: {second:?}, {same:?}"
    );
    Ok(())
}

/// Annotates the Dataset `on-claim` and waits until its sources were looked at; its newest version.
async fn refresh(stage: &Stage, word: &str) -> anyhow::Result<LatestVersion> {
    let patch = json!({"metadata": {"annotations": {labels::REFRESH_ANNOTATION: word}}});
    let cluster = &stage.world.cluster;
    cluster
        .api::<Dataset>(&stage.namespace)
        .patch("on-claim", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    let what = format!("the answer to the annotation {word}");
    cluster
        .wait_for::<Dataset, _>(&stage.namespace, "on-claim", READ, &what, |dataset| {
            let status = dataset?.status.as_ref()?;
            let ready = condition(&status.conditions, "Ready")?.status == "True";
            let answered = ready && status.observed_refresh.as_deref() == Some(word);
            status.latest.clone().filter(|_| answered)
        })
        .await
}

async fn version_of(stage: &Stage, name: &str, number: u32) -> anyhow::Result<LatestVersion> {
    let what = format!("version {number}");
    stage
        .world
        .cluster
        .wait_for::<Dataset, _>(&stage.namespace, name, READ, &what, |dataset| {
            let latest = dataset?.status.as_ref()?.latest.clone()?;
            (latest.version == number).then_some(latest)
        })
        .await
}

async fn newest(stage: &Stage, name: &str) -> anyhow::Result<DatasetVersion> {
    let dataset: Dataset = stage.get(name).await?.context("the Dataset is gone")?;
    let versions = dataset.status.context("status")?.versions;
    versions.into_iter().next().context("there is no version")
}
