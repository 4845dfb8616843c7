//! Duplicates, splits and balance.

use graftwork_api::dataset::NearDuplicates;

use super::*;
use crate::plan::EventKind;

#[test]
fn another_split_another_balance_or_another_rule_is_another_fingerprint() {
    let plain = World::from_config_map();
    let mut known = vec![plain.fingerprint()];
    for change in [
        (|spec: &mut DatasetSpec| spec.split.method = SplitMethod::Random) as fn(&mut DatasetSpec),
        |spec| {
            spec.split.method = SplitMethod::Time;
            spec.split.column = Some("day".to_owned());
        },
        |spec| spec.validation.near_duplicates = NearDuplicates::Group,
        |spec| spec.format.reward = true,
        |spec| {
            spec.balance = Some(Balance {
                column: "topic".to_owned(),
                maximum_upsample: 3,
            });
        },
    ] {
        let mut world = plain.clone();
        change(&mut world.cr.spec);
        let fingerprint = world.fingerprint();
        assert!(!known.contains(&fingerprint));
        known.push(fingerprint);
    }
}

#[test]
fn rows_of_other_splits_that_are_trained_on_are_shown() {
    let mut world = World::from_config_map();
    world.publish(1);
    world.reconcile();
    let versions = world.cr.status.unwrap().versions;
    assert_eq!(versions[0].leakage.unwrap().test, 2);
}

#[test]
fn a_part_of_the_split_that_got_no_row_is_told_of_once_and_stays_in_the_condition() {
    let mut world = World::from_config_map();
    world.reconcile();
    world.end_job(0, None);
    let few = RowCounts {
        train: 9,
        validation: 0,
        test: 0,
        rejected: 0,
        duplicates: 0,
        beyond_weight: 0,
    };
    world.cr.spec.split.validation_percent = 0;
    world.cr.spec.split.train_percent = 90;
    world.publish_rows(1, few, vec![]);
    let warned = |world: &mut World| {
        let events = world.reconcile().events;
        let warning = events.iter().find(|event| event.kind == EventKind::Warning);
        warning.map(|event| event.reason.clone())
    };
    assert_eq!(warned(&mut world).as_deref(), Some(reason::SPLIT_EMPTY));
    let (truth, why, message) = world.ready();
    assert_eq!((truth.as_str(), why.as_str()), ("True", reason::READY));
    assert_eq!(
        message,
        "version 1 has 9 rows: 9 train, 0 validation, 0 test; 0 were left out; no row fell into test \
         (spec.split.testPercent is 10): it takes more rows, or more groups, or another split"
    );
    assert_eq!(warned(&mut world), None);
}

#[test]
fn a_version_without_rows_to_train_on_says_that_runs_wait() {
    let mut world = World::from_config_map();
    world.reconcile();
    world.end_job(0, None);
    let few = RowCounts {
        train: 0,
        validation: 1,
        test: 2,
        rejected: 0,
        duplicates: 0,
        beyond_weight: 0,
    };
    world.publish_rows(1, few, vec![]);
    let events = world.reconcile().events;
    let warning = events.iter().find(|it| it.reason == reason::SPLIT_EMPTY);
    assert_eq!(warning.map(|it| it.kind), Some(EventKind::Warning));
    let (truth, _, message) = world.ready();
    assert_eq!(truth, "True", "runs that evaluate may have it");
    assert!(message.contains("no row fell into train ("), "{message}");
    let words = "; runs that train on it wait for that";
    assert!(message.ends_with(words), "{message}");
}
