//! The keeper and the store's claim.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_api::labels;
use graftwork_contract::{keeper::KeeperConfig, pod};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::{
    GRPCAction, PersistentVolumeClaim, PersistentVolumeClaimSpec, Probe, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::Observed;
use crate::bucket;
use crate::plan::Child;
use crate::settings::Settings;
use crate::workload::{
    Placement, Recipe, STORE_CLAIM, StoreAccess, build_configuration, build_pod,
};

/// Name of the keeper's Deployment and `ConfigMap`.
pub const KEEPER: &str = "graftwork-keeper";

/// What selects the keeper's pods.
pub fn keeper_labels(namespace: &str) -> BTreeMap<String, String> {
    labels::selector(labels::component::KEEPER, "Namespace", namespace)
}

/// Children in the order in which they are written.
pub fn build(observed: &Observed, claims: &BTreeSet<String>, settings: &Settings) -> Vec<Child> {
    let metadata = |name: &str, component: &str| ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(observed.namespace.clone()),
        labels: Some(labels::child(component, "Namespace", &observed.namespace)),
        ..ObjectMeta::default()
    };
    let (configuration, digest) = build_configuration(
        metadata(KEEPER, labels::component::KEEPER),
        &KeeperConfig {
            owner_uid: observed.namespace_uid.clone(),
            operator_keys: observed.operator_keys.clone(),
            store: bucket::configuration(settings, &observed.namespace),
        },
    );
    let mut children = vec![Child::ConfigMap(Box::new(configuration))];
    if settings.store.url.is_none() && observed.claim.ours().is_none() {
        // A claim's spec can't be changed later, so it is only ever created.
        children.push(Child::Claim(Box::new(build_claim(
            metadata(STORE_CLAIM, labels::component::STORE),
            settings,
        ))));
    }
    let recipe = Recipe {
        labels: labels::child(labels::component::KEEPER, "Namespace", &observed.namespace),
        annotations: [(
            labels::CONTENT_HASH_ANNOTATION.to_owned(),
            digest.short().to_owned(),
        )]
        .into(),
        binary: "keeper",
        arguments: Vec::new(),
        image: settings.images.trainer.clone(),
        resources: settings.keeper.resources.clone(),
        configuration: KEEPER.to_owned(),
        store: Some(StoreAccess::ReadWrite),
        claims: claims.clone(),
        outputs: BTreeSet::new(),
        keys: Vec::new(),
        adapter_cache_bytes: None,
        ports: vec![("grpc", pod::GRPC_PORT)],
        readiness: Some(probe(1)),
        liveness: Some(probe(10)),
        grace_seconds: 15,
        restart_policy: "Always",
        priority_class_name: None,
    };
    children.push(Child::Deployment(Box::new(Deployment {
        metadata: metadata(KEEPER, labels::component::KEEPER),
        spec: Some(DeploymentSpec {
            replicas: Some(1),
            // Two keepers would be two writers.
            strategy: Some(DeploymentStrategy {
                type_: Some("Recreate".to_owned()),
                rolling_update: None,
            }),
            selector: LabelSelector {
                match_labels: Some(keeper_labels(&observed.namespace)),
                ..LabelSelector::default()
            },
            template: build_pod(recipe, Placement::default(), settings),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    })));
    children
}

fn build_claim(metadata: ObjectMeta, settings: &Settings) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata,
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(settings.store.access_modes.clone()),
            storage_class_name: settings.store.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), settings.store.size.clone())].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

fn probe(period_seconds: i32) -> Probe {
    Probe {
        grpc: Some(GRPCAction {
            port: i32::from(pod::GRPC_PORT),
            service: None,
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}
