//! What a GPU's operations compute is near what the CPU's own passes do: by imitation everywhere, and by a GPU
//! where there is one.

use candle_core::Var;
use tempfile::TempDir;

use super::Accelerator;
use crate::base::{BaseModel, save_base};
use crate::fixture::{TinyShape, random_adapter};
use crate::kv::KvPool;
use crate::lora::{LoadedAdapter, LoraParams};
use crate::quant::Quantization;
use crate::sampler::argmax;
use crate::transformer::families::{configs, lively};
use crate::transformer::tests::{batch, lora, serve, tokens};
use crate::transformer::{
    Held, Llama, LogitRows, Loss, ModelError, PackedBatch, PreferenceBatch, SequenceStep, StepSeed,
};

/// How far a device may be from the CPU's passes.
#[derive(Clone, Copy)]
struct Bars {
    /// In parts of the loss.
    losses: f64,
    /// Norm of the difference, in parts of the gradient's.
    gradients: f64,
    /// In parts of the logits' range.
    logits: f64,
}

const IMITATED: Bars = Bars {
    losses: 1e-5,
    gradients: 1e-4,
    logits: 1e-4,
};

/// In bf16, which keeps eight bits of a value.
const GPU: Bars = Bars {
    losses: 1e-2,
    gradients: 5e-2,
    logits: 3e-2,
};

fn devices() -> Vec<(Accelerator, Bars)> {
    let mut devices = vec![(Accelerator::imitated(), IMITATED)];
    match Accelerator::first() {
        Ok(Some(gpu)) => devices.push((gpu, GPU)),
        Ok(None) => crate::fixture::skipped("no GPU"),
        // Built for GPUs: one that is out of order passes no test.
        Err(error) => panic!("the GPU can't be used: {error}"),
    }
    devices
}

/// Layers of which some fit the blocks of Q4_K (256 inputs) and some don't (320).
fn saved(tied: bool) -> (TempDir, BaseModel) {
    let dir = tempfile::tempdir().unwrap();
    let shape = TinyShape {
        hidden: 256,
        intermediate: 320,
        layers: 2,
        tied,
        ..TinyShape::default()
    };
    let base = BaseModel::random(shape.config(), 11);
    save_base(dir.path(), &base).unwrap();
    (dir, base)
}

fn params(base: &BaseModel, dropout: f64) -> LoraParams {
    let adapter = random_adapter(base.config(), &lora(4, dropout), 5);
    LoraParams::from_adapter(&adapter, base.config()).unwrap()
}

/// Loss and all gradients, one behind the other.
fn computed(loss: Loss, params: &LoraParams) -> (f64, Vec<f32>) {
    let gradients = loss.sum.backward().unwrap();
    let of = |variable: &Var| -> Vec<f32> {
        let gradient = gradients.get(variable).unwrap();
        gradient.flatten_all().unwrap().to_vec1().unwrap()
    };
    let all = params.iter().flat_map(|(_, variable)| of(variable));
    let sum = f64::from(loss.sum.to_scalar::<f32>().unwrap());
    (sum, all.collect())
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    let square = |value: f32| f64::from(value) * f64::from(value);
    values.map(square).sum::<f64>().sqrt()
}

fn check(got: &(f64, Vec<f32>), expected: &(f64, Vec<f32>), bars: Bars, case: &str) {
    let off = (got.0 / expected.0 - 1.0).abs();
    assert!(off <= bars.losses, "{case}: the loss is off by {off:e}");
    let difference = got.1.iter().zip(&expected.1).map(|(a, b)| a - b);
    let apart = norm(difference) / norm(expected.1.iter().copied());
    assert!(apart <= bars.gradients, "{case}: apart by {apart:e}");
}

#[test]
fn losses_and_gradients_are_near_the_cpus_whatever_is_kept_or_dropped() {
    let seed = StepSeed { seed: 3, step: 8 };
    for tied in [true, false] {
        let (dir, base) = saved(tied);
        let host = Llama::load(dir.path(), Held::AsStored).unwrap();
        for dropout in [0.0, 0.3] {
            let params = params(&base, dropout);
            let train = |llama: &Llama| {
                let loss = llama.forward_train(&batch(&[9, 20]), &params, seed);
                computed(loss.unwrap(), &params)
            };
            let expected = train(&host);
            for (accelerator, bars) in devices() {
                let gpu = Llama::load_on(dir.path(), Held::AsStored, &accelerator).unwrap();
                assert!(gpu.accelerator().is_some() && host.accelerator().is_none());
                for bytes in [0, usize::MAX] {
                    let got = train(&gpu.clone().with_activation_bytes(bytes));
                    let case = format!("tied {tied}, dropout {dropout}, {bytes} bytes");
                    check(&got, &expected, bars, &case);
                }
            }
        }
    }
}

#[test]
fn losses_and_gradients_over_blocks_are_near_the_cpus() {
    let seed = StepSeed::default();
    let (dir, base) = saved(true);
    let params = params(&base, 0.0);
    let train = |llama: &Llama| {
        let loss = llama.forward_train(&batch(&[9, 20]), &params, seed);
        computed(loss.unwrap(), &params)
    };
    for quantization in Quantization::ALL {
        let held = Held::Blocks(quantization);
        let host = Llama::load(dir.path(), held).unwrap();
        for (accelerator, bars) in devices() {
            let gpu = Llama::load_on(dir.path(), held, &accelerator).unwrap();
            check(&train(&gpu), &train(&host), bars, &format!("{held:?}"));
            // The same blocks and nothing else.
            let more = gpu.bytes() as f64 / host.bytes() as f64;
            assert!((0.99..1.01).contains(&more), "{held:?}: {more}");
        }
    }
}

#[test]
fn preferences_are_near_the_cpus() {
    let (dir, base) = saved(false);
    let params = params(&base, 0.0);
    let mut pairs = PreferenceBatch::default();
    for (i, reference) in [(0, 0.5), (1, -1.0)] {
        let (chosen, rejected) = (tokens(12, i), tokens(17, 50 + i));
        let mask: Vec<bool> = (0..17).map(|index| index >= 4).collect();
        pairs.push((&chosen, &mask[..12]), (&rejected, &mask), reference);
    }
    let train = |llama: &Llama| {
        let loss = llama.forward_preference(&pairs, 0.3, &params, StepSeed::default());
        computed(loss.unwrap(), &params)
    };
    let expected = train(&Llama::load(dir.path(), Held::AsStored).unwrap());
    for (accelerator, bars) in devices() {
        let gpu = Llama::load_on(dir.path(), Held::AsStored, &accelerator).unwrap();
        check(&train(&gpu), &expected, bars, "preferences");
    }
}

#[test]
fn scores_are_near_the_cpus() {
    let (dir, base) = saved(true);
    let host = Llama::load(dir.path(), Held::AsStored).unwrap();
    let adapter = random_adapter(base.config(), &lora(4, 0.0), 5);
    let adapter = LoadedAdapter::new(&adapter, base.config()).unwrap();
    let batch = batch(&[30, 9, 300]);
    for (accelerator, bars) in devices() {
        let gpu = Llama::load_on(dir.path(), Held::AsStored, &accelerator).unwrap();
        for adapter in [None, Some(&adapter)] {
            let expected = host.score(&batch, adapter).unwrap();
            let got = gpu.score(&batch, adapter).unwrap();
            assert_eq!(got.len(), expected.len());
            for (got, expected) in got.iter().zip(&expected) {
                let place = |it: &crate::transformer::TokenScore| (it.segment, it.row, it.target);
                assert_eq!(place(got), place(expected));
                let apart = f64::from((got.nll - expected.nll).abs());
                assert!(apart <= bars.logits * 10.0, "{got:?} {expected:?}");
            }
            let sum = |scores: &[crate::transformer::TokenScore]| -> f64 {
                scores.iter().map(|score| f64::from(score.nll)).sum()
            };
            let off = (sum(&got) / sum(&expected) - 1.0).abs();
            assert!(off <= bars.losses, "{off:e}");
        }
        let mut nothing = PackedBatch::new();
        nothing.push(&[1, 2], &[false, false]);
        assert!(gpu.score(&nothing, None).unwrap().is_empty());
    }
}

#[test]
fn served_logits_are_near_the_cpus_in_any_company_and_chunks() {
    let (dir, _) = saved(true);
    let host = Llama::load(dir.path(), Held::AsStored).unwrap();
    for (accelerator, bars) in devices() {
        let gpu = Llama::load_on(dir.path(), Held::AsStored, &accelerator).unwrap();
        check_served(&gpu, &host, bars, &accelerator.name());
    }
}

/// What sets a family apart, with weights that make it matter. A GPU's bf16 is held by the recorded figures
/// (`tests/suite/parity/gpu.rs`).
#[test]
fn every_family_is_trained_and_served_near_the_cpus() {
    for config in configs() {
        let case = format!("{:?}, bias {}", config.family, config.mlp_bias);
        let dir = tempfile::tempdir().unwrap();
        let base = lively(config);
        save_base(dir.path(), &base).unwrap();
        let host = Llama::load(dir.path(), Held::AsStored).unwrap();
        let gpu = Llama::load_on(dir.path(), Held::AsStored, &Accelerator::imitated()).unwrap();
        let params = params(&base, 0.0);
        let train = |llama: &Llama| {
            let loss = llama.forward_train(&batch(&[9, 20]), &params, StepSeed::default());
            computed(loss.unwrap(), &params)
        };
        let expected = train(&host);
        for bytes in [0, usize::MAX] {
            let got = train(&gpu.clone().with_activation_bytes(bytes));
            check(&got, &expected, IMITATED, &format!("{case}, {bytes} bytes"));
        }
        check_served(&gpu, &host, IMITATED, &case);
    }
}

/// The logits of a text are near the CPU's, whatever its chunks and its company.
fn check_served(gpu: &Llama, host: &Llama, bars: Bars, case: &str) {
    let config = host.config();
    let load = |rank, seed| {
        LoadedAdapter::new(&random_adapter(config, &lora(rank, 0.0), seed), config).unwrap()
    };
    let (a, b) = (load(4, 1), load(8, 2));
    let text = tokens(41, 3);
    let others = [
        (tokens(5, 9), Some(&b)),
        (tokens(7, 1), None),
        (tokens(3, 2), Some(&a)),
        (tokens(4, 77), Some(&b)),
    ];
    let values = |bits: Vec<u32>| -> Vec<f32> { bits.into_iter().map(f32::from_bits).collect() };
    for adapter in [None, Some(&a)] {
        let mut pool = KvPool::new(config, 64);
        let expected = values(serve(host, &mut pool, &text, adapter, 41, &[]));
        let most = expected.iter().copied().fold(f32::MIN, f32::max);
        let least = expected.iter().copied().fold(f32::MAX, f32::min);
        for (chunk, company) in [
            (1, &others[..]),
            (5, &others[..]),
            (16, &[][..]),
            (41, &[][..]),
        ] {
            let case = format!("{case}, chunk {chunk}");
            let mut pool = gpu.kv_pool(64).unwrap();
            let got = values(serve(gpu, &mut pool, &text, adapter, chunk, company));
            assert_eq!(got.len(), expected.len());
            let apart = got.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let apart = f64::from(apart.fold(0.0, f32::max) / (most - least));
            assert!(apart <= bars.logits, "{case}: apart by {apart:e}");
            let most_lost = bars.logits * f64::from(most - least) * 2.0;
            check_choices(&got, &expected, config.vocab_size, (&case, most_lost));
            assert_eq!(pool.free_blocks(), 64);
        }
    }
}

/// Where a device prefers another token, teacher forced, the CPU's logits of the two are near each other.
fn check_choices(got: &[f32], expected: &[f32], vocabulary: usize, (case, most_lost): (&str, f64)) {
    let (mut others, mut worst) = (0, 0.0_f64);
    let rows = got
        .chunks_exact(vocabulary)
        .zip(expected.chunks_exact(vocabulary));
    for (got, expected) in rows {
        let (chosen, best) = (argmax(got) as usize, argmax(expected) as usize);
        if chosen != best {
            others += 1;
            worst = worst.max(f64::from(expected[best] - expected[chosen]));
        }
    }
    if others > 0 {
        eprintln!("{case}: {others} rows prefer another token, the CPU's margin is {worst:e}");
    }
    assert!(worst <= most_lost, "{case}: {worst:e}");
}

#[test]
fn a_pool_of_the_hosts_memory_is_refused() {
    let (dir, base) = saved(true);
    let gpu = Llama::load_on(dir.path(), Held::AsStored, &Accelerator::imitated()).unwrap();
    let mut pool = KvPool::new(base.config(), 4);
    let mut kv = pool.sequence();
    let mut steps = [SequenceStep {
        tokens: &[1, 2],
        kv: &mut kv,
        adapter: None,
        logits: LogitRows::Last,
    }];
    assert!(matches!(
        gpu.forward_rows(&mut steps, &mut pool),
        Err(ModelError::ForeignPool)
    ));
}
