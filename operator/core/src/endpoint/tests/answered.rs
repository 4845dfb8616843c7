//! What people read of their commands when the rollout that they were about is over.

use super::*;

/// A promotion under way, which routers do not hear of.
fn promoting() -> World {
    let mut world = World::serving(&json!({}));
    world.approve(2).settle();
    world.deaf_routers = true;
    let (outcome, message) = world.say("Promote", 2);
    assert_eq!(
        (outcome, message.as_str()),
        (AnswerOutcome::Accepted, "the candidate takes over")
    );
    assert_eq!(world.state(), RolloutState::Promoting);
    world
}

fn answer(world: &World, target: &str) -> (AnswerOutcome, String) {
    let answer = world.status().answers[target].clone();
    (answer.outcome, answer.message)
}

fn reject(world: &mut World) {
    restage(world, 2, "Rejected", reason::REJECTED_BY_USER);
    world.deaf_routers = false;
    world.settle();
    assert_eq!((world.rollout(), world.stable()), (None, 1));
}

fn taken_back() -> String {
    format!(
        "v2 was taken back: version 2 of LoRAAdapter \"a\" is Rejected: {} by somebody",
        reason::REJECTED_BY_USER
    )
}

#[test]
fn a_command_that_was_accepted_says_how_its_rollout_ended() {
    let mut world = promoting();
    world.deaf_routers = false;
    world.settle();
    assert_eq!(
        answer(&world, "adapter/a"),
        (AnswerOutcome::Done, "v2 is stable".to_owned())
    );

    let mut world = promoting();
    reject(&mut world);
    let why = format!("Promote did not come about: {}", taken_back());
    assert_eq!(answer(&world, "adapter/a"), (AnswerOutcome::Failed, why));

    let mut world = promoting();
    world.now += 1;
    let (outcome, message) = world.say("Promote", 2);
    assert_eq!(outcome, AnswerOutcome::Accepted, "a second time");
    assert!(message.contains("already"), "{message}");
    reject(&mut world);
    assert_eq!(answer(&world, "adapter/a").0, AnswerOutcome::Failed);

    let mut world = promoting();
    world.now += 1;
    assert_eq!(world.say("Abort", 2).0, AnswerOutcome::Accepted);
    world.deaf_routers = false;
    world.settle();
    let back = "v2 was taken back: ann said Abort: no reason given".to_owned();
    assert_eq!(answer(&world, "adapter/a"), (AnswerOutcome::Done, back));
}

#[test]
fn what_was_done_before_its_rollout_ended_goes_on_with_the_end_once() {
    let mut world = World::serving(&json!({}));
    world.approve(2).settle();
    assert_eq!(world.say("Pause", 2).0, AnswerOutcome::Done);
    reject(&mut world);
    let held = format!("the weight is held; since then {}", taken_back());
    let expected = (AnswerOutcome::Done, held);
    assert_eq!(answer(&world, "adapter/a"), expected);
    // Another rollout of the version ends too: the command is not about that one.
    world.approve(2).settle();
    assert_eq!(world.state(), RolloutState::Paused);
    world.after(60);
    assert_eq!(world.stable(), 2);
    assert_eq!(answer(&world, "adapter/a"), expected);
}

#[test]
fn who_waits_for_an_adapter_that_left_the_spec_reads_so() {
    let mut world = promoting();
    let mut status = world.status().clone();
    let entry = json!({"name": "b", "adapterRef": {"name": "a"}});
    let command = json!({"id": "1", "verb": "Pause", "digest": digest(1), "user": "ann"});
    status.commands.insert(
        "adapter/b".to_owned(),
        serde_json::from_value(command).unwrap(),
    );
    let served = json!({"name": "b"});
    status
        .adapters
        .push(serde_json::from_value(served).unwrap());
    world.cr.status = Some(status);
    world.cr.spec.adapters.clear();
    world.deaf_routers = false;
    world.settle();
    assert!(world.status().commands.is_empty());
    let failed =
        "Promote did not come about: \"a\" left spec.adapters, and its rollout ended with that";
    let unheard = "\"b\" left spec.adapters before the command was looked at";
    for _ in 0..2 {
        assert_eq!(
            answer(&world, "adapter/a"),
            (AnswerOutcome::Failed, failed.to_owned())
        );
        assert_eq!(
            answer(&world, "adapter/b"),
            (AnswerOutcome::Refused, unheard.to_owned())
        );
        world.after(100_000);
    }
    // What comes back begins without it.
    let entry = serde_json::from_value(entry).unwrap();
    world.cr.spec.adapters.push(entry);
    world.settle();
    let left: Vec<_> = world.status().answers.keys().collect();
    assert_eq!(left, ["adapter/a"]);
}

#[test]
fn answers_of_adapters_that_left_do_not_grow_without_end() {
    let entries: Vec<_> = (0..12)
        .map(|number| json!({"name": format!("a{number}"), "adapterRef": {"name": "a"}}))
        .collect();
    let mut world = World::new(&json!({"adapters": entries}));
    world.settle();
    let status = world.cr.status.as_mut().unwrap();
    for number in 0..12 {
        let command = json!({"id": "1", "verb": "Pause", "digest": digest(7), "user": "ann"});
        status.commands.insert(
            format!("adapter/a{number}"),
            serde_json::from_value(command).unwrap(),
        );
    }
    world.settle();
    assert_eq!(world.status().answers.len(), 12);
    world.cr.spec.adapters.clear();
    world.settle();
    assert_eq!(world.status().answers.len(), 10);
}

#[test]
fn a_rollout_that_somebody_wrote_away_leaves_no_command_without_an_end() {
    for (stable, outcome, part) in [
        (1, AnswerOutcome::Failed, "not under way any more"),
        (2, AnswerOutcome::Done, "v2 is stable"),
    ] {
        let mut world = promoting();
        let adapter = &mut world.cr.status.as_mut().unwrap().adapters[0];
        adapter.rollout = None;
        adapter.candidate = None;
        adapter.stable = Some(graftwork_api::VersionedDigest {
            version: stable,
            digest: digest(stable),
        });
        // Nothing is to be tried again.
        world.approve(stable);
        world.deaf_routers = false;
        world.settle();
        let (is, message) = answer(&world, "adapter/a");
        assert_eq!(is, outcome, "{message}");
        assert!(message.contains(part), "{message}");
    }
}
