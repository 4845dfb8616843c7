//! Loading a base model to serve it: in fewer bits, in the form that forward passes multiply fastest.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use super::compact::Compact;
use super::frozen::{Embedding, Frozen};
use super::weights::{Llama, Tensors, Weights};
use crate::base::BaseError;
use crate::base_files::{BaseFiles, Role};
use crate::kernel::HalfPanels;
use crate::quant::Quantization;

/// What a served base model is held in.
///
/// What a GGUF file holds in blocks stays so in every case, and norms and biases are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// As its files have it: bf16 in bf16, f16 and f32 in f32. No bit of a logit differs from f32's.
    AsStored,
    /// Every matrix in bf16.
    Bf16,
    /// As [`Quantization`] says.
    Blocks(Quantization),
}

/// Tensors of a folder, whose matrices are held for serving.
struct Served {
    files: BaseFiles,
    held: Held,
}

impl Tensors for Served {
    type Error = BaseError;

    fn values(&mut self, name: &str) -> Result<Cow<'_, [f32]>, BaseError> {
        Ok(self.files.read_f32(name)?.into())
    }

    fn compact(&mut self, name: &str, role: Role) -> Result<Option<Compact>, BaseError> {
        let blocks = match self.held {
            Held::Blocks(quantization) => self.files.read_blocks(name, role, quantization)?,
            Held::AsStored | Held::Bf16 => self.files.stored_blocks(name)?,
        };
        if let Some(blocks) = blocks {
            return Ok(Some(Compact::served(blocks)));
        }
        let is_half = self.held == Held::Bf16 || self.files.is_bf16(name);
        let Some((outputs, inputs)) = self.files.matrix_shape(name).filter(|_| is_half) else {
            return Ok(None);
        };
        let values = self.files.read_f32(name)?;
        let panels = HalfPanels::pack(&values, outputs, inputs);
        Ok(Some(Compact::Halves(Arc::new(panels))))
    }
}

impl Llama {
    /// Loads a base model's folder to serve it, one tensor at a time: the model is never in memory as a
    /// whole in another form.
    ///
    /// Products with blocks take their inputs in 8 bits, as llama.cpp's do; see the kernels' documentation. A
    /// row's bits depend on the row and the weights alone in every form.
    ///
    /// # Errors
    /// As [`BaseModel::load`](crate::base::BaseModel::load).
    pub fn load_served(dir: &Path, held: Held) -> Result<Self, BaseError> {
        let files = BaseFiles::open(dir)?;
        let config = files.config().clone();
        let mut tensors = Served { files, held };
        Ok(Self::over(Weights::build(&config, &mut tensors)?))
    }

    /// Bytes of its matrices for forward passes; one that is embedding and output projection counts once, but
    /// for f32, where it is there in two forms.
    pub fn bytes(&self) -> usize {
        let weights = &*self.weights;
        let layers = weights.layers.iter().flat_map(|layer| &layer.linears);
        let output = match &weights.embedding {
            Embedding::Compact(_) if weights.config.tie_word_embeddings => 0,
            _ => weights.output.bytes(),
        };
        weights.embedding.bytes() + output + layers.map(Frozen::bytes).sum::<usize>()
    }
}
