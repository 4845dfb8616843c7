//! Objects of an endpoint: their settings, names and owner.

use std::collections::BTreeSet;

use graftwork_api::Amount;
use graftwork_api::serving_endpoint::{
    BaseQuantization, EngineSpec, KeyValueCacheFormat, ResponseCache,
};
use graftwork_contract::endpoint::{BaseFormat, KeyValueFormat};

use super::*;

#[test]
fn routers_keep_answers_and_fall_back_where_the_spec_says_so() {
    let written = |world: &World| {
        let map: &ConfigMap = world.observed.router_configuration.ours().unwrap();
        map.data.as_ref().unwrap()["config.json"].clone()
    };
    let mut world = World::serving(&json!({}));
    let plain = written(&world);
    assert!(!plain.contains("responseCache") && !plain.contains("fallback"));
    world.cr.spec.response_cache = Some(ResponseCache { enabled: false });
    world.settle();
    assert!(!written(&world).contains("responseCache"));
    world.cr.spec.response_cache = Some(ResponseCache { enabled: true });
    world.cr.spec.adapters[0].fallback = Some("Stable".to_owned());
    world.settle();
    let config = world.router_config();
    assert!(config.response_cache_bytes > 0);
    let name = config.models[0].name.clone();
    assert_eq!(config.models[0].fallback, Some(name));
}

#[test]
fn engines_are_told_to_export_vllms_names_where_the_installation_says_so() {
    let mut world = World::serving(&json!({}));
    let written = |world: &World| {
        let map: &ConfigMap = world.observed.engine_configuration.ours().unwrap();
        map.data.as_ref().unwrap()["config.json"].clone()
    };
    assert!(
        !written(&world).contains("vllmMetrics"),
        "who does not ask for it has the configuration of before, and no restart"
    );
    world.settings.engine.vllm_metrics = true;
    world.settle();
    assert!(world.engine_config().vllm_metrics);
    assert!(written(&world).contains("vllmMetrics"));
}

#[test]
fn an_upgrade_restarts_no_engine_and_a_change_of_engine_does() {
    let mut world = World::serving(&json!({}));
    let before = template(&world.observed.engine_deployment);
    world.settings.images.inference = "registry/inference:2".to_owned();
    world.settle();
    assert_eq!(template(&world.observed.engine_deployment), before);
    world.cr.spec.engine.maximum_batch_size = 2;
    world.settle();
    let after = template(&world.observed.engine_deployment);
    assert!(
        after.contains("registry/inference:2"),
        "a new revision takes the newest image"
    );
    assert_ne!(after, before);
    let profile = world.settings.compute_profiles.get_mut("default").unwrap();
    profile.images.inference = Some("registry/inference:mine".to_owned());
    world.settle();
    assert!(template(&world.observed.engine_deployment).contains("registry/inference:mine"));
}

#[test]
fn what_an_engine_may_take_reaches_it_and_a_change_of_it_rolls_the_engines() {
    let mut world = World::serving(&json!({}));
    let map: &ConfigMap = world.observed.engine_configuration.ours().unwrap();
    let plain = &map.data.as_ref().unwrap()["config.json"];
    for key in [
        "quantization",
        "adapterMemory",
        "diskCache",
        "keyValueCache",
        "keyValueFormat",
    ] {
        assert!(!plain.contains(key), "engines of before are not restarted");
    }
    assert!(!template(&world.observed.engine_deployment).contains("adapter-cache"));
    let amount = |text: &str| Some(Amount::from(text));
    let changes: [fn(&mut EngineSpec, Option<Amount>); 5] = [
        |engine, _| engine.quantization = BaseQuantization::Q4K,
        |engine, amount| engine.adapter_memory = amount,
        |engine, amount| engine.disk_cache = amount,
        |engine, amount| engine.key_value_cache = amount,
        |engine, _| engine.key_value_cache_format = Some(KeyValueCacheFormat::F16),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let before = template(&world.observed.engine_deployment);
        world.settings.images.inference = format!("registry/inference:{number}-newer");
        change(&mut world.cr.spec.engine, amount("8Gi"));
        world.settle();
        let after = template(&world.observed.engine_deployment);
        assert_ne!(after, before);
        assert!(
            after.contains(&format!(":{number}-newer")),
            "a new revision takes the newest image"
        );
    }
    let config = world.engine_config();
    assert_eq!(config.quantization, Some(BaseFormat::Q4K));
    assert_eq!(config.adapter_memory_bytes, Some(8 << 30));
    assert_eq!(config.key_value_cache_bytes, Some(8 << 30));
    assert_eq!(config.key_value_format, Some(KeyValueFormat::F16));
    assert_eq!(
        config.disk_cache_bytes,
        Some(7 << 30),
        "the volume has an eighth more than the copies may fill"
    );
    let template = template(&world.observed.engine_deployment);
    assert!(
        template.contains("\"sizeLimit\":\"8589934592\""),
        "{template}"
    );
}

#[test]
fn children_belong_to_the_endpoint_and_bear_short_names() {
    let mut world = World::new(&json!({}));
    world.cr.metadata.name = Some("a".repeat(50));
    let mut names = BTreeSet::new();
    world.settle();
    for child in world.act().apply {
        let text = match &child {
            Child::ConfigMap(it) => serde_json::to_string(&it.metadata),
            Child::Service(it) => serde_json::to_string(&it.metadata),
            Child::Deployment(it) => serde_json::to_string(&it.metadata),
            Child::Claim(it) => serde_json::to_string(&it.metadata),
        }
        .unwrap();
        assert!(
            text.contains("\"kind\":\"ServingEndpoint\"") && text.contains("\"uid\":\"u\""),
            "{text}"
        );
        assert!(child.name().len() <= 63);
        assert!(
            names.insert((child.kind(), child.name().to_owned())),
            "named twice"
        );
    }
    assert_eq!(names.len(), 6);
}

#[test]
fn two_endpoints_that_want_one_name_for_their_services_are_kept_apart() {
    let mut second = World::new(&json!({}));
    second.cr.metadata.name = Some("assistants-engines".to_owned());
    let first = World::new(&json!({}));
    assert_eq!(
        children_names(&second.cr).service,
        children_names(&first.cr).engines_service
    );
    second.observed.service = Found::Foreign;
    second.settle();
    let message = |world: &World| {
        let found = crate::conditions::find(&world.status().conditions, condition::READY).unwrap();
        assert_eq!(found.reason, reason::OBJECT_NOT_OURS);
        found.message.clone()
    };
    let said = message(&second);
    assert!(
        said.starts_with("Service assistants-engines, which is what the engines of a ServingEndpoint \"assistants\" are called"),
        "{said}"
    );
    assert_eq!(second.act().apply, []);
    // The other way round: the Service was there first.
    let mut first = first;
    first.observed.engines_service = Found::Foreign;
    first.settle();
    let said = message(&first);
    assert!(
        said.starts_with("Service assistants-engines exists"),
        "{said}"
    );
    assert_eq!(first.act().apply, []);
}
