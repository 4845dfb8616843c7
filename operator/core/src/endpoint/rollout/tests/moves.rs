//! The strategies, step by step, and what ends them.

use super::*;

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
