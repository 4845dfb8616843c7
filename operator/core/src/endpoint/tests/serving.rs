//! What serves comes up, stays up and says what is amiss.

use super::*;

#[test]
fn an_endpoint_comes_up_and_serves_the_approved_version() {
    let mut world = World::new(&json!({}));
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::ENGINES_NOT_READY)
    );
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("True", reason::LOADING)
    );
    assert_eq!(
        world.engine_config().adapters.len(),
        1,
        "engines register it at their start"
    );
    world.start_pods();
    world.settle();
    assert_eq!(world.condition(condition::READY), ("True", reason::READY));
    assert_eq!(
        world.condition(condition::AVAILABLE),
        ("True", reason::REPLICAS_AVAILABLE)
    );
    assert_eq!(
        world.condition(condition::PROGRESSING),
        ("False", reason::ALL_STABLE)
    );
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("False", reason::ALL_SERVING)
    );
    let status = world.status();
    assert_eq!(status.url.as_deref(), Some("http://assistants.team.svc:80"));
    assert_eq!(status.ready_replicas, 1);
    assert_eq!(status.columns.as_ref().unwrap().adapters, "1/1");
    assert_eq!(status.columns.as_ref().unwrap().rollout, "-");
    assert_eq!(status.adapters[0].verified_replicas, Some(1));
    let table = world.table.clone().unwrap();
    assert_eq!(table.models[0].stable.as_ref().unwrap().version, 1);
    assert_eq!(table.base_name, "tiny");
    assert_eq!(table.engines[0].address, "10.0.0.1:8080");
    assert_eq!(world.router_config().models.len(), 1);
    assert_eq!(
        world.engine_config().adapters[0].folder,
        format!("adapters/a/{}", digest(1).trim_start_matches("sha256:"))
    );
}

#[test]
fn at_rest_nothing_is_written_or_called() {
    let mut world = World::serving(&json!({}));
    let writes = world.writes;
    world.after(100_000).after(100_000);
    assert_eq!(world.writes, writes);
    let actions = world.act();
    assert_eq!((actions.calls.len(), actions.requeue_after), (0, None));
}

#[test]
fn what_is_not_there_is_said_and_the_base_serves() {
    let mut world = World::new(&json!({}));
    world.observed.adapters.clear();
    world.settle();
    world.start_pods();
    world.settle();
    assert_eq!(world.condition(condition::READY), ("True", reason::READY));
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("True", reason::ADAPTER_NOT_FOUND)
    );
    assert_eq!(world.table.clone().unwrap().models, []);
    world
        .observed
        .adapters
        .insert("a".to_owned(), adapter("a", None));
    world.settle();
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("True", reason::WAITING_FOR_VERSION)
    );
    world.approve(1).settle();
    assert_eq!(world.stable(), 1);
}

#[test]
fn an_adapter_that_leaves_the_spec_leaves_routers_first() {
    let mut world = World::serving(&json!({}));
    let mut status = world.status().clone();
    status.commands.insert(
        "adapter/a".to_owned(),
        serde_json::from_value(
            json!({"id": "x", "verb": "Pause", "digest": digest(1), "user": "ann"}),
        )
        .unwrap(),
    );
    status.commands.insert(
        "adapter/never".to_owned(),
        serde_json::from_value(
            json!({"id": "x", "verb": "Pause", "digest": digest(1), "user": "ann"}),
        )
        .unwrap(),
    );
    world.cr.status = Some(status);
    world.settle();
    assert_eq!(
        world.status().answers["adapter/never"].outcome,
        AnswerOutcome::Refused
    );
    world.cr.spec.adapters.clear();
    world.settle();
    assert_eq!(world.table.clone().unwrap().models, []);
    assert_eq!(world.engine_config().adapters, []);
    let commands: Vec<_> = world.status().commands.keys().collect();
    assert_eq!(
        commands,
        ["adapter/never"],
        "commands for what is gone are cleared"
    );
}

#[test]
fn a_keeper_that_is_away_takes_nothing_down() {
    let mut world = World::serving(&json!({}));
    let writes = world.writes;
    world.observed.base = Asked::Unreachable("no pod is ready".to_owned());
    world.settle();
    assert_eq!(world.writes, writes);
    assert_eq!(world.engine_config().maximum_context_tokens, 512);
    let mut new = World::new(&json!({}));
    new.observed.base = Asked::Unreachable("no pod is ready".to_owned());
    new.settle();
    assert_eq!(
        new.condition(condition::READY),
        ("Unknown", reason::STORAGE_UNAVAILABLE)
    );
    assert_eq!(new.observed.engine_deployment, Found::Absent);
}

#[test]
fn an_adapter_that_has_no_version_is_answered_for_by_its_fallback_until_it_has_one() {
    let mut world = World::new(&json!({
        "adapters": [{"name": "a", "adapterRef": {"name": "a"}, "fallback": "tiny"}],
    }));
    world.observed.adapters.clear();
    world.settle();
    world.start_pods();
    world.settle();
    let table = world.table.clone().unwrap();
    assert_eq!(table.models, []);
    let [stand_in] = &table.stand_ins[..] else {
        panic!("{table:?}")
    };
    assert_eq!(
        (stand_in.name.as_str(), stand_in.model.as_str()),
        ("a", "tiny")
    );
    let mounted = |world: &World| world.router_config().stand_ins.get("a").cloned();
    assert_eq!(mounted(&world), Some("tiny".to_owned()));
    let routers = template(&world.observed.router_deployment);
    world.approve(1).settle();
    let table = world.table.clone().unwrap();
    assert_eq!(table.stand_ins, []);
    assert_eq!(table.models[0].fallback, "tiny");
    assert_eq!(mounted(&world), None);
    assert_eq!(template(&world.observed.router_deployment), routers);
}

#[test]
fn a_kv_cache_without_room_for_one_context_is_refused_before_an_engine_starts_with_it() {
    let message = |spec: &Value, context: u32| {
        let mut world = World::new(&json!({"engine": spec}));
        if let Asked::Answered(Ok(base)) = &mut world.observed.base {
            base.maximum_positions = context;
        }
        world.settle();
        let refused = world.condition(condition::READY) == ("False", reason::INVALID_SPEC);
        assert_eq!(world.observed.engine_deployment == Found::Absent, refused);
        refused.then(|| world.message(condition::READY).to_owned())
    };
    assert_eq!(
        message(&json!({"keyValueCache": "1Mi"}), 512).unwrap(),
        "spec.engine.keyValueCache: 1Mi holds 336 tokens of this base model, and one context has 512; \
         set it to at least 1536Ki, or spec.engine.maximumContextTokens to at most 336"
    );
    assert_eq!(message(&json!({"keyValueCache": "1536Ki"}), 512), None);
    let halves = json!({"keyValueCache": "1Mi", "keyValueCacheFormat": "F16"});
    assert_eq!(message(&halves, 512), None);
    assert!(
        message(&halves, 673)
            .unwrap()
            .contains("1Mi holds 672 tokens")
    );
    let shorter = json!({"keyValueCache": "1Mi", "maximumContextTokens": 336});
    assert_eq!(message(&shorter, 512), None);
    assert_eq!(
        message(&json!({}), 1 << 20).unwrap(),
        "spec.engine.keyValueCache: left out, it is 1Gi, which holds 349520 tokens of this base model, \
         and one context has 1048576; set it to at least 3Gi, or spec.engine.maximumContextTokens to at most \
         349520"
    );
}

#[test]
fn engines_that_run_stay_when_the_kv_cache_becomes_too_small() {
    let mut world = World::serving(&json!({}));
    let deployed = template(&world.observed.engine_deployment);
    world.cr.spec.engine.key_value_cache = Some("1Mi".into());
    world.settle();
    assert_eq!(
        world.condition(condition::STALLED),
        ("True", reason::INVALID_SPEC)
    );
    assert_eq!(template(&world.observed.engine_deployment), deployed);
    assert_eq!(world.act().apply, []);
    // A keeper of an older version does not say what a block takes.
    if let Asked::Answered(Ok(base)) = &mut world.observed.base {
        base.key_values = None;
    }
    assert_ne!(world.act().apply, []);
}

#[test]
fn a_version_that_was_scored_in_another_precision_waits_and_what_serves_goes_on() {
    let with_newer = |spec: &Value| {
        let mut world = World::serving(spec);
        world.approve(2);
        let lora = world.observed.adapters.get_mut("a").unwrap();
        let versions = &mut lora.status.as_mut().unwrap().versions;
        let newer = versions.iter_mut().find(|it| it.version == 2).unwrap();
        newer.precision = Some("BF16".to_owned());
        world.settle();
        world
    };
    let world = with_newer(&json!({}));
    assert_eq!((world.rollout(), world.stable()), (None, 1));
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("True", reason::PRECISION_MISMATCH)
    );
    let message = world.message(condition::ADAPTERS_PENDING);
    assert!(message.contains("scored in precision BF16"), "{message}");

    let world = with_newer(&json!({"engine": {"quantization": "BF16"}}));
    assert_eq!(world.state(), RolloutState::Paused);
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("False", reason::ALL_SERVING)
    );
}

#[test]
fn trouble_is_said_and_running_children_stay() {
    let context = json!({"engine": {"maximumContextTokens": 4096}});
    let mut world = World::serving(&json!({}));
    let deployed = template(&world.observed.engine_deployment);
    world.cr.spec.engine = serde_json::from_value(context["engine"].clone()).unwrap();
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::INVALID_SPEC)
    );
    assert_eq!(template(&world.observed.engine_deployment), deployed);

    let mut world = World::serving(&json!({}));
    world.cr.spec.engine.compute_profile = "moon".to_owned();
    world.settle();
    assert_eq!(
        world.condition(condition::STALLED),
        ("True", reason::COMPUTE_PROFILE_NOT_FOUND)
    );
    assert_eq!(world.act().apply, []);

    let mut world = World::new(&json!({}));
    world.observed.engine_deployment = Found::Foreign;
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::OBJECT_NOT_OURS)
    );
    let actions = world.act();
    assert_eq!((actions.apply.len(), actions.calls.len()), (0, 0));
    assert_eq!(
        actions.requeue_after,
        Some(crate::plan::NAME_TAKEN_PAUSE),
        "nobody tells when the name becomes free"
    );

    let mut world = World::new(&json!({}));
    world.observed.base_claim = ClaimState::NotBound;
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::BASE_MODEL_NOT_FOUND)
    );

    let mut world = World::serving(&json!({}));
    world.cr.metadata.deletion_timestamp = Some(graftwork_api::Time(at(0)));
    assert_eq!(world.plan(), Plan::Act(Actions::default()));
}
