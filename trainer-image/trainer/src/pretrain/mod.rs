//! `trainer pretrain`: a small base model from text alone, on any machine, without a cluster.
//!
//! recipe -> corpus -> tokenizer -> random weights -> train (checkpoints in the work folder) ->
//! Hugging Face folder.

mod card;
mod corpus;
mod recipe;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Var;
use graftwork_artifacts::Store;
use graftwork_contract::Digest;
use graftwork_contract::digest::PartsHasher;
use graftwork_model::base::{BaseModel, base_digest, save_base};
use graftwork_model::tokenizer::{TextTokenizer, TokenizedExample};
use graftwork_model::transformer::{
    Llama, Loss, ModelError, PackedBatch, StepSeed, TrainableLlama,
};

use crate::checkpoint::{Checkpoints, Environment};
use crate::clock;
use crate::failure::{Failure, causes};
use crate::optimizer::AdamWConfig;
use crate::order::{Batches, Length, Size};
use crate::schedule::LearningRate;
use crate::signals::StopFlag;
use crate::train::{Objective, Outcome, Plan, TrainError, Training};

use corpus::Corpus;
use recipe::Recipe;

/// Held-out rows that the perplexity is measured on.
const HELD_OUT_ROWS: usize = 500;
/// Rows that are scored in one pass.
const SCORED_TOGETHER: usize = 64;
/// Seconds between progress lines.
const PROGRESS_SECONDS: f64 = 10.0;
/// Nobody fences anybody off in a work folder.
const EPOCH: u64 = 0;
/// Checkpoints that are kept.
const KEEP: usize = 2;
/// Below the work folder: a folder of checkpoints for each plan.
const CHECKPOINTS: &str = "checkpoints";

/// What `trainer pretrain` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct PretrainArgs {
    /// JSON lines to train on: {"text": ...} or {"messages": [...]}; may be given again
    #[arg(long, required = true, value_name = "FILE")]
    pub text: Vec<PathBuf>,
    /// JSON lines that are never trained on, to measure the perplexity
    #[arg(long, value_name = "FILE")]
    pub held_out: Option<PathBuf>,
    /// The recipe: architecture, number of tokens, optimisation
    #[arg(long, value_name = "FILE")]
    pub recipe: PathBuf,
    /// Folder for the finished model (Hugging Face format)
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Folder for the tokenizer and checkpoints; the same command goes on from there, and checkpoints of
    /// other recipes and texts go once the model is written
    #[arg(long, value_name = "DIR")]
    pub work: PathBuf,
    /// Compute threads; 0: as many as the machine has
    #[arg(long, default_value_t = 0, env = "GRAFTWORK_THREADS")]
    pub threads: usize,
}

impl Objective for TrainableLlama {
    type Batch = PackedBatch;

    fn parameters(&self) -> Vec<(&str, &Var)> {
        self.iter().collect()
    }

    fn loss(&self, batch: &PackedBatch, _: StepSeed) -> Result<Loss, ModelError> {
        self.forward_train(batch)
    }
}

/// Pre-trains, or goes on with what the work folder holds.
///
/// # Errors
/// [`Failure`] with the exit code: bad recipe or text, divergence, or a stop on request.
pub fn pretrain(args: &PretrainArgs, stop: &StopFlag) -> Result<(), Failure> {
    let recipe = Recipe::parse(&read_text(&args.recipe)?)?;
    let corpus = Corpus::read(&args.text)?;
    let held_out = args
        .held_out
        .clone()
        .map(|path| Corpus::read(&[path]))
        .transpose()?;
    let plan = plan_digest(&recipe, &corpus)?;
    let tokenizer_dir = args.work.join("tokenizer").join(plan.short());
    let tokenizer = prepare_tokenizer(&recipe, &corpus, &tokenizer_dir)?;
    let context = recipe.model.context;
    let examples = corpus.examples(&tokenizer, context)?;
    let held_out = match &held_out {
        Some(rows) => rows.examples(&tokenizer, context)?,
        None => Vec::new(),
    };
    let tokens: usize = examples.iter().map(|example| example.tokens.len()).sum();
    tracing::info!(
        rows = examples.len(),
        tokens,
        held_out_rows = held_out.len(),
        "corpus read"
    );

    let config = recipe.config(tokenizer.vocab_size());
    let base = BaseModel::random(config, recipe.training.seed);
    tracing::info!(
        parameters = base.config().parameters(),
        "random weights made"
    );
    let model = TrainableLlama::new(&base).map_err(|error| Failure::bug(causes(&error)))?;
    let run = PretrainRun {
        recipe: &recipe,
        held_out: held_out
            .get(..HELD_OUT_ROWS.min(held_out.len()))
            .unwrap_or_default(),
        stop,
    };
    let store = Store::open(&args.work).map_err(|error| Failure::unavailable(causes(&error)))?;
    let perplexity = run.train(&model, &examples, &store, &plan, args.threads)?;
    let base = model
        .to_base()
        .map_err(|error| Failure::bug(causes(&error)))?;
    write_model(args, &recipe, &base, &tokenizer_dir, perplexity)?;
    remove_other_plans(&store, &plan);
    Ok(())
}

/// Takes the checkpoints of other recipes and texts away. Only now: until there is a model, somebody
/// may turn back to one of them.
fn remove_other_plans(store: &Store, plan: &Digest) {
    let entries = std::fs::read_dir(store.root().join(CHECKPOINTS));
    for entry in entries.into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name == plan.short() {
            continue;
        }
        let folder = format!("{CHECKPOINTS}/{name}");
        if let Err(error) = store.remove_folder(&folder) {
            tracing::warn!(folder, %error, "the checkpoints of another recipe stay in the work folder");
        }
    }
}

struct PretrainRun<'a> {
    recipe: &'a Recipe,
    held_out: &'a [TokenizedExample],
    stop: &'a StopFlag,
}

impl PretrainRun<'_> {
    /// Trains to the end and returns the held-out perplexity.
    fn train(
        &self,
        model: &TrainableLlama,
        examples: &[TokenizedExample],
        store: &Store,
        plan: &Digest,
        threads: usize,
    ) -> Result<Option<f64>, Failure> {
        let recipe = &self.recipe.training;
        let names = model
            .parameters()
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        // In a folder of the plan's own: those of another one may have come further, and the newest
        // are the ones that stay.
        let root = format!("{CHECKPOINTS}/{}", plan.short());
        let checkpoints = Checkpoints::new(store, root, plan.clone(), names);
        let (mut training, optimizer) = start_training(model, examples, recipe)?;
        if let Some(restored) = checkpoints
            .newest(optimizer)
            .map_err(|e| Failure::from(&e))?
        {
            tracing::info!(step = restored.record.step, "going on from a checkpoint");
            training
                .restore(restored.state)
                .map_err(|error| failure(&error))?;
        }
        let environment = Environment::new(threads);
        let save = |training: &Training<'_, TrainableLlama>| {
            let now = clock::unix_seconds();
            checkpoints
                .save(EPOCH, training.state(), &environment, now)
                .and_then(|()| checkpoints.prune(EPOCH, KEEP))
                .map_err(|error| Failure::from(&error))
        };
        let mut meter = Meter::new(training.state().tokens);
        while !training.is_finished() {
            let outcome = training
                .step(|| self.stop.is_set())
                .map_err(|error| failure(&error))?;
            let step = training.state().step;
            if outcome == Outcome::Interrupted || (self.stop.is_set() && !training.is_finished()) {
                save(&training)?;
                let total = training.batches().steps();
                return Err(Failure::checkpointed(format!(
                    "stopped on request at step {step} of {total}; the same command goes on from there"
                )));
            }
            meter.report(&training, recipe.tokens, outcome);
            if step.is_multiple_of(recipe.checkpoint_every_steps) {
                save(&training)?;
            }
            if step.is_multiple_of(recipe.evaluate_every_steps) {
                self.log_perplexity(
                    &model.to_llama().map_err(|e| Failure::bug(causes(&e)))?,
                    step,
                )?;
            }
        }
        save(&training)?;
        let llama = model
            .to_llama()
            .map_err(|error| Failure::bug(causes(&error)))?;
        self.log_perplexity(&llama, training.state().step)
    }

    fn log_perplexity(&self, model: &Llama, step: u64) -> Result<Option<f64>, Failure> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        let value =
            perplexity(model, self.held_out).map_err(|error| Failure::bug(causes(&error)))?;
        tracing::info!(
            step,
            perplexity = value,
            rows = self.held_out.len(),
            "held-out rows scored"
        );
        Ok(Some(value))
    }
}

fn start_training<'a>(
    model: &'a TrainableLlama,
    examples: &'a [TokenizedExample],
    recipe: &recipe::TrainingRecipe,
) -> Result<(Training<'a, TrainableLlama>, AdamWConfig), Failure> {
    let lengths: Vec<u32> = examples
        .iter()
        .map(|example| example.tokens.len() as u32)
        .collect();
    let batch = Size::Tokens(recipe.batch_tokens);
    // A batch ends with the example that fills it, so there are at most this many.
    let most = recipe.tokens.div_ceil(recipe.batch_tokens as u64);
    let batches = Batches::new(recipe.seed, lengths, batch, Length::Steps(most));
    let optimizer = AdamWConfig {
        beta2: recipe.beta2,
        weight_decay: recipe.weight_decay,
        ..AdamWConfig::default()
    };
    let plan = Plan {
        micro_batch: Size::Tokens(recipe.micro_batch_tokens),
        rate: LearningRate {
            peak: recipe.learning_rate,
            schedule: recipe.schedule,
            warmup_steps: recipe.warmup_steps,
            total_steps: batches.steps(),
        },
        optimizer,
        maximum_gradient_norm: recipe.maximum_gradient_norm,
        seed: recipe.seed,
    };
    let training =
        Training::start(model, examples, batches, plan).map_err(|error| failure(&error))?;
    Ok((training, optimizer))
}

/// `exp` of the mean negative log-likelihood of every target.
fn perplexity(model: &Llama, examples: &[TokenizedExample]) -> Result<f64, ModelError> {
    let (mut sum, mut targets) = (0.0, 0_u64);
    for rows in examples.chunks(SCORED_TOGETHER) {
        let mut batch = PackedBatch::new();
        for row in rows {
            batch.push(&row.tokens, &row.loss_mask);
        }
        for score in model.score(&batch, None)? {
            sum += f64::from(score.nll);
            targets += 1;
        }
    }
    Ok((sum / targets.max(1) as f64).exp())
}

/// Measures speed and prints a line now and then.
struct Meter {
    start: Instant,
    tokens_at_start: u64,
    printed: f64,
}

impl Meter {
    fn new(tokens_at_start: u64) -> Self {
        Self {
            start: clock::monotonic(),
            tokens_at_start,
            printed: f64::NEG_INFINITY,
        }
    }

    fn report(&mut self, training: &Training<'_, TrainableLlama>, tokens: u64, outcome: Outcome) {
        let elapsed = clock::seconds_since(self.start);
        if elapsed - self.printed < PROGRESS_SECONDS && !training.is_finished() {
            return;
        }
        self.printed = elapsed;
        let state = training.state();
        let speed = (state.tokens - self.tokens_at_start) as f64 / elapsed.max(1e-3);
        let left = tokens.saturating_sub(state.tokens) as f64 / speed;
        if let Outcome::Stepped {
            gradient_norm,
            rate,
            ..
        } = outcome
        {
            tracing::info!(
                step = state.step,
                steps = training.batches().steps(),
                loss = format!("{:.3}", training.recent_loss().unwrap_or(f64::NAN)),
                gradient_norm = format!("{gradient_norm:.3}"),
                rate = format!("{rate:.2e}"),
                tokens_per_second = speed.round(),
                minutes_left = format!("{:.1}", left / 60.0),
                "pre-training"
            );
        }
    }
}

fn prepare_tokenizer(
    recipe: &Recipe,
    corpus: &Corpus,
    dir: &Path,
) -> Result<TextTokenizer, Failure> {
    if !dir.join("tokenizer_config.json").is_file() {
        tracing::info!(size = recipe.model.vocabulary, "training the tokenizer");
        vocabulary::train_tokenizer(
            corpus.texts(),
            recipe.model.vocabulary,
            recipe.model.context,
            dir,
        )
        .map_err(|error| Failure::unavailable(causes(&error)))?;
    }
    TextTokenizer::load(dir).map_err(|error| Failure::bug(causes(&error)))
}

fn write_model(
    args: &PretrainArgs,
    recipe: &Recipe,
    base: &BaseModel,
    tokenizer_dir: &Path,
    perplexity: Option<f64>,
) -> Result<(), Failure> {
    let unavailable = |error: &dyn std::error::Error| Failure::unavailable(causes(error));
    save_base(&args.out, base).map_err(|error| unavailable(&error))?;
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tokenizer_dir.join(file), args.out.join(file))
            .map_err(|error| unavailable(&error))?;
    }
    let card = card::base_model_card(recipe, base.config().parameters(), perplexity);
    std::fs::write(args.out.join("README.md"), card).map_err(|error| unavailable(&error))?;
    let digest = base_digest(&args.out).map_err(|error| unavailable(&error))?;
    tracing::info!(folder = %args.out.display(), digest, "base model written");
    Ok(())
}

/// Over the recipe and the text: a checkpoint is not taken over into another plan.
fn plan_digest(recipe: &Recipe, corpus: &Corpus) -> Result<Digest, Failure> {
    let recipe = Digest::of_json(recipe).map_err(|error| Failure::bug(causes(&error)))?;
    Ok(PartsHasher::new()
        .part(recipe.as_str())
        .part(corpus.digest.as_str())
        .finish())
}

fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::bad_config(format!("cannot read {}: {error}", path.display())))
}

fn failure(error: &TrainError) -> Failure {
    match error {
        TrainError::Diverged { .. }
        | TrainError::Exploded { .. }
        | TrainError::ExplodedGradient { .. } => Failure::diverged(causes(error)),
        _ => Failure::bug(causes(error)),
    }
}
