//! Direct preference optimisation: pairs of answers, what the reference makes of them, and their loss.

use candle_core::Var;
use graftwork_model::lora::{LoadedAdapter, LoraParams};
use graftwork_model::tokenizer::TokenizedExample;
use graftwork_model::transformer::{Llama, Loss, ModelError, PreferenceBatch, StepSeed};

use super::evaluate::together;
use crate::failure::Failure;
use crate::train::{MicroBatch, Objective, pack};

/// A better and a worse answer to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The prompt with the better answer.
    pub chosen: TokenizedExample,
    /// The prompt with the worse one.
    pub rejected: TokenizedExample,
    /// `log p(chosen) - log p(rejected)` under the reference; 0 until [`add_references`].
    pub reference: f64,
}

impl Pair {
    /// Tokens of both sequences.
    pub fn tokens(&self) -> usize {
        self.chosen.tokens.len() + self.rejected.tokens.len()
    }
}

impl MicroBatch for PreferenceBatch {
    type Example = Pair;

    fn add(&mut self, pair: &Pair) {
        let (chosen, rejected) = (&pair.chosen, &pair.rejected);
        self.push(
            (&chosen.tokens, &chosen.loss_mask),
            (&rejected.tokens, &rejected.loss_mask),
            pair.reference,
        );
    }

    fn targets(&self) -> usize {
        self.pairs()
    }

    fn rows(&self) -> usize {
        Self::rows(self)
    }
}

/// LoRA on a frozen base, for the better answers.
pub struct PreferenceObjective<'a> {
    /// The frozen base.
    pub model: &'a Llama,
    /// What is trained.
    pub params: &'a LoraParams,
    /// How firmly the model is held near the reference.
    pub beta: f64,
}

impl Objective for PreferenceObjective<'_> {
    type Batch = PreferenceBatch;

    fn parameters(&self) -> Vec<(&str, &Var)> {
        self.params.iter().collect()
    }

    fn loss(&self, batch: &PreferenceBatch, seed: StepSeed) -> Result<Loss, ModelError> {
        self.model
            .forward_preference(batch, self.beta, self.params, seed)
    }
}

/// Asked after every forward pass whether to go on.
pub type GoOn<'a> = &'a dyn Fn() -> Result<(), Failure>;

/// Gives every pair what the reference makes of it: once, so that the reference's weights need not be
/// there afterwards.
///
/// # Errors
/// The forward pass's, or what `go_on` says.
pub fn add_references(
    pairs: &mut [Pair],
    model: &Llama,
    reference: Option<&LoadedAdapter>,
    go_on: GoOn<'_>,
) -> Result<(), Failure> {
    let mut margins = Vec::with_capacity(pairs.len());
    for part in together(pairs, Pair::tokens) {
        let batch = batch(part);
        let scores = score(model, &batch, reference)?;
        margins.extend(batch.margins(&scores));
        go_on()?;
    }
    for (pair, margin) in pairs.iter_mut().zip(margins) {
        pair.reference = margin;
    }
    Ok(())
}

/// The mean loss of pairs that have their reference, with an adapter.
///
/// # Errors
/// The forward pass's, or what `go_on` says.
pub fn mean_loss(
    pairs: &[Pair],
    model: &Llama,
    adapter: &LoadedAdapter,
    beta: f64,
    go_on: GoOn<'_>,
) -> Result<f64, Failure> {
    let mut sum = 0.0;
    for part in together(pairs, Pair::tokens) {
        let batch = batch(part);
        let scores = score(model, &batch, Some(adapter))?;
        sum += batch.losses(&scores, beta).iter().sum::<f64>();
        go_on()?;
    }
    Ok(sum / pairs.len().max(1) as f64)
}

fn batch(pairs: &[Pair]) -> PreferenceBatch {
    let all: Vec<usize> = (0..pairs.len()).collect();
    pack::<PreferenceBatch>(pairs, &all)
}

fn score(
    model: &Llama,
    batch: &PreferenceBatch,
    adapter: Option<&LoadedAdapter>,
) -> Result<Vec<graftwork_model::transformer::TokenScore>, Failure> {
    model
        .score(batch.sequences(), adapter)
        .map_err(|error| Failure::from(&error))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use graftwork_contract::exit::ExitCode;
    use graftwork_contract::run::Schedule;
    use graftwork_model::base::BaseModel;
    use graftwork_model::fixture::TinyShape;
    use graftwork_model::lora::{LoraConfig, Module};
    use graftwork_model::peft::Adapter;
    use graftwork_model::targets::Targets;
    use serde::Deserialize;

    use super::*;
    use crate::optimizer::AdamWConfig;
    use crate::order::{Batches, Length, Size};
    use crate::schedule::LearningRate;
    use crate::train::{Outcome, Plan, Training};

    fn example(tokens: std::ops::Range<u32>) -> TokenizedExample {
        let tokens: Vec<u32> = tokens.collect();
        TokenizedExample {
            loss_mask: (0..tokens.len()).map(|index| index >= 3).collect(),
            tokens,
        }
    }

    fn pairs() -> Vec<Pair> {
        (1..=5)
            .map(|n| Pair {
                chosen: example(n..n + 9),
                rejected: example(n..n + 12),
                reference: 0.0,
            })
            .collect()
    }

    #[test]
    fn a_fresh_adapter_has_the_loss_ln_2_on_every_pair() {
        let config = TinyShape::default().config();
        let model = Llama::new(&BaseModel::random(config.clone(), 4));
        let lora = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets: Targets::of(&Module::ALL),
            use_rslora: false,
        };
        let params = LoraParams::init(&lora, &config, 1).unwrap();
        let mut pairs = pairs();
        add_references(&mut pairs, &model, None, &|| Ok(())).unwrap();
        assert!(pairs.iter().all(|pair| pair.reference > 1.0), "{pairs:?}");
        let objective = PreferenceObjective {
            model: &model,
            params: &params,
            beta: 0.1,
        };
        let batch = batch(&pairs);
        let loss = objective.loss(&batch, StepSeed::default()).unwrap();
        let mean = f64::from(loss.sum.to_scalar::<f32>().unwrap()) / loss.targets as f64;
        assert!((mean - std::f64::consts::LN_2).abs() < 1e-6, "{mean}");
        let adapter = params.to_adapter("tiny").unwrap();
        let adapter = LoadedAdapter::new(&adapter, &config).unwrap();
        let scored = mean_loss(&pairs, &model, &adapter, 0.1, &|| Ok(())).unwrap();
        assert!((scored - std::f64::consts::LN_2).abs() < 1e-6, "{scored}");
    }

    #[test]
    fn a_stop_is_heard_between_passes() {
        let model = Llama::new(&BaseModel::random(TinyShape::default().config(), 4));
        let stop = || Err(Failure::checkpointed("stopped"));
        let stopped = add_references(&mut pairs(), &model, None, &stop).unwrap_err();
        assert_eq!(stopped.code, ExitCode::Checkpointed);
    }

    /// What TRL was recorded to do (parity/preference.py).
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Recorded {
        pairs: Vec<RecordedPair>,
        beta: f64,
        references: Vec<f64>,
        /// Before each step, and after the last.
        losses: Vec<f64>,
        learning_rate: f64,
        weight_decay: f64,
    }

    #[derive(Deserialize)]
    struct RecordedPair {
        #[serde(rename = "prompt_ids")]
        prompt: Vec<u32>,
        #[serde(rename = "chosen_ids")]
        chosen: Vec<u32>,
        #[serde(rename = "rejected_ids")]
        rejected: Vec<u32>,
    }

    impl RecordedPair {
        fn with(&self, answer: &[u32]) -> TokenizedExample {
            let tokens = [self.prompt.as_slice(), answer].concat();
            let prompt = self.prompt.len();
            TokenizedExample {
                loss_mask: (0..tokens.len()).map(|index| index >= prompt).collect(),
                tokens,
            }
        }

        fn pair(&self) -> Pair {
            Pair {
                chosen: self.with(&self.chosen),
                rejected: self.with(&self.rejected),
                reference: 0.0,
            }
        }
    }

    #[test]
    fn a_run_of_twenty_steps_is_that_of_trl() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity/fixtures");
        let text = std::fs::read_to_string(dir.join("preference/expected.json")).unwrap();
        let recorded: Recorded = serde_json::from_str(&text).unwrap();
        let model = Llama::new(&BaseModel::load(&dir.join("llama/base")).unwrap());
        let start = Adapter::load(&dir.join("llama/adapter")).unwrap();
        let params = LoraParams::from_adapter(&start, model.config()).unwrap();
        let mut pairs: Vec<Pair> = recorded.pairs.iter().map(RecordedPair::pair).collect();
        add_references(&mut pairs, &model, None, &|| Ok(())).unwrap();
        assert_eq!(pairs.len(), recorded.references.len());
        for (pair, reference) in pairs.iter().zip(&recorded.references) {
            assert!((pair.reference - reference).abs() < 1e-3, "{pair:?}");
        }

        let objective = PreferenceObjective {
            model: &model,
            params: &params,
            beta: recorded.beta,
        };
        let steps = recorded.losses.len() as u64 - 1;
        assert!(steps >= 20);
        let lengths = pairs.iter().map(|pair| pair.tokens() as u32).collect();
        let whole = Size::Examples(pairs.len());
        let batches = Batches::new(0, lengths, whole, Length::Steps(steps));
        let plan = Plan {
            micro_batch: Size::Examples(3),
            rate: LearningRate {
                peak: recorded.learning_rate,
                schedule: Schedule::Constant,
                warmup_steps: 0,
                total_steps: steps,
            },
            optimizer: AdamWConfig {
                weight_decay: recorded.weight_decay,
                ..AdamWConfig::default()
            },
            maximum_gradient_norm: 0.0,
            seed: 0,
        };
        let mut training = Training::start(&objective, &pairs, batches, plan).unwrap();
        let mut losses = Vec::new();
        while !training.is_finished() {
            let Outcome::Stepped { loss, .. } = training.step(|| false).unwrap() else {
                panic!("nobody asked to stop");
            };
            losses.push(loss);
        }
        assert!(losses[losses.len() - 1] < 0.7 * losses[0], "{losses:?}");
        for (loss, expected) in losses.iter().zip(&recorded.losses) {
            assert!((loss - expected).abs() < 1e-2, "{losses:?}");
        }
    }
}
