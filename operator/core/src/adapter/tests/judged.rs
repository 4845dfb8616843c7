//! Versions from runs: their numbers, their gate, what they are measured against.

use graftwork_api::lora_adapter::Verdict;

use super::*;

#[test]
fn a_run_becomes_a_version_that_passes_its_gate() {
    let mut world = World::new(&minimum("0.30"));
    world.settle();
    assert_eq!(world.condition(condition::READY), ("True", reason::READY));
    assert_eq!(
        world.condition(condition::VERSION_AVAILABLE),
        ("False", reason::NO_VERSIONS)
    );
    world.publish_run("one", 0.39, None);
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    assert_eq!(world.status().approved, Some(1));
    assert_eq!(
        world.condition(condition::VERSION_AVAILABLE),
        ("True", reason::VERSION_APPROVED)
    );
    let version = world.version(1);
    assert_eq!(version.training_run.as_deref(), Some("one"));
    assert_eq!(version.dataset.as_ref().unwrap().name, "topics");
    assert_eq!(version.gate.as_ref().unwrap().verdict, Verdict::Pass);
    assert_eq!(
        world.records.keys().map(String::as_str).collect::<Vec<_>>(),
        [
            "adapters/topics/versions/1/approved.json",
            "adapters/topics/versions/1/created.json",
            "adapters/topics/versions/1/gate.json",
        ]
    );
}

#[test]
fn a_version_says_in_which_precision_it_was_scored() {
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.39, None);
    let Some(Asked::Answered(record)) = world.observed.results.get_mut("one") else {
        panic!("it was published")
    };
    let mut result: Value = record.read().unwrap();
    result["precision"] = json!("Q4_K");
    record.content = Some(serde_json::to_vec(&result).unwrap());
    world.settle();
    assert_eq!(world.version(1).precision.as_deref(), Some("Q4_K"));
    world.publish_run("two", 0.39, None);
    world.settle();
    assert_eq!(world.version(2).precision.as_deref(), Some("None"));
}

#[test]
fn a_bad_version_is_rejected_with_numbers_and_the_good_one_stays() {
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.39, None);
    world.settle();
    world.publish_run("two", 0.13, None);
    world.settle();
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::GATE_FAILED)
    );
    let message = world.version(2).message.clone().unwrap();
    assert!(
        message.starts_with("exact_match 0.13 [") && message.contains("minimum 0.3"),
        "{message}"
    );
    assert_eq!(world.status().approved, Some(1));
    assert_eq!(
        world.status().columns.as_ref().unwrap().candidate,
        "2 Rejected"
    );
    assert_eq!(world.status().columns.as_ref().unwrap().gate, "Fail");
    assert!(
        world
            .events
            .contains(&(EventKind::Warning, reason::GATE_FAILED.to_owned()))
    );
}

#[test]
fn runs_that_end_together_get_dense_numbers_in_the_order_of_their_ends() {
    let mut world = World::new(&json!({}));
    for run in ["c", "a", "b"] {
        world.publish_run(run, 0.5, None);
    }
    world.settle();
    let runs: Vec<_> = world
        .status()
        .versions
        .iter()
        .rev()
        .map(|it| (it.version, it.training_run.clone().unwrap()))
        .collect();
    assert_eq!(
        runs,
        [
            (1, "c".to_owned()),
            (2, "a".to_owned()),
            (3, "b".to_owned())
        ]
    );
}

#[test]
fn everything_comes_back_from_the_store() {
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.39, None);
    world.settle();
    world.publish_run("two", 0.13, None);
    world.settle();
    world.publish_run("three", 0.45, None);
    world.settle();
    world.serve(Some("one"), Some("three"));
    world.settle();
    world.observed.endpoints.clear();
    world.settle();
    let before = world.status().clone();
    assert_eq!(
        world.stage(3),
        (VersionStage::Rejected, reason::ROLLED_BACK_ON_ENDPOINT)
    );
    assert_eq!(before.approved, Some(1));
    // Status, runs and endpoints are gone; the store is not.
    world.cr.status = None;
    world.observed.results.clear();
    world.observed.verifications.clear();
    world.settle();
    assert_eq!(world.status().versions, before.versions);
    assert_eq!(world.status().approved, before.approved);
}

#[test]
fn production_is_what_is_stable_and_improvement_is_measured_against_it() {
    let gate = json!({"rules": [{"metric": "exact_match", "minimumImprovementPoints": "1"}]});
    let mut world = World::new(&gate);
    world.publish_run("one", 0.4, None);
    world.settle();
    world.serve(Some("one"), None);
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Production, reason::STABLE_ON_ENDPOINT)
    );
    assert_eq!(
        world.status().production.as_ref().unwrap().endpoints,
        ["assistants"]
    );
    world.publish_run("two", 0.5, None);
    world.settle();
    assert_eq!(
        world.stage(2),
        (VersionStage::Candidate, reason::GATE_INCONCLUSIVE)
    );
    assert!(
        world
            .version(2)
            .message
            .as_deref()
            .unwrap()
            .contains("production is version 1")
    );
    world.publish_run("three", 0.5, Some(1));
    world.settle();
    assert_eq!(
        world.stage(3),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    // What was judged stays judged when production moves on.
    world.serve(Some("three"), None);
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    assert_eq!(world.status().approved, Some(3));
}

#[test]
fn what_was_in_production_last_is_remembered_while_no_endpoint_serves_the_adapter() {
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.4, None);
    world.settle();
    world.publish_run("two", 0.5, None);
    world.settle();
    world.serve(Some("one"), None);
    world.settle();
    world.observed.endpoints.clear();
    world.settle();
    let production = world.status().production.clone().unwrap();
    assert_eq!((production.version, production.endpoints), (1, vec![]));
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    assert_eq!(world.status().approved, Some(2));
    // What is in production elsewhere counts for more.
    world.serve(Some("two"), None);
    world.settle();
    assert_eq!(world.status().production.as_ref().unwrap().version, 2);
    // A person's no ends it.
    world.observed.endpoints.clear();
    world.settle();
    let (outcome, message) = world.say(2, "Reject", digest("two").as_str());
    assert_eq!(outcome, AnswerOutcome::Done, "{message}");
    world.settle();
    assert_eq!(world.status().production, None);
}

#[test]
fn another_gate_judges_again() {
    let mut world = World::new(&minimum("0.60"));
    world.publish_run("one", 0.5, None);
    world.settle();
    assert_eq!(world.stage(1).0, VersionStage::Rejected);
    world.cr.spec.gate = serde_json::from_value(minimum("0.30")).unwrap();
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
}

#[test]
fn what_approved_a_version_is_shown_with_it_whatever_the_gate_is_now() {
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.5, None);
    world.settle();
    world.cr.spec.gate = serde_json::from_value(minimum("0.60")).unwrap();
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    assert_eq!(
        world.version(1).gate.as_ref().unwrap().verdict,
        Verdict::Pass
    );
}

#[test]
fn an_approval_under_another_gate_is_recorded_with_what_that_gate_said() {
    let record = |world: &World| -> Value {
        let path = "adapters/topics/versions/1/approved.json";
        serde_json::from_slice(&world.records[path]).unwrap()
    };
    let improvement =
        json!({"rules": [{"metric": "exact_match", "minimumImprovementPoints": "1"}]});
    let mut world = World::new(&minimum("0.60"));
    world.publish_run("one", 0.5, None);
    world.settle();
    world.cr.spec.gate = serde_json::from_value(improvement.clone()).unwrap();
    world.settle();
    assert_eq!(world.stage(1).0, VersionStage::Approved);
    let gate = record(&world)["gate"].clone();
    assert_eq!(gate["verdict"], "Pass");
    let message = gate["rules"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("minimumImprovementPoints 1"), "{message}");
    // Measured against the bare base then: what is production later changes nothing.
    world.serve(Some("one"), None);
    world.cr.status = None;
    world.settle();
    let judged = world.version(1).gate.clone().unwrap();
    assert_eq!(judged.verdict, Verdict::Pass);
    assert_eq!(judged.rules[0].message, message);

    // A person's approval keeps it too, and one under the first gate has nothing to add.
    let mut world = World::new(&minimum("0.60"));
    world.publish_run("one", 0.5, None);
    world.settle();
    let mut manual = minimum("0.50");
    manual["approval"] = json!("Manual");
    world.cr.spec.gate = serde_json::from_value(manual).unwrap();
    world.settle();
    assert_eq!(
        world.say(1, "Approve", digest("one").as_str()).0,
        AnswerOutcome::Done
    );
    assert_eq!(record(&world)["gate"]["verdict"], "Inconclusive");
    let mut world = World::new(&minimum("0.30"));
    world.publish_run("one", 0.5, None);
    world.settle();
    assert_eq!(record(&world).get("gate"), None);
}
