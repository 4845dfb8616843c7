//! Tiles in AVX-512F: a panel is one register.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use std::ffi::c_void;

use std::arch::x86_64::{
    __m256i, __m512, __mmask16, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
    _mm512_storeu_ps,
};

use super::blocked::BlockTile;
use super::dispatch::unrolled;
use super::halves::HalfFormat;
use super::outer::OuterTile;
use super::panels::LANES;
use super::product::numbers::{BF16, F16, SINGLE};
use super::product::{Epilogue, Tile};

/// Rows of a full tile: 12 × 2 sums, two weights and one input fill 27 of 32 registers.
pub(super) const ROWS: usize = 12;

/// Panels beside each other, of so many that are left: few rows take more, so that enough chains hide the latency.
pub(super) fn panels(rows: usize, left: usize) -> usize {
    match (rows, left) {
        (1 | 2, 8..) => 8,
        (1..=6, 4..) => 4,
        (1..=6, 3) => 3,
        (_, 2..) => 2,
        _ => 1,
    }
}

/// Computes one tile.
///
/// # Safety
/// The machine has AVX-512F; `tile` addresses `rows` rows and `panels` panels.
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
    choose!(
        1 x 1, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1,
        1 x 2, 2 x 2, 3 x 2, 4 x 2, 5 x 2, 6 x 2, 7 x 2, 8 x 2, 9 x 2, 10 x 2, 11 x 2, 12 x 2,
        1 x 3, 2 x 3, 3 x 3, 4 x 3, 5 x 3, 6 x 3, 1 x 4, 2 x 4, 3 x 4, 4 x 4, 5 x 4, 6 x 4, 1 x 8, 2 x 8
    );
}

/// Lanes of panel `p` that exist.
#[expect(
    clippy::inline_always,
    reason = "takes the vector features of its caller"
)]
#[inline(always)]
fn mask(columns: usize, p: usize) -> __mmask16 {
    let left = columns.saturating_sub(p * LANES).min(LANES);
    ((1_u32 << left) - 1) as __mmask16
}

/// Sixteen weights.
///
/// # Safety
/// Line `line` from `w` on is there, of numbers that are `HALF`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load<const HALF: u8>(w: *const c_void, line: usize) -> __m512 {
    if HALF == SINGLE {
        // SAFETY: the caller's promise.
        return unsafe { _mm512_loadu_ps(w.cast::<f32>().add(line * LANES)) };
    }
    // SAFETY: the caller's promise; lines of halves are aligned to their 32 bytes.
    let bits = unsafe { *w.cast::<__m256i>().add(line) };
    if HALF == BF16 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
    } else {
        _mm512_cvtph_ps(bits)
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn product_tile<const R: usize, const P: usize, const HALF: u8>(tile: &Tile) {
    let (k, x_stride) = (tile.inputs, tile.x_stride);
    let mut sums = [[_mm512_setzero_ps(); P]; R];
    for i in 0..k {
        let mut weights = [_mm512_setzero_ps(); P];
        unrolled!(PANEL < P, {
            // SAFETY: each panel holds k lines.
            weights[PANEL] = unsafe { load::<HALF>(tile.w, PANEL * k + i) };
        });
        unrolled!(ROW < R, {
            // SAFETY: each row holds k values.
            let input = _mm512_set1_ps(unsafe { *tile.x.add(ROW * x_stride + i) });
            unrolled!(PANEL < P, {
                sums[ROW][PANEL] = _mm512_fmadd_ps(input, weights[PANEL], sums[ROW][PANEL]);
            });
        });
    }
    unrolled!(ROW < R, {
        unrolled!(PANEL < P, {
            // SAFETY: the row and its columns are there.
            unsafe {
                let at = tile.y.add(ROW * tile.stride + PANEL * LANES);
                finish_lanes(
                    sums[ROW][PANEL],
                    at,
                    mask(tile.columns, PANEL),
                    tile.epilogue,
                );
            }
        });
    });
}

/// Applies the epilogue to sixteen outputs.
///
/// # Safety
/// Lanes of the mask lie inside the output.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn finish_lanes(sum: __m512, at: *mut f32, mask: __mmask16, epilogue: Epilogue) {
    // SAFETY: the caller's promise.
    unsafe {
        let value = match epilogue {
            Epilogue::Store => sum,
            Epilogue::Add => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), sum),
            Epilogue::AddScaled(scale) => _mm512_add_ps(
                _mm512_maskz_loadu_ps(mask, at),
                _mm512_mul_ps(_mm512_set1_ps(scale), sum),
            ),
        };
        _mm512_mask_storeu_ps(at, mask, value);
    }
}

/// Computes one tile of one block, [`ROWS`] high.
///
/// # Safety
/// The machine has AVX-512F; `tile` addresses what its fields say, for `panels` panels.
pub(super) unsafe fn run_block(panels: usize, tile: &BlockTile) {
    // SAFETY: the caller's promise.
    unsafe {
        match (panels, tile.half) {
            (2, None) => block_tile::<ROWS, 2, SINGLE>(tile),
            (2, Some(HalfFormat::Bf16)) => block_tile::<ROWS, 2, BF16>(tile),
            (2, Some(HalfFormat::F16)) => block_tile::<ROWS, 2, F16>(tile),
            (_, None) => block_tile::<ROWS, 1, SINGLE>(tile),
            (_, Some(HalfFormat::Bf16)) => block_tile::<ROWS, 1, BF16>(tile),
            (_, Some(HalfFormat::F16)) => block_tile::<ROWS, 1, F16>(tile),
        }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn block_tile<const R: usize, const P: usize, const HALF: u8>(tile: &BlockTile) {
    let mut sums = [[_mm512_setzero_ps(); P]; R];
    // SAFETY: the caller's promise covers the sums, the lines of every panel and the inputs of every line.
    unsafe {
        if !tile.first {
            unrolled!(ROW < R, {
                unrolled!(PANEL < P, {
                    sums[ROW][PANEL] = _mm512_loadu_ps(tile.sums.add((ROW * P + PANEL) * LANES));
                });
            });
        }
        let mut x = tile.x;
        for line in 0..tile.depth {
            let mut weights = [_mm512_setzero_ps(); P];
            unrolled!(PANEL < P, {
                weights[PANEL] = load::<HALF>(tile.w, PANEL * tile.inputs + line);
            });
            unrolled!(ROW < R, {
                let input = _mm512_set1_ps(*x.add(ROW));
                unrolled!(PANEL < P, {
                    sums[ROW][PANEL] = _mm512_fmadd_ps(input, weights[PANEL], sums[ROW][PANEL]);
                });
            });
            x = x.add(R);
        }
    }
    let Some(epilogue) = tile.epilogue else {
        unrolled!(ROW < R, {
            unrolled!(PANEL < P, {
                // SAFETY: the caller's promise for the sums.
                unsafe {
                    let at = tile.sums.add((ROW * P + PANEL) * LANES);
                    _mm512_storeu_ps(at, sums[ROW][PANEL]);
                }
            });
        });
        return;
    };
    unrolled!(ROW < R, {
        if ROW < tile.rows {
            unrolled!(PANEL < P, {
                // SAFETY: the row and its columns are there.
                unsafe {
                    let at = tile.y.add(ROW * tile.stride + PANEL * LANES);
                    finish_lanes(sums[ROW][PANEL], at, mask(tile.columns, PANEL), epilogue);
                }
            });
        }
    });
}

/// Adds one tile of `gᵀ · x` to its sums.
///
/// # Safety
/// The machine has AVX-512F; `tile` addresses `outputs` outputs by `panels` registers of columns.
pub(super) unsafe fn outer(outputs: usize, panels: usize, tile: &OuterTile) {
    macro_rules! choose {
        ($($rows:literal)*) => {
            match (outputs, panels) {
                // SAFETY: the caller's promise.
                $(($rows, 1) => unsafe { outer_tile::<$rows, 1>(tile) },
                ($rows, 2) => unsafe { outer_tile::<$rows, 2>(tile) },)*
                _ => unreachable!("no tile of {outputs} outputs by {panels} registers"),
            }
        };
    }
    choose!(1 2 3 4 5 6 7 8 9 10 11 12);
}

#[target_feature(enable = "avx512f")]
unsafe fn outer_tile<const R: usize, const P: usize>(tile: &OuterTile) {
    let mut sums = [[_mm512_setzero_ps(); P]; R];
    // SAFETY: the caller's promise covers every register of every output and row below.
    unsafe {
        unrolled!(ROW < R, {
            unrolled!(PANEL < P, {
                let at = tile.sums.add(ROW * tile.stride + PANEL * LANES);
                sums[ROW][PANEL] = _mm512_loadu_ps(at);
            });
        });
        for t in 0..tile.rows {
            let mut inputs = [_mm512_setzero_ps(); P];
            unrolled!(PANEL < P, {
                inputs[PANEL] = _mm512_loadu_ps(tile.x.add(t * tile.x_stride + PANEL * LANES));
            });
            unrolled!(ROW < R, {
                let gradient = _mm512_set1_ps(*tile.g.add(t * tile.g_stride + ROW));
                unrolled!(PANEL < P, {
                    sums[ROW][PANEL] = _mm512_fmadd_ps(gradient, inputs[PANEL], sums[ROW][PANEL]);
                });
            });
        }
        unrolled!(ROW < R, {
            unrolled!(PANEL < P, {
                let at = tile.sums.add(ROW * tile.stride + PANEL * LANES);
                _mm512_storeu_ps(at, sums[ROW][PANEL]);
            });
        });
    }
}
