//! The whole model written plainly in f64, one sequence at a time: what the fast passes must come
//! close to. It asks the tensors and the configuration's numbers alone.

use crate::base::{BaseModel, EMBEDDING, FINAL_NORM, OUTPUT, layer_tensor_name};
use crate::config::{Family, LlamaConfig};

type Rows = Vec<Vec<f64>>;

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

fn is_gemma(config: &LlamaConfig) -> bool {
    config.family == Family::Gemma3
}

fn norm(config: &LlamaConfig, row: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    let scale = (mean + f64::from(config.rms_norm_eps)).sqrt();
    let above = if is_gemma(config) { 1.0 } else { 0.0 };
    let pairs = row.iter().zip(weight);
    pairs
        .map(|(x, w)| x / scale * (above + f64::from(*w)))
        .collect()
}

/// `x · Wᵀ + b`, with a bias where the model has one of that name.
fn linear(base: &BaseModel, name: &str, rows: &Rows) -> Rows {
    let weight = base.tensor(&format!("{name}.weight")).unwrap();
    let bias = base.tensor(&format!("{name}.bias")).map(wide);
    let apply = |row: &Vec<f64>| {
        let outputs = weight.chunks_exact(row.len()).enumerate();
        let dots = outputs.map(|(i, w)| {
            let dot: f64 = row.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum();
            dot + bias.as_ref().map_or(0.0, |bias| bias[i])
        });
        dots.collect()
    };
    rows.iter().map(apply).collect()
}

/// Radians per token of component `i`, by the wavelengths of `transformers`' modelling code.
fn frequency(config: &LlamaConfig, is_local: bool, i: usize) -> f64 {
    let exponent = 2.0 * i as f64 / config.head_dim as f64;
    if let (true, Some(theta)) = (is_local, config.local_rope_theta) {
        return 1.0 / f64::from(theta).powf(exponent);
    }
    let plain = 1.0 / f64::from(config.rope_theta).powf(exponent);
    let Some(rope) = &config.rope_scaling else {
        return plain;
    };
    let original = rope.original_positions as f64;
    let wavelength = std::f64::consts::TAU / plain;
    if wavelength < original / rope.high_freq_factor {
        plain
    } else if wavelength > original / rope.low_freq_factor {
        plain / rope.factor
    } else {
        let smooth = (original / wavelength - rope.low_freq_factor)
            / (rope.high_freq_factor - rope.low_freq_factor);
        (1.0 - smooth) * plain / rope.factor + smooth * plain
    }
}

fn rotated(config: &LlamaConfig, is_local: bool, position: usize, head: &[f64]) -> Vec<f64> {
    let half = head.len() / 2;
    let angle = |i: usize| position as f64 * frequency(config, is_local, i % half);
    let pair = |i: usize| {
        if i < half {
            -head[i + half]
        } else {
            head[i - half]
        }
    };
    (0..head.len())
        .map(|i| head[i] * angle(i).cos() + pair(i) * angle(i).sin())
        .collect()
}

/// Queries or keys as attention sees them: each head normed where the model has that norm, rotated.
fn heads(base: &BaseModel, norm_name: &str, is_local: bool, rows: &Rows) -> Rows {
    let config = base.config();
    let weight = base.tensor(norm_name).ok();
    let of_row = |(position, row): (usize, &Vec<f64>)| {
        row.chunks_exact(config.head_dim)
            .flat_map(|head| match weight {
                Some(weight) => rotated(config, is_local, position, &norm(config, head, weight)),
                None => rotated(config, is_local, position, head),
            })
            .collect()
    };
    rows.iter().enumerate().map(of_row).collect()
}

/// Attention with an explicit mask: a query sees itself and what is less than `window` before it.
fn attention(config: &LlamaConfig, window: Option<usize>, qkv: [&Rows; 3]) -> Rows {
    let [query, key, value] = qkv;
    let dim = config.head_dim;
    let divisor = config.query_pre_attn_scalar.unwrap_or(dim) as f64;
    let mut out = vec![vec![0.0; config.num_attention_heads * dim]; query.len()];
    for (i, out) in out.iter_mut().enumerate() {
        for head in 0..config.num_attention_heads {
            let (at, kv) = (head * dim, head / config.group_size() * dim);
            let score = |j: usize| -> f64 {
                let dot: f64 = (0..dim).map(|d| query[i][at + d] * key[j][kv + d]).sum();
                (dot / divisor.sqrt()).exp()
            };
            let visible = |j: usize| j <= i && window.is_none_or(|tokens| i - j < tokens);
            let weights: Vec<f64> = (0..key.len())
                .map(|j| if visible(j) { score(j) } else { 0.0 })
                .collect();
            let sum: f64 = weights.iter().sum();
            for d in 0..dim {
                let mixed: f64 = (0..key.len()).map(|j| weights[j] * value[j][kv + d]).sum();
                out[at + d] = mixed / sum;
            }
        }
    }
    out
}

fn add(a: &Rows, b: &Rows) -> Rows {
    let rows = a.iter().zip(b);
    rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect())
        .collect()
}

/// The gate's activation: SiLU, or GELU by tanh.
fn activation(config: &LlamaConfig, x: f64) -> f64 {
    if is_gemma(config) {
        let cubic = x + 0.044_715 * x.powi(3);
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * cubic).tanh())
    } else {
        x / (1.0 + (-x).exp())
    }
}

/// Logits of every token, `[tokens][vocab_size]`.
pub(super) fn logits(base: &BaseModel, tokens: &[u32]) -> Rows {
    let config = base.config();
    let is_gemma = is_gemma(config);
    let embedding = base.tensor(EMBEDDING).unwrap();
    let scale = if is_gemma {
        (config.hidden_size as f64).sqrt()
    } else {
        1.0
    };
    let mut stream: Rows = tokens
        .iter()
        .map(|token| {
            let at = *token as usize * config.hidden_size;
            let row = wide(&embedding[at..at + config.hidden_size]);
            row.into_iter().map(|value| value * scale).collect()
        })
        .collect();
    for layer in 0..config.num_hidden_layers {
        let name = |name: &str| layer_tensor_name(layer, name);
        let normed = |rows: &Rows, tensor: &str| -> Rows {
            let weight = base.tensor(&name(tensor)).unwrap();
            rows.iter().map(|row| norm(config, row, weight)).collect()
        };
        // What attention and the feed-forward layer make, as it is added.
        let output = |rows: Rows, tensor: &str| {
            if is_gemma {
                normed(&rows, tensor)
            } else {
                rows
            }
        };
        let window = config.window(layer);
        let input = normed(&stream, "input_layernorm.weight");
        let project = |tensor: &str, rows: &Rows| linear(base, &name(tensor), rows);
        let query = project("self_attn.q_proj", &input);
        let key = project("self_attn.k_proj", &input);
        let value = project("self_attn.v_proj", &input);
        let is_local = window.is_some();
        let query = heads(base, &name("self_attn.q_norm.weight"), is_local, &query);
        let key = heads(base, &name("self_attn.k_norm.weight"), is_local, &key);
        let mixed = attention(config, window, [&query, &key, &value]);
        let mixed = project("self_attn.o_proj", &mixed);
        stream = add(&stream, &output(mixed, "post_attention_layernorm.weight"));
        let input = if is_gemma {
            normed(&stream, "pre_feedforward_layernorm.weight")
        } else {
            normed(&stream, "post_attention_layernorm.weight")
        };
        let (gate, up) = (
            project("mlp.gate_proj", &input),
            project("mlp.up_proj", &input),
        );
        let of_row = |(gate, up): (&Vec<f64>, &Vec<f64>)| {
            let pairs = gate.iter().zip(up);
            pairs.map(|(g, u)| activation(config, *g) * u).collect()
        };
        let activated: Rows = gate.iter().zip(&up).map(of_row).collect();
        let down = project("mlp.down_proj", &activated);
        stream = add(&stream, &output(down, "post_feedforward_layernorm.weight"));
    }
    let weight = base.tensor(FINAL_NORM).unwrap();
    let last: Rows = stream.iter().map(|row| norm(config, row, weight)).collect();
    let output = if config.tie_word_embeddings {
        EMBEDDING
    } else {
        OUTPUT
    };
    linear(base, output.trim_end_matches(".weight"), &last)
}

/// Negative log-likelihood of each next token, in nats.
pub(super) fn losses(base: &BaseModel, tokens: &[u32]) -> Vec<f64> {
    let logits = logits(base, tokens);
    let nexts = tokens.iter().skip(1);
    nexts
        .zip(&logits)
        .map(|(next, logits)| {
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            sum.ln() - logits[*next as usize]
        })
        .collect()
}
