//! A base model in every form that is served: batched equals single, and what each form costs.

use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::tests::{batch, lora, serve, tokens};
use super::*;
use crate::base::{BaseModel, save_base};
use crate::fixture::{TinyShape, random_adapter, write_tiny_gguf};
use crate::kernel::HalfWeight;
use crate::kv::KvPool;
use crate::lora::{FirstFactors, LoadedAdapter};
use crate::quant::Quantization;

const FORMS: [Held; 5] = [
    Held::AsStored,
    Held::Bf16,
    Held::Blocks(Quantization::Q8_0),
    Held::Blocks(Quantization::Q4_0),
    Held::Blocks(Quantization::Q4K),
];

/// Layers of which some fit the blocks of Q4_K (256 inputs) and some don't (320).
fn base(tied: bool) -> BaseModel {
    let shape = TinyShape {
        hidden: 256,
        intermediate: 320,
        layers: 2,
        tied,
        ..TinyShape::default()
    };
    BaseModel::random(shape.config(), 11)
}

/// Every form of the same model: of safetensors in bf16, and of GGUF files.
fn served(tied: bool) -> Vec<(String, Llama)> {
    let base = base(tied);
    let dir = tempfile::tempdir().unwrap();
    save_base(dir.path(), &base).unwrap();
    let load = |dir: &Path, held| Llama::load_served(dir, held).unwrap();
    let mut all: Vec<(String, Llama)> = FORMS
        .map(|held| (format!("{held:?}"), load(dir.path(), held)))
        .into();
    for format in [GgmlDType::Q8_0, GgmlDType::Q4_0] {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_gguf(dir.path(), &base, format).unwrap();
        all.push((format!("GGUF {format:?}"), load(dir.path(), Held::AsStored)));
    }
    all
}

fn losses(llama: &Llama) -> f64 {
    let scores = llama.score(&batch(&[60]), None).unwrap();
    scores.iter().map(|score| f64::from(score.nll)).sum()
}

#[test]
fn a_rows_bits_depend_on_neither_company_nor_chunks_nor_threads_in_any_form() {
    for (name, llama) in [served(true), served(false)].concat() {
        let config = llama.config().clone();
        let first = llama.first_factors();
        let loaded =
            |adapter: &_| LoadedAdapter::with_first_factors(adapter, &config, first).unwrap();
        let load = |rank, seed| loaded(&random_adapter(&config, &lora(rank, 0.0), seed));
        let mut narrow = random_adapter(&config, &lora(16, 0.0), 2);
        for tensor in narrow.tensors.values_mut() {
            tensor.data = HalfWeight::rounded(&tensor.data).widened();
        }
        let (a, b) = (load(4, 1), loaded(&narrow));
        let text = tokens(41, 3);
        let others = [
            (tokens(5, 9), Some(&b)),
            (tokens(7, 1), None),
            (tokens(3, 2), Some(&a)),
        ];
        let on = |threads: usize| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
        };
        for adapter in [None, Some(&a), Some(&b)] {
            let mut pool = KvPool::new(&config, 64);
            let alone = on(1).install(|| serve(&llama, &mut pool, &text, adapter, 41, &[]));
            for (chunk, company, threads) in
                [(1, &others[..], 2), (5, &others[..], 1), (16, &[][..], 2)]
            {
                let other = on(threads)
                    .install(|| serve(&llama, &mut pool, &text, adapter, chunk, company));
                assert!(other == alone, "{name}: chunk {chunk}, {threads} threads");
            }
            assert_eq!(pool.free_blocks(), 64, "{name}");
        }
    }
}

#[test]
fn first_factors_in_eight_bits_beside_a_base_in_blocks_move_an_update_by_a_fortieth_at_most() {
    for (name, llama) in served(true) {
        let config = llama.config();
        let blocks = name.contains("Q8_0") || name.contains("Q4");
        let first = llama.first_factors();
        assert_eq!(first == FirstFactors::EightBits, blocks, "{name}");
        let adapter = random_adapter(config, &lora(8, 0.0), 4);
        let logits = |first: Option<FirstFactors>| {
            let loaded = first
                .map(|first| LoadedAdapter::with_first_factors(&adapter, config, first).unwrap());
            let mut pool = KvPool::new(config, 64);
            let bits = serve(&llama, &mut pool, &tokens(40, 3), loaded.as_ref(), 40, &[]);
            bits.into_iter().map(f32::from_bits).collect::<Vec<f32>>()
        };
        let [bare, exact, own] = [None, Some(FirstFactors::AsStored), Some(first)].map(logits);
        let apart = |a: &[f32], b: &[f32]| {
            let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
            squares.sum::<f64>().sqrt()
        };
        let (update, moved) = (apart(&exact, &bare), apart(&own, &exact));
        assert!(update > 0.0 && (moved > 0.0) == blocks, "{name}");
        assert!(moved < 0.025 * update, "{name}: {moved} of {update}");
    }
}

#[test]
fn a_model_in_bf16_is_served_with_the_bits_of_its_values_as_f32() {
    for tied in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        save_base(dir.path(), &base(tied)).unwrap();
        let plain = Llama::new(&BaseModel::load(dir.path()).unwrap());
        for held in [Held::AsStored, Held::Bf16] {
            let served = Llama::load_served(dir.path(), held).unwrap();
            let scores = |llama: &Llama| llama.score(&batch(&[30, 9]), None).unwrap();
            assert_eq!(scores(&served), scores(&plain), "{held:?}, tied {tied}");
            // A little more than half: rows past the last are packed too.
            assert!(served.bytes() * 10 < plain.bytes() * 6, "{held:?}");
        }
    }
}

#[test]
fn blocks_of_a_file_are_served_as_they_are_whatever_is_asked_for() {
    let base = base(false);
    let dir = tempfile::tempdir().unwrap();
    write_tiny_gguf(dir.path(), &base, GgmlDType::Q8_0).unwrap();
    let of_file = losses(&Llama::load_served(dir.path(), Held::AsStored).unwrap());
    for held in FORMS {
        let llama = Llama::load_served(dir.path(), held).unwrap();
        assert_eq!(losses(&llama), of_file, "{held:?}");
    }
}

#[test]
fn serving_in_blocks_is_as_near_as_training_on_them_and_takes_their_memory() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(true);
    save_base(dir.path(), &base).unwrap();
    let exact = Llama::new(&BaseModel::load(dir.path()).unwrap());
    for quantization in Quantization::ALL {
        let held = Held::Blocks(quantization);
        let served = Llama::load_served(dir.path(), held).unwrap();
        let trained = Llama::load(dir.path(), held).unwrap();
        let apart = losses(&served) / losses(&trained) - 1.0;
        assert!(apart != 0.0 && apart.abs() < 0.005, "{held:?}: {apart}");
        let off = (losses(&served) / losses(&exact) - 1.0).abs();
        assert!(off < 0.05, "{held:?}: {off}");
        let more = served.bytes() as f64 / trained.bytes() as f64;
        assert!((1.0..1.1).contains(&more), "{held:?}: {more}");
        assert!(served.bytes() * 3 < exact.bytes(), "{held:?}");
    }
}
