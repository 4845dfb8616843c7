//! Pods as decisions need them.

use graftwork_api::labels;
use graftwork_operator_core::observed::{Container, Pod, describe_end};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStatus, Pod as ClusterPod, PodCondition,
};
use kube::ResourceExt as _;

use crate::cache::in_namespace;
use crate::clock;
use crate::context::{Context, Spells};

/// Pods of one component of an object.
pub fn of(
    context: &Context,
    namespace: &str,
    component: &str,
    owner_kind: &str,
    owner: &str,
) -> Vec<Pod> {
    let selector = labels::selector(component, owner_kind, owner);
    let now = clock::now();
    in_namespace(&context.caches.pods, namespace)
        .iter()
        .filter(|pod| {
            selector
                .iter()
                .all(|(key, value)| pod.labels().get(key) == Some(value))
        })
        .map(|pod| {
            let grace = pod.metadata.deletion_grace_period_seconds;
            by_our_clock(read(pod), grace, &context.spells, now)
        })
        .collect()
}

/// The pod with the times that waits count from by our clock.
fn by_our_clock(mut pod: Pod, grace_seconds: Option<i64>, spells: &Spells, now: Timestamp) -> Pod {
    if let Some(stamp) = pod.deleting_since {
        // A second delete with a shorter grace period stamps it anew.
        let what = format!("deleted {stamp}");
        let first = spells.note(&pod.uid, &what, true, now).unwrap_or(now);
        let grace = SignedDuration::from_secs(grace_seconds.unwrap_or_default().max(0));
        pod.deleting_since = Some(first.checked_add(grace).unwrap_or(first));
    }
    let lacks_image = pod.image_problem().is_some();
    pod.image_missing_since = spells.note(&pod.uid, "without image", lacks_image, now);
    pod
}

/// One pod, with the API server's stamps.
pub fn read(pod: &ClusterPod) -> Pod {
    let status = pod.status.clone().unwrap_or_default();
    let condition = |kind: &str| -> Option<&PodCondition> {
        status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == kind)
    };
    let is_true = |condition: &&PodCondition| condition.status == "True";
    let container = own(
        pod,
        status.container_statuses.as_deref().unwrap_or_default(),
    );
    Pod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        labels: pod.labels().clone(),
        annotations: pod.annotations().clone(),
        ip: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
        ready: condition("Ready").is_some_and(|it| is_true(&it)),
        phase: status.phase.clone().unwrap_or_default(),
        deleting_since: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
        created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
        image_missing_since: None,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        unschedulable: condition("PodScheduled")
            .filter(|condition| condition.status == "False")
            .map(|condition| condition.message.clone().unwrap_or_default()),
        disrupted: condition("DisruptionTarget")
            .filter(is_true)
            .map(|condition| condition.reason.clone().unwrap_or_default()),
        reason: status.reason.clone().filter(|reason| !reason.is_empty()),
        container: container
            .and_then(|container| container.state.as_ref())
            .map(read_state)
            .unwrap_or_default(),
        restarts: container.map_or(0, |container| container.restart_count),
        last_end: container
            .and_then(|container| container.last_state.as_ref()?.terminated.as_ref())
            .map(|ended| {
                let reason = ended.reason.as_deref().unwrap_or_default();
                let message = ended.message.as_deref().unwrap_or_default();
                describe_end(ended.exit_code, reason, message)
            }),
    }
}

/// The state of our container, which is called as the component is: what admission adds to a pod may
/// come first.
fn own<'a>(pod: &ClusterPod, statuses: &'a [ContainerStatus]) -> Option<&'a ContainerStatus> {
    let component = pod.labels().get(labels::COMPONENT);
    let named = statuses
        .iter()
        .find(|status| Some(&status.name) == component);
    named.or_else(|| statuses.first())
}

fn read_state(state: &ContainerState) -> Container {
    if let Some(ended) = &state.terminated {
        Container::Terminated {
            exit_code: ended.exit_code,
            reason: ended.reason.clone().unwrap_or_default(),
            message: ended.message.clone().unwrap_or_default(),
            started: ended.started_at.as_ref().map(|time| time.0),
            finished: ended.finished_at.as_ref().map(|time| time.0),
        }
    } else if let Some(running) = &state.running {
        Container::Running {
            since: running.started_at.as_ref().map(|time| time.0),
        }
    } else if let Some(waiting) = &state.waiting {
        Container::Waiting {
            reason: waiting.reason.clone().unwrap_or_default(),
            message: waiting.message.clone().unwrap_or_default(),
        }
    } else {
        Container::Unknown
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn engine(statuses: &Value) -> Pod {
        let pod = json!({
            "metadata": {"name": "engine-1", "labels": {labels::COMPONENT: labels::component::ENGINE}},
            "status": {"containerStatuses": statuses},
        });
        read(&serde_json::from_value(pod).unwrap())
    }

    fn status(name: &str, state: &Value, last: &Value) -> Value {
        json!({
            "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 3,
            "state": state, "lastState": last,
        })
    }

    #[test]
    fn what_a_process_said_at_its_end_is_said_through_the_back_off_and_the_next_start() {
        let words = "Error: the KV cache is too small\n";
        let ended = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": words}});
        let back_off =
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}});
        for (state, last, expected) in [
            (
                &back_off,
                &ended,
                Some("CrashLoopBackOff: exited with 1: Error: the KV cache is too small"),
            ),
            (
                &json!({"running": {}}),
                &ended,
                Some("started again: exited with 1: Error: the KV cache is too small"),
            ),
            (
                &back_off,
                &json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
                Some("CrashLoopBackOff: exited with 137: OOMKilled"),
            ),
            (
                &back_off,
                &json!({}),
                Some("CrashLoopBackOff: back-off 20s"),
            ),
            (&json!({"running": {}}), &json!({}), None),
            (
                &ended,
                &json!({}),
                Some("exited with 1: Error: the KV cache is too small"),
            ),
        ] {
            let pod = engine(&json!([status("engine", state, last)]));
            assert_eq!(pod.problem().as_deref(), expected, "{state} {last}");
        }
        let mut pod = engine(&json!([status("engine", &json!({"running": {}}), &ended)]));
        pod.ready = true;
        assert_eq!(pod.problem(), None, "it serves");
    }

    #[test]
    fn stamps_of_another_clock_become_times_of_ours() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let seen = Spells::default();
        let look = |stamp: &str, grace: i64, second: i64| {
            let waiting = json!({"waiting": {"reason": "ErrImagePull", "message": "no image"}});
            let pod = json!({
                "metadata": {
                    "name": "x", "uid": "u", "deletionTimestamp": stamp,
                    "labels": {labels::COMPONENT: labels::component::TRAINER},
                },
                "status": {"containerStatuses": [status("trainer", &waiting, &json!({}))]},
            });
            let pod = read(&serde_json::from_value(pod).unwrap());
            let pod = by_our_clock(pod, Some(grace), &seen, at(second));
            (pod.deleting_since, pod.image_missing_since)
        };
        let (long_ago, ahead) = ("1969-01-01T00:00:00Z", "2170-01-01T00:00:00Z");
        for (stamp, grace, second, gone) in [
            (long_ago, 60, 100, 160),
            (long_ago, 60, 130, 160),
            (ahead, 10, 140, 150),
            (ahead, 10, 150, 150),
        ] {
            let expected = (Some(at(gone)), Some(at(100)));
            assert_eq!(look(stamp, grace, second), expected, "{stamp} {second}");
        }
    }

    #[test]
    fn a_container_that_admission_adds_is_not_taken_for_ours() {
        let theirs = json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}});
        let pod = engine(&json!([
            status("agent", &theirs, &json!({})),
            status("engine", &json!({"running": {}}), &json!({})),
        ]));
        assert!(pod.is_running());
        assert_eq!(pod.restarts, 3);
    }
}
