//! What people say about a rollout.

use super::*;

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
fn resume_says_whether_the_steps_own_pause_goes_on() {
    let mut world = World::new(policy(canary()));
    world.want(2).after(20);
    world.say(EndpointVerb::Pause, 2);
    world.after(10);
    assert_eq!(
        world.say(EndpointVerb::Resume, 2).1,
        "that pause is over; the one of step 1 itself goes on for another 30 s"
    );
    assert_eq!(world.at(), (RolloutState::Paused, 1, 10));
    world.after(30);
    assert_eq!(world.at(), (RolloutState::Paused, 3, 50));
    world.say(EndpointVerb::Pause, 2);
    assert_eq!(
        world.say(EndpointVerb::Resume, 2).1,
        "that pause is over; the one of step 3 itself goes on until somebody says Resume or Promote"
    );
    assert_eq!(world.at(), (RolloutState::Paused, 3, 50));
    assert_eq!(world.say(EndpointVerb::Resume, 2).1, "the pause is over");
    assert_eq!(world.stable(), 2);
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
fn a_rollback_that_is_aborted_leaves_nothing_against_the_version_that_stays() {
    let mut world = World::new(policy(canary()));
    world.adapter.stable = Some(version(4));
    world.want(4);
    world.say(EndpointVerb::Rollback, 2);
    assert_eq!(world.rejected[0].digest, version(4).digest);
    world.say(EndpointVerb::Abort, 2);
    let left: Vec<&str> = world.rejected.iter().map(|it| it.digest.as_str()).collect();
    assert_eq!((left, world.stable()), (vec!["digest-2"], 4));
}

#[test]
fn an_older_version_that_is_tried_again_is_left_by_nobody_either() {
    let mut world = World::new(policy(canary()));
    world.adapter.stable = Some(version(4));
    world.want(4);
    world.say(EndpointVerb::Rollback, 2);
    world.say(EndpointVerb::Abort, 2);
    let (outcome, _) = world.say(EndpointVerb::Retry, 2);
    assert_eq!(outcome, AnswerOutcome::Accepted);
    let left = &world.rejected[0];
    assert_eq!(left.digest, version(4).digest);
    assert!(left.message.contains("said Retry of v2"), "{left:?}");
    world.say(EndpointVerb::Promote, 2);
    world.after(100_000);
    assert_eq!((world.at().0, world.stable()), (settled(), 2));
}

#[test]
fn nobody_retries_what_is_stable() {
    let mut world = World::new(policy(canary()));
    world.rolled_back = vec![version(1)];
    let (outcome, message) = world.say(EndpointVerb::Retry, 1);
    assert_eq!(
        (outcome, message.as_str()),
        (AnswerOutcome::Refused, "v1 is stable already")
    );
}
