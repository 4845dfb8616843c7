//! Every family computes what its plain reference does, forward and backward, trained and served.

use super::reference::losses;
use super::tests::{batch, check_gradients, lora, serve, tokens};
use super::*;
use crate::base::BaseModel;
use crate::config::{Family, LlamaConfig};
use crate::fixture::{TinyShape, random_adapter};
use crate::kv::KvPool;
use crate::lora::{LoadedAdapter, LoraParams, Module};
use crate::peft::Adapter;
use crate::random::Stream;
use crate::targets::Names;

/// One configuration of each family, and a Llama with every bias that there is.
pub(super) fn configs() -> Vec<LlamaConfig> {
    let shape = TinyShape::default();
    let mut configs = Family::ALL
        .map(|family| shape.family_config(family))
        .to_vec();
    let mut biased = shape.config();
    biased.attention_bias = true;
    biased.mlp_bias = true;
    configs.push(biased);
    configs
}

/// Weights large enough that attention looks at something, biases and norms away from 0 and 1.
pub(super) fn lively(config: LlamaConfig) -> BaseModel {
    let base = BaseModel::random(config.clone(), 11);
    let shapes = crate::base::tensor_shapes(&config);
    let tensors = base
        .tensors()
        .iter()
        .enumerate()
        .map(|(index, (name, values))| {
            let stream = Stream::new(12, &[index as u64]);
            let is_vector = shapes[name].len() == 1;
            let change = |(i, value): (usize, &f32)| {
                if is_vector {
                    value + (0.2 * stream.normal(i as u64)) as f32
                } else {
                    4.0 * value
                }
            };
            (
                name.clone(),
                values.iter().enumerate().map(change).collect(),
            )
        })
        .collect();
    BaseModel::from_tensors(config, tensors).unwrap()
}

#[test]
fn losses_are_those_of_the_plain_reference() {
    for config in configs() {
        let family = config.family;
        let base = lively(config);
        let text = tokens(40, 3);
        let mut whole = PackedBatch::new();
        whole.push(&text, &vec![true; text.len()]);
        let scores = Llama::new(&base).score(&whole, None).unwrap();
        let expected = losses(&base, &text);
        assert_eq!(scores.len(), expected.len());
        for (score, expected) in scores.iter().zip(expected) {
            let difference = (f64::from(score.nll) - expected).abs();
            assert!(
                difference < 1e-4,
                "{family:?}, row {}: {} is not {expected}",
                score.row,
                score.nll
            );
        }
    }
}

/// What sets a family apart must matter, or the test above could not tell.
#[test]
fn each_familys_difference_changes_the_loss() {
    let text = tokens(40, 3);
    let total = |base: &BaseModel| losses(base, &text).iter().sum::<f64>();
    let differs = |family: Family, change: &dyn Fn(&mut LlamaConfig)| {
        let base = lively(TinyShape::default().family_config(family));
        let mut config = base.config().clone();
        change(&mut config);
        assert_ne!(&config, base.config(), "{family:?}");
        let plain = BaseModel::from_tensors(config, base.tensors().clone()).unwrap();
        let difference = (total(&base) - total(&plain)).abs();
        assert!(difference > 0.01, "{family:?}: {difference}");
    };
    differs(Family::Llama, &|config| config.rope_scaling = None);
    for family in [Family::Mistral, Family::Qwen2] {
        differs(family, &|config| config.sliding_window = None);
    }
    let gemma = |change: &dyn Fn(&mut LlamaConfig)| differs(Family::Gemma3, change);
    gemma(&|config| config.local_rope_theta = None);
    gemma(&|config| config.query_pre_attn_scalar = None);
    // The window alone: what stood in its layers would lose their rotary embedding too.
    gemma(&|config| {
        if let Some(window) = &mut config.sliding_window {
            window.tokens = 40;
        }
    });
}

#[test]
fn gradients_of_all_weights_are_those_of_the_loss_in_every_family() {
    for config in configs() {
        let trainable = TrainableLlama::new(&lively(config)).unwrap();
        let batch = batch(&[12, 20]);
        check_gradients(trainable.iter().collect(), &|| {
            trainable.forward_train(&batch).unwrap()
        });
    }
}

#[test]
fn lora_gradients_are_those_of_the_loss_in_every_family() {
    for config in configs() {
        let llama = Llama::new(&lively(config.clone()));
        let adapter = random_adapter(&config, &lora(4, 0.0), 5);
        let params = LoraParams::from_adapter(&adapter, &config).unwrap();
        let batch = batch(&[9, 20]);
        check_gradients(params.iter().collect(), &|| {
            llama
                .forward_train(&batch, &params, StepSeed::default())
                .unwrap()
        });
    }
}

#[test]
fn a_packed_batch_has_the_loss_and_the_gradients_of_its_sequences_alone_in_every_family() {
    for config in configs() {
        let llama = Llama::new(&lively(config.clone()));
        let adapter = random_adapter(&config, &lora(4, 0.0), 5);
        let params = LoraParams::from_adapter(&adapter, &config).unwrap();
        let of = |batch: &PackedBatch| -> (f64, Vec<f64>) {
            let seed = StepSeed::default();
            let loss = llama.forward_train(batch, &params, seed).unwrap();
            let gradients = loss.sum.backward().unwrap();
            let values = params.iter().flat_map(|(_, variable)| {
                let gradient = gradients.get(variable).unwrap().flatten_all().unwrap();
                gradient.to_vec1::<f32>().unwrap()
            });
            let values: Vec<f64> = values.map(f64::from).collect();
            (f64::from(loss.sum.to_scalar::<f32>().unwrap()), values)
        };
        // One is longer than the windows.
        let lengths = [20, 9, 33];
        let (packed_loss, packed) = of(&batch(&lengths));
        let (mut loss, mut apart) = (0.0, vec![0.0; packed.len()]);
        for (i, length) in lengths.into_iter().enumerate() {
            let mut single = PackedBatch::new();
            let mask: Vec<bool> = (0..length).map(|t| t % 3 != 1).collect();
            single.push(&tokens(length, 7 * i as u32), &mask);
            let (single_loss, gradient) = of(&single);
            loss += single_loss;
            for (sum, value) in apart.iter_mut().zip(gradient) {
                *sum += value;
            }
        }
        let off = packed_loss / loss - 1.0;
        assert!(off.abs() < 1e-5, "{:?}: {off}", config.family);
        let norm = |values: &[f64]| values.iter().map(|it| it * it).sum::<f64>().sqrt();
        let differences: Vec<f64> = packed.iter().zip(&apart).map(|(a, b)| a - b).collect();
        let (off, whole) = (norm(&differences), norm(&packed));
        assert!(off < 1e-4 * whole, "{:?}: {off} of {whole}", config.family);
    }
}

/// The base model with `W + s B A` in place of every adapted `W`.
fn merged(base: &BaseModel, adapter: &Adapter) -> BaseModel {
    let config = base.config();
    let plan = adapter.config.plan(config).unwrap();
    let mut tensors = base.tensors().clone();
    for layer in 0..config.num_hidden_layers {
        for module in Module::ALL {
            let Some(update) = plan.update(layer, module) else {
                continue;
            };
            let factor = |name| &adapter.tensors[&module.lora_name(layer, name)].data;
            let (a, b) = (factor("lora_A"), factor("lora_B"));
            let (outputs, inputs) = module.shape(config);
            let name = crate::base::layer_tensor_name(layer, &module.weight_name());
            let weight = tensors.get_mut(&name).unwrap();
            for output in 0..outputs {
                for input in 0..inputs {
                    let dot: f32 = (0..update.rank)
                        .map(|r| b[output * update.rank + r] * a[r * inputs + input])
                        .sum();
                    weight[output * inputs + input] += update.scaling * dot;
                }
            }
        }
    }
    BaseModel::from_tensors(config.clone(), tensors).unwrap()
}

#[test]
fn an_adapter_of_many_ranks_is_what_its_merged_weights_are() {
    let config = TinyShape::default().config();
    let base = lively(config.clone());
    let mut lora = lora(4, 0.0);
    lora.use_rslora = true;
    lora.targets.rank_pattern = vec![
        (r"layers\.1\..*".to_owned(), 3),
        ("down_proj".to_owned(), 8),
    ];
    lora.targets.alpha_pattern = vec![("mlp.up_proj".to_owned(), 1.0)];
    lora.targets.exclude = Some(Names::Pattern(r".*\.0\.self_attn\.k_proj".to_owned()));
    let adapter = random_adapter(&config, &lora, 5);
    let llama = Llama::new(&base);
    let text = tokens(30, 3);
    let mut whole = PackedBatch::new();
    whole.push(&text, &vec![true; text.len()]);
    let loaded = LoadedAdapter::new(&adapter, &config).unwrap();
    let scores = llama.score(&whole, Some(&loaded)).unwrap();
    let expected = losses(&merged(&base, &adapter), &text);
    for (score, expected) in scores.iter().zip(&expected) {
        assert!((f64::from(score.nll) - expected).abs() < 2e-4, "{score:?}");
    }
    let bare = losses(&base, &text);
    assert!(
        bare.iter()
            .zip(&expected)
            .any(|(a, b)| (a - b).abs() > 0.01)
    );
    let params = LoraParams::from_adapter(&adapter, &config).unwrap();
    check_gradients(params.iter().collect(), &|| {
        llama
            .forward_train(&whole, &params, StepSeed::default())
            .unwrap()
    });
}

#[test]
fn every_family_is_served_as_it_was_trained_whatever_the_chunks() {
    for config in configs() {
        let llama = Llama::new(&lively(config.clone()));
        let adapter = random_adapter(&config, &lora(4, 0.0), 1);
        let adapter = LoadedAdapter::new(&adapter, &config).unwrap();
        let text = tokens(41, 3);
        let others = [(tokens(5, 9), Some(&adapter)), (tokens(7, 1), None)];
        let mut pool = KvPool::new(&config, 64);
        let alone = serve(&llama, &mut pool, &text, Some(&adapter), 41, &[]);
        for chunk in [1, 6, 16] {
            let other = serve(&llama, &mut pool, &text, Some(&adapter), chunk, &others);
            assert!(other == alone, "{:?}, chunk {chunk}", config.family);
        }
        let mut whole = PackedBatch::new();
        whole.push(&text, &vec![true; text.len()]);
        for score in llama.score(&whole, Some(&adapter)).unwrap() {
            let row = &alone[score.row * config.vocab_size..(score.row + 1) * config.vocab_size];
            let row: Vec<f32> = row.iter().map(|bits| f32::from_bits(*bits)).collect();
            let nll = -crate::sampler::log_probs(&row, &[score.target])[0];
            assert!((nll - score.nll).abs() < 1e-4, "{:?}", config.family);
        }
    }
}
