//! A whole model's weights in a device's memory, read one tensor at a time.

use std::path::Path;

use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};

use super::accelerator::Accelerator;
use super::matrix::{Linear, Matrix};
use super::rotary::Rotary;
use crate::base::{
    BaseError, EMBEDDING, FINAL_NORM, KEY_NORM, NormNames, OUTPUT, QUERY_NORM, layer_tensor_name,
};
use crate::base_files::{BaseFiles, Role};
use crate::config::LlamaConfig;
use crate::kernel::{HalfFormat, HalfWeight};
use crate::lora::Module;
use crate::transformer::load::Held;

/// One transformer layer. Norms are f32, and there where its family has them.
#[derive(Debug)]
pub(super) struct Layer {
    /// Of attention's input and output.
    pub input_norm: Tensor,
    pub attention_output_norm: Option<Tensor>,
    /// Of the feed-forward layer's input and output.
    pub post_norm: Tensor,
    pub feed_forward_output_norm: Option<Tensor>,
    /// Of every head's query and key.
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
    rotary: Rotary,
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
        let final_norm = tensors.norm(FINAL_NORM)?;
        let rotary = Rotary::new(&config, accelerator);
        let rotary = rotary.map_err(|source| unheld("of the rotary embedding", source))?;
        Ok(Self {
            accelerator: accelerator.clone(),
            embedding,
            layers,
            final_norm,
            output,
            rotary,
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

    /// The angles of rows at these positions.
    pub(super) fn rotations(&self, positions: Vec<u32>) -> Result<Rotary> {
        self.rotary.at(&self.accelerator.ids(positions)?)
    }

    /// The residual stream that begins with `tokens`, in f32, `[tokens, hidden_size]`.
    pub(super) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let tokens = self.accelerator.ids(tokens.to_vec())?;
        let rows = self.embedding.rows(&tokens)?;
        match self.config.embedding_scale() {
            Some(scale) => rows.affine(f64::from(scale), 0.0),
            None => Ok(rows),
        }
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
        let mut norm = |tensor: &str| self.norm(&name(tensor));
        let names = NormNames::of(config);
        let input_norm = norm(names.attention)?;
        let attention_output_norm = names.attention_output.map(&mut norm).transpose()?;
        let post_norm = norm(names.feed_forward)?;
        let feed_forward_output_norm = names.feed_forward_output.map(&mut norm).transpose()?;
        let (mut query_norm, mut key_norm) = (None, None);
        if config.has_query_key_norm() {
            query_norm = Some(norm(QUERY_NORM)?);
            key_norm = Some(norm(KEY_NORM)?);
        }
        let mut linear = |module: Module| -> std::result::Result<Linear, BaseError> {
            let weight = self.matrix(&name(&module.weight_name()), Role::Layer)?;
            let bias = if config.has_bias(module) {
                let bias_name = name(&module.bias_name());
                let bias = self.files.read_f32(&bias_name)?;
                let bias = self.vector(&bias_name, bias)?;
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
            input_norm,
            attention_output_norm,
            post_norm,
            feed_forward_output_norm,
            query_norm,
            key_norm,
            window: config.window(index),
            linears,
        })
    }

    /// What a norm multiplies with, which some families store less one.
    fn norm(&mut self, name: &str) -> std::result::Result<Tensor, BaseError> {
        let mut values = self.files.read_f32(name)?;
        if self.files.config().has_norms_above_one() {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        self.vector(name, values)
    }

    /// A norm or a bias, in f32.
    fn vector(&self, name: &str, values: Vec<f32>) -> std::result::Result<Tensor, BaseError> {
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
