//! What happens between the products, in f32: norms, activations, rotary embedding. Formulas as in the CPU's
//! kernels (`kernel/elementwise.rs`).

use candle_core::{D, DType, Result, Tensor};

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

/// `silu(gate) · up`, in the inputs' type.
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let dtype = gate.dtype();
    gate.to_dtype(DType::F32)?
        .silu()?
        .mul(&up.to_dtype(DType::F32)?)?
        .to_dtype(dtype)
}

/// The gradients of both inputs of [`swiglu`], in their type.
pub(super) fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let dtype = gate.dtype();
    let (gate, dy) = (gate.to_dtype(DType::F32)?, dy.to_dtype(DType::F32)?);
    let sigmoid = gate.neg()?.exp()?.affine(1.0, 1.0)?.recip()?;
    let silu = gate.mul(&sigmoid)?;
    let dup = dy.mul(&silu)?.to_dtype(dtype)?;
    // s (1 + gate (1 - s)) = s + silu (1 - s)
    let slope = sigmoid.add(&silu.mul(&sigmoid.affine(-1.0, 1.0)?)?)?;
    let dgate = dy.mul(&up.to_dtype(DType::F32)?)?.mul(&slope)?;
    Ok((dgate.to_dtype(dtype)?, dup))
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
