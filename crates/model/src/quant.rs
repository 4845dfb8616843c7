//! Weights in the block formats of GGUF files (ggml's `block_q4_0`, `block_q8_0`, `block_q4_K` and
//! `block_q6_K`), and how a base model is stored in them on load.
//!
//! A block holds 32 or 256 neighbours of one row with their scales. The quantisers are candle's,
//! which are ggml's; reading is ours, because the passes want parts of a weight and not all of it.
//! This is not the NF4 of bitsandbytes.

use std::ops::Range;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::f16;

/// Values that are read together: a part of a weight starts and ends at multiples of it.
pub(crate) const GROUP: usize = 32;

/// How one weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// 32 values of 4 bits with one scale: 4.5 bits a value.
    Q4_0,
    /// 32 values of 8 bits with one scale: 8.5 bits a value.
    Q8_0,
    /// 256 values of 4 bits; every 32 have a scale and a minimum of 6 bits: 4.5 bits a value.
    Q4K,
    /// 256 values of 6 bits; every 16 have a scale of 8 bits: 6.6 bits a value.
    Q6K,
}

impl BlockFormat {
    /// ggml's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// The format of ggml's number (`enum ggml_type`).
    pub(crate) fn of_ggml(number: u32) -> Option<Self> {
        match number {
            2 => Some(Self::Q4_0),
            8 => Some(Self::Q8_0),
            12 => Some(Self::Q4K),
            14 => Some(Self::Q6K),
            _ => None,
        }
    }

    /// Values of one block: a row has a multiple of it.
    pub fn values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    pub(crate) fn dtype(self) -> GgmlDType {
        match self {
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }
}

/// What a frozen base is quantised to on load.
///
/// A layer's weights get the format of this name; where their inputs are no multiple of its blocks
/// `Q8_0`, and where they are no multiple of 32 either they stay as they are stored. Embedding and
/// output projection get `Q8_0` in every case, because every token passes through them. Norms and biases
/// stay f32. What a GGUF file holds in blocks stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// [`BlockFormat::Q8_0`]
    Q8_0,
    /// [`BlockFormat::Q4_0`]
    Q4_0,
    /// [`BlockFormat::Q4K`]
    Q4K,
}

impl Quantization {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Q8_0, Self::Q4_0, Self::Q4K];

    /// Its name in the API.
    pub fn name(self) -> &'static str {
        self.asked().name()
    }

    /// The one of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    fn asked(self) -> BlockFormat {
        match self {
            Self::Q8_0 => BlockFormat::Q8_0,
            Self::Q4_0 => BlockFormat::Q4_0,
            Self::Q4K => BlockFormat::Q4K,
        }
    }

    /// The format of a layer's weight with so many inputs; none: f32.
    pub fn of_layer(self, inputs: usize) -> Option<BlockFormat> {
        [self.asked(), BlockFormat::Q8_0]
            .into_iter()
            .find(|format| inputs.is_multiple_of(format.values()))
    }

    /// The format of the embedding and of the output projection; none: f32.
    pub fn of_vocabulary(inputs: usize) -> Option<BlockFormat> {
        Self::Q8_0.of_layer(inputs)
    }
}

/// A weight `[outputs, inputs]` in blocks along its inputs, row after row, as in a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    format: BlockFormat,
    outputs: usize,
    inputs: usize,
    data: Vec<u8>,
}

impl Blocks {
    /// Quantises a row-major weight `[outputs, inputs]`.
    ///
    /// # Errors
    /// `inputs` is no multiple of the format's blocks, or `weight` has another length.
    pub fn quantize(
        format: BlockFormat,
        weight: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> candle_core::Result<Self> {
        let weight = Tensor::from_slice(weight, (outputs, inputs), &Device::Cpu)?;
        let data = QTensor::quantize(&weight, format.dtype())?
            .data()?
            .into_owned();
        Ok(Self {
            format,
            outputs,
            inputs,
            data,
        })
    }

    /// A weight whose blocks are there. None where they are not `outputs` whole rows.
    pub fn from_bytes(
        format: BlockFormat,
        outputs: usize,
        inputs: usize,
        data: Vec<u8>,
    ) -> Option<Self> {
        let is_whole = inputs.is_multiple_of(format.values())
            && data.len() == outputs * (inputs / format.values() * format.bytes());
        is_whole.then_some(Self {
            format,
            outputs,
            inputs,
            data,
        })
    }

    /// How it is stored.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the weight.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// All blocks, row after row.
    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }

    fn row_bytes(&self) -> usize {
        self.inputs / self.format.values() * self.format.bytes()
    }

    /// The blocks of one row.
    pub(crate) fn row(&self, row: usize) -> &[u8] {
        let start = row * self.row_bytes();
        self.data
            .get(start..start + self.row_bytes())
            .unwrap_or_default()
    }

    /// The same weight with its rows in another order: row `i` is what row `source(i)` was.
    #[must_use]
    pub(crate) fn reordered(&self, source: impl Fn(usize) -> usize) -> Self {
        let rows = (0..self.outputs).map(|row| self.row(source(row)));
        Self {
            data: rows.collect::<Vec<_>>().concat(),
            ..*self
        }
    }

    /// The values of `rows` × `columns`, row-major.
    ///
    /// # Panics
    /// `columns` does not start and end at multiples of 32, or `rows` or `columns` lie outside.
    pub fn read(&self, rows: Range<usize>, columns: Range<usize>) -> Vec<f32> {
        assert!(
            columns.start.is_multiple_of(GROUP) && columns.len().is_multiple_of(GROUP),
            "columns {columns:?} are no groups of {GROUP}"
        );
        assert!(
            rows.end <= self.outputs && columns.end <= self.inputs,
            "[{rows:?}, {columns:?}] is not within [{}, {}]",
            self.outputs,
            self.inputs
        );
        let mut values = vec![0.0; rows.len() * columns.len()];
        if !columns.is_empty() {
            for (row, out) in rows.zip(values.chunks_exact_mut(columns.len())) {
                let (groups, _) = out.as_chunks_mut::<GROUP>();
                read_groups(self.format, self.row(row), columns.start / GROUP, groups);
            }
        }
        values
    }
}

/// Reads neighbouring groups of one row, the first of which is number `first`.
fn read_groups(format: BlockFormat, row: &[u8], first: usize, out: &mut [[f32; GROUP]]) {
    let groups = (first..).zip(out);
    match format {
        BlockFormat::Q4_0 => {
            let (blocks, _) = row.as_chunks::<18>();
            for (block, out) in blocks.iter().skip(first).zip(groups) {
                read_q4_0(block, out.1);
            }
        }
        BlockFormat::Q8_0 => {
            let (blocks, _) = row.as_chunks::<34>();
            for (block, out) in blocks.iter().skip(first).zip(groups) {
                read_q8_0(block, out.1);
            }
        }
        BlockFormat::Q4K => {
            let (blocks, _) = row.as_chunks::<144>();
            for (group, out) in groups {
                if let Some(block) = blocks.get(group / 8) {
                    read_q4_k(block, group % 8, out);
                }
            }
        }
        BlockFormat::Q6K => {
            let (blocks, _) = row.as_chunks::<210>();
            for (group, out) in groups {
                if let Some(block) = blocks.get(group / 8) {
                    read_q6_k(block, group % 8, out);
                }
            }
        }
    }
}

fn half_of(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

/// Scale, then 16 bytes: value `i` is the low half of byte `i`, value `i + 16` the high half.
fn read_q4_0(block: &[u8; 18], out: &mut [f32; GROUP]) {
    let [d0, d1, quants @ ..] = block;
    let scale = half_of(*d0, *d1);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), quant) in low.iter_mut().zip(high).zip(quants) {
        *low = (f32::from(quant & 15) - 8.0) * scale;
        *high = (f32::from(quant >> 4) - 8.0) * scale;
    }
}

/// Scale, then 32 signed bytes.
fn read_q8_0(block: &[u8; 34], out: &mut [f32; GROUP]) {
    let [d0, d1, quants @ ..] = block;
    let scale = half_of(*d0, *d1);
    for (out, quant) in out.iter_mut().zip(quants) {
        *out = f32::from(quant.cast_signed()) * scale;
    }
}

/// Scale and minimum of the block, twelve bytes of the groups' scales and minima, then 32 bytes for
/// each two groups: the low halves are the first one's, the high halves the second one's.
fn read_q4_k(block: &[u8; 144], group: usize, out: &mut [f32; GROUP]) {
    let [d0, d1, m0, m1, rest @ ..] = block;
    let (scales, quants) = rest.split_at(12);
    let (scale, minimum) = scale_and_minimum(scales, group);
    let scale = half_of(*d0, *d1) * f32::from(scale);
    let minimum = half_of(*m0, *m1) * f32::from(minimum);
    let shift = 4 * (group % 2);
    let quants = quants.iter().skip(group / 2 * GROUP);
    for (out, quant) in out.iter_mut().zip(quants) {
        *out = scale * f32::from((quant >> shift) & 15) - minimum;
    }
}

/// Six bits each (ggml's `get_scale_min_k4`): of groups 0 to 3 in bytes of their own, of the others
/// four bits together in a byte and two at the top of the former.
#[inline]
pub(crate) fn scale_and_minimum(scales: &[u8], group: usize) -> (u8, u8) {
    let at = |index: usize| scales.get(index).copied().unwrap_or_default();
    if group < 4 {
        return (at(group) & 63, at(group + 4) & 63);
    }
    let (low, top_scale, top_minimum) = (at(group + 4), at(group - 4) >> 6, at(group) >> 6);
    (
        (low & 15) | (top_scale << 4),
        (low >> 4) | (top_minimum << 4),
    )
}

/// 128 bytes of low halves, 64 bytes of the two bits above them, 16 signed scales, the block's
/// scale. The four groups of each half of the block interleave.
fn read_q6_k(block: &[u8; 210], group: usize, out: &mut [f32; GROUP]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, scale) = rest.split_at(16);
    let [d0, d1] = scale else { return };
    let block_scale = half_of(*d0, *d1);
    let (half, part) = (group / 4, group % 4);
    let low_shift = 4 * (part / 2);
    let low = low.iter().skip(half * 64 + part % 2 * GROUP);
    let high = high.iter().skip(half * GROUP);
    let scales = scales
        .iter()
        .skip(half * 8 + part * 2)
        .map(|scale| block_scale * f32::from(scale.cast_signed()));
    let scales = scales.take(2).flat_map(|scale| [scale; 16]);
    for (((out, low), high), scale) in out.iter_mut().zip(low).zip(high).zip(scales) {
        let quant = ((low >> low_shift) & 15) | (((high >> (2 * part)) & 3) << 4);
        *out = scale * (f32::from(quant) - 32.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    const FORMATS: [BlockFormat; 4] = [
        BlockFormat::Q4_0,
        BlockFormat::Q8_0,
        BlockFormat::Q4K,
        BlockFormat::Q6K,
    ];

    fn weight(outputs: usize, inputs: usize) -> Vec<f32> {
        let stream = Stream::new(5, &[outputs as u64]);
        let count = (outputs * inputs) as u64;
        // Rows and groups of different sizes, so that a scale in a wrong place shows.
        (0..count)
            .map(|i| (stream.normal(i) * (1.0 + (i / 32 % 7) as f64)) as f32)
            .collect()
    }

    /// What ggml's rules give, by candle's reading of whole tensors.
    fn by_candle(format: BlockFormat, weight: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
        let tensor = Tensor::from_slice(weight, (outputs, inputs), &Device::Cpu).unwrap();
        let quantized = QTensor::quantize(&tensor, format.dtype()).unwrap();
        let values = quantized.dequantize(&Device::Cpu).unwrap();
        values.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_part_of_a_weight_reads_as_the_whole_does() {
        let (outputs, inputs) = (5, 512);
        let weight = weight(outputs, inputs);
        for format in FORMATS {
            let blocks = Blocks::quantize(format, &weight, outputs, inputs).unwrap();
            let whole = by_candle(format, &weight, outputs, inputs);
            assert_eq!(blocks.read(0..outputs, 0..inputs), whole, "{format:?}");
            assert_eq!(
                blocks.bytes(),
                outputs * inputs / format.values() * format.bytes()
            );
            for (rows, columns) in [(1..4, 96..352), (4..5, 480..512), (0..0, 0..32)] {
                let part: Vec<f32> = rows
                    .clone()
                    .flat_map(|row| &whole[row * inputs..][columns.clone()])
                    .copied()
                    .collect();
                assert_eq!(blocks.read(rows, columns), part, "{format:?}");
            }
        }
    }

    #[test]
    fn a_value_is_as_near_as_its_bits_allow() {
        let (outputs, inputs) = (4, 256);
        let weight = weight(outputs, inputs);
        let size = weight.iter().map(|v| f64::from(v * v)).sum::<f64>();
        for (format, most) in FORMATS.into_iter().zip([0.12, 0.008, 0.12, 0.03]) {
            let blocks = Blocks::quantize(format, &weight, outputs, inputs).unwrap();
            let again = blocks.read(0..outputs, 0..inputs);
            let error = again
                .iter()
                .zip(&weight)
                .map(|(a, b)| f64::from((a - b).powi(2)));
            let error = (error.sum::<f64>() / size).sqrt();
            assert!(error < most && error > 0.0, "{format:?}: {error}");
        }
    }

    #[test]
    fn what_does_not_fit_falls_back_as_stated() {
        for (quantization, inputs, expected) in [
            (Quantization::Q4K, 512, Some(BlockFormat::Q4K)),
            (Quantization::Q4K, 320, Some(BlockFormat::Q8_0)),
            (Quantization::Q4K, 48, None),
            (Quantization::Q4_0, 320, Some(BlockFormat::Q4_0)),
            (Quantization::Q8_0, 320, Some(BlockFormat::Q8_0)),
            (Quantization::Q8_0, 33, None),
        ] {
            assert_eq!(
                quantization.of_layer(inputs),
                expected,
                "{quantization:?} {inputs}"
            );
        }
        assert_eq!(Quantization::of_vocabulary(512), Some(BlockFormat::Q8_0));
        for one in Quantization::ALL {
            assert_eq!(Quantization::parse(one.name()), Some(one));
        }
        assert_eq!(Quantization::parse("Q6_K"), None);
    }

    #[test]
    fn blocks_of_another_length_are_no_weight() {
        let weight = weight(2, 64);
        let blocks = Blocks::quantize(BlockFormat::Q8_0, &weight, 2, 64).unwrap();
        let from =
            |inputs, data: &[u8]| Blocks::from_bytes(BlockFormat::Q8_0, 2, inputs, data.to_vec());
        assert_eq!(from(64, &blocks.data).as_ref(), Some(&blocks));
        assert_eq!(from(64, &blocks.data[1..]), None);
        assert_eq!(from(63, &blocks.data), None);
        assert!(Blocks::quantize(BlockFormat::Q4K, &weight, 2, 64).is_err());
    }

    #[test]
    fn rows_move_whole() {
        let weight = weight(4, 32);
        let blocks = Blocks::quantize(BlockFormat::Q4_0, &weight, 4, 32).unwrap();
        let moved = blocks.reordered(|row| 3 - row);
        assert_eq!(moved.read(0..1, 0..32), blocks.read(3..4, 0..32));
        assert_eq!(moved.reordered(|row| 3 - row), blocks);
    }
}
