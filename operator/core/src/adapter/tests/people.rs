//! What people say of a version, and what they may not.

use super::*;

#[test]
fn a_person_approves_under_manual_approval() {
    let mut world = World::new(
        &json!({"approval": "Manual", "rules": [{"metric": "exact_match", "minimum": "0.3"}]}),
    );
    world.publish_run("one", 0.39, None);
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Candidate, reason::AWAITING_APPROVAL)
    );
    assert_eq!(
        world.condition(condition::VERSION_AVAILABLE),
        ("False", reason::NO_VERSION_APPROVED)
    );
    let one = digest("one").to_string();
    assert_eq!(
        world.say(1, "Approve", digest("two").as_str()).0,
        AnswerOutcome::Refused,
        "another digest"
    );
    assert_eq!(
        world.say(7, "Approve", &one).0,
        AnswerOutcome::Refused,
        "no such version"
    );
    assert_eq!(world.say(1, "Explode", &one).0, AnswerOutcome::Refused);
    assert_eq!(world.stage(1).0, VersionStage::Candidate);
    assert_eq!(world.say(1, "Approve", &one).0, AnswerOutcome::Done);
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::APPROVED_BY_USER)
    );
    assert_eq!(
        world.version(1).message.as_deref(),
        Some("approved by ann: looks good")
    );
    assert_eq!(world.say(1, "Reject", &one).0, AnswerOutcome::Done);
    assert_eq!(
        world.stage(1),
        (VersionStage::Rejected, reason::REJECTED_BY_USER)
    );
    assert_eq!(world.status().approved, None);
    let (outcome, message) = world.say(1, "Approve", &one);
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.contains("final"), "{message}");
}

#[test]
fn nobody_approves_what_the_gate_rejects_or_rejects_what_serves() {
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.39, None);
    world.settle();
    world.publish_run("two", 0.13, None);
    world.settle();
    let (outcome, message) = world.say(2, "Approve", digest("two").as_str());
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.contains("exact_match 0.13"), "{message}");
    world.serve(Some("one"), None);
    world.settle();
    let (outcome, message) = world.say(1, "Reject", digest("one").as_str());
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.contains("assistants"), "{message}");
}

#[test]
fn an_import_takes_a_persons_approval_where_metrics_are_asked_for() {
    let import = |gate: &Value| {
        let mut world = World::new(gate);
        world.cr.spec.import = serde_json::from_value(json!({"uri": "pvc://models/old"})).unwrap();
        world.observe();
        let Plan::Act(actions) = world.plan() else {
            panic!("there is nothing to decide")
        };
        assert!(matches!(&actions.calls[..], [Call::Import(request)] if request.path == "old"));
        world.observed.import = Asked::Answered(Ok(Verified {
            digest: digest("old"),
            rank: 4,
            size_bytes: 3,
        }));
        world.settle();
        world
    };
    let world = import(&json!({}));
    assert_eq!(
        world.stage(1).0,
        VersionStage::Approved,
        "no rules: every compatible version passes"
    );
    let mut world = import(&minimum("0.3"));
    assert_eq!(
        world.stage(1),
        (VersionStage::Candidate, reason::GATE_INCONCLUSIVE)
    );
    assert_eq!(
        world.version(1).imported_from.as_deref(),
        Some("pvc://models/old")
    );
    assert_eq!(
        world.say(1, "Approve", digest("old").as_str()).0,
        AnswerOutcome::Done
    );
    assert_eq!(world.status().approved, Some(1));
    // Forgotten by the shell, the import is not asked for again.
    world.observed.import = Asked::NotAsked;
    world.observe();
    let Plan::Act(actions) = world.plan() else {
        panic!("there is nothing to decide")
    };
    assert_eq!(actions.calls, []);
}

#[test]
fn a_rollback_that_is_being_retried_is_not_written_down() {
    let mut world = World::new(&json!({}));
    for run in ["one", "two"] {
        world.publish_run(run, 0.5, None);
    }
    world.settle();
    world.serve(Some("two"), Some("two"));
    world.settle();
    assert_eq!(
        world.stage(2).0,
        VersionStage::Production,
        "it is stable somewhere"
    );
    world.serve(Some("one"), Some("two"));
    world.settle();
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::ROLLED_BACK_ON_ENDPOINT)
    );
    assert_eq!(
        world.version(2).message.as_deref(),
        Some(
            "rolled back on assistants: ErrorRateAboveLimit: error_rate 0.08 > 0.01 over 812 requests"
        )
    );
    world.serve(Some("two"), None);
    world.settle();
    assert_eq!(
        world.stage(2).0,
        VersionStage::Production,
        "tried again, and kept"
    );
    assert_eq!(world.status().approved, Some(2));
}

#[test]
fn a_persons_no_to_what_was_rolled_back_is_on_record_beside_the_rollback() {
    let mut world = World::new(&json!({}));
    for run in ["one", "two"] {
        world.publish_run(run, 0.5, None);
    }
    world.settle();
    world.serve(Some("one"), Some("two"));
    world.settle();
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::ROLLED_BACK_ON_ENDPOINT)
    );
    let two = digest("two").to_string();
    assert_eq!(world.say(2, "Reject", &two).0, AnswerOutcome::Done);
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::REJECTED_BY_USER)
    );
    let (outcome, message) = world.say(2, "Reject", &two);
    assert_eq!(outcome, AnswerOutcome::Done);
    assert!(message.contains("already"), "{message}");
    assert!(
        world
            .records
            .contains_key("adapters/topics/versions/2/barred.json")
    );
    world.cr.status = None;
    world.settle();
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::REJECTED_BY_USER)
    );
    // Though it is stable where it was retried a moment before, nobody follows it.
    world.serve(Some("two"), None);
    world.settle();
    assert_eq!(world.status().approved, Some(1));
}
