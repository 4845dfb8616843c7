//! Routers that are not ready: nobody counts what they routed, and what is judged is all of the traffic.

use super::*;
use crate::observed::Container;

/// A candidate that passes, in a pause of 60 s, and a second router.
fn analysed(change: impl Fn(&mut Pod)) -> World {
    let spec = json!({"rollout": {
        "canary": {"steps": [{"setWeight": 10}, {"pause": {"seconds": 60}}]},
        "analysis": {"intervalSeconds": 10, "minimumRequests": 50, "rules": [{"metric": "error_rate", "maximum": "0.01"}]},
    }});
    let mut world = World::serving(&spec);
    world.approve(2).settle();
    assert_eq!(world.state(), RolloutState::Paused);
    world.traffic = (400, 0);
    let mut second = pod("router-2");
    second.container = Container::Running { since: None };
    change(&mut second);
    world.observed.routers.push(RouterPod {
        pod: second,
        ..RouterPod::default()
    });
    world
}

#[test]
fn a_router_that_is_not_ready_holds_the_step_until_it_is() {
    let mut world = analysed(|pod| pod.ready = false);
    world.after(30).after(30).after(100_000);
    assert_eq!((world.state(), world.stable()), (RolloutState::Paused, 1));
    assert_eq!(
        world.condition(condition::PROGRESSING),
        ("True", reason::ANALYSIS_INCONCLUSIVE)
    );
    let said = "router router-2 is not ready, and what it routed is not counted";
    let message = world.message(condition::PROGRESSING);
    assert!(message.contains(said), "{message}");
    world.observed.routers[1].pod.ready = true;
    world.after(10);
    assert_eq!(world.stable(), 2);
}

#[test]
fn a_router_that_is_gone_or_never_ran_holds_nothing() {
    let changes: [fn(&mut Pod); 3] = [
        |pod| {
            pod.ready = false;
            pod.container = Container::Waiting {
                reason: "ImagePullBackOff".to_owned(),
                message: "no such image".to_owned(),
            };
        },
        |pod| {
            pod.ready = false;
            pod.phase = "Failed".to_owned();
        },
        |_| {},
    ];
    for change in changes {
        let mut world = analysed(change);
        world.after(30).after(30);
        assert_eq!(world.stable(), 2);
    }
    let mut world = analysed(|pod| pod.ready = false);
    world.after(30).after(30);
    assert_eq!(world.state(), RolloutState::Paused);
    world.observed.routers.truncate(1);
    world.after(10);
    assert_eq!(world.stable(), 2);
}

#[test]
fn a_router_that_goes_away_is_waited_for_as_long_as_a_lease() {
    let mut world = analysed(|pod| pod.deleting_since = Some(at(0)));
    world.after(60).after(60);
    assert_eq!((world.state(), world.stable()), (RolloutState::Paused, 1));
    let message = world.message(condition::PROGRESSING);
    assert!(
        message.contains("router router-2 is going away"),
        "{message}"
    );
    world.after(10);
    assert_eq!(world.stable(), 2);
}

#[test]
fn what_fails_fails_though_some_of_it_is_not_counted() {
    let mut world = analysed(|pod| pod.ready = false);
    world.traffic = (400, 40);
    world.after(30);
    assert_eq!(
        (world.state(), world.stable()),
        (RolloutState::RolledBack, 1)
    );
}
