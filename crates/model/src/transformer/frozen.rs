//! A frozen weight of the base model: the one place that knows how it is stored. A faster kernel
//! takes effect here, and no pass notices.
//!
//! A quantised weight is multiplied in tiles: some of its rows (forward) or columns (backward) are
//! read as f32, packed, multiplied with all rows of the input, and let go. Both directions thus use
//! the same values, so that the gradient is the function's own, with the bits that a packed f32
//! weight of these values gives; that one is the plain reference.

use std::sync::Arc;

use rayon::prelude::*;

use super::linear::Linear;
use crate::kernel::{self, Epilogue, Panels, product_parallel, product_tiled};
use crate::quant::Blocks;

/// Outputs of one tile, of either direction: four registers' lanes, and two groups of a block.
const TILE: usize = 64;

/// A weight `[outputs, inputs]` that is not trained, or not in this pass, and its bias.
#[derive(Debug)]
pub(super) struct Frozen {
    stored: Stored,
    /// What every output row has added; empty where the layer has none.
    bias: Vec<f32>,
}

#[derive(Debug)]
enum Stored {
    Packed(Linear),
    Blocks(Arc<Blocks>),
}

impl Frozen {
    /// Packs a row-major f32 weight.
    pub fn packed(weight: &[f32], outputs: usize, inputs: usize) -> Self {
        Self {
            stored: Stored::Packed(Linear::new(weight, outputs, inputs)),
            bias: Vec::new(),
        }
    }

    /// A quantised weight, which stays as it is.
    pub fn blocks(blocks: Arc<Blocks>) -> Self {
        Self {
            stored: Stored::Blocks(blocks),
            bias: Vec::new(),
        }
    }

    /// With a bias of `outputs` values.
    pub fn with_bias(mut self, bias: Vec<f32>) -> Self {
        self.bias = bias;
        self
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        match &self.stored {
            Stored::Packed(linear) => linear.forward.outputs(),
            Stored::Blocks(blocks) => blocks.outputs(),
        }
    }

    /// Columns of the weight.
    pub fn inputs(&self) -> usize {
        match &self.stored {
            Stored::Packed(linear) => linear.forward.inputs(),
            Stored::Blocks(blocks) => blocks.inputs(),
        }
    }

    /// `x · Wᵀ` of every row into `y: [rows, outputs]`, without the bias.
    pub fn forward(&self, x: &[f32], y: &mut [f32], epilogue: Epilogue) {
        match &self.stored {
            Stored::Packed(linear) => product_parallel(x, &linear.forward, y, epilogue),
            Stored::Blocks(blocks) => {
                let (outputs, inputs) = (blocks.outputs(), blocks.inputs());
                let panels = |rows: std::ops::Range<usize>| {
                    let values = blocks.read(rows.clone(), 0..inputs);
                    Panels::pack(&values, rows.len(), inputs)
                };
                product_tiled(x, (outputs, inputs), (TILE, &panels), y, epilogue);
            }
        }
    }

    /// `g · W` of every row into `dx: [rows, inputs]`: the input gradient.
    pub fn backward(&self, dy: &[f32], dx: &mut [f32], epilogue: Epilogue) {
        match &self.stored {
            Stored::Packed(linear) => product_parallel(dy, linear.backward(), dx, epilogue),
            Stored::Blocks(blocks) => {
                let (outputs, inputs) = (blocks.outputs(), blocks.inputs());
                let panels = |columns: std::ops::Range<usize>| {
                    let values = blocks.read(0..outputs, columns.clone());
                    Panels::pack_transposed(&values, outputs, columns.len())
                };
                product_tiled(dy, (inputs, outputs), (TILE, &panels), dx, epilogue);
            }
        }
    }

    /// `x · Wᵀ + b` of every row, `[rows, outputs]`.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let rows = x.len() / self.inputs();
        let mut y = vec![0.0; rows * self.outputs()];
        self.forward(x, &mut y, Epilogue::Store);
        if !self.bias.is_empty() {
            y.par_chunks_mut(self.bias.len())
                .for_each(|row| kernel::add(&self.bias, row));
        }
        y
    }
}

/// The token embedding, `[vocab_size, hidden_size]`: rows are looked up, nothing is multiplied.
#[derive(Debug)]
pub(super) enum Embedding {
    /// Row-major.
    Plain { values: Vec<f32>, width: usize },
    /// Shared with the output projection where that is the embedding.
    Blocks(Arc<Blocks>),
}

impl Embedding {
    /// The rows of `tokens`, one behind the other.
    pub fn rows(&self, tokens: impl Iterator<Item = u32>) -> Vec<f32> {
        let mut rows = Vec::new();
        for token in tokens {
            let token = token as usize;
            match self {
                Self::Plain { values, width } => {
                    let row = values.get(token * width..(token + 1) * width);
                    rows.extend_from_slice(row.unwrap_or_default());
                }
                Self::Blocks(blocks) => {
                    rows.extend(blocks.read(token..token + 1, 0..blocks.inputs()));
                }
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::BlockFormat;
    use crate::random::Stream;

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let stream = Stream::new(seed, &[]);
        (0..count as u64).map(|i| stream.normal(i) as f32).collect()
    }

    #[test]
    fn quantised_products_have_the_bits_of_the_values_packed() {
        for (format, outputs, inputs) in [
            (BlockFormat::Q4_0, 70, 96),
            (BlockFormat::Q8_0, 33, 32),
            (BlockFormat::Q4K, 130, 512),
            (BlockFormat::Q6K, 16, 256),
        ] {
            let weight = values(1, outputs * inputs);
            let blocks = Blocks::quantize(format, &weight, outputs, inputs).unwrap();
            let read = blocks.read(0..outputs, 0..inputs);
            let bias = values(2, outputs);
            let plain = Frozen::packed(&read, outputs, inputs).with_bias(bias.clone());
            let quantised = Frozen::blocks(Arc::new(blocks)).with_bias(bias);
            for rows in [1, 13, 40] {
                let x = values(3, rows * inputs);
                assert_eq!(quantised.apply(&x), plain.apply(&x), "{format:?} {rows}");
                let dy = values(4, rows * outputs);
                let start = values(5, rows * inputs);
                let (mut expected, mut dx) = (start.clone(), start);
                plain.backward(&dy, &mut expected, Epilogue::Add);
                quantised.backward(&dy, &mut dx, Epilogue::Add);
                assert_eq!(dx, expected, "{format:?} {rows}");
            }
        }
    }

    #[test]
    fn embeddings_are_looked_up_in_either_form() {
        let (tokens, width) = (10, 64);
        let weight = values(1, tokens * width);
        let blocks = Blocks::quantize(BlockFormat::Q8_0, &weight, tokens, width).unwrap();
        let plain = Embedding::Plain {
            values: blocks.read(0..tokens, 0..width),
            width,
        };
        let quantised = Embedding::Blocks(Arc::new(blocks));
        let wanted = [7, 0, 9, 7];
        let rows = plain.rows(wanted.into_iter());
        assert_eq!(rows.len(), 4 * width);
        assert_eq!(quantised.rows(wanted.into_iter()), rows);
    }
}
