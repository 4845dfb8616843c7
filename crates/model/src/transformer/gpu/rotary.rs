//! The rotary embeddings' angles in a device's memory.

use candle_core::{Result, Tensor};

use super::accelerator::Accelerator;
use super::weights::Layer;
use crate::config::LlamaConfig;
use crate::transformer::weights::{RotaryTables, rotary_tables};

/// Cosines and sines in f32: of all positions, `[positions, head_dim / 2]` each, or of a pass's rows,
/// `[rows, 1, head_dim / 2]`.
#[derive(Debug)]
pub(super) struct Rotary {
    all: (Tensor, Tensor),
    /// Of layers with a window, where these have their own.
    local: Option<(Tensor, Tensor)>,
}

impl Rotary {
    /// All positions of a model.
    pub fn new(config: &LlamaConfig, on: &Accelerator) -> Result<Self> {
        let shape = (config.max_position_embeddings, config.head_dim / 2);
        let upload = |(cos, sin): RotaryTables| -> Result<(Tensor, Tensor)> {
            Ok((on.upload_f32(cos, shape)?, on.upload_f32(sin, shape)?))
        };
        let (all, local) = rotary_tables(config);
        Ok(Self {
            all: upload(all)?,
            local: local.map(upload).transpose()?,
        })
    }

    /// Those of the rows at `positions`.
    pub fn at(&self, positions: &Tensor) -> Result<Self> {
        let rows = |(cos, sin): &(Tensor, Tensor)| -> Result<(Tensor, Tensor)> {
            let of = |table: &Tensor| table.index_select(positions, 0)?.unsqueeze(1);
            Ok((of(cos)?, of(sin)?))
        };
        Ok(Self {
            all: rows(&self.all)?,
            local: self.local.as_ref().map(rows).transpose()?,
        })
    }

    /// A layer's cosines and sines.
    pub fn of(&self, layer: &Layer) -> (&Tensor, &Tensor) {
        let (cos, sin) = match &self.local {
            Some(local) if layer.window.is_some() => local,
            _ => &self.all,
        };
        (cos, sin)
    }
}
