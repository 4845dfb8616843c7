//! Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, equation 7).
//!
//! Of a prompt's two answers, `z = β ((log p(chosen) - log p(rejected)) - r)` where `r` is the same
//! difference under the reference, and the pair's loss is `-log σ(z)`. The reference is a number per
//! pair, made once: its weights need not be there while training.

use super::{Loss, ModelError, PackedBatch, StepSeed, TokenScore};
use crate::lora::LoraParams;
use crate::transformer::Llama;

/// One answer behind its prompt: tokens, and which of them are the answer's.
pub type Answer<'a> = (&'a [u32], &'a [bool]);

/// Pairs of a better and a worse answer in one pass.
#[derive(Debug, Clone, Default)]
pub struct PreferenceBatch {
    /// Chosen and rejected in turn.
    sequences: PackedBatch,
    /// The reference's difference of each pair.
    pub(super) references: Vec<f64>,
}

impl PreferenceBatch {
    /// Adds one pair. `reference` is [`Self::margins`] of the reference.
    pub fn push(&mut self, chosen: Answer<'_>, rejected: Answer<'_>, reference: f64) {
        self.sequences.push(chosen.0, chosen.1);
        self.sequences.push(rejected.0, rejected.1);
        self.references.push(reference);
    }

    /// How many pairs there are.
    pub fn pairs(&self) -> usize {
        self.references.len()
    }

    /// Tokens of all sequences.
    pub fn rows(&self) -> usize {
        self.sequences.rows()
    }

    /// The sequences, to be scored.
    pub fn sequences(&self) -> &PackedBatch {
        &self.sequences
    }

    /// `log p(chosen) - log p(rejected)` of each pair, from the scores of its sequences.
    pub fn margins(&self, scores: &[TokenScore]) -> Vec<f64> {
        let mut margins = vec![0.0; self.pairs()];
        for score in scores {
            let sign = if score.segment.is_multiple_of(2) {
                -1.0
            } else {
                1.0
            };
            if let Some(margin) = margins.get_mut(score.segment / 2) {
                *margin += sign * f64::from(score.nll);
            }
        }
        margins
    }
}

impl PreferenceBatch {
    /// The loss of each pair, from the scores of its sequences.
    pub fn losses(&self, scores: &[TokenScore], beta: f64) -> Vec<f64> {
        let margins = self.margins(scores);
        let pairs = margins.iter().zip(&self.references);
        pairs
            .map(|(margin, reference)| pair_loss(*margin, *reference, beta).0)
            .collect()
    }
}

/// The loss of one pair, and its derivative by `log p(chosen)`, which is the negative of that by
/// `log p(rejected)`.
pub(super) fn pair_loss(margin: f64, reference: f64, beta: f64) -> (f64, f64) {
    let z = beta * (margin - reference);
    // log(1 + exp(-z)) without overflow.
    let loss = (-z).max(0.0) + (-z.abs()).exp().ln_1p();
    (loss, -beta / (1.0 + z.exp()))
}

impl Llama {
    /// The summed loss of a batch of pairs as a differentiable function of LoRA's parameters;
    /// [`Loss::targets`] counts the pairs. Dropout is on where its probability is not zero.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, sequences that are too long, a batch without targets.
    pub fn forward_preference(
        &self,
        batch: &PreferenceBatch,
        beta: f64,
        lora: &LoraParams,
        seed: StepSeed,
    ) -> Result<Loss, ModelError> {
        let goal = super::train::Goal::Preference {
            batch: batch.clone(),
            beta,
        };
        let loss = self.forward_lora(&batch.sequences, goal, lora, seed)?;
        Ok(Loss {
            targets: batch.pairs(),
            ..loss
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::super::tests::{lora, tokens};
    use super::*;
    use crate::base::BaseModel;
    use crate::fixture::{TinyShape, random_adapter};
    use crate::lora::LoadedAdapter;

    fn mask(tokens: &[u32], first: usize) -> Vec<bool> {
        (0..tokens.len()).map(|index| index >= first).collect()
    }

    /// Two pairs, whose reference is `references`.
    fn batch(references: [f64; 2]) -> PreferenceBatch {
        let mut batch = PreferenceBatch::default();
        for (i, reference) in (0_u32..).zip(references) {
            let (chosen, rejected) = (tokens(12, i), tokens(17, 50 + i));
            batch.push(
                (&chosen, &mask(&chosen, 4)),
                (&rejected, &mask(&rejected, 4)),
                reference,
            );
        }
        batch
    }

    fn gradients(loss: &Loss, params: &LoraParams) -> Vec<f64> {
        let gradients = loss.sum.backward().unwrap();
        let of = |variable: &Var| -> Vec<f32> {
            let gradient = gradients.get(variable).unwrap();
            gradient.flatten_all().unwrap().to_vec1().unwrap()
        };
        let all = params.iter().flat_map(|(_, variable)| of(variable));
        all.map(f64::from).collect()
    }

    #[test]
    fn before_its_first_step_the_loss_is_ln_2() {
        let config = TinyShape::default().config();
        let llama = Llama::new(&BaseModel::random(config.clone(), 11));
        let fresh = LoraParams::init(&lora(4, 0.0), &config, 1).unwrap();
        let adapter = random_adapter(&config, &lora(4, 0.0), 5);
        let warm = LoraParams::from_adapter(&adapter, &config).unwrap();
        let loaded = LoadedAdapter::new(&adapter, &config).unwrap();
        for (params, reference) in [(&fresh, None), (&warm, Some(&loaded))] {
            let sequences = batch([0.0; 2]);
            let scores = llama.score(sequences.sequences(), reference).unwrap();
            let margins = sequences.margins(&scores);
            assert!(
                margins.iter().all(|margin| margin.abs() > 1e-3),
                "{margins:?}"
            );
            let batch = batch([margins[0], margins[1]]);
            let loss = llama
                .forward_preference(&batch, 0.1, params, StepSeed::default())
                .unwrap();
            assert_eq!(loss.targets, 2);
            let mean = f64::from(loss.sum.to_scalar::<f32>().unwrap()) / 2.0;
            assert!((mean - std::f64::consts::LN_2).abs() < 1e-6, "{mean}");
        }
    }

    #[test]
    fn the_gradient_is_that_of_the_two_likelihoods_by_the_chain_rule() {
        let config = TinyShape::default().config();
        let llama = Llama::new(&BaseModel::random(config.clone(), 11));
        let adapter = random_adapter(&config, &lora(4, 0.0), 5);
        let params = LoraParams::from_adapter(&adapter, &config).unwrap();
        let loaded = LoadedAdapter::new(&adapter, &config).unwrap();
        // Near the model's own margins: far from them the sigmoid leaves nothing of the gradient.
        let bare = batch([0.0; 2]);
        let margins = bare.margins(&llama.score(bare.sequences(), Some(&loaded)).unwrap());
        let (beta, references) = (0.7, [margins[0] + 1.5, margins[1] - 2.0]);
        let pairs = batch(references);
        let loss = llama
            .forward_preference(&pairs, beta, &params, StepSeed::default())
            .unwrap();
        let got = gradients(&loss, &params);

        let mut expected = vec![0.0; got.len()];
        let mut expected_loss = 0.0;
        for (i, reference) in (0_u32..).zip(references) {
            let likelihood = |tokens: &[u32]| {
                let mut batch = PackedBatch::new();
                batch.push(tokens, &mask(tokens, 4));
                let loss = llama
                    .forward_train(&batch, &params, StepSeed::default())
                    .unwrap();
                let nll = f64::from(loss.sum.to_scalar::<f32>().unwrap());
                (nll, gradients(&loss, &params))
            };
            let (chosen, chosen_gradient) = likelihood(&tokens(12, i));
            let (rejected, rejected_gradient) = likelihood(&tokens(17, 50 + i));
            let z = beta * (rejected - chosen - reference);
            let sigmoid = 1.0 / (1.0 + z.exp());
            expected_loss += (1.0 + (-z).exp()).ln();
            let parts = chosen_gradient.iter().zip(&rejected_gradient);
            for (sum, (chosen, rejected)) in expected.iter_mut().zip(parts) {
                *sum += beta * sigmoid * (chosen - rejected);
            }
        }
        let sum = f64::from(loss.sum.to_scalar::<f32>().unwrap());
        assert!((sum - expected_loss).abs() < 1e-4, "{sum} {expected_loss}");
        let scores = llama.score(pairs.sequences(), Some(&loaded)).unwrap();
        let scored: f64 = pairs.losses(&scores, beta).iter().sum();
        assert!((sum - scored).abs() < 1e-5, "{sum} {scored}");
        let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        let difference: Vec<f64> = got.iter().zip(&expected).map(|(a, b)| a - b).collect();
        assert!(norm(&expected) > 1e-4, "{}", norm(&expected));
        assert!(
            norm(&difference) < 1e-4 * norm(&expected),
            "{} of {}",
            norm(&difference),
            norm(&expected)
        );
    }

    #[test]
    fn a_pairs_loss_neither_overflows_nor_forgets_its_sign() {
        for (margin, loss, derivative) in [
            (0.0, std::f64::consts::LN_2, -0.5),
            (1e4, 0.0, 0.0),
            (-1e4, 1e4, -1.0),
        ] {
            let (got, by_chosen) = pair_loss(margin, 0.0, 1.0);
            assert!((got - loss).abs() < 1e-9 && (by_chosen - derivative).abs() < 1e-9);
        }
    }
}
