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

mod eight;
mod inputs;
mod panels;
#[cfg(target_arch = "x86_64")]
mod x86_avx2;
#[cfg(target_arch = "x86_64")]
mod x86_avx512;

pub(crate) use panels::{IntegerPanels, RowOf};

use std::ops::Range;

use rayon::prelude::*;

use super::ahead::{Ahead, Paced, Piece};
use super::panels::LANES;
use super::product::{Epilogue, Output, finish, row_count};
use inputs::{Group, quantise};
use panels::{Kind, Parts};

/// Inputs of one group.
pub(super) const GROUP: usize = 32;
/// Below this many multiply-adds a call is not worth waking another thread for: whole numbers are quick, and what
/// takes the time with few rows is to read the weight.
const PARALLEL_WORK: usize = 1 << 18;
/// Places from which a tile asks for what is read soon: two for the next panels, the others for others' memory.
const SOON: usize = 6;
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

    /// Rows of the largest tile within so many: a tile's sums and dot products fill the registers.
    fn rows(self, left: usize) -> usize {
        let heights: &[usize] = match self {
            Self::Vnni => &[6, 4, 3, 2],
            Self::Avx2 => &[4, 2],
            Self::Portable => &[],
        };
        let fits = heights.iter().find(|height| **height <= left);
        fits.copied().unwrap_or(1)
    }

    /// Panels beside each other: an input that is in a register is then multiplied with both.
    fn panels(self) -> usize {
        match self {
            Self::Vnni => 2,
            Self::Avx2 | Self::Portable => 1,
        }
    }
}

/// A few rows by one or two panels.
#[derive(Clone, Copy)]
struct IntegerTile<'a> {
    kind: Kind,
    /// Of all panels, one behind the other.
    parts: Parts<'a>,
    /// The rows' groups, one row behind the other.
    x: &'a [Group],
    /// Of each row.
    groups: usize,
    /// First output of the first row. A pointer, because tiles of one output interleave.
    y: *mut f32,
    /// Elements between rows of `y`.
    stride: usize,
    /// Outputs of these panels; the last one may be partly filled.
    columns: usize,
    epilogue: Epilogue,
    /// What is read soon, and asked for while the tile is computed.
    soon: [Piece; SOON],
}

impl IntegerTile<'_> {
    /// Asks for the lines that `R` rows by `P` panels are written to: rows of an output lie so far apart that they push
    /// each other out of the nearest cache, and a tile that ends would wait for each.
    #[cfg(target_arch = "x86_64")]
    #[expect(
        clippy::inline_always,
        reason = "a few instructions before a tile's loop"
    )]
    #[inline(always)]
    fn ask_for_outputs<const R: usize, const P: usize>(&self) {
        for row in 0..R {
            for panel in 0..P {
                super::ahead::ask_near(self.y.wrapping_add(row * self.stride + panel * LANES));
            }
        }
    }

    /// Writes what became of one row in one panel.
    ///
    /// # Safety
    /// The tile has the row and the panel.
    #[expect(unsafe_code, reason = "tiles address their outputs by pointer")]
    #[expect(
        clippy::inline_always,
        reason = "takes the vector features of its caller"
    )]
    #[inline(always)]
    unsafe fn finish(&self, row: usize, panel: usize, sums: &[f32; LANES]) {
        let columns = (self.columns - panel * LANES).min(LANES);
        // SAFETY: the caller's promise: these columns lie inside this row.
        let y = unsafe {
            let start = self.y.add(row * self.stride + panel * LANES);
            std::slice::from_raw_parts_mut(start, columns)
        };
        finish(sums, y, self.epilogue);
    }
}

/// Inputs in 8 bits, for as many weights as have the same zero.
#[derive(Debug)]
pub(super) struct Inputs {
    isa: IntegerIsa,
    zero: i32,
    groups: Vec<Group>,
}

impl Inputs {
    /// `x: [rows, inputs]` for the product with a weight.
    pub fn of(x: &[f32], w: &IntegerPanels) -> Self {
        Self::on(IntegerIsa::detect(), x, w)
    }

    fn on(isa: IntegerIsa, x: &[f32], w: &IntegerPanels) -> Self {
        let zero = w.kind().zero();
        Self {
            isa,
            zero,
            groups: quantise(x, zero),
        }
    }

    /// Whether they are what another weight wants, too.
    pub fn fit(&self, w: &IntegerPanels) -> bool {
        self.zero == w.kind().zero()
    }

    /// Computes some rows by some panels on this thread, and asks for what others read soon. The inputs were made for
    /// a weight that [fits](Self::fit), and as long as that one's; `y` has a row for each of these.
    pub fn multiply(
        &self,
        rows: Range<usize>,
        w: &IntegerPanels,
        y: Output,
        panels: Range<usize>,
        epilogue: Epilogue,
        ahead: &mut Ahead,
    ) {
        let groups = w.groups();
        let x = self.groups.get(rows.start * groups..rows.end * groups);
        part(
            (self.isa, x.unwrap_or_default()),
            w,
            y,
            panels,
            epilogue,
            ahead,
        );
    }
}

impl IntegerPanels {
    /// Adds the memory that the first tile of some panels is read from.
    pub(super) fn ask_for_first(&self, panels: Range<usize>, ahead: &mut Ahead) {
        let end = panels.end.min(panels.start + 2);
        self.ask_for(panels.start..end, ahead);
    }

    /// Adds the memory that some panels are read from.
    pub(super) fn ask_for(&self, panels: Range<usize>, ahead: &mut Ahead) {
        if let Some(parts) = self.parts(panels) {
            ahead.push(parts.quants);
            ahead.push(parts.scales);
        }
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
    let inputs = Inputs::on(isa, x, w);
    let output = Output::of(y, w.outputs());
    let panels = w.panels();
    let threads = rayon::current_num_threads();
    let multiply = |panels| {
        inputs.multiply(0..rows, w, output, panels, epilogue, &mut Ahead::default());
    };
    if threads < 2 || rows * w.outputs() * w.inputs() < PARALLEL_WORK {
        multiply(0..panels);
        return;
    }
    // By panels for any number of rows: each is read from memory once.
    let step = panels.div_ceil(4 * threads).next_multiple_of(2);
    (0..panels.div_ceil(step)).into_par_iter().for_each(|task| {
        multiply(task * step..panels.min((task + 1) * step));
    });
}

/// Computes all rows by some panels. Rows inside: panels stay in the nearest cache while they pass by, and they
/// in the second.
fn part(
    (isa, x): (IntegerIsa, &[Group]),
    w: &IntegerPanels,
    y: Output,
    panels: Range<usize>,
    epilogue: Epilogue,
    ahead: &mut Ahead,
) {
    let groups = w.groups();
    let tiles = |x: &[Group]| (x.len() / groups).div_ceil(isa.rows(usize::MAX));
    let mut left = tiles(x) * panels.len().div_ceil(isa.panels());
    let rows = (SECOND_CACHE / (groups * size_of::<Group>())).max(12) / 12 * 12;
    let first_rows = (0..).step_by(rows);
    for (first, x) in first_rows.zip(x.chunks(rows * groups)) {
        let tiles = tiles(x);
        let mut panel = panels.start;
        while panel < panels.end {
            let width = isa.panels().min(panels.end - panel);
            let next = panel + width..panels.end.min(panel + 2 * width);
            let (Some(parts), Some(next)) = (w.parts(panel..next.start), w.parts(next)) else {
                return;
            };
            let (mut row, mut tile) = (0, 0);
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
                    let whole = IntegerTile {
                        kind: w.kind(),
                        parts,
                        x,
                        groups,
                        y: y.start.add((first + row) * y.stride + panel * LANES),
                        stride: y.stride,
                        columns: (w.outputs() - panel * LANES).min(width * LANES),
                        epilogue,
                        soon: soon(next, (tile, tiles), (ahead, left)),
                    };
                    run(isa, (height, width), &whole);
                }
                row += height;
                tile += 1;
                left = left.saturating_sub(1);
            }
            panel += width;
        }
    }
}

/// What one of so many tiles asks for of the next panels, and of what others read, for which so many are left.
fn soon(
    next: Parts<'_>,
    (tile, tiles): (usize, usize),
    (ahead, left): (&mut Ahead, usize),
) -> [Piece; SOON] {
    let mut soon = [Piece::default(); SOON];
    let [quants, scales, others @ ..] = &mut soon;
    *quants = Piece::of(next.quants, tile, tiles);
    *scales = Piece::of(next.scales, tile, tiles);
    let mut lines = ahead.len().div_ceil(left.max(1));
    for other in others {
        *other = ahead.take(lines);
        lines -= other.lines();
    }
    soon
}

/// What the tile asks for, in so many steps.
#[expect(
    clippy::inline_always,
    reason = "takes the vector features of its caller"
)]
#[inline(always)]
fn paced(soon: &[Piece; SOON], steps: usize) -> [Paced; SOON] {
    soon.map(|piece| piece.paced(steps))
}

/// Computes one tile.
///
/// # Safety
/// The machine has the instruction set; `tile` has `rows` rows and `panels` whole panels.
#[expect(unsafe_code, reason = "tiles address their outputs by pointer")]
unsafe fn run(isa: IntegerIsa, (rows, panels): (usize, usize), tile: &IntegerTile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            IntegerIsa::Vnni => x86_avx512::run(rows, panels, tile),
            #[cfg(target_arch = "x86_64")]
            IntegerIsa::Avx2 => x86_avx2::run(rows, tile),
            _ => {
                debug_assert_eq!(panels, 1, "the plain tile has one panel");
                run_portable(tile);
            }
        }
    }
}

/// The tile in plain Rust.
///
/// # Safety
/// `tile` has the rows that its `x` says, and one panel.
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
        unsafe { tile.finish(row, 0, &sums) };
    }
}

#[cfg(test)]
mod tests;
