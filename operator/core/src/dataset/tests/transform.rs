//! SQL over the sources: what a build is told of it, and what is wrong without one.

use std::collections::BTreeMap;

use graftwork_api::dataset::{Privacy, PrivacyMode, SecretKeyReference};
use graftwork_contract::dataset::BuildConfig;

use super::*;

const SQL: &str = "SELECT prompt, completion FROM rows";

fn transformed() -> World {
    let mut world = World::from_config_map();
    world.cr.spec.transform = Some(SQL.to_owned());
    world
}

fn config(actions: &Actions<DatasetStatus>) -> BuildConfig {
    let Child::ConfigMap(map) = &actions.apply[0] else {
        unreachable!("a build has a configuration")
    };
    serde_json::from_str(&map.data.as_ref().unwrap()["config.json"]).unwrap()
}

#[test]
fn a_build_is_told_the_sql_and_whether_it_has_a_key() {
    let told = config(&transformed().reconcile()).transform.unwrap();
    assert_eq!((told.sql.as_str(), told.pseudonym_key), (SQL, false));
    let mut world = transformed();
    world.cr.spec.privacy = Some(Privacy {
        mode: PrivacyMode::Redact,
        columns: vec![],
        pseudonym_key_ref: Some(SecretKeyReference {
            name: "pseudonyms".to_owned(),
            key: "key".to_owned(),
        }),
        analyzer: None,
    });
    let told = config(&world.reconcile()).transform.unwrap();
    assert!(told.pseudonym_key);
    let plain = config(&World::from_config_map().reconcile());
    assert_eq!(plain.transform, None);
}

#[test]
fn now_is_when_the_first_attempt_was_decided_however_many_follow() {
    let mut world = transformed();
    let mut told = Vec::new();
    while told.len() < 6 {
        let actions = world.reconcile();
        if !actions.create.is_empty() {
            told.push(config(&actions).transform.unwrap().now.unwrap());
            world.end_job(i32::from(ExitCode::Unavailable.code()), None);
        }
        world.seconds += 1;
    }
    assert_eq!(told, vec![at(0).to_string(); 6]);
    // Another build is decided at another time.
    world.cr.spec.transform = Some(format!("{SQL} WHERE true"));
    let decided = at(world.seconds).to_string();
    let now = config(&world.reconcile()).transform.unwrap().now;
    assert_eq!(now, Some(decided));
}

#[test]
fn other_sql_is_another_fingerprint() {
    let plain = World::from_config_map().fingerprint();
    let first = transformed().fingerprint();
    let mut world = transformed();
    world.cr.spec.transform = Some(format!("{SQL} WHERE true"));
    let second = world.fingerprint();
    assert!(plain != first && first != second);
}

#[test]
fn what_has_no_place_beside_sql_is_named_before_a_build() {
    type Change = fn(&mut DatasetSpec);
    let empty: Change = |spec| spec.transform = Some(" \n".to_owned());
    let renamed: Change = |spec| {
        let names = [("prompt".to_owned(), "question".to_owned())];
        spec.sources[0].columns = BTreeMap::from(names);
    };
    let idle: Change = |spec| {
        spec.transform = None;
        spec.privacy = Some(Privacy {
            mode: PrivacyMode::Redact,
            columns: vec![],
            pseudonym_key_ref: Some(SecretKeyReference::default()),
            analyzer: None,
        });
    };
    for (change, field) in [
        (empty, "spec.transform: is empty"),
        (renamed, ".columns: has no place beside spec.transform"),
        (idle, "spec.privacy.pseudonymKeyRef: is needed"),
    ] {
        let mut world = transformed();
        change(&mut world.cr.spec);
        assert!(world.reconcile().create.is_empty());
        assert_eq!(world.ready().1, reason::INVALID_SPEC);
        assert!(world.ready().2.contains(field), "{}", world.ready().2);
    }
}
