//! Traffic moves from version to version: who hears of it first, and what takes it back.

use super::*;

#[test]
fn a_new_version_climbs_without_a_new_pod() {
    let mut world = World::serving(&json!({}));
    let (engines, routers) = (
        template(&world.observed.engine_deployment),
        template(&world.observed.router_deployment),
    );
    world.approve(2).settle();
    assert_eq!(world.state(), RolloutState::Paused);
    assert_eq!(
        world.condition(condition::PROGRESSING),
        ("True", reason::PAUSED)
    );
    assert_eq!(
        world.status().columns.as_ref().unwrap().rollout,
        "a v1>v2 10% Paused"
    );
    let candidate = world.table.clone().unwrap().models[0]
        .candidate
        .clone()
        .unwrap();
    assert_eq!((candidate.weight, candidate.lease_seconds), (10, 120));
    assert!(!candidate.salt.is_empty());
    assert_eq!(world.engine_config().adapters.len(), 2);
    assert_eq!(
        world.router_config().models[0].version,
        1,
        "mounted tables hold stable versions only"
    );
    world.after(60);
    assert_eq!((world.rollout(), world.stable()), (None, 2));
    assert_eq!(world.engine_config().adapters.len(), 1);
    assert_eq!(world.router_config().models[0].version, 2);
    assert_eq!(template(&world.observed.engine_deployment), engines);
    assert_eq!(template(&world.observed.router_deployment), routers);
}

#[test]
fn an_engine_keeps_the_old_version_until_every_router_has_left_it() {
    let mut world = World::serving(&json!({"rollout": {"strategy": "Immediate"}}));
    world.approve(2);
    while world.stable() != 2 {
        assert!(world.carry_out(), "the rollout stands still");
    }
    // The new table is not pushed yet: a request for version 1 may still come.
    world.deaf_routers = true;
    world.settle();
    let versions = |world: &World| -> Vec<u32> {
        world
            .engine_config()
            .adapters
            .iter()
            .map(|it| it.version)
            .collect()
    };
    assert_eq!(versions(&world), [1, 2]);
    world.deaf_routers = false;
    world.settle();
    assert_eq!(versions(&world), [2]);
}

#[test]
fn a_lease_is_renewed_while_a_candidate_has_weight() {
    let mut world = World::serving(
        &json!({"rollout": {"canary": {"steps": [{"setWeight": 10}, {"pause": {}}]}}}),
    );
    world.approve(2).settle();
    assert_eq!(world.act().calls, []);
    assert!(world.act().requeue_after.unwrap() <= Duration::from_secs(40));
    world.now += 39;
    assert_eq!(world.act().calls, []);
    world.now += 1;
    assert!(matches!(&world.act().calls[..], [Call::SyncRouter(..)]));
    assert_eq!(
        world.condition(condition::PROGRESSING),
        ("Unknown", reason::PAUSED)
    );
}

#[test]
fn live_failures_take_the_version_back() {
    let spec = json!({"rollout": {
        "canary": {"steps": [{"setWeight": 10}, {"pause": {"seconds": 60}}]},
        "analysis": {"intervalSeconds": 10, "minimumRequests": 50, "rules": [{"metric": "error_rate", "maximum": "0.01"}]},
    }});
    let mut world = World::serving(&spec);
    world.approve(2).settle();
    world.after(30);
    let rollout = world.status().adapters[0].rollout.clone().unwrap();
    assert_eq!(
        rollout.analysis[0].message.as_deref(),
        Some("the candidate completed 0 requests of minimumRequests 50")
    );
    world.traffic = (400, 40);
    world.after(10);
    assert_eq!(
        (world.state(), world.stable()),
        (RolloutState::RolledBack, 1)
    );
    assert_eq!(
        world.condition(condition::ROLLED_BACK),
        ("True", reason::ERROR_RATE_ABOVE_LIMIT)
    );
    assert_eq!(world.condition(condition::READY), ("True", reason::READY));
    let rejected = &world.status().rejected[0];
    assert_eq!((rejected.version, rejected.adapter.as_str()), (2, "a"));
    assert_eq!(rejected.message, "error_rate 0.1 > 0.01 over 400 requests");
    assert_eq!(
        world.status().columns.as_ref().unwrap().rollout,
        "a v1>v2 RolledBack"
    );
    assert_eq!(world.table.clone().unwrap().models[0].candidate, None);
    world.after(100_000);
    assert_eq!(
        world.state(),
        RolloutState::RolledBack,
        "it is not tried again"
    );
    world.traffic = (400, 0);
    // The LoRAAdapter has written the rollback down by now.
    world.approve(1).settle();
    assert_eq!(world.state(), RolloutState::RolledBack);
    let (outcome, _) = world.say("Retry", 2);

    assert_eq!(outcome, AnswerOutcome::Accepted);
    world.after(10).after(60);
    assert_eq!(world.stable(), 2);
    assert_eq!(
        world.status().answers["adapter/a"].outcome,
        AnswerOutcome::Done
    );
    assert_eq!(world.status().rejected, []);
    assert_eq!(
        world.condition(condition::ROLLED_BACK),
        ("False", reason::NOT_ROLLED_BACK)
    );
}

#[test]
fn an_abort_is_done_when_the_version_is_gone() {
    let mut world = World::serving(&json!({}));
    world.approve(2).settle();
    let (outcome, _) = world.say("Abort", 2);
    assert_eq!(outcome, AnswerOutcome::Done);
    assert_eq!(world.state(), RolloutState::RolledBack);
    world.now += 1;
    assert_eq!(
        world.say("Abort", 2).0,
        AnswerOutcome::Refused,
        "no rollout is under way"
    );
}

#[test]
fn routers_are_told_what_an_engine_lacks() {
    let mut world = World::serving(
        &json!({"rollout": {"canary": {"steps": [{"setWeight": 10}, {"pause": {}}]}}}),
    );
    world.approve(2).settle();
    let fresh = SyncReply {
        adapters: vec![AdapterStatus {
            name: "a".to_owned(),
            version: 1,
            digest: digest(1),
            state: AdapterState::Registered.into(),
            ..AdapterStatus::default()
        }],
        ..SyncReply::default()
    };
    let mut added = EnginePod {
        pod: pod("engine-2"),
        status: Asked::Answered(fresh),
        acknowledged: None,
    };
    world.observed.engines.push(added.clone());
    let table = |world: &World| {
        fleet::Fleet::new(&world.cr, &world.status().adapters, &world.observed).table
    };
    assert_eq!(
        table(&world).engines[1].lacks,
        [digest(2)],
        "registered is enough for what is stable"
    );
    added.status = Asked::Unreachable("timed out".to_owned());
    world.observed.engines[1] = added;
    assert_eq!(
        table(&world).engines[1].lacks,
        [digest(2)],
        "a cut takes no stable traffic away"
    );
    assert_eq!(world.act().nudge.len(), 1);
    world.observed.engines[1].pod.deleting_since = Some(at(0));
    assert_eq!(
        table(&world).engines.len(),
        1,
        "a pod that goes away gets no new requests"
    );
}

#[test]
fn engines_hear_of_a_version_before_routers() {
    let mut world = World::serving(&json!({}));
    world.approve(2);
    for _ in 0..60 {
        world.observe();
        if let Plan::Act(actions) = world.plan() {
            let routed = actions.calls.iter().find_map(|call| match call {
                Call::SyncRouter(_, table) => table.models[0].candidate.clone(),
                _ => None,
            });
            if routed.is_some() {
                let Asked::Answered(reply) = &world.observed.engines[0].status else {
                    unreachable!()
                };
                assert!(reply.adapters.iter().any(|it| it.digest == digest(2)));
                return;
            }
        }
        world.carry_out();
    }
    panic!("the candidate was never routed");
}

#[test]
fn an_engine_that_refuses_leaves_the_stable_version_alone() {
    let mut world = World::with_refusal(reason::ADAPTER_INCOMPATIBLE, "rank 64 is above 16", false);
    world.settle();
    assert_eq!(
        (world.state(), world.stable()),
        (RolloutState::RolledBack, 1)
    );
    assert!(
        world.status().rejected[0]
            .message
            .contains("rank 64 is above 16")
    );
    assert_eq!(world.condition(condition::READY).0, "True");
}

#[test]
fn files_that_an_engine_could_not_read_condemn_no_version_and_are_asked_after() {
    let mut world = World::with_refusal("AdapterFilesUnreadable", "input/output error", true);
    for _ in 0..5 {
        if let Plan::Decide(decision) = world.plan() {
            world.cr.status = Some(decision.status);
        }
    }
    assert_eq!(
        (world.state(), world.stable()),
        (RolloutState::Preparing, 1),
        "the engine looks again, and the rollout waits for it"
    );
    assert!(world.act().requeue_after.unwrap() <= Duration::from_secs(10));
}
