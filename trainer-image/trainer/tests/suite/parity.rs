//! A run of our trainer beside the recorded one of torch and peft, step by step (parity/). What ours
//! trains is written to the build's temporary folder, where `make parity` lets peft load it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Var;
use graftwork_contract::run::Schedule;
use graftwork_model::base::BaseModel;
use graftwork_model::kv::KV_BLOCK_TOKENS;
use graftwork_model::lora::{LoadedAdapter, LoraParams};
use graftwork_model::peft::{Adapter, AdapterTensor};
use graftwork_model::quant::Quantization;
use graftwork_model::tokenizer::TokenizedExample;
use graftwork_model::transformer::{
    Accelerator, Held, Llama, LogitRows, Loss, ModelError, PackedBatch, SequenceStep, StepSeed,
};
use serde::Deserialize;
use serde_json::json;
use trainer::optimizer::AdamWConfig;
use trainer::order::{Batches, Length, Size};
use trainer::schedule::LearningRate;
use trainer::train::{Objective, Outcome, Plan, Training};

/// Differences of a step's loss, in nats.
const LOSSES: f64 = 1e-2;
/// Norms of differences of final updates, in parts of their norm.
const UPDATES: f64 = 1e-2;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../parity/fixtures")
        .join(path)
}

#[derive(Deserialize)]
struct Row {
    tokens: Vec<u32>,
    mask: Vec<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    rows: Vec<Row>,
    /// Before each step, and after the last.
    losses: Vec<f64>,
    learning_rate: f64,
    weight_decay: f64,
}

struct LoraObjective<'a> {
    model: &'a Llama,
    params: &'a LoraParams,
}

impl Objective for LoraObjective<'_> {
    type Batch = PackedBatch;

    fn parameters(&self) -> Vec<(&str, &Var)> {
        self.params.iter().collect()
    }

    fn loss(&self, batch: &PackedBatch, seed: StepSeed) -> Result<Loss, ModelError> {
        self.model.forward_train(batch, self.params, seed)
    }
}

/// The loss before each step of the recorded run; `params` are the trained ones afterwards.
fn train(model: &Llama, params: &LoraParams, run: &Run) -> Vec<f64> {
    let examples: Vec<TokenizedExample> = run
        .rows
        .iter()
        .map(|row| TokenizedExample {
            tokens: row.tokens.clone(),
            loss_mask: row.mask.clone(),
        })
        .collect();
    let lengths = examples.iter().map(|it| it.tokens.len() as u32).collect();
    let steps = run.losses.len() as u64 - 1;
    let whole = Size::Examples(examples.len());
    let batches = Batches::new(0, lengths, whole, Length::Steps(steps));
    let plan = Plan {
        // Two passes a step: their gradients are added up.
        micro_batch: Size::Examples(2),
        rate: LearningRate {
            peak: run.learning_rate,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            total_steps: steps,
        },
        optimizer: AdamWConfig {
            weight_decay: run.weight_decay,
            ..AdamWConfig::default()
        },
        maximum_gradient_norm: 0.0,
        seed: 0,
    };
    let objective = LoraObjective { model, params };
    let mut training = Training::start(&objective, &examples, batches, plan).unwrap();
    let mut losses = Vec::new();
    while !training.is_finished() {
        match training.step(|| false).unwrap() {
            Outcome::Stepped { loss, .. } => losses.push(loss),
            Outcome::Interrupted => panic!("nobody asked to stop"),
        }
    }
    losses
}

type Tensors = BTreeMap<String, AdapterTensor>;

/// What training added to a tensor.
fn update(after: &Tensors, before: &Tensors, name: &str) -> Vec<f64> {
    let pairs = after[name].data.iter().zip(&before[name].data);
    pairs
        .map(|(after, before)| f64::from(*after) - f64::from(*before))
        .collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn check_updates(case: &str, start: &Adapter, ours: &Adapter, recorded: &Adapter) {
    assert!(ours.tensors.keys().eq(recorded.tensors.keys()), "{case}");
    for name in ours.tensors.keys() {
        let got = update(&ours.tensors, &start.tensors, name);
        let expected = update(&recorded.tensors, &start.tensors, name);
        assert!(norm(&expected) > 0.0, "{case}: {name}");
        let differences = got.iter().zip(&expected).map(|(a, b)| a - b);
        let apart = norm(&differences.collect::<Vec<_>>()) / norm(&expected);
        assert!(apart <= UPDATES, "{case}: {name} is apart by {apart:e}");
    }
}

fn logits(llama: &Llama, tokens: &[u32], adapter: &LoadedAdapter) -> Vec<Vec<f32>> {
    let pool = llama.kv_pool(tokens.len().div_ceil(KV_BLOCK_TOKENS));
    let mut pool = pool.unwrap();
    let mut kv = pool.sequence();
    let mut steps = [SequenceStep {
        tokens,
        kv: &mut kv,
        adapter: Some(adapter),
        logits: LogitRows::All,
    }];
    let logits = llama.forward_rows(&mut steps, &mut pool).unwrap();
    let rows = 0..logits[0].rows();
    rows.map(|row| logits[0].row(row).to_vec()).collect()
}

/// The adapter's folder, and what ours compute with it, for parity/load.py.
fn write_for_peft(case: &str, llama: &Llama, adapter: &Adapter, run: &Run) {
    let loaded = LoadedAdapter::new(adapter, llama.config()).unwrap();
    let rows: Vec<&[u32]> = run.rows.iter().map(|row| row.tokens.as_slice()).collect();
    let computed: Vec<Vec<Vec<f32>>> = rows
        .iter()
        .map(|tokens| logits(llama, tokens, &loaded))
        .collect();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("parity")
        .join(case);
    adapter.save(&dir.join("adapter")).unwrap();
    let base = fixture(&format!("{case}/base")).canonicalize().unwrap();
    let text = json!({ "base": base, "tokens": rows, "logits": computed }).to_string();
    std::fs::write(dir.join("logits.json"), text).unwrap();
}

fn check_run(case: &str) {
    let text = std::fs::read_to_string(fixture(&format!("{case}/expected.json"))).unwrap();
    let run: Run = serde_json::from_str(&text).unwrap();
    let llama = Llama::new(&BaseModel::load(&fixture(&format!("{case}/base"))).unwrap());
    let start = Adapter::load(&fixture(&format!("{case}/adapter"))).unwrap();
    let recorded = Adapter::load(&fixture(&format!("{case}/trained"))).unwrap();
    let params = LoraParams::from_adapter(&start, llama.config()).unwrap();

    let losses = train(&llama, &params, &run);
    assert!(losses.len() >= 100);
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last <= 0.7 * first, "{case}: {first} to {last} only");
    for (step, (loss, expected)) in losses.iter().zip(&run.losses).enumerate() {
        assert!(
            (loss - expected).abs() <= LOSSES,
            "{case}, step {step}: {loss}, {expected} recorded"
        );
    }
    let ours = params.to_adapter("tiny").unwrap();
    check_updates(case, &start, &ours, &recorded);
    write_for_peft(case, &llama, &ours, &run);
}

#[test]
fn a_run_on_llama_is_that_of_peft() {
    check_run("llama");
}

#[test]
fn a_run_on_llama_with_stretched_positions_rslora_and_patterns_is_that_of_peft() {
    check_run("llama-3.1");
}

#[test]
fn a_run_on_llama_with_biases_is_that_of_peft() {
    check_run("llama-bias");
}

#[test]
fn a_run_on_some_layers_of_mistral_is_that_of_peft() {
    check_run("mistral");
}

#[test]
fn a_run_on_all_linear_modules_of_qwen_2_is_that_of_peft() {
    check_run("qwen2");
}

#[test]
fn a_run_on_qwen_2_with_a_sliding_window_is_that_of_peft() {
    check_run("qwen2-window");
}

#[test]
fn a_run_on_qwen_3_is_that_of_peft() {
    check_run("qwen3");
}

#[test]
fn a_run_on_gemma_3_is_that_of_peft() {
    check_run("gemma3");
}

#[test]
fn a_run_beside_8_bit_weights_ends_near_the_one_beside_the_weights_themselves() {
    for case in ["mistral", "llama-bias"] {
        let text = std::fs::read_to_string(fixture(&format!("{case}/expected.json"))).unwrap();
        let run: Run = serde_json::from_str(&text).unwrap();
        let base = fixture(&format!("{case}/base"));
        let llama = Llama::load(&base, Held::Blocks(Quantization::Q8_0)).unwrap();
        let start = Adapter::load(&fixture(&format!("{case}/adapter"))).unwrap();
        let params = LoraParams::from_adapter(&start, llama.config()).unwrap();
        let losses = train(&llama, &params, &run);
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        let recorded = run.losses[losses.len() - 1];
        assert!(last <= 0.7 * first, "{case}: {first} to {last} only");
        assert!(
            (last / recorded - 1.0).abs() < 0.02,
            "{case}: {last}, {recorded} recorded beside the weights themselves"
        );
        assert!(
            losses
                .iter()
                .zip(&run.losses)
                .any(|(a, b)| (a - b).abs() > 1e-5),
            "{case}: nothing was quantised"
        );
    }
}

/// The recorded run by the operations of a device, whose losses may be off by so many nats.
fn check_run_on(accelerator: &Accelerator, case: &str, losses_bar: f64) {
    let text = std::fs::read_to_string(fixture(&format!("{case}/expected.json"))).unwrap();
    let run: Run = serde_json::from_str(&text).unwrap();
    let base = fixture(&format!("{case}/base"));
    let llama = Llama::load_on(&base, Held::AsStored, accelerator).unwrap();
    let start = Adapter::load(&fixture(&format!("{case}/adapter"))).unwrap();
    let params = LoraParams::from_adapter(&start, llama.config()).unwrap();
    let losses = train(&llama, &params, &run);
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last <= 0.7 * first, "{case}: {first} to {last} only");
    for (step, (loss, expected)) in losses.iter().zip(&run.losses).enumerate() {
        assert!(
            (loss - expected).abs() <= losses_bar,
            "{case}, step {step}: {loss}, {expected} recorded"
        );
    }
}

#[test]
fn runs_by_a_gpus_operations_are_those_of_peft() {
    for case in ["llama", "qwen3", "gemma3"] {
        check_run_on(&Accelerator::imitated(), case, LOSSES);
        match Accelerator::first() {
            // In bf16.
            Ok(Some(gpu)) => check_run_on(&gpu, case, 10.0 * LOSSES),
            Ok(None) => graftwork_model::fixture::skipped("no GPU"),
            // Built for GPUs: one that is out of order passes no test.
            Err(error) => panic!("the GPU can't be used: {error}"),
        }
    }
}
