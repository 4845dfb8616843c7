//! The weights of a whole model, as a pass reads them.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;

use super::compact::Compact;
use super::frozen::{Embedding, Frozen};
use super::gpu::{Accelerator, GpuWeights};
use crate::base::{
    BaseModel, EMBEDDING, FINAL_NORM, INPUT_NORM, KEY_NORM, OUTPUT, POST_NORM, QUERY_NORM,
    layer_tensor_name,
};
use crate::base_files::Role;
use crate::config::LlamaConfig;
use crate::lora::Module;
use crate::rope::frequencies;

/// One transformer layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub input_norm: Vec<f32>,
    pub post_norm: Vec<f32>,
    /// Norms of every head's query and key; empty where the family has none.
    pub query_norm: Vec<f32>,
    pub key_norm: Vec<f32>,
    /// Tokens that a query sees, itself included; none: all before it.
    pub window: Option<usize>,
    pub linears: [Frozen; Module::ALL.len()],
}

impl Layer {
    pub fn linear(&self, module: Module) -> &Frozen {
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
pub(super) struct Weights {
    pub config: LlamaConfig,
    pub embedding: Embedding,
    pub layers: Vec<Layer>,
    pub final_norm: Vec<f32>,
    pub output: Frozen,
    /// Cosines and sines of the rotary embedding, `[positions, head_dim / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Where a model's tensors come from, one at a time, so that none needs to be there twice.
pub(super) trait Tensors {
    /// Why one can't be had.
    type Error;

    /// The values of a tensor by its Hugging Face name.
    fn values(&mut self, name: &str) -> Result<Cow<'_, [f32]>, Self::Error>;

    /// A weight as it is to be held, where that is not f32; none: its values are asked for.
    fn compact(&mut self, _name: &str, _role: Role) -> Result<Option<Compact>, Self::Error> {
        Ok(None)
    }
}

/// Tensors that are in memory as f32. What is not found is empty, which callers rule out by
/// [`BaseModel`]'s checks.
struct InMemory<'f, 'a>(&'f dyn Fn(&str) -> &'a [f32]);

impl Tensors for InMemory<'_, '_> {
    type Error = Infallible;

    fn values(&mut self, name: &str) -> Result<Cow<'_, [f32]>, Infallible> {
        Ok((self.0)(name).into())
    }
}

impl Weights {
    /// Takes all weights of a model.
    pub fn build<T: Tensors>(config: &LlamaConfig, tensors: &mut T) -> Result<Self, T::Error> {
        let layers = (0..config.num_hidden_layers)
            .map(|index| layer(config, index, tensors))
            .collect::<Result<_, _>>()?;
        let (outputs, inputs) = (config.vocab_size, config.hidden_size);
        let (embedding, tied) = match tensors.compact(EMBEDDING, Role::Vocabulary)? {
            Some(weight) => {
                let tied = config
                    .tie_word_embeddings
                    .then(|| Frozen::compact(weight.clone()));
                (Embedding::Compact(weight), tied)
            }
            None => {
                let values = tensors.values(EMBEDDING)?.into_owned();
                let tied = config
                    .tie_word_embeddings
                    .then(|| Frozen::packed(&values, outputs, inputs));
                let width = inputs;
                (Embedding::Plain { values, width }, tied)
            }
        };
        let output = match tied {
            Some(tied) => tied,
            None => matrix(tensors, OUTPUT, Role::Vocabulary, (outputs, inputs))?,
        };
        let (cos, sin) = rotary_tables(config);
        Ok(Self {
            config: config.clone(),
            embedding,
            layers,
            final_norm: tensors.values(FINAL_NORM)?.into_owned(),
            output,
            cos,
            sin,
        })
    }

    /// Packs weights that are in memory.
    pub fn pack<'a>(config: &LlamaConfig, tensor: &dyn Fn(&str) -> &'a [f32]) -> Self {
        let Ok(weights) = Self::build(config, &mut InMemory(tensor));
        weights
    }

    /// Cosines and sines of one position, `[head_dim / 2]` each.
    pub fn rotation(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.config.head_dim / 2;
        let range = position * half..(position + 1) * half;
        (
            self.cos.get(range.clone()).unwrap_or_default(),
            self.sin.get(range).unwrap_or_default(),
        )
    }

    /// The embeddings of `tokens`, `[tokens, hidden_size]`.
    pub fn embed(&self, tokens: impl Iterator<Item = u32>) -> Vec<f32> {
        self.embedding.rows(tokens)
    }
}

fn layer<T: Tensors>(
    config: &LlamaConfig,
    index: usize,
    tensors: &mut T,
) -> Result<Layer, T::Error> {
    let mut vector = |name: &str, is_there: bool| -> Result<Vec<f32>, T::Error> {
        if is_there {
            Ok(tensors
                .values(&layer_tensor_name(index, name))?
                .into_owned())
        } else {
            Ok(Vec::new())
        }
    };
    let (input_norm, post_norm) = (vector(INPUT_NORM, true)?, vector(POST_NORM, true)?);
    let has_head_norm = config.has_query_key_norm();
    let query_norm = vector(QUERY_NORM, has_head_norm)?;
    let key_norm = vector(KEY_NORM, has_head_norm)?;
    let mut linear = |module: Module| -> Result<Frozen, T::Error> {
        let name = layer_tensor_name(index, &module.weight_name());
        let frozen = matrix(tensors, &name, Role::Layer, module.shape(config))?;
        if config.has_bias(module) {
            let bias = layer_tensor_name(index, &module.bias_name());
            Ok(frozen.with_bias(tensors.values(&bias)?.into_owned()))
        } else {
            Ok(frozen)
        }
    };
    Ok(Layer {
        input_norm,
        post_norm,
        query_norm,
        key_norm,
        window: config.window(index),
        // In the order of `Module::ALL`, which `Layer::linear` knows.
        linears: [
            linear(Module::QProj)?,
            linear(Module::KProj)?,
            linear(Module::VProj)?,
            linear(Module::OProj)?,
            linear(Module::GateProj)?,
            linear(Module::UpProj)?,
            linear(Module::DownProj)?,
        ],
    })
}

/// A weight as it is to be held, packed as f32 where nothing else is wanted.
fn matrix<T: Tensors>(
    tensors: &mut T,
    name: &str,
    role: Role,
    (outputs, inputs): (usize, usize),
) -> Result<Frozen, T::Error> {
    match tensors.compact(name, role)? {
        Some(weight) => Ok(Frozen::compact(weight)),
        None => Ok(Frozen::packed(&tensors.values(name)?, outputs, inputs)),
    }
}

/// Cosines and sines of every position's angles, which are computed in f64.
pub(super) fn rotary_tables(config: &LlamaConfig) -> (Vec<f32>, Vec<f32>) {
    let frequencies = frequencies(config);
    let angles = (0..config.max_position_embeddings).flat_map(|position| {
        frequencies
            .iter()
            .map(move |frequency| position as f64 * frequency)
    });
    angles
        .map(|angle| (angle.cos() as f32, angle.sin() as f32))
        .unzip()
}

/// Where a model's weights are, and so what computes.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Host(Arc<Weights>),
    Gpu(Arc<GpuWeights>),
}

/// A frozen model, ready for passes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Llama {
    pub(super) place: Place,
    /// As [`Self::with_activation_bytes`].
    pub(super) activation_bytes: usize,
}

impl Llama {
    pub(super) fn over(weights: Weights) -> Self {
        Self::at(Place::Host(Arc::new(weights)))
    }

    pub(super) fn at(place: Place) -> Self {
        Self {
            place,
            activation_bytes: usize::MAX,
        }
    }

    /// Packs the weights of a base model.
    pub fn new(base: &BaseModel) -> Self {
        let tensors = base.tensors();
        Self::over(Weights::pack(base.config(), &|name| {
            tensors.get(name).map_or(&[][..], Vec::as_slice)
        }))
    }

    /// With a limit to what a training pass keeps for its backward pass, in bytes. Beyond it projections
    /// are computed again, which takes up to a third longer; the bits are the same. Layers' inputs and
    /// what attention made are kept in any case.
    #[must_use]
    pub fn with_activation_bytes(self, bytes: usize) -> Self {
        Self {
            activation_bytes: bytes,
            ..self
        }
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        match &self.place {
            Place::Host(weights) => &weights.config,
            Place::Gpu(weights) => weights.config(),
        }
    }

    /// What it computes on, where that is not the CPU.
    pub fn accelerator(&self) -> Option<&Accelerator> {
        match &self.place {
            Place::Host(_) => None,
            Place::Gpu(weights) => Some(weights.accelerator()),
        }
    }
}
