//! The finished adapter: a PEFT folder with a card and a manifest, then the run's result.

use graftwork_artifacts::{StagedFiles, Store};
use graftwork_contract::adapter::{CARD_FILE, Manifest, Provenance};
use graftwork_contract::run::{Metric, ResolvedReference, RowsUsed, RunResult, TrainerConfig};
use graftwork_contract::{Digest, paths};
use graftwork_model::peft::Adapter;

use super::card::card;
use crate::clock;
use crate::failure::{Failure, causes};

/// What training and evaluation ended with.
#[derive(Debug)]
pub struct Outcome {
    /// The adapter's content digest.
    pub digest: Digest,
    /// Optimiser steps.
    pub steps: u64,
    /// Mean loss of the newest steps.
    pub final_loss: f64,
    /// Test metrics.
    pub metrics: Vec<Metric>,
    /// Rows that were trained on.
    pub train_rows: RowsUsed,
    /// Rows that were looked at while training.
    pub validation_rows: RowsUsed,
    /// Rows that were scored.
    pub test_rows: RowsUsed,
}

/// The version of this program.
fn code_version() -> String {
    graftwork_artifacts::code_version(env!("CARGO_PKG_VERSION"))
}

/// The configuration with the shape that the adapter has, where that is the one of the version that training started
/// from: for its manifest and its card.
pub fn as_trained(config: &TrainerConfig, adapter: &Adapter) -> TrainerConfig {
    let mut config = config.clone();
    if config.shape_of_initial {
        let modules = adapter.modules().into_iter();
        config.lora.rank = adapter.rank() as u32;
        config.lora.alpha = adapter.config.alpha;
        config.lora.target_modules = modules.map(|module| module.name().to_owned()).collect();
    }
    config
}

/// Publishes the adapter's folder. The same content published before is fine.
///
/// # Errors
/// A value that is no number, before anything is written; the store's.
pub fn publish(
    store: &Store,
    config: &TrainerConfig,
    adapter: &Adapter,
    outcome: &Outcome,
) -> Result<RunResult, Failure> {
    adapter
        .verify_finite()
        .map_err(|error| Failure::diverged(causes(&error)))?;
    let folder = match &config.adapter {
        Some(name) => paths::adapter(name, &outcome.digest),
        None => paths::run_adapter(&config.run, &config.key, &outcome.digest),
    };
    let unavailable = |error: &dyn std::error::Error| Failure::unavailable(causes(error));
    let staged = store.stage(&folder).map_err(|error| unavailable(&error))?;
    adapter
        .save(staged.dir())
        .map_err(|error| unavailable(&error))?;
    staged
        .write(CARD_FILE, card(config, outcome).as_bytes())
        .map_err(|error| unavailable(&error))?;
    let files = staged.files().map_err(|error| unavailable(&error))?;
    let (manifest, result) = described(config, outcome, folder, config.lora.rank, files)?;
    let put = staged
        .publish(&manifest)
        .map_err(|error| unavailable(&error))?;
    let folder = result.folder.as_str();
    tracing::info!(folder, ?put, digest = %outcome.digest, "adapter published");
    Ok(result)
}

/// The manifest of what a run has trained, in `folder`, and the run's record: of an adapter of `rank`, or of a whole
/// model where that is 0.
///
/// # Errors
/// A provenance that is no JSON: a defect.
pub(super) fn described(
    config: &TrainerConfig,
    outcome: &Outcome,
    folder: String,
    rank: u32,
    files: StagedFiles,
) -> Result<(Manifest, RunResult), Failure> {
    let time = clock::rfc3339();
    let provenance = Provenance::Trained {
        run: config.run.clone(),
        resolved: config.resolved.clone(),
        objective: config.objective,
        hyperparameters: config.hyperparameters.clone(),
        classification: config.classification,
        code_version: code_version(),
        created_time: time.clone(),
    };
    let manifest = Manifest {
        digest: outcome.digest.clone(),
        files: files.digests,
        size_bytes: files.size_bytes,
        rank,
        provenance_digest: Digest::of_json(&provenance).map_err(|e| Failure::bug(causes(&e)))?,
        provenance,
    };
    let result = RunResult {
        run: config.run.clone(),
        key: config.key.clone(),
        resolved: config.resolved.clone(),
        digest: outcome.digest.clone(),
        folder,
        size_bytes: manifest.size_bytes,
        rank,
        steps: outcome.steps,
        final_loss: outcome.final_loss,
        metrics: outcome.metrics.clone(),
        precision: config.evaluation.precision,
        train_rows: outcome.train_rows,
        validation_rows: outcome.validation_rows,
        test_rows: outcome.test_rows,
        classification: config.classification,
        finished_time: time,
        code_version: code_version(),
    };
    Ok((manifest, result))
}

/// The record of a run that has scored a version and trained nothing.
pub fn scored(
    config: &TrainerConfig,
    manifest: &Manifest,
    subject: &ResolvedReference,
    metrics: Vec<Metric>,
    test_rows: RowsUsed,
) -> RunResult {
    RunResult {
        run: config.run.clone(),
        key: config.key.clone(),
        resolved: config.resolved.clone(),
        digest: subject.digest.clone(),
        folder: paths::adapter(&subject.adapter, &subject.digest),
        size_bytes: manifest.size_bytes,
        rank: manifest.rank,
        steps: 0,
        final_loss: 0.0,
        metrics,
        precision: config.evaluation.precision,
        train_rows: RowsUsed::default(),
        validation_rows: RowsUsed::default(),
        test_rows,
        classification: config.classification,
        finished_time: clock::rfc3339(),
        code_version: code_version(),
    }
}

#[cfg(test)]
mod tests {
    use graftwork_contract::exit::ExitCode;
    use graftwork_model::fixture::{TinyShape, random_adapter, write_tiny_base};
    use graftwork_model::lora::{LoraConfig, Module};
    use graftwork_model::targets::Targets;
    use graftwork_model::tokenizer::TextTokenizer;
    use graftwork_model::transformer::{Held, Llama};

    use crate::run::inputs::Base;
    use crate::run::loaded;

    #[test]
    fn an_adapter_with_a_value_that_is_no_number_comes_to_no_package() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 4).unwrap();
        let base = Base {
            model: Llama::load(dir.path(), Held::AsStored).unwrap(),
            tokenizer: TextTokenizer::load(dir.path()).unwrap(),
        };
        let lora = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets: Targets::of(&[Module::QProj]),
            use_rslora: false,
        };
        let adapter = random_adapter(base.model.config(), &lora, 1);
        assert!(loaded(&adapter, &base).is_ok());
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut odd = adapter.clone();
            odd.tensors.values_mut().next().unwrap().data[0] = value;
            // What is scored is loaded so, and only what was scored is packaged.
            let failure = loaded(&odd, &base).err().unwrap();
            assert_eq!(failure.code, ExitCode::Diverged, "{failure}");
        }
    }
}
