//! Weights packed for the products.

use super::shared::Shared;

/// Columns of one panel: the lanes of an AVX-512 register.
pub(crate) const LANES: usize = 16;

/// A weight `[n, k]` packed as `[n/16][k][16]`: for each group of sixteen outputs the weights of
/// one input lie side by side. Outputs past `n` in the last group are zero.
#[derive(Debug, Clone)]
pub struct Panels {
    outputs: usize,
    inputs: usize,
    /// Of this weight, or of a [`Panels::stack`] with it in.
    values: Shared<f32>,
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
        let mut data = vec![0.0; packed_len(outputs, inputs)];
        pack_into(&mut data, weight, inputs);
        Self::over(data, outputs, inputs)
    }

    /// Packs weights `[outputs, inputs]`, each with its outputs, one after the other: the stack, for one product
    /// with all of them, and each as a part of its memory. A part begins at the column of the stack's product
    /// where the part before it ends, rounded up to [`LANES`]; the columns between are zero.
    ///
    /// # Panics
    /// A weight has another length.
    pub(crate) fn stack(weights: &[(&[f32], usize)], inputs: usize) -> (Self, Vec<Self>) {
        let columns = weights
            .iter()
            .map(|(_, outputs)| outputs.next_multiple_of(LANES));
        let columns: usize = columns.sum();
        let mut data = vec![0.0; columns * inputs];
        let mut rest = data.as_mut_slice();
        for (weight, outputs) in weights {
            assert_eq!(
                weight.len(),
                outputs * inputs,
                "weight is not [{outputs}, {inputs}]"
            );
            let (part, after) = rest.split_at_mut(packed_len(*outputs, inputs));
            pack_into(part, weight, inputs);
            rest = after;
        }
        let stack = Self::over(data, columns, inputs);
        let mut start = 0;
        let part = |(_, outputs): &(&[f32], usize)| {
            let end = start + packed_len(*outputs, inputs);
            let values = stack.values.part(start..end);
            start = end;
            Self {
                outputs: *outputs,
                inputs,
                values,
            }
        };
        let parts = weights.iter().map(part).collect();
        (stack, parts)
    }

    /// Of values that are packed.
    pub(super) fn over(data: Vec<f32>, outputs: usize, inputs: usize) -> Self {
        Self {
            outputs,
            inputs,
            values: Shared::of(data),
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
        let mut data = vec![0.0; packed_len(columns, rows)];
        pack_transposed_into(&mut data, weight, rows, columns);
        Self::over(data, columns, rows)
    }

    /// The same weight packed the other way: for `g · W` where this serves `x · Wᵀ`.
    #[must_use]
    pub fn transposed(&self) -> Self {
        Self::pack_transposed(&self.row_major(), self.outputs, self.inputs)
    }

    /// The weight as it was before it was packed, `[outputs, inputs]`.
    pub(crate) fn row_major(&self) -> Vec<f32> {
        let mut weight = vec![0.0; self.outputs * self.inputs];
        let panel_rows = weight.chunks_mut(LANES * self.inputs);
        for (panel, rows) in self
            .data()
            .chunks_exact(LANES * self.inputs)
            .zip(panel_rows)
        {
            for (lane, row) in rows.chunks_exact_mut(self.inputs).enumerate() {
                for (value, slot) in row.iter_mut().zip(panel.chunks_exact(LANES)) {
                    *value = slot.get(lane).copied().unwrap_or_default();
                }
            }
        }
        weight
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the weight: the inner dimension of the product.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The packed values, `[n/16][k][16]`.
    pub(crate) fn data(&self) -> &[f32] {
        self.values.values()
    }

    /// Moves each of these, with its parts, into one piece of memory: see [`Shared::gather`].
    pub(crate) fn gather(all: Vec<(&mut Self, Vec<&mut Self>)>) {
        let values = |panels: Vec<_>| panels.into_iter().map(|it: &mut Self| &mut it.values);
        let all = all.into_iter();
        let all = all.map(|(whole, parts)| (&mut whole.values, values(parts).collect()));
        Shared::gather(all.collect());
    }

    /// Bytes held, whoever shares them.
    pub fn bytes(&self) -> usize {
        packed_bytes(self.outputs, self.inputs)
    }
}

/// Values of a packed weight.
pub(super) fn packed_len(outputs: usize, inputs: usize) -> usize {
    outputs.next_multiple_of(LANES) * inputs
}

/// Bytes of a weight `[outputs, inputs]` once it is packed.
pub(crate) fn packed_bytes(outputs: usize, inputs: usize) -> usize {
    packed_len(outputs, inputs) * size_of::<f32>()
}

/// Packs a row-major weight into zeros.
pub(super) fn pack_into(data: &mut [f32], weight: &[f32], inputs: usize) {
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
}

/// Packs the transpose of a row-major weight `[rows, columns]` into zeros.
pub(super) fn pack_transposed_into(data: &mut [f32], weight: &[f32], rows: usize, columns: usize) {
    for (p, panel) in data.chunks_exact_mut(LANES * rows).enumerate() {
        let slots = panel.chunks_exact_mut(LANES);
        for (slots, row) in slots.zip(weight.chunks_exact(columns)) {
            let from = row.get(p * LANES..).unwrap_or_default();
            for (slot, value) in slots.iter_mut().zip(from) {
                *slot = *value;
            }
        }
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

    #[test]
    fn a_stack_holds_each_weight_once_and_its_parts_are_those_weights() {
        let k = 7;
        let weights: Vec<(Vec<f32>, usize)> = [5, 17, 16]
            .into_iter()
            .map(|n| ((0..n * k).map(|i| (n * 1000 + i) as f32).collect(), n))
            .collect();
        let slices: Vec<(&[f32], usize)> = weights
            .iter()
            .map(|(weight, n)| (weight.as_slice(), *n))
            .collect();
        let (stack, parts) = Panels::stack(&slices, k);
        assert_eq!((stack.outputs(), stack.inputs()), (64, k));
        let bytes: usize = parts.iter().map(Panels::bytes).sum();
        assert_eq!(stack.bytes(), bytes);
        for ((part, (weight, n)), column) in parts.iter().zip(&weights).zip([0, 16, 48]) {
            let alone = Panels::pack(weight, *n, k);
            assert_eq!(part.data(), alone.data());
            assert_eq!(part.data().as_ptr(), stack.data()[column * k..].as_ptr());
            assert_eq!(part.transposed().transposed().data(), alone.data());
        }
    }
}
