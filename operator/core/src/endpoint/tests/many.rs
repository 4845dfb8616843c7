//! More adapters than a message names.

use super::*;

/// Entries of adapter `a` under as many names, with these fields beside.
fn entries(many: usize, fields: &Value) -> Value {
    let entries = (0..many).map(|number| {
        let mut entry = json!({"name": format!("n{number}"), "adapterRef": {"name": "a"}});
        for (key, value) in fields.as_object().unwrap() {
            entry[key] = value.clone();
        }
        entry
    });
    json!({"adapters": entries.collect::<Vec<_>>()})
}

/// Whether a status fits what the schema says of its lists and texts.
fn assert_fits(world: &World) {
    let status = world.status();
    assert!(status.rejected.len() <= 1000 && status.adapters.len() <= 1000);
    for condition in &status.conditions {
        assert!(condition.message.len() <= 1024, "{}", condition.type_);
    }
    let mut messages = status.adapters.iter().flat_map(|it| &it.message);
    assert!(messages.all(|it| it.len() <= 1024));
    assert!(status.columns.as_ref().unwrap().rollout.len() <= 253);
}

#[test]
fn adapters_that_are_all_pinned_to_a_rejected_version_are_counted_and_the_base_serves() {
    let mut world = World::new(&entries(150, &json!({"version": 2})));
    restage(&mut world, 2, "Rejected", "GateFailed");
    world.settle();
    world.start_pods();
    world.settle();
    assert_eq!(world.condition(condition::READY), ("True", reason::READY));
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("True", reason::VERSION_NOT_APPROVED)
    );
    let message = world.message(condition::ADAPTERS_PENDING);
    assert!(
        message.starts_with("150 adapters, of which the first: n0: version 2"),
        "{message}"
    );
    assert!(message.contains("; n4: ") && !message.contains("n5: "));
    assert_eq!(world.status().adapter_counts.unwrap().pending, 150);
    assert_fits(&world);
    let writes = world.writes;
    world.after(100_000);
    assert_eq!(world.writes, writes);
}

#[test]
fn a_few_that_wait_are_all_explained() {
    let mut world = World::new(&entries(3, &json!({"version": 9})));
    world.settle();
    let message = world.message(condition::ADAPTERS_PENDING);
    assert!(message.starts_with("n0: ") && message.contains("; n2: "));
}

#[test]
fn of_many_rollouts_the_conditions_name_the_first_and_the_number() {
    let mut spec = entries(7, &json!({}));
    spec["rollout"] = json!({
        "canary": {"steps": [{"setWeight": 10}, {"pause": {"seconds": 60}}]},
        "analysis": {"intervalSeconds": 10, "minimumRequests": 50, "rules": [{"metric": "error_rate", "maximum": "0.01"}]},
    });
    let mut world = World::serving(&spec);
    world.approve(2).settle();
    let words = |what: &str| format!("7 adapters {what} (n0, n1, n2, n3, n4 and 2 more); n0: ");
    let message = world.message(condition::PROGRESSING);
    assert!(message.starts_with(&words("are in a rollout")), "{message}");
    world.traffic = (400, 40);
    world.after(20);
    let message = world.message(condition::ROLLED_BACK);
    assert!(message.starts_with(&words("were taken back")), "{message}");
    assert_eq!(world.status().rejected.len(), 7);
    assert_fits(&world);
}

#[test]
fn each_of_many_adapters_keeps_its_own_rejection() {
    let mut world = World::serving(&entries(151, &json!({})));
    world.approve(2).settle();
    let rejected = |number: u32| graftwork_api::serving_endpoint::RejectedDigest {
        adapter: format!("n{number}"),
        digest: digest(9),
        version: 9,
        reason: reason::ABORTED_BY_USER.to_owned(),
        message: "a long story ".repeat(20),
        time: graftwork_api::Time(at(0)),
        settings_hash: None,
    };
    let status = world.cr.status.as_mut().unwrap();
    status.rejected = (1..151).map(rejected).collect();
    let command = json!({"id": "x", "verb": "Abort", "digest": digest(2), "user": "ann"});
    status.commands.insert(
        "adapter/n0".to_owned(),
        serde_json::from_value(command).unwrap(),
    );
    world.settle();
    let kept = &world.status().rejected;
    assert_eq!(kept.len(), 151, "one of each");
    assert_eq!((kept[0].version, kept[0].adapter.as_str()), (2, "n0"));
    assert_eq!(kept[99].message.len(), 260);
    assert!(kept[100..].iter().all(|it| it.message.len() <= 100));
    assert_fits(&world);
}
