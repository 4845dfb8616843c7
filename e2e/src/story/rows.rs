//! What the stories about sources ask of a Dataset: that it looks again, what it says then, and what it keeps to itself.

use anyhow::ensure;
use graftwork_api::dataset::LatestVersion;
use graftwork_api::{Dataset, labels};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::Stage;
use super::stage::condition;
use crate::cluster::MINUTE;

/// Has the sources of a Dataset looked at again.
pub async fn refresh(stage: &Stage, name: &str, word: &str) -> anyhow::Result<()> {
    let patch = json!({"metadata": {"annotations": {labels::REFRESH_ANNOTATION: word}}});
    stage
        .world
        .cluster
        .api::<Dataset>(&stage.namespace)
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// The newest version after the sources were looked at again.
pub async fn looked_again(stage: &Stage, name: &str, word: &str) -> anyhow::Result<LatestVersion> {
    refresh(stage, name, word).await?;
    let what = format!("the answer to the annotation {word}");
    let cluster = &stage.world.cluster;
    cluster
        .wait_for::<Dataset, _>(&stage.namespace, name, MINUTE, &what, |dataset| {
            let status = dataset?.status.as_ref()?;
            let ready = condition(&status.conditions, "Ready")?.status == "True";
            let answered = ready && status.observed_refresh.as_deref() == Some(word);
            status.latest.clone().filter(|_| answered)
        })
        .await
}

/// Waits until the Dataset is not Ready and says each of `words`.
pub async fn says(stage: &Stage, name: &str, words: &[&str]) -> anyhow::Result<()> {
    let what = format!("Ready=False with {words:?}");
    let cluster = &stage.world.cluster;
    cluster
        .wait_for::<Dataset, _>(&stage.namespace, name, MINUTE, &what, |dataset| {
            let ready = condition(&dataset?.status.as_ref()?.conditions, "Ready")?;
            let text = format!("{} {}", ready.reason, ready.message);
            let all = words.iter().all(|word| text.contains(word));
            (ready.status == "False" && all).then_some(())
        })
        .await
}

/// Fails where anything but the Secret shows one of these texts.
pub async fn shown_nowhere(stage: &Stage, name: &str, hidden: &[&str]) -> anyhow::Result<()> {
    let cluster = &stage.world.cluster;
    let builders = "app.kubernetes.io/component=dataset-builder";
    let mut texts = Vec::new();
    for arguments in [
        &["get", "graft,pods,jobs,configmaps,events", "-o", "yaml"][..],
        &["logs", "--selector", builders, "--tail=-1", "--prefix"],
    ] {
        let arguments = [&["-n", &stage.namespace], arguments].concat();
        texts.push(cluster.kubectl(&arguments).await?);
    }
    ensure!(
        texts.iter().all(|text| text.contains(name)),
        "nothing was looked at"
    );
    for text in &texts {
        for hidden in hidden {
            let line = text.lines().find(|line| line.contains(hidden));
            ensure!(line.is_none(), "{hidden} is shown: {line:?}");
        }
    }
    Ok(())
}
