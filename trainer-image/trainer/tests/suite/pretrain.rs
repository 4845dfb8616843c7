//! Pre-training as a real process: from a text to a folder, stopped, killed and begun again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use graftwork_model::base::{BaseModel, base_digest};
use graftwork_model::tokenizer::{ChatMessage, TextTokenizer};
use serde_json::{Value, json};

/// A folder with a text, what is held out of it, and a recipe.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rows = |numbers: std::ops::Range<usize>| -> String {
            numbers.map(|number| format!("{}\n", row(number))).collect()
        };
        std::fs::write(dir.path().join("text.jsonl"), rows(0..300)).unwrap();
        std::fs::write(dir.path().join("held-out.jsonl"), rows(300..330)).unwrap();
        let world = Self { dir };
        world.write_recipe(1);
        world
    }

    /// More than a thousand steps of a model that takes a millisecond or two for each: seconds between
    /// the first checkpoint and the end.
    fn write_recipe(&self, seed: u64) {
        let recipe = json!({
            "name": "tiny", "description": "A test.", "license": "apache-2.0",
            "model": {
                "vocabulary": 320, "hiddenSize": 16, "intermediateSize": 32, "layers": 1,
                "attentionHeads": 2, "keyValueHeads": 1, "context": 32, "tieWordEmbeddings": true,
            },
            "training": {
                "tokens": 120_000, "batchTokens": 64, "microBatchTokens": 32,
                "learningRate": 0.01, "schedule": "Cosine", "warmupSteps": 10,
                "weightDecay": 0.1, "beta2": 0.99, "maximumGradientNorm": 1.0, "seed": seed,
                "checkpointEverySteps": 20, "evaluateEverySteps": 100,
            },
        });
        std::fs::write(self.dir.path().join("recipe.json"), recipe.to_string()).unwrap();
    }

    /// Where model `name` goes.
    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name).join("model")
    }

    fn start(&self, name: &str) -> Child {
        let path = |file: &str| self.dir.path().join(file);
        Command::new(env!("CARGO_BIN_EXE_trainer"))
            .args(["pretrain", "--threads", "1"])
            .args([Path::new("--text"), &path("text.jsonl")])
            .args([Path::new("--held-out"), &path("held-out.jsonl")])
            .args([Path::new("--recipe"), &path("recipe.json")])
            .args([Path::new("--work"), &path(name)])
            .args([Path::new("--out"), &self.out(name)])
            .env("RUST_LOG", "info")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The checkpoints that model `name` has: `<plan>/<epoch>/<step>`.
    fn checkpoints(&self, name: &str) -> BTreeSet<PathBuf> {
        let mut folders = vec![self.dir.path().join(name).join("checkpoints")];
        for _ in 0..3 {
            folders = folders
                .into_iter()
                .filter_map(|folder| std::fs::read_dir(folder).ok())
                .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
                .collect();
        }
        folders.into_iter().collect()
    }

    /// The plans that model `name` has checkpoints of.
    fn plans(&self, name: &str) -> BTreeSet<PathBuf> {
        let folders = self.checkpoints(name);
        let plans = folders
            .iter()
            .filter_map(|folder| folder.ancestors().nth(2));
        plans.map(Path::to_path_buf).collect()
    }

    /// Starts, and sends a signal once there is a checkpoint that was not there before. Returns the
    /// exit code, and the log.
    fn interrupt(&self, name: &str, signal: &str) -> (Option<i32>, String) {
        let before = self.checkpoints(name);
        let mut child = self.start(name);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.checkpoints(name).is_subset(&before) {
            assert!(child.try_wait().unwrap().is_none(), "it ended too early");
            assert!(Instant::now() < deadline, "nothing happened in a minute");
            // A pause: one that spins keeps the training from its core.
            std::thread::sleep(Duration::from_millis(5));
        }
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        finish(child)
    }
}

/// Sentences of a small grammar, every fifth in a chat.
fn row(number: usize) -> Value {
    const WHO: [&str; 3] = ["the cat", "the dog", "a bird"];
    const WHAT: [&str; 2] = ["sees", "likes"];
    let words = format!(
        "{} {} {}",
        WHO[number % 3],
        WHAT[number / 3 % 2],
        WHO[number / 6 % 3]
    );
    if number.is_multiple_of(5) {
        json!({"messages": [
            {"role": "user", "content": "who?"},
            {"role": "assistant", "content": words},
        ]})
    } else {
        json!({"text": words})
    }
}

fn finish(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), log)
}

const RESUMED: &str = "going on from a checkpoint";

#[test]
fn stopped_and_killed_it_makes_the_same_model_as_without() {
    let world = World::new();
    let (code, log) = finish(world.start("whole"));
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains(RESUMED), "{log}");

    let (code, log) = world.interrupt("broken", "-TERM");
    assert_eq!(code, Some(75), "{log}");
    assert!(log.contains("the same command goes on from there"), "{log}");
    assert!(!world.out("broken").exists(), "half a model is none");
    let (code, log) = world.interrupt("broken", "-KILL");
    assert_eq!(code, None, "{log}");
    assert!(log.contains(RESUMED), "{log}");
    let (code, log) = finish(world.start("broken"));
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains(RESUMED), "{log}");
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    ] {
        let [whole, broken] =
            ["whole", "broken"].map(|name| std::fs::read(world.out(name).join(file)).unwrap());
        assert!(whole == broken, "{file} differs");
    }
    assert_eq!(
        base_digest(&world.out("broken")).unwrap(),
        base_digest(&world.out("whole")).unwrap()
    );
}

#[test]
fn the_folder_is_a_base_model_that_has_learnt_its_text() {
    let world = World::new();
    let (code, log) = finish(world.start("tiny"));
    assert_eq!(code, Some(0), "{log}");
    let tokenizer = TextTokenizer::load(&world.out("tiny")).unwrap();
    let base = BaseModel::load(&world.out("tiny")).unwrap();
    assert_eq!(base.config().vocab_size, tokenizer.vocab_size());
    assert_eq!(base.config().max_position_embeddings, 32);
    let text = "the cat sees a bird";
    let tokens = tokenizer.encode_prompt(text).unwrap();
    assert!(tokens.len() < text.len() / 2, "merges are used: {tokens:?}");
    assert_eq!(tokenizer.decode(&tokens, true).unwrap(), text);
    let asked = [ChatMessage::new("user", "who?")];
    assert!(tokenizer.encode_chat_prompt(&asked).is_ok());

    let card = std::fs::read_to_string(world.out("tiny").join("README.md")).unwrap();
    let measured = card
        .split_once("held-out rows: ")
        .and_then(|(_, rest)| rest.split_once(".\n"))
        .unwrap_or_else(|| panic!("{card}"));
    let perplexity: f64 = measured.0.parse().unwrap();
    // Who knows nothing has the size of the vocabulary, more than 261.
    assert!((1.0..60.0).contains(&perplexity), "{perplexity}");
}

#[test]
fn a_changed_recipe_starts_anew_in_the_same_folder_and_can_be_stopped_too() {
    let world = World::new();
    let (code, log) = finish(world.start("tiny"));
    assert_eq!(code, Some(0), "{log}");
    let first = base_digest(&world.out("tiny")).unwrap();
    let of_first = world.plans("tiny");
    assert_eq!(of_first.len(), 1, "{of_first:?}");

    world.write_recipe(2);
    let (code, log) = world.interrupt("tiny", "-TERM");
    assert_eq!(code, Some(75), "{log}");
    assert!(!log.contains(RESUMED), "{log}");
    let both = world.plans("tiny");
    assert!(of_first.is_subset(&both) && both.len() == 2, "{both:?}");
    let (code, log) = finish(world.start("tiny"));
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains(RESUMED), "{log}");
    assert_ne!(base_digest(&world.out("tiny")).unwrap(), first);
    let left = world.plans("tiny");
    assert!(left.len() == 1 && left.is_disjoint(&of_first), "{left:?}");
}
