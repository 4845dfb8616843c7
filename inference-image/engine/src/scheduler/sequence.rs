//! One sequence: prompt, generated tokens, and how far the cache has them.

use super::Chunk;

/// Names a sequence; grows with arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// One sequence of the scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    id: SequenceId,
    /// Prompt, then what was generated.
    tokens: Vec<u32>,
    /// Tokens that may still be generated.
    remaining: usize,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    /// KV blocks held.
    blocks: usize,
}

impl Sequence {
    /// A sequence that has not run yet. With `maximum_new_tokens` of 0 only its prompt is computed: it is
    /// [`super::Scheduler::remove`]d where a token would be sampled.
    pub fn new(id: SequenceId, prompt: Vec<u32>, maximum_new_tokens: usize) -> Self {
        Self {
            id,
            tokens: prompt,
            remaining: maximum_new_tokens,
            computed: 0,
            blocks: 0,
        }
    }

    /// Its name.
    pub fn id(&self) -> SequenceId {
        self.id
    }

    /// Prompt, then what was generated.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens that may still be generated.
    pub fn maximum_new_tokens(&self) -> usize {
        self.remaining
    }

    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    pub(super) fn set_blocks(&mut self, blocks: usize) {
        self.blocks = blocks;
    }

    /// Tokens that are not in the cache yet: 1 in a decode step, more in prefill.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub(super) fn chunk(&self, count: usize) -> Chunk {
        Chunk {
            id: self.id,
            start: self.computed,
            count,
            samples: self.computed + count == self.tokens.len(),
        }
    }

    pub(super) fn advance(&mut self, count: usize) {
        self.computed = (self.computed + count).min(self.tokens.len());
    }

    /// Forgets what was computed; returns the blocks that are free again.
    pub(super) fn preempt(&mut self) -> usize {
        self.computed = 0;
        std::mem::take(&mut self.blocks)
    }

    /// Adds a token; false where it was the last one allowed.
    pub(super) fn push(&mut self, token: u32) -> bool {
        self.tokens.push(token);
        self.remaining = self.remaining.saturating_sub(1);
        self.remaining > 0
    }
}
