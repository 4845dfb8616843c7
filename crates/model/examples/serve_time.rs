//! Times decode and prefill passes of the model shape of `make bench-serve` (443 M parameters), in every form
//! of the base that is served.
//!
//! `cargo run -p graftwork-model --example serve_time [threads [form]]` prints the fastest of several passes in
//! milliseconds, and tokens a second, without an adapter, with 8 and with 32 of them, in f32 and in bf16. `form` is one
//! of the base alone, as `Q8_0`. It takes 4 GB of memory and 1 GB of disk. For tuning; docs/performance.md is made
//! elsewhere.
#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use graftwork_model::base::{BaseModel, save_base};
use graftwork_model::config::LlamaConfig;
use graftwork_model::fixture::{TinyShape, random_adapter};
use graftwork_model::kernel::Isa;
use graftwork_model::kv::{KvPool, KvSequence};
use graftwork_model::lora::{LoadedAdapter, LoraConfig, Module};
use graftwork_model::quant::Quantization;
use graftwork_model::targets::Targets;
use graftwork_model::transformer::{Held, Llama, LogitRows, SequenceStep};

const ADAPTERS: usize = 32;
const PREFILL: usize = 256;

fn config() -> LlamaConfig {
    TinyShape {
        hidden: 1024,
        intermediate: 4096,
        layers: 24,
        heads: 16,
        kv_heads: 8,
        positions: 1024,
        tied: true,
    }
    .with_vocabulary(32_000)
}

fn main() -> Result<()> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let config = config();
    save_base(dir.path(), &BaseModel::random(config.clone(), 1))?;
    println!(
        "{} parameters, {threads} threads, {}",
        config.parameters(),
        Isa::detect().name()
    );
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()?
        .install(|| run(dir.path(), &config))
}

fn run(dir: &Path, config: &LlamaConfig) -> Result<()> {
    let lora = LoraConfig {
        rank: 16,
        alpha: 32.0,
        dropout: 0.0,
        targets: Targets::of(&Module::ALL),
        use_rslora: false,
    };
    let mut adapter = random_adapter(config, &lora, 1);
    let mut copies = || {
        let start = Instant::now();
        // Each has memory of its own, which is what takes the time.
        let copies = (0..ADAPTERS).map(|_| LoadedAdapter::new(&adapter, config));
        let copies = copies.collect::<Result<Vec<_>, _>>()?;
        println!(
            "an adapter of {} MB, packed in {:.1} ms",
            copies.first().map_or(0, LoadedAdapter::bytes) / 1_000_000,
            start.elapsed().as_secs_f64() * 1e3 / ADAPTERS as f64
        );
        for tensor in adapter.tensors.values_mut() {
            let cut = |value: &mut f32| *value = f32::from_bits(value.to_bits() & 0xffff_0000);
            tensor.data.iter_mut().for_each(cut);
        }
        anyhow::Ok(copies)
    };
    let (single, half) = (copies()?, copies()?);
    let mut forms = vec![Held::AsStored];
    forms.extend(Quantization::ALL.map(Held::Blocks));
    if let Some(form) = std::env::args().nth(2) {
        forms.retain(|held| matches!(held, Held::Blocks(it) if format!("{it:?}") == form));
    }
    for held in forms {
        let start = Instant::now();
        let llama = Llama::load_served(dir, held)?;
        println!(
            "{held:?}: {} MB, loaded in {:.1} s",
            llama.bytes() / 1_000_000,
            start.elapsed().as_secs_f64()
        );
        for (sequences, tokens) in [
            (1, 1),
            (8, 1),
            (32, 1),
            (1, 32),
            (1, 64),
            (1, 128),
            (1, PREFILL),
            (1, 512),
        ] {
            for (numbers, all, count) in [
                ("f32", &single, 0),
                ("f32", &single, 8),
                ("bf16", &half, 8),
                ("f32", &single, 32),
                ("bf16", &half, 32),
            ] {
                if count > sequences.max(8) {
                    continue;
                }
                let adapters = all.get(..count).unwrap_or_default();
                let fastest = fastest(&llama, (sequences, tokens), adapters)?;
                println!(
                    "  {sequences} sequences of {tokens} tokens, {count} adapters in {numbers}: {:.2} ms, {:.0} tokens/s",
                    fastest.as_secs_f64() * 1e3,
                    (sequences * tokens) as f64 / fastest.as_secs_f64()
                );
            }
        }
    }
    Ok(())
}

/// The fastest of some passes, each of which continues all sequences by so many tokens.
fn fastest(
    llama: &Llama,
    (sequences, tokens): (usize, usize),
    adapters: &[LoadedAdapter],
) -> Result<Duration> {
    const ROUNDS: usize = 7;
    let mut pool = KvPool::new(llama.config(), 160);
    let mut caches: Vec<KvSequence> = (0..sequences).map(|_| pool.sequence()).collect();
    let text: Vec<u32> = (0..tokens as u32).map(|i| i * 37 % 32_000).collect();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        if tokens > 1 {
            caches.iter_mut().for_each(KvSequence::clear);
        }
        let mut steps: Vec<SequenceStep<'_>> = caches
            .iter_mut()
            .zip((0..adapters.len().max(1)).cycle())
            .map(|(kv, number)| SequenceStep {
                tokens: &text,
                kv,
                adapter: adapters.get(number),
                logits: LogitRows::Last,
            })
            .collect();
        let start = Instant::now();
        llama.forward_rows(&mut steps, &mut pool)?;
        times.push(start.elapsed());
    }
    times.into_iter().min().context("no round")
}
