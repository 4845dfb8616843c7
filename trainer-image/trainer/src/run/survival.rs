//! A writer that dies before any call of its save leaves a training of every kind that ends with the same
//! bits, and one that dies before any call of a run's end leaves a result that is right.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use graftwork_artifacts::{Store, Volume};
use graftwork_contract::adapter::Manifest;
use graftwork_contract::exit::ExitCode;
use graftwork_contract::run::{RowsUsed, Schedule, TrainerConfig};
use graftwork_contract::{Digest, paths};
use graftwork_model::base::{BaseModel, save_base};
use graftwork_model::fixture::TinyShape;
use graftwork_model::lora::{LoraConfig, LoraParams, Module};
use graftwork_model::peft::Adapter;
use graftwork_model::quant::Quantization;
use graftwork_model::targets::Targets;
use graftwork_model::tokenizer::TokenizedExample;
use graftwork_model::transformer::{Held, Llama};

use super::fence::Fence;
use super::package::{Outcome as Ended, publish};
use super::preference::{Pair, PreferenceObjective, add_references};
use super::progress::Reporter;
use super::session::{LoraObjective, Session, ValidationLoss};
use super::{existing_result, remove_checkpoints, write_result};
use crate::checkpoint::{Checkpoints, Environment};
use crate::failure::Failure;
use crate::optimizer::AdamWConfig;
use crate::order::{Batches, Length, Size};
use crate::schedule::LearningRate;
use crate::signals::StopFlag;
use crate::train::{ExampleOf, Objective, Outcome, Plan, State, Training};

const STEPS: u64 = 3;

fn example(number: u32, length: u32) -> TokenizedExample {
    TokenizedExample {
        tokens: (0..length).map(|i| (i * 7 + number) % 50).collect(),
        loss_mask: (0..length).map(|i| i >= 2).collect(),
    }
}

fn fresh(model: &Llama) -> LoraParams {
    let lora = LoraConfig {
        rank: 4,
        alpha: 8.0,
        dropout: 0.2,
        targets: Targets::of(&Module::ALL),
        use_rslora: false,
    };
    LoraParams::init(&lora, model.config(), 1).unwrap()
}

/// Three steps of two micro-batches each.
fn plan(examples: usize) -> (Batches, Plan) {
    let lengths = vec![10; examples];
    let batches = Batches::new(1, lengths, Size::Examples(4), Length::Steps(STEPS));
    let plan = Plan {
        micro_batch: Size::Examples(2),
        rate: LearningRate {
            peak: 0.01,
            schedule: Schedule::Linear,
            warmup_steps: 1,
            total_steps: STEPS,
        },
        optimizer: AdamWConfig::default(),
        maximum_gradient_norm: 1.0,
        seed: 1,
    };
    (batches, plan)
}

/// A training by this plan, from a state.
fn training<'a, O: Objective>(
    (objective, examples): (&'a O, &'a [ExampleOf<O>]),
    state: Option<&State>,
) -> Training<'a, O> {
    let (batches, plan) = plan(examples.len());
    let mut training = Training::start(objective, examples, batches, plan).unwrap();
    if let Some(state) = state {
        training.restore(state.clone()).unwrap();
    }
    training
}

fn finished<O: Objective>(mut training: Training<'_, O>) -> State {
    while !training.is_finished() {
        training.step(|| false).unwrap();
    }
    training.state().clone()
}

/// A disk on which nothing changes from call `death` on, and the calls so far.
pub(super) fn dying_at(death: usize) -> (Volume, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let volume = Volume::asking(move |_, _| {
        if counted.fetch_add(1, Ordering::SeqCst) < death {
            Ok(())
        } else {
            Err(std::io::ErrorKind::Other.into())
        }
    });
    (volume, calls)
}

/// Saves `state` and prunes what was before it, on a disk on which nothing changes from call `death` on. How
/// many calls there were.
fn save(dir: &Path, names: &[String], state: &State, death: usize) -> usize {
    let (volume, calls) = dying_at(death);
    let store = Store::open_read_only(dir).unwrap().on(volume);
    let checkpoints = of(&store, names);
    let _ = checkpoints
        .save(1, state, &Environment::new(1), 0)
        .and_then(|()| checkpoints.prune(1, 1));
    calls.load(Ordering::SeqCst)
}

fn of<'a>(store: &'a Store, names: &[String]) -> Checkpoints<'a> {
    let plan = Digest::of(b"plan");
    Checkpoints::new(store, "run/checkpoints".into(), plan, names.to_vec())
}

fn survives<O: Objective>(objective: &O, examples: &[ExampleOf<O>]) {
    let made = (objective, examples);
    let names: Vec<String> = objective
        .parameters()
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    let initial = training(made, None).state().clone();
    let expected = finished(training(made, Some(&initial)));

    let mut attempt = training(made, Some(&initial));
    attempt.step(|| false).unwrap();
    let earlier = attempt.state().clone();
    // In the midst of the second step's batch.
    let asked = Cell::new(0);
    let outcome = attempt.step(|| asked.replace(asked.get() + 1) == 1);
    assert_eq!(outcome.unwrap(), Outcome::Interrupted);
    let later = attempt.state().clone();
    assert_eq!((later.step, later.micro_batch), (1, 1));

    let with_earlier = || {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &names, &earlier, usize::MAX);
        dir
    };
    let calls = save(with_earlier().path(), &names, &later, usize::MAX);
    assert!(calls > 12, "{calls} calls");
    let mut found = BTreeSet::new();
    for death in 0..=calls {
        let dir = with_earlier();
        save(dir.path(), &names, &later, death);
        let store = Store::open(dir.path()).unwrap();
        let restored = of(&store, &names).newest(AdamWConfig::default()).unwrap();
        let state = restored.unwrap().state;
        found.insert(state.micro_batch);
        let state = finished(training(made, Some(&state)));
        assert!(state == expected, "death before call {death} of {calls}");
    }
    assert_eq!(found, BTreeSet::from([0, 1]), "before and after the rename");
}

fn examples() -> Vec<TokenizedExample> {
    (1..=9).map(|n| example(n, 4 + 2 * n)).collect()
}

#[test]
fn lora_survives_the_death_of_its_writer_before_every_call_of_a_save() {
    let model = Llama::new(&BaseModel::random(TinyShape::default().config(), 4));
    let params = fresh(&model);
    let objective = LoraObjective {
        model: &model,
        params: &params,
    };
    survives(&objective, &examples());
}

#[test]
fn qlora_survives_the_death_of_its_writer_before_every_call_of_a_save() {
    let dir = tempfile::tempdir().unwrap();
    let shape = TinyShape {
        hidden: 256,
        intermediate: 256,
        layers: 1,
        ..TinyShape::default()
    };
    save_base(dir.path(), &BaseModel::random(shape.config(), 4)).unwrap();
    let model = Llama::load(dir.path(), Held::Blocks(Quantization::Q4K)).unwrap();
    let params = fresh(&model);
    let objective = LoraObjective {
        model: &model,
        params: &params,
    };
    survives(&objective, &examples());
}

#[test]
fn dpo_survives_the_death_of_its_writer_before_every_call_of_a_save() {
    let model = Llama::new(&BaseModel::random(TinyShape::default().config(), 4));
    let mut pairs: Vec<Pair> = (1..=9)
        .map(|n| Pair {
            chosen: example(n, 9),
            rejected: example(n + 20, 12),
            reference: 0.0,
        })
        .collect();
    add_references(&mut pairs, &model, None, &|| Ok(())).unwrap();
    let params = fresh(&model);
    let objective = PreferenceObjective {
        model: &model,
        params: &params,
        beta: 0.5,
    };
    survives(&objective, &pairs);
}

/// The configuration of a run on the base model in this folder.
pub(super) fn config_on(base: &Path) -> TrainerConfig {
    let digest = Digest::of(b"it");
    serde_json::from_value(serde_json::json!({
        "run": "run",
        "resolved": {
            "base": {"uri": "pvc://models/tiny", "path": base, "digest": digest},
            "dataset": {
                "name": "colours", "version": 4, "digest": digest, "format": "Completion",
            },
            "reference": null,
        },
        "key": digest,
        "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targetModules": ["q_proj"]},
        "hyperparameters": {
            "learningRate": 0.02, "schedule": "Cosine", "warmupSteps": 5, "epochs": 1,
            "maximumSteps": 40, "batchSize": 8, "microBatchSize": 4,
            "maximumSequenceLength": 64, "weightDecay": 0.01, "maximumGradientNorm": 1.0,
            "seed": 3,
        },
        "checkpoint": {"everySteps": 4, "keep": 2},
        "evaluation": {"metrics": ["Loss"], "maximumNewTokens": 8, "maximumRows": null, "precision": "None"},
        "adapter": "colours",
    }))
    .unwrap()
}

#[test]
fn what_an_attempt_was_stopped_in_validating_is_in_the_next_ones_figures() {
    let model = Llama::new(&BaseModel::random(TinyShape::default().config(), 4));
    let mut config = config_on(Path::new("nowhere"));
    config.hyperparameters.validate_every_steps = Some(2);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let stop = StopFlag::default();
    let reporter = Reporter::new(String::new());
    let attempt = |validation_loss: ValidationLoss<'_>| {
        let params = fresh(&model);
        let objective = LoraObjective {
            model: &model,
            params: &params,
        };
        let session = Session {
            store: &store,
            config: &config,
            reporter: &reporter,
            stop: &stop,
            gpu: None,
            validation_loss: Some(validation_loss),
        };
        let folder = paths::run_fence(&config.run, &config.key);
        let mut fence = Fence::take(&store, folder, "pod", &stop).unwrap();
        let (batches, plan) = plan(examples().len());
        session.train(&objective, &examples(), batches, plan, &mut fence)
    };
    let stopped = attempt(&|_| Err(Failure::checkpointed("stopped while validating")));
    assert_eq!(stopped.unwrap_err().code, ExitCode::Checkpointed);
    assert_eq!(attempt(&|_| Ok(1.5)).unwrap().steps, STEPS);

    let folder = paths::run_metrics(&config.run, &config.key);
    let mut figures = Vec::new();
    for entry in store.list(&format!("{folder}/")).unwrap() {
        let text = String::from_utf8(store.get(&entry.path).unwrap().unwrap()).unwrap();
        for line in text.lines() {
            let figure: serde_json::Value = serde_json::from_str(line).unwrap();
            let has = |name: &str| figure.get(name).is_some_and(serde_json::Value::is_f64);
            let step = figure["step"].as_u64().unwrap();
            figures.push((step, has("loss"), has("validationLoss")));
        }
    }
    figures.sort_unstable();
    // Steps 2 and 3 are validated, the former by the attempt after the one that made it.
    let expected = [
        (1, true, false),
        (2, false, true),
        (2, true, false),
        (3, true, true),
    ];
    assert_eq!(figures, expected);
}

/// What a run of this content ended with.
pub(super) fn ended(digest: Digest) -> Ended {
    Ended {
        digest,
        steps: 40,
        final_loss: 1.5,
        metrics: Vec::new(),
        train_rows: RowsUsed::default(),
        validation_rows: RowsUsed::default(),
        test_rows: RowsUsed::default(),
    }
}

/// Publishes an adapter, writes the run's result and takes its checkpoints away, on a disk on which nothing
/// changes from call `death` on. How many calls there were, and whether the result was written.
fn end(dir: &Path, config: &TrainerConfig, adapter: &Adapter, death: usize) -> (usize, bool) {
    let (volume, calls) = dying_at(death);
    let store = Store::open_read_only(dir).unwrap().on(volume);
    let outcome = ended(adapter.digest().parse().unwrap());
    let written = publish(&store, config, adapter, &outcome)
        .and_then(|result| write_result(&store, config, &result));
    if written.is_ok() {
        remove_checkpoints(&store, config);
    }
    (calls.load(Ordering::SeqCst), written.is_ok())
}

#[test]
fn an_adapter_with_a_value_that_is_no_number_is_not_packaged() {
    let model = Llama::new(&BaseModel::random(TinyShape::default().config(), 4));
    let config = config_on(Path::new("nowhere"));
    for value in [f32::NAN, f32::INFINITY] {
        let mut adapter = fresh(&model).to_adapter("pvc://models/tiny").unwrap();
        let (name, tensor) = adapter.tensors.iter_mut().next_back().unwrap();
        *tensor.data.last_mut().unwrap() = value;
        let name = name.clone();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let ended = ended(adapter.digest().parse().unwrap());
        let failure = publish(&store, &config, &adapter, &ended).unwrap_err();
        assert_eq!(failure.code, ExitCode::Diverged);
        assert!(failure.message.contains(&name), "{failure}");
        assert!(store.list("").unwrap().is_empty());
    }
}

#[test]
fn a_run_survives_the_death_of_its_writer_before_every_call_of_its_end() {
    let model = Llama::new(&BaseModel::random(TinyShape::default().config(), 4));
    let adapter = fresh(&model).to_adapter("pvc://models/tiny").unwrap();
    let config = config_on(Path::new("nowhere"));
    let folder = paths::adapter("colours", &adapter.digest().parse().unwrap());
    let checkpoints = paths::run_checkpoints(&config.run, &config.key);
    let begun = || {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let state = format!("{checkpoints}/1/40/state.safetensors");
        store.put_new(&state, b"state").unwrap();
        dir
    };
    let is_whole = |store: &Store| {
        let manifest: Manifest = store
            .get_json(&format!("{folder}/manifest.json"))
            .unwrap()
            .unwrap();
        store.verify(&folder, &manifest.files).unwrap();
        let read = Adapter::load(&store.locate(&folder).unwrap()).unwrap();
        assert_eq!(read.digest(), manifest.digest.as_str());
    };
    let (calls, written) = end(begun().path(), &config, &adapter, usize::MAX);
    assert!(written && calls > 20, "{calls} calls");
    let mut seen = BTreeSet::new();
    for death in 0..=calls {
        let dir = begun();
        end(dir.path(), &config, &adapter, death);
        let store = Store::open(dir.path()).unwrap();
        let published = store.is_published(&folder).unwrap();
        let result = existing_result(&store, &config).unwrap();
        assert!(
            published || result.is_none(),
            "{death}: a result of nothing"
        );
        if published {
            is_whole(&store);
        }
        let resumable = !store.list(&format!("{checkpoints}/")).unwrap().is_empty();
        assert!(resumable || result.is_some(), "{death}: its work is gone");
        seen.insert((published, result.is_some(), resumable));

        assert!(end(dir.path(), &config, &adapter, usize::MAX).1, "{death}");
        is_whole(&store);
        let result = existing_result(&store, &config).unwrap().unwrap();
        assert_eq!(result.digest.as_str(), adapter.digest());
        assert!(store.list(&format!("{checkpoints}/")).unwrap().is_empty());
    }
    let all = [
        (false, false, true),
        (true, false, true),
        (true, true, true),
        (true, true, false),
    ];
    assert_eq!(seen, BTreeSet::from(all), "between any two of its steps");
}
