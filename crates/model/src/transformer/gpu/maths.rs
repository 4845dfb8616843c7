//! What happens between the products, in f32: norms, activations, rotary embedding. Formulas as in the CPU's
//! kernels (`kernel/elementwise.rs`).

use candle_core::{D, DType, Result, Tensor};

use crate::config::Activation;

/// `1 / sqrt(mean(x²) + eps)` of every row of an f32 tensor.
fn inverse_rms(x: &Tensor, eps: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    mean.affine(1.0, f64::from(eps))?.sqrt()?.recip()
}

/// Root-mean-square norm of every row, in f32.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let x = x.to_dtype(DType::F32)?;
    x.broadcast_mul(&inverse_rms(&x, eps)?)?
        .broadcast_mul(weight)
}

/// The norm's input gradient, in f32.
pub(super) fn rms_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dy: &Tensor,
) -> Result<Tensor> {
    let x = x.to_dtype(DType::F32)?;
    let width = x.dim(D::Minus1)? as f64;
    let scale = inverse_rms(&x, eps)?;
    let weighted = dy.to_dtype(DType::F32)?.broadcast_mul(weight)?;
    let shared = weighted.mul(&x)?.sum_keepdim(D::Minus1)?;
    let shared = shared.mul(&scale.powf(3.0)?)?.affine(1.0 / width, 0.0)?;
    weighted
        .broadcast_mul(&scale)?
        .sub(&x.broadcast_mul(&shared)?)
}

/// What joins the residual stream, in f32: normed where the family does it.
pub(super) fn output_norm(x: &Tensor, weight: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    match weight {
        Some(weight) => rms_norm(x, weight, eps),
        None => x.to_dtype(DType::F32),
    }
}

/// `f(gate) · up` with the activation as `f`, in the inputs' type.
pub(super) fn activate(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let dtype = gate.dtype();
    let gate = gate.to_dtype(DType::F32)?;
    let activated = match activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
    };
    activated.mul(&up.to_dtype(DType::F32)?)?.to_dtype(dtype)
}

/// The gradients of both inputs of [`activate`], in their type.
pub(super) fn activate_backward(
    activation: Activation,
    (gate, up): (&Tensor, &Tensor),
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let dtype = gate.dtype();
    let (gate, dy) = (gate.to_dtype(DType::F32)?, dy.to_dtype(DType::F32)?);
    let (activated, slope) = match activation {
        Activation::Silu => silu_and_slope(&gate)?,
        Activation::GeluTanh => gelu_and_slope(&gate)?,
    };
    let dup = dy.mul(&activated)?.to_dtype(dtype)?;
    let dgate = dy.mul(&up.to_dtype(DType::F32)?)?.mul(&slope)?;
    Ok((dgate.to_dtype(dtype)?, dup))
}

/// `x s` with `s = sigmoid(x)`, and its slope `s (1 + x (1 - s))`.
fn silu_and_slope(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let sigmoid = x.neg()?.exp()?.affine(1.0, 1.0)?.recip()?;
    let silu = x.mul(&sigmoid)?;
    let slope = sigmoid.add(&silu.mul(&sigmoid.affine(-1.0, 1.0)?)?)?;
    Ok((silu, slope))
}

/// `x s` with `s = (1 + tanh u) / 2` and `u = sqrt(2 / π) (x + 0.044715 x³)`, and its slope
/// `s (1 + 2 x (1 - s) du/dx)`.
fn gelu_and_slope(x: &Tensor) -> Result<(Tensor, Tensor)> {
    const ROOT: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
    const CUBIC: f64 = 0.044_715;
    let square = x.sqr()?;
    let inner = square.affine(ROOT * CUBIC, ROOT)?.mul(x)?;
    let share = inner.tanh()?.affine(0.5, 0.5)?;
    let gelu = x.mul(&share)?;
    let twice = square.affine(6.0 * ROOT * CUBIC, 2.0 * ROOT)?;
    let falling = gelu.mul(&share.affine(-1.0, 1.0)?)?.mul(&twice)?;
    Ok((gelu, share.add(&falling)?))
}

/// Rotates the heads of all rows, `[rows, heads · dim]`, by angles of the form `[rows, 1, dim / 2]`; with the
/// negative sine it undoes it.
pub(super) fn rotate(x: &Tensor, dim: usize, (cos, sin): (&Tensor, &Tensor)) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let half = dim / 2;
    let heads = x.reshape((rows, width / dim, dim))?.to_dtype(DType::F32)?;
    let low = heads.narrow(2, 0, half)?;
    let high = heads.narrow(2, half, half)?;
    let rotated_low = low.broadcast_mul(cos)?.sub(&high.broadcast_mul(sin)?)?;
    let rotated_high = high.broadcast_mul(cos)?.add(&low.broadcast_mul(sin)?)?;
    Tensor::cat(&[rotated_low, rotated_high], 2)?
        .reshape((rows, width))?
        .to_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernel;

    #[test]
    fn activations_and_their_gradients_are_those_of_the_cpus_kernels() {
        let gate: Vec<f32> = (-1200..=1200).map(|i| i as f32 * 0.01).collect();
        let up: Vec<f32> = gate.iter().map(|x| 1.0 + x.sin()).collect();
        let dy: Vec<f32> = gate.iter().map(|x| 0.5 - x.cos()).collect();
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
        let inputs = [&gate, &up, &dy].map(|values| tensor(values).unwrap());
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut y = vec![0.0; gate.len()];
            let (mut dgate, mut dup) = (gate.clone(), up.clone());
            match activation {
                Activation::Silu => {
                    kernel::swiglu(&gate, &up, &mut y);
                    kernel::swiglu_backward(&mut dgate, &mut dup, &dy);
                }
                Activation::GeluTanh => {
                    kernel::geglu(&gate, &up, &mut y);
                    kernel::geglu_backward(&mut dgate, &mut dup, &dy);
                }
            }
            let [gate, up, dy] = &inputs;
            let result = activate(activation, gate, up).unwrap();
            let (by_gate, by_up) = activate_backward(activation, (gate, up), dy).unwrap();
            for (got, expected) in [(result, y), (by_gate, dgate), (by_up, dup)] {
                let got = got.to_vec1::<f32>().unwrap();
                let apart = got.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                let apart = apart.fold(0.0, f32::max);
                assert!(apart < 5e-5, "{activation:?}: apart by {apart:e}");
            }
        }
    }
}
