//! What does not fit, is not there or cannot be read is said, and nothing is made up.

use super::*;

#[test]
fn what_does_not_fit_is_rejected_with_the_keepers_words() {
    let mut world = World::new(&json!({}));
    world.publish_run("one", 0.5, None);
    world.observed.verifications.insert(
        digest("one").to_string(),
        Asked::Answered(Err(Problem {
            reason: reason::ADAPTER_INCOMPATIBLE.to_owned(),
            message: "target module \"z_proj\" is not in the base model".to_owned(),
        })),
    );
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Rejected, reason::ADAPTER_INCOMPATIBLE)
    );
    assert!(
        world
            .version(1)
            .message
            .as_deref()
            .unwrap()
            .contains("z_proj")
    );
    assert_eq!(world.status().approved, None);
    assert!(
        world
            .records
            .contains_key("adapters/topics/versions/1/rejected.json")
    );
}

#[test]
fn another_base_model_withdraws_its_versions() {
    let mut world = World::new(&json!({}));
    world.publish_run("one", 0.5, None);
    world.settle();
    assert_eq!(world.status().approved, Some(1));
    let Asked::Answered(Ok(base)) = &mut world.observed.base else {
        unreachable!()
    };
    base.digest = digest("other base");
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Rejected, reason::BASE_MODEL_MISMATCH)
    );
    assert_eq!(world.status().approved, None);
    assert!(
        !world
            .records
            .contains_key("adapters/topics/versions/1/rejected.json"),
        "the base may come back"
    );
}

#[test]
fn trouble_is_said_and_nothing_is_written() {
    let mut away = World::new(&json!({}));
    away.observed.ledger = Asked::Unreachable("no pod is ready".to_owned());
    let Plan::Act(actions) = away.plan() else {
        panic!("there is nothing to decide")
    };
    assert_eq!(actions.calls, []);
    let ready = |actions: &Actions<LoRAAdapterStatus>| {
        let status = actions.status.clone().unwrap();
        let found = crate::conditions::find(&status.conditions, condition::READY)
            .unwrap()
            .clone();
        (found.status, found.reason, found.message)
    };
    assert_eq!(ready(&actions).1, reason::STORAGE_UNAVAILABLE);

    let mut settled = World::new(&json!({}));
    settled.settle();
    settled.observed.ledger = Asked::Unreachable("no pod is ready".to_owned());
    let Plan::Act(actions) = settled.plan() else {
        panic!("there is nothing to decide")
    };
    assert_eq!(
        actions.status, None,
        "a keeper that is away for a moment takes nothing back"
    );

    for (change, why) in [
        (
            (|world: &mut World| world.observed.base_claim = ClaimState::Absent) as fn(&mut World),
            reason::BASE_MODEL_NOT_FOUND,
        ),
        (
            |world| {
                world.cr.spec.import = serde_json::from_value(json!({"uri": "pvc://away/x"})).ok();
                world.observed.import_claim = ClaimState::NotBound;
            },
            reason::IMPORT_FAILED,
        ),
    ] {
        change(&mut away);
        let Plan::Act(actions) = away.plan() else {
            panic!("there is nothing to decide")
        };
        assert_eq!(
            (ready(&actions).0.as_str(), ready(&actions).1.as_str()),
            ("False", why),
            "what the API server shows waits for no keeper"
        );
        away.observed.base_claim = ClaimState::Bound;
    }
    let mut taken = World::new(&json!({}));
    taken.observed.storage = Some(crate::storage::StorageProblem::NotOurs("x".to_owned()));
    let Plan::Act(actions) = taken.plan() else {
        panic!("there is nothing to decide")
    };
    assert_eq!(ready(&actions).1, reason::OBJECT_NOT_OURS);
    assert_eq!(actions.requeue_after, Some(crate::plan::NAME_TAKEN_PAUSE));

    let mut absent = World::new(&json!({}));
    absent.observed.base_claim = ClaimState::Absent;
    absent.settle();
    assert_eq!(
        absent.condition(condition::READY),
        ("False", reason::BASE_MODEL_NOT_FOUND)
    );

    let mut bad = World::new(&json!({"rules": [{"metric": "mood", "minimum": "1"}]}));
    bad.settle();
    assert_eq!(
        bad.condition(condition::READY),
        ("False", reason::INVALID_SPEC)
    );
    assert_eq!(
        bad.condition(condition::STALLED),
        ("True", reason::INVALID_SPEC)
    );

    let mut going = World::new(&json!({}));
    going.cr.metadata.deletion_timestamp = Some(graftwork_api::Time(at(0)));
    assert_eq!(going.plan(), Plan::Act(Actions::default()));
}

#[test]
fn a_record_that_cannot_be_read_is_said_and_its_number_is_not_given_again() {
    let mut world = World::new(&json!({}));
    world.records.insert(
        "adapters/topics/versions/3/created.json".to_owned(),
        b"{".to_vec(),
    );
    world.publish_run("one", 0.5, None);
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::INTERNAL_ERROR)
    );
    assert_eq!(world.version(4).training_run.as_deref(), Some("one"));
}

#[test]
fn a_version_whose_folder_is_missing_waits_for_it() {
    let mut world = World::new(&json!({}));
    world.publish_run("one", 0.5, None);
    let missing = Problem {
        reason: "AdapterNotFound".to_owned(),
        message: "adapters/topics/x does not exist in the store".to_owned(),
    };
    world
        .observed
        .verifications
        .insert(digest("one").to_string(), Asked::Answered(Err(missing)));
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Candidate, reason::FILES_NOT_FOUND)
    );
    let message = world.version(1).message.clone().unwrap();
    assert!(message.contains("does not exist"), "{message}");
    let Plan::Act(actions) = world.plan() else {
        panic!("there is nothing to decide")
    };
    assert_eq!(
        actions.requeue_after,
        Some(std::time::Duration::from_secs(15)),
        "it is looked for again"
    );
    let (outcome, message) = world.say(1, "Approve", digest("one").as_str());
    assert_eq!(outcome, AnswerOutcome::Refused);
    assert!(message.contains("does not exist"), "{message}");
    world.observed.verifications.clear();
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    assert!(
        !world
            .records
            .contains_key("adapters/topics/versions/1/rejected.json")
    );
}
