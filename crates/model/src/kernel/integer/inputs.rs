//! Inputs in 8 bits.

use rayon::prelude::*;

use super::super::dispatch::vectorized;
use super::GROUP;

/// Groups of one task: their inputs fill the nearest cache.
const TASK: usize = 256;
/// 1.5 · 2²³: added to a number of less than 2²² it leaves the nearest whole one, even where two are as
/// near, in the lowest bits.
const ROUNDER: f32 = 12_582_912.0;

/// 32 inputs of one row.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Group {
    /// The whole numbers, four in each.
    pub quads: [i32; 8],
    /// What they are multiplied with.
    pub scale: f32,
    /// Where the sum of products begins: minus the weight's zero times the sum of the whole numbers.
    pub start: i32,
    /// Scale times the sum of the whole numbers.
    pub weighted: f32,
}

/// The groups of all rows, one row behind the other. What is not finite stays so: its group's scale is not.
///
/// `zero` is the whole number that stands for 0 in the weight.
pub(super) fn quantise(x: &[f32], zero: i32) -> Vec<Group> {
    let (x, _) = x.as_chunks::<GROUP>();
    let mut groups = vec![Group::default(); x.len()];
    if x.len() <= TASK {
        quantise_groups(x, zero, &mut groups);
    } else {
        groups
            .par_chunks_mut(TASK)
            .zip(x.par_chunks(TASK))
            .for_each(|(groups, x)| quantise_groups(x, zero, groups));
    }
    groups
}

vectorized! {
    fn quantise_groups(x: &[[f32; 32]], zero: i32, groups: &mut [Group]) {
        for (x, group) in x.iter().zip(groups) {
            // As whole numbers: NaN is above infinity, and that above all others.
            let mut largest = 0_u32;
            for value in x {
                largest = largest.max(value.to_bits() & 0x7fff_ffff);
            }
            let largest = f32::from_bits(largest);
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let mut bytes = [0_u8; 32];
            let mut sum = 0_i32;
            for (byte, value) in bytes.iter_mut().zip(x) {
                *byte = (value * inverse + ROUNDER).to_bits() as u8;
                sum += i32::from(byte.cast_signed());
            }
            for (quad, bytes) in group.quads.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *quad = i32::from_le_bytes(*bytes);
            }
            group.scale = largest / 127.0;
            group.start = -zero * sum;
            group.weighted = group.scale * sum as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(group: &Group) -> Vec<i8> {
        let quads = group.quads.iter().flat_map(|quad| quad.to_le_bytes());
        quads.map(u8::cast_signed).collect()
    }

    #[test]
    fn the_largest_becomes_127_and_the_others_the_nearest_whole_number() {
        let mut x = [0.0; 64];
        (x[0], x[1], x[2], x[31]) = (-2.54, 1.26, 0.0304, 0.0504);
        (x[32], x[40]) = (127.0, 2.5);
        let groups = quantise(&x, 8);
        assert_eq!(bytes(&groups[0])[..4], [-127, 63, 2, 0]);
        assert_eq!(bytes(&groups[0])[31], 3);
        assert_eq!(groups[0].start, -8 * (-127 + 63 + 2 + 3));
        assert_eq!(bytes(&groups[1])[8], 2, "halves go to the even one");
        assert_eq!((groups[1].scale, groups[1].weighted), (1.0, 129.0));
    }

    #[test]
    fn what_is_not_finite_is_not_lost_and_nothing_is_nothing() {
        for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 32];
            x[5] = value;
            assert!(!quantise(&x, 128)[0].scale.is_finite(), "{value}");
        }
        let groups = quantise(&[0.0; 32], 128);
        assert_eq!((groups[0].scale, groups[0].start), (0.0, 0));
        assert_eq!(bytes(&groups[0]), [0; 32]);
    }

    #[test]
    fn many_rows_are_each_what_they_are_alone() {
        let x: Vec<f32> = (0..GROUP * 1000).map(|i| (i as f32 * 0.37).sin()).collect();
        let groups = quantise(&x, 128);
        for (group, x) in groups.iter().zip(x.chunks(GROUP)) {
            let alone = quantise(x, 128)[0];
            assert_eq!(group.quads, alone.quads);
            assert_eq!((group.scale, group.start), (alone.scale, alone.start));
        }
    }
}
