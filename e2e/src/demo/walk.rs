//! The steps of the walk-through.

mod rollout;
mod traffic;

use anyhow::{Context as _, ensure};
use graftwork_api::lora_adapter::AdapterVersion;
use graftwork_api::training_run::Metric;
use graftwork_api::{Dataset, LoRAAdapter, ServingEndpoint, TrainingRun, TrainingRunStatus};
use serde_json::json;

use super::ask::Forward;
use super::clients::Clients;
use super::evidence::ensure_says_value_limit_and_rows;
use super::progress::Shown;
use crate::cluster::{Cluster, MINUTE};
use crate::install::Installation;
use crate::manifests::{self, Training};
use crate::report::{say, step};
use crate::story::live_rollback::ensure_says_numbers;
use crate::story::stage::{ENGINES, condition};
use rollout::topics;
use traffic::Load;

/// Rows that wordnet.py makes of synsets that it keeps out of pre-training. A Dataset's split puts them, and no others,
/// into the test file.
const HELD_OUT: u64 = 2000;
/// The gate of every version: a share of right answers that shuffled labels can't reach.
const MINIMUM: &str = "0.30";
/// By how much a candidate may be slower than the stable version.
const PERCENT: &str = "200";
/// Requests of the candidate without which nothing is said.
const MINIMUM_REQUESTS: u64 = 30;

/// The demo's namespace and what has been seen in it.
pub struct Walk<'a> {
    cluster: &'a Cluster,
    installation: &'a Installation,
    namespace: &'a str,
    engines: Vec<(String, String)>,
}

impl<'a> Walk<'a> {
    pub fn new(cluster: &'a Cluster, installation: &'a Installation, namespace: &'a str) -> Self {
        Self {
            cluster,
            installation,
            namespace,
            engines: Vec::new(),
        }
    }

    async fn apply(&self, object: &kube::api::DynamicObject) -> anyhow::Result<()> {
        self.cluster
            .apply_object(self.namespace, object)
            .await
            .map(drop)
    }

    pub async fn seed(&self) -> anyhow::Result<()> {
        self.cluster.delete_namespace(self.namespace).await?;
        self.cluster.create_namespace(self.namespace).await?;
        self.apply(&manifests::claim()).await?;
        self.cluster
            .run_job_to_end(
                self.namespace,
                &manifests::seed(self.installation),
                2 * MINUTE,
            )
            .await
    }

    pub async fn dataset(&self) -> anyhow::Result<()> {
        for (name, description, file) in [
            (
                "topics",
                "WordNet definitions and their topics",
                "topics.jsonl",
            ),
            (
                "topics-shuffled",
                "the same definitions, with the topics dealt out anew",
                "topics-shuffled.jsonl",
            ),
            (
                "topics-long",
                "the same topics, followed by a long text",
                "topics-long.jsonl",
            ),
            (
                "parts-of-speech",
                "WordNet definitions and their parts of speech",
                "parts-of-speech.jsonl",
            ),
        ] {
            self.apply(&manifests::dataset(name, description, file))
                .await?;
        }
        step("Building datasets topics, topics-shuffled, topics-long and parts-of-speech", async {
            for name in ["topics", "topics-shuffled", "topics-long", "parts-of-speech"] {
                let version = self
                    .cluster
                    .wait_for::<Dataset, _>(self.namespace, name, 3 * MINUTE, "Ready=True", |dataset| {
                        let status = dataset?.status.as_ref()?;
                        (condition(&status.conditions, "Ready")?.status == "True").then(|| status.versions.first().cloned())?
                    })
                    .await?;
                let rows = version.rows;
                say(&format!(
                    "   {name} v{}: {} rows to train on, {} to validate, {} to test, {} rejected, {}",
                    version.version, rows.train, rows.validation, rows.test, rows.rejected, short(&version.digest),
                ));
                ensure!(
                    rows.train >= 15_000 && rows.test == HELD_OUT,
                    "{name}: too few rows to train on, or tests are not on the {HELD_OUT} rows that the base model never \
                     saw: {rows:?}"
                );
            }
            Ok(())
        })
        .await
    }

    pub async fn first_run(&self) -> anyhow::Result<()> {
        let gate = json!({"rules": [{"metric": "exact_match", "minimum": MINIMUM}], "approval": "Automatic"});
        self.apply(&manifests::adapter("topics", &gate, None))
            .await?;
        // The bare base has seen parts of speech: there is nothing to improve, but much to keep.
        let gate = json!({"rules": [
            {"metric": "exact_match", "minimum": "0.80"},
            {"metric": "exact_match", "maximumRegressionPoints": "5"},
        ]});
        self.apply(&manifests::adapter("parts-of-speech", &gate, None))
            .await?;
        for (name, adapter, steps) in [
            ("topics-1", "topics", 100),
            ("parts-of-speech-1", "parts-of-speech", 60),
        ] {
            let status = self.train(name, adapter, adapter, steps).await?;
            let reference = status.resolved.and_then(|resolved| resolved.reference);
            ensure!(
                reference.as_deref() == Some("base"),
                "{name} was compared with {reference:?}, not with the bare base"
            );
        }
        Ok(())
    }

    /// Trains and prints what status says as it moves.
    async fn train(
        &self,
        name: &str,
        dataset: &str,
        adapter: &str,
        steps: u64,
    ) -> anyhow::Result<TrainingRunStatus> {
        let training = Training {
            name,
            dataset,
            adapter,
            steps,
            ..Training::default()
        };
        self.start_run(&training).await?;
        let shown = step(
            &format!("{name} trains and is evaluated"),
            self.follow(name, "Finished=True", |status| {
                condition(&status.conditions, "Finished").is_some_and(|c| c.status == "True")
            }),
        )
        .await?;
        shown.of_the_training(name)?;
        self.finish_run(name).await
    }

    /// The same, with a load Job that starts when the training is over and the evaluation begins.
    async fn train_then_load(
        &self,
        training: &Training<'_>,
        load: &Load<'_>,
    ) -> anyhow::Result<()> {
        let name = training.name;
        self.start_run(training).await?;
        let shown = step(
            &format!("{name} trains"),
            self.follow(name, "the evaluation", |status| {
                matches!(
                    status
                        .stage
                        .as_ref()
                        .map(graftwork_api::training_run::RunStage::as_str),
                    Some("Evaluate" | "Package")
                ) || condition(&status.conditions, "Finished").is_some_and(|c| c.status == "True")
            }),
        )
        .await?;
        shown.of_the_training(name)?;
        self.start_load(load).await?;
        step(
            &format!("{name} is evaluated, while traffic runs"),
            self.follow(name, "Finished=True", |status| {
                condition(&status.conditions, "Finished").is_some_and(|c| c.status == "True")
            }),
        )
        .await?;
        self.finish_run(name).await.map(drop)
    }

    async fn start_run(&self, training: &Training<'_>) -> anyhow::Result<()> {
        say(&format!(
            "-> TrainingRun {}: {} steps on {}, for adapter {}",
            training.name, training.steps, training.dataset, training.adapter
        ));
        self.apply(&training.object()).await
    }

    async fn follow(
        &self,
        name: &str,
        what: &str,
        mut until: impl FnMut(&TrainingRunStatus) -> bool,
    ) -> anyhow::Result<Shown> {
        let mut shown = Shown::default();
        self.cluster
            .wait_for::<TrainingRun, _>(self.namespace, name, 8 * MINUTE, what, |run| {
                let status = run?.status.as_ref()?;
                shown.see(status);
                until(status).then_some(())
            })
            .await?;
        Ok(shown)
    }

    /// Prints what a run has measured, of its adapter and of the reference on the same rows.
    async fn finish_run(&self, name: &str) -> anyhow::Result<TrainingRunStatus> {
        let run = self
            .cluster
            .api::<TrainingRun>(self.namespace)
            .get(name)
            .await?;
        let status = run.status.context("status")?;
        let succeeded =
            condition(&status.conditions, "Succeeded").context("no condition Succeeded")?;
        ensure!(
            succeeded.status == "True",
            "{}: {}",
            succeeded.reason,
            succeeded.message
        );
        for metric in &status.metrics {
            say(&format!(
                "   {} on {} held-out rows: {} (reference: {})",
                metric.name,
                metric.samples,
                metric.value,
                metric.baseline.as_ref().map_or("-", |b| b.as_str()),
            ));
        }
        ensure!(
            status
                .metrics
                .iter()
                .any(|metric| metric.name == "exact_match" && metric.baseline.is_some()),
            "{name}: no exact match of adapter and reference: {:?}",
            status.metrics
        );
        Ok(status)
    }

    /// The version that a run made, once the gate has judged it.
    async fn judged(&self, run: &str) -> anyhow::Result<AdapterVersion> {
        let version = self
            .cluster
            .wait_for::<LoRAAdapter, _>(
                self.namespace,
                "topics",
                MINUTE,
                "the gate's verdict",
                |adapter| {
                    let versions = &adapter?.status.as_ref()?.versions;
                    let version = versions
                        .iter()
                        .find(|version| version.training_run.as_deref() == Some(run))?;
                    version.gate.is_some().then(|| version.clone())
                },
            )
            .await?;
        let gate = version.gate.as_ref().context("gate")?;
        for rule in &gate.rules {
            say(&format!("   gate: {}: {}", rule.verdict, rule.message));
        }
        say(&format!(
            "   topics v{} is {}",
            version.version, version.stage
        ));
        Ok(version)
    }

    pub async fn serve(&mut self, clients: &Clients<'_>) -> anyhow::Result<()> {
        let version = step("The gate judges v1", self.judged("topics-1")).await?;
        let first = exact_match(&version)?;
        ensure!(
            first >= 0.34,
            "exact match of v1 is {first}, expected 0.34 or more"
        );
        let rollout = json!({
            "strategy": "Canary",
            "canary": {"steps": [{"setWeight": 10}, {"pause": {"seconds": 15}}, {"setWeight": 50}, {"pause": {"seconds": 15}}]},
            "analysis": {
                "intervalSeconds": 5, "minimumRequests": MINIMUM_REQUESTS, "failureLimit": 1,
                "rules": [{"metric": "error_rate", "maximum": "0.01"}, {"metric": "latency_p95", "maximumIncreasePercent": PERCENT}],
            },
        });
        self.apply(&manifests::endpoint(
            "assistants",
            &["topics", "parts-of-speech"],
            1,
            &rollout,
        ))
        .await?;
        step("ServingEndpoint assistants", self.stable(1, 3 * MINUTE)).await?;
        self.engines = self.engine_start_times().await?;
        let forward = Forward::open(self.cluster, self.namespace, "assistants").await?;
        clients.ask(&forward).await
    }

    pub async fn better_version(&self) -> anyhow::Result<()> {
        let first = exact_match(&self.judged("topics-1").await?)?;
        let load = Load {
            name: "load-2",
            max_tokens: 4,
        };
        let training = Training {
            name: "topics-2",
            dataset: "topics",
            adapter: "topics",
            steps: 400,
            ..Training::default()
        };
        self.train_then_load(&training, &load).await?;
        let second = exact_match(&step("The gate judges v2", self.judged("topics-2")).await?)?;
        ensure!(
            second >= 0.52 && second >= first + 0.08,
            "exact match of v2 is {second}, v1's is {first}"
        );
        step("Canary 10 -> 50 -> 100", self.watch_rollout(2, 4 * MINUTE)).await?;
        ensure!(
            self.engine_start_times().await? == self.engines,
            "an engine was restarted"
        );
        let summary = step("The traffic ends", self.load_summary(&load)).await?;
        // Some thousands each, where the machine is not slowed down by others.
        ensure!(
            summary.total >= 2000
                && summary.of("topics@v1") >= 100
                && summary.of("topics@v2") >= 100,
            "the canary had too few requests to prove anything: {summary:?}"
        );
        say("   no request failed, and no engine was restarted");
        Ok(())
    }

    pub async fn shuffled_labels(&self) -> anyhow::Result<()> {
        self.train("topics-3", "topics-shuffled", "topics", 100)
            .await?;
        let version = step("The gate judges v3", self.judged("topics-3")).await?;
        let value = exact_match(&version)?;
        ensure!(
            version.stage.as_str() == "Rejected" && value <= 0.20,
            "v3 is {} with {value}",
            version.stage
        );
        let metric = exact_match_of(&version)?;
        let message = version.message.as_deref().unwrap_or_default();
        ensure_says_value_limit_and_rows(message, metric, MINIMUM).context("v3 was rejected")?;
        say(&format!("   rejected: {message}"));
        self.stable(2, MINUTE).await
    }

    pub async fn misbehaving_version(&self) -> anyhow::Result<()> {
        let load = Load {
            name: "load-4",
            max_tokens: 256,
        };
        // Nearly all tokens of these answers are the same: their gradient is large at first and then
        // nothing, and what is left to learn shows only where every step is cut to one length.
        let training = Training {
            name: "topics-4",
            dataset: "topics-long",
            adapter: "topics",
            steps: 150,
            batch: 16,
            gradient_norm: "0.01",
            ..Training::default()
        };
        self.train_then_load(&training, &load).await?;
        let version = step("The gate judges v4", self.judged("topics-4")).await?;
        ensure!(
            version.stage.as_str() != "Rejected",
            "v4 did not pass the gate: {:?}",
            version.message
        );
        let message = step("Canary of v4", async {
            let rejected = self
                .cluster
                .wait_for::<ServingEndpoint, _>(
                    self.namespace,
                    "assistants",
                    3 * MINUTE,
                    "v4 to be taken back",
                    |endpoint| {
                        let status = endpoint?.status.as_ref()?;
                        let rejected = status
                            .rejected
                            .iter()
                            .find(|rejected| rejected.version == version.version)?;
                        let served = topics(status)?;
                        (served.candidate.is_none()).then(|| rejected.clone())
                    },
                )
                .await?;
            ensure_says_numbers(&rejected.message, PERCENT, MINIMUM_REQUESTS)
                .context("v4 was taken back")?;
            Ok(rejected.message)
        })
        .await?;
        say(&format!("   taken back: {message}"));
        self.stable(2, MINUTE).await?;
        let summary = step("The traffic ends", self.load_summary(&load)).await?;
        let candidate = format!("topics@v{}", version.version);
        ensure!(
            summary.of("topics@v2") > 0 && summary.of(&candidate) > 0,
            "both versions should have answered: {summary:?}"
        );
        let table = self
            .cluster
            .kubectl(&["-n", self.namespace, "get", "graft"])
            .await?;
        say(&table);
        ensure!(
            table.contains("RolledBack"),
            "`kubectl get graft` does not show the rollback"
        );
        Ok(())
    }

    async fn engine_start_times(&self) -> anyhow::Result<Vec<(String, String)>> {
        self.cluster.start_times(self.namespace, ENGINES).await
    }
}

fn exact_match_of(version: &AdapterVersion) -> anyhow::Result<&Metric> {
    version
        .metrics
        .iter()
        .find(|metric| metric.name == "exact_match")
        .with_context(|| format!("v{} has no exact_match", version.version))
}

fn exact_match(version: &AdapterVersion) -> anyhow::Result<f64> {
    let metric = exact_match_of(version)?;
    metric
        .value
        .value()
        .with_context(|| format!("exact_match of v{} is no number", version.version))
}

fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}
