//! A run and a small cluster around it, in which plans are carried out.

mod attempts;
mod claims;
mod clocks;
mod inputs;
mod pauses;
mod pods;
mod properties;
mod references;
mod results;
mod rows;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::dataset::{DatasetFormat, DatasetVersion, FormatType, LatestVersion, Source};
use graftwork_api::{
    BaseModelSource, DatasetSpec, DatasetStatus, ObjectReference, Time, TrainingRunSpec,
    VersionedReference,
};
use graftwork_contract::dataset::Split;
use graftwork_contract::exit::ExitCode;
use graftwork_contract::run::{Metric, Precision, Resolved, RowsUsed, RunResult, RunSummary};
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

use super::*;
use crate::conditions;
use crate::fixtures::{at, settings};
use crate::jobs::{JOB_NAME_LABEL, JobState};
use crate::observed::{Base, Container};
use crate::plan::{Actions, Call, Child, ChildKind, Event};

/// A run and a small cluster around it that does what plans say.
#[derive(Clone)]
struct World {
    cr: TrainingRun,
    observed: Observed,
    store: Vec<Record>,
    settings: Settings,
    seconds: i64,
    writes: usize,
    created: Vec<String>,
    events: Vec<Event>,
    /// What the trainer says in its result.
    train_rows: RowsUsed,
}

fn dataset() -> Dataset {
    let mut dataset = Dataset::new(
        "topics",
        DatasetSpec {
            description: None,
            sources: vec![Source {
                name: "bulk".to_owned(),
                uri: Some("pvc://text/rows.jsonl".to_owned()),
                ..Source::default()
            }],
            transform: None,
            format: DatasetFormat {
                type_: FormatType::Completion,
                reward: false,
            },
            validation: graftwork_api::dataset::Validation::default(),
            base_model: None,
            schedule: None,
            shards: None,
            retention: None,
            balance: None,
            classification: None,
            privacy: None,
            split: graftwork_api::dataset::Split::default(),
        },
    );
    dataset.metadata.generation = Some(1);
    let mut list = conditions::Conditions::new(&[], Some(1), at(0));
    list.set(condition::READY, conditions::Truth::True, reason::READY, "");
    dataset.status = Some(DatasetStatus {
        observed_generation: Some(1),
        latest: Some(LatestVersion {
            version: 2,
            digest: Digest::of(b"rows 2").to_string(),
            rows: 100,
        }),
        versions: [2, 1]
            .map(|version| DatasetVersion {
                version,
                digest: Digest::of(format!("rows {version}").as_bytes()).to_string(),
                schema_hash: String::new(),
                created_time: Time(at(0)),
                rows: graftwork_api::dataset::RowCounts {
                    train: 80,
                    test: 20,
                    ..Default::default()
                },
                rejected: vec![],
                findings: std::collections::BTreeMap::new(),
                leakage: None,
                tokens: None,
                parent: None,
                size_bytes: 0,
                provenance_digest: None,
            })
            .to_vec(),
        conditions: list.into_list(),
        ..DatasetStatus::default()
    });
    dataset
}

impl World {
    fn new() -> Self {
        let mut cr = TrainingRun::new(
            "nightly",
            TrainingRunSpec {
                base_model: BaseModelSource {
                    uri: "pvc://models/tiny".to_owned(),
                },
                dataset_ref: VersionedReference {
                    name: "topics".to_owned(),
                    version: None,
                },
                adapter_ref: None,
                initial_adapter_ref: None,
                objective: graftwork_api::training_run::Objective::default(),
                method: graftwork_api::training_run::Method::default(),
                hyperparameters: graftwork_api::training_run::Hyperparameters::default(),
                compute: graftwork_api::training_run::Compute::default(),
                checkpoint: graftwork_api::training_run::CheckpointPolicy::default(),
                evaluation: graftwork_api::training_run::Evaluation::default(),
                limits: graftwork_api::training_run::RunLimits::default(),
                suspend: false,
            },
        );
        cr.metadata.uid = Some("uid".to_owned());
        cr.metadata.namespace = Some("team".to_owned());
        cr.metadata.generation = Some(1);
        Self {
            cr,
            observed: Observed {
                dataset: Referenced::There(Box::new(dataset())),
                base_claim: ClaimState::Bound,
                base: Asked::Answered(Ok(Base {
                    digest: Digest::of(b"base"),
                    hidden_size: 192,
                    target_modules: vec![],
                    maximum_positions: 512,
                    key_values: None,
                })),
                ..Observed::default()
            },
            store: vec![],
            settings: settings(),
            seconds: 0,
            writes: 0,
            created: vec![],
            events: vec![],
            train_rows: RowsUsed {
                rows: 2000,
                cut: 0,
                dropped: 0,
            },
        }
    }

    fn claim(&mut self, name: &str, state: ClaimState) {
        self.observed.claims.insert(name.to_owned(), state);
    }

    /// Looks at the world as the shell does, and plans.
    fn plan(&mut self) -> Plan<TrainingRunStatus> {
        let read = |store: &[Record], path: &str| {
            Asked::Answered(store.iter().find(|it| it.path == path).cloned())
        };
        let away = matches!(self.observed.resolved, Asked::Unreachable(_));
        if !away {
            (self.observed.resolved, self.observed.result) =
                match records_to_read(&self.cr, &self.observed.base) {
                    Some((resolved, result)) => {
                        (read(&self.store, &resolved), read(&self.store, &result))
                    }
                    None => (Asked::NotAsked, Asked::NotAsked),
                };
        }
        let name = Some(job_name(&self.cr));
        let job = self
            .observed
            .jobs
            .iter()
            .find(|job| job.metadata.name == name);
        if !self.observed.job.is_foreign() {
            self.observed.job = job.map_or(Found::Absent, |job| Found::Ours(Box::new(job.clone())));
        }
        plan(&self.cr, &self.observed, &self.settings, at(self.seconds))
    }

    /// Does what plans say until no decision is left; returns the last actions.
    fn reconcile(&mut self) -> Actions<TrainingRunStatus> {
        for _ in 0..5 {
            match self.plan() {
                Plan::Decide(decision) => {
                    assert_ne!(Some(&decision.status), self.cr.status.as_ref());
                    self.cr.status = Some(decision.status);
                    self.writes += 1;
                    self.events.extend(decision.events);
                }
                Plan::Act(actions) => {
                    self.act(&actions);
                    return actions;
                }
            }
        }
        unreachable!("decisions go on without end: {:?}", self.cr.status)
    }

    fn act(&mut self, actions: &Actions<TrainingRunStatus>) {
        for child in &actions.apply {
            assert!(matches!(child, Child::ConfigMap(_)), "{child:?}");
        }
        for job in &actions.create {
            let mut job = job.clone();
            let name = job.metadata.name.clone().unwrap();
            job.metadata.uid = Some(format!("uid of {name}"));
            self.created.push(name);
            self.observed.jobs.push(job);
            self.writes += 1;
        }
        for delete in &actions.delete {
            self.writes += 1;
            let name = Some(delete.name.clone());
            match delete.kind {
                ChildKind::Job => {
                    self.observed.jobs.retain(|job| job.metadata.name != name);
                    for pod in &mut self.observed.pods {
                        if pod.labels.get(JOB_NAME_LABEL) == name.as_ref() && pod.phase == "Running"
                        {
                            pod.deleting_since = Some(at(self.seconds));
                        }
                    }
                }
                ChildKind::Pod => self
                    .observed
                    .pods
                    .retain(|pod| Some(&pod.name) != name.as_ref()),
                other => unreachable!("a run never deletes a {other:?}"),
            }
        }
        for call in &actions.calls {
            let Call::Publish(request) = call else {
                unreachable!("a run only publishes: {call:?}")
            };
            if self.store.iter().all(|it| it.path != request.path) {
                self.store.push(Record {
                    path: request.path.clone(),
                    content: Some(request.content.clone()),
                });
                self.writes += 1;
            }
        }
        if actions.status.is_some() && actions.status != self.cr.status {
            self.cr.status.clone_from(&actions.status);
            self.writes += 1;
            self.events.extend(actions.events.clone());
        }
    }

    /// Reconciles until a Job runs, and starts its pod.
    fn start(&mut self) {
        for _ in 0..40 {
            self.reconcile();
            if self.active_job().is_some() {
                self.start_pod();
                return;
            }
            self.seconds += 10;
        }
        unreachable!("no Job comes: {:?}", self.succeeded());
    }

    fn active_job(&self) -> Option<String> {
        let active = |job: &&Job| crate::jobs::state(job) == JobState::Active;
        self.observed
            .jobs
            .iter()
            .rev()
            .find(active)?
            .metadata
            .name
            .clone()
    }

    fn start_pod(&mut self) {
        let Some(name) = self.active_job() else {
            return;
        };
        self.observed
            .pods
            .retain(|pod| pod.labels.get(JOB_NAME_LABEL) != Some(&name));
        self.observed.pods.push(Pod {
            name: format!("{name}-x"),
            uid: format!("pod of {name}"),
            labels: [(JOB_NAME_LABEL.to_owned(), name)].into(),
            phase: "Running".to_owned(),
            created: Some(at(self.seconds)),
            container: Container::Running {
                since: Some(at(self.seconds)),
            },
            ..Pod::default()
        });
    }

    fn end_pod(&mut self, code: i32, change: impl FnOnce(&mut Pod)) {
        let Some(name) = self.active_job() else {
            return;
        };
        let now = at(self.seconds);
        self.start_pod_if_missing();
        let pod = self.observed.pods.last_mut().unwrap();
        let started = match pod.container {
            Container::Running { since } => since,
            _ => None,
        };
        pod.phase = if code == 0 { "Succeeded" } else { "Failed" }.to_owned();
        pod.container = Container::Terminated {
            exit_code: code,
            reason: "Error".to_owned(),
            message: String::new(),
            started,
            finished: Some(now),
        };
        change(pod);
        let job = self
            .observed
            .jobs
            .iter_mut()
            .find(|job| job.metadata.name.as_ref() == Some(&name));
        job.unwrap().status = Some(JobStatus {
            conditions: Some(vec![JobCondition {
                type_: if code == 0 { "Complete" } else { "Failed" }.to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(Time(now)),
                ..JobCondition::default()
            }]),
            ..JobStatus::default()
        });
    }

    fn start_pod_if_missing(&mut self) {
        let name = self.active_job();
        if self
            .observed
            .pods
            .iter()
            .all(|pod| pod.labels.get(JOB_NAME_LABEL) != name.as_ref())
        {
            self.start_pod();
        }
    }

    /// What a trainer leaves in the store.
    fn publish_result(&mut self) {
        let Some((resolved_path, path)) = records_to_read(&self.cr, &self.observed.base) else {
            return;
        };
        let Some(resolved) = self.store.iter().find(|it| it.path == resolved_path) else {
            return;
        };
        let resolved: Resolved = resolved.read().unwrap();
        let result = RunResult {
            run: "nightly".to_owned(),
            key: key(&self.cr, &self.observed.base).unwrap(),
            resolved,
            digest: Digest::of(b"adapter"),
            folder: "runs/nightly/x".to_owned(),
            size_bytes: 9,
            rank: 16,
            steps: 100,
            final_loss: 1.25,
            metrics: vec![Metric {
                name: "exact_match".to_owned(),
                split: Split::Test,
                value: 0.8125,
                standard_error: 0.01,
                baseline: 0.25,
                difference: 0.5625,
                difference_standard_error: 0.01,
                difference_interval: Some([0.4, 0.7]),
                samples: 400,
                groups: None,
                excluded: 0,
            }],
            precision: Precision::AsStored,
            train_rows: self.train_rows,
            validation_rows: RowsUsed::default(),
            test_rows: RowsUsed {
                rows: 400,
                cut: 0,
                dropped: 0,
            },
            classification: None,
            finished_time: at(self.seconds).to_string(),
            code_version: "0".to_owned(),
        };
        self.store.push(Record {
            path,
            content: Some(serde_json::to_vec(&result).unwrap()),
        });
    }

    fn succeeded(&self) -> (String, String, String) {
        let status = self.cr.status.clone().unwrap_or_default();
        let found = conditions::find(&status.conditions, condition::SUCCEEDED).unwrap();
        (
            found.status.clone(),
            found.reason.clone(),
            found.message.clone(),
        )
    }

    fn attempts(&self) -> (u32, u32, u32) {
        let attempts = attempt::attempts(&self.cr);
        (attempts.started, attempts.failed, attempts.evicted)
    }

    fn is_finished(&self) -> bool {
        status::is_finished(&self.cr)
    }
}

fn summary(reason: &str, message: &str) -> String {
    serde_json::to_string(&RunSummary {
        reason: reason.to_owned(),
        message: message.to_owned(),
        step: 7,
        total_steps: 100,
        checkpoint_step: None,
        digest: None,
    })
    .unwrap()
}
