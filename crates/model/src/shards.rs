//! A base model's weights in files of bounded size, with the index by which they are found.

use std::path::Path;

use crate::base::{BaseError, BaseModel, WEIGHTS_FILE, WEIGHTS_INDEX_FILE, tensor_shapes};
use crate::tensor_file::{self, StoredDtype};

/// Bytes of a value in bf16.
const VALUE_BYTES: usize = 2;

/// Writes the weights in bf16: as one file where they fit into `shard_bytes`, otherwise as shards of at most
/// as many, or of one tensor, with an index as transformers writes it. Configuration and tokenizer are the
/// caller's.
///
/// # Errors
/// A file that can't be written.
pub fn save_weights(dir: &Path, base: &BaseModel, shard_bytes: usize) -> Result<(), BaseError> {
    let mut shards: Vec<Vec<&String>> = vec![Vec::new()];
    let (mut filled, mut total) = (0, 0);
    for (name, values) in base.tensors() {
        let bytes = values.len() * VALUE_BYTES;
        if filled > 0 && filled + bytes > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(name);
        }
    }
    let shapes = tensor_shapes(base.config());
    let count = shards.len();
    let mut weight_map = serde_json::Map::new();
    for (number, names) in (1_usize..).zip(&shards) {
        let file = if count == 1 {
            WEIGHTS_FILE.to_owned()
        } else {
            format!("model-{number:05}-of-{count:05}.safetensors")
        };
        let tensors = names.iter().filter_map(|name| {
            let (shape, values) = (shapes.get(*name)?, base.tensors().get(*name)?);
            Some((name.as_str(), shape.as_slice(), values.as_slice()))
        });
        tensor_file::write(&dir.join(&file), StoredDtype::Bf16, tensors)?;
        for name in names {
            weight_map.insert((*name).clone(), file.clone().into());
        }
    }
    if count > 1 {
        let index = serde_json::json!({
            "metadata": { "total_size": total },
            "weight_map": weight_map,
        });
        let path = dir.join(WEIGHTS_INDEX_FILE);
        std::fs::write(&path, format!("{index:#}\n"))
            .map_err(|source| BaseError::Io { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::fixture::TinyShape;

    #[test]
    fn weights_in_shards_or_in_one_file_load_again_rounded_to_bf16() {
        for tied in [true, false] {
            let shape = TinyShape {
                tied,
                ..TinyShape::default()
            };
            let base = BaseModel::random(shape.config(), 3);
            // The embedding alone has 260 * 32 values.
            for (shard_bytes, several) in [(20_000, true), (1, true), (1 << 30, false)] {
                let dir = tempfile::tempdir().unwrap();
                let config = base.config().to_json().to_string();
                std::fs::write(dir.path().join("config.json"), config).unwrap();
                save_weights(dir.path(), &base, shard_bytes).unwrap();
                assert_eq!(dir.path().join(WEIGHTS_INDEX_FILE).exists(), several);
                let again = BaseModel::load(dir.path()).unwrap();
                for (name, values) in base.tensors() {
                    let rounded: Vec<f32> = values
                        .iter()
                        .map(|value| bf16::from_f32(*value).to_f32())
                        .collect();
                    assert_eq!(again.tensor(name).unwrap(), rounded, "{name}");
                }
                for file in std::fs::read_dir(dir.path()).unwrap() {
                    let file = file.unwrap();
                    let bytes = file.metadata().unwrap().len();
                    // A header takes some hundred bytes a tensor.
                    assert!(
                        !several || bytes < 20_000 + 4_000,
                        "{:?}: {bytes}",
                        file.path()
                    );
                }
            }
        }
    }
}
