//! TrainingRun: one training of one adapter on one dataset version.
#![expect(
    clippy::duplicated_attributes,
    reason = "printed columns share their type"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decimal::{Decimal, UNSIGNED_PATTERN};
use crate::enums::open_enum;
use crate::reference::{
    BaseModelSource, ObjectReference, VersionReference, VersionedDigest, VersionedReference,
};
use crate::schema::{bounds, rules};
use crate::serving_endpoint::BaseQuantization;
pub use crate::training_method::{
    LoraMethod, Method, MethodType, ModelOutput, Objective, ObjectiveType, Quantization, Subject,
};

/// One training of one adapter on one dataset version.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "graftwork.dev",
    version = "v1alpha1",
    kind = "TrainingRun",
    plural = "trainingruns",
    namespaced,
    status = "TrainingRunStatus",
    derive = "PartialEq",
    shortname = "trun",
    category = "graft",
    doc = "One training of one adapter on one dataset version. The spec is immutable but for suspend.",
    printcolumn(
        name = "Succeeded",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Succeeded")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Succeeded")].reason"#
    ),
    printcolumn(
        name = "Progress",
        type_ = "integer",
        json_path = ".status.progress.percent",
        description = "Percent of the steps"
    ),
    printcolumn(name = "Loss", type_ = "string", json_path = ".status.progress.loss"),
    printcolumn(
        name = "ETA",
        type_ = "string",
        json_path = ".status.progress.estimatedCompletionTime"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("self.baseModel == oldSelf.baseModel", "baseModel is immutable: make a new TrainingRun"),
    ("self.datasetRef == oldSelf.datasetRef", "datasetRef is immutable: make a new TrainingRun"),
    (
        "has(self.adapterRef) == has(oldSelf.adapterRef) && (!has(self.adapterRef) || self.adapterRef == oldSelf.adapterRef)",
        "adapterRef is immutable: make a new TrainingRun",
    ),
    (
        "has(self.initialAdapterRef) == has(oldSelf.initialAdapterRef) && (!has(self.initialAdapterRef) || self.initialAdapterRef == oldSelf.initialAdapterRef)",
        "initialAdapterRef is immutable: make a new TrainingRun",
    ),
    ("self.objective == oldSelf.objective", "objective is immutable: make a new TrainingRun"),
    ("self.method == oldSelf.method", "method is immutable: make a new TrainingRun"),
    ("self.hyperparameters == oldSelf.hyperparameters", "hyperparameters is immutable: make a new TrainingRun"),
    ("self.compute == oldSelf.compute", "compute is immutable: make a new TrainingRun"),
    ("self.checkpoint == oldSelf.checkpoint", "checkpoint is immutable: make a new TrainingRun"),
    ("self.evaluation == oldSelf.evaluation", "evaluation is immutable: make a new TrainingRun"),
    ("self.limits == oldSelf.limits", "limits is immutable: make a new TrainingRun"),
    (
        "!self.checkpoint.keepBest || has(self.hyperparameters.validateEverySteps)",
        "checkpoint.keepBest needs hyperparameters.validateEverySteps",
    ),
    (
        "self.method.type != 'Evaluate' || (!has(self.adapterRef) && !has(self.initialAdapterRef) && self.objective.type == 'SFT')",
        "adapterRef, initialAdapterRef and objective do not go with method type Evaluate: leave them out",
    ),
    (
        "self.method.type != 'Full' || (!has(self.adapterRef) && !has(self.initialAdapterRef) && self.objective.type == 'SFT')",
        "adapterRef, initialAdapterRef and objective DPO do not go with method type Full: leave them out",
    ),
    (
        "self.objective.type != 'DPO' || double(self.method.lora.dropout) == 0.0",
        "method.lora.dropout is 0 under objective DPO, whose reference drops nothing",
    ),
])))]
pub struct TrainingRunSpec {
    /// The frozen model that the adapter is trained for.
    pub base_model: BaseModelSource,
    /// The data; without a version the latest one, pinned in status at start.
    pub dataset_ref: VersionedReference,
    /// The adapter that the result becomes a version of; left out, the result stays in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_ref: Option<ObjectReference>,
    /// A version of an adapter whose values the training starts from, in place of fresh ones. It is for
    /// the same base model. Where method.lora leaves rank, alpha and targetModules out, they are the
    /// version's; where it names other ones than the usual, they have to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_adapter_ref: Option<VersionReference>,
    /// What is optimised.
    #[serde(default)]
    pub objective: Objective,
    /// What is trained.
    #[serde(default)]
    pub method: Method,
    /// How it is trained.
    #[serde(default)]
    pub hyperparameters: Hyperparameters,
    /// Where it is trained.
    #[serde(default)]
    pub compute: Compute,
    /// How often work is saved.
    #[serde(default)]
    pub checkpoint: CheckpointPolicy,
    /// What is measured on the test rows at the end.
    #[serde(default)]
    pub evaluation: Evaluation,
    /// When the run is given up.
    #[serde(default)]
    pub limits: RunLimits,
    /// Stops the run after a checkpoint; set back, it goes on from there.
    #[serde(default)]
    pub suspend: bool,
}

/// How the deltas are trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("!(has(self.epochs) && has(self.maximumSteps))", "epochs and maximumSteps exclude each other: leave one of them out"),
    (
        "!has(self.microBatchSize) || self.microBatchSize <= self.batchSize",
        "microBatchSize is at most batchSize, which is 32 where it is left out",
    ),
    (
        "!has(self.microBatchSize) || self.batchSize % self.microBatchSize == 0",
        "batchSize, which is 32 where it is left out, is a multiple of microBatchSize",
    ),
    (
        "!has(self.warmupSteps) || !has(self.maximumSteps) || self.warmupSteps <= self.maximumSteps",
        "warmupSteps is at most maximumSteps",
    ),
    ("!has(self.earlyStopping) || has(self.validateEverySteps)", "earlyStopping needs validateEverySteps"),
])))]
pub struct Hyperparameters {
    /// Peak learning rate of AdamW, above 0 and at most 1; a decimal in quotes, such as "8e-5".
    #[schemars(extend(
        "pattern" = UNSIGNED_PATTERN,
        "x-kubernetes-validations" = bounds(&[(
            "double(self) > 0.0 && double(self) <= 1.0",
            "learningRate is above 0 and at most 1",
        )]),
    ))]
    pub learning_rate: Decimal,
    /// Learning rate after warm-up: Cosine and Linear fall to 0 at the last step.
    pub schedule: Schedule,
    /// Steps over which the learning rate rises from 0; left out, 10, or all steps of a shorter run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub warmup_steps: Option<u32>,
    /// Passes over the train rows; 1 where maximumSteps is not set either.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub epochs: Option<u32>,
    /// Optimizer steps to take in place of epochs; rows come again as often as needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub maximum_steps: Option<u32>,
    /// Examples per optimizer step.
    #[schemars(range(min = 1, max = 65536))]
    pub batch_size: u32,
    /// Examples per forward pass; gradients accumulate up to batchSize. Left out, it is the largest
    /// divisor of batchSize up to 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub micro_batch_size: Option<u32>,
    /// Tokens per example; truncation says what becomes of a longer one.
    #[schemars(range(min = 8, max = 131_072))]
    pub maximum_sequence_length: u32,
    /// What becomes of a longer example that is trained on: `CutStart`, which is meant where it is left out,
    /// takes the start of its prompt, then the end of its completion; `CutEnd` its end; Drop leaves it out;
    /// Error ends the run. The message of the finished run counts them. What is scored is cut at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncation: Option<Truncation>,
    /// Decoupled weight decay of AdamW (Loshchilov and Hutter 2019).
    #[schemars(extend(
        "pattern" = UNSIGNED_PATTERN,
        "x-kubernetes-validations" = bounds(&[("double(self) <= 1.0", "weightDecay is at most 1")]),
    ))]
    pub weight_decay: Decimal,
    /// Norm to which the gradient of a step is clipped; "0" does not clip.
    #[schemars(extend(
        "pattern" = UNSIGNED_PATTERN,
        "x-kubernetes-validations" = bounds(&[(
            "double(self) <= 1000.0",
            "maximumGradientNorm is at most 1000",
        )]),
    ))]
    pub maximum_gradient_norm: Decimal,
    /// Seed of initialisation, order and dropout.
    #[schemars(range(min = 0, max = 2_147_483_647_i64))]
    pub seed: u64,
    /// Steps between looks at the loss on the validation rows, which are also looked at after the last
    /// one; left out, they are not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub validate_every_steps: Option<u32>,
    /// Ends the training where the validation loss falls no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
}

/// When a training is ended early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EarlyStopping {
    /// Validations without a lower loss than the lowest so far.
    #[schemars(range(min = 1, max = 1000))]
    pub patience: u32,
}

impl Default for Hyperparameters {
    fn default() -> Self {
        Self {
            learning_rate: Decimal::from("2e-4"),
            schedule: Schedule::Cosine,
            warmup_steps: None,
            epochs: None,
            maximum_steps: None,
            batch_size: 32,
            micro_batch_size: None,
            maximum_sequence_length: 512,
            truncation: None,
            weight_decay: Decimal::from("0"),
            maximum_gradient_norm: Decimal::from("1.0"),
            seed: 0,
            validate_every_steps: None,
            early_stopping: None,
        }
    }
}

open_enum! {
    /// Course of the learning rate after warm-up.
    pub enum Schedule (spec) {
        /// Half a cosine down to 0 (Loshchilov and Hutter 2017).
        Cosine = "Cosine",
        /// A straight line down to 0.
        Linear = "Linear",
        /// No change.
        Constant = "Constant",
    }
}

open_enum! {
    /// What becomes of an example that is too long.
    pub enum Truncation (spec) {
        /// It loses the start of its prompt, then the end of its completion.
        CutStart = "CutStart",
        /// It loses its end.
        CutEnd = "CutEnd",
        /// It is left out.
        Drop = "Drop",
        /// It ends the run.
        Error = "Error",
    }
}

/// Where a run is trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Compute {
    /// A compute profile of the installation: image, resources and place of the pod.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub profile: String,
    /// Priority class of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Nodes that may be taken away at any time; left out, attempts run on others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spot: Option<Spot>,
}

/// Nodes that may be taken away at any time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Spot {
    /// Whether attempts run on the spot nodes of the compute profile.
    pub enabled: bool,
    /// Evictions of the run after which its attempts run on other nodes.
    #[schemars(range(min = 1, max = 100))]
    pub on_demand_after_evictions: u32,
}

impl Default for Spot {
    fn default() -> Self {
        Self {
            enabled: false,
            on_demand_after_evictions: 3,
        }
    }
}

impl Default for Compute {
    fn default() -> Self {
        Self {
            profile: "default".to_owned(),
            priority_class_name: None,
            spot: None,
        }
    }
}

/// How often work is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckpointPolicy {
    /// Steps between checkpoints.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub every_steps: u32,
    /// Checkpoints that are kept, newest first.
    #[schemars(range(min = 1, max = 100))]
    pub keep: u32,
    /// Keeps the values of the step with the lowest validation loss in every checkpoint; they become
    /// the result.
    pub keep_best: bool,
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self {
            every_steps: 50,
            keep: 2,
            keep_best: false,
        }
    }
}

/// What is measured on the test rows at the end, for the adapter and for its reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Evaluation {
    /// Loss, Perplexity (its exponential), TokenAccuracy: over learnt tokens. ExactMatch: share of rows
    /// answered exactly, greedily. RougeL: mean F1 of the longest common subsequence of words, of the
    /// same answers. ClassificationReport: precision, recall and F1 of each label, of the same answers.
    /// Latency: seconds per generated token. MeanReward: of a dataset that keeps rewards.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "set"))]
    pub metrics: Vec<EvaluationMetric>,
    /// Tokens that an answer may have.
    #[schemars(range(min = 1, max = 4096))]
    pub maximum_new_tokens: u32,
    /// Test rows that are looked at; left out, all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub maximum_rows: Option<u32>,
    /// Files of questions that adapter and reference are asked beside the test rows;
    /// docs/training.md has their shape.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub benchmarks: Vec<Benchmark>,
    /// What endpoints will hold the base model in, as their `spec.engine.quantization` says it: adapter
    /// and reference are scored by the passes that serve it so. Left out: what the run trains on, which is
    /// `None` but for QLoRA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<BaseQuantization>,
}

/// A file of questions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Benchmark {
    /// Stands in its metrics' names: `benchmark/<name>`.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The file, as `pvc://CLAIM/PATH`; JSON Lines.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^pvc://[^/]+/."))]
    pub uri: String,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self {
            metrics: vec![EvaluationMetric::Loss],
            maximum_new_tokens: 32,
            maximum_rows: None,
            benchmarks: Vec::new(),
            precision: None,
        }
    }
}

open_enum! {
    /// A measurement on the test rows.
    pub enum EvaluationMetric (spec) {
        /// Metric `loss`: mean cross-entropy over learnt tokens, in nats.
        Loss = "Loss",
        /// Metric `perplexity`: the exponential of `loss`.
        Perplexity = "Perplexity",
        /// Metric `exact_match`: share of rows whose first line of answer and completion, trimmed,
        /// are equal.
        ExactMatch = "ExactMatch",
        /// Metric `token_accuracy`: share of the learnt tokens that were the most probable ones.
        TokenAccuracy = "TokenAccuracy",
        /// Metric `rouge_l`: mean ROUGE-L F1 of answer and completion, without stemming.
        RougeL = "RougeL",
        /// Metrics `label/<label>/precision`, `/recall` and `/f1` and `macro_f1`: the first lines of
        /// completions, at most ten different ones, are the labels.
        ClassificationReport = "ClassificationReport",
        /// Metrics `latency_p50` and `latency_p95`: seconds per generated token, one sequence at a time.
        Latency = "Latency",
        /// Metric `mean_reward`: mean over rows of the row's reward where the answer is the row's, and
        /// of 0 elsewhere.
        MeanReward = "MeanReward",
    }
}

/// When a run is given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RunLimits {
    /// Seconds that attempts may be active in sum.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub duration_seconds: u64,
    /// Failures that are tried again; an evicted pod does not count.
    #[schemars(range(min = 0, max = 100))]
    pub retries: u32,
}

impl Default for RunLimits {
    fn default() -> Self {
        Self {
            duration_seconds: 86_400,
            retries: 3,
        }
    }
}

/// What the operator knows of a TrainingRun.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrainingRunStatus {
    /// metadata.generation that this status was computed from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// What the run's references meant at its start; they do not move afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved: Option<ResolvedInputs>,
    /// Prepare, Train, Evaluate or Package: for display only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<RunStage>,
    /// How far the training is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Attempts so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Attempts>,
    /// UID of the pod that `activeSince` is about; of another one it says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub active_pod: Option<String>,
    /// When the trainer of the attempt under way was first seen running, by the operator's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_since: Option<Time>,
    /// How the newest attempt that ended did so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_attempt: Option<AttemptEnd>,
    /// The newest checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointStatus>,
    /// What was measured on the test rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub metrics: Vec<Metric>,
    /// What came out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
    /// Succeeded, Finished, Reconciling, Stalled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// What a run's references meant at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResolvedInputs {
    /// The dataset version.
    pub dataset: VersionedDigest,
    /// The base model.
    pub base_model: ResolvedBaseModel,
    /// Image of the trainer.
    #[schemars(length(max = 512))]
    pub image: String,
    /// The compute profile.
    #[schemars(length(max = 63))]
    pub profile: String,
    /// What is measured beside the result on the same rows: a version number of the adapter, or
    /// `base`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub reference: Option<String>,
}

/// A base model by content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedBaseModel {
    /// Digest of the model's files.
    #[schemars(length(max = 71))]
    pub digest: String,
}

open_enum! {
    /// What a run is doing, for display only.
    pub enum RunStage (status) {
        /// Reads model and data.
        Prepare = "Prepare",
        /// Takes optimizer steps.
        Train = "Train",
        /// Measures on the test rows.
        Evaluate = "Evaluate",
        /// Writes and publishes the result.
        Package = "Package",
    }
}

/// How far the training is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Progress {
    /// Optimizer steps taken.
    pub step: u64,
    /// Optimizer steps to take.
    pub total_steps: u64,
    /// step / totalSteps in percent.
    #[schemars(range(min = 0, max = 100))]
    pub percent: u32,
    /// How much of the evaluation is done, in percent, while the stage is Evaluate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub evaluated_percent: Option<u32>,
    /// Passes over the train rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Decimal>,
    /// Mean loss of the last steps, in nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<Decimal>,
    /// Lowest mean loss of the validation rows so far, in nats per token; of DPO, per pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_validation_loss: Option<Decimal>,
    /// Tokens trained on per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<u64>,
    /// When the training will end, at this speed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_completion_time: Option<Time>,
    /// When the trainer last reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<Time>,
}

/// Attempts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Attempts {
    /// Attempts that got a Job.
    pub started: u32,
    /// Attempts that failed; these count against limits.retries.
    pub failed: u32,
    /// Attempts whose pod was taken away; these do not count.
    pub evicted: u32,
    /// Attempts that ended, for whatever reason: the one after them is under way where `started`
    /// is larger.
    pub ended: u32,
    /// Seconds that ended attempts were active in sum; these count against
    /// limits.durationSeconds.
    pub active_seconds: u64,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptEnd {
    /// Number of the attempt, counted from 1.
    pub attempt: u32,
    /// Why, in one word.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// Why, in words.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When the operator saw it.
    pub time: Time,
    /// When the next attempt may start; absent where it need not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_time: Option<Time>,
}

/// The newest checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointStatus {
    /// Step after which it was written.
    pub step: u64,
    /// When it was complete.
    pub saved_time: Time,
}

/// One measurement on test rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Metric {
    /// Name: `loss`, `perplexity`, `exact_match`, `token_accuracy`, `rouge_l`, `macro_f1`,
    /// `label/<label>/f1`, `benchmark/<name>`, `latency_p50`, `latency_p95`, `mean_reward`.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Split that was measured on.
    #[schemars(length(max = 63))]
    pub split: String,
    /// Value for the new adapter.
    pub value: Decimal,
    /// Value for the reference on the same rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Decimal>,
    /// Lower and upper end of the 95 % interval of value minus baseline: paired bootstrap, by groups
    /// where the split has a group column.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 2), extend("x-kubernetes-list-type" = "atomic"))]
    pub interval: Option<Vec<Decimal>>,
    /// Rows that were looked at.
    pub samples: u64,
    /// Rows that were left out, because the adapter or the reference was trained on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excluded: Option<u64>,
}

/// What a run produced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RunResult {
    /// Digest of the adapter's content.
    #[schemars(length(max = 71))]
    pub digest: String,
    /// Size of the adapter's files.
    pub size_bytes: u64,
    /// Version of the adapter of `adapterRef` that the result became.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub adapter_version: Option<u32>,
}
