//! Traffic while a version is rolled out.

use anyhow::{Context as _, ensure};

use super::Walk;
use crate::cluster::MINUTE;
use crate::load::{self, control};
use crate::manifests;
use crate::report::say;

/// A load Job: requests for `topics` from inside the cluster.
pub struct Load<'a> {
    pub name: &'a str,
    pub max_tokens: u32,
}

/// No rollout of the demo takes as long: a load that nobody stops ends by itself.
const LOAD_LIMIT_SECONDS: &str = "600";

impl Walk<'_> {
    pub async fn start_load(&self, load: &Load<'_>) -> anyhow::Result<()> {
        let url = format!("http://assistants.{}.svc", self.namespace);
        let arguments: Vec<String> = [
            "load",
            "--url",
            &url,
            "--model",
            "topics",
            "--seconds",
            LOAD_LIMIT_SECONDS,
            "--callers",
            "8",
            "--users",
            "200",
            "--max-tokens",
            &load.max_tokens.to_string(),
            "--prompt-template",
            "Definition: a kind of thing, number {n}\nTopic:",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain(control::flag())
        .collect();
        let image = self.installation.image("e2e");
        let job = manifests::job(load.name, &image, &arguments, &[control::mount()]);
        self.cluster.start_job(self.namespace, &job).await.map(drop)
    }

    /// Ends a load, and fails where it had ended before or a request failed.
    pub async fn load_summary(&self, load: &Load<'_>) -> anyhow::Result<load::Summary> {
        control::tell(self.cluster, self.namespace, load.name).await?;
        let message = self
            .cluster
            .end_of_job(self.namespace, load.name, 4 * MINUTE)
            .await?;
        let summary: load::Summary =
            serde_json::from_str(&message).with_context(|| format!("{}: {message}", load.name))?;
        say(&format!(
            "   {} requests, {} failed, by version: {}",
            summary.total,
            summary.failed,
            by_version(&summary)
        ));
        ensure!(
            summary.failed == 0 && summary.told,
            "{} of {} requests failed, or the load ended before it was told to: {summary:?}",
            summary.failed,
            summary.total
        );
        Ok(summary)
    }
}

fn by_version(summary: &load::Summary) -> String {
    let parts: Vec<String> = summary
        .versions
        .iter()
        .map(|(version, seen)| format!("{version} {}", seen.requests))
        .collect();
    parts.join(", ")
}
