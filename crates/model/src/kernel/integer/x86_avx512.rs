//! Tiles in AVX-512: a panel is one register, and `vpdpbusd` adds four products to each lane.
#![expect(unsafe_code, reason = "vector loads through pointers")]

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
    _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_mul_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_srli_epi32,
    _mm512_storeu_ps,
};

use super::super::dispatch::unrolled;
use super::super::panels::LANES;
use super::panels::{Kind, Minor};
use super::{Group, IntegerTile};

/// Computes one tile.
///
/// # Safety
/// The machine has AVX-512F and AVX-512 VNNI; `tile` has `rows` rows and a whole panel.
pub(super) unsafe fn run(rows: usize, tile: &IntegerTile<'_>) {
    macro_rules! choose {
        ($($rows:literal)*) => {
            // SAFETY: the caller's promise.
            unsafe {
                match (rows, tile.kind) {
                    $(($rows, Kind::Eight) => eight::<$rows>(tile),
                    ($rows, Kind::Four) => four::<$rows, false>(tile),
                    ($rows, Kind::FourWithMinimum) => four::<$rows, true>(tile),)*
                    _ => unreachable!("no tile of {rows} rows"),
                }
            }
        };
    }
    choose!(1 2 3 4 6 8 12);
}

/// 8 bits: 12 × 2 sums, one weight, one scale and one input fill 27 of 32 registers.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn eight<const R: usize>(tile: &IntegerTile<'_>) {
    let (quants, scales) = (tile.parts.quants.as_ptr(), tile.parts.scales.as_ptr());
    let (x, groups) = (tile.x.as_ptr(), tile.groups);
    let mut sums = [_mm512_setzero_ps(); R];
    for g in 0..groups {
        let mut dots = [_mm512_set1_epi32(0); R];
        unrolled!(ROW < R, {
            // SAFETY: each row has so many groups.
            dots[ROW] = _mm512_set1_epi32(unsafe { (*x.add(ROW * groups + g)).start });
        });
        for quad in 0..8 {
            // SAFETY: each group has eight lines.
            let weight = unsafe { *quants.add(g * 8 + quad).cast::<__m512i>() };
            unrolled!(ROW < R, {
                // SAFETY: as above, and a group has eight quads.
                let input = _mm512_set1_epi32(unsafe { input(x.add(ROW * groups + g), quad) });
                dots[ROW] = _mm512_dpbusd_epi32(dots[ROW], weight, input);
            });
        }
        // SAFETY: each group has scales.
        let scale = _mm512_cvtph_ps(unsafe { *scales.add(g).cast::<__m256i>() });
        unrolled!(ROW < R, {
            // SAFETY: as above.
            let own = _mm512_set1_ps(unsafe { (*x.add(ROW * groups + g)).scale });
            let dot = _mm512_cvtepi32_ps(dots[ROW]);
            sums[ROW] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, own), sums[ROW]);
        });
    }
    unrolled!(ROW < R, {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: `lanes` holds one register; the tile has this row.
        unsafe {
            _mm512_storeu_ps(lanes.as_mut_ptr(), sums[ROW]);
            tile.finish(ROW, &lanes);
        }
    });
}

/// 4 bits, with minima or without.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn four<const R: usize, const MINIMUM: bool>(tile: &IntegerTile<'_>) {
    let (quants, scales) = (tile.parts.quants.as_ptr(), tile.parts.scales.as_ptr());
    let minors = tile.parts.minors.as_ptr();
    let (x, groups) = (tile.x.as_ptr(), tile.groups);
    let mask = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_ps(); R];
    for g in 0..groups {
        let mut dots = [_mm512_set1_epi32(0); R];
        unrolled!(ROW < R, {
            // SAFETY: each row has so many groups.
            dots[ROW] = _mm512_set1_epi32(unsafe { (*x.add(ROW * groups + g)).start });
        });
        for quad in 0..4 {
            // SAFETY: each group has four lines.
            let both = unsafe { *quants.add(g * 4 + quad).cast::<__m512i>() };
            let low = _mm512_and_si512(both, mask);
            let high = _mm512_and_si512(_mm512_srli_epi32::<4>(both), mask);
            unrolled!(ROW < R, {
                // SAFETY: as above, and a group has eight quads.
                let (first, second) = unsafe {
                    let group = x.add(ROW * groups + g);
                    (input(group, quad), input(group, quad + 4))
                };
                let dot = _mm512_dpbusd_epi32(dots[ROW], low, _mm512_set1_epi32(first));
                dots[ROW] = _mm512_dpbusd_epi32(dot, high, _mm512_set1_epi32(second));
            });
        }
        if MINIMUM {
            // SAFETY: every eight groups have two lines of scales, each group has minor ones.
            let (major, base, scale, minimum) = unsafe {
                let major = scales.add(g / 8 * 2).cast::<__m256i>();
                let [scale, minimum] = minor(minors.add(g));
                (*major, *major.add(1), scale, minimum)
            };
            let scale = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(scale));
            let minimum = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(minimum));
            let scale = _mm512_mul_ps(_mm512_cvtph_ps(major), scale);
            let minimum = _mm512_mul_ps(_mm512_cvtph_ps(base), minimum);
            unrolled!(ROW < R, {
                // SAFETY: as above.
                let (own, weighted) = unsafe {
                    let group = x.add(ROW * groups + g);
                    ((*group).scale, (*group).weighted)
                };
                let dot = _mm512_cvtepi32_ps(dots[ROW]);
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(own));
                let sum = _mm512_fmadd_ps(dot, scale, sums[ROW]);
                sums[ROW] = _mm512_fnmadd_ps(minimum, _mm512_set1_ps(weighted), sum);
            });
        } else {
            // SAFETY: each group has scales.
            let scale = _mm512_cvtph_ps(unsafe { *scales.add(g).cast::<__m256i>() });
            unrolled!(ROW < R, {
                // SAFETY: as above.
                let own = _mm512_set1_ps(unsafe { (*x.add(ROW * groups + g)).scale });
                let dot = _mm512_cvtepi32_ps(dots[ROW]);
                sums[ROW] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, own), sums[ROW]);
            });
        }
    }
    unrolled!(ROW < R, {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: `lanes` holds one register; the tile has this row.
        unsafe {
            _mm512_storeu_ps(lanes.as_mut_ptr(), sums[ROW]);
            tile.finish(ROW, &lanes);
        }
    });
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
