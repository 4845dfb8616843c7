//! The `config.json` of a model of the Llama family in Hugging Face's format.
//!
//! What differs between the families (biases, norms of queries and keys, how far attention looks
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
/// and SwiGLU.
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
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The name in `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }
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
        let (rope_theta, rope_scaling) = keys.rope(max_position_embeddings)?;
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
            rope_theta,
            rope_scaling,
            sliding_window: keys.sliding_window(family, num_hidden_layers)?,
            attention_bias: family != Family::Qwen2 && keys.flag("attention_bias", false)?,
            mlp_bias: keys.flag("mlp_bias", false)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
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
            "hidden_act": "silu",
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
        if let (Some(keys), true) = (value.as_object_mut(), self.family != Family::Llama) {
            let window = self.sliding_window.as_ref().map(|window| window.tokens);
            keys.insert("sliding_window".to_owned(), json!(window));
            if matches!(self.family, Family::Qwen2 | Family::Qwen3) {
                keys.insert("use_sliding_window".to_owned(), json!(window.is_some()));
                let types = (0..self.num_hidden_layers).map(|layer| match self.window(layer) {
                    Some(_) => "sliding_attention",
                    None => "full_attention",
                });
                keys.insert("layer_types".to_owned(), types.collect());
            }
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
        self.family == Family::Qwen3
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
mod tests {
    use super::*;

    fn minimal() -> Value {
        json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
            "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 300, "rms_norm_eps": 1e-5, "eos_token_id": [2, 3]
        })
    }

    /// [`minimal`] of a family with other values of some keys.
    fn changed(family: Family, changes: Value) -> Result<LlamaConfig, ConfigError> {
        let mut config = minimal();
        config["model_type"] = family.model_type().into();
        config["architectures"] = json!([family.architecture()]);
        for (field, value) in changes.as_object().unwrap() {
            config[field] = value.clone();
        }
        LlamaConfig::from_json(&config.to_string(), None)
    }

    fn refused(family: Family, changes: Value) -> String {
        changed(family, changes).unwrap_err().to_string()
    }

    fn with(field: &str, value: Value) -> String {
        refused(Family::Llama, json!({field: value}))
    }

    #[test]
    fn reads_sizes_and_joins_end_tokens() {
        let config = LlamaConfig::from_json(
            &minimal().to_string(),
            Some(r#"{"eos_token_id": 3, "bos_token_id": 1}"#),
        )
        .unwrap();
        assert_eq!(config.head_dim, 16);
        assert_eq!(config.eos_token_ids, [2, 3]);
        assert_eq!(config.group_size(), 2);
        assert!(!config.tie_word_embeddings);
        let again = LlamaConfig::from_json(&config.to_json().to_string(), None).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn every_family_reads_back_what_it_writes() {
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512
        });
        for (family, changes) in [
            (
                Family::Llama,
                json!({"rope_scaling": llama3, "attention_bias": true, "mlp_bias": true}),
            ),
            (Family::Mistral, json!({"sliding_window": 7, "head_dim": 8})),
            (Family::Mistral, json!({"sliding_window": null})),
            (Family::Qwen2, json!({"tie_word_embeddings": true})),
            (
                Family::Qwen2,
                json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 1}),
            ),
            (
                Family::Qwen3,
                json!({"head_dim": 24, "attention_bias": true}),
            ),
        ] {
            let config = changed(family, changes).unwrap();
            let again = LlamaConfig::from_json(&config.to_json().to_string(), None).unwrap();
            assert_eq!(again, config);
            assert_eq!(again.family, family);
        }
    }

    #[test]
    fn families_differ_in_biases_norms_and_windows() {
        let llama = changed(Family::Llama, json!({})).unwrap();
        assert!(
            Module::ALL
                .into_iter()
                .all(|module| !llama.has_bias(module))
        );
        assert!(!llama.has_query_key_norm());
        let llama = changed(Family::Llama, json!({"attention_bias": true})).unwrap();
        assert!(llama.has_bias(Module::OProj) && !llama.has_bias(Module::UpProj));

        let mistral = changed(Family::Mistral, json!({"sliding_window": 5})).unwrap();
        assert_eq!((mistral.window(0), mistral.window(1)), (Some(5), Some(5)));

        let qwen2 = changed(Family::Qwen2, json!({"sliding_window": 5})).unwrap();
        assert!(qwen2.has_bias(Module::VProj) && !qwen2.has_bias(Module::OProj));
        assert_eq!(qwen2.window(0), None, "use_sliding_window is false");
        let types = json!(["sliding_attention", "full_attention"]);
        let changes = json!({
            "sliding_window": 5, "use_sliding_window": true, "max_window_layers": 2,
            "layer_types": types
        });
        let qwen2 = changed(Family::Qwen2, changes).unwrap();
        assert_eq!((qwen2.window(0), qwen2.window(1)), (Some(5), None));

        let qwen3 = changed(Family::Qwen3, json!({"head_dim": 32})).unwrap();
        assert!(qwen3.has_query_key_norm() && !qwen3.has_bias(Module::QProj));
        assert_eq!((qwen3.head_dim, qwen3.query_width()), (32, 128));
    }

    /// What transformers takes where a key is missing; a hand-written file may leave it out.
    #[test]
    fn absent_keys_have_the_familys_defaults() {
        let mut config = minimal();
        config["model_type"] = "mistral".into();
        config["architectures"] = Value::Null;
        config["num_attention_heads"] = 16.into();
        config
            .as_object_mut()
            .unwrap()
            .remove("num_key_value_heads");
        let mistral = LlamaConfig::from_json(&config.to_string(), None).unwrap();
        assert_eq!(mistral.num_key_value_heads, 8);
        assert_eq!(mistral.max_position_embeddings, 131_072);
        assert_eq!(mistral.window(1), Some(4096));
        config["num_key_value_heads"] = Value::Null;
        let mistral = LlamaConfig::from_json(&config.to_string(), None).unwrap();
        assert_eq!(mistral.num_key_value_heads, 16);
        let qwen3 = changed(Family::Qwen3, json!({})).unwrap();
        assert_eq!(
            (qwen3.head_dim, qwen3.max_position_embeddings),
            (128, 32_768)
        );
    }

    #[test]
    fn both_spellings_of_llama3_and_the_newer_key_are_one_rope() {
        let scaling = |kind: &str| {
            json!({
                kind: "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192
            })
        };
        let older = changed(
            Family::Llama,
            json!({"rope_scaling": scaling("type"), "rope_theta": 500_000.0}),
        )
        .unwrap();
        let old = changed(
            Family::Llama,
            json!({"rope_scaling": scaling("rope_type"), "rope_theta": 500_000.0}),
        )
        .unwrap();
        let mut parameters = scaling("rope_type");
        parameters["rope_theta"] = 500_000.0.into();
        let new = changed(Family::Llama, json!({"rope_parameters": parameters})).unwrap();
        assert_eq!(older, old);
        assert_eq!(old, new);
        let rope = new.rope_scaling.unwrap();
        assert_eq!((rope.factor, rope.original_positions), (8.0, 8192));
        assert_eq!(new.rope_theta, 500_000.0);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        assert_eq!(
            with("model_type", json!("gpt2")),
            "model_type `gpt2` is not supported; supported: `llama`, `mistral`, `qwen2`, `qwen3`"
        );
        for (field, value) in [
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 8.0})),
            ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
            ("rope_parameters", json!({"mrope_section": [1, 2, 3]})),
            ("hidden_act", json!("gelu")),
            ("architectures", json!(["LlamaForSequenceClassification"])),
            ("architectures", json!(["MistralForCausalLM"])),
            ("quantization_config", json!({"bits": 4})),
            ("torch_dtype", json!("float8_e4m3fn")),
            ("attention_dropout", json!(0.1)),
            ("attn_logit_softcapping", json!(50.0)),
            ("partial_rotary_factor", json!(0.5)),
            ("sliding_window", json!(4096)),
            (
                "layer_types",
                json!(["full_attention", "sliding_attention"]),
            ),
        ] {
            let text = with(field, value);
            assert!(
                text.starts_with(field) && text.contains("not supported"),
                "{text}"
            );
        }
        for (family, field, value) in [
            (Family::Mistral, "attention_bias", json!(true)),
            (
                Family::Mistral,
                "layer_types",
                json!(["full_attention", "full_attention"]),
            ),
            (Family::Qwen2, "mlp_bias", json!(true)),
            (
                Family::Qwen3,
                "layer_types",
                json!(["chunked_attention", "full_attention"]),
            ),
        ] {
            let text = refused(family, json!({field: value}));
            assert!(
                text.starts_with(field) && text.contains("not supported"),
                "{text}"
            );
        }
        assert!(
            with("num_key_value_heads", json!(3)).contains("must divide num_attention_heads 4")
        );
        assert!(with("hidden_size", json!(0)).contains("hidden_size in config.json is 0"));
        assert!(with("vocab_size", Value::Null).contains("vocab_size in config.json is missing"));
        assert!(
            with(
                "rope_scaling",
                json!({"rope_type": "llama3", "factor": 8.0})
            )
            .contains("low_freq_factor in config.json is missing")
        );
    }

    #[test]
    fn half_precision_and_the_activations_second_name_are_read() {
        let changes = json!({"torch_dtype": "float16", "hidden_act": "swish"});
        assert!(changed(Family::Llama, changes).is_ok());
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = LlamaConfig::load(dir.path()).unwrap_err().to_string();
        assert!(text.starts_with("config.json not found in "), "{text}");
    }
}
