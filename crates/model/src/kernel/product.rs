//! `y = x · Wᵀ` for packed weights, in tiles of rows by panels.

use std::ffi::c_void;
use std::ops::Range;

use rayon::prelude::*;

use super::ahead::Ahead;
use super::blocked::{self, BlockShape, each_inputs};
use super::dispatch::Isa;
use super::halves::{HalfFormat, HalfLine, HalfPanels};
use super::panels::{LANES, Panels, packed_len};
use super::scratch::{WEIGHTS, with_scratch};
#[cfg(target_arch = "x86_64")]
use super::{x86_avx2, x86_avx512};

/// Below this many multiply-adds a call is not worth waking another thread for.
pub(super) const PARALLEL_WORK: usize = 1 << 20;

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Epilogue {
    /// `y = x · Wᵀ`
    Store,
    /// `y = y + x · Wᵀ`: the sum is added once, after its chain.
    Add,
    /// `y = y + s (x · Wᵀ)`, rounded after each operation.
    AddScaled(f32),
}

/// One tile: a few rows by a few panels. Pointers, because tiles of one output interleave.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// First row of the input.
    pub x: *const f32,
    /// First panel: f32, or lines of halves.
    pub w: *const c_void,
    /// What the halves are; none: f32.
    pub half: Option<HalfFormat>,
    /// First output of the first row.
    pub y: *mut f32,
    /// Elements between rows of `x`.
    pub x_stride: usize,
    /// Inner dimension: a sixteenth of the elements between panels.
    pub inputs: usize,
    /// Elements between rows of `y`.
    pub stride: usize,
    /// Outputs of this tile; the last panel may be partly filled.
    pub columns: usize,
    /// What becomes of the sums.
    pub epilogue: Epilogue,
}

/// What [`Tile::half`] is, as a parameter of the functions that compute a tile.
#[cfg(target_arch = "x86_64")]
pub(super) mod numbers {
    pub const SINGLE: u8 = 0;
    pub const BF16: u8 = 1;
    pub const F16: u8 = 2;
}

/// The largest tile of an instruction set: registers decide.
struct TileShape {
    rows: usize,
    /// Panels side by side for a tile of so many rows, of so many that are left.
    panels: fn(usize, usize) -> usize,
    run: unsafe fn(usize, usize, &Tile),
}

fn tile_shape(isa: Isa) -> TileShape {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => TileShape {
            rows: x86_avx512::ROWS,
            panels: x86_avx512::panels,
            run: x86_avx512::run,
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => TileShape {
            rows: x86_avx2::ROWS,
            panels: x86_avx2::panels,
            run: x86_avx2::run,
        },
        _ => TileShape {
            rows: PORTABLE_ROWS,
            panels: |_, _| 1,
            run: run_portable,
        },
    }
}

/// A packed weight, whatever its numbers are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packed<'a> {
    outputs: usize,
    inputs: usize,
    values: Values<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Values<'a> {
    Single(&'a [f32]),
    Half(&'a [HalfLine], HalfFormat),
}

impl<'a> Packed<'a> {
    /// Of f32.
    pub fn single(w: &'a Panels) -> Self {
        Self {
            outputs: w.outputs(),
            inputs: w.inputs(),
            values: Values::Single(w.data()),
        }
    }

    /// Of bf16 or f16.
    pub fn halves(w: &'a HalfPanels) -> Self {
        Self {
            outputs: w.outputs(),
            inputs: w.inputs(),
            values: Values::Half(w.lines(), w.format()),
        }
    }

    /// Of values that are packed as [`Panels`] are.
    pub(super) fn values(values: &'a [f32], outputs: usize, inputs: usize) -> Self {
        assert_eq!(values.len(), packed_len(outputs, inputs), "packed values");
        Self {
            outputs,
            inputs,
            values: Values::Single(values),
        }
    }

    /// Rows of the weight.
    pub fn outputs(self) -> usize {
        self.outputs
    }

    /// Columns of the weight.
    pub fn inputs(self) -> usize {
        self.inputs
    }

    /// Bytes of it.
    pub fn bytes(self) -> usize {
        match self.values {
            Values::Single(values) => size_of_val(values),
            Values::Half(lines, _) => size_of_val(lines),
        }
    }

    /// Adds the memory that some panels are read from.
    pub(super) fn ask_for(self, panels: Range<usize>, ahead: &mut Ahead) {
        let lines = panels.start * self.inputs..panels.end * self.inputs;
        match self.values {
            Values::Single(values) => {
                let values = values.get(lines.start * LANES..lines.end * LANES);
                ahead.push(values.unwrap_or_default());
            }
            Values::Half(values, _) => ahead.push(values.get(lines).unwrap_or_default()),
        }
    }

    pub(super) fn panels(self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// Where a line of a panel begins, which is there, and what its halves are.
    pub(super) fn line(self, panel: usize, line: usize) -> (*const c_void, Option<HalfFormat>) {
        let lines = panel * self.inputs + line;
        match self.values {
            Values::Single(values) => (values.as_ptr().wrapping_add(lines * LANES).cast(), None),
            Values::Half(values, format) => {
                (values.as_ptr().wrapping_add(lines).cast(), Some(format))
            }
        }
    }
}

/// Computes `x · Wᵀ` for `x: [rows, inputs]` into `y: [rows, outputs]` on this thread.
///
/// # Panics
/// The lengths of `x` and `y` do not belong to the same number of rows.
pub fn product(x: &[f32], w: &Panels, y: &mut [f32], epilogue: Epilogue) {
    product_on(Isa::detect(), x, w, y, epilogue);
}

/// [`product`] on a chosen instruction set, which the caller knows to be there.
pub(super) fn product_on(isa: Isa, x: &[f32], w: &Panels, y: &mut [f32], epilogue: Epilogue) {
    let rows = row_count(x, (w.outputs(), w.inputs()), y);
    on_one_thread(isa, (x, rows), Packed::single(w), y, epilogue);
}

fn on_one_thread(
    isa: Isa,
    (x, rows): (&[f32], usize),
    w: Packed<'_>,
    y: &mut [f32],
    epilogue: Epilogue,
) {
    let output = Output::of(y, w.outputs);
    match BlockShape::of(isa, rows, w.panels()) {
        Some(shape) => blocked::multiply(shape, x, w, output, (epilogue, 1)),
        None => {
            let x = Rows::beside(x, w.inputs);
            part(isa, x, w, output, 0..rows, 0..w.panels(), epilogue);
        }
    }
}

/// Computes the same bits as [`product`] with the threads of the current rayon pool.
///
/// # Panics
/// As [`product`].
pub fn product_parallel(x: &[f32], w: &Panels, y: &mut [f32], epilogue: Epilogue) {
    parallel(x, Packed::single(w), y, epilogue);
}

/// [`product_parallel`] of whatever is packed.
pub(super) fn parallel(x: &[f32], w: Packed<'_>, y: &mut [f32], epilogue: Epilogue) {
    let rows = row_count(x, (w.outputs, w.inputs), y);
    let isa = Isa::detect();
    let threads = rayon::current_num_threads();
    if threads < 2 || rows * w.outputs * w.inputs < PARALLEL_WORK {
        return on_one_thread(isa, (x, rows), w, y, epilogue);
    }
    let output = Output::of(y, w.outputs);
    if let Some(shape) = BlockShape::of(isa, rows, w.panels()) {
        blocked::multiply(shape, x, w, output, (epilogue, threads));
    } else if rows >= 24 * threads {
        let step = rows.div_ceil(2 * threads).next_multiple_of(12);
        (0..rows.div_ceil(step)).into_par_iter().for_each(|task| {
            let range = task * step..rows.min((task + 1) * step);
            let x = Rows::beside(x, w.inputs);
            part(isa, x, w, output, range, 0..w.panels(), epilogue);
        });
    } else {
        let step = w.panels().div_ceil(2 * threads).next_multiple_of(2);
        (0..w.panels().div_ceil(step))
            .into_par_iter()
            .for_each(|task| {
                let range = task * step..w.panels().min((task + 1) * step);
                let x = Rows::beside(x, w.inputs);
                part(isa, x, w, output, 0..rows, range, epilogue);
            });
    }
}

/// Writes the panels of a range of outputs over what was there before.
pub(crate) type Fill<'a> = dyn Fn(Range<usize>, &mut [f32]) + Sync + 'a;

/// Computes the same bits as [`product`] with a weight `[outputs, inputs]` of which only `tile`
/// outputs at a time are ever packed: `fill` writes all values of a range's panels, over what was
/// there before. For weights that are stored in another way than they are multiplied.
///
/// # Panics
/// As [`product`].
pub(crate) fn product_tiled(
    x: &[f32],
    (outputs, inputs): (usize, usize),
    (tile, fill): (usize, &Fill<'_>),
    y: &mut [f32],
    epilogue: Epilogue,
) {
    let rows = row_count(x, (outputs, inputs), y);
    let isa = Isa::detect();
    let output = Output::of(y, outputs);
    let each_tile = |multiply: &(dyn Fn(Packed<'_>, Output) + Sync)| {
        let tiles = (0..outputs.div_ceil(tile)).into_par_iter();
        tiles.for_each(|task| {
            let range = task * tile..outputs.min((task + 1) * tile);
            with_scratch(&WEIGHTS, packed_len(range.len(), inputs), |values| {
                fill(range.clone(), values);
                let weight = Packed::values(values, range.len(), inputs);
                multiply(weight, output.at_column(range.start));
            });
        });
    };
    match BlockShape::of(isa, rows, outputs.div_ceil(LANES)) {
        Some(shape) => each_inputs(shape, (x, inputs), true, |inputs, first| {
            each_tile(&|weight, output| {
                let all = (0..weight.panels(), 0..inputs.tiles());
                inputs.multiply(weight, all, output.at_row(first), epilogue);
            });
        }),
        None => each_tile(&|weight, output| {
            let panels = 0..weight.panels();
            let x = Rows::beside(x, inputs);
            part(isa, x, weight, output, 0..rows, panels, epilogue);
        }),
    }
}

pub(super) fn row_count(x: &[f32], (outputs, inputs): (usize, usize), y: &[f32]) -> usize {
    let rows = x.len().checked_div(inputs).unwrap_or(0);
    assert_eq!(rows * inputs, x.len(), "x is not [rows, {inputs}]");
    assert_eq!(rows * outputs, y.len(), "y is not [{rows}, {outputs}]");
    rows
}

/// Rows of an input.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The first row's values, and from `stride` on the next one's.
    pub values: &'a [f32],
    /// Elements between rows.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// Those of `[rows, inputs]`.
    pub fn beside(values: &'a [f32], inputs: usize) -> Self {
        Self {
            values,
            stride: inputs,
        }
    }

    /// Whether so many rows of so many inputs are there.
    fn has(self, rows: usize, inputs: usize) -> bool {
        let Some(before) = rows.checked_sub(1) else {
            return true;
        };
        self.stride
            .checked_mul(before)
            .and_then(|start| start.checked_add(inputs))
            .is_some_and(|end| end <= self.values.len())
    }
}

/// Where the outputs of the first row go, and the elements between rows; shared by tasks that write
/// disjoint elements.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub start: *mut f32,
    pub stride: usize,
}

impl Output {
    pub fn of(y: &mut [f32], stride: usize) -> Self {
        Self {
            start: y.as_mut_ptr(),
            stride,
        }
    }

    /// The rows from a later one on.
    pub fn at_row(self, row: usize) -> Self {
        Self {
            start: self.start.wrapping_add(row * self.stride),
            stride: self.stride,
        }
    }

    /// The same rows from a later column on.
    pub fn at_column(self, column: usize) -> Self {
        Self {
            start: self.start.wrapping_add(column),
            stride: self.stride,
        }
    }
}

#[expect(
    unsafe_code,
    reason = "tasks write disjoint rows or columns of one slice"
)]
// SAFETY: `part` and `PackedInputs::multiply` are given disjoint (rows, panels) by every task, and the slice outlives
// them all because `product_parallel`, `product_tiled`, `product_integers` and `together` return after the parallel
// loop.
unsafe impl Send for Output {}
#[expect(
    unsafe_code,
    reason = "tasks write disjoint rows or columns of one slice"
)]
// SAFETY: as above; nothing is read or written through a shared reference.
unsafe impl Sync for Output {}

/// Computes rows × panels of the product. Panels outside, rows inside: a few panels stay in the
/// first-level cache while the rows pass by.
pub(super) fn part(
    isa: Isa,
    x: Rows<'_>,
    w: Packed<'_>,
    y: Output,
    rows: Range<usize>,
    panels: Range<usize>,
    epilogue: Epilogue,
) {
    let shape = tile_shape(isa);
    let (inputs, outputs) = (w.inputs, w.outputs);
    assert!(x.has(rows.end, inputs) && panels.end <= w.panels());
    let full_rows = rows.start + rows.len() / shape.rows * shape.rows;
    for (from, to, height) in [
        (rows.start, full_rows, shape.rows),
        (full_rows, rows.end, rows.end - full_rows),
    ] {
        if from == to {
            continue;
        }
        let mut panel = panels.start;
        while panel < panels.end {
            let width = (shape.panels)(height, panels.end - panel);
            let columns = (width * LANES).min(outputs - panel * LANES);
            let (weights, half) = w.line(panel, 0);
            let mut row = from;
            while row < to {
                #[expect(unsafe_code, reason = "tiles address rows and panels by pointer")]
                // SAFETY: row + height <= rows.end and panel + width <= w.panels(), both checked
                // against the slices above; columns end at `outputs`, which the callers have
                // placed within the stride of `y`; the instruction set is there.
                unsafe {
                    let tile = Tile {
                        x: x.values.as_ptr().add(row * x.stride),
                        w: weights,
                        half,
                        y: y.start.add(row * y.stride + panel * LANES),
                        x_stride: x.stride,
                        inputs,
                        stride: y.stride,
                        columns,
                        epilogue,
                    };
                    (shape.run)(height, width, &tile);
                }
                row += height;
            }
            panel += width;
        }
    }
}

const PORTABLE_ROWS: usize = 4;

/// The tile in plain Rust.
///
/// # Safety
/// `tile` addresses `rows` rows of `x` and `y` and `panels` panels of `w`.
#[expect(unsafe_code, reason = "tiles address rows and panels by pointer")]
unsafe fn run_portable(rows: usize, _panels: usize, tile: &Tile) {
    for r in 0..rows {
        // SAFETY: the caller's promise for row `r`.
        let (x, y) = unsafe {
            (
                std::slice::from_raw_parts(tile.x.add(r * tile.x_stride), tile.inputs),
                std::slice::from_raw_parts_mut(tile.y.add(r * tile.stride), tile.columns),
            )
        };
        let mut sums = [0.0_f32; LANES];
        if let Some(format) = tile.half {
            // SAFETY: the caller's promise for the first panel.
            let w = unsafe { std::slice::from_raw_parts(tile.w.cast::<HalfLine>(), tile.inputs) };
            for (value, lanes) in x.iter().zip(w) {
                for (sum, bits) in sums.iter_mut().zip(lanes.0) {
                    *sum += value * format.widened(bits);
                }
            }
        } else {
            // SAFETY: the caller's promise for the first panel.
            let w =
                unsafe { std::slice::from_raw_parts(tile.w.cast::<[f32; LANES]>(), tile.inputs) };
            for (value, lanes) in x.iter().zip(w) {
                for (sum, weight) in sums.iter_mut().zip(lanes) {
                    *sum += value * weight;
                }
            }
        }
        finish(&sums, y, tile.epilogue);
    }
}

/// Applies the epilogue to one row's outputs; `y` may be shorter than `sums`.
#[expect(
    clippy::inline_always,
    reason = "takes the vector features of its caller"
)]
#[inline(always)]
pub(super) fn finish(sums: &[f32], y: &mut [f32], epilogue: Epilogue) {
    let pairs = y.iter_mut().zip(sums);
    match epilogue {
        Epilogue::Store => pairs.for_each(|(y, sum)| *y = *sum),
        Epilogue::Add => pairs.for_each(|(y, sum)| *y += *sum),
        Epilogue::AddScaled(scale) => pairs.for_each(|(y, sum)| *y += scale * *sum),
    }
}

/// What this machine has.
#[cfg(test)]
pub(super) fn available() -> Vec<Isa> {
    match Isa::detect() {
        Isa::Avx512 => vec![Isa::Avx512, Isa::Avx2, Isa::Portable],
        Isa::Avx2 => vec![Isa::Avx2, Isa::Portable],
        Isa::Portable => vec![Isa::Portable],
    }
}

/// The product with halves on a chosen instruction set.
#[cfg(test)]
pub(super) fn packed_on(isa: Isa, x: &[f32], w: &HalfPanels, y: &mut [f32]) {
    let rows = row_count(x, (w.outputs(), w.inputs()), y);
    on_one_thread(isa, (x, rows), Packed::halves(w), y, Epilogue::Store);
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use crate::random::Stream;

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let stream = Stream::new(seed, &[]);
        (0..count as u64).map(|i| stream.normal(i) as f32).collect()
    }

    #[test]
    fn every_row_count_gives_the_reference_bits() {
        // The last ones are cut into blocks of their inner dimension.
        for (n, k) in [(192, 64), (37, 19), (8, 48), (300, 8), (70, 600), (85, 512)] {
            let weight = values(1, n * k);
            let panels = Panels::pack(&weight, n, k);
            let x = values(2, 128 * k);
            for isa in available() {
                let whole = reference::product(isa, &x, &weight, k);
                for rows in 1..=128 {
                    let mut y = vec![0.0; rows * n];
                    product_on(isa, &x[..rows * k], &panels, &mut y, Epilogue::Store);
                    assert_eq!(y, whole[..rows * n], "{isa:?} {rows} rows of [{n}, {k}]");
                }
            }
        }
    }

    #[test]
    fn epilogues_add_after_the_chain() {
        for (n, k, rows) in [(37, 19, 14), (70, 300, 50)] {
            let (weight, x, start) = (values(1, n * k), values(2, rows * k), values(3, rows * n));
            let panels = Panels::pack(&weight, n, k);
            for isa in available() {
                let sums = reference::product(isa, &x, &weight, k);
                for (epilogue, expected) in [
                    (
                        Epilogue::Add,
                        start
                            .iter()
                            .zip(&sums)
                            .map(|(y, s)| y + s)
                            .collect::<Vec<_>>(),
                    ),
                    (
                        Epilogue::AddScaled(0.3),
                        start.iter().zip(&sums).map(|(y, s)| y + 0.3 * s).collect(),
                    ),
                ] {
                    let mut y = start.clone();
                    product_on(isa, &x, &panels, &mut y, epilogue);
                    assert_eq!(y, expected, "{isa:?} {epilogue:?}");
                }
            }
        }
    }

    #[test]
    fn a_weight_in_tiles_gives_the_bits_of_the_whole() {
        for ((rows, tile), k) in [(1, 64), (13, 64), (40, 16), (7, 200), (40, 64), (500, 128)]
            .into_iter()
            .flat_map(|case| [(case, 24), (case, 530)])
        {
            let n = 150;
            let weight = values(1, n * k);
            let whole = Panels::pack(&weight, n, k);
            let (x, start) = (values(2, rows * k), values(3, rows * n));
            for epilogue in [Epilogue::Store, Epilogue::Add, Epilogue::AddScaled(0.3)] {
                let (mut expected, mut y) = (start.clone(), start.clone());
                product(&x, &whole, &mut expected, epilogue);
                let fill = |range: Range<usize>, values: &mut [f32]| {
                    let rows = &weight[range.start * k..range.end * k];
                    values.copy_from_slice(Panels::pack(rows, range.len(), k).data());
                };
                product_tiled(&x, (n, k), (tile, &fill), &mut y, epilogue);
                assert_eq!(y, expected, "{rows} rows in tiles of {tile}, {epilogue:?}");
            }
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        for ((n, k), rows) in [1, 11, 13, 60, 200]
            .into_iter()
            .flat_map(|rows| [((530, 200), rows), ((70, 900), rows)])
        {
            let weight = values(1, n * k);
            let panels = Panels::pack(&weight, n, k);
            let x = values(2, rows * k);
            let mut expected = vec![0.0; rows * n];
            product(&x, &panels, &mut expected, Epilogue::Store);
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let mut y = vec![0.0; rows * n];
                pool.install(|| product_parallel(&x, &panels, &mut y, Epilogue::Store));
                assert_eq!(y, expected, "{rows} rows, {threads} threads");
            }
        }
    }
}
