//! Duplicates, splits and balance.

use graftwork_api::dataset::NearDuplicates;

use super::*;

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
