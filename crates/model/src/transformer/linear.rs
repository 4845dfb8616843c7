//! One packed weight.

use std::sync::OnceLock;

use rayon::prelude::*;

use crate::kernel::{self, Epilogue, Panels, product_parallel};

/// A weight `[outputs, inputs]`, packed for `x · Wᵀ`, and for `g · W` once a gradient asks for it.
#[derive(Debug)]
pub struct Linear {
    /// For `x · Wᵀ`.
    pub forward: Panels,
    backward: OnceLock<Panels>,
    /// What every output row has added; empty where the layer has none.
    bias: Vec<f32>,
}

impl Linear {
    /// Packs a row-major weight.
    pub fn new(weight: &[f32], outputs: usize, inputs: usize) -> Self {
        Self {
            forward: Panels::pack(weight, outputs, inputs),
            backward: OnceLock::new(),
            bias: Vec::new(),
        }
    }

    /// With a bias of `outputs` values.
    pub fn with_bias(mut self, bias: &[f32]) -> Self {
        self.bias = bias.to_vec();
        self
    }

    /// `x · Wᵀ + b` of every row, `[rows, outputs]`.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let rows = x.len() / self.forward.inputs();
        let mut y = vec![0.0; rows * self.forward.outputs()];
        product_parallel(x, &self.forward, &mut y, Epilogue::Store);
        if !self.bias.is_empty() {
            y.par_chunks_mut(self.bias.len())
                .for_each(|row| kernel::add(&self.bias, row));
        }
        y
    }

    /// Packed for the input gradient; serving never pays for it.
    pub fn backward(&self) -> &Panels {
        self.backward.get_or_init(|| self.forward.transposed())
    }
}
