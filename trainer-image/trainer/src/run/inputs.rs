//! Everything that a run reads: base model, reference adapter, rows. Each is verified by its digest
//! before it is used.

use std::path::Path;

use graftwork_artifacts::rows::{self, Row, file_name};
use graftwork_artifacts::{Category, Error as StoreError, MANIFEST_FILE, Store};
use graftwork_contract::adapter::Manifest;
use graftwork_contract::dataset::Split;
use graftwork_contract::paths;
use graftwork_contract::run::{
    Objective, Precision, ResolvedBase, ResolvedReference, RowsUsed, TrainerConfig,
};
use graftwork_model::base::{BaseError, base_digest};
use graftwork_model::category::Category as FileCategory;
use graftwork_model::config::LlamaConfig;
use graftwork_model::lora::{LoadedAdapter, LoraConfig, LoraParams};
use graftwork_model::peft::{Adapter, AdapterError};
use graftwork_model::quant;
use graftwork_model::tokenizer::{TextTokenizer, TokenizedExample};
use graftwork_model::transformer::{Accelerator, Held, Llama};

use super::benchmark::Benchmark;
use super::compare::Compared;
use super::evaluate::TestRows;
use super::patience;
use super::preference::Pair;
use super::test_rows::read_test;
use super::tokens::{Fit, examples, pairs};
use crate::failure::{Failure, causes};

/// The frozen model.
pub struct Base {
    /// Its weights.
    pub model: Llama,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
}

impl Base {
    /// An adapter as engines hold it beside this base.
    ///
    /// # Errors
    /// It does not fit, or has values that are no numbers.
    pub fn loaded(&self, adapter: &Adapter) -> Result<LoadedAdapter, AdapterError> {
        let first = self.model.first_factors();
        LoadedAdapter::with_first_factors(adapter, self.model.config(), first)
    }

    /// An adapter beside another one, or beside the bare model.
    pub fn compared<'a>(
        &'a self,
        new: &'a LoadedAdapter,
        old: Option<&'a LoadedAdapter>,
    ) -> Compared<'a> {
        Compared {
            tokenizer: &self.tokenizer,
            new: (&self.model, Some(new)),
            old: (&self.model, old),
        }
    }
}

/// The rows as tokens.
#[derive(Debug, Default)]
pub struct Inputs {
    /// To train on.
    pub train: Vec<TokenizedExample>,
    /// To score while training.
    pub validation: Vec<TokenizedExample>,
    /// Pairs in place of both, where preferences are trained on.
    pub train_pairs: Vec<Pair>,
    /// Pairs to score while training.
    pub validation_pairs: Vec<Pair>,
    /// To score.
    pub test: TestRows,
    /// Files of questions to score beside them.
    pub benchmarks: Vec<Benchmark>,
    /// How many there are to train on, and how many of them were cut.
    pub train_rows: RowsUsed,
    /// How many there are to look at while training, and how many of them were cut.
    pub validation_rows: RowsUsed,
    /// How many there are to score, and how many of them were cut.
    pub test_rows: RowsUsed,
}

impl Inputs {
    /// Tokens of each training row.
    pub fn lengths(&self) -> Vec<u32> {
        let examples = self.train.iter().map(|example| example.tokens.len());
        let pairs = self.train_pairs.iter().map(Pair::tokens);
        examples.chain(pairs).map(|tokens| tokens as u32).collect()
    }
}

/// Loads the base model from its mounted folder, for the passes that train.
///
/// # Errors
/// [`Failure`] with `BadConfig`: not a model that can be used, or not the one that was resolved. With
/// `Unavailable`: the volume does not give its files, or an image for GPUs finds none.
pub fn read_base(resolved: &ResolvedBase) -> Result<Base, Failure> {
    read_held(resolved, held(resolved), Llama::load)
}

/// Loads the base model as an engine does that holds it in `precision`, for the passes that serve.
///
/// # Errors
/// As [`read_base`].
pub fn read_served_base(resolved: &ResolvedBase, precision: Precision) -> Result<Base, Failure> {
    read_held(resolved, served(precision), Llama::load_served)
}

/// Loads the base model held in a form. `on_host` loads it where no accelerator is; an accelerator trains and
/// serves by the same passes.
fn read_held(
    resolved: &ResolvedBase,
    held: Held,
    on_host: fn(&Path, Held) -> Result<Llama, BaseError>,
) -> Result<Base, Failure> {
    let chosen = Accelerator::choose().map_err(|error| Failure::unavailable(error.to_string()))?;
    if chosen.is_unwanted {
        tracing::warn!("{}", chosen.reason);
    } else {
        tracing::info!("{}", chosen.reason);
    }
    let (model, tokenizer) = read_verified(resolved, |dir| match &chosen.accelerator {
        None => on_host(dir, held),
        Some(gpu) => Llama::load_on(dir, held, gpu),
    })?;
    tracing::info!(
        parameters = model.config().parameters(),
        digest = %resolved.digest,
        ?held,
        "base model read"
    );
    Ok(Base { model, tokenizer })
}

/// What `load` makes of the base model's folder, where that is the one that was resolved, and its tokenizer.
///
/// # Errors
/// As [`read_base`].
pub fn read_verified<T: Send>(
    resolved: &ResolvedBase,
    load: impl FnOnce(&Path) -> Result<T, BaseError> + Send,
) -> Result<(T, TextTokenizer), Failure> {
    let dir = Path::new(&resolved.path);
    let named = format!("baseModel {}", resolved.uri);
    // Both read all of it: what the one brings into the page cache is there for the other. Nothing is used
    // before the digest is known.
    let (digest, model) = rayon::join(|| base_digest(dir), || load(dir));
    let digest = digest.map_err(|error| file_failure(&named, error.category(), &error))?;
    if digest != resolved.digest.as_str() {
        return Err(Failure::bad_config(format!(
            "{named} has digest {digest}, the run was resolved with {}; the folder was changed: put it back, or start \
             a new run",
            resolved.digest
        )));
    }
    let model = model.map_err(|error| file_failure(&named, error.category(), &error))?;
    let tokenizer =
        TextTokenizer::load(dir).map_err(|error| file_failure(&named, error.category(), &error))?;
    Ok((model, tokenizer))
}

/// How the model's crate calls what is trained on.
pub fn held(resolved: &ResolvedBase) -> Held {
    served(
        resolved
            .quantization
            .map_or(Precision::AsStored, Precision::from),
    )
}

/// How the model's crate calls what an engine holds.
pub fn served(precision: Precision) -> Held {
    match precision {
        Precision::AsStored => Held::AsStored,
        Precision::Bf16 => Held::Bf16,
        Precision::Q8_0 => Held::Blocks(quant::Quantization::Q8_0),
        Precision::Q4_0 => Held::Blocks(quant::Quantization::Q4_0),
        Precision::Q4K => Held::Blocks(quant::Quantization::Q4K),
    }
}

/// The end that an error of `named`'s files stands for.
pub fn file_failure(named: &str, category: FileCategory, error: &dyn std::error::Error) -> Failure {
    let message = format!("{named}: {}", causes(error));
    match category {
        FileCategory::Invalid => Failure::bad_config(message),
        FileCategory::Transient => Failure::unavailable(message),
        FileCategory::Bug => Failure::bug(message),
    }
}

/// Loads the adapter version that the new one is compared with.
///
/// # Errors
/// [`Failure`]: the store's, or `BadConfig` where it does not fit the base model.
pub fn read_reference(
    store: &Store,
    resolved: Option<&ResolvedReference>,
    base: &Base,
) -> Result<Option<LoadedAdapter>, Failure> {
    let Some(resolved) = resolved else {
        return Ok(None);
    };
    let named = format!(
        "reference {} version {}",
        resolved.adapter, resolved.version
    );
    let (adapter, _) = read_adapter(store, &named, resolved)?;
    base.loaded(&adapter)
        .map(Some)
        .map_err(|error| file_failure(&named, error.category(), &error))
}

/// The parameters to train: those of the version that the run starts from, or fresh ones. The dropout is the run's
/// in either case: it is no part of what was trained.
///
/// # Errors
/// [`Failure`]: the store's, or `BadConfig` where the version has another shape than the run asks for.
pub fn initial_parameters(
    store: &Store,
    config: &TrainerConfig,
    lora: &LoraConfig,
    base: &LlamaConfig,
) -> Result<LoraParams, Failure> {
    let Some(resolved) = &config.resolved.initial else {
        return LoraParams::init(lora, base, config.hyperparameters.seed)
            .map_err(|error| Failure::bad_config(causes(&error)));
    };
    let named = format!(
        "spec.initialAdapterRef {} version {}",
        resolved.adapter, resolved.version
    );
    let (adapter, _) = read_adapter(store, &named, resolved)?;
    let refused =
        |error: graftwork_model::peft::AdapterError| file_failure(&named, error.category(), &error);
    if config.shape_of_initial {
        let own = LoraConfig {
            dropout: lora.dropout,
            ..adapter.config.clone()
        };
        let adapter = Adapter {
            config: own,
            ..adapter
        };
        return LoraParams::from_adapter(&adapter, base).map_err(refused);
    }
    let (has, wanted) = (
        adapter.config.plan(base).map_err(refused)?,
        lora.plan(base).map_err(refused)?,
    );
    if has != wanted {
        return Err(Failure::bad_config(format!(
            "{named} has rank {}, alpha {} or other modules than spec.method.lora, which asks for rank {} \
             and alpha {}; a run that starts from an adapter has its shape: leave them out",
            adapter.config.rank, adapter.config.alpha, lora.rank, lora.alpha
        )));
    }
    let adapter = Adapter {
        config: lora.clone(),
        ..adapter
    };
    LoraParams::from_adapter(&adapter, base).map_err(refused)
}

/// The version that is scored where nothing is trained.
///
/// # Errors
/// [`Failure`]: the store's, or `BadConfig` where none is named.
pub fn read_subject(
    store: &Store,
    config: &TrainerConfig,
) -> Result<(Adapter, Manifest, ResolvedReference), Failure> {
    let subject = config
        .resolved
        .initial
        .clone()
        .ok_or_else(|| Failure::bad_config("spec.method.subject names no version to score"))?;
    let named = format!(
        "spec.method.subject {} version {}",
        subject.adapter, subject.version
    );
    let (adapter, manifest) = read_adapter(store, &named, &subject)?;
    Ok((adapter, manifest, subject))
}

/// Reads an adapter version and verifies its files and its content.
fn read_adapter(
    store: &Store,
    named: &str,
    resolved: &ResolvedReference,
) -> Result<(Adapter, Manifest), Failure> {
    let failure = |error: &StoreError| match error.category() {
        Category::Invalid => Failure::bad_config(format!("{named}: {}", causes(error))),
        Category::Transient | Category::Bug => Failure::unavailable(causes(error)),
    };
    let folder = paths::adapter(&resolved.adapter, &resolved.digest);
    let path = format!("{folder}/{MANIFEST_FILE}");
    let manifest: Manifest = patience::read(|| store.get_json(&path))
        .map_err(|error| failure(&error))?
        .ok_or_else(|| Failure::bad_config(format!("{named}: {path} does not exist")))?;
    let fetched = patience::read(|| store.fetch(&folder, &manifest.files))
        .map_err(|error| failure(&error))?;
    let adapter = Adapter::load(fetched.path())
        .map_err(|error| file_failure(named, error.category(), &error))?;
    if adapter.digest() != resolved.digest.as_str() {
        return Err(Failure::bad_config(format!(
            "{named} has digest {}, expected {}",
            adapter.digest(),
            resolved.digest
        )));
    }
    Ok((adapter, manifest))
}

/// Reads the rows to train on and to score, as tokens.
///
/// # Errors
/// [`Failure`] with `BadData`: no rows, rows that can't be used, damaged files.
pub fn read_rows(
    store: &Store,
    config: &TrainerConfig,
    tokenizer: &TextTokenizer,
    base: &LlamaConfig,
    length: usize,
) -> Result<Inputs, Failure> {
    let train = if config.evaluate_only {
        Vec::new()
    } else {
        read_split(store, config, Split::Train)?
    };
    if train.is_empty() && !config.evaluate_only {
        return Err(Failure::bad_data(format!(
            "dataset {} version {} has no rows in its train split",
            config.resolved.dataset.name, config.resolved.dataset.version
        )));
    }
    let (test, test_rows) = read_test(store, config, tokenizer, base, length)?;
    let validation = read_validation(store, config)?;
    let fit = Fit {
        maximum: length,
        truncation: config.hyperparameters.truncation,
    };
    let (train_file, validation_file) = (file_name(Split::Train), file_name(Split::Validation));
    let train_rows = (&*train_file, &*train);
    let validation_rows = (&*validation_file, &*validation);
    let mut inputs = match config.objective {
        Objective::Sft => {
            let train = examples(train_rows, tokenizer, fit)?;
            let validation = examples(validation_rows, tokenizer, fit)?;
            Inputs {
                validation_rows: validation.used(),
                validation: validation.kept,
                train_rows: train.used(),
                train: train.kept,
                ..Inputs::default()
            }
        }
        Objective::Dpo { .. } => {
            let train = pairs(train_rows, tokenizer, fit)?;
            let validation = pairs(validation_rows, tokenizer, fit)?;
            Inputs {
                validation_rows: validation.used(),
                validation_pairs: validation.kept,
                train_rows: train.used(),
                train_pairs: train.kept,
                ..Inputs::default()
            }
        }
    };
    (inputs.test, inputs.test_rows) = (test, test_rows);
    check_some_fit(&inputs, train.len(), validation.len(), fit)?;
    let of_splits = [inputs.train_rows, inputs.validation_rows, inputs.test_rows];
    if of_splits.iter().any(|used| used.cut + used.dropped > 0) {
        tracing::warn!(
            train_rows = inputs.train_rows.cut,
            dropped_train_rows = inputs.train_rows.dropped,
            validation_rows = inputs.validation_rows.cut,
            dropped_validation_rows = inputs.validation_rows.dropped,
            test_rows = inputs.test_rows.cut,
            maximum_sequence_length = length,
            "rows were longer and were cut or left out"
        );
    }
    tracing::info!(
        train_rows = train.len(),
        train_tokens = inputs
            .lengths()
            .iter()
            .map(|it| u64::from(*it))
            .sum::<u64>(),
        test_rows = inputs.test_rows.rows,
        excluded_rows = inputs.test.excluded,
        "rows read"
    );
    Ok(inputs)
}

/// That not all rows of a split were too long.
fn check_some_fit(
    inputs: &Inputs,
    train: usize,
    validation: usize,
    fit: Fit,
) -> Result<(), Failure> {
    let splits = [
        ("train", train, inputs.lengths().len()),
        (
            "validation",
            validation,
            inputs.validation.len() + inputs.validation_pairs.len(),
        ),
    ];
    match splits
        .iter()
        .find(|(_, rows, kept)| *rows > 0 && *kept == 0)
    {
        None => Ok(()),
        Some((split, rows, _)) => Err(Failure::bad_data(format!(
            "all {rows} rows of the {split} split are longer than \
             spec.hyperparameters.maximumSequenceLength {}, and truncation {:?} leaves nothing of them to learn; raise \
             the one, or set the other to CutStart, in a new run",
            fit.maximum, fit.truncation
        ))),
    }
}

/// The rows to score while training; none where that is not wanted.
fn read_validation(store: &Store, config: &TrainerConfig) -> Result<Vec<Row>, Failure> {
    if config.hyperparameters.validate_every_steps.is_none() || config.evaluate_only {
        return Ok(Vec::new());
    }
    let rows = read_split(store, config, Split::Validation)?;
    if rows.is_empty() {
        return Err(Failure::bad_data(format!(
            "dataset {} version {} has no rows in its validation split, and \
             spec.hyperparameters.validateEverySteps needs some; raise spec.split.validationPercent of the Dataset, or \
             leave that out in a new run",
            config.resolved.dataset.name, config.resolved.dataset.version
        )));
    }
    Ok(rows)
}

/// How many rows there are, and how many of them were cut.
pub fn used(was_cut: &[bool]) -> RowsUsed {
    RowsUsed {
        rows: was_cut.len() as u64,
        cut: was_cut.iter().filter(|was_cut| **was_cut).count() as u64,
        dropped: 0,
    }
}

/// The rows of a split.
///
/// # Errors
/// [`Failure`]: the store's, or `BadData` where its files can't be used.
pub fn read_split(
    store: &Store,
    config: &TrainerConfig,
    split: Split,
) -> Result<Vec<Row>, Failure> {
    let dataset = &config.resolved.dataset;
    patience::read(|| rows::read(store, &dataset.name, &dataset.digest, split))
        .map_err(|error| dataset_failure(config, &error))
}

/// The end that an error of the dataset's folder stands for.
pub fn dataset_failure(config: &TrainerConfig, error: &StoreError) -> Failure {
    let dataset = &config.resolved.dataset;
    match error.category() {
        Category::Invalid => Failure::bad_data(format!(
            "dataset {} version {}: {}",
            dataset.name,
            dataset.version,
            causes(error)
        )),
        Category::Transient | Category::Bug => Failure::unavailable(causes(error)),
    }
}
