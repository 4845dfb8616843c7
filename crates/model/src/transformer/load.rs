//! Loading a base model's folder, one tensor at a time: the model is never in memory as a whole in another form.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use super::compact::Compact;
use super::frozen::{Embedding, Frozen};
use super::gpu::{Accelerator, GpuWeights};
use super::weights::{Llama, Place, Tensors, Weights};
use crate::base::BaseError;
use crate::base_files::{BaseFiles, Role};
use crate::kernel::{HalfFormat, HalfPanels, HalfWeight};
use crate::quant::{Blocks, Quantization};

/// What the matrices of a base model are held in.
///
/// What a GGUF file holds in blocks stays so in every case, and norms and biases are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// As its files have it. No bit of a logit differs from f32's.
    AsStored,
    /// Every matrix in bf16.
    Bf16,
    /// As [`Quantization`] says.
    Blocks(Quantization),
}

/// Tensors of a folder, whose matrices are held in a form.
struct Stored {
    files: BaseFiles,
    held: Held,
    /// How blocks are multiplied.
    blocks: fn(Blocks) -> Compact,
}

impl Tensors for Stored {
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
            return Ok(Some((self.blocks)(blocks)));
        }
        let Some((outputs, inputs)) = self.files.matrix_shape(name) else {
            return Ok(None);
        };
        let in_bf16 = self.held == Held::Bf16;
        let halves = match self.files.read_halves(name)? {
            Some(halves) if !in_bf16 || halves.format == HalfFormat::Bf16 => halves,
            _ if in_bf16 => HalfWeight::rounded(&self.files.read_f32(name)?),
            _ => return Ok(None),
        };
        let panels = HalfPanels::pack(&halves, outputs, inputs);
        Ok(Some(Compact::Halves(Arc::new(panels))))
    }
}

impl Llama {
    /// Loads a base model's folder to train on it.
    ///
    /// In every form, forward and backward passes have the bits that [`Self::new`] has for the values held, so
    /// that a gradient is the function's own.
    ///
    /// # Errors
    /// As [`BaseModel::load`](crate::base::BaseModel::load).
    pub fn load(dir: &Path, held: Held) -> Result<Self, BaseError> {
        load(dir, held, Compact::tiled)
    }

    /// Loads a base model's folder to serve it.
    ///
    /// Products with blocks take their inputs in 8 bits, as llama.cpp's do; see the kernels' documentation. A
    /// row's bits depend on the row and the weights alone in every form.
    ///
    /// # Errors
    /// As [`BaseModel::load`](crate::base::BaseModel::load).
    pub fn load_served(dir: &Path, held: Held) -> Result<Self, BaseError> {
        load(dir, held, Compact::served)
    }

    /// Whether the passes that train give the bits that those of what [`Self::load_served`] makes of the same
    /// folder give: always, but for blocks on the CPU.
    pub fn serves_as_it_trains(&self) -> bool {
        let Place::Host(weights) = &self.place else {
            return true;
        };
        let mut linears = weights.layers.iter().flat_map(|layer| &layer.linears);
        !weights.output.is_in_blocks() && !linears.any(Frozen::is_in_blocks)
    }

    /// Loads a base model's folder onto an accelerator, to train on it or to serve it.
    ///
    /// Matrices that stay in no blocks are rounded to the accelerator's bf16, whatever they are stored in.
    ///
    /// # Errors
    /// As [`BaseModel::load`](crate::base::BaseModel::load), or the accelerator's memory is too small.
    pub fn load_on(dir: &Path, held: Held, accelerator: &Accelerator) -> Result<Self, BaseError> {
        let weights = GpuWeights::load(dir, held, accelerator)?;
        Ok(Self::at(Place::Gpu(Arc::new(weights))))
    }

    /// Bytes of its matrices for forward passes; one that is embedding and output projection counts once, but
    /// for f32 on the CPU, where it is there in two forms.
    pub fn bytes(&self) -> usize {
        let weights = match &self.place {
            Place::Host(weights) => weights,
            Place::Gpu(weights) => return weights.bytes(),
        };
        let layers = weights.layers.iter().flat_map(|layer| &layer.linears);
        let output = match &weights.embedding {
            Embedding::Compact(_) if weights.config.tie_word_embeddings => 0,
            _ => weights.output.bytes(),
        };
        weights.embedding.bytes() + output + layers.map(Frozen::bytes).sum::<usize>()
    }
}

fn load(dir: &Path, held: Held, blocks: fn(Blocks) -> Compact) -> Result<Llama, BaseError> {
    let files = BaseFiles::open(dir)?;
    let config = files.config().clone();
    let mut tensors = Stored {
        files,
        held,
        blocks,
    };
    Ok(Llama::over(Weights::build(&config, &mut tensors)?))
}
