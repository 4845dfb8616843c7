//! Base models whose tokens rows are measured in, and mixes: what a build is told and what is mounted.

use graftwork_api::{BaseModelSource, Decimal};
use graftwork_contract::dataset::{BaseModel, BuildConfig, Share, TokenCounts};
use graftwork_contract::pod;

use super::*;
use crate::observed::ClaimState;

fn measured(mut world: World) -> World {
    world.cr.spec.base_model = Some(BaseModelSource {
        uri: "pvc://models/llm/base".to_owned(),
    });
    world.cr.spec.validation.maximum_tokens_per_row = Some(4096);
    world.observed.base_claim = ClaimState::Bound;
    world
}

fn config(actions: &Actions<DatasetStatus>) -> BuildConfig {
    let Child::ConfigMap(map) = &actions.apply[0] else {
        unreachable!("a build has a configuration")
    };
    serde_json::from_str(&map.data.as_ref().unwrap()["config.json"]).unwrap()
}

#[test]
fn the_models_claim_is_mounted_read_only_and_its_folder_is_told() {
    let actions = measured(World::from_config_map()).reconcile();
    let told = config(&actions);
    let folder = format!("{}/llm/base", pod::claim_dir("models"));
    let expected = BaseModel {
        uri: "pvc://models/llm/base".to_owned(),
        path: folder,
    };
    assert_eq!(told.base_model, Some(expected));
    assert_eq!(told.validation.maximum_tokens_per_row, Some(4096));
    let pod = actions.create[0]
        .spec
        .as_ref()
        .unwrap()
        .template
        .spec
        .clone();
    let pod = pod.unwrap();
    let mounts = pod.containers[0].volume_mounts.as_ref().unwrap();
    let path = pod::claim_dir("models");
    let mount = mounts.iter().find(|it| it.mount_path == path).unwrap();
    assert_eq!(mount.read_only, Some(true));
    let volumes = pod.volumes.unwrap();
    let volume = volumes.iter().find(|it| it.name == mount.name).unwrap();
    let claim = volume.persistent_volume_claim.as_ref().unwrap();
    assert_eq!(claim.claim_name, "models");
}

#[test]
fn a_claim_that_holds_rows_and_the_model_is_mounted_once() {
    let mut world = measured(World::from_claim());
    world.cr.spec.base_model.as_mut().unwrap().uri = "pvc://text/base".to_owned();
    let actions = world.reconcile();
    let pod = actions.create[0]
        .spec
        .as_ref()
        .unwrap()
        .template
        .spec
        .clone();
    let claims = pod.unwrap().volumes.unwrap().into_iter();
    let claims = claims.filter_map(|it| it.persistent_volume_claim);
    let names: Vec<String> = claims.map(|it| it.claim_name).collect();
    assert_eq!(names.iter().filter(|name| *name == "text").count(), 1);
}

#[test]
fn a_model_that_is_not_there_is_named_and_waited_for() {
    let mut world = measured(World::from_config_map());
    world.observed.base_claim = ClaimState::Absent;
    assert!(world.reconcile().create.is_empty());
    let (status, reason, message) = world.ready();
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", reason::BASE_MODEL_NOT_FOUND)
    );
    assert!(message.contains("spec.baseModel.uri"), "{message}");
    assert!(message.contains("\"models\" does not exist"), "{message}");
    world.observed.base_claim = ClaimState::Bound;
    assert_eq!(world.reconcile().create.len(), 1);

    // The claim is there and the folder is not: the builder says so, and is started again.
    let summary = BuildSummary {
        reason: reason::BASE_MODEL_NOT_FOUND.to_owned(),
        message: "spec.baseModel (pvc://models/llm/base): tokenizer.json not found".to_owned(),
        version: None,
        digest: None,
        rows: None,
        rejected: Vec::new(),
    };
    world.end_job(65, Some(&summary));
    world.reconcile();
    let (status, reason, message) = world.ready();
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", reason::BASE_MODEL_NOT_FOUND)
    );
    assert!(message.contains("attempt 2 starts at"), "{message}");
}

#[test]
fn another_model_or_limit_is_another_build_and_neither_is_the_one_of_before() {
    let plain = World::from_config_map().fingerprint();
    let first = measured(World::from_config_map());
    let mut model = first.clone();
    model.cr.spec.base_model.as_mut().unwrap().uri = "pvc://models/other".to_owned();
    let mut limit = first.clone();
    limit.cr.spec.validation.maximum_tokens_per_row = Some(2048);
    let mut known = vec![plain];
    for world in [first, model, limit] {
        assert!(!known.contains(&world.fingerprint()));
        known.push(world.fingerprint());
    }
}

#[test]
fn a_limit_without_a_model_or_of_zero_can_not_work() {
    let mut without = measured(World::from_config_map());
    without.cr.spec.base_model = None;
    let mut zero = measured(World::from_config_map());
    zero.cr.spec.validation.maximum_tokens_per_row = Some(0);
    let mut scheme = measured(World::from_config_map());
    scheme.cr.spec.base_model.as_mut().unwrap().uri = "file:///etc".to_owned();
    for (mut world, field) in [
        (
            without,
            "spec.validation.maximumTokensPerRow: needs spec.baseModel",
        ),
        (zero, "spec.validation.maximumTokensPerRow: is 0"),
        (scheme, "spec.baseModel.uri: scheme \"file\""),
    ] {
        assert!(world.reconcile().create.is_empty());
        let (_, reason, message) = world.ready();
        assert_eq!(reason, reason::INVALID_SPEC);
        assert!(message.starts_with(field), "{message}");
    }
}

#[test]
fn tokens_and_the_version_before_stand_in_status() {
    let mut world = measured(World::from_config_map());
    world.publish(1);
    world.publish(2);
    let Asked::Answered(records) = &mut world.observed.versions else {
        unreachable!("the keeper answers here")
    };
    let mut record: VersionRecord = records[1].read().unwrap();
    record.tokens = Some(TokenCounts {
        train: 7000,
        validation: 800,
        test: 900,
        longest_row: 120,
    });
    records[1].content = Some(serde_json::to_vec(&record).unwrap());
    world.reconcile();
    let versions = world.cr.status.unwrap().versions;
    let tokens = versions[0].tokens.unwrap();
    assert_eq!((tokens.train, tokens.longest_row), (7000, 120));
    assert_eq!((versions[0].parent, versions[1].parent), (Some(1), None));
    assert_eq!(versions[1].tokens, None);
}

#[test]
fn weights_become_shares_and_another_build() {
    let mut world = World::from_claim();
    let mut second = world.cr.spec.sources[0].clone();
    second.name = "more".to_owned();
    world.cr.spec.sources.push(second);
    let present = SourceState::Present(None);
    world.observed.sources.insert("more".to_owned(), present);
    let even = world.fingerprint();
    world.cr.spec.sources[1].weight = Some(Decimal::from("0.2"));
    assert_ne!(world.fingerprint(), even);
    let told = config(&world.reconcile());
    let expected = Share {
        part: 200_000,
        whole: 1_000_000,
    };
    assert_eq!(
        (told.sources[0].share, told.sources[1].share),
        (None, Some(expected))
    );
}
