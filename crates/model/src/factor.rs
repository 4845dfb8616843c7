//! Factors of low-rank updates: as they come, and packed for products.

use std::borrow::Cow;

use crate::kernel::{
    Epilogue, HalfPanels, HalfWeight, IntegerPanels, Packed, Panels, RowOf, Weight,
    largest_magnitude, product_halves, product_integers, product_parallel,
};

/// What the first factors of an adapter are held in for serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FirstFactors {
    /// The numbers that they came in.
    #[default]
    AsStored,
    /// Blocks of 32 in 8 bits, as GGUF's `Q8_0`: beside a base whose products take their inputs in 8 bits.
    EightBits,
}

/// A factor's values, row-major.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FactorValues<'a> {
    /// As f32.
    Single(&'a [f32]),
    /// As bf16 or f16.
    Half(&'a HalfWeight),
}

impl<'a> FactorValues<'a> {
    fn widened(self) -> Cow<'a, [f32]> {
        match self {
            Self::Single(values) => values.into(),
            Self::Half(weight) => weight.widened().into(),
        }
    }

    /// Writes the values from one on, as many as there is room for.
    fn read(self, first: usize, to: &mut [f32]) {
        match self {
            Self::Single(values) => {
                let values = values.get(first..).unwrap_or_default();
                for (to, value) in to.iter_mut().zip(values) {
                    *to = *value;
                }
            }
            Self::Half(weight) => weight.read(first, to),
        }
    }

    /// The largest magnitude; 0 of no values.
    fn largest(self) -> f32 {
        match self {
            Self::Single(values) => largest_magnitude(values),
            Self::Half(weight) => weight.largest(),
        }
    }

    /// The first value that is infinite or NaN.
    pub fn first_not_finite(self) -> Option<usize> {
        match self {
            // Most have none, which one quick look at all of them tells.
            Self::Single(values) if largest_magnitude(values).is_finite() => None,
            Self::Single(values) => values.iter().position(|value| !value.is_finite()),
            Self::Half(weight) => weight.first_not_finite(),
        }
    }
}

/// A packed factor, or a stack of them. The products of halves have the bits of the same values in f32.
#[derive(Debug)]
pub(crate) enum FactorPanels {
    /// Blocks in 8 bits, multiplied with inputs in 8 bits.
    Eight(IntegerPanels),
    /// f32.
    Single(Panels),
    /// bf16 or f16: half of the memory.
    Half(HalfPanels),
}

impl FactorPanels {
    /// Packs a factor `[outputs, inputs]`.
    pub fn pack(values: FactorValues<'_>, outputs: usize, inputs: usize) -> Self {
        match values {
            FactorValues::Single(values) => Self::Single(Panels::pack(values, outputs, inputs)),
            FactorValues::Half(weight) => Self::Half(HalfPanels::pack(weight, outputs, inputs)),
        }
    }

    /// Packs factors with the same inputs as [`Panels::stack`] does, as f32 where they are of several formats.
    pub fn stack(factors: &[(FactorValues<'_>, usize)], inputs: usize) -> (Self, Vec<Self>) {
        let halves = factors.iter().map(|(values, outputs)| match values {
            FactorValues::Half(weight) => Some((*weight, *outputs)),
            FactorValues::Single(_) => None,
        });
        let halves: Option<Vec<(&HalfWeight, usize)>> = halves.collect();
        if let Some((stack, parts)) = halves.and_then(|halves| HalfPanels::stack(&halves, inputs)) {
            return (
                Self::Half(stack),
                parts.into_iter().map(Self::Half).collect(),
            );
        }
        let wide = factors
            .iter()
            .map(|(values, outputs)| (values.widened(), *outputs));
        let wide: Vec<(Cow<'_, [f32]>, usize)> = wide.collect();
        let slices: Vec<(&[f32], usize)> = wide
            .iter()
            .map(|(values, outputs)| (&**values, *outputs))
            .collect();
        let (stack, parts) = Panels::stack(&slices, inputs);
        (
            Self::Single(stack),
            parts.into_iter().map(Self::Single).collect(),
        )
    }

    /// Packs factors as [`Self::stack`] does, in blocks of 8 bits. None where the inputs fill no blocks.
    ///
    /// The blocks' scales are f16, too short for small values: each part has its factor's values times a power of two,
    /// and comes with what makes up for it.
    pub fn stack_in_eight_bits(
        factors: &[(FactorValues<'_>, usize)],
        inputs: usize,
    ) -> Option<(Self, Vec<(Self, f32)>)> {
        let scales = factors.iter().map(|(values, _)| near_one(values.largest()));
        let scales: Vec<f32> = scales.collect();
        let rows = factors.iter().zip(&scales).map(|((values, _), scale)| {
            move |row: usize, to: &mut [f32]| {
                values.read(row * inputs, to);
                to.iter_mut().for_each(|value| *value *= scale);
            }
        });
        let rows: Vec<_> = rows.collect();
        let weights = rows.iter().zip(factors);
        let weights = weights.map(|(row_of, (_, outputs))| (row_of as RowOf<'_>, *outputs));
        let (stack, parts) = IntegerPanels::stack(&weights.collect::<Vec<_>>(), inputs)?;
        let parts = parts.into_iter().zip(&scales);
        let parts = parts.map(|(part, scale)| (Self::Eight(part), scale.recip()));
        Some((Self::Eight(stack), parts.collect()))
    }

    /// Moves each of these, with its parts, into one piece of memory for each kind of numbers, on large pages where it
    /// fills them: for those that many passes read.
    pub fn gather(all: Vec<(&mut Self, Vec<&mut Self>)>) {
        let (mut eights, mut singles, mut halves) = (Vec::new(), Vec::new(), Vec::new());
        for (whole, parts) in all {
            match whole {
                Self::Eight(whole) => {
                    eights.push((whole, parts.into_iter().filter_map(Self::eight).collect()));
                }
                Self::Single(whole) => {
                    singles.push((whole, parts.into_iter().filter_map(Self::single).collect()));
                }
                Self::Half(whole) => {
                    halves.push((whole, parts.into_iter().filter_map(Self::half).collect()));
                }
            }
        }
        IntegerPanels::gather(eights);
        Panels::gather(singles);
        HalfPanels::gather(halves);
    }

    fn eight(&mut self) -> Option<&mut IntegerPanels> {
        match self {
            Self::Eight(panels) => Some(panels),
            Self::Single(_) | Self::Half(_) => None,
        }
    }

    fn single(&mut self) -> Option<&mut Panels> {
        match self {
            Self::Single(panels) => Some(panels),
            Self::Eight(_) | Self::Half(_) => None,
        }
    }

    fn half(&mut self) -> Option<&mut HalfPanels> {
        match self {
            Self::Half(panels) => Some(panels),
            Self::Eight(_) | Self::Single(_) => None,
        }
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Eight(panels) => panels.outputs(),
            Self::Single(panels) => panels.outputs(),
            Self::Half(panels) => panels.outputs(),
        }
    }

    /// Columns of the weight.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Eight(panels) => panels.inputs(),
            Self::Single(panels) => panels.inputs(),
            Self::Half(panels) => panels.inputs(),
        }
    }

    /// Bytes held, whoever shares them.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Eight(panels) => panels.bytes(),
            Self::Single(panels) => panels.bytes(),
            Self::Half(panels) => panels.bytes(),
        }
    }

    /// The values, `[outputs, inputs]`.
    pub fn row_major(&self) -> Vec<f32> {
        match self {
            Self::Eight(panels) => panels.read(0..panels.outputs(), 0..panels.inputs()),
            Self::Single(panels) => panels.row_major(),
            Self::Half(panels) => panels.read(0..panels.outputs(), 0..panels.inputs()),
        }
    }

    /// Packed for `g · W`, as f32.
    pub fn transposed(&self) -> Panels {
        Panels::pack_transposed(&self.row_major(), self.outputs(), self.inputs())
    }

    /// `x · Wᵀ` of every row into `y: [rows, outputs]`.
    pub fn forward(&self, x: &[f32], y: &mut [f32], epilogue: Epilogue) {
        match self {
            Self::Eight(panels) => product_integers(x, panels, y, epilogue),
            Self::Single(panels) => product_parallel(x, panels, y, epilogue),
            Self::Half(panels) => product_halves(x, panels, y, epilogue),
        }
    }

    /// For a product beside others.
    pub fn weight(&self) -> Weight<'_> {
        match self {
            Self::Eight(panels) => Weight::Integers(panels),
            Self::Single(panels) => Weight::Floats(Packed::single(panels)),
            Self::Half(panels) => Weight::Floats(Packed::halves(panels)),
        }
    }
}

/// The power of two that brings a value to 1 or less than twice that: as far as normal numbers go.
fn near_one(value: f32) -> f32 {
    const BIAS: u32 = 127;
    if value == 0.0 {
        return 1.0;
    }
    let exponent = (value.to_bits() >> 23).clamp(1, 2 * BIAS - 1);
    f32::from_bits((2 * BIAS - exponent) << 23)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::random::Stream;

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let stream = Stream::new(seed, &[]);
        (0..count as u64).map(|i| stream.normal(i) as f32).collect()
    }

    /// A factor in f32 with values that bf16 has, and with those that f16 has.
    fn exact(seed: u64, count: usize) -> [Vec<f32>; 2] {
        let values = values(seed, count);
        let bf16 = HalfWeight::rounded(&values).widened();
        let f16 = values.iter().map(|it| f16::from_f32(*it).to_f32());
        [bf16, f16.collect()]
    }

    #[test]
    fn products_of_halves_have_the_bits_of_the_factor_in_f32_in_both_directions() {
        let (outputs, inputs, rows) = (37, 64, 9);
        for values in exact(1, outputs * inputs) {
            let narrow = HalfWeight::exactly(&values).unwrap();
            let narrow = FactorPanels::pack(FactorValues::Half(&narrow), outputs, inputs);
            let wide = FactorPanels::pack(FactorValues::Single(&values), outputs, inputs);
            assert_eq!(2 * narrow.bytes(), wide.bytes());
            assert_eq!(narrow.row_major(), values);
            let x = self::values(2, rows * inputs);
            let start = self::values(3, rows * outputs);
            for epilogue in [Epilogue::Store, Epilogue::AddScaled(0.3)] {
                let (mut expected, mut y) = (start.clone(), start.clone());
                wide.forward(&x, &mut expected, epilogue);
                narrow.forward(&x, &mut y, epilogue);
                assert!(y == expected, "{epilogue:?}");
            }
            assert_eq!(
                narrow.transposed().row_major(),
                wide.transposed().row_major()
            );
        }
    }

    #[test]
    fn eight_bits_are_as_exact_for_small_factors_as_for_large_ones() {
        let (outputs, inputs) = (5, 64);
        for size in [1e-30, 1e-6, 1.0, 1e20] {
            let values: Vec<f32> = values(1, outputs * inputs)
                .into_iter()
                .map(|value| value * size)
                .collect();
            let plain = FactorValues::Single(&values);
            let factors = [(plain, outputs), (plain, outputs)];
            let (stack, parts) = FactorPanels::stack_in_eight_bits(&factors, inputs).unwrap();
            assert_eq!((stack.outputs(), parts.len()), (32, 2));
            for (part, scale) in &parts {
                assert_eq!((part.outputs(), part.inputs()), (outputs, inputs));
                let read = part.row_major();
                for (read, exact) in read.chunks(32).zip(values.chunks(32)) {
                    let largest = exact.iter().fold(0.0_f32, |most, it| most.max(it.abs()));
                    for (read, exact) in read.iter().zip(exact) {
                        // Half a step, and as much again for the scale's own rounding.
                        assert!((read * scale - exact).abs() <= largest / 127.0, "{size}");
                    }
                }
            }
        }
        let nothing = FactorValues::Single(&[0.0; 32]);
        let (_, parts) = FactorPanels::stack_in_eight_bits(&[(nothing, 1)], 32).unwrap();
        assert!(parts[0].0.row_major().iter().all(|value| *value == 0.0));
        let short = FactorValues::Single(&[1.0; 40]);
        assert!(FactorPanels::stack_in_eight_bits(&[(short, 1)], 40).is_none());
    }

    #[test]
    fn a_stack_of_several_formats_has_the_values_of_each_in_f32() {
        let k = 16;
        let [bf16, f16] = exact(1, 5 * k);
        let halves = [&bf16, &f16].map(|values| HalfWeight::exactly(values).unwrap());
        let single = values(2, 5 * k);
        let [first, second] = halves.each_ref().map(FactorValues::Half);
        let plain = FactorValues::Single(&single);
        for (factors, is_half) in [
            ([first, first], true),
            ([second, second], true),
            ([first, second], false),
            ([first, plain], false),
        ] {
            let (stack, parts) = FactorPanels::stack(&factors.map(|values| (values, 5)), k);
            assert_eq!(matches!(stack, FactorPanels::Half(_)), is_half);
            assert_eq!((stack.outputs(), parts.len()), (32, 2));
            for (part, values) in parts.iter().zip(factors) {
                assert_eq!(part.row_major(), &*values.widened());
            }
        }
    }
}
