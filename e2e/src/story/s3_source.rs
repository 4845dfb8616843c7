//! Objects of an S3 server become a version, by a pattern and with a Secret's keys; the same objects make no second one,
//! more do. What goes wrong is said by name, the good version stays, and the key stands nowhere. The artifact store is a
//! volume here.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::Dataset;
use graftwork_api::dataset::LatestVersion;

use super::Stage;
use super::rows::{looked_again, refresh, says, shown_nowhere};
use super::s3::{KEY, KEY_ID, Server, dataset};
use super::stage::condition;
use crate::cluster::MINUTE;

const NAME: &str = "questions";
const URI: &str = "s3://corpus/faq/**/*.jsonl";

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let Some(mut server) = Server::start(&stage).await? else {
        return Ok(());
    };
    server.put("faq/a.jsonl", &rows(0..60)).await?;
    server.put("faq/2026/b.jsonl", &rows(60..100)).await?;
    server.put("notes/c.jsonl", &rows(100..110)).await?;

    stage.apply(&dataset(NAME, URI)?).await?;
    let missing = [
        "SourceNotFound",
        "spec.sources[faq].secretRef",
        "AWS_ACCESS_KEY_ID",
    ];
    says(&stage, NAME, &missing).await?;
    stage.apply(&server.secret(&[])?).await?;
    let first = stage.dataset_ready(NAME).await?;
    ensure!((first.version, first.rows) == (1, 100), "{first:?}");
    stage.proved(
        "a Secret that comes late is found, and the 100 rows of two objects are version 1",
        start.elapsed(),
    );

    let same = looked_again(&stage, NAME, "the-next-night").await?;
    ensure!(same == first, "the same objects made {same:?}");
    server.put("faq/2026/d.jsonl", &rows(200..230)).await?;
    let second = looked_again(&stage, NAME, "the-night-after").await?;
    ensure!((second.version, second.rows) == (2, 130), "{second:?}");
    stage.proved(
        "the same objects make no version, one more makes version 2",
        start.elapsed(),
    );

    wrong_ones(&stage, &server, &second).await?;
    stage.proved(
        "a wrong key, addresses that are not allowed and a missing bucket are named, and version 2 stays",
        start.elapsed(),
    );
    away(&stage, &mut server).await?;
    stage.proved(
        "with the server away the next attempt waits for it, and makes version 3",
        start.elapsed(),
    );

    shown_nowhere(&stage, NAME, &[KEY, KEY_ID, "wrong-battery"]).await?;
    stage.proved(
        "the key is in no status, event, configuration or log",
        start.elapsed(),
    );
    Ok(())
}

/// What is wrong is named, and this version stays.
async fn wrong_ones(stage: &Stage, server: &Server, good: &LatestVersion) -> anyhow::Result<()> {
    for (word, wrong, words) in [
        (
            "key",
            ("AWS_SECRET_ACCESS_KEY", "wrong-battery"),
            ["SourceDenied", "source faq", "SignatureDoesNotMatch"],
        ),
        (
            "loopback",
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"),
            ["SourceDenied", "127.0.0.1", "dataSources.allow"],
        ),
        (
            "name",
            ("AWS_ENDPOINT_URL", "https://kubernetes.default.svc"),
            [
                "SourceDenied",
                "kubernetes.default.svc",
                "dataSources.allow",
            ],
        ),
    ] {
        stage.apply(&server.secret(&[wrong])?).await?;
        refresh(stage, NAME, word).await?;
        says(stage, NAME, &words).await?;
    }
    stage.apply(&server.secret(&[])?).await?;
    stage.apply(&dataset(NAME, "s3://absent/*.jsonl")?).await?;
    says(
        stage,
        NAME,
        &["SourceNotFound", "source faq", "NoSuchBucket"],
    )
    .await?;
    let kept: Dataset = stage.get(NAME).await?.context("the Dataset is gone")?;
    let kept = kept.status.and_then(|status| status.latest);
    ensure!(kept.as_ref() == Some(good), "{kept:?}");
    Ok(())
}

/// The server goes away, and comes back with one object more.
async fn away(stage: &Stage, server: &mut Server) -> anyhow::Result<()> {
    server.down().await?;
    stage.apply(&dataset(NAME, URI)?).await?;
    refresh(stage, NAME, "away").await?;
    let cluster = &stage.world.cluster;
    cluster
        .wait_for::<Dataset, _>(
            &stage.namespace,
            NAME,
            2 * MINUTE,
            "the condition to name the source",
            |dataset| {
                let ready = condition(&dataset?.status.as_ref()?.conditions, "Ready")?;
                let words = ["attempt 2", "source faq", "no connection"];
                let all = words.iter().all(|word| ready.message.contains(word));
                all.then_some(())
            },
        )
        .await?;
    server.put_behind("faq/e.jsonl", &rows(300..320))?;
    server.up().await?;
    let third = cluster
        .wait_for::<Dataset, _>(&stage.namespace, NAME, 3 * MINUTE, "version 3", |dataset| {
            let latest = dataset?.status.as_ref()?.latest.clone()?;
            (latest.version == 3).then_some(latest)
        })
        .await?;
    ensure!(third.rows == 150, "{third:?}");
    Ok(())
}

/// Rows of the format Completion, as JSON Lines.
fn rows(numbers: std::ops::Range<u32>) -> String {
    numbers.fold(String::new(), |text, n| {
        let topic = n % 5;
        text + &format!("{{\"prompt\": \"question {n}\", \"completion\": \"topic {topic}\"}}\n")
    })
}
