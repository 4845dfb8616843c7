//! Pods as decisions need them.

use graftwork_api::labels;
use graftwork_operator_core::observed::{Container, Pod};
use k8s_openapi::api::core::v1::{ContainerState, Pod as ClusterPod, PodCondition};
use kube::ResourceExt as _;

use crate::cache::in_namespace;
use crate::context::Context;

/// Pods of one component of an object.
pub fn of(
    context: &Context,
    namespace: &str,
    component: &str,
    owner_kind: &str,
    owner: &str,
) -> Vec<Pod> {
    let selector = labels::selector(component, owner_kind, owner);
    in_namespace(&context.caches.pods, namespace)
        .iter()
        .filter(|pod| {
            selector
                .iter()
                .all(|(key, value)| pod.labels().get(key) == Some(value))
        })
        .map(|pod| read(pod))
        .collect()
}

/// One pod.
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
    let container = status.container_statuses.iter().flatten().next();
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
    }
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
