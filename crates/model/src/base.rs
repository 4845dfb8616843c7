//! A base model's folder: configuration and weights in, weights out, content digest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::base_files::{BaseFiles, is_gguf};
use crate::category::Category;
use crate::config::{CONFIG_FILE, ConfigError, GENERATION_CONFIG_FILE, LlamaConfig};
use crate::digest::{FieldHasher, hash_file};
use crate::gguf::GgufError;
use crate::lora::Module;
use crate::random::Stream;
use crate::tensor_file::{self, StoredDtype, TensorFileError};

/// The weights of a model in one file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Which shard holds which tensor, where the weights are in several files.
pub const WEIGHTS_INDEX_FILE: &str = "model.safetensors.index.json";

/// The token embedding, `[vocab_size, hidden_size]`.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The norm before the output projection, `[hidden_size]`.
pub const FINAL_NORM: &str = "model.norm.weight";
/// The output projection, `[vocab_size, hidden_size]`; absent where it is the embedding.
pub const OUTPUT: &str = "lm_head.weight";

/// A layer's norm before attention, `[hidden_size]`; within the layer, as the next ones.
pub const INPUT_NORM: &str = "input_layernorm.weight";
/// A layer's norm of the feed-forward layer's input, `[hidden_size]`, or where outputs have norms, of
/// attention's output.
pub const POST_NORM: &str = "post_attention_layernorm.weight";
/// A layer's norm before the feed-forward layer, `[hidden_size]`, where outputs have norms.
pub const PRE_FEED_FORWARD_NORM: &str = "pre_feedforward_layernorm.weight";
/// A layer's norm of the feed-forward layer's output, `[hidden_size]`, where outputs have norms.
pub const POST_FEED_FORWARD_NORM: &str = "post_feedforward_layernorm.weight";
/// The norm of every head's query, `[head_dim]`, where the family has one.
pub const QUERY_NORM: &str = "self_attn.q_norm.weight";
/// The norm of every head's key, `[head_dim]`, where the family has one.
pub const KEY_NORM: &str = "self_attn.k_norm.weight";

/// Why a base model can't be loaded or written.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The configuration is missing or not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A safetensors file can't be used.
    #[error(transparent)]
    File(#[from] TensorFileError),
    /// A GGUF file can't be used.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A weight can't be quantised.
    #[error("tensor {tensor} can't be quantised")]
    Quantize {
        /// The tensor.
        tensor: String,
        /// The cause.
        source: candle_core::Error,
    },
    /// The accelerator does not take a weight.
    #[error("the accelerator does not hold tensor {tensor}")]
    Device {
        /// The tensor.
        tensor: String,
        /// The cause.
        source: candle_core::Error,
    },
    /// Which of several files is the model nobody can say.
    #[error("{} has {count} GGUF files, must have one", dir.display())]
    SeveralGguf {
        /// The folder.
        dir: PathBuf,
        /// How many there are.
        count: usize,
    },
    /// A file of the folder can't be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The folder has no weights.
    #[error("{WEIGHTS_FILE} (or {WEIGHTS_INDEX_FILE}, or a GGUF file) not found in {}", .0.display())]
    NoWeights(PathBuf),
    /// The list of shards can't be used.
    #[error("{WEIGHTS_INDEX_FILE} is not usable: {0}")]
    Index(String),
    /// A tensor that the configuration asks for is in no file.
    #[error("tensor {0} not found in the model's files")]
    MissingTensor(String),
    /// A tensor that changes the maths and that this architecture does not have.
    #[error("tensor {0} is not part of the architecture that config.json describes")]
    UnexpectedTensor(String),
    /// A tensor does not fit the configuration.
    #[error("tensor {tensor} has shape {got:?}, config.json asks for {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// By the configuration.
        expected: Vec<usize>,
        /// In the file.
        got: Vec<usize>,
    },
}

impl BaseError {
    /// What the failure asks of the caller.
    pub fn category(&self) -> Category {
        match self {
            Self::Config(error) => error.category(),
            Self::File(error) => error.category(),
            Self::Gguf(error) => error.category(),
            Self::Quantize { .. } => Category::Bug,
            Self::Io { source, .. } => Category::of_io(source),
            // The device: too little memory, almost always; another profile helps, another try does not.
            Self::Device { .. }
            | Self::NoWeights(_)
            | Self::SeveralGguf { .. }
            | Self::Index(_)
            | Self::MissingTensor(_)
            | Self::UnexpectedTensor(_)
            | Self::Shape { .. } => Category::Invalid,
        }
    }
}

/// The names of a layer's norms of `[hidden_size]`, by what they norm.
#[derive(Debug, Clone, Copy)]
pub struct NormNames {
    /// Attention's input.
    pub attention: &'static str,
    /// Attention's output, where that has one.
    pub attention_output: Option<&'static str>,
    /// The feed-forward layer's input.
    pub feed_forward: &'static str,
    /// The feed-forward layer's output, where that has one.
    pub feed_forward_output: Option<&'static str>,
}

impl NormNames {
    /// Those of a family.
    pub fn of(config: &LlamaConfig) -> Self {
        let has_outputs = config.has_output_norms();
        Self {
            attention: INPUT_NORM,
            attention_output: has_outputs.then_some(POST_NORM),
            feed_forward: if has_outputs {
                PRE_FEED_FORWARD_NORM
            } else {
                POST_NORM
            },
            feed_forward_output: has_outputs.then_some(POST_FEED_FORWARD_NORM),
        }
    }

    /// All that there are, in the order in which a layer uses them.
    pub fn all(self) -> impl Iterator<Item = &'static str> {
        let places = [
            Some(self.attention),
            self.attention_output,
            Some(self.feed_forward),
            self.feed_forward_output,
        ];
        places.into_iter().flatten()
    }
}

/// The names and shapes of one layer's tensors.
pub fn layer_tensors(config: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    let norms = NormNames::of(config).all();
    let mut tensors: Vec<(String, Vec<usize>)> = norms
        .map(|name| (name.to_owned(), vec![config.hidden_size]))
        .collect();
    if config.has_query_key_norm() {
        tensors.extend([QUERY_NORM, KEY_NORM].map(|name| (name.to_owned(), vec![config.head_dim])));
    }
    for module in Module::ALL {
        let (outputs, inputs) = module.shape(config);
        tensors.push((module.weight_name(), vec![outputs, inputs]));
        if config.has_bias(module) {
            tensors.push((module.bias_name(), vec![outputs]));
        }
    }
    tensors
}

/// The full name of a layer's tensor.
pub fn layer_tensor_name(layer: usize, tensor: &str) -> String {
    format!("model.layers.{layer}.{tensor}")
}

/// Every tensor of a model with its shape.
pub fn tensor_shapes(config: &LlamaConfig) -> BTreeMap<String, Vec<usize>> {
    let embedding = vec![config.vocab_size, config.hidden_size];
    let mut shapes = BTreeMap::from([
        (EMBEDDING.to_owned(), embedding.clone()),
        (FINAL_NORM.to_owned(), vec![config.hidden_size]),
    ]);
    if !config.tie_word_embeddings {
        shapes.insert(OUTPUT.to_owned(), embedding);
    }
    for layer in 0..config.num_hidden_layers {
        for (tensor, shape) in layer_tensors(config) {
            shapes.insert(layer_tensor_name(layer, &tensor), shape);
        }
    }
    shapes
}

/// A base model in host memory: the configuration and every weight as f32 by its Hugging Face name.
#[derive(Debug, Clone)]
pub struct BaseModel {
    config: LlamaConfig,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl BaseModel {
    /// Loads a Hugging Face folder: one `model.safetensors` or shards with an index, in f32, f16 or
    /// bf16, or a GGUF file in their place.
    ///
    /// # Errors
    /// A missing file, an unsupported configuration, or a tensor that is missing, unexpected or of
    /// another shape, each by name.
    pub fn load(dir: &Path) -> Result<Self, BaseError> {
        let mut files = BaseFiles::open(dir)?;
        let names: Vec<String> = files.shapes().keys().cloned().collect();
        let mut tensors = BTreeMap::new();
        for name in names {
            let values = files.read_f32(&name)?;
            tensors.insert(name, values);
        }
        Ok(Self {
            config: files.config().clone(),
            tensors,
        })
    }

    /// A model of random weights: normal with standard deviation 0.02, norms that change nothing, biases
    /// zero, as transformers initialises it. The same seed gives the same bits.
    pub fn random(config: LlamaConfig, seed: u64) -> Self {
        let neutral_norm = if config.has_norms_above_one() {
            0.0
        } else {
            1.0
        };
        let tensors = tensor_shapes(&config)
            .into_iter()
            .enumerate()
            .map(|(index, (name, shape))| {
                let elements: usize = shape.iter().product();
                let values = if name.rsplit('.').next() == Some("bias") {
                    vec![0.0; elements]
                } else if shape.len() == 1 {
                    vec![neutral_norm; elements]
                } else {
                    let stream = Stream::new(seed, &[index as u64]);
                    (0..elements as u64)
                        .map(|i| (0.02 * stream.normal(i)) as f32)
                        .collect()
                };
                (name, values)
            })
            .collect();
        Self { config, tensors }
    }

    /// A model of the given tensors.
    ///
    /// # Errors
    /// A tensor that is missing, unexpected or of another number of elements.
    pub fn from_tensors(
        config: LlamaConfig,
        tensors: BTreeMap<String, Vec<f32>>,
    ) -> Result<Self, BaseError> {
        let shapes = tensor_shapes(&config);
        if let Some(name) = tensors.keys().find(|name| !shapes.contains_key(*name)) {
            return Err(BaseError::UnexpectedTensor(name.clone()));
        }
        for (name, expected) in shapes {
            match tensors.get(&name) {
                None => return Err(BaseError::MissingTensor(name)),
                Some(values) if values.len() != expected.iter().product::<usize>() => {
                    return Err(BaseError::Shape {
                        tensor: name,
                        expected,
                        got: vec![values.len()],
                    });
                }
                Some(_) => {}
            }
        }
        Ok(Self { config, tensors })
    }

    /// The shape and constants.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The tensors in name order.
    pub fn tensors(&self) -> &BTreeMap<String, Vec<f32>> {
        &self.tensors
    }

    /// A tensor of this architecture by name.
    ///
    /// # Errors
    /// The name is not one of [`tensor_shapes`].
    pub fn tensor(&self, name: &str) -> Result<&[f32], BaseError> {
        self.tensors
            .get(name)
            .map(Vec::as_slice)
            .ok_or_else(|| BaseError::MissingTensor(name.to_owned()))
    }
}

/// Checks a folder as [`BaseModel::load`] does, by the headers of its files only: fast for a model
/// of any size.
///
/// # Errors
/// As [`BaseModel::load`].
pub fn check_base(dir: &Path) -> Result<LlamaConfig, BaseError> {
    Ok(BaseFiles::open(dir)?.config().clone())
}

/// Writes `config.json`, `generation_config.json` and the weights in bf16. The tokenizer's files
/// are the caller's.
///
/// # Errors
/// A file that can't be written.
pub fn save_base(dir: &Path, base: &BaseModel) -> Result<(), BaseError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        |source| BaseError::Io { path, source }
    };
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    for (file, json) in [
        (CONFIG_FILE, base.config.to_json()),
        (GENERATION_CONFIG_FILE, base.config.generation_json()),
    ] {
        let path = dir.join(file);
        std::fs::write(&path, format!("{json:#}\n")).map_err(io(&path))?;
    }
    let shapes = tensor_shapes(&base.config);
    let tensors = base.tensors.iter().filter_map(|(name, values)| {
        let shape = shapes.get(name)?;
        Some((name.as_str(), shape.as_slice(), values.as_slice()))
    });
    tensor_file::write(&dir.join(WEIGHTS_FILE), StoredDtype::Bf16, tensors)?;
    Ok(())
}

/// The digest of a base model's source files: `sha256:` over name, length and SHA-256 of
/// `config.json`, `generation_config.json`, the tokenizer's files, the chat template and every
/// `*.safetensors`, or where there is none every `*.gguf`, in name order. Other files of the folder
/// do not enter it. How a run quantises the model does not either: that stands beside it.
///
/// # Errors
/// The folder or one of these files can't be read, or `config.json` is missing.
pub fn base_digest(dir: &Path) -> Result<String, BaseError> {
    let io = |path: &Path, source| BaseError::Io {
        path: path.to_path_buf(),
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|source| io(dir, source))? {
        let entry = entry.map_err(|source| io(dir, source))?;
        if let Ok(name) = entry.file_name().into_string()
            && is_source_file(&name)
        {
            names.push(name);
        }
    }
    if names.iter().any(|name| name.ends_with(".safetensors")) {
        names.retain(|name| !is_gguf(Path::new(name)));
    }
    names.sort_unstable();
    if !names.iter().any(|name| name == CONFIG_FILE) {
        return Err(BaseError::Config(ConfigError::Missing {
            file: CONFIG_FILE,
            dir: dir.to_path_buf(),
        }));
    }
    let mut hasher = FieldHasher::default();
    for name in names {
        let path = dir.join(&name);
        let (hash, length) = hash_file(&path).map_err(|source| io(&path, source))?;
        hasher
            .field(name.as_bytes())
            .field(&length.to_le_bytes())
            .field(&hash);
    }
    Ok(hasher.finish())
}

fn is_source_file(name: &str) -> bool {
    const NAMES: [&str; 7] = [
        CONFIG_FILE,
        GENERATION_CONFIG_FILE,
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        WEIGHTS_INDEX_FILE,
    ];
    NAMES.contains(&name)
        || Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "safetensors" || extension == "gguf")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Family;
    use crate::fixture::TinyShape;
    use crate::transformer::{Held, Llama, PackedBatch};

    #[test]
    fn saved_weights_load_again_rounded_to_bf16() {
        let dir = tempfile::tempdir().unwrap();
        let base = BaseModel::random(TinyShape::default().config(), 3);
        save_base(dir.path(), &base).unwrap();
        let again = BaseModel::load(dir.path()).unwrap();
        assert_eq!(again.config(), base.config());
        assert_eq!(&check_base(dir.path()).unwrap(), base.config());
        for (name, values) in base.tensors() {
            let rounded: Vec<f32> = values
                .iter()
                .map(|v| half::bf16::from_f32(*v).to_f32())
                .collect();
            assert_eq!(again.tensor(name).unwrap(), rounded, "{name}");
        }
        let spread: f32 = base
            .tensor(EMBEDDING)
            .unwrap()
            .iter()
            .map(|v| v * v)
            .sum::<f32>();
        let deviation = (spread / base.tensor(EMBEDDING).unwrap().len() as f32).sqrt();
        assert!((deviation - 0.02).abs() < 0.001, "{deviation}");
    }

    /// Writes the model's tensors in turn to two shards; `listed` says which shard the index names.
    fn write_shards(dir: &Path, base: &BaseModel, listed: impl Fn(&str, usize) -> String) {
        let shapes = tensor_shapes(base.config());
        let mut map = serde_json::Map::new();
        for (shard, keep) in [("a.safetensors", 0), ("b.safetensors", 1)] {
            let part = base
                .tensors()
                .iter()
                .enumerate()
                .filter(|(i, _)| i % 2 == keep);
            let tensors = part.map(|(i, (name, values))| {
                map.insert(name.clone(), listed(shard, i).into());
                (name.as_str(), shapes[name].as_slice(), values.as_slice())
            });
            tensor_file::write(&dir.join(shard), StoredDtype::Bf16, tensors).unwrap();
        }
        let index = serde_json::json!({ "weight_map": map });
        std::fs::write(dir.join(WEIGHTS_INDEX_FILE), index.to_string()).unwrap();
    }

    #[test]
    fn shards_are_found_through_the_index() {
        let dir = tempfile::tempdir().unwrap();
        let base = BaseModel::random(TinyShape::default().config(), 3);
        save_base(dir.path(), &base).unwrap();
        let whole = BaseModel::load(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
        write_shards(dir.path(), &base, |shard, _| shard.to_owned());
        assert_eq!(
            BaseModel::load(dir.path()).unwrap().tensors(),
            whole.tensors()
        );
    }

    #[test]
    fn an_index_that_does_not_say_what_the_shards_hold_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = BaseModel::random(TinyShape::default().config(), 3);
        save_base(dir.path(), &base).unwrap();
        let weights = dir.path().join(WEIGHTS_FILE);
        std::fs::copy(&weights, dir.path().join("c.safetensors")).unwrap();
        std::fs::remove_file(weights).unwrap();
        write_shards(dir.path(), &base, |shard, i| match i {
            0 => "b.safetensors".to_owned(),
            _ => shard.to_owned(),
        });
        let text = BaseModel::load(dir.path()).unwrap_err().to_string();
        assert!(text.contains("is not in b.safetensors"), "{text}");
        write_shards(dir.path(), &base, |shard, i| match i {
            0 => "c.safetensors".to_owned(),
            _ => shard.to_owned(),
        });
        let text = check_base(dir.path()).unwrap_err().to_string();
        assert!(text.contains("two shards hold tensor"), "{text}");
    }

    #[test]
    fn half_precision_weights_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let base = BaseModel::random(TinyShape::default().config(), 3);
        save_base(dir.path(), &base).unwrap();
        let shapes = tensor_shapes(base.config());
        let bytes: BTreeMap<&String, Vec<u8>> = base
            .tensors()
            .iter()
            .map(|(name, values)| {
                let halves = values.iter().map(|v| half::f16::from_f32(*v).to_le_bytes());
                (name, halves.flatten().collect())
            })
            .collect();
        let views = bytes.iter().map(|(name, bytes)| {
            let shape = shapes[*name].clone();
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape, bytes);
            (name.as_str(), view.unwrap())
        });
        safetensors::serialize_to_file(views, None, &dir.path().join(WEIGHTS_FILE)).unwrap();
        let again = BaseModel::load(dir.path()).unwrap();
        for (name, values) in base.tensors() {
            let rounded: Vec<f32> = values
                .iter()
                .map(|v| half::f16::from_f32(*v).to_f32())
                .collect();
            assert_eq!(again.tensor(name).unwrap(), rounded, "{name}");
        }
        let plain = Llama::new(&again);
        let stored = Llama::load(dir.path(), Held::AsStored).unwrap();
        assert!(stored.bytes() * 10 < plain.bytes() * 6);
        let mut batch = PackedBatch::new();
        batch.push(&[3, 41, 5, 9, 2, 6], &[true; 6]);
        let expected = plain.score(&batch, None).unwrap();
        assert_eq!(stored.score(&batch, None).unwrap(), expected);
        // What is asked for in bf16 is rounded.
        let rounded = Llama::load(dir.path(), Held::Bf16).unwrap();
        assert_ne!(rounded.score(&batch, None).unwrap(), expected);
    }

    #[test]
    fn every_familys_tensors_are_saved_and_found() {
        for family in Family::ALL {
            let dir = tempfile::tempdir().unwrap();
            let config = TinyShape::default().family_config(family);
            let base = BaseModel::random(config.clone(), 3);
            save_base(dir.path(), &base).unwrap();
            assert_eq!(BaseModel::load(dir.path()).unwrap().config(), &config);
            let names = base.tensors();
            let has = |name: &str| names.contains_key(&layer_tensor_name(1, name));
            let has_head_norms = matches!(family, Family::Qwen3 | Family::Gemma3);
            assert_eq!(has(QUERY_NORM), has_head_norms, "{family:?}");
            assert_eq!(has(PRE_FEED_FORWARD_NORM), family == Family::Gemma3);
            assert_eq!(has("self_attn.q_proj.bias"), family == Family::Qwen2);
            assert_eq!(
                config.parameters(),
                names.values().map(Vec::len).sum::<usize>()
            );
        }
    }

    #[test]
    fn errors_name_the_file_or_the_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let text = BaseModel::load(dir.path()).unwrap_err().to_string();
        assert!(text.starts_with("config.json not found in "), "{text}");
        assert!(
            base_digest(dir.path())
                .unwrap_err()
                .to_string()
                .starts_with("config.json not")
        );
        let mut config = TinyShape::default().config();
        save_base(dir.path(), &BaseModel::random(config.clone(), 3)).unwrap();
        config.intermediate_size += 1;
        std::fs::write(dir.path().join(CONFIG_FILE), config.to_json().to_string()).unwrap();
        let text = BaseModel::load(dir.path()).unwrap_err().to_string();
        assert!(
            text.contains("model.layers.0.mlp.down_proj.weight has shape"),
            "{text}"
        );
        assert_eq!(check_base(dir.path()).unwrap_err().to_string(), text);
        std::fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
        let text = BaseModel::load(dir.path()).unwrap_err().to_string();
        assert!(text.starts_with("model.safetensors (or"), "{text}");
    }

    #[test]
    fn what_the_volume_does_not_give_is_told_apart_from_what_is_missing_or_malformed() {
        use std::os::unix::fs::symlink;

        for file in [CONFIG_FILE, GENERATION_CONFIG_FILE, WEIGHTS_FILE] {
            let dir = tempfile::tempdir().unwrap();
            let base = BaseModel::random(TinyShape::default().config(), 3);
            save_base(dir.path(), &base).unwrap();
            let path = dir.path().join(file);
            std::fs::remove_file(&path).unwrap();
            let expect = |category: Category| {
                for error in [
                    BaseModel::load(dir.path()).map(drop).unwrap_err(),
                    check_base(dir.path()).unwrap_err(),
                    base_digest(dir.path()).unwrap_err(),
                ] {
                    assert_eq!(error.category(), category, "{error:?}");
                    assert!(error.to_string().contains(file), "{error}");
                }
            };
            // Nothing is mapped at address 0: reading it is an input/output error.
            symlink("/proc/self/mem", &path).unwrap();
            expect(Category::Transient);
            std::fs::remove_file(&path).unwrap();
            symlink(file, &path).unwrap();
            expect(Category::Invalid);
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
            expect(Category::Invalid);
            std::fs::remove_dir(&path).unwrap();
            std::fs::write(&path, b"{ \xff").unwrap();
            let error = BaseModel::load(dir.path()).unwrap_err();
            assert_eq!(error.category(), Category::Invalid, "{error:?}");
            assert!(error.to_string().contains(file), "{error}");
        }
        let error = base_digest(Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.category(), Category::Invalid, "{error:?}");
    }

    #[test]
    fn the_digest_covers_sources_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        save_base(
            dir.path(),
            &BaseModel::random(TinyShape::default().config(), 3),
        )
        .unwrap();
        let before = base_digest(dir.path()).unwrap();
        assert!(before.starts_with("sha256:") && before.len() == 71);
        std::fs::write(dir.path().join("README.md"), "words").unwrap();
        assert_eq!(base_digest(dir.path()).unwrap(), before);
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        assert_ne!(base_digest(dir.path()).unwrap(), before);
    }
}
