//! What is in a namespace, of whatever kind, and whose it is.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use graftwork_api::labels;
use kube::api::{Api, DynamicObject, ListParams};
use kube::discovery::{Discovery, Scope, verbs};

use super::Stage;
use crate::cluster::wait;
use crate::install::RELEASE;

/// How soon what lost its owner goes.
const COLLECTED: Duration = Duration::from_secs(20);
/// How soon nothing is written any more.
const SETTLED: Duration = Duration::from_secs(20);

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Kind, as in YAML.
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// What changes when somebody writes it: its generation, or its resourceVersion where its kind has none and no
    /// status either.
    pub written: Option<String>,
    /// UIDs of its owners.
    pub owners: Vec<String>,
    /// Whether its labels say that the operator made it.
    pub ours: bool,
    /// Value of its label `app.kubernetes.io/instance`.
    pub instance: Option<String>,
}

/// Records of what happened; they outlive what they are about.
const RECORDS: &[&str] = &["Event"];
/// Kinds without generation and without status.
const PLAIN: &[&str] = &["ConfigMap", "Secret", "ServiceAccount"];

impl Object {
    fn new(kind: &str, object: DynamicObject) -> Self {
        let metadata = object.metadata;
        let label = |key: &str| metadata.labels.as_ref()?.get(key).cloned();
        let generation = metadata.generation.map(|generation| generation.to_string());
        let version = metadata
            .resource_version
            .clone()
            .filter(|_| PLAIN.contains(&kind));
        Self {
            kind: kind.to_owned(),
            ours: label(labels::MANAGED_BY).as_deref() == Some(labels::OPERATOR),
            instance: label(labels::INSTANCE),
            written: generation.or(version),
            owners: metadata
                .owner_references
                .unwrap_or_default()
                .into_iter()
                .map(|owner| owner.uid)
                .collect(),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
        }
    }
}

impl Stage {
    /// Every object of the namespace, of every kind that the API server can list.
    pub async fn inventory(&self) -> anyhow::Result<Vec<Object>> {
        let client = &self.world.cluster.client;
        let discovery = Discovery::new(client.clone()).run().await?;
        let mut objects = Vec::new();
        for (resource, capabilities) in discovery
            .groups()
            .flat_map(kube::discovery::ApiGroup::recommended_resources)
        {
            let listed = capabilities.scope == Scope::Namespaced
                && capabilities.supports_operation(verbs::LIST)
                && !RECORDS.contains(&resource.kind.as_str());
            if !listed {
                continue;
            }
            let api: Api<DynamicObject> =
                Api::namespaced_with(client.clone(), &self.namespace, &resource);
            let found = api.list(&ListParams::default()).await?;
            // What has no UID is not stored: measurements, for example.
            objects.extend(
                found
                    .items
                    .into_iter()
                    .filter(|object| object.metadata.uid.is_some())
                    .map(|object| Object::new(&resource.kind, object)),
            );
        }
        objects.sort();
        Ok(objects)
    }

    /// Kind and name of every object of the Helm release, of every namespace and of the cluster.
    pub async fn of_release(&self) -> anyhow::Result<BTreeSet<(String, String)>> {
        let client = &self.world.cluster.client;
        let discovery = Discovery::new(client.clone()).run().await?;
        let labels = format!(
            "app.kubernetes.io/name=graftwork,{}={RELEASE}",
            labels::INSTANCE
        );
        let parameters = ListParams::default().labels(&labels);
        let mut objects = BTreeSet::new();
        for (resource, capabilities) in discovery
            .groups()
            .flat_map(kube::discovery::ApiGroup::recommended_resources)
        {
            let listed = capabilities.supports_operation(verbs::LIST)
                && !RECORDS.contains(&resource.kind.as_str());
            if !listed {
                continue;
            }
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            for object in api.list(&parameters).await?.items {
                if object.metadata.uid.is_some() {
                    let name = object.metadata.name.unwrap_or_default();
                    objects.insert((resource.kind.clone(), name));
                }
            }
        }
        Ok(objects)
    }

    /// What the operator wrote for the endpoint `assistants`: configuration, Services, Deployments, and their pods.
    pub async fn endpoint_children(&self) -> anyhow::Result<Vec<Object>> {
        Ok(self
            .inventory()
            .await?
            .into_iter()
            .filter(|object| object.ours && object.instance.as_deref() == Some("assistants"))
            .collect())
    }

    /// The same, once two looks find the same.
    pub async fn settled_children(&self) -> anyhow::Result<Vec<Object>> {
        wait("what the operator wrote to settle", SETTLED, || async {
            let (one, two) = (
                self.endpoint_children().await?,
                self.endpoint_children().await?,
            );
            Ok((one == two).then_some(two))
        })
        .await
    }

    /// Fails where an object that the operator made stays without a living owner. Keeper and store belong to the
    /// namespace.
    pub async fn ensure_no_orphan(&self) -> anyhow::Result<()> {
        // Kinds are listed one after another, and the garbage collector has a pace of its own.
        wait("every object to have an owner", COLLECTED, || async {
            let objects = self.inventory().await?;
            let orphans = orphans(&objects);
            ensure!(orphans.is_empty(), "orphans: {orphans:#?}");
            Ok(Some(()))
        })
        .await
    }
}

fn orphans(objects: &[Object]) -> Vec<&Object> {
    let living: BTreeSet<&str> = objects.iter().map(|object| object.uid.as_str()).collect();
    objects
        .iter()
        .filter(|object| object.ours && !is_of_namespace(object))
        .filter(|object| match object.kind.as_str() {
            // They carry the labels of their Service, and no reference to it.
            "Endpoints" => !objects
                .iter()
                .any(|service| service.kind == "Service" && service.name == object.name),
            _ => {
                object.owners.is_empty()
                    || !object
                        .owners
                        .iter()
                        .all(|owner| living.contains(owner.as_str()))
            }
        })
        .collect()
}

/// The keeper's Deployment and configuration and the store's claim have no owner; they go with the last object of ours,
/// or stay.
fn is_of_namespace(object: &Object) -> bool {
    let names = ["graftwork-keeper", "graftwork-store"];
    object.owners.is_empty() && names.contains(&object.name.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(kind: &str, name: &str, owner: Option<&str>, ours: bool) -> Object {
        let owners: Vec<_> = owner
            .into_iter()
            .map(|uid| json!({"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid}))
            .collect();
        let by = if ours { labels::OPERATOR } else { "somebody" };
        let read = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": kind,
            "metadata": {
                "name": name, "uid": format!("uid-{name}"), "resourceVersion": "7", "ownerReferences": owners,
                "labels": {"app.kubernetes.io/managed-by": by, "app.kubernetes.io/instance": "a"},
            },
        }));
        Object::new(kind, read.unwrap())
    }

    #[test]
    fn an_object_of_ours_whose_owner_is_gone_is_an_orphan() {
        let objects = [
            object("ServingEndpoint", "a", None, false),
            object("Deployment", "a-engine", Some("uid-a"), true),
            object("Pod", "a-engine-1", Some("uid-a-engine"), true),
            object("Deployment", "graftwork-keeper", None, true),
            object("PersistentVolumeClaim", "graftwork-store", None, true),
            object("ConfigMap", "theirs", None, false),
            object("Job", "run-1", Some("uid-run"), true),
            object("ConfigMap", "left", None, true),
            object("Service", "a-engines", Some("uid-a"), true),
            object("Endpoints", "a-engines", None, true),
            object("Endpoints", "gone", None, true),
        ];
        let names: Vec<&str> = orphans(&objects)
            .into_iter()
            .map(|object| object.name.as_str())
            .collect();
        assert_eq!(names, ["run-1", "left", "gone"]);
    }

    #[test]
    fn a_write_shows_where_there_is_no_status_to_be_written() {
        assert_eq!(
            object("ConfigMap", "a", None, true).written.as_deref(),
            Some("7")
        );
        assert_eq!(object("Pod", "a", None, true).written, None);
        assert_eq!(
            object("Pod", "a", None, true).instance.as_deref(),
            Some("a")
        );
    }
}
