//! What the analysis says, and what follows from it.

use super::*;

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
fn what_the_ledger_has_as_rolled_back_comes_back_by_retry_though_the_endpoints_own_list_is_gone() {
    let mut world = World::new(policy(canary()));
    assert_eq!(world.say(EndpointVerb::Retry, 2).0, AnswerOutcome::Refused);
    world.rolled_back = vec![version(2)];
    assert_eq!(world.say(EndpointVerb::Retry, 3).0, AnswerOutcome::Refused);
    assert_eq!(world.say(EndpointVerb::Retry, 2).0, AnswerOutcome::Accepted);
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
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
fn a_version_that_took_over_in_the_end_is_not_among_the_rejected() {
    let mut world = World::new(judged(policy(canary()), 0));
    world.want(2).judge(&Verdict::Fail);
    assert_eq!(world.rejected.len(), 1);
    world.settings_hash = "other".to_owned();
    world.policy = policy(Moves::Immediate);
    world.settle();
    assert_eq!((world.stable(), world.rejected.len()), (2, 0));
}

#[test]
fn a_window_of_a_clock_that_was_ahead_begins_anew() {
    let mut world = World::new(judged(policy(canary()), 0));
    world.now = 1000;
    world.want(2);
    world.now = 0;
    world.judge(&Verdict::Pass);
    let rollout = world.adapter.rollout.clone().unwrap();
    assert_eq!(rollout.window_since, Some(graftwork_api::Time(at(10))));
    assert_eq!(
        world.at(),
        (RolloutState::Paused, 1, 10),
        "nothing is promoted"
    );
}
