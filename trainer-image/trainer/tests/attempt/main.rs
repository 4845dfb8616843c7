//! Attempts of a run as real processes: killed, stopped, fenced off, misconfigured.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::type_complexity,
    clippy::disallowed_methods,
    reason = "a failed step is a failed test, and tests watch the clock"
)]

mod methods;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use graftwork_artifacts::Store;
use graftwork_artifacts::rows::{Row, RowWriter, file_name, schema_hash};
use graftwork_contract::dataset::{Format, Manifest, Provenance, RowCounts, Split};
use graftwork_contract::run::{RowsUsed, RunResult, RunSummary, TrainerConfig};
use graftwork_contract::{Digest, paths};
use graftwork_model::base::{BaseModel, base_digest, save_base};
use graftwork_model::fixture::{TinyShape, write_tiny_base};
use graftwork_model::peft::Adapter;
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
        let dir = tempfile::tempdir().unwrap();
        let store_dir = dir.path().join("store");
        std::fs::create_dir(&store_dir).unwrap();
        let base_dir = dir.path().join("base");
        std::fs::create_dir(&base_dir).unwrap();
        write_tiny_base(&base_dir, &TinyShape::default(), 5).unwrap();
        let base = BaseModel::load(&base_dir).unwrap();
        // Logits are products with the embedding, which is frozen: so small as it comes out of
        // random initialisation, no adapter could make the model sure of anything.
        let mut tensors = base.tensors().clone();
        for (name, values) in &mut tensors {
            if name.contains("embed_tokens") || name.contains("lm_head") {
                values.iter_mut().for_each(|value| *value *= 20.0);
            }
        }
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
            "evaluation": {"metrics": ["Loss", "ExactMatch"], "maximumNewTokens": 8, "maximumRows": null},
            "adapter": "colours",
            "threads": 1,
        })
    }

    fn start(&self, config: &Value) -> Child {
        let name = config["run"].as_str().unwrap();
        let file = self.dir.path().join(format!("{name}.json"));
        std::fs::write(&file, config.to_string()).unwrap();
        Command::new(env!("CARGO_BIN_EXE_trainer"))
            .args(["run", "--listen", "127.0.0.1:0", "--pod-name", "pod"])
            .arg("--config")
            .arg(&file)
            .arg("--store")
            .arg(self.store())
            .arg("--termination-file")
            .arg(self.summary_file(name))
            .env("RUST_LOG", "info")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn summary_file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.summary"))
    }

    fn summary(&self, config: &Value) -> RunSummary {
        let path = self.summary_file(config["run"].as_str().unwrap());
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Runs to the end and returns the exit code.
    fn run(&self, config: &Value) -> i32 {
        self.start(config).wait().unwrap().code().unwrap_or(-1)
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

const ANSWERS: [&str; 3] = ["red", "sky", "bolt"];

fn prompt(index: usize) -> String {
    format!("Item {} {}", index % 8, index % 3)
}

/// A dataset as the builder writes it: the last digit of a prompt decides the answer, and in the
/// answers each letter decides the next, which even a tiny random base can be taught. What is learnt
/// is wrong for the rows to validate: their loss falls, then rises.
fn write_dataset(store: &Store, test_rows: usize, validation_rows: usize) -> Digest {
    let rows = |count: usize, shift: usize| -> Vec<Row> {
        let row = |index: usize| Row::Completion {
            prompt: prompt(index),
            completion: ANSWERS[(index + shift) % 3].to_owned(),
        };
        (0..count).map(row).collect()
    };
    let splits = [rows(48, 0), rows(validation_rows, 1), rows(test_rows, 0)];
    write_rows(store, "colours", Format::Completion, splits)
}

/// Writes rows to train on, to validate and to test as one version of a dataset.
fn write_rows(store: &Store, name: &str, format: Format, splits: [Vec<Row>; 3]) -> Digest {
    let digest = Digest::of(name.as_bytes());
    let staged = store.stage(&paths::dataset(name, &digest)).unwrap();
    let [train, validation, test] = splits.each_ref().map(|rows| rows.len() as u64);
    for (split, rows) in [Split::Train, Split::Validation, Split::Test]
        .into_iter()
        .zip(splits)
    {
        let path = staged.dir().join(file_name(split));
        let mut writer = RowWriter::create(&path, format, None).unwrap();
        for row in rows {
            writer.push(row, None).unwrap();
        }
        writer.finish().unwrap();
    }
    let files = staged.files().unwrap();
    let provenance = Provenance {
        sources: vec![],
        code_version: "test".into(),
        privacy: None,
        parent: None,
        created_time: "2026-01-01T00:00:00Z".into(),
    };
    let manifest = Manifest {
        digest: digest.clone(),
        schema_hash: schema_hash(format, None),
        format,
        rows: RowCounts {
            train,
            validation,
            test,
            rejected: 0,
            duplicates: 0,
        },
        files: files.digests,
        size_bytes: files.size_bytes,
        provenance_digest: Digest::of_json(&provenance).unwrap(),
        provenance,
        findings: std::collections::BTreeMap::new(),
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

fn has_checkpoint(folder: &Path) -> bool {
    std::fs::read_dir(folder.join("checkpoints")).is_ok_and(|epochs| {
        epochs.flatten().any(|epoch| {
            std::fs::read_dir(epoch.path()).is_ok_and(|mut steps| steps.next().is_some())
        })
    })
}

#[test]
fn a_run_learns_is_scored_and_leaves_a_peft_folder() {
    let world = World::new();
    let mut config = world.config("learn");
    config["hyperparameters"]["maximumSteps"] = json!(400);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    let summary = world.summary(&config);
    assert_eq!(summary.reason, "Completed");
    assert_eq!((summary.step, summary.total_steps), (400, 400));
    assert_eq!(summary.digest.as_ref(), Some(&result.digest));

    let metric = |name: &str| result.metrics.iter().find(|m| m.name == name).unwrap();
    let loss = metric("loss");
    assert!(loss.value < 0.5 * loss.baseline, "{loss:?}");
    assert!((loss.difference - (loss.value - loss.baseline)).abs() < 1e-9);
    assert_eq!(loss.samples, 24);
    let exact = metric("exact_match");
    assert!(exact.value > exact.baseline + 0.2, "{exact:?} {loss:?}");

    let folder = world.store().join(&result.folder);
    let adapter = Adapter::load(&folder).unwrap();
    assert_eq!(adapter.digest(), result.digest.as_str());
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("base_model: \"pvc://models/tiny\""), "{card}");
    assert!(card.contains(config["resolved"]["dataset"]["digest"].as_str().unwrap()));
    let sizes = std::fs::read_dir(&folder)
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.file_name() != "manifest.json")
        .map(|entry| entry.metadata().unwrap().len());
    assert_eq!(result.size_bytes, sizes.sum::<u64>());
    let figures: usize = std::fs::read_dir(world.run_folder(&config).join("metrics"))
        .unwrap()
        .map(|file| {
            std::fs::read_to_string(file.unwrap().path())
                .unwrap()
                .lines()
                .count()
        })
        .sum();
    assert_eq!(figures, 400, "one line for every step");
    assert_eq!(result.train_rows, RowsUsed { rows: 48, cut: 0 });
    assert_eq!(result.test_rows, RowsUsed { rows: 24, cut: 0 });

    // Nobody goes on from a checkpoint of a run that has its result, and one that a killed attempt
    // left behind goes with the next.
    let checkpoints = world.run_folder(&config).join("checkpoints");
    assert!(!checkpoints.exists(), "the checkpoints are removed");
    std::fs::create_dir_all(checkpoints.join("1/4")).unwrap();

    // The result is there: nothing is read any more, not even a base model that has gone.
    std::fs::remove_dir_all(world.dir.path().join("base")).unwrap();
    assert_eq!(world.run(&config), 0);
    assert_eq!(world.summary(&config).digest, Some(result.digest));
    assert!(!checkpoints.exists());
}

#[test]
fn rows_that_are_too_long_are_cut_and_counted() {
    let world = World::new();
    let mut config = world.config("long");
    config["hyperparameters"]["maximumSteps"] = json!(2);
    // A prompt is 8 bytes, the answers are 3 and 4, and tokens are bytes and two marks.
    config["hyperparameters"]["maximumSequenceLength"] = json!(13);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    assert_eq!(result.train_rows, RowsUsed { rows: 48, cut: 16 });
    assert_eq!(result.test_rows, RowsUsed { rows: 24, cut: 8 });
}

#[test]
fn killed_at_random_steps_it_ends_with_the_same_bits() {
    let world = World::new();
    let whole = world.config("whole");
    assert_eq!(world.run(&whole), 0);
    let expected = world.result(&whole);

    let broken = world.config("broken");
    // Fixed delays, which land on whatever step this machine has reached by then.
    let mut kills = 0;
    for delay in [30, 180, 90, 250, 140, 60, 320, 200, 110, 280] {
        let mut child = world.start(&broken);
        let end = Instant::now() + Duration::from_millis(delay);
        while Instant::now() < end && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // One more that is surely in the midst of it.
    if !world.run_folder(&broken).join("result.json").exists() {
        let mut child = world.start(&broken);
        wait_until(&mut child, || has_checkpoint(&world.run_folder(&broken)));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 0);
    assert_eq!(world.run(&broken), 0);
    let got = world.result(&broken);
    assert_eq!(got.digest, expected.digest);
    assert_eq!(got.metrics, expected.metrics);
    assert_eq!(got.final_loss.to_bits(), expected.final_loss.to_bits());
    assert!(
        first_step_of_the_last_attempt(&world.run_folder(&broken)) > 1,
        "it began anew instead of going on from a checkpoint"
    );
}

/// The step of the first figures that the newest attempt wrote.
fn first_step_of_the_last_attempt(run: &Path) -> u64 {
    let numbers = |path: &Path| {
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (epoch, part) = stem.split_once('-').unwrap();
        let numbers: (u64, u64) = (epoch.parse().unwrap(), part.parse().unwrap());
        numbers
    };
    let files = std::fs::read_dir(run.join("metrics")).unwrap();
    let files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    let last = files.iter().map(|file| numbers(file).0).max().unwrap();
    let first = files
        .iter()
        .filter(|file| numbers(file).0 == last)
        .min_by_key(|file| numbers(file))
        .unwrap();
    let text = std::fs::read_to_string(first).unwrap();
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    line["step"].as_u64().unwrap()
}

#[test]
fn stopped_on_request_it_saves_and_goes_on_with_the_same_bits() {
    let world = World::new();
    let whole = world.config("whole");
    assert_eq!(world.run(&whole), 0);

    let mut stopped = world.config("stopped");
    stopped["checkpoint"]["everySteps"] = json!(3);
    for round in 0..3 {
        let mut child = world.start(&stopped);
        let before = checkpoint_steps(&world.run_folder(&stopped));
        wait_until(&mut child, || {
            checkpoint_steps(&world.run_folder(&stopped)) != before
        });
        let killed = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(killed.unwrap().success());
        let code = child.wait().unwrap().code();
        if code == Some(0) {
            assert!(round > 0, "it was too fast to be stopped even once");
            break;
        }
        assert_eq!(code, Some(75));
        let summary = world.summary(&stopped);
        assert_eq!(summary.reason, "Restarting");
        assert_eq!(
            summary.checkpoint_step,
            Some(summary.step),
            "nothing is lost"
        );
    }
    assert_eq!(world.run(&stopped), 0);
    assert_eq!(world.result(&stopped).digest, world.result(&whole).digest);
}

fn terminate(child: &Child) {
    let sent = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

/// Longest time that an attempt may take to stop: this is a tiny model.
const STOP: Duration = Duration::from_secs(10);

#[test]
fn stopped_while_it_scores_it_leaves_at_once_and_the_next_attempt_only_scores() {
    // So many rows that scoring takes some seconds at least.
    let world = World::with_test_rows(6000);
    let mut config = world.config("scoring");
    config["hyperparameters"]["maximumSteps"] = json!(2);
    config["checkpoint"]["everySteps"] = json!(2);
    config["evaluation"]["maximumNewTokens"] = json!(400);
    let mut child = world.start(&config);
    // Its last step is saved: it scores.
    wait_until(&mut child, || has_checkpoint(&world.run_folder(&config)));
    let asked = Instant::now();
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(asked.elapsed() < STOP, "{:?}", asked.elapsed());
    let summary = world.summary(&config);
    assert_eq!(summary.reason, "Restarting");
    assert_eq!((summary.step, summary.checkpoint_step), (2, Some(2)));
    assert!(has_checkpoint(&world.run_folder(&config)));

    config["evaluation"]["maximumRows"] = json!(8);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
}

#[test]
fn stopped_while_it_reads_its_inputs_it_leaves_at_once() {
    let world = World::new();
    let config = world.config("reading");
    // A file that nobody ever writes to: who reads it waits for ever.
    let file = world.dir.path().join("base/tokenizer.json");
    std::fs::remove_file(&file).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&file)
            .status()
            .unwrap()
            .success()
    );
    let mut child = world.start(&config);
    wait_until(&mut child, || {
        world.run_folder(&config).join("fence/1.json").exists()
    });
    let asked = Instant::now();
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(asked.elapsed() < STOP, "{:?}", asked.elapsed());
    let summary = world.summary(&config);
    assert_eq!(summary.reason, "Restarting");
    assert_eq!(
        summary.message,
        "stopped on request before the first step; nothing is lost"
    );
    assert_eq!(summary.checkpoint_step, None);
}

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

#[test]
fn the_digest_depends_on_neither_name_nor_threads_nor_time() {
    let world = World::new();
    let one = world.config("one");
    let mut two = world.config("two");
    two["threads"] = json!(2);
    two["adapter"] = Value::Null;
    assert_eq!((world.run(&one), world.run(&two)), (0, 0));
    let (one, two) = (world.result(&one), world.result(&two));
    assert_eq!(one.digest, two.digest);
    assert!(
        one.folder.starts_with("adapters/colours/"),
        "{}",
        one.folder
    );
    assert!(two.folder.starts_with("runs/two/"), "{}", two.folder);
}

#[test]
fn a_second_run_is_compared_with_a_version_of_the_adapter() {
    let world = World::new();
    let first = world.config("first");
    assert_eq!(world.run(&first), 0);
    let first = world.result(&first);
    let mut second = world.config("second");
    second["hyperparameters"]["maximumSteps"] = json!(2);
    second["resolved"]["reference"] =
        json!({"adapter": "colours", "version": 1, "digest": first.digest});
    assert_eq!(world.run(&second), 0, "{:?}", world.summary(&second));
    let second = world.result(&second);
    for (new, old) in second.metrics.iter().zip(&first.metrics) {
        assert_eq!(new.name, old.name);
        assert!(
            (new.baseline - old.value).abs() < 1e-12,
            "the reference scores as it did"
        );
    }
}

#[test]
fn a_newer_attempt_fences_the_older_off() {
    let world = World::new();
    let mut config = world.config("fenced");
    config["hyperparameters"]["maximumSteps"] = json!(1_000_000);
    let mut child = world.start(&config);
    let folder = world.run_folder(&config);
    wait_until(&mut child, || has_checkpoint(&folder));
    let claim = json!({"pod": "other", "process": 1, "unixNanoseconds": 1});
    std::fs::write(folder.join("fence/2.json"), claim.to_string()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(76));
    let summary = world.summary(&config);
    assert!(summary.message.contains("attempt 2"), "{}", summary.message);
    assert!(!folder.join("result.json").exists());
}

#[test]
fn what_is_wrong_is_named_with_its_exit_code() {
    let world = World::new();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut config = world.config("wrong");
        change(&mut config);
        world.failure(&config)
    };
    let cases: [(&dyn Fn(&mut Value), i32, &str, &[&str]); 9] = [
        (
            &|c| c["lora"]["rank"] = json!(0),
            64,
            "InvalidSpec",
            &["lora.rank is 0"],
        ),
        (
            &|c| c["lora"]["rank"] = json!(4096),
            64,
            "InvalidSpec",
            &["lora.rank is 4096", "hidden size"],
        ),
        (
            &|c| c["lora"]["targetModules"] = json!(["q_proj", "mixer"]),
            64,
            "InvalidSpec",
            &["\"mixer\"", "q_proj, k_proj", "down_proj"],
        ),
        (
            &|c| c["hyperparameters"]["learningRate"] = json!(0.0),
            64,
            "InvalidSpec",
            &["learningRate is 0, must be above 0"],
        ),
        (
            &|c| c["hyperparameters"]["maximumSequenceLength"] = json!(100_000),
            64,
            "InvalidSpec",
            &["maximumSequenceLength is 100000", "context"],
        ),
        (
            &|c| c["resolved"]["base"]["digest"] = json!(Digest::of(b"other")),
            64,
            "InvalidSpec",
            &[
                "pvc://models/tiny has digest sha256:",
                "the folder was changed",
            ],
        ),
        (
            &|c| c["resolved"]["base"]["path"] = json!("/nowhere"),
            64,
            "InvalidSpec",
            &["baseModel pvc://models/tiny"],
        ),
        (
            &|c| c["resolved"]["dataset"]["digest"] = json!(Digest::of(b"other")),
            65,
            "DataError",
            &["dataset colours version 1", "does not exist"],
        ),
        (
            &|c| c["lora"]["alpha"] = json!(1e39),
            66,
            "Diverged",
            &["of step", "learningRate"],
        ),
    ];
    for (index, (change, code, reason, words)) in cases.into_iter().enumerate() {
        // Another run each time: pinned inputs are not changed.
        let (got, got_reason, message) = with(&|config| {
            config["key"] = json!(Digest::of(&[index as u8]));
            change(config);
        });
        assert_eq!(
            (got, got_reason.as_str()),
            (code, reason),
            "case {index}: {message}"
        );
        for word in words {
            assert!(
                message.contains(word),
                "case {index}: {message:?} lacks {word:?}"
            );
        }
    }
}

#[test]
fn damaged_data_and_an_absent_store_are_told_apart() {
    let world = World::new();
    let config = world.config("damaged");
    let file = world
        .store()
        .join(paths::dataset("colours", &world.dataset))
        .join("train.parquet");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (code, reason, message) = world.failure(&config);
    assert_eq!((code, reason.as_str()), (65, "DataError"));
    assert!(message.contains("train.parquet has digest"), "{message}");

    std::fs::rename(world.store(), world.dir.path().join("gone")).unwrap();
    let (code, _, message) = world.failure(&config);
    assert_eq!(code, 69, "{message}");
}

#[test]
fn a_base_model_that_the_volume_does_not_give_is_worth_another_attempt_and_a_bad_one_is_not() {
    let world = World::new();
    let base = world.dir.path().join("base");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let path = base.join(file);
        let bytes = std::fs::read(&path).unwrap();
        let attempt = |what: &str| {
            let mut config = world.config(&format!("{what}-{file}"));
            if let Ok(digest) = base_digest(&base) {
                config["resolved"]["base"]["digest"] = json!(digest);
            }
            world.failure(&config)
        };
        let expect = |(code, reason, message): (i32, String, String), wanted: (i32, &str)| {
            assert_eq!((code, reason.as_str()), wanted, "{file}: {message}");
            assert!(message.contains("baseModel pvc://models/tiny"), "{message}");
            assert!(message.contains(file), "{file}: {message}");
        };
        std::fs::remove_file(&path).unwrap();
        expect(attempt("missing"), (64, "InvalidSpec"));
        std::fs::write(&path, "{").unwrap();
        expect(attempt("malformed"), (64, "InvalidSpec"));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        expect(attempt("folder"), (64, "InvalidSpec"));
        std::fs::remove_dir(&path).unwrap();
        // Nothing is mapped at address 0: reading it is an input/output error.
        std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
        expect(attempt("unreadable"), (69, "Restarting"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn an_unreadable_configuration_is_a_bad_one() {
    let world = World::new();
    let config = json!({"run": "odd"});
    let (code, reason, message) = world.failure(&config);
    assert_eq!((code, reason.as_str()), (64, "InvalidSpec"));
    assert!(message.contains("missing field `resolved`"), "{message}");
}
