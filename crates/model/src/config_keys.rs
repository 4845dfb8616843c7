//! The keys of a `config.json`, asked one by one and refused by name.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::config::{ConfigError, Family, SlidingWindow};

mod rope;

/// Keys of other models' layers, which change the maths wherever they stand. Gemma has one of them.
const FOREIGN: [&str; 11] = [
    "attention_chunk_size",
    "attention_multiplier",
    "attn_logit_softcapping",
    "compression_config",
    "embedding_multiplier",
    "final_logit_softcapping",
    "logits_scaling",
    "no_rope_layers",
    "quantization_config",
    QUERY_SCALAR,
    "residual_multiplier",
];
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";
const QUERY_SCALAR: &str = "query_pre_attn_scalar";
/// What transformers takes where the key is missing.
const DEFAULT_WINDOW: usize = 4096;
const DEFAULT_FIRST_WINDOW_LAYER: usize = 28;
const DEFAULT_WINDOW_PATTERN: usize = 6;
const DEFAULT_QUERY_SCALAR: usize = 256;

/// A parsed object, asked by key; `null` counts as absent, as in transformers.
pub(crate) struct Keys(Map<String, Value>);

impl Keys {
    pub fn parse(text: &str, file: &'static str) -> Result<Self, ConfigError> {
        serde_json::from_str(text)
            .map(Self)
            .map_err(|source| ConfigError::Json { file, source })
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn is_null(&self, field: &str) -> bool {
        self.0.get(field).is_some_and(Value::is_null)
    }

    /// Whose layer the model has.
    pub fn family(&self) -> Result<Family, ConfigError> {
        let value = self
            .get("model_type")
            .ok_or_else(|| invalid("model_type", "is missing"))?;
        let family = Family::ALL
            .into_iter()
            .find(|family| value == family.model_type());
        let supported = "`llama`, `mistral`, `qwen2`, `qwen3`, `gemma3_text`";
        family.ok_or_else(|| unsupported("model_type", value, supported))
    }

    /// What no family of ours has, or not this one.
    pub fn refuse_unsupported(&self, family: Family) -> Result<(), ConfigError> {
        if let Some(list) = self.get("architectures")
            && list
                .as_array()
                .is_none_or(|names| names.iter().any(|name| name != family.architecture()))
        {
            let supported = "the model_type's own causal language model";
            return Err(unsupported("architectures", list, supported));
        }
        let is_gemma = family == Family::Gemma3;
        let (field, supported) = if is_gemma {
            ("hidden_activation", "`gelu_pytorch_tanh`")
        } else {
            ("hidden_act", "`silu`")
        };
        let names: &[&str] = if is_gemma {
            &["gelu_pytorch_tanh"]
        } else {
            &["silu", "swish"]
        };
        if let Some(value) = self.get(field)
            && !names.iter().any(|name| value == name)
        {
            return Err(unsupported(field, value, supported));
        }
        for field in FOREIGN {
            if let Some(value) = self.get(field)
                && !(is_gemma && field == QUERY_SCALAR)
            {
                return Err(unsupported(field, value, "none"));
            }
        }
        let is_other = |field: &str, neutral: f64| {
            self.get(field)
                .filter(|value| value.as_f64() != Some(neutral))
        };
        if let Some(value) = is_other("partial_rotary_factor", 1.0) {
            return Err(unsupported("partial_rotary_factor", value, "`1.0`"));
        }
        if let Some(value) = is_other("attention_dropout", 0.0) {
            return Err(unsupported("attention_dropout", value, "`0.0`"));
        }
        // transformers builds these layers without them, whatever the file says.
        let without: &[&'static str] = match family {
            Family::Llama => &[],
            Family::Mistral => &["attention_bias", "mlp_bias"],
            Family::Qwen2 | Family::Qwen3 => &["mlp_bias"],
            // The second one is for encoders, which see what comes after.
            Family::Gemma3 => &["mlp_bias", "use_bidirectional_attention"],
        };
        for &field in without {
            if self.flag(field, false)? {
                return Err(unsupported(field, &Value::Bool(true), "`false`"));
            }
        }
        if let Some(value) = self.get("torch_dtype").or_else(|| self.get("dtype"))
            && !["float32", "bfloat16", "float16"]
                .iter()
                .any(|dtype| value == dtype)
        {
            let supported = "`float32`, `bfloat16`, `float16`";
            return Err(unsupported("torch_dtype", value, supported));
        }
        Ok(())
    }

    /// Key and value heads: as many as query heads where the file says `null`.
    pub fn key_value_heads(&self, family: Family, heads: usize) -> Result<usize, ConfigError> {
        let field = "num_key_value_heads";
        let default = match family {
            _ if self.is_null(field) => heads,
            Family::Llama => heads,
            Family::Mistral => 8,
            Family::Qwen2 | Family::Qwen3 => 32,
            Family::Gemma3 => 4,
        };
        let count = self.optional_size(field)?.unwrap_or(default);
        if heads.is_multiple_of(count) {
            return Ok(count);
        }
        let problem = format!("is {count}, must divide num_attention_heads {heads}");
        Err(invalid(field, problem))
    }

    /// Longest sequence in tokens.
    pub fn positions(&self, family: Family) -> Result<usize, ConfigError> {
        let default = match family {
            Family::Llama => 2048,
            Family::Mistral | Family::Gemma3 => 131_072,
            Family::Qwen2 | Family::Qwen3 => 32_768,
        };
        let positions = self.optional_size("max_position_embeddings")?;
        Ok(positions.unwrap_or(default))
    }

    /// Width of one head, which is even.
    pub fn head_dim(
        &self,
        family: Family,
        hidden: usize,
        heads: usize,
    ) -> Result<usize, ConfigError> {
        let dim = match self.optional_size("head_dim")? {
            Some(dim) => dim,
            None if family == Family::Qwen3 => 128,
            None if family == Family::Gemma3 => 256,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(invalid(
                    "head_dim",
                    "is missing, and hidden_size is not a multiple of num_attention_heads",
                ));
            }
        };
        if dim.is_multiple_of(2) {
            Ok(dim)
        } else {
            Err(invalid("head_dim", format!("is {dim}, must be even")))
        }
    }

    /// What scores are divided by the root of, where that is not the head's width.
    pub fn query_pre_attn_scalar(&self, family: Family) -> Result<Option<usize>, ConfigError> {
        if family != Family::Gemma3 {
            return Ok(None);
        }
        let scalar = self.optional_size(QUERY_SCALAR)?;
        Ok(Some(scalar.unwrap_or(DEFAULT_QUERY_SCALAR)))
    }

    /// Which layers look back how far.
    pub fn sliding_window(
        &self,
        family: Family,
        layers: usize,
    ) -> Result<Option<SlidingWindow>, ConfigError> {
        if family == Family::Gemma3 {
            return self.window_pattern(layers);
        }
        let field = "sliding_window";
        let tokens = match self.optional_size(field)? {
            Some(tokens) => Some(tokens),
            None if self.is_null(field) => None,
            None => Some(DEFAULT_WINDOW),
        };
        let (tokens, first) = match family {
            Family::Llama => {
                if let Some(value) = self.get(field) {
                    return Err(unsupported(field, value, "none"));
                }
                (None, 0)
            }
            Family::Mistral => (tokens, 0),
            Family::Qwen2 | Family::Qwen3 | Family::Gemma3 => {
                let is_used = self.flag("use_sliding_window", false)?;
                let first = self.first_window_layer()?;
                (tokens.filter(|_| is_used), first)
            }
        };
        let sliding: BTreeSet<usize> = match tokens {
            Some(_) => (first.min(layers)..layers).collect(),
            None => BTreeSet::new(),
        };
        let sliding = match self.layer_types(layers)? {
            // Only Qwen asks this list; for the others it can only say what is so.
            Some(listed) if is_qwen(family) && tokens.is_some() => listed,
            Some(listed) if listed != sliding => {
                let value = self.get("layer_types").unwrap_or(&Value::Null);
                let supported = "what the family and sliding_window say";
                return Err(unsupported("layer_types", value, supported));
            }
            _ => sliding,
        };
        Ok(tokens
            .filter(|_| !sliding.is_empty())
            .map(|tokens| SlidingWindow {
                tokens,
                layers: sliding,
            }))
    }

    /// Gemma's: the layers that are listed, or all but every sixth.
    fn window_pattern(&self, layers: usize) -> Result<Option<SlidingWindow>, ConfigError> {
        let field = "sliding_window";
        let every = self.optional_size("sliding_window_pattern")?;
        let every = every.unwrap_or(DEFAULT_WINDOW_PATTERN);
        let sliding = match self.layer_types(layers)? {
            Some(listed) => listed,
            None => (0..layers)
                .filter(|layer| !(layer + 1).is_multiple_of(every))
                .collect(),
        };
        if sliding.is_empty() {
            return Ok(None);
        }
        let tokens = match self.optional_size(field)? {
            Some(tokens) => tokens,
            None if self.is_null(field) => {
                return Err(invalid(field, "is missing, and some layers have it"));
            }
            None => DEFAULT_WINDOW,
        };
        Ok(Some(SlidingWindow {
            tokens,
            layers: sliding,
        }))
    }

    /// `max_window_layers`: layers from this one on have the window; 0 is fine.
    fn first_window_layer(&self) -> Result<usize, ConfigError> {
        let field = "max_window_layers";
        match self.get(field) {
            None => Ok(DEFAULT_FIRST_WINDOW_LAYER),
            Some(value) => value
                .as_u64()
                .and_then(|layer| usize::try_from(layer).ok())
                .ok_or_else(|| invalid(field, format!("is {value}, must be a whole number"))),
        }
    }

    /// The layers that `layer_types` lists as sliding.
    fn layer_types(&self, layers: usize) -> Result<Option<BTreeSet<usize>>, ConfigError> {
        let field = "layer_types";
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let types = value.as_array().map_or(&[][..], Vec::as_slice);
        if types.len() != layers {
            let problem = format!("is {value}, must list {layers} layers");
            return Err(invalid(field, problem));
        }
        if types.iter().any(|kind| kind != FULL && kind != SLIDING) {
            let supported = "`full_attention` and `sliding_attention`";
            return Err(unsupported(field, value, supported));
        }
        let sliding = types
            .iter()
            .enumerate()
            .filter(|(_, kind)| *kind == SLIDING);
        Ok(Some(sliding.map(|(layer, _)| layer).collect()))
    }

    pub fn optional_size(&self, field: &'static str) -> Result<Option<usize>, ConfigError> {
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

    pub fn size(&self, field: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(field)?
            .ok_or_else(|| invalid(field, "is missing"))
    }

    pub fn positive(&self, field: &'static str, default: f64) -> Result<f64, ConfigError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) if number > 0.0 && number.is_finite() => Ok(number),
                _ => Err(invalid(
                    field,
                    format!("is {value}, must be a positive number"),
                )),
            },
        }
    }

    pub fn flag(&self, field: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| invalid(field, format!("is {value}, must be true or false"))),
        }
    }

    /// One id or a list of ids.
    pub fn token_ids(&self, field: &'static str) -> Result<Vec<u32>, ConfigError> {
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

fn is_qwen(family: Family) -> bool {
    matches!(family, Family::Qwen2 | Family::Qwen3)
}

fn invalid(field: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid {
        field,
        problem: problem.into(),
    }
}

fn unsupported(field: &'static str, value: &Value, supported: &'static str) -> ConfigError {
    let value = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    ConfigError::Unsupported {
        field,
        value,
        supported,
    }
}
