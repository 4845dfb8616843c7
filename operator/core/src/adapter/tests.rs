//! Adapters in a small world: a store that keeps what is published, a keeper that answers, endpoints.

use std::collections::BTreeMap;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::lora_adapter::{AdapterVersion, VersionStage};
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
mod judged;
mod many;
mod people;
mod served;
mod trouble;
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
            target_modules: vec![],
            maximum_positions: 512,
            key_values: None,
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
                excluded: 0,
            }],
            precision: graftwork_contract::run::Precision::AsStored,
            train_rows: graftwork_contract::run::RowsUsed::default(),
            validation_rows: graftwork_contract::run::RowsUsed::default(),
            test_rows: graftwork_contract::run::RowsUsed::default(),
            classification: None,
            finished_time: format!("2026-01-01T00:00:{:02}Z", self.observed.results.len()),
            code_version: "1".to_owned(),
        };
        let record = Record {
            path: "result.json".to_owned(),
            content: Some(serde_json::to_vec(&result).unwrap()),
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
                content: Some(content.clone()),
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
