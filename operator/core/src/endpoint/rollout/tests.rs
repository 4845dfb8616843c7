//! A world around one adapter, in which the machine takes its steps.

mod commands;
mod judgements;
mod moves;
mod properties;
mod withdrawals;

use graftwork_api::conditions::reason;
use graftwork_api::lora_adapter::Verdict;
use graftwork_api::serving_endpoint::{AnalysisResult, EndpointVerb, PausedBy, RolloutState};

use super::*;
use crate::endpoint::validate::{Analysis, Limit, Metric, Rule, Step, Strategy as Moves};
use crate::fixtures::at;

const HASH: &str = "settings";

/// What the tests call an adapter without a rollout; persisted, it is a state that nobody knows.
fn settled() -> RolloutState {
    RolloutState::from("Stable")
}

fn version(number: u32) -> VersionedDigest {
    VersionedDigest {
        version: number,
        digest: format!("digest-{number}"),
    }
}

fn policy(strategy: Moves) -> Policy {
    Policy {
        strategy,
        analysis: None,
        progress_deadline_seconds: 600,
        auto_rollback: true,
        lease_seconds: 120,
    }
}

fn canary() -> Moves {
    Moves::Canary(vec![
        Step::SetWeight(10),
        Step::Pause(Some(60)),
        Step::SetWeight(50),
        Step::Pause(None),
    ])
}

fn judged(mut policy: Policy, failure_limit: u32) -> Policy {
    policy.analysis = Some(Analysis {
        interval_seconds: 10,
        minimum_requests: 50,
        rules: vec![Rule {
            metric: Metric::ErrorRate,
            limit: Limit::Maximum(0.01),
        }],
        failure_limit,
    });
    policy
}

fn judgement(verdict: &Verdict) -> Judgement {
    let failed = *verdict == Verdict::Fail;
    Judgement {
        verdict: verdict.clone(),
        results: vec![AnalysisResult {
            metric: "error_rate".to_owned(),
            stable: None,
            candidate: None,
            samples: 100,
            verdict: verdict.clone(),
            message: None,
        }],
        failure: failed.then(|| {
            (
                reason::ERROR_RATE_ABOVE_LIMIT,
                "error_rate 0.08 > 0.01".to_owned(),
            )
        }),
        gap: false,
    }
}

/// A world around one adapter, in which everything is there and follows, unless said otherwise.
struct World {
    adapter: ServedAdapter,
    policy: Policy,
    wanted: Option<VersionedDigest>,
    withdrawn: Option<String>,
    rolled_back: Vec<VersionedDigest>,
    rejected: Vec<RejectedDigest>,
    settings_hash: String,
    engines: Engines,
    routers: Routers,
    judgement: Option<Judgement>,
    command: Option<EndpointCommand>,
    now: i64,
}

impl World {
    fn new(policy: Policy) -> Self {
        Self {
            adapter: ServedAdapter {
                name: "a".to_owned(),
                stable: Some(version(1)),
                ..ServedAdapter::default()
            },
            policy,
            wanted: Some(version(1)),
            withdrawn: None,
            rolled_back: Vec::new(),
            rejected: Vec::new(),
            settings_hash: HASH.to_owned(),
            engines: Engines {
                ready: 2,
                verified: 2,
                refused: None,
            },
            routers: Routers {
                ready: 1,
                acknowledged: true,
            },
            judgement: None,
            command: None,
            now: 0,
        }
    }

    fn step(&mut self) -> Option<Change> {
        let eligible: Vec<_> = (1..=5).map(version).collect();
        let wanted = self.wanted.clone().filter(|wanted| {
            !self.rejected.iter().any(|it| {
                it.digest == wanted.digest
                    && it.settings_hash.as_deref() == Some(&self.settings_hash)
            })
        });
        let inputs = Inputs {
            policy: &self.policy,
            wanted: wanted.as_ref(),
            withdrawn: self.withdrawn.as_deref(),
            eligible: &eligible,
            rolled_back: &self.rolled_back,
            rejected: &self.rejected,
            settings_hash: &self.settings_hash,
            engines: self.engines.clone(),
            routers: self.routers,
            judgement: self.judgement.as_ref(),
            command: self.command.as_ref(),
        };
        let change = step(&self.adapter, &inputs, at(self.now))?;
        if let Some(digest) = &change.forgiven {
            self.rejected.retain(|it| it.digest != *digest);
        }
        self.rejected.extend(change.rejected.clone());
        self.adapter = change.adapter.clone();
        self.judgement = None;
        self.command = None;
        Some(change)
    }

    /// Steps until nothing changes at this time.
    fn settle(&mut self) {
        for _ in 0..100 {
            if self.step().is_none() {
                return;
            }
        }
        panic!("the machine does not come to rest: {:?}", self.adapter);
    }

    fn after(&mut self, seconds: i64) -> &mut Self {
        self.now += seconds;
        self.settle();
        self
    }

    fn want(&mut self, number: u32) -> &mut Self {
        self.wanted = Some(version(number));
        self.settle();
        self
    }

    fn judge(&mut self, verdict: &Verdict) -> &mut Self {
        self.now += 10;
        self.judgement = Some(judgement(verdict));
        self.settle();
        self
    }

    fn say(&mut self, verb: EndpointVerb, number: u32) -> (AnswerOutcome, String) {
        self.command = Some(command(verb, number, None));
        let answer = self.step().unwrap().answer.unwrap();
        self.settle();
        answer
    }

    /// State, step, weight.
    fn at(&self) -> (RolloutState, u32, u32) {
        let rollout = self.adapter.rollout.as_ref();
        (
            rollout.map_or_else(settled, |rollout| rollout.state.clone()),
            rollout.map_or(0, |rollout| rollout.step),
            self.adapter
                .candidate
                .as_ref()
                .map_or(0, |candidate| candidate.weight),
        )
    }

    fn stable(&self) -> u32 {
        self.adapter
            .stable
            .as_ref()
            .map_or(0, |stable| stable.version)
    }
}

fn command(verb: EndpointVerb, number: u32, step: Option<u32>) -> EndpointCommand {
    EndpointCommand {
        id: "c".to_owned(),
        verb,
        digest: version(number).digest,
        step,
        user: "ann".to_owned(),
        reason: Some("because".to_owned()),
    }
}
