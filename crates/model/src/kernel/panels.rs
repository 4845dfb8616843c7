//! Weights packed for the products.

/// Columns of one panel: the lanes of an AVX-512 register.
pub(crate) const LANES: usize = 16;

/// A weight `[n, k]` packed as `[n/16][k][16]`: for each group of sixteen outputs the weights of
/// one input lie side by side. Outputs past `n` in the last group are zero.
#[derive(Debug, Clone)]
pub struct Panels {
    outputs: usize,
    inputs: usize,
    data: Vec<f32>,
}

impl Panels {
    /// Packs a row-major weight `[outputs, inputs]`.
    ///
    /// # Panics
    /// `weight` has another length.
    pub fn pack(weight: &[f32], outputs: usize, inputs: usize) -> Self {
        assert_eq!(
            weight.len(),
            outputs * inputs,
            "weight is not [{outputs}, {inputs}]"
        );
        let mut data = vec![0.0; outputs.div_ceil(LANES) * LANES * inputs];
        let panel_rows = weight.chunks(LANES * inputs);
        for (panel, rows) in data.chunks_exact_mut(LANES * inputs).zip(panel_rows) {
            for (lane, row) in rows.chunks_exact(inputs).enumerate() {
                for (slot, value) in panel.chunks_exact_mut(LANES).zip(row) {
                    if let Some(slot) = slot.get_mut(lane) {
                        *slot = *value;
                    }
                }
            }
        }
        Self {
            outputs,
            inputs,
            data,
        }
    }

    /// Packs the transpose of a row-major weight `[rows, columns]`: outputs are its columns.
    ///
    /// # Panics
    /// `weight` has another length.
    pub fn pack_transposed(weight: &[f32], rows: usize, columns: usize) -> Self {
        assert_eq!(
            weight.len(),
            rows * columns,
            "weight is not [{rows}, {columns}]"
        );
        let mut data = vec![0.0; columns.div_ceil(LANES) * LANES * rows];
        for (p, panel) in data.chunks_exact_mut(LANES * rows).enumerate() {
            for (slots, row) in panel
                .chunks_exact_mut(LANES)
                .zip(weight.chunks_exact(columns))
            {
                let from = row.get(p * LANES..).unwrap_or_default();
                for (slot, value) in slots.iter_mut().zip(from) {
                    *slot = *value;
                }
            }
        }
        Self {
            outputs: columns,
            inputs: rows,
            data,
        }
    }

    /// The same weight packed the other way: for `g · W` where this serves `x · Wᵀ`.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let mut weight = vec![0.0; self.outputs * self.inputs];
        self.unpack(&mut weight);
        Self::pack_transposed(&weight, self.outputs, self.inputs)
    }

    /// Writes the row-major weight `[outputs, inputs]`.
    fn unpack(&self, weight: &mut [f32]) {
        let panel_rows = weight.chunks_mut(LANES * self.inputs);
        for (panel, rows) in self.data.chunks_exact(LANES * self.inputs).zip(panel_rows) {
            for (lane, row) in rows.chunks_exact_mut(self.inputs).enumerate() {
                for (value, slot) in row.iter_mut().zip(panel.chunks_exact(LANES)) {
                    *value = slot.get(lane).copied().unwrap_or_default();
                }
            }
        }
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the weight: the inner dimension of the product.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// The packed values, `[n/16][k][16]`.
    pub(crate) fn data(&self) -> &[f32] {
        &self.data
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_packs_hold_the_same_weight() {
        let (n, k) = (21, 5);
        let weight: Vec<f32> = (0..n * k).map(|i| i as f32 + 1.0).collect();
        let panels = Panels::pack(&weight, n, k);
        assert_eq!(panels.data().len(), 2 * 16 * k);
        assert_eq!(panels.data()[16 * k + 3 * 16 + 4], weight[20 * k + 3]);
        assert_eq!(panels.data()[16 * k + 3 * 16 + 5], 0.0);
        let back = panels.transposed();
        assert_eq!((back.outputs(), back.inputs()), (k, n));
        assert_eq!(back.transposed().data(), panels.data());
    }
}
