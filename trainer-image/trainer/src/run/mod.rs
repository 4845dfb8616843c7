//! One attempt of a training run: config -> base model -> dataset -> tokens -> packed batches ->
//! train -> evaluate -> package -> report.

mod benchmark;
mod card;
mod classification;
mod compare;
mod config;
mod evaluate;
mod fence;
mod full;
mod inputs;
mod labels;
mod latency;
mod leave;
mod memory;
mod package;
mod patience;
mod preference;
mod progress;
mod references;
mod report;
mod rouge;
mod seen;
mod session;
mod statistics;
#[cfg(test)]
mod survival;
mod test_rows;
mod tokens;

use std::net::{Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::Duration;

use graftwork_artifacts::{Error as StoreError, Put, Store, panics};
use graftwork_contract::pod::{CONFIG_FILE, GRPC_PORT, STORE_DIR, TERMINATION_FILE};
use graftwork_contract::run::{Objective, RunResult, TrainerConfig};
use graftwork_contract::{Digest, paths};
use graftwork_model::lora::LoadedAdapter;
use graftwork_model::lora::LoraParams;
use graftwork_model::peft::{Adapter, AdapterError};
use graftwork_model::transformer::{Accelerator, ModelError};

use crate::checkpoint::CheckpointError;
use crate::failure::{Failure, causes};
use crate::order::Batches;
use crate::schedule::LearningRate;
use crate::signals::StopFlag;
use crate::train::{Plan, TrainError};

use classification::classified;
use compare::score;
use config::{lora_config, read_config, sequence_length, sizes, warmup_steps};
use evaluate::Evaluator;
use fence::Fence;
use inputs::{
    Base, Inputs, held, initial_parameters, read_base, read_reference, read_rows, read_served_base,
    read_subject, served,
};
use package::{Outcome, as_trained, publish};
use preference::{GoOn, PreferenceObjective};
use progress::{Reporter, Stage};
use session::{LoraObjective, Session, Trained, ValidationLoss};

/// What `trainer run` is told beside its configuration.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// The run's configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    pub config: PathBuf,
    /// The namespace's folder of the artifact store; a folder for what is on its way where the store is in a bucket
    #[arg(long, value_name = "DIR", default_value = STORE_DIR)]
    pub store: PathBuf,
    /// Where the summary is left
    #[arg(long, value_name = "FILE", default_value = TERMINATION_FILE)]
    pub termination_file: PathBuf,
    /// Where progress is served
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, GRPC_PORT)))]
    pub listen: SocketAddr,
    /// Compute threads in place of the configuration's; 0: as many as the container may use
    #[arg(long)]
    pub threads: Option<usize>,
    /// Bytes of activations that are kept for the backward pass; the others are computed again. Unless
    /// given: half of what the container has left once the inputs are read
    #[arg(long, value_name = "BYTES")]
    pub activation_bytes: Option<usize>,
    /// Longest time that the store may take for one save, look or result; then the attempt ends with exit code 69
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub store_seconds: u64,
    /// UID of the pod, echoed to watchers
    #[arg(long, env = graftwork_contract::pod::ENV_POD_UID, default_value = "")]
    pub pod_uid: String,
    /// Name of the pod
    #[arg(long, env = graftwork_contract::pod::ENV_POD_NAME, default_value = "")]
    pub pod_name: String,
}

/// Runs one attempt to its end and leaves a summary behind, whatever the end.
///
/// # Errors
/// [`Failure`] with the exit code.
pub fn run(args: &RunArgs, stop: &StopFlag) -> Result<(), Failure> {
    let reporter = Reporter::new(args.pod_uid.clone());
    let watchdogs = [
        leave::once_asked(&args.termination_file, &reporter, stop),
        leave::where_the_store_hangs(
            &args.termination_file,
            &reporter,
            Duration::from_secs(args.store_seconds),
        ),
    ];
    let attempt = AssertUnwindSafe(|| {
        serve_progress(&reporter, args.listen);
        let config = read_config(&args.config)?;
        let threads = args.threads.unwrap_or(config.threads);
        crate::cli::on_pool(threads, || attempt(args, &config, &reporter, stop))
    });
    let outcome =
        std::panic::catch_unwind(attempt).unwrap_or_else(|_| Err(Failure::bug(panics::last())));
    for watchdog in watchdogs.into_iter().flatten() {
        watchdog.abort();
    }
    report::write_termination(
        &args.termination_file,
        &report::summary(&outcome, &reporter.latest()),
    );
    outcome.map(drop)
}

/// The steps of an attempt, in order.
fn attempt(
    args: &RunArgs,
    config: &TrainerConfig,
    reporter: &Reporter,
    stop: &StopFlag,
) -> Result<Digest, Failure> {
    let store = patience::read(|| Store::open_at(config.store.as_ref(), &args.store))
        .map_err(|error| store_failure(&error))?;
    if let Some(result) = patience::read(|| existing_result(&store, config))? {
        tracing::info!(digest = %result.digest, "this run has its result already");
        reporter.update(|progress| {
            progress.step = result.steps;
            progress.total_steps = result.steps;
        });
        remove_checkpoints(&store, config);
        return Ok(result.digest);
    }
    let fence_folder = paths::run_fence(&config.run, &config.key);
    // Who has other inputs than the run fences nobody off.
    patience::read(|| pin_inputs(&store, config))?;
    let mut fence = Fence::take(&store, fence_folder, &args.pod_name, stop)
        .map_err(|error| store_failure(&error))?;
    let config = &patience::read(|| classified(&store, config))?;
    if let Some(output) = &config.output {
        return full::attempt((&store, config), output, (reporter, stop), &mut fence);
    }

    let mut base = if config.evaluate_only {
        read_served_base(&config.resolved.base, config.evaluation.precision)?
    } else {
        read_base(&config.resolved.base)?
    };
    let lora = lora_config(&config.lora, base.model.config())?;
    let length = sequence_length(&config.hyperparameters, base.model.config())?;
    let reference = read_reference(&store, config.resolved.reference.as_ref(), &base)?;
    let mut inputs = read_rows(&store, config, &base.tokenizer, base.model.config(), length)?;
    inputs.benchmarks = benchmark::read(&config.evaluation, &base.tokenizer, base.model.config())?;

    let activation_bytes = args
        .activation_bytes
        .unwrap_or_else(|| memory::activation_bytes(base.model.accelerator()));
    base.model = base.model.with_activation_bytes(activation_bytes);

    let mut session = Session {
        store: &store,
        config,
        reporter,
        stop,
        gpu: base.model.accelerator().map(Accelerator::name),
        validation_loss: None,
    };
    if config.evaluate_only {
        return score_only(&session, &base, &inputs, reference.as_ref(), &mut fence);
    }
    // What can't work is said before the reference is computed.
    planned(config, &inputs)?;
    let params = initial_parameters(&store, config, &lora, base.model.config())?;
    if let Objective::Dpo { .. } = config.objective {
        // From here on there is something to lose.
        reporter.enter(Stage::Train);
        references::add((&store, config), &base, &mut inputs, &params, &mut fence)?;
    }
    let validate: ValidationLoss<'_> =
        &|go_on| validation_loss(config, &base, &inputs, &params, go_on);
    session.validation_loss = config
        .hyperparameters
        .validate_every_steps
        .map(|_| validate);
    let trained = train(&session, &base, &inputs, &params, &mut fence)?;

    let adapter = params
        .to_adapter(&config.resolved.base.uri)
        .map_err(|error| Failure::bug(causes(&error)))?;
    let session = Session {
        store: &store,
        config,
        reporter,
        stop,
        gpu: session.gpu,
        validation_loss: None,
    };
    reporter.enter(Stage::Evaluate);
    let base = as_scored(base, config)?;
    let loaded = loaded(&adapter, &base)?;
    let compared = base.compared(&loaded, reference.as_ref());
    let metrics = score(&compared, &inputs, &session, &mut fence)?;
    let config = &as_trained(config, &adapter);

    reporter.enter(Stage::Package);
    fence.check()?;
    let digest = adapter
        .digest()
        .parse::<Digest>()
        .map_err(|e| Failure::bug(causes(&e)))?;
    let outcome = Outcome {
        digest,
        steps: trained.steps,
        final_loss: trained.final_loss,
        metrics,
        train_rows: inputs.train_rows,
        validation_rows: inputs.validation_rows,
        test_rows: inputs.test_rows,
    };
    let result = patience::tried(&patience::PAUSES, &|| stop.is_set(), || {
        let result = publish(&store, config, &adapter, &outcome)?;
        write_result(&store, config, &result)?;
        Ok::<_, Failure>(result)
    })?;
    remove_checkpoints(&store, config);
    Ok(result.digest)
}

/// Scores a version that is there, and trains nothing.
fn score_only(
    session: &Session<'_>,
    base: &Base,
    inputs: &Inputs,
    reference: Option<&LoadedAdapter>,
    fence: &mut Fence<'_>,
) -> Result<Digest, Failure> {
    let (store, config) = (session.store, session.config);
    let (adapter, manifest, subject) = read_subject(store, config)?;
    let loaded = loaded(&adapter, base)?;
    let metrics = score(&base.compared(&loaded, reference), inputs, session, fence)?;
    fence.check()?;
    let result = package::scored(config, &manifest, &subject, metrics, inputs.test_rows);
    patience::tried(&patience::PAUSES, &|| session.stop.is_set(), || {
        write_result(store, config, &result)
    })?;
    Ok(result.digest)
}

/// The base model as engines will hold it. Where that is another than the one that was trained on, this is let go
/// before: there is memory for one.
fn as_scored(base: Base, config: &TrainerConfig) -> Result<Base, Failure> {
    let (resolved, precision) = (&config.resolved.base, config.evaluation.precision);
    if held(resolved) == served(precision) && base.model.serves_as_it_trains() {
        return Ok(base);
    }
    drop(base);
    read_served_base(resolved, precision)
}

/// An adapter, ready for scoring. One that is not finite is never scored, and so never packaged.
fn loaded(adapter: &Adapter, base: &Base) -> Result<LoadedAdapter, Failure> {
    base.loaded(adapter).map_err(|error| match error {
        AdapterError::NotFinite { .. } => Failure::diverged(causes(&error)),
        _ => Failure::bug(causes(&error)),
    })
}

/// The batches that the hyperparameters ask for, and how steps are made of them.
///
/// # Errors
/// [`Failure`] with `BadConfig`: a warm-up that is longer than the run.
fn planned(config: &TrainerConfig, inputs: &Inputs) -> Result<(Batches, Plan), Failure> {
    let h = &config.hyperparameters;
    let (batch, micro_batch, run_length, optimizer) = sizes(h);
    let lengths = inputs.lengths();
    let rows = lengths.len();
    let batches = Batches::new(h.seed, lengths, batch, run_length);
    let steps = batches.steps();
    let plan = Plan {
        micro_batch,
        rate: LearningRate {
            warmup_steps: warmup_steps(config, steps, rows)?,
            ..LearningRate::new(h, steps)
        },
        optimizer,
        maximum_gradient_norm: h.maximum_gradient_norm,
        seed: h.seed,
    };
    Ok((batches, plan))
}

/// Trains by the run's objective.
fn train(
    session: &Session<'_>,
    base: &Base,
    inputs: &Inputs,
    params: &LoraParams,
    fence: &mut Fence<'_>,
) -> Result<Trained, Failure> {
    let (batches, plan) = planned(session.config, inputs)?;
    let model = &base.model;
    match session.config.objective {
        Objective::Sft => {
            let objective = LoraObjective { model, params };
            session.train(&objective, &inputs.train, batches, plan, fence)
        }
        Objective::Dpo { beta } => {
            let objective = PreferenceObjective {
                model,
                params,
                beta,
            };
            session.train(&objective, &inputs.train_pairs, batches, plan, fence)
        }
    }
}

/// The mean loss of the validation rows, in nats, with the parameters as they are now.
fn validation_loss(
    config: &TrainerConfig,
    base: &Base,
    inputs: &Inputs,
    params: &LoraParams,
    go_on: GoOn<'_>,
) -> Result<f64, Failure> {
    let bug = |error: &dyn std::error::Error| Failure::bug(causes(error));
    let adapter = params
        .to_adapter(&config.resolved.base.uri)
        .map_err(|error| bug(&error))?;
    // Verifying refuses what is no number: that is how a run diverges, not a defect.
    let loaded = base
        .loaded(&adapter)
        .map_err(|error| Failure::diverged(causes(&error)))?;
    if let Objective::Dpo { beta } = config.objective {
        return preference::mean_loss(&inputs.validation_pairs, &base.model, &loaded, beta, go_on);
    }
    let on_rows = |_: u64| go_on();
    let evaluator = Evaluator {
        model: &base.model,
        tokenizer: &base.tokenizer,
        maximum_new_tokens: 1,
        on_rows: &on_rows,
    };
    let scores = evaluator.loss(&inputs.validation, Some(&loaded))?;
    Ok(scores.mean())
}

/// Serves progress on the runtime that the process has. Without it the run goes on.
fn serve_progress(reporter: &Reporter, address: SocketAddr) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    match runtime.block_on(progress::serve(reporter, address)) {
        Ok(address) => tracing::info!(%address, "progress is served"),
        Err(error) => tracing::warn!(%error, "progress can't be served; training goes on"),
    }
}

fn existing_result(store: &Store, config: &TrainerConfig) -> Result<Option<RunResult>, Failure> {
    store
        .get_json(&paths::run_result(&config.run, &config.key))
        .map_err(|error| store_failure(&error))
}

/// Writes `resolved.json`, or checks that an earlier attempt pinned the same inputs.
fn pin_inputs(store: &Store, config: &TrainerConfig) -> Result<(), Failure> {
    let path = paths::run_resolved(&config.run, &config.key);
    match store.put_new_json(&path, &config.resolved) {
        Ok(_) => Ok(()),
        Err(StoreError::Conflict { .. }) => Err(Failure::bad_config(format!(
            "{path} pins other inputs than this attempt was given; a run's inputs do not change"
        ))),
        Err(error) => Err(store_failure(&error)),
    }
}

/// Writes `result.json`. An older attempt that came to its end at the same moment has written the
/// same adapter, and its record stays.
fn write_result(store: &Store, config: &TrainerConfig, result: &RunResult) -> Result<(), Failure> {
    match store.put_new_json(&paths::run_result(&config.run, &config.key), result) {
        Ok(Put::Created | Put::Existing) => Ok(()),
        Err(StoreError::Conflict { .. }) => match existing_result(store, config)? {
            Some(existing) if existing.digest == result.digest => Ok(()),
            _ => Err(Failure::fenced(
                "another attempt has written another result",
            )),
        },
        Err(error) => Err(store_failure(&error)),
    }
}

/// Takes the checkpoints away once the result stands: nobody goes on from them any more. An attempt
/// that dies before this leaves files that the next one removes.
fn remove_checkpoints(store: &Store, config: &TrainerConfig) {
    let folder = paths::run_checkpoints(&config.run, &config.key);
    if let Err(error) = patience::watched(|| store.remove_folder(&folder)) {
        tracing::warn!(folder, %error, "the checkpoints of a finished run stay in the store");
    }
}

/// The exit that an error of the store stands for, where the store's content was not asked for by
/// the user: damage is worth another try on another node as much as an absent volume is.
fn store_failure(error: &StoreError) -> Failure {
    Failure::unavailable(causes(error))
}

impl From<&TrainError> for Failure {
    fn from(error: &TrainError) -> Self {
        match error {
            TrainError::Diverged { .. }
            | TrainError::Exploded { .. }
            | TrainError::ExplodedGradient { .. } => Self::diverged(causes(error)),
            TrainError::Model(model) => Self::from(model),
            _ => Self::bug(causes(error)),
        }
    }
}

impl From<&ModelError> for Failure {
    fn from(error: &ModelError) -> Self {
        if !error.is_out_of_memory() {
            return Self::bug(causes(error));
        }
        Self::bad_config(format!(
            "the GPU's memory is full: take fewer or shorter examples in a micro-batch, a quantised base model, or a \
             compute profile with a larger GPU ({})",
            causes(error)
        ))
    }
}

impl From<&CheckpointError> for Failure {
    fn from(error: &CheckpointError) -> Self {
        match error {
            CheckpointError::Store(_) => Self::unavailable(causes(error)),
            CheckpointError::Unusable { .. } => Self::bad_data(causes(error)),
            CheckpointError::State(_) => Self::bug(causes(error)),
        }
    }
}
