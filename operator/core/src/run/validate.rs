//! A run's spec, read once: after this nothing can fail for what it says.

use std::collections::BTreeSet;

use graftwork_api::serving_endpoint::BaseQuantization;
use graftwork_api::training_run::{
    EvaluationMetric, Hyperparameters, LoraMethod, MethodType, ObjectiveType, Quantization,
    Schedule, Truncation,
};
use graftwork_api::uri::PvcUri;
use graftwork_api::{Decimal, TrainingRunSpec};
use graftwork_contract::{pod, run};

use crate::workload::STORE_CLAIM;

/// A spec that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Valid {
    /// The base model's folder.
    pub base: PvcUri,
    /// What is optimised.
    pub objective: run::Objective,
    /// Whether a version that is there is scored and nothing is trained.
    pub evaluate_only: bool,
    /// The folder that a model goes to of which every weight is trained.
    pub output: Option<PvcUri>,
    /// What the base is quantised to on load.
    pub quantization: Option<run::Quantization>,
    /// LoRA's shape.
    pub lora: run::Lora,
    /// Whether the version that training starts from has its own shape.
    pub shape_of_initial: bool,
    /// Optimisation.
    pub hyperparameters: run::Hyperparameters,
    /// When state is saved.
    pub checkpoint: run::Checkpoint,
    /// What is scored.
    pub evaluation: run::Evaluation,
    /// Claims that hold the files of benchmarks.
    pub benchmark_claims: BTreeSet<String>,
}

/// A field that can't work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Path of the field.
    pub field: &'static str,
    /// What is wrong, with value and limit.
    pub message: String,
}

impl Invalid {
    pub(super) fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self {
            field,
            message: message.into(),
        }
    }
}

/// Reads a spec.
///
/// # Errors
/// The first field that can't work. The schema refuses most of this before; an operator that is
/// older or newer than the schema does not rely on it.
pub fn validate(spec: &TrainingRunSpec) -> Result<Valid, Invalid> {
    let base = PvcUri::parse(&spec.base_model.uri)
        .map_err(|error| Invalid::new("spec.baseModel.uri", error.to_string()))?;
    let (benchmarks, benchmark_claims) = read_benchmarks(spec)?;
    let quantization = read_quantization(spec)?;
    Ok(Valid {
        base,
        objective: read_objective(spec)?,
        evaluate_only: read_evaluate_only(spec)?,
        output: read_output(spec)?,
        quantization,
        lora: read_lora(spec)?,
        shape_of_initial: spec.initial_adapter_ref.is_some() && has_usual_shape(spec),
        hyperparameters: read_hyperparameters(spec)?,
        checkpoint: run::Checkpoint {
            every_steps: at_least_one(
                "spec.checkpoint.everySteps",
                u64::from(spec.checkpoint.every_steps),
            )?,
            keep: at_least_one("spec.checkpoint.keep", spec.checkpoint.keep)?,
            keep_best: read_keep_best(spec)?,
        },
        evaluation: read_evaluation(spec, benchmarks, quantization)?,
        benchmark_claims,
    })
}

/// `beta` where a spec leaves it out.
const BETA: f64 = 0.1;

fn read_objective(spec: &TrainingRunSpec) -> Result<run::Objective, Invalid> {
    const FIELD: &str = "spec.objective.beta";
    match (&spec.objective.type_, &spec.objective.beta) {
        (ObjectiveType::Sft, None) => Ok(run::Objective::Sft),
        (ObjectiveType::Sft, Some(_)) => Err(Invalid::new(
            FIELD,
            "it belongs to type DPO, the type is SFT; leave it out, or set type DPO",
        )),
        (ObjectiveType::Dpo, None) => Ok(run::Objective::Dpo { beta: BETA }),
        (ObjectiveType::Dpo, Some(beta)) => Ok(run::Objective::Dpo {
            beta: number(FIELD, beta, "above 0", |beta| beta > 0.0)?,
        }),
        (ObjectiveType::Other(other), _) => {
            Err(unknown("spec.objective.type", other, ObjectiveType::KNOWN))
        }
    }
}

fn read_evaluate_only(spec: &TrainingRunSpec) -> Result<bool, Invalid> {
    const SUBJECT: &str = "spec.method.subject";
    let evaluate = spec.method.type_ == MethodType::Evaluate;
    let refused = [
        (
            !evaluate && spec.method.subject.is_some(),
            SUBJECT,
            "it belongs to type Evaluate; leave it out, or set that type",
        ),
        (
            evaluate && spec.method.subject.is_none(),
            SUBJECT,
            "type Evaluate needs one; name adapterRef and version",
        ),
        (
            evaluate && spec.adapter_ref.is_some(),
            "spec.adapterRef",
            "it does not go with method type Evaluate, which publishes nothing; leave it out",
        ),
        (
            evaluate && spec.initial_adapter_ref.is_some(),
            "spec.initialAdapterRef",
            "it does not go with method type Evaluate, which trains nothing; leave it out",
        ),
        (
            evaluate && spec.objective.type_ != ObjectiveType::Sft,
            "spec.objective.type",
            "it does not go with method type Evaluate, which trains nothing; leave it out",
        ),
    ];
    match refused.into_iter().find(|(is_broken, ..)| *is_broken) {
        Some((_, field, message)) => Err(Invalid::new(field, message)),
        None => Ok(evaluate),
    }
}

fn read_output(spec: &TrainingRunSpec) -> Result<Option<PvcUri>, Invalid> {
    const FIELD: &str = "spec.method.output";
    const URI: &str = "spec.method.output.uri";
    let full = spec.method.type_ == MethodType::Full;
    let output = match (full, &spec.method.output) {
        (false, None) => return Ok(None),
        (false, Some(_)) => {
            let message = "it belongs to type Full; leave it out, or set that type";
            return Err(Invalid::new(FIELD, message));
        }
        (true, None) => {
            let message = "type Full needs one; write uri as pvc://CLAIM/PATH";
            return Err(Invalid::new(FIELD, message));
        }
        (true, Some(output)) => output,
    };
    let refused = [
        (spec.adapter_ref.is_some(), "spec.adapterRef"),
        (spec.initial_adapter_ref.is_some(), "spec.initialAdapterRef"),
        (
            spec.objective.type_ != ObjectiveType::Sft,
            "spec.objective.type",
        ),
    ];
    if let Some((_, field)) = refused.into_iter().find(|(is_broken, _)| *is_broken) {
        let message = "it does not go with method type Full, which trains no adapter; leave it out";
        return Err(Invalid::new(field, message));
    }
    let uri = PvcUri::parse(&output.uri).map_err(|error| Invalid::new(URI, error.to_string()))?;
    if uri.path().is_empty() {
        let message = format!("\"{uri}\" names no folder: write pvc://CLAIM/PATH");
        return Err(Invalid::new(URI, message));
    }
    if uri.claim() == STORE_CLAIM {
        let message = format!("claim {STORE_CLAIM} is the artifact store's; name another claim");
        return Err(Invalid::new(URI, message));
    }
    Ok(Some(uri))
}

fn read_quantization(spec: &TrainingRunSpec) -> Result<Option<run::Quantization>, Invalid> {
    const FIELD: &str = "spec.method.quantization";
    match (&spec.method.type_, &spec.method.quantization) {
        (MethodType::LoRA | MethodType::Full | MethodType::Evaluate, None) => Ok(None),
        (type_ @ (MethodType::LoRA | MethodType::Full | MethodType::Evaluate), Some(given)) => {
            Err(Invalid::new(
                FIELD,
                format!(
                    "{given} belongs to type QLoRA, the type is {type_}; leave it out, or set type QLoRA"
                ),
            ))
        }
        (MethodType::QLoRA, None) => Err(Invalid::new(
            FIELD,
            format!("type QLoRA needs one of {}", Quantization::KNOWN.join(", ")),
        )),
        (MethodType::QLoRA, Some(Quantization::Q8_0)) => Ok(Some(run::Quantization::Q8_0)),
        (MethodType::QLoRA, Some(Quantization::Q4_0)) => Ok(Some(run::Quantization::Q4_0)),
        (MethodType::QLoRA, Some(Quantization::Q4K)) => Ok(Some(run::Quantization::Q4K)),
        (MethodType::QLoRA, Some(Quantization::Other(other))) => {
            Err(unknown(FIELD, other, Quantization::KNOWN))
        }
        (MethodType::Other(other), _) => Err(unknown("spec.method.type", other, MethodType::KNOWN)),
    }
}

fn read_lora(spec: &TrainingRunSpec) -> Result<run::Lora, Invalid> {
    let lora = &spec.method.lora;
    if lora.target_modules.is_empty() {
        return Err(Invalid::new(
            "spec.method.lora.targetModules",
            "at least one module is needed, such as q_proj",
        ));
    }
    let dropout = number(
        "spec.method.lora.dropout",
        &lora.dropout,
        "from 0 to below 1",
        |dropout| (0.0..1.0).contains(&dropout),
    )?;
    if dropout > 0.0 && spec.objective.type_ == ObjectiveType::Dpo {
        return Err(Invalid::new(
            "spec.method.lora.dropout",
            format!(
                "\"{}\" does not go with objective DPO, whose reference drops nothing; set \"0\"",
                lora.dropout
            ),
        ));
    }
    Ok(run::Lora {
        rank: at_least_one("spec.method.lora.rank", lora.rank)?,
        alpha: number("spec.method.lora.alpha", &lora.alpha, "above 0", |alpha| {
            alpha > 0.0
        })?,
        dropout,
        target_modules: lora.target_modules.clone(),
    })
}

/// Whether the spec says nothing of rank, alpha and modules but what is meant where they are left out.
fn has_usual_shape(spec: &TrainingRunSpec) -> bool {
    let (given, usual) = (&spec.method.lora, LoraMethod::default());
    given.rank == usual.rank
        && given.alpha.value() == usual.alpha.value()
        && given.target_modules == usual.target_modules
}

fn read_keep_best(spec: &TrainingRunSpec) -> Result<bool, Invalid> {
    let is_wanted = spec.checkpoint.keep_best;
    if is_wanted && spec.hyperparameters.validate_every_steps.is_none() {
        return Err(Invalid::new(
            "spec.checkpoint.keepBest",
            "it needs spec.hyperparameters.validateEverySteps; set that, or set this to false",
        ));
    }
    Ok(is_wanted)
}

/// Most examples per forward pass of a run that does not say how many.
const MICRO_BATCH: u32 = 8;

/// Examples per step, and per forward pass.
fn read_batch(given: &Hyperparameters) -> Result<(u32, u32), Invalid> {
    const BATCH: &str = "spec.hyperparameters.batchSize";
    const MICRO: &str = "spec.hyperparameters.microBatchSize";
    let batch = at_least_one(BATCH, given.batch_size)?;
    let Some(micro) = given.micro_batch_size else {
        let mut sizes = (1..=MICRO_BATCH).rev();
        let micro = sizes.find(|size| batch.is_multiple_of(*size));
        return Ok((batch, micro.unwrap_or(1)));
    };
    let micro = at_least_one(MICRO, micro)?;
    if micro > batch {
        let message = format!("{micro} is above batchSize {batch}; lower it, or leave it out");
        return Err(Invalid::new(MICRO, message));
    }
    if !batch.is_multiple_of(micro) {
        let message = format!(
            "{batch} is not a multiple of microBatchSize {micro}; leave that out for the largest one that fits"
        );
        return Err(Invalid::new(BATCH, message));
    }
    Ok((batch, micro))
}

/// Steps of a rising learning rate where the run does not say how many, and takes as many.
const WARMUP_STEPS: u32 = 10;

/// Steps over which the learning rate rises.
fn read_warmup(given: &Hyperparameters) -> Result<u64, Invalid> {
    let steps = match (given.warmup_steps, given.maximum_steps) {
        (Some(steps), Some(most)) if steps > most => {
            let message = format!(
                "{steps} is above maximumSteps {most}, and the learning rate would never reach its peak; lower \
                 it, or raise maximumSteps, in a new run"
            );
            return Err(Invalid::new("spec.hyperparameters.warmupSteps", message));
        }
        (Some(steps), _) => steps,
        (None, most) => most.map_or(WARMUP_STEPS, |most| most.min(WARMUP_STEPS)),
    };
    Ok(u64::from(steps))
}

fn read_hyperparameters(spec: &TrainingRunSpec) -> Result<run::Hyperparameters, Invalid> {
    const VALIDATE: &str = "spec.hyperparameters.validateEverySteps";
    let given = &spec.hyperparameters;
    let (batch, micro) = read_batch(given)?;
    if given.epochs.is_some() && given.maximum_steps.is_some() {
        return Err(Invalid::new(
            "spec.hyperparameters",
            "epochs and maximumSteps exclude each other; leave one of them out",
        ));
    }
    Ok(run::Hyperparameters {
        learning_rate: number(
            "spec.hyperparameters.learningRate",
            &given.learning_rate,
            "above 0 and at most 1",
            |rate| rate > 0.0 && rate <= 1.0,
        )?,
        schedule: match &given.schedule {
            Schedule::Cosine => run::Schedule::Cosine,
            Schedule::Linear => run::Schedule::Linear,
            Schedule::Constant => run::Schedule::Constant,
            Schedule::Other(other) => {
                return Err(unknown(
                    "spec.hyperparameters.schedule",
                    other,
                    Schedule::KNOWN,
                ));
            }
        },
        warmup_steps: read_warmup(given)?,
        epochs: at_least_one("spec.hyperparameters.epochs", given.epochs.unwrap_or(1))?,
        maximum_steps: given
            .maximum_steps
            .map(|steps| at_least_one("spec.hyperparameters.maximumSteps", u64::from(steps)))
            .transpose()?,
        batch_size: batch,
        micro_batch_size: micro,
        maximum_sequence_length: at_least_one(
            "spec.hyperparameters.maximumSequenceLength",
            given.maximum_sequence_length,
        )?,
        truncation: read_truncation(given.truncation.as_ref())?,
        weight_decay: number(
            "spec.hyperparameters.weightDecay",
            &given.weight_decay,
            "of at least 0",
            |decay| decay >= 0.0,
        )?,
        maximum_gradient_norm: number(
            "spec.hyperparameters.maximumGradientNorm",
            &given.maximum_gradient_norm,
            "of at least 0",
            |norm| norm >= 0.0,
        )?,
        seed: given.seed,
        validate_every_steps: given
            .validate_every_steps
            .map(|steps| at_least_one(VALIDATE, u64::from(steps)))
            .transpose()?,
        patience: match (&given.early_stopping, given.validate_every_steps) {
            (None, _) => None,
            (Some(_), None) => {
                let message =
                    "it needs spec.hyperparameters.validateEverySteps; set that, or leave this out";
                return Err(Invalid::new("spec.hyperparameters.earlyStopping", message));
            }
            (Some(early), Some(_)) => Some(at_least_one(
                "spec.hyperparameters.earlyStopping.patience",
                u64::from(early.patience),
            )?),
        },
    })
}

fn read_truncation(given: Option<&Truncation>) -> Result<run::Truncation, Invalid> {
    match given {
        None | Some(Truncation::CutStart) => Ok(run::Truncation::CutStart),
        Some(Truncation::CutEnd) => Ok(run::Truncation::CutEnd),
        Some(Truncation::Drop) => Ok(run::Truncation::Drop),
        Some(Truncation::Error) => Ok(run::Truncation::Error),
        Some(Truncation::Other(other)) => Err(unknown(
            "spec.hyperparameters.truncation",
            other,
            Truncation::KNOWN,
        )),
    }
}

/// The benchmarks, and the claims that hold their files.
fn read_benchmarks(
    spec: &TrainingRunSpec,
) -> Result<(Vec<run::Benchmark>, BTreeSet<String>), Invalid> {
    const NAME: &str = "spec.evaluation.benchmarks.name";
    const URI: &str = "spec.evaluation.benchmarks.uri";
    let mut benchmarks: Vec<run::Benchmark> = Vec::new();
    let mut claims = BTreeSet::new();
    for given in &spec.evaluation.benchmarks {
        if given.name.is_empty() || given.name.contains('/') {
            return Err(Invalid::new(
                NAME,
                format!(
                    "\"{}\" is not a name: write lower-case letters, digits and -",
                    given.name
                ),
            ));
        }
        if benchmarks.iter().any(|known| known.name == given.name) {
            return Err(Invalid::new(
                NAME,
                format!(
                    "\"{}\" stands there twice: rename one of the two",
                    given.name
                ),
            ));
        }
        let uri =
            PvcUri::parse(&given.uri).map_err(|error| Invalid::new(URI, error.to_string()))?;
        if uri.path().is_empty() {
            let message = format!("\"{uri}\" names no file: write pvc://CLAIM/PATH");
            return Err(Invalid::new(URI, message));
        }
        benchmarks.push(run::Benchmark {
            name: given.name.clone(),
            uri: uri.to_string(),
            path: format!("{}/{}", pod::claim_dir(uri.claim()), uri.path()),
        });
        claims.insert(uri.claim().to_owned());
    }
    Ok((benchmarks, claims))
}

fn read_evaluation(
    spec: &TrainingRunSpec,
    benchmarks: Vec<run::Benchmark>,
    quantization: Option<run::Quantization>,
) -> Result<run::Evaluation, Invalid> {
    let metrics = spec
        .evaluation
        .metrics
        .iter()
        .map(|metric| match metric {
            EvaluationMetric::Loss => Ok(run::MetricKind::Loss),
            EvaluationMetric::Perplexity => Ok(run::MetricKind::Perplexity),
            EvaluationMetric::ExactMatch => Ok(run::MetricKind::ExactMatch),
            EvaluationMetric::TokenAccuracy => Ok(run::MetricKind::TokenAccuracy),
            EvaluationMetric::RougeL => Ok(run::MetricKind::RougeL),
            EvaluationMetric::ClassificationReport => Ok(run::MetricKind::ClassificationReport),
            EvaluationMetric::Latency => Ok(run::MetricKind::Latency),
            EvaluationMetric::MeanReward => Ok(run::MetricKind::MeanReward),
            EvaluationMetric::Other(other) => Err(unknown(
                "spec.evaluation.metrics",
                other,
                EvaluationMetric::KNOWN,
            )),
        })
        .collect::<Result<_, _>>()?;
    Ok(run::Evaluation {
        metrics,
        maximum_new_tokens: at_least_one(
            "spec.evaluation.maximumNewTokens",
            spec.evaluation.maximum_new_tokens,
        )?,
        maximum_rows: spec.evaluation.maximum_rows.map(u64::from),
        benchmarks,
        precision: read_precision(spec.evaluation.precision.as_ref(), quantization)?,
    })
}

/// Left out, it is what the run trains on.
fn read_precision(
    given: Option<&BaseQuantization>,
    trained_on: Option<run::Quantization>,
) -> Result<run::Precision, Invalid> {
    match given {
        None => Ok(trained_on.map_or(run::Precision::AsStored, run::Precision::from)),
        Some(BaseQuantization::AsStored) => Ok(run::Precision::AsStored),
        Some(BaseQuantization::Bf16) => Ok(run::Precision::Bf16),
        Some(BaseQuantization::Q8_0) => Ok(run::Precision::Q8_0),
        Some(BaseQuantization::Q4_0) => Ok(run::Precision::Q4_0),
        Some(BaseQuantization::Q4K) => Ok(run::Precision::Q4K),
        Some(BaseQuantization::Other(other)) => Err(unknown(
            "spec.evaluation.precision",
            other,
            BaseQuantization::KNOWN,
        )),
    }
}

fn at_least_one<N: Copy + PartialEq + From<u8> + std::fmt::Display>(
    field: &'static str,
    value: N,
) -> Result<N, Invalid> {
    if value == N::from(0) {
        Err(Invalid::new(field, "0 is too small: it is at least 1"))
    } else {
        Ok(value)
    }
}

fn number(
    field: &'static str,
    decimal: &Decimal,
    limits: &str,
    fits: impl Fn(f64) -> bool,
) -> Result<f64, Invalid> {
    decimal
        .value()
        .filter(|value| fits(*value))
        .ok_or_else(|| Invalid::new(field, format!("\"{decimal}\" is not a number {limits}")))
}

fn unknown(field: &'static str, value: &str, known: &[&str]) -> Invalid {
    Invalid::new(
        field,
        format!(
            "\"{value}\" is not known to this version; it knows {}",
            known.join(", ")
        ),
    )
}
