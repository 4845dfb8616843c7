//! Candidates that are not wanted, or may not be served, any more.

use super::*;

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
