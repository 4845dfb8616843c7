//! DPO beside TRL.

use graftwork_model::lora::LoraParams;
use graftwork_model::tensor_file::TensorFile;
use graftwork_model::transformer::{PreferenceBatch, StepSeed};
use serde::Deserialize;

use super::{Case, GRADIENTS, check_gradients, fixture, read_json};

#[derive(Deserialize)]
struct Pair {
    #[serde(rename = "prompt_ids")]
    prompt: Vec<u32>,
    #[serde(rename = "chosen_ids")]
    chosen: Vec<u32>,
    #[serde(rename = "rejected_ids")]
    rejected: Vec<u32>,
}

impl Pair {
    /// Tokens of the prompt with one of the answers, and which of them are the answer's.
    fn sequence(&self, answer: &[u32]) -> (Vec<u32>, Vec<bool>) {
        let tokens = [self.prompt.as_slice(), answer].concat();
        let mask = (0..tokens.len()).map(|index| index >= self.prompt.len());
        let mask = mask.collect();
        (tokens, mask)
    }
}

#[derive(Deserialize)]
struct Recorded {
    pairs: Vec<Pair>,
    beta: f64,
    /// The loss of a fresh adapter.
    fresh: f64,
    /// `log p(chosen) - log p(rejected)` of each pair under the bare model.
    references: Vec<f64>,
    /// Before each step, and after the last.
    losses: Vec<f64>,
}

impl Recorded {
    fn batch(&self, references: &[f64]) -> PreferenceBatch {
        let mut batch = PreferenceBatch::default();
        for (pair, reference) in self.pairs.iter().zip(references) {
            let chosen = pair.sequence(&pair.chosen);
            let rejected = pair.sequence(&pair.rejected);
            batch.push(
                (&chosen.0, &chosen.1),
                (&rejected.0, &rejected.1),
                *reference,
            );
        }
        batch
    }
}

#[test]
fn reference_loss_and_gradients_of_pairs_are_those_of_trl() {
    let recorded: Recorded = read_json("preference/expected.json");
    let case = Case::load("llama");
    let unreferenced = recorded.batch(&vec![0.0; recorded.pairs.len()]);
    let scores = case.llama.score(unreferenced.sequences(), None).unwrap();
    let references = unreferenced.margins(&scores);
    assert_eq!(references.len(), 4);
    for (reference, expected) in references.iter().zip(&recorded.references) {
        assert!(
            (reference - expected).abs() < 1e-3,
            "{reference}, {expected} recorded"
        );
    }

    let batch = recorded.batch(&references);
    let loss = |params: &LoraParams| {
        let forward =
            case.llama
                .forward_preference(&batch, recorded.beta, params, StepSeed::default());
        let loss = forward.unwrap();
        let mean = f64::from(loss.sum.to_scalar::<f32>().unwrap()) / loss.targets as f64;
        (loss, mean)
    };
    let fresh = LoraParams::init(&case.adapter.config, case.llama.config(), 1).unwrap();
    let (_, mean) = loss(&fresh);
    assert!((mean - std::f64::consts::LN_2).abs() < 1e-5, "{mean}");
    assert!((mean - recorded.fresh).abs() < 1e-5, "{mean}");

    let params = case.params();
    let (loss, mean) = loss(&params);
    assert!((mean - recorded.losses[0]).abs() < 1e-4, "{mean}");
    let mut expected = TensorFile::open(&fixture("preference/expected.safetensors")).unwrap();
    check_gradients(("preference", GRADIENTS), &loss, &params, &mut expected);
}
