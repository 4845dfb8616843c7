//! Packed weights of a whole model.

use std::sync::Arc;

use crate::base::{
    BaseModel, EMBEDDING, FINAL_NORM, INPUT_NORM, KEY_NORM, OUTPUT, POST_NORM, QUERY_NORM,
    layer_tensor_name,
};
use crate::config::LlamaConfig;
use crate::lora::Module;
use crate::rope::frequencies;
use crate::transformer::linear::Linear;

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
pub(super) struct Weights {
    pub config: LlamaConfig,
    /// `[vocab_size, hidden_size]`
    pub embedding: Vec<f32>,
    pub layers: Vec<Layer>,
    pub final_norm: Vec<f32>,
    pub output: Linear,
    /// Cosines and sines of the rotary embedding, `[positions, head_dim / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Weights {
    /// Packs weights that `tensor` finds by their Hugging Face names; what it does not find is zero, which
    /// callers rule out by [`BaseModel`]'s checks.
    pub fn pack<'a>(config: &LlamaConfig, tensor: &dyn Fn(&str) -> &'a [f32]) -> Self {
        let hidden = config.hidden_size;
        let embedding = tensor(EMBEDDING).to_vec();
        let output = if config.tie_word_embeddings {
            tensor(EMBEDDING)
        } else {
            tensor(OUTPUT)
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| {
                let named = |name: &str| tensor(&layer_tensor_name(index, name));
                let head_norm = |name: &str| {
                    if config.has_query_key_norm() {
                        named(name).to_vec()
                    } else {
                        Vec::new()
                    }
                };
                Layer {
                    input_norm: named(INPUT_NORM).to_vec(),
                    post_norm: named(POST_NORM).to_vec(),
                    query_norm: head_norm(QUERY_NORM),
                    key_norm: head_norm(KEY_NORM),
                    window: config.window(index),
                    linears: Module::ALL.map(|module| {
                        let (outputs, inputs) = module.shape(config);
                        let linear = Linear::new(named(&module.weight_name()), outputs, inputs);
                        if config.has_bias(module) {
                            linear.with_bias(named(&module.bias_name()))
                        } else {
                            linear
                        }
                    }),
                }
            })
            .collect();
        let (cos, sin) = rotary_tables(config);
        Self {
            config: config.clone(),
            embedding,
            layers,
            final_norm: tensor(FINAL_NORM).to_vec(),
            output: Linear::new(output, config.vocab_size, hidden),
            cos,
            sin,
        }
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
        let hidden = self.config.hidden_size;
        let mut rows = Vec::new();
        for token in tokens {
            let start = token as usize * hidden;
            rows.extend_from_slice(
                self.embedding
                    .get(start..start + hidden)
                    .unwrap_or_default(),
            );
        }
        rows
    }
}

/// Cosines and sines of every position's angles, which are computed in f64.
fn rotary_tables(config: &LlamaConfig) -> (Vec<f32>, Vec<f32>) {
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

/// A frozen model, ready for passes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Llama(pub(super) Arc<Weights>);

impl Llama {
    /// Packs the weights of a base model.
    pub fn new(base: &BaseModel) -> Self {
        let tensors = base.tensors();
        Self(Arc::new(Weights::pack(base.config(), &|name| {
            tensors.get(name).map_or(&[][..], Vec::as_slice)
        })))
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.0.config
    }
}
