//! Tiny random models and adapters, for tests of this crate and of others.

use std::fs;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use serde_json::json;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::base::{BaseError, BaseModel, save_base, tensor_shapes};
use crate::config::{CONFIG_FILE, Family, GENERATION_CONFIG_FILE, LlamaConfig, SlidingWindow};
use crate::lora::LoraConfig;
use crate::peft::{Adapter, AdapterTensor};
use crate::quant::BlockFormat;
use crate::random::Stream;
use crate::rope::Llama3Rope;

/// The shape of a tiny model. Its tokenizer has the 256 bytes and four special tokens.
#[derive(Debug, Clone, Copy)]
pub struct TinyShape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Longest sequence.
    pub positions: usize,
    /// Whether the output projection is the embedding.
    pub tied: bool,
}

impl Default for TinyShape {
    fn default() -> Self {
        Self {
            hidden: 32,
            intermediate: 48,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            positions: 512,
            tied: true,
        }
    }
}

/// The special tokens, after the 256 bytes.
const SPECIAL: [&str; 4] = ["<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"];
const BYTES: u32 = 256;

impl TinyShape {
    /// The configuration of a Llama of this shape.
    pub fn config(&self) -> LlamaConfig {
        LlamaConfig {
            family: Family::Llama,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.kv_heads,
            head_dim: self.hidden / self.heads,
            vocab_size: BYTES as usize + SPECIAL.len(),
            max_position_embeddings: self.positions,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            sliding_window: None,
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: self.tied,
            bos_token_id: Some(BYTES),
            eos_token_ids: vec![BYTES + 1],
        }
    }

    /// The configuration of a model of this shape with what sets its family apart: a stretched
    /// rotary embedding, a window of seven tokens, heads wider than the residual stream's share.
    pub fn family_config(&self, family: Family) -> LlamaConfig {
        let window = |layers: std::ops::Range<usize>| SlidingWindow {
            tokens: 7,
            layers: layers.collect(),
        };
        let mut config = LlamaConfig {
            family,
            ..self.config()
        };
        match family {
            Family::Llama => {
                config.rope_scaling = Some(Llama3Rope {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_positions: 32,
                });
            }
            Family::Mistral => config.sliding_window = Some(window(0..self.layers)),
            Family::Qwen2 => config.sliding_window = Some(window(1..self.layers)),
            Family::Qwen3 => config.head_dim += 4,
        }
        config
    }
}

/// Writes the folder of a tiny random model: configuration, weights, byte-level tokenizer, chat template.
///
/// # Errors
/// A file that can't be written.
pub fn write_tiny_base(dir: &Path, shape: &TinyShape, seed: u64) -> Result<LlamaConfig, BaseError> {
    let config = shape.config();
    fs::create_dir_all(dir).map_err(|source| BaseError::Io {
        path: dir.to_path_buf(),
        source,
    })?;
    save_base(dir, &BaseModel::random(config.clone(), seed))?;
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|source| BaseError::Io { path, source })
    };
    write("tokenizer.json", tokenizer_json())?;
    let template = "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' }}{{ message.content }}\
        {% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
    let settings = json!({
        "bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "add_bos_token": true,
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template,
    });
    write("tokenizer_config.json", format!("{settings:#}\n"))?;
    Ok(config)
}

/// Writes `config.json` and `model.gguf` of a model as llama.cpp's converter does: its names, and the
/// rows of Llama's queries and keys interleaved. Matrices are in `format`, or f32 where there is none.
///
/// # Errors
/// A file that can't be written.
pub fn write_tiny_gguf(
    dir: &Path,
    base: &BaseModel,
    format: Option<BlockFormat>,
) -> Result<(), BaseError> {
    let config = base.config();
    let io = |path: &Path, source| BaseError::Io {
        path: path.to_path_buf(),
        source,
    };
    fs::create_dir_all(dir).map_err(|source| io(dir, source))?;
    let path = dir.join(CONFIG_FILE);
    fs::write(&path, config.to_json().to_string()).map_err(|source| io(&path, source))?;
    let path = dir.join(GENERATION_CONFIG_FILE);
    fs::write(&path, config.generation_json().to_string()).map_err(|source| io(&path, source))?;

    let is_llama = matches!(config.family, Family::Llama | Family::Mistral);
    let failed = |tensor: &str| {
        let tensor = tensor.to_owned();
        move |source| BaseError::Quantize { tensor, source }
    };
    let mut tensors = Vec::new();
    for (name, shape) in tensor_shapes(config) {
        let mut values = base.tensor(&name)?.to_vec();
        let heads = match name.rsplit('.').nth(1) {
            Some("q_proj") if is_llama => Some(config.num_attention_heads),
            Some("k_proj") if is_llama => Some(config.num_key_value_heads),
            _ => None,
        };
        if let Some(heads) = heads {
            values = interleave(&values, heads, shape.get(1).copied().unwrap_or(1));
        }
        let dtype = match format {
            Some(BlockFormat::Q4_0) if shape.len() == 2 => GgmlDType::Q4_0,
            Some(BlockFormat::Q8_0) if shape.len() == 2 => GgmlDType::Q8_0,
            Some(BlockFormat::Q4K) if shape.len() == 2 => GgmlDType::Q4K,
            Some(BlockFormat::Q6K) if shape.len() == 2 => GgmlDType::Q6K,
            _ => GgmlDType::F32,
        };
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).map_err(failed(&name))?;
        let tensor = QTensor::quantize(&tensor, dtype).map_err(failed(&name))?;
        tensors.push((gguf_name(&name), tensor));
    }
    let architecture = gguf_file::Value::String(if is_llama {
        "llama".to_owned()
    } else {
        config.family.model_type().to_owned()
    });
    let words = ["a", "b"].map(|word| gguf_file::Value::String(word.to_owned()));
    let metadata = [
        ("general.architecture", &architecture),
        (
            "tokenizer.ggml.tokens",
            &gguf_file::Value::Array(words.to_vec()),
        ),
        ("llama.rope.freq_base", &gguf_file::Value::F32(10_000.0)),
    ];
    let tensors: Vec<(&str, &QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let path = dir.join("model.gguf");
    let mut file = fs::File::create(&path).map_err(|source| io(&path, source))?;
    gguf_file::write(&mut file, &metadata, &tensors).map_err(failed("model.gguf"))
}

/// llama.cpp's name of a tensor.
fn gguf_name(name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    for (from, to) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(from, to);
    }
    name
}

/// The two halves of every head's rows in turn (`permute` of `convert_hf_to_gguf.py`).
fn interleave(values: &[f32], heads: usize, width: usize) -> Vec<f32> {
    let head_size = values.len() / heads;
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_size) {
        let (first, second) = head.split_at(head_size / 2);
        for (a, b) in first.chunks_exact(width).zip(second.chunks_exact(width)) {
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
    }
    out
}

/// A byte-level tokenizer: ids 0 to 255 are bytes in the order of their printable stand-ins, then the special tokens.
fn tokenizer_json() -> String {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocabulary = (0_u32..)
        .zip(&alphabet)
        .map(|(id, stand_in)| (stand_in.to_string(), id))
        .collect();
    let mut tokenizer = Tokenizer::new(BPE::new(vocabulary, Vec::new()));
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let special: Vec<AddedToken> = SPECIAL.map(|token| AddedToken::from(token, true)).to_vec();
    let _ = tokenizer.add_special_tokens(special);
    let mut value: serde_json::Value =
        serde_json::from_str(&tokenizer.to_string(false).unwrap_or_default()).unwrap_or_default();
    let bos = json!({"SpecialToken": {"id": SPECIAL[0], "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let processor = json!({
        "type": "TemplateProcessing",
        "single": [bos, sequence("A")],
        "pair": [bos, sequence("A"), sequence("B")],
        "special_tokens": {SPECIAL[0]: {"id": SPECIAL[0], "ids": [BYTES], "tokens": [SPECIAL[0]]}},
    });
    if let Some(object) = value.as_object_mut() {
        object.insert("post_processor".to_owned(), processor);
    }
    value.to_string()
}

/// An adapter with random values, B included, so that it changes the model.
pub fn random_adapter(model: &LlamaConfig, config: &LoraConfig, seed: u64) -> Adapter {
    let shapes = config.plan(model).map(|plan| plan.tensor_shapes(model));
    let tensors = shapes
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .map(|(index, (name, shape))| {
            let stream = Stream::new(seed, &[index as u64]);
            let elements = (shape[0] * shape[1]) as u64;
            let data = (0..elements)
                .map(|i| (0.1 * stream.normal(i)) as f32)
                .collect();
            (name, AdapterTensor { shape, data })
        })
        .collect();
    Adapter {
        config: config.clone(),
        base_model_name_or_path: "tiny".to_owned(),
        tensors,
    }
}
