//! Weights in blocks, straight into the panels that products read: every value has the bits of [`Blocks::read`], which
//! is the plain reference.
//!
//! For `x · Wᵀ` sixteen rows of a weight are the lanes of a panel: their bytes are transposed while they are
//! bytes, and widened sixteen at a time. For `g · W` sixteen neighbours of one row are a line as they stand.
#![expect(
    clippy::indexing_slicing,
    reason = "arrays indexed below their constant length"
)]
#![expect(
    clippy::inline_always,
    reason = "bodies must take the features of their caller"
)]

use std::ops::Range;

use super::dispatch::vectorized;
use super::halves::HalfFormat;
use super::panels::{LANES, pack_into, pack_transposed_into, packed_len};
use crate::quant::{BlockFormat, Blocks, GROUP, scale_and_minimum};

/// Values of one block of `Q4_K`, and its groups.
const Q4_K: usize = 256;
const GROUPS: usize = Q4_K / GROUP;

/// One line for each of sixteen rows' bytes.
type Bytes = [[u8; LANES]; LANES];

/// Writes the panels of some outputs, for `x · Wᵀ`: `[outputs/16][inputs][16]`, over what was there.
///
/// # Panics
/// `outputs` lie outside, or `panels` have another length.
pub(crate) fn unpack(blocks: &Blocks, outputs: Range<usize>, panels: &mut [f32]) {
    let inputs = blocks.inputs();
    assert!(
        outputs.end <= blocks.outputs() && panels.len() == packed_len(outputs.len(), inputs),
        "panels of outputs {outputs:?} of {}",
        blocks.outputs()
    );
    let unpack_rows: fn(&[&[u8]; LANES], &mut [[f32; LANES]]) = match blocks.format() {
        BlockFormat::Q4_0 => unpack_q4_0,
        BlockFormat::Q8_0 => unpack_q8_0,
        BlockFormat::Q4K => unpack_q4_k,
        BlockFormat::Q6K => {
            panels.fill(0.0);
            return pack_into(panels, &blocks.read(outputs, 0..inputs), inputs);
        }
    };
    let firsts = outputs.clone().step_by(LANES);
    for (first, panel) in firsts.zip(panels.chunks_exact_mut(LANES * inputs)) {
        let rows = std::array::from_fn(|lane| match first + lane {
            row if row < outputs.end => blocks.row(row),
            _ => &[],
        });
        unpack_rows(&rows, panel.as_chunks_mut().0);
    }
}

/// Writes the panels of some inputs, for `g · W`: `[inputs/16][outputs][16]`, over what was there.
///
/// # Panics
/// `inputs` do not start and end at multiples of 32, lie outside, or `panels` have another length.
pub(crate) fn unpack_transposed(blocks: &Blocks, inputs: Range<usize>, panels: &mut [f32]) {
    let outputs = blocks.outputs();
    assert!(
        inputs.start.is_multiple_of(GROUP)
            && inputs.len().is_multiple_of(GROUP)
            && inputs.end <= blocks.inputs()
            && panels.len() == packed_len(inputs.len(), outputs),
        "panels of inputs {inputs:?} of {}",
        blocks.inputs()
    );
    let rows = Rows {
        data: blocks.data(),
        bytes: blocks.data().len().checked_div(outputs).unwrap_or(0),
        count: outputs,
        group: inputs.start / GROUP,
    };
    match blocks.format() {
        BlockFormat::Q4_0 => spread_q4_0(&rows, panels),
        BlockFormat::Q8_0 => spread_q8_0(&rows, panels),
        BlockFormat::Q4K => spread_q4_k(&rows, panels),
        BlockFormat::Q6K => {
            let width = inputs.len();
            let values = blocks.read(0..outputs, inputs);
            panels.fill(0.0);
            pack_transposed_into(panels, &values, outputs, width);
        }
    }
}

vectorized! {
    /// Sixteen rows of `Q4_0`, as one panel; a row that is not there is empty.
    fn unpack_q4_0(rows: &[&[u8]; LANES], panel: &mut [[f32; LANES]]) {
        for (number, lines) in panel.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            let mut scales = [0.0; LANES];
            let mut quants: Bytes = [[0; LANES]; LANES];
            for (lane, row) in rows.iter().enumerate() {
                if let Some([d0, d1, bytes @ ..]) = row.as_chunks::<18>().0.get(number) {
                    scales[lane] = half(*d0, *d1);
                    quants[lane] = *bytes;
                }
            }
            let (low, high) = lines.split_at_mut(LANES);
            for ((low, high), quants) in low.iter_mut().zip(high).zip(&transposed(&quants)) {
                for lane in 0..LANES {
                    low[lane] = (f32::from(quants[lane] & 15) - 8.0) * scales[lane];
                    high[lane] = (f32::from(quants[lane] >> 4) - 8.0) * scales[lane];
                }
            }
        }
    }

    /// Sixteen rows of `Q8_0`.
    fn unpack_q8_0(rows: &[&[u8]; LANES], panel: &mut [[f32; LANES]]) {
        for (number, lines) in panel.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            let mut scales = [0.0; LANES];
            let mut quants: [Bytes; 2] = [[[0; LANES]; LANES]; 2];
            for (lane, row) in rows.iter().enumerate() {
                if let Some([d0, d1, bytes @ ..]) = row.as_chunks::<34>().0.get(number) {
                    scales[lane] = half(*d0, *d1);
                    for (quants, bytes) in quants.iter_mut().zip(bytes.as_chunks::<LANES>().0) {
                        quants[lane] = *bytes;
                    }
                }
            }
            for (lines, quants) in lines.as_chunks_mut::<LANES>().0.iter_mut().zip(&quants) {
                for (line, quants) in lines.iter_mut().zip(&transposed(quants)) {
                    for lane in 0..LANES {
                        line[lane] = f32::from(quants[lane].cast_signed()) * scales[lane];
                    }
                }
            }
        }
    }

    /// Sixteen rows of `Q4_K`.
    fn unpack_q4_k(rows: &[&[u8]; LANES], panel: &mut [[f32; LANES]]) {
        for (number, lines) in panel.as_chunks_mut::<Q4_K>().0.iter_mut().enumerate() {
            let mut scales = [[0.0; LANES]; GROUPS];
            let mut minima = [[0.0; LANES]; GROUPS];
            let mut quants: [Bytes; GROUPS] = [[[0; LANES]; LANES]; GROUPS];
            for (lane, row) in rows.iter().enumerate() {
                let Some([d0, d1, m0, m1, rest @ ..]) = row.as_chunks::<144>().0.get(number) else {
                    continue;
                };
                let (scale, minimum) = (half(*d0, *d1), half(*m0, *m1));
                let (packed, bytes) = rest.split_at(12);
                for group in 0..GROUPS {
                    let (groups_scale, groups_minimum) = scale_and_minimum(packed, group);
                    scales[group][lane] = scale * f32::from(groups_scale);
                    minima[group][lane] = minimum * f32::from(groups_minimum);
                }
                for (quants, bytes) in quants.iter_mut().zip(bytes.as_chunks::<LANES>().0) {
                    quants[lane] = *bytes;
                }
            }
            // Two groups share 32 bytes.
            let pairs = lines.as_chunks_mut::<{ 2 * GROUP }>().0.iter_mut();
            let parts = quants.as_chunks::<2>().0.iter();
            let scales = scales.as_chunks::<2>().0.iter().zip(minima.as_chunks::<2>().0);
            for ((lines, parts), ([scale, next_scale], [minimum, next_minimum])) in pairs.zip(parts).zip(scales) {
                let (low, high) = lines.split_at_mut(GROUP);
                let bytes = [transposed(&parts[0]), transposed(&parts[1])];
                for ((low, high), quants) in low.iter_mut().zip(high).zip(bytes.as_flattened()) {
                    for lane in 0..LANES {
                        low[lane] = scale[lane] * f32::from(quants[lane] & 15) - minimum[lane];
                        high[lane] = next_scale[lane] * f32::from(quants[lane] >> 4) - next_minimum[lane];
                    }
                }
            }
        }
    }

    /// Groups of every row of `Q4_0`, as lines of two panels each.
    fn spread_q4_0(rows: &Rows<'_>, panels: &mut [f32]) {
        rows.spread(panels, lines_of_q4_0);
    }

    /// Groups of every row of `Q8_0`.
    fn spread_q8_0(rows: &Rows<'_>, panels: &mut [f32]) {
        rows.spread(panels, lines_of_q8_0);
    }

    /// Groups of every row of `Q4_K`.
    fn spread_q4_k(rows: &Rows<'_>, panels: &mut [f32]) {
        rows.spread(panels, lines_of_q4_k);
    }
}

/// The 32 values of one group of a row.
type Lines = [[f32; LANES]; 2];

#[inline(always)]
fn lines_of_q4_0(row: &[u8], group: usize) -> Lines {
    let mut lines = [[0.0; LANES]; 2];
    if let Some([d0, d1, quants @ ..]) = row.as_chunks::<18>().0.get(group) {
        let scale = half(*d0, *d1);
        for i in 0..LANES {
            lines[0][i] = (f32::from(quants[i] & 15) - 8.0) * scale;
            lines[1][i] = (f32::from(quants[i] >> 4) - 8.0) * scale;
        }
    }
    lines
}

#[inline(always)]
fn lines_of_q8_0(row: &[u8], group: usize) -> Lines {
    let mut lines = [[0.0; LANES]; 2];
    if let Some([d0, d1, quants @ ..]) = row.as_chunks::<34>().0.get(group) {
        let scale = half(*d0, *d1);
        for i in 0..LANES {
            lines[0][i] = f32::from(quants[i].cast_signed()) * scale;
            lines[1][i] = f32::from(quants[LANES + i].cast_signed()) * scale;
        }
    }
    lines
}

#[inline(always)]
fn lines_of_q4_k(row: &[u8], group: usize) -> Lines {
    let mut lines = [[0.0; LANES]; 2];
    let (blocks, _) = row.as_chunks::<144>();
    let Some([d0, d1, m0, m1, rest @ ..]) = blocks.get(group / GROUPS) else {
        return lines;
    };
    let group = group % GROUPS;
    let (packed, bytes) = rest.split_at(12);
    let (scale, minimum) = scale_and_minimum(packed, group);
    let scale = half(*d0, *d1) * f32::from(scale);
    let minimum = half(*m0, *m1) * f32::from(minimum);
    let shift = 4 * (group % 2);
    if let Some(quants) = bytes.as_chunks::<GROUP>().0.get(group / 2) {
        for i in 0..LANES {
            lines[0][i] = scale * f32::from((quants[i] >> shift) & 15) - minimum;
            lines[1][i] = scale * f32::from((quants[LANES + i] >> shift) & 15) - minimum;
        }
    }
    lines
}

/// All rows of a weight, from a group of their blocks on.
struct Rows<'a> {
    data: &'a [u8],
    /// Of one row.
    bytes: usize,
    count: usize,
    group: usize,
}

impl Rows<'_> {
    /// Writes what `lines_of` makes of each row's groups.
    #[inline(always)]
    fn spread(&self, panels: &mut [f32], lines_of: impl Fn(&[u8], usize) -> Lines) {
        let (lines, _) = panels.as_chunks_mut::<LANES>();
        for (number, row) in self.data.chunks_exact(self.bytes).enumerate() {
            let pairs = lines.chunks_exact_mut(2 * self.count);
            for (group, pair) in (self.group..).zip(pairs) {
                let (first, second) = pair.split_at_mut(self.count);
                if let (Some(first), Some(second)) = (first.get_mut(number), second.get_mut(number))
                {
                    [*first, *second] = lines_of(row, group);
                }
            }
        }
    }
}

#[inline(always)]
fn half(low: u8, high: u8) -> f32 {
    HalfFormat::F16.widened(u16::from_le_bytes([low, high]))
}

/// Byte `i` of row `j` as byte `j` of row `i`: interleaving the upper and the lower half of the rows turns the bits
/// of a byte's place by one, and four of eight such turns swap row and column.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(rows: &Bytes) -> Bytes {
    use std::arch::x86_64::{__m128i, _mm_unpackhi_epi8, _mm_unpacklo_epi8};

    #[expect(unsafe_code, reason = "registers are sixteen bytes")]
    // SAFETY: both types are 256 bytes of any value, and every x86-64 has SSE2.
    unsafe {
        let mut rows: [__m128i; LANES] = std::mem::transmute(*rows);
        for _ in 0..4 {
            let (low, high) = (rows, rows);
            for i in 0..LANES / 2 {
                rows[2 * i] = _mm_unpacklo_epi8(low[i], high[i + LANES / 2]);
                rows[2 * i + 1] = _mm_unpackhi_epi8(low[i], high[i + LANES / 2]);
            }
        }
        std::mem::transmute::<[__m128i; LANES], Bytes>(rows)
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transposed(rows: &Bytes) -> Bytes {
    std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Panels;
    use crate::random::Stream;

    const FORMATS: [BlockFormat; 4] = [
        BlockFormat::Q4_0,
        BlockFormat::Q8_0,
        BlockFormat::Q4K,
        BlockFormat::Q6K,
    ];

    fn blocks(format: BlockFormat, outputs: usize, inputs: usize) -> Blocks {
        let stream = Stream::new(5, &[outputs as u64]);
        // Rows and groups of different sizes, so that a scale in a wrong place shows.
        let value = |i: u64| (stream.normal(i) * (1.0 + (i / 32 % 7) as f64)) as f32;
        let weight: Vec<f32> = (0..(outputs * inputs) as u64).map(value).collect();
        Blocks::quantize(format, &weight, outputs, inputs).unwrap()
    }

    #[test]
    fn panels_of_blocks_have_the_bits_of_the_values_read_and_packed() {
        for format in FORMATS {
            for (outputs, inputs) in [(5, 512), (48, 256), (70, 768)] {
                let blocks = blocks(format, outputs, inputs);
                for rows in [0..outputs, 0..outputs.min(16), outputs / 2..outputs] {
                    let read = blocks.read(rows.clone(), 0..inputs);
                    let expected = Panels::pack(&read, rows.len(), inputs);
                    let mut panels = vec![f32::NAN; expected.data().len()];
                    unpack(&blocks, rows, &mut panels);
                    assert_eq!(panels, expected.data(), "{format:?} [{outputs}, {inputs}]");
                }
                for columns in [0..inputs, 32..96, inputs - 64..inputs] {
                    let read = blocks.read(0..outputs, columns.clone());
                    let expected = Panels::pack_transposed(&read, outputs, columns.len());
                    let mut panels = vec![f32::NAN; expected.data().len()];
                    unpack_transposed(&blocks, columns, &mut panels);
                    assert_eq!(panels, expected.data(), "{format:?} [{outputs}, {inputs}]");
                }
            }
        }
    }

    #[test]
    fn transposing_swaps_rows_and_columns() {
        let rows: Bytes = std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as u8));
        let columns: Bytes = std::array::from_fn(|i| std::array::from_fn(|j| (16 * j + i) as u8));
        assert_eq!(transposed(&rows), columns);
    }
}
