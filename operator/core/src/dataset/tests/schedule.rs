//! Times of a schedule: when one is answered, what holds it up, and what it leaves in status.

use graftwork_api::schedule::{MissedRuns, Schedule, ScheduleTimes};
use graftwork_contract::dataset::BuildConfig;

use super::*;
use crate::plan::EventKind;

/// Seconds of a day.
const DAY: i64 = 86_400;

/// 2025-10-09T01:00:00Z, in the seconds of a [`World`].
fn one_o_clock() -> i64 {
    let time: Timestamp = "2025-10-09T01:00:00Z".parse().unwrap();
    time.as_second() - at(0).as_second()
}

/// With a schedule, at noon.
pub fn nightly(mut world: World) -> World {
    world.cr.spec.schedule = Some(Schedule {
        cron: "0 1 * * *".to_owned(),
        time_zone: None,
        missed_runs: None,
    });
    // Noon on the day before.
    world.seconds = one_o_clock() - DAY / 2 - DAY / 24;
    world
}

/// A Dataset whose first version is there.
fn built() -> World {
    let mut world = nightly(World::from_claim());
    world.reconcile();
    end(&mut world, 1);
    world
}

fn end(world: &mut World, version: u32) {
    world.end_job(0, None);
    world.publish(version);
    world.reconcile();
    assert_eq!(world.ready().0, "True");
}

fn times(world: &World) -> (Option<String>, Option<String>) {
    let ScheduleTimes {
        last_time,
        next_time,
    } = world.cr.status.clone().unwrap().schedule.unwrap();
    let text = |time: graftwork_api::Time| time.0.to_string();
    (last_time.map(text), next_time.map(text))
}

fn said(last: &str, next: &str) -> (Option<String>, Option<String>) {
    let day = |day: &str| Some(format!("2025-10-{day}T01:00:00Z"));
    (day(last), day(next))
}

#[test]
fn a_new_dataset_is_built_at_once_and_waits_for_the_next_time() {
    let mut world = nightly(World::from_claim());
    let actions = world.reconcile();
    assert_eq!(actions.create.len(), 1);
    assert_eq!(times(&world), said("08", "09"));
    end(&mut world, 1);
    let writes = world.writes;
    let actions = world.reconcile();
    assert_eq!(world.writes, writes, "what waits writes nothing");
    let until = i64::try_from(actions.requeue_after.unwrap().as_secs()).unwrap();
    assert_eq!(world.seconds + until, one_o_clock());
}

#[test]
fn a_time_that_comes_builds_anew_once_and_says_so() {
    let mut world = built();
    let first = world.fingerprint();
    world.seconds = one_o_clock() - 1;
    assert!(world.reconcile().create.is_empty());
    world.seconds = one_o_clock();
    let actions = world.reconcile();
    assert_ne!(world.fingerprint(), first);
    assert_eq!(actions.create.len(), 1);
    assert_eq!(times(&world), said("09", "10"));
    let event = &actions.events[0];
    assert_eq!(
        (event.kind, event.reason.as_str()),
        (EventKind::Normal, "Scheduled")
    );
    assert!(
        event.note.contains("2025-10-09T01:00:00Z"),
        "{}",
        event.note
    );
    assert!(world.reconcile().create.is_empty(), "it is answered once");
    // The same rows are the same version.
    end(&mut world, 1);
    assert_eq!(world.cr.status.clone().unwrap().latest.unwrap().version, 1);
}

#[test]
fn a_time_waits_for_the_build_that_is_under_way_and_for_its_attempts() {
    let mut world = nightly(World::from_claim());
    world.reconcile();
    let first = world.fingerprint();
    world.seconds = one_o_clock() + 10;
    world.reconcile();
    assert_eq!(world.fingerprint(), first, "the build goes on");
    world.end_job(69, None);
    world.reconcile();
    assert_eq!(world.fingerprint(), first, "so does its next attempt");
    assert_eq!(times(&world), said("08", "09"));
    world.seconds += 600;
    world.reconcile();
    world.end_job(0, None);
    world.publish(1);
    let actions = world.reconcile();
    assert_ne!(world.fingerprint(), first);
    assert_eq!(actions.create.len(), 1, "now it is answered");
    assert_eq!(times(&world), said("09", "10"));
}

#[test]
fn rows_that_were_bad_are_read_again_at_the_next_time() {
    let mut world = nightly(World::from_claim());
    world.reconcile();
    world.end_job(65, None);
    world.reconcile();
    assert_eq!(world.ready().1, reason::DATA_ERROR);
    world.seconds = one_o_clock();
    assert_eq!(world.reconcile().create.len(), 1);
    assert_eq!(world.ready().1, reason::BUILDING);
}

#[test]
fn what_was_missed_is_made_up_for_once_or_passed_over() {
    let away = |missed| {
        let mut world = built();
        world.cr.spec.schedule.as_mut().unwrap().missed_runs = missed;
        world.seconds = one_o_clock() + 3 * DAY + 3600;
        world
    };
    let mut once = away(None);
    assert_eq!(once.reconcile().create.len(), 1);
    assert_eq!(times(&once), said("12", "13"));

    let mut skips = away(Some(MissedRuns::Skip));
    let actions = skips.reconcile();
    assert!(actions.create.is_empty());
    assert_eq!(times(&skips), said("08", "13"));
    let event = &actions.events[0];
    assert_eq!(
        (event.kind, event.reason.as_str()),
        (EventKind::Warning, "ScheduleMissed")
    );
    assert!(skips.reconcile().events.is_empty(), "it is said once");
    skips.seconds = one_o_clock() + 4 * DAY + 200;
    assert_eq!(
        skips.reconcile().create.len(),
        1,
        "a little late is no miss"
    );
}

#[test]
fn a_lost_status_builds_nothing_that_the_store_has() {
    let mut world = built();
    world.seconds = one_o_clock();
    world.reconcile();
    end(&mut world, 2);
    let known = world.fingerprint();
    world.cr.status = None;
    world.seconds += 3600;
    let before = world.observed.build.clone();
    world.reconcile();
    assert_eq!(world.fingerprint(), known);
    assert_eq!(world.observed.build, before);
    assert!(world.reconcile().create.is_empty());
    assert_eq!(world.cr.status.clone().unwrap().latest.unwrap().version, 2);
}

#[test]
fn another_expression_builds_nothing_by_itself_and_none_forgets_the_next_time() {
    let mut world = built();
    let first = world.fingerprint();
    world.cr.spec.schedule.as_mut().unwrap().cron = "0 14 * * *".to_owned();
    world.reconcile();
    assert_eq!(world.fingerprint(), first);
    assert_eq!(times(&world).1.as_deref(), Some("2025-10-08T14:00:00Z"));
    world.cr.spec.schedule = None;
    world.seconds += DAY;
    assert!(world.reconcile().create.is_empty());
    assert_eq!(
        world.fingerprint(),
        first,
        "the newest version stays the newest"
    );
    assert_eq!(times(&world), (said("08", "09").0, None));
}

#[test]
fn rows_of_config_maps_alone_are_never_read_again_for_a_time() {
    let mut world = nightly(World::from_config_map());
    world.reconcile();
    end(&mut world, 1);
    let first = world.fingerprint();
    world.seconds = one_o_clock();
    let actions = world.reconcile();
    assert!(actions.create.is_empty() && actions.events.is_empty());
    assert_eq!(world.fingerprint(), first);
    assert_eq!(times(&world), said("09", "10"));
}

#[test]
fn a_schedule_that_can_not_work_is_named_with_its_field() {
    type Change = fn(&mut Schedule);
    let cases: [(Change, &str); 3] = [
        (
            |it| it.cron = "61 * * * *".to_owned(),
            "spec.schedule.cron: \"61 * * * *\"",
        ),
        (
            |it| it.time_zone = Some("Europe/Atlantis".to_owned()),
            "spec.schedule.timeZone: \"Europe/Atlantis\"",
        ),
        (
            |it| it.missed_runs = Some(MissedRuns::from("Twice")),
            "spec.schedule.missedRuns: \"Twice\"",
        ),
    ];
    for (change, words) in cases {
        let mut world = nightly(World::from_claim());
        change(world.cr.spec.schedule.as_mut().unwrap());
        assert!(world.reconcile().create.is_empty());
        let (_, reason, message) = world.ready();
        assert_eq!(reason, reason::INVALID_SPEC);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn a_time_is_no_part_of_what_a_build_is_told() {
    let mut world = built();
    world.seconds = one_o_clock();
    let actions = world.reconcile();
    let Child::ConfigMap(map) = &actions.apply[0] else {
        unreachable!("a build has a configuration")
    };
    let text = &map.data.as_ref().unwrap()["config.json"];
    let told: BuildConfig = serde_json::from_str(text).unwrap();
    assert_eq!(told.fingerprint, world.fingerprint());
    assert!(!text.contains("2025-10-09"), "{text}");
}
