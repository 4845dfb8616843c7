use super::*;
use crate::kernel::{Isa, reference};
use crate::quant::{BlockFormat, Blocks};
use crate::random::Stream;

const FORMATS: [BlockFormat; 3] = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4K];

fn available() -> Vec<IntegerIsa> {
    match IntegerIsa::detect() {
        IntegerIsa::Vnni => vec![IntegerIsa::Vnni, IntegerIsa::Avx2, IntegerIsa::Portable],
        IntegerIsa::Avx2 => vec![IntegerIsa::Avx2, IntegerIsa::Portable],
        IntegerIsa::Portable => vec![IntegerIsa::Portable],
    }
}

/// How this set rounds a step of a chain.
fn rounding(isa: IntegerIsa) -> Isa {
    match isa {
        IntegerIsa::Vnni | IntegerIsa::Avx2 => Isa::Avx2,
        IntegerIsa::Portable => Isa::Portable,
    }
}

/// Groups of different sizes, so that a scale in a wrong place shows.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let stream = Stream::new(seed, &[]);
    let size = |i: u64| 1.0 + (i / 32 % 7) as f64;
    (0..count as u64)
        .map(|i| (stream.normal(i) * size(i)) as f32)
        .collect()
}

fn blocks(format: BlockFormat, outputs: usize, inputs: usize) -> Blocks {
    Blocks::quantize(format, &values(1, outputs * inputs), outputs, inputs).unwrap()
}

/// The inputs of a format that has blocks of 256 too.
fn shapes(format: BlockFormat) -> [(usize, usize); 3] {
    match format.values() {
        256 => [(40, 512), (16, 256), (3, 768)],
        _ => [(40, 96), (16, 32), (3, 224)],
    }
}

#[test]
fn rows_packed_by_themselves_have_the_values_of_their_blocks() {
    // As near to two whole numbers, which those of a file in 16 bits often are.
    let between = |count: usize| -> Vec<f32> {
        let value = |n: usize| {
            if n.is_multiple_of(32) {
                127.0
            } else {
                (n * 37 % 253) as f32 / 2.0 - 63.0
            }
        };
        (0..count).map(value).collect()
    };
    let shapes = shapes(BlockFormat::Q8_0).into_iter();
    let cases = shapes.flat_map(|shape| {
        let count = shape.0 * shape.1;
        [values(1, count), between(count)].map(|values| (shape, values))
    });
    for ((outputs, inputs), values) in cases {
        let row_of =
            |row: usize, to: &mut [f32]| to.copy_from_slice(&values[row * inputs..][..inputs]);
        let (stack, parts) =
            IntegerPanels::stack(&[(&row_of, outputs), (&row_of, outputs)], inputs).unwrap();
        assert_eq!(stack.outputs(), 2 * outputs.next_multiple_of(LANES));
        let blocks = Blocks::quantize(BlockFormat::Q8_0, &values, outputs, inputs).unwrap();
        let all = blocks.read(0..outputs, 0..inputs);
        for part in &parts {
            assert_eq!(
                part.read(0..outputs, 0..inputs),
                all,
                "[{outputs}, {inputs}]"
            );
        }
        // What lies between the parts is nothing.
        let rest = stack.read(outputs..outputs.next_multiple_of(LANES), 0..inputs);
        assert!(rest.iter().all(|value| *value == 0.0));
    }
}

#[test]
fn packed_weights_have_the_values_of_their_blocks() {
    for format in FORMATS {
        for (outputs, inputs) in shapes(format) {
            let blocks = blocks(format, outputs, inputs);
            let panels = IntegerPanels::pack(&blocks).unwrap();
            assert_eq!((panels.outputs(), panels.inputs()), (outputs, inputs));
            for (rows, columns) in [(0..outputs, 0..inputs), (1..2, inputs - 32..inputs)] {
                assert_eq!(
                    panels.read(rows.clone(), columns.clone()),
                    blocks.read(rows, columns),
                    "{format:?} [{outputs}, {inputs}]"
                );
            }
        }
        let (whole, packed) = (blocks(format, 64, 1024), 64 * 1024);
        let bits = IntegerPanels::pack(&whole).unwrap().bytes() * 8;
        assert!(bits <= whole.bytes() * 8 + packed / 8, "{format:?}");
    }
    let other = blocks(BlockFormat::Q6K, 16, 256);
    assert!(IntegerPanels::pack(&other).is_none());
}

#[test]
fn every_row_count_gives_the_reference_bits() {
    for format in FORMATS {
        for (outputs, inputs) in shapes(format) {
            let blocks = blocks(format, outputs, inputs);
            let panels = IntegerPanels::pack(&blocks).unwrap();
            let x = values(2, 40 * inputs);
            for isa in available() {
                let whole = reference::integer_product(rounding(isa), &x, &blocks);
                for rows in 1..=40 {
                    let mut y = vec![0.0; rows * outputs];
                    let x = &x[..rows * inputs];
                    product_on(isa, x, &panels, &mut y, Epilogue::Store);
                    assert!(
                        y == whole[..rows * outputs],
                        "{isa:?} {format:?} {rows} rows of [{outputs}, {inputs}]"
                    );
                }
            }
        }
    }
}

#[test]
fn more_rows_than_a_cache_holds_are_each_what_they_are_alone() {
    let (outputs, inputs) = (20, 8192);
    let panels = IntegerPanels::pack(&blocks(BlockFormat::Q8_0, outputs, inputs)).unwrap();
    let rows = 2 * SECOND_CACHE / (inputs / GROUP * size_of::<Group>()) + 5;
    let x = values(2, rows * inputs);
    let mut y = vec![0.0; rows * outputs];
    product_integers(&x, &panels, &mut y, Epilogue::Store);
    for (x, y) in x.chunks(inputs).zip(y.chunks(outputs)) {
        let mut alone = vec![0.0; outputs];
        product_integers(x, &panels, &mut alone, Epilogue::Store);
        assert!(y == alone);
    }
}

#[test]
fn products_are_near_those_of_the_exact_inputs() {
    let (outputs, inputs, rows) = (64, 1024, 5);
    let x = values(2, rows * inputs);
    for format in FORMATS {
        let blocks = blocks(format, outputs, inputs);
        let panels = IntegerPanels::pack(&blocks).unwrap();
        let mut y = vec![0.0; rows * outputs];
        product_integers(&x, &panels, &mut y, Epilogue::Store);
        let weight = blocks.read(0..outputs, 0..inputs);
        let exact = reference::product(Isa::Portable, &x, &weight, inputs);
        let square = |value: f32| f64::from(value).powi(2);
        let size: f64 = exact.iter().map(|value| square(*value)).sum();
        let error: f64 = y.iter().zip(&exact).map(|(y, e)| square(y - e)).sum();
        let error = (error / size).sqrt();
        assert!(error > 0.0 && error < 0.01, "{format:?}: {error}");
    }
}

#[test]
fn epilogues_add_after_the_chain() {
    let (outputs, inputs, rows) = (40, 256, 7);
    let (x, start) = (values(2, rows * inputs), values(3, rows * outputs));
    for format in FORMATS {
        let panels = IntegerPanels::pack(&blocks(format, outputs, inputs)).unwrap();
        for isa in available() {
            let mut sums = vec![0.0; rows * outputs];
            product_on(isa, &x, &panels, &mut sums, Epilogue::Store);
            for (epilogue, factor) in [(Epilogue::Add, 1.0), (Epilogue::AddScaled(0.3), 0.3)] {
                let mut y = start.clone();
                product_on(isa, &x, &panels, &mut y, epilogue);
                let expected: Vec<f32> = start
                    .iter()
                    .zip(&sums)
                    .map(|(y, sum)| y + factor * sum)
                    .collect();
                assert_eq!(y, expected, "{isa:?} {format:?} {epilogue:?}");
            }
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    let (outputs, inputs) = (530, 512);
    for format in FORMATS {
        let panels = IntegerPanels::pack(&blocks(format, outputs, inputs)).unwrap();
        for rows in [1, 13, 60] {
            let x = values(2, rows * inputs);
            let product = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let mut y = vec![0.0; rows * outputs];
                pool.install(|| product_integers(&x, &panels, &mut y, Epilogue::Store));
                y
            };
            let one = product(1);
            assert!(product(2) == one && product(3) == one, "{format:?} {rows}");
        }
    }
}

#[test]
fn what_is_not_finite_reaches_every_output() {
    let panels = IntegerPanels::pack(&blocks(BlockFormat::Q8_0, 16, 64)).unwrap();
    for value in [f32::NAN, f32::INFINITY] {
        let mut x = values(2, 2 * 64);
        x[64 + 9] = value;
        let mut y = vec![0.0; 2 * 16];
        product_integers(&x, &panels, &mut y, Epilogue::Store);
        assert!(y[..16].iter().all(|y| y.is_finite()));
        assert!(y[16..].iter().all(|y| !y.is_finite()), "{value}");
    }
}
