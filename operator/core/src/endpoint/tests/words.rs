//! What an endpoint says, where the words alone are at stake.

use super::*;

#[test]
fn a_command_for_an_unknown_target_is_refused_with_those_that_there_are() {
    for (adapters, words) in [
        (json!([]), "spec.adapters is empty"),
        (
            json!([{"name": "a", "adapterRef": {"name": "a"}}, {"name": "b", "adapterRef": {"name": "a"}}]),
            "there is adapter/a, adapter/b",
        ),
    ] {
        let mut world = World::new(&json!({"adapters": adapters}));
        world.settle();
        let command = json!({"id": "1", "verb": "Pause", "digest": digest(1), "user": "ann"});
        let status = world.cr.status.as_mut().unwrap();
        let command = serde_json::from_value(command).unwrap();
        status.commands.insert("adapter/nope".to_owned(), command);
        world.settle();
        let answer = &world.status().answers["adapter/nope"];
        assert_eq!(answer.outcome, AnswerOutcome::Refused);
        assert_eq!(
            answer.message,
            format!("target \"adapter/nope\" is not known: {words}")
        );
    }
}

#[test]
fn an_endpoint_without_engines_does_not_say_that_they_load() {
    let mut world = World::new(&json!({"replicas": 0}));
    world.settle();
    let adapter = &world.status().adapters[0];
    assert_eq!(adapter.reason.as_deref(), Some(reason::LOADING));
    assert_eq!(
        adapter.message.as_deref(),
        Some("v1 is loaded once there are engines: spec.replicas is 0")
    );
}

#[test]
fn what_keeps_an_endpoint_from_serving_is_its_reason() {
    type Break = fn(&mut World);
    let rows: [(Break, &str, &str); 3] = [
        (
            |world| world.cr.spec.replicas = 0,
            reason::SCALED_TO_ZERO,
            "spec.replicas is 0",
        ),
        (
            |world| world.observed.engines.clear(),
            reason::ENGINES_NOT_READY,
            "there is no engine pod yet",
        ),
        (
            |world| world.observed.routers.clear(),
            reason::ROUTERS_NOT_READY,
            "there is no router pod yet",
        ),
    ];
    for (breaks, why, words) in rows {
        let mut world = World::serving(&json!({}));
        breaks(&mut world);
        world.settle();
        for kind in [condition::READY, condition::AVAILABLE] {
            assert_eq!(world.condition(kind), ("False", why), "{kind}");
        }
        let ready = crate::conditions::find(&world.status().conditions, condition::READY);
        assert_eq!(ready.unwrap().message, words);
    }
}

#[test]
fn a_first_version_that_an_engine_refuses_is_pending_with_the_engines_reason() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.start_pods();
    let Asked::Answered(reply) = &mut world.observed.engines[0].status else {
        unreachable!()
    };
    reply.adapters.push(AdapterStatus {
        name: "a".to_owned(),
        version: 1,
        digest: digest(1),
        state: AdapterState::Refused.into(),
        reason: reason::ADAPTER_INCOMPATIBLE.to_owned(),
        message: "rank 64 is above 16".to_owned(),
        ..AdapterStatus::default()
    });
    world.settle();
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("True", reason::ADAPTER_REFUSED)
    );
    let message = world.status().adapters[0].message.clone().unwrap();
    assert!(message.contains("rank 64 is above 16"), "{message}");
    assert_eq!(world.stable(), 0);
}

#[test]
fn a_candidate_that_too_few_requests_judge_is_held_and_says_so() {
    let analysis = json!({
        "intervalSeconds": 10, "minimumRequests": 50,
        "rules": [{"metric": "error_rate", "maximum": "0.01"}],
    });
    let paused = json!([{"setWeight": 10}, {"pause": {"seconds": 30}}, {"setWeight": 50}]);
    let rising = json!([{"setWeight": 10}, {"setWeight": 50}]);
    for (steps, meanwhile) in [
        (paused, reason::PAUSED),
        (rising, reason::ANALYSIS_INCONCLUSIVE),
    ] {
        let mut world = World::serving(&json!({
            "rollout": {"canary": {"steps": steps}, "analysis": analysis},
        }));
        world.traffic = (7, 0);
        world.approve(2).settle();
        world.after(20);
        assert_eq!(world.condition(condition::PROGRESSING), ("True", meanwhile));
        world.after(60);
        let progressing = crate::conditions::find(&world.status().conditions, "Progressing");
        let progressing = progressing.unwrap();
        assert_eq!(
            (progressing.status.as_str(), progressing.reason.as_str()),
            ("True", reason::ANALYSIS_INCONCLUSIVE)
        );
        assert_eq!(
            progressing.message,
            "a: v2 at 10 % is held: the candidate completed 7 requests of minimumRequests 50"
        );
        assert_eq!(world.stable(), 1);
    }
}

#[test]
fn a_candidate_that_takes_over_says_so_until_routers_follow() {
    let mut world = World::serving(&json!({"rollout": {"strategy": "Immediate"}}));
    world.deaf_routers = true;
    world.approve(2).settle();
    assert_eq!(
        (world.state(), world.stable()),
        (RolloutState::Promoting, 1)
    );
    assert_eq!(
        world.condition(condition::PROGRESSING),
        ("True", reason::PROMOTING)
    );
    world.deaf_routers = false;
    world.settle();
    assert_eq!((world.rollout(), world.stable()), (None, 2));
}

#[test]
fn one_engine_is_one_engine() {
    let world = World::serving(&json!({}));
    let conditions = &world.status().conditions;
    for (kind, words) in [
        (condition::READY, "1 engine and 1 router serve"),
        (condition::AVAILABLE, "1 engine and 1 router are ready"),
    ] {
        let found = crate::conditions::find(conditions, kind).unwrap();
        assert_eq!(found.message, words);
    }
}
