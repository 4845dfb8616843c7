//! Table tests of a run's plan, and its convergence from any state.

mod pauses;
mod references;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::dataset::{DatasetFormat, DatasetVersion, FormatType, LatestVersion, Source};
use graftwork_api::{
    BaseModelSource, DatasetSpec, DatasetStatus, ObjectReference, Time, TrainingRunSpec,
    VersionedReference,
};
use graftwork_contract::dataset::Split;
use graftwork_contract::exit::ExitCode;
use graftwork_contract::run::{Metric, Resolved, RowsUsed, RunResult, RunSummary, TrainerConfig};
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use proptest::prelude::*;

use super::*;
use crate::conditions;
use crate::fixtures::{at, settings};
use crate::jobs::{JOB_NAME_LABEL, JobState};
use crate::observed::{Base, Container, Problem};
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
                config_map_ref: None,
                uri: Some("pvc://text/rows.jsonl".to_owned()),
            }],
            format: DatasetFormat {
                type_: FormatType::Completion,
            },
            validation: graftwork_api::dataset::Validation::default(),
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
                rows: graftwork_api::dataset::RowCounts::default(),
                rejected: vec![],
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
                    layers: 4,
                    vocabulary: 2048,
                    maximum_positions: 512,
                    parameters: 2_000_000,
                })),
                ..Observed::default()
            },
            store: vec![],
            settings: settings(),
            seconds: 0,
            writes: 0,
            created: vec![],
            events: vec![],
            train_rows: RowsUsed { rows: 2000, cut: 0 },
        }
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
                    content: request.content.clone(),
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
                samples: 400,
            }],
            train_rows: self.train_rows,
            test_rows: RowsUsed { rows: 400, cut: 0 },
            finished_time: at(self.seconds).to_string(),
            code_version: "0".to_owned(),
        };
        self.store.push(Record {
            path,
            content: serde_json::to_vec(&result).unwrap(),
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

#[test]
fn inputs_are_pinned_in_status_then_in_the_store_then_an_attempt_is_counted_then_made() {
    let mut world = World::new();
    let Plan::Decide(decision) = world.plan() else {
        panic!("the pin is a decision")
    };
    let resolved = decision.status.resolved.clone().unwrap();
    assert_eq!(resolved.dataset.version, 2);
    assert_eq!(resolved.reference.as_deref(), Some("base"));
    assert_eq!(resolved.image, "registry/trainer:1");
    world.cr.status = Some(decision.status);
    let Plan::Act(actions) = world.plan() else {
        panic!("the pin is stored before anything else is decided")
    };
    assert_eq!(actions.calls.len(), 1);
    assert!(actions.create.is_empty());
    world.act(&actions);
    let Plan::Decide(decision) = world.plan() else {
        panic!("the attempt is counted before its Job is made")
    };
    assert_eq!(decision.status.attempts.unwrap().started, 1);
    world.cr.status = Some(decision.status);
    let actions = world.reconcile();
    assert_eq!(world.created, ["nightly-1"]);
    let Child::ConfigMap(map) = &actions.apply[0] else {
        panic!("the trainer has a configuration")
    };
    let config: TrainerConfig =
        serde_json::from_str(&map.data.as_ref().unwrap()["config.json"]).unwrap();
    assert_eq!(
        config.resolved.base.path,
        "/var/lib/graftwork/claims/models/tiny"
    );
    assert_eq!(config.hyperparameters.epochs, 1);
    assert!(
        world.reconcile().create.is_empty(),
        "one Job for one attempt"
    );
}

#[test]
fn a_run_completes_with_metrics_and_stops_writing() {
    let mut world = World::new();
    world.start();
    world.publish_result();
    world.end_pod(0, |_| {});
    world.reconcile();
    assert_eq!(world.succeeded().0, "True");
    assert_eq!(world.succeeded().1, reason::COMPLETED);
    let status = world.cr.status.clone().unwrap();
    assert_eq!(status.metrics[0].value.as_str(), "0.8125");
    assert_eq!(
        status.metrics[0].baseline.as_ref().unwrap().as_str(),
        "0.25"
    );
    assert_eq!(status.progress.unwrap().percent, 100);
    assert!(world.is_finished());
    let writes = world.writes;
    world.seconds += 1000;
    world.reconcile();
    assert_eq!(world.writes, writes);
}

#[test]
fn rows_that_were_cut_are_counted_in_the_condition_and_the_event() {
    let mut world = World::new();
    world.train_rows.cut = 12;
    world.start();
    world.publish_result();
    world.end_pod(0, |_| {});
    world.reconcile();
    let (_, _, message) = world.succeeded();
    let words = "; 12 of 2000 train rows were cut, because they are longer than \
                 spec.hyperparameters.maximumSequenceLength 512";
    assert!(message.ends_with(words), "{message}");
    assert_eq!(world.events.last().unwrap().note, message);

    let mut whole = World::new();
    whole.start();
    whole.publish_result();
    whole.end_pod(0, |_| {});
    whole.reconcile();
    assert!(!whole.succeeded().2.contains("cut"));
}

#[test]
fn a_result_of_a_trainer_that_did_not_count_cut_rows_is_read() {
    let mut world = World::new();
    world.start();
    world.publish_result();
    let record = world.store.last_mut().unwrap();
    let mut result: serde_json::Value = record.read().unwrap();
    let fields = result.as_object_mut().unwrap();
    assert!(fields.remove("trainRows").is_some() && fields.remove("testRows").is_some());
    record.content = serde_json::to_vec(&result).unwrap();
    world.end_pod(0, |_| {});
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::COMPLETED);
}

#[test]
fn a_stored_result_completes_a_run_without_training() {
    let mut world = World::new();
    world.start();
    world.publish_result();
    let mut again = World::new();
    again.store = world.store;
    again.observed.dataset = Referenced::Absent;
    again.reconcile();
    assert_eq!(again.succeeded().1, reason::COMPLETED);
    assert!(again.created.is_empty());
    assert_eq!(
        again.cr.status.unwrap().resolved.unwrap().dataset.version,
        2
    );
}

#[test]
fn a_stored_pin_wins_over_what_the_references_mean_now() {
    let mut world = World::new();
    world.start();
    let mut again = World::new();
    again.store = world.store;
    let mut newer = dataset();
    newer.status.as_mut().unwrap().latest = Some(LatestVersion {
        version: 3,
        digest: Digest::of(b"rows 3").to_string(),
        rows: 1,
    });
    again.observed.dataset = Referenced::There(Box::new(newer));
    again.start();
    assert_eq!(
        again.cr.status.unwrap().resolved.unwrap().dataset.version,
        2
    );
}

#[test]
fn what_is_waited_for_is_named() {
    let mut going = dataset();
    going.status.as_mut().unwrap().conditions[0].status = "Unknown".to_owned();
    for (change, truth, why, words) in [
        (
            Box::new(|world: &mut World| world.observed.dataset = Referenced::Absent)
                as Box<dyn Fn(&mut World)>,
            "Unknown",
            reason::WAITING_FOR_DATASET,
            "spec.datasetRef.name: Dataset \"topics\" does not exist",
        ),
        (
            Box::new(|world| world.observed.dataset = Referenced::Deleting),
            "Unknown",
            reason::WAITING_FOR_DATASET,
            "spec.datasetRef.name: Dataset \"topics\" is being deleted",
        ),
        (
            Box::new(move |world| {
                world.observed.dataset = Referenced::There(Box::new(going.clone()));
            }),
            "Unknown",
            reason::WAITING_FOR_DATASET,
            "spec.datasetRef.name: Dataset \"topics\" is not ready: Ready: ",
        ),
        (
            Box::new(|world| world.cr.spec.dataset_ref.version = Some(9)),
            "Unknown",
            reason::WAITING_FOR_DATASET,
            "spec.datasetRef.version: Dataset \"topics\" has no version 9 yet",
        ),
        (
            Box::new(|world| world.cr.spec.adapter_ref = Some(ObjectReference::new("x"))),
            "Unknown",
            reason::WAITING_FOR_ADAPTER,
            "spec.adapterRef.name: LoRAAdapter \"x\" does not exist",
        ),
        (
            Box::new(|world| world.observed.base_claim = ClaimState::Absent),
            "False",
            reason::BASE_MODEL_NOT_FOUND,
            "spec.baseModel.uri: PersistentVolumeClaim \"models\" does not exist",
        ),
        (
            Box::new(|world| {
                world.observed.base = Asked::Answered(Err(Problem {
                    reason: "BaseModelUnsupported".to_owned(),
                    message: "config.json: architecture \"GPT2\"".to_owned(),
                }));
            }),
            "False",
            reason::BASE_MODEL_UNSUPPORTED,
            "spec.baseModel.uri: config.json: architecture \"GPT2\"",
        ),
        (
            Box::new(|world| world.cr.spec.compute.profile = "huge".to_owned()),
            "False",
            reason::COMPUTE_PROFILE_NOT_FOUND,
            "spec.compute.profile: compute profile \"huge\" is unknown; this installation has: default, nvidia-l40s",
        ),
        (
            Box::new(|world| world.observed.job = Found::Foreign),
            "False",
            reason::OBJECT_NOT_OURS,
            "Job \"nightly-1\" exists and does not belong to this run",
        ),
        (
            Box::new(|world| {
                world.observed.storage =
                    Some(StorageProblem::NotOurs("Deployment taken".to_owned()));
            }),
            "False",
            reason::OBJECT_NOT_OURS,
            "Deployment taken",
        ),
    ] {
        let mut world = World::new();
        change(&mut world);
        for _ in 0..4 {
            world.reconcile();
        }
        assert_eq!(
            world.succeeded(),
            (truth.to_owned(), why.to_owned(), words.to_owned())
        );
        assert!(world.created.is_empty() && !world.is_finished(), "{why}");
    }
}

#[test]
fn a_field_that_can_not_work_ends_the_run() {
    for (change, words) in [
        (
            Box::new(|spec: &mut TrainingRunSpec| spec.method.lora.rank = 0)
                as Box<dyn Fn(&mut TrainingRunSpec)>,
            "spec.method.lora.rank: 0 is too small",
        ),
        (
            Box::new(|spec| spec.method.lora.rank = 400),
            "spec.method.lora.rank: 400 is above the base model's hidden size 192",
        ),
        (
            Box::new(|spec| spec.hyperparameters.maximum_sequence_length = 4096),
            "spec.hyperparameters.maximumSequenceLength: 4096 is above the base model's 512",
        ),
        (
            Box::new(|spec| spec.hyperparameters.batch_size = 12),
            "spec.hyperparameters.batchSize: 12 is not a multiple of microBatchSize 8",
        ),
        (
            Box::new(|spec| spec.hyperparameters.learning_rate = "nan".into()),
            "spec.hyperparameters.learningRate: \"nan\" is not a number that fits",
        ),
        (
            Box::new(|spec| spec.base_model.uri = "s3://x/y".to_owned()),
            "spec.baseModel.uri: scheme \"s3\" is not supported",
        ),
    ] {
        let mut world = World::new();
        change(&mut world.cr.spec);
        world.reconcile();
        let (truth, why, message) = world.succeeded();
        assert_eq!(
            (truth.as_str(), why.as_str()),
            ("False", reason::INVALID_SPEC)
        );
        assert!(message.starts_with(words), "{message}");
        assert!(world.is_finished() && world.created.is_empty());
    }
}

#[test]
fn ends_are_counted_by_their_cause() {
    let taken = |pod: &mut Pod| pod.disrupted = Some("EvictionByEvictionAPI".to_owned());
    let no_memory = |pod: &mut Pod| {
        if let Container::Terminated { reason, .. } = &mut pod.container {
            *reason = "OOMKilled".to_owned();
        }
    };
    let nothing = |_: &mut Pod| {};
    let code = |code: ExitCode| i32::from(code.code());
    type Change = fn(&mut Pod);
    for (exit, change, attempts, over) in [
        (137, taken as Change, (2, 0, 1), None),
        (code(ExitCode::Checkpointed), nothing, (2, 0, 1), None),
        (137, nothing, (2, 1, 0), None),
        (code(ExitCode::Unavailable), nothing, (2, 1, 0), None),
        (code(ExitCode::Bug), nothing, (2, 1, 0), None),
        (137, no_memory, (1, 1, 0), Some(reason::OUT_OF_MEMORY)),
        (
            code(ExitCode::BadData),
            nothing,
            (1, 1, 0),
            Some(reason::DATA_ERROR),
        ),
        (
            code(ExitCode::BadConfig),
            nothing,
            (1, 1, 0),
            Some(reason::INVALID_SPEC),
        ),
        (
            code(ExitCode::Diverged),
            nothing,
            (1, 1, 0),
            Some(reason::DIVERGED),
        ),
        (
            code(ExitCode::Fenced),
            nothing,
            (1, 1, 0),
            Some(reason::INTERNAL_ERROR),
        ),
    ] {
        let mut world = World::new();
        world.start();
        world.end_pod(exit, change);
        for _ in 0..10 {
            world.seconds += 10;
            world.reconcile();
        }
        assert_eq!(world.attempts(), attempts, "exit code {exit}");
        match over {
            Some(over) => assert_eq!(world.succeeded().1, over),
            None => assert_eq!(world.created, ["nightly-1", "nightly-2"]),
        }
        assert_eq!(world.is_finished(), over.is_some());
    }
}

#[test]
fn the_trainers_last_words_become_the_condition() {
    let mut world = World::new();
    world.start();
    world.end_pod(i32::from(ExitCode::BadData.code()), |pod| {
        if let Container::Terminated { message, .. } = &mut pod.container {
            *message = summary(
                "DataError",
                "dataset topics version 2 has no rows in its train split",
            );
        }
    });
    world.reconcile();
    assert_eq!(
        world.succeeded(),
        (
            "False".to_owned(),
            reason::DATA_ERROR.to_owned(),
            "dataset topics version 2 has no rows in its train split".to_owned()
        )
    );
}

#[test]
fn retries_run_out() {
    let mut world = World::new();
    world.cr.spec.limits.retries = 2;
    for _ in 0..3 {
        world.start();
        world.end_pod(1, |_| {});
        world.reconcile();
    }
    assert_eq!(world.succeeded().1, reason::RETRIES_EXHAUSTED);
    assert_eq!(
        world.succeeded().2,
        "3 attempts failed, spec.limits.retries is 2; the last one: the trainer ended with exit code 1"
    );
    assert_eq!(world.created.len(), 3);
}

#[test]
fn active_time_is_summed_over_attempts() {
    let mut world = World::new();
    world.cr.spec.limits.duration_seconds = 100;
    world.start();
    world.seconds += 70;
    world.end_pod(137, |pod| {
        pod.disrupted = Some("PreemptionByScheduler".to_owned());
    });
    world.start();
    world.seconds += 20;
    world.reconcile();
    assert!(!world.is_finished());
    world.seconds += 20;
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::DEADLINE_EXCEEDED);
    world.reconcile();
    assert_eq!(world.active_job(), None, "the Job does not go on");
}

#[test]
fn suspend_deletes_the_job_and_resume_makes_the_next_attempt() {
    let mut world = World::new();
    world.start();
    world.seconds += 30;
    world.cr.spec.suspend = true;
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::SUSPENDED);
    assert_eq!(world.active_job(), None);
    assert_eq!(attempt::attempts(&world.cr).active_seconds, 30);
    let writes = world.writes;
    world.seconds += 1;
    world.reconcile();
    assert_eq!(world.writes, writes);
    world.cr.spec.suspend = false;
    world.reconcile();
    assert_eq!(world.active_job(), None, "the old pod is still stopping");
    world.observed.pods.clear();
    world.start();
    assert_eq!(world.created, ["nightly-1", "nightly-2"]);
    assert_eq!(world.attempts(), (2, 0, 0));
}

#[test]
fn an_unfinished_job_that_vanished_is_made_again_and_a_finished_one_is_not() {
    let mut world = World::new();
    world.start();
    world.observed.jobs.clear();
    world.observed.pods.clear();
    world.reconcile();
    assert_eq!(world.created, ["nightly-1", "nightly-1"]);
    assert_eq!(world.attempts(), (1, 0, 0));
    world.publish_result();
    world.observed.jobs.clear();
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::COMPLETED);
    assert_eq!(world.created.len(), 2);
}

#[test]
fn a_pod_on_a_lost_node_is_forced_out_before_the_next_attempt() {
    let mut world = World::new();
    world.start();
    world.cr.spec.suspend = true;
    world.reconcile();
    world.cr.spec.suspend = false;
    world.seconds += 20;
    world.reconcile();
    assert_eq!(world.observed.pods.len(), 1);
    world.seconds += 20;
    world.reconcile();
    assert!(world.observed.pods.is_empty());
    world.start();
    assert_eq!(world.attempts(), (2, 0, 0));
}

#[test]
fn progress_reaches_status_and_is_not_written_at_every_report() {
    let mut world = World::new();
    world.start();
    let mut writes = vec![];
    for second in 0..12_i64 {
        world.seconds += 1;
        world.observed.report = Some(Report {
            progress: Progress {
                stage: "Train".to_owned(),
                step: u64::try_from(second).unwrap(),
                total_steps: 100,
                loss: Some(1.5),
                tokens_per_second: 900.4,
                remaining_seconds: Some(60),
                checkpoint_step: 5,
                ..Progress::default()
            },
            at: at(world.seconds),
        });
        let before = world.cr.status.clone().unwrap().progress;
        world.reconcile();
        let after = world.cr.status.clone().unwrap().progress;
        if before != after {
            writes.push(second);
        }
    }
    assert_eq!(world.succeeded().1, reason::TRAINING);
    assert!((3..=5).contains(&writes.len()), "{writes:?}");
    let status = world.cr.status.unwrap();
    let progress = status.progress.unwrap();
    assert_eq!(progress.loss.unwrap().as_str(), "1.5");
    assert_eq!(progress.tokens_per_second, Some(900));
    assert_eq!(status.checkpoint.unwrap().step, 5);
}

#[test]
fn a_gpu_profile_shapes_the_job() {
    let mut world = World::new();
    world.cr.spec.compute.profile = "nvidia-l40s".to_owned();
    world.cr.metadata.labels =
        Some([("kueue.x-k8s.io/queue-name".to_owned(), "q".to_owned())].into());
    world.start();
    let job = &world.observed.jobs[0];
    assert_eq!(
        job.metadata.labels.as_ref().unwrap()["kueue.x-k8s.io/queue-name"],
        "q"
    );
    let spec = job.spec.as_ref().unwrap();
    assert_eq!(spec.suspend, None, "a queue owns suspend");
    assert_eq!(spec.backoff_limit, Some(0));
    let pod = spec.template.spec.as_ref().unwrap();
    let limits = pod.containers[0]
        .resources
        .as_ref()
        .unwrap()
        .limits
        .as_ref()
        .unwrap();
    assert_eq!(limits["nvidia.com/gpu"].0, "1");
    assert_eq!(pod.node_selector.as_ref().unwrap()["accelerator"], "l40s");
    assert_eq!(
        pod.tolerations.as_ref().unwrap()[0].key.as_deref(),
        Some("nvidia.com/gpu")
    );
    assert_eq!(pod.runtime_class_name.as_deref(), Some("nvidia"));
    assert_eq!(
        pod.containers[0].image.as_deref(),
        Some("registry/trainer:1-cuda89")
    );
}

#[test]
fn pods_that_do_not_start_say_why() {
    let mut world = World::new();
    world.start();
    let pod = &mut world.observed.pods[0];
    pod.unschedulable = Some("0/1 nodes: Insufficient nvidia.com/gpu".to_owned());
    pod.container = Container::Unknown;
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::QUEUED);
    let pod = &mut world.observed.pods[0];
    pod.unschedulable = None;
    pod.container = Container::Waiting {
        reason: "ErrImagePull".to_owned(),
        message: "registry/trainer:1 not found".to_owned(),
    };
    world.reconcile();
    assert_eq!(world.succeeded().0, "Unknown");
    assert_eq!(world.succeeded().1, reason::IMAGE_UNAVAILABLE);
    world.seconds += 200;
    world.reconcile();
    assert_eq!(world.succeeded().0, "False");
    assert_eq!(world.succeeded().1, reason::IMAGE_UNAVAILABLE);
}

#[test]
fn a_queue_that_holds_the_job_back_is_left_alone() {
    let mut world = World::new();
    world.start();
    world.observed.pods.clear();
    world.observed.jobs[0].spec.as_mut().unwrap().suspend = Some(true);
    let actions = world.reconcile();
    assert_eq!(world.succeeded().1, reason::QUEUED);
    assert!(actions.delete.is_empty() && actions.create.is_empty());
}

#[test]
fn a_keeper_that_is_away_does_not_disturb_a_running_attempt() {
    let mut world = World::new();
    world.start();
    world.observed.resolved = Asked::Unreachable("refused".to_owned());
    world.observed.result = Asked::Unreachable("refused".to_owned());
    let actions = world.reconcile();
    assert!(actions.delete.is_empty());
    assert_eq!(world.succeeded().1, reason::STARTING);
}

#[derive(Debug, Clone)]
enum Happening {
    PodEnds(i32),
    Evicted,
    JobDeleted,
    Suspend,
    Resume,
    KeeperAway,
    DatasetGone,
    StatusLost,
    Later(i64),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let codes = prop::sample::select(vec![1, 69, 70, 75, 137]);
    prop::collection::vec(
        prop_oneof![
            codes.prop_map(Happening::PodEnds),
            Just(Happening::Evicted),
            Just(Happening::JobDeleted),
            Just(Happening::Suspend),
            Just(Happening::Resume),
            Just(Happening::KeeperAway),
            Just(Happening::DatasetGone),
            Just(Happening::StatusLost),
            (0_i64..60).prop_map(Happening::Later),
        ],
        0..14,
    )
}

proptest! {
    #[test]
    fn from_any_state_it_ends_and_stops_writing(happenings in happenings()) {
        let mut world = World::new();
        world.cr.spec.limits.retries = 100;
        for happening in happenings {
            match happening {
                Happening::PodEnds(code) => world.end_pod(code, |_| {}),
                Happening::Evicted => world.end_pod(137, |pod| pod.disrupted = Some("x".to_owned())),
                Happening::JobDeleted => {
                    world.observed.jobs.pop();
                    world.observed.pods.pop();
                }
                Happening::Suspend => world.cr.spec.suspend = true,
                Happening::Resume => world.cr.spec.suspend = false,
                Happening::KeeperAway => {
                    world.observed.resolved = Asked::Unreachable("away".to_owned());
                    world.observed.result = Asked::Unreachable("away".to_owned());
                }
                Happening::DatasetGone => world.observed.dataset = Referenced::Absent,
                Happening::StatusLost => world.cr.status = None,
                Happening::Later(seconds) => world.seconds += seconds,
            }
            world.reconcile();
            let active = world.observed.jobs.iter()
                .filter(|job| crate::jobs::state(job) == JobState::Active)
                .count();
            prop_assert!(active <= 1, "never two trainers");
        }
        // The world turns good.
        world.cr.spec.suspend = false;
        world.observed.dataset = Referenced::There(Box::new(dataset()));
        world.observed.resolved = Asked::NotAsked;
        world.observed.result = Asked::NotAsked;
        for pod in &mut world.observed.pods {
            if pod.deleting_since.is_some() {
                pod.phase = "Failed".to_owned();
            }
        }
        world.seconds += 400;
        world.start();
        world.publish_result();
        world.end_pod(0, |_| {});
        world.reconcile();
        prop_assert_eq!(world.succeeded().1, reason::COMPLETED);
        world.reconcile();
        let writes = world.writes;
        world.seconds += 1000;
        world.reconcile();
        prop_assert_eq!(world.writes, writes);
        prop_assert_eq!(world.active_job(), None);
    }
}
