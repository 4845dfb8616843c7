//! A frozen weight in a device's memory.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, Result, Tensor};

use super::accelerator::Accelerator;
use crate::quant::Blocks;

/// A weight `[outputs, inputs]`. Cheap to clone: an embedding is shared with the output projection that it is.
#[derive(Debug, Clone)]
pub(super) enum Matrix {
    /// In the type of products.
    Plain(Tensor),
    /// In GGUF's blocks. Both directions multiply with the same values, so that the gradient is the function's own.
    Blocks(Arc<QTensor>),
}

impl Matrix {
    /// A weight that stays in its blocks.
    pub fn blocks(blocks: &Blocks, on: &Accelerator) -> Result<Self> {
        let data = Cow::Borrowed(blocks.data());
        let storage = QStorage::from_data(data, on.device(), blocks.format().dtype())?;
        let weight = QTensor::new(storage, (blocks.outputs(), blocks.inputs()))?;
        Ok(Self::Blocks(Arc::new(weight)))
    }

    fn values(&self, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Plain(weight) => Ok(weight.clone()),
            Self::Blocks(weight) => weight.dequantize(&weight.device())?.to_dtype(dtype),
        }
    }

    /// `x · Wᵀ` of every row.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.values(x.dtype())?.t()?)
    }

    /// `g · W` of every row: the input gradient.
    pub fn backward(&self, dy: &Tensor) -> Result<Tensor> {
        dy.matmul(&self.values(dy.dtype())?)
    }

    /// The rows of `tokens` in f32.
    pub fn rows(&self, tokens: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(weight) => weight.index_select(tokens, 0)?.to_dtype(DType::F32),
            Self::Blocks(weight) => weight.embedding(tokens)?.to_dtype(DType::F32),
        }
    }

    /// Bytes held, whoever shares them.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Plain(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Self::Blocks(weight) => weight.storage_size_in_bytes(),
        }
    }
}

/// A frozen layer: a weight and, where the family has one, a bias.
#[derive(Debug)]
pub(super) struct Linear {
    pub weight: Matrix,
    /// In the type of products.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `x · Wᵀ + b` of every row.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.forward(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}
