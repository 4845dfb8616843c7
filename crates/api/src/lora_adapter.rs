//! LoRAAdapter: the versions of one adapter, the gate they pass, and who approved them.
#![expect(
    clippy::duplicated_attributes,
    reason = "printed columns share their type"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::command::Answer;
use crate::dataset::LatestVersion;
use crate::decimal::{Decimal, UNSIGNED_PATTERN};
use crate::enums::open_enum;
use crate::reference::{BaseModelSource, VersionedDigest};
use crate::schema::{DIGEST_PATTERN, bounds, rules};
use crate::training_run::{Metric, ResolvedBaseModel};

/// An adapter: immutable versions, the gate they pass, and the one that is approved.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "graftwork.dev",
    version = "v1alpha1",
    kind = "LoRAAdapter",
    plural = "loraadapters",
    namespaced,
    status = "LoRAAdapterStatus",
    derive = "PartialEq",
    shortname = "lora",
    category = "graft",
    doc = "An adapter: its immutable versions, the gate they pass, and the one that is approved.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Base", type_ = "string", json_path = ".spec.baseModel.uri"),
    printcolumn(
        name = "Production",
        type_ = "integer",
        json_path = ".status.production.version"
    ),
    printcolumn(
        name = "Candidate",
        type_ = "string",
        json_path = ".status.columns.candidate"
    ),
    printcolumn(name = "Gate", type_ = "string", json_path = ".status.columns.gate"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct LoRAAdapterSpec {
    /// The model that every version of the adapter is for.
    pub base_model: BaseModelSource,
    /// A PEFT folder made elsewhere that becomes a version. It has no metrics: metric rules are
    /// Inconclusive, and only a person's approval lets it through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<Import>,
    /// What a version must show before it may see traffic.
    #[serde(default)]
    pub gate: Gate,
}

/// A PEFT folder made elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Import {
    /// The folder, as `pvc://CLAIM/PATH`, with `adapter_config.json` and
    /// `adapter_model.safetensors`.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^pvc://"))]
    pub uri: String,
    /// Digest that the content must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), regex(pattern = DIGEST_PATTERN))]
    pub digest: Option<String>,
}

/// What a version must show before it may see traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Gate {
    /// Every rule must pass; none given, every compatible version passes.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub rules: Vec<GateRule>,
    /// Confidence of the intervals that rules are judged by, where results of single rows are
    /// there.
    #[schemars(extend(
        "pattern" = UNSIGNED_PATTERN,
        "x-kubernetes-validations" = bounds(&[(
            "double(self) >= 0.5 && double(self) < 1.0",
            "confidence is at least 0.5 and below 1",
        )]),
    ))]
    pub confidence: Decimal,
    /// Automatic: a version whose rules pass is approved. Manual: a person approves.
    pub approval: Approval,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            confidence: Decimal::from("0.95"),
            approval: Approval::Automatic,
        }
    }
}

open_enum! {
    /// Who lets a version through.
    pub enum Approval (spec) {
        /// The rules alone.
        Automatic = "Automatic",
        /// A person, by the command Approve; a version whose rules fail is rejected before.
        Manual = "Manual",
    }
}

open_enum! {
    /// A metric that a gate can judge.
    pub enum GateMetric (spec) {
        /// Mean cross-entropy over learnt tokens, in nats; lower is better.
        Loss = "loss",
        /// The exponential of `loss`; lower is better.
        Perplexity = "perplexity",
        /// Share of test rows answered exactly; higher is better.
        ExactMatch = "exact_match",
        /// Share of learnt tokens that were the most probable ones; higher is better.
        TokenAccuracy = "token_accuracy",
        /// Mean ROUGE-L F1 of answers; higher is better.
        RougeL = "rouge_l",
        /// Mean F1 of the labels; higher is better.
        MacroF1 = "macro_f1",
        /// Median of the seconds per generated token; lower is better.
        LatencyP50 = "latency_p50",
        /// 95th percentile of the seconds per generated token; lower is better.
        LatencyP95 = "latency_p95",
        /// Mean of rewards; higher is better.
        MeanReward = "mean_reward",
    }
}

/// What a rule's metric may be: a known one, a benchmark's, or a label's; higher is better for both.
fn gate_metric(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let known = GateMetric::KNOWN.join("|");
    let benchmark = "benchmark/[a-z0-9]([-a-z0-9]*[a-z0-9])?(/acc_norm|/acc_bytes)?";
    let label = "label/.+/(precision|recall|f1)";
    schemars::json_schema!({
        "type": "string",
        "maxLength": 253,
        "pattern": format!("^({known}|{benchmark}|{label})$"),
    })
}

/// One rule of a gate: a metric and exactly one limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "[has(self.minimum), has(self.maximum), has(self.minimumImprovementPoints), has(self.maximumRegressionPoints), has(self.maximumIncreasePercent)].filter(given, given).size() == 1",
    "a rule has exactly one of minimum, maximum, minimumImprovementPoints, maximumRegressionPoints and maximumIncreasePercent",
)])))]
pub struct GateRule {
    /// The metric that is judged: `loss`, `perplexity`, `exact_match`, `token_accuracy`, `rouge_l`,
    /// `macro_f1`, `mean_reward`, `latency_p50`, `latency_p95`, `label/<label>/f1` (or `precision`,
    /// `recall`), or `benchmark/<name>`.
    #[schemars(schema_with = "gate_metric")]
    pub metric: GateMetric,
    /// Value that must be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<Decimal>,
    /// Value that must not be passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<Decimal>,
    /// Points (hundredths of the metric) by which the version must be better than the production
    /// version, or than the bare base model where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = UNSIGNED_PATTERN))]
    pub minimum_improvement_points: Option<Decimal>,
    /// Points (hundredths of the metric) by which the version may be worse than the production
    /// version, or than the bare base model where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = UNSIGNED_PATTERN))]
    pub maximum_regression_points: Option<Decimal>,
    /// Percent by which the value may be above the production version's, or the bare base model's
    /// where there is none; for latencies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = UNSIGNED_PATTERN))]
    pub maximum_increase_percent: Option<Decimal>,
}

/// What the operator knows of a LoRAAdapter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LoRAAdapterStatus {
    /// metadata.generation that this status was computed from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Versions, newest first; older ones stay in the store.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), extend("x-kubernetes-list-type" = "atomic"))]
    pub versions: Vec<AdapterVersion>,
    /// The newest version that is stable on an endpoint; where none is, the last one that was, without
    /// endpoints. An endpoint that follows the adapter and never served it begins with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub production: Option<Production>,
    /// What each endpoint serves as stable or served last, by the store's ledger: an endpoint that serves
    /// none of the adapter yet begins with its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "atomic"))]
    pub last_served: Vec<LastServed>,
    /// The newest version that may see traffic; endpoints that follow the adapter go there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub approved: Option<u32>,
    /// The base model that versions are checked against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<ResolvedBaseModel>,
    /// What people say, by target: `version/7`. Written by people through the status subresource. A
    /// merge patch keeps what it does not name of the command before: name every field, `reason` with
    /// null where there is none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    pub commands: BTreeMap<String, AdapterCommand>,
    /// The operator's answers, by the same targets.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    pub answers: BTreeMap<String, Answer>,
    /// Accepted commands whose record is not in the store yet, by the same targets: a newer command takes
    /// nothing away from them, but a Reject ends an Approve.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    pub accepted: BTreeMap<String, AdapterCommand>,
    /// What printed columns show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<AdapterColumns>,
    /// Ready, VersionAvailable, Reconciling, Stalled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// What printed columns show and a path cannot select.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AdapterColumns {
    /// The newest version and its stage where it is not in production, such as `7 Candidate`;
    /// `-` where there is none.
    #[schemars(length(max = 63))]
    pub candidate: String,
    /// The gate's verdict on the newest version; `-` where there is none.
    #[schemars(length(max = 63))]
    pub gate: String,
}

/// One immutable version of an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdapterVersion {
    /// Version number, counted from 1.
    pub version: u32,
    /// Digest over the weights and the keys that change the maths.
    #[schemars(length(max = 71))]
    pub digest: String,
    /// Candidate, Approved, Production or Rejected.
    pub stage: VersionStage,
    /// Why the version is at its stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub reason: Option<String>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// TrainingRun that made the version; none where it was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub training_run: Option<String>,
    /// URI that the version was imported from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub imported_from: Option<String>,
    /// Dataset version that it was trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<VersionDataset>,
    /// Rank of the version's deltas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// What was measured on the test rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub metrics: Vec<Metric>,
    /// What the base model was held in while they were measured (evaluation.precision of the run); none
    /// where the version was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub precision: Option<String>,
    /// The gate's judgement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateResult>,
    /// When the version was published.
    pub created_time: Time,
}

impl AdapterVersion {
    /// Number and digest.
    pub fn versioned_digest(&self) -> VersionedDigest {
        VersionedDigest {
            version: self.version,
            digest: self.digest.clone(),
        }
    }
}

/// The dataset version that an adapter version was trained on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionDataset {
    /// Name of the Dataset.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Version of the Dataset.
    pub version: u32,
    /// Digest of that version.
    #[schemars(length(max = 71))]
    pub digest: String,
}

impl VersionDataset {
    /// The latest version of the Dataset of that name.
    pub fn latest(name: impl Into<String>, latest: &LatestVersion) -> Self {
        Self {
            name: name.into(),
            version: latest.version,
            digest: latest.digest.clone(),
        }
    }
}

open_enum! {
    /// Where a version stands.
    pub enum VersionStage (status) {
        /// Waits for its gate or for approval.
        Candidate = "Candidate",
        /// May see traffic.
        Approved = "Approved",
        /// Stable on at least one endpoint.
        Production = "Production",
        /// Its gate failed, a person said no, or it was rolled back and is stable nowhere.
        Rejected = "Rejected",
    }
}

open_enum! {
    /// A judgement.
    pub enum Verdict (status) {
        /// The limit is kept, with confidence.
        Pass = "Pass",
        /// The limit is broken.
        Fail = "Fail",
        /// Too little is known: it holds, and never promotes.
        Inconclusive = "Inconclusive",
    }
}

/// The gate's judgement of one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateResult {
    /// Pass, Fail or Inconclusive: the worst of the rules, Fail before Inconclusive.
    pub verdict: Verdict,
    /// Rule by rule, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub rules: Vec<GateRuleResult>,
}

/// The judgement of one rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateRuleResult {
    /// The metric that was judged.
    #[schemars(length(max = 253))]
    pub metric: String,
    /// Value for the version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Decimal>,
    /// Value for what it was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Decimal>,
    /// Lower and upper end of the value's interval, or of the difference's where there is a
    /// reference, at the gate's confidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 2), extend("x-kubernetes-list-type" = "atomic"))]
    pub interval: Option<Vec<Decimal>>,
    /// Pass, Fail or Inconclusive.
    pub verdict: Verdict,
    /// Why, in words and numbers.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// The version in production, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Production {
    /// Version number.
    pub version: u32,
    /// Names of the endpoints on which it is stable.
    #[schemars(length(max = 100), inner(length(max = 253)), extend("x-kubernetes-list-type" = "atomic"))]
    pub endpoints: Vec<String>,
}

/// What an endpoint serves as stable, or served last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastServed {
    /// Name of the ServingEndpoint.
    #[schemars(length(max = 253))]
    pub endpoint: String,
    /// The adapter's name on it.
    #[schemars(length(max = 63))]
    pub adapter: String,
    /// Version number.
    pub version: u32,
}

open_enum! {
    /// What a person can say about a version.
    pub enum AdapterVerb (spec) {
        /// The version may see traffic.
        Approve = "Approve",
        /// The version never sees traffic.
        Reject = "Reject",
    }
}

/// What a person says about a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdapterCommand {
    /// Chosen by the caller; another id is another command.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[-_.A-Za-z0-9]+$"))]
    pub id: String,
    /// Approve or Reject.
    pub verb: AdapterVerb,
    /// Digest of the version that is meant: with another one the command is refused.
    #[schemars(length(max = 71), regex(pattern = DIGEST_PATTERN))]
    pub digest: String,
    /// Who says it: the caller's own name.
    #[schemars(length(min = 1, max = 253))]
    pub user: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}
