//! The `config.json` of a model of the Llama family in Hugging Face's format.
//!
//! What differs between the families (biases, norms, the activation, how far attention looks
//! back, the rotary embedding) is asked here and nowhere else. Every key that would change the maths
//! and is not supported is refused by its name: a model that loads computes what its authors meant.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::category::Category;
use crate::config_keys::Keys;
use crate::lora::Module;
use crate::rope::Llama3Rope;

/// The file that describes the architecture.
pub const CONFIG_FILE: &str = "config.json";
/// The file that may hold more end-of-sequence tokens than [`CONFIG_FILE`].
pub const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// Why a model's configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The folder has no such file.
    #[error("{file} not found in {}: a base model is a Hugging Face folder", dir.display())]
    Missing {
        /// The file's name.
        file: &'static str,
        /// The folder that was read.
        dir: PathBuf,
    },
    /// The file exists and can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not a JSON object.
    #[error("{file} is not a JSON object")]
    Json {
        /// The file's name.
        file: &'static str,
        /// The cause.
        source: serde_json::Error,
    },
    /// The model is of a kind that this crate does not compute.
    #[error("{field} `{value}` is not supported; supported: {supported}")]
    Unsupported {
        /// The key in the file.
        field: &'static str,
        /// Its value.
        value: String,
        /// What may stand there.
        supported: &'static str,
    },
    /// A key is missing or has a value that makes no model.
    #[error("{field} in config.json {problem}")]
    Invalid {
        /// The key in the file.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl ConfigError {
    /// What the failure asks of the caller.
    pub fn category(&self) -> Category {
        match self {
            Self::Read { source, .. } => Category::of_io(source),
            Self::Missing { .. }
            | Self::Json { .. }
            | Self::Unsupported { .. }
            | Self::Invalid { .. } => Category::Invalid,
        }
    }
}

/// Whose layer a model has. All are pre-norm decoders with rotary embedding, grouped-query attention
/// and a gated feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 2, 3, 3.1 and 3.2 (Touvron et al. 2023; Grattafiori et al. 2024).
    Llama,
    /// Mistral (Jiang et al. 2023): every layer may have a sliding window.
    Mistral,
    /// Qwen 2 and 2.5 (Yang et al. 2024): biases on queries, keys and values.
    Qwen2,
    /// Qwen 3 (Yang et al. 2025): norms on every head's query and key.
    Qwen3,
    /// Gemma 3's text models (Gemma Team 2025): norms on both sides of attention and of the
    /// feed-forward layer, GELU, a scaled embedding, and a window with a rotary embedding of its own
    /// in most layers.
    Gemma3,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma3,
    ];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// The name in `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }
}

/// What the gate of a feed-forward layer goes through before it is multiplied (Shazeer 2020).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`, which makes SwiGLU.
    Silu,
    /// GELU as its authors approximate it by tanh (Hendrycks, Gimpel 2016), which makes GEGLU.
    GeluTanh,
}

/// Attention that looks back a fixed number of tokens (Beltagy et al. 2020).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Tokens that a query sees, itself included; at least one.
    pub tokens: usize,
    /// The layers that have it; the others see everything before them.
    pub layers: BTreeSet<usize>,
}

/// The shape and constants of a model of the Llama family.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Whose layer it is.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of transformer layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the root-mean-square norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary position embedding.
    pub rope_theta: f32,
    /// How the rotary embedding was stretched for longer sequences.
    pub rope_scaling: Option<Llama3Rope>,
    /// Base of the rotary embedding of layers with a window, which nothing stretches; none: as the
    /// others'.
    pub local_rope_theta: Option<f32>,
    /// What attention's scores are divided by the root of; none: [`Self::head_dim`].
    pub query_pre_attn_scalar: Option<usize>,
    /// Which layers look back how far; none: all see everything before them.
    pub sliding_window: Option<SlidingWindow>,
    /// Whether queries, keys, values and attention's output have biases. What a family has by itself
    /// (Qwen 2 on queries, keys and values) is not said here: see [`Self::has_bias`].
    pub attention_bias: bool,
    /// Whether the feed-forward layer's three products have biases.
    pub mlp_bias: bool,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Beginning of sequence.
    pub bos_token_id: Option<u32>,
    /// Ends of sequence, from `config.json` and `generation_config.json`, without repeats.
    pub eos_token_ids: Vec<u32>,
}

impl LlamaConfig {
    /// Reads `config.json` (and `generation_config.json` where there is one) of a model's folder.
    ///
    /// # Errors
    /// A missing or unreadable file, or a key that is not supported, each by name.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let config = read(dir, CONFIG_FILE)?.ok_or_else(|| ConfigError::Missing {
            file: CONFIG_FILE,
            dir: dir.to_path_buf(),
        })?;
        let generation = read(dir, GENERATION_CONFIG_FILE)?;
        Self::from_json(&config, generation.as_deref())
    }

    /// Parses the text of `config.json` and, where there is one, of `generation_config.json`.
    ///
    /// # Errors
    /// A key that is missing, out of range or not supported, by name.
    pub fn from_json(config: &str, generation: Option<&str>) -> Result<Self, ConfigError> {
        let keys = Keys::parse(config, CONFIG_FILE)?;
        let family = keys.family()?;
        keys.refuse_unsupported(family)?;
        let hidden_size = keys.size("hidden_size")?;
        let num_hidden_layers = keys.size("num_hidden_layers")?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let num_key_value_heads = keys.key_value_heads(family, num_attention_heads)?;
        let max_position_embeddings = keys.positions(family)?;
        let mut eos_token_ids = keys.token_ids("eos_token_id")?;
        if let Some(text) = generation {
            let generation = Keys::parse(text, GENERATION_CONFIG_FILE)?;
            eos_token_ids.extend(generation.token_ids("eos_token_id")?);
        }
        let mut seen = BTreeSet::new();
        eos_token_ids.retain(|id| seen.insert(*id));
        let rope = keys.rope(family, max_position_embeddings)?;
        Ok(Self {
            family,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim: keys.head_dim(family, hidden_size, num_attention_heads)?,
            vocab_size: keys.size("vocab_size")?,
            max_position_embeddings,
            rms_norm_eps: keys.positive("rms_norm_eps", 1e-6)? as f32,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            local_rope_theta: rope.local_theta,
            query_pre_attn_scalar: keys.query_pre_attn_scalar(family)?,
            sliding_window: keys.sliding_window(family, num_hidden_layers)?,
            attention_bias: family != Family::Qwen2 && keys.flag("attention_bias", false)?,
            mlp_bias: keys.flag("mlp_bias", false)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", family == Family::Gemma3)?,
            bos_token_id: keys.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids,
        })
    }

    /// The configuration as `config.json` that Hugging Face transformers reads, weights in bf16.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "architectures": [self.family.architecture()],
            "model_type": self.family.model_type(),
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_theta": shortest(self.rope_theta),
            "rope_scaling": self.rope_scaling.as_ref().map(Llama3Rope::to_json),
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_json(),
            "torch_dtype": "bfloat16",
            "use_cache": true,
        });
        let mut insert = |field: &str, what: Value| {
            if let Some(keys) = value.as_object_mut() {
                keys.insert(field.to_owned(), what);
            }
        };
        let window = self.sliding_window.as_ref().map(|window| window.tokens);
        if self.family != Family::Llama {
            insert("sliding_window", json!(window));
        }
        if matches!(self.family, Family::Qwen2 | Family::Qwen3) {
            insert("use_sliding_window", json!(window.is_some()));
        }
        if !matches!(self.family, Family::Llama | Family::Mistral) {
            let types = (0..self.num_hidden_layers).map(|layer| match self.window(layer) {
                Some(_) => "sliding_attention",
                None => "full_attention",
            });
            insert("layer_types", types.collect());
        }
        if self.family == Family::Gemma3 {
            let local = self.local_rope_theta.map(shortest);
            insert("hidden_activation", json!("gelu_pytorch_tanh"));
            insert("query_pre_attn_scalar", json!(self.query_pre_attn_scalar));
            insert("rope_local_base_freq", json!(local));
        } else {
            insert("hidden_act", json!("silu"));
        }
        value
    }

    /// The `generation_config.json` beside [`Self::to_json`].
    pub fn generation_json(&self) -> Value {
        json!({ "bos_token_id": self.bos_token_id, "eos_token_id": self.eos_json() })
    }

    fn eos_json(&self) -> Value {
        match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        }
    }

    /// Whether a module's product has a bias.
    pub fn has_bias(&self, module: Module) -> bool {
        match module {
            Module::QProj | Module::KProj | Module::VProj => {
                self.attention_bias || self.family == Family::Qwen2
            }
            Module::OProj => self.attention_bias,
            Module::GateProj | Module::UpProj | Module::DownProj => self.mlp_bias,
        }
    }

    /// Whether every head's query and key is normed before it is rotated.
    pub fn has_query_key_norm(&self) -> bool {
        matches!(self.family, Family::Qwen3 | Family::Gemma3)
    }

    /// Whether what attention and the feed-forward layer make is normed before it joins the residual
    /// stream.
    pub fn has_output_norms(&self) -> bool {
        self.family == Family::Gemma3
    }

    /// Whether norms multiply with one plus what is stored.
    pub fn has_norms_above_one(&self) -> bool {
        self.family == Family::Gemma3
    }

    /// What looked up embeddings are multiplied with, in f32 as everything is computed: transformers
    /// rounds it to the type that it computes in.
    pub fn embedding_scale(&self) -> Option<f32> {
        let is_scaled = self.family == Family::Gemma3;
        is_scaled.then(|| (self.hidden_size as f64).sqrt() as f32)
    }

    /// The feed-forward layer's activation.
    pub fn activation(&self) -> Activation {
        match self.family {
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => Activation::Silu,
            Family::Gemma3 => Activation::GeluTanh,
        }
    }

    /// What attention's scores are multiplied with: one over the root of the head's width, or of the
    /// number that the configuration has in its place.
    pub fn score_scale(&self) -> f32 {
        let divisor = self.query_pre_attn_scalar.unwrap_or(self.head_dim);
        (1.0 / (divisor as f64).sqrt()) as f32
    }

    /// How many tokens a layer's query sees, itself included; none: all before it.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let window = self.sliding_window.as_ref()?;
        window.layers.contains(&layer).then_some(window.tokens)
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Query heads that share one key head.
    pub fn group_size(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Number of parameters, a tied embedding counted once.
    pub fn parameters(&self) -> usize {
        crate::base::tensor_shapes(self)
            .values()
            .map(|shape| shape.iter().product::<usize>())
            .sum()
    }
}

/// The shortest decimal that reads back as this f32: `1e-5`, not `0.000009999999747378752`.
fn shortest(value: f32) -> Value {
    value
        .to_string()
        .parse::<f64>()
        .map_or(Value::Null, |v| json!(v))
}

fn read(dir: &Path, file: &str) -> Result<Option<String>, ConfigError> {
    let path = dir.join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Read { path, source }),
    }
}

#[cfg(test)]
mod tests;
