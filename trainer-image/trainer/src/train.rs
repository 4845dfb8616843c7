//! One optimiser step after another: micro-batches, accumulated gradients, clipping, AdamW.
//!
//! The loop that saves, reports and stops is the caller's; this module only computes.

use candle_core::{Tensor, Var};
use graftwork_model::transformer::{Loss, ModelError, PackedBatch, StepSeed};

use crate::optimizer::{AdamW, AdamWConfig, Parameter, accumulate, clip_scale, global_norm};
use crate::order::{Batches, Size};
use crate::schedule::LearningRate;
use graftwork_model::tokenizer::TokenizedExample;

/// Steps whose mean loss is reported.
pub const LOSS_WINDOW: usize = 20;
/// A loss above this many times the newest steps' mean and so many nats more has exploded; a model
/// that knows nothing has ln of the vocabulary, 12 nats at most.
const EXPLOSION_FACTOR: f64 = 10.0;
const EXPLOSION_NATS: f64 = 10.0;
/// Steps that make a mean.
const EXPLOSION_STEPS: usize = 5;
/// A gradient this many times as long as what it is scaled down to (as 1 where that is less, or where
/// nothing is scaled) has exploded: what is left of it is rounding.
const EXPLOSION_NORM: f64 = 1e6;
/// Micro-batches that one step may have at most; beyond it, dropout would repeat.
pub const MAXIMUM_MICRO_BATCHES: u64 = 1 << 16;

/// What one forward and backward pass holds.
pub trait MicroBatch: Default {
    /// What is dealt into batches.
    type Example;

    /// Adds one example.
    fn add(&mut self, example: &Self::Example);
    /// What the loss is a mean over: tokens, or pairs.
    fn targets(&self) -> usize;
    /// Tokens passed through the model.
    fn rows(&self) -> usize;
}

impl MicroBatch for PackedBatch {
    type Example = TokenizedExample;

    fn add(&mut self, example: &TokenizedExample) {
        self.push(&example.tokens, &example.loss_mask);
    }

    fn targets(&self) -> usize {
        Self::targets(self)
    }

    fn rows(&self) -> usize {
        Self::rows(self)
    }
}

/// What is optimised.
pub trait Objective {
    /// What a pass is made of.
    type Batch: MicroBatch;

    /// The trained tensors, in name order.
    fn parameters(&self) -> Vec<(&str, &Var)>;
    /// The summed loss of one micro-batch.
    ///
    /// # Errors
    /// The forward pass's.
    fn loss(&self, batch: &Self::Batch, seed: StepSeed) -> Result<Loss, ModelError>;
}

/// What an objective's batches are dealt from.
pub type ExampleOf<O> = <<O as Objective>::Batch as MicroBatch>::Example;

/// How steps are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// How much one forward and backward pass holds.
    pub micro_batch: Size,
    /// The learning rate's course.
    pub rate: LearningRate,
    /// AdamW's constants.
    pub optimizer: AdamWConfig,
    /// Gradients are scaled down to this 2-norm; 0: never.
    pub maximum_gradient_norm: f64,
    /// Of dropout.
    pub seed: u64,
}

/// Everything that a resumed training needs to go on with the same bits.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Finished optimiser steps.
    pub step: u64,
    /// Micro-batches of the next step that are already in `gradients`.
    pub micro_batch: u64,
    /// Their summed loss over the number of targets of the whole batch.
    pub batch_loss: f64,
    /// Tokens passed through the model.
    pub tokens: u64,
    /// Mean loss of each of the newest steps, at most [`LOSS_WINDOW`], oldest first.
    pub losses: Vec<f64>,
    /// The trained tensors' values, in name order.
    pub parameters: Vec<Vec<f32>>,
    /// Accumulated gradients, in name order.
    pub gradients: Vec<Vec<f32>>,
    /// The optimiser's moments.
    pub optimizer: AdamW,
    /// What validation has found, where there was one.
    pub validation: Option<Validation>,
}

/// What validation has found so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Validation {
    /// The newest step that was validated.
    pub step: u64,
    /// Validations after the best one.
    pub worse: u64,
    /// The step with the lowest loss.
    pub best_step: u64,
    /// That loss, in nats.
    pub best_loss: f64,
    /// The trained tensors' values of that step, in name order.
    pub best: Vec<Vec<f32>>,
}

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The loss or a gradient is no number any more.
    #[error(
        "{what} of step {step} is {value}: lower hyperparameters.learningRate or maximumGradientNorm"
    )]
    Diverged {
        /// `loss`, `gradient norm` or `a trained value`.
        what: &'static str,
        /// The step, from 1.
        step: u64,
        /// NaN or infinity.
        value: f64,
    },
    /// The loss is a number, but no training's.
    #[error(
        "loss of step {step} is {loss} after {before:.3} in the steps before: lower \
         hyperparameters.learningRate or maximumGradientNorm"
    )]
    Exploded {
        /// The step, from 1.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Mean of the newest steps before it.
        before: f64,
    },
    /// The gradient is a number, but no training's.
    #[error(
        "gradient norm of step {step} is {norm:.3e}, above {limit:.0e}: lower \
         hyperparameters.learningRate, or raise warmupSteps"
    )]
    ExplodedGradient {
        /// The step, from 1.
        step: u64,
        /// The gradient's 2-norm.
        norm: f64,
        /// What it may be.
        limit: f64,
    },
    /// A parameter that the loss does not depend on.
    #[error("parameter {0} has no gradient")]
    NoGradient(String),
    /// The saved state is of other parameters.
    #[error("the saved state has {got} elements in {name}, the model has {expected}")]
    Shape {
        /// The parameter.
        name: String,
        /// Elements in the model.
        expected: usize,
        /// Elements in the state.
        got: usize,
    },
    /// The forward pass.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// What a call of [`Training::step`] ended with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// One more optimiser step is done.
    Stepped {
        /// Mean loss of the batch's targets, in nats.
        loss: f64,
        /// The gradient's 2-norm before clipping.
        gradient_norm: f64,
        /// The learning rate that was used.
        rate: f64,
    },
    /// The caller asked to stop in the midst of a batch.
    Interrupted,
}

/// A training in progress.
pub struct Training<'a, O: Objective> {
    objective: &'a O,
    examples: &'a [ExampleOf<O>],
    batches: Batches,
    plan: Plan,
    state: State,
}

impl<'a, O: Objective> Training<'a, O> {
    /// Starts at step 0 with the objective's present values.
    ///
    /// # Errors
    /// A tensor that can't be read.
    pub fn start(
        objective: &'a O,
        examples: &'a [ExampleOf<O>],
        batches: Batches,
        plan: Plan,
    ) -> Result<Self, TrainError> {
        let parameters = read_parameters(objective)?;
        let elements: Vec<usize> = parameters.iter().map(Vec::len).collect();
        let state = State {
            step: 0,
            micro_batch: 0,
            batch_loss: 0.0,
            tokens: 0,
            losses: Vec::new(),
            gradients: elements.iter().map(|count| vec![0.0; *count]).collect(),
            optimizer: AdamW::new(plan.optimizer, &elements),
            parameters,
            validation: None,
        };
        Ok(Self {
            objective,
            examples,
            batches,
            plan,
            state,
        })
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// The state's shapes are not the objective's.
    pub fn restore(&mut self, state: State) -> Result<(), TrainError> {
        let names = self.objective.parameters();
        for (index, (name, variable)) in names.iter().enumerate() {
            let expected = variable.as_tensor().elem_count();
            let lists = [
                &state.parameters,
                &state.gradients,
                &state.optimizer.first,
                &state.optimizer.second,
            ];
            let best = state.validation.as_ref().map(|validation| &validation.best);
            for list in lists.into_iter().chain(best) {
                let got = list.get(index).map_or(0, Vec::len);
                if got != expected || list.len() != names.len() {
                    return Err(TrainError::Shape {
                        name: (*name).to_owned(),
                        expected,
                        got,
                    });
                }
            }
        }
        self.state = state;
        self.write_parameters()
    }

    /// What a checkpoint holds.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The batches.
    pub fn batches(&self) -> &Batches {
        &self.batches
    }

    /// Whether every step is done.
    pub fn is_finished(&self) -> bool {
        self.state.step >= self.batches.steps()
    }

    /// Takes note of the loss on rows that are not trained on.
    pub fn validated(&mut self, loss: f64) {
        let state = &mut self.state;
        match &mut state.validation {
            Some(validation) if loss >= validation.best_loss => {
                validation.step = state.step;
                validation.worse += 1;
            }
            validation => {
                *validation = Some(Validation {
                    step: state.step,
                    worse: 0,
                    best_step: state.step,
                    best_loss: loss,
                    best: state.parameters.clone(),
                });
            }
        }
    }

    /// Gives the objective the values of the best validated step. Without a validation they stay.
    ///
    /// # Errors
    /// A tensor that can't be written.
    pub fn write_best(&self) -> Result<(), TrainError> {
        match &self.state.validation {
            Some(validation) => self.write(&validation.best),
            None => Ok(()),
        }
    }

    /// Mean loss of the newest steps.
    pub fn recent_loss(&self) -> Option<f64> {
        let losses = &self.state.losses;
        (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64)
    }

    /// The next optimiser step. Between micro-batches `stop` is asked whether to leave the batch;
    /// what has been accumulated stays in the state.
    ///
    /// # Errors
    /// See [`TrainError`].
    pub fn step(&mut self, stop: impl Fn() -> bool) -> Result<Outcome, TrainError> {
        let step = self.state.step;
        let micro_batches: Vec<O::Batch> = self
            .batches
            .micro_batches(step, self.plan.micro_batch)
            .into_iter()
            .map(|chosen| pack::<O::Batch>(self.examples, &chosen))
            .collect();
        let targets: usize = micro_batches.iter().map(MicroBatch::targets).sum();
        for (index, batch) in micro_batches.iter().enumerate() {
            if (index as u64) < self.state.micro_batch {
                continue;
            }
            if stop() {
                return Ok(Outcome::Interrupted);
            }
            self.accumulate_micro_batch(batch, index as u64, targets)?;
        }
        let loss = self.state.batch_loss;
        let gradient_norm = global_norm(&self.state.gradients);
        for (what, value) in [("loss", loss), ("gradient norm", gradient_norm)] {
            if !value.is_finite() {
                return Err(TrainError::Diverged {
                    what,
                    step: step + 1,
                    value,
                });
            }
        }
        if self.has_exploded(loss) {
            return Err(TrainError::Exploded {
                step: step + 1,
                loss,
                before: self.recent_loss().unwrap_or_default(),
            });
        }
        let limit = EXPLOSION_NORM * self.plan.maximum_gradient_norm.max(1.0);
        if gradient_norm > limit {
            return Err(TrainError::ExplodedGradient {
                step: step + 1,
                norm: gradient_norm,
                limit,
            });
        }
        let rate = self.plan.rate.at(step);
        self.update(
            rate,
            clip_scale(gradient_norm, self.plan.maximum_gradient_norm),
        );
        self.check_parameters(step + 1)?;
        self.write_parameters()?;
        self.finish_step(loss);
        Ok(Outcome::Stepped {
            loss,
            gradient_norm,
            rate,
        })
    }

    /// Adds the gradient of one micro-batch: of its summed loss over the targets of the whole
    /// batch, so that the sum over micro-batches is the gradient of the batch's mean.
    fn accumulate_micro_batch(
        &mut self,
        batch: &O::Batch,
        index: u64,
        targets: usize,
    ) -> Result<(), TrainError> {
        if batch.targets() > 0 {
            let seed = StepSeed {
                seed: self.plan.seed,
                step: self.state.step * MAXIMUM_MICRO_BATCHES + index,
            };
            let loss = (self.objective.loss(batch, seed)?.sum / targets as f64)?;
            let gradients = loss.backward()?;
            for ((name, variable), sum) in self
                .objective
                .parameters()
                .into_iter()
                .zip(&mut self.state.gradients)
            {
                let gradient = gradients
                    .get(variable)
                    .ok_or_else(|| TrainError::NoGradient(name.to_owned()))?;
                accumulate(sum, &gradient.flatten_all()?.to_vec1::<f32>()?);
            }
            self.state.batch_loss += f64::from(loss.to_scalar::<f32>()?);
        }
        self.state.tokens += batch.rows() as u64;
        self.state.micro_batch = index + 1;
        Ok(())
    }

    fn update(&mut self, rate: f64, gradient_scale: f32) {
        let variables = self.objective.parameters();
        let mut parameters: Vec<Parameter<'_>> = self
            .state
            .parameters
            .iter_mut()
            .zip(&self.state.gradients)
            .zip(variables)
            .map(|((values, gradient), (_, variable))| Parameter {
                values,
                gradient,
                decayed: variable.as_tensor().rank() > 1,
            })
            .collect();
        self.state
            .optimizer
            .step(self.state.step, rate, gradient_scale, &mut parameters);
    }

    /// Whether the loss is far above what it was, and above what a model that knows nothing has: from
    /// there training does not come back.
    fn has_exploded(&self, loss: f64) -> bool {
        self.state.losses.len() >= EXPLOSION_STEPS
            && self
                .recent_loss()
                .is_some_and(|before| loss > EXPLOSION_FACTOR * before + EXPLOSION_NATS)
    }

    /// A finite gradient can still make a value overflow.
    fn check_parameters(&self, step: u64) -> Result<(), TrainError> {
        let values = self.state.parameters.iter().flatten();
        match values.copied().find(|value| !value.is_finite()) {
            None => Ok(()),
            Some(value) => Err(TrainError::Diverged {
                what: "a trained value",
                step,
                value: f64::from(value),
            }),
        }
    }

    fn finish_step(&mut self, loss: f64) {
        let state = &mut self.state;
        for gradient in &mut state.gradients {
            gradient.fill(0.0);
        }
        state.step += 1;
        state.micro_batch = 0;
        state.batch_loss = 0.0;
        state.losses.push(loss);
        if state.losses.len() > LOSS_WINDOW {
            state.losses.remove(0);
        }
    }

    fn write_parameters(&self) -> Result<(), TrainError> {
        self.write(&self.state.parameters)
    }

    fn write(&self, values: &[Vec<f32>]) -> Result<(), TrainError> {
        for ((_, variable), values) in self.objective.parameters().into_iter().zip(values) {
            let tensor = Tensor::from_slice(values, variable.shape(), variable.device())?;
            variable.set(&tensor)?;
        }
        Ok(())
    }
}

fn read_parameters<O: Objective>(objective: &O) -> Result<Vec<Vec<f32>>, TrainError> {
    objective
        .parameters()
        .into_iter()
        .map(|(_, variable)| Ok(variable.as_tensor().flatten_all()?.to_vec1::<f32>()?))
        .collect()
}

/// Packs these examples, in this order.
pub fn pack<B: MicroBatch>(examples: &[B::Example], chosen: &[usize]) -> B {
    let mut batch = B::default();
    for example in chosen.iter().filter_map(|index| examples.get(*index)) {
        batch.add(example);
    }
    batch
}

#[cfg(test)]
mod tests;
