//! One sequence: prompt, generated tokens, and how far the cache has them.

use graftwork_model::kv::{KvBlocks, KvSequence, Owner};

use super::Chunk;

/// Names a sequence; grows with arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// One sequence of the scheduler.
#[derive(Debug)]
pub struct Sequence {
    id: SequenceId,
    /// Prompt, then what was generated.
    tokens: Vec<u32>,
    /// Tokens that may still be generated.
    remaining: usize,
    adapter: Owner,
    shares: bool,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    /// What it has in the cache, once it runs.
    kv: Option<KvSequence>,
    /// Whether it ran already and gave way.
    pub(super) gave_way: bool,
    /// How many that came later were admitted before it.
    pub(super) overtaken: usize,
    /// Admissions before it came.
    pub(super) admitted_before: u64,
    /// Sequences that waited when it came, with itself.
    pub(super) queue: usize,
}

impl Sequence {
    /// A sequence of the bare base model that has not run yet and shares nothing. With `maximum_new_tokens` of 0
    /// only its prompt is computed: it is [`super::Scheduler::remove`]d where a token would be sampled.
    pub fn new(id: SequenceId, prompt: Vec<u32>, maximum_new_tokens: usize) -> Self {
        Self {
            id,
            tokens: prompt,
            remaining: maximum_new_tokens,
            adapter: None,
            shares: false,
            computed: 0,
            kv: None,
            gave_way: false,
            overtaken: 0,
            admitted_before: 0,
            queue: 0,
        }
    }

    /// With this adapter, named by its digest.
    #[must_use]
    pub fn with_adapter(self, adapter: Owner) -> Self {
        Self { adapter, ..self }
    }

    /// With the blocks of others that began alike, and with others sharing its own.
    #[must_use]
    pub fn sharing(self) -> Self {
        Self {
            shares: true,
            ..self
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

    pub(super) fn adapter(&self) -> &Owner {
        &self.adapter
    }

    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    pub(super) fn blocks(&self) -> usize {
        self.kv.as_ref().map_or(0, KvSequence::blocks)
    }

    /// Tokens and cache at once, for the pass; none while it waits.
    pub(super) fn parts(&mut self) -> Option<(SequenceId, &[u32], &mut KvSequence)> {
        Some((self.id, self.tokens.as_slice(), self.kv.as_mut()?))
    }

    /// Takes what the cache knows of its beginning; how many tokens that are.
    pub(super) fn enter(&mut self, blocks: &KvBlocks) -> usize {
        let mut kv = blocks.sequence(self.adapter.clone());
        self.computed = if self.shares {
            kv.adopt(&self.tokens)
        } else {
            0
        };
        self.kv = Some(kv);
        self.computed
    }

    /// Forgets what was computed and gives the blocks back.
    pub(super) fn leave(&mut self) {
        self.computed = 0;
        self.kv = None;
    }

    /// Takes the blocks of its first `tokens` tokens. False: there are too few, and nothing was taken.
    pub(super) fn reserve(&mut self, tokens: usize) -> bool {
        self.kv
            .as_mut()
            .is_some_and(|kv| kv.reserve(tokens).is_ok())
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

    /// The next `count` tokens are in the cache; others may share them.
    pub(super) fn advance(&mut self, count: usize) {
        self.computed = (self.computed + count).min(self.tokens.len());
        if let (true, Some(kv), Some(tokens)) = (
            self.shares,
            self.kv.as_mut(),
            self.tokens.get(..self.computed),
        ) {
            kv.publish(tokens);
        }
    }

    /// Adds a token; false where it was the last one allowed.
    pub(super) fn push(&mut self, token: u32) -> bool {
        self.tokens.push(token);
        self.remaining = self.remaining.saturating_sub(1);
        self.remaining > 0
    }
}
