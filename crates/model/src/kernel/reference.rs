//! The products written plainly: what the fast kernels must equal bit for bit.

use half::f16;

use super::Isa;
use crate::quant::{BlockFormat, Blocks, scale_and_minimum};

/// One step of a chain as this instruction set rounds it.
fn step(isa: Isa, a: f32, b: f32, sum: f32) -> f32 {
    match isa {
        Isa::Avx512 | Isa::Avx2 => a.mul_add(b, sum),
        Isa::Portable => sum + a * b,
    }
}

/// `x · Wᵀ` for row-major `x: [rows, k]` and `weight: [n, k]`.
pub fn product(isa: Isa, x: &[f32], weight: &[f32], k: usize) -> Vec<f32> {
    let mut y = Vec::new();
    for row in x.chunks_exact(k) {
        for output in weight.chunks_exact(k) {
            let mut sum = 0.0;
            for i in 0..k {
                sum = step(isa, row[i], output[i], sum);
            }
            y.push(sum);
        }
    }
    y
}

/// `sums + gᵀ · x` for row-major `g: [rows, n]`, `x: [rows, k]` and `sums: [n, k]`.
pub fn outer(isa: Isa, g: &[f32], x: &[f32], n: usize, k: usize, sums: &mut [f32]) {
    for (g, x) in g.chunks_exact(n).zip(x.chunks_exact(k)) {
        for i in 0..n {
            for j in 0..k {
                sums[i * k + j] = step(isa, g[i], x[j], sums[i * k + j]);
            }
        }
    }
}

/// `x · Wᵀ` for a weight in blocks and inputs in 8 bits: for each group of 32 the whole numbers that ggml's
/// `Q8_0` has for the inputs, their exact product with the weight's, then one step of the chain.
pub fn integer_product(isa: Isa, x: &[f32], blocks: &Blocks) -> Vec<f32> {
    let mut y = Vec::new();
    for row in x.chunks_exact(blocks.inputs()) {
        let groups: Vec<(Vec<i32>, f32)> = row.chunks_exact(32).map(eight_bits).collect();
        for output in 0..blocks.outputs() {
            let mut sum = 0.0;
            for (number, (inputs, scale)) in groups.iter().enumerate() {
                let (weights, weight_scale, minimum) = stored(blocks, output, number);
                let dot: i32 = weights.iter().zip(inputs).map(|(w, x)| w * x).sum();
                sum = step(isa, dot as f32, weight_scale * scale, sum);
                if let Some(minimum) = minimum {
                    let inputs = inputs.iter().sum::<i32>() as f32;
                    sum = step(isa, -minimum, scale * inputs, sum);
                }
            }
            y.push(sum);
        }
    }
    y
}

/// A group as whole numbers from -127 to 127, and their scale.
fn eight_bits(group: &[f32]) -> (Vec<i32>, f32) {
    let largest = group.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let whole = |x: &f32| (x * inverse).round_ties_even() as i32;
    (group.iter().map(whole).collect(), largest / 127.0)
}

/// Whole numbers, scale, and minimum where the format has one, of a weight's group: as ggml's
/// `dequantize_row_*` reads them.
fn stored(blocks: &Blocks, row: usize, group: usize) -> (Vec<i32>, f32, Option<f32>) {
    let row = blocks.row(row);
    let half_at = |at: usize| f16::from_le_bytes([row[at], row[at + 1]]).to_f32();
    match blocks.format() {
        BlockFormat::Q8_0 => {
            let at = group * 34;
            let quants = row[at + 2..at + 34].iter();
            let quants = quants.map(|quant| i32::from(quant.cast_signed()));
            (quants.collect(), half_at(at), None)
        }
        BlockFormat::Q4_0 => {
            let at = group * 18;
            let nibble = |i: usize| i32::from((row[at + 2 + i % 16] >> (4 * (i / 16))) & 15) - 8;
            ((0..32).map(nibble).collect(), half_at(at), None)
        }
        BlockFormat::Q4K => {
            let (at, part) = (group / 8 * 144, group % 8);
            let nibble = |i: usize| (row[at + 16 + part / 2 * 32 + i] >> (4 * (part % 2))) & 15;
            let (scale, minimum) = scale_and_minimum(&row[at + 4..at + 16], part);
            (
                (0..32).map(|i| i32::from(nibble(i))).collect(),
                half_at(at) * f32::from(scale),
                Some(half_at(at + 2) * f32::from(minimum)),
            )
        }
        BlockFormat::Q6K => unreachable!("no product in whole numbers has it"),
    }
}
