//! The products written plainly: what the fast kernels must equal bit for bit.

use super::Isa;

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
