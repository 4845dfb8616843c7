//! The machine step by step, and properties that hold for any course of events.

use graftwork_api::conditions::reason;
use graftwork_api::lora_adapter::Verdict;
use graftwork_api::serving_endpoint::{
    AnalysisResult, Candidate, EndpointVerb, PausedBy, RolloutState,
};
use proptest::prelude::*;

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

#[test]
fn a_canary_climbs_waits_for_a_person_and_takes_over() {
    let mut world = World::new(policy(canary()));
    world.engines.verified = 1;
    world.want(2);
    assert_eq!(world.at(), (RolloutState::Preparing, 0, 0));
    world.engines.verified = 2;
    world.routers.acknowledged = false;
    world.after(1);
    assert_eq!(
        world.at(),
        (RolloutState::Preparing, 0, 0),
        "routers have not followed"
    );
    world.routers.acknowledged = true;
    world.step();
    assert_eq!(world.at(), (RolloutState::Stepping, 0, 10));
    world.routers.acknowledged = false;
    world.after(30);
    assert_eq!(
        world.at(),
        (RolloutState::Stepping, 0, 10),
        "a step counts once routers follow"
    );
    world.routers.acknowledged = true;
    world.after(0);
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    world.after(59);
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    world.after(1);
    assert_eq!(world.at(), (RolloutState::Paused, 3, 50));
    world.after(1_000_000);
    assert_eq!(
        world.at(),
        (RolloutState::Paused, 3, 50),
        "an open pause waits for a person"
    );
    assert_eq!(world.say(EndpointVerb::Resume, 2).0, AnswerOutcome::Done);
    assert_eq!((world.at().0, world.stable()), (settled(), 2));
    assert_eq!(world.adapter.candidate, None);
}

#[test]
fn the_first_version_takes_no_steps() {
    let mut world = World::new(policy(canary()));
    world.adapter.stable = None;
    world.engines = Engines::default();
    world.want(1).after(100_000);
    assert_eq!(
        world.at().0,
        RolloutState::Preparing,
        "there is nothing to go back to: no deadline"
    );
    world.engines = Engines {
        ready: 1,
        verified: 1,
        refused: None,
    };
    world.after(1);
    assert_eq!((world.at().0, world.stable()), (settled(), 1));
}

#[test]
fn blue_green_previews_switches_and_keeps_the_old_version_for_a_while() {
    let moves = |auto_promote| Moves::BlueGreen {
        auto_promote,
        preview_seconds: 60,
        delay_seconds: 30,
    };
    let mut world = World::new(policy(moves(true)));
    world.want(2);
    assert_eq!(world.at(), (RolloutState::Paused, 0, 0));
    world.after(59);
    assert_eq!(world.at(), (RolloutState::Paused, 0, 0));
    world.after(1);
    assert_eq!(world.at().2, 100);
    assert_eq!(world.at().0, RolloutState::Promoting);
    world.after(29);
    assert_eq!((world.at().0, world.stable()), (RolloutState::Promoting, 1));
    world.after(1);
    assert_eq!((world.at().0, world.stable()), (settled(), 2));

    let mut world = World::new(policy(moves(false)));
    world.want(2).after(1_000_000);
    assert_eq!(
        world.at(),
        (RolloutState::Paused, 0, 0),
        "somebody has to say Promote"
    );
    assert_eq!(
        world.say(EndpointVerb::Promote, 2).0,
        AnswerOutcome::Accepted
    );
    world.after(30);
    assert_eq!(world.stable(), 2);
}

#[test]
fn immediate_moves_everybody_once_engines_have_it() {
    let mut world = World::new(policy(Moves::Immediate));
    world.routers.acknowledged = false;
    world.want(2);
    assert_eq!(world.at(), (RolloutState::Preparing, 0, 0));
    world.routers.acknowledged = true;
    world.after(1);
    assert_eq!((world.at().0, world.stable()), (settled(), 2));
}

#[test]
fn a_failed_judgement_takes_the_candidate_back_and_it_is_not_tried_again() {
    let mut world = World::new(judged(policy(canary()), 0));
    world.want(2);
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    world.routers.acknowledged = false;
    world.judge(&Verdict::Fail);
    assert_eq!(
        world.at(),
        (RolloutState::RollingBack, 1, 0),
        "nobody is waited for"
    );
    world.routers.acknowledged = true;
    world.after(1);
    assert_eq!(
        (world.at().0, world.stable()),
        (RolloutState::RolledBack, 1)
    );
    let rollout = world.adapter.rollout.clone().unwrap();
    assert_eq!(
        rollout.reason.as_deref(),
        Some(reason::ERROR_RATE_ABOVE_LIMIT)
    );
    assert_eq!(
        rollout.message.as_deref(),
        Some("v2: error_rate 0.08 > 0.01")
    );
    assert_eq!(world.rejected[0].digest, version(2).digest);
    world.after(1_000_000);
    assert_eq!(world.at().0, RolloutState::RolledBack);
    world.want(3);
    assert_eq!(
        world.at(),
        (RolloutState::Paused, 1, 10),
        "another digest is"
    );
}

#[test]
fn a_rejected_version_comes_back_by_retry_or_by_other_settings() {
    let rolled_back = || {
        let mut world = World::new(judged(policy(canary()), 0));
        world.want(2).judge(&Verdict::Fail);
        assert_eq!(world.at().0, RolloutState::RolledBack);
        world
    };
    let mut world = rolled_back();
    assert_eq!(
        world.say(EndpointVerb::Retry, 3).0,
        AnswerOutcome::Refused,
        "v3 was not rejected"
    );
    world.want(1);
    assert_eq!(world.say(EndpointVerb::Retry, 2).0, AnswerOutcome::Accepted);
    assert_eq!(
        world.at(),
        (RolloutState::Paused, 1, 10),
        "though v1 is what the spec names"
    );
    let mut world = rolled_back();
    world.settings_hash = "other".to_owned();
    world.settle();
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    let mut world = rolled_back();
    world.settings_hash = "other".to_owned();
    world.want(1);
    assert_eq!(
        world.at().0,
        settled(),
        "the spec names the stable version: all is well"
    );
}

#[test]
fn too_little_evidence_holds() {
    let mut world = World::new(judged(policy(canary()), 0));
    world.want(2).after(100_000);
    assert_eq!(
        world.at(),
        (RolloutState::Paused, 1, 10),
        "no judgement is no Pass"
    );
    world.judge(&Verdict::Inconclusive).after(100_000);
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    world.judge(&Verdict::Pass);
    assert_eq!(world.at(), (RolloutState::Paused, 3, 50));
    world.say(EndpointVerb::Resume, 2);
    assert_eq!(
        world.at(),
        (RolloutState::Stepping, 3, 50),
        "a Pass at 10 % says nothing about 50 %"
    );
    world.judge(&Verdict::Pass);
    assert_eq!(world.stable(), 2);
}

#[test]
fn a_gap_starts_the_window_anew() {
    let mut world = World::new(judged(policy(canary()), 0));
    world.want(2).after(60);
    world.judgement = Some(Judgement {
        gap: true,
        ..judgement(&Verdict::Inconclusive)
    });
    world.settle();
    let rollout = world.adapter.rollout.clone().unwrap();
    assert_eq!(
        rollout.window_since,
        Some(graftwork_api::Time(at(world.now)))
    );
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
}

#[test]
fn failures_up_to_the_limit_are_tolerated() {
    let mut world = World::new(judged(policy(canary()), 1));
    world.want(2).judge(&Verdict::Fail);
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    world.judge(&Verdict::Pass).judge(&Verdict::Fail);
    assert_eq!(world.at().0, RolloutState::RolledBack);
}

#[test]
fn without_automatic_rollback_a_person_decides() {
    let mut world = World::new(judged(policy(canary()), 0));
    world.policy.auto_rollback = false;
    world
        .want(2)
        .judge(&Verdict::Fail)
        .judge(&Verdict::Fail)
        .after(100_000);
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    assert_eq!(
        world.adapter.rollout.as_ref().unwrap().paused_by,
        Some(PausedBy::Analysis)
    );
    world.say(EndpointVerb::Resume, 2);
    assert_eq!(world.adapter.rollout.as_ref().unwrap().failures, 0);
    world.judge(&Verdict::Pass);
    assert_eq!(world.at(), (RolloutState::Paused, 3, 50));
    assert_eq!(world.say(EndpointVerb::Abort, 2).0, AnswerOutcome::Accepted);
    assert_eq!(world.at().0, RolloutState::RolledBack);
    assert_eq!(world.rejected[0].reason, reason::ABORTED_BY_USER);
}

#[test]
fn a_bad_version_is_taken_back_while_it_takes_over() {
    let moves = Moves::BlueGreen {
        auto_promote: false,
        preview_seconds: 0,
        delay_seconds: 300,
    };
    let mut world = World::new(judged(policy(moves), 0));
    world.want(2);
    world.say(EndpointVerb::Promote, 2);
    assert_eq!(world.at(), (RolloutState::Promoting, 0, 100));
    world.judge(&Verdict::Fail);
    assert_eq!(
        (world.at().0, world.stable()),
        (RolloutState::RolledBack, 1)
    );
}

#[test]
fn what_does_not_get_ready_in_time_is_given_up() {
    let mut world = World::new(policy(canary()));
    world.engines.verified = 1;
    world.want(2).after(599);
    assert_eq!(world.at().0, RolloutState::Preparing);
    world.after(1);
    assert_eq!(world.at().0, RolloutState::RolledBack);
    assert_eq!(world.rejected[0].reason, reason::PROGRESS_DEADLINE_EXCEEDED);
    assert!(
        world.rejected[0]
            .message
            .starts_with("1 of 2 ready engines"),
        "{:?}",
        world.rejected
    );

    let mut world = World::new(policy(canary()));
    world.engines = Engines::default();
    world.want(2).after(100_000);
    assert_eq!(
        world.at().0,
        RolloutState::Preparing,
        "engines that are not there are not the version's fault"
    );
}

#[test]
fn an_engine_that_refuses_ends_it() {
    let mut world = World::new(policy(canary()));
    world.engines = Engines {
        ready: 2,
        verified: 1,
        refused: Some(Problem {
            reason: "AdapterInvalid".to_owned(),
            message: "rank 0".to_owned(),
        }),
    };
    world.want(2);
    assert_eq!(world.at().0, RolloutState::RolledBack);
    assert_eq!(
        world.rejected[0].message,
        "an engine refused v2: AdapterInvalid: rank 0"
    );
}

#[test]
fn a_version_that_is_not_wanted_any_more_goes_without_blame() {
    let mut world = World::new(policy(canary()));
    world.want(2).want(1);
    assert_eq!((world.at().0, world.stable()), (settled(), 1));
    assert_eq!(world.rejected, []);
    world.want(2).want(3);
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    assert_eq!(world.adapter.candidate.as_ref().unwrap().version, 3);
    world.wanted = None;
    world.after(1);
    assert_eq!(
        world.at(),
        (RolloutState::Paused, 1, 10),
        "nothing else is wanted, and the candidate may be served: it goes on"
    );
}

#[test]
#[expect(clippy::type_complexity, reason = "a table of names and moves")]
fn a_version_that_may_not_be_served_any_more_is_taken_back_from_every_state() {
    let blue_green = Moves::BlueGreen {
        auto_promote: false,
        preview_seconds: 0,
        delay_seconds: 300,
    };
    let under_way: [(RolloutState, fn(&mut World)); 5] = [
        (RolloutState::Preparing, |world| {
            world.engines.verified = 1;
            world.want(2);
        }),
        (RolloutState::Stepping, |world| {
            world.want(2);
            world.routers.acknowledged = false;
            world.say(EndpointVerb::Resume, 2);
        }),
        (RolloutState::Paused, |world| {
            world.want(2);
        }),
        (RolloutState::Promoting, |world| {
            world.want(2);
            world.routers.acknowledged = false;
            world.say(EndpointVerb::Promote, 2);
        }),
        // Begun by a person, to an older version.
        (RolloutState::Paused, |world| {
            world.adapter.stable = Some(version(3));
            world.want(3);
            world.say(EndpointVerb::Rollback, 2);
        }),
    ];
    for (index, (state, begin)) in under_way.into_iter().enumerate() {
        // Whether spec and adapter name it, name another version, or nothing that may be served.
        for wanted in [None, Some(version(2)), Some(version(1))] {
            let mut world = World::new(policy(blue_green.clone()));
            begin(&mut world);
            assert_eq!(world.at().0, state, "case {index}");
            let stable = world.stable();
            world.routers.acknowledged = false;
            world.wanted = wanted;
            world.withdrawn = Some("version 2 is Rejected: rejected by ann".to_owned());
            let change = world.step().unwrap();
            assert_eq!((world.at().0, world.at().2), (RolloutState::RollingBack, 0));
            let rollout = change.adapter.rollout.unwrap();
            assert_eq!(rollout.reason.as_deref(), Some(reason::CANDIDATE_WITHDRAWN));
            let message = rollout.message.unwrap();
            assert!(message.contains("rejected by ann"), "{message}");
            world.wanted = None;
            world.routers.acknowledged = true;
            world.withdrawn = None;
            world.settle();
            assert_eq!((world.at().0, world.stable()), (settled(), stable));
        }
    }
}

#[test]
fn nobody_promotes_what_may_not_be_served_any_more() {
    let mut world = World::new(policy(canary()));
    world.want(2);
    world.wanted = None;
    world.withdrawn = Some("version 2 is Rejected: rejected by ann".to_owned());
    let (outcome, message) = world.say(EndpointVerb::Promote, 2);
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.contains("rejected by ann"), "{message}");
    assert_eq!(world.stable(), 1);
}

#[test]
fn commands_that_come_late_are_refused() {
    let mut world = World::new(policy(canary()));
    for verb in [
        EndpointVerb::Promote,
        EndpointVerb::Abort,
        EndpointVerb::Pause,
        EndpointVerb::Resume,
    ] {
        let (outcome, message) = world.say(verb, 2);
        assert_eq!(
            (outcome, message.as_str()),
            (AnswerOutcome::Refused, "no rollout is under way")
        );
    }
    world.want(2);
    let before = world.adapter.clone();
    for (given, part) in [
        (
            command(EndpointVerb::Promote, 3, None),
            "the candidate is v2",
        ),
        (
            command(EndpointVerb::Promote, 2, Some(0)),
            "at step 1, not 0",
        ),
        (command(EndpointVerb::Retry, 2, None), "under way"),
        (command(EndpointVerb::Rollback, 1, None), "under way"),
        (
            command(EndpointVerb::from("Explode"), 2, None),
            "\"Explode\" is not known",
        ),
    ] {
        world.command = Some(given);
        let change = world.step().unwrap();
        let (outcome, message) = change.answer.unwrap();
        assert_eq!(outcome, AnswerOutcome::Refused);
        assert!(message.contains(part), "{message}");
        assert_eq!(world.adapter, before, "nothing changed");
    }
    assert_eq!(world.say(EndpointVerb::Pause, 2).0, AnswerOutcome::Done);
    assert_eq!(
        world.adapter.rollout.as_ref().unwrap().paused_by,
        Some(PausedBy::Command)
    );
}

#[test]
fn a_persons_pause_holds_and_the_steps_own_pause_runs_on_meanwhile() {
    let mut world = World::new(policy(canary()));
    world.want(2).after(30);
    world.say(EndpointVerb::Pause, 2);
    world.after(100_000);
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    world.say(EndpointVerb::Resume, 2);
    assert_eq!(
        world.at(),
        (RolloutState::Paused, 3, 50),
        "60 seconds at 10 % have passed"
    );
}

#[test]
fn promote_waits_for_engines_only() {
    let mut world = World::new(judged(policy(canary()), 0));
    world.want(2);
    world.engines.verified = 1;
    let (outcome, message) = world.say(EndpointVerb::Promote, 2);
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.starts_with("1 of 2 ready engines"), "{message}");
    world.engines.verified = 2;
    assert_eq!(
        world.say(EndpointVerb::Promote, 2).0,
        AnswerOutcome::Accepted
    );
    assert_eq!(world.stable(), 2);
}

#[test]
fn rollback_goes_to_an_older_version_and_stays_there() {
    let mut world = World::new(policy(Moves::Immediate));
    world.adapter.stable = Some(version(4));
    world.want(4);
    for (number, part) in [(4, "stable already"), (5, "not older"), (9, "no version")] {
        let (outcome, message) = world.say(EndpointVerb::Rollback, number);
        assert_eq!(outcome, AnswerOutcome::Refused);
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(
        world.say(EndpointVerb::Rollback, 2).0,
        AnswerOutcome::Accepted
    );
    assert_eq!((world.at().0, world.stable()), (settled(), 2));
    assert_eq!(world.rejected[0].digest, version(4).digest);
    world.after(100_000);
    assert_eq!(
        world.stable(),
        2,
        "v4 is still wanted and not followed again"
    );
    world.want(5);
    assert_eq!(world.stable(), 5);
}

#[test]
fn a_clock_that_goes_back_shortens_nothing() {
    let mut world = World::new(policy(canary()));
    world.now = 1000;
    world.want(2);
    world.now = 0;
    world.settle();
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    world.after(1059);
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    world.after(1);
    assert_eq!(world.at(), (RolloutState::Paused, 3, 50));
}

#[test]
fn other_steps_are_taken_from_where_it_stands() {
    let mut world = World::new(policy(canary()));
    world.want(2);
    world.policy = policy(Moves::Canary(vec![
        Step::SetWeight(5),
        Step::SetWeight(30),
        Step::Pause(None),
    ]));
    world.settle();
    assert_eq!(world.at(), (RolloutState::Paused, 2, 30));
    world.policy = policy(Moves::Canary(vec![Step::SetWeight(20)]));
    world.settle();
    assert_eq!(world.stable(), 2, "past the last step it takes over");
}

fn verdicts() -> impl proptest::strategy::Strategy<Value = Option<Verdict>> {
    prop_oneof![
        Just(None),
        Just(Some(Verdict::Pass)),
        Just(Some(Verdict::Fail)),
        Just(Some(Verdict::Inconclusive)),
    ]
}

fn verbs() -> impl proptest::strategy::Strategy<Value = Option<(EndpointVerb, u32)>> {
    let verb = prop_oneof![
        Just(EndpointVerb::Promote),
        Just(EndpointVerb::Abort),
        Just(EndpointVerb::Pause),
        Just(EndpointVerb::Resume),
        Just(EndpointVerb::Retry),
        Just(EndpointVerb::Rollback),
    ];
    prop_oneof![4 => Just(None), 1 => (verb, 1_u32..5).prop_map(Some)]
}

fn strategies() -> impl proptest::strategy::Strategy<Value = Moves> {
    prop_oneof![
        Just(canary()),
        Just(Moves::Canary(vec![
            Step::SetWeight(5),
            Step::SetWeight(100)
        ])),
        (any::<bool>(), 0_u64..100, 0_u64..100).prop_map(
            |(auto_promote, preview_seconds, delay_seconds)| {
                Moves::BlueGreen {
                    auto_promote,
                    preview_seconds,
                    delay_seconds,
                }
            }
        ),
        Just(Moves::Immediate),
    ]
}

/// Any persisted facts, also such as no run of the machine leaves behind.
fn facts() -> impl proptest::strategy::Strategy<Value = ServedAdapter> {
    let state = prop_oneof![
        Just(settled()),
        Just(RolloutState::Preparing),
        Just(RolloutState::Stepping),
        Just(RolloutState::Paused),
        Just(RolloutState::Promoting),
        Just(RolloutState::RollingBack),
        Just(RolloutState::RolledBack),
        Just(RolloutState::from("Unheard")),
    ];
    let by = prop_oneof![
        Just(None),
        Just(Some(PausedBy::Step)),
        Just(Some(PausedBy::Command)),
        Just(Some(PausedBy::Analysis)),
    ];
    let rollout = (state, 0_u32..6, 0_i64..500, by, 0_u32..3, any::<bool>()).prop_map(
        |(state, step, since, paused_by, failures, timed)| {
            graftwork_api::serving_endpoint::AdapterRollout {
                state,
                step,
                since: graftwork_api::Time(at(since)),
                step_since: timed.then(|| graftwork_api::Time(at(since))),
                paused_by,
                commanded: timed,
                failures,
                window_since: timed.then(|| graftwork_api::Time(at(since))),
                last_analysis_time: None,
                salt: None,
                reason: None,
                message: None,
                analysis: Vec::new(),
            }
        },
    );
    (
        proptest::option::of(1_u32..5),
        proptest::option::of((1_u32..5, 0_u32..=100)),
        proptest::option::of(rollout),
    )
        .prop_map(|(stable, candidate, rollout)| ServedAdapter {
            name: "a".to_owned(),
            stable: stable.map(version),
            candidate: candidate.map(|(number, weight)| Candidate {
                version: number,
                digest: version(number).digest,
                weight,
            }),
            rollout,
            ..ServedAdapter::default()
        })
}

#[derive(Debug, Clone)]
struct Moment {
    seconds: i64,
    ready: usize,
    missing: usize,
    routers: Routers,
    verdict: Option<Verdict>,
    verb: Option<(EndpointVerb, u32)>,
    wanted: Option<u32>,
    withdrawn: bool,
}

fn moments() -> impl proptest::strategy::Strategy<Value = Vec<Moment>> {
    let moment = (
        0_i64..200,
        0_usize..3,
        0_usize..3,
        0_usize..3,
        any::<bool>(),
        verdicts(),
        verbs(),
        proptest::option::of(1_u32..5),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(seconds, ready, missing, routers, acknowledged, verdict, verb, wanted, withdrawn)| {
                Moment {
                    seconds,
                    ready,
                    missing,
                    routers: Routers {
                        ready: routers,
                        acknowledged: acknowledged && routers > 0,
                    },
                    verdict,
                    verb,
                    wanted,
                    withdrawn,
                }
            },
        );
    proptest::collection::vec(moment, 1..40)
}

proptest! {
    /// Whatever happens: traffic only ever goes to what every ready engine has, a rejected version is
    /// begun by a person only, a failed judgement beyond the limit ends the rollout, times never run
    /// backwards.
    #[test]
    fn no_course_of_events_breaks_the_rules(
        strategy in strategies(),
        start in facts(),
        moments in moments(),
        limit in 0_u32..2,
    ) {
        let mut world = World::new(judged(policy(strategy), limit));
        world.adapter = start;
        for moment in moments {
            world.now += moment.seconds;
            world.engines = Engines {
                ready: moment.ready,
                verified: moment.ready.saturating_sub(moment.missing),
                refused: None,
            };
            world.routers = moment.routers;
            world.judgement = moment.verdict.as_ref().map(judgement);
            world.command = moment.verb.clone().map(|(verb, number)| command(verb, number, None));
            world.wanted = moment.wanted.map(version);
            world.withdrawn = moment.withdrawn.then(|| "rejected by ann".to_owned());
            let before = world.adapter.clone();
            let barred: Vec<String> = world.rejected.iter().map(|it| it.digest.clone()).collect();
            let failing = moment.verdict == Some(Verdict::Fail);
            let Some(change) = world.step() else { continue };
            let weight = |it: &ServedAdapter| it.candidate.as_ref().map_or(0, |it| it.weight);
            let after = &change.adapter;
            if moment.withdrawn && before.candidate.is_some() {
                prop_assert!(weight(after) <= weight(&before), "more traffic to what was withdrawn");
                prop_assert!(
                    after.stable == before.stable,
                    "what was withdrawn took over: {after:?}"
                );
            }
            if weight(after) > weight(&before) {
                prop_assert!(world.engines.have_candidate(), "traffic to engines that lack it");
                prop_assert!(world.routers.ready > 0);
                let commanded = matches!(moment.verb, Some((EndpointVerb::Promote, _)));
                prop_assert!(world.routers.acknowledged || commanded);
            }
            let begun = after.candidate.as_ref().filter(|candidate| {
                before.candidate.as_ref().is_none_or(|known| known.digest != candidate.digest)
            });
            if let Some(begun) = begun {
                let commanded = matches!(
                    moment.verb,
                    Some((EndpointVerb::Retry | EndpointVerb::Rollback, _))
                );
                prop_assert!(!barred.contains(&begun.digest) || commanded);
                prop_assert_eq!(begun.weight, 0);
            }
            let refused = change.answer.as_ref().is_some_and(|(outcome, _)| *outcome == AnswerOutcome::Refused);
            if refused {
                prop_assert_eq!(&before, after);
            }
            if let (Some(old), Some(new)) = (&before.rollout, &after.rollout) {
                prop_assert!(new.since.0 >= old.since.0 || old.since.0 > at(world.now));
                let judged = failing && moment.verb.is_none() && new.failures > old.failures;
                if judged && new.failures > limit {
                    prop_assert_eq!(&new.state, &RolloutState::RollingBack);
                    prop_assert_eq!(weight(after), 0);
                }
            }
            if after.candidate.is_none() && !refused {
                let state = after.rollout.as_ref().map(|rollout| &rollout.state);
                prop_assert!(state.is_none() || state == Some(&RolloutState::RolledBack));
            }
        }
    }

    /// From any facts, in a world that holds still, the machine comes to rest and then writes no more.
    #[test]
    fn every_start_comes_to_rest(
        strategy in strategies(),
        start in facts(),
        wanted in proptest::option::of(1_u32..5),
        passes in any::<bool>(),
        good_engines in any::<bool>(),
    ) {
        let mut world = World::new(judged(policy(strategy), 0));
        world.adapter = start;
        world.now = 1000;
        world.wanted = wanted.map(version);
        if !good_engines {
            world.engines.verified = 1;
        }
        for _ in 0..300 {
            world.now += 60;
            let open = world.adapter.candidate.is_some();
            world.judgement = (open && passes).then(|| judgement(&Verdict::Pass));
            world.settle();
        }
        let rested = world.adapter.clone();
        world.now += 100_000;
        world.judgement = None;
        prop_assert_eq!(world.step(), None);
        let under_way = rested.rollout.as_ref().is_some_and(|rollout| is_active(&rollout.state));
        let held = rested.rollout.as_ref().is_some_and(|rollout| {
            matches!(rollout.state, RolloutState::Paused | RolloutState::Stepping)
                || (rollout.state == RolloutState::Preparing && rested.stable.is_none())
                || (rollout.state == RolloutState::Promoting && !good_engines)
        });
        prop_assert!(!under_way || held, "{rested:?}");
        if let (Some(wanted), true, true) = (wanted, passes, good_engines && !under_way) {
            let rejected = !world.rejected.is_empty();
            prop_assert!(rejected || rested.stable == Some(version(wanted)));
        }
    }
}
