//! What an installation says: one file, written by the chart, the same for all objects.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

/// The settings file (JSON or YAML).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Images of the data plane.
    pub images: Images,
    /// `Always`, `IfNotPresent` or `Never`.
    #[serde(default = "if_not_present")]
    pub image_pull_policy: String,
    /// Names of pull Secrets, looked up in each namespace.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// DNS domain of the cluster.
    #[serde(default = "cluster_local")]
    pub cluster_domain: String,
    /// Where trainers and engines run, by name. `default` must be there.
    pub compute_profiles: BTreeMap<String, ComputeProfile>,
    /// Where the store is: in a bucket, or on a claim made in each namespace.
    #[serde(default)]
    pub store: StoreSettings,
    /// Resources of keepers.
    #[serde(default)]
    pub keeper: ContainerSettings,
    /// Resources of dataset builders.
    #[serde(default)]
    pub dataset_builder: ContainerSettings,
    /// Where rows may come from over the network.
    #[serde(default)]
    pub data_sources: DataSources,
    /// Engines of an endpoint; where they run, a compute profile says.
    #[serde(default)]
    pub engine: EngineSettings,
    /// Routers of an endpoint.
    #[serde(default)]
    pub router: RouterSettings,
    /// Times of the leader's lease.
    #[serde(default)]
    pub leader_election: LeaderElection,
}

/// Images of the data plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Images {
    /// Keeper, dataset builder and trainer.
    pub trainer: String,
    /// Engine and router.
    pub inference: String,
}

/// Where and how a trainer or an engine runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ComputeProfile {
    /// Of the container. Accelerators are limits such as `nvidia.com/gpu: 1`.
    pub resources: ResourceRequirements,
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pod tolerates.
    pub tolerations: Vec<Toleration>,
    /// `RuntimeClass` of the pod.
    pub runtime_class_name: Option<String>,
    /// Where runs that ask for it are trained instead; none: the installation has no spot nodes for it.
    pub spot: Option<SpotNodes>,
    /// Images that replace the installation's.
    pub images: ProfileImages,
}

/// Nodes that may be taken away at any time, as a difference to the profile.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct SpotNodes {
    /// Labels that the node must have, beside the profile's or in place of the same ones.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pod tolerates beside the profile's.
    pub tolerations: Vec<Toleration>,
}

/// Images of one profile, for example those built for CUDA.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ProfileImages {
    /// In place of [`Images::trainer`].
    pub trainer: Option<String>,
    /// In place of [`Images::inference`].
    pub inference: Option<String>,
}

/// The artifact store: a bucket where [`Self::url`] names one, else a claim in each namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct StoreSettings {
    /// `s3://BUCKET/PREFIX`, or the same with `gs` or `az`; a namespace's part is below it, under its name. What
    /// follows up to [`Self::allow`] is of use with it alone.
    pub url: Option<String>,
    /// The Secret that says who asks, looked up in each namespace.
    pub secret_name: Option<String>,
    /// The service account whose identity asks, looked up in each namespace.
    pub service_account_name: Option<String>,
    /// Networks and names that the bucket may be at, beside what everybody reaches.
    pub allow: Vec<String>,
    /// Storage class; none: the cluster's default, empty: no class.
    pub storage_class_name: Option<String>,
    /// Requested size.
    pub size: Quantity,
    /// Access modes. With `ReadWriteOnce` all pods that mount the store run on the keeper's node;
    /// `ReadWriteMany` lets them run on several.
    pub access_modes: Vec<String>,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            url: None,
            secret_name: None,
            service_account_name: None,
            allow: Vec::new(),
            storage_class_name: None,
            size: Quantity("20Gi".to_owned()),
            access_modes: vec!["ReadWriteOnce".to_owned()],
        }
    }
}

/// A container with resources.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ContainerSettings {
    /// Of the container.
    pub resources: ResourceRequirements,
}

/// Where rows may come from over the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DataSources {
    /// Networks such as `10.1.0.0/16` and names such as `warehouse.databases.svc` or `.corp.example`, beside
    /// what everybody reaches.
    pub allow: Vec<String>,
    /// Where the hub of `hf://` sources is, as `https://HOST`; none: <https://huggingface.co>.
    pub hub_endpoint: Option<String>,
}

/// Engines of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct EngineSettings {
    /// Whether they export gauges under vLLM's names too.
    pub vllm_metrics: bool,
}

/// Routers of an endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RouterSettings {
    /// Pods.
    pub replicas: i32,
    /// Of the container.
    pub resources: ResourceRequirements,
}

impl Default for RouterSettings {
    fn default() -> Self {
        Self {
            replicas: 1,
            resources: ResourceRequirements::default(),
        }
    }
}

/// Times of the leader's lease, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LeaderElection {
    /// A follower takes over when the lease did not change for this long.
    pub lease_seconds: u32,
    /// The leader exits when it could not renew for this long.
    pub renew_deadline_seconds: u32,
    /// Between attempts.
    pub retry_seconds: u32,
}

impl Default for LeaderElection {
    fn default() -> Self {
        Self {
            lease_seconds: 15,
            renew_deadline_seconds: 10,
            retry_seconds: 2,
        }
    }
}

impl Settings {
    /// The settings in a namespace whose store's claim has these access modes: a claim keeps those
    /// that it was made with, whatever the chart says later, and its pods are placed by them.
    pub fn with_access_modes(&self, modes: Option<&[String]>) -> Cow<'_, Self> {
        match modes {
            Some(modes) if !modes.is_empty() && modes != self.store.access_modes => {
                let mut settings = self.clone();
                settings.store.access_modes = modes.to_vec();
                Cow::Owned(settings)
            }
            _ => Cow::Borrowed(self),
        }
    }

    /// The image of trainers under a profile.
    pub fn trainer_image<'a>(&'a self, profile: &'a ComputeProfile) -> &'a str {
        profile
            .images
            .trainer
            .as_deref()
            .unwrap_or(&self.images.trainer)
    }

    /// The image of engines under a profile.
    pub fn inference_image<'a>(&'a self, profile: &'a ComputeProfile) -> &'a str {
        profile
            .images
            .inference
            .as_deref()
            .unwrap_or(&self.images.inference)
    }

    /// The profile of that name.
    ///
    /// # Errors
    /// Where there is none; names those that are there.
    pub fn profile(&self, name: &str) -> Result<&ComputeProfile, UnknownProfile> {
        self.compute_profiles
            .get(name)
            .ok_or_else(|| UnknownProfile {
                name: name.to_owned(),
                known: self
                    .compute_profiles
                    .keys()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

/// A compute profile that the installation does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("compute profile {name:?} is unknown; this installation has: {known}")]
pub struct UnknownProfile {
    /// What was asked for.
    pub name: String,
    /// What there is.
    pub known: String,
}

fn if_not_present() -> String {
    "IfNotPresent".to_owned()
}

fn cluster_local() -> String {
    "cluster.local".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kind's and k3d's local-path provisioner refuses every other mode.
    #[test]
    fn the_chart_asks_for_a_claim_that_every_provisioner_can_give() {
        let values = include_str!("../../../charts/graftwork/values.yaml");
        let modes = StoreSettings::default().access_modes;
        assert_eq!(modes, ["ReadWriteOnce"]);
        let line = format!("\n  accessModes: [{}]\n", modes.join(", "));
        assert!(values.contains(&line), "values.yaml has no line {line:?}");
    }
}
