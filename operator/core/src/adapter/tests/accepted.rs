//! What was accepted is carried out once, whatever is said after it; and everything is answered.

use graftwork_api::lora_adapter::AdapterCommand;

use super::*;

const APPROVED: &str = "adapters/topics/versions/1/approved.json";
const REJECTED: &str = "adapters/topics/versions/1/rejected.json";
const TARGET: &str = "version/1";

fn command(id: &str, verb: &str, user: &str) -> AdapterCommand {
    serde_json::from_value(json!({
        "id": id, "verb": verb, "digest": digest("one"), "user": user, "reason": "looked at it",
    }))
    .unwrap()
}

/// Version 1 waits for a person.
fn waiting() -> World {
    let mut gate = minimum("0.3");
    gate["approval"] = json!("Manual");
    let mut world = World::new(&gate);
    world.publish_run("one", 0.5, None);
    world.settle();
    world
}

/// Without a look.
fn write(world: &mut World, id: &str, verb: &str, user: &str) {
    let status = world.cr.status.as_mut().unwrap();
    let command = command(id, verb, user);
    status.commands.insert(TARGET.to_owned(), command);
}

/// The answer is written, and nothing else is done.
fn decide(world: &mut World) {
    world.observe();
    let Plan::Decide(decision) = world.plan() else {
        panic!("an answer is to be written down")
    };
    world.cr.status = Some(decision.status);
}

fn answer(world: &World) -> (&str, AnswerOutcome) {
    let answer = &world.status().answers[TARGET];
    (answer.id.as_str(), answer.outcome.clone())
}

/// What the record says of who decided.
fn by(world: &World, path: &str) -> String {
    let record: Value = serde_json::from_slice(&world.records[path]).unwrap();
    record["by"].as_str().unwrap().to_owned()
}

#[test]
fn an_accepted_verdict_is_carried_out_though_a_newer_command_took_its_place() {
    for (first, second, records, outcome) in [
        ("Approve", "Approve", &[APPROVED][..], "Done"),
        ("Reject", "Approve", &[REJECTED][..], "Refused"),
        ("Approve", "Explode", &[APPROVED][..], "Refused"),
    ] {
        let case = format!("{second} over {first}");
        let mut world = waiting();
        write(&mut world, "1", first, "ann");
        decide(&mut world);
        assert_eq!(answer(&world), ("1", AnswerOutcome::Accepted), "{case}");
        write(&mut world, "2", second, "bob");
        world.settle();
        let (id, got) = answer(&world);
        assert_eq!((id, got.as_str()), ("2", outcome), "{case}");
        assert_eq!(by(&world, records[0]), "ann", "{case}");
        for path in [APPROVED, REJECTED] {
            let there = world.records.contains_key(path);
            assert_eq!(there, records.contains(&path), "{case}: {path}");
        }
        assert!(world.status().accepted.is_empty(), "{case}");
    }
}

#[test]
fn a_reject_ends_an_accepted_approve_that_is_not_on_record_yet() {
    let mut world = waiting();
    write(&mut world, "1", "Approve", "ann");
    decide(&mut world);
    assert_eq!(answer(&world), ("1", AnswerOutcome::Accepted));
    write(&mut world, "2", "Reject", "bob");
    decide(&mut world);
    assert_eq!(answer(&world), ("2", AnswerOutcome::Accepted));
    assert_eq!(world.status().accepted[TARGET].id, "2", "the Approve ended");
    world.settle();
    assert_eq!(answer(&world), ("2", AnswerOutcome::Done));
    assert_eq!(by(&world, REJECTED), "bob");
    assert!(!world.records.contains_key(APPROVED));
    assert_eq!(world.status().approved, None);
    assert!(world.status().accepted.is_empty());
}

#[test]
fn a_reject_that_is_refused_leaves_the_accepted_approve_alone() {
    let mut world = waiting();
    write(&mut world, "1", "Approve", "ann");
    decide(&mut world);
    write(&mut world, "2", "Reject", "bob");
    let status = world.cr.status.as_mut().unwrap();
    status.commands.get_mut(TARGET).unwrap().digest = digest("another").as_str().to_owned();
    decide(&mut world);
    assert_eq!(answer(&world), ("2", AnswerOutcome::Refused));
    world.settle();
    assert_eq!(by(&world, APPROVED), "ann");
    assert!(!world.records.contains_key(REJECTED));
}

#[test]
fn an_accepted_verdict_is_carried_out_where_nothing_but_its_answer_says_so() {
    for (verb, path) in [("Approve", APPROVED), ("Reject", REJECTED)] {
        let mut world = waiting();
        write(&mut world, "1", verb, "ann");
        decide(&mut world);
        // An operator that kept nothing wrote the answer, or the definition drops the field.
        world.cr.status.as_mut().unwrap().accepted.clear();
        world.observe();
        assert!(
            matches!(world.plan(), Plan::Act(_)),
            "{verb}: nothing is written that can't be kept"
        );
        world.settle();
        assert_eq!(by(&world, path), "ann");
        assert_eq!(answer(&world), ("1", AnswerOutcome::Done), "{verb}");
    }
    // Another command's answer accepts nothing.
    let mut world = waiting();
    write(&mut world, "1", "Approve", "ann");
    decide(&mut world);
    let status = world.cr.status.as_mut().unwrap();
    status.accepted.clear();
    write(&mut world, "2", "Explode", "ann");
    world.settle();
    assert_eq!(answer(&world), ("2", AnswerOutcome::Refused));
    assert!(!world.records.contains_key(APPROVED));
}

#[test]
fn an_accepted_verdict_is_carried_out_though_its_command_was_taken_away() {
    let mut world = waiting();
    write(&mut world, "1", "Approve", "ann");
    decide(&mut world);
    let status = world.cr.status.as_mut().unwrap();
    status.commands.clear();
    world.settle();
    assert_eq!(by(&world, APPROVED), "ann");
    assert_eq!(world.status().approved, Some(1));
    assert!(world.status().accepted.is_empty());
    assert!(world.status().answers.is_empty(), "nobody waits for it");
}

#[test]
fn an_id_that_is_used_again_says_nothing_new() {
    let mut world = waiting();
    write(&mut world, "1", "Reject", "ann");
    decide(&mut world);
    write(&mut world, "1", "Approve", "bob");
    world.settle();
    assert_eq!(by(&world, REJECTED), "ann");
    assert!(!world.records.contains_key(APPROVED));
}

#[test]
fn only_a_reject_is_heard_while_the_keeper_owes_what_the_accepted_approve_needs() {
    for (newer, heard) in [("Approve", false), ("Reject", true)] {
        let mut world = waiting();
        write(&mut world, "1", "Approve", "ann");
        decide(&mut world);
        let base = std::mem::replace(
            &mut world.observed.base,
            Asked::Unreachable("the keeper is reading the base model".to_owned()),
        );
        write(&mut world, "2", newer, "bob");
        world.settle();
        let expected = if heard {
            ("2", AnswerOutcome::Done)
        } else {
            ("1", AnswerOutcome::Accepted)
        };
        assert_eq!(answer(&world), expected, "{newer}");
        assert!(!world.records.contains_key(APPROVED), "{newer}");
        assert_eq!(world.records.contains_key(REJECTED), heard, "{newer}");
        world.observed.base = base;
        world.settle();
        assert_eq!(answer(&world), ("2", AnswerOutcome::Done), "{newer}");
        assert_eq!(world.records.contains_key(APPROVED), !heard, "{newer}");
    }
}

#[test]
fn an_accepted_verdict_that_cannot_come_about_any_more_has_failed() {
    let mut world = waiting();
    write(&mut world, "1", "Approve", "ann");
    decide(&mut world);
    let mut gate = minimum("0.9");
    gate["approval"] = json!("Manual");
    world.cr.spec.gate = serde_json::from_value(gate).unwrap();
    world.settle();
    assert_eq!(answer(&world), ("1", AnswerOutcome::Failed));
    let message = &world.status().answers[TARGET].message;
    assert!(message.contains("minimum 0.9"), "{message}");
    // The gate that would have let it through comes back: a person says it again.
    let mut gate = minimum("0.3");
    gate["approval"] = json!("Manual");
    world.cr.spec.gate = serde_json::from_value(gate).unwrap();
    world.settle();
    assert!(!world.records.contains_key(APPROVED));

    let mut world = waiting();
    write(&mut world, "1", "Reject", "ann");
    decide(&mut world);
    world.serve(Some("one"), None);
    world.settle();
    assert_eq!(answer(&world), ("1", AnswerOutcome::Failed));
    let message = &world.status().answers[TARGET].message;
    let words = "Reject did not come about: version 1 is stable on assistants";
    assert!(message.starts_with(words), "{message}");
    assert!(!world.records.contains_key(REJECTED));
}

#[test]
fn commands_are_refused_with_the_field_while_the_spec_is_bad() {
    let bad = |world: &mut World| {
        world.cr.spec.base_model.uri = "pvc://".to_owned();
    };
    for verb in ["Approve", "Reject"] {
        let mut world = waiting();
        bad(&mut world);
        let (outcome, message) = world.say(1, verb, digest("one").as_str());
        assert_eq!(outcome, AnswerOutcome::Refused, "{verb}");
        assert!(message.contains("spec.baseModel.uri"), "{message}");
    }
    let mut world = waiting();
    world.observed.storage = Some(StorageProblem::Unavailable("the claim is lost".to_owned()));
    let (outcome, message) = world.say(1, "Approve", digest("one").as_str());
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.contains("the claim is lost"), "{message}");
    // What was accepted before is carried out afterwards.
    let mut world = waiting();
    write(&mut world, "1", "Approve", "ann");
    decide(&mut world);
    let good = world.cr.spec.base_model.uri.clone();
    bad(&mut world);
    write(&mut world, "2", "Reject", "bob");
    world.settle();
    assert_eq!(answer(&world), ("2", AnswerOutcome::Refused));
    assert!(!world.records.contains_key(APPROVED));
    world.cr.spec.base_model.uri = good;
    world.settle();
    assert_eq!(by(&world, APPROVED), "ann");
    assert!(!world.records.contains_key(REJECTED));
}

#[test]
fn an_approval_is_refused_while_the_base_model_cannot_be_had() {
    type Break = fn(&mut World);
    let breaks: [(Break, &str); 2] = [
        (
            |world| world.observed.base_claim = ClaimState::Absent,
            "PersistentVolumeClaim \"models\" does not exist",
        ),
        (
            |world| {
                world.observed.base = Asked::Answered(Err(Problem {
                    reason: reason::BASE_MODEL_NOT_FOUND.to_owned(),
                    message: "there is no config.json".to_owned(),
                }));
            },
            "there is no config.json",
        ),
    ];
    for (breaks, why) in breaks {
        let mut world = waiting();
        world.observed.base = Asked::NotAsked;
        breaks(&mut world);
        let (outcome, message) = world.say(1, "Approve", digest("one").as_str());
        assert_eq!(outcome, AnswerOutcome::Refused);
        for part in ["spec.baseModel.uri", why] {
            assert!(message.contains(part), "{message}");
        }
    }
}

#[test]
fn a_version_has_one_target() {
    let mut world = waiting();
    for target in ["version/01", "version/+1"] {
        let status = world.cr.status.as_mut().unwrap();
        let command = command("1", "Approve", "ann");
        status.commands.insert(target.to_owned(), command);
        world.settle();
        let answer = &world.status().answers[target];
        assert_eq!(answer.outcome, AnswerOutcome::Refused, "{target}");
    }
    assert!(!world.records.contains_key(APPROVED));
}
