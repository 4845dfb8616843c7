//! The same by a GPU's operations: imitated on the CPU with the bars of the CPU's own passes, and in bf16 by a GPU
//! where there is one.

use graftwork_model::transformer::{Accelerator, Held, Llama, StepSeed};

use super::{CASES, Case, GRADIENTS, LOGITS, apart, check_gradients, fixture, logits};

/// In bf16, which keeps eight bits of a value: as [`LOGITS`].
const GPU_LOGITS: f64 = 5e-2;
/// As [`GRADIENTS`].
const GPU_GRADIENTS: f64 = 1e-1;
/// Of the mean loss, in nats.
const GPU_LOSS: f64 = 5e-2;

/// What a device may be off by.
struct Bars {
    logits: f64,
    gradients: f64,
    loss: f64,
}

fn devices() -> Vec<(Accelerator, Bars)> {
    let imitated = Bars {
        logits: LOGITS,
        gradients: GRADIENTS,
        loss: 1e-4,
    };
    let mut devices = vec![(Accelerator::imitated(), imitated)];
    match Accelerator::first() {
        Ok(Some(gpu)) => {
            let bars = Bars {
                logits: GPU_LOGITS,
                gradients: GPU_GRADIENTS,
                loss: GPU_LOSS,
            };
            devices.push((gpu, bars));
        }
        Ok(None) => graftwork_model::fixture::skipped("no GPU"),
        // Built for GPUs: one that is out of order passes no test.
        Err(error) => panic!("the GPU can't be used: {error}"),
    }
    devices
}

fn load(name: &'static str, accelerator: &Accelerator) -> Case {
    let base = fixture(&format!("{name}/base"));
    let llama = Llama::load_on(&base, Held::AsStored, accelerator).unwrap();
    Case::with(name, llama)
}

#[test]
fn logits_of_a_gpus_operations_are_those_of_transformers_and_peft() {
    for (accelerator, bars) in devices() {
        for name in CASES {
            let mut case = load(name, &accelerator);
            let adapter = case.loaded(&case.adapter);
            let tokens = case.run.rows[0].tokens.clone();
            let base = case.expected("logits.base");
            let adapted = case.expected("logits.adapter");
            for (adapter, expected) in [(None, base), (Some(&adapter), adapted)] {
                let apart = apart(&logits(&case.llama, &tokens, adapter), &expected);
                let kind = adapter.map_or("base", |_| "adapter");
                assert!(apart <= bars.logits, "{name}, {kind}: apart by {apart:e}");
            }
        }
    }
}

#[test]
fn gradients_of_a_gpus_operations_are_those_of_torch() {
    for (accelerator, bars) in devices() {
        for name in CASES {
            let mut case = load(name, &accelerator);
            let params = case.params();
            let loss = case
                .llama
                .forward_train(&case.batch(), &params, StepSeed::default())
                .unwrap();
            let mean = f64::from(loss.sum.to_scalar::<f32>().unwrap()) / loss.targets as f64;
            let off = (mean - case.run.losses[0]).abs();
            assert!(off < bars.loss, "{name}: {mean}");
            let named = (name, bars.gradients);
            check_gradients(named, &loss, &params, &mut case.expected);
        }
    }
}
