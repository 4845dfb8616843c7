//! Tiles in AVX-512: a panel is one register, and `vpdpbusd` adds four products to each lane.
#![expect(unsafe_code, reason = "vector loads through pointers")]

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
    _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_mul_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_srli_epi32,
    _mm512_storeu_ps,
};

use super::super::ahead::Paced;
use super::super::dispatch::unrolled;
use super::super::panels::LANES;
use super::panels::{Kind, Minor};
use super::{Group, IntegerTile, paced};

/// Computes one tile.
///
/// # Safety
/// The machine has AVX-512F and AVX-512 VNNI; `tile` has `rows` rows and `panels` whole panels.
pub(super) unsafe fn run(rows: usize, panels: usize, tile: &IntegerTile<'_>) {
    macro_rules! choose {
        ($($rows:literal x $panels:literal),*) => {
            // SAFETY: the caller's promise.
            unsafe {
                match (rows, panels, tile.kind) {
                    $(($rows, $panels, Kind::Eight) => eight::<$rows, $panels>(tile),
                    ($rows, $panels, Kind::Four) => four::<$rows, $panels, false>(tile),
                    ($rows, $panels, Kind::FourWithMinimum) => four::<$rows, $panels, true>(tile),)*
                    _ => unreachable!("no tile of {rows} rows by {panels} panels"),
                }
            }
        };
    }
    choose!(
        1 x 1, 2 x 1, 3 x 1, 4 x 1, 6 x 1,
        1 x 2, 2 x 2, 3 x 2, 4 x 2, 6 x 2
    );
}

/// Four inputs of every lane; eight of them are a group.
const QUADS: usize = 8;
/// Lines of a group in 4 bits.
const PAIRS: usize = 4;

/// Where each row's groups begin.
///
/// # Safety
/// The tile has `R` rows.
#[expect(
    clippy::inline_always,
    reason = "takes the vector features of its caller"
)]
#[inline(always)]
unsafe fn row_starts<const R: usize>(tile: &IntegerTile<'_>) -> [*const Group; R] {
    let mut starts = [tile.x.as_ptr(); R];
    for (row, start) in starts.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *start = unsafe { start.add(row * tile.groups) };
    }
    starts
}

/// Writes every row in every panel.
///
/// # Safety
/// The tile has `R` rows and `P` panels.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store<const R: usize, const P: usize>(tile: &IntegerTile<'_>, sums: &[[__m512; P]; R]) {
    for (row, sums) in sums.iter().enumerate() {
        for (panel, sum) in sums.iter().enumerate() {
            let mut lanes = [0.0_f32; LANES];
            // SAFETY: `lanes` holds one register; the tile has this row and this panel.
            unsafe {
                _mm512_storeu_ps(lanes.as_mut_ptr(), *sum);
                tile.finish(row, panel, &lanes);
            }
        }
    }
}

/// 8 bits: 6 × 2 sums, as many dot products, two weights and one input fill 27 of 32 registers. Two panels by six
/// rows take eight loads for twelve products, where one panel by twelve rows took thirteen.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn eight<const R: usize, const P: usize>(tile: &IntegerTile<'_>) {
    let groups = tile.groups;
    let (quants, scales) = (tile.parts.quants.as_ptr(), tile.parts.scales.as_ptr());
    // SAFETY: the caller's promise.
    let rows = unsafe { row_starts::<R>(tile) };
    let mut sums = [[_mm512_setzero_ps(); P]; R];
    let mut soon = paced(&tile.soon, groups);
    tile.ask_for_outputs::<R, P>();
    for g in 0..groups {
        soon.iter_mut().for_each(Paced::ask);
        let mut dots = [[_mm512_set1_epi32(0); P]; R];
        unrolled!(ROW < R of 6, {
            // SAFETY: each row has so many groups.
            dots[ROW] = [_mm512_set1_epi32(unsafe { (*rows[ROW].wrapping_add(g)).start }); P];
        });
        let lines = quants.wrapping_add(g * QUADS).cast::<__m512i>();
        unrolled!(QUAD < QUADS of 8, {
            let mut weights = [_mm512_set1_epi32(0); P];
            unrolled!(PANEL < P of 2, {
                // SAFETY: each group of each panel has eight lines.
                weights[PANEL] = unsafe { *lines.wrapping_add(PANEL * groups * QUADS + QUAD) };
            });
            unrolled!(ROW < R of 6, {
                // SAFETY: as above, and a group has eight quads.
                let input = _mm512_set1_epi32(unsafe { input(rows[ROW].wrapping_add(g), QUAD) });
                unrolled!(PANEL < P of 2, {
                    dots[ROW][PANEL] = _mm512_dpbusd_epi32(dots[ROW][PANEL], weights[PANEL], input);
                });
            });
        });
        let mut scale = [_mm512_setzero_ps(); P];
        unrolled!(PANEL < P of 2, {
            // SAFETY: each group of each panel has scales.
            let bits = unsafe { *scales.wrapping_add(PANEL * groups + g).cast::<__m256i>() };
            scale[PANEL] = _mm512_cvtph_ps(bits);
        });
        unrolled!(ROW < R of 6, {
            // SAFETY: as above.
            let own = _mm512_set1_ps(unsafe { (*rows[ROW].wrapping_add(g)).scale });
            unrolled!(PANEL < P of 2, {
                let dot = _mm512_cvtepi32_ps(dots[ROW][PANEL]);
                let scale = _mm512_mul_ps(scale[PANEL], own);
                sums[ROW][PANEL] = _mm512_fmadd_ps(dot, scale, sums[ROW][PANEL]);
            });
        });
    }
    // SAFETY: the caller's promise.
    unsafe { store(tile, &sums) };
}

/// 4 bits, with minima or without. A line's two halves are multiplied one after the other, so that the registers
/// hold them.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn four<const R: usize, const P: usize, const MINIMUM: bool>(tile: &IntegerTile<'_>) {
    let groups = tile.groups;
    let (quants, scales) = (tile.parts.quants.as_ptr(), tile.parts.scales.as_ptr());
    let minors = tile.parts.minors.as_ptr();
    let mask = _mm512_set1_epi8(15);
    // SAFETY: the caller's promise.
    let rows = unsafe { row_starts::<R>(tile) };
    let mut sums = [[_mm512_setzero_ps(); P]; R];
    let mut soon = paced(&tile.soon, groups);
    tile.ask_for_outputs::<R, P>();
    for g in 0..groups {
        soon.iter_mut().for_each(Paced::ask);
        let mut dots = [[_mm512_set1_epi32(0); P]; R];
        unrolled!(ROW < R of 6, {
            // SAFETY: each row has so many groups.
            dots[ROW] = [_mm512_set1_epi32(unsafe { (*rows[ROW].wrapping_add(g)).start }); P];
        });
        let lines = quants.wrapping_add(g * PAIRS).cast::<__m512i>();
        unrolled!(QUAD < QUADS of 8, {
            let mut weights = [_mm512_set1_epi32(0); P];
            unrolled!(PANEL < P of 2, {
                // SAFETY: each group of each panel has four lines, of two quads each.
                let both = unsafe { *lines.wrapping_add(PANEL * groups * PAIRS + QUAD % PAIRS) };
                let own = if QUAD < PAIRS {
                    both
                } else {
                    _mm512_srli_epi32::<4>(both)
                };
                weights[PANEL] = _mm512_and_si512(own, mask);
            });
            unrolled!(ROW < R of 6, {
                // SAFETY: as above, and a group has eight quads.
                let input = _mm512_set1_epi32(unsafe { input(rows[ROW].wrapping_add(g), QUAD) });
                unrolled!(PANEL < P of 2, {
                    dots[ROW][PANEL] = _mm512_dpbusd_epi32(dots[ROW][PANEL], weights[PANEL], input);
                });
            });
        });
        let (mut scale, mut minimum) = ([_mm512_setzero_ps(); P], [_mm512_setzero_ps(); P]);
        unrolled!(PANEL < P of 2, {
            if MINIMUM {
                // SAFETY: every eight groups have two lines of scales, each group has minor ones.
                let (major, base, own, least) = unsafe {
                    let number = PANEL * (groups / 8 * 2) + g / 8 * 2;
                    let major = scales.wrapping_add(number).cast::<__m256i>();
                    let [own, least] = minor(minors.wrapping_add(PANEL * groups + g));
                    (*major, *major.wrapping_add(1), own, least)
                };
                let own = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(own));
                let least = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(least));
                scale[PANEL] = _mm512_mul_ps(_mm512_cvtph_ps(major), own);
                minimum[PANEL] = _mm512_mul_ps(_mm512_cvtph_ps(base), least);
            } else {
                // SAFETY: each group of each panel has scales.
                let bits = unsafe { *scales.wrapping_add(PANEL * groups + g).cast::<__m256i>() };
                scale[PANEL] = _mm512_cvtph_ps(bits);
            }
        });
        unrolled!(ROW < R of 6, {
            // SAFETY: as above.
            let (own, weighted) = unsafe {
                let group = rows[ROW].wrapping_add(g);
                ((*group).scale, (*group).weighted)
            };
            let (own, weighted) = (_mm512_set1_ps(own), _mm512_set1_ps(weighted));
            unrolled!(PANEL < P of 2, {
                let dot = _mm512_cvtepi32_ps(dots[ROW][PANEL]);
                let scale = _mm512_mul_ps(scale[PANEL], own);
                let sum = _mm512_fmadd_ps(dot, scale, sums[ROW][PANEL]);
                sums[ROW][PANEL] = if MINIMUM {
                    _mm512_fnmadd_ps(minimum[PANEL], weighted, sum)
                } else {
                    sum
                };
            });
        });
    }
    // SAFETY: the caller's promise.
    unsafe { store(tile, &sums) };
}

/// Four inputs of a group.
///
/// # Safety
/// `group` is there, `quad` is below eight.
#[expect(
    clippy::inline_always,
    reason = "takes the vector features of its caller"
)]
#[inline(always)]
unsafe fn input(group: *const Group, quad: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { *(&raw const (*group).quads).cast::<i32>().add(quad) }
}

/// Sixteen scales and sixteen minima of a group.
///
/// # Safety
/// `minor` is there.
#[expect(
    clippy::inline_always,
    reason = "takes the vector features of its caller"
)]
#[inline(always)]
unsafe fn minor(minor: *const Minor) -> [__m128i; 2] {
    let both = minor.cast::<__m128i>();
    // SAFETY: the caller's promise: two times sixteen bytes.
    unsafe { [*both, *both.add(1)] }
}
