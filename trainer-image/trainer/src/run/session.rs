//! The training loop of a run: steps, with everything around them that can go wrong.

use std::time::Instant;

use candle_core::Var;
use graftwork_artifacts::Store;
use graftwork_contract::exit::ExitCode;
use graftwork_contract::paths;
use graftwork_contract::run::TrainerConfig;
use graftwork_model::lora::LoraParams;
use graftwork_model::transformer::{Llama, Loss, ModelError, PackedBatch, StepSeed};
use serde::Serialize;

use super::fence::Fence;
use super::patience;
use super::preference::GoOn;
use super::progress::{Reporter, Stage};
use crate::checkpoint::{Checkpoints, Environment};
use crate::clock;
use crate::failure::{Failure, causes};
use crate::order::Batches;
use crate::signals::StopFlag;
use crate::train::{ExampleOf, Objective, Outcome, Plan, Training};

/// Seconds between log lines.
const LOG_SECONDS: f64 = 5.0;
/// Seconds over which the speed is measured.
const SPEED_SECONDS: f64 = 10.0;

/// LoRA on a frozen base.
pub struct LoraObjective<'a> {
    /// The frozen base.
    pub model: &'a Llama,
    /// What is trained.
    pub params: &'a LoraParams,
}

impl Objective for LoraObjective<'_> {
    type Batch = PackedBatch;

    fn parameters(&self) -> Vec<(&str, &Var)> {
        self.params.iter().collect()
    }

    fn loss(&self, batch: &PackedBatch, seed: StepSeed) -> Result<Loss, ModelError> {
        self.model.forward_train(batch, self.params, seed)
    }
}

/// What the loop needs beside the training itself.
pub struct Session<'a> {
    /// The namespace's store.
    pub store: &'a Store,
    /// The run's configuration.
    pub config: &'a TrainerConfig,
    /// Where progress goes.
    pub reporter: &'a Reporter,
    /// Set by a signal.
    pub stop: &'a StopFlag,
    /// Name of the GPU that computes; none: the CPU does.
    pub gpu: Option<String>,
    /// The mean loss on rows that are not trained on, of the present values.
    pub validation_loss: Option<ValidationLoss<'a>>,
}

/// Computes a loss, and ends with what it is given to ask on the way.
pub type ValidationLoss<'a> = &'a dyn Fn(GoOn<'_>) -> Result<f64, Failure>;

/// How training ended.
#[derive(Debug, Clone, Copy)]
pub struct Trained {
    /// Optimiser steps.
    pub steps: u64,
    /// Mean loss of the newest steps.
    pub final_loss: f64,
}

/// A line of `metrics/<epoch>-<step>.jsonl`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StepRecord {
    step: u64,
    /// None in a line that adds to one of an attempt before, which was stopped while it validated.
    #[serde(flatten)]
    trained: Option<StepFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    validation_loss: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StepFigures {
    loss: f64,
    gradient_norm: f64,
    learning_rate: f64,
    tokens: u64,
}

impl Session<'_> {
    /// Trains to the last step, or until the validation loss falls no more, from the newest checkpoint
    /// where there is one.
    ///
    /// # Errors
    /// [`Failure`]: diverged, stopped on request, fenced off, or the store's.
    pub fn train<O: Objective>(
        &self,
        objective: &O,
        examples: &[ExampleOf<O>],
        batches: Batches,
        plan: Plan,
        fence: &mut Fence<'_>,
    ) -> Result<Trained, Failure> {
        self.reporter.enter(Stage::Train);
        let checkpoints = self.checkpoints(objective)?;
        let environment = Environment::new(rayon::current_num_threads()).on_gpu(self.gpu.clone());
        let mut training = Training::start(objective, examples, batches, plan)
            .map_err(|error| Failure::from(&error))?;
        self.resume(&mut training, &checkpoints, &environment, plan)?;
        let mut meter = Meter::new(training.state().tokens);
        let mut records = Vec::new();
        while !self.is_over(&training) {
            fence.check_sometimes()?;
            let is_interrupted = if self.is_validation_due(&training) {
                !self.validate(&mut training, &mut records, fence)?
            } else {
                self.step(&mut training, &mut meter, &mut records)?
            };
            let step = training.state().step;
            // What validation finds is saved with the step that it is about.
            let is_due = step.is_multiple_of(self.config.checkpoint.every_steps)
                && !self.is_validation_due(&training);
            if is_due || is_interrupted || self.is_over(&training) {
                fence.check()?;
                self.save(&training, &checkpoints, &environment, fence.epoch)?;
                self.write_metrics(fence.epoch, step, &mut records);
            }
            if is_interrupted && !self.is_over(&training) {
                return Err(Failure::checkpointed(format!(
                    "stopped on request at step {step} of {}, checkpoint saved",
                    training.batches().steps()
                )));
            }
        }
        self.finish(&training)
    }

    /// One optimiser step. Whether a stop was asked for.
    fn step<O: Objective>(
        &self,
        training: &mut Training<'_, O>,
        meter: &mut Meter,
        records: &mut Vec<StepRecord>,
    ) -> Result<bool, Failure> {
        let outcome = training
            .step(|| self.stop.is_set())
            .map_err(|error| Failure::from(&error))?;
        if let Outcome::Stepped {
            loss,
            gradient_norm,
            rate,
        } = outcome
        {
            records.push(StepRecord {
                step: training.state().step,
                trained: Some(StepFigures {
                    loss,
                    gradient_norm,
                    learning_rate: rate,
                    tokens: training.state().tokens,
                }),
                validation_loss: None,
            });
            self.report(training, meter, rate);
        }
        Ok(outcome == Outcome::Interrupted || self.stop.is_set())
    }

    /// Whether the present step is to be validated and was not yet.
    fn is_validation_due<O: Objective>(&self, training: &Training<'_, O>) -> bool {
        let (Some(_), Some(every)) = (
            self.validation_loss,
            self.config.hyperparameters.validate_every_steps,
        ) else {
            return false;
        };
        let state = training.state();
        let is_due = state.step.is_multiple_of(every) || training.is_finished();
        let newest = state.validation.as_ref().map_or(0, |it| it.step);
        is_due && state.micro_batch == 0 && state.step > newest
    }

    /// Validates the present step. False where a stop was asked for on the way.
    fn validate<O: Objective>(
        &self,
        training: &mut Training<'_, O>,
        records: &mut Vec<StepRecord>,
        fence: &mut Fence<'_>,
    ) -> Result<bool, Failure> {
        let Some(validation_loss) = self.validation_loss else {
            return Ok(true);
        };
        let step = training.state().step;
        let loss = match validation_loss(&fence.watch("stopped on request while validating")) {
            Ok(loss) if loss.is_finite() => loss,
            Ok(loss) => {
                return Err(Failure::diverged(format!(
                    "the validation loss of step {step} is {loss}: lower \
                     hyperparameters.learningRate or maximumGradientNorm"
                )));
            }
            Err(failure) if failure.code == ExitCode::Checkpointed => return Ok(false),
            Err(failure) => return Err(failure),
        };
        training.validated(loss);
        match records.last_mut().filter(|record| record.step == step) {
            Some(record) => record.validation_loss = Some(loss),
            None => records.push(StepRecord {
                step,
                trained: None,
                validation_loss: Some(loss),
            }),
        }
        let best = training.state().validation.as_ref();
        self.reporter
            .update(|progress| progress.best_validation_loss = best.map(|it| it.best_loss));
        tracing::info!(
            step,
            loss,
            best_loss = best.map(|it| it.best_loss),
            best_step = best.map(|it| it.best_step),
            "validated"
        );
        Ok(true)
    }

    /// Whether nothing is left to do: the last step is done, and validated where that is wanted, or
    /// the validation loss has not fallen for too long.
    fn is_over<O: Objective>(&self, training: &Training<'_, O>) -> bool {
        let worse = training
            .state()
            .validation
            .as_ref()
            .map_or(0, |it| it.worse);
        let patience = self.config.hyperparameters.patience;
        patience.is_some_and(|patience| worse >= patience)
            || (training.is_finished() && !self.is_validation_due(training))
    }

    /// Leaves the values that become the result in the objective.
    fn finish<O: Objective>(&self, training: &Training<'_, O>) -> Result<Trained, Failure> {
        let steps = training.state().step;
        self.reporter
            .update(|progress| progress.total_steps = steps);
        if !training.is_finished() {
            tracing::info!(steps, "the validation loss falls no more");
        }
        if self.config.checkpoint.keep_best {
            training
                .write_best()
                .map_err(|error| Failure::from(&error))?;
        }
        Ok(Trained {
            steps,
            final_loss: training.recent_loss().unwrap_or_default(),
        })
    }

    fn checkpoints<O: Objective>(&self, objective: &O) -> Result<Checkpoints<'_>, Failure> {
        let config = self.config;
        let names = objective
            .parameters()
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        let plan = graftwork_contract::Digest::of_json(&(&config.key, &config.resolved))
            .map_err(|error| Failure::bug(causes(&error)))?;
        let root = paths::run_checkpoints(&config.run, &config.key);
        Ok(Checkpoints::new(self.store, root, plan, names))
    }

    fn resume<O: Objective>(
        &self,
        training: &mut Training<'_, O>,
        checkpoints: &Checkpoints<'_>,
        environment: &Environment,
        plan: Plan,
    ) -> Result<(), Failure> {
        let newest = patience::tried(&patience::PAUSES, &|| self.stop.is_set(), || {
            checkpoints.newest(plan.optimizer)
        })
        .map_err(|error| Failure::from(&error))?;
        if let Some(restored) = newest {
            let record = restored.record;
            tracing::info!(step = record.step, "going on from a checkpoint");
            if record.environment != *environment {
                tracing::warn!(
                    saved = ?record.environment,
                    now = ?environment,
                    "the checkpoint was computed elsewhere: the result is right, but may differ in its last bits"
                );
            }
            training
                .restore(restored.state)
                .map_err(|error| Failure::from(&error))?;
            self.reporter.update(|progress| {
                progress.checkpoint_step = record.step;
                progress.checkpoint_saved_unix_seconds = record.saved_unix_seconds;
            });
        }
        let (step, total) = (training.state().step, training.batches().steps());
        let validation = training.state().validation.as_ref();
        self.reporter.update(|progress| {
            progress.best_validation_loss = validation.map(|it| it.best_loss);
            progress.step = step;
            progress.total_steps = total;
        });
        Ok(())
    }

    fn save<O: Objective>(
        &self,
        training: &Training<'_, O>,
        checkpoints: &Checkpoints<'_>,
        environment: &Environment,
        epoch: u32,
    ) -> Result<(), Failure> {
        let now = clock::unix_seconds();
        let keep = self.config.checkpoint.keep as usize;
        patience::tried(&patience::PAUSES, &|| self.stop.is_set(), || {
            checkpoints
                .save(u64::from(epoch), training.state(), environment, now)
                .and_then(|()| checkpoints.prune(u64::from(epoch), keep))
        })
        .map_err(|error| Failure::from(&error))?;
        self.reporter.update(|progress| {
            progress.checkpoint_step = training.state().step;
            progress.checkpoint_saved_unix_seconds = now;
        });
        Ok(())
    }

    /// Leaves the steps' figures in the store. Nobody depends on them, so a failure is only logged.
    fn write_metrics(&self, epoch: u32, step: u64, records: &mut Vec<StepRecord>) {
        let lines: Vec<String> = records
            .drain(..)
            .filter_map(|record| serde_json::to_string(&record).ok())
            .collect();
        if lines.is_empty() {
            return;
        }
        let folder = paths::run_metrics(&self.config.run, &self.config.key);
        let path = format!("{folder}/{epoch}-{step}.jsonl");
        let text = format!("{}\n", lines.join("\n"));
        let written = patience::tried(&patience::PAUSES, &|| self.stop.is_set(), || {
            self.store.put_new(&path, text.as_bytes())
        });
        if let Err(error) = written {
            tracing::warn!(path, %error, "the steps' figures are not kept");
        }
    }

    fn report<O: Objective>(&self, training: &Training<'_, O>, meter: &mut Meter, rate: f64) {
        let state = training.state();
        let total = training.batches().steps();
        let measured = meter.measure(state.step, state.tokens);
        self.reporter.update(|progress| {
            progress.step = state.step;
            progress.epoch = training.batches().epochs_after(state.step);
            progress.loss = training.recent_loss();
            progress.tokens_per_second = measured.tokens_per_second;
            progress.remaining_seconds = measured
                .remaining_seconds(total - state.step)
                .map(|seconds| seconds as u64);
        });
        if meter.is_log_due() || training.is_finished() {
            tracing::info!(
                step = state.step,
                steps = total,
                loss = training.recent_loss(),
                rate,
                tokens_per_second = measured.tokens_per_second.round(),
                "training"
            );
        }
    }
}

/// Measures the speed over the newest seconds.
struct Meter {
    start: Instant,
    logged: f64,
    /// `(seconds, step, tokens)`, oldest first; the first is the window's beginning.
    marks: std::collections::VecDeque<(f64, u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    tokens_per_second: f64,
    steps_per_second: f64,
}

impl Measured {
    fn remaining_seconds(self, steps: u64) -> Option<f64> {
        (self.steps_per_second > 0.0).then(|| (steps as f64 / self.steps_per_second).ceil())
    }
}

impl Meter {
    fn new(tokens: u64) -> Self {
        Self {
            start: clock::monotonic(),
            logged: f64::NEG_INFINITY,
            marks: [(0.0, u64::MAX, tokens)].into(),
        }
    }

    fn measure(&mut self, step: u64, tokens: u64) -> Measured {
        let now = clock::seconds_since(self.start);
        if let Some(first) = self.marks.front_mut().filter(|mark| mark.1 == u64::MAX) {
            first.1 = step.saturating_sub(1);
        }
        self.marks.push_back((now, step, tokens));
        while self.marks.len() > 2
            && self
                .marks
                .front()
                .is_some_and(|m| now - m.0 > SPEED_SECONDS)
        {
            self.marks.pop_front();
        }
        let (then, first_step, first_tokens) = self.marks.front().copied().unwrap_or_default();
        let elapsed = (now - then).max(1e-6);
        Measured {
            tokens_per_second: tokens.saturating_sub(first_tokens) as f64 / elapsed,
            steps_per_second: step.saturating_sub(first_step) as f64 / elapsed,
        }
    }

    fn is_log_due(&mut self) -> bool {
        let now = clock::seconds_since(self.start);
        let is_due = now - self.logged >= LOG_SECONDS;
        if is_due {
            self.logged = now;
        }
        is_due
    }
}
