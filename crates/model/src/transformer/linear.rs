//! One packed weight.

use std::sync::OnceLock;

use crate::kernel::Panels;

/// A weight `[outputs, inputs]`, packed for `x · Wᵀ`, and for `g · W` once a gradient asks for it.
#[derive(Debug)]
pub struct Linear {
    /// For `x · Wᵀ`.
    pub forward: Panels,
    backward: OnceLock<Panels>,
}

impl Linear {
    /// Packs a row-major weight.
    pub fn new(weight: &[f32], outputs: usize, inputs: usize) -> Self {
        Self::packed(Panels::pack(weight, outputs, inputs))
    }

    /// Of a weight that is packed already.
    pub fn packed(forward: Panels) -> Self {
        Self {
            forward,
            backward: OnceLock::new(),
        }
    }

    /// Packed for the input gradient; serving never pays for it.
    pub fn backward(&self) -> &Panels {
        self.backward.get_or_init(|| self.forward.transposed())
    }
}
