//! Candidates that are taken back for what happened outside of their traffic: to the spec, to the version, to
//! the adapter.

use super::*;

/// Children as they stand in the cluster.
fn children(world: &World) -> String {
    format!(
        "{:?} {:?} {:?} {:?}",
        world.observed.engine_configuration,
        world.observed.router_configuration,
        world.observed.engine_deployment,
        world.observed.router_deployment
    )
}

#[test]
fn a_spec_that_turns_bad_takes_the_candidate_back_and_goes_on_serving() {
    let mut world = World::serving(&json!({}));
    world.approve(2).settle();
    assert_eq!(world.state(), RolloutState::Paused);
    let before = children(&world);
    assert_eq!(world.condition(condition::ADAPTERS_PENDING).0, "False");
    world.deaf_routers = true;
    let (profile, base) = (
        world.cr.spec.engine.compute_profile.clone(),
        world.cr.spec.base_model.name.clone(),
    );
    world.cr.spec.engine.compute_profile = "moon".to_owned();
    // Also what routers are told comes from the spec that worked.
    world.cr.spec.base_model.name = Some("other".to_owned());
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::COMPUTE_PROFILE_NOT_FOUND)
    );
    assert_eq!(
        world.condition(condition::PROGRESSING),
        ("True", reason::ROLLING_BACK)
    );
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("Unknown", reason::COMPUTE_PROFILE_NOT_FOUND),
        "nothing is said of adapters by a spec that can't be acted on"
    );
    let actions = world.act();
    assert!(
        matches!(&actions.calls[..], [Call::SyncRouter(_, table)] if table.models[0].candidate.is_none()),
        "{:?}",
        actions.calls
    );
    assert_eq!(actions.requeue_after, Some(SOON));
    world.deaf_routers = false;
    world.settle();
    assert_eq!((world.rollout(), world.stable()), (None, 1));
    assert_eq!(world.status().columns.as_ref().unwrap().rollout, "-");
    assert_eq!(world.status().rejected, [], "it is nobody's fault");
    assert_eq!(world.table.clone().unwrap().base_name, "tiny");
    assert_eq!(children(&world), before, "children stay as they are");
    let writes = world.writes;
    world.after(100_000);
    let actions = world.act();
    assert_eq!(world.writes, writes);
    assert_eq!((actions.calls.len(), actions.requeue_after), (0, None));

    // A router that starts meanwhile hears what serves; an engine that goes leaves the table.
    world.observed.routers[0].acknowledged = None;
    world.observed.engines.push(EnginePod {
        pod: pod("engine-2"),
        status: Asked::Answered(SyncReply::default()),
        acknowledged: None,
    });
    world.observed.engines.remove(0);
    world.settle();
    let table = world.table.clone().unwrap();
    assert_eq!(table.engines.len(), 1);
    assert_eq!(table.engines[0].pod, "engine-2");
    assert_eq!(table.engines[0].lacks, [""; 0]);

    // With its status lost as well, nobody knows what to tell them.
    let mut lost = World::serving(&json!({}));
    lost.cr.spec.engine.compute_profile = "moon".to_owned();
    lost.cr.status = None;
    lost.settle();
    lost.observed.routers[0].acknowledged = None;
    assert_eq!(lost.act().calls, []);

    // Mended, the version is tried again.
    world.cr.spec.engine.compute_profile = profile;
    world.cr.spec.base_model.name = base;
    world.settle();
    assert_eq!(world.state(), RolloutState::Paused);
    world.after(60);
    assert_eq!(world.stable(), 2);
}

#[test]
fn a_spec_that_turns_bad_before_the_first_version_serves_ends_nothing() {
    let mut world = World::new(&json!({}));
    world.settle();
    assert_eq!(world.state(), RolloutState::Preparing);
    world.cr.spec.engine.compute_profile = "moon".to_owned();
    world.settle();
    assert_eq!(world.state(), RolloutState::Preparing);
    assert_eq!(world.act().requeue_after, None, "nothing is under way");
    world.cr.spec.engine.compute_profile = "default".to_owned();
    world.start_pods();
    world.settle();
    assert_eq!(world.stable(), 1);
}

#[test]
fn a_candidate_that_a_person_rejects_is_taken_back_whether_followed_or_pinned() {
    for pin in [None, Some(2)] {
        let mut world = World::serving(&json!({}));
        world.cr.spec.adapters[0].version = pin;
        world.approve(2).settle();
        assert_eq!(world.state(), RolloutState::Paused);
        restage(&mut world, 2, "Rejected", reason::REJECTED_BY_USER);
        let status = world
            .observed
            .adapters
            .get_mut("a")
            .unwrap()
            .status
            .as_mut();
        // Nothing else may be served either: nothing is wanted in its place.
        status.unwrap().approved = None;
        restage(&mut world, 1, "Rejected", reason::BASE_MODEL_MISMATCH);
        world.after(60).after(100_000);
        assert_eq!((world.rollout(), world.stable()), (None, 1), "{pin:?}");
        assert_eq!(world.table.clone().unwrap().models[0].candidate, None);
        assert_eq!(
            world.condition(condition::ADAPTERS_PENDING).0,
            "True",
            "what serves is not what the spec asks for"
        );
    }
}

#[test]
fn a_candidate_goes_with_its_adapter_and_with_another_base() {
    let losses: [fn(&mut World); 3] = [
        |world| world.observed.adapters.clear(),
        |world| {
            let adapter = world.observed.adapters.get_mut("a").unwrap();
            adapter.metadata.deletion_timestamp = Some(graftwork_api::Time(at(0)));
        },
        |world| {
            let adapter = world.observed.adapters.get_mut("a").unwrap();
            let base = &mut adapter.status.as_mut().unwrap().base_model;
            base.as_mut().unwrap().digest = Digest::of(b"other").to_string();
        },
    ];
    for lose in losses {
        let mut world = World::serving(&json!({}));
        world.approve(2).settle();
        assert_eq!(world.state(), RolloutState::Paused);
        lose(&mut world);
        world.after(60).after(100_000);
        assert_eq!((world.rollout(), world.stable()), (None, 1));
    }
}

#[test]
fn a_rollback_that_a_person_began_heeds_a_later_no_to_its_target() {
    let mut world = World::serving(&json!({}));
    world.approve(3).settle();
    world.after(60);
    assert_eq!(world.stable(), 3);
    assert_eq!(world.say("Rollback", 2).0, AnswerOutcome::Accepted);
    assert_eq!(world.state(), RolloutState::Paused);
    restage(&mut world, 2, "Rejected", reason::REJECTED_BY_USER);
    world.after(60).after(100_000);
    assert_eq!((world.rollout(), world.stable()), (None, 3));
    assert_eq!(
        world.status().answers["adapter/a"].outcome,
        AnswerOutcome::Failed
    );
}

#[test]
fn a_candidate_whose_settings_turn_back_to_those_it_failed_under_is_taken_back() {
    let mut world = World::serving(&json!({}));
    world.approve(2).settle();
    world.say("Abort", 2);
    assert_eq!(world.state(), RolloutState::RolledBack);
    world.cr.spec.rollout.progress_deadline_seconds = 601;
    world.settle();
    assert_eq!(world.state(), RolloutState::Paused, "other settings: again");
    world.cr.spec.rollout.progress_deadline_seconds = 600;
    world.after(60).after(100_000);
    assert_eq!((world.rollout(), world.stable()), (None, 1));
}

#[test]
fn a_leader_whose_clock_is_behind_takes_a_bad_version_back_all_the_same() {
    let spec = json!({"rollout": {
        "canary": {"steps": [{"setWeight": 10}, {"pause": {"seconds": 60}}]},
        "analysis": {"intervalSeconds": 10, "minimumRequests": 50, "rules": [{"metric": "error_rate", "maximum": "0.01"}]},
    }});
    let mut world = World::serving(&spec);
    world.now = 10_000;
    world.approve(2).settle();
    assert_eq!(world.state(), RolloutState::Paused);
    world.now = 0;
    world.traffic = (400, 40);
    world.after(1);
    assert_eq!(
        (world.state(), world.stable()),
        (RolloutState::RolledBack, 1)
    );
}

#[test]
fn one_adapters_many_rejections_do_not_push_out_the_only_one_of_another() {
    let entries = json!([
        {"name": "a", "adapterRef": {"name": "a"}},
        {"name": "b", "adapterRef": {"name": "a"}},
    ]);
    let mut world = World::serving(&json!({"adapters": entries}));
    world.approve(2).settle();
    let rejected = |adapter: &str, number: u32| graftwork_api::serving_endpoint::RejectedDigest {
        adapter: adapter.to_owned(),
        digest: digest(number),
        version: number,
        reason: reason::ABORTED_BY_USER.to_owned(),
        message: "ann said Abort".to_owned(),
        time: graftwork_api::Time(at(0)),
        settings_hash: None,
    };
    let many = (100..199).map(|number| rejected("a", number));
    let status = world.cr.status.as_mut().unwrap();
    status.rejected = many.chain([rejected("b", 9)]).collect();
    assert_eq!(world.say("Abort", 2).0, AnswerOutcome::Done);
    let kept = &world.status().rejected;
    assert_eq!(kept.len(), 100);
    assert_eq!((kept[0].version, kept[0].adapter.as_str()), (2, "a"));
    assert!(kept.iter().any(|it| it.adapter == "b"));
    assert!(
        kept.iter().all(|it| it.version != 198),
        "the oldest of many"
    );
}

/// Its version 2 was aborted; as the adapter's own status says a moment later, `approved` is the newest that may be
/// served.
fn aborted(approved: u32) -> World {
    let mut world = World::serving(&json!({}));
    world.approve(2).settle();
    assert_eq!(world.say("Abort", 2).0, AnswerOutcome::Done);
    world.after(100_000);
    world.approve(approved);
    restage(&mut world, 2, "Rejected", reason::ROLLED_BACK_ON_ENDPOINT);
    world.settle();
    assert_eq!(world.state(), RolloutState::RolledBack);
    world
}

#[test]
fn who_follows_an_adapter_tries_a_rejected_version_again_once_rollout_or_gate_change() {
    let changes: [fn(&mut World); 2] = [
        |world| world.cr.spec.rollout.progress_deadline_seconds += 1,
        |world| {
            let adapter = world.observed.adapters.get_mut("a").unwrap();
            adapter.spec.gate.confidence = graftwork_api::Decimal::rounded(0.9, 2).unwrap();
        },
    ];
    for change in changes {
        let mut world = aborted(1);
        change(&mut world);
        world.settle();
        assert_eq!(world.state(), RolloutState::Paused);
        let candidate = world.status().adapters[0].candidate.as_ref().unwrap();
        assert_eq!(candidate.version, 2);
    }
}

#[test]
fn a_rejected_version_that_the_changed_gate_fails_is_not_tried_again() {
    let mut world = aborted(1);
    let adapter = world.observed.adapters.get_mut("a").unwrap();
    adapter.spec.gate.confidence = graftwork_api::Decimal::rounded(0.9, 2).unwrap();
    adapter.metadata.generation = Some(2);
    // Its status is of the gate before.
    world.settle();
    assert_eq!(world.rollout(), None);
    let status = world.observed.adapters.get_mut("a").unwrap();
    let status = status.status.as_mut().unwrap();
    status.observed_generation = Some(2);
    let version = status.versions.iter_mut().find(|it| it.version == 2);
    version.unwrap().gate =
        serde_json::from_value(json!({"verdict": "Fail", "rules": []})).unwrap();
    world.settle();
    assert_eq!((world.rollout(), world.stable()), (None, 1));
}

#[test]
fn a_rejected_version_does_not_give_way_to_an_older_one_that_never_served() {
    let mut world = World::serving(&json!({}));
    world.approve(2).settle();
    world.approve(3).after(60);
    assert_eq!(world.say("Abort", 3).0, AnswerOutcome::Done);
    world.approve(2);
    restage(&mut world, 3, "Rejected", reason::ROLLED_BACK_ON_ENDPOINT);
    world.after(100_000);
    assert_eq!(
        (world.state(), world.stable()),
        (RolloutState::RolledBack, 1)
    );
    assert_eq!(world.condition(condition::ROLLED_BACK).0, "True");
    world.approve(4).settle();
    let candidate = world.status().adapters[0].candidate.as_ref().unwrap();
    assert_eq!(candidate.version, 4, "what is newer is tried");
}
