//! An endpoint that is deleted and applied again, or another one that follows the same adapter.

use super::*;

/// An endpoint without status, while the adapter says which version is or was in production.
fn anew(production: u32, approved: u32) -> World {
    let mut world = World::new(&json!({
        "rollout": {"canary": {"steps": [{"setWeight": 10}, {"pause": {}}]}},
    }));
    world.approve(approved);
    let adapter = world.observed.adapters.get_mut("a").unwrap();
    adapter.status.as_mut().unwrap().production = serde_json::from_value(json!({
        "version": production, "endpoints": [],
    }))
    .unwrap();
    world
}

#[test]
fn an_endpoint_made_anew_begins_with_production_and_canaries_what_is_newer() {
    let mut world = anew(2, 4);
    world.settle();
    world.start_pods();
    world.settle();
    assert_eq!(world.stable(), 2);
    assert_eq!(world.state(), RolloutState::Paused);
    let candidate = world.status().adapters[0].candidate.clone().unwrap();
    assert_eq!((candidate.version, candidate.weight), (4, 10));
    world.after(100_000);
    assert_eq!(world.stable(), 2, "the pause is open");
    let (outcome, message) = world.say("Promote", 4);
    assert_eq!(outcome, AnswerOutcome::Done, "{message}");
    assert_eq!((world.rollout(), world.stable()), (None, 4));
}

#[test]
fn a_pin_and_a_version_that_may_not_be_served_do_not_wait_for_production() {
    let mut pinned = anew(2, 4);
    pinned.cr.spec.adapters[0].version = Some(3);
    let mut rejected = anew(2, 4);
    restage(&mut rejected, 2, "Rejected", reason::REJECTED_BY_USER);
    for (mut world, stable) in [(pinned, 3), (rejected, 4)] {
        world.settle();
        world.start_pods();
        world.settle();
        assert_eq!((world.rollout(), world.stable()), (None, stable));
    }
}

#[test]
fn an_endpoint_made_anew_goes_on_from_its_own_version_whatever_serves_elsewhere() {
    for pin in [None, Some(4)] {
        let mut world = anew(3, 4);
        let adapter = world.observed.adapters.get_mut("a").unwrap();
        adapter.status.as_mut().unwrap().last_served = serde_json::from_value(json!([
            {"endpoint": "assistants", "adapter": "a", "version": 2},
            {"endpoint": "others", "adapter": "a", "version": 3},
        ]))
        .unwrap();
        world.cr.spec.adapters[0].version = pin;
        world.settle();
        world.start_pods();
        world.settle();
        assert_eq!((world.stable(), world.state()), (2, RolloutState::Paused));
        let candidate = world.status().adapters[0].candidate.clone().unwrap();
        assert_eq!((candidate.version, candidate.weight), (4, 10), "{pin:?}");
    }
}

#[test]
fn a_version_that_this_endpoint_rejected_is_not_where_it_begins() {
    let mut world = anew(2, 4);
    world.settle();
    let mut status = world.status().clone();
    let entry = &world.cr.spec.adapters[0];
    let gate = &world.observed.adapters["a"].spec.gate;
    let hash = desired::settings_hash(entry, &world.cr.spec.rollout, Some(gate));
    status.rejected = serde_json::from_value(json!([{
        "adapter": "a", "version": 2, "digest": digest(2), "reason": "CandidateRefused",
        "message": "", "time": "2026-01-01T00:00:00Z", "settingsHash": hash,
    }]))
    .unwrap();
    status.adapters.clear();
    world.cr.status = Some(status);
    world.settle();
    world.start_pods();
    world.settle();
    assert_eq!(world.stable(), 4);
}
