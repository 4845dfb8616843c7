//! Adapter folders exactly as Hugging Face PEFT writes and reads them.
//!
//! The configuration's keys are in `peft_config.rs`: what is not supported is refused by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::category::Category;
use crate::config::LlamaConfig;
use crate::factor::FactorValues;
use crate::identity::{Form, identity};
use crate::kernel::HalfFormat;
pub use crate::lora::LoadedAdapter;
use crate::lora::{LoraConfig, Module};
use crate::peft_config;
use crate::tensor_file::{self, StoredDtype, TensorFile, TensorFileError};

/// The adapter's configuration.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// The adapter's weights.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Why an adapter was refused.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The folder has no such file.
    #[error("{file} not found in {}: an adapter is a PEFT folder", dir.display())]
    Missing {
        /// The file's name.
        file: &'static str,
        /// The folder.
        dir: PathBuf,
    },
    /// A file can't be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The weights' file can't be used.
    #[error(transparent)]
    File(#[from] TensorFileError),
    /// A file is none, or too large.
    #[error("{file} {problem}")]
    Unusable {
        /// The file's name.
        file: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The configuration is not a JSON object.
    #[error("{ADAPTER_CONFIG_FILE} is not a JSON object")]
    Json(#[source] serde_json::Error),
    /// A key of the configuration has a value of the wrong kind.
    #[error("{field} in {ADAPTER_CONFIG_FILE} is {value}, must be {expected}")]
    Invalid {
        /// The key.
        field: &'static str,
        /// Its value.
        value: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// A key changes the maths in a way that is not computed here.
    #[error("{field} `{value}` in {ADAPTER_CONFIG_FILE} is not supported; supported: {supported}")]
    Unsupported {
        /// The key.
        field: String,
        /// Its value.
        value: String,
        /// What may stand there.
        supported: &'static str,
    },
    /// A target that is no linear layer of a transformer layer.
    #[error(
        "target module `{0}` is unknown; known: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    )]
    UnknownModule(String),
    /// A value out of range.
    #[error("{field} is {value}, must be {range}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        range: String,
    },
    /// A tensor that the configuration asks for.
    #[error("tensor {0} not found in {ADAPTER_WEIGHTS_FILE}")]
    MissingTensor(String),
    /// A tensor that belongs to no target module of this base model.
    #[error("tensor {0} in {ADAPTER_WEIGHTS_FILE} belongs to no target module of this base model")]
    UnexpectedTensor(String),
    /// A tensor that does not fit the base model.
    #[error(
        "tensor {tensor} in {ADAPTER_WEIGHTS_FILE} has shape {got:?}, this base model asks for {expected:?}"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// By base model and rank.
        expected: Vec<usize>,
        /// In the file.
        got: Vec<usize>,
    },
    /// A weight is NaN or infinite.
    #[error("tensor {tensor} in {ADAPTER_WEIGHTS_FILE} is not finite at element {element}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The first such element.
        element: usize,
    },
    /// Memory of a parameter can't be used.
    #[error("cannot use a parameter")]
    Tensor(#[from] candle_core::Error),
}

/// The longest configuration that is read: hundreds of times any real one.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

impl AdapterError {
    /// What the failure asks of the caller.
    pub fn category(&self) -> Category {
        match self {
            Self::Io { source, .. } => Category::of_io(source),
            Self::File(error) => error.category(),
            Self::Tensor(_) => Category::Bug,
            Self::Missing { .. }
            | Self::Unusable { .. }
            | Self::Json(_)
            | Self::Invalid { .. }
            | Self::Unsupported { .. }
            | Self::UnknownModule(_)
            | Self::OutOfRange { .. }
            | Self::MissingTensor(_)
            | Self::UnexpectedTensor(_)
            | Self::Shape { .. }
            | Self::NotFinite { .. } => Category::Invalid,
        }
    }
}

/// One tensor of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterTensor {
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Row-major values.
    pub data: Vec<f32>,
}

/// What the header of an adapter says, read without its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterHeader {
    /// Rank, scaling and modules.
    pub config: LoraConfig,
    /// The base model that the adapter names; kept for people, never trusted.
    pub base_model_name_or_path: String,
    /// Every tensor's shape by name.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Bytes of the weights' file.
    pub bytes: u64,
    /// The tensors that are stored in bf16 or f16.
    halves: BTreeMap<String, HalfFormat>,
}

impl AdapterHeader {
    /// Reads `adapter_config.json` and the header of `adapter_model.safetensors`.
    ///
    /// # Errors
    /// A missing or unusable file, or a key that is not supported, by name.
    pub fn read(dir: &Path) -> Result<Self, AdapterError> {
        Ok(Self::open(dir)?.0)
    }

    /// The header, and the file that it is of.
    pub(crate) fn open(dir: &Path) -> Result<(Self, TensorFile), AdapterError> {
        let config_path = dir.join(ADAPTER_CONFIG_FILE);
        let (config, base_model_name_or_path) = peft_config::parse(&read_config(&config_path)?)?;
        let path = dir.join(ADAPTER_WEIGHTS_FILE);
        let bytes = std::fs::metadata(&path)
            .map_err(|source| access(ADAPTER_WEIGHTS_FILE, &path, source))?
            .len();
        let file = TensorFile::open(&path)?;
        file.check_dtypes()?;
        let shapes = file
            .entries()
            .iter()
            .map(|(name, entry)| (name.clone(), entry.shape.clone()))
            .collect();
        let halves = file
            .entries()
            .iter()
            .filter_map(|(name, entry)| Some((name.clone(), entry.half_format()?)))
            .collect();
        let header = Self {
            config,
            base_model_name_or_path,
            shapes,
            bytes,
            halves,
        };
        Ok((header, file))
    }

    /// Checks rank, modules and shapes against a base model.
    ///
    /// # Errors
    /// The first field or tensor that does not fit, by name.
    pub fn verify_shapes(&self, config: &LlamaConfig) -> Result<(), AdapterError> {
        let shapes = self
            .shapes
            .iter()
            .map(|(name, shape)| (name.as_str(), shape.as_slice()));
        verify_shapes(&self.config, config, &shapes.collect())
    }

    /// Bytes that the adapter takes in memory at most: those of a file in bf16 or f16 half of those of one in f32.
    ///
    /// # Errors
    /// The configuration does not fit the model.
    pub fn packed_bytes(&self, config: &LlamaConfig) -> Result<usize, AdapterError> {
        let plan = self.config.plan(config)?;
        Ok(plan.packed_bytes(config, &|name| self.halves.get(name).copied()))
    }

    /// The modules that it has factors of, in the order of [`Module::ALL`].
    pub fn modules(&self) -> Vec<Module> {
        modules(self.shapes.keys().map(String::as_str))
    }

    /// The largest rank of its factors.
    pub fn rank(&self) -> usize {
        let factors = self.shapes.iter();
        factors
            .filter(|(name, _)| name.ends_with(".lora_A.weight"))
            .filter_map(|(_, shape)| shape.first().copied())
            .max()
            .unwrap_or_default()
    }
}

/// The modules that tensors are factors of.
pub(crate) fn modules<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Module> {
    let modules: BTreeSet<Module> = names
        .filter_map(Module::of_lora_name)
        .map(|(_, module)| module)
        .collect();
    modules.into_iter().collect()
}

/// The configuration's bytes. A pipe would never end, and a device neither.
fn read_config(path: &Path) -> Result<Vec<u8>, AdapterError> {
    let failed = |source| access(ADAPTER_CONFIG_FILE, path, source);
    let unusable = |problem: String| AdapterError::Unusable {
        file: ADAPTER_CONFIG_FILE,
        problem,
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(unusable("is not a regular file".to_owned()));
    }
    if metadata.len() > MAX_CONFIG_BYTES {
        return Err(unusable(format!(
            "has {} bytes, the limit is {MAX_CONFIG_BYTES}",
            metadata.len()
        )));
    }
    std::fs::read(path).map_err(failed)
}

fn access(file: &'static str, path: &Path, source: std::io::Error) -> AdapterError {
    if source.kind() == std::io::ErrorKind::NotFound {
        let dir = path.parent().unwrap_or(path).to_path_buf();
        return AdapterError::Missing { file, dir };
    }
    AdapterError::Io {
        path: path.to_path_buf(),
        source,
    }
}

/// A missing tensor is named before an unexpected one, both in name order.
fn verify_shapes(
    lora: &LoraConfig,
    config: &LlamaConfig,
    shapes: &BTreeMap<&str, &[usize]>,
) -> Result<(), AdapterError> {
    let expected = lora.plan(config)?.tensor_shapes(config);
    for (name, expected) in &expected {
        match shapes.get(name.as_str()) {
            None => return Err(AdapterError::MissingTensor(name.clone())),
            Some(got) if *got != expected => {
                return Err(AdapterError::Shape {
                    tensor: name.clone(),
                    expected: expected.to_vec(),
                    got: got.to_vec(),
                });
            }
            Some(_) => {}
        }
    }
    match shapes.keys().find(|name| !expected.contains_key(**name)) {
        Some(name) => Err(AdapterError::UnexpectedTensor((*name).to_owned())),
        None => Ok(()),
    }
}

/// An adapter in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Rank, scaling and modules.
    pub config: LoraConfig,
    /// What `adapter_config.json` names as base model; no part of the digest.
    pub base_model_name_or_path: String,
    /// The factors by PEFT name.
    pub tensors: BTreeMap<String, AdapterTensor>,
}

impl Adapter {
    /// Reads a whole adapter folder. Shapes and values are checked by [`Self::verify`].
    ///
    /// # Errors
    /// A missing or unusable file, or a key that is not supported, by name.
    pub fn load(dir: &Path) -> Result<Self, AdapterError> {
        let (header, file) = AdapterHeader::open(dir)?;
        let mut tensors = BTreeMap::new();
        for (name, shape) in &header.shapes {
            let shape: [usize; 2] = shape
                .as_slice()
                .try_into()
                .map_err(|_| AdapterError::UnexpectedTensor(name.clone()))?;
            let data = file.read_f32(name)?.unwrap_or_default();
            tensors.insert(name.clone(), AdapterTensor { shape, data });
        }
        Ok(Self {
            config: header.config,
            base_model_name_or_path: header.base_model_name_or_path,
            tensors,
        })
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` (f32).
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn save(&self, dir: &Path) -> Result<(), AdapterError> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            |source| AdapterError::Io { path, source }
        };
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let path = dir.join(ADAPTER_CONFIG_FILE);
        std::fs::write(&path, format!("{:#}\n", self.config_json())).map_err(io(&path))?;
        let tensors = self.tensors.iter().map(|(name, tensor)| {
            (
                name.as_str(),
                tensor.shape.as_slice(),
                tensor.data.as_slice(),
            )
        });
        tensor_file::write(&dir.join(ADAPTER_WEIGHTS_FILE), StoredDtype::F32, tensors)?;
        Ok(())
    }

    /// `adapter_config.json` with the keys that PEFT and vLLM read.
    pub fn config_json(&self) -> Value {
        peft_config::to_json(&self.config, &self.base_model_name_or_path)
    }

    /// The modules that it has factors of, in the order of [`Module::ALL`].
    pub fn modules(&self) -> Vec<Module> {
        modules(self.tensors.keys().map(String::as_str))
    }

    /// The largest rank of its factors.
    pub fn rank(&self) -> usize {
        let factors = self.tensors.iter();
        factors
            .filter(|(name, _)| name.ends_with(".lora_A.weight"))
            .filter_map(|(_, tensor)| tensor.shape.first().copied())
            .max()
            .unwrap_or_default()
    }

    /// Checks everything that a forward pass relies on: rank, modules, shapes, finite values.
    ///
    /// # Errors
    /// The first field or tensor that does not fit, by name.
    pub fn verify(&self, config: &LlamaConfig) -> Result<(), AdapterError> {
        let shapes = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()));
        verify_shapes(&self.config, config, &shapes.collect())?;
        self.verify_finite()
    }

    /// Checks that every value is a number.
    ///
    /// # Errors
    /// [`AdapterError::NotFinite`] of the first tensor with one that is not.
    pub fn verify_finite(&self) -> Result<(), AdapterError> {
        for (name, tensor) in &self.tensors {
            if let Some(element) = tensor.data.iter().position(|value| !value.is_finite()) {
                return Err(AdapterError::NotFinite {
                    tensor: name.clone(),
                    element,
                });
            }
        }
        Ok(())
    }

    /// The content's identity: `sha256:` over the configuration keys that change the maths and the
    /// tensors (name, dtype, shape, bytes) in name order. Dropout, base name, paths and times are
    /// no part of it. Values count as f32, so that a bf16 file and its f32 copy are one adapter.
    pub fn digest(&self) -> String {
        let tensors = self.tensors.iter().map(|(name, tensor)| {
            let values = FactorValues::Single(&tensor.data);
            (name.as_str(), tensor.shape, values)
        });
        identity(&self.config, tensors, Form::Values)
    }
}

/// The digest of an adapter folder.
///
/// # Errors
/// As [`Adapter::load`].
pub fn adapter_digest(dir: &Path) -> Result<String, AdapterError> {
    Ok(Adapter::load(dir)?.digest())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{TinyShape, random_adapter};
    use crate::lora::LoraParams;
    use crate::targets::{Names, TargetModules, Targets};
    use serde_json::json;

    fn lora() -> LoraConfig {
        LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.05,
            targets: Targets::of(&[Module::QProj, Module::DownProj]),
            use_rslora: false,
        }
    }

    fn saved() -> (tempfile::TempDir, Adapter) {
        let dir = tempfile::tempdir().unwrap();
        let adapter = random_adapter(&TinyShape::default().config(), &lora(), 1);
        adapter.save(dir.path()).unwrap();
        (dir, adapter)
    }

    fn with_key(field: &str, value: Value) -> String {
        let (dir, adapter) = saved();
        let mut config = adapter.config_json();
        config[field] = value;
        std::fs::write(dir.path().join(ADAPTER_CONFIG_FILE), config.to_string()).unwrap();
        Adapter::load(dir.path()).unwrap_err().to_string()
    }

    #[test]
    fn a_folder_reads_back_equal() {
        let (dir, adapter) = saved();
        let again = Adapter::load(dir.path()).unwrap();
        assert_eq!(again, adapter);
        assert_eq!(adapter_digest(dir.path()).unwrap(), adapter.digest());
        let header = AdapterHeader::read(dir.path()).unwrap();
        assert_eq!(header.config, adapter.config);
        let config = TinyShape::default().config();
        header.verify_shapes(&config).unwrap();
        let name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight";
        assert_eq!(header.shapes[name], [4, config.hidden_size]);
        assert_eq!(header.shapes.len(), 2 * 2 * config.num_hidden_layers);
        let params = LoraParams::from_adapter(&adapter, &config).unwrap();
        assert_eq!(params.to_adapter("tiny").unwrap(), adapter);
    }

    #[test]
    fn the_digest_follows_the_maths_alone() {
        let (_, adapter) = saved();
        let mut other = adapter.clone();
        other.base_model_name_or_path = "elsewhere".to_owned();
        other.config.dropout = 0.5;
        assert_eq!(other.digest(), adapter.digest());
        other.config.alpha = 9.0;
        assert_ne!(other.digest(), adapter.digest());
        let mut other = adapter.clone();
        other.tensors.values_mut().next().unwrap().data[0] += 1.0;
        assert_ne!(other.digest(), adapter.digest());
    }

    /// Made with another program by the same rule: an upgrade must not rename what is published.
    #[test]
    fn a_plain_adapters_digest_stays_what_it_was() {
        let tensor = |shape, data: &[f32]| AdapterTensor {
            shape,
            data: data.to_vec(),
        };
        let name = |factor| Module::QProj.lora_name(0, factor);
        let mut adapter = Adapter {
            config: LoraConfig {
                rank: 1,
                alpha: 2.0,
                dropout: 0.0,
                targets: Targets::of(&[Module::QProj]),
                use_rslora: false,
            },
            base_model_name_or_path: String::new(),
            tensors: BTreeMap::from([
                (name("lora_A"), tensor([1, 2], &[0.5, -1.0])),
                (name("lora_B"), tensor([2, 1], &[0.25, 2.0])),
            ]),
        };
        assert_eq!(adapter.digest(), PLAIN);
        // Another way to say the same is the same adapter; another alpha is not.
        adapter.config.targets.modules = TargetModules::AllLinear;
        assert_eq!(adapter.digest(), PLAIN);
        adapter.config.targets.alpha_pattern = vec![("q_proj".to_owned(), 4.0)];
        assert_ne!(adapter.digest(), PLAIN);
    }

    const PLAIN: &str = "sha256:9e5f0c17207192b8d65838d21bb1974aea9d0025cf7fa8080621e76c3542a630";

    #[test]
    fn patterned_adapters_read_back_and_fit_the_model() {
        let config = TinyShape::default().config();
        let mut lora = lora();
        lora.use_rslora = true;
        lora.targets.modules = TargetModules::Named(Names::List(vec!["mlp.up_proj".to_owned()]));
        lora.targets.layers = Some(BTreeSet::from([1]));
        lora.targets.rank_pattern = vec![("up_proj".to_owned(), 2)];
        lora.targets.alpha_pattern = vec![("mlp.up_proj".to_owned(), 3.0)];
        let adapter = random_adapter(&config, &lora, 1);
        let dir = tempfile::tempdir().unwrap();
        adapter.save(dir.path()).unwrap();
        assert_eq!(Adapter::load(dir.path()).unwrap(), adapter);
        adapter.verify(&config).unwrap();
        let header = AdapterHeader::read(dir.path()).unwrap();
        assert_eq!((header.modules(), header.rank()), (vec![Module::UpProj], 2));
        assert_eq!(header.shapes.len(), 2, "one layer");
    }

    #[test]
    fn keys_that_change_the_maths_are_refused_by_name() {
        for (field, value) in [
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("modules_to_save", json!(["lm_head"])),
            ("lora_bias", json!(true)),
            ("loftq_config", json!({"loftq_bits": 4})),
            ("trainable_token_indices", json!([1])),
            ("target_parameters", json!(["mlp.weight"])),
            ("qalora_group_size", json!(32)),
            ("ensure_weight_tying", json!(true)),
            ("a_key_of_tomorrow", json!(1)),
            ("layer_replication", json!([[0, 1]])),
            ("init_lora_weights", json!("pissa")),
            ("fan_in_fan_out", json!(true)),
            ("peft_type", json!("IA3")),
        ] {
            let text = with_key(field, value);
            assert!(
                text.starts_with(field) && text.contains("not supported"),
                "{text}"
            );
        }
        for value in ["pissa", "pissa_niter_16", "olora", "loftq", "corda", "eva"] {
            let text = with_key("init_lora_weights", json!(value));
            assert!(text.starts_with("init_lora_weights `"), "{text}");
        }
        assert!(with_key("r", json!("four")).starts_with("r in adapter_config.json"));
    }

    #[test]
    fn every_mismatch_is_named() {
        let config = TinyShape::default().config();
        let (dir, adapter) = saved();
        let refuse = |change: &dyn Fn(&mut Adapter)| {
            let mut changed = adapter.clone();
            change(&mut changed);
            LoadedAdapter::new(&changed, &config)
                .unwrap_err()
                .to_string()
        };
        assert!(refuse(&|a| a.config.rank = 0).starts_with("r is 0, must be from 1"));
        assert!(
            refuse(&|a| a.config.rank = 9999)
                .starts_with("r is 9999, must be from 1 to the hidden")
        );
        assert!(
            refuse(&|a| {
                a.config.targets = Targets::of(&[Module::QProj, Module::KProj, Module::DownProj]);
            })
            .contains("k_proj.lora_A.weight not found")
        );
        assert!(
            refuse(&|a| a.config.targets = Targets::of(&[Module::QProj]))
                .contains("belongs to no target module")
        );
        assert!(
            refuse(&|a| a.config.targets.layers = Some(BTreeSet::from([1])))
                .contains("layers.0.mlp.down_proj.lora_A.weight in")
        );
        assert!(
            refuse(&|a| {
                let lm_head = Names::List(vec!["q_proj".to_owned(), "lm_head".to_owned()]);
                a.config.targets.modules = TargetModules::Named(lm_head);
            })
            .contains("`lm_head` is unknown")
        );
        assert!(refuse(&|a| a.config.rank = 5).contains("has shape [4, "));
        assert!(
            refuse(&|a| a.tensors.values_mut().next().unwrap().data[7] = f32::NAN)
                .contains("is not finite at element 7")
        );
        let mut other = config.clone();
        other.hidden_size *= 2;
        assert!(
            adapter
                .verify(&other)
                .unwrap_err()
                .to_string()
                .contains("this base model asks for")
        );
        std::fs::remove_file(dir.path().join(ADAPTER_WEIGHTS_FILE)).unwrap();
        let text = Adapter::load(dir.path()).unwrap_err().to_string();
        assert!(
            text.starts_with("adapter_model.safetensors not found in "),
            "{text}"
        );
    }
}
