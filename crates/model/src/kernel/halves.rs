//! Weights packed as bf16 or f16: half of the memory, one pack for both directions, and the bits of their values
//! in f32, since widening is exact.
#![expect(
    clippy::indexing_slicing,
    reason = "arrays indexed below their constant length"
)]

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use half::bf16;
use rayon::prelude::*;

use super::dispatch::vectorized;
use super::panels::LANES;
use super::product::{Epilogue, Packed, parallel};
use super::shared::Shared;

/// What the sixteen bits of a value are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HalfFormat {
    /// The upper half of an f32.
    Bf16,
    /// IEEE 754's binary16.
    F16,
}

impl HalfFormat {
    /// The value of these bits, exactly.
    #[inline]
    pub fn widened(self, bits: u16) -> f32 {
        match self {
            Self::Bf16 => f32::from_bits(u32::from(bits) << 16),
            Self::F16 => f16_widened(bits),
        }
    }

    /// The bits of a value that this format has; of another value any.
    #[inline]
    fn narrowed(self, value: f32) -> u16 {
        match self {
            Self::Bf16 => (value.to_bits() >> 16) as u16,
            Self::F16 => f16_narrowed(value),
        }
    }

    /// Whether the format has each of these values, to the bit.
    fn has_all(self, values: &[f32]) -> bool {
        // Differences are gathered, not branched on: this way the loop is one of vectors.
        let lost = values.iter().fold(0, |lost, value| {
            lost | (self.widened(self.narrowed(*value)).to_bits() ^ value.to_bits())
        });
        lost == 0
    }

    /// Whether these bits are a number, and not infinity or NaN.
    #[inline]
    fn is_finite(self, bits: u16) -> bool {
        let exponent = match self {
            Self::Bf16 => 0x7f80,
            Self::F16 => 0x7c00,
        };
        bits & exponent != exponent
    }
}

/// Without branches but for infinity and NaN: exponent and fraction are read as those of an f32, and scaled by
/// the difference of the biases, which is exact and makes subnormals normal.
#[inline]
fn f16_widened(bits: u16) -> f32 {
    /// 2^112
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let value = if bits & 0x7c00 == 0x7c00 {
        f32::from_bits(magnitude | 0x7f80_0000)
    } else {
        f32::from_bits(magnitude) * SCALE
    };
    if bits & 0x8000 == 0 { value } else { -value }
}

/// The other way: the same scaling back, which is exact for a value that f16 has.
#[inline]
fn f16_narrowed(value: f32) -> u16 {
    /// 2^-112
    const SCALE: f32 = f32::from_bits((127 - 112) << 23);
    let bits = value.to_bits();
    let magnitude = f32::from_bits(bits & 0x7fff_ffff) * SCALE;
    (magnitude.to_bits() >> 13) as u16 | ((bits >> 16) as u16 & 0x8000)
}

/// A weight as it is stored, row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HalfWeight {
    /// What the bits are.
    pub format: HalfFormat,
    /// `[outputs, inputs]`
    pub bits: Vec<u16>,
}

impl HalfWeight {
    /// Each value rounded to the nearest bf16.
    pub fn rounded(values: &[f32]) -> Self {
        let bits = values.par_iter().map(|it| bf16::from_f32(*it).to_bits());
        Self {
            format: HalfFormat::Bf16,
            bits: bits.collect(),
        }
    }

    /// The values in a format that has each of them to the bit: bf16 where both do; none where neither does.
    pub fn exactly(values: &[f32]) -> Option<Self> {
        let formats = [HalfFormat::Bf16, HalfFormat::F16];
        let format = formats.into_iter().find(|format| format.has_all(values))?;
        let bits = values.iter().map(|value| format.narrowed(*value));
        Some(Self {
            format,
            bits: bits.collect(),
        })
    }

    /// The values as f32.
    pub fn widened(&self) -> Vec<f32> {
        let bits = self.bits.iter();
        bits.map(|bits| self.format.widened(*bits)).collect()
    }

    /// Writes the values from one on, as many as there is room for, as f32.
    pub fn read(&self, first: usize, to: &mut [f32]) {
        widen(self.format, self.bits.get(first..).unwrap_or_default(), to);
    }

    /// The largest magnitude; 0 of no values.
    pub fn largest(&self) -> f32 {
        // Without their sign, the bits of either format are in the order of the values.
        self.format.widened(largest_bits(&self.bits))
    }

    /// The first value that is infinite or NaN.
    pub fn first_not_finite(&self) -> Option<usize> {
        // Most have none, which one quick look at all of them tells.
        if self.format.is_finite(largest_bits(&self.bits)) {
            return None;
        }
        let mut bits = self.bits.iter();
        bits.position(|bits| !self.format.is_finite(*bits))
    }
}

vectorized! {
    fn widen(format: HalfFormat, bits: &[u16], to: &mut [f32]) {
        for (to, bits) in to.iter_mut().zip(bits) {
            *to = format.widened(*bits);
        }
    }

    fn largest_bits(bits: &[u16]) -> u16 {
        bits.iter().fold(0, |largest, bits| largest.max(bits & 0x7fff))
    }
}

/// One input of sixteen outputs.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C, align(32))]
pub(super) struct HalfLine(pub [u16; LANES]);

/// A weight `[n, k]` in sixteen bits a value, packed as `[n/16][k][16]`; outputs past `n` in the last group are
/// zero.
#[derive(Debug)]
pub(crate) struct HalfPanels {
    outputs: usize,
    inputs: usize,
    format: HalfFormat,
    /// Of this weight, or of a [`HalfPanels::stack`] with it in.
    lines: Shared<HalfLine>,
}

impl HalfPanels {
    /// Packs a weight `[outputs, inputs]`.
    ///
    /// # Panics
    /// `weight` has another length, or no values.
    pub fn pack(weight: &HalfWeight, outputs: usize, inputs: usize) -> Self {
        let bits = &weight.bits;
        assert!(
            bits.len() == outputs * inputs && !bits.is_empty(),
            "weight is not [{outputs}, {inputs}]"
        );
        let mut lines = vec![HalfLine([0; LANES]); outputs.div_ceil(LANES) * inputs];
        pack_into(&mut lines, bits, inputs);
        Self {
            outputs,
            inputs,
            format: weight.format,
            lines: Shared::of(lines),
        }
    }

    /// Packs weights `[outputs, inputs]` of one format as [`Panels::stack`] does: the stack, for one product with
    /// all of them, and each as a part of its memory. None where they have several formats, or there are none.
    ///
    /// # Panics
    /// A weight has another length, or no values.
    pub fn stack(weights: &[(&HalfWeight, usize)], inputs: usize) -> Option<(Self, Vec<Self>)> {
        let (first, _) = weights.first()?;
        let format = first.format;
        if weights.iter().any(|(weight, _)| weight.format != format) {
            return None;
        }
        let panels = weights.iter().map(|(_, outputs)| outputs.div_ceil(LANES));
        let panels: usize = panels.sum();
        let mut lines = vec![HalfLine([0; LANES]); panels * inputs];
        let mut rest = lines.as_mut_slice();
        for (weight, outputs) in weights {
            let bits = &weight.bits;
            assert!(
                bits.len() == outputs * inputs && !bits.is_empty(),
                "weight is not [{outputs}, {inputs}]"
            );
            let (part, after) = rest.split_at_mut(outputs.div_ceil(LANES) * inputs);
            pack_into(part, bits, inputs);
            rest = after;
        }
        let stack = Self {
            outputs: panels * LANES,
            inputs,
            format,
            lines: Shared::of(lines),
        };
        let mut start = 0;
        let part = |(_, outputs): &(&HalfWeight, usize)| {
            let end = start + outputs.div_ceil(LANES) * inputs;
            let lines = stack.lines.part(start..end);
            start = end;
            Self {
                outputs: *outputs,
                inputs,
                format,
                lines,
            }
        };
        let parts = weights.iter().map(part).collect();
        Some((stack, parts))
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the weight.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes held, whoever shares them.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines())
    }

    /// Moves each of these, with its parts, into one piece of memory: see [`Shared::gather`].
    pub fn gather(all: Vec<(&mut Self, Vec<&mut Self>)>) {
        let lines = |panels: Vec<_>| panels.into_iter().map(|it: &mut Self| &mut it.lines);
        let all = all.into_iter();
        let all = all.map(|(whole, parts)| (&mut whole.lines, lines(parts).collect()));
        Shared::gather(all.collect());
    }

    pub(super) fn format(&self) -> HalfFormat {
        self.format
    }

    pub(super) fn lines(&self) -> &[HalfLine] {
        self.lines.values()
    }

    /// The values of `rows` × `columns`, row-major; what lies outside is left out.
    pub fn read(&self, rows: Range<usize>, columns: Range<usize>) -> Vec<f32> {
        let mut values = Vec::with_capacity(rows.len() * columns.len());
        for row in rows {
            let start = row / LANES * self.inputs;
            let lines = self.lines().get(start + columns.start..start + columns.end);
            let lane = |line: &HalfLine| line.0.get(row % LANES).copied();
            let bits = lines.unwrap_or_default().iter().filter_map(lane);
            values.extend(bits.map(|bits| self.format.widened(bits)));
        }
        values
    }

    /// Writes the panels of some outputs, for `x · Wᵀ`, as f32, over what was there.
    ///
    /// # Panics
    /// `outputs` does not start at a multiple of sixteen, or lies outside.
    pub fn widen(&self, outputs: Range<usize>, panels: &mut [f32]) {
        assert!(
            outputs.start.is_multiple_of(LANES) && outputs.end <= self.outputs,
            "outputs {outputs:?} of {}",
            self.outputs
        );
        let start = outputs.start / LANES * self.inputs;
        let end = start + outputs.len().div_ceil(LANES) * self.inputs;
        let lines = self.lines().get(start..end).unwrap_or_default();
        widen_lines(self.format, lines, panels.as_chunks_mut().0);
    }

    /// Writes the panels of the transpose's outputs `inputs`, for `g · W`, as f32, over what was there.
    ///
    /// # Panics
    /// `inputs` lies outside.
    pub fn widen_transposed(&self, inputs: Range<usize>, panels: &mut [f32]) {
        assert!(
            inputs.end <= self.inputs,
            "inputs {inputs:?} of {}",
            self.inputs
        );
        let panels = panels.chunks_exact_mut(LANES * self.outputs);
        for (first, panel) in inputs.clone().step_by(LANES).zip(panels) {
            let end = inputs.end.min(first + LANES);
            let groups = self.lines().chunks_exact(self.inputs);
            for (group, slots) in groups.zip(panel.chunks_mut(LANES * LANES)) {
                let lines = group.get(first..end).unwrap_or_default();
                transpose_lines(self.format, lines, slots.as_chunks_mut().0);
            }
        }
    }
}

/// Packs a row-major weight into zeros.
fn pack_into(lines: &mut [HalfLine], bits: &[u16], inputs: usize) {
    lines
        .par_chunks_mut(inputs)
        .zip(bits.par_chunks(LANES * inputs))
        .for_each(|(lines, rows)| {
            for (lane, row) in rows.chunks_exact(inputs).enumerate() {
                for (line, bits) in lines.iter_mut().zip(row) {
                    if let Some(slot) = line.0.get_mut(lane) {
                        *slot = *bits;
                    }
                }
            }
        });
}

/// Value `i` of row `j` as value `j` of row `i`, in squares of eight: interleaving the upper and the lower half of a
/// square's rows turns the bits of a value's place by one, and three of six such turns swap row and column.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(rows: &[[u16; LANES]; LANES]) -> [[u16; LANES]; LANES] {
    use std::arch::x86_64::{__m128i, _mm_unpackhi_epi16, _mm_unpacklo_epi16};

    #[expect(unsafe_code, reason = "two registers are a row")]
    // SAFETY: both types are 512 bytes of any value, and every x86-64 has SSE2.
    unsafe {
        let rows: [[__m128i; 2]; LANES] = std::mem::transmute(*rows);
        let mut turned = rows;
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut square: [__m128i; 8] = std::array::from_fn(|i| rows[8 * row + i][column]);
            for _ in 0..3 {
                let before = square;
                for i in 0..4 {
                    square[2 * i] = _mm_unpacklo_epi16(before[i], before[i + 4]);
                    square[2 * i + 1] = _mm_unpackhi_epi16(before[i], before[i + 4]);
                }
            }
            for (i, line) in square.into_iter().enumerate() {
                turned[8 * column + i][row] = line;
            }
        }
        std::mem::transmute::<[[__m128i; 2]; LANES], [[u16; LANES]; LANES]>(turned)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn transposed(rows: &[[u16; LANES]; LANES]) -> [[u16; LANES]; LANES] {
    std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
}

vectorized! {
    /// The values of all lines.
    fn widen_lines(format: HalfFormat, lines: &[HalfLine], slots: &mut [[f32; LANES]]) {
        for (slots, line) in slots.iter_mut().zip(lines) {
            *slots = line.0.map(|bits| format.widened(bits));
        }
    }

    /// Sixteen outputs of some inputs, `[inputs][16]`, as `[outputs][16]`; inputs that are not there are zero.
    fn transpose_lines(format: HalfFormat, lines: &[HalfLine], slots: &mut [[f32; LANES]]) {
        let mut bits = [[0; LANES]; LANES];
        for (bits, line) in bits.iter_mut().zip(lines) {
            *bits = line.0;
        }
        for (slots, bits) in slots.iter_mut().zip(transposed(&bits)) {
            *slots = bits.map(|bits| format.widened(bits));
        }
    }
}

/// Computes `x · Wᵀ` for `x: [rows, inputs]` into `y: [rows, outputs]` with the threads of the current
/// rayon pool: the same bits as [`product_parallel`](super::product_parallel) with the values as f32.
///
/// # Panics
/// The lengths of `x` and `y` do not belong to the same number of rows.
pub(crate) fn product_halves(x: &[f32], w: &HalfPanels, y: &mut [f32], epilogue: Epilogue) {
    parallel(x, Packed::halves(w), y, epilogue);
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::product::{available, packed_on};
    use super::*;
    use crate::kernel::{Panels, product_parallel, reference};
    use crate::random::Stream;

    const FORMATS: [HalfFormat; 2] = [HalfFormat::Bf16, HalfFormat::F16];

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let stream = Stream::new(seed, &[]);
        (0..count as u64).map(|i| stream.normal(i) as f32).collect()
    }

    /// A weight, and its values. Some of those in f16 are subnormal.
    fn weight(format: HalfFormat, count: usize) -> (HalfWeight, Vec<f32>) {
        let scaled = values(1, count).into_iter().map(|it| it * 1e-4);
        let bits = scaled.map(|value| match format {
            HalfFormat::Bf16 => bf16::from_f32(value).to_bits(),
            HalfFormat::F16 => f16::from_f32(value).to_bits(),
        });
        let bits: Vec<u16> = bits.collect();
        let wide = bits.iter().map(|bits| format.widened(*bits)).collect();
        (HalfWeight { format, bits }, wide)
    }

    #[test]
    fn every_value_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            for (got, expected) in [
                (HalfFormat::F16.widened(bits), f16::from_bits(bits).to_f32()),
                (
                    HalfFormat::Bf16.widened(bits),
                    bf16::from_bits(bits).to_f32(),
                ),
            ] {
                let same =
                    got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
                assert!(same, "{bits:#06x}: {got} for {expected}");
            }
        }
    }

    #[test]
    fn values_in_f32_are_rounded_once() {
        let values = values(1, 37);
        let weight = HalfWeight::rounded(&values);
        assert_eq!(weight.format, HalfFormat::Bf16);
        for (bits, value) in weight.bits.into_iter().zip(values) {
            assert_eq!(bits, bf16::from_f32(value).to_bits());
        }
    }

    #[test]
    fn values_are_narrowed_only_where_a_format_has_each_of_them() {
        for format in FORMATS {
            for bits in 0..=u16::MAX {
                let value = format.widened(bits);
                if value.is_finite() {
                    assert_eq!(format.narrowed(value), bits, "{format:?} {value}");
                }
            }
            let (weight, wide) = weight(format, 500);
            assert_eq!(HalfWeight::exactly(&wide), Some(weight.clone()));
            assert_eq!(weight.widened(), wide);
            let finite = f32::from_bits(wide[77].to_bits() ^ 1);
            for other in [finite, 1e30 + 1e23, f32::MIN_POSITIVE / 3.0] {
                let mut changed = wide.clone();
                changed[77] = other;
                assert_eq!(HalfWeight::exactly(&changed), None, "{format:?} {other}");
            }
        }
        // Both have them.
        let both = HalfWeight::exactly(&[0.0, -0.0, 1.5, -256.0]).unwrap();
        assert_eq!(both.format, HalfFormat::Bf16);
        // Too large for f16, in no other way different from what it has.
        assert_eq!(HalfWeight::exactly(&[65_536.0 + 1.0 / 1024.0, 3e38]), None);
        assert_eq!(HalfWeight::exactly(&[131_136.0 + 0.25]), None);
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found() {
        for format in FORMATS {
            let (mut weight, _) = weight(format, 40);
            assert_eq!(weight.first_not_finite(), None);
            for bits in [0x7fff, 0xffff, 0x7c00, 0x7f80] {
                weight.bits[31] = bits;
                let expected = (!format.widened(bits).is_finite()).then_some(31);
                assert_eq!(weight.first_not_finite(), expected, "{format:?}");
            }
        }
    }

    #[test]
    fn a_stack_of_one_format_holds_each_weight_once_and_its_parts_are_those_weights() {
        let k = 7;
        for format in FORMATS {
            let weights = [5, 17, 16].map(|n| (weight(format, n * k).0, n));
            let slices: Vec<_> = weights.iter().map(|(weight, n)| (weight, *n)).collect();
            let (stack, parts) = HalfPanels::stack(&slices, k).unwrap();
            assert_eq!((stack.outputs(), stack.inputs()), (64, k));
            let bytes: usize = parts.iter().map(HalfPanels::bytes).sum();
            assert_eq!(stack.bytes(), bytes);
            for ((part, (weight, n)), column) in parts.iter().zip(&weights).zip([0, 16, 48]) {
                let values = weight.widened();
                assert_eq!((part.outputs(), part.read(0..*n, 0..k)), (*n, values));
                assert_eq!(stack.read(column..column + n, 0..k), weight.widened());
                assert_eq!(
                    part.lines().as_ptr(),
                    stack.lines()[column / 16 * k..].as_ptr()
                );
            }
        }
        let [bf16, f16] = FORMATS.map(|format| weight(format, 16 * k).0);
        assert!(HalfPanels::stack(&[(&bf16, 16), (&f16, 16)], k).is_none());
    }

    #[test]
    fn a_packed_weight_holds_each_value_in_half_of_the_memory() {
        let (n, k) = (37, 19);
        for format in FORMATS {
            let (weight, wide) = weight(format, n * k);
            let halves = HalfPanels::pack(&weight, n, k);
            assert_eq!(halves.read(0..n, 0..k), wide);
            assert_eq!(halves.read(20..21, 3..5), wide[20 * k + 3..20 * k + 5]);
            assert_eq!(halves.bytes() * 2, Panels::pack(&wide, n, k).bytes());
        }
    }

    #[test]
    fn every_part_is_that_of_the_values_as_f32_in_both_directions() {
        for (n, k) in [(48, 32), (37, 19), (5, 40), (150, 24)] {
            for format in FORMATS {
                let (weight, wide) = weight(format, n * k);
                let halves = HalfPanels::pack(&weight, n, k);
                for first in (0..n).step_by(16) {
                    let part = first..n.min(first + 32);
                    let rows = &wide[part.start * k..part.end * k];
                    let expected = Panels::pack(rows, part.len(), k);
                    let mut panels = vec![f32::NAN; expected.data().len()];
                    halves.widen(part, &mut panels);
                    assert_eq!(panels, expected.data());
                }
                for first in (0..k).step_by(16) {
                    let part = first..k.min(first + 32);
                    let columns = halves.read(0..n, part.clone());
                    let expected = Panels::pack_transposed(&columns, n, part.len());
                    let mut panels = vec![f32::NAN; expected.data().len()];
                    halves.widen_transposed(part, &mut panels);
                    assert_eq!(panels, expected.data());
                }
            }
        }
    }

    #[test]
    fn every_row_count_gives_the_bits_of_the_values_as_f32() {
        for (n, k) in [(192, 64), (37, 19), (300, 8)] {
            for format in FORMATS {
                let (weight, wide) = weight(format, n * k);
                let halves = HalfPanels::pack(&weight, n, k);
                let x = values(2, 40 * k);
                for isa in available() {
                    let whole = reference::product(isa, &x, &wide, k);
                    for rows in 1..=40 {
                        let mut y = vec![0.0; rows * n];
                        packed_on(isa, &x[..rows * k], &halves, &mut y);
                        assert!(
                            y == whole[..rows * n],
                            "{isa:?} {format:?} {rows} rows of [{n}, {k}]"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn threads_and_epilogues_give_what_f32_gives() {
        let (n, k) = (530, 200);
        let (weight, wide) = weight(HalfFormat::Bf16, n * k);
        let halves = HalfPanels::pack(&weight, n, k);
        let panels = Panels::pack(&wide, n, k);
        for rows in [1, 13, 200] {
            let (x, start) = (values(2, rows * k), values(3, rows * n));
            for epilogue in [Epilogue::Store, Epilogue::Add, Epilogue::AddScaled(0.3)] {
                let mut expected = start.clone();
                product_parallel(&x, &panels, &mut expected, epilogue);
                for threads in [1, 2, 3] {
                    let pool = rayon::ThreadPoolBuilder::new()
                        .num_threads(threads)
                        .build()
                        .unwrap();
                    let mut y = start.clone();
                    pool.install(|| product_halves(&x, &halves, &mut y, epilogue));
                    assert!(
                        y == expected,
                        "{rows} rows, {threads} threads, {epilogue:?}"
                    );
                }
            }
        }
    }
}
