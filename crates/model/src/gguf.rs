//! GGUF files (version 2 and 3, little-endian): the header, and tensors one at a time under their
//! Hugging Face names. Vocabulary and hyperparameters in the header are passed over: a base model's
//! folder has them as `tokenizer.json` and `config.json`.
//!
//! Source of the format: docs/gguf.md of ggml; names and order of rows: llama.cpp's
//! `convert_hf_to_gguf.py`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};

use crate::base::{
    EMBEDDING, FINAL_NORM, INPUT_NORM, KEY_NORM, OUTPUT, POST_NORM, QUERY_NORM, layer_tensor_name,
};
use crate::category::Category;
use crate::config::{Family, LlamaConfig};
use crate::kernel::{HalfFormat, HalfWeight};
use crate::lora::Module;
use crate::quant::{BlockFormat, Blocks};

/// The longest text, and the most entries, that a header may have: far above any real one, far
/// below memory.
const MAX_TEXT_BYTES: u64 = 1 << 16;
const MAX_ENTRIES: u64 = 1 << 20;

/// Llama 3's factors of the rotary embedding, which `config.json` says too.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Why a GGUF file was refused.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file can't be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// llama.cpp's files of this family name other tensors, and hold norms with one added.
    #[error("{} is GGUF: weights of model_type `{model_type}` are read from safetensors only", path.display())]
    Family {
        /// The file.
        path: PathBuf,
        /// The family's name in `config.json`.
        model_type: &'static str,
    },
    /// The file is no GGUF file, is cut short, or is of another model than its folder says.
    #[error("{} is not a whole GGUF file of this model: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The tensor's number format is not read.
    #[error(
        "tensor {tensor} in {} has ggml type {kind}; supported: F32 (0), F16 (1), Q4_0 (2), \
         Q8_0 (8), Q4_K (12), Q6_K (14), BF16 (30)",
        path.display()
    )]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor, by its name in the file.
        tensor: String,
        /// Its type's number.
        kind: u32,
    },
}

impl GgufError {
    /// What the failure asks of the caller.
    pub fn category(&self) -> Category {
        match self {
            Self::Read { source, .. } => Category::of_io(source),
            Self::Family { .. } | Self::Format { .. } | Self::Type { .. } => Category::Invalid,
        }
    }
}

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    F32,
    F16,
    Bf16,
    Blocks(BlockFormat),
}

impl Stored {
    fn of_ggml(kind: u32) -> Option<Self> {
        match kind {
            0 => Some(Self::F32),
            1 => Some(Self::F16),
            30 => Some(Self::Bf16),
            kind => BlockFormat::of_ggml(kind).map(Self::Blocks),
        }
    }

    /// Bytes of so many values in rows of `width`; none where a row is no multiple of the blocks.
    fn bytes(self, elements: usize, width: usize) -> Option<usize> {
        match self {
            Self::F32 => elements.checked_mul(4),
            Self::F16 | Self::Bf16 => elements.checked_mul(2),
            Self::Blocks(format) if width.is_multiple_of(format.values()) => {
                (elements / format.values()).checked_mul(format.bytes())
            }
            Self::Blocks(_) => None,
        }
    }
}

/// One tensor.
#[derive(Debug, Clone)]
struct Entry {
    /// Slowest dimension first.
    shape: Vec<usize>,
    stored: Stored,
    /// Of its first byte in the file.
    start: u64,
    bytes: usize,
    /// Heads whose rows llama.cpp has interleaved.
    interleaved: Option<usize>,
}

impl Entry {
    /// The values with the rows where Hugging Face has them.
    fn in_order<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        let Some(heads) = self.interleaved else {
            return values;
        };
        let outputs = self.shape.first().copied().unwrap_or_default();
        let width = self.shape.get(1).copied().unwrap_or(1);
        let rows = (0..outputs).filter_map(|row| {
            let start = source_row(row, outputs / heads) * width;
            values.get(start..start + width)
        });
        rows.flatten().copied().collect()
    }
}

/// An open GGUF file whose header has been read and checked against the file's length.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, Entry>,
    unknown: Vec<String>,
}

impl GgufFile {
    /// Opens a file and reads its header only.
    pub fn open(path: &Path, config: &LlamaConfig) -> Result<Self, GgufError> {
        let read_error = |source| GgufError::Read {
            path: path.to_path_buf(),
            source,
        };
        let Some(expected) = architecture_of(config.family) else {
            return Err(GgufError::Family {
                path: path.to_path_buf(),
                model_type: config.family.model_type(),
            });
        };
        let file = File::open(path).map_err(read_error)?;
        let length = file.metadata().map_err(read_error)?.len();
        let mut header = Header {
            path,
            input: BufReader::new(file),
            left: length,
        };
        let (architecture, alignment, tensors) = header.read()?;
        if architecture != expected {
            return Err(header.format(format!(
                "its architecture is {architecture:?}, config.json's is {expected:?}"
            )));
        }
        let data = (length - header.left).next_multiple_of(alignment);
        let (mut entries, mut unknown) = (BTreeMap::new(), Vec::new());
        for tensor in tensors {
            let Some((name, module)) = hugging_face_name(&tensor.name) else {
                if tensor.name != ROPE_FACTORS {
                    unknown.push(tensor.name);
                }
                continue;
            };
            let entry = header.entry(tensor, data, length, interleaved(config, module))?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(header.format(format!("it has tensor {name} twice")));
            }
        }
        let file = header.input.into_inner();
        Ok(Self {
            path: path.to_path_buf(),
            file,
            entries,
            unknown,
        })
    }

    /// The tensors' Hugging Face names, and the file's names of those that have none.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.entries.keys().chain(&self.unknown)
    }

    /// Dimensions of a tensor, slowest first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    fn read_bytes(&mut self, entry: &Entry) -> Result<Vec<u8>, GgufError> {
        let mut bytes = vec![0; entry.bytes];
        self.file
            .seek(SeekFrom::Start(entry.start))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|source| GgufError::Read {
                path: self.path.clone(),
                source,
            })?;
        Ok(bytes)
    }

    /// Reads one weight that the file holds in blocks. `None` where there is none of that name, or
    /// where it is not in blocks.
    pub fn read_blocks(&mut self, name: &str) -> Result<Option<Blocks>, GgufError> {
        let Some(entry) = self.entries.get(name).cloned() else {
            return Ok(None);
        };
        let (Stored::Blocks(format), [outputs, inputs]) = (entry.stored, entry.shape.as_slice())
        else {
            return Ok(None);
        };
        let bytes = self.read_bytes(&entry)?;
        let blocks = Blocks::from_bytes(format, *outputs, *inputs, bytes);
        Ok(blocks.map(|blocks| match entry.interleaved {
            Some(heads) => blocks.reordered(|row| source_row(row, outputs / heads)),
            None => blocks,
        }))
    }

    /// Reads a tensor that the file holds in bf16 or f16 as it is. `None` where there is none of that name, or
    /// where it has another form.
    pub(crate) fn read_halves(&mut self, name: &str) -> Result<Option<HalfWeight>, GgufError> {
        let Some(entry) = self.entries.get(name).cloned() else {
            return Ok(None);
        };
        let format = match entry.stored {
            Stored::Bf16 => HalfFormat::Bf16,
            Stored::F16 => HalfFormat::F16,
            Stored::F32 | Stored::Blocks(_) => return Ok(None),
        };
        let bytes = self.read_bytes(&entry)?;
        let pairs = bytes.as_chunks::<2>().0.iter();
        let bits = pairs.map(|pair| u16::from_le_bytes(*pair)).collect();
        Ok(Some(HalfWeight {
            format,
            bits: entry.in_order(bits),
        }))
    }

    /// Reads one tensor as f32. `None` when the file has no tensor of that name.
    pub fn read_f32(&mut self, name: &str) -> Result<Option<Vec<f32>>, GgufError> {
        if let Some(blocks) = self.read_blocks(name)? {
            return Ok(Some(blocks.read(0..blocks.outputs(), 0..blocks.inputs())));
        }
        let Some(entry) = self.entries.get(name).cloned() else {
            return Ok(None);
        };
        let bytes = self.read_bytes(&entry)?;
        let pairs = || bytes.as_chunks::<2>().0.iter();
        let values: Vec<f32> = match entry.stored {
            Stored::F32 => {
                let words = bytes.as_chunks::<4>().0.iter();
                words.map(|word| f32::from_le_bytes(*word)).collect()
            }
            Stored::F16 => pairs().map(|p| f16::from_le_bytes(*p).to_f32()).collect(),
            Stored::Bf16 => pairs().map(|p| bf16::from_le_bytes(*p).to_f32()).collect(),
            // Blocks of one dimension: no writer makes such.
            Stored::Blocks(format) => {
                return Err(GgufError::Format {
                    path: self.path.clone(),
                    problem: format!("{name} is a vector in {}", format.name()),
                });
            }
        };
        Ok(Some(entry.in_order(values)))
    }
}

/// llama.cpp's name of a family: Mistral is a Llama to it. None: its files are not read.
fn architecture_of(family: Family) -> Option<&'static str> {
    match family {
        Family::Llama | Family::Mistral => Some("llama"),
        Family::Qwen2 => Some("qwen2"),
        Family::Qwen3 => Some("qwen3"),
        Family::Gemma3 => None,
    }
}

/// Heads of a projection whose rows llama.cpp interleaves: its Llama rotates neighbouring values,
/// where Hugging Face's rotates the two halves of a head.
fn interleaved(config: &LlamaConfig, module: Option<Module>) -> Option<usize> {
    match (config.family, module) {
        (Family::Llama | Family::Mistral, Some(Module::QProj)) => Some(config.num_attention_heads),
        (Family::Llama | Family::Mistral, Some(Module::KProj)) => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// Where the file has row `row` of an interleaved projection whose heads have `head_dim` rows: the
/// file's row `2 i + j` of a head is row `j * head_dim / 2 + i`.
fn source_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (within % half) + within / half
}

/// The name in Hugging Face's files, and the module where it is a layer's projection.
fn hugging_face_name(name: &str) -> Option<(String, Option<Module>)> {
    let plain = match name {
        "token_embd.weight" => Some(EMBEDDING),
        "output_norm.weight" => Some(FINAL_NORM),
        "output.weight" => Some(OUTPUT),
        _ => None,
    };
    if let Some(plain) = plain {
        return Some((plain.to_owned(), None));
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let norm = match rest {
        "attn_norm.weight" => Some(INPUT_NORM),
        "ffn_norm.weight" => Some(POST_NORM),
        "attn_q_norm.weight" => Some(QUERY_NORM),
        "attn_k_norm.weight" => Some(KEY_NORM),
        _ => None,
    };
    if let Some(norm) = norm {
        return Some((layer_tensor_name(layer, norm), None));
    }
    let (module, part) = rest.split_once('.')?;
    let module = match module {
        "attn_q" => Module::QProj,
        "attn_k" => Module::KProj,
        "attn_v" => Module::VProj,
        "attn_output" => Module::OProj,
        "ffn_gate" => Module::GateProj,
        "ffn_up" => Module::UpProj,
        "ffn_down" => Module::DownProj,
        _ => return None,
    };
    let tensor = match part {
        "weight" => module.weight_name(),
        "bias" => module.bias_name(),
        _ => return None,
    };
    Some((layer_tensor_name(layer, &tensor), Some(module)))
}

/// A tensor as the header has it.
struct Listed {
    name: String,
    /// Fastest dimension first.
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

/// A header that is being read.
struct Header<'a> {
    path: &'a Path,
    input: BufReader<File>,
    /// Bytes of the file that come after what was read.
    left: u64,
}

impl Header<'_> {
    fn format(&self, problem: String) -> GgufError {
        GgufError::Format {
            path: self.path.to_path_buf(),
            problem,
        }
    }

    /// Architecture, alignment of the data, tensors.
    fn read(&mut self) -> Result<(String, u64, Vec<Listed>), GgufError> {
        if self.bytes::<4>()? != *b"GGUF" {
            return Err(self.format("it does not begin with GGUF".to_owned()));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(self.format(format!(
                "its version is {version}; supported: 2 and 3, little-endian"
            )));
        }
        let (tensors, entries) = (self.count()?, self.count()?);
        let (mut architecture, mut alignment) = (String::new(), 32);
        for _ in 0..entries {
            let key = self.text()?;
            let kind = self.u32()?;
            match (key.as_str(), kind) {
                ("general.architecture", TEXT) => architecture = self.text()?,
                ("general.alignment", U32) => alignment = u64::from(self.u32()?),
                ("split.count", U16) => {
                    let parts = u16::from_le_bytes(self.bytes()?);
                    if parts > 1 {
                        return Err(self.format(format!("it is one of {parts} parts")));
                    }
                }
                _ => self.skip_value(kind)?,
            }
        }
        if !alignment.is_power_of_two() || alignment > 1 << 16 {
            return Err(self.format(format!("its alignment is {alignment}")));
        }
        let mut listed = Vec::new();
        for _ in 0..tensors {
            let name = self.text()?;
            let dimensions = self.u32()?;
            if !(1..=4).contains(&dimensions) {
                return Err(self.format(format!("{name} has {dimensions} dimensions")));
            }
            listed.push(Listed {
                name,
                dimensions: (0..dimensions)
                    .map(|_| self.u64())
                    .collect::<Result<_, _>>()?,
                kind: self.u32()?,
                offset: self.u64()?,
            });
        }
        Ok((architecture, alignment, listed))
    }

    /// A listed tensor whose bytes lie within the file.
    fn entry(
        &self,
        tensor: Listed,
        data: u64,
        length: u64,
        interleaved: Option<usize>,
    ) -> Result<Entry, GgufError> {
        let Some(stored) = Stored::of_ggml(tensor.kind) else {
            return Err(GgufError::Type {
                path: self.path.to_path_buf(),
                tensor: tensor.name,
                kind: tensor.kind,
            });
        };
        let shape: Option<Vec<usize>> = tensor
            .dimensions
            .iter()
            .rev()
            .map(|size| usize::try_from(*size).ok())
            .collect();
        let place = shape.and_then(|shape| {
            let elements = shape
                .iter()
                .try_fold(1_usize, |all, size| all.checked_mul(*size))?;
            let bytes = stored.bytes(elements, *shape.last()?)?;
            let start = data.checked_add(tensor.offset)?;
            let end = start.checked_add(bytes as u64)?;
            (end <= length).then_some((shape, start, bytes))
        });
        let Some((shape, start, bytes)) = place else {
            return Err(self.format(format!(
                "tensor {} of {:?} values does not lie in its {length} bytes",
                tensor.name, tensor.dimensions
            )));
        };
        let rows = shape.first().copied().unwrap_or_default();
        if interleaved.is_some_and(|heads| !rows.is_multiple_of(2 * heads)) {
            return Err(self.format(format!("tensor {} has {rows} rows", tensor.name)));
        }
        Ok(Entry {
            shape,
            stored,
            start,
            bytes,
            interleaved,
        })
    }

    fn take(&mut self, bytes: u64) -> Result<(), GgufError> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.format("its header is cut short".to_owned())),
        }
    }

    fn io(&self, source: std::io::Error) -> GgufError {
        GgufError::Read {
            path: self.path.to_path_buf(),
            source,
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        let read = self.input.read_exact(&mut bytes);
        read.map_err(|source| self.io(source))?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn count(&mut self) -> Result<u64, GgufError> {
        let count = self.u64()?;
        if count > MAX_ENTRIES {
            return Err(self.format(format!("{count} entries")));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let length = self.u64()?;
        if length > MAX_TEXT_BYTES {
            return Err(self.format(format!("a text of {length} bytes in its header")));
        }
        self.take(length)?;
        let mut text = vec![0; length as usize];
        let read = self.input.read_exact(&mut text);
        read.map_err(|source| self.io(source))?;
        String::from_utf8(text).map_err(|_| self.format("a name that is no UTF-8".to_owned()))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.take(bytes)?;
        // Within the file, whose length fits.
        let skipped = self.input.seek_relative(bytes.cast_signed());
        skipped.map_err(|source| self.io(source))
    }

    fn skip_text(&mut self) -> Result<(), GgufError> {
        let length = self.u64()?;
        self.skip(length)
    }

    fn skip_value(&mut self, kind: u32) -> Result<(), GgufError> {
        match kind {
            TEXT => self.skip_text(),
            ARRAY => {
                let of = self.u32()?;
                let count = self.u64()?;
                if of == TEXT {
                    // Each has a length at least, so that the file's own length bounds the loop.
                    (0..count).try_for_each(|_| self.skip_text())
                } else {
                    let bytes = self.scalar_bytes(of)?.saturating_mul(count);
                    self.skip(bytes)
                }
            }
            kind => {
                let bytes = self.scalar_bytes(kind)?;
                self.skip(bytes)
            }
        }
    }

    /// Bytes of a number or a truth value.
    fn scalar_bytes(&self, kind: u32) -> Result<u64, GgufError> {
        match kind {
            0 | 1 | 7 => Ok(1),
            2 | 3 => Ok(2),
            4..=6 => Ok(4),
            10..=12 => Ok(8),
            _ => Err(self.format(format!("a value of type {kind} in its header"))),
        }
    }
}

/// Types of the header's values.
const U16: u32 = 2;
const U32: u32 = 4;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

#[cfg(test)]
mod tests;
