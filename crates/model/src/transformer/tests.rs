//! What was trained is what is served, and gradients are those of the loss.

use candle_core::Var;

use super::*;
use crate::base::BaseModel;
use crate::config::LlamaConfig;
use crate::fixture::{TinyShape, random_adapter};
use crate::kv::{KvError, KvFormat, KvPool, KvSequence};
use crate::lora::{LoadedAdapter, LoraConfig, LoraParams, Module};
use crate::targets::Targets;

fn shape() -> TinyShape {
    TinyShape {
        tied: false,
        ..TinyShape::default()
    }
}

fn model() -> (BaseModel, Llama, LlamaConfig) {
    let config = shape().config();
    let base = BaseModel::random(config.clone(), 11);
    let llama = Llama::new(&base);
    (base, llama, config)
}

pub(super) fn lora(rank: usize, dropout: f64) -> LoraConfig {
    LoraConfig {
        rank,
        alpha: 2.0 * rank as f64,
        dropout,
        targets: Targets::of(&Module::ALL),
        use_rslora: false,
    }
}

pub(super) fn tokens(count: usize, start: u32) -> Vec<u32> {
    (0..count as u32)
        .map(|i| (start + i * 37 + i * i * 3) % 250)
        .collect()
}

pub(super) fn batch(lengths: &[usize]) -> PackedBatch {
    let mut batch = PackedBatch::new();
    for (i, length) in lengths.iter().enumerate() {
        let mask: Vec<bool> = (0..*length).map(|t| t % 3 != 1).collect();
        batch.push(&tokens(*length, 7 * i as u32), &mask);
    }
    batch
}

fn values(variable: &Var) -> Vec<f32> {
    variable
        .as_tensor()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// Longest step along a gradient: beyond it the loss is no straight line.
const LONGEST_STEP: f64 = 0.1;

/// Finite differences along the gradient of every tensor, and in the direction of its largest element.
pub(super) fn check_gradients<'a>(parameters: Vec<(&'a str, &'a Var)>, loss: &dyn Fn() -> Loss) {
    let sum = |loss: &Loss| f64::from(loss.sum.to_scalar::<f32>().unwrap());
    let here = loss();
    // What a sum of f32 may be off by.
    let rounding = 8.0 * f64::from(f32::EPSILON) * sum(&here).abs();
    let gradients = here.sum.backward().unwrap();
    for (name, variable) in parameters {
        let before = values(variable);
        let gradient: Vec<f32> = gradients
            .get(variable)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        assert!(
            gradient.iter().any(|value| *value != 0.0),
            "{name} has no gradient"
        );
        // The element with the largest gradient stands clear of rounding.
        let (element, exact) = gradient
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()))
            .unwrap();
        let at = |delta: &dyn Fn(usize) -> f32| {
            let changed: Vec<f32> = before
                .iter()
                .enumerate()
                .map(|(index, value)| value + delta(index))
                .collect();
            variable
                .set(
                    &candle_core::Tensor::from_vec(
                        changed,
                        variable.shape(),
                        &candle_core::Device::Cpu,
                    )
                    .unwrap(),
                )
                .unwrap();
            sum(&loss())
        };
        let step = 1e-2_f32;
        let of_element = |delta: f32| at(&|index| if index == element { delta } else { 0.0 });
        let numeric = (of_element(step) - of_element(-step)) / (2.0 * f64::from(step));
        let difference = (numeric - f64::from(*exact)).abs();
        assert!(
            difference <= 0.03 * f64::from(exact.abs()) + 2e-2,
            "{name}[{element}]: {exact} by backward, {numeric} by differences"
        );
        // All elements together, by a step as long as it takes to stand clear of rounding: a tensor whose elements are
        // all small can be wrong too.
        let squares = gradient.iter().map(|value| f64::from(*value).powi(2));
        let norm = squares.sum::<f64>().sqrt();
        let length = (20.0 * rounding / norm).min(LONGEST_STEP);
        let along = |length: f64| at(&|index| (length * f64::from(gradient[index]) / norm) as f32);
        let numeric = (along(length) - along(-length)) / (2.0 * length);
        let slack = rounding / length;
        assert!(
            norm > 2.0 * slack,
            "{name}: a gradient of {norm} can't be told from rounding, {slack}"
        );
        assert!(
            (numeric - norm).abs() <= 0.05 * norm + slack,
            "{name}: a gradient of {norm} by backward, {numeric} by differences"
        );
        at(&|_| 0.0);
    }
}

#[test]
fn lora_gradients_are_those_of_the_loss() {
    let (_, llama, config) = model();
    for dropout in [0.0, 0.3] {
        let lora = lora(4, dropout);
        let params = LoraParams::from_adapter(&random_adapter(&config, &lora, 5), &config).unwrap();
        let batch = batch(&[9, 20]);
        check_gradients(params.iter().collect(), &|| {
            llama
                .forward_train(&batch, &params, StepSeed { seed: 3, step: 8 })
                .unwrap()
        });
    }
}

#[test]
fn gradients_of_all_weights_are_those_of_the_loss() {
    for tied in [true, false] {
        let config = TinyShape {
            tied,
            layers: 1,
            ..shape()
        }
        .config();
        let trainable = TrainableLlama::new(&BaseModel::random(config, 2)).unwrap();
        let batch = batch(&[12, 5]);
        check_gradients(trainable.iter().collect(), &|| {
            trainable.forward_train(&batch).unwrap()
        });
    }
}

#[test]
fn a_new_adapter_changes_nothing_and_its_first_step_moves_b() {
    let (_, llama, config) = model();
    let batch = batch(&[15]);
    let params = LoraParams::init(&lora(4, 0.0), &config, 1).unwrap();
    let adapter = LoadedAdapter::new(&params.to_adapter("tiny").unwrap(), &config).unwrap();
    assert_eq!(
        llama.score(&batch, Some(&adapter)).unwrap(),
        llama.score(&batch, None).unwrap()
    );
    let moves = || {
        let loss = llama.forward_train(&batch, &params, StepSeed::default());
        let gradients = loss.unwrap().sum.backward().unwrap();
        let of = |variable: &Var| {
            let gradient = gradients.get(variable).unwrap().flatten_all().unwrap();
            gradient.to_vec1::<f32>().unwrap()
        };
        let all = params
            .iter()
            .map(|(name, variable)| (name.to_owned(), of(variable)));
        all.collect::<Vec<(String, Vec<f32>)>>()
    };
    let first = moves();
    for (name, gradient) in &first {
        let moves = gradient.iter().any(|value| *value != 0.0);
        assert_eq!(moves, name.contains("lora_B"), "{name}");
    }
    // One step down, after which B is not zero.
    for ((name, variable), (_, gradient)) in params.iter().zip(&first) {
        let stepped: Vec<f32> = values(variable)
            .iter()
            .zip(gradient)
            .map(|(value, slope)| value - 0.1 * slope)
            .collect();
        let device = candle_core::Device::Cpu;
        let stepped = candle_core::Tensor::from_vec(stepped, variable.shape(), &device);
        variable.set(&stepped.unwrap()).unwrap();
        let is_zero = values(variable).iter().all(|value| *value == 0.0);
        assert!(!is_zero, "{name}");
    }
    for (name, gradient) in moves() {
        assert!(gradient.iter().any(|value| *value != 0.0), "{name}");
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let (_, llama, _) = model();
    let together = llama.score(&batch(&[10, 17, 4]), None).unwrap();
    let mut alone = Vec::new();
    for (i, length) in [10, 17, 4].into_iter().enumerate() {
        let mut single = PackedBatch::new();
        let mask: Vec<bool> = (0..length).map(|t| t % 3 != 1).collect();
        single.push(&tokens(length, 7 * i as u32), &mask);
        alone.extend(
            llama
                .score(&single, None)
                .unwrap()
                .into_iter()
                .map(|score| (i, score.target, score.nll.to_bits())),
        );
    }
    let together: Vec<_> = together
        .into_iter()
        .map(|score| (score.segment, score.target, score.nll.to_bits()))
        .collect();
    assert_eq!(together, alone);
}

#[test]
fn the_loss_is_the_sum_of_the_scores() {
    let (_, llama, config) = model();
    let params =
        LoraParams::from_adapter(&random_adapter(&config, &lora(2, 0.0), 5), &config).unwrap();
    let adapter = LoadedAdapter::new(&params.to_adapter("tiny").unwrap(), &config).unwrap();
    let batch = batch(&[33, 8]);
    let loss = llama
        .forward_train(&batch, &params, StepSeed::default())
        .unwrap();
    assert_eq!(loss.targets, batch.targets());
    let sum: f64 = llama
        .score(&batch, Some(&adapter))
        .unwrap()
        .iter()
        .map(|score| f64::from(score.nll))
        .sum();
    assert!(
        (f64::from(loss.sum.to_scalar::<f32>().unwrap()) - sum).abs() < 1e-3,
        "{sum}"
    );
}

/// Logits of every token, fed in pieces of `chunk` tokens, with others in the same passes.
pub(super) fn serve(
    llama: &Llama,
    pool: &mut KvPool,
    tokens: &[u32],
    adapter: Option<&LoadedAdapter>,
    chunk: usize,
    others: &[(Vec<u32>, Option<&LoadedAdapter>)],
) -> Vec<u32> {
    let mut kv = pool.sequence();
    let mut company: Vec<KvSequence> = others.iter().map(|_| pool.sequence()).collect();
    let mut bits = Vec::new();
    for (piece, part) in tokens.chunks(chunk).enumerate() {
        let mut steps: Vec<SequenceStep<'_>> = company
            .iter_mut()
            .zip(others)
            .map(|(kv, (tokens, adapter))| {
                let part = &tokens[piece % tokens.len()..=piece % tokens.len()];
                SequenceStep {
                    tokens: part,
                    kv,
                    adapter: *adapter,
                    logits: LogitRows::Last,
                }
            })
            .collect();
        let at = steps.len() / 2;
        steps.insert(
            at,
            SequenceStep {
                tokens: part,
                kv: &mut kv,
                adapter,
                logits: LogitRows::All,
            },
        );
        let logits = llama.forward_rows(&mut steps, pool).unwrap();
        for row in 0..logits[at].rows() {
            bits.extend(logits[at].row(row).iter().map(|value| value.to_bits()));
        }
    }
    bits
}

#[test]
fn a_rows_bits_depend_on_neither_company_nor_chunks_nor_threads() {
    let (_, llama, config) = model();
    let load = |rank, seed| {
        LoadedAdapter::new(&random_adapter(&config, &lora(rank, 0.0), seed), &config).unwrap()
    };
    let (a, b) = (load(4, 1), load(8, 2));
    let text = tokens(41, 3);
    let others = [
        (tokens(5, 9), Some(&b)),
        (tokens(7, 1), None),
        (tokens(3, 2), Some(&a)),
        (tokens(4, 77), Some(&b)),
    ];
    let threads = |n: usize| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build()
            .unwrap()
    };
    let mut answers = Vec::new();
    for (adapter, format) in [
        (None, KvFormat::F32),
        (Some(&a), KvFormat::F32),
        (Some(&a), KvFormat::F16),
    ] {
        let mut pool = KvPool::of_format(&config, 64, format);
        let alone = threads(1).install(|| serve(&llama, &mut pool, &text, adapter, 41, &[]));
        for (chunk, company, count) in [
            (1, &others[..], 2),
            (5, &others[..], 1),
            (16, &[][..], 2),
            (41, &others[..2], 2),
        ] {
            let other =
                threads(count).install(|| serve(&llama, &mut pool, &text, adapter, chunk, company));
            assert!(
                other == alone,
                "chunk {chunk}, {} others, {count} threads, {format:?}",
                company.len()
            );
        }
        // What was trained is what is served, as nearly as the cache holds it.
        let limit = match format {
            KvFormat::F32 => 1e-4,
            KvFormat::F16 => 2e-3,
        };
        let mut whole = PackedBatch::new();
        whole.push(&text, &vec![true; text.len()]);
        let scores = llama.score(&whole, adapter).unwrap();
        for score in scores {
            let row: Vec<f32> = alone
                [score.row * config.vocab_size..(score.row + 1) * config.vocab_size]
                .iter()
                .map(|b| f32::from_bits(*b))
                .collect();
            let nll = -crate::sampler::log_probs(&row, &[score.target])[0];
            assert!(
                (nll - score.nll).abs() < limit,
                "row {}: {nll} served, {} trained, {format:?}",
                score.row,
                score.nll
            );
        }
        assert_eq!(pool.free_blocks(), 64);
        answers.push(alone);
    }
    assert!(answers[1] != answers[2], "a cache in f16 is another one");
}

#[test]
fn a_shared_beginning_gives_the_bits_of_one_that_was_computed() {
    let (_, llama, config) = model();
    let adapter = LoadedAdapter::new(&random_adapter(&config, &lora(4, 0.0), 1), &config).unwrap();
    let text = tokens(53, 3);
    for (adapter, format) in [
        (None, KvFormat::F32),
        (Some(&adapter), KvFormat::F32),
        (Some(&adapter), KvFormat::F16),
    ] {
        let mut pool = KvPool::of_format(&config, 32, format);
        let alone = serve(&llama, &mut pool, &text, adapter, 53, &[]);
        let owner = || adapter.map(|adapter| adapter.digest().clone());
        // Someone leaves its blocks behind, computed in pieces that end inside of blocks.
        let mut first = pool.blocks().sequence(owner());
        for part in text[..40].chunks(7) {
            let mut steps = [SequenceStep {
                tokens: part,
                kv: &mut first,
                adapter,
                logits: LogitRows::None,
            }];
            llama.forward_rows(&mut steps, &mut pool).unwrap();
        }
        first.publish(&text[..40]);
        drop(first);
        for length in [53, 34, 33] {
            let mut next = pool.blocks().sequence(owner());
            assert_eq!(next.adopt(&text[..length]), 32);
            let mut steps = [SequenceStep {
                tokens: &text[32..length],
                kv: &mut next,
                adapter,
                logits: LogitRows::All,
            }];
            let logits = llama.forward_rows(&mut steps, &mut pool).unwrap();
            for row in 0..logits[0].rows() {
                let at = (32 + row) * config.vocab_size;
                let bits: Vec<u32> = logits[0].row(row).iter().map(|v| v.to_bits()).collect();
                assert!(bits == alone[at..at + config.vocab_size], "row {row}");
            }
        }
    }
}

#[test]
fn dropout_draws_the_same_for_the_same_step_and_other_values_for_another() {
    let (_, llama, config) = model();
    let params =
        LoraParams::from_adapter(&random_adapter(&config, &lora(4, 0.5), 5), &config).unwrap();
    let batch = batch(&[30]);
    let loss = |step| {
        llama
            .forward_train(&batch, &params, StepSeed { seed: 1, step })
            .unwrap()
            .sum
            .to_scalar::<f32>()
            .unwrap()
    };
    assert_eq!(loss(1).to_bits(), loss(1).to_bits());
    assert_ne!(loss(1).to_bits(), loss(2).to_bits());
}

#[test]
fn a_full_cache_leaves_sequences_as_they_were() {
    let (_, llama, config) = model();
    let mut pool = KvPool::new(&config, 2);
    let (mut a, mut b) = (pool.sequence(), pool.sequence());
    let text = tokens(20, 1);
    let mut steps = [(&text[..9], &mut a), (&text[..], &mut b)].map(|(tokens, kv)| SequenceStep {
        tokens,
        kv,
        adapter: None,
        logits: LogitRows::Last,
    });
    let error = llama.forward_rows(&mut steps, &mut pool).unwrap_err();
    assert!(
        matches!(
            error,
            ModelError::Kv(KvError::Exhausted { needed: 3, free: 2 })
        ),
        "{error}"
    );
    assert_eq!(
        (a.len(), a.blocks(), b.len(), b.blocks(), pool.free_blocks()),
        (0, 0, 0, 0, 2)
    );
}

#[test]
fn a_training_steps_bits_do_not_depend_on_threads() {
    let (_, llama, config) = model();
    let params =
        LoraParams::from_adapter(&random_adapter(&config, &lora(4, 0.1), 5), &config).unwrap();
    let batch = batch(&[40, 70, 9, 200, 33]);
    let step = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let loss = llama
                .forward_train(&batch, &params, StepSeed::default())
                .unwrap();
            let gradients = loss.sum.backward().unwrap();
            let mut bits = vec![loss.sum.to_scalar::<f32>().unwrap().to_bits()];
            for (_, variable) in params.iter() {
                let gradient = gradients.get(variable).unwrap().flatten_all().unwrap();
                bits.extend(
                    gradient
                        .to_vec1::<f32>()
                        .unwrap()
                        .iter()
                        .map(|value| value.to_bits()),
                );
            }
            bits
        })
    };
    let one = step(1);
    assert!(one.len() > 1000);
    assert!(step(2) == one && step(3) == one);
}

#[test]
fn what_can_not_work_is_refused() {
    let (_, llama, config) = model();
    let mut wrong = PackedBatch::new();
    wrong.push(&[1, 9999], &[true, true]);
    assert!(matches!(
        llama.score(&wrong, None),
        Err(ModelError::Token { token: 9999, .. })
    ));
    let mut long = PackedBatch::new();
    long.push(&vec![1; config.max_position_embeddings + 1], &[]);
    assert!(matches!(
        llama.score(&long, None),
        Err(ModelError::Length { .. })
    ));
    let params = LoraParams::init(&lora(2, 0.0), &config, 1).unwrap();
    let mut masked = PackedBatch::new();
    masked.push(&[1, 2, 3], &[false; 3]);
    assert!(matches!(
        llama.forward_train(&masked, &params, StepSeed::default()),
        Err(ModelError::NoTargets)
    ));
}
