//! A namespace's surroundings.

use std::collections::BTreeSet;

use graftwork_operator_core::observed::Found;
use graftwork_operator_core::storage::{KEEPER, Observed};
use graftwork_operator_core::workload::STORE_CLAIM;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use kube::{Resource, ResourceExt as _};

use super::{child, config_map, is_bound, is_ours};
use crate::api::ApiError;
use crate::cache::{find, in_namespace};
use crate::context::Context;

/// Everything that a namespace's plan needs.
///
/// # Errors
/// Those of the API server.
pub async fn observe(context: &Context, namespace: &Namespace) -> Result<Observed, ApiError> {
    let caches = &context.caches;
    let name = namespace.name_any();
    let mut gathered = Gathered::default();
    gathered.add(&caches.datasets, &name, |_| Vec::new());
    gathered.add(&caches.runs, &name, |run| {
        vec![run.spec.base_model.uri.clone()]
    });
    gathered.add(&caches.adapters, &name, |adapter| {
        let import = adapter
            .spec
            .import
            .as_ref()
            .map(|import| import.uri.clone());
        std::iter::once(adapter.spec.base_model.uri.clone())
            .chain(import)
            .collect()
    });
    gathered.add(&caches.endpoints, &name, |endpoint| {
        vec![endpoint.spec.base_model.uri.clone()]
    });
    let claim = match find(&caches.claims, &name, STORE_CLAIM) {
        None => Found::Absent,
        Some(claim) if is_ours(&claim.metadata, None) => Found::Ours(Box::new((*claim).clone())),
        Some(_) => Found::Foreign,
    };
    // Most namespaces have nothing of ours: nobody is asked about them.
    let deployment = if gathered.objects == 0 {
        find(&caches.deployments, &name, KEEPER)
            .filter(|found| is_ours(&found.metadata, None))
            .map_or(Found::Absent, |found| {
                Found::Ours(Box::new((*found).clone()))
            })
    } else {
        child(context, &caches.deployments, &name, KEEPER, None).await?
    };
    Ok(Observed {
        namespace_uid: namespace.uid().unwrap_or_default(),
        terminating: namespace.metadata.deletion_timestamp.is_some(),
        objects: gathered.objects,
        uris: gathered.uris,
        bound_claims: in_namespace(&caches.claims, &name)
            .iter()
            .filter(|claim| claim.metadata.deletion_timestamp.is_none() && is_bound(claim))
            .map(|claim| claim.name_any())
            .collect(),
        claim,
        configuration: config_map(context, &name, KEEPER, None),
        deployment,
        operator_keys: context.calls.public_keys().to_vec(),
        namespace: name,
    })
}

#[derive(Default)]
struct Gathered {
    objects: usize,
    uris: BTreeSet<String>,
}

impl Gathered {
    fn add<K>(
        &mut self,
        store: &Store<DeserializeGuard<K>>,
        namespace: &str,
        uris: impl Fn(&K) -> Vec<String>,
    ) where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        for object in in_namespace(store, namespace) {
            if object.meta().deletion_timestamp.is_some() {
                continue;
            }
            self.objects += 1;
            if let Ok(object) = &object.0 {
                self.uris.extend(uris(object));
            }
        }
    }
}
