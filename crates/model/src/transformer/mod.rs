//! The forward and backward pass of the Llama family: RMS norm, rotary embedding, grouped-query attention, SwiGLU
//! or GEGLU.
//!
//! One set of kernels serves training and serving. Training works on packed batches of whole sequences and
//! keeps what backward needs; serving works on rows of many sequences over the paged KV cache. Rows are flat,
//! `[rows, width]`, without padding. What differs between families is data: empty norms and biases, a window, a
//! rotary embedding for each layer, an activation.
//! A model that was loaded onto a GPU goes through the same functions: see `gpu/`.

mod attention;
mod awake;
mod backward;
mod compact;
mod forward;
mod frozen;
pub(crate) mod gpu;
pub(crate) mod linear;
mod load;
mod loss;
mod memory;
mod preference;
mod segments;
mod serve;
mod train;
mod weights;

pub use gpu::{Accelerator, Choice, NoGpu};
pub use load::Held;
pub use loss::TokenScore;
pub use preference::{Answer, PreferenceBatch};
pub use serve::{LogitRows, RowLogits, SequenceStep};
pub use train::{Loss, StepSeed, TrainableLlama};
pub use weights::Llama;

use crate::base::BaseError;
use crate::kv::KvError;

/// Why a pass can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A token id is not in the vocabulary.
    #[error("token id {token} is not below the vocabulary's size {vocabulary}")]
    Token {
        /// The id.
        token: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// A sequence is longer than the model's positions.
    #[error("sequence of {tokens} tokens is longer than the model's {limit} positions")]
    Length {
        /// Tokens of the sequence.
        tokens: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// The KV cache is full, or a sequence is another pool's.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// A sequence belongs to another pool.
    #[error("the sequence belongs to another KV pool")]
    ForeignSequence,
    /// The pool's memory is not where the model computes.
    #[error("the KV pool is not where the model computes")]
    ForeignPool,
    /// An adapter was loaded for a model of another shape.
    #[error("the adapter was loaded for a model of another shape")]
    ForeignAdapter,
    /// A batch without a row to predict.
    #[error("the batch has no target: every token is masked")]
    NoTargets,
    /// Weights that do not fit the configuration.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// A tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Several whole sequences in one pass, each attending to itself only.
#[derive(Debug, Clone, Default)]
pub struct PackedBatch {
    pub(crate) tokens: Vec<u32>,
    /// Tokens of each sequence.
    pub(crate) segments: Vec<usize>,
    /// `(row, next token)` for every token that is to be predicted, in row order.
    pub(crate) targets: Vec<(usize, u32)>,
}

impl ModelError {
    /// Whether a GPU's memory is full. CUDA's libraries say it in the names of their errors alone.
    pub fn is_out_of_memory(&self) -> bool {
        let Self::Tensor(error) = self else {
            return false;
        };
        let text = format!("{error:?}");
        ["OUT_OF_MEMORY", "ALLOC_FAILED"]
            .iter()
            .any(|name| text.contains(name))
    }
}

impl PackedBatch {
    /// A batch without sequences.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one sequence. Token `i + 1` is predicted at row `i` where `loss_mask[i + 1]` is set; a mask that
    /// is shorter than the tokens is unset at the end.
    pub fn push(&mut self, tokens: &[u32], loss_mask: &[bool]) {
        let start = self.tokens.len();
        let next = tokens.iter().zip(loss_mask).enumerate().skip(1);
        self.targets.extend(
            next.filter(|(_, (_, wanted))| **wanted)
                .map(|(i, (token, _))| (start + i - 1, *token)),
        );
        self.tokens.extend_from_slice(tokens);
        self.segments.push(tokens.len());
    }

    /// Tokens of all sequences.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens that are predicted.
    pub fn targets(&self) -> usize {
        self.targets.len()
    }

    fn check(&self, config: &crate::config::LlamaConfig) -> Result<(), ModelError> {
        check_tokens(&self.tokens, config)?;
        match self
            .segments
            .iter()
            .find(|tokens| **tokens > config.max_position_embeddings)
        {
            Some(tokens) => Err(ModelError::Length {
                tokens: *tokens,
                limit: config.max_position_embeddings,
            }),
            None => Ok(()),
        }
    }
}

fn check_tokens(tokens: &[u32], config: &crate::config::LlamaConfig) -> Result<(), ModelError> {
    let vocabulary = config.vocab_size;
    match tokens.iter().find(|token| **token as usize >= vocabulary) {
        Some(token) => Err(ModelError::Token {
            token: *token,
            vocabulary,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod activations;
#[cfg(test)]
mod families;
#[cfg(test)]
mod quantised;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod served_tests;
#[cfg(test)]
mod tests;
