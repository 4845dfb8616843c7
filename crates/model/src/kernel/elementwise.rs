//! What happens between the products: norms, activations, rotary embedding, softmax.
//!
//! Sums run in sixteen lanes in ascending order, then over the lanes by halves, so that a row's
//! bits depend on the row alone.
#![expect(
    clippy::inline_always,
    reason = "bodies must take the features of their caller"
)]
#![expect(
    clippy::indexing_slicing,
    reason = "arrays indexed below their constant length"
)]

use super::dispatch::vectorized;
use super::panels::LANES;
use crate::random::Stream;

/// The sum of sixteen lanes by halves.
#[inline(always)]
pub(super) fn sum_lanes(lanes: &[f32; LANES]) -> f32 {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for i in 0..half {
            low[i] += high[i];
        }
        half /= 2;
    }
    lanes[0]
}

/// The largest of sixteen lanes.
#[inline(always)]
pub(super) fn max_lanes(lanes: &[f32; LANES]) -> f32 {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for i in 0..half {
            low[i] = if high[i] > low[i] { high[i] } else { low[i] };
        }
        half /= 2;
    }
    lanes[0]
}

vectorized! {
    /// The largest magnitude of some values, where NaN is above infinity; 0 of none.
    pub(crate) fn largest_magnitude(values: &[f32]) -> f32 {
        // As whole numbers, which have the same order, and need none of their own.
        let bits = values.iter().map(|value| value.to_bits() & 0x7fff_ffff);
        f32::from_bits(bits.fold(0, u32::max))
    }
}

/// `f` of every pair, summed in fixed order.
#[inline(always)]
fn sum_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in whole_a.iter().zip(whole_b) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(rest_a.iter().zip(rest_b)) {
        *lane += f(*a, *b);
    }
    sum_lanes(&lanes)
}

/// e to the power `x`, without branches so that it vectorises: range reduction by log 2 in two
/// parts and the polynomial of Cephes `expf` (Moshier 1989). Below -87.3 the result is 0, above
/// 88.3 it stays at that bound's value. Relative error below 2e-7.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 × 2²³: adding it rounds to an integer
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_65;
    p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.3 { 0.0 } else { value * power }
}

/// One over one plus e to the power `-x`.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `gate · sigmoid(f(gate)) · up`, which is both gated activations; `shape` gives `f` and its slope.
#[inline(always)]
fn gated(gate: &[f32], up: &[f32], y: &mut [f32], shape: impl Fn(f32) -> (f32, f32)) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = gate * sigmoid(shape(*gate).0) * up;
    }
}

/// Puts the gradients of both inputs of [`gated`] in their place.
#[inline(always)]
fn gated_backward(gate: &mut [f32], up: &mut [f32], dy: &[f32], shape: impl Fn(f32) -> (f32, f32)) {
    for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
        let (value, slope) = shape(*gate);
        let s = sigmoid(value);
        let activated = *gate * s;
        let dgate = dy * *up * s * (1.0 + *gate * (1.0 - s) * slope);
        (*gate, *up) = (dgate, dy * activated);
    }
}

/// SiLU is `x · sigmoid(x)`.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    (x, 1.0)
}

/// GELU by tanh (Hendrycks, Gimpel 2016) is `x · sigmoid(2 u)` with `u = sqrt(2 / π) (x + 0.044715 x³)`, since
/// `(1 + tanh u) / 2` is the sigmoid of `2 u`. Beyond 10 the sigmoid is 0 or 1, and nothing overflows.
#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    const SCALE: f32 = 1.595_769_2;
    const CUBIC: f32 = 0.044_715;
    let x = x.clamp(-10.0, 10.0);
    let square = CUBIC * x * x;
    (SCALE * x * (1.0 + square), SCALE * (1.0 + 3.0 * square))
}

vectorized! {
    /// Root-mean-square norm (Zhang, Sennrich 2019): `y = x / sqrt(mean(x²) + eps) · w` for every
    /// row of `w.len()` values.
    pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
        let width = w.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let scale = inverse_rms(x, eps);
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * scale * w;
            }
        }
    }

    /// Adds the norm's input gradient to `dx`, and its weight gradient to `dw` unless that is empty.
    pub(crate) fn rms_norm_backward(
        x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: &mut [f32],
    ) {
        let width = w.len();
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let scale = inverse_rms(x, eps);
            let mut lanes = [0.0; LANES];
            let wholes = x.as_chunks::<LANES>().0.iter().zip(dy.as_chunks::<LANES>().0);
            for ((x, dy), w) in wholes.zip(w.as_chunks::<LANES>().0) {
                for i in 0..LANES {
                    lanes[i] += x[i] * dy[i] * w[i];
                }
            }
            let rests = x.as_chunks::<LANES>().1.iter().zip(dy.as_chunks::<LANES>().1);
            for (lane, ((x, dy), w)) in lanes.iter_mut().zip(rests.zip(w.as_chunks::<LANES>().1)) {
                *lane += x * dy * w;
            }
            let shared = sum_lanes(&lanes) * scale * scale * scale / width as f32;
            for ((dx, x), (dy, w)) in dx.iter_mut().zip(x).zip(dy.iter().zip(w)) {
                *dx += dy * w * scale - x * shared;
            }
            for ((dw, x), dy) in dw.iter_mut().zip(x).zip(dy) {
                *dw += dy * x * scale;
            }
        }
    }

    /// The gated activation of SwiGLU (Shazeer 2020): `y = silu(gate) · up`.
    pub(crate) fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
        gated(gate, up, y, silu);
    }

    /// The gated activation of GEGLU (Shazeer 2020): `y = gelu(gate) · up`.
    pub(crate) fn geglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
        gated(gate, up, y, gelu);
    }

    /// Puts the gradients of both inputs of [`swiglu`] in their place.
    pub(crate) fn swiglu_backward(gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
        gated_backward(gate, up, dy, silu);
    }

    /// Puts the gradients of both inputs of [`geglu`] in their place.
    pub(crate) fn geglu_backward(gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
        gated_backward(gate, up, dy, gelu);
    }

    /// Zeroes each element with the probability of `threshold / 2⁶⁴` and scales the others, by the
    /// stream's bits from `first` on.
    pub(crate) fn drop_out(values: &mut [f32], stream: Stream, first: u64, threshold: u64, kept: f32) {
        for (index, value) in (first..).zip(values) {
            let factor = if stream.bits(index) < threshold { 0.0 } else { kept };
            *value *= factor;
        }
    }

    /// `y = y + x`.
    pub(crate) fn add(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }

    /// Rotates the heads of one token (rotary embedding, Su et al. 2021, in the half-split form of
    /// Hugging Face Llama). `cos` and `sin` hold `head_dim / 2` values; a negated `sin` undoes it.
    pub(crate) fn rotate(heads: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in heads.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                let sin = sin * sign;
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }

    /// The largest value; `-inf` for none. NaN is none.
    pub(crate) fn largest(values: &[f32]) -> f32 {
        max_of(values)
    }

    /// The largest value and the logarithm of the sum of exponentials.
    pub(crate) fn log_sum_exp(logits: &[f32]) -> f32 {
        let max = max_of(logits);
        max + sum_pairs(logits, logits, |value, _| exp(value - max)).ln()
    }

    /// Turns logits into `scale · (softmax - onehot(target))`, the gradient of the cross-entropy.
    pub(crate) fn cross_entropy_gradient(logits: &mut [f32], log_sum: f32, target: usize) {
        for logit in logits.iter_mut() {
            *logit = exp(*logit - log_sum);
        }
        if let Some(value) = logits.get_mut(target) {
            *value -= 1.0;
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mean = sum_pairs(x, x, |a, b| a * b) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

/// The largest value; `-inf` for none.
#[inline(always)]
fn max_of(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for i in 0..LANES {
            lanes[i] = if values[i] > lanes[i] {
                values[i]
            } else {
                lanes[i]
            };
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = if *value > *lane { *value } else { *lane };
    }
    max_lanes(&lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps() {
        let mut worst: f64 = 0.0;
        for i in -8_700..8_800 {
            let x = i as f32 * 0.01;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn gelu_is_the_tanh_formula_and_its_slope_that_of_the_values() {
        let exact = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        };
        let gate: Vec<f32> = (-1200..=1200).map(|i| i as f32 * 0.01).collect();
        let ones = vec![1.0; gate.len()];
        let mut y = vec![0.0; gate.len()];
        geglu(&gate, &ones, &mut y);
        let (mut dgate, mut dup) = (gate.clone(), ones.clone());
        geglu_backward(&mut dgate, &mut dup, &ones);
        assert_eq!(dup, y);
        for ((x, y), slope) in gate.iter().zip(&y).zip(&dgate) {
            let (x, step) = (f64::from(*x), 1e-5);
            assert!((f64::from(*y) - exact(x)).abs() < 2e-6, "{x}: {y}");
            let expected = (exact(x + step) - exact(x - step)) / (2.0 * step);
            assert!((f64::from(*slope) - expected).abs() < 1e-5, "{x}: {slope}");
        }
        let mut far = [0.0; 3];
        geglu(&[-1e30, 1e30, f32::NAN], &[1.0; 3], &mut far);
        assert!(far[0].abs() < 1e-6 && far[1] == 1e30 && far[2].is_nan());
    }

    #[test]
    fn log_sum_exp_survives_large_logits() {
        let logits: Vec<f32> = (0..37).map(|i| 500.0 + (i % 5) as f32).collect();
        let exact = logits
            .iter()
            .map(|v| f64::from(*v - 500.0).exp())
            .sum::<f64>()
            .ln()
            + 500.0;
        assert!((f64::from(log_sum_exp(&logits)) - exact).abs() < 1e-4);
    }

    #[test]
    fn rotation_is_undone_by_its_inverse() {
        let (cos, sin): (Vec<f32>, Vec<f32>) = [0.3_f32, 1.2]
            .iter()
            .map(|angle| (angle.cos(), angle.sin()))
            .unzip();
        let before = [1.0, -2.0, 3.0, 0.5, 0.1, 0.2, 0.3, 0.4];
        let mut heads = before;
        rotate(&mut heads, &cos, &sin, 1.0);
        assert!((heads[0] - (0.3_f32.cos() - 3.0 * 0.3_f32.sin())).abs() < 1e-6);
        rotate(&mut heads, &cos, &sin, -1.0);
        assert!(heads.iter().zip(before).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
