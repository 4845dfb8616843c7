//! The keys of a `config.json`, asked one by one and refused by name.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::config::{ConfigError, Family, SlidingWindow};
use crate::rope::Llama3Rope;

/// Keys of other models' layers, which change the maths wherever they stand.
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
    "query_pre_attn_scalar",
    "residual_multiplier",
];
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";
/// What transformers takes where the key is missing.
const DEFAULT_WINDOW: usize = 4096;
const DEFAULT_FIRST_WINDOW_LAYER: usize = 28;

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
        family
            .ok_or_else(|| unsupported("model_type", value, "`llama`, `mistral`, `qwen2`, `qwen3`"))
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
        if let Some(value) = self.get("hidden_act")
            && value != "silu"
            && value != "swish"
        {
            return Err(unsupported("hidden_act", value, "`silu`"));
        }
        for field in FOREIGN {
            if let Some(value) = self.get(field) {
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
            Family::Mistral => 131_072,
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

    /// Base and stretching of the rotary embedding: `rope_scaling` of transformers 4, or
    /// `rope_parameters` of transformers 5, which holds `rope_theta` too.
    pub fn rope(&self, positions: usize) -> Result<(f32, Option<Llama3Rope>), ConfigError> {
        let theta = |keys: &Self, default| keys.positive("rope_theta", default);
        let outer = theta(self, 10_000.0)?;
        let found = ["rope_scaling", "rope_parameters"]
            .into_iter()
            .filter_map(|field| Some((field, self.get(field)?)))
            .find(|(_, value)| value.as_object().is_none_or(|keys| !keys.is_empty()));
        let Some((field, value)) = found else {
            return Ok((outer as f32, None));
        };
        let refuse = || unsupported(field, value, "rope_type `default` or `llama3`");
        let keys = Self(value.as_object().ok_or_else(refuse)?.clone());
        // `type` is the older spelling; files that were converted have both.
        let kind = keys.get("rope_type").or_else(|| keys.get("type"));
        let known: &[&str] = match kind.map_or(Some("default"), Value::as_str) {
            Some("default") => &[],
            Some("llama3") => &[
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ],
            _ => return Err(refuse()),
        };
        let is_known = |name: &str, value: &Value| match name {
            "rope_type" | "type" | "rope_theta" => true,
            "partial_rotary_factor" => value.is_null() || value.as_f64() == Some(1.0),
            _ => value.is_null() || known.contains(&name),
        };
        if !keys.0.iter().all(|(name, value)| is_known(name, value)) {
            return Err(refuse());
        }
        let inner = theta(&keys, outer)?;
        let scaling = if known.is_empty() {
            None
        } else {
            Some(keys.llama3(self, positions)?)
        };
        Ok((inner as f32, scaling))
    }

    /// `original_max_position_embeddings` may stand beside the object, and else is the context.
    fn llama3(&self, outer: &Self, positions: usize) -> Result<Llama3Rope, ConfigError> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        let required = |field: &'static str| match self.get(field) {
            Some(_) => self.positive(field, 1.0),
            None => Err(invalid(
                field,
                "is missing, and rope_type `llama3` needs it",
            )),
        };
        let original = match outer.optional_size(ORIGINAL)? {
            Some(original) => Some(original),
            None => self.optional_size(ORIGINAL)?,
        };
        let rope = Llama3Rope {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_positions: original.unwrap_or(positions),
        };
        if rope.high_freq_factor > rope.low_freq_factor {
            return Ok(rope);
        }
        let problem = format!(
            "is {}, must be above low_freq_factor {}",
            rope.high_freq_factor, rope.low_freq_factor
        );
        Err(invalid("high_freq_factor", problem))
    }

    /// Which layers look back how far.
    pub fn sliding_window(
        &self,
        family: Family,
        layers: usize,
    ) -> Result<Option<SlidingWindow>, ConfigError> {
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
            Family::Qwen2 | Family::Qwen3 => {
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
