//! Tiles in AVX2 with FMA: a panel is two registers.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]
#![expect(clippy::needless_range_loop, reason = "constant bounds unroll into registers")]
#![expect(clippy::indexing_slicing, reason = "register arrays indexed below their constant length")]

use std::arch::x86_64::{
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::outer::OuterTile;
use super::panels::LANES;
use super::product::{Tile, finish};

/// Rows of a full tile: 6 × 2 sums, two weights and one input fill 15 of 16 registers.
pub(super) const ROWS: usize = 6;

/// Panels beside each other.
pub(super) fn panels(rows: usize) -> usize {
    match rows {
        1 => 4,
        2 | 3 => 2,
        _ => 1,
    }
}

/// Computes one tile.
///
/// # Safety
/// The machine has AVX2 and FMA; `tile` addresses `rows` rows and `panels` panels.
pub(super) unsafe fn run(rows: usize, panels: usize, tile: &Tile) {
    macro_rules! choose {
        ($($rows:literal x $panels:literal),*) => {
            match (rows, panels) {
                // SAFETY: the caller's promise.
                $(($rows, $panels) => unsafe { product_tile::<$rows, $panels>(tile) },)*
                _ => unreachable!("no tile of {rows} rows by {panels} panels"),
            }
        };
    }
    choose!(1 x 1, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1, 1 x 4, 2 x 2, 3 x 2);
}

#[target_feature(enable = "avx2,fma")]
unsafe fn product_tile<const R: usize, const P: usize>(tile: &Tile) {
    let k = tile.inputs;
    let mut sums = [[[_mm256_setzero_ps(); 2]; P]; R];
    for i in 0..k {
        let mut weights = [[_mm256_setzero_ps(); 2]; P];
        for p in 0..P {
            // SAFETY: panel p holds k times sixteen values.
            weights[p] = unsafe {
                let at = tile.w.add((p * k + i) * LANES);
                [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))]
            };
        }
        for r in 0..R {
            // SAFETY: row r holds k values.
            let input = _mm256_set1_ps(unsafe { *tile.x.add(r * k + i) });
            for p in 0..P {
                for h in 0..2 {
                    sums[r][p][h] = _mm256_fmadd_ps(input, weights[p][h], sums[r][p][h]);
                }
            }
        }
    }
    for r in 0..R {
        for p in 0..P {
            let mut lanes = [0.0_f32; LANES];
            let columns = tile.columns.saturating_sub(p * LANES).min(LANES);
            // SAFETY: `lanes` holds two registers; `columns` values lie inside row r of the output.
            let y = unsafe {
                _mm256_storeu_ps(lanes.as_mut_ptr(), sums[r][p][0]);
                _mm256_storeu_ps(lanes.as_mut_ptr().add(8), sums[r][p][1]);
                std::slice::from_raw_parts_mut(tile.y.add(r * tile.stride + p * LANES), columns)
            };
            finish(&lanes, y, tile.epilogue);
        }
    }
}

/// Adds one tile of `gᵀ · x`, sixteen columns wide, to its sums.
///
/// # Safety
/// The machine has AVX2 and FMA; `tile` addresses `outputs` outputs by sixteen columns.
pub(super) unsafe fn outer(outputs: usize, tile: &OuterTile) {
    macro_rules! choose {
        ($($rows:literal)*) => {
            match outputs {
                // SAFETY: the caller's promise.
                $($rows => unsafe { outer_tile::<$rows>(tile) },)*
                _ => unreachable!("no tile of {outputs} outputs"),
            }
        };
    }
    choose!(1 2 3 4 5 6);
}

#[target_feature(enable = "avx2,fma")]
unsafe fn outer_tile<const R: usize>(tile: &OuterTile) {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for r in 0..R {
        for h in 0..2 {
            // SAFETY: half h of output r.
            sums[r][h] = unsafe { _mm256_loadu_ps(tile.sums.add(r * tile.stride + h * 8)) };
        }
    }
    for t in 0..tile.rows {
        // SAFETY: sixteen columns of row t.
        let inputs = unsafe {
            let at = tile.x.add(t * tile.stride);
            [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))]
        };
        for r in 0..R {
            // SAFETY: output r of row t.
            let gradient = _mm256_set1_ps(unsafe { *tile.g.add(t * tile.g_stride + r) });
            for h in 0..2 {
                sums[r][h] = _mm256_fmadd_ps(gradient, inputs[h], sums[r][h]);
            }
        }
    }
    for r in 0..R {
        for h in 0..2 {
            // SAFETY: half h of output r.
            unsafe { _mm256_storeu_ps(tile.sums.add(r * tile.stride + h * 8), sums[r][h]) };
        }
    }
}
