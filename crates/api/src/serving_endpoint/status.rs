//! What the operator knows of a ServingEndpoint. The rollout's part of it is read back: it exists
//! nowhere else.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::command::Answer;
use crate::decimal::Decimal;
use crate::enums::open_enum;
use crate::lora_adapter::Verdict;
use crate::reference::VersionedDigest;
use crate::schema::DIGEST_PATTERN;

/// What the operator knows of a ServingEndpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServingEndpointStatus {
    /// metadata.generation that this status was computed from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Where clients in the cluster reach the endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub url: Option<String>,
    /// Engines that exist.
    pub replicas: u32,
    /// Engines that are ready.
    pub ready_replicas: u32,
    /// Label selector of the engines, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// Adapters that are served, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "atomic"))]
    pub adapters: Vec<ServedAdapter>,
    /// Totals of `adapters`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_counts: Option<AdapterCounts>,
    /// Versions that were rolled back here and are not tried again, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "atomic"))]
    pub rejected: Vec<RejectedDigest>,
    /// What people say, by target: `adapter/expenses`. Written by people through the status
    /// subresource. A merge patch keeps what it does not name of the command before: name every field,
    /// `step` and `reason` with null where there is none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 100))]
    pub commands: BTreeMap<String, EndpointCommand>,
    /// The operator's answers, by the same targets.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 100))]
    pub answers: BTreeMap<String, Answer>,
    /// What printed columns show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<EndpointColumns>,
    /// Ready, Available, Progressing, RolledBack, AdaptersPending, Reconciling, Stalled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// What printed columns show and a path cannot select.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointColumns {
    /// Adapters served of those named, such as `2/3`.
    #[schemars(length(max = 63))]
    pub adapters: String,
    /// The rollout under way, such as `expenses v6>v7 10% Stepping`; what was taken back, such as
    /// `expenses v6>v7 RolledBack`; or `-`.
    #[schemars(length(max = 253))]
    pub rollout: String,
}

/// Totals over the adapters of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AdapterCounts {
    /// Adapters that the spec names.
    pub total: u32,
    /// Adapters with a stable version.
    pub serving: u32,
    /// Adapters that have no version to serve yet.
    pub pending: u32,
    /// Adapters in a rollout.
    pub progressing: u32,
    /// Adapters whose newest candidate was rolled back.
    pub rolled_back: u32,
}

/// One adapter of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServedAdapter {
    /// What a client names in `model`.
    #[schemars(length(max = 63))]
    pub name: String,
    /// The version that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<VersionedDigest>,
    /// The version that is to take over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
    /// The rollout under way, or the one that was rolled back; none where the stable version serves
    /// alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<AdapterRollout>,
    /// Ready engines that have the candidate verified, or the stable version where there is no
    /// candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_replicas: Option<u32>,
    /// Why the adapter is not served as the spec says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub reason: Option<String>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// The version that is to take over, and its share of callers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Version number.
    pub version: u32,
    /// Digest of the version.
    #[schemars(length(max = 71))]
    pub digest: String,
    /// Percent of callers that get it.
    #[schemars(range(min = 0, max = 100))]
    pub weight: u32,
}

open_enum! {
    /// Where a rollout is. An adapter of which one version serves has none.
    pub enum RolloutState (status) {
        /// The candidate is being loaded and verified on every ready engine.
        Preparing = "Preparing",
        /// The candidate has the weight of a step.
        Stepping = "Stepping",
        /// The weight is held: by a step, a person, or a failed analysis.
        Paused = "Paused",
        /// The candidate has all traffic; the stable version is kept for a while.
        Promoting = "Promoting",
        /// The stable version gets all traffic back.
        RollingBack = "RollingBack",
        /// The candidate was taken back; it is not tried again by itself.
        RolledBack = "RolledBack",
    }
}

open_enum! {
    /// What holds a paused rollout.
    pub enum PausedBy (status) {
        /// A pause among the steps, or the preview of BlueGreen.
        Step = "Step",
        /// A person's Pause.
        Command = "Command",
        /// A failed analysis where autoRollback is off.
        Analysis = "Analysis",
    }
}

/// The persistent facts of one adapter's rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdapterRollout {
    /// Preparing, Stepping, Paused, Promoting, RollingBack or RolledBack.
    pub state: RolloutState,
    /// Index of the step, counted from 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 32))]
    pub step: u32,
    /// When the state was entered.
    pub since: Time,
    /// When the step was entered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_since: Option<Time>,
    /// Step, Command or Analysis, in the state Paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<PausedBy>,
    /// Start of the window in which traffic is judged: the newest weight, or the end of a gap in
    /// the routers' counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_since: Option<Time>,
    /// Begun by a person's Retry or Rollback: it goes on though the spec names the stable version.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub commanded: bool,
    /// Failed judgements so far.
    #[serde(default)]
    pub failures: u32,
    /// When traffic was last judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_analysis_time: Option<Time>,
    /// Enters the hash that puts a caller on one side, so that another rollout asks other callers
    /// first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub salt: Option<String>,
    /// Why the rollout is where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub reason: Option<String>,
    /// Why, in words and numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// The newest judgement, rule by rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub analysis: Vec<AnalysisResult>,
}

/// The judgement of one rule of an analysis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisResult {
    /// The metric that was judged.
    #[schemars(length(max = 253))]
    pub metric: String,
    /// Value for the stable version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<Decimal>,
    /// Value for the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Decimal>,
    /// Requests that the candidate completed in the window.
    pub samples: u64,
    /// Pass, Fail or Inconclusive.
    pub verdict: Verdict,
    /// Why, in words and numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// A version that was rolled back and is not tried again by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RejectedDigest {
    /// Name of the adapter on this endpoint.
    #[schemars(length(max = 63))]
    pub adapter: String,
    /// Digest that was rolled back.
    #[schemars(length(max = 71))]
    pub digest: String,
    /// Version that was rolled back.
    pub version: u32,
    /// Why, in one word.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// Why, in words and numbers.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When it was rolled back.
    pub time: Time,
    /// Hash of the settings under which it was rolled back: under others it may be tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub settings_hash: Option<String>,
}

open_enum! {
    /// What a person can say about a rollout.
    pub enum EndpointVerb (spec) {
        /// Skips what is left of the steps.
        Promote = "Promote",
        /// Rolls back.
        Abort = "Abort",
        /// Holds the weight.
        Pause = "Pause",
        /// Ends a pause.
        Resume = "Resume",
        /// Allows a rejected digest again.
        Retry = "Retry",
        /// Starts a rollout to an older version, named by its digest.
        Rollback = "Rollback",
    }
}

/// What a person says about the rollout of one adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointCommand {
    /// Chosen by the caller; another id is another command.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[-_.A-Za-z0-9]+$"))]
    pub id: String,
    /// Promote, Abort, Pause, Resume, Retry or Rollback.
    pub verb: EndpointVerb,
    /// Digest of the version that is meant: the candidate, the rejected one for Retry, the older
    /// one for Rollback. With another one the command is refused.
    #[schemars(length(max = 71), regex(pattern = DIGEST_PATTERN))]
    pub digest: String,
    /// Step at which the command was given; where given, it is refused at another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 32))]
    pub step: Option<u32>,
    /// Who says it: the caller's own name.
    #[schemars(length(min = 1, max = 253))]
    pub user: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}
