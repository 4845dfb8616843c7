//! What endpoints serve is on record, so that it comes back when status is lost.

use graftwork_api::lora_adapter::LastServed;

use super::*;

const TAKEN_BACK: &str = "adapters/topics/versions/2/rejected.json";
const TAKEN_BACK_AGAIN: &str = "adapters/topics/versions/2/rejected-2.json";

/// Versions 1 and 2, both approved, and version 1 in production.
fn two_versions() -> World {
    let mut world = World::new(&minimum("0.30"));
    for run in ["one", "two"] {
        world.publish_run(run, 0.4, None);
        world.settle();
    }
    world.serve(Some("one"), None);
    world.settle();
    world
}

/// Everything but the store is gone, as on a new cluster from Git.
fn lose(world: &mut World) {
    world.cr.status = None;
    world.observed.results.clear();
    world.observed.verifications.clear();
    world.observed.endpoints.clear();
    world.settle();
}

fn production(world: &World) -> Option<u32> {
    Some(world.status().production.as_ref()?.version)
}

/// Records of production, by path, with the rollbacks that they undo.
fn records(world: &World) -> Vec<(String, u64)> {
    let all = world.records.iter();
    all.filter(|(path, _)| path.contains("/production-"))
        .map(|(path, content)| {
            let record: Value = serde_json::from_slice(content).unwrap();
            (path.clone(), record["rollbacks"].as_u64().unwrap())
        })
        .collect()
}

fn served(endpoint: &str, version: u32) -> LastServed {
    LastServed {
        endpoint: endpoint.to_owned(),
        adapter: "alias".to_owned(),
        version,
    }
}

#[test]
fn what_was_in_production_comes_back_from_the_store_and_not_what_was_approved_last() {
    let mut world = two_versions();
    let first = "adapters/topics/versions/1/production-1.json".to_owned();
    assert_eq!(records(&world), [(first, 0)], "once");
    lose(&mut world);
    assert_eq!(production(&world), Some(1));
    assert_eq!(world.status().approved, Some(2));
    assert_eq!(world.status().last_served, [served("assistants", 1)]);
    assert_eq!(world.stage(1).0, VersionStage::Approved);
    world.serve(Some("one"), None);
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Production, reason::STABLE_ON_ENDPOINT)
    );
    assert_eq!(records(&world).len(), 1, "nothing new is said");
}

#[test]
fn each_of_two_endpoints_has_its_own_version_on_record() {
    let mut world = two_versions();
    let first = world.observed.endpoints[0].clone();
    world.serve(Some("two"), None);
    world.observed.endpoints[0].metadata.name = Some("others".to_owned());
    world.observed.endpoints.push(first);
    world.settle();
    assert_eq!(production(&world), Some(2));
    lose(&mut world);
    let both = [served("assistants", 1), served("others", 2)];
    assert_eq!(world.status().last_served, both);
    assert_eq!(production(&world), Some(2), "the newest record");
}

#[test]
fn a_version_that_was_retried_and_promoted_comes_back_as_no_rejected_one() {
    let mut world = two_versions();
    world.serve(Some("one"), Some("two"));
    world.settle();
    assert!(world.records.contains_key(TAKEN_BACK));
    lose(&mut world);
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::ROLLED_BACK_ON_ENDPOINT)
    );
    // Retry, and promoted.
    world.serve(Some("two"), None);
    world.settle();
    let second = "adapters/topics/versions/2/production-2.json".to_owned();
    assert_eq!(records(&world).last(), Some(&(second, 1)));
    lose(&mut world);
    assert_eq!(
        world.stage(2),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
    assert_eq!(
        (production(&world), world.status().approved),
        (Some(2), Some(2))
    );
    assert_eq!(world.status().last_served, [served("assistants", 2)]);
}

#[test]
fn what_is_rolled_back_again_after_a_retry_stays_rejected_until_it_serves_again() {
    let mut world = two_versions();
    for (stable, rejected) in [("one", Some("two")), ("two", None), ("one", Some("two"))] {
        world.serve(Some(stable), rejected);
        world.settle();
    }
    assert!(world.records.contains_key(TAKEN_BACK_AGAIN));
    lose(&mut world);
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::ROLLED_BACK_ON_ENDPOINT)
    );
    assert_eq!(
        (production(&world), world.status().approved),
        (Some(1), Some(1))
    );
    world.serve(Some("two"), None);
    world.settle();
    let undone: Vec<u64> = records(&world).iter().map(|(_, undone)| *undone).collect();
    assert_eq!(undone, [0, 0, 1, 2], "versions 1, 1, 2 and 2");
    lose(&mut world);
    assert_eq!(world.stage(2).0, VersionStage::Approved);
    // A person's no is for good, whatever served.
    let (outcome, message) = world.say(2, "Reject", digest("two").as_str());
    assert_eq!(outcome, AnswerOutcome::Done, "{message}");
    lose(&mut world);
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::REJECTED_BY_USER)
    );
    assert_eq!(production(&world), None);
}

#[test]
fn a_store_without_such_records_works_as_it_did() {
    let mut world = two_versions();
    // A keeper of the version before refuses them.
    world.records.retain(|path, _| !path.contains("production"));
    world.observed.endpoints.clear();
    world.settle();
    assert_eq!(production(&world), Some(1), "status has it");
    assert_eq!(world.status().last_served, []);
    lose(&mut world);
    assert_eq!(
        (production(&world), world.status().approved),
        (None, Some(2))
    );
    // What serves is put on record as soon as it can be.
    world.serve(Some("one"), None);
    world.settle();
    assert_eq!(records(&world).len(), 1);
}

#[test]
fn the_number_of_an_unreadable_record_is_taken() {
    let mut world = two_versions();
    let broken = "adapters/topics/versions/1/production-5.json";
    world.records.insert(broken.to_owned(), b"{}".to_vec());
    world.serve(Some("two"), None);
    world.settle();
    let next = "adapters/topics/versions/2/production-6.json";
    assert!(
        world.records.contains_key(next),
        "{:?}",
        world.records.keys()
    );
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::INTERNAL_ERROR)
    );
}
