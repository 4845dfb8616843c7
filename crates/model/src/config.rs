//! The `config.json` of a Llama model in Hugging Face's format.
//!
//! Every key that would change the maths and is not supported is refused by its name: a model that
//! loads computes what its authors meant.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::category::Category;

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

/// The shape and constants of a Llama model (Touvron et al. 2023; grouped-query attention as in
/// Llama 2 and 3).
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
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
        let keys = Keys(object(config, CONFIG_FILE)?);
        keys.refuse_unsupported()?;
        let hidden_size = keys.size("hidden_size")?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let num_key_value_heads = keys
            .optional_size("num_key_value_heads")?
            .unwrap_or(num_attention_heads);
        let head_dim = match keys.optional_size("head_dim")? {
            Some(dim) => dim,
            None if hidden_size.is_multiple_of(num_attention_heads) => {
                hidden_size / num_attention_heads
            }
            None => {
                return Err(invalid(
                    "head_dim",
                    "is missing, and hidden_size is not a multiple of num_attention_heads",
                ));
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(invalid("head_dim", format!("is {head_dim}, must be even")));
        }
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(invalid(
                "num_key_value_heads",
                format!(
                    "is {num_key_value_heads}, must divide num_attention_heads {num_attention_heads}"
                ),
            ));
        }
        let mut eos_token_ids = keys.token_ids("eos_token_id")?;
        if let Some(text) = generation {
            let generation = Keys(object(text, GENERATION_CONFIG_FILE)?);
            eos_token_ids.extend(generation.token_ids("eos_token_id")?);
        }
        let mut seen = std::collections::BTreeSet::new();
        eos_token_ids.retain(|id| seen.insert(*id));
        Ok(Self {
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers: keys.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: keys.size("vocab_size")?,
            max_position_embeddings: keys
                .optional_size("max_position_embeddings")?
                .unwrap_or(2048),
            rms_norm_eps: keys.positive("rms_norm_eps", 1e-6)?,
            rope_theta: keys.rope_theta()?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            bos_token_id: keys.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids,
        })
    }

    /// The configuration as `config.json` that Hugging Face transformers reads, weights in bf16.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
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
            "rope_scaling": null,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_json(),
            "torch_dtype": "bfloat16",
            "use_cache": true,
        })
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
        let attention =
            2 * self.query_width() * self.hidden_size + 2 * self.key_width() * self.hidden_size;
        let layer =
            attention + 3 * self.intermediate_size * self.hidden_size + 2 * self.hidden_size;
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers * layer
            + embeddings * self.vocab_size * self.hidden_size
            + self.hidden_size
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

fn object(text: &str, file: &'static str) -> Result<Map<String, Value>, ConfigError> {
    serde_json::from_str(text).map_err(|source| ConfigError::Json { file, source })
}

fn invalid(field: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid {
        field,
        problem: problem.into(),
    }
}

/// A parsed object, asked by key; `null` counts as absent, as in transformers.
struct Keys(Map<String, Value>);

impl Keys {
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        const LLAMA: &str = "model_type `llama` with architecture `LlamaForCausalLM`";
        let refuse = |field, value: &Value, supported| {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            Err(ConfigError::Unsupported {
                field,
                value,
                supported,
            })
        };
        match self.get("model_type") {
            Some(value) if value == "llama" => {}
            Some(value) => return refuse("model_type", value, LLAMA),
            None => return Err(invalid("model_type", "is missing")),
        }
        if let Some(list) = self.get("architectures")
            && list
                .as_array()
                .is_none_or(|names| names.iter().any(|name| name != "LlamaForCausalLM"))
        {
            return refuse("architectures", list, LLAMA);
        }
        if let Some(value) = self.get("hidden_act").filter(|value| *value != "silu") {
            return refuse("hidden_act", value, "`silu`");
        }
        for field in ["rope_scaling", "rope_parameters"] {
            if let Some(value) = self.get(field).filter(|value| !is_default_rope(value)) {
                return refuse(field, value, "none (plain rotary embedding)");
            }
        }
        for field in ["attention_bias", "mlp_bias"] {
            if self.flag(field, false)? {
                return refuse(field, &Value::Bool(true), "`false`");
            }
        }
        for field in ["quantization_config", "sliding_window"] {
            if let Some(value) = self.get(field) {
                return refuse(field, value, "none");
            }
        }
        if let Some(value) = self
            .get("partial_rotary_factor")
            .filter(|v| v.as_f64() != Some(1.0))
        {
            return refuse("partial_rotary_factor", value, "`1.0`");
        }
        if let Some(value) = self.get("torch_dtype").or_else(|| self.get("dtype"))
            && !["float32", "bfloat16"].iter().any(|dtype| value == dtype)
        {
            return refuse("torch_dtype", value, "`float32`, `bfloat16`");
        }
        Ok(())
    }

    fn optional_size(&self, field: &'static str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|v| u32::try_from(v).ok()) {
            Some(size) if size > 0 => Ok(Some(size as usize)),
            _ => Err(invalid(
                field,
                format!("is {value}, must be a positive 32-bit integer"),
            )),
        }
    }

    fn size(&self, field: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(field)?
            .ok_or_else(|| invalid(field, "is missing"))
    }

    fn positive(&self, field: &'static str, default: f32) -> Result<f32, ConfigError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) if number > 0.0 && number.is_finite() => Ok(number as f32),
                _ => Err(invalid(
                    field,
                    format!("is {value}, must be a positive number"),
                )),
            },
        }
    }

    /// transformers 5 moved `rope_theta` into `rope_parameters`.
    fn rope_theta(&self) -> Result<f32, ConfigError> {
        match self.get("rope_parameters").and_then(Value::as_object) {
            Some(inner) if inner.contains_key("rope_theta") => {
                Keys(inner.clone()).positive("rope_theta", 10_000.0)
            }
            _ => self.positive("rope_theta", 10_000.0),
        }
    }

    fn flag(&self, field: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| invalid(field, format!("is {value}, must be true or false"))),
        }
    }

    /// One id or a list of ids.
    fn token_ids(&self, field: &'static str) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(Vec::new());
        };
        let ids = match value {
            Value::Array(list) => list.iter().map(Value::as_u64).collect::<Option<Vec<_>>>(),
            one => one.as_u64().map(|id| vec![id]),
        };
        ids.and_then(|ids| ids.into_iter().map(|id| u32::try_from(id).ok()).collect())
            .ok_or_else(|| {
                invalid(
                    field,
                    format!("is {value}, must be a token id or a list of them"),
                )
            })
    }
}

fn is_default_rope(value: &Value) -> bool {
    value.as_object().is_some_and(|keys| {
        keys.iter().all(|(key, value)| match key.as_str() {
            "rope_type" | "type" => value == "default",
            "rope_theta" => true,
            _ => value.is_null(),
        })
    })
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

    fn with(field: &str, value: Value) -> String {
        let mut config = minimal();
        config[field] = value;
        LlamaConfig::from_json(&config.to_string(), None)
            .unwrap_err()
            .to_string()
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
    fn what_is_not_supported_is_named() {
        assert_eq!(
            with("model_type", json!("gpt2")),
            "model_type `gpt2` is not supported; supported: model_type `llama` with architecture `LlamaForCausalLM`"
        );
        for (field, value) in [
            (
                "rope_scaling",
                json!({"rope_type": "llama3", "factor": 8.0}),
            ),
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("mlp_bias", json!(true)),
            ("architectures", json!(["LlamaForSequenceClassification"])),
            ("quantization_config", json!({"bits": 4})),
            ("torch_dtype", json!("float16")),
        ] {
            let text = with(field, value);
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
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = LlamaConfig::load(dir.path()).unwrap_err().to_string();
        assert!(text.starts_with("config.json not found in "), "{text}");
    }
}
