//! `W' = W' + gᵀ · x`: the weight's gradient, one chain over the rows per element.
//!
//! A tile reads a few columns of many rows. Rows of a wide matrix lie a power of two apart, where they share the sets of
//! the caches: some rows at a time are therefore read once, as they lie, and copied tile by tile.

use std::ops::Range;

use rayon::prelude::*;

use super::dispatch::Isa;
use super::panels::LANES;
#[cfg(target_arch = "x86_64")]
use super::scratch::{INPUTS, WEIGHTS, with_scratch};
#[cfg(target_arch = "x86_64")]
use super::{x86_avx2, x86_avx512};

/// Rows taken at a time: what is copied of them stays in the second cache.
const ROW_BLOCK: usize = 64;
/// Columns of one task, where it is `x` that is wide: whole tiles.
const TASK_COLUMNS: usize = 128;

/// Adds `gᵀ · x` over all rows, for `g: [rows, n]` and `x: [rows, k]`, to the sums `[n, k]` with the threads of the
/// current rayon pool. Each element's chain continues from the value it has, in row order, so that cutting rows,
/// outputs or columns into calls and tasks does not change the bits.
///
/// # Panics
/// The lengths do not fit together.
pub(crate) fn accumulate_outer((g, n): (&[f32], usize), (x, k): (&[f32], usize), sums: &mut [f32]) {
    let isa = Isa::detect();
    if k <= n {
        let outputs = outputs_per_task(n);
        let tasks = sums.par_chunks_mut(outputs * k).enumerate();
        tasks.for_each(|(task, sums)| {
            let first = task * outputs;
            outer_on(isa, (g, n), (x, k), first..first + sums.len() / k, sums);
        });
        return;
    }
    // A factor's rank gives no task to most threads: the columns do.
    let rows = row_count((g, n), (x, k));
    assert_eq!(sums.len(), n * k, "sums are not [{n}, {k}]");
    let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
    tasks.resize_with(k.div_ceil(TASK_COLUMNS), || Vec::with_capacity(n));
    for row in sums.chunks_exact_mut(k) {
        for (task, part) in tasks.iter_mut().zip(row.chunks_mut(TASK_COLUMNS)) {
            task.push(part);
        }
    }
    tasks.into_par_iter().enumerate().for_each(|(task, parts)| {
        let first = task * TASK_COLUMNS;
        let count = TASK_COLUMNS.min(k - first);
        let mut own: Vec<f32> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let all = Columns {
            data: g,
            stride: n,
            first: 0,
            count: n,
        };
        let some = Columns {
            data: x,
            stride: k,
            first,
            count,
        };
        accumulate(isa, rows, all, some, &mut own);
        for (part, own) in parts.into_iter().zip(own.chunks_exact(count)) {
            part.copy_from_slice(own);
        }
    });
}

/// Outputs of one task; a multiple of what a tile holds.
fn outputs_per_task(outputs: usize) -> usize {
    outputs
        .div_ceil(4 * rayon::current_num_threads())
        .next_multiple_of(24)
}

fn row_count((g, n): (&[f32], usize), (x, k): (&[f32], usize)) -> usize {
    let rows = g.len().checked_div(n).unwrap_or(0);
    assert!(
        rows * n == g.len() && rows * k == x.len(),
        "rows of g and x differ"
    );
    rows
}

/// Adds to the sums of some outputs, on this thread.
fn outer_on(
    isa: Isa,
    (g, n): (&[f32], usize),
    (x, k): (&[f32], usize),
    outputs: Range<usize>,
    sums: &mut [f32],
) {
    let rows = row_count((g, n), (x, k));
    let count = outputs.len();
    assert!(
        outputs.end <= n && count * k == sums.len(),
        "sums are not [outputs, {k}]"
    );
    let (g, x) = (
        Columns {
            data: g,
            stride: n,
            first: outputs.start,
            count,
        },
        Columns {
            data: x,
            stride: k,
            first: 0,
            count: k,
        },
    );
    if k < LANES && LANES <= count {
        // A factor's rank fills no register: the other side's columns do. A product's factors
        // commute, so that the chains and their bits are the same.
        let mut turned = transposed(sums, k);
        accumulate(isa, rows, x, g, &mut turned);
        sums.copy_from_slice(&transposed(&turned, count));
    } else {
        accumulate(isa, rows, g, x, sums);
    }
}

/// `[columns, rows]` of `[rows, columns]`.
fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|c| matrix.iter().skip(c).step_by(columns).copied())
        .collect()
}

/// Some columns of a row-major matrix.
#[derive(Clone, Copy)]
struct Columns<'a> {
    data: &'a [f32],
    stride: usize,
    first: usize,
    count: usize,
}

impl<'a> Columns<'a> {
    /// The columns of rows `from` to `from + count`, row by row.
    fn rows(self, from: usize, count: usize) -> impl Iterator<Item = &'a [f32]> {
        let range = self.first..self.first + self.count;
        let rows = self.data.chunks_exact(self.stride).skip(from).take(count);
        rows.filter_map(move |row| row.get(range.clone()))
    }
}

/// Adds `gᵀ · x` over all rows to `sums: [g.count, x.count]`.
fn accumulate(isa: Isa, rows: usize, g: Columns<'_>, x: Columns<'_>, sums: &mut [f32]) {
    let whole = match isa {
        Isa::Portable => 0,
        _ => x.count / LANES * LANES,
    };
    #[cfg(target_arch = "x86_64")]
    let stride = x.count;
    let mut row = 0;
    while row < rows {
        let height = ROW_BLOCK.min(rows - row);
        #[cfg(target_arch = "x86_64")]
        if whole > 0 {
            let x = Columns { count: whole, ..x };
            with_scratch(&INPUTS, height * g.count, |gs| {
                with_scratch(&WEIGHTS, height * whole, |xs| {
                    match isa {
                        Isa::Avx512 => {
                            copy_tiles::<{ x86_avx512::ROWS }>(g, (row, height), gs);
                            copy_tiles::<{ 2 * LANES }>(x, (row, height), xs);
                        }
                        _ => {
                            copy_tiles::<{ x86_avx2::ROWS }>(g, (row, height), gs);
                            copy_tiles::<LANES>(x, (row, height), xs);
                        }
                    }
                    tiles(isa, (gs, xs, height), sums, stride);
                });
            });
        }
        // Columns that fill no register, in plain Rust with the same rounding.
        if whole < x.count {
            for (g, x) in g.rows(row, height).zip(x.rows(row, height)) {
                for (gradient, sums) in g.iter().zip(sums.chunks_exact_mut(x.len())) {
                    for (sum, input) in sums.iter_mut().zip(x).skip(whole) {
                        *sum = match isa {
                            Isa::Portable => *sum + gradient * input,
                            _ => gradient.mul_add(*input, *sum),
                        };
                    }
                }
            }
        }
        row += height;
    }
}

/// One tile of sums: a few outputs by one or two registers of columns, over a block of rows.
#[derive(Clone, Copy)]
pub(super) struct OuterTile {
    /// First output of the first row, `[rows, g_stride]`.
    pub g: *const f32,
    /// Elements between rows of `g`.
    pub g_stride: usize,
    /// First column of the first row, `[rows, x_stride]`.
    pub x: *const f32,
    /// Elements between rows of `x`.
    pub x_stride: usize,
    /// First column of the first output, `[outputs, stride]`.
    pub sums: *mut f32,
    /// Elements between outputs of `sums`.
    pub stride: usize,
    /// Rows to add up.
    pub rows: usize,
}

/// Copies some rows, tile by tile: `[tiles][rows][T]`, the last tile as narrow as it is.
#[cfg(target_arch = "x86_64")]
fn copy_tiles<const T: usize>(from: Columns<'_>, (row, rows): (usize, usize), to: &mut [f32]) {
    for (place, values) in from.rows(row, rows).enumerate() {
        let (wholes, rest) = values.as_chunks::<T>();
        let mut tiles = to.chunks_mut(T * rows);
        for (part, tile) in wholes.iter().zip(&mut tiles) {
            if let Some(slots) = tile.as_chunks_mut::<T>().0.get_mut(place) {
                *slots = *part;
            }
        }
        let last = tiles.next().unwrap_or_default();
        if let Some(slots) = last.get_mut(place * rest.len()..(place + 1) * rest.len()) {
            slots.copy_from_slice(rest);
        }
    }
}

/// All tiles of one block of `rows` rows, which [`copy_tiles`] has laid out: `g` of all outputs, and whole registers
/// of columns of `x`, of which the sums have `stride`.
#[cfg(target_arch = "x86_64")]
fn tiles(isa: Isa, (g, x, rows): (&[f32], &[f32], usize), sums: &mut [f32], stride: usize) {
    let (tallest, widest) = match isa {
        Isa::Avx512 => (x86_avx512::ROWS, 2),
        _ => (x86_avx2::ROWS, 1),
    };
    let (outputs, registers) = (g.len() / rows, x.len() / rows / LANES);
    assert!(registers * LANES <= stride && outputs * stride <= sums.len());
    let mut column = 0;
    while column < registers {
        let width = widest.min(registers - column);
        let mut output = 0;
        while output < outputs {
            let height = tallest.min(outputs - output);
            #[expect(unsafe_code, reason = "tiles address rows and columns by pointer")]
            // SAFETY: `output + height <= outputs` and `column + width <= registers`, whose values for all rows stand
            // one behind the other in `g` and `x`, and whose sums are there; the instruction set is there.
            unsafe {
                let tile = OuterTile {
                    g: g.as_ptr().add(output * rows),
                    g_stride: height,
                    x: x.as_ptr().add(column * LANES * rows),
                    x_stride: width * LANES,
                    sums: sums.as_mut_ptr().add(output * stride + column * LANES),
                    stride,
                    rows,
                };
                match isa {
                    Isa::Avx512 => x86_avx512::outer(height, width, &tile),
                    _ => x86_avx2::outer(height, &tile),
                }
            }
            output += height;
        }
        column += width;
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use crate::random::Stream;

    #[test]
    fn every_shape_gives_the_reference_bits() {
        let values = |seed, count: usize| -> Vec<f32> {
            let stream = Stream::new(seed, &[]);
            (0..count as u64).map(|i| stream.normal(i) as f32).collect()
        };
        let all = [Isa::Avx512, Isa::Avx2, Isa::Portable];
        let best = all.iter().position(|isa| *isa == Isa::detect()).unwrap();
        for isa in &all[best..] {
            for (n, k, rows) in [
                (8, 192, 300),
                (13, 37, 21),
                (25, 64, 257),
                (3, 8, 5),
                (70, 8, 270),
            ] {
                let (g, x) = (values(1, rows * n), values(2, rows * k));
                let mut expected = values(3, n * k);
                let mut sums = expected.clone();
                reference::outer(*isa, &g, &x, n, k, &mut expected);
                let (low, high) = sums.split_at_mut(n / 2 * k);
                outer_on(*isa, (&g, n), (&x, k), 0..n / 2, low);
                let cut = rows / 3;
                outer_on(*isa, (&g[..cut * n], n), (&x[..cut * k], k), n / 2..n, high);
                outer_on(*isa, (&g[cut * n..], n), (&x[cut * k..], k), n / 2..n, high);
                assert_eq!(sums, expected, "{isa:?} [{n}, {k}] over {rows}");
            }
        }
    }
    #[test]
    fn neither_threads_nor_tasks_change_a_bit() {
        let values = |seed, count: usize| -> Vec<f32> {
            let stream = Stream::new(seed, &[]);
            (0..count as u64).map(|i| stream.normal(i) as f32).collect()
        };
        for (n, k, rows) in [
            (16, 300, 130),
            (300, 16, 130),
            (70, 8, 70),
            (8, 200, 65),
            (40, 150, 9),
        ] {
            let (g, x) = (values(1, rows * n), values(2, rows * k));
            let start = values(3, n * k);
            let mut expected = start.clone();
            reference::outer(Isa::detect(), &g, &x, n, k, &mut expected);
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new();
                let pool = pool.num_threads(threads).build().unwrap();
                let mut sums = start.clone();
                pool.install(|| accumulate_outer((&g, n), (&x, k), &mut sums));
                assert!(
                    sums == expected,
                    "[{n}, {k}] over {rows}, {threads} threads"
                );
            }
        }
    }
}
