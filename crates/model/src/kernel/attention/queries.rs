//! Queries of one head, a few at a time: what is read of the cache serves them all.
//!
//! With a long past the cache does not stay near the core, and one query after the other would wait for it each time.
//! A query's own sums, and their order, are the same in any company.
#![expect(
    clippy::inline_always,
    reason = "bodies must take the features of their caller"
)]

use std::ops::Range;

use super::super::dispatch::with_lanes;
use super::super::elementwise::{exp, max_lanes, sum_lanes};
use super::super::lanes::Lanes;
use super::super::panels::LANES;
use super::{BLOCK_TOKENS, HeadBlocks, Stored, dot_columns, widened};

/// One query of one head.
#[derive(Debug)]
pub(crate) struct HeadQuery<'a> {
    /// `[head_dim]`
    pub query: &'a [f32],
    /// The tokens that it sees, of which there is at least one.
    pub keys: Range<usize>,
    /// `[head_dim]`: `softmax(scale · q Kᵀ) V`.
    pub out: &'a mut [f32],
    /// The logarithm of its sum of exponentials.
    pub log_sum: f32,
}

impl HeadQuery<'_> {
    fn first_block(&self) -> usize {
        self.keys.start / BLOCK_TOKENS
    }
}

with_lanes! {
    /// Attention of queries over the tokens that each of them sees. Neighbours best see about the same.
    ///
    /// `scores` is scratch and grows to a few times the keys' blocks.
    pub(crate) fn attend(
        queries: &mut [HeadQuery<'_>], cache: HeadBlocks<'_>, scale: f32, scores: &mut Vec<f32>,
    ) = attend_lanes
}

with_lanes! {
    /// [`attend`] over keys and values that are held in f16.
    pub(crate) fn attend_f16(
        queries: &mut [HeadQuery<'_>], cache: HeadBlocks<'_, u16>, scale: f32, scores: &mut Vec<f32>,
    ) = attend_f16_lanes
}

#[inline(always)]
fn attend_lanes<L: Lanes>(
    queries: &mut [HeadQuery<'_>],
    cache: HeadBlocks<'_>,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    attend_stored::<L, f32>(queries, cache, scale, scores);
}

#[inline(always)]
fn attend_f16_lanes<L: Lanes>(
    queries: &mut [HeadQuery<'_>],
    cache: HeadBlocks<'_, u16>,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    attend_stored::<L, u16>(queries, cache, scale, scores);
}

#[inline(always)]
fn attend_stored<L: Lanes, T: Stored>(
    mut queries: &mut [HeadQuery<'_>],
    cache: HeadBlocks<'_, T>,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    while let Some(first) = queries.first() {
        let start = first.first_block();
        let alike = queries
            .iter()
            .take_while(|query| query.first_block() == start);
        let count = alike.take(L::QUERIES).count();
        let left = if count >= 4 {
            attend_first::<L, T, 4>(queries, cache, scale, scores)
        } else if count >= 2 {
            attend_first::<L, T, 2>(queries, cache, scale, scores)
        } else {
            attend_first::<L, T, 1>(queries, cache, scale, scores)
        };
        queries = left;
    }
}

/// Answers the first `Q` queries; returns the others.
#[inline(always)]
fn attend_first<'q, 'a, L: Lanes, T: Stored, const Q: usize>(
    queries: &'q mut [HeadQuery<'a>],
    cache: HeadBlocks<'_, T>,
    scale: f32,
    scores: &mut Vec<f32>,
) -> &'q mut [HeadQuery<'a>] {
    let Some((tile, left)) = queries.split_first_chunk_mut::<Q>() else {
        return &mut [];
    };
    let start = tile.first().map_or(0, HeadQuery::first_block);
    let end = tile.iter().map(|query| query.keys.end).max();
    let blocks = start..end.unwrap_or(0).div_ceil(BLOCK_TOKENS);
    scores.clear();
    scores.resize(blocks.len() * Q * LANES, 0.0);
    // Of each block the scores of one query after the other.
    let (scores, _) = scores.as_chunks_mut::<LANES>().0.as_chunks_mut::<Q>();
    let max = score::<L, T, Q>(tile, (cache, start), scale, scores);
    let inverse = weigh::<L, Q>(tile, max, scores);
    // Wide parts first: a column's chain is the same in each, more of them hide its latency.
    let mut column = 0;
    while column < cache.head_dim {
        let at = (cache, start, column);
        column += match cache.head_dim - column {
            64.. => mix::<L, T, 4, Q>(tile, at, scores, inverse),
            32.. => mix::<L, T, 2, Q>(tile, at, scores, inverse),
            _ => mix::<L, T, 1, Q>(tile, at, scores, inverse),
        };
    }
    left
}

/// The scores of every query, and the largest of each.
#[inline(always)]
fn score<L: Lanes, T: Stored, const Q: usize>(
    tile: &[HeadQuery<'_>; Q],
    (cache, start): (HeadBlocks<'_, T>, usize),
    scale: f32,
    scores: &mut [[[f32; LANES]; Q]],
) -> [f32; Q] {
    let vectors = tile.each_ref().map(|query| query.query);
    let mut max = [L::splat(f32::NEG_INFINITY); Q];
    for (index, scores) in (start..).zip(scores) {
        let sums = dot_columns::<L, T, Q>(vectors, cache.block(index).0);
        let first = index * BLOCK_TOKENS;
        let queries = tile.iter().zip(&mut max);
        for ((sums, scores), (query, max)) in sums.into_iter().zip(scores).zip(queries) {
            sums.store(scores);
            if query.keys.start <= first && first + BLOCK_TOKENS <= query.keys.end {
                scores.iter_mut().for_each(|score| *score *= scale);
            } else {
                for (key, score) in (first..).zip(scores.iter_mut()) {
                    *score = if query.keys.contains(&key) {
                        *score * scale
                    } else {
                        f32::NEG_INFINITY
                    };
                }
            }
            *max = max.max(L::load(scores));
        }
    }
    let mut highest = [0.0; Q];
    for (highest, max) in highest.iter_mut().zip(max) {
        let mut lanes = [0.0; LANES];
        max.store(&mut lanes);
        *highest = max_lanes(&lanes);
    }
    highest
}

/// Makes weights of the scores, whose sums are not 1 yet; what they are to be multiplied with.
#[inline(always)]
fn weigh<L: Lanes, const Q: usize>(
    tile: &mut [HeadQuery<'_>; Q],
    max: [f32; Q],
    scores: &mut [[[f32; LANES]; Q]],
) -> [f32; Q] {
    let mut sums = [L::splat(0.0); Q];
    for scores in scores {
        for ((scores, max), sum) in scores.iter_mut().zip(max).zip(&mut sums) {
            for score in scores.iter_mut() {
                *score = exp(*score - max);
            }
            *sum = sum.add(L::load(scores));
        }
    }
    let mut inverse = [0.0; Q];
    let queries = tile.iter_mut().zip(max);
    for ((sum, inverse), (query, max)) in sums.into_iter().zip(&mut inverse).zip(queries) {
        let mut lanes = [0.0; LANES];
        sum.store(&mut lanes);
        let sum = sum_lanes(&lanes);
        query.log_sum = max + sum.ln();
        *inverse = 1.0 / sum;
    }
    inverse
}

/// `out = inverse · Σ weight · value` over the tokens from block `start` on, for `R` registers of columns from `column`
/// on; returns how many columns these are.
#[inline(always)]
fn mix<L: Lanes, T: Stored, const R: usize, const Q: usize>(
    tile: &mut [HeadQuery<'_>; Q],
    (cache, start, column): (HeadBlocks<'_, T>, usize, usize),
    weights: &[[[f32; LANES]; Q]],
    inverse: [f32; Q],
) -> usize {
    let mut sums = [[L::splat(0.0); R]; Q];
    let ends = tile.each_ref().map(|query| query.keys.end);
    let (least, most) = (
        ends.into_iter().min().unwrap_or(0),
        ends.into_iter().max().unwrap_or(0),
    );
    for (index, weights) in (start..).zip(weights) {
        let first = index * BLOCK_TOKENS;
        let values = cache.block(index).1.chunks_exact(cache.head_dim);
        for (slot, value) in values.take(most.saturating_sub(first)).enumerate() {
            let value = value.get(column..).unwrap_or_default();
            let value: [L; R] = match value.as_chunks::<LANES>().0.first_chunk::<R>() {
                Some(registers) => widened(registers),
                None => padded(value),
            };
            let all = first + slot < least;
            for ((sums, weights), end) in sums.iter_mut().zip(weights).zip(ends) {
                let Some(weight) = weights.get(slot).filter(|_| all || first + slot < end) else {
                    continue;
                };
                let weight = L::splat(*weight);
                for (sum, value) in sums.iter_mut().zip(&value) {
                    *sum = sum.add_product(weight, *value);
                }
            }
        }
    }
    for ((query, sums), inverse) in tile.iter_mut().zip(sums).zip(inverse) {
        let out = query.out.get_mut(column..).unwrap_or_default();
        for (out, sum) in out.chunks_mut(LANES).zip(sums) {
            let mut lanes = [0.0; LANES];
            sum.store(&mut lanes);
            for (out, sum) in out.iter_mut().zip(lanes) {
                *out = sum * inverse;
            }
        }
    }
    R * LANES
}

/// The end of a head whose width is no multiple of sixteen; `R` is 1 here.
#[inline(always)]
fn padded<L: Lanes, T: Stored, const R: usize>(value: &[T]) -> [L; R] {
    let mut padded = [0.0; LANES];
    for (to, from) in padded.iter_mut().zip(value) {
        *to = from.widened();
    }
    [L::load(&padded); R]
}
