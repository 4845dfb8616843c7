//! Pods and objects as all kinds build them: the restricted Pod Security Standard, the mounts of
//! the contract crate, one container.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_api::{API_VERSION, labels};
use graftwork_contract::{Digest, pod};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort,
    EmptyDirVolumeSource, EnvVar, EnvVarSource, KeyToPath, LocalObjectReference,
    ObjectFieldSelector, PersistentVolumeClaimVolumeSource, PodAffinity, PodAffinityTerm,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile,
    SecurityContext, Toleration, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta, OwnerReference,
};

use crate::bucket;
use crate::settings::{ComputeProfile, Settings, SpotNodes};

/// Name of the claim that holds a namespace's store.
pub const STORE_CLAIM: &str = "graftwork-store";

/// Components other than the keeper whose pods mount the store.
const STORE_READERS: [&str; 3] = [
    labels::component::DATASET_BUILDER,
    labels::component::TRAINER,
    labels::component::ENGINE,
];

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

/// Where a pod runs, from a compute profile.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Placement {
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pod tolerates.
    pub tolerations: Vec<Toleration>,
    /// `RuntimeClass`.
    pub runtime_class_name: Option<String>,
}

impl From<&ComputeProfile> for Placement {
    fn from(profile: &ComputeProfile) -> Self {
        Self {
            node_selector: profile.node_selector.clone(),
            tolerations: profile.tolerations.clone(),
            runtime_class_name: profile.runtime_class_name.clone(),
        }
    }
}

impl Placement {
    /// The same on spot nodes.
    #[must_use]
    pub fn on_spot(mut self, spot: &SpotNodes) -> Self {
        self.node_selector.extend(spot.node_selector.clone());
        self.tolerations.extend(spot.tolerations.iter().cloned());
        self
    }
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

/// A store that only one node can mount keeps every pod that mounts it on the keeper's node; a pod
/// that can't go there is unschedulable, with the scheduler's words, in place of hanging in a mount.
/// A keeper that moves goes where such pods are already, for they hold the volume; where there are
/// none, it goes anywhere.
fn beside_keeper(settings: &Settings, binary: &str) -> Option<Affinity> {
    let shared = |mode: &String| mode == "ReadWriteMany";
    // Every node reaches a bucket.
    if settings.store.url.is_some() || settings.store.access_modes.iter().any(shared) {
        return None;
    }
    let beside = |selector: LabelSelector| PodAffinityTerm {
        label_selector: Some(selector),
        topology_key: "kubernetes.io/hostname".to_owned(),
        ..PodAffinityTerm::default()
    };
    let product = (labels::PART_OF.to_owned(), labels::PRODUCT.to_owned());
    let pod_affinity = if binary == labels::component::KEEPER {
        let readers = LabelSelectorRequirement {
            key: labels::COMPONENT.to_owned(),
            operator: "In".to_owned(),
            values: Some(STORE_READERS.map(str::to_owned).to_vec()),
        };
        PodAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![
                WeightedPodAffinityTerm {
                    pod_affinity_term: beside(LabelSelector {
                        match_expressions: Some(vec![readers]),
                        match_labels: Some([product].into()),
                    }),
                    weight: 100,
                },
            ]),
            ..PodAffinity::default()
        }
    } else {
        let keeper = (
            labels::COMPONENT.to_owned(),
            labels::component::KEEPER.to_owned(),
        );
        PodAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![beside(
                LabelSelector {
                    match_labels: Some([keeper, product].into()),
                    ..LabelSelector::default()
                },
            )]),
            ..PodAffinity::default()
        }
    };
    Some(Affinity {
        pod_affinity: Some(pod_affinity),
        ..Affinity::default()
    })
}

fn build_volumes(recipe: &Recipe, settings: &Settings) -> (Vec<Volume>, Vec<VolumeMount>) {
    let mut volumes = vec![
        config_volume("config", &recipe.configuration, None),
        Volume {
            name: "scratch".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        },
    ];
    let mut mounts = vec![
        mount("config", pod::CONFIG_DIR, true),
        mount("scratch", pod::SCRATCH_DIR, false),
    ];
    if let Some(bytes) = recipe.adapter_cache_bytes {
        volumes.push(Volume {
            name: "adapter-cache".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity(bytes.to_string())),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        });
        mounts.push(mount("adapter-cache", pod::ADAPTER_CACHE_DIR, false));
    }
    let mut claims = &recipe.claims | &recipe.outputs;
    let mut on_claim = recipe.store;
    if let Some(in_bucket) = recipe.store.and_then(|_| bucket::volumes(settings)) {
        on_claim = None;
        for (volume, mount) in in_bucket {
            volumes.push(volume);
            mounts.push(mount);
        }
    }
    if on_claim.is_some() {
        claims.insert(STORE_CLAIM.to_owned());
    }
    for (index, claim) in claims.iter().enumerate() {
        // One volume for each claim: two of the same claim would be attached twice.
        let name = format!("claim-{index}");
        volumes.push(Volume {
            name: name.clone(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: None,
            }),
            ..Volume::default()
        });
        if let Some(access) = on_claim.filter(|_| claim == STORE_CLAIM) {
            mounts.push(mount(
                &name,
                pod::STORE_DIR,
                access == StoreAccess::ReadOnly,
            ));
        }
        if recipe.claims.contains(claim) {
            mounts.push(mount(&name, &pod::claim_dir(claim), true));
        }
        if recipe.outputs.contains(claim) {
            mounts.push(mount(&name, &pod::output_dir(claim), false));
        }
    }
    for (index, key) in recipe.keys.iter().enumerate() {
        let name = format!("source-{index}");
        volumes.push(config_volume(&name, &key.config_map, Some(&key.key)));
        mounts.push(mount(
            &name,
            &format!("{}/{}", pod::SOURCES_DIR, key.source),
            true,
        ));
    }
    (volumes, mounts)
}

fn config_volume(name: &str, config_map: &str, key: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map.to_owned(),
            items: key.map(|key| {
                vec![KeyToPath {
                    key: key.to_owned(),
                    path: key.to_owned(),
                    mode: None,
                }]
            }),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
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

    fn recipe() -> Recipe {
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
    fn mounts_are_where_the_contract_says() {
        let spec = build_pod(recipe(), Placement::default(), &settings())
            .spec
            .unwrap();
        let mounts: BTreeMap<_, _> = spec.containers[0]
            .volume_mounts
            .iter()
            .flatten()
            .map(|mount| (mount.mount_path.as_str(), mount.read_only == Some(true)))
            .collect();
        assert_eq!(
            mounts,
            [
                ("/etc/graftwork", true),
                ("/tmp", false),
                ("/var/lib/graftwork/store", false),
                ("/var/lib/graftwork/claims/models", true),
                ("/var/lib/graftwork/sources/faq", true),
            ]
            .into()
        );
        let names: BTreeSet<_> = spec.volumes.iter().flatten().map(|it| &it.name).collect();
        assert_eq!(names.len(), 5, "every mount has a volume of its own");
    }

    #[test]
    fn an_adapter_cache_is_a_volume_that_cannot_outgrow_its_size() {
        let mut recipe = recipe();
        recipe.adapter_cache_bytes = Some(3 << 30);
        let spec = build_pod(recipe, Placement::default(), &settings())
            .spec
            .unwrap();
        let volumes = spec.volumes.unwrap();
        let cache = volumes.iter().find(|it| it.name == "adapter-cache");
        let size = cache.unwrap().empty_dir.clone().unwrap().size_limit;
        assert_eq!(size, Some(Quantity("3221225472".to_owned())));
        let mounts = spec.containers[0].volume_mounts.as_ref().unwrap();
        let mounted = mounts.iter().find(|it| it.name == "adapter-cache").unwrap();
        assert_eq!(mounted.mount_path, pod::ADAPTER_CACHE_DIR);
        assert_eq!(mounted.read_only, None, "the engine writes there");
    }

    #[test]
    fn a_claim_that_is_read_and_written_is_one_volume_at_two_places() {
        let mut recipe = recipe();
        recipe.outputs = ["models".to_owned(), "made".to_owned()].into();
        let spec = build_pod(recipe, Placement::default(), &settings())
            .spec
            .unwrap();
        let claims: Vec<_> = spec
            .volumes
            .iter()
            .flatten()
            .filter_map(|volume| volume.persistent_volume_claim.as_ref())
            .map(|claim| claim.claim_name.as_str())
            .collect();
        assert_eq!(claims, ["graftwork-store", "made", "models"]);
        let mounts = spec.containers[0].volume_mounts.iter().flatten();
        let mounts: BTreeMap<_, _> = mounts
            .map(|mount| (mount.mount_path.as_str(), mount.read_only == Some(true)))
            .collect();
        for (path, read_only) in [
            ("/var/lib/graftwork/claims/models", Some(&true)),
            ("/var/lib/graftwork/claims/made", None),
            ("/var/lib/graftwork/outputs/models", Some(&false)),
            ("/var/lib/graftwork/outputs/made", Some(&false)),
        ] {
            assert_eq!(mounts.get(path), read_only, "{path}");
        }
    }

    #[test]
    fn a_claim_that_is_also_the_store_is_one_volume() {
        let mut recipe = recipe();
        recipe.claims = [STORE_CLAIM.to_owned()].into();
        recipe.keys.clear();
        let spec = build_pod(recipe, Placement::default(), &settings())
            .spec
            .unwrap();
        assert_eq!(spec.volumes.unwrap().len(), 3);
        assert_eq!(spec.containers[0].volume_mounts.as_ref().unwrap().len(), 4);
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
    fn a_store_of_one_node_keeps_its_pods_beside_the_keeper() {
        let mut settings = settings();
        let affinity = |settings: &Settings| {
            build_pod(recipe(), Placement::default(), settings)
                .spec
                .unwrap()
                .affinity
        };
        let terms = affinity(&settings)
            .and_then(|affinity| affinity.pod_affinity)
            .and_then(|it| it.required_during_scheduling_ignored_during_execution)
            .unwrap();
        assert_eq!(terms[0].topology_key, "kubernetes.io/hostname");
        let mut keeper = recipe();
        keeper.binary = labels::component::KEEPER;
        let keeper = build_pod(keeper, Placement::default(), &settings);
        let keeper = keeper.spec.unwrap().affinity.unwrap().pod_affinity.unwrap();
        assert_eq!(
            keeper.required_during_scheduling_ignored_during_execution, None,
            "nobody must come before the keeper"
        );
        let preferred = &keeper
            .preferred_during_scheduling_ignored_during_execution
            .unwrap()[0]
            .pod_affinity_term;
        assert_eq!(preferred.topology_key, "kubernetes.io/hostname");
        let selector = preferred.label_selector.clone().unwrap();
        let components = selector.match_expressions.unwrap()[0]
            .values
            .clone()
            .unwrap();
        assert!(components.contains(&labels::component::ENGINE.to_owned()));
        assert!(!components.contains(&labels::component::ROUTER.to_owned()));
        // What the affinity selects is what the keeper's pods carry.
        let carried = labels::child(labels::component::KEEPER, "Namespace", "team");
        let selected = terms[0]
            .label_selector
            .clone()
            .unwrap()
            .match_labels
            .unwrap();
        assert!(
            selected
                .iter()
                .all(|(key, value)| carried.get(key) == Some(value))
        );
        settings.store.access_modes = vec!["ReadWriteMany".to_owned()];
        assert_eq!(affinity(&settings), None);
    }

    #[test]
    fn a_claim_keeps_its_access_modes_whatever_the_chart_says_later() {
        let settings = settings();
        assert_eq!(settings.store.access_modes, ["ReadWriteOnce"]);
        let shared = ["ReadWriteMany".to_owned()];
        let template = |settings: &Settings| build_pod(recipe(), Placement::default(), settings);
        let before = template(&settings.with_access_modes(Some(&shared)));
        assert_eq!(before.spec.as_ref().unwrap().affinity, None);
        let mut upgraded = settings.clone();
        upgraded.store.access_modes = vec!["ReadWriteOncePod".to_owned()];
        let after = template(&upgraded.with_access_modes(Some(&shared)));
        assert_eq!(after, before, "no engine is rolled");
        for none in [None, Some(&[][..])] {
            assert_eq!(*settings.with_access_modes(none), settings);
        }
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
