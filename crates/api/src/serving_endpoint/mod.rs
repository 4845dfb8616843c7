//! ServingEndpoint: one base model and many adapters behind one URL, and how versions roll out.

mod engine;
mod rollout;
mod status;

pub use engine::{BaseQuantization, EngineSpec, KeyValueCacheFormat, MINIMUM_CONTEXT};
pub use rollout::{
    Analysis, AnalysisMetric, AnalysisRule, BlueGreen, Canary, CanaryStep, Pause, Rollout,
    RolloutStrategy,
};
pub use status::{
    AdapterCounts, AdapterRollout, AnalysisResult, Candidate, EndpointColumns, EndpointCommand,
    EndpointVerb, PausedBy, RejectedDigest, RolloutState, ServedAdapter, ServingEndpointStatus,
};

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::reference::ObjectReference;

/// One base model and many adapters behind one OpenAI-compatible URL.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "graftwork.dev",
    version = "v1alpha1",
    kind = "ServingEndpoint",
    plural = "servingendpoints",
    namespaced,
    status = "ServingEndpointStatus",
    derive = "PartialEq",
    shortname = "sep",
    category = "graft",
    doc = "One base model and many adapters behind one OpenAI-compatible URL.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Adapters", type_ = "string", json_path = ".status.columns.adapters"),
    printcolumn(name = "Rollout", type_ = "string", json_path = ".status.columns.rollout"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 50 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name becomes a Service: a DNS label that starts with a letter, at most 50 characters")
)]
#[serde(rename_all = "camelCase")]
pub struct ServingEndpointSpec {
    /// The model that all adapters are for.
    pub base_model: ServedBaseModel,
    /// Adapters that are served, each as the model of its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 1000),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub adapters: Vec<AdapterEntry>,
    /// How many engines there are.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: u32,
    /// What an engine is.
    #[serde(default)]
    pub engine: EngineSpec,
    /// How a new version takes over.
    #[serde(default)]
    pub rollout: Rollout,
    /// Whether answers are given twice; left out, none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_cache: Option<ResponseCache>,
}

const fn one() -> u32 {
    1
}

/// Answers that are given twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResponseCache {
    /// Whether routers keep answers that leave nothing to chance (temperature 0 or a seed, not streamed), each for
    /// the caller who got it.
    pub enabled: bool,
}

/// The base model that is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServedBaseModel {
    /// The folder, as `pvc://CLAIM/PATH`; the claim is mounted read-only.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^pvc://"))]
    pub uri: String,
    /// What a client names in `model` to get the bare base; left out, it is not offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-zA-Z0-9]([-._a-zA-Z0-9]*[a-zA-Z0-9])?$")
    )]
    pub name: Option<String>,
}

/// One adapter that is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdapterEntry {
    /// What a client names in `model`.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-zA-Z0-9]([-._a-zA-Z0-9]*[a-zA-Z0-9])?$")
    )]
    pub name: String,
    /// The LoRAAdapter.
    pub adapter_ref: ObjectReference,
    /// Version to stay on; left out, the approved one is followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub version: Option<u32>,
    /// What answers where the version of a request is unavailable: `Stable` (the stable version, for requests of a
    /// candidate), or the stable version of another model of this endpoint. The answer's header names what ran.
    /// Left out, such a request fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-zA-Z0-9]([-._a-zA-Z0-9]*[a-zA-Z0-9])?$")
    )]
    pub fallback: Option<String>,
}

/// The value of [`AdapterEntry::fallback`] that means the entry's own stable version.
pub const FALLBACK_STABLE: &str = "Stable";
