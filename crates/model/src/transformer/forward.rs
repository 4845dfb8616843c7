//! The forward pass over whole sequences, keeping what backward needs.

use rayon::prelude::*;

use super::attention::{Projections, attend_segments, rotate_rows};
use super::memory::Memory;
use super::weights::Weights;
use crate::config::{Activation, LlamaConfig};
use crate::kernel::{self, Epilogue};
use crate::lora::{LoraLayers, LoraPair, Module};
use crate::random::Stream;

/// Rows of one task of a row-wise operation at most.
const ROWS: usize = 64;

/// Dropout of LoRA's inputs (Srivastava et al. 2014, inverted), with a mask that is a function of the element's
/// place alone, so that a resumed step draws the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dropout {
    pub probability: f64,
    pub seed: u64,
    pub step: u64,
}

impl Dropout {
    /// Where the bits of one module's input come from.
    pub fn stream(self, layer: usize, module: Module) -> Stream {
        Stream::new(self.seed, &[self.step, layer as u64, module as u64])
    }

    /// Elements whose bits are below it are dropped.
    pub fn threshold(self) -> u64 {
        (self.probability * 2.0_f64.powi(64)) as u64
    }

    /// What the others are multiplied with.
    pub fn factor(self) -> f32 {
        (1.0 / (1.0 - self.probability)) as f32
    }

    /// Zeroes or scales each element of `x` in place.
    pub fn apply(self, layer: usize, module: Module, x: &mut [f32]) {
        const CHUNK: usize = 4096;
        let stream = self.stream(layer, module);
        let (kept, threshold) = (self.factor(), self.threshold());
        x.par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(chunk, values)| {
                kernel::drop_out(values, stream, (chunk * CHUNK) as u64, threshold, kept);
            });
    }
}

/// What a pass is made with.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub weights: &'a Weights,
    pub lora: Option<&'a LoraLayers>,
    pub dropout: Option<Dropout>,
    /// Tokens of each sequence.
    pub segments: &'a [usize],
    /// Where layers leave their vectors to each other.
    pub memory: &'a Memory,
}

/// The inner values of one module's LoRA, `drop(x) Aᵀ`: `[rows, rank]`; empty without LoRA.
pub(super) type Inner = [Vec<f32>; Module::ALL.len()];

/// What backward needs of one layer; widths as the names say. Norms and activations cost next to nothing and
/// are computed again.
pub(super) struct LayerTape {
    /// The layer's input, `[rows, hidden]`.
    pub input: Vec<f32>,
    pub attended: Vec<f32>,
    pub log_sums: Vec<f32>,
    /// Outputs of attention and of the feed-forward layer before their norm, `[rows, hidden]`; empty where the
    /// family has none.
    pub raw_attention: Vec<f32>,
    pub raw_feed_forward: Vec<f32>,
    /// After attention's residual, `[rows, hidden]`.
    pub middle: Vec<f32>,
    pub inner: Inner,
    /// None where it is to be computed again (activation checkpointing: Chen et al. 2016, arXiv:1604.06174).
    pub projected: Option<Projected>,
}

/// What a layer's projections make of its two normed inputs: three quarters of a tape.
pub(super) struct Projected {
    pub heads: Heads,
    pub gated: Gated,
}

/// What attention reads.
#[derive(Default)]
pub(super) struct Heads {
    /// Queries and keys before their norm; empty where the family has none.
    pub raw_query: Vec<f32>,
    pub raw_key: Vec<f32>,
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
}

/// What the gated activation reads.
pub(super) struct Gated {
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
}

impl LayerTape {
    /// Leaves all vectors to later layers.
    pub fn give(self, memory: &Memory) {
        for vector in [
            self.input,
            self.attended,
            self.raw_attention,
            self.raw_feed_forward,
            self.middle,
        ] {
            memory.give(vector);
        }
        if let Some(projected) = self.projected {
            projected.give(memory);
        }
    }
}

impl Projected {
    /// Leaves all vectors to later layers.
    pub fn give(self, memory: &Memory) {
        self.heads.give(memory);
        memory.give(self.gated.gate);
        memory.give(self.gated.up);
    }
}

impl Heads {
    /// Leaves all vectors to later layers.
    pub fn give(self, memory: &Memory) {
        for vector in [
            self.raw_query,
            self.raw_key,
            self.query,
            self.key,
            self.value,
        ] {
            memory.give(vector);
        }
    }
}

impl<'a> Pass<'a> {
    pub fn rows(&self) -> usize {
        self.segments.iter().sum()
    }

    pub fn pair(&self, layer: usize, module: Module) -> Option<&'a LoraPair> {
        self.lora.and_then(|lora| lora.pair(layer, module))
    }

    /// LoRA's input: `x`, or a copy with dropped elements.
    pub fn dropped<'x>(
        &self,
        layer: usize,
        module: Module,
        x: &'x [f32],
    ) -> std::borrow::Cow<'x, [f32]> {
        match self.dropout {
            None => x.into(),
            Some(dropout) => {
                let mut copy = x.to_vec();
                dropout.apply(layer, module, &mut copy);
                copy.into()
            }
        }
    }

    /// The mask of [`Self::dropped`] on a gradient.
    pub fn drop_gradient(&self, layer: usize, module: Module, gradient: &mut [f32]) {
        if let Some(dropout) = self.dropout {
            dropout.apply(layer, module, gradient);
        }
    }

    /// `y = W x + b + s B A drop(x)`; LoRA's inner values go to `inner`.
    fn project(&self, layer: usize, module: Module, x: &[f32], inner: &mut Inner) -> Vec<f32> {
        let Some(weights) = self.weights.layers.get(layer) else {
            return Vec::new();
        };
        let rows = self.rows();
        let linear = weights.linear(module);
        let mut y = self.memory.take(rows * linear.outputs());
        linear.apply_into(x, &mut y);
        if let Some(pair) = self.pair(layer, module) {
            let mut h = vec![0.0; rows * pair.a.outputs()];
            let dropped = self.dropped(layer, module, x);
            pair.a.forward(&dropped, &mut h, Epilogue::Store);
            pair.b
                .forward(&h, &mut y, Epilogue::AddScaled(pair.scaling));
            if let Some(slot) = inner.get_mut(module as usize) {
                *slot = h;
            }
        }
        y
    }

    /// The norm of every row of a layer's stream.
    pub fn norm(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut y = self.memory.take(x.len());
        rms_norm_into(x, weight, self.weights.config.rms_norm_eps, &mut y);
        y
    }

    /// Norms the rows and keeps what was there; without weights keeps nothing and takes them as they are.
    fn optional_norm(&self, rows: Vec<f32>, weight: &[f32]) -> (Vec<f32>, Vec<f32>) {
        if weight.is_empty() {
            return (Vec::new(), rows);
        }
        let normed = self.norm(&rows, weight);
        (rows, normed)
    }

    /// The gated activation of every row.
    pub fn activated(&self, Gated { gate, up }: &Gated) -> Vec<f32> {
        let mut y = self.memory.take(gate.len());
        activate_into(&self.weights.config, (gate, up), &mut y);
        y
    }

    /// Queries, keys and values of one layer, normed and rotated.
    fn heads(&self, index: usize, normed: &[f32], inner: &mut Inner) -> Heads {
        let Some(layer) = self.weights.layers.get(index) else {
            return Heads::default();
        };
        let config = &self.weights.config;
        let query = self.project(index, Module::QProj, normed, inner);
        let key = self.project(index, Module::KProj, normed, inner);
        let (raw_query, mut query) = self.optional_norm(query, &layer.query_norm);
        let (raw_key, mut key) = self.optional_norm(key, &layer.key_norm);
        let value = self.project(index, Module::VProj, normed, inner);
        for (rows, width) in [
            (&mut query, config.query_width()),
            (&mut key, config.key_width()),
        ] {
            rotate_rows(&layer.rotary, self.segments, rows, width, 1.0);
        }
        Heads {
            raw_query,
            raw_key,
            query,
            key,
            value,
        }
    }

    /// Both inputs of one layer's gated activation.
    fn gated(&self, index: usize, post_normed: &[f32], inner: &mut Inner) -> Gated {
        Gated {
            gate: self.project(index, Module::GateProj, post_normed, inner),
            up: self.project(index, Module::UpProj, post_normed, inner),
        }
    }

    /// What the forward pass made of the same normed inputs, with the same bits.
    pub fn projected(&self, index: usize, normed: &[f32], post_normed: &[f32]) -> Projected {
        let mut inner = Inner::default();
        Projected {
            heads: self.heads(index, normed, &mut inner),
            gated: self.gated(index, post_normed, &mut inner),
        }
    }

    /// One layer: takes the residual stream and leaves what it becomes. `keep` says whether the tape is whole.
    fn layer(&self, index: usize, stream: &mut Vec<f32>, keep: bool) -> Option<LayerTape> {
        let layer = self.weights.layers.get(index)?;
        let config = &self.weights.config;
        let mut inner = Inner::default();
        let input = std::mem::take(stream);
        let normed = self.norm(&input, &layer.input_norm);
        let heads = self.heads(index, &normed, &mut inner);
        self.memory.give(normed);
        let mut attended = self.memory.take(heads.query.len());
        let mut log_sums = vec![0.0; self.rows() * config.num_attention_heads];
        let projections = Projections {
            query: &heads.query,
            key: &heads.key,
            value: &heads.value,
            window: layer.window,
        };
        attend_segments(
            self.weights,
            self.segments,
            &projections,
            &mut attended,
            &mut log_sums,
        );
        let attention = self.project(index, Module::OProj, &attended, &mut inner);
        let (raw_attention, mut middle) =
            self.optional_norm(attention, &layer.attention_output_norm);
        add(&input, &mut middle);
        let post_normed = self.norm(&middle, &layer.post_norm);
        let gated = self.gated(index, &post_normed, &mut inner);
        self.memory.give(post_normed);
        let activated = self.activated(&gated);
        let output = self.project(index, Module::DownProj, &activated, &mut inner);
        self.memory.give(activated);
        let (raw_feed_forward, mut output) =
            self.optional_norm(output, &layer.feed_forward_output_norm);
        add(&middle, &mut output);
        *stream = output;
        let projected = Projected { heads, gated };
        let projected = if keep {
            Some(projected)
        } else {
            projected.give(self.memory);
            None
        };
        Some(LayerTape {
            input,
            attended,
            log_sums,
            raw_attention,
            raw_feed_forward,
            middle,
            inner,
            projected,
        })
    }

    /// All layers: the last hidden states `[rows, hidden]`. Nothing is kept.
    pub fn run(&self, tokens: &[u32]) -> Vec<f32> {
        let mut stream = self.weights.embed(tokens.iter().copied());
        for index in 0..self.weights.layers.len() {
            let tape = self.layer(index, &mut stream, false);
            tape.into_iter().for_each(|tape| tape.give(self.memory));
        }
        stream
    }

    /// The same, with each layer's tape. As many as fit into `bytes` are whole, the last layers first: backward
    /// begins with them, and gives their memory back.
    pub fn run_keeping(&self, tokens: &[u32], bytes: usize) -> (Vec<f32>, Vec<LayerTape>) {
        let layers = self.weights.layers.len();
        let first_whole = layers - self.whole_layers(bytes).min(layers);
        let mut stream = self.weights.embed(tokens.iter().copied());
        let mut tapes = Vec::with_capacity(layers);
        for index in 0..layers {
            tapes.extend(self.layer(index, &mut stream, index >= first_whole));
        }
        (stream, tapes)
    }

    /// How many layers' tapes can be whole within `bytes`, after what every tape has.
    fn whole_layers(&self, bytes: usize) -> usize {
        let config = &self.weights.config;
        let (query, key) = (config.query_width(), config.key_width());
        let streams = if config.has_output_norms() { 4 } else { 2 };
        let always = streams * config.hidden_size + query + config.num_attention_heads;
        let norms = if config.has_query_key_norm() {
            query + key
        } else {
            0
        };
        let projected = query + 2 * key + norms + 2 * config.intermediate_size;
        let of_rows = |values: usize| self.rows() * values * size_of::<f32>();
        let left = bytes.saturating_sub(self.weights.layers.len() * of_rows(always));
        left / of_rows(projected).max(1)
    }
}

/// `y = y + x`
pub(super) fn add(x: &[f32], y: &mut [f32]) {
    const CHUNK: usize = 1 << 15;
    y.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(y, x)| kernel::add(x, y));
}

/// Values of one task of a row-wise operation: with a few wide rows, too, each thread gets some.
fn task_values(width: usize) -> usize {
    const VALUES: usize = 1 << 13;
    (VALUES / width.max(1)).clamp(1, ROWS) * width
}

/// The norm of every row.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    rms_norm_into(x, weight, eps, &mut y);
    y
}

/// The norm of every row, into `y`.
pub(super) fn rms_norm_into(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let size = task_values(weight.len());
    x.par_chunks(size)
        .zip(y.par_chunks_mut(size))
        .for_each(|(x, y)| kernel::rms_norm(x, weight, eps, y));
}

/// The gated activation of every row, into `y`.
pub(super) fn activate_into(config: &LlamaConfig, (gate, up): (&[f32], &[f32]), y: &mut [f32]) {
    let size = task_values(config.intermediate_size);
    let inputs = gate.par_chunks(size).zip(up.par_chunks(size));
    inputs
        .zip(y.par_chunks_mut(size))
        .for_each(|((gate, up), y)| match config.activation() {
            Activation::Silu => kernel::swiglu(gate, up, y),
            Activation::GeluTanh => kernel::geglu(gate, up, y),
        });
}
