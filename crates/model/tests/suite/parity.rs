//! What torch, transformers, peft and TRL were recorded to compute (parity/) is what ours compute.

mod gguf;
mod gpu;
mod preference;
mod tokens;

use std::path::{Path, PathBuf};

use graftwork_model::base::BaseModel;
use graftwork_model::kv::KV_BLOCK_TOKENS;
use graftwork_model::lora::{LoadedAdapter, LoraParams};
use graftwork_model::peft::Adapter;
use graftwork_model::tensor_file::TensorFile;
use graftwork_model::transformer::{
    Llama, LogitRows, Loss, PackedBatch, SequenceStep, StepSeed, TokenScore,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The recorded models, each with an adapter.
const CASES: [&str; 8] = [
    "llama",
    "llama-3.1",
    "llama-bias",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "gemma3",
];

/// Differences of logits, in parts of their range.
const LOGITS: f64 = 1e-4;
/// Norms of differences of gradients, in parts of their norm.
const GRADIENTS: f64 = 1e-3;

/// A recorded file or folder.
fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../parity/fixtures")
        .join(path)
}

fn read_json<T: DeserializeOwned>(path: &str) -> T {
    let text = std::fs::read_to_string(fixture(path)).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[derive(Deserialize)]
struct Row {
    tokens: Vec<u32>,
    mask: Vec<bool>,
}

#[derive(Deserialize)]
struct Run {
    rows: Vec<Row>,
    /// Before each step, and after the last.
    losses: Vec<f64>,
}

/// One recorded model with the adapter that it was trained from.
struct Case {
    name: &'static str,
    llama: Llama,
    adapter: Adapter,
    run: Run,
    expected: TensorFile,
}

impl Case {
    fn load(name: &'static str) -> Self {
        let base = BaseModel::load(&fixture(&format!("{name}/base"))).unwrap();
        Self::with(name, Llama::new(&base))
    }

    fn with(name: &'static str, llama: Llama) -> Self {
        Self {
            name,
            llama,
            adapter: Adapter::load(&fixture(&format!("{name}/adapter"))).unwrap(),
            run: read_json(&format!("{name}/expected.json")),
            expected: TensorFile::open(&fixture(&format!("{name}/expected.safetensors"))).unwrap(),
        }
    }

    fn loaded(&self, adapter: &Adapter) -> LoadedAdapter {
        LoadedAdapter::new(adapter, self.llama.config()).unwrap()
    }

    fn params(&self) -> LoraParams {
        LoraParams::from_adapter(&self.adapter, self.llama.config()).unwrap()
    }

    fn expected(&mut self, tensor: &str) -> Vec<f32> {
        self.expected.read_f32(tensor).unwrap().unwrap()
    }

    fn batch(&self) -> PackedBatch {
        let mut batch = PackedBatch::new();
        for row in &self.run.rows {
            batch.push(&row.tokens, &row.mask);
        }
        batch
    }
}

/// Logits of every token, by the pass that serves.
fn logits(llama: &Llama, tokens: &[u32], adapter: Option<&LoadedAdapter>) -> Vec<f32> {
    let pool = llama.kv_pool(tokens.len().div_ceil(KV_BLOCK_TOKENS));
    let mut pool = pool.unwrap();
    let mut kv = pool.sequence();
    let mut steps = [SequenceStep {
        tokens,
        kv: &mut kv,
        adapter,
        logits: LogitRows::All,
    }];
    let logits = llama.forward_rows(&mut steps, &mut pool).unwrap();
    let rows = 0..logits[0].rows();
    rows.flat_map(|row| logits[0].row(row).to_vec()).collect()
}

/// The largest difference, in parts of the expected values' range.
fn apart(values: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(values.len(), expected.len());
    let largest = values
        .iter()
        .zip(expected)
        .map(|(value, expected)| (value - expected).abs())
        .fold(0.0, f32::max);
    let most = expected.iter().copied().fold(f32::MIN, f32::max);
    let least = expected.iter().copied().fold(f32::MAX, f32::min);
    f64::from(largest) / f64::from(most - least)
}

/// The difference's 2-norm, in parts of the expected one.
fn norm_apart(values: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(values.len(), expected.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = values
        .iter()
        .zip(expected)
        .map(|(value, expected)| square(value - expected))
        .sum();
    let norm: f64 = expected.iter().map(|value| square(*value)).sum();
    (difference / norm).sqrt()
}

/// Every LoRA tensor's gradient of the mean loss is the recorded one, up to `bar`.
fn check_gradients(
    (name, bar): (&str, f64),
    loss: &Loss,
    params: &LoraParams,
    expected: &mut TensorFile,
) {
    let gradients = (&loss.sum / loss.targets as f64)
        .unwrap()
        .backward()
        .unwrap();
    let recorded = expected.entries().keys();
    let recorded = recorded.filter(|tensor| tensor.starts_with("gradient."));
    assert_eq!(recorded.count(), params.iter().count(), "{name}");
    for (tensor, variable) in params.iter() {
        let gradient = gradients.get(variable).unwrap().flatten_all().unwrap();
        let gradient: Vec<f32> = gradient.to_vec1().unwrap();
        let expected = expected.read_f32(&format!("gradient.{tensor}")).unwrap();
        let apart = norm_apart(&gradient, &expected.unwrap());
        assert!(apart <= bar, "{name}: {tensor} is apart by {apart:e}");
    }
}

fn mean(scores: &[TokenScore]) -> f64 {
    let sum: f64 = scores.iter().map(|score| f64::from(score.nll)).sum();
    sum / scores.len() as f64
}

#[test]
fn logits_are_those_of_transformers_and_peft() {
    for name in CASES {
        let mut case = Case::load(name);
        let adapter = case.loaded(&case.adapter);
        let tokens = case.run.rows[0].tokens.clone();
        let base = case.expected("logits.base");
        let adapted = case.expected("logits.adapter");
        assert!(
            apart(&base, &adapted) > 100.0 * LOGITS,
            "{name}: the adapter is seen"
        );
        for (adapter, expected) in [(None, base), (Some(&adapter), adapted)] {
            let apart = apart(&logits(&case.llama, &tokens, adapter), &expected);
            let kind = adapter.map_or("base", |_| "adapter");
            assert!(apart <= LOGITS, "{name}, {kind}: apart by {apart:e}");
        }
    }
}

#[test]
fn gradients_of_every_lora_tensor_are_those_of_torch() {
    for name in CASES {
        let mut case = Case::load(name);
        let params = case.params();
        let loss = case
            .llama
            .forward_train(&case.batch(), &params, StepSeed::default())
            .unwrap();
        let mean = f64::from(loss.sum.to_scalar::<f32>().unwrap()) / loss.targets as f64;
        assert!((mean - case.run.losses[0]).abs() < 1e-4, "{name}: {mean}");
        check_gradients((name, GRADIENTS), &loss, &params, &mut case.expected);
    }
}

#[test]
fn what_peft_trained_scores_as_peft_says() {
    for name in CASES {
        let case = Case::load(name);
        let (first, last) = (case.run.losses[0], *case.run.losses.last().unwrap());
        assert!(last <= 0.7 * first, "{name}: {first} to {last}");
        let trained = Adapter::load(&fixture(&format!("{name}/trained"))).unwrap();
        for (adapter, expected) in [(&case.adapter, first), (&trained, last)] {
            let loaded = case.loaded(adapter);
            let scores = case.llama.score(&case.batch(), Some(&loaded)).unwrap();
            let loss = mean(&scores);
            assert!(
                (loss - expected).abs() < 1e-4,
                "{}: {loss}, {expected} recorded",
                case.name
            );
        }
    }
}
