//! The files of a base model's weights: safetensors, in one file or in shards with an index, or one
//! GGUF file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::base::{BaseError, OUTPUT, WEIGHTS_FILE, WEIGHTS_INDEX_FILE, tensor_shapes};
use crate::config::LlamaConfig;
use crate::gguf::GgufFile;
use crate::kernel::HalfWeight;
use crate::quant::{Blocks, Quantization};
use crate::tensor_file::TensorFile;

/// What a weight is for, which decides how it is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A layer's projection.
    Layer,
    /// The embedding or the output projection.
    Vocabulary,
}

/// One file.
#[derive(Debug)]
enum WeightFile {
    Safetensors(TensorFile),
    Gguf(GgufFile),
}

impl WeightFile {
    fn names(&self) -> Box<dyn Iterator<Item = &String> + '_> {
        match self {
            Self::Safetensors(file) => Box::new(file.entries().keys()),
            Self::Gguf(file) => Box::new(file.names()),
        }
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        match self {
            Self::Safetensors(file) => file.entries().get(name).map(|e| e.shape.as_slice()),
            Self::Gguf(file) => file.shape(name),
        }
    }

    fn read_f32(&mut self, name: &str) -> Result<Option<Vec<f32>>, BaseError> {
        match self {
            Self::Safetensors(file) => Ok(file.read_f32(name)?),
            Self::Gguf(file) => Ok(file.read_f32(name)?),
        }
    }

    fn read_blocks(&mut self, name: &str) -> Result<Option<Blocks>, BaseError> {
        match self {
            Self::Safetensors(_) => Ok(None),
            Self::Gguf(file) => Ok(file.read_blocks(name)?),
        }
    }

    fn read_halves(&mut self, name: &str) -> Result<Option<HalfWeight>, BaseError> {
        match self {
            Self::Safetensors(file) => Ok(file.read_halves(name)?),
            Self::Gguf(file) => Ok(file.read_halves(name)?),
        }
    }
}

/// The files of a folder's weights, in which every tensor of the architecture was found by its
/// header and nothing else that would change the maths.
#[derive(Debug)]
pub(crate) struct BaseFiles {
    config: LlamaConfig,
    shapes: BTreeMap<String, Vec<usize>>,
    files: Vec<WeightFile>,
}

impl BaseFiles {
    /// Reads the configuration and the headers of the files: fast for a model of any size.
    ///
    /// # Errors
    /// A missing file, an unsupported configuration, or a tensor that is missing, unexpected or of
    /// another shape, each by name.
    pub fn open(dir: &Path) -> Result<Self, BaseError> {
        let config = LlamaConfig::load(dir)?;
        let files = open_weights(dir, &config)?;
        let shapes = tensor_shapes(&config);
        for (name, expected) in &shapes {
            let got = files.iter().find_map(|file| file.shape(name));
            let got = got.ok_or_else(|| BaseError::MissingTensor(name.clone()))?;
            if got != expected {
                return Err(BaseError::Shape {
                    tensor: name.clone(),
                    expected: expected.clone(),
                    got: got.to_vec(),
                });
            }
        }
        Ok(Self {
            config,
            shapes,
            files,
        })
    }

    /// What the folder says that its model is.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The names and shapes of all tensors.
    pub fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    fn file_of(&mut self, name: &str) -> Result<&mut WeightFile, BaseError> {
        let found = self
            .files
            .iter_mut()
            .find(|file| file.shape(name).is_some());
        found.ok_or_else(|| BaseError::MissingTensor(name.to_owned()))
    }

    /// The values of a tensor, whatever they are stored in.
    pub fn read_f32(&mut self, name: &str) -> Result<Vec<f32>, BaseError> {
        Ok(self.file_of(name)?.read_f32(name)?.unwrap_or_default())
    }

    /// A tensor in bf16 or f16 where the file has it so.
    pub fn read_halves(&mut self, name: &str) -> Result<Option<HalfWeight>, BaseError> {
        self.file_of(name)?.read_halves(name)
    }

    /// A weight in blocks where the file has it so.
    pub fn stored_blocks(&mut self, name: &str) -> Result<Option<Blocks>, BaseError> {
        self.file_of(name)?.read_blocks(name)
    }

    /// Rows and columns of a matrix; none where the tensor is none.
    pub fn matrix_shape(&self, name: &str) -> Option<(usize, usize)> {
        match self.shapes.get(name).map(Vec::as_slice) {
            Some([outputs, inputs]) => Some((*outputs, *inputs)),
            _ => None,
        }
    }

    /// A weight in blocks: those of the file, or its values quantised. None where no format fits.
    pub fn read_blocks(
        &mut self,
        name: &str,
        role: Role,
        quantization: Quantization,
    ) -> Result<Option<Blocks>, BaseError> {
        if let Some(blocks) = self.stored_blocks(name)? {
            return Ok(Some(blocks));
        }
        let Some((outputs, inputs)) = self.matrix_shape(name) else {
            return Ok(None);
        };
        let format = match role {
            Role::Layer => quantization.of_layer(inputs),
            Role::Vocabulary => Quantization::of_vocabulary(inputs),
        };
        let Some(format) = format else {
            return Ok(None);
        };
        let values = self.read_f32(name)?;
        Blocks::quantize(format, &values, outputs, inputs)
            .map(Some)
            .map_err(|source| BaseError::Quantize {
                tensor: name.to_owned(),
                source,
            })
    }
}

/// The files of a folder's weights, none of which holds a tensor of another architecture, or one
/// that another file holds too.
fn open_weights(dir: &Path, config: &LlamaConfig) -> Result<Vec<WeightFile>, BaseError> {
    let (paths, index) = weight_files(dir)?;
    let open = |path: &PathBuf| -> Result<WeightFile, BaseError> {
        if is_gguf(path) {
            Ok(WeightFile::Gguf(GgufFile::open(path, config)?))
        } else {
            Ok(WeightFile::Safetensors(TensorFile::open(path)?))
        }
    };
    let files = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let shapes = tensor_shapes(config);
    let mut seen = BTreeSet::new();
    for name in files.iter().flat_map(WeightFile::names) {
        if !shapes.contains_key(name) && !is_redundant(name, config) {
            return Err(BaseError::UnexpectedTensor(name.clone()));
        }
        if !seen.insert(name) {
            return Err(BaseError::Index(format!("two shards hold tensor {name}")));
        }
    }
    for (name, shard) in &index {
        let path = dir.join(shard);
        let mut at = paths.iter().zip(&files).filter(|(file, _)| **file == path);
        if !at.any(|(_, file)| file.shape(name).is_some()) {
            let problem = format!("tensor {name} is not in {shard}, where it says");
            return Err(BaseError::Index(problem));
        }
    }
    Ok(files)
}

/// Tensors that some writers add and that the maths does not need.
fn is_redundant(name: &str, config: &LlamaConfig) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (config.tie_word_embeddings && name == OUTPUT)
}

/// Whether a file is GGUF by its name; its content is checked on opening.
pub(crate) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "gguf")
}

/// What `model.safetensors.index.json` says.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The shard of each tensor.
type WeightMap = BTreeMap<String, String>;

/// The files of a folder's weights, and what the index says where there is one.
fn weight_files(dir: &Path) -> Result<(Vec<PathBuf>, WeightMap), BaseError> {
    let single = dir.join(WEIGHTS_FILE);
    match std::fs::metadata(&single) {
        Ok(_) => return Ok((vec![single], WeightMap::new())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        // A volume that fails is not one without weights.
        Err(source) => {
            return Err(BaseError::Io {
                path: single,
                source,
            });
        }
    }
    let index = dir.join(WEIGHTS_INDEX_FILE);
    let text = match std::fs::read_to_string(&index) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok((vec![gguf_file(dir)?], WeightMap::new()));
        }
        Err(source) => {
            return Err(BaseError::Io {
                path: index,
                source,
            });
        }
    };
    let index: Index =
        serde_json::from_str(&text).map_err(|error| BaseError::Index(error.to_string()))?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    let paths = shards
        .into_iter()
        .map(|shard| {
            if shard.contains('/') || !shard.ends_with(".safetensors") {
                return Err(BaseError::Index(format!(
                    "shard `{shard}` is no file of the folder"
                )));
            }
            Ok(dir.join(shard))
        })
        .collect::<Result<_, _>>()?;
    Ok((paths, index.weight_map))
}

/// The one GGUF file of a folder without safetensors.
fn gguf_file(dir: &Path) -> Result<PathBuf, BaseError> {
    let io = |source| BaseError::Io {
        path: dir.to_path_buf(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if is_gguf(&path) {
            found.push(path);
        }
    }
    let count = found.len();
    match found.pop() {
        Some(path) if count == 1 => Ok(path),
        None => Err(BaseError::NoWeights(dir.to_path_buf())),
        Some(_) => Err(BaseError::SeveralGguf {
            dir: dir.to_path_buf(),
            count,
        }),
    }
}
