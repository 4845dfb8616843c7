//! Engines that replace others and do not come up: the endpoint serves, and says why they don't.

use super::*;
use crate::observed::Container;

/// What condition Reconciling says while one engine serves and `starting` are to replace it.
fn said(starting: &[Pod]) -> String {
    let mut world = World::serving(&json!({}));
    let Found::Ours(deployment) = &mut world.observed.engine_deployment else {
        unreachable!("it was made")
    };
    deployment.status.as_mut().unwrap().updated_replicas = Some(0);
    let engines = starting.iter().map(|pod| EnginePod {
        pod: pod.clone(),
        ..EnginePod::default()
    });
    world.observed.engines.extend(engines);
    let status = world.act().status.unwrap();
    let find = |kind| crate::conditions::find(&status.conditions, kind).unwrap();
    assert_eq!(find(condition::READY).status, "True");
    let found = find(condition::RECONCILING);
    assert_eq!(found.reason, reason::ROLLING_ENGINES);
    found.message.clone()
}

fn starting(name: &str, created: i64) -> Pod {
    Pod {
        ready: false,
        phase: "Pending".to_owned(),
        created: Some(at(created)),
        ..pod(name)
    }
}

fn waiting(reason: &str, message: &str) -> Pod {
    Pod {
        container: Container::Waiting {
            reason: reason.to_owned(),
            message: message.to_owned(),
        },
        ..starting("new", 10)
    }
}

#[test]
fn a_replacement_that_does_not_come_up_is_named_with_what_the_cluster_says_of_it() {
    let unschedulable = Pod {
        unschedulable: Some("0/1 nodes are available: 1 Insufficient cpu.".to_owned()),
        ..starting("new", 10)
    };
    let ended = Pod {
        container: Container::Terminated {
            exit_code: 64,
            reason: "Error".to_owned(),
            message: "config.json is missing".to_owned(),
            started: None,
            finished: None,
        },
        ..starting("new", 10)
    };
    for (pod, why) in [
        (
            unschedulable,
            "0/1 nodes are available: 1 Insufficient cpu.",
        ),
        (
            waiting("ErrImagePull", "no such image: busybox:evil"),
            "no such image: busybox:evil",
        ),
        (
            waiting(
                "CrashLoopBackOff",
                "back-off 40s restarting failed container",
            ),
            "CrashLoopBackOff: back-off 40s restarting failed container",
        ),
        (ended, "exited with 64: config.json is missing"),
    ] {
        let expected = format!("engines are being replaced; new: {why}");
        assert_eq!(said(std::slice::from_ref(&pod)), expected);
    }
}

#[test]
fn the_newest_replacement_speaks_and_one_that_merely_starts_says_nothing() {
    let plain = "engines are being replaced";
    assert_eq!(said(&[]), plain);
    assert_eq!(said(&[waiting("ContainerCreating", "")]), plain);
    let older = Pod {
        name: "older".to_owned(),
        created: Some(at(5)),
        ..waiting("CrashLoopBackOff", "an old one")
    };
    let newest = waiting("ErrImagePull", "no such image");
    let going = Pod {
        name: "going".to_owned(),
        created: Some(at(20)),
        deleting_since: Some(at(21)),
        ..waiting("CrashLoopBackOff", "it goes")
    };
    assert_eq!(
        said(&[older, newest, going]),
        format!("{plain}; new: no such image")
    );
}
