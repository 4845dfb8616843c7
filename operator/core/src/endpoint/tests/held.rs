//! A spec that can't be acted on: what people say is answered all the same.

use super::*;

fn unanswered(world: &mut World, verb: &str, number: u32) {
    let status = world.cr.status.as_mut().unwrap();
    let command = json!({"id": verb, "verb": verb, "digest": digest(number), "user": "ann"});
    let command = serde_json::from_value(command).unwrap();
    status.commands.insert("adapter/a".to_owned(), command);
}

#[test]
fn commands_are_refused_while_the_spec_cannot_be_acted_on_with_the_field_that_is_wrong() {
    for (verb, number) in [("Promote", 2), ("Abort", 2), ("Rollback", 1), ("Retry", 2)] {
        let mut world = World::serving(&json!({}));
        world.approve(2).settle();
        world.cr.spec.engine.compute_profile = "moon".to_owned();
        let (outcome, message) = world.say(verb, number);
        assert_eq!(outcome, AnswerOutcome::Refused, "{verb}");
        for part in ["spec.engine.computeProfile", "moon"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(world.stable(), 1, "{verb}");
        assert_eq!(world.status().rejected, [], "{verb}: nobody is blamed");
    }
}

#[test]
fn commands_are_refused_while_a_child_is_somebody_elses() {
    let mut world = World::serving(&json!({}));
    world.observed.service = Found::Foreign;
    let (outcome, message) = world.say("Pause", 1);
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.contains("Service assistants"), "{message}");
}

#[test]
fn the_next_command_is_taken_once_the_spec_is_mended() {
    let mut world = World::serving(&json!({}));
    world.cr.spec.engine.compute_profile = "moon".to_owned();
    world.settle();
    unanswered(&mut world, "Promote", 2);
    assert!(world.carry_out(), "the refusal is a decision");
    let answer = world.status().answers["adapter/a"].clone();
    assert_eq!(answer.id, "Promote");
    world.settle();
    assert_eq!(
        world.status().answers["adapter/a"],
        answer,
        "it is refused once"
    );
    world.cr.spec.engine.compute_profile = "default".to_owned();
    world.approve(2).settle();
    let (outcome, _) = world.say("Pause", 2);
    assert_eq!(outcome, AnswerOutcome::Done);
}
