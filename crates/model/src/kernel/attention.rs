//! Causal attention of one query over cached keys and values, in blocks of sixteen tokens.
//!
//! A head's block holds its keys transposed, `[head_dim][16]`, and its values, `[16][head_dim]`.
//! Scores of sixteen keys are then sixteen lanes, each one chain over `head_dim`; no score matrix
//! is ever whole. The order over keys is fixed, so that a query's bits depend on its own past
//! alone, whatever the blocks' places and however the prompt was cut. Blocks in f16 are widened as they are read, which
//! is exact: the bits are those of the same values in f32.
#![expect(
    clippy::inline_always,
    reason = "bodies must take the features of their caller"
)]

use std::ops::Range;

use half::f16;

use super::dispatch::with_lanes;
use super::elementwise::{exp, max_lanes, sum_lanes};
use super::halves::HalfFormat;
use super::lanes::Lanes;
use super::panels::LANES;

/// Tokens of one block.
pub const BLOCK_TOKENS: usize = LANES;

/// A value as a block holds it.
pub(super) trait Stored: Copy {
    /// The nearest that there is.
    fn of(value: f32) -> Self;
    /// As f32, exactly.
    fn widened(self) -> f32;
    /// Sixteen of them.
    fn lanes<L: Lanes>(from: &[Self; LANES]) -> L;
}

impl Stored for f32 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn widened(self) -> f32 {
        self
    }

    #[inline(always)]
    fn lanes<L: Lanes>(from: &[Self; LANES]) -> L {
        L::load(from)
    }
}

/// The bits of f16. A value that is too large for it becomes its largest one, since an infinity would make every later
/// score a NaN.
impl Stored for u16 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        const MOST: f32 = 65504.0;
        f16::from_f32(value.clamp(-MOST, MOST)).to_bits()
    }

    #[inline(always)]
    fn widened(self) -> f32 {
        HalfFormat::F16.widened(self)
    }

    #[inline(always)]
    fn lanes<L: Lanes>(from: &[Self; LANES]) -> L {
        L::load_f16(from)
    }
}

/// Elements of one head in one block.
fn head_size(head_dim: usize) -> usize {
    2 * BLOCK_TOKENS * head_dim
}

/// The cached keys and values of one head.
#[derive(Clone, Copy)]
pub(crate) struct HeadBlocks<'a, T = f32> {
    /// All blocks.
    pub storage: &'a [T],
    /// The numbers of this sequence's blocks, in order.
    pub table: &'a [u32],
    /// Elements between blocks.
    pub stride: usize,
    /// Where this head starts in a block.
    pub offset: usize,
    /// Width of the head.
    pub head_dim: usize,
}

impl HeadBlocks<'_> {
    /// Elements of one head in one block, whatever they are held in.
    pub fn head_size(head_dim: usize) -> usize {
        head_size(head_dim)
    }
}

impl<'a, T> HeadBlocks<'a, T> {
    /// The two halves of block `index`, empty past the table's end.
    #[inline(always)]
    fn block(&self, index: usize) -> (&'a [T], &'a [T]) {
        let number = self.table.get(index).copied().unwrap_or(u32::MAX) as usize;
        let start = number
            .saturating_mul(self.stride)
            .saturating_add(self.offset);
        let size = head_size(self.head_dim);
        let whole = self
            .storage
            .get(start..start.saturating_add(size))
            .unwrap_or_default();
        whole.split_at(whole.len() / 2)
    }
}

/// Writes one token's key and value of one head into its block, both of `head_dim` values.
#[inline]
pub(crate) fn write_token(block: &mut [f32], slot: usize, key: &[f32], value: &[f32]) {
    write_stored(block, slot, key, value);
}

/// The same into a block of the bits of f16.
#[inline]
pub(crate) fn write_token_f16(block: &mut [u16], slot: usize, key: &[f32], value: &[f32]) {
    write_stored(block, slot, key, value);
}

#[inline]
fn write_stored<T: Stored>(block: &mut [T], slot: usize, key: &[f32], value: &[f32]) {
    let dim = key.len();
    let (keys, values) = block.split_at_mut(BLOCK_TOKENS * dim);
    write_column(keys, slot, key);
    for (to, from) in values.iter_mut().skip(slot * dim).zip(value) {
        *to = T::of(*from);
    }
}

/// Writes one token's vector as column `slot` of a `[head_dim][16]` block.
#[inline]
pub(crate) fn write_transposed(block: &mut [f32], slot: usize, vector: &[f32]) {
    write_column(block, slot, vector);
}

#[inline]
fn write_column<T: Stored>(block: &mut [T], slot: usize, vector: &[f32]) {
    for (lanes, value) in block.as_chunks_mut::<LANES>().0.iter_mut().zip(vector) {
        if let Some(lane) = lanes.get_mut(slot) {
            *lane = T::of(*value);
        }
    }
}

/// Sixteen dot products with the columns of a `[dim][16]` block, each in four chains over every
/// fourth element, so that one chain's latency is not waited for.
#[inline(always)]
fn dot_columns<L: Lanes, T: Stored>(vector: &[f32], block: &[T]) -> L {
    let zero = L::splat(0.0);
    let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
    let (fours, rest) = vector.as_chunks::<4>();
    let (blocks, rest_blocks) = block.as_chunks::<LANES>().0.as_chunks::<4>();
    for (values, lanes) in fours.iter().zip(blocks) {
        a = a.add_product(L::splat(values[0]), T::lanes(&lanes[0]));
        b = b.add_product(L::splat(values[1]), T::lanes(&lanes[1]));
        c = c.add_product(L::splat(values[2]), T::lanes(&lanes[2]));
        d = d.add_product(L::splat(values[3]), T::lanes(&lanes[3]));
    }
    for (value, lanes) in rest.iter().zip(rest_blocks) {
        a = a.add_product(L::splat(*value), T::lanes(lanes));
    }
    a.add(b).add(c.add(d))
}

/// `out = inverse · Σ weight · value` over the tokens of a head from block `start` on, for `R`
/// registers of columns from `first`; `out` may be shorter than those.
#[inline(always)]
fn mix_values<L: Lanes, T: Stored, const R: usize>(
    weights: &[f32],
    (cache, start): (&HeadBlocks<'_, T>, usize),
    (first, inverse): (usize, f32),
    out: &mut [f32],
) {
    let mut sums = [L::splat(0.0); R];
    for (index, weights) in (start..).zip(weights.chunks(BLOCK_TOKENS)) {
        let values = cache.block(index).1.chunks_exact(cache.head_dim);
        for (weight, value) in weights.iter().zip(values) {
            let value = value.get(first..).unwrap_or_default();
            let weight = L::splat(*weight);
            if let Some(registers) = value.as_chunks::<LANES>().0.first_chunk::<R>() {
                for (sum, value) in sums.iter_mut().zip(registers) {
                    *sum = sum.add_product(weight, T::lanes(value));
                }
            } else {
                // The end of a head whose width is no multiple of sixteen; `R` is 1 here.
                let mut padded = [0.0; LANES];
                for (to, from) in padded.iter_mut().zip(value) {
                    *to = from.widened();
                }
                for sum in &mut sums {
                    *sum = sum.add_product(weight, L::load(&padded));
                }
            }
        }
    }
    for (out, sum) in out.chunks_mut(LANES).zip(sums) {
        let mut lanes = [0.0; LANES];
        sum.store(&mut lanes);
        for (out, sum) in out.iter_mut().zip(lanes) {
            *out = sum * inverse;
        }
    }
}

/// `R` registers' worth of values from `start` on.
#[inline(always)]
fn registers<const R: usize>(values: &[f32], start: usize) -> Option<&[[f32; LANES]; R]> {
    values.get(start..)?.as_chunks().0.first_chunk()
}

#[inline(always)]
fn registers_mut<const R: usize>(
    values: &mut [f32],
    start: usize,
) -> Option<&mut [[f32; LANES]; R]> {
    values.get_mut(start..)?.as_chunks_mut().0.first_chunk_mut()
}

#[inline(always)]
fn loaded<L: Lanes, const R: usize>(values: &[[f32; LANES]; R]) -> [L; R] {
    let mut registers = [L::splat(0.0); R];
    for (register, values) in registers.iter_mut().zip(values) {
        *register = L::load(values);
    }
    registers
}

/// The gradients of some neighbouring tokens, of which `parts` are weight and gradient of the score, for `R`
/// registers of columns from `column` on. The query's side stays in registers meanwhile.
#[inline(always)]
fn spread<L: Lanes, const R: usize>(
    row: &QueryGradient<'_>,
    (first, parts): (usize, &[(f32, f32)]),
    (column, keys): (usize, HeadRows<'_>),
    (dkeys, dvalues): (&mut [f32], &mut [f32]),
    dquery: &mut [f32],
) {
    let (Some(query), Some(dout), Some(dquery)) = (
        registers::<R>(row.query, column),
        registers::<R>(row.dout, column),
        registers_mut::<R>(dquery, column),
    ) else {
        return;
    };
    let (query, dout, mut sums) = (
        loaded::<L, R>(query),
        loaded::<L, R>(dout),
        loaded::<L, R>(dquery),
    );
    for (token, (weight, gradient)) in (first..).zip(parts) {
        let at = token * keys.stride + column;
        let (Some(key), Some(dkey), Some(dvalue)) = (
            registers::<R>(keys.data, at),
            registers_mut::<R>(dkeys, at),
            registers_mut::<R>(dvalues, at),
        ) else {
            return;
        };
        let (weight, gradient) = (L::splat(*weight), L::splat(*gradient));
        for (sum, key) in sums.iter_mut().zip(key) {
            *sum = sum.add_product(gradient, L::load(key));
        }
        for (dkey, query) in dkey.iter_mut().zip(query) {
            L::load(dkey).add_product(gradient, query).store(dkey);
        }
        for (dvalue, dout) in dvalue.iter_mut().zip(dout) {
            L::load(dvalue).add_product(weight, dout).store(dvalue);
        }
    }
    for (to, sum) in dquery.iter_mut().zip(sums) {
        sum.store(to);
    }
}

/// The same for the columns that fill no register, from `column` on.
#[inline(always)]
fn spread_rest(
    row: &QueryGradient<'_>,
    (first, parts): (usize, &[(f32, f32)]),
    (column, keys): (usize, HeadRows<'_>),
    (dkeys, dvalues): (&mut [f32], &mut [f32]),
    dquery: &mut [f32],
) {
    let sides = row.query.iter().zip(row.dout).zip(dquery);
    for (column, ((query, dout), dquery)) in sides.enumerate().skip(column) {
        for (token, (weight, gradient)) in (first..).zip(parts) {
            let at = token * keys.stride + column;
            if let (Some(key), Some(dkey), Some(dvalue)) =
                (keys.data.get(at), dkeys.get_mut(at), dvalues.get_mut(at))
            {
                *dquery += gradient * key;
                *dkey += gradient * query;
                *dvalue += weight * dout;
            }
        }
    }
}

#[inline(always)]
fn attend_stored<L: Lanes, T: Stored>(
    query: &[f32],
    cache: HeadBlocks<'_, T>,
    keys: Range<usize>,
    scale: f32,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) -> f32 {
    scores.clear();
    let start = keys.start / BLOCK_TOKENS;
    let mut max = L::splat(f32::NEG_INFINITY);
    for index in start..keys.end.div_ceil(BLOCK_TOKENS) {
        let mut sums = [0.0; LANES];
        dot_columns::<L, T>(query, cache.block(index).0).store(&mut sums);
        for (key, sum) in (index * BLOCK_TOKENS..).zip(&mut sums) {
            *sum = if keys.contains(&key) {
                *sum * scale
            } else {
                f32::NEG_INFINITY
            };
        }
        max = max.max(L::load(&sums));
        scores.extend_from_slice(&sums);
    }
    let mut lanes = [0.0; LANES];
    max.store(&mut lanes);
    let max = max_lanes(&lanes);
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    let mut sum = L::splat(0.0);
    for block in scores.as_chunks::<LANES>().0 {
        sum = sum.add(L::load(block));
    }
    sum.store(&mut lanes);
    let sum = sum_lanes(&lanes);
    let inverse = 1.0 / sum;
    let weights = scores
        .get(..keys.end - start * BLOCK_TOKENS)
        .unwrap_or_default();
    // Wide parts first: a column's chain is the same in each, more of them hide its latency.
    let (mut first, mut left) = (0, out);
    while !left.is_empty() {
        let width = match left.len() {
            64.. => 64,
            32.. => 32,
            count => LANES.min(count),
        };
        let (part, rest) = left.split_at_mut(width);
        match width {
            64 => mix_values::<L, T, 4>(weights, (&cache, start), (first, inverse), part),
            32 => mix_values::<L, T, 2>(weights, (&cache, start), (first, inverse), part),
            _ => mix_values::<L, T, 1>(weights, (&cache, start), (first, inverse), part),
        }
        first += width;
        left = rest;
    }
    max + sum.ln()
}

#[inline(always)]
fn attend_lanes<L: Lanes>(
    query: &[f32],
    cache: HeadBlocks<'_>,
    keys: Range<usize>,
    scale: f32,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) -> f32 {
    attend_stored::<L, f32>(query, cache, keys, scale, scores, out)
}

#[inline(always)]
fn attend_f16_lanes<L: Lanes>(
    query: &[f32],
    cache: HeadBlocks<'_, u16>,
    keys: Range<usize>,
    scale: f32,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) -> f32 {
    attend_stored::<L, u16>(query, cache, keys, scale, scores, out)
}

#[inline(always)]
fn attend_backward_lanes<L: Lanes>(
    row: QueryGradient<'_>,
    cache: HeadBlocks<'_>,
    keys: HeadRows<'_>,
    dkeys: &mut [f32],
    dvalues: &mut [f32],
    dquery: &mut [f32],
) {
    let dim = row.query.len();
    let mut shared = 0.0;
    for (d, o) in row.dout.iter().zip(row.out) {
        shared += d * o;
    }
    for index in row.keys.start / BLOCK_TOKENS..row.keys.end.div_ceil(BLOCK_TOKENS) {
        let (key_block, value_block) = cache.block(index);
        let (mut weights, mut gradients) = ([0.0; LANES], [0.0; LANES]);
        dot_columns::<L, f32>(row.query, key_block).store(&mut weights);
        dot_columns::<L, f32>(row.dout, value_block).store(&mut gradients);
        for (weight, gradient) in weights.iter_mut().zip(&mut gradients) {
            *weight = exp(*weight * row.scale - row.log_sum);
            *gradient = *weight * (*gradient - shared) * row.scale;
        }
        let mut parts = [(0.0, 0.0); BLOCK_TOKENS];
        for (part, both) in parts.iter_mut().zip(weights.into_iter().zip(gradients)) {
            *part = both;
        }
        let block = index * BLOCK_TOKENS;
        let first = row.keys.start.max(block);
        let end = row.keys.end.min(block + BLOCK_TOKENS);
        let parts = parts.get(first - block..end - block).unwrap_or_default();
        let mut column = 0;
        while column + LANES <= dim {
            let (at, from) = ((column, keys), (first, parts));
            let into = (&mut *dkeys, &mut *dvalues);
            match (dim - column) / LANES {
                4.. => spread::<L, 4>(&row, from, at, into, dquery),
                2 | 3 => spread::<L, 2>(&row, from, at, into, dquery),
                _ => spread::<L, 1>(&row, from, at, into, dquery),
            }
            column += match (dim - column) / LANES {
                4.. => 4 * LANES,
                2 | 3 => 2 * LANES,
                _ => LANES,
            };
        }
        let into = (&mut *dkeys, &mut *dvalues);
        spread_rest(&row, (first, parts), (column, keys), into, dquery);
    }
}

with_lanes! {
    /// Attention of one query of one head over the tokens `keys`, of which there is at least one:
    /// `out = softmax(scale · q Kᵀ) V`. Returns the logarithm of the sum of exponentials.
    ///
    /// `scores` is scratch and grows to the keys' blocks.
    pub(crate) fn attend(
        query: &[f32], cache: HeadBlocks<'_>, keys: Range<usize>, scale: f32,
        scores: &mut Vec<f32>, out: &mut [f32],
    ) -> f32 = attend_lanes
}

with_lanes! {
    /// [`attend`] over keys and values that are held in f16.
    pub(crate) fn attend_f16(
        query: &[f32], cache: HeadBlocks<'_, u16>, keys: Range<usize>, scale: f32,
        scores: &mut Vec<f32>, out: &mut [f32],
    ) -> f32 = attend_f16_lanes
}

with_lanes! {
    /// The gradient of [`attend`] for one query: adds to `dq`, and to the keys' and values'
    /// gradients of this head, tokens `stride` apart.
    ///
    /// Here `cache` holds keys and values both transposed.
    pub(crate) fn attend_backward(
        row: QueryGradient<'_>, cache: HeadBlocks<'_>, keys: HeadRows<'_>, dkeys: &mut [f32],
        dvalues: &mut [f32], dquery: &mut [f32],
    ) = attend_backward_lanes
}

/// What backward knows of one query of one head.
#[derive(Clone)]
pub(crate) struct QueryGradient<'a> {
    /// The rotated query.
    pub query: &'a [f32],
    /// The gradient of its output.
    pub dout: &'a [f32],
    /// Its output.
    pub out: &'a [f32],
    /// The logarithm of its sum of exponentials.
    pub log_sum: f32,
    /// The tokens that it sees.
    pub keys: Range<usize>,
    /// What scores are multiplied with.
    pub scale: f32,
}

/// One head's vectors, token by token, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct HeadRows<'a> {
    /// Starts at the head's first token.
    pub data: &'a [f32],
    /// Elements between tokens.
    pub stride: usize,
}

#[cfg(test)]
mod tests;
