//! Keys and values of an engine in a device's memory.

use candle_core::{Result, Tensor};

use super::accelerator::Accelerator;
use crate::config::LlamaConfig;

/// One place for each token of each block: `[places, kv_heads · head_dim]` of every layer, in the type of products.
#[derive(Debug)]
pub(crate) struct GpuCache {
    /// Keys and values.
    layers: Vec<(Tensor, Tensor)>,
}

impl GpuCache {
    /// Room for so many tokens, all memory taken at once.
    pub fn new(config: &LlamaConfig, places: usize, on: &Accelerator) -> Result<Self> {
        let zeros = || Tensor::zeros((places, config.key_width()), on.dtype(), on.device());
        let layer = |_| -> Result<(Tensor, Tensor)> { Ok((zeros()?, zeros()?)) };
        let layers = (0..config.num_hidden_layers).map(layer);
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// Bytes of one token.
    pub fn token_bytes(config: &LlamaConfig, on: &Accelerator) -> usize {
        2 * config.num_hidden_layers * config.key_width() * on.dtype().size_in_bytes()
    }

    fn layer(&self, layer: usize) -> Result<&(Tensor, Tensor)> {
        match self.layers.get(layer) {
            Some(tensors) => Ok(tensors),
            None => candle_core::bail!("the KV cache has no layer {layer}"),
        }
    }

    /// Writes one layer's keys and values, `[rows, kv_heads · head_dim]`, to the rows' places `[rows]`.
    pub(super) fn write(
        &self,
        layer: usize,
        places: &Tensor,
        (key, value): (&Tensor, &Tensor),
    ) -> Result<()> {
        let (keys, values) = self.layer(layer)?;
        let places = places
            .unsqueeze(1)?
            .broadcast_as(key.shape())?
            .contiguous()?;
        keys.scatter_set(&places, &key.contiguous()?, 0)?;
        values.scatter_set(&places, &value.contiguous()?, 0)
    }

    /// One layer's keys and values at these places, in their order.
    pub(super) fn read(&self, layer: usize, places: &Tensor) -> Result<(Tensor, Tensor)> {
        let (keys, values) = self.layer(layer)?;
        Ok((
            keys.index_select(places, 0)?,
            values.index_select(places, 0)?,
        ))
    }
}
