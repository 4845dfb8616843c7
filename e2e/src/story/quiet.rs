//! Twenty settled objects cause no write for two minutes, but renewals of the leader's Lease: the audit log of the
//! API server says so.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::fixture::marker_rows;
use crate::cluster::MINUTE;
use crate::manifests::{self, Training};

/// How long nothing may be written.
const QUIET: Duration = Duration::from_secs(120);

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let path: PathBuf = std::env::var_os("GRAFTWORK_AUDIT_LOG")
        .context("GRAFTWORK_AUDIT_LOG is not set")?
        .into();
    let rollout = json!({"strategy": "Immediate"});
    stage.serve_amber(1, &rollout).await?;
    stage
        .apply(&manifests::rows("amber", &marker_rows("amber")))
        .await?;
    for number in 0..8 {
        stage
            .apply(&manifests::config_map_dataset(
                &format!("data-{number}"),
                "amber",
            ))
            .await?;
    }
    for number in 0..6 {
        stage
            .import(&format!("adapter-{number}"), "basalt", &json!({}))
            .await?;
    }
    stage
        .apply(&manifests::endpoint("idle", &["adapter-0"], 0, &rollout))
        .await?;
    for number in 0..8 {
        stage.dataset_ready(&format!("data-{number}")).await?;
    }
    let (one, two, three) = ("run-1", "run-2", "run-3");
    for name in [one, two, three] {
        let run = Training {
            name,
            dataset: "data-0",
            adapter: "",
            steps: 5,
            rank: 4,
            batch: 16,
            checkpoint_every: 5,
            ..Training::default()
        };
        stage.apply(&run.object_without_adapter()).await?;
    }
    for name in [one, two, three] {
        stage.run_complete(name, 3 * MINUTE).await?;
    }
    stage.stable_is("colours", 1).await?;
    stage.proved("21 objects are there", start.elapsed());

    // What the last change caused settles first.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let mut log = File::open(&path).with_context(|| path.display().to_string())?;
    log.seek(SeekFrom::End(0))?;
    tokio::time::sleep(QUIET).await;
    let prefix = format!(
        "system:serviceaccount:{}:",
        stage.world.installation.system_namespace
    );
    let mut writes = Vec::new();
    for line in BufReader::new(log).lines() {
        let event: Value = serde_json::from_str(&line?)?;
        let ours = event["user"]["username"]
            .as_str()
            .is_some_and(|name| name.starts_with(&prefix));
        let writing = matches!(
            event["verb"].as_str(),
            Some("create" | "update" | "patch" | "delete")
        );
        if ours && writing && event["objectRef"]["resource"] != "leases" {
            writes.push(format!("{} {}", event["verb"], event["requestURI"]));
        }
    }
    ensure!(writes.is_empty(), "writes in {QUIET:?}: {writes:#?}");
    stage.proved("no write in two minutes", start.elapsed());
    Ok(())
}
