//! Adapters in a small world: a store that keeps what is published, a keeper that answers, endpoints.

use std::collections::BTreeMap;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::lora_adapter::{AdapterVersion, Verdict, VersionStage};
use graftwork_api::{AnswerOutcome, LoRAAdapter, LoRAAdapterStatus, ServingEndpoint};
use graftwork_contract::Digest;
use graftwork_contract::dataset::{Format, Split};
use graftwork_contract::paths;
use graftwork_contract::run::{
    Metric, Resolved, ResolvedBase, ResolvedDataset, ResolvedReference, RunResult,
};
use serde_json::{Value, json};

use super::*;
use crate::fixtures::{at, settings};
use crate::observed::{Asked, Base, ClaimState, Problem, Record};
use crate::plan::{Actions, EventKind};

mod accepted;
mod unanswered;

fn digest(of: &str) -> Digest {
    Digest::of(of.as_bytes())
}

struct World {
    cr: LoRAAdapter,
    observed: Observed,
    records: BTreeMap<String, Vec<u8>>,
    /// Events of everything that was done.
    events: Vec<(EventKind, String)>,
    now: i64,
}

impl World {
    fn new(gate: &Value) -> Self {
        let cr = serde_json::from_value(json!({
            "apiVersion": "graftwork.dev/v1alpha1",
            "kind": "LoRAAdapter",
            "metadata": {"name": "topics", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {"baseModel": {"uri": "pvc://models/tiny"}, "gate": gate},
        }))
        .unwrap();
        let base = Base {
            digest: digest("base"),
            hidden_size: 64,
            layers: 2,
            vocabulary: 100,
            maximum_positions: 512,
            parameters: 1000,
        };
        Self {
            cr,
            observed: Observed {
                base_claim: ClaimState::Bound,
                import_claim: ClaimState::Bound,
                base: Asked::Answered(Ok(base)),
                ..Observed::default()
            },
            records: BTreeMap::new(),
            events: Vec::new(),
            now: 0,
        }
    }

    fn publish_run(&mut self, run: &str, exact_match: f64, reference: Option<u32>) {
        let result = RunResult {
            run: run.to_owned(),
            key: digest("key"),
            resolved: Resolved {
                base: ResolvedBase {
                    uri: "pvc://models/tiny".to_owned(),
                    path: "/x".to_owned(),
                    digest: digest("base"),
                    quantization: None,
                },
                dataset: ResolvedDataset {
                    name: "topics".to_owned(),
                    version: 1,
                    digest: digest("data"),
                    format: Format::Completion,
                },
                reference: reference.map(|version| ResolvedReference {
                    adapter: "topics".to_owned(),
                    version,
                    digest: digest("reference"),
                }),
                initial: None,
            },
            digest: digest(run),
            folder: paths::adapter("topics", &digest(run)),
            size_bytes: 10,
            rank: 8,
            steps: 100,
            final_loss: 1.0,
            metrics: vec![Metric {
                name: "exact_match".to_owned(),
                split: Split::Test,
                value: exact_match,
                standard_error: 0.01,
                baseline: 0.1,
                difference: exact_match - 0.1,
                difference_standard_error: 0.01,
                difference_interval: Some([0.4, 0.7]),
                samples: 2000,
                groups: None,
            }],
            train_rows: graftwork_contract::run::RowsUsed::default(),
            test_rows: graftwork_contract::run::RowsUsed::default(),
            finished_time: format!("2026-01-01T00:00:{:02}Z", self.observed.results.len()),
            code_version: "1".to_owned(),
        };
        let record = Record {
            path: "result.json".to_owned(),
            content: serde_json::to_vec(&result).unwrap(),
        };
        self.observed
            .results
            .insert(run.to_owned(), Asked::Answered(record));
    }

    /// The keeper's answers to what has to be asked now.
    fn observe(&mut self) {
        let records: Vec<Record> = self
            .records
            .iter()
            .map(|(path, content)| Record {
                path: path.clone(),
                content: content.clone(),
            })
            .collect();
        for verification in verifications(&self.cr, &records) {
            let digest: Digest = verification.digest.parse().unwrap();
            self.observed
                .verifications
                .entry(verification.digest)
                .or_insert_with(|| {
                    Asked::Answered(Ok(Verified {
                        digest,
                        rank: 8,
                        size_bytes: 10,
                    }))
                });
        }
        self.observed.ledger = Asked::Answered(records);
    }

    fn plan(&self) -> Plan<LoRAAdapterStatus> {
        plan(&self.cr, &self.observed, &settings(), at(self.now))
    }

    /// Reconciles until a plan neither writes nor calls.
    fn settle(&mut self) -> &mut Self {
        for _ in 0..50 {
            self.now += 1;
            self.observe();
            let mut moved = false;
            match self.plan() {
                Plan::Decide(decision) => {
                    self.cr.status = Some(decision.status);
                    moved = true;
                }
                Plan::Act(Actions {
                    calls,
                    status,
                    events,
                    ..
                }) => {
                    for call in calls {
                        let Call::Publish(request) = call else {
                            continue;
                        };
                        let known = self.records.insert(request.path.clone(), request.content);
                        assert_eq!(known, None, "{} is written twice", request.path);
                        moved = true;
                    }
                    if status.is_some() && status != self.cr.status {
                        moved = true;
                        self.cr.status = status;
                        self.events
                            .extend(events.into_iter().map(|it| (it.kind, it.reason)));
                    }
                }
            }
            if !moved {
                return self;
            }
        }
        panic!("does not come to rest: {:#?}", self.cr.status);
    }

    fn status(&self) -> &LoRAAdapterStatus {
        self.cr.status.as_ref().unwrap()
    }

    fn version(&self, number: u32) -> &AdapterVersion {
        self.status()
            .versions
            .iter()
            .find(|it| it.version == number)
            .unwrap()
    }

    /// Stage and reason.
    fn stage(&self, number: u32) -> (VersionStage, &str) {
        let version = self.version(number);
        (
            version.stage.clone(),
            version.reason.as_deref().unwrap_or_default(),
        )
    }

    fn say(&mut self, number: u32, verb: &str, of: &str) -> (AnswerOutcome, String) {
        let target = format!("version/{number}");
        let command = serde_json::from_value(json!({
            "id": format!("{}", self.now), "verb": verb, "digest": of, "user": "ann", "reason": "looks good",
        }))
        .unwrap();
        let mut status = self.status().clone();
        status.commands.insert(target.clone(), command);
        self.cr.status = Some(status);
        self.settle();
        let answer = &self.status().answers[&target];
        (answer.outcome.clone(), answer.message.clone())
    }

    fn condition(&self, kind: &str) -> (&str, &str) {
        let found = crate::conditions::find(&self.status().conditions, kind).unwrap();
        (found.status.as_str(), found.reason.as_str())
    }

    /// An endpoint that serves `stable` and has rolled back `rejected`.
    fn serve(&mut self, stable: Option<&str>, rejected: Option<&str>) {
        let time = "2026-01-01T00:00:00Z";
        let endpoint: ServingEndpoint = serde_json::from_value(json!({
            "apiVersion": "graftwork.dev/v1alpha1",
            "kind": "ServingEndpoint",
            "metadata": {"name": "assistants"},
            "spec": {
                "baseModel": {"uri": "pvc://models/tiny"},
                "adapters": [{"name": "alias", "adapterRef": {"name": "topics"}}],
            },
            "status": {
                "adapters": stable.map(|run| vec![json!({"name": "alias", "stable": {"version": 1, "digest": digest(run)}})]).unwrap_or_default(),
                "rejected": rejected.map(|run| vec![json!({
                    "adapter": "alias", "digest": digest(run), "version": 2,
                    "reason": "ErrorRateAboveLimit", "message": "error_rate 0.08 > 0.01 over 812 requests", "time": time,
                })]).unwrap_or_default(),
            },
        }))
        .unwrap();
        self.observed.endpoints = vec![endpoint];
    }
}

fn minimum(value: &str) -> Value {
    json!({"rules": [{"metric": "exact_match", "minimum": value}]})
}

#[test]
fn a_run_becomes_a_version_that_passes_its_gate() {
    let mut world = World::new(&minimum("0.30"));
    world.settle();
    assert_eq!(world.condition(condition::READY), ("True", reason::READY));
    assert_eq!(
        world.condition(condition::VERSION_AVAILABLE),
        ("False", reason::NO_VERSIONS)
    );
    world.publish_run("one", 0.39, None);
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    assert_eq!(world.status().approved, Some(1));
    assert_eq!(
        world.condition(condition::VERSION_AVAILABLE),
        ("True", reason::VERSION_APPROVED)
    );
    let version = world.version(1);
    assert_eq!(version.training_run.as_deref(), Some("one"));
    assert_eq!(version.dataset.as_ref().unwrap().name, "topics");
    assert_eq!(version.gate.as_ref().unwrap().verdict, Verdict::Pass);
    assert_eq!(
        world.records.keys().map(String::as_str).collect::<Vec<_>>(),
        [
            "adapters/topics/versions/1/approved.json",
            "adapters/topics/versions/1/created.json",
            "adapters/topics/versions/1/gate.json",
        ]
    );
}

#[test]
fn a_bad_version_is_rejected_with_numbers_and_the_good_one_stays() {
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.39, None);
    world.settle();
    world.publish_run("two", 0.13, None);
    world.settle();
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::GATE_FAILED)
    );
    let message = world.version(2).message.clone().unwrap();
    assert!(
        message.starts_with("exact_match 0.13 [") && message.contains("minimum 0.3"),
        "{message}"
    );
    assert_eq!(world.status().approved, Some(1));
    assert_eq!(
        world.status().columns.as_ref().unwrap().candidate,
        "2 Rejected"
    );
    assert_eq!(world.status().columns.as_ref().unwrap().gate, "Fail");
    assert!(
        world
            .events
            .contains(&(EventKind::Warning, reason::GATE_FAILED.to_owned()))
    );
}

#[test]
fn runs_that_end_together_get_dense_numbers_in_the_order_of_their_ends() {
    let mut world = World::new(&json!({}));
    for run in ["c", "a", "b"] {
        world.publish_run(run, 0.5, None);
    }
    world.settle();
    let runs: Vec<_> = world
        .status()
        .versions
        .iter()
        .rev()
        .map(|it| (it.version, it.training_run.clone().unwrap()))
        .collect();
    assert_eq!(
        runs,
        [
            (1, "c".to_owned()),
            (2, "a".to_owned()),
            (3, "b".to_owned())
        ]
    );
}

#[test]
fn everything_comes_back_from_the_store() {
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.39, None);
    world.settle();
    world.publish_run("two", 0.13, None);
    world.settle();
    world.publish_run("three", 0.45, None);
    world.settle();
    world.serve(Some("one"), Some("three"));
    world.settle();
    world.observed.endpoints.clear();
    world.settle();
    let before = world.status().clone();
    assert_eq!(
        world.stage(3),
        (VersionStage::Rejected, reason::ROLLED_BACK_ON_ENDPOINT)
    );
    assert_eq!(before.approved, Some(1));
    // Status, runs and endpoints are gone; the store is not.
    world.cr.status = None;
    world.observed.results.clear();
    world.observed.verifications.clear();
    world.settle();
    assert_eq!(world.status().versions, before.versions);
    assert_eq!(world.status().approved, before.approved);
}

#[test]
fn a_person_approves_under_manual_approval() {
    let mut world = World::new(
        &json!({"approval": "Manual", "rules": [{"metric": "exact_match", "minimum": "0.3"}]}),
    );
    world.publish_run("one", 0.39, None);
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Candidate, reason::AWAITING_APPROVAL)
    );
    assert_eq!(
        world.condition(condition::VERSION_AVAILABLE),
        ("False", reason::NO_VERSION_APPROVED)
    );
    let one = digest("one").to_string();
    assert_eq!(
        world.say(1, "Approve", digest("two").as_str()).0,
        AnswerOutcome::Refused,
        "another digest"
    );
    assert_eq!(
        world.say(7, "Approve", &one).0,
        AnswerOutcome::Refused,
        "no such version"
    );
    assert_eq!(world.say(1, "Explode", &one).0, AnswerOutcome::Refused);
    assert_eq!(world.stage(1).0, VersionStage::Candidate);
    assert_eq!(world.say(1, "Approve", &one).0, AnswerOutcome::Done);
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::APPROVED_BY_USER)
    );
    assert_eq!(
        world.version(1).message.as_deref(),
        Some("approved by ann: looks good")
    );
    assert_eq!(world.say(1, "Reject", &one).0, AnswerOutcome::Done);
    assert_eq!(
        world.stage(1),
        (VersionStage::Rejected, reason::REJECTED_BY_USER)
    );
    assert_eq!(world.status().approved, None);
    let (outcome, message) = world.say(1, "Approve", &one);
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.contains("final"), "{message}");
}

#[test]
fn nobody_approves_what_the_gate_rejects_or_rejects_what_serves() {
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.39, None);
    world.settle();
    world.publish_run("two", 0.13, None);
    world.settle();
    let (outcome, message) = world.say(2, "Approve", digest("two").as_str());
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.contains("exact_match 0.13"), "{message}");
    world.serve(Some("one"), None);
    world.settle();
    let (outcome, message) = world.say(1, "Reject", digest("one").as_str());
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.contains("assistants"), "{message}");
}

#[test]
fn an_import_takes_a_persons_approval_where_metrics_are_asked_for() {
    let import = |gate: &Value| {
        let mut world = World::new(gate);
        world.cr.spec.import = serde_json::from_value(json!({"uri": "pvc://models/old"})).unwrap();
        world.observe();
        let Plan::Act(actions) = world.plan() else {
            panic!("there is nothing to decide")
        };
        assert!(matches!(&actions.calls[..], [Call::Import(request)] if request.path == "old"));
        world.observed.import = Asked::Answered(Ok(Verified {
            digest: digest("old"),
            rank: 4,
            size_bytes: 3,
        }));
        world.settle();
        world
    };
    let world = import(&json!({}));
    assert_eq!(
        world.stage(1).0,
        VersionStage::Approved,
        "no rules: every compatible version passes"
    );
    let mut world = import(&minimum("0.3"));
    assert_eq!(
        world.stage(1),
        (VersionStage::Candidate, reason::GATE_INCONCLUSIVE)
    );
    assert_eq!(
        world.version(1).imported_from.as_deref(),
        Some("pvc://models/old")
    );
    assert_eq!(
        world.say(1, "Approve", digest("old").as_str()).0,
        AnswerOutcome::Done
    );
    assert_eq!(world.status().approved, Some(1));
    // Forgotten by the shell, the import is not asked for again.
    world.observed.import = Asked::NotAsked;
    world.observe();
    let Plan::Act(actions) = world.plan() else {
        panic!("there is nothing to decide")
    };
    assert_eq!(actions.calls, []);
}

#[test]
fn what_does_not_fit_is_rejected_with_the_keepers_words() {
    let mut world = World::new(&json!({}));
    world.publish_run("one", 0.5, None);
    world.observed.verifications.insert(
        digest("one").to_string(),
        Asked::Answered(Err(Problem {
            reason: reason::ADAPTER_INCOMPATIBLE.to_owned(),
            message: "target module \"z_proj\" is not in the base model".to_owned(),
        })),
    );
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Rejected, reason::ADAPTER_INCOMPATIBLE)
    );
    assert!(
        world
            .version(1)
            .message
            .as_deref()
            .unwrap()
            .contains("z_proj")
    );
    assert_eq!(world.status().approved, None);
    assert!(
        world
            .records
            .contains_key("adapters/topics/versions/1/rejected.json")
    );
}

#[test]
fn another_base_model_withdraws_its_versions() {
    let mut world = World::new(&json!({}));
    world.publish_run("one", 0.5, None);
    world.settle();
    assert_eq!(world.status().approved, Some(1));
    let Asked::Answered(Ok(base)) = &mut world.observed.base else {
        unreachable!()
    };
    base.digest = digest("other base");
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Rejected, reason::BASE_MODEL_MISMATCH)
    );
    assert_eq!(world.status().approved, None);
    assert!(
        !world
            .records
            .contains_key("adapters/topics/versions/1/rejected.json"),
        "the base may come back"
    );
}

#[test]
fn production_is_what_is_stable_and_improvement_is_measured_against_it() {
    let gate = json!({"rules": [{"metric": "exact_match", "minimumImprovementPoints": "1"}]});
    let mut world = World::new(&gate);
    world.publish_run("one", 0.4, None);
    world.settle();
    world.serve(Some("one"), None);
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Production, reason::STABLE_ON_ENDPOINT)
    );
    assert_eq!(
        world.status().production.as_ref().unwrap().endpoints,
        ["assistants"]
    );
    world.publish_run("two", 0.5, None);
    world.settle();
    assert_eq!(
        world.stage(2),
        (VersionStage::Candidate, reason::GATE_INCONCLUSIVE)
    );
    assert!(
        world
            .version(2)
            .message
            .as_deref()
            .unwrap()
            .contains("production is version 1")
    );
    world.publish_run("three", 0.5, Some(1));
    world.settle();
    assert_eq!(
        world.stage(3),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    // What was judged stays judged when production moves on.
    world.serve(Some("three"), None);
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    assert_eq!(world.status().approved, Some(3));
}

#[test]
fn what_was_in_production_last_is_remembered_while_no_endpoint_serves_the_adapter() {
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.4, None);
    world.settle();
    world.publish_run("two", 0.5, None);
    world.settle();
    world.serve(Some("one"), None);
    world.settle();
    world.observed.endpoints.clear();
    world.settle();
    let production = world.status().production.clone().unwrap();
    assert_eq!((production.version, production.endpoints), (1, vec![]));
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    assert_eq!(world.status().approved, Some(2));
    // What is in production elsewhere counts for more.
    world.serve(Some("two"), None);
    world.settle();
    assert_eq!(world.status().production.as_ref().unwrap().version, 2);
    // A person's no ends it.
    world.observed.endpoints.clear();
    world.settle();
    let (outcome, message) = world.say(2, "Reject", digest("two").as_str());
    assert_eq!(outcome, AnswerOutcome::Done, "{message}");
    world.settle();
    assert_eq!(world.status().production, None);
}

#[test]
fn another_gate_judges_again() {
    let mut world = World::new(&minimum("0.60"));
    world.publish_run("one", 0.5, None);
    world.settle();
    assert_eq!(world.stage(1).0, VersionStage::Rejected);
    world.cr.spec.gate = serde_json::from_value(minimum("0.30")).unwrap();
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
}

#[test]
fn an_approval_under_another_gate_is_recorded_with_what_that_gate_said() {
    let record = |world: &World| -> Value {
        let path = "adapters/topics/versions/1/approved.json";
        serde_json::from_slice(&world.records[path]).unwrap()
    };
    let improvement =
        json!({"rules": [{"metric": "exact_match", "minimumImprovementPoints": "1"}]});
    let mut world = World::new(&minimum("0.60"));
    world.publish_run("one", 0.5, None);
    world.settle();
    world.cr.spec.gate = serde_json::from_value(improvement.clone()).unwrap();
    world.settle();
    assert_eq!(world.stage(1).0, VersionStage::Approved);
    let gate = record(&world)["gate"].clone();
    assert_eq!(gate["verdict"], "Pass");
    let message = gate["rules"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("minimumImprovementPoints 1"), "{message}");
    // Measured against the bare base then: what is production later changes nothing.
    world.serve(Some("one"), None);
    world.cr.status = None;
    world.settle();
    let judged = world.version(1).gate.clone().unwrap();
    assert_eq!(judged.verdict, Verdict::Pass);
    assert_eq!(judged.rules[0].message, message);

    // A person's approval keeps it too, and one under the first gate has nothing to add.
    let mut world = World::new(&minimum("0.60"));
    world.publish_run("one", 0.5, None);
    world.settle();
    let mut manual = minimum("0.50");
    manual["approval"] = json!("Manual");
    world.cr.spec.gate = serde_json::from_value(manual).unwrap();
    world.settle();
    assert_eq!(
        world.say(1, "Approve", digest("one").as_str()).0,
        AnswerOutcome::Done
    );
    assert_eq!(record(&world)["gate"]["verdict"], "Inconclusive");
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.5, None);
    world.settle();
    assert_eq!(record(&world).get("gate"), None);
}

#[test]
fn a_rollback_that_is_being_retried_is_not_written_down() {
    let mut world = World::new(&json!({}));
    for run in ["one", "two"] {
        world.publish_run(run, 0.5, None);
    }
    world.settle();
    world.serve(Some("two"), Some("two"));
    world.settle();
    assert_eq!(
        world.stage(2).0,
        VersionStage::Production,
        "it is stable somewhere"
    );
    world.serve(Some("one"), Some("two"));
    world.settle();
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::ROLLED_BACK_ON_ENDPOINT)
    );
    assert_eq!(
        world.version(2).message.as_deref(),
        Some(
            "rolled back on assistants: ErrorRateAboveLimit: error_rate 0.08 > 0.01 over 812 requests"
        )
    );
    world.serve(Some("two"), None);
    world.settle();
    assert_eq!(
        world.stage(2).0,
        VersionStage::Production,
        "tried again, and kept"
    );
    assert_eq!(world.status().approved, Some(2));
}

#[test]
fn trouble_is_said_and_nothing_is_written() {
    let mut away = World::new(&json!({}));
    away.observed.ledger = Asked::Unreachable("no pod is ready".to_owned());
    let Plan::Act(actions) = away.plan() else {
        panic!("there is nothing to decide")
    };
    assert_eq!(actions.calls, []);
    let ready = |actions: &Actions<LoRAAdapterStatus>| {
        let status = actions.status.clone().unwrap();
        let found = crate::conditions::find(&status.conditions, condition::READY)
            .unwrap()
            .clone();
        (found.status, found.reason, found.message)
    };
    assert_eq!(ready(&actions).1, reason::STORAGE_UNAVAILABLE);

    let mut settled = World::new(&json!({}));
    settled.settle();
    settled.observed.ledger = Asked::Unreachable("no pod is ready".to_owned());
    let Plan::Act(actions) = settled.plan() else {
        panic!("there is nothing to decide")
    };
    assert_eq!(
        actions.status, None,
        "a keeper that is away for a moment takes nothing back"
    );

    for (change, why) in [
        (
            (|world: &mut World| world.observed.base_claim = ClaimState::Absent) as fn(&mut World),
            reason::BASE_MODEL_NOT_FOUND,
        ),
        (
            |world| {
                world.cr.spec.import = serde_json::from_value(json!({"uri": "pvc://away/x"})).ok();
                world.observed.import_claim = ClaimState::NotBound;
            },
            reason::IMPORT_FAILED,
        ),
    ] {
        change(&mut away);
        let Plan::Act(actions) = away.plan() else {
            panic!("there is nothing to decide")
        };
        assert_eq!(
            (ready(&actions).0.as_str(), ready(&actions).1.as_str()),
            ("False", why),
            "what the API server shows waits for no keeper"
        );
        away.observed.base_claim = ClaimState::Bound;
    }
    let mut taken = World::new(&json!({}));
    taken.observed.storage = Some(crate::storage::StorageProblem::NotOurs("x".to_owned()));
    let Plan::Act(actions) = taken.plan() else {
        panic!("there is nothing to decide")
    };
    assert_eq!(ready(&actions).1, reason::OBJECT_NOT_OURS);
    assert_eq!(actions.requeue_after, Some(crate::plan::NAME_TAKEN_PAUSE));

    let mut absent = World::new(&json!({}));
    absent.observed.base_claim = ClaimState::Absent;
    absent.settle();
    assert_eq!(
        absent.condition(condition::READY),
        ("False", reason::BASE_MODEL_NOT_FOUND)
    );

    let mut bad = World::new(&json!({"rules": [{"metric": "mood", "minimum": "1"}]}));
    bad.settle();
    assert_eq!(
        bad.condition(condition::READY),
        ("False", reason::INVALID_SPEC)
    );
    assert_eq!(
        bad.condition(condition::STALLED),
        ("True", reason::INVALID_SPEC)
    );

    let mut going = World::new(&json!({}));
    going.cr.metadata.deletion_timestamp = Some(graftwork_api::Time(at(0)));
    assert_eq!(going.plan(), Plan::Act(Actions::default()));
}

#[test]
fn a_record_that_cannot_be_read_is_said_and_its_number_is_not_given_again() {
    let mut world = World::new(&json!({}));
    world.records.insert(
        "adapters/topics/versions/3/created.json".to_owned(),
        b"{".to_vec(),
    );
    world.publish_run("one", 0.5, None);
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::INTERNAL_ERROR)
    );
    assert_eq!(world.version(4).training_run.as_deref(), Some("one"));
}

#[test]
fn a_version_whose_folder_is_missing_waits_for_it() {
    let mut world = World::new(&json!({}));
    world.publish_run("one", 0.5, None);
    let missing = Problem {
        reason: "AdapterNotFound".to_owned(),
        message: "adapters/topics/x does not exist in the store".to_owned(),
    };
    world
        .observed
        .verifications
        .insert(digest("one").to_string(), Asked::Answered(Err(missing)));
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Candidate, reason::FILES_NOT_FOUND)
    );
    let message = world.version(1).message.clone().unwrap();
    assert!(message.contains("does not exist"), "{message}");
    let Plan::Act(actions) = world.plan() else {
        panic!("there is nothing to decide")
    };
    assert_eq!(
        actions.requeue_after,
        Some(std::time::Duration::from_secs(15)),
        "it is looked for again"
    );
    let (outcome, message) = world.say(1, "Approve", digest("one").as_str());
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.contains("does not exist"), "{message}");
    world.observed.verifications.clear();
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    assert!(
        !world
            .records
            .contains_key("adapters/topics/versions/1/rejected.json")
    );
}

#[test]
fn a_persons_no_to_what_was_rolled_back_is_on_record_beside_the_rollback() {
    let mut world = World::new(&json!({}));
    for run in ["one", "two"] {
        world.publish_run(run, 0.5, None);
    }
    world.settle();
    world.serve(Some("one"), Some("two"));
    world.settle();
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::ROLLED_BACK_ON_ENDPOINT)
    );
    let two = digest("two").to_string();
    assert_eq!(world.say(2, "Reject", &two).0, AnswerOutcome::Done);
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::REJECTED_BY_USER)
    );
    let (outcome, message) = world.say(2, "Reject", &two);
    assert_eq!(outcome, AnswerOutcome::Done);
    assert!(message.contains("already"), "{message}");
    assert!(
        world
            .records
            .contains_key("adapters/topics/versions/2/barred.json")
    );
    world.cr.status = None;
    world.settle();
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::REJECTED_BY_USER)
    );
    // Though it is stable where it was retried a moment before, nobody follows it.
    world.serve(Some("two"), None);
    world.settle();
    assert_eq!(world.status().approved, Some(1));
}

/// An adapter with more versions than status lists: 1, 2, 3 and 5 are approved, 4 waits, and from 6
/// to 70 all were rejected.
fn with_many_versions() -> World {
    let mut world = World::new(&minimum("0.30"));
    for number in 1..=70 {
        let exact_match = match number {
            4 => 0.3,
            1..6 => 0.5,
            _ => 0.13,
        };
        world.publish_run(&number.to_string(), exact_match, None);
        world.settle();
    }
    world
}

fn listed(world: &World) -> Vec<u32> {
    world
        .status()
        .versions
        .iter()
        .map(|it| it.version)
        .collect()
}

#[test]
fn versions_that_somebody_needs_stay_listed_whatever_their_age() {
    let mut world = with_many_versions();
    assert_eq!(
        listed(&world),
        (26..=70).rev().chain([5, 4, 3, 2, 1]).collect::<Vec<_>>(),
        "what may serve or waits, and the newest of the rest"
    );
    assert_eq!(world.status().approved, Some(5));
    let endpoint = |number: u32| -> ServingEndpoint {
        serde_json::from_value(json!({
            "apiVersion": "graftwork.dev/v1alpha1",
            "kind": "ServingEndpoint",
            "metadata": {"name": format!("assistants-{number}")},
            "spec": {
                "baseModel": {"uri": "pvc://models/tiny"},
                "adapters": [{"name": "alias", "adapterRef": {"name": "topics"}, "version": number}],
            },
            "status": {"adapters": [{
                "name": "alias",
                "stable": {"version": 1, "digest": digest("1")},
                "candidate": {"version": number + 1, "digest": digest(&(number + 1).to_string()), "weight": 10},
            }]},
        }))
        .unwrap()
    };
    let events = world.events.len();
    world.observed.endpoints = vec![endpoint(7), endpoint(11)];
    world.settle();
    assert_eq!(
        listed(&world),
        (30..=70)
            .rev()
            .chain([12, 11, 8, 7, 5, 4, 3, 2, 1])
            .collect::<Vec<_>>(),
        "pinned ones and candidates of rollouts too"
    );
    assert_eq!(world.stage(1).0, VersionStage::Production);
    let turned = &world.events[events..];
    assert_eq!(
        turned.len(),
        1,
        "version 1 went into production; what is listed again did not turn: {turned:?}"
    );
    assert!(!listed(&world).contains(&9));
    world.observed.wanted = [9].into();
    world.settle();
    assert!(listed(&world).contains(&9), "a run waits to start from it");
}

#[test]
fn what_is_needed_is_listed_before_what_waits_and_what_is_past() {
    let mut world = World::new(&json!({"approval": "Manual"}));
    for number in 1..=60 {
        world.publish_run(&number.to_string(), 0.5, None);
        world.settle();
    }
    assert_eq!(listed(&world), (11..=60).rev().collect::<Vec<_>>());
    assert_eq!(
        world.say(2, "Approve", digest("2").as_str()).0,
        AnswerOutcome::Done
    );
    let expected: Vec<_> = (12..=60).rev().chain([2]).collect();
    assert_eq!(listed(&world), expected, "50, with the one approved");
}

#[test]
fn what_was_said_about_versions_that_are_no_longer_listed_goes_once_it_was_read() {
    let mut world = with_many_versions();
    let targets = |world: &World| -> (Vec<String>, Vec<String>) {
        let status = world.status();
        (
            status.commands.keys().cloned().collect(),
            status.answers.keys().cloned().collect(),
        )
    };
    world.say(6, "Reject", digest("6").as_str());
    world.say(70, "Reject", digest("70").as_str());
    assert_eq!(
        world.say(999, "Reject", digest("x").as_str()).0,
        AnswerOutcome::Refused
    );
    let all = ["version/6", "version/70", "version/999"].map(str::to_owned);
    assert_eq!(targets(&world), (all.to_vec(), all.to_vec()));
    world.now += 3500;
    world.settle();
    assert_eq!(targets(&world).0, all, "there is an hour to read an answer");
    world.now += 100;
    world.settle();
    let kept = vec!["version/70".to_owned()];
    assert_eq!(targets(&world), (kept.clone(), kept));
}
