//! From rows to a version: what is built, when, and what is left alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::plan::NAME_TAKEN_PAUSE;

#[test]
fn a_new_dataset_is_built_once_and_becomes_ready() {
    let mut world = World::from_config_map();
    let actions = world.reconcile();
    assert_eq!(actions.create.len(), 1);
    let name = format!("topics-build-{}", &world.fingerprint().hex()[..8]);
    assert_eq!(actions.create[0].metadata.name, Some(name));
    assert!(crate::workload::is_owned_by(
        &actions.create[0].metadata,
        "uid"
    ));
    assert_eq!(world.ready().1, reason::BUILDING);
    assert!(world.reconcile().create.is_empty(), "the Job is there");
    world.end_job(0, None);
    world.publish(1);
    let actions = world.reconcile();
    let (status, _, message) = world.ready();
    assert_eq!(status, "True");
    assert_eq!(
        message,
        "version 1 has 100 rows: 80 train, 10 validation, 10 test; 1 were left out"
    );
    assert_eq!(
        world
            .cr
            .status
            .as_ref()
            .unwrap()
            .latest
            .as_ref()
            .unwrap()
            .rows,
        100
    );
    assert_eq!(actions.events.len(), 1);
    let writes = world.writes;
    assert!(world.reconcile().events.is_empty());
    assert_eq!(world.writes, writes, "a settled Dataset writes nothing");
}

#[test]
fn what_is_too_long_for_a_status_is_cut() {
    let long = "x".repeat(5000);
    let mut world = World::from_config_map();
    let refresh = graftwork_api::labels::REFRESH_ANNOTATION.to_owned();
    world.cr.metadata.annotations = Some([(refresh, long.clone())].into());
    let row = RejectedRow {
        source: "faq".to_owned(),
        file: None,
        line: 3,
        rule: format!("prompt holds personal data ({long})"),
    };
    world.publish_with(1, vec![row]);
    world.reconcile();
    let status = world.cr.status.clone().unwrap();
    let digest = Digest::of(long.as_bytes()).to_string();
    assert_eq!(status.observed_refresh, Some(digest));
    let rule = &status.versions[0].rejected[0].rule;
    assert!(rule.starts_with("prompt holds personal data") && rule.len() <= 253);
    // It is known to be answered.
    world.observed.build = Asked::Unreachable("away".to_owned());
    world.reconcile();
    assert_eq!(world.ready().0, "True");
}

#[test]
fn a_known_fingerprint_needs_no_job() {
    let mut world = World::from_config_map();
    world.publish(4);
    assert!(world.reconcile().create.is_empty());
    assert_eq!(world.ready().0, "True");
    assert_eq!(world.cr.status.unwrap().latest.unwrap().version, 4);
}

#[test]
fn another_content_or_annotation_builds_anew_and_the_old_job_goes() {
    let mut world = World::from_config_map();
    world.reconcile();
    let first = world.fingerprint();
    world.observed.sources.insert(
        "faq".to_owned(),
        SourceState::Present(Some(Digest::of(b"two"))),
    );
    assert_ne!(world.fingerprint(), first);
    let actions = world.reconcile();
    assert_eq!(actions.create.len(), 1);
    let kinds: Vec<_> = actions.delete.iter().map(|delete| delete.kind).collect();
    assert_eq!(kinds, [ChildKind::Job, ChildKind::ConfigMap]);

    let mut world = World::from_claim();
    let first = world.fingerprint();
    world.cr.metadata.annotations = Some(
        [(
            graftwork_api::labels::REFRESH_ANNOTATION.to_owned(),
            "2".to_owned(),
        )]
        .into(),
    );
    assert_ne!(
        world.fingerprint(),
        first,
        "a volume is looked at again on request"
    );
}

#[test]
fn a_keeper_that_is_away_takes_nothing_back() {
    let mut world = World::from_config_map();
    world.publish(1);
    world.reconcile();
    let (build, versions) = (
        world.observed.build.clone(),
        world.observed.versions.clone(),
    );
    world.observed.build = Asked::Unreachable("connection refused".to_owned());
    let writes = world.writes;
    let actions = world.reconcile();
    assert_eq!(world.writes, writes);
    assert!(actions.requeue_after.is_some());
    (world.observed.build, world.observed.versions) = (build, versions);

    let mut fresh = World::from_config_map();
    fresh.observed.build = Asked::Unreachable("connection refused".to_owned());
    fresh.reconcile();
    assert_eq!(fresh.ready().0, "Unknown");
    assert_eq!(fresh.ready().1, reason::STORAGE_UNAVAILABLE);
}

#[test]
fn names_that_belong_to_others_are_left_alone() {
    let mut world = World::from_config_map();
    world.observed.foreign_job = true;
    let actions = world.reconcile();
    assert!(actions.create.is_empty());
    assert_eq!(actions.requeue_after, Some(NAME_TAKEN_PAUSE));
    assert_eq!(world.ready().1, reason::OBJECT_NOT_OURS);
    world.observed.foreign_job = false;
    assert_eq!(
        world.reconcile().create.len(),
        1,
        "the name has become free"
    );

    let mut world = World::from_config_map();
    world.observed.storage = Some(StorageProblem::NotOurs("Deployment taken".to_owned()));
    assert_eq!(world.reconcile().requeue_after, Some(NAME_TAKEN_PAUSE));
}

#[test]
fn long_names_are_shortened() {
    let mut world = World::from_config_map();
    world.cr.metadata = ObjectMeta {
        name: Some("a.".repeat(126) + "z"),
        ..world.cr.metadata
    };
    let actions = world.reconcile();
    for name in [
        &actions.create[0].metadata.name,
        &world.observed.configurations[0].metadata.name,
    ] {
        assert!(name.as_ref().unwrap().len() <= 63, "{name:?}");
    }
}

#[test]
fn rows_that_were_left_out_are_named_for_the_present_version_alone() {
    let row = |line| RejectedRow {
        source: "faq".to_owned(),
        file: None,
        line,
        rule: "prompt is missing".to_owned(),
    };
    let mut world = World::from_config_map();
    world.publish_with(1, vec![row(1)]);
    world.publish_with(2, vec![row(2)]);
    world.reconcile();
    let versions = world.cr.status.clone().unwrap().versions;
    let named: Vec<(u32, usize, u64)> = versions
        .iter()
        .map(|it| (it.version, it.rejected.len(), it.rows.rejected))
        .collect();
    assert_eq!(named, [(2, 1, 1), (1, 0, 1)]);
}

#[test]
fn the_present_version_and_those_that_runs_pin_stay_listed_whatever_their_age() {
    let mut world = World::from_config_map();
    for version in 1..=60 {
        world.publish(version);
    }
    // The sources are again what they were at version 3.
    world.publish(3);
    let Asked::Answered(records) = &mut world.observed.versions else {
        unreachable!("the keeper answers here")
    };
    records.pop();
    world.observed.pinned = [5, 60].into();
    world.reconcile();
    let status = world.cr.status.clone().unwrap();
    assert_eq!(status.latest.unwrap().version, 3);
    let listed: Vec<u32> = status.versions.iter().map(|it| it.version).collect();
    let expected: Vec<u32> = (50..=60).rev().chain([5, 3]).collect();
    assert_eq!(listed, expected, "ten beside those, newest first");
    world.observed.pinned = (1..=55).collect();
    world.reconcile();
    let versions = world.cr.status.clone().unwrap().versions;
    assert_eq!(versions.len(), 50, "the bound of the schema");
    assert!(versions.iter().any(|it| it.version == 3));
}
