//! Training runs: what a trainer is told, what it leaves in the store, and what it ends with.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::dataset::{Classification, Format, Split};
use crate::store::BucketStore;

/// Configuration of one run (`config.json` of a trainer). The same for all attempts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrainerConfig {
    /// Name of the TrainingRun.
    pub run: String,
    /// What decides the result, pinned; `resolved.json` holds the same.
    pub resolved: Resolved,
    /// Digest of [`RunKey`]: names the run's folder in the store.
    pub key: Digest,
    /// What is optimised.
    #[serde(default)]
    pub objective: Objective,
    /// Whether nothing is trained, and the version of [`Resolved::initial`] is scored.
    #[serde(default)]
    pub evaluate_only: bool,
    /// Where the model goes of which every weight is trained; none: an adapter is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<ModelOutput>,
    /// LoRA's shape.
    pub lora: Lora,
    /// Whether the version of [`Resolved::initial`] has the say on rank, alpha and modules in place of
    /// [`Self::lora`], with rsLoRA and patterns of one that was made elsewhere. It follows from the spec as the
    /// key has it, and is no part of that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shape_of_initial: bool,
    /// Optimisation.
    pub hyperparameters: Hyperparameters,
    /// Whether the spec names the steps of the warm-up: a run that has fewer is refused, and else rises over all
    /// that it has. It is no part of the key, as [`Self::shape_of_initial`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warmup_is_named: bool,
    /// When state is saved.
    pub checkpoint: Checkpoint,
    /// What is scored at the end.
    pub evaluation: Evaluation,
    /// The LoRAAdapter that the result is for; none: the files stay in the run's folder.
    pub adapter: Option<String>,
    /// How far the Dataset's rows may go by now: what is made of them goes no further, nor than what the
    /// version was built under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// The store, where it is in a bucket; none: the folder that is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<BucketStore>,
    /// Compute threads; 0: as many as the container may use.
    #[serde(default)]
    pub threads: usize,
}

/// What names a run's folder: everything in the spec that decides the result, and the base's digest.
/// Compute, limits, checkpoints and `suspend` do not enter it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunKey {
    /// Digest of the base model's files.
    pub base: Digest,
    /// What they are quantised to on load. Left out where they are not, so that keys of before stay
    /// what they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// Name of the dataset.
    pub dataset: String,
    /// The version that the spec asks for; none: the latest at the start.
    pub dataset_version: Option<u32>,
    /// LoRA's shape.
    pub lora: Lora,
    /// Optimisation.
    pub hyperparameters: Hyperparameters,
    /// What is scored.
    pub evaluation: Evaluation,
    /// The LoRAAdapter that the result is for.
    pub adapter: Option<String>,
    /// Whether the best validated step becomes the result; left out where not, as
    /// [`Self::quantization`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_best: bool,
    /// The version that training starts from; left out where there is none, as
    /// [`Self::quantization`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<AdapterVersion>,
    /// What is optimised; left out where it is the usual, as [`Self::quantization`].
    #[serde(default, skip_serializing_if = "Objective::is_default")]
    pub objective: Objective,
    /// As [`TrainerConfig::evaluate_only`]; left out where something is trained.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub evaluate_only: bool,
    /// Where the model goes of which every weight is trained; left out where an adapter is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// A folder on a mounted claim that a model is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelOutput {
    /// As in the spec.
    pub uri: String,
    /// Where the claim is mounted.
    pub root: String,
    /// The folder, relative to that.
    pub folder: String,
}

/// What is optimised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Objective {
    /// The likelihood of what is to be learned (supervised fine-tuning).
    #[default]
    #[serde(rename = "SFT")]
    Sft,
    /// Direct preference optimisation (Rafailov et al. 2023) against the bare base model, or against
    /// the version that training starts from.
    #[serde(rename = "DPO")]
    Dpo {
        /// How firmly the model is held near the reference.
        beta: f64,
    },
}

impl Objective {
    /// Whether it is what a spec means that says nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A version of a LoRAAdapter by its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdapterVersion {
    /// Name of the LoRAAdapter.
    pub adapter: String,
    /// Number.
    pub version: u32,
}

/// Inputs as pinned at the first start (`resolved.json`, create-only).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// The base model.
    pub base: ResolvedBase,
    /// The data.
    pub dataset: ResolvedDataset,
    /// The adapter version that is scored on the same rows; none: the bare base model.
    pub reference: Option<ResolvedReference>,
    /// The adapter version that training starts from, or that is scored where nothing is trained;
    /// none: fresh values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<ResolvedReference>,
}

/// A base model in a mounted claim. What it is, is the digest of its files and what they are
/// quantised to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedBase {
    /// As in the spec.
    pub uri: String,
    /// The mounted folder.
    pub path: String,
    /// Over the folder's files.
    pub digest: Digest,
    /// What the frozen weights are quantised to on load; none: f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
}

/// A block format of GGUF files, as ggml names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Quantization {
    /// 8.5 bits a weight.
    Q8_0,
    /// 4.5 bits a weight, in blocks of 32.
    Q4_0,
    /// 4.5 bits a weight, in blocks of 256.
    #[serde(rename = "Q4_K")]
    Q4K,
}

impl Quantization {
    /// ggml's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4K => "Q4_K",
        }
    }
}

/// A dataset version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedDataset {
    /// Name of the Dataset.
    pub name: String,
    /// Number.
    pub version: u32,
    /// Content.
    pub digest: Digest,
    /// Shape of the rows.
    pub format: Format,
}

/// An adapter version to compare with or to start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedReference {
    /// Name of the LoRAAdapter.
    pub adapter: String,
    /// Number.
    pub version: u32,
    /// Content.
    pub digest: Digest,
}

/// LoRA (Hu et al. 2021, arXiv:2106.09685): `W x + (alpha / r) B A x`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lora {
    /// `r`.
    pub rank: u32,
    /// Numerator of the scaling.
    pub alpha: f64,
    /// Probability with which an input element of A is dropped in training.
    pub dropout: f64,
    /// Last parts of the module paths, for example `q_proj`.
    pub target_modules: Vec<String>,
}

/// What becomes of an example that is longer than [`Hyperparameters::maximum_sequence_length`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Truncation {
    /// It loses the start of its prompt, then the end of its completion; counted in [`RowsUsed::cut`].
    #[default]
    CutStart,
    /// It loses its end; counted in [`RowsUsed::cut`], or where nothing of its answer is left in
    /// [`RowsUsed::dropped`].
    CutEnd,
    /// It is left out; counted in [`RowsUsed::dropped`].
    Drop,
    /// It ends the run.
    Error,
}

/// The learning rate's course after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Schedule {
    /// Half a cosine down to zero.
    Cosine,
    /// A straight line down to zero.
    Linear,
    /// No change.
    Constant,
}

/// Optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hyperparameters {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Course after the warm-up.
    pub schedule: Schedule,
    /// Optimiser steps with a rising learning rate.
    pub warmup_steps: u64,
    /// Passes over the data; ignored where `maximum_steps` is set.
    pub epochs: u32,
    /// Optimiser steps in all.
    pub maximum_steps: Option<u64>,
    /// Examples per optimiser step.
    pub batch_size: u32,
    /// Examples per forward pass.
    pub micro_batch_size: u32,
    /// Tokens of one example. [`Truncation`] says what becomes of a longer one.
    pub maximum_sequence_length: u32,
    /// Of examples that are trained on, or looked at on the way. What is scored at the end is always cut at
    /// the start: runs are compared on the same rows. Left out where it is the usual, as
    /// [`RunKey::quantization`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub truncation: Truncation,
    /// Decoupled weight decay (AdamW).
    pub weight_decay: f64,
    /// Gradients are scaled down to this 2-norm.
    pub maximum_gradient_norm: f64,
    /// Of initialisation, order and dropout.
    pub seed: u64,
    /// Optimiser steps between validations, which also come after the last step; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate_every_steps: Option<u64>,
    /// Validations without a lower loss that end the training; none: it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
}

/// When state is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// Optimiser steps between checkpoints.
    pub every_steps: u64,
    /// How many are kept.
    pub keep: u32,
    /// Whether the step with the lowest validation loss becomes the result, and not the last one.
    #[serde(default)]
    pub keep_best: bool,
}

/// What is scored at the end, on the test split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evaluation {
    /// Which measures.
    pub metrics: Vec<MetricKind>,
    /// Greedy tokens per answer.
    pub maximum_new_tokens: u32,
    /// The first rows of the split that are scored; none: all.
    pub maximum_rows: Option<u64>,
    /// Files of questions that are asked beside them; left out where there are none, as
    /// [`RunKey::quantization`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub benchmarks: Vec<Benchmark>,
    /// What engines will hold the base model in: scores are those of their passes.
    pub precision: Precision,
}

/// What a base model is held in where it is served, as `spec.engine.quantization` of an endpoint says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Precision {
    /// As its files have it.
    #[serde(rename = "None")]
    AsStored,
    /// 16 bits a weight.
    #[serde(rename = "BF16")]
    Bf16,
    /// 8.5 bits a weight.
    Q8_0,
    /// 4.5 bits a weight, in blocks of 32.
    Q4_0,
    /// 4.5 bits a weight, in blocks of 256.
    #[serde(rename = "Q4_K")]
    Q4K,
}

impl From<Quantization> for Precision {
    fn from(trained_on: Quantization) -> Self {
        match trained_on {
            Quantization::Q8_0 => Self::Q8_0,
            Quantization::Q4_0 => Self::Q4_0,
            Quantization::Q4K => Self::Q4K,
        }
    }
}

impl Precision {
    /// Its name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AsStored => "None",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4K => "Q4_K",
        }
    }
}

/// A file of questions in a mounted claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Benchmark {
    /// Stands in its metrics' names.
    pub name: String,
    /// As in the spec.
    pub uri: String,
    /// The mounted file.
    pub path: String,
}

/// The median of the seconds per generated token.
pub const LATENCY_P50: &str = "latency_p50";
/// What 95 % of the tokens take at most, in seconds.
pub const LATENCY_P95: &str = "latency_p95";
/// What the names of benchmarks' metrics begin with.
pub const BENCHMARK_PREFIX: &str = "benchmark/";
/// What the names of single labels' metrics begin with.
pub const LABEL_PREFIX: &str = "label/";
/// Largest number of labels that are reported one by one.
pub const MAXIMUM_LABELS: usize = 10;
/// Largest number of characters of a label.
pub const MAXIMUM_LABEL_CHARACTERS: usize = 63;

/// A measure of the test split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MetricKind {
    /// `loss`: mean negative log-likelihood of the completion's tokens, in nats.
    Loss,
    /// `perplexity`: the exponential of `loss`.
    Perplexity,
    /// `exact_match`: share of greedy answers whose first line, trimmed, is the completion's.
    ExactMatch,
    /// `token_accuracy`: share of the completion's tokens that had the highest probability, teacher
    /// forced.
    TokenAccuracy,
    /// `rouge_l`: mean F1 of the longest common subsequence of words (Lin 2004) of greedy answer and
    /// completion, as PyPI's rouge-score without stemming.
    RougeL,
    /// `macro_f1`, and for each label `label/<label>/precision`, `/recall` and `/f1`: the first lines of
    /// completions are the labels, those of greedy answers what is predicted.
    ClassificationReport,
    /// `latency_p50` and `latency_p95`: seconds per generated token, one sequence at a time.
    Latency,
    /// `mean_reward`: mean over rows of the row's reward where the greedy answer is the row's, as
    /// [`Self::ExactMatch`] compares them, and of 0 elsewhere.
    MeanReward,
}

impl MetricKind {
    /// The metric's name in results and gate rules; of a report, its summary's.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Perplexity => "perplexity",
            Self::ExactMatch => "exact_match",
            Self::TokenAccuracy => "token_accuracy",
            Self::RougeL => "rouge_l",
            Self::ClassificationReport => "macro_f1",
            Self::Latency => LATENCY_P95,
            Self::MeanReward => "mean_reward",
        }
    }

    /// Whether a larger value is a better one.
    pub const fn higher_is_better(self) -> bool {
        !matches!(self, Self::Loss | Self::Perplexity | Self::Latency)
    }

    /// Whether it needs questions that can be answered; the others look at the tokens that should come.
    pub const fn needs_answers(self) -> bool {
        !matches!(self, Self::Loss | Self::Perplexity | Self::TokenAccuracy)
    }
}

/// `result.json`: written once, on success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunResult {
    /// Name of the TrainingRun.
    pub run: String,
    /// Digest of the [`RunKey`].
    pub key: Digest,
    /// Pinned inputs.
    pub resolved: Resolved,
    /// The adapter's content digest, or the model's.
    pub digest: Digest,
    /// Folder in the store, relative to the namespace's folder; of a model its URI.
    pub folder: String,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// LoRA's rank; 0 of a model.
    pub rank: u32,
    /// Optimiser steps.
    pub steps: u64,
    /// Mean loss of the last steps.
    pub final_loss: f64,
    /// Test metrics, of the adapter and of its reference on the same rows.
    pub metrics: Vec<Metric>,
    /// As [`Evaluation::precision`].
    pub precision: Precision,
    /// Rows that were trained on.
    #[serde(default)]
    pub train_rows: RowsUsed,
    /// Rows that were looked at while training.
    #[serde(default)]
    pub validation_rows: RowsUsed,
    /// Rows that were scored.
    #[serde(default)]
    pub test_rows: RowsUsed,
    /// How far the result may go, and what was measured: as far as the rows, and as the version that training
    /// started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// RFC 3339.
    pub finished_time: String,
    /// Version of the trainer.
    pub code_version: String,
}

/// Rows as a run used them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RowsUsed {
    /// All of them.
    pub rows: u64,
    /// Those that were longer than [`Hyperparameters::maximum_sequence_length`] and were cut.
    pub cut: u64,
    /// Those that were longer and were left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
}

/// One measure on the test rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// `loss`, `exact_match`, ...
    pub name: String,
    /// Always `test` for gates.
    pub split: Split,
    /// Of the new adapter.
    pub value: f64,
    /// Standard error of `value`.
    pub standard_error: f64,
    /// Of the reference on the same rows.
    pub baseline: f64,
    /// Mean over rows of new minus reference.
    pub difference: f64,
    /// Standard error of `difference` (paired).
    pub difference_standard_error: f64,
    /// Ends of the 95 % interval of `difference` by paired bootstrap over groups of rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference_interval: Option<[f64; 2]>,
    /// Rows.
    pub samples: u64,
    /// Rows that were left out, because one of the two was trained on them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub excluded: u64,
    /// Groups of rows that are independent of each other; none: every row is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<u64>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Whether it is what a spec means that says nothing.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Metric {
    /// Whether an object's status may show it. The name of a label is a row's text, which data that is
    /// restricted keeps in the store.
    pub fn is_shown(&self, classification: Option<Classification>) -> bool {
        classification != Some(Classification::Restricted) || !self.names_a_label()
    }

    /// Whether its name holds the text of rows.
    pub fn names_a_label(&self) -> bool {
        self.name.starts_with(LABEL_PREFIX)
    }

    /// How many independent observations there are.
    pub fn independent(&self) -> u64 {
        self.groups.unwrap_or(self.samples)
    }
}

/// Termination message of a trainer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    /// A condition reason of TrainingRun, for example `Diverged`.
    pub reason: String,
    /// What happened, with field, value, limit and remedy; no data.
    pub message: String,
    /// The step that was reached.
    pub step: u64,
    /// All steps; 0 before they are known.
    pub total_steps: u64,
    /// Step of the newest checkpoint.
    pub checkpoint_step: Option<u64>,
    /// The adapter's digest, on success.
    pub digest: Option<Digest>,
}
