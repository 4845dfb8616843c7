//! A model whose base is quantised computes, forward and backward, what its values as f32 do.

use std::path::Path;

use super::tests::{batch, check_gradients, lora};
use super::*;
use crate::base::{BaseModel, EMBEDDING, OUTPUT, save_base, tensor_shapes};
use crate::fixture::{TinyShape, random_adapter};
use crate::lora::LoraParams;
use crate::quant::{Blocks, Quantization};

/// Layers of which some fit the blocks of Q4_K (256 inputs) and some don't (320).
fn saved(dir: &Path, tied: bool) -> BaseModel {
    let shape = TinyShape {
        hidden: 256,
        intermediate: 320,
        layers: 1,
        tied,
        ..TinyShape::default()
    };
    let base = BaseModel::random(shape.config(), 11);
    save_base(dir, &base).unwrap();
    BaseModel::load(dir).unwrap()
}

/// The plain reference: every weight quantised by the stated rule and read back as f32.
fn read_back(base: &BaseModel, quantization: Quantization) -> BaseModel {
    let shapes = tensor_shapes(base.config());
    let tensors = base.tensors().iter().map(|(name, values)| {
        let [outputs, inputs] = shapes[name][..] else {
            return (name.clone(), values.clone());
        };
        let format = if [EMBEDDING, OUTPUT].contains(&name.as_str()) {
            Quantization::of_vocabulary(inputs)
        } else {
            quantization.of_layer(inputs)
        };
        let blocks = Blocks::quantize(format.unwrap(), values, outputs, inputs).unwrap();
        (name.clone(), blocks.read(0..outputs, 0..inputs))
    });
    BaseModel::from_tensors(base.config().clone(), tensors.collect()).unwrap()
}

fn loss_and_gradients(llama: &Llama, params: &LoraParams) -> (f32, Vec<Vec<f32>>) {
    let seed = StepSeed { seed: 3, step: 8 };
    let loss = llama.forward_train(&batch(&[9, 20]), params, seed).unwrap();
    let gradients = loss.sum.backward().unwrap();
    let gradients = params.iter().map(|(_, variable)| {
        let gradient = gradients.get(variable).unwrap().flatten_all().unwrap();
        gradient.to_vec1().unwrap()
    });
    (loss.sum.to_scalar().unwrap(), gradients.collect())
}

#[test]
fn losses_and_gradients_have_the_bits_of_the_values_read_back() {
    for tied in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let base = saved(dir.path(), tied);
        for quantization in Quantization::ALL {
            let quantised = Llama::load(dir.path(), Held::Blocks(quantization)).unwrap();
            let plain = Llama::new(&read_back(&base, quantization));
            let config = lora(4, 0.3);
            let adapter = random_adapter(base.config(), &config, 5);
            let params = LoraParams::from_adapter(&adapter, base.config()).unwrap();
            assert_eq!(
                loss_and_gradients(&quantised, &params),
                loss_and_gradients(&plain, &params),
                "{quantization:?}, tied {tied}"
            );
            let scores = quantised.score(&batch(&[30]), None).unwrap();
            assert_eq!(scores, plain.score(&batch(&[30]), None).unwrap());
        }
    }
}

#[test]
fn a_folder_that_is_loaded_as_it_is_stored_has_the_bits_of_its_values_in_f32() {
    for tied in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let base = saved(dir.path(), tied);
        let stored = Llama::load(dir.path(), Held::AsStored).unwrap();
        let plain = Llama::new(&base);
        let adapter = random_adapter(base.config(), &lora(4, 0.3), 5);
        let params = LoraParams::from_adapter(&adapter, base.config()).unwrap();
        assert_eq!(
            loss_and_gradients(&stored, &params),
            loss_and_gradients(&plain, &params),
            "tied {tied}"
        );
        let scores = stored.score(&batch(&[30]), None).unwrap();
        assert_eq!(scores, plain.score(&batch(&[30]), None).unwrap());
    }
}

#[test]
fn gradients_on_a_quantised_base_are_those_of_its_loss() {
    let dir = tempfile::tempdir().unwrap();
    let base = saved(dir.path(), false);
    let llama = Llama::load(dir.path(), Held::Blocks(Quantization::Q4K)).unwrap();
    let adapter = random_adapter(base.config(), &lora(4, 0.0), 5);
    let params = LoraParams::from_adapter(&adapter, base.config()).unwrap();
    let batch = batch(&[9, 20]);
    check_gradients(params.iter().collect(), &|| {
        llama
            .forward_train(&batch, &params, StepSeed::default())
            .unwrap()
    });
}

#[test]
fn what_quantisation_costs_is_small_and_more_for_fewer_bits() {
    let dir = tempfile::tempdir().unwrap();
    let base = saved(dir.path(), true);
    let losses = |llama: &Llama| -> Vec<f64> {
        let scores = llama.score(&batch(&[60]), None).unwrap();
        scores.iter().map(|score| f64::from(score.nll)).collect()
    };
    let exact = losses(&Llama::new(&base));
    // Of the sum, and of each token: in a sum what goes up and what goes down may be lost.
    let distances = |quantization| {
        let llama = Llama::load(dir.path(), Held::Blocks(quantization)).unwrap();
        let pairs = losses(&llama).into_iter().zip(&exact);
        let apart: Vec<f64> = pairs.map(|(loss, exact)| loss - exact).collect();
        let of_tokens: f64 = apart.iter().map(|it| it.abs()).sum();
        let whole: f64 = exact.iter().sum();
        ((apart.iter().sum::<f64>() / whole).abs(), of_tokens / whole)
    };
    let (eight, eight_of_tokens) = distances(Quantization::Q8_0);
    let (four, four_of_tokens) = distances(Quantization::Q4K);
    assert!(eight > 0.0 && eight < 0.02, "{eight}");
    assert!(four > 0.0 && four < 0.05, "{four}");
    assert!(
        four_of_tokens > 4.0 * eight_of_tokens,
        "{four_of_tokens} for a token, beside {eight_of_tokens}"
    );
}
