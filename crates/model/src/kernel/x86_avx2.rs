//! Tiles in AVX2 with FMA and F16C: a panel is two registers.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use std::ffi::c_void;

use std::arch::x86_64::{
    __m128i, __m256, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps,
};

use super::blocked::BlockTile;
use super::dispatch::unrolled;
use super::halves::HalfFormat;
use super::outer::OuterTile;
use super::panels::LANES;
use super::product::numbers::{BF16, F16, SINGLE};
use super::product::{Tile, finish};

/// Rows of a full tile: 6 × 2 sums, two weights and one input fill 15 of 16 registers.
pub(super) const ROWS: usize = 6;

/// Panels beside each other, of so many that are left.
pub(super) fn panels(rows: usize, left: usize) -> usize {
    match (rows, left) {
        (1, 4..) => 4,
        (1..=3, 2..) => 2,
        _ => 1,
    }
}

/// Computes one tile.
///
/// # Safety
/// The machine has AVX2, FMA and F16C; `tile` addresses `rows` rows and `panels` panels.
pub(super) unsafe fn run(rows: usize, panels: usize, tile: &Tile) {
    macro_rules! choose {
        ($($rows:literal x $panels:literal),*) => {
            match (rows, panels, tile.half) {
                // SAFETY: the caller's promise.
                $(($rows, $panels, None) => unsafe {
                    product_tile::<$rows, $panels, SINGLE>(tile);
                },
                // SAFETY: the caller's promise.
                ($rows, $panels, Some(HalfFormat::Bf16)) => unsafe {
                    product_tile::<$rows, $panels, BF16>(tile);
                },
                // SAFETY: the caller's promise.
                ($rows, $panels, Some(HalfFormat::F16)) => unsafe {
                    product_tile::<$rows, $panels, F16>(tile);
                },)*
                _ => unreachable!("no tile of {rows} rows by {panels} panels"),
            }
        };
    }
    choose!(1 x 1, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1, 1 x 2, 2 x 2, 3 x 2, 1 x 4);
}

/// Two times eight weights.
///
/// # Safety
/// Line `line` from `w` on is there, of numbers that are `HALF`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn load<const HALF: u8>(w: *const c_void, line: usize) -> [__m256; 2] {
    if HALF == SINGLE {
        // SAFETY: the caller's promise.
        return unsafe {
            let at = w.cast::<f32>().add(line * LANES);
            [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))]
        };
    }
    // SAFETY: the caller's promise; lines of halves are aligned to their 32 bytes.
    let (low, high) = unsafe {
        let at = w.cast::<__m128i>().add(2 * line);
        (*at, *at.add(1))
    };
    if HALF == BF16 {
        let [low, high] = [_mm256_cvtepu16_epi32(low), _mm256_cvtepu16_epi32(high)];
        [
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
        ]
    } else {
        [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn product_tile<const R: usize, const P: usize, const HALF: u8>(tile: &Tile) {
    let (k, x_stride) = (tile.inputs, tile.x_stride);
    let mut low = [[_mm256_setzero_ps(); P]; R];
    let mut high = [[_mm256_setzero_ps(); P]; R];
    for i in 0..k {
        let mut weights = [[_mm256_setzero_ps(); 2]; P];
        unrolled!(PANEL < P, {
            // SAFETY: each panel holds k lines.
            weights[PANEL] = unsafe { load::<HALF>(tile.w, PANEL * k + i) };
        });
        unrolled!(ROW < R, {
            // SAFETY: each row holds k values.
            let input = _mm256_set1_ps(unsafe { *tile.x.add(ROW * x_stride + i) });
            unrolled!(PANEL < P, {
                let [a, b] = weights[PANEL];
                low[ROW][PANEL] = _mm256_fmadd_ps(input, a, low[ROW][PANEL]);
                high[ROW][PANEL] = _mm256_fmadd_ps(input, b, high[ROW][PANEL]);
            });
        });
    }
    unrolled!(ROW < R, {
        unrolled!(PANEL < P, {
            let mut lanes = [0.0_f32; LANES];
            let columns = tile.columns.saturating_sub(PANEL * LANES).min(LANES);
            // SAFETY: `lanes` holds two registers; `columns` values lie inside this row.
            let y = unsafe {
                _mm256_storeu_ps(lanes.as_mut_ptr(), low[ROW][PANEL]);
                _mm256_storeu_ps(lanes.as_mut_ptr().add(8), high[ROW][PANEL]);
                let at = tile.y.add(ROW * tile.stride + PANEL * LANES);
                std::slice::from_raw_parts_mut(at, columns)
            };
            finish(&lanes, y, tile.epilogue);
        });
    });
}

/// Computes one tile of one block, [`ROWS`] high and one panel wide.
///
/// # Safety
/// The machine has AVX2, FMA and F16C; `tile` addresses what its fields say, for one panel.
pub(super) unsafe fn run_block(_panels: usize, tile: &BlockTile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.half {
            None => block_tile::<ROWS, SINGLE>(tile),
            Some(HalfFormat::Bf16) => block_tile::<ROWS, BF16>(tile),
            Some(HalfFormat::F16) => block_tile::<ROWS, F16>(tile),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn block_tile<const R: usize, const HALF: u8>(tile: &BlockTile) {
    let mut low = [_mm256_setzero_ps(); R];
    let mut high = [_mm256_setzero_ps(); R];
    // SAFETY: the caller's promise covers the sums, the panel's lines and the inputs of every line.
    unsafe {
        if !tile.first {
            unrolled!(ROW < R, {
                let at = tile.sums.add(ROW * LANES);
                low[ROW] = _mm256_loadu_ps(at);
                high[ROW] = _mm256_loadu_ps(at.add(8));
            });
        }
        let mut x = tile.x;
        for line in 0..tile.depth {
            let [a, b] = load::<HALF>(tile.w, line);
            unrolled!(ROW < R, {
                let input = _mm256_set1_ps(*x.add(ROW));
                low[ROW] = _mm256_fmadd_ps(input, a, low[ROW]);
                high[ROW] = _mm256_fmadd_ps(input, b, high[ROW]);
            });
            x = x.add(R);
        }
    }
    unrolled!(ROW < R, {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: `lanes` holds two registers, as a row of the sums does; rows below `rows` have their columns.
        unsafe {
            let at = match tile.epilogue {
                Some(_) => lanes.as_mut_ptr(),
                None => tile.sums.add(ROW * LANES),
            };
            _mm256_storeu_ps(at, low[ROW]);
            _mm256_storeu_ps(at.add(8), high[ROW]);
        }
        if let Some(epilogue) = tile.epilogue
            && ROW < tile.rows
        {
            // SAFETY: as above.
            let y = unsafe {
                let at = tile.y.add(ROW * tile.stride);
                std::slice::from_raw_parts_mut(at, tile.columns)
            };
            finish(&lanes, y, epilogue);
        }
    });
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
    let mut low = [_mm256_setzero_ps(); R];
    let mut high = [_mm256_setzero_ps(); R];
    // SAFETY: the caller's promise covers sixteen columns of every output and row below.
    unsafe {
        unrolled!(ROW < R, {
            let at = tile.sums.add(ROW * tile.stride);
            low[ROW] = _mm256_loadu_ps(at);
            high[ROW] = _mm256_loadu_ps(at.add(8));
        });
        for t in 0..tile.rows {
            let at = tile.x.add(t * tile.x_stride);
            let (a, b) = (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8)));
            unrolled!(ROW < R, {
                let gradient = _mm256_set1_ps(*tile.g.add(t * tile.g_stride + ROW));
                low[ROW] = _mm256_fmadd_ps(gradient, a, low[ROW]);
                high[ROW] = _mm256_fmadd_ps(gradient, b, high[ROW]);
            });
        }
        unrolled!(ROW < R, {
            let at = tile.sums.add(ROW * tile.stride);
            _mm256_storeu_ps(at, low[ROW]);
            _mm256_storeu_ps(at.add(8), high[ROW]);
        });
    }
}
