//! Writing: children, Jobs, deletes, nudges, status and events; each only where something differs.

use std::collections::HashMap;
use std::sync::Mutex;

use graftwork_api::labels;
use graftwork_contract::Digest;
use graftwork_operator_core::plan::{ChildKind, Delete, Event, EventKind, Nudge};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::events::v1::Event as ClusterEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{
    Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::{ApiError, Class, FIELD_MANAGER};
use crate::cache::{Caches, find};
use crate::clock;
use crate::lease::Term;
use crate::metrics::Metrics;
use crate::status::{self, Compare};

mod children;
mod compare;
mod managed_fields;

pub use compare::covers;

/// Everything that writes to the API server.
pub struct Writer {
    client: Client,
    term: std::sync::Arc<Term>,
    metrics: Metrics,
    instance: String,
    /// What an object looked like after it was last applied, for objects that the API server
    /// normalises in a way that `covers` does not know: not written again until one side changes.
    applied: Mutex<HashMap<String, (String, Digest)>>,
}

impl Writer {
    /// A writer within `term`.
    pub fn new(
        client: Client,
        term: std::sync::Arc<Term>,
        metrics: Metrics,
        instance: String,
    ) -> Self {
        Self {
            client,
            term,
            metrics,
            instance,
            applied: Mutex::default(),
        }
    }

    fn count(&self, kind: &str, verb: &str, outcome: &Result<(), ApiError>) {
        self.metrics.wrote(kind, verb, outcome.as_ref().err());
    }

    /// Forgets objects that are gone.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        if let Ok(mut applied) = self.applied.lock() {
            applied.retain(|uid, _| exists(uid));
        }
    }

    /// Creates a Job where there is none of its name.
    ///
    /// # Errors
    /// Those of the API server; a Job of that name is none.
    pub async fn create(
        &self,
        job: &Job,
        namespace: &str,
        caches: &Caches,
    ) -> Result<(), ApiError> {
        let name = job.name_any();
        if find(&caches.jobs, namespace, &name).is_some() {
            return Ok(());
        }
        let api: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let parameters = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let outcome = match self.term.write(api.create(&parameters, job)).await {
            Ok(_) => {
                tracing::info!(kind = "Job", namespace, name, "created");
                Ok(())
            }
            // Created before, and not in the cache yet; or somebody else's, which the next look shows.
            Err(error) if error.class() == Class::Conflict => Ok(()),
            Err(error) => Err(error),
        };
        self.count("Job", "create", &outcome);
        outcome
    }

    /// Deletes an object if it is still the one that was seen.
    ///
    /// # Errors
    /// Those of the API server; an object that is gone or another one is none.
    pub async fn delete(&self, delete: &Delete, namespace: &str) -> Result<(), ApiError> {
        let parameters = DeleteParams {
            grace_period_seconds: delete.grace_seconds,
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions {
                uid: Some(delete.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let outcome = match delete.kind {
            ChildKind::ConfigMap => {
                self.delete_one::<ConfigMap>(delete, namespace, &parameters)
                    .await
            }
            ChildKind::PersistentVolumeClaim => {
                self.delete_one::<PersistentVolumeClaim>(delete, namespace, &parameters)
                    .await
            }
            ChildKind::Service => {
                self.delete_one::<Service>(delete, namespace, &parameters)
                    .await
            }
            ChildKind::Deployment => {
                self.delete_one::<Deployment>(delete, namespace, &parameters)
                    .await
            }
            ChildKind::Job => self.delete_one::<Job>(delete, namespace, &parameters).await,
            ChildKind::Pod => self.delete_one::<Pod>(delete, namespace, &parameters).await,
        };
        self.count(delete.kind.name(), "delete", &outcome);
        outcome
    }

    async fn delete_one<K>(
        &self,
        delete: &Delete,
        namespace: &str,
        parameters: &DeleteParams,
    ) -> Result<(), ApiError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        match self.term.write(api.delete(&delete.name, parameters)).await {
            Ok(_) => {
                let kind = delete.kind.name();
                tracing::info!(kind, namespace, name = delete.name, "deleted");
                Ok(())
            }
            Err(error) if error.is_not_found() || error.class() == Class::Conflict => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Annotates a pod, so that its kubelet refreshes mounted configuration now.
    ///
    /// # Errors
    /// Those of the API server; a pod that is gone is none.
    pub async fn nudge(
        &self,
        nudge: &Nudge,
        namespace: &str,
        caches: &Caches,
    ) -> Result<(), ApiError> {
        let known = find(&caches.pods, namespace, &nudge.pod).is_some_and(|pod| {
            pod.annotations().get(labels::NUDGE_ANNOTATION) == Some(&nudge.configuration)
        });
        if known {
            return Ok(());
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({"metadata": {
            "uid": nudge.uid,
            "annotations": {labels::NUDGE_ANNOTATION: nudge.configuration},
        }});
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let outcome = match self
            .term
            .write(api.patch_metadata(&nudge.pod, &parameters, &Patch::Merge(&patch)))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.class() == Class::Conflict => Ok(()),
            Err(error) => Err(error),
        };
        self.count("Pod", "nudge", &outcome);
        outcome
    }

    /// Patches the status of `object` from `old` to `new`, where they differ. Returns the object as written; none where nothing was.
    ///
    /// # Errors
    /// Those of the API server; a conflict where the object is no longer the one that was read.
    pub async fn write_status<K>(
        &self,
        object: &ObjectMeta,
        old: &Value,
        new: &Value,
        compare: Compare,
    ) -> Result<Option<K>, ApiError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let Some(patch) = status::patch(old, new, compare) else {
            return Ok(None);
        };
        let kind = K::kind(&()).into_owned();
        let namespace = object.namespace.as_deref().unwrap_or_default();
        let name = object.name.as_deref().unwrap_or_default();
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let body = status::body(
            object.resource_version.as_deref().unwrap_or_default(),
            object.uid.as_deref().unwrap_or_default(),
            &patch,
        );
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let answer = self
            .term
            .write(api.patch_status(name, &parameters, &Patch::Merge(&body)))
            .await;
        match answer {
            Ok(written) => {
                self.count(&kind, "status", &Ok(()));
                Ok(Some(written))
            }
            Err(error) => {
                let outcome = Err(error);
                self.count(&kind, "status", &outcome);
                outcome.map(|()| None)
            }
        }
    }

    /// Sends an event. One that fails is logged: it says nothing that status does not.
    pub async fn event(&self, event: &Event, regarding: &ObjectReference) {
        let namespace = regarding.namespace.clone().unwrap_or_default();
        let now = clock::wall();
        let body = ClusterEvent {
            metadata: ObjectMeta {
                name: Some(event_name(
                    regarding.name.as_deref().unwrap_or("object"),
                    now,
                )),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            reporting_controller: Some("graftwork.dev/operator".to_owned()),
            reporting_instance: Some(self.instance.clone()),
            action: Some(event.action.clone()),
            reason: Some(event.reason.clone()),
            note: Some(event.note.clone()),
            type_: Some(
                match event.kind {
                    EventKind::Normal => "Normal",
                    EventKind::Warning => "Warning",
                }
                .to_owned(),
            ),
            regarding: Some(regarding.clone()),
            ..ClusterEvent::default()
        };
        let api: Api<ClusterEvent> = Api::namespaced(self.client.clone(), &namespace);
        let answer = self
            .term
            .write(api.create(&PostParams::default(), &body))
            .await;
        let outcome = answer.map(|_| ());
        match &outcome {
            Ok(()) => {}
            // Nobody is left to read it.
            Err(error) if error.is_namespace_going() => {
                tracing::debug!(%error, reason = event.reason, "an event is not sent any more");
            }
            Err(error) => {
                tracing::warn!(%error, reason = event.reason, "an event could not be sent");
            }
        }
        self.count("Event", "create", &outcome);
    }
}

/// Longest part of an object's name in the names of its events.
const LONGEST_IN_EVENT: usize = 200;

/// A name of its own for an event: each part between dots has to end in a letter or digit, so a
/// shortened name must not end in anything else.
fn event_name(object: &str, now: Timestamp) -> String {
    let short: String = object.chars().take(LONGEST_IN_EVENT).collect();
    let short = short.trim_end_matches(|last: char| !last.is_ascii_alphanumeric());
    format!("{short}.{:x}", now.as_nanosecond())
}

/// A reference to an object, for events.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    object.object_ref(&())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_events_are_names_that_the_api_server_takes() {
        let now = Timestamp::from_second(1_790_000_000).unwrap();
        let cut_at = |what: &str| format!("{}{what}rest", "a".repeat(LONGEST_IN_EVENT - 1));
        for object in [
            "short".to_owned(),
            cut_at("-"),
            cut_at("."),
            format!("{}.-rest", "a".repeat(LONGEST_IN_EVENT - 2)),
            "a".repeat(253),
        ] {
            let name = event_name(&object, now);
            assert!(name.len() <= 253, "{name}");
            for label in name.split('.') {
                let ends = |it: Option<char>| it.is_some_and(|it| it.is_ascii_alphanumeric());
                let mut characters = label.chars();
                assert!(ends(characters.next()), "{name}");
                assert!(ends(label.chars().next_back()), "{name}");
            }
        }
    }

    #[tokio::test]
    async fn what_was_applied_is_forgotten_with_its_object() {
        let client = kube::Client::new(
            tower::service_fn(|_: http::Request<kube::client::Body>| {
                std::future::ready(Err::<http::Response<kube::client::Body>, _>(
                    std::io::Error::other("nobody is asked"),
                ))
            }),
            "default",
        );
        let writer = Writer::new(
            client,
            Term::forever(),
            Metrics::new().unwrap(),
            "test".to_owned(),
        );
        let known = || {
            let applied = writer.applied.lock().unwrap();
            let mut known: Vec<String> = applied.keys().cloned().collect();
            known.sort();
            known
        };
        for uid in ["one", "two"] {
            let entry = (String::new(), Digest::of(b""));
            writer.applied.lock().unwrap().insert(uid.to_owned(), entry);
        }
        writer.keep_only(|uid| uid == "two");
        assert_eq!(known(), ["two"]);
    }
}
