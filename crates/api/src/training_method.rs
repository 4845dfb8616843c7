//! What a TrainingRun optimises and trains.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decimal::{Decimal, UNSIGNED_PATTERN};
use crate::enums::open_enum;
use crate::reference::ObjectReference;
use crate::schema::{bounds, rules};

/// What is optimised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("!has(self.beta) || self.type == 'DPO'", "beta belongs to type DPO: leave it out"),
])))]
pub struct Objective {
    /// SFT learns from examples, DPO from pairs of a better and a worse answer, which are rows of a
    /// Dataset of format Preference.
    #[serde(rename = "type")]
    pub type_: ObjectiveType,
    /// How firmly DPO holds the model near its reference, the starting adapter or the bare base; 0.1
    /// where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "pattern" = UNSIGNED_PATTERN,
        "x-kubernetes-validations" = bounds(&[(
            "double(self) > 0.0 && double(self) <= 100.0",
            "beta is above 0 and at most 100",
        )]),
    ))]
    pub beta: Option<Decimal>,
}

open_enum! {
    /// What is optimised.
    #[derive(Default)]
    pub enum ObjectiveType (spec) {
        /// The likelihood of what is to be learned.
        #[default]
        Sft = "SFT",
        /// Direct preference optimisation (Rafailov et al. 2023).
        Dpo = "DPO",
    }
}

/// What is trained.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    (
        "(self.type == 'QLoRA') == has(self.quantization)",
        "quantization belongs to type QLoRA and is needed there",
    ),
    (
        "(self.type == 'Evaluate') == has(self.subject)",
        "subject belongs to type Evaluate and is needed there",
    ),
    (
        "(self.type == 'Full') == has(self.output)",
        "output belongs to type Full and is needed there",
    ),
])))]
pub struct Method {
    /// LoRA, or QLoRA, which trains the same deltas beside linear layers that are quantised, or Full, which
    /// trains every weight and writes a model, or Evaluate, which trains nothing and scores a version that
    /// is there.
    #[serde(rename = "type")]
    pub type_: MethodType,
    /// Shape of the low-rank deltas.
    pub lora: LoraMethod,
    /// What QLoRA quantises the frozen base to on load, in block formats of GGUF. Where a layer does
    /// not fit blocks of 256 inputs, Q4_K becomes Q8_0. What a GGUF file holds quantised stays so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// What Evaluate scores, beside the bare base on the same rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
    /// Where Full writes the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<ModelOutput>,
}

/// A folder that a model is written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelOutput {
    /// The folder, as `pvc://CLAIM/PATH`, in which nothing may be yet; the claim is mounted to be written
    /// to. It can be the base model of runs, adapters and endpoints.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^pvc://[^/]+/."))]
    pub uri: String,
}

/// A version that is scored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// The adapter.
    pub adapter_ref: ObjectReference,
    /// Its version.
    #[schemars(range(min = 1))]
    pub version: u32,
}

open_enum! {
    /// What is trained.
    #[derive(Default)]
    pub enum MethodType (spec) {
        /// Low-rank deltas beside frozen linear layers (Hu et al. 2021).
        #[default]
        LoRA = "LoRA",
        /// LoRA on a base that stays quantised (Dettmers et al. 2023), in GGUF's block formats
        /// instead of NF4.
        QLoRA = "QLoRA",
        /// Every weight.
        Full = "Full",
        /// Nothing: a version that is there is scored.
        Evaluate = "Evaluate",
    }
}

open_enum! {
    /// A block format of GGUF.
    pub enum Quantization (spec) {
        /// 8.5 bits a weight.
        Q8_0 = "Q8_0",
        /// 4.5 bits a weight, in blocks of 32.
        Q4_0 = "Q4_0",
        /// 4.5 bits a weight, in blocks of 256.
        Q4K = "Q4_K",
    }
}

/// Shape of the low-rank deltas: `W x + (alpha / rank) B A x`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LoraMethod {
    /// Inner dimension of A and B.
    #[schemars(range(min = 1, max = 1024))]
    pub rank: u32,
    /// Numerator of the scaling alpha / rank.
    #[schemars(extend(
        "pattern" = UNSIGNED_PATTERN,
        "x-kubernetes-validations" = bounds(&[(
            "double(self) > 0.0 && double(self) <= 65536.0",
            "alpha is above 0 and at most 65536",
        )]),
    ))]
    pub alpha: Decimal,
    /// Probability with which an input of A is dropped in training; 0 under objective DPO.
    #[schemars(extend(
        "pattern" = UNSIGNED_PATTERN,
        "x-kubernetes-validations" = bounds(&[("double(self) < 1.0", "dropout is at least 0 and below 1")]),
    ))]
    pub dropout: Decimal,
    /// Linear layers that get a delta, by the last part of their name.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9_]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub target_modules: Vec<String>,
}

impl Default for LoraMethod {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: Decimal::from("32"),
            dropout: Decimal::from("0"),
            target_modules: [
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }
}
