//! Causal attention of queries over cached keys and values, in blocks of sixteen tokens.
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

mod queries;

use std::ops::Range;

use half::f16;

use super::dispatch::with_lanes;
use super::elementwise::exp;
use super::halves::HalfFormat;
use super::lanes::Lanes;
use super::panels::LANES;
pub(crate) use queries::{HeadQuery, attend, attend_f16};

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

/// Sixteen dot products of each vector with the columns of a `[dim][16]` block, each in four chains over every
/// fourth element, so that one chain's latency is not waited for. Several vectors share what is read of the block.
#[inline(always)]
fn dot_columns<L: Lanes, T: Stored, const Q: usize>(vectors: [&[f32]; Q], block: &[T]) -> [L; Q] {
    let mut chains = [[L::splat(0.0); 4]; Q];
    let (blocks, rest) = block.as_chunks::<LANES>().0.as_chunks::<4>();
    let fours = vectors.map(|vector| vector.as_chunks::<4>().0);
    for (number, lanes) in blocks.iter().enumerate() {
        let lanes: [L; 4] = widened(lanes);
        for (chains, fours) in chains.iter_mut().zip(fours) {
            let Some(values) = fours.get(number) else {
                continue;
            };
            for ((chain, value), lanes) in chains.iter_mut().zip(values).zip(&lanes) {
                *chain = chain.add_product(L::splat(*value), *lanes);
            }
        }
    }
    let mut sums = [L::splat(0.0); Q];
    for ((sum, chains), vector) in sums.iter_mut().zip(chains).zip(vectors) {
        let [mut a, b, c, d] = chains;
        for (value, lanes) in vector.as_chunks::<4>().1.iter().zip(rest) {
            a = a.add_product(L::splat(*value), T::lanes(lanes));
        }
        *sum = a.add(b).add(c.add(d));
    }
    sums
}

/// Registers' worth of what a block holds.
#[inline(always)]
fn widened<L: Lanes, T: Stored, const R: usize>(values: &[[T; LANES]; R]) -> [L; R] {
    // A closure given to the standard library would not have the features of our caller.
    let mut registers = [L::splat(0.0); R];
    for (register, values) in registers.iter_mut().zip(values) {
        *register = T::lanes(values);
    }
    registers
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
        widened::<L, f32, R>(query),
        widened::<L, f32, R>(dout),
        widened::<L, f32, R>(dquery),
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
        let [sums] = dot_columns::<L, f32, 1>([row.query], key_block);
        sums.store(&mut weights);
        let [sums] = dot_columns::<L, f32, 1>([row.dout], value_block);
        sums.store(&mut gradients);
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
