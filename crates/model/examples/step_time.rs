//! Times one training step and one decode step of the demo's model shape (2.0 M parameters).
//!
//! `cargo run -p graftwork-model --example step_time [threads]` prints milliseconds: the median and
//! the fastest of several steps, and the CPU time of the fastest, which a busy machine spoils less. For tuning; docs/performance.md is made elsewhere.
#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use graftwork_model::base::BaseModel;
use graftwork_model::config::LlamaConfig;
use graftwork_model::fixture::{TinyShape, random_adapter};
use graftwork_model::kernel::{Epilogue, Isa, Panels, product, product_parallel};
use graftwork_model::kv::{KvPool, KvSequence};
use graftwork_model::lora::{LoadedAdapter, LoraConfig, LoraParams, Module};
use graftwork_model::targets::Targets;
use graftwork_model::transformer::{
    Llama, LogitRows, PackedBatch, SequenceStep, StepSeed, TrainableLlama,
};

fn config() -> LlamaConfig {
    TinyShape {
        hidden: 192,
        intermediate: 512,
        layers: 4,
        heads: 6,
        kv_heads: 3,
        positions: 512,
        tied: true,
    }
    .with_vocabulary(2048)
}

/// `count` sequences of 30 to 50 tokens; where `all` is unset only the last six are targets.
fn batch(count: usize, all: bool) -> PackedBatch {
    let mut batch = PackedBatch::new();
    for i in 0..count {
        let length = 30 + i * 7 % 21;
        let tokens: Vec<u32> = (0..length)
            .map(|t| ((i * 131 + t * 17) % 2048) as u32)
            .collect();
        let mask: Vec<bool> = (0..length).map(|t| all || t + 6 >= length).collect();
        batch.push(&tokens, &mask);
    }
    batch
}

/// CPU time of all threads of this process so far.
fn cpu_time() -> Option<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(nanoseconds))
}

fn report(what: &str, rounds: usize, mut step: impl FnMut() -> Result<()>) -> Result<()> {
    step()?;
    let mut times = Vec::new();
    let mut cpu = Vec::new();
    for _ in 0..rounds {
        let (start, before) = (Instant::now(), cpu_time());
        step()?;
        times.push(start.elapsed());
        cpu.extend(
            cpu_time()
                .zip(before)
                .map(|(after, before)| after.saturating_sub(before)),
        );
    }
    times.sort_unstable();
    cpu.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
    println!(
        "{what}: median {:.2} ms, fastest {:.2} ms, CPU {:.2} ms",
        ms(times.get(rounds / 2)),
        ms(times.first()),
        ms(cpu.first())
    );
    Ok(())
}

fn kernels(rows: usize) {
    for (n, k) in [
        (192, 192),
        (512, 192),
        (192, 512),
        (2048, 192),
        (192, 8),
        (8, 192),
    ] {
        let weight = Panels::pack(&vec![0.5; n * k], n, k);
        let (x, mut y) = (vec![0.25; rows * k], vec![0.0; rows * n]);
        let mut rates = [0.0_f64; 2];
        for _ in 0..40 {
            for (rate, run) in rates.iter_mut().zip([product, product_parallel]) {
                let start = Instant::now();
                run(&x, &weight, &mut y, Epilogue::Store);
                *rate = rate.max((2 * rows * n * k) as f64 / start.elapsed().as_secs_f64() / 1e9);
            }
        }
        let [one, all] = rates;
        println!("product {rows} x [{n}, {k}]: {one:.0} GFLOP/s on one thread, {all:.0} on all");
    }
}

fn main() -> Result<()> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |text| text.parse())?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()?
        .install(|| run(threads))
}

fn run(threads: usize) -> Result<()> {
    println!("{} threads, {}", threads, Isa::detect().name());
    kernels(1280);
    kernels(8);
    let config = config();
    println!("{} parameters", config.parameters());
    let base = BaseModel::random(config.clone(), 1);
    let llama = Llama::new(&base);
    let lora = LoraConfig {
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        targets: Targets::of(&Module::ALL),
        use_rslora: false,
    };
    let packed = batch(32, false);
    for dropout in [0.0, 0.05] {
        let lora = LoraConfig {
            dropout,
            ..lora.clone()
        };
        let params = LoraParams::init(&lora, &config, 1)?;
        let what = format!("lora step, {} rows, dropout {dropout}", packed.rows());
        report(&what, 15, || {
            let loss = llama.forward_train(&packed, &params, StepSeed { seed: 1, step: 1 })?;
            loss.sum.backward().map(drop).context("backward")
        })?;
    }
    report(&format!("score, {} rows", packed.rows()), 15, || {
        llama.score(&packed, None).map(drop).context("score")
    })?;
    let packed = batch(64, true);
    let trainable = TrainableLlama::new(&base)?;
    report(&format!("full step, {} rows", packed.rows()), 9, || {
        trainable
            .forward_train(&packed)?
            .sum
            .backward()
            .map(drop)
            .context("backward")
    })?;

    let adapter = LoadedAdapter::new(&random_adapter(&config, &lora, 1), &config)?;
    let prompt: Vec<u32> = (0..40).collect();
    for count in [1_usize, 16] {
        let mut pool = KvPool::new(&config, 1024);
        let mut caches: Vec<KvSequence> = (0..count).map(|_| pool.sequence()).collect();
        for tokens in [&prompt[..], &[7]] {
            let what = format!(
                "serve {count} sequences of {} tokens, half adapted",
                tokens.len()
            );
            let mut limit = 0;
            report(&what, 15, || {
                limit += tokens.len();
                if limit > 200 {
                    caches.iter_mut().for_each(KvSequence::clear);
                    limit = tokens.len();
                }
                let mut steps: Vec<SequenceStep<'_>> = caches
                    .iter_mut()
                    .enumerate()
                    .map(|(i, kv)| SequenceStep {
                        tokens,
                        kv,
                        adapter: (i % 2 == 0).then_some(&adapter),
                        logits: LogitRows::Last,
                    })
                    .collect();
                llama
                    .forward_rows(&mut steps, &mut pool)
                    .map(drop)
                    .context("serve")
            })?;
        }
    }
    Ok(())
}
