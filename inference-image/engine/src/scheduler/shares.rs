//! Which waiting sequence is admitted next: that of the adapter which was served least, unless someone was
//! overtaken too often.
//!
//! Each adapter has a counter of the tokens that were computed for it (the virtual token counter of Sheng et al.
//! 2024, arXiv:2401.00588, section 4, with one weight for all tokens, since a pass costs by its rows). One that
//! comes back after a pause begins where the least served of those that are here stands: nobody saves up service.
//! Fairness alone could keep back a busy adapter for ever where new ones keep coming: ageing bounds how often the
//! first waiting sequence of an adapter is overtaken. Only the first ages, or a burst of one adapter would, once
//! old, go before everybody else. What that leaves, the long queue of an adapter with far more callers than the
//! others, is the scheduler's: at most every second admission is that of an overdue sequence.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use graftwork_model::kv::Owner;

use super::Sequence;

#[derive(Debug, Default)]
struct Share {
    /// Tokens.
    served: u64,
    /// Sequences that wait or run.
    live: usize,
}

/// What each adapter had so far.
#[derive(Debug, Default)]
pub(super) struct Shares(BTreeMap<Owner, Share>);

impl Shares {
    /// A sequence arrived.
    pub(super) fn enter(&mut self, adapter: &Owner) {
        let here = self.0.values().filter(|share| share.live > 0);
        let floor = here.map(|share| share.served).min();
        // Whoever left with less than the least served would be lifted to it anyway.
        self.0
            .retain(|_, share| share.live > 0 || floor.is_some_and(|floor| share.served > floor));
        let share = self.0.entry(adapter.clone()).or_default();
        if share.live == 0 {
            share.served = share.served.max(floor.unwrap_or(0));
        }
        share.live += 1;
    }

    /// A sequence ended.
    pub(super) fn leave(&mut self, adapter: &Owner) {
        if let Some(share) = self.0.get_mut(adapter) {
            share.live = share.live.saturating_sub(1);
        }
    }

    /// Tokens were, or are about to be, computed for it.
    pub(super) fn charge(&mut self, adapter: &Owner, tokens: usize) {
        if let Some(share) = self.0.get_mut(adapter) {
            share.served += tokens as u64;
        }
    }

    fn served(&self, adapter: &Owner) -> u64 {
        self.0.get(adapter).map_or(0, |share| share.served)
    }

    /// The place in the queue of who is next: whoever ran already and gave way; then whoever was overtaken
    /// `limit` times; then the first one of the adapter that was served least.
    pub(super) fn next<'a>(
        &self,
        waiting: impl Iterator<Item = &'a Sequence>,
        limit: usize,
    ) -> Option<usize> {
        waiting
            .enumerate()
            .min_by_key(|(index, sequence)| {
                let turn = if sequence.gave_way {
                    0
                } else if sequence.overtaken >= limit {
                    1
                } else {
                    2
                };
                let served = if turn == 2 {
                    self.served(sequence.adapter())
                } else {
                    0
                };
                (turn, served, *index)
            })
            .map(|(index, _)| index)
    }

    /// The sequence that stood at `index` was admitted: what stands before it got older.
    pub(super) fn age(waiting: &mut VecDeque<Sequence>, index: usize) {
        let mut seen = BTreeSet::new();
        for earlier in waiting.iter_mut().take(index) {
            if seen.insert(earlier.adapter().clone()) {
                earlier.overtaken += 1;
            }
        }
    }

    /// Adapters that are known.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.0.len()
    }
}
