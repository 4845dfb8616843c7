//! Traffic as section "stories" of the project's promise has it: sixteen closed-loop callers in the cluster, two
//! hundred users, no retries, at least two thousand requests whose texts are compared with the version that the
//! header names. A story starts it before it changes something and stops it after, so that it covers every phase by
//! construction: it must have been told to stop, and there was never a long time without an answer.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use serde_json::json;

use super::Stage;
use super::fixture::{MARKERS, PROMPT};
use crate::cluster::{MINUTE, wait};
use crate::load::{Outcome, Summary, control};
use crate::manifests;
use crate::report::say;

/// Callers at once.
pub const CALLERS: u64 = 16;
/// Requests at least.
const REQUESTS: u64 = 2000;
/// Distinct values of `user`.
const USERS: u64 = 200;
/// No story takes as long; a load whose story died ends by itself.
const LIMIT_SECONDS: &str = "1200";
/// Longest time without an answer: a machine with two cores may be busy with something else for a while.
const LONGEST_GAP: Duration = Duration::from_secs(10);
/// Log lines in which a version is looked for.
const TAIL: i64 = 400;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// Name of the Job.
    pub job: &'a str,
    /// Models, drawn evenly.
    pub models: &'a [&'a str],
    /// Length of an answer.
    pub max_tokens: u32,
    /// Value of the version header.
    pub version: Option<&'a str>,
    /// Between two requests of a caller. A machine of two cores has other things to do too.
    pub think_milliseconds: u32,
    /// The load generator's `--expect`.
    pub expect: &'a str,
}

impl<'a> Load<'a> {
    /// Short answers of adapter `colours`, judged by `expect` (see [`expectations`]).
    pub const fn new(job: &'a str, expect: &'a str) -> Self {
        Self {
            job,
            models: &["colours"],
            max_tokens: 4,
            version: None,
            think_milliseconds: 40,
            expect,
        }
    }

    fn arguments(&self) -> Vec<String> {
        let callers = CALLERS.to_string();
        let requests = REQUESTS.to_string();
        let users = USERS.to_string();
        let tokens = self.max_tokens.to_string();
        let mut arguments = vec![
            "--callers",
            &callers,
            "--requests",
            &requests,
            "--users",
            &users,
            "--max-tokens",
            &tokens,
            "--stream-percent",
            "50",
            "--expect",
            self.expect,
            "--prompt-template",
            PROMPT,
        ];
        for model in self.models {
            arguments.extend(["--model", model]);
        }
        if let Some(version) = self.version {
            arguments.extend(["--version", version]);
        }
        arguments.into_iter().map(str::to_owned).collect()
    }
}

/// The load generator's `--expect`: which words the answers of a version start with. Each entry is a model, its
/// version, and the trained adapter that it is.
pub fn expectations(versions: &[(&str, u32, &str)]) -> String {
    let map: serde_json::Map<String, serde_json::Value> = versions
        .iter()
        .filter_map(|(name, version, marker)| {
            let (_, words) = MARKERS.iter().find(|(adapter, _)| adapter == marker)?;
            Some((format!("{name}@v{version}"), json!(words)))
        })
        .collect();
    serde_json::Value::Object(map).to_string()
}

/// Traffic that goes on until it is stopped.
pub struct Traffic {
    stage: Stage,
    job: String,
}

impl Stage {
    /// Starts traffic on `assistants` that goes on until the story stops it; it flows when this returns.
    pub async fn start_traffic(&self, load: &Load<'_>) -> anyhow::Result<Traffic> {
        let mut arguments = load.arguments();
        arguments.extend(
            [
                "--seconds",
                LIMIT_SECONDS,
                "--think-milliseconds",
                &load.think_milliseconds.to_string(),
            ]
            .map(str::to_owned),
        );
        arguments.extend(control::flag());
        let mounts = [control::mount()];
        let job = self.start_load(load.job, arguments, &mounts).await?;
        let traffic = Traffic {
            stage: self.clone(),
            job,
        };
        traffic.has_line("\"outcome\":\"ok\"").await?;
        Ok(traffic)
    }

    /// Two thousand requests on `assistants`, as fast as they are answered.
    pub async fn ask_two_thousand(&self, load: &Load<'_>) -> anyhow::Result<Summary> {
        let job = self.start_load(load.job, load.arguments(), &[]).await?;
        let summary = self.load_summary(&job).await?;
        ensure_enough(&summary)?;
        ensure_none_failed(&summary)?;
        ensure_no_stream_error(&summary)?;
        Ok(summary)
    }

    async fn start_load(
        &self,
        name: &str,
        more: Vec<String>,
        mounts: &[(&str, &str, serde_json::Value)],
    ) -> anyhow::Result<String> {
        let mut arguments = vec![
            "load".to_owned(),
            "--url".to_owned(),
            format!("http://assistants.{}.svc", self.namespace),
        ];
        arguments.extend(more);
        let image = self.world.installation.image("e2e");
        let job = manifests::job(name, &image, &arguments, mounts);
        self.world.cluster.start_job(&self.namespace, &job).await
    }

    /// Waits for the end of a load and gives back its summary.
    async fn load_summary(&self, job: &str) -> anyhow::Result<Summary> {
        let message = self
            .world
            .cluster
            .end_of_job(&self.namespace, job, 3 * MINUTE)
            .await?;
        let summary = serde_json::from_str(&message)
            .with_context(|| format!("summary of {job}: {message}"))?;
        say(&format!("    {job}: {message}"));
        Ok(summary)
    }
}

impl Traffic {
    /// Waits until an answer of `version` was seen among the newest, for example `colours@v2`.
    pub async fn seen(&self, version: &str) -> anyhow::Result<()> {
        self.has_line(&format!("\"version\":\"{version}\"")).await
    }

    /// Whether a stream ended in an error event so far.
    pub async fn broke_a_stream(&self) -> anyhow::Result<bool> {
        let log = self.log(LogParams::default()).await?;
        let outcome = serde_json::to_string(&Outcome::StreamError)?;
        Ok(log.contains(&format!("\"outcome\":{outcome}")))
    }

    /// Waits until one of the newest lines holds `words`.
    async fn has_line(&self, words: &str) -> anyhow::Result<()> {
        let what = format!("{words} in the log of {}", self.job);
        wait(&what, MINUTE, || async {
            let newest = LogParams {
                tail_lines: Some(TAIL),
                ..LogParams::default()
            };
            let log = self.log(newest).await?;
            Ok(log.contains(words).then_some(()))
        })
        .await
    }

    /// What the load printed: a line for each request.
    async fn log(&self, parameters: LogParams) -> anyhow::Result<String> {
        let (cluster, namespace) = (&self.stage.world.cluster, &self.stage.namespace);
        let pod = cluster.pod_of_job(namespace, &self.job).await?;
        let pods = cluster.api::<Pod>(namespace);
        Ok(pods.logs(&pod, &parameters).await?)
    }

    /// Ends the traffic. Fails where it ended before, where a request failed or a stream broke, and where requests,
    /// users or answers were missing.
    pub async fn stop(self) -> anyhow::Result<Summary> {
        let summary = self.stop_with_broken_streams().await?;
        ensure_no_stream_error(&summary)?;
        Ok(summary)
    }

    /// The same, where streams may have ended in an error event.
    pub async fn stop_with_broken_streams(self) -> anyhow::Result<Summary> {
        let summary = self.stop_with_failures().await?;
        ensure_none_failed(&summary)?;
        Ok(summary)
    }

    /// Ends the traffic, and leaves to the story what may have failed. Fails where it ended before, and where requests,
    /// users or answers were missing.
    pub async fn stop_with_failures(self) -> anyhow::Result<Summary> {
        let cluster = &self.stage.world.cluster;
        control::tell(cluster, &self.stage.namespace, &self.job).await?;
        let summary = self.stage.load_summary(&self.job).await?;
        ensure!(
            summary.told,
            "the load ended before the story did: {summary:?}"
        );
        ensure_enough(&summary)?;
        Ok(summary)
    }
}

fn ensure_none_failed(summary: &Summary) -> anyhow::Result<()> {
    ensure!(summary.failed == 0, "failed requests: {summary:?}");
    Ok(())
}

/// Enough to prove something, whatever became of the requests.
fn ensure_enough(summary: &Summary) -> anyhow::Result<()> {
    ensure!(summary.total >= REQUESTS, "too few requests: {summary:?}");
    ensure!(summary.users == USERS, "not every user asked: {summary:?}");
    ensure!(
        u128::from(summary.longest_gap_milliseconds) <= LONGEST_GAP.as_millis(),
        "there was no answer for {} ms: {summary:?}",
        summary.longest_gap_milliseconds
    );
    Ok(())
}

fn ensure_no_stream_error(summary: &Summary) -> anyhow::Result<()> {
    ensure!(
        summary.stream_errors == 0,
        "streams ended in an error event: {summary:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(change: impl FnOnce(&mut Summary)) -> Summary {
        let mut summary = Summary::default();
        (summary.total, summary.users, summary.told) = (REQUESTS, USERS, true);
        change(&mut summary);
        summary
    }

    #[test]
    fn a_load_with_something_missing_is_no_proof() {
        ensure_enough(&summary(|_| {})).unwrap();
        ensure_none_failed(&summary(|_| {})).unwrap();
        ensure_no_stream_error(&summary(|_| {})).unwrap();
        for (what, lacking) in [
            ("too few requests", summary(|it| it.total -= 1)),
            ("not every user", summary(|it| it.users -= 1)),
            (
                "no answer for",
                summary(|it| it.longest_gap_milliseconds = 10_001),
            ),
        ] {
            let error = ensure_enough(&lacking).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let failed = summary(|it| it.failed = 1);
        ensure_enough(&failed).unwrap();
        assert!(ensure_none_failed(&failed).is_err());
        let broken = summary(|it| it.stream_errors = 1);
        ensure_none_failed(&broken).unwrap();
        assert!(ensure_no_stream_error(&broken).is_err());
    }

    #[test]
    fn expectations_are_the_words_of_the_trained_adapters() {
        let text = expectations(&[("m", 1, "amber"), ("m", 2, "rambling"), ("m", 3, "nothing")]);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["m@v1"][0], "amber");
        assert_eq!(value["m@v2"], json!(["marble"]));
        assert_eq!(value.as_object().unwrap().len(), 2);
    }
}
