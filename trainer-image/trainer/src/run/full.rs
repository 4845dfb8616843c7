//! Training every weight: a base model goes in, another one comes out, as a folder on a claim.
//!
//! Weights, gradients and moments are f32 in memory; the folder is bf16, and is what is scored.

use std::path::Path;

use graftwork_artifacts::{Category, Error as StoreError, MANIFEST_FILE, Staged, Store};
use graftwork_contract::Digest;
use graftwork_contract::adapter::{CARD_FILE, Manifest, Provenance};
use graftwork_contract::run::{ModelOutput, RunResult, TrainerConfig};
use graftwork_model::base::{BaseModel, base_digest};
use graftwork_model::shards::save_weights;
use graftwork_model::tokenizer::TextTokenizer;
use graftwork_model::transformer::{Accelerator, Llama, TrainableLlama};

use super::card::card;
use super::compare::{Compared, score};
use super::config::sequence_length;
use super::evaluate::Evaluator;
use super::fence::Fence;
use super::inputs::{Inputs, file_failure, read_rows, read_verified, served};
use super::package::{Outcome, described};
use super::preference::GoOn;
use super::progress::{Reporter, Stage};
use super::session::{Session, ValidationLoss};
use super::{benchmark, patience, planned, remove_checkpoints, write_result};
use crate::failure::{Failure, causes};
use crate::signals::StopFlag;
use crate::train::TrainError;

/// Bytes of one file of weights at most.
const SHARD_BYTES: usize = 2 << 30;
/// The largest number of bf16: 8 bits of precision, the exponents of f32.
const LARGEST_BF16: f32 = 3.389_531_4e38;
/// What is copied from the base model's folder as it is, where it is there.
const COPIED: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
/// The longest of these files that is copied.
const COPIED_BYTES: u64 = 256 << 20;

/// The folder that the model goes to.
struct Output<'a> {
    claim: Store,
    wanted: &'a ModelOutput,
    config: &'a TrainerConfig,
}

/// One attempt: reads, trains, writes, scores and publishes.
///
/// # Errors
/// [`Failure`] with the exit code.
pub fn attempt(
    (store, config): (&Store, &TrainerConfig),
    wanted: &ModelOutput,
    (reporter, stop): (&Reporter, &StopFlag),
    fence: &mut Fence<'_>,
) -> Result<Digest, Failure> {
    let output = Output::open(config, wanted)?;
    let bug = |error: &dyn std::error::Error| Failure::bug(causes(error));
    let (model, tokenizer) = read_base(config)?;
    let base = model.config();
    let length = sequence_length(&config.hyperparameters, base)?;
    let mut inputs = read_rows(store, config, &tokenizer, base, length)?;
    inputs.benchmarks = benchmark::read(&config.evaluation, &tokenizer, base)?;

    let validate: ValidationLoss<'_> = &|go_on| validation_loss(&model, &tokenizer, &inputs, go_on);
    let session = Session {
        store,
        config,
        reporter,
        stop,
        gpu: None,
        validation_loss: config
            .hyperparameters
            .validate_every_steps
            .map(|_| validate),
    };
    let (batches, plan) = planned(config, &inputs)?;
    let trained = session.train(&model, &inputs.train, batches, plan, fence)?;

    reporter.enter(Stage::Evaluate);
    let weights = model.to_base().map_err(|error| bug(&error))?;
    check_finite(&weights)?;
    let written = patience::tried(&patience::PAUSES, &|| stop.is_set(), || {
        output.write(&weights)
    })?;
    drop(weights);
    let named = format!("baseModel {}", config.resolved.base.uri);
    let load = |dir: &Path| {
        Llama::load_served(dir, served(config.evaluation.precision))
            .map_err(|error| file_failure(&named, error.category(), &error))
    };
    let (new, old) = (
        load(written.dir())?,
        load(Path::new(&config.resolved.base.path))?,
    );
    let compared = Compared {
        tokenizer: &tokenizer,
        new: (&new, None),
        old: (&old, None),
    };
    let metrics = score(&compared, &inputs, &session, fence)?;

    reporter.enter(Stage::Package);
    fence.check()?;
    let digest = base_digest(written.dir())
        .map_err(|error| file_failure(&named, error.category(), &error))?;
    let outcome = Outcome {
        digest: digest.parse::<Digest>().map_err(|error| bug(&error))?,
        steps: trained.steps,
        final_loss: trained.final_loss,
        metrics,
        train_rows: inputs.train_rows,
        validation_rows: inputs.validation_rows,
        test_rows: inputs.test_rows,
    };
    let result = patience::watched(|| output.publish(written, &outcome))?;
    patience::tried(&patience::PAUSES, &|| stop.is_set(), || {
        write_result(store, config, &result)
    })?;
    remove_checkpoints(store, config);
    Ok(result.digest)
}

/// That every weight is a number as it is written: bf16 ends below f32's largest.
fn check_finite(weights: &BaseModel) -> Result<(), Failure> {
    for (name, values) in weights.tensors() {
        let is_written = |value: &f32| value.abs() <= LARGEST_BF16;
        if let Some(element) = values.iter().position(|value| !is_written(value)) {
            return Err(Failure::diverged(format!(
                "tensor {name} is no number in bf16 at element {element}: lower hyperparameters.learningRate or \
                 maximumGradientNorm"
            )));
        }
    }
    Ok(())
}

/// The base model with all of its weights as what is trained, and its tokenizer.
fn read_base(config: &TrainerConfig) -> Result<(TrainableLlama, TextTokenizer), Failure> {
    let resolved = &config.resolved.base;
    let (base, tokenizer) = read_verified(resolved, BaseModel::load)?;
    if Accelerator::choose().is_ok_and(|chosen| chosen.accelerator.is_some()) {
        tracing::warn!("a run that trains every weight computes on the CPU: its GPU is not used");
    }
    let model = TrainableLlama::new(&base).map_err(|error| Failure::bug(causes(&error)))?;
    tracing::info!(
        parameters = base.config().parameters(),
        digest = %resolved.digest,
        "base model read"
    );
    Ok((model, tokenizer))
}

/// The mean loss of the validation rows, in nats, with the weights as they are now.
fn validation_loss(
    model: &TrainableLlama,
    tokenizer: &TextTokenizer,
    inputs: &Inputs,
    go_on: GoOn<'_>,
) -> Result<f64, Failure> {
    let model = model
        .to_llama()
        .map_err(|error| Failure::from(&TrainError::Model(error)))?;
    let on_rows = |_: u64| go_on();
    let evaluator = Evaluator {
        model: &model,
        tokenizer,
        maximum_new_tokens: 1,
        on_rows: &on_rows,
    };
    Ok(evaluator.loss(&inputs.validation, None)?.mean())
}

impl<'a> Output<'a> {
    /// Opens the claim.
    ///
    /// # Errors
    /// [`Failure`] with `BadConfig` where something stands at the folder that this run has not made: a run
    /// replaces nothing. With `Unavailable`: the claim is not there.
    fn open(config: &'a TrainerConfig, wanted: &'a ModelOutput) -> Result<Self, Failure> {
        let claim = patience::read(|| Store::open(&wanted.root))
            .map_err(|error| Failure::unavailable(causes(&error)))?;
        let output = Self {
            claim,
            wanted,
            config,
        };
        patience::read(|| output.check())?;
        Ok(output)
    }

    fn failure(&self, error: &StoreError) -> Failure {
        match error.category() {
            Category::Invalid => Failure::bad_config(format!(
                "spec.method.output.uri {}: {}",
                self.wanted.uri,
                causes(error)
            )),
            Category::Transient | Category::Bug => Failure::unavailable(causes(error)),
        }
    }

    /// That nothing stands there, or what an earlier attempt of this run has published.
    fn check(&self) -> Result<(), Failure> {
        let folder = &self.wanted.folder;
        let full = self
            .claim
            .locate(folder)
            .map_err(|error| self.failure(&error))?;
        let is_free = match std::fs::read_dir(&full) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if is_free {
            return Ok(());
        }
        // What can't be read as a manifest is somebody else's.
        let manifest = self
            .claim
            .get_json::<Manifest>(&format!("{folder}/{MANIFEST_FILE}"));
        let ours = manifest
            .ok()
            .flatten()
            .is_some_and(|it| match it.provenance {
                Provenance::Trained { run, resolved, .. } => {
                    run == self.config.run && resolved == self.config.resolved
                }
                Provenance::Imported { .. } => false,
            });
        if ours {
            return Ok(());
        }
        Err(Failure::bad_config(format!(
            "spec.method.output.uri {}: something is there already, and a run replaces nothing; name another folder in \
             a new run",
            self.wanted.uri
        )))
    }

    /// Writes the folder beside where it will appear: weights, and what the base model has beside them.
    fn write(&self, weights: &BaseModel) -> Result<Staged, Failure> {
        let mut staged = self
            .claim
            .stage(&self.wanted.folder)
            .map_err(|error| self.failure(&error))?;
        let base = Path::new(&self.config.resolved.base.path);
        for name in COPIED {
            let from = base.join(name);
            if from.exists() {
                staged
                    .copy(name, &from, COPIED_BYTES)
                    .map_err(|error| self.failure(&error))?;
            }
        }
        save_weights(staged.dir(), weights, SHARD_BYTES)
            .map_err(|error| Failure::unavailable(causes(&error)))?;
        Ok(staged)
    }

    /// Makes the folder appear, with a card and a manifest.
    fn publish(&self, written: Staged, outcome: &Outcome) -> Result<RunResult, Failure> {
        let config = self.config;
        self.check()?;
        written
            .write(CARD_FILE, card(config, outcome).as_bytes())
            .map_err(|error| self.failure(&error))?;
        let files = written.files().map_err(|error| self.failure(&error))?;
        let (manifest, result) = described(config, outcome, self.wanted.uri.clone(), 0, files)?;
        let put = written
            .publish(&manifest)
            .map_err(|error| self.failure(&error))?;
        let folder = result.folder.as_str();
        tracing::info!(folder, ?put, digest = %outcome.digest, "model published");
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::Ordering;

    use graftwork_model::fixture::TinyShape;

    use super::*;
    use crate::run::existing_result;
    use crate::run::survival::{config_on, dying_at, ended};

    /// Writes and publishes a model and the run's result, on a disk on which nothing changes from call `death`
    /// on. How many calls there were, and whether the result was written.
    fn end(dir: &Path, config: &TrainerConfig, weights: &BaseModel, death: usize) -> (usize, bool) {
        let (volume, calls) = dying_at(death);
        let open = |name: &str| {
            let store = Store::open_read_only(dir.join(name)).unwrap();
            store.on(volume.clone())
        };
        let wanted = ModelOutput {
            uri: "pvc://made/model".to_owned(),
            root: String::new(),
            folder: "model".to_owned(),
        };
        let output = Output {
            claim: open("claim"),
            wanted: &wanted,
            config,
        };
        let written = output
            .write(weights)
            .and_then(|written| output.publish(written, &ended(Digest::of(b"model"))))
            .and_then(|result| write_result(&open("store"), config, &result));
        (calls.load(Ordering::SeqCst), written.is_ok())
    }

    #[test]
    fn a_weight_that_is_no_number_in_bf16_is_not_written() {
        let weights = BaseModel::random(TinyShape::default().config(), 4);
        assert_eq!(check_finite(&weights), Ok(()));
        let largest = f32::from_bits(0x7f7f_0000);
        for (value, is_fine) in [
            (-largest, true),
            (f32::MAX, false),
            (f32::NAN, false),
            (f32::NEG_INFINITY, false),
        ] {
            let mut tensors = weights.tensors().clone();
            let last = tensors.values_mut().next_back().unwrap();
            last[1] = value;
            let weights = BaseModel::from_tensors(weights.config().clone(), tensors).unwrap();
            let checked = check_finite(&weights);
            assert_eq!(checked.is_ok(), is_fine, "{value}");
            if let Err(failure) = checked {
                assert_eq!(failure.code, graftwork_contract::exit::ExitCode::Diverged);
                assert!(failure.message.contains("at element 1"), "{failure}");
            }
        }
    }

    #[test]
    fn a_model_survives_the_death_of_its_writer_before_every_call_of_its_end() {
        let weights = BaseModel::random(TinyShape::default().config(), 4);
        let base = tempfile::tempdir().unwrap();
        graftwork_model::base::save_base(base.path(), &weights).unwrap();
        let config = config_on(base.path());
        let begun = || {
            let dir = tempfile::tempdir().unwrap();
            for name in ["claim", "store"] {
                std::fs::create_dir(dir.path().join(name)).unwrap();
            }
            dir
        };
        let (calls, written) = end(begun().path(), &config, &weights, usize::MAX);
        assert!(written && calls > 15, "{calls} calls");
        let mut seen = BTreeSet::new();
        for death in 0..=calls {
            let dir = begun();
            end(dir.path(), &config, &weights, death);
            let claim = Store::open(dir.path().join("claim")).unwrap();
            let store = Store::open(dir.path().join("store")).unwrap();
            let is_whole = || {
                let manifest: Manifest = claim.get_json("model/manifest.json").unwrap().unwrap();
                claim.verify("model", &manifest.files).unwrap();
                BaseModel::load(&claim.locate("model").unwrap()).unwrap();
            };
            let published = claim.is_published("model").unwrap();
            if published {
                is_whole();
            }
            let has_result = existing_result(&store, &config).unwrap().is_some();
            assert!(published || !has_result, "{death}: a result of nothing");
            seen.insert((published, has_result));

            assert!(end(dir.path(), &config, &weights, usize::MAX).1, "{death}");
            is_whole();
            assert!(existing_result(&store, &config).unwrap().is_some());
        }
        let all = [(false, false), (true, false), (true, true)];
        assert_eq!(seen, BTreeSet::from(all), "between any two of its steps");
    }
}
