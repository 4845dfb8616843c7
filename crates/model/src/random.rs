//! A counter-based random generator: every value is a function of its key and index alone, so that
//! a resumed run and a batch of any composition draw the same numbers.

use std::f64::consts::TAU;

/// The finaliser of `SplitMix64` (Steele, Lea, Flood 2014): a bijection with full avalanche.
#[inline]
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of numbers addressed by index.
#[derive(Debug, Clone, Copy)]
pub struct Stream(u64);

impl Stream {
    /// The stream of a seed and of what it is used for, for example `[step, layer, module]`.
    pub fn new(seed: u64, words: &[u64]) -> Self {
        let start = mix(seed.wrapping_add(GOLDEN));
        Self(words.iter().fold(start, |key, word| {
            mix(key.wrapping_add(GOLDEN) ^ mix(word.wrapping_add(GOLDEN)))
        }))
    }

    /// What the bits are made from besides their index.
    pub const fn key(self) -> u64 {
        self.0
    }

    /// 64 random bits.
    #[inline]
    pub const fn bits(self, index: u64) -> u64 {
        mix(self
            .0
            .wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// Uniform in `[0, 1)`, 53 bits.
    #[inline]
    pub const fn uniform(self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller from two uniform numbers per index.
    pub fn normal(self, index: u64) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform(2 * index)).ln()).sqrt();
        radius * (TAU * self.uniform(2 * index + 1)).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_distribution() {
        let stream = Stream::new(7, &[1, 2]);
        let n = 20_000_u64;
        let mean = (0..n).map(|i| stream.uniform(i)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        let normal: Vec<f64> = (0..n).map(|i| stream.normal(i)).collect();
        let mean = normal.iter().sum::<f64>() / n as f64;
        let variance = normal.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05,
            "{mean} {variance}"
        );
    }

    #[test]
    fn keys_separate_streams() {
        let a = Stream::new(7, &[1, 2]);
        assert_ne!(a.bits(0), Stream::new(7, &[2, 1]).bits(0));
        assert_ne!(a.bits(0), Stream::new(8, &[1, 2]).bits(0));
        assert_eq!(a.bits(3), Stream::new(7, &[1, 2]).bits(3));
    }
}
