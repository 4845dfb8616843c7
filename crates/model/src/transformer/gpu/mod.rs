//! The same passes on a GPU, made of candle's tensor operations.
//!
//! Weights, activations and products are in bf16; norms, softmax, loss, the residual stream and the rotary
//! embedding are computed in f32. Gradients are written out as on the CPU and autograd sees one node, so that no
//! gradient of a frozen weight is ever computed. Quantised weights stay in their blocks: a product reads all of
//! one weight as bf16, multiplies, and lets it go.
//!
//! Nothing here asks which device it is: [`Accelerator::imitated`] runs the same operations on the CPU in f32,
//! and the tests hold them near the CPU's own passes, with a GPU and without.
//!
//! What it does *not* promise: the same bits in any company. Sums are cuBLAS's, whose order depends on the
//! number of rows.

mod accelerator;
mod attention;
mod backward;
mod cache;
mod dropout;
mod loss;
mod maths;
mod matrix;
mod pass;
mod rotary;
mod serve;
mod updates;
mod weights;

pub use accelerator::{Accelerator, Choice, NoGpu};
pub(crate) use cache::GpuCache;
pub(super) use pass::GpuPass;
pub(super) use serve::{GpuStep, SequenceRows};
pub(crate) use updates::GpuUpdates;
pub(super) use weights::GpuWeights;

#[cfg(test)]
mod tests;
