//! What a spec says about personal data, and what a build is told of it.

use graftwork_api::analyzer::Analyzer;
use graftwork_api::dataset::{Classification, Privacy, PrivacyMode, SecretKeyReference};
use graftwork_contract::dataset::BuildConfig;
use graftwork_contract::pod;

use super::*;

fn privacy(mode: PrivacyMode) -> Privacy {
    Privacy {
        pseudonym_key_ref: (mode == PrivacyMode::Pseudonymise).then(|| SecretKeyReference {
            name: "pseudonyms".to_owned(),
            key: "key".to_owned(),
        }),
        mode,
        columns: vec![],
        analyzer: None,
    }
}

fn world(classification: Classification, privacy: Option<Privacy>) -> World {
    let mut world = World::from_config_map();
    world.cr.spec.classification = Some(classification);
    world.cr.spec.privacy = privacy;
    world
}

fn config(actions: &Actions<DatasetStatus>) -> BuildConfig {
    let Child::ConfigMap(map) = &actions.apply[0] else {
        unreachable!("a build has a configuration")
    };
    serde_json::from_str(&map.data.as_ref().unwrap()["config.json"]).unwrap()
}

#[test]
fn restricted_data_is_not_built_without_a_mode_or_with_allow() {
    for (privacy, field) in [
        (None, "spec.privacy: is missing"),
        (
            Some(privacy(PrivacyMode::Allow)),
            "spec.privacy.mode: is Allow",
        ),
    ] {
        let mut world = world(Classification::Restricted, privacy);
        let actions = world.reconcile();
        assert!(actions.create.is_empty());
        assert_eq!(world.ready().1, reason::INVALID_SPEC);
        assert!(world.ready().2.starts_with(field), "{}", world.ready().2);
    }
    for mode in [
        PrivacyMode::Redact,
        PrivacyMode::Pseudonymise,
        PrivacyMode::Reject,
    ] {
        let mut world = world(Classification::Restricted, Some(privacy(mode)));
        assert_eq!(world.reconcile().create.len(), 1);
    }
    for privacy in [None, Some(privacy(PrivacyMode::Allow))] {
        let mut world = world(Classification::Internal, privacy);
        assert_eq!(world.reconcile().create.len(), 1);
    }
}

#[test]
fn a_wrong_field_of_privacy_is_named() {
    type Change = fn(&mut Privacy);
    let no_key: Change = |privacy| {
        privacy.mode = PrivacyMode::Pseudonymise;
    };
    let unknown: Change = |privacy| privacy.mode = PrivacyMode::Other("Encrypt".to_owned());
    let column: Change = |privacy| privacy.columns = vec!["prompt".to_owned(), "text".to_owned()];
    for (change, message) in [
        (no_key, "spec.privacy.pseudonymKeyRef: is needed"),
        (unknown, "spec.privacy.mode: \"Encrypt\" is not known"),
        (
            column,
            "spec.privacy.columns: \"text\" is not kept; columns of text are prompt, completion",
        ),
    ] {
        let mut wrong = privacy(PrivacyMode::Redact);
        change(&mut wrong);
        let mut world = world(Classification::Internal, Some(wrong));
        world.reconcile();
        assert_eq!(world.ready().1, reason::INVALID_SPEC);
        assert!(world.ready().2.starts_with(message), "{}", world.ready().2);
    }
}

#[test]
fn left_out_columns_are_every_column_of_text_with_the_groups() {
    let mut world = world(
        Classification::Restricted,
        Some(privacy(PrivacyMode::Redact)),
    );
    world.cr.spec.split.group_column = Some("customer".to_owned());
    let told = config(&world.reconcile()).privacy.unwrap();
    assert_eq!(told.columns, ["prompt", "completion", "customer"]);
    world.cr.spec.privacy.as_mut().unwrap().columns = vec!["completion".to_owned()];
    let told = config(&world.reconcile()).privacy.unwrap();
    assert_eq!(told.columns, ["completion"]);
}

#[test]
fn another_way_with_personal_data_is_another_fingerprint_and_a_classification_is_none() {
    let plain = World::from_config_map().fingerprint();
    assert_eq!(world(Classification::Public, None).fingerprint(), plain);
    let mut known = vec![plain];
    for mode in [
        PrivacyMode::Redact,
        PrivacyMode::Pseudonymise,
        PrivacyMode::Reject,
        PrivacyMode::Allow,
    ] {
        let fingerprint = world(Classification::Public, Some(privacy(mode))).fingerprint();
        assert!(!known.contains(&fingerprint));
        known.push(fingerprint);
    }
}

fn asking(change: impl FnOnce(&mut Analyzer)) -> World {
    let mut analyzer = Analyzer {
        url: "http://presidio.privacy.svc:3000".to_owned(),
        ..Analyzer::default()
    };
    change(&mut analyzer);
    let mut asked = privacy(PrivacyMode::Redact);
    asked.analyzer = Some(analyzer);
    world(Classification::Restricted, Some(asked))
}

#[test]
fn a_build_is_told_whom_to_ask_for_names_and_nobody_where_the_spec_names_nobody() {
    let mut world = asking(|_| ());
    let told = config(&world.reconcile())
        .privacy
        .unwrap()
        .analyzer
        .unwrap();
    assert_eq!(told.url, "http://presidio.privacy.svc:3000");
    assert_eq!(told.entities, ["LOCATION", "PERSON"]);
    assert_eq!(
        (told.language.as_str(), told.minimum_score.as_str()),
        ("en", "0.5")
    );
    assert_eq!(told.timeout_seconds, 30);
    let plain = privacy(PrivacyMode::Redact);
    let mut plain = self::world(Classification::Restricted, Some(plain));
    assert_eq!(config(&plain.reconcile()).privacy.unwrap().analyzer, None);
    assert_ne!(plain.fingerprint(), asking(|_| ()).fingerprint());
}

#[test]
fn a_wrong_field_of_the_analyser_is_named_and_a_credential_in_its_url_is_not_shown() {
    type Change = fn(&mut Analyzer);
    let file: Change = |it| it.url = "file:///etc/passwd".to_owned();
    let user: Change = |it| it.url = "http://ann:SECRET@presidio.privacy.svc".to_owned();
    let path: Change = |it| it.url = "http://presidio.privacy.svc/other".to_owned();
    let score: Change = |it| it.minimum_score = Some("1.5".into());
    let seconds: Change = |it| it.timeout_seconds = Some(0);
    for (change, field) in [
        (file, "spec.privacy.analyzer.url"),
        (user, "spec.privacy.analyzer.url"),
        (path, "spec.privacy.analyzer.url"),
        (score, "spec.privacy.analyzer.minimumScore"),
        (seconds, "spec.privacy.analyzer.timeoutSeconds"),
    ] {
        let mut world = asking(change);
        assert!(world.reconcile().create.is_empty(), "{field}");
        assert_eq!(world.ready().1, reason::INVALID_SPEC);
        let message = world.ready().2;
        assert!(message.starts_with(field), "{message}");
        assert!(!message.contains("SECRET"), "{message}");
    }
}

#[test]
fn a_description_reaches_the_build_and_is_no_reason_for_another() {
    let mut world = World::from_config_map();
    let plain = world.fingerprint();
    world.cr.spec.description = Some("Questions and answers".to_owned());
    assert_eq!(world.fingerprint(), plain);
    let told = config(&world.reconcile()).description;
    assert_eq!(told.as_deref(), Some("Questions and answers"));
}

#[test]
fn the_key_of_pseudonyms_is_mounted_read_only_and_no_pod_hangs_without_it() {
    let mode = PrivacyMode::Pseudonymise;
    let actions = world(Classification::Restricted, Some(privacy(mode))).reconcile();
    let named = config(&actions).pseudonym_key.unwrap();
    assert_eq!(
        (named.name.as_str(), named.key.as_str()),
        ("pseudonyms", "key"),
        "whoever finds it missing can say which"
    );
    let spec = actions.create[0].spec.as_ref().unwrap();
    let pod = spec.template.spec.as_ref().unwrap();
    let volumes = pod.volumes.as_ref().unwrap();
    let secrets: Vec<_> = volumes.iter().filter_map(|it| it.secret.as_ref()).collect();
    assert_eq!(secrets.len(), 1);
    assert_eq!(secrets[0].secret_name.as_deref(), Some("pseudonyms"));
    assert_eq!(secrets[0].optional, Some(true));
    let item = &secrets[0].items.as_ref().unwrap()[0];
    let mounts = pod.containers[0].volume_mounts.as_ref().unwrap();
    let mount = mounts.iter().find(|it| it.name == "pseudonym-key").unwrap();
    assert_eq!(
        format!("{}/{}", mount.mount_path, item.path),
        pod::PSEUDONYM_KEY_FILE
    );
    assert_eq!((mount.read_only, item.key.as_str()), (Some(true), "key"));

    let actions = world(
        Classification::Restricted,
        Some(privacy(PrivacyMode::Redact)),
    )
    .reconcile();
    assert_eq!(config(&actions).pseudonym_key, None);
    let spec = actions.create[0].spec.as_ref().unwrap();
    let volumes = spec.template.spec.as_ref().unwrap().volumes.as_ref();
    assert!(volumes.unwrap().iter().all(|it| it.secret.is_none()));
}

#[test]
fn findings_are_shown_by_type() {
    let mut world = World::from_config_map();
    world.publish(1);
    world.reconcile();
    let versions = world.cr.status.unwrap().versions;
    assert_eq!(versions[0].findings["email"], 211);
}
