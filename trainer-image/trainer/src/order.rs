//! Which examples a step trains on: a function of seed and step alone, so that a resumed run sees
//! what an uninterrupted one would have seen.

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

/// How much a batch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// This many examples.
    Examples(usize),
    /// Examples until there are at least this many tokens.
    Tokens(usize),
}

/// How long training lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Passes over the examples; the last batch may be smaller than the others.
    Epochs(u64),
    /// Optimiser steps; examples come again as often as needed.
    Steps(u64),
}

/// The batches of a run. Examples are numbered from 0; each pass over them has an order of its own.
#[derive(Debug)]
pub struct Batches {
    seed: u64,
    /// Tokens of each example.
    lengths: Vec<u32>,
    /// Step `s` holds positions `ends[s - 1]..ends[s]` of the passes laid end to end.
    ends: Vec<u64>,
    epoch: Option<(u64, Vec<u32>)>,
}

impl Batches {
    /// Deals examples of `lengths` tokens into batches of `size`. Without examples there are no
    /// batches.
    pub fn new(seed: u64, lengths: Vec<u32>, size: Size, length: Length) -> Self {
        let mut batches = Self {
            seed,
            lengths,
            ends: Vec::new(),
            epoch: None,
        };
        if batches.lengths.is_empty() {
            return batches;
        }
        let last = match length {
            Length::Epochs(epochs) => epochs.saturating_mul(batches.lengths.len() as u64),
            Length::Steps(_) => u64::MAX,
        };
        let steps = match length {
            Length::Epochs(_) => u64::MAX,
            Length::Steps(steps) => steps,
        };
        let mut position = 0;
        while position < last && (batches.ends.len() as u64) < steps {
            let mut filled = Filled::default();
            loop {
                let tokens = batches.tokens_at(position);
                position += 1;
                if filled.add(tokens, size) || position == last {
                    break;
                }
            }
            batches.ends.push(position);
        }
        batches
    }

    /// Optimiser steps in all.
    pub fn steps(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Passes over the examples when `step` steps are done.
    pub fn epochs_after(&self, step: u64) -> f64 {
        let end = step
            .checked_sub(1)
            .and_then(|last| self.ends.get(last as usize));
        *end.unwrap_or(&0) as f64 / self.lengths.len().max(1) as f64
    }

    /// The examples of step `step` (from 0), dealt into micro-batches of `size`.
    pub fn micro_batches(&mut self, step: u64, size: Size) -> Vec<Vec<usize>> {
        let end = self.ends.get(step as usize).copied().unwrap_or_default();
        let start = step
            .checked_sub(1)
            .and_then(|last| self.ends.get(last as usize).copied())
            .unwrap_or_default();
        let mut micro_batches = Vec::new();
        let mut micro_batch = Vec::new();
        let mut filled = Filled::default();
        for position in start..end {
            let example = self.example_at(position);
            micro_batch.push(example);
            let tokens = self.lengths.get(example).copied().unwrap_or_default();
            if filled.add(tokens, size) {
                micro_batches.push(std::mem::take(&mut micro_batch));
                filled = Filled::default();
            }
        }
        if !micro_batch.is_empty() {
            micro_batches.push(micro_batch);
        }
        micro_batches
    }

    fn tokens_at(&mut self, position: u64) -> u32 {
        let example = self.example_at(position);
        self.lengths.get(example).copied().unwrap_or_default()
    }

    fn example_at(&mut self, position: u64) -> usize {
        let count = self.lengths.len() as u64;
        let (epoch, index) = (position / count, (position % count) as usize);
        let order = match &self.epoch {
            Some((cached, order)) if *cached == epoch => order,
            _ => {
                &self
                    .epoch
                    .insert((epoch, permutation(self.seed, epoch, count as u32)))
                    .1
            }
        };
        order.get(index).copied().unwrap_or_default() as usize
    }
}

/// What a batch holds so far.
#[derive(Debug, Default)]
struct Filled {
    examples: usize,
    tokens: usize,
}

impl Filled {
    /// Adds an example of `tokens` tokens and says whether the batch is full.
    fn add(&mut self, tokens: u32, size: Size) -> bool {
        self.examples += 1;
        self.tokens += tokens as usize;
        match size {
            Size::Examples(limit) => self.examples >= limit,
            Size::Tokens(limit) => self.tokens >= limit,
        }
    }
}

/// The order of one pass (Fisher and Yates, with `ChaCha8` keyed by seed and pass).
fn permutation(seed: u64, epoch: u64, count: u32) -> Vec<u32> {
    let mut key = [0; 32];
    let words = seed.to_le_bytes().into_iter().chain(epoch.to_le_bytes());
    for (byte, word) in key.iter_mut().zip(words) {
        *byte = word;
    }
    let mut order: Vec<u32> = (0..count).collect();
    order.shuffle(&mut ChaCha8Rng::from_seed(key));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(batches: &mut Batches, size: Size) -> Vec<Vec<Vec<usize>>> {
        (0..batches.steps())
            .map(|step| batches.micro_batches(step, size))
            .collect()
    }

    #[test]
    fn every_pass_holds_every_example_once_in_another_order() {
        let size = Size::Examples(5);
        let mut batches = Batches::new(1, vec![3; 20], size, Length::Epochs(2));
        assert_eq!(batches.steps(), 8);
        let seen: Vec<usize> = all(&mut batches, size)
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        let (first, second) = seen.split_at(20);
        assert_ne!(first, second);
        for pass in [first, second] {
            let mut pass = pass.to_vec();
            pass.sort_unstable();
            assert_eq!(pass, (0..20).collect::<Vec<_>>());
        }
        let mut other = Batches::new(2, vec![3; 20], size, Length::Epochs(2));
        assert_ne!(all(&mut other, size).concat().concat(), seen);
    }

    #[test]
    fn the_last_batch_of_the_last_pass_is_what_is_left() {
        let batches = Batches::new(1, vec![3; 7], Size::Examples(3), Length::Epochs(1));
        assert_eq!(batches.ends, [3, 6, 7]);
        assert!((batches.epochs_after(2) - 6.0 / 7.0).abs() < 1e-12);
        assert!(batches.epochs_after(0).abs() < 1e-12);
    }

    #[test]
    fn steps_go_on_into_as_many_passes_as_they_need() {
        let mut batches = Batches::new(1, vec![3; 4], Size::Examples(3), Length::Steps(5));
        assert_eq!(batches.ends, [3, 6, 9, 12, 15]);
        let micro = batches.micro_batches(4, Size::Examples(2));
        assert_eq!(micro.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn token_batches_end_with_the_example_that_fills_them() {
        let mut batches = Batches::new(3, vec![4; 10], Size::Tokens(10), Length::Epochs(1));
        assert_eq!(batches.ends, [3, 6, 9, 10]);
        let micro = batches.micro_batches(0, Size::Tokens(8));
        assert_eq!(micro.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn a_step_asked_for_out_of_order_holds_the_same_examples() {
        let size = Size::Examples(2);
        let mut batches = Batches::new(9, vec![1; 9], size, Length::Steps(20));
        let forward = all(&mut batches, size);
        for step in [13, 2, 19, 0] {
            assert_eq!(batches.micro_batches(step, size), forward[step as usize]);
        }
    }

    #[test]
    fn no_examples_make_no_batches() {
        assert_eq!(
            Batches::new(1, vec![], Size::Examples(2), Length::Steps(5)).steps(),
            0
        );
    }
}
