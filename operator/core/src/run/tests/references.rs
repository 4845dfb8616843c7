//! What a run says of the objects that its spec names, and what it takes from them.

use graftwork_api::VersionReference;
use graftwork_api::training_run::LoraMethod;
use serde_json::json;

use super::*;
use crate::plan::NAME_TAKEN_PAUSE;

#[test]
fn what_the_api_server_shows_is_said_while_no_keeper_is_up() {
    for (change, why) in [
        (
            (|world: &mut World| world.observed.dataset = Referenced::Absent) as fn(&mut World),
            reason::WAITING_FOR_DATASET,
        ),
        (
            |world| world.cr.spec.dataset_ref.version = Some(9),
            reason::WAITING_FOR_DATASET,
        ),
        (
            |world| world.cr.spec.adapter_ref = Some(ObjectReference::new("x")),
            reason::WAITING_FOR_ADAPTER,
        ),
        (
            |world| world.observed.base_claim = ClaimState::NotBound,
            reason::BASE_MODEL_NOT_FOUND,
        ),
        (
            |world| world.cr.spec.compute.profile = "huge".to_owned(),
            reason::COMPUTE_PROFILE_NOT_FOUND,
        ),
        (|_| {}, reason::STORAGE_UNAVAILABLE),
    ] {
        for base_is_known in [false, true] {
            let mut world = World::new();
            let away = "the keeper of namespace team has no pod yet".to_owned();
            if !base_is_known {
                world.observed.base = Asked::Unreachable(away.clone());
            }
            world.observed.resolved = Asked::Unreachable(away.clone());
            world.observed.result = Asked::Unreachable(away);
            change(&mut world);
            world.reconcile();
            assert_eq!(world.succeeded().1, why);
            assert!(world.created.is_empty() && !world.is_finished());
        }
    }
    // What a run was pinned to does not move with what its references mean later.
    let mut world = World::new();
    world.reconcile();
    world.observed.jobs.clear();
    world.cr.status.as_mut().unwrap().attempts = None;
    world.observed.dataset = Referenced::Absent;
    world.observed.resolved = Asked::Unreachable("away".to_owned());
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::STORAGE_UNAVAILABLE);
}

#[test]
fn a_name_that_somebody_else_has_is_looked_at_again_soon() {
    let mut world = World::new();
    world.observed.job = Found::Foreign;
    for _ in 0..4 {
        world.reconcile();
    }
    let actions = world.reconcile();
    assert_eq!(actions.requeue_after, Some(NAME_TAKEN_PAUSE));
    world.observed.job = Found::Absent;
    world.start();
    assert_eq!(world.created, ["nightly-1"]);
}

/// An adapter whose status says this of its versions.
fn adapter(status: serde_json::Value) -> Referenced<LoRAAdapter> {
    Referenced::There(Box::new(
        serde_json::from_value(json!({
            "apiVersion": "graftwork.dev/v1alpha1",
            "kind": "LoRAAdapter",
            "metadata": {"name": "topics", "namespace": "team", "generation": 1},
            "spec": {"baseModel": {"uri": "pvc://models/tiny"}},
            "status": status,
        }))
        .unwrap(),
    ))
}

fn version_available(status: &str) -> serde_json::Value {
    json!([{
        "type": "VersionAvailable", "status": status, "reason": "x", "message": "",
        "lastTransitionTime": at(0).to_string(),
    }])
}

fn the_base() -> serde_json::Value {
    json!({"digest": Digest::of(b"base").to_string()})
}

fn version_of(number: u32, digest: &Digest, run: Option<&str>) -> serde_json::Value {
    json!({
        "version": number, "digest": digest.to_string(), "stage": "Candidate",
        "trainingRun": run, "createdTime": at(0).to_string(),
    })
}

#[test]
fn a_run_is_not_pinned_to_the_base_before_its_adapter_has_read_its_ledger() {
    let mut world = World::new();
    world.cr.spec.adapter_ref = Some(ObjectReference::new("topics"));
    // The keeper is away: the adapter was looked at, and nothing of its ledger is known.
    world.observed.adapter = adapter(json!({
        "observedGeneration": 1, "conditions": version_available("Unknown"),
    }));
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::WAITING_FOR_ADAPTER);
    assert_eq!(
        world.succeeded().2,
        "spec.adapterRef.name: LoRAAdapter \"topics\" has not read its ledger of versions yet"
    );
    let production = Digest::of(b"production");
    world.observed.adapter = adapter(json!({
        "observedGeneration": 1, "conditions": version_available("True"), "baseModel": the_base(),
        "versions": [version_of(4, &production, None)],
        "production": {"version": 4, "endpoints": ["one"]},
    }));
    world.reconcile();
    let pinned = world.cr.status.clone().unwrap().resolved.unwrap();
    assert_eq!(pinned.reference.as_deref(), Some("4"));

    // An empty ledger was read, too.
    let mut first = World::new();
    first.cr.spec.adapter_ref = Some(ObjectReference::new("topics"));
    first.observed.adapter = adapter(json!({
        "observedGeneration": 1, "conditions": version_available("False"), "baseModel": the_base(),
    }));
    first.reconcile();
    let pinned = first.cr.status.unwrap().resolved.unwrap();
    assert_eq!(pinned.reference.as_deref(), Some("base"));
}

#[test]
fn a_second_run_with_the_same_result_gets_the_number_of_the_version_that_has_it() {
    let mut world = World::new();
    world.cr.spec.adapter_ref = Some(ObjectReference::new("topics"));
    let none_yet = json!({
        "observedGeneration": 1, "conditions": version_available("False"), "baseModel": the_base(),
    });
    world.observed.adapter = adapter(none_yet);
    world.start();
    world.publish_result();
    world.end_pod(0, |_| {});
    world.reconcile();
    let number = |world: &World| {
        let result = world.cr.status.clone().unwrap().result.unwrap();
        result.adapter_version
    };
    assert_eq!(number(&world), None);
    let (same, other) = (Digest::of(b"adapter"), Digest::of(b"other"));
    world.observed.adapter = adapter(json!({
        "observedGeneration": 1, "conditions": version_available("True"), "baseModel": the_base(),
        "versions": [version_of(2, &other, Some("nightly")), version_of(1, &same, Some("first"))],
    }));
    world.reconcile();
    assert_eq!(number(&world), Some(1), "identity is content, not the run");
}

#[test]
fn what_a_run_starts_from_is_waited_for_pinned_and_part_of_its_key() {
    let mut world = World::new();
    world.cr.spec.initial_adapter_ref = Some(VersionReference {
        name: "topics".to_owned(),
        version: 4,
    });
    let listed = Digest::of(b"four");
    let state = |known: &str, base: &Digest, versions: serde_json::Value| {
        adapter(json!({
            "observedGeneration": 1, "conditions": version_available(known),
            "versions": versions, "baseModel": {"digest": base.to_string()},
        }))
    };
    let (base, other) = (Digest::of(b"base"), Digest::of(b"another base"));
    for (initial, why, message) in [
        (
            Referenced::Absent,
            reason::WAITING_FOR_ADAPTER,
            "spec.initialAdapterRef.name: LoRAAdapter \"topics\" does not exist",
        ),
        (
            state("Unknown", &base, json!([])),
            reason::WAITING_FOR_ADAPTER,
            "spec.initialAdapterRef.name: LoRAAdapter \"topics\" has not read its ledger of versions yet",
        ),
        (
            adapter(json!({"observedGeneration": 1, "conditions": version_available("True")})),
            reason::WAITING_FOR_ADAPTER,
            "spec.initialAdapterRef.name: LoRAAdapter \"topics\" does not know its base model yet",
        ),
        (
            adapter(json!({"observedGeneration": 1, "conditions": [
                version_available("True")[0],
                {"type": "Ready", "status": "False", "reason": "BaseModelUnsupported",
                 "message": "no gpt2", "lastTransitionTime": at(0).to_string()},
            ]})),
            reason::WAITING_FOR_ADAPTER,
            "spec.initialAdapterRef.name: LoRAAdapter \"topics\" is not ready: BaseModelUnsupported: no gpt2",
        ),
        (
            state("True", &base, json!([version_of(3, &listed, None)])),
            reason::WAITING_FOR_ADAPTER,
            "spec.initialAdapterRef.version: LoRAAdapter \"topics\" lists no version 4",
        ),
        (
            state("True", &other, json!([version_of(4, &listed, None)])),
            reason::BASE_MODEL_MISMATCH,
            "spec.baseModel.uri: LoRAAdapter \"topics\" is for base model ",
        ),
    ] {
        world.observed.initial = initial;
        world.reconcile();
        let (_, got, words) = world.succeeded();
        assert_eq!(got, why);
        assert!(words.starts_with(message), "{words}");
        assert!(world.created.is_empty());
    }
    world.observed.initial = state("True", &base, json!([version_of(4, &listed, None)]));
    let valid = validate(&world.cr.spec).unwrap();
    let resolved =
        crate::run::inputs::resolve(&world.cr, &valid, base.clone(), &world.observed).unwrap();
    let initial = resolved.initial.unwrap();
    assert_eq!((initial.version, initial.digest), (4, listed));
    assert_eq!(wanted_version(&world.cr).map(|it| it.version), Some(4));
    let mut pinned = world.cr.clone();
    pinned.status.get_or_insert_default().resolved =
        Some(graftwork_api::training_run::ResolvedInputs::default());
    assert_eq!(
        wanted_version(&pinned),
        None,
        "it need not be listed any more"
    );
    let key = |world: &World| crate::run::inputs::key(&valid, &world.cr, &base).unwrap();
    let warm = key(&world);
    world.cr.spec.initial_adapter_ref = None;
    assert_ne!(key(&world), warm);
}

#[test]
fn what_a_run_starts_from_has_its_own_shape_unless_the_spec_names_one() {
    let mut spec = World::new().cr.spec;
    let initial = Some(VersionReference {
        name: "topics".to_owned(),
        version: 4,
    });
    for (initial, rank, is_its_own) in [
        (initial.clone(), None, true),
        (initial, Some(8), false),
        (None, None, false),
    ] {
        spec.initial_adapter_ref = initial;
        spec.method.lora = LoraMethod::default();
        spec.method.lora.dropout = "0.1".into();
        spec.method.lora.rank = rank.unwrap_or(spec.method.lora.rank);
        let valid = validate(&spec).unwrap();
        assert_eq!(valid.shape_of_initial, is_its_own, "{rank:?}");
    }
}
