//! From any state a run ends and stops writing.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Happening {
    PodEnds(i32),
    Evicted,
    JobDeleted,
    Suspend,
    Resume,
    KeeperAway,
    DatasetGone,
    StatusLost,
    Later(i64),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let codes = prop::sample::select(vec![1, 69, 70, 75, 137]);
    prop::collection::vec(
        prop_oneof![
            codes.prop_map(Happening::PodEnds),
            Just(Happening::Evicted),
            Just(Happening::JobDeleted),
            Just(Happening::Suspend),
            Just(Happening::Resume),
            Just(Happening::KeeperAway),
            Just(Happening::DatasetGone),
            Just(Happening::StatusLost),
            (0_i64..60).prop_map(Happening::Later),
        ],
        0..14,
    )
}

proptest! {
    #[test]
    fn from_any_state_it_ends_and_stops_writing(happenings in happenings()) {
        let mut world = World::new();
        world.cr.spec.limits.retries = 100;
        for happening in happenings {
            match happening {
                Happening::PodEnds(code) => world.end_pod(code, |_| {}),
                Happening::Evicted => world.end_pod(137, |pod| pod.disrupted = Some("x".to_owned())),
                Happening::JobDeleted => {
                    world.observed.jobs.pop();
                    world.observed.pods.pop();
                }
                Happening::Suspend => world.cr.spec.suspend = true,
                Happening::Resume => world.cr.spec.suspend = false,
                Happening::KeeperAway => {
                    world.observed.resolved = Asked::Unreachable("away".to_owned());
                    world.observed.result = Asked::Unreachable("away".to_owned());
                }
                Happening::DatasetGone => world.observed.dataset = Referenced::Absent,
                Happening::StatusLost => world.cr.status = None,
                Happening::Later(seconds) => world.seconds += seconds,
            }
            world.reconcile();
            let active = world.observed.jobs.iter()
                .filter(|job| crate::jobs::state(job) == JobState::Active)
                .count();
            prop_assert!(active <= 1, "never two trainers");
        }
        // The world turns good.
        world.cr.spec.suspend = false;
        world.observed.dataset = Referenced::There(Box::new(dataset()));
        world.observed.resolved = Asked::NotAsked;
        world.observed.result = Asked::NotAsked;
        for pod in &mut world.observed.pods {
            if pod.deleting_since.is_some() {
                pod.phase = "Failed".to_owned();
            }
        }
        world.seconds += 400;
        world.start();
        world.publish_result();
        world.end_pod(0, |_| {});
        world.reconcile();
        prop_assert_eq!(world.succeeded().1, reason::COMPLETED);
        world.reconcile();
        let writes = world.writes;
        world.seconds += 1000;
        world.reconcile();
        prop_assert_eq!(world.writes, writes);
        prop_assert_eq!(world.active_job(), None);
    }
}
