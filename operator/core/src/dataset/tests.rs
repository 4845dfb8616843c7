//! Table tests of a Dataset's plan, and its convergence from any state.

mod attempts;
mod bad_input;
mod base_model;
mod building;
mod dealing;
mod parts;
mod postgres;
mod privacy;
mod properties;
mod remote;
mod retention;
mod schedule;
mod transform;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::dataset::{
    Balance, ConfigMapKeyReference, DatasetFormat, FormatType, Source, Split, SplitMethod,
    Validation,
};
use graftwork_api::{DatasetSpec, Time};
use graftwork_contract::dataset::{
    BuildRecord, BuildSummary, Leakage, RejectedRow, RowCounts, VersionRecord,
};
use graftwork_contract::exit::ExitCode;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

use super::*;
use crate::conditions;
use crate::fixtures::{at, settings};
use crate::jobs::JOB_NAME_LABEL;
use crate::observed::Container;
use crate::plan::{Actions, Child, ChildKind};

/// A Dataset and a small cluster around it that does what plans say.
#[derive(Clone)]
struct World {
    cr: Dataset,
    observed: Observed,
    seconds: i64,
    writes: usize,
}

impl World {
    fn new(sources: Vec<Source>) -> Self {
        let mut cr = Dataset::new(
            "topics",
            DatasetSpec {
                description: None,
                sources,
                transform: None,
                format: DatasetFormat {
                    type_: FormatType::Completion,
                    reward: false,
                },
                balance: None,
                classification: None,
                privacy: None,
                retention: None,
                base_model: None,
                shards: None,
                schedule: None,
                validation: Validation::default(),
                split: Split::default(),
            },
        );
        cr.metadata.uid = Some("uid".to_owned());
        cr.metadata.namespace = Some("team".to_owned());
        cr.metadata.generation = Some(1);
        let mut world = Self {
            cr,
            observed: Observed {
                versions: Asked::Answered(vec![]),
                build: Asked::Answered(None),
                ..Observed::default()
            },
            seconds: 0,
            writes: 0,
        };
        for source in &world.cr.spec.sources {
            let content = source.config_map_ref.as_ref().map(|_| Digest::of(b"one"));
            world
                .observed
                .sources
                .insert(source.name.clone(), SourceState::Present(content));
        }
        world
    }

    fn from_config_map() -> Self {
        Self::new(vec![Source {
            name: "faq".to_owned(),
            config_map_ref: Some(ConfigMapKeyReference {
                name: "faq".to_owned(),
                key: "rows.jsonl".to_owned(),
            }),
            ..Source::default()
        }])
    }

    fn from_claim() -> Self {
        Self::new(vec![Source {
            name: "bulk".to_owned(),
            uri: Some("pvc://text/rows.jsonl".to_owned()),
            ..Source::default()
        }])
    }

    fn fingerprint(&self) -> Digest {
        fingerprint(&self.cr, &self.observed.sources).unwrap()
    }

    fn plan(&self) -> Actions<DatasetStatus> {
        match plan(&self.cr, &self.observed, &settings(), at(self.seconds)) {
            Plan::Act(actions) => actions,
            Plan::Decide(decision) => unreachable!("nothing is to be decided: {decision:?}"),
        }
    }

    /// Writes down what is to be decided, and returns what is said of it.
    fn decide(&mut self) -> Vec<crate::plan::Event> {
        let planned = plan(&self.cr, &self.observed, &settings(), at(self.seconds));
        let Plan::Decide(decision) = planned else {
            return Vec::new();
        };
        assert_ne!(self.cr.status.as_ref(), Some(&decision.status));
        self.cr.status = Some(decision.status);
        self.writes += 1;
        // The store knows the build of another fingerprint, and not this one.
        if let Asked::Answered(Some(record)) = &self.observed.build {
            let build: BuildRecord = record.read().unwrap();
            if fingerprint(&self.cr, &self.observed.sources) != Some(build.fingerprint) {
                self.observed.build = Asked::Answered(None);
            }
        }
        decision.events
    }

    /// Does what the plan says, as a cluster would.
    fn reconcile(&mut self) -> Actions<DatasetStatus> {
        let mut events = self.decide();
        let mut actions = self.plan();
        events.append(&mut actions.events);
        actions.events = events;
        for child in &actions.apply {
            let Child::ConfigMap(map) = child else {
                unreachable!("a Dataset has ConfigMaps only: {child:?}")
            };
            if !self.observed.configurations.contains(map) {
                self.observed.configurations.push((**map).clone());
                self.writes += 1;
            }
        }
        for job in &actions.create {
            assert!(
                self.observed
                    .jobs
                    .iter()
                    .all(|known| known.metadata.name != job.metadata.name),
                "a Job is created once"
            );
            self.observed.jobs.push(job.clone());
            self.writes += 1;
        }
        for delete in &actions.delete {
            self.writes += 1;
            match delete.kind {
                ChildKind::Job => {
                    let name = Some(delete.name.clone());
                    self.observed.jobs.retain(|job| job.metadata.name != name);
                }
                ChildKind::ConfigMap => {
                    let name = Some(delete.name.clone());
                    self.observed
                        .configurations
                        .retain(|map| map.metadata.name != name);
                }
                ChildKind::Pod => self.observed.pods.retain(|pod| pod.name != delete.name),
                other => unreachable!("a Dataset never deletes a {other:?}"),
            }
        }
        if actions.status.is_some() && actions.status != self.cr.status {
            self.cr.status.clone_from(&actions.status);
            self.writes += 1;
        }
        actions
    }

    /// Ends the newest running Job.
    fn end_job(&mut self, code: i32, summary: Option<&BuildSummary>) {
        let finished = at(self.seconds);
        let Some(job) = self
            .observed
            .jobs
            .iter_mut()
            .rev()
            .find(|job| crate::jobs::state(job) == crate::jobs::JobState::Active)
        else {
            return;
        };
        let rule = ExitCode::ALL
            .iter()
            .position(|known| i32::from(known.code()) == code);
        job.status = Some(JobStatus {
            conditions: Some(vec![JobCondition {
                type_: if code == 0 { "Complete" } else { "Failed" }.to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(Time(finished)),
                message: rule
                    .filter(|rule| *rule > 0)
                    .map(|rule| format!("matching FailJob rule at index {}", rule - 1)),
                ..JobCondition::default()
            }]),
            ..JobStatus::default()
        });
        let name = job.metadata.name.clone().unwrap();
        self.observed.pods.push(Pod {
            labels: [(JOB_NAME_LABEL.to_owned(), name)].into(),
            phase: "Failed".to_owned(),
            container: Container::Terminated {
                exit_code: code,
                reason: "Error".to_owned(),
                message: summary
                    .map(|it| serde_json::to_string(it).unwrap())
                    .unwrap_or_default(),
                started: Some(finished),
                finished: Some(finished),
            },
            ..Pod::default()
        });
    }

    /// What a builder leaves in the store.
    fn publish(&mut self, version: u32) {
        self.publish_with(version, vec![]);
    }

    fn publish_with(&mut self, version: u32, rejected: Vec<RejectedRow>) {
        let rows = RowCounts {
            train: 80,
            validation: 10,
            test: 10,
            rejected: 1,
            duplicates: 0,
            beyond_weight: 0,
        };
        self.publish_rows(version, rows, rejected);
    }

    fn publish_rows(&mut self, version: u32, rows: RowCounts, rejected: Vec<RejectedRow>) {
        let digest = Digest::of(&version.to_le_bytes());
        let record = VersionRecord {
            version,
            digest: digest.clone(),
            schema_hash: Digest::of(b"schema"),
            rows,
            rejected,
            size_bytes: 9,
            created_time: at(self.seconds).to_string(),
            provenance_digest: Digest::of(b"provenance"),
            findings: [("email".to_owned(), 211)].into(),
            leakage: Leakage {
                validation: 0,
                test: 2,
            },
            tokens: None,
            parent: version.checked_sub(1).filter(|parent| *parent > 0),
        };
        let build = BuildRecord {
            fingerprint: self.fingerprint(),
            version,
            digest,
        };
        let write = |path: &str, content: Vec<u8>| Record {
            path: path.to_owned(),
            content: Some(content),
        };
        let Asked::Answered(versions) = &mut self.observed.versions else {
            unreachable!("the keeper answers here")
        };
        versions.push(write("v", serde_json::to_vec(&record).unwrap()));
        self.observed.build =
            Asked::Answered(Some(write("b", serde_json::to_vec(&build).unwrap())));
    }

    fn ready(&self) -> (String, String, String) {
        let status = self.cr.status.clone().unwrap_or_default();
        let ready = conditions::find(&status.conditions, condition::READY).unwrap();
        (
            ready.status.clone(),
            ready.reason.clone(),
            ready.message.clone(),
        )
    }
}
