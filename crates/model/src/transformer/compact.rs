//! A weight that takes less memory than its values in f32 do.

use std::ops::Range;
use std::sync::Arc;

use crate::kernel::{
    Epilogue, HalfPanels, IntegerPanels, Packed, Panels, Weight, product_halves, product_integers,
    product_tiled, unpack, unpack_transposed,
};
use crate::quant::Blocks;

/// Outputs of one tile, of either direction: four registers' lanes, and two groups of a block.
const TILE: usize = 64;
/// The same of a weight with many outputs.
const WIDE_TILE: usize = 128;
const WIDE_TILE_INPUTS: usize = 8192;
/// Rows from which on a part of a weight is widened once for all of them, and not by each few.
const WIDENED_ROWS: usize = 512;

/// A weight `[outputs, inputs]`. Cheap to clone: an embedding is shared with the output projection that it is.
#[derive(Debug, Clone)]
pub(super) enum Compact {
    /// Multiplied in tiles: some of its rows (forward) or columns (backward) are read as f32, packed,
    /// multiplied with all rows of the input, and let go. Both directions thus use the same values, so that the
    /// gradient is the function's own, with the bits that a packed f32 weight of these values gives.
    Blocks(Arc<Blocks>),
    /// Multiplied as it is, with inputs in 8 bits: for serving. A gradient would be that of the exact inputs.
    Integers(Arc<IntegerPanels>),
    /// bf16 or f16, multiplied as it is, or in tiles with many rows and backward: with the bits that its values
    /// in f32 give.
    Halves(Arc<HalfPanels>),
}

impl Compact {
    /// For training: multiplied in tiles.
    pub fn tiled(blocks: Blocks) -> Self {
        Self::Blocks(Arc::new(blocks))
    }

    /// For serving: packed where there is a product for the format.
    pub fn served(blocks: Blocks) -> Self {
        match IntegerPanels::pack(&blocks) {
            Some(panels) => Self::Integers(Arc::new(panels)),
            None => Self::tiled(blocks),
        }
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Blocks(blocks) => blocks.outputs(),
            Self::Integers(panels) => panels.outputs(),
            Self::Halves(panels) => panels.outputs(),
        }
    }

    /// Columns of the weight.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Blocks(blocks) => blocks.inputs(),
            Self::Integers(panels) => panels.inputs(),
            Self::Halves(panels) => panels.inputs(),
        }
    }

    /// Bytes held, whoever shares them.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Blocks(blocks) => blocks.bytes(),
            Self::Integers(panels) => panels.bytes(),
            Self::Halves(panels) => panels.bytes(),
        }
    }

    /// The values of `rows` × `columns`, row-major. `columns` start and end at multiples of 32.
    pub fn read(&self, rows: Range<usize>, columns: Range<usize>) -> Vec<f32> {
        match self {
            Self::Blocks(blocks) => blocks.read(rows, columns),
            Self::Integers(panels) => panels.read(rows, columns),
            Self::Halves(panels) => panels.read(rows, columns),
        }
    }

    /// The weight for a product of `rows` rows beside others; none where it is multiplied in tiles.
    pub fn packed(&self, rows: usize) -> Option<Weight<'_>> {
        match self {
            Self::Integers(panels) => Some(Weight::Integers(panels)),
            Self::Halves(panels) if rows < WIDENED_ROWS => {
                Some(Weight::Floats(Packed::halves(panels)))
            }
            Self::Blocks(_) | Self::Halves(_) => None,
        }
    }

    /// `x · Wᵀ` of every row into `y: [rows, outputs]`.
    pub fn forward(&self, x: &[f32], y: &mut [f32], epilogue: Epilogue) {
        let shape = (self.outputs(), self.inputs());
        let tile = tile(shape);
        match self {
            Self::Blocks(blocks) => {
                let fill = |rows: Range<usize>, panels: &mut [f32]| unpack(blocks, rows, panels);
                product_tiled(x, shape, (tile, &fill), y, epilogue);
            }
            Self::Integers(panels) => product_integers(x, panels, y, epilogue),
            Self::Halves(halves) if x.len() < WIDENED_ROWS * shape.1 => {
                product_halves(x, halves, y, epilogue);
            }
            Self::Halves(halves) => {
                let fill = |rows: Range<usize>, panels: &mut [f32]| halves.widen(rows, panels);
                product_tiled(x, shape, (tile, &fill), y, epilogue);
            }
        }
    }

    /// `g · W` of every row into `dx: [rows, inputs]`: the input gradient.
    pub fn backward(&self, dy: &[f32], dx: &mut [f32], epilogue: Epilogue) {
        let (outputs, inputs) = (self.outputs(), self.inputs());
        let fill = |columns: Range<usize>, panels: &mut [f32]| match self {
            Self::Halves(halves) => halves.widen_transposed(columns, panels),
            Self::Blocks(blocks) => unpack_transposed(blocks, columns, panels),
            Self::Integers(integers) => {
                let values = integers.read(0..outputs, columns.clone());
                let packed = Panels::pack_transposed(&values, outputs, columns.len());
                panels.copy_from_slice(packed.data());
            }
        };
        let shape = (inputs, outputs);
        product_tiled(dy, shape, (tile(shape), &fill), dx, epilogue);
    }
}

/// Outputs of one tile. Wide ones read the inputs less often; every thread needs some, and each has memory for one.
fn tile((outputs, inputs): (usize, usize)) -> usize {
    let is_wide = outputs >= 4 * WIDE_TILE * rayon::current_num_threads();
    if is_wide && inputs <= WIDE_TILE_INPUTS {
        WIDE_TILE
    } else {
        TILE
    }
}
