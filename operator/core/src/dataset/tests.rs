//! Table tests of a Dataset's plan, and its convergence from any state.

mod attempts;
mod bad_input;
mod building;
mod dealing;
mod postgres;
mod privacy;
mod properties;
mod retention;

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
                format: DatasetFormat {
                    type_: FormatType::Completion,
                    reward: false,
                },
                balance: None,
                classification: None,
                privacy: None,
                retention: None,
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
            Plan::Decide(_) => unreachable!("a Dataset decides nothing"),
        }
    }

    /// Does what the plan says, as a cluster would.
    fn reconcile(&mut self) -> Actions<DatasetStatus> {
        let actions = self.plan();
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
        let digest = Digest::of(&version.to_le_bytes());
        let record = VersionRecord {
            version,
            digest: digest.clone(),
            schema_hash: Digest::of(b"schema"),
            rows: RowCounts {
                train: 80,
                validation: 10,
                test: 10,
                rejected: 1,
                duplicates: 0,
            },
            rejected,
            size_bytes: 9,
            created_time: at(self.seconds).to_string(),
            provenance_digest: Digest::of(b"provenance"),
            findings: [("email".to_owned(), 211)].into(),
            leakage: Leakage {
                validation: 0,
                test: 2,
            },
        };
        let build = BuildRecord {
            fingerprint: self.fingerprint(),
            version,
            digest,
        };
        let write = |path: &str, content: Vec<u8>| Record {
            path: path.to_owned(),
            content,
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

#[test]
fn a_new_dataset_is_built_once_and_becomes_ready() {
    let mut world = World::from_config_map();
    let actions = world.reconcile();
    assert_eq!(actions.create.len(), 1);
    let name = format!("topics-build-{}", &world.fingerprint().hex()[..8]);
    assert_eq!(actions.create[0].metadata.name, Some(name));
    assert!(crate::workload::is_owned_by(
        &actions.create[0].metadata,
        "uid"
    ));
    assert_eq!(world.ready().1, reason::BUILDING);
    assert!(world.reconcile().create.is_empty(), "the Job is there");
    world.end_job(0, None);
    world.publish(1);
    let actions = world.reconcile();
    let (status, _, message) = world.ready();
    assert_eq!(status, "True");
    assert_eq!(
        message,
        "version 1 has 100 rows: 80 train, 10 validation, 10 test; 1 were left out"
    );
    assert_eq!(
        world
            .cr
            .status
            .as_ref()
            .unwrap()
            .latest
            .as_ref()
            .unwrap()
            .rows,
        100
    );
    assert_eq!(actions.events.len(), 1);
    let writes = world.writes;
    assert!(world.reconcile().events.is_empty());
    assert_eq!(world.writes, writes, "a settled Dataset writes nothing");
}

#[test]
fn a_known_fingerprint_needs_no_job() {
    let mut world = World::from_config_map();
    world.publish(4);
    assert!(world.reconcile().create.is_empty());
    assert_eq!(world.ready().0, "True");
    assert_eq!(world.cr.status.unwrap().latest.unwrap().version, 4);
}

#[test]
fn another_content_or_annotation_builds_anew_and_the_old_job_goes() {
    let mut world = World::from_config_map();
    world.reconcile();
    let first = world.fingerprint();
    world.observed.sources.insert(
        "faq".to_owned(),
        SourceState::Present(Some(Digest::of(b"two"))),
    );
    assert_ne!(world.fingerprint(), first);
    let actions = world.reconcile();
    assert_eq!(actions.create.len(), 1);
    let kinds: Vec<_> = actions.delete.iter().map(|delete| delete.kind).collect();
    assert_eq!(kinds, [ChildKind::Job, ChildKind::ConfigMap]);

    let mut world = World::from_claim();
    let first = world.fingerprint();
    world.cr.metadata.annotations = Some(
        [(
            graftwork_api::labels::REFRESH_ANNOTATION.to_owned(),
            "2".to_owned(),
        )]
        .into(),
    );
    assert_ne!(
        world.fingerprint(),
        first,
        "a volume is looked at again on request"
    );
}

#[test]
fn what_is_missing_is_named_with_its_field() {
    for (state, expected) in [
        (
            SourceState::Absent,
            "spec.sources[faq].configMapRef.name: ConfigMap \"faq\" does not exist",
        ),
        (
            SourceState::KeyAbsent,
            "spec.sources[faq].configMapRef.key: ConfigMap \"faq\" has no key \"rows.jsonl\"",
        ),
        (
            SourceState::Deleting,
            "spec.sources[faq].configMapRef.name: ConfigMap \"faq\" is being deleted",
        ),
    ] {
        let mut world = World::from_config_map();
        world.observed.sources.insert("faq".to_owned(), state);
        let actions = world.reconcile();
        assert_eq!(world.ready().1, reason::SOURCE_NOT_FOUND);
        assert_eq!(world.ready().2, expected);
        assert!(actions.create.is_empty() && actions.delete.is_empty());
    }
    let mut world = World::from_claim();
    world
        .observed
        .sources
        .insert("bulk".to_owned(), SourceState::NotBound);
    world.reconcile();
    assert_eq!(
        world.ready().2,
        "spec.sources[bulk].uri: PersistentVolumeClaim \"text\" is not bound to a volume"
    );
}

#[test]
fn a_bad_field_is_named_and_nothing_is_touched() {
    for (change, field) in [
        (
            Box::new(|spec: &mut DatasetSpec| spec.split.test_percent = 20)
                as Box<dyn Fn(&mut DatasetSpec)>,
            "spec.split:",
        ),
        (
            Box::new(|spec| spec.validation.maximum_invalid_percent = "101".into()),
            "spec.validation.maximumInvalidPercent: \"101\" is not a decimal from 0 to 100",
        ),
        (
            Box::new(|spec| spec.validation.maximum_invalid_percent = "1e2".into()),
            "spec.validation.maximumInvalidPercent: \"1e2\" is not a decimal",
        ),
        (
            Box::new(|spec| spec.format.type_ = FormatType::Other("Images".to_owned())),
            "spec.format.type: \"Images\" is not known",
        ),
        (
            Box::new(|spec| {
                spec.format.reward = true;
                spec.split.group_column = Some("reward".to_owned());
            }),
            "spec.split.groupColumn: \"reward\" is kept as a number",
        ),
        (
            Box::new(|spec| spec.sources[0].uri = Some("pvc://a/b".to_owned())),
            "spec.sources[faq]: exactly one",
        ),
        (
            Box::new(|spec| {
                spec.sources[0].config_map_ref = None;
                spec.sources[0].uri = Some("pvc://a/".to_owned());
            }),
            "spec.sources[faq].uri: \"pvc://a/\" names no file",
        ),
        (
            Box::new(|spec| {
                spec.sources[0].config_map_ref = None;
                spec.sources[0].uri = Some("pvc://a/rows/**".to_owned());
            }),
            "spec.sources[faq].uri: \"pvc://a/rows/**\": a pattern names files",
        ),
        (
            Box::new(|spec| {
                spec.sources[0].config_map_ref = None;
                spec.sources[0].uri = Some("pvc://a/rows/".to_owned());
            }),
            "spec.sources[faq].uri: \"pvc://a/rows/\" is a folder",
        ),
        (
            Box::new(|spec| spec.split.method = SplitMethod::Time),
            "spec.split.column: is needed with method Time",
        ),
        (
            Box::new(|spec| spec.split.column = Some("day".to_owned())),
            "spec.split.column: is needed with method Time",
        ),
        (
            Box::new(|spec| spec.validation.near_duplicates = "Sometimes".into()),
            "spec.validation.nearDuplicates: \"Sometimes\" is not known",
        ),
        (
            Box::new(|spec| {
                let column = "topic".to_owned();
                spec.balance = Some(Balance {
                    column,
                    maximum_upsample: 0,
                });
            }),
            "spec.balance.maximumUpsample: is 0",
        ),
        (
            Box::new(|spec| {
                let columns = [("text".to_owned(), "body".to_owned())];
                spec.sources[0].columns = columns.into();
            }),
            "spec.sources[faq].columns: \"text\" is not kept; columns are prompt, completion",
        ),
        (
            Box::new(|spec| {
                spec.sources[0].config_map_ref = None;
                spec.sources[0].uri = Some("pvc://a/b**/c.csv".to_owned());
            }),
            "spec.sources[faq].uri: \"pvc://a/b**/c.csv\": ** stands for folders",
        ),
    ] {
        let mut world = World::from_config_map();
        world.reconcile();
        change(&mut world.cr.spec);
        let actions = world.reconcile();
        assert_eq!(world.ready().1, reason::INVALID_SPEC);
        assert!(world.ready().2.starts_with(field), "{}", world.ready().2);
        assert!(actions.create.is_empty() && actions.delete.is_empty() && actions.apply.is_empty());
    }
}

#[test]
fn bad_rows_fail_at_once_and_keep_the_last_good_version() {
    let mut world = World::from_config_map();
    world.publish(1);
    world.reconcile();
    world.observed.sources.insert(
        "faq".to_owned(),
        SourceState::Present(Some(Digest::of(b"two"))),
    );
    world.observed.build = Asked::Answered(None);
    world.reconcile();
    let summary = BuildSummary {
        reason: "DataError".to_owned(),
        message: "source faq line 3: prompt is missing; 12.5 % of 8 rows are invalid, more than 0"
            .to_owned(),
        version: None,
        digest: None,
        rows: None,
        rejected: vec![],
    };
    world.end_job(i32::from(ExitCode::BadData.code()), Some(&summary));
    let actions = world.reconcile();
    assert!(actions.create.is_empty());
    assert_eq!(world.ready().1, reason::DATA_ERROR);
    assert_eq!(world.ready().2, summary.message);
    assert_eq!(
        world
            .cr
            .status
            .as_ref()
            .unwrap()
            .latest
            .as_ref()
            .unwrap()
            .version,
        1
    );
    world.observed.pods.clear();
    world.reconcile();
    assert_eq!(
        world.ready().2,
        summary.message,
        "the pod's words outlive it"
    );
}

#[test]
fn the_first_invalid_rows_are_named_by_source_line_and_rule_in_condition_and_event() {
    let row = |line, rule: &str| RejectedRow {
        file: None,
        source: "faq".to_owned(),
        line,
        rule: rule.to_owned(),
    };
    let mut world = World::from_config_map();
    world.reconcile();
    let summary = BuildSummary {
        reason: reason::DATA_ERROR.to_owned(),
        message: "3 of 8 rows are invalid (37.50 %), spec.validation.maximumInvalidPercent allows \
                  1 %: source faq line 3: prompt is missing (2 rows); source faq line 5: is not \
                  JSON (1 row); correct the rows or raise the limit"
            .to_owned(),
        version: None,
        digest: None,
        rows: None,
        rejected: vec![
            row(3, "prompt is missing"),
            row(5, "is not JSON"),
            row(8, "prompt is missing"),
        ],
    };
    world.end_job(i32::from(ExitCode::BadData.code()), Some(&summary));
    let actions = world.reconcile();
    let expected = format!(
        "{}; also source faq line 8: prompt is missing",
        summary.message
    );
    assert_eq!(world.ready().2, expected);
    assert_eq!(actions.events.len(), 1);
    assert_eq!(actions.events[0].note, expected);

    // Within the limit a version is made, and names the rows that it left out.
    let mut world = World::from_config_map();
    world.publish_with(1, vec![row(3, "prompt is missing")]);
    world.reconcile();
    let status = world.cr.status.unwrap();
    assert_eq!(
        status.versions[0].schema_hash,
        Digest::of(b"schema").as_str()
    );
    assert_eq!(status.versions[0].size_bytes, 9);
    let named = &status.versions[0].rejected[0];
    assert_eq!(
        (named.source.as_str(), named.line, named.rule.as_str()),
        ("faq", 3, "prompt is missing")
    );
}

#[test]
fn a_keeper_that_is_away_takes_nothing_back() {
    let mut world = World::from_config_map();
    world.publish(1);
    world.reconcile();
    let (build, versions) = (
        world.observed.build.clone(),
        world.observed.versions.clone(),
    );
    world.observed.build = Asked::Unreachable("connection refused".to_owned());
    let writes = world.writes;
    let actions = world.reconcile();
    assert_eq!(world.writes, writes);
    assert!(actions.requeue_after.is_some());
    (world.observed.build, world.observed.versions) = (build, versions);

    let mut fresh = World::from_config_map();
    fresh.observed.build = Asked::Unreachable("connection refused".to_owned());
    fresh.reconcile();
    assert_eq!(fresh.ready().0, "Unknown");
    assert_eq!(fresh.ready().1, reason::STORAGE_UNAVAILABLE);
}

#[test]
fn names_that_belong_to_others_are_left_alone() {
    let mut world = World::from_config_map();
    world.observed.foreign_job = true;
    let actions = world.reconcile();
    assert!(actions.create.is_empty());
    assert_eq!(actions.requeue_after, Some(NAME_TAKEN_PAUSE));
    assert_eq!(world.ready().1, reason::OBJECT_NOT_OURS);
    world.observed.foreign_job = false;
    assert_eq!(
        world.reconcile().create.len(),
        1,
        "the name has become free"
    );

    let mut world = World::from_config_map();
    world.observed.storage = Some(StorageProblem::NotOurs("Deployment taken".to_owned()));
    assert_eq!(world.reconcile().requeue_after, Some(NAME_TAKEN_PAUSE));
}

#[test]
fn long_names_are_shortened() {
    let mut world = World::from_config_map();
    world.cr.metadata = ObjectMeta {
        name: Some("a.".repeat(126) + "z"),
        ..world.cr.metadata
    };
    let actions = world.reconcile();
    for name in [
        &actions.create[0].metadata.name,
        &world.observed.configurations[0].metadata.name,
    ] {
        assert!(name.as_ref().unwrap().len() <= 63, "{name:?}");
    }
}

#[derive(Debug, Clone)]
enum Happening {
    Content(u8),
    SourceGone,
    JobEnds(i32),
    Published,
    KeeperAway,
    JobDeleted,
    Later(i64),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let codes = prop::sample::select(vec![0, 1, 64, 65, 69, 70, 75, 137]);
    prop::collection::vec(
        prop_oneof![
            (0_u8..3).prop_map(Happening::Content),
            Just(Happening::SourceGone),
            codes.prop_map(Happening::JobEnds),
            Just(Happening::Published),
            Just(Happening::KeeperAway),
            Just(Happening::JobDeleted),
            (0_i64..60).prop_map(Happening::Later),
        ],
        0..12,
    )
}

proptest! {
    #[test]
    fn from_any_state_it_becomes_ready_and_stops_writing(happenings in happenings()) {
        let mut world = World::from_config_map();
        let mut version = 0;
        for happening in happenings {
            match happening {
                Happening::Content(content) => {
                    let content = SourceState::Present(Some(Digest::of(&[content])));
                    world.observed.sources.insert("faq".to_owned(), content);
                    world.observed.build = Asked::Answered(None);
                }
                Happening::SourceGone => {
                    world.observed.sources.insert("faq".to_owned(), SourceState::Absent);
                }
                Happening::JobEnds(code) => world.end_job(code, None),
                Happening::Published => {
                    if fingerprint(&world.cr, &world.observed.sources).is_some()
                        && world.observed.versions.answer().is_some()
                    {
                        version += 1;
                        world.publish(version);
                    }
                }
                Happening::KeeperAway => {
                    world.observed.build = Asked::Unreachable("away".to_owned());
                }
                Happening::JobDeleted => {
                    world.observed.jobs.pop();
                }
                Happening::Later(seconds) => world.seconds += seconds,
            }
            world.reconcile();
        }
        // The world turns good: the source is there, the keeper answers, a new look is asked for.
        world.observed.sources.insert(
            "faq".to_owned(),
            SourceState::Present(Some(Digest::of(b"good"))),
        );
        world.observed.build = Asked::Answered(None);
        world.reconcile();
        world.end_job(0, None);
        world.publish(version + 1);
        world.reconcile();
        prop_assert_eq!(world.ready().0, "True");
        world.reconcile();
        let writes = world.writes;
        world.seconds += 1000;
        world.reconcile();
        prop_assert_eq!(world.writes, writes);
        prop_assert!(world.observed.jobs.len() <= 1);
    }
}

#[test]
fn the_present_version_and_those_that_runs_pin_stay_listed_whatever_their_age() {
    let mut world = World::from_config_map();
    for version in 1..=60 {
        world.publish(version);
    }
    // The sources are again what they were at version 3.
    world.publish(3);
    let Asked::Answered(records) = &mut world.observed.versions else {
        unreachable!("the keeper answers here")
    };
    records.pop();
    world.observed.pinned = [5, 60].into();
    world.reconcile();
    let status = world.cr.status.clone().unwrap();
    assert_eq!(status.latest.unwrap().version, 3);
    let listed: Vec<u32> = status.versions.iter().map(|it| it.version).collect();
    let expected: Vec<u32> = (13..=60).rev().chain([5, 3]).collect();
    assert_eq!(listed, expected, "50 at most, newest first");
}
