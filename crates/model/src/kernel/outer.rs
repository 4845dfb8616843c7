//! `W' = W' + gᵀ · x`: the weight's gradient, one chain over the rows per element.

use std::ops::Range;

use super::dispatch::Isa;
use super::panels::LANES;
#[cfg(target_arch = "x86_64")]
use super::{x86_avx2, x86_avx512};

/// Rows taken at a time: their slice of `x` stays in the first-level cache.
const ROW_BLOCK: usize = 256;

/// Adds `gᵀ · x` over all rows, for `g: [rows, n]` and `x: [rows, k]`, to the rows `outputs` of
/// the sums `[n, k]`; `sums` holds just those rows. Each element's chain continues from the value
/// it has, in row order, so that cutting rows or outputs into calls does not change the bits.
///
/// # Panics
/// The lengths do not fit together.
pub(crate) fn accumulate_outer(
    (g, n): (&[f32], usize),
    (x, k): (&[f32], usize),
    outputs: Range<usize>,
    sums: &mut [f32],
) {
    outer_on(Isa::detect(), (g, n), (x, k), outputs, sums);
}

fn outer_on(
    isa: Isa,
    (g, n): (&[f32], usize),
    (x, k): (&[f32], usize),
    outputs: Range<usize>,
    sums: &mut [f32],
) {
    let rows = g.len().checked_div(n).unwrap_or(0);
    assert!(
        rows * n == g.len() && rows * k == x.len(),
        "rows of g and x differ"
    );
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
    let mut row = 0;
    while row < rows {
        let height = ROW_BLOCK.min(rows - row);
        #[cfg(target_arch = "x86_64")]
        if isa != Isa::Portable {
            #[expect(unsafe_code, reason = "tiles address rows and columns by pointer")]
            // SAFETY: `row + height <= rows`, and both matrices hold `rows` rows of `stride`
            // values of which `first + count` exist; `sums` is [g.count, x.count].
            unsafe {
                let block = OuterTile {
                    g: g.data.as_ptr().add(row * g.stride + g.first),
                    g_stride: g.stride,
                    x: x.data.as_ptr().add(row * x.stride + x.first),
                    x_stride: x.stride,
                    sums: sums.as_mut_ptr(),
                    stride: x.count,
                    rows: height,
                };
                tiles(isa, g.count, &block);
            }
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

/// All tiles of one block of rows, whole registers of columns only.
///
/// # Safety
/// The machine has the instruction set; `block` addresses its rows of `outputs` values of `g` and
/// of `stride` values of `x`, and `outputs` rows of sums.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "tiles address rows and columns by pointer")]
unsafe fn tiles(isa: Isa, outputs: usize, block: &OuterTile) {
    let (tallest, widest) = match isa {
        Isa::Avx512 => (x86_avx512::ROWS, 2),
        _ => (x86_avx2::ROWS, 1),
    };
    let registers = block.stride / LANES;
    let mut column = 0;
    while column < registers {
        let width = if column + widest <= registers {
            widest
        } else {
            1
        };
        let mut output = 0;
        while output < outputs {
            let height = tallest.min(outputs - output);
            // SAFETY: `output + height <= outputs` and the columns end inside `stride`.
            unsafe {
                let tile = OuterTile {
                    g: block.g.add(output),
                    x: block.x.add(column * LANES),
                    sums: block.sums.add(output * block.stride + column * LANES),
                    ..*block
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
}
