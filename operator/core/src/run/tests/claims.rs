//! Claims that a run's pod would wait for.

use graftwork_api::training_run::{Benchmark, MethodType, ModelOutput};

use super::*;
use crate::plan::EventKind;

fn asks(world: &mut World, uri: &str) {
    world.cr.spec.evaluation.benchmarks = vec![Benchmark {
        name: "arc".to_owned(),
        uri: uri.to_owned(),
    }];
}

fn writes(world: &mut World, uri: &str) {
    world.cr.spec.method.type_ = MethodType::Full;
    world.cr.spec.method.output = Some(ModelOutput {
        uri: uri.to_owned(),
    });
}

#[test]
fn a_claim_that_is_missing_is_named_with_its_field_before_there_is_a_job() {
    for (ask, words) in [
        (
            (|world: &mut World| asks(world, "pvc://nosuch/a.jsonl")) as fn(&mut World),
            "spec.evaluation.benchmarks[arc].uri: PersistentVolumeClaim \"nosuch\" does not exist; create it",
        ),
        (
            |world| {
                asks(world, "pvc://empty/a.jsonl");
                world.claim("empty", ClaimState::NotBound);
            },
            "spec.evaluation.benchmarks[arc].uri: PersistentVolumeClaim \"empty\" is not bound to a volume; \
             bind it to the volume that has the files",
        ),
        (
            |world| writes(world, "pvc://nosuch/topics"),
            "spec.method.output.uri: PersistentVolumeClaim \"nosuch\" does not exist; create it",
        ),
    ] {
        for keeper_is_away in [false, true] {
            let mut world = World::new();
            ask(&mut world);
            if keeper_is_away {
                world.observed.base = Asked::Unreachable("away".to_owned());
            }
            world.reconcile();
            let said = (
                "Unknown".to_owned(),
                reason::CLAIM_NOT_FOUND.to_owned(),
                format!("{words}, then the run goes on by itself"),
            );
            assert_eq!(world.succeeded(), said);
            let status = world.cr.status.clone().unwrap();
            assert!(conditions::is_true(&status.conditions, condition::STALLED));
            let told = world.events.last().map(|event| event.kind);
            assert_eq!(told, Some(EventKind::Warning));
            assert!(world.created.is_empty() && !world.is_finished());
        }
    }
}

#[test]
fn a_claim_that_is_written_to_may_get_its_volume_with_the_pod() {
    let mut world = World::new();
    writes(&mut world, "pvc://made/by/topics");
    world.claim("made", ClaimState::NotBound);
    world.start();
}

#[test]
fn the_claims_of_a_run_that_is_pinned_are_looked_at_before_its_next_attempt() {
    let mut world = World::new();
    asks(&mut world, "pvc://quizzes/arc.jsonl");
    world.claim("quizzes", ClaimState::Bound);
    world.start();
    world.end_pod(69, |_| {});
    world.claim("quizzes", ClaimState::Absent);
    world.seconds += 400;
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::CLAIM_NOT_FOUND);
    assert_eq!(world.created, ["nightly-1"]);
    world.claim("quizzes", ClaimState::Bound);
    world.start();
    assert_eq!(world.created, ["nightly-1", "nightly-2"]);
}

#[test]
fn a_pod_that_waits_for_a_claim_is_told_of_by_the_field_that_names_it() {
    let mut world = World::new();
    asks(&mut world, "pvc://quizzes/arc.jsonl");
    world.claim("quizzes", ClaimState::Bound);
    world.start();
    let pod = world.observed.pods.last_mut().unwrap();
    pod.unschedulable =
        Some("0/1 nodes: persistentvolumeclaim \"quizzes\" is being deleted".to_owned());
    world.claim("quizzes", ClaimState::Deleting);
    world.reconcile();
    let (_, why, message) = world.succeeded();
    assert_eq!(why, reason::QUEUED);
    assert!(
        message.starts_with("spec.evaluation.benchmarks[arc].uri: PersistentVolumeClaim"),
        "{message}"
    );
}
