//! Rows of a PostgreSQL server become a version; the same rows make no second one, other rows do. What goes wrong is
//! said by name, the good version stays, and the password stands nowhere.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::Dataset;
use graftwork_api::dataset::LatestVersion;
use serde_json::json;

use super::Stage;
use super::postgres::{PASSWORD, Server, dataset, secret};
use super::rows::{refresh, says, shown_nowhere};
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
        NAME,
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

    scheduled(&stage, &first).await?;
    server
        .sql("INSERT INTO decisions SELECT 'claim ' || n, 'topic 1', now() FROM generate_series(101, 130) n")
        .await?;
    let second = by_the_clock(&stage).await?;
    ensure!((second.version, second.rows) == (2, 130), "{second:?}");
    stage.proved(
        "a schedule looks again and says when next; the same rows make no version, 30 more make version 2 when its time comes",
        start.elapsed(),
    );

    let wrong = QUERY.replace("completion\n", "completio\n");
    stage.apply(&dataset(NAME, &wrong)?).await?;
    let place = "line 1, column 16 (SELECT prompt, completio)";
    says(
        &stage,
        NAME,
        &["QueryFailed", "source decisions", place, "42703"],
    )
    .await?;
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
        says(&stage, NAME, words).await?;
    }
    let kept: Dataset = stage.get(NAME).await?.context("the Dataset is gone")?;
    let kept = kept.status.and_then(|status| status.latest);
    ensure!(kept.as_ref() == Some(&second), "{kept:?}");
    stage.proved(
        "wrong SQL, a wrong password and addresses that are not allowed are named, and version 2 stays",
        start.elapsed(),
    );

    shown_nowhere(&stage, NAME, &[PASSWORD, "wrong-battery"]).await?;
    stage.proved(
        "the password is in no status, event, configuration or log",
        start.elapsed(),
    );
    Ok(())
}

/// A schedule that is new looks at once, and then by the clock. The rows are the same still.
async fn scheduled(stage: &Stage, first: &LatestVersion) -> anyhow::Result<()> {
    let mut nightly = dataset(NAME, QUERY)?;
    nightly.data["spec"]["schedule"] = json!({"cron": "0 1 * * *", "timeZone": "Europe/Stockholm"});
    stage.apply(&nightly).await?;
    let same = stage.dataset_ready(NAME).await?;
    ensure!(same == *first, "the same rows made {same:?}");
    let scheduled: Dataset = stage.get(NAME).await?.context("the Dataset is gone")?;
    let times = scheduled.status.and_then(|status| status.schedule);
    let times = times.context("status.schedule is not there")?;
    ensure!(
        times.last_time.is_some() && times.next_time > times.last_time,
        "{times:?}"
    );
    Ok(())
}

/// A time of the schedule comes, and with it what the database has since: nobody asks for it.
async fn by_the_clock(stage: &Stage) -> anyhow::Result<LatestVersion> {
    let mut every_minute = dataset(NAME, QUERY)?;
    every_minute.data["spec"]["schedule"] = json!({"cron": "* * * * *"});
    stage.apply(&every_minute).await?;
    let what = "version 2 at a time of the schedule";
    let cluster = &stage.world.cluster;
    cluster
        .wait_for::<Dataset, _>(&stage.namespace, NAME, 4 * MINUTE, what, |dataset| {
            let status = dataset?.status.as_ref()?;
            let is_ready = condition(&status.conditions, "Ready")?.status == "True";
            let answered = status.schedule.as_ref()?.last_time.is_some();
            let latest = status.latest.clone()?;
            (is_ready && answered && latest.version == 2).then_some(latest)
        })
        .await
}
