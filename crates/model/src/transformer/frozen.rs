//! A frozen weight of the base model: the one place that knows how it is stored. A faster kernel
//! takes effect here, and no pass notices.

use rayon::prelude::*;

use super::compact::Compact;
use super::linear::Linear;
use super::memory::Memory;
use crate::kernel::{self, Epilogue, Packed, Weight, product_parallel};

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
    Compact(Compact),
}

impl Frozen {
    /// Packs a row-major f32 weight.
    pub fn packed(weight: &[f32], outputs: usize, inputs: usize) -> Self {
        Self {
            stored: Stored::Packed(Linear::new(weight, outputs, inputs)),
            bias: Vec::new(),
        }
    }

    /// A weight that stays as it is.
    pub fn compact(weight: Compact) -> Self {
        Self {
            stored: Stored::Compact(weight),
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
            Stored::Compact(weight) => weight.outputs(),
        }
    }

    /// Columns of the weight.
    pub fn inputs(&self) -> usize {
        match &self.stored {
            Stored::Packed(linear) => linear.forward.inputs(),
            Stored::Compact(weight) => weight.inputs(),
        }
    }

    /// Bytes held for forward passes, whoever shares them.
    pub fn bytes(&self) -> usize {
        let weight = match &self.stored {
            Stored::Packed(linear) => linear.forward.bytes(),
            Stored::Compact(weight) => weight.bytes(),
        };
        weight + size_of_val(&*self.bias)
    }

    /// Whether it is multiplied in tiles that are read from blocks.
    pub fn is_in_blocks(&self) -> bool {
        matches!(&self.stored, Stored::Compact(Compact::Blocks(_)))
    }

    /// Whether it is multiplied with inputs in 8 bits.
    pub fn takes_eight_bits(&self) -> bool {
        matches!(&self.stored, Stored::Compact(Compact::Integers(_)))
    }

    /// `x · Wᵀ` of every row into `y: [rows, outputs]`, without the bias.
    pub fn forward(&self, x: &[f32], y: &mut [f32], epilogue: Epilogue) {
        match &self.stored {
            Stored::Packed(linear) => product_parallel(x, &linear.forward, y, epilogue),
            Stored::Compact(weight) => weight.forward(x, y, epilogue),
        }
    }

    /// `g · W` of every row into `dx: [rows, inputs]`: the input gradient.
    pub fn backward(&self, dy: &[f32], dx: &mut [f32], epilogue: Epilogue) {
        match &self.stored {
            Stored::Packed(linear) => product_parallel(dy, linear.backward(), dx, epilogue),
            Stored::Compact(weight) => weight.backward(dy, dx, epilogue),
        }
    }

    /// The weight for a product of `rows` rows beside others; none where it is multiplied in tiles.
    pub fn weight(&self, rows: usize) -> Option<Weight<'_>> {
        match &self.stored {
            Stored::Packed(linear) => Some(Weight::Floats(Packed::single(&linear.forward))),
            Stored::Compact(weight) => weight.packed(rows),
        }
    }

    /// `[rows, outputs]` to which the product is added: the bias in every row, or what it is written over.
    pub fn before(&self, rows: usize, memory: &Memory) -> (Vec<f32>, Epilogue) {
        let mut y = memory.take(rows * self.outputs());
        if self.bias.is_empty() {
            return (y, Epilogue::Store);
        }
        y.chunks_exact_mut(self.bias.len())
            .for_each(|row| row.copy_from_slice(&self.bias));
        (y, Epilogue::Add)
    }

    /// Adds the bias to every row.
    fn add_bias(&self, y: &mut [f32]) {
        if !self.bias.is_empty() {
            y.par_chunks_mut(self.bias.len())
                .for_each(|row| kernel::add(&self.bias, row));
        }
    }

    /// `x · Wᵀ + b` of every row into `y: [rows, outputs]`, over what was there.
    pub fn apply_into(&self, x: &[f32], y: &mut [f32]) {
        self.forward(x, y, Epilogue::Store);
        self.add_bias(y);
    }
}

/// The token embedding, `[vocab_size, hidden_size]`: rows are looked up, nothing is multiplied.
#[derive(Debug)]
pub(super) enum Embedding {
    /// Row-major.
    Plain { values: Vec<f32>, width: usize },
    /// Shared with the output projection where that is the embedding.
    Compact(Compact),
}

impl Embedding {
    /// Bytes held, whoever shares them.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Plain { values, .. } => size_of_val(&**values),
            Self::Compact(weight) => weight.bytes(),
        }
    }

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
                Self::Compact(weight) => {
                    rows.extend(weight.read(token..token + 1, 0..weight.inputs()));
                }
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kernel::{HalfPanels, HalfWeight};
    use crate::quant::{BlockFormat, Blocks};
    use crate::random::Stream;

    impl Frozen {
        fn apply(&self, x: &[f32]) -> Vec<f32> {
            let mut y = vec![f32::NAN; x.len() / self.inputs() * self.outputs()];
            self.apply_into(x, &mut y);
            y
        }
    }

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let stream = Stream::new(seed, &[]);
        (0..count as u64).map(|i| stream.normal(i) as f32).collect()
    }

    fn halves(weight: &[f32], outputs: usize, inputs: usize) -> Compact {
        let panels = HalfPanels::pack(&HalfWeight::rounded(weight), outputs, inputs);
        Compact::Halves(Arc::new(panels))
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
            let quantised = Compact::Blocks(Arc::new(blocks));
            let quantised = Frozen::compact(quantised).with_bias(bias);
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
    fn products_of_halves_have_the_bits_of_the_values_packed() {
        for (outputs, inputs) in [(70, 96), (33, 40), (130, 256), (16, 20)] {
            let halves = halves(&values(1, outputs * inputs), outputs, inputs);
            let plain = Frozen::packed(&halves.read(0..outputs, 0..inputs), outputs, inputs);
            let halves = Frozen::compact(halves);
            // The last in tiles.
            for rows in [1, 13, 600] {
                let x = values(3, rows * inputs);
                assert!(halves.apply(&x) == plain.apply(&x), "{outputs} {rows}");
                let dy = values(4, rows * outputs);
                let start = values(5, rows * inputs);
                let (mut expected, mut dx) = (start.clone(), start);
                plain.backward(&dy, &mut expected, Epilogue::Add);
                halves.backward(&dy, &mut dx, Epilogue::Add);
                assert!(dx == expected, "{outputs} {rows}");
            }
        }
    }

    #[test]
    fn gradients_of_served_forms_are_those_of_their_values() {
        let (outputs, inputs, rows) = (40, 256, 5);
        let weight = values(1, outputs * inputs);
        let blocks = |format| Blocks::quantize(format, &weight, outputs, inputs).unwrap();
        for served in [
            Compact::served(blocks(BlockFormat::Q8_0)),
            Compact::served(blocks(BlockFormat::Q4_0)),
            Compact::served(blocks(BlockFormat::Q4K)),
            halves(&weight, outputs, inputs),
        ] {
            let plain = Frozen::packed(&served.read(0..outputs, 0..inputs), outputs, inputs);
            let served = Frozen::compact(served);
            assert!(served.bytes() * 2 <= plain.bytes());
            let dy = values(4, rows * outputs);
            let (mut expected, mut dx) = (vec![0.0; rows * inputs], vec![0.0; rows * inputs]);
            plain.backward(&dy, &mut expected, Epilogue::Store);
            served.backward(&dy, &mut dx, Epilogue::Store);
            assert!(dx == expected, "{served:?}");
        }
    }

    #[test]
    fn a_format_without_a_product_of_its_own_is_served_in_tiles() {
        let weight = values(1, 16 * 256);
        let blocks = Blocks::quantize(BlockFormat::Q6K, &weight, 16, 256).unwrap();
        let plain = Frozen::packed(&blocks.read(0..16, 0..256), 16, 256);
        let x = values(3, 3 * 256);
        let served = Frozen::compact(Compact::served(blocks));
        assert_eq!(served.apply(&x), plain.apply(&x));
    }

    #[test]
    fn embeddings_are_looked_up_in_every_form() {
        let (tokens, width) = (20, 64);
        let weight = values(1, tokens * width);
        let blocks = Blocks::quantize(BlockFormat::Q8_0, &weight, tokens, width).unwrap();
        for compact in [
            Compact::Blocks(Arc::new(blocks.clone())),
            Compact::served(blocks),
            halves(&weight, tokens, width),
        ] {
            let plain = Embedding::Plain {
                values: compact.read(0..tokens, 0..width),
                width,
            };
            let wanted = [17, 0, 9, 17];
            let rows = plain.rows(wanted.into_iter());
            assert_eq!(rows.len(), 4 * width);
            let embedding = Embedding::Compact(compact);
            assert_eq!(embedding.rows(wanted.into_iter()), rows);
        }
    }
}
