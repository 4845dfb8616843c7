//! Adapter folders exactly as Hugging Face PEFT writes and reads them.
//!
//! A configuration key that changes the maths and is not supported is refused by its name, unless
//! it has the value that switches it off.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::category::Category;
use crate::config::LlamaConfig;
use crate::digest::FieldHasher;
pub use crate::lora::LoadedAdapter;
use crate::lora::{LoraConfig, Module};
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
    /// A target module that a Llama layer does not have.
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

impl AdapterError {
    /// What the failure asks of the caller.
    pub fn category(&self) -> Category {
        match self {
            Self::Io { source, .. } => Category::of_io(source),
            Self::File(error) => error.category(),
            Self::Tensor(_) => Category::Bug,
            Self::Missing { .. }
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

/// A key, whether a value of it changes nothing, and how that value is called.
type NeutralKey = (&'static str, fn(&Value) -> bool, &'static str);

/// Keys that change the maths, with what they must be to change nothing.
const NEUTRAL_KEYS: [NeutralKey; 20] = [
    ("bias", |v| v == "none", "`none`"),
    ("use_dora", is_false, "`false`"),
    ("use_qalora", is_false, "`false`"),
    ("modules_to_save", is_empty, "none"),
    ("rank_pattern", is_empty, "none"),
    ("alpha_pattern", is_empty, "none"),
    ("layers_to_transform", is_empty, "none"),
    ("layers_pattern", is_empty, "none"),
    ("layer_replication", is_empty, "none"),
    ("exclude_modules", is_empty, "none"),
    ("target_parameters", is_empty, "none"),
    ("trainable_token_indices", is_empty, "none"),
    ("fan_in_fan_out", is_false, "`false`"),
    ("lora_bias", is_false, "`false`"),
    ("loftq_config", is_empty, "none"),
    ("eva_config", is_empty, "none"),
    ("corda_config", is_empty, "none"),
    ("arrow_config", is_empty, "none"),
    ("alora_invocation_tokens", is_empty, "none"),
    (
        "init_lora_weights",
        |v| v == true || v == "gaussian",
        "`true`, `gaussian`",
    ),
];

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty)
        || value.as_array().is_some_and(Vec::is_empty)
        || is_false(value)
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
}

impl AdapterHeader {
    /// Reads `adapter_config.json` and the header of `adapter_model.safetensors`.
    ///
    /// # Errors
    /// A missing or unusable file, or a key that is not supported, by name.
    pub fn read(dir: &Path) -> Result<Self, AdapterError> {
        Ok(Self::open(dir)?.0)
    }

    fn open(dir: &Path) -> Result<(Self, TensorFile), AdapterError> {
        let config_path = dir.join(ADAPTER_CONFIG_FILE);
        let text = std::fs::read_to_string(&config_path)
            .map_err(|source| access(ADAPTER_CONFIG_FILE, &config_path, source))?;
        let (config, base_model_name_or_path) = parse_config(&text)?;
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
        let header = Self {
            config,
            base_model_name_or_path,
            shapes,
            bytes,
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
    lora.validate(config)?;
    let expected = lora.tensor_shapes(config);
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
        let (header, mut file) = AdapterHeader::open(dir)?;
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
        let modules: Vec<&str> = self.config.modules().map(Module::name).collect();
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model_name_or_path,
            "inference_mode": true,
            "r": self.config.rank,
            "lora_alpha": number(self.config.alpha),
            "lora_dropout": self.config.dropout,
            "target_modules": modules,
            "use_rslora": self.config.use_rslora,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "modules_to_save": null,
            "use_dora": false,
            "rank_pattern": {},
            "alpha_pattern": {},
            "layers_to_transform": null,
            "layers_pattern": null,
            "revision": null,
        })
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
        let mut hasher = FieldHasher::default();
        let config = &self.config;
        let modules: Vec<&str> = config.modules().map(Module::name).collect();
        hasher
            .field(b"graftwork.adapter.v1")
            .field(&(config.rank as u64).to_le_bytes())
            .field(&config.alpha.to_le_bytes())
            .field(&[u8::from(config.use_rslora)])
            .field(modules.join(",").as_bytes());
        for (name, tensor) in &self.tensors {
            let shape: Vec<u8> = tensor
                .shape
                .iter()
                .flat_map(|size| (*size as u64).to_le_bytes())
                .collect();
            hasher
                .field(name.as_bytes())
                .field(b"F32")
                .field(&shape)
                .field(&tensor_file::f32_to_bytes(&tensor.data));
        }
        hasher.finish()
    }
}

/// The digest of an adapter folder.
///
/// # Errors
/// As [`Adapter::load`].
pub fn adapter_digest(dir: &Path) -> Result<String, AdapterError> {
    Ok(Adapter::load(dir)?.digest())
}

/// PEFT types `lora_alpha` as an integer; a whole number is written as one.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

fn parse_config(text: &str) -> Result<(LoraConfig, String), AdapterError> {
    let keys: Map<String, Value> = serde_json::from_str(text).map_err(AdapterError::Json)?;
    let get = |field: &str| keys.get(field).filter(|value| !value.is_null());
    let shown =
        |value: Option<&Value>| value.map_or_else(|| "missing".to_owned(), Value::to_string);
    let invalid = |field, value: Option<&Value>, expected| AdapterError::Invalid {
        field,
        value: shown(value),
        expected,
    };
    if get("peft_type").is_none_or(|value| value != "LORA") {
        return Err(AdapterError::Unsupported {
            field: "peft_type".to_owned(),
            value: shown(get("peft_type")),
            supported: "`LORA`",
        });
    }
    for (field, is_neutral, supported) in NEUTRAL_KEYS {
        if let Some(value) = get(field).filter(|value| !is_neutral(value)) {
            return Err(AdapterError::Unsupported {
                field: field.to_owned(),
                value: value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned),
                supported,
            });
        }
    }
    if let Some(value) = get("task_type").filter(|value| *value != "CAUSAL_LM") {
        return Err(invalid("task_type", Some(value), "`CAUSAL_LM`"));
    }
    let rank = get("r")
        .and_then(Value::as_u64)
        .and_then(|rank| usize::try_from(rank).ok());
    let alpha = get("lora_alpha").map_or(Some(8.0), Value::as_f64);
    let dropout = get("lora_dropout").map_or(Some(0.0), Value::as_f64);
    let rslora = get("use_rslora").map_or(Some(false), Value::as_bool);
    let base = get("base_model_name_or_path")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let config = LoraConfig {
        rank: rank.ok_or_else(|| invalid("r", get("r"), "a whole number"))?,
        alpha: alpha.ok_or_else(|| invalid("lora_alpha", get("lora_alpha"), "a number"))?,
        dropout: dropout.ok_or_else(|| invalid("lora_dropout", get("lora_dropout"), "a number"))?,
        target_modules: parse_modules(get("target_modules"))?,
        use_rslora: rslora
            .ok_or_else(|| invalid("use_rslora", get("use_rslora"), "true or false"))?,
    };
    Ok((config, base.to_owned()))
}

fn parse_modules(value: Option<&Value>) -> Result<Vec<Module>, AdapterError> {
    const EXPECTED: &str = "a list of module names or `all-linear`";
    let invalid = || AdapterError::Invalid {
        field: "target_modules",
        value: value.map_or_else(|| "missing".to_owned(), Value::to_string),
        expected: EXPECTED,
    };
    match value {
        Some(Value::String(all)) if all == "all-linear" => Ok(Module::ALL.to_vec()),
        Some(Value::Array(names)) => {
            let mut modules = Vec::new();
            for name in names {
                let name = name.as_str().ok_or_else(invalid)?;
                let module = Module::parse(name)
                    .ok_or_else(|| AdapterError::UnknownModule(name.to_owned()))?;
                if !modules.contains(&module) {
                    modules.push(module);
                }
            }
            modules.sort_unstable();
            Ok(modules)
        }
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{TinyShape, random_adapter};
    use crate::lora::LoraParams;

    fn lora() -> LoraConfig {
        LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.05,
            target_modules: vec![Module::QProj, Module::DownProj],
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

    #[test]
    fn keys_that_change_the_maths_are_refused_by_name() {
        for (field, value) in [
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("modules_to_save", json!(["lm_head"])),
            ("rank_pattern", json!({"q_proj": 2})),
            ("alpha_pattern", json!({"q_proj": 2})),
            ("layers_to_transform", json!([0])),
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
        assert!(with_key("target_modules", json!(["c_attn"])).contains("`c_attn` is unknown"));
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
            refuse(&|a| a.config.target_modules.push(Module::KProj))
                .contains("k_proj.lora_A.weight not found")
        );
        assert!(
            refuse(&|a| a.config.target_modules.truncate(1))
                .contains("belongs to no target module")
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
