//! What a pass keeps for its backward pass changes its memory and nothing else; neither does packing.

use super::families::{configs, lively};
use super::forward::Pass;
use super::memory::Memory;
use super::tests::{batch, lora, tokens};
use super::weights::Place;
use super::*;
use crate::fixture::random_adapter;
use crate::lora::LoraParams;

const SEED: StepSeed = StepSeed { seed: 3, step: 8 };

/// The loss and all gradients, in name order.
fn step(llama: &Llama, batch: &PackedBatch, params: &LoraParams) -> (f32, Vec<f32>) {
    let loss = llama.forward_train(batch, params, SEED).unwrap();
    let gradients = loss.sum.backward().unwrap();
    let values = params.iter().flat_map(|(_, variable)| {
        let gradient = gradients.get(variable).unwrap().flatten_all().unwrap();
        gradient.to_vec1::<f32>().unwrap()
    });
    (loss.sum.to_scalar().unwrap(), values.collect())
}

#[test]
fn layers_that_are_computed_again_give_the_bits_of_those_that_were_kept() {
    for config in configs() {
        let llama = Llama::new(&lively(config.clone()));
        for dropout in [0.0, 0.3] {
            let adapter = random_adapter(&config, &lora(4, dropout), 5);
            let params = LoraParams::from_adapter(&adapter, &config).unwrap();
            let batch = batch(&[9, 20, 33]);
            let whole = step(&llama, &batch, &params);
            assert!(whole.1.iter().any(|value| *value != 0.0));
            // Nothing, one of two layers (with norms of outputs it takes more), and all.
            for bytes in [0, 125_000, 160_000, 1 << 20] {
                let limited = llama.clone().with_activation_bytes(bytes);
                assert!(
                    step(&limited, &batch, &params) == whole,
                    "{:?}, dropout {dropout}, {bytes} bytes",
                    config.family
                );
            }
        }
    }
}

#[test]
fn the_last_layers_are_kept_whole_as_far_as_the_bytes_go() {
    let config = configs().remove(0);
    let llama = Llama::new(&lively(config.clone()));
    let Place::Host(weights) = &llama.place else {
        panic!("there is a CPU")
    };
    let text = tokens(50, 1);
    let segments = [text.len()];
    let pass = Pass {
        weights,
        lora: None,
        dropout: None,
        segments: &segments,
        memory: &Memory::default(),
    };
    let whole = |bytes: usize| -> Vec<bool> {
        let (hidden, tapes) = pass.run_keeping(&text, bytes);
        assert_eq!(hidden, pass.run(&text));
        tapes.iter().map(|tape| tape.projected.is_some()).collect()
    };
    // Llama of two layers, hidden 32 with keys of 16, feed-forward 48: every tape has three times the hidden
    // size and a number for each of four heads, a whole one 32 + 2 * 16 + 2 * 48 values more.
    let (always, projected) = (2 * 50 * 4 * (3 * 32 + 4), 50 * 4 * 160);
    assert_eq!(whole(0), [false, false]);
    assert_eq!(whole(always + projected - 1), [false, false]);
    assert_eq!(whole(always + projected), [false, true]);
    assert_eq!(whole(always + 2 * projected), [true, true]);
    assert_eq!(whole(usize::MAX), [true, true]);
}

#[test]
fn a_packed_batch_has_the_loss_and_the_gradients_of_its_sequences_one_by_one() {
    let config = configs().remove(0);
    let llama = Llama::new(&lively(config.clone()));
    let adapter = random_adapter(&config, &lora(4, 0.0), 5);
    let params = LoraParams::from_adapter(&adapter, &config).unwrap();
    let lengths = [10, 17, 4, 40];
    let (loss, gradients) = step(&llama, &batch(&lengths), &params);
    let (mut sum, mut sums) = (0.0, vec![0.0_f64; gradients.len()]);
    for (number, length) in lengths.into_iter().enumerate() {
        let mut single = PackedBatch::new();
        let mask: Vec<bool> = (0..length).map(|t| t % 3 != 1).collect();
        single.push(&tokens(length, 7 * number as u32), &mask);
        let (loss, gradients) = step(&llama, &single, &params);
        sum += f64::from(loss);
        for (sum, gradient) in sums.iter_mut().zip(gradients) {
            *sum += f64::from(gradient);
        }
    }
    assert!((f64::from(loss) - sum).abs() < 1e-5 * sum, "{loss} {sum}");
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let mut differences = gradients.iter().zip(&sums).map(|(a, b)| f64::from(*a) - b);
    let off = squares(&mut differences) / squares(&mut sums.iter().copied());
    assert!(off.sqrt() < 1e-5, "{}", off.sqrt());
}
