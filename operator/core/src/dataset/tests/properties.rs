//! Whatever happens, in whatever order.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Happening {
    Content(u8),
    SourceGone,
    JobEnds(i32),
    Published,
    KeeperAway,
    JobDeleted,
    Later(i64),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let codes = prop::sample::select(vec![0, 1, 64, 65, 69, 70, 75, 137]);
    prop::collection::vec(
        prop_oneof![
            (0_u8..3).prop_map(Happening::Content),
            Just(Happening::SourceGone),
            codes.prop_map(Happening::JobEnds),
            Just(Happening::Published),
            Just(Happening::KeeperAway),
            Just(Happening::JobDeleted),
            (0_i64..60).prop_map(Happening::Later),
        ],
        0..12,
    )
}

proptest! {
    #[test]
    fn from_any_state_it_becomes_ready_and_stops_writing(happenings in happenings()) {
        let mut world = World::from_config_map();
        let mut version = 0;
        for happening in happenings {
            match happening {
                Happening::Content(content) => {
                    let content = SourceState::Present(Some(Digest::of(&[content])));
                    world.observed.sources.insert("faq".to_owned(), content);
                    world.observed.build = Asked::Answered(None);
                }
                Happening::SourceGone => {
                    world.observed.sources.insert("faq".to_owned(), SourceState::Absent);
                }
                Happening::JobEnds(code) => world.end_job(code, None),
                Happening::Published => {
                    if fingerprint(&world.cr, &world.observed.sources).is_some()
                        && world.observed.versions.answer().is_some()
                    {
                        version += 1;
                        world.publish(version);
                    }
                }
                Happening::KeeperAway => {
                    world.observed.build = Asked::Unreachable("away".to_owned());
                }
                Happening::JobDeleted => {
                    world.observed.jobs.pop();
                }
                Happening::Later(seconds) => world.seconds += seconds,
            }
            world.reconcile();
        }
        // The world turns good: the source is there, the keeper answers, a new look is asked for.
        world.observed.sources.insert(
            "faq".to_owned(),
            SourceState::Present(Some(Digest::of(b"good"))),
        );
        world.observed.build = Asked::Answered(None);
        world.reconcile();
        world.end_job(0, None);
        world.publish(version + 1);
        world.reconcile();
        prop_assert_eq!(world.ready().0, "True");
        world.reconcile();
        let writes = world.writes;
        world.seconds += 1000;
        world.reconcile();
        prop_assert_eq!(world.writes, writes);
        prop_assert!(world.observed.jobs.len() <= 1);
    }
}

/// Names of the Jobs that run.
fn running(world: &World) -> Vec<Option<String>> {
    let runs = |job: &&Job| crate::jobs::state(job) == crate::jobs::JobState::Active;
    let jobs = world.observed.jobs.iter().filter(runs);
    jobs.map(|job| job.metadata.name.clone()).collect()
}

proptest! {
    #[test]
    fn a_time_ends_no_build_and_starts_no_second_one_beside_it(
        nights in prop::collection::vec((0_i64..50, prop::option::of(prop::sample::select(vec![0, 64, 65, 69, 70]))), 1..20),
    ) {
        let mut world = super::schedule::nightly(World::from_claim());
        let mut version = 0;
        for (hours, code) in nights {
            world.seconds += hours * 3600;
            if let Some(code) = code.filter(|_| !running(&world).is_empty()) {
                world.end_job(code, None);
                if code == 0 {
                    version += 1;
                    world.publish(version);
                }
            }
            let before = running(&world);
            world.reconcile();
            let after = running(&world);
            prop_assert!(before.iter().all(|job| after.contains(job)), "{:?} became {:?}", before, after);
            prop_assert!(after.len() <= 1, "{:?}", after);
            // The end of a build is noted, then the time that waited for it, then the build of that time begins.
            world.reconcile();
            world.reconcile();
            let writes = world.writes;
            world.reconcile();
            prop_assert_eq!(world.writes, writes, "a look at what has settled changes nothing");
        }
    }
}
