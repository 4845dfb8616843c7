//! Cross-entropy over the targets, in chunks of rows: no `[rows, vocab]` matrix is ever whole.

use super::backward::Gradients;
use super::forward::{Pass, rms_norm};
use super::gpu::{GpuPass, GpuWeights};
use super::memory::Memory;
use super::weights::Place;
use super::{ModelError, PackedBatch};
use crate::base::{EMBEDDING, FINAL_NORM, OUTPUT};
use crate::kernel::{Epilogue, cross_entropy_gradient, log_sum_exp};
use crate::lora::LoadedAdapter;
use crate::sampler::argmax;
use crate::transformer::Llama;
use rayon::prelude::*;

/// Bytes of logits that are there at a time, as long as these are [`ROWS`] at most and [`LEAST_ROWS`] at least. For
/// every such chunk a quantised output projection is read anew, once for each direction.
const LOGIT_BYTES: usize = 48 << 20;
const ROWS: usize = 504;
const LEAST_ROWS: usize = 132;
/// Rows of the products' tiles.
const TILE_ROWS: usize = 12;

/// Rows of logits that are there at a time: all chunks have about as many.
fn chunk_rows(targets: usize, vocabulary: usize) -> usize {
    let most = LOGIT_BYTES / (vocabulary.max(1) * size_of::<f32>());
    let most = most.clamp(LEAST_ROWS, ROWS) / TILE_ROWS * TILE_ROWS;
    let chunks = targets.div_ceil(most).max(1);
    targets
        .div_ceil(chunks)
        .next_multiple_of(TILE_ROWS)
        .max(TILE_ROWS)
}

/// How one target was predicted, teacher forced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// Number of the sequence in the batch.
    pub segment: usize,
    /// Row of the batch that predicts it.
    pub row: usize,
    /// The token that comes next.
    pub target: u32,
    /// The token with the highest logit.
    pub argmax: u32,
    /// Negative log-likelihood of the target, in nats.
    pub nll: f32,
}

/// The targets' rows of the last hidden states, one behind the other.
fn gather(hidden: &[f32], targets: &[(usize, u32)], width: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(targets.len() * width);
    for (row, _) in targets {
        rows.extend_from_slice(
            hidden
                .get(row * width..(row + 1) * width)
                .unwrap_or_default(),
        );
    }
    rows
}

impl Pass<'_> {
    /// The summed loss over the targets, in nats; the gradient of the last hidden states. Where there
    /// are `factors`, one for each target, each target's part of the gradient is multiplied by its own.
    pub fn loss_and_gradient(
        &self,
        hidden: &[f32],
        targets: &[(usize, u32)],
        factors: Option<&[f32]>,
        gradients: &mut Gradients<'_>,
    ) -> (f64, Vec<f32>) {
        let (config, weights) = (&self.weights.config, self.weights);
        let (width, vocabulary) = (config.hidden_size, config.vocab_size);
        let rows = gather(hidden, targets, width);
        let normed = rms_norm(&rows, &weights.final_norm, config.rms_norm_eps);
        let mut dnormed = vec![0.0; normed.len()];
        let mut sum = 0.0;
        let output = if config.tie_word_embeddings {
            EMBEDDING
        } else {
            OUTPUT
        };
        let at_once = chunk_rows(targets.len(), vocabulary);
        let chunks = normed
            .chunks(at_once * width)
            .zip(dnormed.chunks_mut(at_once * width))
            .zip(targets.chunks(at_once));
        let mut factors = factors.map(|factors| factors.chunks(at_once));
        let mut memory = vec![0.0; targets.len().min(at_once) * vocabulary];
        for ((normed, dnormed), targets) in chunks {
            let logits = memory.get_mut(..targets.len() * vocabulary);
            let logits = logits.unwrap_or_default();
            weights.output.forward(normed, logits, Epilogue::Store);
            let losses: Vec<f32> = logits
                .par_chunks_mut(vocabulary)
                .zip(targets)
                .map(|(logits, (_, target))| {
                    let log_sum = log_sum_exp(logits);
                    let loss = log_sum - logits.get(*target as usize).copied().unwrap_or_default();
                    cross_entropy_gradient(logits, log_sum, *target as usize);
                    loss
                })
                .collect();
            sum += losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
            if let Some(factors) = factors.as_mut().and_then(Iterator::next) {
                logits
                    .par_chunks_mut(vocabulary)
                    .zip(factors)
                    .for_each(|(logits, factor)| {
                        logits.iter_mut().for_each(|value| *value *= factor);
                    });
            }
            weights.output.backward(logits, dnormed, Epilogue::Store);
            if gradients.full {
                gradients.outer(output, (logits, vocabulary), (normed, width));
            }
        }
        let mut drows = vec![0.0; rows.len()];
        gradients.norm(
            FINAL_NORM,
            (&rows, &weights.final_norm, config.rms_norm_eps),
            &dnormed,
            &mut drows,
        );
        let mut dhidden = vec![0.0; hidden.len()];
        for ((row, _), gradient) in targets.iter().zip(drows.chunks_exact(width)) {
            if let Some(to) = dhidden.get_mut(row * width..(row + 1) * width) {
                to.copy_from_slice(gradient);
            }
        }
        (sum, dhidden)
    }

    /// How every target was predicted, in row order.
    pub fn target_scores(&self, hidden: &[f32], batch: &PackedBatch) -> Vec<TokenScore> {
        let weights = self.weights;
        let config = &weights.config;
        let (width, vocabulary) = (config.hidden_size, config.vocab_size);
        let normed = rms_norm(
            &gather(hidden, &batch.targets, width),
            &weights.final_norm,
            config.rms_norm_eps,
        );
        let segment_of: Vec<usize> = batch
            .segments
            .iter()
            .enumerate()
            .flat_map(|(segment, tokens)| std::iter::repeat_n(segment, *tokens))
            .collect();
        let mut scores = Vec::with_capacity(batch.targets.len());
        let at_once = chunk_rows(batch.targets.len(), vocabulary);
        let mut memory = vec![0.0; batch.targets.len().min(at_once) * vocabulary];
        let chunks = normed.chunks(at_once * width);
        for (normed, targets) in chunks.zip(batch.targets.chunks(at_once)) {
            let logits = memory.get_mut(..targets.len() * vocabulary);
            let logits = logits.unwrap_or_default();
            weights.output.forward(normed, logits, Epilogue::Store);
            scores.par_extend(logits.par_chunks(vocabulary).zip(targets).map(
                |(logits, (row, target))| TokenScore {
                    segment: segment_of.get(*row).copied().unwrap_or_default(),
                    row: *row,
                    target: *target,
                    argmax: argmax(logits),
                    nll: log_sum_exp(logits)
                        - logits.get(*target as usize).copied().unwrap_or_default(),
                },
            ));
        }
        scores
    }
}

impl Llama {
    /// Scores every target of the batch, with an adapter or with the bare model, in row order.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, sequences that are too long, an adapter of another shape.
    pub fn score(
        &self,
        batch: &PackedBatch,
        adapter: Option<&LoadedAdapter>,
    ) -> Result<Vec<TokenScore>, ModelError> {
        let config = self.config();
        batch.check(config)?;
        if adapter.is_some_and(|adapter| !adapter.fits(config)) {
            return Err(ModelError::ForeignAdapter);
        }
        let weights = match &self.place {
            Place::Host(weights) => &**weights,
            Place::Gpu(weights) => return score_on_gpu(weights, batch, adapter),
        };
        let pass = Pass {
            weights,
            lora: adapter.map(LoadedAdapter::layers),
            dropout: None,
            segments: &batch.segments,
            memory: &Memory::default(),
        };
        let hidden = pass.run(&batch.tokens);
        pass.memory.clear();
        Ok(pass.target_scores(&hidden, batch))
    }
}

fn score_on_gpu(
    weights: &GpuWeights,
    batch: &PackedBatch,
    adapter: Option<&LoadedAdapter>,
) -> Result<Vec<TokenScore>, ModelError> {
    if batch.targets.is_empty() {
        return Ok(Vec::new());
    }
    let updates = adapter.map(|adapter| adapter.on_gpu(weights.accelerator()));
    let updates = updates.transpose()?;
    let pass = GpuPass::new(weights, updates, None, &batch.segments)?;
    let hidden = pass.run(&batch.tokens)?;
    Ok(pass.target_scores(&hidden, batch)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_take_their_share_of_memory_and_chunks_are_alike() {
        for (targets, vocabulary, rows) in [
            (0, 256, 12),
            (5, 256, 12),
            (500, 256, 504),
            (1020, 256, 348),
            (1020, 32_000, 348),
            (1020, 151_936, 132),
            (140, 151_936, 72),
        ] {
            assert_eq!(
                chunk_rows(targets, vocabulary),
                rows,
                "{targets} of {vocabulary}"
            );
        }
    }
}
