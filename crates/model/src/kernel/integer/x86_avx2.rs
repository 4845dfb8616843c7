//! Tiles in AVX2 with FMA and F16C: a panel is two halves of eight outputs, one after the other.
#![expect(unsafe_code, reason = "vector loads through pointers")]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_srli_si128, _mm256_abs_epi8, _mm256_add_epi32, _mm256_and_si256,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8,
    _mm256_srli_epi32, _mm256_storeu_ps, _mm256_xor_si256,
};

use super::super::ahead::Paced;
use super::super::dispatch::unrolled;
use super::super::panels::LANES;
use super::panels::Kind;
use super::{Group, IntegerTile, paced};

/// Computes one tile.
///
/// # Safety
/// The machine has AVX2, FMA and F16C; `tile` has `rows` rows and a whole panel.
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
    choose!(1 2 4);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn eight<const R: usize>(tile: &IntegerTile<'_>) {
    let (quants, scales) = (tile.parts.quants.as_ptr(), tile.parts.scales.as_ptr());
    let (x, groups) = (tile.x.as_ptr(), tile.groups);
    let (zero, ones) = (_mm256_set1_epi8(-128), _mm256_set1_epi16(1));
    let mut halves = [[_mm256_setzero_ps(); R]; 2];
    let mut soon = paced(&tile.soon, 2 * groups);
    tile.ask_for_outputs::<R, 1>();
    for (half, out) in halves.iter_mut().enumerate() {
        let mut sums = [_mm256_setzero_ps(); R];
        for g in 0..groups {
            soon.iter_mut().for_each(Paced::ask);
            // Here from 0: what stands for 0 is taken off each weight.
            let mut dots = [_mm256_setzero_si256(); R];
            for quad in 0..8 {
                // SAFETY: each group has eight lines of two halves.
                let weight = unsafe { *quants.add(g * 8 + quad).cast::<__m256i>().add(half) };
                let weight = _mm256_xor_si256(weight, zero);
                // Products of unsigned by signed bytes: two of them, 2 · 128 · 127, fit 16 bits.
                let size = _mm256_abs_epi8(weight);
                unrolled!(ROW < R, {
                    // SAFETY: each row has so many groups of eight quads.
                    let input = unsafe { input(x.add(ROW * groups + g), quad) };
                    let signed = _mm256_sign_epi8(_mm256_set1_epi32(input), weight);
                    let pairs = _mm256_maddubs_epi16(size, signed);
                    dots[ROW] = _mm256_add_epi32(dots[ROW], _mm256_madd_epi16(pairs, ones));
                });
            }
            // SAFETY: each group has scales, two halves.
            let scale = _mm256_cvtph_ps(unsafe { *scales.add(g).cast::<__m128i>().add(half) });
            unrolled!(ROW < R, {
                // SAFETY: as above.
                let own = _mm256_set1_ps(unsafe { (*x.add(ROW * groups + g)).scale });
                let dot = _mm256_cvtepi32_ps(dots[ROW]);
                sums[ROW] = _mm256_fmadd_ps(dot, _mm256_mul_ps(scale, own), sums[ROW]);
            });
        }
        *out = sums;
    }
    // SAFETY: the caller's promise.
    unsafe { store(tile, &halves) };
}

/// 4 bits, with minima or without.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four<const R: usize, const MINIMUM: bool>(tile: &IntegerTile<'_>) {
    let (quants, scales) = (tile.parts.quants.as_ptr(), tile.parts.scales.as_ptr());
    let minors = tile.parts.minors.as_ptr();
    let (x, groups) = (tile.x.as_ptr(), tile.groups);
    let (mask, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut halves = [[_mm256_setzero_ps(); R]; 2];
    let mut soon = paced(&tile.soon, 2 * groups);
    tile.ask_for_outputs::<R, 1>();
    for (half, out) in halves.iter_mut().enumerate() {
        let mut sums = [_mm256_setzero_ps(); R];
        for g in 0..groups {
            soon.iter_mut().for_each(Paced::ask);
            let mut dots = [_mm256_setzero_si256(); R];
            unrolled!(ROW < R, {
                // SAFETY: each row has so many groups.
                dots[ROW] = _mm256_set1_epi32(unsafe { (*x.add(ROW * groups + g)).start });
            });
            for quad in 0..4 {
                // SAFETY: each group has four lines of two halves.
                let both = unsafe { *quants.add(g * 4 + quad).cast::<__m256i>().add(half) };
                let low = _mm256_and_si256(both, mask);
                let high = _mm256_and_si256(_mm256_srli_epi32::<4>(both), mask);
                unrolled!(ROW < R, {
                    // SAFETY: as above, and a group has eight quads.
                    let (first, second) = unsafe {
                        let group = x.add(ROW * groups + g);
                        (input(group, quad), input(group, quad + 4))
                    };
                    let first = _mm256_maddubs_epi16(low, _mm256_set1_epi32(first));
                    let second = _mm256_maddubs_epi16(high, _mm256_set1_epi32(second));
                    dots[ROW] = _mm256_add_epi32(dots[ROW], _mm256_madd_epi16(first, ones));
                    dots[ROW] = _mm256_add_epi32(dots[ROW], _mm256_madd_epi16(second, ones));
                });
            }
            if MINIMUM {
                // SAFETY: every eight groups have two lines of scales, each of two halves, and each
                // group has minor ones.
                let (major, base, scale, minimum) = unsafe {
                    let major = scales.add(g / 8 * 2).cast::<__m128i>().add(half);
                    let minor = minors.add(g).cast::<__m128i>();
                    (*major, *major.add(2), *minor, *minor.add(1))
                };
                let scale = _mm256_mul_ps(_mm256_cvtph_ps(major), eight_of(scale, half));
                let minimum = _mm256_mul_ps(_mm256_cvtph_ps(base), eight_of(minimum, half));
                unrolled!(ROW < R, {
                    // SAFETY: as above.
                    let (own, weighted) = unsafe {
                        let group = x.add(ROW * groups + g);
                        ((*group).scale, (*group).weighted)
                    };
                    let dot = _mm256_cvtepi32_ps(dots[ROW]);
                    let scale = _mm256_mul_ps(scale, _mm256_set1_ps(own));
                    let sum = _mm256_fmadd_ps(dot, scale, sums[ROW]);
                    sums[ROW] = _mm256_fnmadd_ps(minimum, _mm256_set1_ps(weighted), sum);
                });
            } else {
                // SAFETY: each group has scales, two halves.
                let scale = _mm256_cvtph_ps(unsafe { *scales.add(g).cast::<__m128i>().add(half) });
                unrolled!(ROW < R, {
                    // SAFETY: as above.
                    let own = _mm256_set1_ps(unsafe { (*x.add(ROW * groups + g)).scale });
                    let dot = _mm256_cvtepi32_ps(dots[ROW]);
                    sums[ROW] = _mm256_fmadd_ps(dot, _mm256_mul_ps(scale, own), sums[ROW]);
                });
            }
        }
        *out = sums;
    }
    // SAFETY: the caller's promise.
    unsafe { store(tile, &halves) };
}

/// Half of sixteen bytes as numbers.
#[target_feature(enable = "avx2")]
#[inline]
fn eight_of(bytes: __m128i, half: usize) -> __m256 {
    let bytes = if half == 0 {
        bytes
    } else {
        _mm_srli_si128::<8>(bytes)
    };
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
}

/// Writes both halves of every row.
///
/// # Safety
/// The tile has `R` rows.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store<const R: usize>(tile: &IntegerTile<'_>, [low, high]: &[[__m256; R]; 2]) {
    for (row, (low, high)) in low.iter().zip(high).enumerate() {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: `lanes` holds two registers; the tile has this row.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), *low);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), *high);
            tile.finish(row, 0, &lanes);
        }
    }
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
