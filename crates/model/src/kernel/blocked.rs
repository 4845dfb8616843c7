//! Products of many rows, in blocks that fit the caches.
//!
//! The inputs are packed once, `[block][tile][inner][rows of a tile]`, so that a tile reads one stream and not a dozen
//! rows that fall into the same sets of the first cache. The inner dimension is cut into blocks: a tile's inputs stay
//! in the first cache and a group of panels in the second while they are multiplied. Between two blocks a sum lies
//! in memory as the f32 that it is, so that its chain goes on with the same bits.

use std::ffi::c_void;
use std::ops::Range;

use rayon::prelude::*;

use super::dispatch::Isa;
use super::halves::HalfFormat;
use super::panels::LANES;
use super::product::{Epilogue, Output, Packed};
use super::scratch::{INPUTS, SUMS, with_scratch};
#[cfg(target_arch = "x86_64")]
use super::{x86_avx2, x86_avx512};

/// Inner dimension of one block: 12 KiB of a tile's inputs.
pub(super) const DEPTH: usize = 256;
/// Panels of one group: 128 KiB of a block's weights.
const GROUP: usize = 8;
/// Packed inputs that there are at a time, in bytes, where that is [`LEAST_TILES`] at least.
const INPUT_BYTES: usize = 32 << 20;
const LEAST_TILES: usize = 32;
/// From so many tiles and panels on packing pays.
const TILES: usize = 2;
const PANELS: usize = 4;

/// One tile of one block.
#[derive(Clone, Copy)]
pub(super) struct BlockTile {
    /// The packed inputs, `[depth][rows of a full tile]`.
    pub x: *const f32,
    /// The first line of the first panel: f32, or halves.
    pub w: *const c_void,
    /// What the halves are; none: f32.
    pub half: Option<HalfFormat>,
    /// Lines from one panel to the next.
    pub inputs: usize,
    /// Lines of this block.
    pub depth: usize,
    /// The tile's sums between blocks, `[rows of a full tile][panels][16]`.
    pub sums: *mut f32,
    /// Whether the chains begin here.
    pub first: bool,
    /// What becomes of the sums, where the chains end here.
    pub epilogue: Option<Epilogue>,
    /// First output of the first row.
    pub y: *mut f32,
    /// Elements between rows of `y`.
    pub stride: usize,
    /// Rows that are there.
    pub rows: usize,
    /// Outputs that are there; the last panel may be partly filled.
    pub columns: usize,
}

/// How an instruction set does it.
#[derive(Clone, Copy)]
pub(super) struct BlockShape {
    /// Rows of a full tile.
    rows: usize,
    /// Panels of a tile.
    panels: usize,
    run: unsafe fn(usize, &BlockTile),
}

impl BlockShape {
    /// None where it does not pay, or where the instruction set has no such tile.
    pub fn of(isa: Isa, rows: usize, panels: usize) -> Option<Self> {
        let shape: Option<Self> = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Some(Self {
                rows: x86_avx512::ROWS,
                panels: 2,
                run: x86_avx512::run_block,
            }),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(Self {
                rows: x86_avx2::ROWS,
                panels: 1,
                run: x86_avx2::run_block,
            }),
            _ => None,
        };
        shape.filter(|shape| rows >= TILES * shape.rows && panels >= PANELS)
    }
}

/// Packed rows of an input.
pub(super) struct PackedInputs<'a> {
    data: &'a [f32],
    rows: usize,
    inputs: usize,
    shape: BlockShape,
}

impl PackedInputs<'_> {
    /// Tiles of all rows; the last may have rows that are not there.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(self.shape.rows)
    }

    /// A tile's inputs of a block that has `depth` lines.
    fn tile(&self, block: usize, tile: usize, depth: usize) -> &[f32] {
        let before = block * DEPTH * self.tiles() * self.shape.rows;
        let start = before + tile * depth * self.shape.rows;
        self.data
            .get(start..start + depth * self.shape.rows)
            .unwrap_or_default()
    }

    /// Computes all tiles of some panels of `w`, whose outputs begin at the first column of `y`.
    pub fn multiply(
        &self,
        w: Packed<'_>,
        (panels, tiles): (Range<usize>, Range<usize>),
        y: Output,
        epilogue: Epilogue,
    ) {
        let blocks = self.inputs.div_ceil(DEPTH);
        let size = self.shape.rows * LANES;
        let kept = if blocks > 1 {
            tiles.len() * panels.len() * size
        } else {
            0
        };
        assert!(panels.end <= w.panels() && w.inputs() == self.inputs && tiles.end <= self.tiles());
        with_scratch(&SUMS, kept, |sums| {
            for block in 0..blocks {
                let from = block * DEPTH;
                let depth = DEPTH.min(self.inputs - from);
                for (place, tile) in tiles.clone().enumerate() {
                    let x = self.tile(block, tile, depth);
                    assert_eq!(x.len(), depth * self.shape.rows, "a tile's inputs");
                    let row = tile * self.shape.rows;
                    let mut panel = panels.start;
                    while panel < panels.end {
                        let wide = self.shape.panels;
                        let width = if panel + wide <= panels.end { wide } else { 1 };
                        let (weights, half) = w.line(panel, from);
                        let sums_from = (place * panels.len() + panel - panels.start) * size;
                        #[expect(unsafe_code, reason = "tiles address rows and panels by pointer")]
                        // SAFETY: `x` has the block's lines; panels and lines end inside `w`; columns end at its
                        // outputs, which the callers have placed within the stride of `y`, and rows are there;
                        // `sums` has room for every tile where there is more than one block, and otherwise is not
                        // touched; the instruction set is there.
                        unsafe {
                            let tile = BlockTile {
                                x: x.as_ptr(),
                                w: weights,
                                half,
                                inputs: self.inputs,
                                depth,
                                sums: sums.as_mut_ptr().wrapping_add(sums_from),
                                first: block == 0,
                                epilogue: (block + 1 == blocks).then_some(epilogue),
                                y: y.start.add(row * y.stride + panel * LANES),
                                stride: y.stride,
                                rows: self.shape.rows.min(self.rows - row),
                                columns: (width * LANES).min(w.outputs() - panel * LANES),
                            };
                            (self.shape.run)(width, &tile);
                        }
                        panel += width;
                    }
                }
            }
        });
    }
}

/// Packs the rows of `x`, as many at a time as the limit allows, and calls `f` with them and the number of the first.
pub(super) fn each_inputs(
    shape: BlockShape,
    (x, inputs): (&[f32], usize),
    is_parallel: bool,
    mut f: impl FnMut(&PackedInputs<'_>, usize),
) {
    let tile = shape.rows * inputs;
    let most = (INPUT_BYTES / size_of::<f32>() / tile).max(LEAST_TILES);
    for (number, x) in x.chunks(most * tile).enumerate() {
        let rows = x.len() / inputs;
        let tiles = rows.div_ceil(shape.rows);
        with_scratch(&INPUTS, tiles * tile, |data| {
            pack(data, (x, inputs), (tiles, shape.rows), is_parallel);
            let packed = PackedInputs {
                data,
                rows,
                inputs,
                shape,
            };
            f(&packed, number * most * shape.rows);
        });
    }
}

/// Fills `data` as [`PackedInputs`] has it; rows that are not there are zero.
fn pack(
    data: &mut [f32],
    (x, inputs): (&[f32], usize),
    (tiles, height): (usize, usize),
    is_parallel: bool,
) {
    let mut parts = Vec::with_capacity(tiles * inputs.div_ceil(DEPTH));
    for (number, block) in data.chunks_mut(DEPTH * tiles * height).enumerate() {
        let depth = block.len() / (tiles * height);
        let block = block.chunks_exact_mut(depth * height).enumerate();
        parts.extend(block.map(|(tile, part)| (tile, number * DEPTH, part)));
    }
    let pack_part = |(tile, from, part): (usize, usize, &mut [f32])| {
        let depth = part.len() / height;
        for place in 0..height {
            let start = (tile * height + place) * inputs + from;
            let slots = part.chunks_exact_mut(height);
            let slots = slots.filter_map(|line| line.get_mut(place));
            match x.get(start..start + depth) {
                Some(row) => slots.zip(row).for_each(|(slot, value)| *slot = *value),
                None => slots.for_each(|slot| *slot = 0.0),
            }
        }
    };
    if is_parallel {
        parts.into_par_iter().for_each(pack_part);
    } else {
        parts.into_iter().for_each(pack_part);
    }
}

/// Computes the same bits as [`product`](super::product()), for all rows of `x`.
pub(super) fn multiply(
    shape: BlockShape,
    x: &[f32],
    w: Packed<'_>,
    y: Output,
    (epilogue, threads): (Epilogue, usize),
) {
    let groups = w.panels().div_ceil(GROUP);
    each_inputs(shape, (x, w.inputs()), threads > 1, |inputs, first| {
        let y = y.at_row(first);
        let panels = |group: usize| group * GROUP..w.panels().min((group + 1) * GROUP);
        if threads < 2 {
            for group in 0..groups {
                inputs.multiply(w, (panels(group), 0..inputs.tiles()), y, epilogue);
            }
            return;
        }
        // Where there are few groups for the threads, rows are cut too.
        let cuts = (2 * threads).div_ceil(groups).min(inputs.tiles());
        let step = inputs.tiles().div_ceil(cuts);
        (0..groups * cuts).into_par_iter().for_each(|task| {
            let cut = task % cuts * step;
            let tiles = cut.min(inputs.tiles())..inputs.tiles().min(cut + step);
            inputs.multiply(w, (panels(task / cuts), tiles), y, epilogue);
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Panels, product, product_parallel};

    #[test]
    fn more_rows_than_are_packed_at_a_time_have_the_bits_of_fewer() {
        let (n, k, rows) = (64, 24_000, 500);
        let most = (INPUT_BYTES / size_of::<f32>() / k).max(LEAST_TILES * 12);
        assert!(rows > most, "{most} rows at a time");
        let values = |count: usize, of: usize| -> Vec<f32> {
            (0..count).map(|i| (i % of) as f32 * 0.01 - 1.0).collect()
        };
        let (weight, x) = (values(n * k, 211), values(rows * k, 199));
        let panels = Panels::pack(&weight, n, k);
        let mut expected = vec![0.0; rows * n];
        for (x, y) in x.chunks(100 * k).zip(expected.chunks_mut(100 * n)) {
            product(x, &panels, y, Epilogue::Store);
        }
        let mut y = vec![0.0; rows * n];
        product_parallel(&x, &panels, &mut y, Epilogue::Store);
        assert!(y == expected);
    }
}
