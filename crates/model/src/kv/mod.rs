//! The paged KV cache: storage of fixed size, cut into blocks that sequences borrow.
//!
//! A block holds [`KV_BLOCK_TOKENS`] tokens of every layer and head, in f32 or f16, or in bf16 in a GPU's memory. Blocks
//! go back to the pool when their sequence is dropped, from whichever thread. Sequences with the same beginning under the
//! same adapter can share the full blocks of it: see [`KvSequence::adopt`].

mod ledger;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use crate::config::LlamaConfig;
use crate::kernel::{
    BLOCK_TOKENS, HeadBlocks, HeadQuery, attend, attend_f16, write_token, write_token_f16,
};
use crate::transformer::Accelerator;
use crate::transformer::gpu::GpuCache;
pub use ledger::Owner;
use ledger::{Ledger, Parent};

/// Tokens of one block.
pub const KV_BLOCK_TOKENS: usize = BLOCK_TOKENS;

/// Why no room could be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KvError {
    /// Not enough free blocks; nothing was taken.
    #[error("the KV cache has {free} free blocks, {needed} are needed")]
    Exhausted {
        /// Blocks asked for.
        needed: usize,
        /// Blocks left.
        free: usize,
    },
}

/// A handle of the blocks of one pool: who holds them, not what is in them. Clones share the blocks.
#[derive(Debug, Clone)]
pub struct KvBlocks(Arc<Mutex<Ledger>>);

impl KvBlocks {
    /// `blocks` free blocks of `block_tokens` tokens.
    pub fn new(blocks: usize, block_tokens: usize) -> Self {
        Self(Arc::new(Mutex::new(Ledger::new(blocks, block_tokens))))
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // Nothing in the ledger's methods panics: a panic elsewhere can't tear it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.lock().total()
    }

    /// Blocks that no sequence holds.
    pub fn free(&self) -> usize {
        self.lock().available()
    }

    /// Tokens that one block holds.
    pub fn block_tokens(&self) -> usize {
        self.lock().block_tokens()
    }

    /// Blocks that `tokens` tokens need.
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens())
    }

    /// A sequence without tokens and blocks, whose tokens are read by this adapter.
    pub fn sequence(&self, owner: Owner) -> KvSequence {
        KvSequence {
            blocks: Vec::new(),
            tokens: 0,
            published: 0,
            next: Parent::Start(owner.clone()),
            owner,
            ledger: self.clone(),
        }
    }
}

/// All keys and values of an engine.
#[derive(Debug)]
pub struct KvPool {
    storage: Storage,
    blocks: KvBlocks,
    shape: KvShape,
}

/// What keys and values are held in, in the host's memory. Attention is computed in f32 from either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvFormat {
    /// As they are computed.
    #[default]
    F32,
    /// Rounded to the nearest f16, at most 65,504: half of the memory, and half of what attention reads.
    F16,
}

impl KvFormat {
    /// Bytes of a value.
    fn bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::F16 => size_of::<u16>(),
        }
    }
}

/// Where keys and values lie.
#[derive(Debug)]
enum Storage {
    Host(Vec<f32>),
    /// The bits of f16.
    Halves(Vec<u16>),
    Gpu(GpuCache),
}

/// The keys and values of one layer and head of a sequence.
#[derive(Clone, Copy)]
pub(crate) enum CachedHead<'a> {
    F32(HeadBlocks<'a>),
    F16(HeadBlocks<'a, u16>),
}

impl CachedHead<'_> {
    /// See [`attend`].
    pub fn attend(self, queries: &mut [HeadQuery<'_>], scale: f32, scores: &mut Vec<f32>) {
        match self {
            Self::F32(blocks) => attend(queries, blocks, scale, scores),
            Self::F16(blocks) => attend_f16(queries, blocks, scale, scores),
        }
    }
}

/// A token's keys and values of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CachedToken<'a> {
    /// Its place in its sequence.
    pub position: usize,
    /// `[kv_heads, head_dim]`
    pub keys: &'a [f32],
    /// `[kv_heads, head_dim]`
    pub values: &'a [f32],
}

/// How a block of the host's memory is laid out: `[layers][kv_heads][keys: head_dim × 16, values: 16 × head_dim]`.
#[derive(Debug, Clone, Copy)]
struct KvShape {
    layers: usize,
    heads: usize,
    head_dim: usize,
}

impl KvShape {
    fn of(config: &LlamaConfig) -> Self {
        Self {
            layers: config.num_hidden_layers,
            heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        }
    }

    fn head_size(self) -> usize {
        HeadBlocks::head_size(self.head_dim)
    }

    fn block_size(self) -> usize {
        self.layers * self.heads * self.head_size()
    }

    fn offset(self, layer: usize, head: usize) -> usize {
        (layer * self.heads + head) * self.head_size()
    }

    /// The blocks of one layer and head.
    fn blocks<'a, T>(
        self,
        storage: &'a [T],
        sequence: &'a KvSequence,
        (layer, head): (usize, usize),
    ) -> HeadBlocks<'a, T> {
        HeadBlocks {
            storage,
            table: &sequence.blocks,
            stride: self.block_size(),
            offset: self.offset(layer, head),
            head_dim: self.head_dim,
        }
    }

    /// Writes tokens of one layer with the threads of the current rayon pool.
    fn write<T: Send>(
        self,
        mut storage: &mut [T],
        layer: usize,
        tokens: &[(usize, CachedToken<'_>)],
        write: impl Fn(&mut [T], usize, &[f32], &[f32]) + Sync,
    ) {
        /// Blocks of a task: each is a few microseconds.
        const BLOCKS: usize = 4;
        // Each block's part that is this layer's, in the order of the blocks, and the tokens that go there.
        let mut parts = Vec::with_capacity(tokens.len());
        let mut passed = 0;
        for tokens in tokens.chunk_by(|one, next| one.0 == next.0) {
            let Some((block, _)) = tokens.first() else {
                continue;
            };
            let start = block * self.block_size() + self.offset(layer, 0);
            let Some((_, rest)) = storage.split_at_mut_checked(start - passed) else {
                return;
            };
            let Some((heads, rest)) = rest.split_at_mut_checked(self.heads * self.head_size())
            else {
                return;
            };
            passed = start + heads.len();
            storage = rest;
            parts.push((heads, tokens));
        }
        let each = parts.into_par_iter().with_min_len(BLOCKS);
        each.for_each(|(heads, tokens)| {
            for (_, token) in tokens {
                let keys = token.keys.chunks_exact(self.head_dim);
                let vectors = keys.zip(token.values.chunks_exact(self.head_dim));
                let heads = heads.chunks_exact_mut(self.head_size());
                for (head, (key, value)) in heads.zip(vectors) {
                    write(head, token.position % KV_BLOCK_TOKENS, key, value);
                }
            }
        });
    }
}

impl KvPool {
    /// A pool of `blocks` blocks for a model that the CPU computes, all memory taken at once. For any model:
    /// [`Llama::kv_pool`](crate::transformer::Llama::kv_pool).
    pub fn new(config: &LlamaConfig, blocks: usize) -> Self {
        Self::of_format(config, blocks, KvFormat::F32)
    }

    /// The same, of values that are held in this format.
    pub fn of_format(config: &LlamaConfig, blocks: usize, format: KvFormat) -> Self {
        let shape = KvShape::of(config);
        let values = blocks * shape.block_size();
        let storage = match format {
            KvFormat::F32 => Storage::Host(vec![0.0; values]),
            KvFormat::F16 => Storage::Halves(vec![0; values]),
        };
        Self::over(storage, blocks, shape)
    }

    /// A pool in a GPU's memory.
    pub(crate) fn on_gpu(
        config: &LlamaConfig,
        blocks: usize,
        on: &Accelerator,
    ) -> candle_core::Result<Self> {
        let cache = GpuCache::new(config, blocks * KV_BLOCK_TOKENS, on)?;
        let shape = KvShape::of(config);
        Ok(Self::over(Storage::Gpu(cache), blocks, shape))
    }

    fn over(storage: Storage, blocks: usize, shape: KvShape) -> Self {
        Self {
            storage,
            blocks: KvBlocks::new(blocks, KV_BLOCK_TOKENS),
            shape,
        }
    }

    /// Bytes of one block of this model in the host's memory, in f32.
    pub fn block_bytes(config: &LlamaConfig) -> usize {
        Self::block_bytes_of(config, KvFormat::F32)
    }

    /// The same in this format.
    pub fn block_bytes_of(config: &LlamaConfig, format: KvFormat) -> usize {
        let heads = config.num_hidden_layers * config.num_key_value_heads;
        heads * HeadBlocks::head_size(config.head_dim) * format.bytes()
    }

    /// Who holds which of its blocks.
    pub fn blocks(&self) -> &KvBlocks {
        &self.blocks
    }

    /// Blocks of the pool.
    pub fn total_blocks(&self) -> usize {
        self.blocks.total()
    }

    /// Blocks that no sequence holds.
    pub fn free_blocks(&self) -> usize {
        self.blocks.free()
    }

    /// A sequence without tokens and blocks, which shares nothing.
    pub fn sequence(&self) -> KvSequence {
        self.blocks.sequence(None)
    }

    /// Whether the sequence's blocks are this pool's.
    pub(crate) fn owns(&self, sequence: &KvSequence) -> bool {
        Arc::ptr_eq(&self.blocks.0, &sequence.ledger.0)
    }

    /// What a GPU holds, where this pool is there.
    pub(crate) fn gpu(&self) -> Option<&GpuCache> {
        match &self.storage {
            Storage::Host(_) | Storage::Halves(_) => None,
            Storage::Gpu(cache) => Some(cache),
        }
    }

    /// Writes tokens' keys and values of one layer to the host's memory, with the threads of the current rayon pool. A
    /// token whose sequence has no room for it is left out.
    pub(crate) fn write<'a>(
        &mut self,
        layer: usize,
        tokens: impl Iterator<Item = (&'a KvSequence, CachedToken<'a>)>,
    ) {
        let placed = tokens.filter_map(|(sequence, token)| {
            let block = sequence.blocks.get(token.position / KV_BLOCK_TOKENS)?;
            Some((*block as usize, token))
        });
        let mut tokens: Vec<(usize, CachedToken<'_>)> = placed.collect();
        tokens.sort_by_key(|(block, _)| *block);
        let shape = self.shape;
        match &mut self.storage {
            Storage::Host(storage) => shape.write(storage, layer, &tokens, write_token),
            Storage::Halves(storage) => shape.write(storage, layer, &tokens, write_token_f16),
            Storage::Gpu(_) => {}
        }
    }

    /// The keys and values of one layer and head of a sequence, from the host's memory.
    pub(crate) fn head<'a>(
        &'a self,
        sequence: &'a KvSequence,
        layer: usize,
        head: usize,
    ) -> CachedHead<'a> {
        let (shape, at) = (self.shape, (layer, head));
        match &self.storage {
            Storage::Host(storage) => CachedHead::F32(shape.blocks(storage, sequence, at)),
            Storage::Halves(storage) => CachedHead::F16(shape.blocks(storage, sequence, at)),
            Storage::Gpu(_) => CachedHead::F32(shape.blocks(&[], sequence, at)),
        }
    }
}

/// The cached tokens of one sequence. Its blocks return to the pool when it is dropped.
#[derive(Debug)]
pub struct KvSequence {
    blocks: Vec<u32>,
    tokens: usize,
    /// How many of the blocks, from the first on, others can find.
    published: usize,
    /// What the first unpublished block comes after.
    next: Parent,
    owner: Owner,
    ledger: KvBlocks,
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
        self.ledger.needed(tokens).saturating_sub(self.blocks.len())
    }

    /// Makes room for `tokens` tokens in all, those that the sequence has included.
    ///
    /// # Errors
    /// Too few free blocks; then nothing was taken.
    pub fn reserve(&mut self, tokens: usize) -> Result<(), KvError> {
        let missing = self.missing_blocks(tokens);
        self.ledger.lock().take(missing, &mut self.blocks)
    }

    /// Shares the published blocks that `tokens` begins with, under the sequence's adapter; how many tokens they
    /// hold. At least the last token is left to compute: its logits are nowhere. A sequence that holds something
    /// already adopts nothing.
    pub fn adopt(&mut self, tokens: &[u32]) -> usize {
        let known = tokens.len().saturating_sub(1);
        if !self.blocks.is_empty() {
            return 0;
        }
        let mut ledger = self.ledger.lock();
        let known = tokens.get(..known).unwrap_or_default();
        self.next = ledger.adopt(&self.owner, known, &mut self.blocks);
        self.published = self.blocks.len();
        self.tokens = self.blocks.len() * ledger.block_tokens();
        self.tokens
    }

    /// Lets others find the full blocks of `tokens`: the sequence's from its first on, all of them computed.
    pub fn publish(&mut self, tokens: &[u32]) {
        let mut ledger = self.ledger.lock();
        let parts = tokens.chunks_exact(ledger.block_tokens());
        for (part, id) in parts.zip(&mut self.blocks).skip(self.published) {
            let parent = std::mem::replace(&mut self.next, Parent::Start(None));
            (*id, self.next) = ledger.publish(*id, parent, part);
            self.published += 1;
        }
    }

    /// Forgets all tokens and gives the blocks back.
    pub fn clear(&mut self) {
        self.tokens = 0;
        self.published = 0;
        self.next = Parent::Start(self.owner.clone());
        let mut ledger = self.ledger.lock();
        // The last block first: see the ledger.
        for id in self.blocks.drain(..).rev() {
            ledger.release(id);
        }
    }

    /// Where its first `tokens` tokens lie, as numbers of places of [`KV_BLOCK_TOKENS`] to a block.
    pub(crate) fn places(&self, tokens: usize) -> Vec<u32> {
        let size = KV_BLOCK_TOKENS as u32;
        let places = self.blocks.iter().flat_map(|id| id * size..(id + 1) * size);
        places.take(tokens).collect()
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
