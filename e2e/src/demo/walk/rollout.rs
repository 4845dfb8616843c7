//! What an endpoint's status tells of the versions that it serves.

use std::time::Duration;

use anyhow::anyhow;
use graftwork_api::ServingEndpoint;
use graftwork_api::serving_endpoint::ServedAdapter;

use super::Walk;
use crate::demo::evidence::ensure_climbed;
use crate::report::say;
use crate::story::stage::condition;

impl Walk<'_> {
    /// Waits until version `version` of topics is stable and the endpoint is Ready.
    pub async fn stable(&self, version: u32, timeout: Duration) -> anyhow::Result<()> {
        self.cluster
            .wait_for::<ServingEndpoint, _>(
                self.namespace,
                "assistants",
                timeout,
                &format!("topics v{version}"),
                |endpoint| {
                    let status = endpoint?.status.as_ref()?;
                    let stable = topics(status)?.stable.as_ref()?.version == version;
                    (stable && condition(&status.conditions, "Ready")?.status == "True")
                        .then_some(())
                },
            )
            .await
    }

    /// Prints the weight as it moves, until `version` is stable; fails where status did not show 10 % and then 50 %.
    pub async fn watch_rollout(&self, version: u32, timeout: Duration) -> anyhow::Result<()> {
        let mut shown = String::new();
        let mut weights = Vec::new();
        let ended: anyhow::Result<()> = self
            .cluster
            .wait_for::<ServingEndpoint, _>(
                self.namespace,
                "assistants",
                timeout,
                "the end of the rollout",
                |endpoint| {
                    let served = topics(endpoint?.status.as_ref()?)?;
                    let line = rollout_line(served);
                    if line != shown {
                        say(&format!("   {line}"));
                        shown = line;
                    }
                    if let Some(candidate) = &served.candidate {
                        weights.push(candidate.weight);
                        return None;
                    }
                    let state = served
                        .rollout
                        .as_ref()
                        .map(|rollout| rollout.state.as_str().to_owned());
                    if state.as_deref() == Some("RolledBack") {
                        return Some(Err(anyhow!("rolled back: {:?}", served.rollout)));
                    }
                    (served.stable.as_ref()?.version == version).then_some(Ok(()))
                },
            )
            .await?;
        ended?;
        ensure_climbed(&weights, &[10, 50])
    }
}

/// What is said of the adapter `topics`.
pub fn topics(status: &graftwork_api::ServingEndpointStatus) -> Option<&ServedAdapter> {
    status
        .adapters
        .iter()
        .find(|served| served.name == "topics")
}

fn rollout_line(served: &ServedAdapter) -> String {
    let stable = served
        .stable
        .as_ref()
        .map_or_else(|| "-".to_owned(), |stable| format!("v{}", stable.version));
    match (&served.candidate, &served.rollout) {
        (Some(candidate), Some(rollout)) => {
            let analysis: Vec<String> = rollout
                .analysis
                .iter()
                .map(|result| {
                    format!(
                        "{} {} ({} requests)",
                        result.metric, result.verdict, result.samples
                    )
                })
                .collect();
            format!(
                "{stable} > v{} {} % {} {}",
                candidate.version,
                candidate.weight,
                rollout.state,
                analysis.join(", ")
            )
        }
        _ => format!("{stable} stable"),
    }
}
