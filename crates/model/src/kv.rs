//! The paged KV cache: storage of fixed size, cut into blocks that sequences borrow.
//!
//! A block holds [`KV_BLOCK_TOKENS`] tokens of every layer and head, in f32. Blocks go back to the
//! pool when their sequence is dropped, from whichever thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::LlamaConfig;
use crate::kernel::{BLOCK_TOKENS, HeadBlocks, write_token};

/// Tokens of one block.
pub const KV_BLOCK_TOKENS: usize = BLOCK_TOKENS;

/// Why no room could be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KvError {
    /// Not enough free blocks; nothing was taken.
    #[error("the KV cache has {free} free blocks of {KV_BLOCK_TOKENS} tokens, {needed} are needed")]
    Exhausted {
        /// Blocks asked for.
        needed: usize,
        /// Blocks left.
        free: usize,
    },
}

#[derive(Debug)]
struct FreeList(Mutex<Vec<u32>>);

impl FreeList {
    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        // A list of numbers is whole after every statement: a panic elsewhere can't tear it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All keys and values of an engine.
#[derive(Debug)]
pub struct KvPool {
    storage: Vec<f32>,
    free: Arc<FreeList>,
    blocks: usize,
    shape: KvShape,
}

/// How a block is laid out: `[layers][kv_heads][keys: head_dim × 16, values: 16 × head_dim]`.
#[derive(Debug, Clone, Copy)]
struct KvShape {
    layers: usize,
    heads: usize,
    head_dim: usize,
}

impl KvShape {
    fn head_size(self) -> usize {
        HeadBlocks::head_size(self.head_dim)
    }

    fn block_size(self) -> usize {
        self.layers * self.heads * self.head_size()
    }

    fn offset(self, layer: usize, head: usize) -> usize {
        (layer * self.heads + head) * self.head_size()
    }
}

impl KvPool {
    /// A pool of `blocks` blocks for this model, all memory taken at once.
    pub fn new(config: &LlamaConfig, blocks: usize) -> Self {
        let shape = KvShape {
            layers: config.num_hidden_layers,
            heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        // Low numbers are handed out first.
        let free = (0..u32::try_from(blocks).unwrap_or(u32::MAX))
            .rev()
            .collect();
        Self {
            storage: vec![0.0; blocks * shape.block_size()],
            free: Arc::new(FreeList(Mutex::new(free))),
            blocks,
            shape,
        }
    }

    /// Bytes of one block of this model.
    pub fn block_bytes(config: &LlamaConfig) -> usize {
        let heads = config.num_hidden_layers * config.num_key_value_heads;
        heads * HeadBlocks::head_size(config.head_dim) * size_of::<f32>()
    }

    /// Blocks of the pool.
    pub fn total_blocks(&self) -> usize {
        self.blocks
    }

    /// Blocks that no sequence holds.
    pub fn free_blocks(&self) -> usize {
        self.free.lock().len()
    }

    /// A sequence without tokens and blocks.
    pub fn sequence(&self) -> KvSequence {
        KvSequence {
            blocks: Vec::new(),
            tokens: 0,
            free: Arc::clone(&self.free),
        }
    }

    /// Makes room for `tokens` tokens in all, those that the sequence has included.
    ///
    /// # Errors
    /// Too few free blocks; then nothing was taken.
    pub fn reserve(&self, sequence: &mut KvSequence, tokens: usize) -> Result<(), KvError> {
        let needed = sequence.missing_blocks(tokens);
        let mut free = sequence.free.lock();
        let left = free.len();
        match left.checked_sub(needed) {
            Some(start) => {
                sequence.blocks.extend(free.drain(start..).rev());
                Ok(())
            }
            None => Err(KvError::Exhausted { needed, free: left }),
        }
    }

    /// Whether the sequence's blocks are this pool's.
    pub(crate) fn owns(&self, sequence: &KvSequence) -> bool {
        Arc::ptr_eq(&self.free, &sequence.free)
    }

    /// Writes one token's keys and values of one layer, `[kv_heads, head_dim]` each.
    pub(crate) fn write(
        &mut self,
        sequence: &KvSequence,
        layer: usize,
        position: usize,
        (keys, values): (&[f32], &[f32]),
    ) {
        let shape = self.shape;
        let Some(block) = sequence.blocks.get(position / KV_BLOCK_TOKENS) else {
            return;
        };
        let start = *block as usize * shape.block_size() + shape.offset(layer, 0);
        let size = shape.heads * shape.head_size();
        let Some(heads) = self.storage.get_mut(start..start + size) else {
            return;
        };
        let vectors = keys
            .chunks_exact(shape.head_dim)
            .zip(values.chunks_exact(shape.head_dim));
        for (head, (key, value)) in heads.chunks_exact_mut(shape.head_size()).zip(vectors) {
            write_token(head, position % KV_BLOCK_TOKENS, key, value);
        }
    }

    /// The keys and values of one layer and head of a sequence.
    pub(crate) fn head<'a>(
        &'a self,
        sequence: &'a KvSequence,
        layer: usize,
        head: usize,
    ) -> HeadBlocks<'a> {
        HeadBlocks {
            storage: &self.storage,
            table: &sequence.blocks,
            stride: self.shape.block_size(),
            offset: self.shape.offset(layer, head),
            head_dim: self.shape.head_dim,
        }
    }
}

/// The cached tokens of one sequence. Its blocks return to the pool when it is dropped.
#[derive(Debug)]
pub struct KvSequence {
    blocks: Vec<u32>,
    tokens: usize,
    free: Arc<FreeList>,
}

impl KvSequence {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Blocks held.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that are missing for `tokens` tokens in all.
    pub fn missing_blocks(&self, tokens: usize) -> usize {
        tokens
            .div_ceil(KV_BLOCK_TOKENS)
            .saturating_sub(self.blocks.len())
    }

    /// Forgets all tokens and gives the blocks back.
    pub fn clear(&mut self) {
        self.tokens = 0;
        self.free.lock().extend(self.blocks.drain(..).rev());
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }
}

impl Drop for KvSequence {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TinyShape;

    #[test]
    fn blocks_return_on_drop_and_nothing_is_taken_by_a_refusal() {
        let pool = KvPool::new(&TinyShape::default().config(), 4);
        let mut a = pool.sequence();
        pool.reserve(&mut a, 17).unwrap();
        assert_eq!((a.blocks(), pool.free_blocks()), (2, 2));
        pool.reserve(&mut a, 32).unwrap();
        assert_eq!(a.blocks(), 2);
        let mut b = pool.sequence();
        assert_eq!(
            pool.reserve(&mut b, 33),
            Err(KvError::Exhausted { needed: 3, free: 2 })
        );
        assert_eq!(pool.free_blocks(), 2);
        drop(a);
        pool.reserve(&mut b, 64).unwrap();
        std::thread::spawn(move || drop(b)).join().unwrap();
        assert_eq!(pool.free_blocks(), 4);
    }
}
