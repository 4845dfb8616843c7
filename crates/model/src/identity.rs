//! What makes two adapters one: the digest of their content.

use crate::digest::FieldHasher;
use crate::factor::FactorValues;
use crate::kernel::HalfFormat;
use crate::lora::{LoraConfig, Module};
use crate::peft::modules;

/// What an [`identity`] is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The values, whatever they are stored in.
    Values,
    /// The values and what they are stored in: half of the bytes where those are halves.
    Stored,
}

/// `sha256:` over the configuration keys that change the maths and the tensors in name order.
pub(crate) fn identity<'a>(
    config: &LoraConfig,
    tensors: impl Iterator<Item = (&'a str, [usize; 2], FactorValues<'a>)> + Clone,
    form: Form,
) -> String {
    let mut hasher = FieldHasher::default();
    let modules: Vec<&str> = modules(tensors.clone().map(|(name, ..)| name))
        .into_iter()
        .map(Module::name)
        .collect();
    hasher
        .field(b"graftwork.adapter.v1")
        .field(&(config.rank as u64).to_le_bytes())
        .field(&config.alpha.to_le_bytes())
        .field(&[u8::from(config.use_rslora)])
        .field(modules.join(",").as_bytes());
    // Which modules and ranks there are the tensors say; other alphas they do not.
    for (pattern, alpha) in &config.targets.alpha_pattern {
        hasher
            .field(b"alpha_pattern")
            .field(pattern.as_bytes())
            .field(&alpha.to_le_bytes());
    }
    for (name, shape, values) in tensors {
        let shape: Vec<u8> = shape
            .iter()
            .flat_map(|size| (*size as u64).to_le_bytes())
            .collect();
        hasher.field(name.as_bytes());
        hash_values(&mut hasher, &shape, values, form);
    }
    hasher.finish()
}

/// Adds dtype, shape and values. Only as many values as fit the nearest cache are ever there as bytes.
fn hash_values(hasher: &mut FieldHasher, shape: &[u8], values: FactorValues<'_>, form: Form) {
    const PIECE: usize = 2048;
    let mut bytes = [0_u8; PIECE * 4];
    match (values, form) {
        (FactorValues::Single(values), _) => {
            hasher.field(b"F32").field(shape);
            hasher.begin(size_of_val(values));
            for values in values.chunks(PIECE) {
                let (words, _) = bytes.as_chunks_mut::<4>();
                for (word, value) in words.iter_mut().zip(values) {
                    *word = value.to_le_bytes();
                }
                hasher.piece(bytes.get(..size_of_val(values)).unwrap_or_default());
            }
        }
        (FactorValues::Half(weight), Form::Values) => {
            hasher.field(b"F32").field(shape);
            hasher.begin(2 * size_of_val(&*weight.bits));
            for bits in weight.bits.chunks(PIECE) {
                let (words, _) = bytes.as_chunks_mut::<4>();
                for (word, bits) in words.iter_mut().zip(bits) {
                    *word = weight.format.widened(*bits).to_le_bytes();
                }
                hasher.piece(bytes.get(..2 * size_of_val(bits)).unwrap_or_default());
            }
        }
        (FactorValues::Half(weight), Form::Stored) => {
            let dtype: &[u8] = match weight.format {
                HalfFormat::Bf16 => b"BF16",
                HalfFormat::F16 => b"F16",
            };
            hasher.field(dtype).field(shape);
            hasher.begin(size_of_val(&*weight.bits));
            for bits in weight.bits.chunks(2 * PIECE) {
                let (pairs, _) = bytes.as_chunks_mut::<2>();
                for (pair, bits) in pairs.iter_mut().zip(bits) {
                    *pair = bits.to_le_bytes();
                }
                hasher.piece(bytes.get(..size_of_val(bits)).unwrap_or_default());
            }
        }
    }
}
