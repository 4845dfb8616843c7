//! The weights of a whole model, as a pass reads them.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;

use super::compact::Compact;
use super::frozen::{Embedding, Frozen};
use super::gpu::{Accelerator, GpuWeights};
use crate::base::{
    BaseModel, EMBEDDING, FINAL_NORM, KEY_NORM, NormNames, OUTPUT, QUERY_NORM, layer_tensor_name,
};
use crate::base_files::Role;
use crate::config::LlamaConfig;
use crate::lora::{FirstFactors, Module};
use crate::rope::{Llama3Rope, frequencies};

/// One transformer layer. Norms that its family does not have are empty.
#[derive(Debug)]
pub(super) struct Layer {
    /// Of attention's input and output.
    pub input_norm: Vec<f32>,
    pub attention_output_norm: Vec<f32>,
    /// Of the feed-forward layer's input and output.
    pub post_norm: Vec<f32>,
    pub feed_forward_output_norm: Vec<f32>,
    /// Of every head's query and key.
    pub query_norm: Vec<f32>,
    pub key_norm: Vec<f32>,
    pub rotary: Arc<Rotary>,
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
}

/// A rotary embedding.
#[derive(Debug)]
pub(super) struct Rotary {
    half: usize,
    tables: RotaryTables,
}

impl Rotary {
    /// Cosines and sines of one position, `[head_dim / 2]` each.
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        let (cos, sin) = &self.tables;
        (
            cos.get(range.clone()).unwrap_or_default(),
            sin.get(range).unwrap_or_default(),
        )
    }
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
        let half = config.head_dim / 2;
        let shared = |tables: RotaryTables| Arc::new(Rotary { half, tables });
        let (rotary, local) = rotary_tables(config);
        let (rotary, local) = (shared(rotary), local.map(shared));
        let layers = (0..config.num_hidden_layers)
            .map(|index| {
                let local = local.as_ref().filter(|_| config.window(index).is_some());
                let rotary = Arc::clone(local.unwrap_or(&rotary));
                layer(config, index, rotary, tensors)
            })
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
        Ok(Self {
            config: config.clone(),
            embedding,
            layers,
            final_norm: norm(config, FINAL_NORM, tensors)?,
            output,
        })
    }

    /// Packs weights that are in memory.
    pub fn pack<'a>(config: &LlamaConfig, tensor: &dyn Fn(&str) -> &'a [f32]) -> Self {
        let Ok(weights) = Self::build(config, &mut InMemory(tensor));
        weights
    }

    /// The residual stream that begins with `tokens`, `[tokens, hidden_size]`.
    pub fn embed(&self, tokens: impl Iterator<Item = u32>) -> Vec<f32> {
        let mut rows = self.embedding.rows(tokens);
        if let Some(scale) = self.config.embedding_scale() {
            rows.iter_mut().for_each(|value| *value *= scale);
        }
        rows
    }
}

/// What a norm multiplies with, which some families store less one.
fn norm<T: Tensors>(
    config: &LlamaConfig,
    name: &str,
    tensors: &mut T,
) -> Result<Vec<f32>, T::Error> {
    let mut weight = tensors.values(name)?.into_owned();
    if config.has_norms_above_one() {
        weight.iter_mut().for_each(|value| *value += 1.0);
    }
    Ok(weight)
}

fn layer<T: Tensors>(
    config: &LlamaConfig,
    index: usize,
    rotary: Arc<Rotary>,
    tensors: &mut T,
) -> Result<Layer, T::Error> {
    let mut norm_of = |name: Option<&str>| match name {
        Some(name) => norm(config, &layer_tensor_name(index, name), tensors),
        None => Ok(Vec::new()),
    };
    let names = NormNames::of(config);
    let input_norm = norm_of(Some(names.attention))?;
    let attention_output_norm = norm_of(names.attention_output)?;
    let post_norm = norm_of(Some(names.feed_forward))?;
    let feed_forward_output_norm = norm_of(names.feed_forward_output)?;
    let has_head_norm = config.has_query_key_norm();
    let query_norm = norm_of(has_head_norm.then_some(QUERY_NORM))?;
    let key_norm = norm_of(has_head_norm.then_some(KEY_NORM))?;
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
        attention_output_norm,
        post_norm,
        feed_forward_output_norm,
        query_norm,
        key_norm,
        rotary,
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

/// Cosines and sines of a rotary embedding for every position, `[positions, head_dim / 2]` each.
pub(super) type RotaryTables = (Vec<f32>, Vec<f32>);

/// Those of all layers, and those of layers with a window where these have their own.
pub(super) fn rotary_tables(config: &LlamaConfig) -> (RotaryTables, Option<RotaryTables>) {
    let local = config.local_rope_theta;
    (
        rotary_table(config, config.rope_theta, config.rope_scaling),
        local.map(|theta| rotary_table(config, theta, None)),
    )
}

/// The angles are computed in f64.
fn rotary_table(config: &LlamaConfig, theta: f32, scaling: Option<Llama3Rope>) -> RotaryTables {
    let frequencies = frequencies(config.head_dim, theta, scaling);
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

    /// What adapters that are served beside it hold their first factors in.
    pub fn first_factors(&self) -> FirstFactors {
        let Place::Host(weights) = &self.place else {
            return FirstFactors::AsStored;
        };
        let mut linears = weights.layers.iter().flat_map(|layer| &layer.linears);
        if linears.any(Frozen::takes_eight_bits) {
            FirstFactors::EightBits
        } else {
            FirstFactors::AsStored
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
