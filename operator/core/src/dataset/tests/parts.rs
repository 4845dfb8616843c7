//! Builds in parts: which Jobs there are, when, and what becomes of their ends.

use graftwork_api::dataset::{Privacy, PrivacyMode};
use graftwork_contract::dataset::BuildConfig;

use super::*;

fn world(shards: u32) -> World {
    let mut world = World::from_claim();
    world.cr.spec.shards = Some(shards);
    world
}

fn named(world: &World, stage: &str) -> String {
    format!("topics-{stage}-{}", &world.fingerprint().hex()[..8])
}

fn summary(reason: &str, message: &str) -> BuildSummary {
    BuildSummary {
        reason: reason.to_owned(),
        message: message.to_owned(),
        version: None,
        digest: None,
        rows: None,
        rejected: vec![],
    }
}

#[test]
fn rows_are_read_by_an_indexed_job_and_one_pod_does_the_rest() {
    let mut world = world(4);
    let actions = world.reconcile();
    let [job] = &actions.create[..] else {
        panic!("one Job at a time")
    };
    assert_eq!(job.metadata.name, Some(named(&world, "parts")));
    let spec = job.spec.as_ref().unwrap();
    assert_eq!(spec.completion_mode.as_deref(), Some("Indexed"));
    assert_eq!((spec.completions, spec.parallelism), (Some(4), Some(4)));
    assert_eq!(spec.backoff_limit, Some(0));
    let Child::ConfigMap(map) = &actions.apply[0] else {
        panic!("a build has a configuration")
    };
    let text = &map.data.as_ref().unwrap()["config.json"];
    let config: BuildConfig = serde_json::from_str(text).unwrap();
    assert_eq!(config.shards, Some(4));

    assert!(world.reconcile().create.is_empty(), "parts are being made");
    world.end_job(0, None);
    let actions = world.reconcile();
    let [job] = &actions.create[..] else {
        panic!("one Job at a time")
    };
    assert_eq!(job.metadata.name, Some(named(&world, "build")));
    assert_eq!(job.spec.as_ref().unwrap().completion_mode, None);
    assert_eq!(world.ready().1, reason::BUILDING);
    assert!(world.reconcile().create.is_empty());
    world.end_job(0, None);
    world.publish(1);
    world.reconcile();
    assert_eq!(world.ready().0, "True");
}

#[test]
fn a_part_that_fails_ends_the_attempt_in_its_own_words() {
    let mut world = world(2);
    world.reconcile();
    let words = "part 2 of 2: source bulk: rows.jsonl is ELF";
    world.end_job(65, Some(&summary(reason::DATA_ERROR, words)));
    world.seconds += 60;
    assert!(world.reconcile().create.is_empty());
    assert_eq!(world.ready().1, reason::DATA_ERROR);
    assert!(world.ready().2.contains(words), "{}", world.ready().2);
}

#[test]
fn an_attempt_whose_parts_or_whose_rest_found_no_store_is_followed_by_new_parts() {
    let away = summary(reason::STORAGE_UNAVAILABLE, "the store is away");
    for parts_succeed in [false, true] {
        let mut world = world(2);
        world.reconcile();
        if parts_succeed {
            world.end_job(0, None);
            world.reconcile();
        }
        world.end_job(69, Some(&away));
        assert!(world.reconcile().create.is_empty(), "after a pause");
        world.seconds += 600;
        let actions = world.reconcile();
        let name = format!("{}-2", named(&world, "parts"));
        assert_eq!(actions.create[0].metadata.name, Some(name));
        assert_eq!(actions.create.len(), 1);
    }
}

#[test]
fn parts_that_failed_are_not_followed_by_the_rest_while_their_pods_end_is_not_known() {
    let mut world = world(2);
    world.reconcile();
    world.end_job(69, None);
    for pod in &mut world.observed.pods {
        pod.phase = "Running".to_owned();
        pod.container = Container::Unknown;
    }
    assert!(world.reconcile().create.is_empty());
}

#[test]
fn the_number_of_parts_is_no_reason_to_build_again() {
    let alone = World::from_claim().fingerprint();
    assert_eq!(world(1).fingerprint(), alone);
    assert_eq!(world(7).fingerprint(), alone);
    let mut one = world(1);
    let actions = one.reconcile();
    assert_eq!(actions.create[0].metadata.name, Some(named(&one, "build")));
}

#[test]
fn parts_and_sql_over_all_rows_are_refused_together_and_each_is_taken_alone() {
    let mut both = world(2);
    both.cr.spec.transform = Some("SELECT prompt, completion FROM bulk".to_owned());
    let mut alone = both.clone();
    alone.cr.spec.shards = Some(1);
    assert!(both.reconcile().create.is_empty());
    let (_, why, message) = both.ready();
    assert_eq!(why, reason::INVALID_SPEC);
    assert!(message.starts_with("spec.shards: is 2"), "{message}");
    assert!(
        message.contains("leave spec.shards out, or spec.transform"),
        "{message}"
    );
    let actions = alone.reconcile();
    assert_eq!(
        actions.create[0].metadata.name,
        Some(named(&alone, "build"))
    );
}

#[test]
fn parts_that_would_hold_what_is_masked_are_refused() {
    let mut all = world(2);
    all.cr.spec.privacy = Some(Privacy {
        mode: PrivacyMode::Redact,
        columns: vec![],
        pseudonym_key_ref: None,
        analyzer: None,
    });
    all.cr.spec.split.group_column = Some("claim".to_owned());
    let mut class = all.clone();
    class.cr.spec.split.group_column = None;
    class.cr.spec.balance = Some(Balance {
        column: "completion".to_owned(),
        maximum_upsample: 2,
    });
    let mut none = world(65);
    none.cr.spec.privacy = None;
    // A masked group is kept as its hash.
    assert_eq!(all.reconcile().create.len(), 1);
    for mut world in [class, none] {
        assert!(world.reconcile().create.is_empty());
        assert_eq!(world.ready().1, reason::INVALID_SPEC);
        assert!(world.ready().2.starts_with("spec.shards: "));
    }
}
