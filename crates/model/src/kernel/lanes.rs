//! Sixteen f32 values as the machine holds them: one register, two, or an array.
//!
//! Loops over arrays of sixteen do not reliably become vector instructions when they are nested;
//! these do. Kernels are generic over [`Lanes`] and compiled once per implementation by
//! [`with_lanes`](super::dispatch::with_lanes).
#![expect(
    clippy::inline_always,
    reason = "bodies must take the features of their caller"
)]

use super::halves::HalfFormat;
use super::panels::LANES;

/// Sixteen values and the few operations on them that attention needs.
///
/// # Safety
/// The vector implementations may only be used inside functions that are compiled for, and called
/// with, their instruction set: [`with_lanes`](super::dispatch::with_lanes) sees to that.
pub(super) trait Lanes: Copy {
    /// Queries whose sums fit the registers together.
    const QUERIES: usize;

    /// Sixteen times one value.
    fn splat(value: f32) -> Self;
    /// From an array.
    fn load(from: &[f32; LANES]) -> Self;
    /// From the bits of values in f16, exactly.
    fn load_f16(from: &[u16; LANES]) -> Self;
    /// Into an array.
    fn store(self, to: &mut [f32; LANES]);
    /// `self + other`
    fn add(self, other: Self) -> Self;
    /// The larger of each.
    fn max(self, other: Self) -> Self;
    /// `self + a · b`, with one rounding where the instruction set has that.
    fn add_product(self, a: Self, b: Self) -> Self;
}

impl Lanes for [f32; LANES] {
    const QUERIES: usize = 1;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        [value; LANES]
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        *from
    }

    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        let mut to = [0.0; LANES];
        for (to, bits) in to.iter_mut().zip(from) {
            *to = HalfFormat::F16.widened(*bits);
        }
        to
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self;
    }

    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        for (a, b) in self.iter_mut().zip(other) {
            *a += b;
        }
        self
    }

    #[inline(always)]
    fn max(mut self, other: Self) -> Self {
        for (a, b) in self.iter_mut().zip(other) {
            *a = if b > *a { b } else { *a };
        }
        self
    }

    #[inline(always)]
    fn add_product(mut self, a: Self, b: Self) -> Self {
        for (sum, (a, b)) in self.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
        self
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![expect(
        unsafe_code,
        reason = "intrinsics of an instruction set that the caller has"
    )]

    use std::arch::x86_64::{
        __m128i, __m256, __m256i, __m512, _mm256_add_ps, _mm256_cvtph_ps, _mm256_fmadd_ps,
        _mm256_loadu_ps, _mm256_max_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_ps,
        _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_max_ps, _mm512_set1_ps,
        _mm512_storeu_ps,
    };

    use super::{LANES, Lanes};

    // SAFETY of every block below: the trait's users run on the instruction set, and the arrays
    // hold sixteen values.
    impl Lanes for __m512 {
        const QUERIES: usize = 4;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn load_f16(from: &[u16; LANES]) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_cvtph_ps(from.as_ptr().cast::<__m256i>().read_unaligned()) }
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self) }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_add_ps(self, other) }
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_max_ps(self, other) }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_fmadd_ps(a, b, self) }
        }
    }

    impl Lanes for [__m256; 2] {
        const QUERIES: usize = 1;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: as above.
            unsafe { [_mm256_set1_ps(value); 2] }
        }

        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            // SAFETY: as above.
            unsafe {
                [
                    _mm256_loadu_ps(from.as_ptr()),
                    _mm256_loadu_ps(from.as_ptr().add(8)),
                ]
            }
        }

        #[inline(always)]
        fn load_f16(from: &[u16; LANES]) -> Self {
            // SAFETY: as above.
            unsafe {
                [
                    _mm256_cvtph_ps(from.as_ptr().cast::<__m128i>().read_unaligned()),
                    _mm256_cvtph_ps(from.as_ptr().add(8).cast::<__m128i>().read_unaligned()),
                ]
            }
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            let [low, high] = self;
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), low);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), high);
            }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            let ([a, b], [c, d]) = (self, other);
            // SAFETY: as above.
            unsafe { [_mm256_add_ps(a, c), _mm256_add_ps(b, d)] }
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            let ([a, b], [c, d]) = (self, other);
            // SAFETY: as above.
            unsafe { [_mm256_max_ps(a, c), _mm256_max_ps(b, d)] }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            let ([low, high], [a, c], [b, d]) = (self, a, b);
            // SAFETY: as above.
            unsafe { [_mm256_fmadd_ps(a, b, low), _mm256_fmadd_ps(c, d, high)] }
        }
    }
}
