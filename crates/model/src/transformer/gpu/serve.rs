//! Rows of many sequences and adapters in one pass over the paged KV cache.
//!
//! The base product runs once for all rows; rows of one adapter stand together and add their own low-rank part.
//! Sequences that go on by one token attend together, those with more tokens each for itself.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::attention::{HeadCut, Projected};
use super::cache::GpuCache;
use super::maths::{activate, output_norm, rms_norm, rotate};
use super::rotary::Rotary;
use super::updates::GpuUpdates;
use super::weights::{GpuWeights, Layer};
use crate::lora::Module;

/// Tokens whose keys and values are read together at most.
const GATHERED_TOKENS: usize = 1 << 18;

/// The next tokens of one sequence: rows that stand one behind the other.
pub(in crate::transformer) struct SequenceRows {
    pub rows: Range<usize>,
    /// Where each token of the sequence lies in the cache, these tokens' included.
    pub places: Vec<u32>,
}

impl SequenceRows {
    fn past(&self) -> usize {
        self.places.len().saturating_sub(self.rows.len())
    }
}

/// What a pass is about.
pub(in crate::transformer) struct GpuStep<'a> {
    pub weights: &'a GpuWeights,
    pub cache: &'a GpuCache,
    /// In the order of their rows, which they all are.
    pub sequences: Vec<SequenceRows>,
    /// Rows that share an adapter, in the order of their rows; the others are the bare model's.
    pub adapters: Vec<(Range<usize>, &'a GpuUpdates)>,
}

/// Sequences that attend together.
enum Together {
    /// Each goes on by one token.
    Next {
        /// Their rows.
        rows: Tensor,
        /// `[sequences · tokens]`; a shorter one's are filled up with places that the mask hides.
        places: Tensor,
        tokens: usize,
        /// What hides keys, `[sequences, 1, 1, tokens]`, for each window that a layer has.
        masks: Vec<(Option<usize>, Tensor)>,
    },
    /// One with several tokens.
    Chunk { rows: Range<usize>, places: Tensor },
}

struct Batch<'a> {
    step: &'a GpuStep<'a>,
    parts: Vec<Together>,
    /// Where each row is in the order of the parts.
    order: Tensor,
    /// Where each row's key and value go.
    places: Tensor,
    angles: Rotary,
}

impl GpuStep<'_> {
    /// The last hidden states of all rows in f32, `[rows, hidden]`; keys and values are in the cache after it.
    pub fn run(&self, tokens: &[u32]) -> Result<Tensor> {
        let batch = self.batch()?;
        let mut stream = self.weights.embed(tokens)?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            stream = batch.layer(index, layer, &stream)?;
        }
        Ok(stream)
    }

    /// The logits of some rows, one behind the other.
    pub fn logits(&self, hidden: &Tensor, rows: Vec<u32>) -> Result<Vec<f32>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let weights = self.weights;
        let hidden = hidden.index_select(&weights.accelerator.ids(rows)?, 0)?;
        let normed = self.normed(&hidden, &weights.final_norm)?;
        let logits = weights.output.forward(&normed)?;
        logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
    }

    fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let weights = self.weights;
        rms_norm(x, weight, weights.config.rms_norm_eps)?.to_dtype(weights.accelerator.dtype())
    }

    fn batch(&self) -> Result<Batch<'_>> {
        let on = &self.weights.accelerator;
        let (mut positions, mut places) = (Vec::new(), Vec::new());
        for sequence in &self.sequences {
            let past = sequence.past();
            positions.extend((past as u32..).take(sequence.rows.len()));
            places.extend(sequence.places.iter().skip(past).copied());
        }
        let angles = self.weights.rotations(positions)?;
        let (next, chunks): (Vec<_>, Vec<_>) = self
            .sequences
            .iter()
            .partition(|sequence| sequence.rows.len() == 1);
        let (mut parts, mut order) = (Vec::new(), Vec::new());
        for group in groups(next) {
            order.extend(group.iter().map(|sequence| sequence.rows.start as u32));
            parts.push(self.next_tokens(&group)?);
        }
        for chunk in chunks {
            order.extend(chunk.rows.clone().map(|row| row as u32));
            parts.push(Together::Chunk {
                rows: chunk.rows.clone(),
                places: on.ids(chunk.places.clone())?,
            });
        }
        let mut place_of = vec![0; order.len()];
        for (place, row) in (0..).zip(order) {
            if let Some(slot) = place_of.get_mut(row as usize) {
                *slot = place;
            }
        }
        Ok(Batch {
            step: self,
            parts,
            order: on.ids(place_of)?,
            places: on.ids(places)?,
            angles,
        })
    }

    fn next_tokens(&self, group: &[&SequenceRows]) -> Result<Together> {
        let on = &self.weights.accelerator;
        let tokens = group.iter().map(|it| it.places.len()).max().unwrap_or(0);
        let places = group.iter().flat_map(|sequence| {
            let filling = std::iter::repeat(0);
            sequence.places.iter().copied().chain(filling).take(tokens)
        });
        let mut windows: Vec<Option<usize>> = Vec::new();
        for layer in &self.weights.layers {
            if !windows.contains(&layer.window) {
                windows.push(layer.window);
            }
        }
        let mask = |window: Option<usize>| -> Result<(Option<usize>, Tensor)> {
            let hidden = group.iter().flat_map(|sequence| {
                let end = sequence.places.len();
                let start = window.map_or(0, |tokens| end.saturating_sub(tokens));
                (0..tokens).map(move |key| {
                    if (start..end).contains(&key) {
                        0.0
                    } else {
                        HeadCut::HIDDEN as f32
                    }
                })
            });
            let shape = (group.len(), 1, 1, tokens);
            Ok((window, on.upload_f32(hidden.collect(), shape)?))
        };
        Ok(Together::Next {
            rows: on.ids(group.iter().map(|it| it.rows.start as u32).collect())?,
            places: on.ids(places.collect())?,
            tokens,
            masks: windows.into_iter().map(mask).collect::<Result<_>>()?,
        })
    }
}

/// Sequences of like length together, so that little is filled up, and not more than fit.
fn groups(mut sequences: Vec<&SequenceRows>) -> Vec<Vec<&SequenceRows>> {
    sequences.sort_by_key(|sequence| std::cmp::Reverse(sequence.places.len()));
    let mut groups: Vec<Vec<&SequenceRows>> = Vec::new();
    for sequence in sequences {
        match groups.last_mut() {
            Some(group)
                if group.first().map_or(0, |longest| longest.places.len()) * (group.len() + 1)
                    <= GATHERED_TOKENS =>
            {
                group.push(sequence);
            }
            _ => groups.push(vec![sequence]),
        }
    }
    groups
}

impl Batch<'_> {
    fn layer(&self, index: usize, layer: &Layer, stream: &Tensor) -> Result<Tensor> {
        let step = self.step;
        let config = &step.weights.config;
        let normed = step.normed(stream, &layer.input_norm)?;
        let query = self.project(index, Module::QProj, &normed)?;
        let key = self.project(index, Module::KProj, &normed)?;
        let value = self.project(index, Module::VProj, &normed)?;
        let query = self.heads(layer, &query, layer.query_norm.as_ref())?;
        let key = self.heads(layer, &key, layer.key_norm.as_ref())?;
        step.cache.write(index, &self.places, (&key, &value))?;
        let attended = self.attend(index, layer, &query)?;
        let middle = self.project(index, Module::OProj, &attended)?;
        let norm = layer.attention_output_norm.as_ref();
        let middle = output_norm(&middle, norm, config.rms_norm_eps)?.add(stream)?;
        let normed = step.normed(&middle, &layer.post_norm)?;
        let gate = self.project(index, Module::GateProj, &normed)?;
        let up = self.project(index, Module::UpProj, &normed)?;
        let activated = activate(config.activation(), &gate, &up)?;
        let output = self.project(index, Module::DownProj, &activated)?;
        let norm = layer.feed_forward_output_norm.as_ref();
        output_norm(&output, norm, config.rms_norm_eps)?.add(&middle)
    }

    /// `y = W x + b + s B A x`, each row with its own adapter.
    fn project(&self, layer: usize, module: Module, x: &Tensor) -> Result<Tensor> {
        let step = self.step;
        let y = step.weights.layer(layer)?.linear(module).forward(x)?;
        let (rows, _) = y.dims2()?;
        let (mut parts, mut at) = (Vec::new(), 0);
        for (range, updates) in &step.adapters {
            let Some(update) = updates.get(layer, module) else {
                continue;
            };
            if range.start > at {
                parts.push(y.narrow(0, at, range.start - at)?);
            }
            let part = |x: &Tensor| x.narrow(0, range.start, range.len());
            parts.push(part(&y)?.add(&update.apply(&part(x)?)?)?);
            at = range.end;
        }
        if at == 0 {
            return Ok(y);
        }
        if at < rows {
            parts.push(y.narrow(0, at, rows - at)?);
        }
        Tensor::cat(&parts, 0)
    }

    fn heads(&self, layer: &Layer, raw: &Tensor, norm: Option<&Tensor>) -> Result<Tensor> {
        let dim = self.step.weights.config.head_dim;
        let angles = self.angles.of(layer);
        let Some(norm) = norm else {
            return rotate(raw, dim, angles);
        };
        let (rows, width) = raw.dims2()?;
        let heads = raw.reshape((rows * width / dim, dim))?;
        let normed = self.step.normed(&heads, norm)?.reshape((rows, width))?;
        rotate(&normed, dim, angles)
    }

    fn attend(&self, index: usize, layer: &Layer, query: &Tensor) -> Result<Tensor> {
        let (weights, cache) = (self.step.weights, self.step.cache);
        let heads = HeadCut::new(&weights.config, layer.window);
        let mut outs = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            outs.push(match part {
                Together::Next {
                    rows,
                    places,
                    tokens,
                    masks,
                } => {
                    let (key, value) = cache.read(index, places)?;
                    let query = query.index_select(rows, 0)?;
                    let inputs = Projected {
                        query: &query,
                        key: &key,
                        value: &value,
                    };
                    let mask = masks.iter().find(|(window, _)| *window == layer.window);
                    let Some((_, mask)) = mask else {
                        candle_core::bail!("no mask for the window of layer {index}");
                    };
                    heads.attend_next(inputs, *tokens, mask)?
                }
                Together::Chunk { rows, places } => {
                    let (key, value) = cache.read(index, places)?;
                    let inputs = Projected {
                        query: &query.narrow(0, rows.start, rows.len())?,
                        key: &key,
                        value: &value,
                    };
                    heads.attend(inputs)?.0
                }
            });
        }
        Tensor::cat(&outs, 0)?.index_select(&self.order, 0)
    }
}
