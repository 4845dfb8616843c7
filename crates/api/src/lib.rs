//! The graftwork API: the four kinds of `graftwork.dev/v1alpha1`, with what stands around them:
//! conditions and their reasons, labels, names of children, URIs. It prints `crds/` and
//! `examples/`.
//!
//! This crate does not talk to a cluster, decide anything about an object, or know how a pod is
//! built: deciding is `graftwork-operator-core`, doing is `graftwork-operator`.

#![forbid(unsafe_code)]

pub mod conditions;
pub mod crds;
pub mod examples;
pub mod labels;
pub mod names;
pub mod uri;

pub mod amount;
pub mod analyzer;
mod command;
mod decimal;
mod enums;
mod reference;
pub mod schedule;
pub mod schema;

pub mod dataset;
pub mod lora_adapter;
pub mod serving_endpoint;
mod training_method;
pub mod training_run;

pub use amount::Amount;
pub use command::{Answer, AnswerOutcome};
pub use dataset::{Dataset, DatasetSpec, DatasetStatus};
pub use decimal::Decimal;
pub use lora_adapter::{LoRAAdapter, LoRAAdapterSpec, LoRAAdapterStatus};
pub use reference::{
    BaseModelSource, ObjectReference, VersionReference, VersionedDigest, VersionedReference,
};
pub use serving_endpoint::{ServingEndpoint, ServingEndpointSpec, ServingEndpointStatus};
pub use training_run::{TrainingRun, TrainingRunSpec, TrainingRunStatus};

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The API group of all four kinds.
pub const GROUP: &str = "graftwork.dev";
/// The one version of the API.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of all four kinds.
pub const API_VERSION: &str = "graftwork.dev/v1alpha1";
