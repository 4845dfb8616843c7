//! Children: created where there is none, then kept as we want them by server-side apply.

use graftwork_api::labels;
use graftwork_contract::{Digest, digest};
use graftwork_operator_core::plan::Child;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::managed_fields::{self, Handover};
use super::{Writer, covers};
use crate::api::{self, ApiError, Class, FIELD_MANAGER};
use crate::cache::{Caches, find};
use crate::observe;

/// What a child can be.
trait Applied:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + std::fmt::Debug
    + Serialize
    + DeserializeOwned
{
}

impl<K> Applied for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned
{
}

impl Writer {
    /// Writes a child where it differs from what is cached.
    ///
    /// # Errors
    /// Those of the API server; a conflict where somebody else has the name by now.
    pub async fn apply(
        &self,
        child: &Child,
        namespace: &str,
        caches: &Caches,
    ) -> Result<(), ApiError> {
        let name = child.name();
        match child {
            Child::ConfigMap(object) => {
                let live = find(&caches.config_maps, namespace, name);
                self.apply_one(&**object, namespace, live.as_deref()).await
            }
            Child::Claim(object) => {
                let live = find(&caches.claims, namespace, name);
                self.apply_one(&**object, namespace, live.as_deref()).await
            }
            Child::Service(object) => {
                let live = find(&caches.services, namespace, name);
                self.apply_one(&**object, namespace, live.as_deref()).await
            }
            Child::Deployment(object) => {
                let live = find(&caches.deployments, namespace, name);
                self.apply_one(&**object, namespace, live.as_deref()).await
            }
        }
    }

    async fn apply_one<K: Applied>(
        &self,
        desired: &K,
        namespace: &str,
        live: Option<&K>,
    ) -> Result<(), ApiError> {
        let api = Api::namespaced(self.client.clone(), namespace);
        // Caches hold others' objects too, and one may have come since the plan was made.
        match live.filter(|live| is_ours(*live, desired)) {
            Some(live) => Box::pin(self.change_child(&api, desired, live)).await,
            None => Box::pin(self.create_child(&api, desired)).await,
        }
    }

    /// Creates a child. An apply would take over what somebody else has made of that name since it
    /// was looked for; a create finds the name taken.
    async fn create_child<K: Applied>(&self, api: &Api<K>, desired: &K) -> Result<(), ApiError> {
        let (object, hash) = stamped(desired);
        let kind = K::kind(&()).into_owned();
        let (namespace, name) = observe::place(&object);
        let parameters = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match self.term.write(api.create(&parameters, &object)).await {
            Ok(created) => {
                self.count(&kind, "create", &Ok(()));
                tracing::info!(kind, namespace, name, "created");
                self.remember(&created, hash);
                let handover = managed_fields::handover(&kind, created.managed_fields());
                match self.hand_over(api, &created, handover).await {
                    // Somebody wrote to it meanwhile: the next look does it, before it applies.
                    Err(error) if error.class() == Class::Conflict || error.is_not_found() => {
                        Ok(())
                    }
                    handed_over => handed_over,
                }
            }
            Err(error) => {
                let taken = error.class() == Class::Conflict;
                let outcome = Err(error);
                self.count(&kind, "create", &outcome);
                // Ours, where it is not cached yet or has lost the label by which it would be.
                let live = if taken {
                    api::call(api.get_opt(&name)).await?
                } else {
                    None
                };
                match live.filter(|live| is_ours(live, desired)) {
                    Some(live) => self.change_child(api, desired, &live).await,
                    None => outcome,
                }
            }
        }
    }

    async fn change_child<K: Applied>(
        &self,
        api: &Api<K>,
        desired: &K,
        live: &K,
    ) -> Result<(), ApiError> {
        let (mut object, hash) = stamped(desired);
        // The object that was seen, and no other of its name.
        object.meta_mut().uid = live.uid();
        let body = serde_json::to_value(&object).unwrap_or_default();
        let live_value = serde_json::to_value(live).unwrap_or_default();
        let kind = K::kind(&()).into_owned();
        let covered = covers(&live_value, &body) || self.was_applied(live, &live_value, &hash);
        let handover = managed_fields::handover(&kind, live.managed_fields());
        let same = covered && !handover.as_ref().is_some_and(|it| it.takes_back);
        match self.hand_over(api, live, handover).await {
            // The cache is behind, and nothing waits for it: what changed is seen when it comes.
            Err(error) if covered && error.class() == Class::Conflict => return Ok(()),
            handed_over => handed_over?,
        }
        if same {
            return Ok(());
        }
        let (namespace, name) = observe::place(&object);
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let answer = self
            .term
            .write(api.patch(&name, &parameters, &Patch::Apply(&body)))
            .await;
        let outcome = answer.map(|written| {
            tracing::info!(kind, namespace, name, "applied");
            self.remember(&written, hash);
        });
        self.count(&kind, "apply", &outcome);
        outcome
    }

    /// Gives what a create of ours made, and what others added where we alone write, to server-side
    /// apply, so that a later apply takes out what it does not name.
    async fn hand_over<K: Applied>(
        &self,
        api: &Api<K>,
        live: &K,
        handover: Option<Handover>,
    ) -> Result<(), ApiError> {
        let Some(Handover { fields, takes_back }) = handover else {
            return Ok(());
        };
        // Without the hash the apply follows, also where this process ends before it.
        let annotations = if takes_back {
            json!({labels::CONTENT_HASH_ANNOTATION: null})
        } else {
            json!({})
        };
        let patch = json!({"metadata": {
            "uid": live.uid(),
            "resourceVersion": live.resource_version(),
            "annotations": annotations,
            "managedFields": fields,
        }});
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let name = live.name_any();
        let answer = self
            .term
            .write(api.patch_metadata(&name, &parameters, &Patch::Merge(&patch)))
            .await;
        let kind = K::kind(&());
        let verb = if takes_back { "take_back" } else { "hand_over" };
        let outcome = answer.map(|_| {
            if takes_back {
                tracing::info!(%kind, name, "what others added is taken out");
            }
        });
        self.count(&kind, verb, &outcome);
        outcome
    }

    fn remember<K: Applied>(&self, written: &K, hash: String) {
        let value = serde_json::to_value(written).unwrap_or_default();
        if let Ok(mut applied) = self.applied.lock() {
            applied.insert(written.uid().unwrap_or_default(), (hash, settled(&value)));
        }
    }

    fn was_applied<K: Resource>(&self, live: &K, value: &Value, hash: &str) -> bool {
        let Ok(applied) = self.applied.lock() else {
            return false;
        };
        let uid = live.meta().uid.as_deref().unwrap_or_default();
        applied
            .get(uid)
            .is_some_and(|(known, after)| known == hash && *after == settled(value))
    }
}

/// Whether a live object is the child that `desired` is.
fn is_ours<K: Resource>(live: &K, desired: &K) -> bool {
    let mut owners = desired.meta().owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true));
    observe::is_ours(live.meta(), owner.map(|owner| owner.uid.as_str()))
}

/// The object as it is sent: with a hash of itself, so that what was taken out of it is noticed too.
fn stamped<K: Applied>(desired: &K) -> (K, String) {
    let body = serde_json::to_value(desired).unwrap_or_default();
    let hash = Digest::of(digest::canonical_json(&body).as_bytes())
        .short()
        .to_owned();
    let mut object = desired.clone();
    let annotations = object.annotations_mut();
    annotations.insert(labels::CONTENT_HASH_ANNOTATION.to_owned(), hash.clone());
    (object, hash)
}

/// Digest of what does not move by itself in a live object.
fn settled(live: &Value) -> Digest {
    let mut value = live.clone();
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        for key in ["resourceVersion", "managedFields", "generation"] {
            metadata.remove(key);
        }
        if let Some(annotations) = metadata
            .get_mut("annotations")
            .and_then(Value::as_object_mut)
        {
            annotations.remove("deployment.kubernetes.io/revision");
        }
    }
    Digest::of(digest::canonical_json(&value).as_bytes())
}
