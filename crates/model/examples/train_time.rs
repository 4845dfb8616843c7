//! Times training steps of the layers of `make bench-train`'s model, six of its 24, and of its output projection.
//!
//! `cargo run -p graftwork-model --example train_time [threads]` prints the median and the fastest of several steps, and
//! the rate of their products. It takes 1.5 GB of memory. For tuning; docs/performance.md is made elsewhere.
#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::time::Instant;

use anyhow::Result;
use graftwork_model::base::{BaseModel, save_base};
use graftwork_model::config::LlamaConfig;
use graftwork_model::fixture::TinyShape;
use graftwork_model::kernel::{Epilogue, Isa, Panels, product_parallel};
use graftwork_model::lora::{LoraConfig, LoraParams, Module};
use graftwork_model::quant::Quantization;
use graftwork_model::targets::Targets;
use graftwork_model::transformer::{Held, Llama, PackedBatch, StepSeed};

const STEPS: usize = 4;

fn config(layers: usize) -> LlamaConfig {
    TinyShape {
        hidden: 1024,
        intermediate: 4096,
        layers,
        heads: 16,
        kv_heads: 8,
        positions: 1024,
        tied: true,
    }
    .with_vocabulary(32_000)
}

fn batch(lengths: &[usize]) -> PackedBatch {
    let mut batch = PackedBatch::new();
    for (i, length) in lengths.iter().enumerate() {
        let tokens: Vec<u32> = (0..*length)
            .map(|t| ((i * 131 + t * 17) % 32_000) as u32)
            .collect();
        batch.push(&tokens, &vec![true; *length]);
    }
    batch
}

fn main() -> Result<()> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |text| text.parse())?;
    println!("{threads} threads, {}", Isa::detect().name());
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()?
        .install(run)
}

/// Median and fastest of some calls, in seconds.
fn times(count: usize, mut call: impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
    call()?;
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let at = |index: usize| times.get(index).copied().unwrap_or(f64::NAN);
    Ok((at(count / 2), at(0)))
}

fn run() -> Result<()> {
    for (n, k) in [
        (1024, 1024),
        (4096, 1024),
        (1024, 4096),
        (512, 1024),
        (16, 4096),
    ] {
        let weight = Panels::pack(&vec![0.5; n * k], n, k);
        let (x, mut y) = (vec![0.25; 1024 * k], vec![0.0; 1024 * n]);
        let (_, fastest) = times(12, || {
            product_parallel(&x, &weight, &mut y, Epilogue::Store);
            Ok(())
        })?;
        let rate = (2 * 1024 * n * k) as f64 / fastest / 1e9;
        println!("product 1024 x [{n}, {k}]: {rate:.0} GFLOP/s");
    }
    let layers = 6;
    let config = config(layers);
    let dir = tempfile::tempdir()?;
    save_base(dir.path(), &BaseModel::random(config.clone(), 1))?;
    let lora = LoraConfig {
        rank: 16,
        alpha: 32.0,
        dropout: 0.0,
        targets: Targets::of(&Module::ALL),
        use_rslora: false,
    };
    let params = LoraParams::init(&lora, &config, 1)?;
    for held in [
        Held::AsStored,
        Held::Blocks(Quantization::Q4K),
        Held::Blocks(Quantization::Q8_0),
    ] {
        for bytes in [usize::MAX, 0] {
            let llama = Llama::load(dir.path(), held)?.with_activation_bytes(bytes);
            for (what, lengths) in [("4x256", vec![256; 4]), ("1x1024", vec![1024])] {
                let packed = batch(&lengths);
                let (median, fastest) = times(STEPS, || {
                    let loss = llama.forward_train(&packed, &params, StepSeed::default())?;
                    loss.sum.backward()?;
                    Ok(())
                })?;
                // Forward and backward: two products with each weight.
                let rate = (4 * config.parameters() * packed.rows()) as f64 / fastest / 1e9;
                let kept = if bytes == 0 { "few" } else { "all" };
                println!(
                    "{held:?}, {what}, {kept} activations kept: median {:.0} ms, fastest {:.0} ms, {rate:.0} GFLOP/s",
                    1e3 * median,
                    1e3 * fastest
                );
            }
        }
    }
    Ok(())
}
