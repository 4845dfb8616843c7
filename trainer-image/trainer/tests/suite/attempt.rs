//! Attempts of a run as real processes: killed, stopped, fenced off, misconfigured.

mod bucket;
mod evaluation;
mod families;
mod formats;
mod full;
mod interrupted;
mod memory;
mod methods;
mod refused;
mod results;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use graftwork_artifacts::Store;
use graftwork_artifacts::rows::{Beside, Row, RowWriter, file_name, schema_hash};
use graftwork_contract::dataset::{Format, Manifest, Provenance, RowCounts, Split};
use graftwork_contract::run::{RunResult, RunSummary, TrainerConfig};
use graftwork_contract::{Digest, paths};
use graftwork_model::base::{BaseModel, base_digest, save_base};
use graftwork_model::fixture::{TinyShape, write_tiny_base};
use serde_json::{Value, json};

/// A store with a dataset and a tiny base model, in a folder of its own.
struct World {
    dir: tempfile::TempDir,
    dataset: Digest,
    base: String,
}

impl World {
    fn new() -> Self {
        Self::with_test_rows(24)
    }

    fn with_test_rows(test_rows: usize) -> Self {
        Self::with_splits(test_rows, 9)
    }

    fn with_splits(test_rows: usize, validation_rows: usize) -> Self {
        Self::of_shape(&TinyShape::default(), test_rows, validation_rows)
    }

    fn of_shape(shape: &TinyShape, test_rows: usize, validation_rows: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store_dir = dir.path().join("store");
        std::fs::create_dir(&store_dir).unwrap();
        let base_dir = dir.path().join("base");
        std::fs::create_dir(&base_dir).unwrap();
        write_tiny_base(&base_dir, shape, 5).unwrap();
        let base = BaseModel::load(&base_dir).unwrap();
        let tensors = with_large_logits(&base);
        let base = BaseModel::from_tensors(base.config().clone(), tensors).unwrap();
        save_base(&base_dir, &base).unwrap();
        let base = base_digest(&base_dir).unwrap();
        let dataset = write_dataset(
            &Store::open(&store_dir).unwrap(),
            test_rows,
            validation_rows,
        );
        Self { dir, dataset, base }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// The configuration of a run that takes some seconds at most.
    fn config(&self, run: &str) -> Value {
        json!({
            "run": run,
            "resolved": {
                "base": {
                    "uri": "pvc://models/tiny",
                    "path": self.dir.path().join("base"),
                    "digest": self.base,
                },
                "dataset": {
                    "name": "colours",
                    "version": 1,
                    "digest": self.dataset,
                    "format": "Completion",
                },
                "reference": null,
            },
            "key": Digest::of(run.as_bytes()),
            "lora": {
                "rank": 8,
                "alpha": 16.0,
                "dropout": 0.05,
                "targetModules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
            },
            "hyperparameters": {
                "learningRate": 0.02,
                "schedule": "Cosine",
                "warmupSteps": 5,
                "epochs": 1,
                "maximumSteps": 40,
                "batchSize": 8,
                "microBatchSize": 4,
                "maximumSequenceLength": 64,
                "weightDecay": 0.01,
                "maximumGradientNorm": 1.0,
                "seed": 3,
            },
            "checkpoint": {"everySteps": 4, "keep": 2},
            "evaluation": {"metrics": ["Loss", "ExactMatch"], "maximumNewTokens": 8, "maximumRows": null, "precision": "None"},
            "adapter": "colours",
            "threads": 1,
        })
    }

    /// The same of so many steps.
    fn config_of_steps(&self, run: &str, steps: u64) -> Value {
        let mut config = self.config(run);
        config["hyperparameters"]["maximumSteps"] = json!(steps);
        config
    }

    /// A run of so many steps that has come to its end, and the same one under another name, which has not begun.
    fn whole_beside(&self, run: &str, steps: u64) -> (Value, Value) {
        let whole = self.config_of_steps("whole", steps);
        assert_eq!(self.run(&whole), 0, "{:?}", self.summary(&whole));
        (whole, self.config_of_steps(run, steps))
    }

    fn start(&self, config: &Value) -> Child {
        self.start_as(config, config["run"].as_str().unwrap())
    }

    /// Starts an attempt whose summary is left under `name`.
    fn start_as(&self, config: &Value, name: &str) -> Child {
        self.command(config, name).spawn().unwrap()
    }

    /// Starts an attempt, and gives it back once it has saved more than there was.
    fn start_until_it_saves(&self, config: &Value) -> Child {
        let folder = self.run_folder(config);
        let before = checkpoint_steps(&folder);
        let mut child = self.start(config);
        wait_until(&mut child, || checkpoint_steps(&folder) != before);
        child
    }

    /// Starts an attempt, and kills it once it has saved more than there was.
    fn kill_once_it_saved(&self, config: &Value) {
        let mut child = self.start_until_it_saves(config);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn command(&self, config: &Value, name: &str) -> Command {
        let file = self.dir.path().join(format!("{name}.json"));
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command
            .args(["run", "--listen", "127.0.0.1:0", "--pod-name", "pod"])
            .arg("--config")
            .arg(&file)
            .arg("--store")
            .arg(self.store())
            .arg("--termination-file")
            .arg(self.summary_file(name))
            .env("RUST_LOG", "info")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn summary_file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.summary"))
    }

    fn summary(&self, config: &Value) -> RunSummary {
        let path = self.summary_file(config["run"].as_str().unwrap());
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Runs to the end with few bytes for activations and returns the exit code.
    fn run_with_activation_bytes(&self, config: &Value, bytes: u64) -> i32 {
        let mut command = self.command(config, config["run"].as_str().unwrap());
        command.args(["--activation-bytes", &bytes.to_string()]);
        command.status().unwrap().code().unwrap_or(-1)
    }

    /// Runs to the end and returns the exit code.
    fn run(&self, config: &Value) -> i32 {
        self.start(config).wait().unwrap().code().unwrap_or(-1)
    }

    /// Runs to the end: the exit code, and all that the attempt says at its most talkative, in its log and its summary.
    fn told(&self, config: &Value) -> (i32, String) {
        let name = config["run"].as_str().unwrap();
        let mut command = self.command(config, name);
        command.env(
            "RUST_LOG",
            "info,trainer=trace,graftwork_model=trace,graftwork_artifacts=trace,graftwork_objects=trace,object_store=trace",
        );
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let ended = command.output().unwrap();
        let mut told = String::from_utf8_lossy(&ended.stdout).into_owned();
        told.push_str(&String::from_utf8_lossy(&ended.stderr));
        told.push_str(&std::fs::read_to_string(self.summary_file(name)).unwrap());
        (ended.status.code().unwrap_or(-1), told)
    }

    fn result(&self, config: &Value) -> RunResult {
        let config: TrainerConfig = serde_json::from_value(config.clone()).unwrap();
        let path = paths::run_result(&config.run, &config.key);
        Store::open(self.store())
            .unwrap()
            .get_json(&path)
            .unwrap()
            .unwrap()
    }

    /// The exit code, the summary's reason and its message.
    fn failure(&self, config: &Value) -> (i32, String, String) {
        let code = self.run(config);
        let summary = self.summary(config);
        (code, summary.reason, summary.message)
    }

    fn run_folder(&self, config: &Value) -> PathBuf {
        let config: TrainerConfig = serde_json::from_value(config.clone()).unwrap();
        self.store().join(paths::run(&config.run, &config.key))
    }
}

/// The weights of a random model that can be taught. Logits are products with the embedding, which is frozen: so small
/// as it comes out of random initialisation, no adapter could make the model sure of anything.
fn with_large_logits(base: &BaseModel) -> BTreeMap<String, Vec<f32>> {
    let mut tensors = base.tensors().clone();
    for (name, values) in &mut tensors {
        if name.contains("embed_tokens") || name.contains("lm_head") {
            values.iter_mut().for_each(|value| *value *= 20.0);
        }
    }
    tensors
}

const ANSWERS: [&str; 3] = ["red", "sky", "bolt"];

/// A prompt to train on.
fn prompt(index: usize) -> String {
    prompt_of(index, false)
}

/// A prompt to test with: its digits are known from others, the pair of them is not.
fn test_prompt(index: usize) -> String {
    prompt_of(index, true)
}

fn prompt_of(index: usize, is_test: bool) -> String {
    let second = index % 3;
    let firsts = (0..8_usize).filter(|first| (first + second).is_multiple_of(4) == is_test);
    let firsts: Vec<usize> = firsts.collect();
    format!("Item {} {second}", firsts[index / 3 % firsts.len()])
}

/// A dataset as the builder writes it: the last digit of a prompt decides the answer, and in the
/// answers each letter decides the next, which even a tiny random base can be taught. What is learnt
/// is wrong for the rows to validate: their loss falls, then rises.
fn write_dataset(store: &Store, test_rows: usize, validation_rows: usize) -> Digest {
    let rows = |count: usize, prompt: fn(usize) -> String, shift: usize| -> Vec<Row> {
        let row = |index: usize| Row::Completion {
            prompt: prompt(index),
            completion: ANSWERS[(index + shift) % 3].to_owned(),
        };
        (0..count).map(row).collect()
    };
    let splits = [
        rows(48, prompt, 0),
        rows(validation_rows, prompt, 1),
        rows(test_rows, test_prompt, 0),
    ];
    write_rows(store, "colours", Format::Completion, splits)
}

/// What stands beside the rows of each split, by their number.
#[derive(Clone, Copy, Default)]
struct Columns {
    group: Option<fn(usize) -> String>,
    reward: Option<fn(usize) -> f64>,
}

/// Writes rows to train on, to validate and to test as one version of a dataset.
fn write_rows(store: &Store, name: &str, format: Format, splits: [Vec<Row>; 3]) -> Digest {
    write_beside(store, name, format, splits, Columns::default())
}

/// The same with more columns.
fn write_beside(
    store: &Store,
    name: &str,
    format: Format,
    splits: [Vec<Row>; 3],
    columns: Columns,
) -> Digest {
    let beside = Beside {
        group: columns.group.map(|_| "claim"),
        reward: columns.reward.is_some(),
    };
    let digest = Digest::of(name.as_bytes());
    let staged = store.stage(&paths::dataset(name, &digest)).unwrap();
    let [train, validation, test] = splits.each_ref().map(|rows| rows.len() as u64);
    for (split, rows) in [Split::Train, Split::Validation, Split::Test]
        .into_iter()
        .zip(splits)
    {
        let path = staged.dir().join(file_name(split));
        let mut writer = RowWriter::create(&path, format, beside).unwrap();
        for (index, row) in rows.into_iter().enumerate() {
            let group = columns.group.map(|group| group(index));
            let reward = columns.reward.map(|reward| reward(index));
            writer.push(row, group.as_deref(), reward).unwrap();
        }
        writer.finish().unwrap();
    }
    let files = staged.files().unwrap();
    let provenance = Provenance {
        description: None,
        sources: vec![],
        code_version: "test".into(),
        privacy: None,
        tokenizer: None,
        transform: None,
        spec_digest: None,
        listing: None,
        schemas: vec![],
        parent: None,
        created_time: "2026-01-01T00:00:00Z".into(),
    };
    let manifest = Manifest {
        digest: digest.clone(),
        schema_hash: schema_hash(format, beside),
        format,
        rows: RowCounts {
            train,
            validation,
            test,
            rejected: 0,
            duplicates: 0,
            beyond_weight: 0,
        },
        files: files.digests,
        size_bytes: files.size_bytes,
        provenance_digest: Digest::of_json(&provenance).unwrap(),
        provenance,
        findings: BTreeMap::new(),
        classification: None,
    };
    staged.publish(&manifest).unwrap();
    digest
}

/// Waits until `condition` holds; the child must not end before.
fn wait_until(child: &mut Child, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the trainer ended too early"
        );
        assert!(Instant::now() < deadline, "nothing happened in a minute");
        std::thread::yield_now();
    }
}

/// The folders of all checkpoints of a run.
fn checkpoint_steps(folder: &Path) -> Vec<PathBuf> {
    let mut steps: Vec<PathBuf> = std::fs::read_dir(folder.join("checkpoints"))
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|epoch| {
            std::fs::read_dir(epoch.path())
                .into_iter()
                .flatten()
                .flatten()
        })
        .map(|entry| entry.path())
        .collect();
    steps.sort();
    steps
}

fn has_checkpoint(folder: &Path) -> bool {
    std::fs::read_dir(folder.join("checkpoints")).is_ok_and(|epochs| {
        epochs.flatten().any(|epoch| {
            std::fs::read_dir(epoch.path()).is_ok_and(|mut steps| steps.next().is_some())
        })
    })
}
