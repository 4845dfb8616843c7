//! Continuous batching as a pure state machine: which tokens the next forward pass computes.
//!
//! A sequence is its prompt and what was generated so far; `computed` says how many of these tokens
//! have keys and values in the cache. Everything follows from that: a prompt is prefilled in chunks
//! (`computed` grows), a decode step is a chunk of one token, and preemption sets `computed` back to
//! zero, after which the sequence is computed again and goes on as if nothing had happened.
//!
//! Order of a pass: every decode row first (longest running sequence first), then prefill chunks of running
//! sequences, then waiting sequences by the service that their adapters had ([`shares`]), or by arrival where the
//! engine is told so. Beside decode rows there
//! are only so many prompt tokens that streams hardly feel them, and without decode rows no more than a pass of half a
//! second computes ([`pace`]). Where KV blocks run out, the sequence
//! that was admitted last gives its blocks back; the first never does, so that every sequence ends
//! (recompute preemption as in vLLM: Kwon et al. 2023, arXiv:2309.06180, section 4.5).
//!
//! Who holds which block is the ledger's business, which the pool shares. A sequence begins with the blocks that
//! the ledger knows for its adapter and tokens, unless it wants to share nothing.

mod pace;
mod sequence;
mod shares;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use graftwork_model::kv::{KvBlocks, KvSequence};

use pace::Pace;
pub use sequence::{Sequence, SequenceId};
use shares::Shares;

/// How often the first waiting sequence of an adapter is overtaken at most, in batches of
/// [`Limits::sequences`].
const AGEING: usize = 2;
/// Of so many admissions at most one is that of an overdue sequence: the others wait at most twice as long for it.
const OVERDUE_EVERY: u64 = 2;

/// Bounds of the machine. All are at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that run together.
    pub sequences: usize,
    /// Tokens that one forward pass computes.
    pub pass_tokens: usize,
    /// Tokens of prompt and answer together.
    pub context_tokens: usize,
    /// Who is next.
    pub admission: Admission,
}

/// Which waiting sequence is admitted next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Admission {
    /// That of the adapter that was served least, with ageing.
    #[default]
    Fair,
    /// The one that came first, whatever it asks for.
    Arrival,
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
    /// Sequences that lost their KV blocks.
    pub preempted: Vec<SequenceId>,
    /// Tokens of the sequences admitted that were in the cache already.
    pub reused_tokens: usize,
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
    blocks: KvBlocks,
    /// In order of arrival, those that gave way first.
    waiting: VecDeque<Sequence>,
    /// In order of admission: preemption gives back the last one.
    running: Vec<Sequence>,
    shares: Shares,
    pace: Pace,
    /// Admissions so far, without those of sequences that gave way.
    admitted: u64,
    /// What `admitted` was when an overdue sequence was taken last.
    overdue_taken: u64,
}

impl Scheduler {
    /// An empty machine over these blocks. Fewer `pass_tokens` than `sequences` would starve the last: the
    /// greater of the two counts.
    pub fn new(limits: Limits, blocks: KvBlocks) -> Self {
        Self {
            limits: Limits {
                pass_tokens: limits.pass_tokens.max(limits.sequences),
                ..limits
            },
            blocks,
            waiting: VecDeque::new(),
            running: Vec::new(),
            shares: Shares::default(),
            pace: Pace::default(),
            admitted: 0,
            overdue_taken: 0,
        }
    }

    /// Puts a sequence at the end of the queue.
    ///
    /// # Errors
    /// Where it could never run; see [`AddError`].
    pub fn add(&mut self, mut sequence: Sequence) -> Result<(), AddError> {
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
        let (needed, limit) = (self.blocks.needed(prompt + answer), self.blocks.total());
        if needed > limit {
            return Err(AddError::Blocks { needed, limit });
        }
        self.shares.enter(sequence.adapter());
        sequence.admitted_before = self.admitted;
        sequence.queue = self.waiting.len() + 1;
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
            if !decode {
                let prompts = if pass.chunks.is_empty() {
                    self.pace.prompt_tokens_alone()
                } else {
                    self.pace.prompt_tokens(pass.chunks.len(), self.prompts())
                };
                budget = budget.min(prompts.unwrap_or(budget));
            }
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
                // Where this sequence is the last it gives way itself: the loop ends there.
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

    /// Sequences whose prompt is not computed: those that run, and those of the queue that there is a place for.
    fn prompts(&self) -> usize {
        let places = self.limits.sequences.saturating_sub(self.running.len());
        let begun = self.running.iter().filter(|it| it.pending() > 1).count();
        begun + places.min(self.waiting.len())
    }

    /// Reserves the blocks of `count` more tokens for the running sequence at `index`, preempting
    /// from the last one on. False where that one itself was preempted.
    fn take_blocks(&mut self, index: usize, count: usize, pass: &mut Pass) -> bool {
        loop {
            let Some(sequence) = self.running.get_mut(index) else {
                return false;
            };
            if sequence.reserve(sequence.computed() + count) {
                pass.chunks.push(sequence.chunk(count));
                return true;
            }
            let Some(mut last) = self.running.pop() else {
                return false;
            };
            last.leave();
            last.gave_way = true;
            pass.preempted.push(last.id());
            self.waiting.push_front(last);
        }
    }

    /// Starts waiting sequences while there is room for their whole prompt and, where they generate, one
    /// token more. Where the next one does not fit, the others wait with it: small ones must not keep out
    /// a large one for ever.
    fn admit(&mut self, mut budget: usize, pass: &mut Pass) {
        let overtaken = AGEING * self.limits.sequences;
        while budget > 0 && self.running.len() < self.limits.sequences {
            // What running sequences still need for their prompts is spoken for.
            let promised: usize = self
                .running
                .iter()
                .map(|running| {
                    let needed = self.blocks.needed(running.tokens().len());
                    needed.saturating_sub(running.blocks())
                })
                .sum();
            let (overdue, next) = match self.limits.admission {
                // The queue is by arrival.
                Admission::Arrival => (None, Some(0)),
                Admission::Fair => {
                    let overdue = self.overdue();
                    let served_least = || self.shares.next(self.waiting.iter(), overtaken);
                    (overdue, overdue.or_else(served_least))
                }
            };
            let Some(index) = next else {
                return;
            };
            let Some(next) = self.waiting.get_mut(index) else {
                return;
            };
            let reused = next.enter(&self.blocks);
            let next_token = next.maximum_new_tokens().min(1);
            let needed = self.blocks.needed(next.tokens().len() + next_token);
            let wanted = needed.saturating_sub(next.blocks());
            let count = next.pending().min(budget);
            if promised + wanted > self.blocks.free() || !next.reserve(reused + count) {
                next.leave();
                return;
            }
            let Some(mut next) = self.waiting.remove(index) else {
                return;
            };
            Shares::age(&mut self.waiting, index);
            if !next.gave_way {
                self.shares.charge(next.adapter(), next.pending());
                if overdue.is_some() {
                    self.overdue_taken = self.admitted;
                }
                self.admitted += 1;
            }
            next.gave_way = false;
            pass.chunks.push(next.chunk(count));
            pass.reused_tokens += reused;
            budget -= count;
            self.running.push(next);
        }
    }

    /// The place in the queue of a sequence that is overdue: since it came, half as many again were admitted as stood
    /// in the queue, then or now. By arrival it would have had its turn long ago; only an adapter with far more
    /// callers than others has such ones, since a burst of `n` sequences is through after `n` admissions.
    fn overdue(&self) -> Option<usize> {
        if self.admitted - self.overdue_taken < OVERDUE_EVERY {
            return None;
        }
        // The longest in the queue; whoever gave way stands before it, and goes before it.
        let first = self.waiting.front().filter(|first| !first.gave_way)?;
        let since = self.admitted - first.admitted_before;
        let queue = self.waiting.len().max(first.queue) as u64;
        (2 * since >= 3 * queue).then_some(0)
    }

    /// Records that a pass was computed. Sequences that were removed meanwhile are passed over.
    pub fn computed(&mut self, pass: &Pass) {
        for chunk in &pass.chunks {
            if let Some(sequence) = self.find_running(chunk.id) {
                sequence.advance(chunk.count);
            }
        }
    }

    /// Takes in how long the pass took.
    pub fn took(&mut self, pass: &Pass, seconds: f64) {
        let is_decode = |chunk: &&Chunk| chunk.count == 1 && chunk.samples;
        let decode_rows = pass.chunks.iter().filter(is_decode).count();
        self.pace
            .took(decode_rows, pass.tokens() - decode_rows, seconds);
    }

    /// Adds the sampled token of a sequence whose chunk [`Chunk::samples`].
    ///
    /// A sequence that reached its length is removed. `None`: no such sequence runs.
    pub fn push_token(&mut self, id: SequenceId, token: u32) -> Option<AfterToken> {
        let sequence = self.running.iter_mut().find(|s| s.id() == id)?;
        self.shares.charge(sequence.adapter(), 1);
        if sequence.push(token) {
            return Some(AfterToken::Running);
        }
        self.remove(id);
        Some(AfterToken::Length)
    }

    /// Takes a sequence out, running or waiting, and gives its blocks back. False: there was none.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        let running = self.running.iter().position(|s| s.id() == id);
        let removed = match running {
            Some(at) => Some(self.running.remove(at)),
            None => {
                let waiting = self.waiting.iter().position(|s| s.id() == id);
                waiting.and_then(|at| self.waiting.remove(at))
            }
        };
        if let Some(removed) = &removed {
            self.shares.leave(removed.adapter());
        }
        removed.is_some()
    }

    /// The sequence's tokens, prompt first.
    pub fn tokens(&self, id: SequenceId) -> Option<&[u32]> {
        self.running
            .iter()
            .find(|sequence| sequence.id() == id)
            .map(Sequence::tokens)
    }

    /// Tokens and cache of every running sequence.
    pub fn running_parts(
        &mut self,
    ) -> impl Iterator<Item = (SequenceId, &[u32], &mut KvSequence)> + '_ {
        self.running.iter_mut().filter_map(Sequence::parts)
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

    /// KV blocks that sequences hold.
    pub fn used_blocks(&self) -> usize {
        self.blocks.total() - self.blocks.free()
    }

    /// Whether there is no sequence at all.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    fn find_running(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.iter_mut().find(|sequence| sequence.id() == id)
    }
}
