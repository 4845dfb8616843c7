//! Continuous batching as a pure state machine: which tokens the next forward pass computes.
//!
//! A sequence is its prompt and what was generated so far; `computed` says how many of these tokens
//! have keys and values in the cache. Everything follows from that: a prompt is prefilled in chunks
//! (`computed` grows), a decode step is a chunk of one token, and preemption sets `computed` back to
//! zero, after which the sequence is computed again and goes on as if nothing had happened.
//!
//! Order of a pass: every decode row first (oldest sequence first), then prefill chunks of running
//! sequences, then waiting sequences in order of arrival. Where KV blocks run out, the youngest
//! running sequence gives its blocks back; the oldest never does, so that every sequence ends
//! (recompute preemption as in vLLM: Kwon et al. 2023, arXiv:2309.06180, section 4.5).

mod sequence;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use sequence::{Sequence, SequenceId};

/// Bounds of the machine. All are at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that run together.
    pub sequences: usize,
    /// Tokens that one forward pass computes.
    pub pass_tokens: usize,
    /// KV blocks in all.
    pub blocks: usize,
    /// Tokens that one block holds.
    pub block_tokens: usize,
    /// Tokens of prompt and answer together.
    pub context_tokens: usize,
}

impl Limits {
    /// Blocks that `tokens` tokens need.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }
}

/// A sequence that can never run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// There is nothing to predict from.
    #[error("sequence has no prompt tokens; at least 1 is needed")]
    Empty,
    /// It does not fit the context.
    #[error(
        "prompt ({prompt} tokens) and answer ({answer} tokens) exceed the context of {limit} tokens"
    )]
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to generate.
        answer: usize,
        /// The limit.
        limit: usize,
    },
    /// It does not fit the KV cache even alone.
    #[error(
        "sequence needs {needed} KV blocks, the cache has {limit}; give it more memory or lower the context"
    )]
    Blocks {
        /// Blocks at its greatest length.
        needed: usize,
        /// Blocks in all.
        limit: usize,
    },
}

/// What one sequence does in a pass: the `count` tokens from `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// The sequence.
    pub id: SequenceId,
    /// First token, equal to what the cache holds.
    pub start: usize,
    /// Tokens.
    pub count: usize,
    /// Whether the chunk reaches the sequence's end, so that the next token is sampled.
    pub samples: bool,
}

/// One forward pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// What to compute; empty: there is nothing to do.
    pub chunks: Vec<Chunk>,
    /// Sequences that lost their KV blocks: drop theirs before the pass.
    pub preempted: Vec<SequenceId>,
}

impl Pass {
    /// Tokens of all chunks.
    pub fn tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.count).sum()
    }
}

/// What became of a sequence after a token was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterToken {
    /// It goes on.
    Running,
    /// It has all the tokens it may have, and is gone.
    Length,
}

/// The state machine. See the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Sequence>,
    /// In order of arrival, all before the waiting ones: admission takes the oldest, preemption
    /// gives back the youngest.
    running: Vec<Sequence>,
    free_blocks: usize,
}

impl Scheduler {
    /// An empty machine. Fewer `pass_tokens` than `sequences` would starve the youngest: the greater
    /// of the two counts.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits: Limits {
                pass_tokens: limits.pass_tokens.max(limits.sequences),
                ..limits
            },
            waiting: VecDeque::new(),
            running: Vec::new(),
            free_blocks: limits.blocks,
        }
    }

    /// Puts a sequence at the end of the queue.
    ///
    /// # Errors
    /// Where it could never run; see [`AddError`].
    pub fn add(&mut self, sequence: Sequence) -> Result<(), AddError> {
        let (prompt, answer) = (sequence.tokens().len(), sequence.maximum_new_tokens());
        if prompt == 0 {
            return Err(AddError::Empty);
        }
        if prompt + answer > self.limits.context_tokens {
            return Err(AddError::Context {
                prompt,
                answer,
                limit: self.limits.context_tokens,
            });
        }
        let needed = self.limits.blocks_for(prompt + answer);
        if needed > self.limits.blocks {
            return Err(AddError::Blocks {
                needed,
                limit: self.limits.blocks,
            });
        }
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// Decides the next pass and takes its KV blocks.
    ///
    /// The caller computes all chunks, or [`Self::remove`]s the sequences that it can't compute,
    /// and calls [`Self::computed`] before the next plan.
    pub fn plan(&mut self) -> Pass {
        let mut pass = Pass::default();
        let mut budget = self.limits.pass_tokens;
        // Two sweeps over the running: those with one token left to compute (decode rows), which
        // someone is waiting to read, then the others (prefill chunks).
        for decode in [true, false] {
            let mut index = 0;
            while index < self.running.len() && budget > 0 {
                let Some(pending) = self.running.get(index).map(Sequence::pending) else {
                    break;
                };
                if (pending == 1) != decode {
                    index += 1;
                    continue;
                }
                let count = pending.min(budget);
                // Where this sequence is the youngest it gives way itself: the loop ends there.
                if self.take_blocks(index, count, &mut pass) {
                    budget -= count;
                    index += 1;
                }
            }
        }
        // Whoever was preempted just now would come straight back and push the others out again.
        if pass.preempted.is_empty() {
            self.admit(budget, &mut pass);
        }
        // A preempted sequence may have been planned before it lost its blocks.
        pass.chunks
            .retain(|chunk| !pass.preempted.contains(&chunk.id));
        pass
    }

    /// Reserves the blocks of `count` more tokens for the running sequence at `index`, preempting
    /// from the youngest on. False where that one itself was preempted.
    fn take_blocks(&mut self, index: usize, count: usize, pass: &mut Pass) -> bool {
        loop {
            let Some(sequence) = self.running.get_mut(index) else {
                return false;
            };
            let wanted = self.limits.blocks_for(sequence.computed() + count);
            let more = wanted.saturating_sub(sequence.blocks());
            if more <= self.free_blocks {
                self.free_blocks -= more;
                sequence.set_blocks(wanted.max(sequence.blocks()));
                pass.chunks.push(sequence.chunk(count));
                return true;
            }
            let Some(mut youngest) = self.running.pop() else {
                return false;
            };
            self.free_blocks += youngest.preempt();
            pass.preempted.push(youngest.id());
            self.waiting.push_front(youngest);
        }
    }

    /// Starts waiting sequences while there is room for their whole prompt and, where they generate, one
    /// token more.
    fn admit(&mut self, mut budget: usize, pass: &mut Pass) {
        while budget > 0 && self.running.len() < self.limits.sequences {
            let Some(next) = self.waiting.front() else {
                return;
            };
            // What running sequences still need for their prompts is spoken for.
            let promised: usize = self
                .running
                .iter()
                .map(|running| {
                    self.limits
                        .blocks_for(running.tokens().len())
                        .saturating_sub(running.blocks())
                })
                .sum();
            let next_token = next.maximum_new_tokens().min(1);
            let wanted = self.limits.blocks_for(next.tokens().len() + next_token);
            if promised + wanted > self.free_blocks {
                return;
            }
            let Some(mut next) = self.waiting.pop_front() else {
                return;
            };
            let count = next.pending().min(budget);
            let blocks = self.limits.blocks_for(count);
            self.free_blocks -= blocks;
            next.set_blocks(blocks);
            pass.chunks.push(next.chunk(count));
            budget -= count;
            self.running.push(next);
        }
    }

    /// Records that a pass was computed. Sequences that were removed meanwhile are passed over.
    pub fn computed(&mut self, pass: &Pass) {
        for chunk in &pass.chunks {
            if let Some(sequence) = self.find_running(chunk.id) {
                sequence.advance(chunk.count);
            }
        }
    }

    /// Adds the sampled token of a sequence whose chunk [`Chunk::samples`].
    ///
    /// A sequence that reached its length is removed. `None`: no such sequence runs.
    pub fn push_token(&mut self, id: SequenceId, token: u32) -> Option<AfterToken> {
        let sequence = self.find_running(id)?;
        if sequence.push(token) {
            return Some(AfterToken::Running);
        }
        self.remove(id);
        Some(AfterToken::Length)
    }

    /// Takes a sequence out, running or waiting, and gives its blocks back. False: there was none.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        if let Some(at) = self.running.iter().position(|s| s.id() == id) {
            self.free_blocks += self.running.remove(at).blocks();
            return true;
        }
        if let Some(at) = self.waiting.iter().position(|s| s.id() == id) {
            self.waiting.remove(at);
            return true;
        }
        false
    }

    /// The sequence's tokens, prompt first.
    pub fn tokens(&self, id: SequenceId) -> Option<&[u32]> {
        self.running
            .iter()
            .find(|sequence| sequence.id() == id)
            .map(Sequence::tokens)
    }

    /// Every sequence, running ones first.
    pub fn ids(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.running.iter().chain(&self.waiting).map(Sequence::id)
    }

    /// Sequences in the cache.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// KV blocks in use.
    pub fn used_blocks(&self) -> usize {
        self.limits.blocks - self.free_blocks
    }

    /// Whether there is no sequence at all.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    fn find_running(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.iter_mut().find(|sequence| sequence.id() == id)
    }
}
