//! Pods and objects as all kinds build them: the restricted Pod Security Standard, the mounts of
//! the contract crate, one container.

mod placement;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};

use graftwork_api::{API_VERSION, labels};
use graftwork_contract::{Digest, pod};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMap, Container, ContainerPort, EnvVar, EnvVarSource, LocalObjectReference,
    ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    SeccompProfile, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::bucket;
use crate::settings::Settings;
use placement::beside_keeper;
use volumes::build_volumes;

pub use placement::Placement;

/// Name of the claim that holds a namespace's store.
pub const STORE_CLAIM: &str = "graftwork-store";

/// The object that children belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Kind, as in YAML.
    pub kind: &'static str,
    /// `metadata.name`
    pub name: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.uid`
    pub uid: String,
}

impl Owner {
    /// The owner of children, from its kind and metadata.
    pub fn new(kind: &'static str, meta: &ObjectMeta) -> Self {
        Self {
            kind,
            name: meta.name.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }

    /// Metadata of a child: name, namespace, labels, controller reference.
    pub fn child_metadata(&self, name: &str, component: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels::child(component, self.kind, &self.name)),
            owner_references: Some(vec![OwnerReference {
                api_version: API_VERSION.to_owned(),
                kind: self.kind.to_owned(),
                name: self.name.clone(),
                uid: self.uid.clone(),
                controller: Some(true),
                block_owner_deletion: Some(false),
            }]),
            ..ObjectMeta::default()
        }
    }
}

/// Whether `metadata` is a child of the object with that UID.
pub fn is_owned_by(metadata: &ObjectMeta, uid: &str) -> bool {
    metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// How a pod sees the namespace's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreAccess {
    /// It writes there.
    ReadWrite,
    /// It reads only.
    ReadOnly,
}

/// A file of a `ConfigMap` that is a source of data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedKey {
    /// Name of the source: a folder of [`pod::SOURCES_DIR`].
    pub source: String,
    /// Name of the `ConfigMap`.
    pub config_map: String,
    /// The key: the file's name.
    pub key: String,
}

/// Everything about a pod that differs between our processes.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
    /// Name of the container, and of the binary at the image's root.
    pub binary: &'static str,
    /// Arguments.
    pub arguments: Vec<String>,
    /// Image.
    pub image: String,
    /// Resources of the container.
    pub resources: ResourceRequirements,
    /// `ConfigMap` mounted at [`pod::CONFIG_DIR`].
    pub configuration: String,
    /// How the store is mounted; none: not at all. One in a bucket is not mounted, but for what is on its way.
    pub store: Option<StoreAccess>,
    /// Claims mounted read-only at [`pod::claim_dir`].
    pub claims: BTreeSet<String>,
    /// Claims mounted at [`pod::output_dir`] to be written to; one may be among [`Self::claims`] too.
    pub outputs: BTreeSet<String>,
    /// Keys mounted below [`pod::SOURCES_DIR`].
    pub keys: Vec<MountedKey>,
    /// Size of an `emptyDir` at [`pod::ADAPTER_CACHE_DIR`], in bytes; none: there is no such volume.
    pub adapter_cache_bytes: Option<u64>,
    /// Ports: name and number.
    pub ports: Vec<(&'static str, u16)>,
    /// Readiness.
    pub readiness: Option<Probe>,
    /// Liveness.
    pub liveness: Option<Probe>,
    /// Seconds between SIGTERM and SIGKILL.
    pub grace_seconds: i64,
    /// `Always` or `Never`.
    pub restart_policy: &'static str,
    /// Priority class.
    pub priority_class_name: Option<String>,
}

/// The template of a pod.
pub fn build_pod(recipe: Recipe, placement: Placement, settings: &Settings) -> PodTemplateSpec {
    let (volumes, mounts) = build_volumes(&recipe, settings);
    let mut labels = recipe.labels;
    if recipe.store.is_some() && bucket::wants_azure_identity(settings) {
        labels.insert(bucket::AZURE_IDENTITY.to_owned(), "true".to_owned());
    }
    let container = Container {
        name: recipe.binary.to_owned(),
        image: Some(recipe.image),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        command: Some(vec![format!("/{}", recipe.binary)]),
        args: some_unless_empty(recipe.arguments),
        env: Some(vec![
            field_variable(pod::ENV_POD_NAME, "metadata.name"),
            field_variable(pod::ENV_POD_UID, "metadata.uid"),
        ]),
        ports: some_unless_empty(
            recipe
                .ports
                .iter()
                .map(|(name, number)| ContainerPort {
                    name: Some((*name).to_owned()),
                    container_port: i32::from(*number),
                    protocol: Some("TCP".to_owned()),
                    ..ContainerPort::default()
                })
                .collect(),
        ),
        resources: Some(recipe.resources).filter(|it| *it != ResourceRequirements::default()),
        readiness_probe: recipe.readiness,
        liveness_probe: recipe.liveness,
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        termination_message_path: Some(pod::TERMINATION_FILE.to_owned()),
        termination_message_policy: Some("File".to_owned()),
        volume_mounts: Some(mounts),
        ..Container::default()
    };
    let spec = PodSpec {
        affinity: recipe
            .store
            .and_then(|_| beside_keeper(settings, recipe.binary)),
        automount_service_account_token: Some(false),
        containers: vec![container],
        enable_service_links: Some(false),
        image_pull_secrets: some_unless_empty(
            settings
                .image_pull_secrets
                .iter()
                .map(|name| LocalObjectReference { name: name.clone() })
                .collect(),
        ),
        node_selector: Some(placement.node_selector).filter(|it| !it.is_empty()),
        priority_class_name: recipe.priority_class_name,
        restart_policy: Some(recipe.restart_policy.to_owned()),
        runtime_class_name: placement.runtime_class_name,
        service_account_name: recipe
            .store
            .and_then(|_| settings.store.service_account_name.clone()),
        security_context: Some(PodSecurityContext {
            fs_group: Some(pod::USER_ID),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            run_as_group: Some(pod::USER_ID),
            run_as_non_root: Some(true),
            run_as_user: Some(pod::USER_ID),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(recipe.grace_seconds),
        tolerations: some_unless_empty(placement.tolerations),
        volumes: Some(volumes),
        ..PodSpec::default()
    };
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(recipe.annotations).filter(|it| !it.is_empty()),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

fn field_variable(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// A `ConfigMap` with one file, `config.json`, and the digest of that file.
pub fn build_configuration<T: serde::Serialize>(
    metadata: ObjectMeta,
    configuration: &T,
) -> (ConfigMap, Digest) {
    // Configurations are plain structs with string keys: they always are JSON.
    let text = serde_json::to_value(configuration)
        .map(|value| graftwork_contract::digest::canonical_json(&value))
        .unwrap_or_default();
    let digest = Digest::of(text.as_bytes());
    let map = ConfigMap {
        metadata,
        data: Some([("config.json".to_owned(), text)].into()),
        ..ConfigMap::default()
    };
    (map, digest)
}

/// The list, or none where it is empty: server-side apply would own an empty list.
pub fn some_unless_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::settings;

    pub(super) fn recipe() -> Recipe {
        Recipe {
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            binary: "trainer",
            arguments: vec![],
            image: "t".to_owned(),
            resources: ResourceRequirements::default(),
            configuration: "x-config".to_owned(),
            store: Some(StoreAccess::ReadWrite),
            claims: ["models".to_owned()].into(),
            outputs: BTreeSet::new(),
            keys: vec![MountedKey {
                source: "faq".to_owned(),
                config_map: "rows".to_owned(),
                key: "rows.jsonl".to_owned(),
            }],
            adapter_cache_bytes: None,
            ports: vec![("grpc", pod::GRPC_PORT)],
            readiness: None,
            liveness: None,
            grace_seconds: 30,
            restart_policy: "Never",
            priority_class_name: None,
        }
    }

    #[test]
    fn pods_follow_the_restricted_standard_and_carry_no_token() {
        let spec = build_pod(recipe(), Placement::default(), &settings())
            .spec
            .unwrap();
        assert_eq!(spec.automount_service_account_token, Some(false));
        let pod = spec.security_context.unwrap();
        assert_eq!(pod.run_as_non_root, Some(true));
        assert_eq!(pod.seccomp_profile.unwrap().type_, "RuntimeDefault");
        let container = spec.containers[0].security_context.clone().unwrap();
        assert_eq!(container.allow_privilege_escalation, Some(false));
        assert_eq!(
            container.capabilities.unwrap().drop,
            Some(vec!["ALL".to_owned()])
        );
        assert_eq!(container.read_only_root_filesystem, Some(true));
    }

    #[test]
    fn nothing_empty_is_sent() {
        let template = build_pod(recipe(), Placement::default(), &settings());
        let text = serde_json::to_string(&template.spec)
            .unwrap()
            .replace("\"emptyDir\":{}", "");
        assert!(!text.contains(":{}"), "{text}");
        assert!(!text.contains(":[]"), "{text}");
    }
}
