//! Versions that go, and those that stay.

use graftwork_api::dataset::Retention;

use super::*;
use crate::plan::Call;

/// A Dataset with so many versions, of which the newest two are kept.
fn world(versions: u32) -> World {
    let mut world = World::from_config_map();
    world.cr.spec.retention = Some(Retention { versions: 2 });
    (1..=versions).for_each(|version| world.publish(version));
    world
}

/// The versions that the keeper is asked to remove.
fn pruned(world: &mut World) -> Vec<u32> {
    let calls = world.reconcile().calls;
    let versions = calls.into_iter().flat_map(|call| match call {
        Call::Prune(request) => {
            assert_eq!(request.dataset, "topics");
            request.versions
        }
        other => unreachable!("a Dataset only prunes: {other:?}"),
    });
    versions.collect()
}

#[test]
fn versions_beyond_the_newest_few_go_and_without_a_limit_none_do() {
    assert_eq!(pruned(&mut world(5)), [3, 2, 1]);
    assert!(pruned(&mut world(2)).is_empty());
    let mut unlimited = world(5);
    unlimited.cr.spec.retention = None;
    assert!(pruned(&mut unlimited).is_empty());
}

#[test]
fn what_a_run_or_an_adapter_refers_to_stays_and_so_do_the_rows_of_now() {
    let mut kept = world(6);
    kept.observed.pinned = [1].into();
    kept.observed.referenced = [3].into();
    assert_eq!(pruned(&mut kept), [4, 2]);
    // The sources are again what they were.
    let mut back = world(6);
    let Asked::Answered(Some(record)) = &mut back.observed.build else {
        unreachable!("it was built")
    };
    let mut build: BuildRecord = record.read().unwrap();
    build.version = 2;
    record.content = Some(serde_json::to_vec(&build).unwrap());
    assert_eq!(pruned(&mut back), [4, 3, 1]);
}

#[test]
fn nothing_goes_while_a_job_builds_or_the_spec_is_invalid() {
    let mut building = World::from_config_map();
    building.cr.spec.retention = Some(Retention { versions: 2 });
    building.reconcile();
    assert_eq!(building.observed.jobs.len(), 1);
    (1..=5).for_each(|version| building.publish(version));
    assert!(pruned(&mut building).is_empty());
    building.end_job(0, None);
    assert_eq!(pruned(&mut building), [3, 2, 1]);

    let mut none = world(5);
    none.cr.spec.retention = Some(Retention { versions: 0 });
    assert!(pruned(&mut none).is_empty());
    assert_eq!(none.ready().1, reason::INVALID_SPEC);
}

#[test]
fn how_many_versions_are_kept_decides_no_build() {
    let limited = world(1);
    let mut unlimited = world(1);
    unlimited.cr.spec.retention = None;
    assert_eq!(limited.fingerprint(), unlimited.fingerprint());
}
