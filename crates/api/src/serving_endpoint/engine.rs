//! What an engine is: how it holds its base model, and what it may take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::enums::open_enum;

/// What [`EngineSpec::maximum_context_tokens`] is at least.
pub const MINIMUM_CONTEXT: u32 = 16;

/// What an engine is; a change rolls the engines one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EngineSpec {
    /// A compute profile of the installation: image, resources and place of the pod.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub compute_profile: String,
    /// What the base model is held in. None is as its files have it, F16 as F32. What a GGUF file holds
    /// in blocks stays so, and where a layer does not fit blocks of 256 inputs, Q4_K becomes Q8_0.
    pub quantization: BaseQuantization,
    /// Rows that share one forward pass.
    #[schemars(range(min = 1, max = 1024))]
    pub maximum_batch_size: u32,
    /// Adapter versions that are in memory at once, at least the two of a rollout; others are
    /// loaded on demand.
    #[schemars(range(min = 2, max = 10_000))]
    pub maximum_loaded_adapters: u32,
    /// Tokens that prompt and answer may have together; left out, what the model allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = MINIMUM_CONTEXT, max = 1_048_576))]
    pub maximum_context_tokens: Option<u32>,
    /// Memory of loaded adapters at most; left out, only their number counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_memory: Option<Amount>,
    /// Size of a volume on the node's own disk for copies of adapters, of which they fill seven eighths
    /// at most; left out, every load reads the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_cache: Option<Amount>,
    /// Memory of the KV cache at most, at least what one context takes; left out, 1Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_value_cache: Option<Amount>,
    /// What keys and values are held in on the CPU; left out, F32. F16 takes half of the memory and rounds them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_value_cache_format: Option<KeyValueCacheFormat>,
}

impl Default for EngineSpec {
    fn default() -> Self {
        Self {
            compute_profile: "default".to_owned(),
            quantization: BaseQuantization::default(),
            maximum_batch_size: 16,
            maximum_loaded_adapters: 32,
            maximum_context_tokens: None,
            adapter_memory: None,
            disk_cache: None,
            key_value_cache: None,
            key_value_cache_format: None,
        }
    }
}

open_enum! {
    /// What a served base model is held in.
    #[derive(Default)]
    pub enum BaseQuantization (spec) {
        /// As its files have it.
        #[default]
        AsStored = "None",
        /// 16 bits a weight.
        Bf16 = "BF16",
        /// 8.5 bits a weight.
        Q8_0 = "Q8_0",
        /// 4.5 bits a weight, in blocks of 32.
        Q4_0 = "Q4_0",
        /// 4.5 bits a weight, in blocks of 256.
        Q4K = "Q4_K",
    }
}

open_enum! {
    /// What keys and values are held in on the CPU.
    pub enum KeyValueCacheFormat (spec) {
        /// 32 bits a value, as they are computed.
        F32 = "F32",
        /// 16 bits a value.
        F16 = "F16",
    }
}
