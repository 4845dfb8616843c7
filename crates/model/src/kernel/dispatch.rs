//! Which instructions this machine has.

/// The instruction sets that the kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512F: sixteen lanes, fused multiply-add.
    Avx512,
    /// AVX2, FMA and F16C: eight lanes, fused multiply-add.
    Avx2,
    /// What the compiler makes of plain loops; multiply and add round separately.
    Portable,
}

impl Isa {
    /// The best set of this machine. The standard library caches the answer.
    #[inline]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// A stable name, for logs and for a checkpoint's fingerprint.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512f",
            Self::Avx2 => "avx2+fma",
            Self::Portable => "portable",
        }
    }
}

/// Compiles a plain function once per instruction set and calls the best one.
///
/// The body is the same Rust for all, without fused multiply-add, so that the bits are the same
/// too; only the width of the vectors that the compiler chooses differs.
macro_rules! vectorized {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::kernel::Isa::detect() {
                    #[expect(unsafe_code, reason = "needs the instruction set to be there")]
                    // SAFETY: `detect` has seen these features on this machine.
                    $crate::kernel::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    #[expect(unsafe_code, reason = "needs the instruction set to be there")]
                    // SAFETY: `detect` has seen these features on this machine.
                    $crate::kernel::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernel::Isa::Portable => {}
                }
            }
            body($($arg),*)
        }
    )*};
}
pub(crate) use vectorized;

/// Calls a function that is generic over [`Lanes`](super::lanes::Lanes), compiled for the best
/// instruction set.
macro_rules! with_lanes {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use std::arch::x86_64::{__m256, __m512};
                #[target_feature(enable = "avx512f,avx512dq")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body::<__m512>($($arg),*) }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body::<[__m256; 2]>($($arg),*) }
                match $crate::kernel::Isa::detect() {
                    #[expect(unsafe_code, reason = "needs the instruction set to be there")]
                    // SAFETY: `detect` has seen these features on this machine.
                    $crate::kernel::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    #[expect(unsafe_code, reason = "needs the instruction set to be there")]
                    // SAFETY: `detect` has seen these features on this machine.
                    $crate::kernel::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernel::Isa::Portable => {}
                }
            }
            $body::<[f32; $crate::kernel::LANES]>($($arg),*)
        }
    };
}
pub(crate) use with_lanes;

/// Repeats a body for `$index` from 0 to a constant bound of at most twelve, each time with a
/// constant index: arrays of registers stay in registers, which a loop does not promise. `of 2` and the like
/// spare the compiler the indices above that.
macro_rules! unrolled {
    ($index:ident < $bound:ident of 2, $body:block) => {
        unrolled!(@ $index $bound $body 0 1)
    };
    ($index:ident < $bound:ident of 6, $body:block) => {
        unrolled!(@ $index $bound $body 0 1 2 3 4 5)
    };
    ($index:ident < $bound:ident of 8, $body:block) => {
        unrolled!(@ $index $bound $body 0 1 2 3 4 5 6 7)
    };
    ($index:ident < $bound:ident, $body:block) => {
        unrolled!(@ $index $bound $body 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $index:ident $bound:ident $body:block $($i:literal)*) => {$(
        if $i < $bound {
            const $index: usize = $i;
            $body
        }
    )*};
}
#[cfg(target_arch = "x86_64")]
pub(crate) use unrolled;
