//! Rows of floats, put into panels of 8 bits.

use half::f16;

use super::super::dispatch::vectorized;
use super::panels::{Line, Scales};

/// The stored number that stands for 0.
pub(super) const ZERO: u8 = 128;
/// The largest f32 below a half: with it added, what lies a half or more above a whole number reaches the next one, and
/// nothing below a half does.
const HALF: f32 = 0.499_999_97;

vectorized! {
    /// Puts one output's groups into its lane of a panel, each with the scale that makes its largest value 127, as
    /// ggml's `quantize_row_q8_0` does: of two whole numbers as near, the one further from 0. The panel is all [`ZERO`] there.
    pub(super) fn put_row(row: &[[f32; 32]], lane: usize, quants: &mut [Line], scales: &mut [Scales]) {
        let lines = quants.as_chunks_mut::<8>().0.iter_mut();
        for ((values, lines), scales) in row.iter().zip(lines).zip(scales) {
            let mut largest = 0_u32;
            for value in values {
                largest = largest.max(value.to_bits() & 0x7fff_ffff);
            }
            let scale = f32::from_bits(largest) / 127.0;
            let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
            let mut bytes = [0_u8; 32];
            for (byte, value) in bytes.iter_mut().zip(values) {
                let whole = value * inverse;
                *byte = (whole + HALF.copysign(whole)) as i32 as u8 ^ ZERO;
            }
            for (line, four) in lines.iter_mut().zip(bytes.as_chunks::<4>().0) {
                if let Some(place) = line.0.as_chunks_mut::<4>().0.get_mut(lane) {
                    *place = *four;
                }
            }
            if let Some(place) = scales.0.get_mut(lane) {
                *place = f16::from_f32(scale).to_bits();
            }
        }
    }
}
