//! The forward pass over whole sequences, keeping what backward needs.

use candle_core::{DType, Result, Tensor};

use super::attention::{HeadCut, Projected};
use super::dropout::DropOut;
use super::maths::{activate, output_norm, rms_norm, rotate};
use super::rotary::Rotary;
use super::updates::{GpuUpdate, GpuUpdates};
use super::weights::{GpuWeights, Layer};
use crate::lora::Module;
use crate::transformer::forward::Dropout;

/// A pass over packed sequences.
pub(in crate::transformer) struct GpuPass<'a> {
    pub(super) weights: &'a GpuWeights,
    updates: Option<&'a GpuUpdates>,
    dropout: Option<Dropout>,
    /// Tokens of each sequence.
    segments: &'a [usize],
    angles: Rotary,
}

/// What backward needs of one layer; widths as the names say.
pub(super) struct Tape {
    /// The layer's input in f32, `[rows, hidden]`.
    pub input: Tensor,
    pub attended: Tensor,
    /// Of each sequence, tile by tile.
    pub log_sums: Vec<Vec<Tensor>>,
    /// Outputs of attention and of the feed-forward layer before their norm, `[rows, hidden]`, where the family has
    /// one.
    pub raw_attention: Option<Tensor>,
    pub raw_feed_forward: Option<Tensor>,
    /// After attention's residual in f32, `[rows, hidden]`.
    pub middle: Tensor,
    /// None where it is to be computed again.
    pub projected: Option<Inputs>,
}

/// What a layer's projections make of its two normed inputs.
pub(super) struct Inputs {
    pub attention: AttentionInputs,
    pub gate: Tensor,
    pub up: Tensor,
}

/// What attention reads.
pub(super) struct AttentionInputs {
    /// Queries and keys before their norm, where the family has one.
    pub raw_query: Option<Tensor>,
    pub raw_key: Option<Tensor>,
    pub query: Tensor,
    pub key: Tensor,
    pub value: Tensor,
}

impl AttentionInputs {
    /// The rows of one sequence.
    pub fn part(&self, start: usize, count: usize) -> Result<[Tensor; 3]> {
        Ok([
            self.query.narrow(0, start, count)?,
            self.key.narrow(0, start, count)?,
            self.value.narrow(0, start, count)?,
        ])
    }
}

impl<'a> GpuPass<'a> {
    /// A pass over sequences of so many tokens each.
    pub fn new(
        weights: &'a GpuWeights,
        updates: Option<&'a GpuUpdates>,
        dropout: Option<Dropout>,
        segments: &'a [usize],
    ) -> Result<Self> {
        let positions = segments.iter().flat_map(|tokens| 0..*tokens as u32);
        let angles = weights.rotations(positions.collect())?;
        Ok(Self {
            weights,
            updates,
            dropout,
            segments,
            angles,
        })
    }

    pub(super) fn dtype(&self) -> DType {
        self.weights.accelerator.dtype()
    }

    pub(super) fn eps(&self) -> f32 {
        self.weights.config.rms_norm_eps
    }

    pub(super) fn update(&self, (layer, module): (usize, Module)) -> Option<&'a GpuUpdate> {
        self.updates.and_then(|updates| updates.get(layer, module))
    }

    /// First row and rows of each sequence that has any.
    pub(super) fn parts(&self) -> Vec<(usize, usize)> {
        let starts = self.segments.iter().scan(0_usize, |end, tokens| {
            let start = *end;
            *end += *tokens;
            Some((start, *tokens))
        });
        starts.filter(|(_, tokens)| *tokens > 0).collect()
    }

    /// LoRA's input, or its gradient, with dropped elements where there is dropout.
    pub(super) fn dropped(&self, (layer, module): (usize, Module), x: &Tensor) -> Result<Tensor> {
        let Some(dropout) = self.dropout else {
            return Ok(x.clone());
        };
        let op = DropOut {
            dropout,
            layer,
            module,
        };
        op.apply(x)
    }

    /// `y = W x + b + s B A drop(x)`
    fn project(&self, at: (usize, Module), x: &Tensor) -> Result<Tensor> {
        let (layer, module) = at;
        let y = self.weights.layer(layer)?.linear(module).forward(x)?;
        match self.update(at) {
            None => Ok(y),
            Some(update) => y.add(&update.apply(&self.dropped(at, x)?)?),
        }
    }

    /// A row-wise norm of the residual stream, as products read it.
    pub(super) fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        rms_norm(x, weight, self.eps())?.to_dtype(self.dtype())
    }

    /// Queries or keys as attention sees them: normed where the family does it, rotated.
    fn heads(&self, layer: &Layer, raw: &Tensor, norm: Option<&Tensor>) -> Result<Tensor> {
        let dim = self.weights.config.head_dim;
        let angles = self.angles.of(layer);
        let Some(norm) = norm else {
            return rotate(raw, dim, angles);
        };
        let (rows, width) = raw.dims2()?;
        let heads = raw.reshape((rows * width / dim, dim))?;
        let normed = self.normed(&heads, norm)?.reshape((rows, width))?;
        rotate(&normed, dim, angles)
    }

    /// The way back through the rotation.
    pub(super) fn unrotated(&self, layer: &Layer, x: &Tensor) -> Result<Tensor> {
        let (cos, sin) = self.angles.of(layer);
        rotate(x, self.weights.config.head_dim, (cos, &sin.neg()?))
    }

    fn attention_inputs(&self, index: usize, normed: &Tensor) -> Result<AttentionInputs> {
        let layer = self.weights.layer(index)?;
        let raw_query = self.project((index, Module::QProj), normed)?;
        let raw_key = self.project((index, Module::KProj), normed)?;
        let query = self.heads(layer, &raw_query, layer.query_norm.as_ref())?;
        let key = self.heads(layer, &raw_key, layer.key_norm.as_ref())?;
        Ok(AttentionInputs {
            raw_query: layer.query_norm.is_some().then_some(raw_query),
            raw_key: layer.key_norm.is_some().then_some(raw_key),
            query,
            key,
            value: self.project((index, Module::VProj), normed)?,
        })
    }

    /// What the forward pass made of the same normed inputs.
    pub(super) fn inputs(
        &self,
        index: usize,
        normed: &Tensor,
        post_normed: &Tensor,
    ) -> Result<Inputs> {
        Ok(Inputs {
            attention: self.attention_inputs(index, normed)?,
            gate: self.project((index, Module::GateProj), post_normed)?,
            up: self.project((index, Module::UpProj), post_normed)?,
        })
    }

    fn attend(
        &self,
        layer: &Layer,
        inputs: &AttentionInputs,
    ) -> Result<(Tensor, Vec<Vec<Tensor>>)> {
        let heads = HeadCut::new(&self.weights.config, layer.window);
        let (mut parts, mut log_sums) = (Vec::new(), Vec::new());
        for (start, count) in self.parts() {
            let [query, key, value] = &inputs.part(start, count)?;
            let (out, sums) = heads.attend(Projected { query, key, value })?;
            parts.push(out);
            log_sums.push(sums);
        }
        Ok((Tensor::cat(&parts, 0)?, log_sums))
    }

    /// One layer. `keep` says whether the tape is whole.
    fn layer(&self, index: usize, input: Tensor, keep: bool) -> Result<(Tensor, Tape)> {
        let layer = self.weights.layer(index)?;
        let (eps, activation) = (self.eps(), self.weights.config.activation());
        let normed = self.normed(&input, &layer.input_norm)?;
        let attention = self.attention_inputs(index, &normed)?;
        let (attended, log_sums) = self.attend(layer, &attention)?;
        let raw_attention = self.project((index, Module::OProj), &attended)?;
        let norm = layer.attention_output_norm.as_ref();
        let middle = output_norm(&raw_attention, norm, eps)?.add(&input)?;
        let post_normed = self.normed(&middle, &layer.post_norm)?;
        let gate = self.project((index, Module::GateProj), &post_normed)?;
        let up = self.project((index, Module::UpProj), &post_normed)?;
        let activated = activate(activation, &gate, &up)?;
        let raw_feed_forward = self.project((index, Module::DownProj), &activated)?;
        let norm = layer.feed_forward_output_norm.as_ref();
        let output = output_norm(&raw_feed_forward, norm, eps)?.add(&middle)?;
        let has_norms = self.weights.config.has_output_norms();
        let projected = Inputs {
            attention,
            gate,
            up,
        };
        let tape = Tape {
            input,
            attended,
            log_sums,
            raw_attention: has_norms.then_some(raw_attention),
            raw_feed_forward: has_norms.then_some(raw_feed_forward),
            middle,
            projected: keep.then_some(projected),
        };
        Ok((output, tape))
    }

    /// All layers: the last hidden states in f32, `[rows, hidden]`. Nothing is kept.
    pub fn run(&self, tokens: &[u32]) -> Result<Tensor> {
        let mut stream = self.weights.embed(tokens)?;
        for index in 0..self.weights.layers.len() {
            (stream, _) = self.layer(index, stream, false)?;
        }
        Ok(stream)
    }

    /// The same, with each layer's tape. As many as fit into `bytes` are whole, the last layers first.
    pub(super) fn run_keeping(&self, tokens: &[u32], bytes: usize) -> Result<(Tensor, Vec<Tape>)> {
        let layers = self.weights.layers.len();
        let first_whole = layers - self.whole_layers(tokens.len(), bytes).min(layers);
        let mut stream = self.weights.embed(tokens)?;
        let mut tapes = Vec::with_capacity(layers);
        for index in 0..layers {
            let (output, tape) = self.layer(index, stream, index >= first_whole)?;
            stream = output;
            tapes.push(tape);
        }
        Ok((stream, tapes))
    }

    /// How many layers' tapes can be whole within `bytes`, after what every tape has.
    fn whole_layers(&self, rows: usize, bytes: usize) -> usize {
        let config = &self.weights.config;
        let size = self.dtype().size_in_bytes();
        let (query, key) = (config.query_width(), config.key_width());
        let always = (2 * config.hidden_size + config.num_attention_heads) * size_of::<f32>();
        let raw = if config.has_output_norms() {
            2 * config.hidden_size
        } else {
            0
        };
        let always = rows * (always + (query + raw) * size);
        let norms = if config.has_query_key_norm() {
            query + key
        } else {
            0
        };
        let projected = query + 2 * key + norms + 2 * config.intermediate_size;
        let left = bytes.saturating_sub(self.weights.layers.len() * always);
        left / (rows * projected * size).max(1)
    }
}
