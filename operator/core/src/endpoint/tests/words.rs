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
