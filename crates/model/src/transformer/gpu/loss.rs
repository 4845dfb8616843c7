//! Cross-entropy over the targets, in chunks of rows: no `[rows, vocab]` tensor is ever whole.

use candle_core::{D, DType, Result, Tensor};

use super::backward::NamedGradients;
use super::maths::rms_norm_backward;
use super::pass::GpuPass;
use crate::transformer::train::{Goal, preference_factors};
use crate::transformer::{PackedBatch, TokenScore};

/// Rows of logits that are there at a time.
const ROWS: usize = 256;

/// Some targets' rows of the last hidden states and what is made of them; everything in f32 but `normed`.
struct Chunk {
    /// Which rows they are.
    ids: Tensor,
    /// The tokens that come next, `[targets, 1]`.
    targets: Tensor,
    /// `[targets, hidden]`
    hidden: Tensor,
    /// `[targets, vocab]`
    logits: Tensor,
    /// The largest logit of each row, `[targets, 1]`.
    most: Tensor,
    /// `exp(logits - most)`, and its sum over each row.
    exponentials: Tensor,
    sum: Tensor,
}

impl Chunk {
    /// Negative log-likelihoods, `[targets]`.
    fn losses(&self) -> Result<Tensor> {
        let log_sum = self.most.add(&self.sum.log()?)?;
        log_sum
            .sub(&self.logits.gather(&self.targets, 1)?)?
            .squeeze(1)
    }

    /// Softmax less one at the target: the losses' gradient by the logits.
    fn gradient(&self) -> Result<Tensor> {
        let minus_one = self.sum.ones_like()?.neg()?;
        self.exponentials
            .broadcast_div(&self.sum)?
            .scatter_add(&self.targets, &minus_one, 1)
    }
}

impl GpuPass<'_> {
    fn chunk(&self, hidden: &Tensor, targets: &[(usize, u32)]) -> Result<Chunk> {
        let (weights, on) = (self.weights, &self.weights.accelerator);
        let ids = on.ids(targets.iter().map(|(row, _)| *row as u32).collect())?;
        let next = on.ids(targets.iter().map(|(_, token)| *token).collect())?;
        let hidden = hidden.index_select(&ids, 0)?;
        let normed = self.normed(&hidden, &weights.final_norm)?;
        let logits = weights.output.forward(&normed)?.to_dtype(DType::F32)?;
        let most = logits.max_keepdim(1)?;
        let exponentials = logits.broadcast_sub(&most)?.exp()?;
        Ok(Chunk {
            ids,
            targets: next.unsqueeze(1)?,
            hidden,
            sum: exponentials.sum_keepdim(1)?,
            logits,
            most,
            exponentials,
        })
    }

    /// The summed loss of a batch by LoRA's factors, and their gradients.
    pub fn loss_and_gradients(
        &self,
        batch: &PackedBatch,
        goal: &Goal,
        activation_bytes: usize,
    ) -> Result<(f64, NamedGradients)> {
        let (hidden, tapes) = self.run_keeping(&batch.tokens, activation_bytes)?;
        let (sum, dhidden) = match goal {
            Goal::Likelihood => self.hidden_gradient(&hidden, batch, None)?,
            Goal::Preference { batch: pairs, beta } => {
                let scores = self.target_scores(&hidden, batch)?;
                let (sum, factors) = preference_factors(pairs, *beta, &scores);
                (sum, self.hidden_gradient(&hidden, batch, Some(&factors))?.1)
            }
        };
        Ok((sum, self.run_backward(tapes, dhidden)?))
    }

    /// The summed loss over the targets, in nats, and the gradient of the last hidden states. Where there are
    /// `factors`, one for each target, each target's part of the gradient is multiplied by its own.
    fn hidden_gradient(
        &self,
        hidden: &Tensor,
        batch: &PackedBatch,
        factors: Option<&[f32]>,
    ) -> Result<(f64, Tensor)> {
        let (weights, on) = (self.weights, &self.weights.accelerator);
        let mut factors = factors.map(|factors| factors.chunks(ROWS));
        let mut losses = Vec::new();
        let mut dhidden = hidden.zeros_like()?;
        for targets in batch.targets.chunks(ROWS) {
            let chunk = self.chunk(hidden, targets)?;
            losses.push(chunk.losses()?);
            let mut dlogits = chunk.gradient()?;
            if let Some(factors) = factors.as_mut().and_then(Iterator::next) {
                let factors = on.upload_f32(factors.to_vec(), (factors.len(), 1))?;
                dlogits = dlogits.broadcast_mul(&factors)?;
            }
            let dnormed = weights.output.backward(&dlogits.to_dtype(self.dtype())?)?;
            let drows =
                rms_norm_backward(&chunk.hidden, &weights.final_norm, self.eps(), &dnormed)?;
            dhidden = dhidden.index_add(&chunk.ids, &drows, 0)?;
        }
        let losses = Tensor::cat(&losses, 0)?.to_vec1::<f32>()?;
        Ok((losses.iter().map(|loss| f64::from(*loss)).sum(), dhidden))
    }

    /// How every target was predicted, in row order.
    pub fn target_scores(&self, hidden: &Tensor, batch: &PackedBatch) -> Result<Vec<TokenScore>> {
        let segments = batch.segments.iter().enumerate();
        let segment_of: Vec<usize> = segments
            .flat_map(|(segment, tokens)| std::iter::repeat_n(segment, *tokens))
            .collect();
        let mut scores = Vec::with_capacity(batch.targets.len());
        for targets in batch.targets.chunks(ROWS) {
            let chunk = self.chunk(hidden, targets)?;
            let losses = chunk.losses()?.to_vec1::<f32>()?;
            let best = chunk.logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
            let predicted = losses.into_iter().zip(best);
            scores.extend(
                targets
                    .iter()
                    .zip(predicted)
                    .map(|((row, target), (nll, argmax))| TokenScore {
                        segment: segment_of.get(*row).copied().unwrap_or_default(),
                        row: *row,
                        target: *target,
                        argmax,
                        nll,
                    }),
            );
        }
        Ok(scores)
    }
}
