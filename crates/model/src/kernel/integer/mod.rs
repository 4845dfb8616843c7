//! Products of weights in blocks with inputs in 8 bits: whole numbers within a group, f32 between groups.
//!
//! A group is 32 neighbouring inputs. A row's group becomes whole numbers from -127 to 127 and one
//! scale, as ggml's `Q8_0` does it; its product with a weight's group is a sum of whole numbers, which is
//! exact in whatever order. The groups of one output are one chain of fused multiply-adds in ascending
//! order. So a row's bits depend on the row and the weight alone, whatever shares the call, and vector
//! instructions of both widths give the same ones; `reference.rs` is the same written plainly.
//!
//! This is for serving, where reading the weight is what takes the time. An input is off by up to 1/254 of
//! its group's largest, which moves a product by about 0.5 % of its size; training multiplies the exact inputs
//! ([`product_tiled`](super::product_tiled)).

mod inputs;
mod panels;
#[cfg(target_arch = "x86_64")]
mod x86_avx2;
#[cfg(target_arch = "x86_64")]
mod x86_avx512;

pub(crate) use panels::IntegerPanels;

use std::ops::Range;

use rayon::prelude::*;

use super::panels::LANES;
use super::product::{Epilogue, Output, PARALLEL_WORK, finish, row_count};
use inputs::{Group, quantise};
use panels::{Kind, Parts};

/// Inputs of one group.
pub(super) const GROUP: usize = 32;
/// Bytes of inputs that stay in a core's second cache beside a panel.
const SECOND_CACHE: usize = 384 << 10;

/// The instruction sets that these products are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IntegerIsa {
    /// AVX-512 with its dot products of bytes.
    Vnni,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Plain loops; multiply and add round separately.
    Portable,
}

impl IntegerIsa {
    /// The best set of this machine.
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
                return Self::Vnni;
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Rows of the largest tile within so many.
    fn rows(self, left: usize) -> usize {
        let heights: &[usize] = match self {
            Self::Vnni => &[12, 8, 6, 4, 3, 2],
            Self::Avx2 => &[4, 2],
            Self::Portable => &[],
        };
        let fits = heights.iter().find(|height| **height <= left);
        fits.copied().unwrap_or(1)
    }
}

/// A few rows by one panel.
#[derive(Clone, Copy)]
struct IntegerTile<'a> {
    kind: Kind,
    parts: Parts<'a>,
    /// The rows' groups, one row behind the other.
    x: &'a [Group],
    /// Of each row.
    groups: usize,
    /// First output of the first row. A pointer, because tiles of one output interleave.
    y: *mut f32,
    /// Elements between rows of `y`.
    stride: usize,
    /// Outputs of this panel.
    columns: usize,
    epilogue: Epilogue,
}

impl IntegerTile<'_> {
    /// Writes what became of one row.
    ///
    /// # Safety
    /// The tile has the row.
    #[expect(unsafe_code, reason = "tiles address their outputs by pointer")]
    #[expect(
        clippy::inline_always,
        reason = "takes the vector features of its caller"
    )]
    #[inline(always)]
    unsafe fn finish(&self, row: usize, sums: &[f32; LANES]) {
        // SAFETY: the caller's promise: `columns` values lie inside this row.
        let y =
            unsafe { std::slice::from_raw_parts_mut(self.y.add(row * self.stride), self.columns) };
        finish(sums, y, self.epilogue);
    }
}

/// Computes `x · Wᵀ` for `x: [rows, inputs]` into `y: [rows, outputs]` with the threads of the current
/// rayon pool.
///
/// # Panics
/// The lengths of `x` and `y` do not belong to the same number of rows.
pub(crate) fn product_integers(x: &[f32], w: &IntegerPanels, y: &mut [f32], epilogue: Epilogue) {
    product_on(IntegerIsa::detect(), x, w, y, epilogue);
}

/// [`product_integers`] on a chosen instruction set, which the caller knows to be there.
fn product_on(isa: IntegerIsa, x: &[f32], w: &IntegerPanels, y: &mut [f32], epilogue: Epilogue) {
    let rows = row_count(x, (w.outputs(), w.inputs()), y);
    if rows == 0 {
        return;
    }
    let groups = quantise(x, w.kind().zero());
    let output = Output::of(y, w.outputs());
    let panels = w.panels();
    let threads = rayon::current_num_threads();
    if threads < 2 || rows * w.outputs() * w.inputs() < PARALLEL_WORK {
        part(isa, &groups, w, output, 0..panels, epilogue);
        return;
    }
    // By panels for any number of rows: each is read from memory once.
    let step = panels.div_ceil(4 * threads);
    (0..panels.div_ceil(step)).into_par_iter().for_each(|task| {
        let range = task * step..panels.min((task + 1) * step);
        part(isa, &groups, w, output, range, epilogue);
    });
}

/// Computes all rows by some panels. Rows inside: a panel stays in the nearest cache while they pass by, and they
/// in the second.
fn part(
    isa: IntegerIsa,
    x: &[Group],
    w: &IntegerPanels,
    y: Output,
    panels: Range<usize>,
    epilogue: Epilogue,
) {
    let groups = w.groups();
    let rows = (SECOND_CACHE / (groups * size_of::<Group>())).max(12) / 12 * 12;
    let first_rows = (0..).step_by(rows);
    for (first, x) in first_rows.zip(x.chunks(rows * groups)) {
        for panel in panels.clone() {
            let Some(parts) = w.panel(panel) else { return };
            let mut row = 0;
            while row * groups < x.len() {
                let height = isa.rows(x.len() / groups - row);
                let Some(x) = x.get(row * groups..(row + height) * groups) else {
                    return;
                };
                #[expect(unsafe_code, reason = "tiles address their outputs by pointer")]
                // SAFETY: these rows of `x` are there, and as many of `y`, which `row_count` has found;
                // columns end at the weight's outputs, which are the stride of `y`; the instruction
                // set is there.
                unsafe {
                    let tile = IntegerTile {
                        kind: w.kind(),
                        parts,
                        x,
                        groups,
                        y: y.start.add((first + row) * y.stride + panel * LANES),
                        stride: y.stride,
                        columns: (w.outputs() - panel * LANES).min(LANES),
                        epilogue,
                    };
                    run(isa, height, &tile);
                }
                row += height;
            }
        }
    }
}

/// Computes one tile.
///
/// # Safety
/// The machine has the instruction set; `tile` has `rows` rows and a whole panel.
#[expect(unsafe_code, reason = "tiles address their outputs by pointer")]
unsafe fn run(isa: IntegerIsa, rows: usize, tile: &IntegerTile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            IntegerIsa::Vnni => x86_avx512::run(rows, tile),
            #[cfg(target_arch = "x86_64")]
            IntegerIsa::Avx2 => x86_avx2::run(rows, tile),
            _ => run_portable(tile),
        }
    }
}

/// The tile in plain Rust.
///
/// # Safety
/// `tile` has the rows that its `x` says.
#[expect(unsafe_code, reason = "tiles address their outputs by pointer")]
unsafe fn run_portable(tile: &IntegerTile<'_>) {
    for (row, x) in tile.x.chunks_exact(tile.groups).enumerate() {
        let mut sums = [0.0_f32; LANES];
        for (number, group) in x.iter().enumerate() {
            let lines = tile.parts.lines(tile.kind, number);
            let (scales, minima) = tile.parts.scales(tile.kind, number);
            let dots = panels::dots(tile.kind, lines, &group.quads, group.start);
            for ((sum, dot), (scale, minimum)) in
                sums.iter_mut().zip(dots).zip(scales.iter().zip(minima))
            {
                *sum += dot as f32 * (scale * group.scale);
                if tile.kind == Kind::FourWithMinimum {
                    *sum -= minimum * group.weighted;
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { tile.finish(row, &sums) };
    }
}

#[cfg(test)]
mod tests;
