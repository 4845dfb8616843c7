use super::*;
use crate::kernel::{HalfPanels, HalfWeight, Panels, product, product_halves, product_integers};
use crate::quant::{BlockFormat, Blocks};
use crate::random::Stream;

fn values(seed: u64, count: usize) -> Vec<f32> {
    let stream = Stream::new(seed, &[]);
    (0..count as u64).map(|i| stream.normal(i) as f32).collect()
}

/// Weights of the base, one factor beside them, and one that is added.
struct Weights {
    single: Panels,
    half: HalfPanels,
    integers: Vec<IntegerPanels>,
    beside: HalfPanels,
    added: Panels,
}

const RANK: usize = 19;
const SCALE: f32 = 0.7;

fn weights(outputs: usize, inputs: usize) -> Weights {
    let weight = values(1, outputs * inputs);
    let halves =
        |weight: &[f32], rows| HalfPanels::pack(&HalfWeight::rounded(weight), rows, inputs);
    let formats = [BlockFormat::Q8_0, BlockFormat::Q4K, BlockFormat::Q8_0];
    let integers = formats.map(|format| {
        let blocks = Blocks::quantize(format, &weight, outputs, inputs).unwrap();
        IntegerPanels::pack(&blocks).unwrap()
    });
    Weights {
        single: Panels::pack(&weight, outputs, inputs),
        half: halves(&weight, outputs),
        integers: integers.into(),
        beside: halves(&values(2, RANK * inputs), RANK),
        added: Panels::pack(&values(5, outputs * RANK), outputs, RANK),
    }
}

/// Rows that something is added to.
fn segments(rows: usize) -> [Range<usize>; 3] {
    [0..rows / 3, rows / 3..rows / 2, rows / 2 + 1..rows]
}

/// The products with an input one after the other, and then what is added.
fn plainly(weights: &Weights, x: &[f32], start: &[Vec<f32>], epilogue: Epilogue) -> Vec<Vec<f32>> {
    let rows = x.len() / weights.single.inputs();
    let mut outputs = start.to_vec();
    let [single, half, integers @ ..] = outputs.as_mut_slice() else {
        panic!("too few outputs");
    };
    product(x, &weights.single, single, epilogue);
    product_halves(x, &weights.half, half, epilogue);
    for (w, y) in weights.integers.iter().zip(integers) {
        product_integers(x, w, y, epilogue);
    }
    let mut inner = vec![0.0; rows * RANK];
    product_halves(x, &weights.beside, &mut inner, Epilogue::Store);
    let width = weights.added.outputs();
    for rows in segments(rows) {
        let inner = &inner[rows.start * RANK..rows.end * RANK];
        for y in &mut outputs {
            let y = &mut y[rows.start * width..rows.end * width];
            product(inner, &weights.added, y, Epilogue::AddScaled(SCALE));
        }
    }
    outputs
}

fn at_once(
    weights: &Weights,
    x: &[f32],
    outputs: &mut [Vec<f32>],
    (epilogue, factors): (Epilogue, FactorBytes),
) {
    let width = weights.single.outputs();
    let inputs = weights.single.inputs();
    let rows = x.len() / inputs;
    let floats = [
        Packed::single(&weights.single),
        Packed::halves(&weights.half),
    ];
    let integers = weights.integers.iter().map(Weight::Integers);
    let all = floats.into_iter().map(Weight::Floats).chain(integers);
    let bases = all.zip(outputs).map(|(w, y)| Base {
        x,
        w: Some(w),
        y,
        outputs: width,
        epilogue,
    });
    let mut inner = segments(rows).map(|rows| vec![0.0; rows.len() * RANK]);
    let beside = segments(rows)
        .into_iter()
        .zip(&mut inner)
        .map(|(rows, y)| Beside {
            x,
            rows,
            w: Weight::Floats(Packed::halves(&weights.beside)),
            y,
        });
    let products = 0..floats.len() + weights.integers.len();
    let additions = products.flat_map(|product| {
        let segments = segments(rows).into_iter().enumerate();
        segments.map(move |(beside, rows)| Addition {
            product,
            rows,
            beside,
            column: 0,
            w: Packed::single(&weights.added),
            scale: SCALE,
        })
    });
    let additions: Vec<Addition<'_>> = additions.collect();
    divided(bases.collect(), beside.collect(), &additions, factors);
}

#[test]
fn products_in_one_loop_have_the_bits_of_one_after_the_other() {
    let (outputs, inputs) = (650, 512);
    let weights = weights(outputs, inputs);
    let factors = [(0, 0), (0, 1), (1, 0), (1, 1), (10 << 20, 30 << 20)];
    for rows in [1, 7, 32, 120] {
        let x = values(3, rows * inputs);
        let start = vec![values(4, rows * outputs); 5];
        for epilogue in [Epilogue::Store, Epilogue::Add] {
            let expected = plainly(&weights, &x, &start, epilogue);
            for ((beside, added), threads) in factors
                .into_iter()
                .flat_map(|it| [1, 2, 3].map(|threads| (it, threads)))
            {
                let factors = FactorBytes { beside, added };
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let mut y = start.clone();
                let pool = pool.build().unwrap();
                pool.install(|| at_once(&weights, &x, &mut y, (epilogue, factors)));
                assert!(
                    y == expected,
                    "{rows} rows, {threads} threads, {epilogue:?}, {factors:?}"
                );
            }
        }
    }
}

#[test]
fn what_is_there_already_is_added_to_and_columns_are_those_that_are_named() {
    let weights = weights(70, 256);
    let (x, start) = (values(3, 9 * 256), values(4, 9 * 70));
    let narrow = Panels::pack(&values(6, 70 * 3), 70, 3);
    let mut inner = vec![0.0; 9 * RANK];
    product_halves(&x, &weights.beside, &mut inner, Epilogue::Store);
    let columns: Vec<f32> = inner
        .chunks(RANK)
        .flat_map(|row| &row[7..10])
        .copied()
        .collect();
    let mut expected = start.clone();
    product(&columns, &narrow, &mut expected, Epilogue::AddScaled(SCALE));
    let mut y = start;
    let base = Base {
        x: &[],
        w: None,
        y: &mut y,
        outputs: 70,
        epilogue: Epilogue::Store,
    };
    let beside = Beside {
        x: &x,
        rows: 0..x.len() / weights.beside.inputs(),
        w: Weight::Floats(Packed::halves(&weights.beside)),
        y: &mut inner,
    };
    let addition = Addition {
        product: 0,
        rows: 0..9,
        beside: 0,
        column: 7,
        w: Packed::single(&narrow),
        scale: SCALE,
    };
    together(vec![base], vec![beside], &[addition]);
    assert!(y == expected);
}

#[test]
#[should_panic(expected = "5 rows of 3 inputs")]
fn columns_that_are_not_there_are_not_read() {
    let weights = weights(70, 256);
    let narrow = Panels::pack(&values(6, 70 * 3), 70, 3);
    let (x, mut y, mut inner) = (values(3, 5 * 256), vec![0.0; 5 * 70], vec![0.0; 5 * RANK]);
    let base = Base {
        x: &[],
        w: None,
        y: &mut y,
        outputs: 70,
        epilogue: Epilogue::Store,
    };
    let beside = Beside {
        x: &x,
        rows: 0..x.len() / weights.beside.inputs(),
        w: Weight::Floats(Packed::halves(&weights.beside)),
        y: &mut inner,
    };
    let addition = Addition {
        product: 0,
        rows: 0..5,
        beside: 0,
        column: RANK - 2,
        w: Packed::single(&narrow),
        scale: SCALE,
    };
    together(vec![base], vec![beside], &[addition]);
}

#[test]
fn an_input_is_brought_into_8_bits_once_for_weights_of_one_kind() {
    let weights = weights(32, 512);
    let (x, other) = (values(3, 512), values(4, 512));
    let mut y = vec![vec![0.0; 32]; 4];
    let inputs = [&x, &x, &x, &other];
    let panels = weights.integers.iter().chain(&weights.integers[..1]);
    let bases = inputs
        .into_iter()
        .zip(panels)
        .zip(&mut y)
        .map(|((x, panels), y)| Base {
            x,
            w: Some(Weight::Integers(panels)),
            y,
            outputs: 32,
            epilogue: Epilogue::Store,
        });
    let bases: Vec<Base<'_>> = bases.collect();
    let third = values(5, 512);
    let mut inner = [vec![0.0; 32], vec![0.0; 32]];
    let beside = [&x, &third]
        .into_iter()
        .zip(&mut inner)
        .map(|(x, y)| Beside {
            x,
            rows: 0..1,
            w: Weight::Integers(&weights.integers[0]),
            y,
        });
    let beside: Vec<Beside<'_>> = beside.collect();
    let quantised = quantised(&bases, &beside);
    let of: Vec<&[f32]> = quantised.iter().map(|(x, _)| *x).collect();
    let expected = [x.as_slice(), &x, &other, &third];
    assert_eq!(of, expected, "Q8_0, Q4_K, the others");
}

/// Panels of each task of one product in floats, which are all of it.
fn shares(outputs: usize, inputs: usize, rows: usize, beside: usize) -> Vec<usize> {
    let panels = Panels::pack(&vec![0.0; outputs * inputs], outputs, inputs);
    let (x, mut y) = (vec![0.0; rows * inputs], vec![0.0; rows * outputs]);
    let job = Job {
        factors: Factors::Floats(Rows::beside(&x, inputs), Packed::single(&panels)),
        rows,
        output: Output::of(&mut y, outputs),
        epilogue: Epilogue::Store,
    };
    let all = 0..outputs.div_ceil(LANES);
    let tasks = tasks(&[job], &[(0, all.clone())], beside, 2);
    let panels: Vec<usize> = tasks.iter().flat_map(|task| task.panels.clone()).collect();
    let all = if rows == 0 { 0..0 } else { all };
    assert_eq!(panels, all.collect::<Vec<_>>());
    tasks.iter().map(|task| task.panels.len()).collect()
}

#[test]
fn a_row_of_one_weight_is_divided_and_what_is_small_is_not() {
    assert!(shares(512, 1024, 1, 0).len() >= 4);
    assert!(shares(48, 1024, 1, 0).len() >= 2);
    assert_eq!(shares(16, 64, 3, 0), [1]);
    assert!(shares(48, 1024, 0, 0).is_empty());
}

#[test]
fn a_task_has_no_more_factors_beside_it_than_a_cache_holds() {
    assert_eq!(shares(4096, 64, 8, 0), [32; 8]);
    assert_eq!(shares(4096, 64, 8, 16 * BESIDE_BYTES), [16; 16]);
}

#[test]
fn each_piece_of_the_base_has_its_share_of_the_factors() {
    let weights = weights(64, 256);
    let (x, mut y) = (vec![0.0; 256], vec![0.0; 64]);
    let output = Output::of(&mut y, 64);
    let quantised = [(x.as_slice(), Inputs::of(&x, &weights.integers[0]))];
    let integers = Factors::Integers(&quantised[0].1, 0..1, &weights.integers[0]);
    let floats = || Factors::Floats(Rows::beside(&x, 256), Packed::single(&weights.single));
    let mut jobs = vec![integers];
    jobs.extend((0..6).map(|_| floats()));
    let jobs: Vec<Job<'_>> = jobs
        .into_iter()
        .map(|factors| Job {
            factors,
            rows: 1,
            output,
            epilogue: Epilogue::Store,
        })
        .collect();
    let task = |job, panels| Task { job, panels };
    let bases = vec![task(0, 0..2), task(0, 2..4)];
    let beside: Vec<Task> = (1..7).map(|job| task(job, 0..4)).collect();
    let found = bundles(&jobs, bases, &beside);
    let then: Vec<&Then> = found.iter().map(|bundle| &bundle.then).collect();
    assert_eq!(then, [&Then::Tasks(0..3), &Then::Tasks(3..6)]);
    let of_first: Vec<usize> = found[0].then.each(&beside).map(|(job, _)| job).collect();
    assert_eq!(of_first, [1, 2, 3]);
    assert_eq!(bundles(&jobs, Vec::new(), &beside).len(), 6);
}

#[test]
fn what_is_added_goes_over_the_panels_of_this_loop_and_of_the_one_before() {
    let then = Then::Jobs(2..4, [8..16, 0..4]);
    let each: Vec<_> = then.each(&[]).collect();
    assert_eq!(each, [(2, 8..16), (2, 0..4), (3, 8..16), (3, 0..4)]);
    let then = Then::Jobs(2..4, [8..16, 4..4]);
    assert_eq!(then.each(&[]).count(), 2);
}
