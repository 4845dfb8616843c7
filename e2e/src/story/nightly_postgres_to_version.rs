//! Rows of a PostgreSQL server become a version; the same rows make no second one, other rows do. What goes wrong is
//! said by name, the good version stays, and the password stands nowhere.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::Dataset;
use graftwork_api::dataset::LatestVersion;

use super::Stage;
use super::postgres::{PASSWORD, Server, dataset, refresh, secret};
use super::stage::condition;
use crate::cluster::MINUTE;

const NAME: &str = "decisions";
const QUERY: &str =
    "SELECT prompt, completion\nFROM decisions\nWHERE decided > now() - interval '90 days'";

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let Some(server) = Server::start(&stage).await? else {
        return Ok(());
    };
    server
        .sql(
            "CREATE TABLE decisions (prompt text, completion text, decided timestamptz);
             INSERT INTO decisions SELECT 'claim ' || n, 'topic ' || n % 5, now() FROM generate_series(1, 100) n;
             INSERT INTO decisions VALUES ('long ago', 'topic 1', now() - interval '91 days')",
        )
        .await?;

    stage.apply(&dataset(NAME, QUERY)?).await?;
    says(
        &stage,
        &[
            "SourceNotFound",
            "spec.sources[decisions].postgres.secretRef",
        ],
    )
    .await?;
    stage.apply(&secret(&server.uri(PASSWORD, None))?).await?;
    let first = stage.dataset_ready(NAME).await?;
    ensure!((first.version, first.rows) == (1, 100), "{first:?}");
    stage.proved(
        "a Secret that comes late is found, and the query's 100 rows are version 1",
        start.elapsed(),
    );

    let same = looked_again(&stage, "the-next-night").await?;
    ensure!(same == first, "the same rows made {same:?}");
    server
        .sql("INSERT INTO decisions SELECT 'claim ' || n, 'topic 1', now() FROM generate_series(101, 130) n")
        .await?;
    let second = looked_again(&stage, "the-night-after").await?;
    ensure!((second.version, second.rows) == (2, 130), "{second:?}");
    stage.proved(
        "the same rows make no version, 30 more make version 2",
        start.elapsed(),
    );

    let wrong = QUERY.replace("completion\n", "completio\n");
    stage.apply(&dataset(NAME, &wrong)?).await?;
    let place = "line 1, column 16 (SELECT prompt, completio)";
    says(&stage, &["QueryFailed", "source decisions", place, "42703"]).await?;
    stage.apply(&dataset(NAME, QUERY)?).await?;
    stage.dataset_ready(NAME).await?;
    for (word, password, host, words) in [
        (
            "password",
            "wrong-battery",
            None,
            &["SourceDenied", "secretRef", "28P01"][..],
        ),
        (
            "loopback",
            PASSWORD,
            Some("127.0.0.1"),
            &["SourceDenied", "127.0.0.1", "dataSources.allow"][..],
        ),
        (
            "name",
            PASSWORD,
            Some("kubernetes.default.svc"),
            &[
                "SourceDenied",
                "kubernetes.default.svc",
                "dataSources.allow",
            ][..],
        ),
    ] {
        stage.apply(&secret(&server.uri(password, host))?).await?;
        refresh(&stage, NAME, word).await?;
        says(&stage, words).await?;
    }
    let kept: Dataset = stage.get(NAME).await?.context("the Dataset is gone")?;
    let kept = kept.status.and_then(|status| status.latest);
    ensure!(kept.as_ref() == Some(&second), "{kept:?}");
    stage.proved(
        "wrong SQL, a wrong password and addresses that are not allowed are named, and version 2 stays",
        start.elapsed(),
    );

    shown_nowhere(&stage).await?;
    stage.proved(
        "the password is in no status, event, configuration or log",
        start.elapsed(),
    );
    Ok(())
}

/// The newest version after the sources were looked at again.
async fn looked_again(stage: &Stage, word: &str) -> anyhow::Result<LatestVersion> {
    refresh(stage, NAME, word).await?;
    let what = format!("the answer to the annotation {word}");
    let cluster = &stage.world.cluster;
    cluster
        .wait_for::<Dataset, _>(&stage.namespace, NAME, MINUTE, &what, |dataset| {
            let status = dataset?.status.as_ref()?;
            let ready = condition(&status.conditions, "Ready")?.status == "True";
            let answered = ready && status.observed_refresh.as_deref() == Some(word);
            status.latest.clone().filter(|_| answered)
        })
        .await
}

/// Waits until the Dataset is not Ready and says each of `words`.
async fn says(stage: &Stage, words: &[&str]) -> anyhow::Result<()> {
    let what = format!("Ready=False with {words:?}");
    let cluster = &stage.world.cluster;
    cluster
        .wait_for::<Dataset, _>(&stage.namespace, NAME, MINUTE, &what, |dataset| {
            let ready = condition(&dataset?.status.as_ref()?.conditions, "Ready")?;
            let text = format!("{} {}", ready.reason, ready.message);
            let all = words.iter().all(|word| text.contains(word));
            (ready.status == "False" && all).then_some(())
        })
        .await
}

/// Fails where anything but the Secret shows the password.
async fn shown_nowhere(stage: &Stage) -> anyhow::Result<()> {
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
        texts.iter().all(|text| text.contains(NAME)),
        "nothing was looked at"
    );
    for text in &texts {
        for hidden in [PASSWORD, "wrong-battery"] {
            let line = text.lines().find(|line| line.contains(hidden));
            ensure!(line.is_none(), "{hidden} is shown: {line:?}");
        }
    }
    Ok(())
}
