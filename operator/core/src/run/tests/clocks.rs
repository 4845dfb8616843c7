//! Clocks of the API server and of nodes that differ from the operator's end no wait at once, and hold none up.

use super::*;
use crate::sightings::Sighting;

/// Seconds that the other clock is ahead of ours.
const AHEAD: [i64; 3] = [-3600, 0, 3600];

/// A run with a pod whose stamps are by a clock that is so many seconds ahead.
fn stamped(ahead: i64) -> World {
    let mut world = World::new();
    world.start();
    let stamp = at(world.seconds + ahead);
    let pod = &mut world.observed.pods[0];
    pod.created = Some(stamp);
    pod.container = Container::Running { since: Some(stamp) };
    world
}

/// Seconds until the run is over.
fn seconds_until_over(world: &mut World) -> i64 {
    let start = world.seconds;
    for _ in 0..400 {
        world.reconcile();
        if world.is_finished() {
            return world.seconds - start;
        }
        world.seconds += 1;
    }
    unreachable!("it does not end: {:?}", world.succeeded())
}

#[test]
fn an_attempt_is_active_from_when_it_was_seen_so() {
    for ahead in AHEAD {
        let mut world = stamped(ahead);
        world.cr.spec.limits.duration_seconds = 100;
        assert_eq!(seconds_until_over(&mut world), 101, "{ahead}");
        assert_eq!(world.succeeded().1, reason::DEADLINE_EXCEEDED);
        assert_eq!(attempt::attempts(&world.cr).active_seconds, 101);
        assert_eq!(world.cr.status.unwrap().active_since, None);
    }
}

#[test]
fn an_operator_that_was_ahead_holds_the_end_up_by_nothing() {
    let mut world = stamped(0);
    world.cr.spec.limits.duration_seconds = 100;
    world.reconcile();
    let status = world.cr.status.as_mut().unwrap();
    status.active_since = Some(Time(at(world.seconds + 3600)));
    world.reconcile();
    let status = world.cr.status.as_ref().unwrap();
    assert_eq!(
        status.active_since, None,
        "a status in which only a time differs is not written"
    );
    assert_eq!(seconds_until_over(&mut world), 101);
}

#[test]
fn another_pod_of_an_attempt_is_active_anew() {
    for queue_is_seen in [true, false] {
        let mut world = stamped(0);
        world.cr.spec.limits.duration_seconds = 100;
        world.reconcile();
        world.seconds += 90;
        world.observed.pods.clear();
        world.observed.jobs[0].spec.as_mut().unwrap().suspend = Some(true);
        if queue_is_seen {
            world.reconcile();
            assert_eq!(world.succeeded().1, reason::QUEUED);
        }
        world.seconds += 3600;
        world.observed.jobs[0].spec.as_mut().unwrap().suspend = Some(false);
        world.start_pod();
        world.observed.pods[0].uid = "another".to_owned();
        assert_eq!(seconds_until_over(&mut world), 101, "{queue_is_seen}");
    }
}

#[test]
fn an_attempt_that_is_made_again_is_active_anew() {
    let mut world = stamped(0);
    world.reconcile();
    assert!(world.cr.status.as_ref().unwrap().active_since.is_some());
    world.observed.jobs.clear();
    world.observed.pods.clear();
    world.seconds += 50;
    world.reconcile();
    assert_eq!(world.created, ["nightly-1", "nightly-1"]);
    assert_eq!(world.cr.status.unwrap().active_since, None);
}

#[test]
fn an_image_that_can_not_be_had_is_waited_for_from_when_it_was_seen_so() {
    for ahead in AHEAD {
        let mut world = stamped(ahead);
        let pod = &mut world.observed.pods[0];
        pod.image_missing_since = Some(at(world.seconds));
        pod.container = Container::Waiting {
            reason: "ErrImagePull".to_owned(),
            message: "registry/trainer:1 not found".to_owned(),
        };
        assert_eq!(seconds_until_over(&mut world), 121, "{ahead}");
        assert_eq!(world.succeeded().1, reason::IMAGE_UNAVAILABLE);
    }
}

#[test]
fn a_result_is_waited_for_from_when_the_job_was_seen_to_end() {
    for ahead in AHEAD {
        let mut world = stamped(ahead);
        world.cr.spec.limits.retries = 0;
        world.end_pod(0, |_| {});
        let job = &mut world.observed.jobs[0];
        let conditions = job.status.as_mut().unwrap().conditions.as_mut().unwrap();
        conditions[0].last_transition_time = Some(Time(at(world.seconds + ahead)));
        let seen = Sighting {
            made: at(world.seconds),
            ended: Some(at(world.seconds)),
        };
        let uid = job.metadata.uid.clone().unwrap();
        world.observed.sightings = [(uid, seen)].into_iter().collect();
        assert_eq!(seconds_until_over(&mut world), 21, "{ahead}");
        assert_eq!(world.succeeded().1, reason::RETRIES_EXHAUSTED);
    }
}
