//! safetensors files, read one tensor at a time so that a large file is never held twice.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorView};

use crate::category::Category;
use crate::kernel::{HalfFormat, HalfWeight};

/// The longest header that is read: far above any real one, far below memory.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// Why a safetensors file was refused.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    /// The file can't be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file can't be written.
    #[error("cannot write {}: {message}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// The file is not safetensors, or is cut short.
    #[error("{} is not a whole safetensors file: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The tensor's number format is not read.
    #[error("tensor {tensor} in {} has dtype {dtype}; supported: F32, F16, BF16", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: String,
    },
}

impl TensorFileError {
    /// What the failure asks of the caller.
    pub fn category(&self) -> Category {
        match self {
            Self::Read { source, .. } => Category::of_io(source),
            Self::Write { .. } => Category::Transient,
            Self::Format { .. } | Self::Dtype { .. } => Category::Invalid,
        }
    }
}

/// Name, dtype and shape of one tensor.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// Number format in the file.
    pub dtype: Dtype,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    range: (usize, usize),
}

impl TensorEntry {
    /// What its values are in, where that is bf16 or f16.
    pub(crate) fn half_format(&self) -> Option<HalfFormat> {
        match self.dtype {
            Dtype::BF16 => Some(HalfFormat::Bf16),
            Dtype::F16 => Some(HalfFormat::F16),
            _ => None,
        }
    }
}

/// An open safetensors file whose header has been read and checked against the file's length.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    entries: BTreeMap<String, TensorEntry>,
}

impl TensorFile {
    /// Opens a file and reads its header only.
    pub fn open(path: &Path) -> Result<Self, TensorFileError> {
        let read_error = |source| TensorFileError::Read {
            path: path.to_path_buf(),
            source,
        };
        let format_error = |problem: String| TensorFileError::Format {
            path: path.to_path_buf(),
            problem,
        };
        // To open a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(read_error)?.is_file() {
            return Err(format_error("not a regular file".to_owned()));
        }
        let mut file = File::open(path).map_err(read_error)?;
        let length = file.metadata().map_err(read_error)?.len();
        let mut prefix = Vec::new();
        (&mut file)
            .take(8)
            .read_to_end(&mut prefix)
            .map_err(read_error)?;
        let Some(prefix) = prefix.first_chunk::<8>() else {
            return Err(format_error(format!("{length} bytes long")));
        };
        let header_bytes = u64::from_le_bytes(*prefix);
        if header_bytes > MAX_HEADER_BYTES.min(length.saturating_sub(8)) {
            return Err(format_error(format!("header of {header_bytes} bytes")));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(read_error)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| format_error(error.to_string()))?;
        let data_start = 8 + header_bytes;
        let expected = data_start + metadata.data_len() as u64;
        if expected != length {
            return Err(format_error(format!(
                "{length} bytes long, header says {expected}"
            )));
        }
        let entries = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let entry = TensorEntry {
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    range: info.data_offsets,
                };
                (name, entry)
            })
            .collect();
        Ok(Self {
            path: path.to_path_buf(),
            file,
            data_start,
            entries,
        })
    }

    /// The tensors by name.
    pub fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    /// Checks that every tensor has a number format that [`Self::read_f32`] reads, without reading any.
    ///
    /// # Errors
    /// [`TensorFileError::Dtype`] for the first one that has not.
    pub fn check_dtypes(&self) -> Result<(), TensorFileError> {
        let unread = self
            .entries
            .iter()
            .find(|(_, entry)| !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16));
        match unread {
            Some((tensor, entry)) => Err(self.dtype_error(tensor, entry.dtype)),
            None => Ok(()),
        }
    }

    fn dtype_error(&self, tensor: &str, dtype: Dtype) -> TensorFileError {
        TensorFileError::Dtype {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            dtype: format!("{dtype:?}"),
        }
    }

    /// The bytes of one tensor. No place in the file moves, so that several can be read beside each other.
    fn read(&self, (from, to): (usize, usize)) -> Result<Vec<u8>, TensorFileError> {
        let mut bytes = vec![0_u8; to - from];
        let start = self.data_start + from as u64;
        self.file
            .read_exact_at(&mut bytes, start)
            .map_err(|source| TensorFileError::Read {
                path: self.path.clone(),
                source,
            })?;
        Ok(bytes)
    }

    /// Reads a tensor that is stored in bf16 or f16 as it is. `None` when it is not, or is not there.
    pub(crate) fn read_halves(&self, name: &str) -> Result<Option<HalfWeight>, TensorFileError> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(None);
        };
        let Some(format) = entry.half_format() else {
            return Ok(None);
        };
        let range = entry.range;
        let bytes = self.read(range)?;
        let (pairs, _) = bytes.as_chunks::<2>();
        let bits = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
        Ok(Some(HalfWeight { format, bits }))
    }

    /// Reads one tensor as f32. `None` when the file has no tensor of that name.
    pub fn read_f32(&self, name: &str) -> Result<Option<Vec<f32>>, TensorFileError> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(None);
        };
        let (range, dtype) = (entry.range, entry.dtype);
        let bytes = self.read(range)?;
        match dtype {
            Dtype::F32 => Ok(Some(f32_from_bytes(&bytes))),
            Dtype::BF16 => Ok(Some(
                bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|pair| bf16::from_le_bytes(*pair).to_f32())
                    .collect(),
            )),
            Dtype::F16 => Ok(Some(
                bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|pair| f16::from_le_bytes(*pair).to_f32())
                    .collect(),
            )),
            other => Err(self.dtype_error(name, other)),
        }
    }
}

/// Little-endian f32 values.
fn f32_from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| f32::from_le_bytes(*word))
        .collect()
}

/// The values as little-endian bytes.
pub fn f32_to_bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; size_of_val(values)];
    for (word, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *word = value.to_le_bytes();
    }
    bytes
}

/// The values rounded to bf16 (nearest, ties to even) as little-endian bytes.
fn bf16_to_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| bf16::from_f32(*value).to_le_bytes())
        .collect()
}

/// How numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredDtype {
    /// Four bytes.
    F32,
    /// Two bytes, rounded to nearest.
    Bf16,
}

/// Writes tensors (name, shape, values) as one safetensors file with the metadata that
/// transformers and PEFT ask for.
pub fn write<'a>(
    path: &Path,
    dtype: StoredDtype,
    tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [f32])>,
) -> Result<(), TensorFileError> {
    let write_error = |message: String| TensorFileError::Write {
        path: path.to_path_buf(),
        message,
    };
    let encoded: Vec<(&str, &[usize], Vec<u8>)> = tensors
        .map(|(name, shape, values)| {
            let bytes = match dtype {
                StoredDtype::F32 => f32_to_bytes(values),
                StoredDtype::Bf16 => bf16_to_bytes(values),
            };
            (name, shape, bytes)
        })
        .collect();
    let tag = match dtype {
        StoredDtype::F32 => Dtype::F32,
        StoredDtype::Bf16 => Dtype::BF16,
    };
    let views = encoded
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(tag, shape.to_vec(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| write_error(error.to_string()))?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|error| write_error(error.to_string()))
}
