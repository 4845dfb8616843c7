//! A database goes away in the middle of its rows: no version of half of them, the one before stays, the condition says
//! which source and when it is asked again, and with the database back the next attempt makes the version.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::Dataset;

use super::Stage;
use super::postgres::{PASSWORD, Server, dataset, secret};
use super::stage::condition;
use crate::cluster::{MINUTE, wait};

const NAME: &str = "slow";
/// A row at a time, 300 of them in 15 s. Long rows leave the server as they are made.
const QUERY: &str = "SELECT CASE WHEN pg_sleep(0.05) IS NULL THEN '' ELSE 'claim ' || n END AS prompt, \
    repeat('long ', 2000) AS completion FROM generate_series(1, 300) n";
/// Whether the server is at it.
const ASKED: &str = "SELECT count(*) FROM pg_stat_activity \
    WHERE application_name = 'graftwork' AND state = 'active' AND query LIKE '%pg_sleep%'";

/// Lines of `kubectl describe dataset` that a person reads, with one version.
const FEW_LINES: usize = 150;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let Some(server) = Server::start(&stage).await? else {
        return Ok(());
    };
    stage.apply(&secret(&server.uri(PASSWORD, None))?).await?;
    let quick =
        "SELECT 'claim ' || n AS prompt, 'topic' AS completion FROM generate_series(1, 50) n";
    stage.apply(&dataset(NAME, quick)?).await?;
    let first = stage.dataset_ready(NAME).await?;
    ensure!((first.version, first.rows) == (1, 50), "{first:?}");

    stage.apply(&dataset(NAME, QUERY)?).await?;
    wait("the query to run", MINUTE, || async {
        let asked = server.sql(ASKED).await?;
        Ok((asked == "1").then_some(()))
    })
    .await?;
    server.down().await?;
    let said = stage
        .world
        .cluster
        .wait_for::<Dataset, _>(
            &stage.namespace,
            NAME,
            MINUTE,
            "the condition to name the source",
            |dataset| {
                let ready = condition(&dataset?.status.as_ref()?.conditions, "Ready")?;
                let words = ["attempt 2", "source decisions", "database went away"];
                let all = words.iter().all(|word| ready.message.contains(word));
                let why = &ready.reason;
                (all && why == "SourceUnavailable").then(|| format!("{why}: {}", ready.message))
            },
        )
        .await?;
    let kept: Dataset = stage.get(NAME).await?.context("the Dataset is gone")?;
    let status = kept.status.context("status")?;
    ensure!(
        status.latest.as_ref() == Some(&first) && status.versions.len() == 1,
        "{status:?}"
    );
    stage.proved(&format!("version 1 stays: {said}"), start.elapsed());

    described(&stage).await?;
    stage.proved(
        "kubectl describe says in a few lines what happened, and what stays",
        start.elapsed(),
    );

    server.up().await?;
    let second = stage
        .world
        .cluster
        .wait_for::<Dataset, _>(&stage.namespace, NAME, 3 * MINUTE, "version 2", |dataset| {
            let latest = dataset?.status.as_ref()?.latest.clone()?;
            (latest.version == 2).then_some(latest)
        })
        .await?;
    ensure!(second.rows == 300, "{second:?}");
    stage.proved(
        "with the database back, another attempt makes version 2 of all 300 rows",
        start.elapsed(),
    );
    Ok(())
}

/// What a person sees who asks no tool of ours.
async fn described(stage: &Stage) -> anyhow::Result<()> {
    let arguments = ["-n", &stage.namespace, "describe", "dataset", NAME];
    // Events follow the status.
    let text = wait("an event about the source", MINUTE, || async {
        let text = stage.world.cluster.kubectl(&arguments).await?;
        let events = text.split_once("\nEvents:").map(|(_, events)| events);
        let is_there = events.is_some_and(|events| events.contains("source decisions"));
        Ok(is_there.then_some(text))
    })
    .await?;
    let lines = text.lines().count();
    ensure!(lines <= FEW_LINES, "{lines} lines:\n{text}");
    let (status, events) = text.split_once("\nEvents:").context("no events")?;
    let (_, status) = status.split_once("\nStatus:").context("no status")?;
    for words in ["SourceUnavailable", "source decisions", "attempt 2"] {
        ensure!(status.contains(words), "{words} is not in:\n{status}");
    }
    for words in ["SourceUnavailable", "source decisions"] {
        ensure!(events.contains(words), "{words} is not in:\n{events}");
    }
    let (_, latest) = status.split_once("Latest:").context("no version stays")?;
    // How far apart they stand is for the longest name beside them to say.
    let mut lines = latest.lines().map(str::trim);
    let version = lines.find_map(|line| line.strip_prefix("Version:"));
    ensure!(version.map(str::trim) == Some("1"), "{latest}");
    Ok(())
}
