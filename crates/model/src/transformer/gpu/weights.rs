//! A whole model's weights in a device's memory, read one tensor at a time.

use std::path::Path;

use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};

use super::accelerator::Accelerator;
use super::matrix::{Linear, Matrix};
use crate::base::{
    BaseError, EMBEDDING, FINAL_NORM, INPUT_NORM, KEY_NORM, OUTPUT, POST_NORM, QUERY_NORM,
    layer_tensor_name,
};
use crate::base_files::{BaseFiles, Role};
use crate::config::LlamaConfig;
use crate::kernel::{HalfFormat, HalfWeight};
use crate::lora::Module;
use crate::transformer::load::Held;
use crate::transformer::weights::rotary_tables;

/// One transformer layer. Norms are f32.
#[derive(Debug)]
pub(super) struct Layer {
    pub input_norm: Tensor,
    pub post_norm: Tensor,
    /// Norms of every head's query and key, where the family has them.
    pub query_norm: Option<Tensor>,
    pub key_norm: Option<Tensor>,
    /// Tokens that a query sees, itself included; none: all before it.
    pub window: Option<usize>,
    linears: [Linear; Module::ALL.len()],
}

impl Layer {
    pub fn linear(&self, module: Module) -> &Linear {
        let [q, k, v, o, gate, up, down] = &self.linears;
        match module {
            Module::QProj => q,
            Module::KProj => k,
            Module::VProj => v,
            Module::OProj => o,
            Module::GateProj => gate,
            Module::UpProj => up,
            Module::DownProj => down,
        }
    }
}

/// Everything that a pass reads.
#[derive(Debug)]
pub(in crate::transformer) struct GpuWeights {
    pub(super) accelerator: Accelerator,
    pub(super) config: LlamaConfig,
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Tensor,
    pub(super) output: Matrix,
    /// Cosines and sines of the rotary embedding in f32, `[positions, head_dim / 2]` each.
    cos: Tensor,
    sin: Tensor,
}

impl GpuWeights {
    /// Reads a base model's folder.
    ///
    /// # Errors
    /// As [`BaseModel::load`](crate::base::BaseModel::load), or the device's memory is too small.
    pub fn load(
        dir: &Path,
        held: Held,
        accelerator: &Accelerator,
    ) -> std::result::Result<Self, BaseError> {
        let files = BaseFiles::open(dir)?;
        let config = files.config().clone();
        let mut tensors = Tensors {
            files,
            held,
            accelerator,
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| tensors.layer(&config, index))
            .collect::<std::result::Result<_, _>>()?;
        let embedding = tensors.matrix(EMBEDDING, Role::Vocabulary)?;
        let output = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            tensors.matrix(OUTPUT, Role::Vocabulary)?
        };
        let final_norm = tensors.vector(FINAL_NORM)?;
        let (cos, sin) = rotary_tables(&config);
        let table = |values: Vec<f32>| {
            let shape = (config.max_position_embeddings, config.head_dim / 2);
            let table = accelerator.upload_f32(values, shape);
            table.map_err(|source| BaseError::Device {
                tensor: "of the rotary embedding".to_owned(),
                source,
            })
        };
        Ok(Self {
            accelerator: accelerator.clone(),
            embedding,
            layers,
            final_norm,
            output,
            cos: table(cos)?,
            sin: table(sin)?,
            config,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Where it is.
    pub fn accelerator(&self) -> &Accelerator {
        &self.accelerator
    }

    /// Bytes of its matrices; one that is embedding and output projection counts once.
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|layer| &layer.linears);
        let layers: usize = layers.map(|linear| linear.weight.bytes()).sum();
        let output = if self.config.tie_word_embeddings {
            0
        } else {
            self.output.bytes()
        };
        self.embedding.bytes() + output + layers
    }

    pub(super) fn layer(&self, index: usize) -> Result<&Layer> {
        match self.layers.get(index) {
            Some(layer) => Ok(layer),
            None => candle_core::bail!("the model has no layer {index}"),
        }
    }

    /// Cosines and sines of these positions, `[rows, 1, head_dim / 2]` each.
    pub(super) fn rotations(&self, positions: Vec<u32>) -> Result<(Tensor, Tensor)> {
        let positions = self.accelerator.ids(positions)?;
        let of = |table: &Tensor| table.index_select(&positions, 0)?.unsqueeze(1);
        Ok((of(&self.cos)?, of(&self.sin)?))
    }

    /// The embeddings of `tokens` in f32, `[tokens, hidden_size]`.
    pub(super) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        self.embedding.rows(&self.accelerator.ids(tokens.to_vec())?)
    }
}

/// Tensors of a folder on their way to the device.
struct Tensors<'a> {
    files: BaseFiles,
    held: Held,
    accelerator: &'a Accelerator,
}

impl Tensors<'_> {
    fn layer(
        &mut self,
        config: &LlamaConfig,
        index: usize,
    ) -> std::result::Result<Layer, BaseError> {
        let name = |tensor: &str| layer_tensor_name(index, tensor);
        let (mut query_norm, mut key_norm) = (None, None);
        if config.has_query_key_norm() {
            query_norm = Some(self.vector(&name(QUERY_NORM))?);
            key_norm = Some(self.vector(&name(KEY_NORM))?);
        }
        let mut linear = |module: Module| -> std::result::Result<Linear, BaseError> {
            let weight = self.matrix(&name(&module.weight_name()), Role::Layer)?;
            let bias = if config.has_bias(module) {
                let bias_name = name(&module.bias_name());
                let bias = self.vector(&bias_name)?;
                let bias = bias.to_dtype(self.accelerator.dtype());
                Some(bias.map_err(|source| unheld(&bias_name, source))?)
            } else {
                None
            };
            Ok(Linear { weight, bias })
        };
        // In the order of `Module::ALL`, which `Layer::linear` knows.
        let linears = [
            linear(Module::QProj)?,
            linear(Module::KProj)?,
            linear(Module::VProj)?,
            linear(Module::OProj)?,
            linear(Module::GateProj)?,
            linear(Module::UpProj)?,
            linear(Module::DownProj)?,
        ];
        Ok(Layer {
            input_norm: self.vector(&name(INPUT_NORM))?,
            post_norm: self.vector(&name(POST_NORM))?,
            query_norm,
            key_norm,
            window: config.window(index),
            linears,
        })
    }

    /// A norm or a bias, in f32.
    fn vector(&mut self, name: &str) -> std::result::Result<Tensor, BaseError> {
        let values = self.files.read_f32(name)?;
        let count = values.len();
        self.accelerator
            .upload_f32(values, count)
            .map_err(|source| unheld(name, source))
    }

    /// A weight as it is to be held.
    fn matrix(&mut self, name: &str, role: Role) -> std::result::Result<Matrix, BaseError> {
        let on = self.accelerator;
        let blocks = match self.held {
            Held::Blocks(quantization) => self.files.read_blocks(name, role, quantization)?,
            Held::AsStored | Held::Bf16 => self.files.stored_blocks(name)?,
        };
        if let Some(blocks) = blocks {
            return Matrix::blocks(&blocks, on).map_err(|source| unheld(name, source));
        }
        let shape = self
            .files
            .matrix_shape(name)
            .ok_or_else(|| BaseError::MissingTensor(name.to_owned()))?;
        let weight = match self.files.read_halves(name)? {
            Some(halves) => self.halves(halves, shape),
            None => on.upload_f32(self.files.read_f32(name)?, shape),
        };
        weight
            .and_then(|weight| {
                if self.held == Held::Bf16 {
                    weight.to_dtype(DType::BF16)?.to_dtype(on.dtype())
                } else {
                    weight.to_dtype(on.dtype())
                }
            })
            .map(Matrix::Plain)
            .map_err(|source| unheld(name, source))
    }

    fn halves(&self, halves: HalfWeight, shape: (usize, usize)) -> Result<Tensor> {
        let (bits, device) = (halves.bits.into_iter(), self.accelerator.device());
        match halves.format {
            HalfFormat::Bf16 => {
                let values: Vec<bf16> = bits.map(bf16::from_bits).collect();
                Tensor::from_vec(values, shape, device)
            }
            HalfFormat::F16 => {
                let values: Vec<f16> = bits.map(f16::from_bits).collect();
                Tensor::from_vec(values, shape, device)
            }
        }
    }
}

fn unheld(tensor: &str, source: candle_core::Error) -> BaseError {
    BaseError::Device {
        tensor: tensor.to_owned(),
        source,
    }
}
