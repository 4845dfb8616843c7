//! More versions than status lists.

use super::*;

/// An adapter with more versions than status lists: 1, 2, 3 and 5 are approved, 4 waits, and from 6
/// to 70 all were rejected.
fn with_many_versions() -> World {
    let mut world = World::new(&minimum("0.30"));
    for number in 1..=70 {
        let exact_match = match number {
            4 => 0.3,
            1..6 => 0.5,
            _ => 0.13,
        };
        world.publish_run(&number.to_string(), exact_match, None);
        world.settle();
    }
    world
}

fn listed(world: &World) -> Vec<u32> {
    world
        .status()
        .versions
        .iter()
        .map(|it| it.version)
        .collect()
}

#[test]
fn versions_that_somebody_needs_stay_listed_whatever_their_age() {
    let mut world = with_many_versions();
    assert_eq!(
        listed(&world),
        (26..=70).rev().chain([5, 4, 3, 2, 1]).collect::<Vec<_>>(),
        "what may serve or waits, and the newest of the rest"
    );
    assert_eq!(world.status().approved, Some(5));
    let endpoint = |number: u32| -> ServingEndpoint {
        serde_json::from_value(json!({
            "apiVersion": "graftwork.dev/v1alpha1",
            "kind": "ServingEndpoint",
            "metadata": {"name": format!("assistants-{number}")},
            "spec": {
                "baseModel": {"uri": "pvc://models/tiny"},
                "adapters": [{"name": "alias", "adapterRef": {"name": "topics"}, "version": number}],
            },
            "status": {"adapters": [{
                "name": "alias",
                "stable": {"version": 1, "digest": digest("1")},
                "candidate": {"version": number + 1, "digest": digest(&(number + 1).to_string()), "weight": 10},
            }]},
        }))
        .unwrap()
    };
    let events = world.events.len();
    world.observed.endpoints = vec![endpoint(7), endpoint(11)];
    world.settle();
    assert_eq!(
        listed(&world),
        (30..=70)
            .rev()
            .chain([12, 11, 8, 7, 5, 4, 3, 2, 1])
            .collect::<Vec<_>>(),
        "pinned ones and candidates of rollouts too"
    );
    assert_eq!(world.stage(1).0, VersionStage::Production);
    let turned = &world.events[events..];
    assert_eq!(
        turned.len(),
        1,
        "version 1 went into production; what is listed again did not turn: {turned:?}"
    );
    assert!(!listed(&world).contains(&9));
    world.observed.wanted = [9].into();
    world.settle();
    assert!(listed(&world).contains(&9), "a run waits to start from it");
}

#[test]
fn what_is_needed_is_listed_before_what_waits_and_what_is_past() {
    let mut world = World::new(&json!({"approval": "Manual"}));
    for number in 1..=60 {
        world.publish_run(&number.to_string(), 0.5, None);
        world.settle();
    }
    assert_eq!(listed(&world), (11..=60).rev().collect::<Vec<_>>());
    assert_eq!(
        world.say(2, "Approve", digest("2").as_str()).0,
        AnswerOutcome::Done
    );
    let expected: Vec<_> = (12..=60).rev().chain([2]).collect();
    assert_eq!(listed(&world), expected, "50, with the one approved");
}

#[test]
fn what_was_said_about_versions_that_are_no_longer_listed_goes_once_it_was_read() {
    let mut world = with_many_versions();
    let targets = |world: &World| -> (Vec<String>, Vec<String>) {
        let status = world.status();
        (
            status.commands.keys().cloned().collect(),
            status.answers.keys().cloned().collect(),
        )
    };
    world.say(6, "Reject", digest("6").as_str());
    world.say(70, "Reject", digest("70").as_str());
    assert_eq!(
        world.say(999, "Reject", digest("x").as_str()).0,
        AnswerOutcome::Refused
    );
    let all = ["version/6", "version/70", "version/999"].map(str::to_owned);
    assert_eq!(targets(&world), (all.to_vec(), all.to_vec()));
    world.now += 3500;
    world.settle();
    assert_eq!(targets(&world).0, all, "there is an hour to read an answer");
    world.now += 100;
    world.settle();
    let kept = vec!["version/70".to_owned()];
    assert_eq!(targets(&world), (kept.clone(), kept));
}
