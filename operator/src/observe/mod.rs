//! Observation: all reads of a reconcile, into one value for each kind.

pub mod adapter;
pub mod dataset;
pub mod endpoint;
pub mod keeper;
pub mod pods;
pub mod run;
pub mod storage;

use std::sync::Arc;

use graftwork_api::labels;
use graftwork_operator_core::jobs::{self, JobState};
use graftwork_operator_core::observed::{ClaimState, Found};
use graftwork_operator_core::sightings::{Sighting, Sightings};
use graftwork_operator_core::workload::is_owned_by;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};
use kube::api::{Api, ObjectMeta};
use kube::runtime::reflector::Store;
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::api::{self, ApiError};
use crate::cache::{find, in_namespace};
use crate::context::{Context, Spells};

/// Whether an object belongs to the owner of that UID, or, without an owner, carries our labels.
pub fn is_ours(metadata: &ObjectMeta, owner: Option<&str>) -> bool {
    match owner {
        Some(uid) => is_owned_by(metadata, uid),
        None => {
            let labels = metadata.labels.as_ref();
            let managed = labels.and_then(|labels| labels.get(labels::MANAGED_BY));
            managed.map(String::as_str) == Some(labels::OPERATOR)
        }
    }
}

/// A child by its name. Caches hold what carries our labels; whatever else has the name is asked
/// for.
///
/// # Errors
/// Those of the API server.
pub async fn child<K>(
    context: &Context,
    store: &Store<K>,
    namespace: &str,
    name: &str,
    owner: Option<&str>,
) -> Result<Found<K>, ApiError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + 'static,
{
    if let Some(object) = find(store, namespace, name) {
        return Ok(found(&object, owner));
    }
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let other = api::call(api.get_metadata_opt(name)).await?;
    Ok(match other {
        None => Found::Absent,
        // Ours, and not in the cache yet: as good as absent, because what is written is the same.
        Some(other) if is_ours(other.meta(), owner) => Found::Absent,
        Some(_) => Found::Foreign,
    })
}

fn found<K: Resource + Clone>(object: &Arc<K>, owner: Option<&str>) -> Found<K> {
    if is_ours(object.meta(), owner) {
        Found::Ours(Box::new((**object).clone()))
    } else {
        Found::Foreign
    }
}

/// A child `ConfigMap` by its name: the metadata of all of them is cached.
pub fn config_map(
    context: &Context,
    namespace: &str,
    name: &str,
    owner: Option<&str>,
) -> Found<ConfigMap> {
    if let Some(object) = find(&context.caches.config_maps, namespace, name) {
        return found(&object, owner);
    }
    match find(&context.caches.all_config_maps, namespace, name) {
        Some(other) if !is_ours(other.meta(), owner) => Found::Foreign,
        _ => Found::Absent,
    }
}

/// Objects of a store that belong to an owner.
pub fn owned<K>(store: &Store<K>, namespace: &str, owner: &str) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    in_namespace(store, namespace)
        .iter()
        .filter(|object| is_owned_by(object.meta(), owner))
        .map(|object| (**object).clone())
        .collect()
}

/// When Jobs and their ends were first seen.
pub fn sightings(spells: &Spells, jobs: &[Job], now: Timestamp) -> Sightings {
    let sighting = |job: &Job| {
        let uid = job.metadata.uid.as_deref()?;
        let state = jobs::state(job);
        // The pod of one that a queue holds back is waited for from when it is let in.
        let made = spells.note(uid, "made", state != JobState::Suspended, now);
        let has_ended = matches!(state, JobState::Complete | JobState::Failed);
        let seen = Sighting {
            made: made.unwrap_or(now),
            ended: spells.note(uid, "ended", has_ended, now),
        };
        Some((uid.to_owned(), seen))
    };
    jobs.iter().filter_map(sighting).collect()
}

/// A claim that a spec names.
pub fn claim(context: &Context, namespace: &str, name: &str) -> ClaimState {
    match find(&context.caches.claims, namespace, name) {
        None => ClaimState::Absent,
        Some(claim) if claim.metadata.deletion_timestamp.is_some() => ClaimState::Deleting,
        Some(claim) if is_bound(&claim) => ClaimState::Bound,
        Some(_) => ClaimState::NotBound,
    }
}

/// Whether a claim has its volume.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let phase = claim
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    phase == Some("Bound")
}

/// Name and namespace, as strings.
pub fn place<K: Resource>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    #[test]
    fn a_job_is_seen_when_we_look_and_its_end_when_it_has_one() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let seen = Spells::default();
        let mut job: Job = serde_json::from_value(serde_json::json!({
            "metadata": {"uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
        }))
        .unwrap();
        let looked = sightings(&seen, std::slice::from_ref(&job), at(10));
        assert_eq!(
            (looked.made(&job), looked.ended(&job)),
            (Some(at(10)), None)
        );
        job.status = serde_json::from_value(serde_json::json!({
            "conditions": [{
                "type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T00:00:09Z",
            }],
        }))
        .unwrap();
        sightings(&seen, std::slice::from_ref(&job), at(20));
        let looked = sightings(&seen, std::slice::from_ref(&job), at(30));
        let (made, ended) = (looked.made(&job), looked.ended(&job));
        assert_eq!((made, ended), (Some(at(10)), Some(at(20))));
    }

    #[test]
    fn a_job_that_a_queue_held_back_counts_from_when_it_was_let_in() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let seen = Spells::default();
        for (second, suspend, made) in [
            (10, false, 10),
            (20, true, 20),
            (3600, true, 3600),
            (3700, false, 3700),
            (3800, false, 3700),
        ] {
            let job: Job = serde_json::from_value(serde_json::json!({
                "metadata": {"uid": "u"},
                "spec": {"suspend": suspend, "template": {}},
            }))
            .unwrap();
            let looked = sightings(&seen, std::slice::from_ref(&job), at(second));
            assert_eq!(looked.made(&job), Some(at(made)), "{second}");
        }
    }

    #[test]
    fn a_service_of_another_endpoint_is_foreign_though_it_carries_our_labels() {
        let mut service = Service::default();
        let managed = (labels::MANAGED_BY.to_owned(), labels::OPERATOR.to_owned());
        service.metadata.labels = Some([managed].into());
        service.metadata.owner_references = Some(vec![OwnerReference {
            api_version: graftwork_api::API_VERSION.to_owned(),
            kind: "ServingEndpoint".to_owned(),
            name: "a".to_owned(),
            uid: "uid-of-a".to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        }]);
        let service = Arc::new(service);
        assert!(found(&service, Some("uid-of-a-engines")).is_foreign());
        assert!(found(&service, Some("uid-of-a")).ours().is_some());
    }
}
