//! Which reconciled objects a change of a watched object concerns.

use std::collections::BTreeSet;

use graftwork_api::uri::PvcUri;
use graftwork_api::{Dataset, LoRAAdapter, ServingEndpoint, TrainingRun, labels, names};
use graftwork_operator_core::workload::STORE_CLAIM;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Service};
use kube::api::{ObjectMeta, PartialObjectMeta};
use kube::runtime::reflector::Store;
use kube::{Resource, ResourceExt as _};

use super::{Caches, Guarded, Kind, Touch, in_namespace};

/// A watched object that concerns reconciled ones.
pub trait Related {
    /// Those that it concerns.
    fn related(&self, caches: &Caches) -> Vec<Touch>;
}

fn touch(kind: Kind, namespace: &str, name: impl Into<String>) -> Touch {
    Touch {
        kind,
        namespace: namespace.to_owned(),
        name: name.into(),
    }
}

/// An object of ours and its namespace's storage.
fn itself(kind: Kind, metadata: &ObjectMeta) -> Vec<Touch> {
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    vec![
        touch(kind, namespace, metadata.name.clone().unwrap_or_default()),
        touch(Kind::Storage, namespace, namespace),
    ]
}

fn readable<K>(store: &Store<Guarded<K>>, namespace: &str) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    in_namespace(store, namespace)
        .iter()
        .filter_map(|object| object.0.clone().ok())
        .collect()
}

impl Related for Guarded<Dataset> {
    fn related(&self, caches: &Caches) -> Vec<Touch> {
        let mut touches = itself(Kind::Dataset, self.meta());
        let namespace = self.namespace().unwrap_or_default();
        let name = self.name_any();
        touches.extend(
            readable(&caches.runs, &namespace)
                .iter()
                .filter(|run| run.spec.dataset_ref.name == name)
                .map(|run| touch(Kind::Run, &namespace, run.name_any())),
        );
        touches
    }
}

impl Related for Guarded<TrainingRun> {
    fn related(&self, _: &Caches) -> Vec<Touch> {
        let mut touches = itself(Kind::Run, self.meta());
        let Ok(run) = &self.0 else {
            return touches;
        };
        let finished = run.status.as_ref().is_some_and(|status| {
            graftwork_operator_core::conditions::is_true(
                &status.conditions,
                graftwork_api::conditions::condition::FINISHED,
            )
        });
        // A pinned version has to be listed until it is found.
        let reference = &run.spec.dataset_ref;
        let resolved = run.status.as_ref().and_then(|it| it.resolved.as_ref());
        if reference.version.is_some() && resolved.is_none() && !finished {
            let namespace = run.namespace().unwrap_or_default();
            touches.push(touch(Kind::Dataset, &namespace, &reference.name));
        }
        if let Some(wanted) = graftwork_operator_core::run::wanted_version(run) {
            let namespace = run.namespace().unwrap_or_default();
            touches.push(touch(Kind::Adapter, &namespace, &wanted.adapter));
        }
        // Progress is of no interest to the adapter.
        if let Some(adapter) = run.spec.adapter_ref.as_ref().filter(|_| finished) {
            let namespace = run.namespace().unwrap_or_default();
            touches.push(touch(Kind::Adapter, &namespace, &adapter.name));
        }
        touches
    }
}

impl Related for Guarded<LoRAAdapter> {
    fn related(&self, caches: &Caches) -> Vec<Touch> {
        let mut touches = itself(Kind::Adapter, self.meta());
        let namespace = self.namespace().unwrap_or_default();
        let name = self.name_any();
        touches.extend(
            readable(&caches.runs, &namespace)
                .iter()
                .filter(|run| {
                    let adapter = run.spec.adapter_ref.as_ref();
                    let initial = graftwork_operator_core::run::initial_version(&run.spec);
                    adapter.is_some_and(|it| it.name == name)
                        || initial.is_some_and(|it| it.version.adapter == name)
                })
                .map(|run| touch(Kind::Run, &namespace, run.name_any())),
        );
        touches.extend(
            readable(&caches.endpoints, &namespace)
                .iter()
                .filter(|endpoint| {
                    endpoint
                        .spec
                        .adapters
                        .iter()
                        .any(|entry| entry.adapter_ref.name == name)
                })
                .map(|endpoint| touch(Kind::Endpoint, &namespace, endpoint.name_any())),
        );
        touches
    }
}

impl Related for Guarded<ServingEndpoint> {
    fn related(&self, caches: &Caches) -> Vec<Touch> {
        let mut touches = itself(Kind::Endpoint, self.meta());
        let namespace = self.namespace().unwrap_or_default();
        let name = self.name_any();
        let mut adapters = BTreeSet::new();
        if let Ok(endpoint) = &self.0 {
            let entries = endpoint.spec.adapters.iter();
            adapters.extend(entries.map(|entry| entry.adapter_ref.name.clone()));
        }
        // Adapters that the endpoint no longer names are not in production there any more.
        for adapter in readable(&caches.adapters, &namespace) {
            let status = adapter.status.as_ref();
            let production = status.and_then(|status| status.production.as_ref());
            if production.is_some_and(|production| production.endpoints.contains(&name)) {
                adapters.insert(adapter.name_any());
            }
        }
        let adapters = adapters.into_iter();
        touches.extend(adapters.map(|adapter| touch(Kind::Adapter, &namespace, adapter)));
        touches
    }
}

/// The owner of a child: by its controller reference, or by its labels.
fn owner(metadata: &ObjectMeta, caches: &Caches) -> Vec<Touch> {
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let label = |key: &str| metadata.labels.as_ref()?.get(key).map(String::as_str);
    let kind = match label(labels::OWNER_KIND) {
        Some("namespace") => return vec![touch(Kind::Storage, namespace, namespace)],
        Some("dataset") => Kind::Dataset,
        Some("trainingrun") => Kind::Run,
        Some("loraadapter") => Kind::Adapter,
        Some("servingendpoint") => Kind::Endpoint,
        _ => return Vec::new(),
    };
    let by_reference = metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.api_version == graftwork_api::API_VERSION);
    if let Some(owner) = by_reference {
        return vec![touch(kind, namespace, &owner.name)];
    }
    // A pod's owner is its Job or ReplicaSet; its labels name the object, shortened where it is long.
    let Some(instance) = label(labels::INSTANCE) else {
        return Vec::new();
    };
    let names: Vec<String> = match kind {
        Kind::Dataset => all_names(&caches.datasets, namespace),
        Kind::Run => all_names(&caches.runs, namespace),
        Kind::Adapter => all_names(&caches.adapters, namespace),
        Kind::Endpoint => all_names(&caches.endpoints, namespace),
        Kind::Storage => Vec::new(),
    };
    names
        .into_iter()
        .filter(|name| names::label_value(name) == instance)
        .map(|name| touch(kind, namespace, name))
        .collect()
}

fn all_names<K>(store: &Store<K>, namespace: &str) -> Vec<String>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    in_namespace(store, namespace)
        .iter()
        .map(|object| object.name_any())
        .collect()
}

macro_rules! owned {
    ($($kind:ty),+) => {
        $(
            impl Related for $kind {
                fn related(&self, caches: &Caches) -> Vec<Touch> {
                    owner(self.meta(), caches)
                }
            }
        )+
    };
}
owned!(Deployment, Service, Job, ConfigMap);

impl Related for Pod {
    fn related(&self, caches: &Caches) -> Vec<Touch> {
        let mut touches = owner(self.meta(), caches);
        let is_keeper = self.labels().get(labels::COMPONENT).map(String::as_str)
            == Some(labels::component::KEEPER);
        if is_keeper {
            // Everything in the namespace waits for its keeper.
            touches.extend(all_in(caches, &self.namespace().unwrap_or_default()));
        }
        touches
    }
}

/// Every object of ours in a namespace.
fn all_in(caches: &Caches, namespace: &str) -> Vec<Touch> {
    [
        (Kind::Dataset, all_names(&caches.datasets, namespace)),
        (Kind::Run, all_names(&caches.runs, namespace)),
        (Kind::Adapter, all_names(&caches.adapters, namespace)),
        (Kind::Endpoint, all_names(&caches.endpoints, namespace)),
    ]
    .into_iter()
    .flat_map(|(kind, names)| {
        names
            .into_iter()
            .map(move |name| touch(kind, namespace, name))
    })
    .collect()
}

impl Related for PartialObjectMeta<ConfigMap> {
    fn related(&self, caches: &Caches) -> Vec<Touch> {
        let namespace = self.namespace().unwrap_or_default();
        let name = self.name_any();
        readable(&caches.datasets, &namespace)
            .iter()
            .filter(|dataset| {
                dataset.spec.sources.iter().any(|source| {
                    source
                        .config_map_ref
                        .as_ref()
                        .is_some_and(|reference| reference.name == name)
                })
            })
            .map(|dataset| touch(Kind::Dataset, &namespace, dataset.name_any()))
            .collect()
    }
}

/// Whether a URI points into the claim of that name.
fn points_into(uri: &str, claim: &str) -> bool {
    PvcUri::parse(uri).is_ok_and(|uri| uri.claim() == claim)
}

impl Related for PersistentVolumeClaim {
    fn related(&self, caches: &Caches) -> Vec<Touch> {
        let namespace = self.namespace().unwrap_or_default();
        let name = self.name_any();
        if name == STORE_CLAIM {
            let mut touches = all_in(caches, &namespace);
            touches.push(touch(Kind::Storage, &namespace, &namespace));
            return touches;
        }
        let datasets = readable(&caches.datasets, &namespace);
        let datasets = datasets.iter().filter(|dataset| {
            let base = dataset.spec.base_model.iter().map(|base| &base.uri);
            let sources = dataset.spec.sources.iter();
            let mut uris = sources.filter_map(|it| it.uri.as_ref()).chain(base);
            uris.any(|uri| points_into(uri, &name))
        });
        let runs = readable(&caches.runs, &namespace);
        let runs = runs.iter().filter(|run| {
            let others = graftwork_operator_core::run::claims(&run.spec);
            points_into(&run.spec.base_model.uri, &name) || others.contains(&name)
        });
        let adapters = readable(&caches.adapters, &namespace);
        let adapters = adapters.iter().filter(|adapter| {
            let import = adapter.spec.import.as_ref();
            points_into(&adapter.spec.base_model.uri, &name)
                || import.is_some_and(|import| points_into(&import.uri, &name))
        });
        let endpoints = readable(&caches.endpoints, &namespace);
        let endpoints = endpoints
            .iter()
            .filter(|endpoint| points_into(&endpoint.spec.base_model.uri, &name));
        let mut touches: Vec<Touch> = datasets
            .map(|it| touch(Kind::Dataset, &namespace, it.name_any()))
            .chain(runs.map(|it| touch(Kind::Run, &namespace, it.name_any())))
            .chain(adapters.map(|it| touch(Kind::Adapter, &namespace, it.name_any())))
            .chain(endpoints.map(|it| touch(Kind::Endpoint, &namespace, it.name_any())))
            .collect();
        if !touches.is_empty() {
            touches.push(touch(Kind::Storage, &namespace, &namespace));
        }
        touches
    }
}

impl Related for Namespace {
    fn related(&self, _: &Caches) -> Vec<Touch> {
        let name = self.name_any();
        vec![touch(Kind::Storage, &name, &name)]
    }
}
