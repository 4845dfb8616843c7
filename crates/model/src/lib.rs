//! The transformer that graftwork trains and serves (Llama, Mistral, Qwen 2 and 3, Gemma 3), and
//! everything that belongs to its files.
//!
//! One forward pass is shared by the trainer (differentiable, through [`candle_core`]'s autograd)
//! and by the engine (batched rows of different adapters over a paged KV cache), so that what was
//! trained is what is served. On the CPU every reduction has a fixed order: a row's logits have the
//! same bits whatever shares its batch, however its prompt was cut, and for any thread count.
//!
//! | module | holds |
//! |---|---|
//! | [`config`], [`rope`] | the Hugging Face `config.json` of a model, and its rotary embedding |
//! | [`base`] | a base model's folder: weights in, weights out, digest |
//! | [`quant`], [`gguf`] | weights in GGUF's block formats, and GGUF files |
//! | [`category`] | what an error about files asks of the caller |
//! | [`tokenizer`], [`chat`] | `tokenizer.json`, chat template, training rows |
//! | [`tool_calls`] | calls of tools in what a model writes |
//! | [`shards`] | weights written in files of bounded size |
//! | [`kernel`] | packed weights and the fixed-order products |
//! | [`transformer`] | the forward and backward pass |
//! | [`lora`], [`targets`], [`peft`] | trainable low-rank parameters, which modules have them; adapter folders as PEFT writes them |
//! | [`kv`] | the paged KV cache |
//! | [`sampler`] | from logits to a token |
//! | [`random`] | numbers that are a function of key and index |
//! | [`fixture`] | tiny random models for tests |
//!
//! What this crate does *not* do: it opens no socket, starts no runtime, knows no Kubernetes and no
//! artifact store, owns no optimiser and no schedule, and trains no tokenizer.

#![cfg_attr(
    test,
    allow(clippy::float_cmp, reason = "the same bits are what is promised")
)]

pub mod base;
pub mod category;
pub mod chat;
mod chat_json;
pub mod config;
pub mod fixture;
pub mod gguf;
pub mod kernel;
pub mod kv;
pub mod lora;
pub mod peft;
pub mod quant;
pub mod random;
pub mod rope;
pub mod sampler;
pub mod shards;
pub mod stored_adapter;
pub mod targets;
pub mod tensor_file;
mod token_bytes;
pub mod tokenizer;
pub mod tool_calls;
pub mod transformer;

mod base_files;
mod config_keys;
mod cuts;
mod digest;
mod factor;
mod identity;
mod peft_config;
