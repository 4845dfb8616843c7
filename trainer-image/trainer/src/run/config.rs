//! The run's configuration, read from its file and checked before anything else is touched.

use std::path::Path;

use graftwork_contract::dataset::Format;
use graftwork_contract::run::{Hyperparameters, Lora, Objective, TrainerConfig};
use graftwork_model::config::LlamaConfig;
use graftwork_model::lora::{LoraConfig, Module};
use graftwork_model::targets::Targets;

use crate::failure::Failure;
use crate::optimizer::AdamWConfig;
use crate::order::{Length, Size};
use crate::train::MAXIMUM_MICRO_BATCHES;

/// Reads and checks the configuration as far as it can be without the base model.
///
/// # Errors
/// [`Failure`] with `BadConfig`, naming field, value and limit.
pub fn read_config(path: &Path) -> Result<TrainerConfig, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::bad_config(format!("cannot read {}: {error}", path.display())))?;
    let config: TrainerConfig = serde_json::from_str(&text)
        .map_err(|error| Failure::bad_config(format!("{}: {error}", path.display())))?;
    check(&config)?;
    Ok(config)
}

/// A rule's outcome: `Err` with the message where it is broken.
type Rule = Result<(), String>;

fn rule(holds: bool, message: impl FnOnce() -> String) -> Rule {
    if holds { Ok(()) } else { Err(message()) }
}

/// Metrics of answers need some.
fn answers(config: &TrainerConfig) -> Rule {
    let mut metrics = config.evaluation.metrics.iter();
    match metrics.find(|it| it.needs_answers()) {
        Some(kind) if config.resolved.dataset.format == Format::Text => Err(format!(
            "spec.evaluation.metrics names {kind:?}, which needs answers, and so a dataset of format Completion, Chat \
             or Preference; this one is Text: leave it out"
        )),
        _ => Ok(()),
    }
}

fn check(config: &TrainerConfig) -> Result<(), Failure> {
    let rules = [
        rule(config.lora.rank > 0, || {
            "spec.method.lora.rank is 0, must be at least 1".to_owned()
        }),
        positive("spec.method.lora.alpha", config.lora.alpha),
        share("spec.method.lora.dropout", config.lora.dropout),
        rule(!config.lora.target_modules.is_empty(), || {
            format!(
                "spec.method.lora.targetModules is empty; known: {}",
                known_modules()
            )
        }),
        rule(config.checkpoint.every_steps > 0, || {
            "spec.checkpoint.everySteps is 0, must be at least 1".to_owned()
        }),
        rule(config.checkpoint.keep > 0, || {
            "spec.checkpoint.keep is 0, must be at least 1".to_owned()
        }),
        match config.objective {
            Objective::Sft => Ok(()),
            Objective::Dpo { beta } => positive("spec.objective.beta", beta),
        },
        rule(
            config.objective.is_default() || config.resolved.dataset.format == Format::Preference,
            || {
                format!(
                    "spec.objective.type is DPO, which needs a dataset of format Preference; this one is {:?}",
                    config.resolved.dataset.format
                )
            },
        ),
        rule(
            config.objective.is_default() || config.lora.dropout <= 0.0,
            || {
                format!(
                    "spec.method.lora.dropout is {}, must be 0 under objective DPO: its reference drops nothing, and the \
                 two would differ before the first step",
                    config.lora.dropout
                )
            },
        ),
        rule(config.output.is_none() || needs_no_adapter(config), || {
            "spec.method.type is Full, which goes with neither quantization, nor adapterRef, \
                 initialAdapterRef, Evaluate or objective DPO"
                .to_owned()
        }),
        rule(config.evaluation.maximum_new_tokens > 0, || {
            "spec.evaluation.maximumNewTokens is 0, must be at least 1".to_owned()
        }),
        rule(config.evaluation.maximum_rows != Some(0), || {
            "spec.evaluation.maximumRows is 0, must be at least 1".to_owned()
        }),
        answers(config),
    ];
    rules
        .into_iter()
        .chain(learning(&config.hyperparameters))
        .chain(validation(config))
        .collect::<Rule>()
        .map_err(Failure::bad_config)
}

/// Whether nothing is asked for that needs an adapter.
fn needs_no_adapter(config: &TrainerConfig) -> bool {
    config.resolved.base.quantization.is_none()
        && config.resolved.initial.is_none()
        && config.adapter.is_none()
        && !config.evaluate_only
        && config.objective.is_default()
}

/// How steps are taken.
fn learning(h: &Hyperparameters) -> [Rule; 10] {
    [
        positive("spec.hyperparameters.learningRate", h.learning_rate),
        rule(h.learning_rate <= 1.0, || {
            format!(
                "spec.hyperparameters.learningRate is {}, must be at most 1",
                h.learning_rate
            )
        }),
        rule(h.maximum_steps.is_some() || h.epochs > 0, || {
            "spec.hyperparameters.epochs is 0 and maximumSteps is not set: nothing to train"
                .to_owned()
        }),
        rule(h.maximum_steps != Some(0), || {
            "spec.hyperparameters.maximumSteps is 0, must be at least 1".to_owned()
        }),
        rule(h.batch_size > 0, || {
            "spec.hyperparameters.batchSize is 0, must be at least 1".to_owned()
        }),
        rule(
            h.micro_batch_size > 0 && h.micro_batch_size <= h.batch_size,
            || {
                format!(
                    "spec.hyperparameters.microBatchSize is {}, must be from 1 to batchSize {}",
                    h.micro_batch_size, h.batch_size
                )
            },
        ),
        rule(u64::from(h.batch_size) <= MAXIMUM_MICRO_BATCHES, || {
            format!(
                "spec.hyperparameters.batchSize is {}, must be at most {MAXIMUM_MICRO_BATCHES}",
                h.batch_size
            )
        }),
        rule(h.maximum_sequence_length >= 2, || {
            format!(
                "spec.hyperparameters.maximumSequenceLength is {}, must be at least 2",
                h.maximum_sequence_length
            )
        }),
        not_negative("spec.hyperparameters.weightDecay", h.weight_decay),
        not_negative(
            "spec.hyperparameters.maximumGradientNorm",
            h.maximum_gradient_norm,
        ),
    ]
}

/// How often is looked at the loss of the validation rows, and what follows.
fn validation(config: &TrainerConfig) -> [Rule; 3] {
    let h = &config.hyperparameters;
    [
        rule(h.validate_every_steps != Some(0), || {
            "spec.hyperparameters.validateEverySteps is 0, must be at least 1".to_owned()
        }),
        rule(h.patience != Some(0), || {
            "spec.hyperparameters.earlyStopping.patience is 0, must be at least 1".to_owned()
        }),
        rule(
            h.validate_every_steps.is_some()
                || (h.patience.is_none() && !config.checkpoint.keep_best),
            || {
                "spec.hyperparameters.earlyStopping and spec.checkpoint.keepBest need \
                 spec.hyperparameters.validateEverySteps, which is not set"
                    .to_owned()
            },
        ),
    ]
}

fn positive(field: &str, value: f64) -> Rule {
    rule(value.is_finite() && value > 0.0, || {
        format!("{field} is {value}, must be above 0")
    })
}

fn not_negative(field: &str, value: f64) -> Rule {
    rule(value.is_finite() && value >= 0.0, || {
        format!("{field} is {value}, must be 0 or more")
    })
}

fn share(field: &str, value: f64) -> Rule {
    rule((0.0..1.0).contains(&value), || {
        format!("{field} is {value}, must be at least 0 and below 1")
    })
}

fn known_modules() -> String {
    Module::ALL.map(Module::name).join(", ")
}

/// LoRA's shape for this base model.
///
/// # Errors
/// [`Failure`] with `BadConfig`: an unknown module (the known ones are listed), a rank above the
/// hidden size.
pub fn lora_config(lora: &Lora, base: &LlamaConfig) -> Result<LoraConfig, Failure> {
    let mut target_modules = Vec::new();
    for name in &lora.target_modules {
        let module = Module::parse(name).ok_or_else(|| {
            Failure::bad_config(format!(
                "spec.method.lora.targetModules names {name:?}, which the base model does not have; \
                 known: {}",
                known_modules()
            ))
        })?;
        if !target_modules.contains(&module) {
            target_modules.push(module);
        }
    }
    let rank = lora.rank as usize;
    if rank > base.hidden_size {
        return Err(Failure::bad_config(format!(
            "spec.method.lora.rank is {rank}, must be at most the base model's hidden size {}",
            base.hidden_size
        )));
    }
    Ok(LoraConfig {
        rank,
        alpha: lora.alpha,
        dropout: lora.dropout,
        targets: Targets::of(&target_modules),
        use_rslora: false,
    })
}

/// Tokens that an example may have: what was asked for, within the base model's context.
///
/// # Errors
/// [`Failure`] with `BadConfig` where more is asked for than the base model can see.
pub fn sequence_length(h: &Hyperparameters, base: &LlamaConfig) -> Result<usize, Failure> {
    let asked = h.maximum_sequence_length as usize;
    if asked > base.max_position_embeddings {
        return Err(Failure::bad_config(format!(
            "spec.hyperparameters.maximumSequenceLength is {asked}, must be at most the base model's \
             context {}",
            base.max_position_embeddings
        )));
    }
    Ok(asked)
}

/// Steps over which the learning rate rises, of a run that takes so many steps over so many train rows. Where the
/// spec names none, a run of few epochs takes all its steps for it.
///
/// # Errors
/// [`Failure`] with `BadConfig` where the spec names more than there are.
pub fn warmup_steps(config: &TrainerConfig, steps: u64, rows: usize) -> Result<u64, Failure> {
    let h = &config.hyperparameters;
    let asked = h.warmup_steps;
    if config.warmup_is_named && asked > steps {
        let (limit, other) = match h.maximum_steps {
            Some(most) => (format!("maximumSteps {most}"), "maximumSteps"),
            None => (
                format!(
                    "the {steps} steps of epochs {} over {rows} train rows at batchSize {}",
                    h.epochs, h.batch_size
                ),
                "epochs",
            ),
        };
        return Err(Failure::bad_config(format!(
            "spec.hyperparameters.warmupSteps is {asked}, must be at most {limit}, or the learning rate never \
             reaches its peak; lower it, or raise {other}, in a new run"
        )));
    }
    Ok(match h.maximum_steps {
        Some(_) => asked,
        None => asked.min(steps),
    })
}

/// Sizes, length and optimiser that the hyperparameters ask for.
pub fn sizes(h: &Hyperparameters) -> (Size, Size, Length, AdamWConfig) {
    let length = match h.maximum_steps {
        Some(steps) => Length::Steps(steps),
        None => Length::Epochs(u64::from(h.epochs)),
    };
    let optimizer = AdamWConfig {
        weight_decay: h.weight_decay,
        ..AdamWConfig::default()
    };
    (
        Size::Examples(h.batch_size as usize),
        Size::Examples(h.micro_batch_size as usize),
        length,
        optimizer,
    )
}
