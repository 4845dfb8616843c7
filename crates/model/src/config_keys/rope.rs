//! What a `config.json` says of the rotary embedding.

use serde_json::Value;

use super::{FULL, Keys, SLIDING, invalid, unsupported};
use crate::config::{ConfigError, Family};
use crate::rope::Llama3Rope;

/// Bases and stretching.
pub(crate) struct Rope {
    pub theta: f32,
    pub scaling: Option<Llama3Rope>,
    /// The base in layers with a window, where they have one of their own.
    pub local_theta: Option<f32>,
}

impl Keys {
    /// `rope_theta` with `rope_scaling` of transformers 4, or `rope_parameters` of transformers 5, which
    /// holds the base too; Gemma's holds an object for each kind of layer.
    pub fn rope(&self, family: Family, positions: usize) -> Result<Rope, ConfigError> {
        let is_gemma = family == Family::Gemma3;
        let theta = self.positive("rope_theta", if is_gemma { 1e6 } else { 1e4 })?;
        let local = if is_gemma {
            Some(self.positive("rope_local_base_freq", 1e4)?)
        } else {
            None
        };
        let of = |(field, value)| match (field, local) {
            ("rope_parameters", Some(local)) => {
                self.rope_of_kinds(value, (theta, local), positions)
            }
            _ => {
                let (theta, scaling) = self.one_rope((field, value), theta, positions)?;
                Ok((theta, scaling, local))
            }
        };
        let mut found = ["rope_scaling", "rope_parameters"]
            .into_iter()
            .filter_map(|field| Some((field, self.get(field)?)))
            .filter(|(_, value)| value.as_object().is_none_or(|keys| !keys.is_empty()));
        let rope = found.next().map(of).transpose()?;
        // Files of both versions of transformers hold both, and then the same.
        if let Some((field, value)) = found.next()
            && Some(of((field, value))?) != rope
        {
            return Err(unsupported(field, value, "what `rope_scaling` says"));
        }
        let (theta, scaling, local) = rope.unwrap_or((theta, None, local));
        Ok(Rope {
            theta: theta as f32,
            scaling,
            local_theta: local.map(|theta| theta as f32),
        })
    }

    /// An object with one for layers that see everything, and one for those with a window.
    fn rope_of_kinds(
        &self,
        value: &Value,
        (theta, local): (f64, f64),
        positions: usize,
    ) -> Result<(f64, Option<Llama3Rope>, Option<f64>), ConfigError> {
        let field = "rope_parameters";
        let refuse = || {
            let supported = "`full_attention`, and `sliding_attention` of rope_type `default`";
            unsupported(field, value, supported)
        };
        let keys = Self(value.as_object().ok_or_else(refuse)?.clone());
        if keys.0.keys().any(|kind| kind != FULL && kind != SLIDING) {
            return Err(refuse());
        }
        let of_kind = |kind: &str, theta: f64| match keys.get(kind) {
            Some(value) => self.one_rope((field, value), theta, positions),
            None => Ok((theta, None)),
        };
        let (theta, scaling) = of_kind(FULL, theta)?;
        match of_kind(SLIDING, local)? {
            (local, None) => Ok((theta, scaling, Some(local))),
            (_, Some(_)) => Err(refuse()),
        }
    }

    /// Base and stretching by one object of `field`; the base is `theta` where it says none.
    fn one_rope(
        &self,
        (field, value): (&'static str, &Value),
        theta: f64,
        positions: usize,
    ) -> Result<(f64, Option<Llama3Rope>), ConfigError> {
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
        let theta = keys.positive("rope_theta", theta)?;
        let scaling = if known.is_empty() {
            None
        } else {
            Some(keys.llama3(self, positions)?)
        };
        Ok((theta, scaling))
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
}
