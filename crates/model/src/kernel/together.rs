//! Several products in one parallel loop.
//!
//! Threads meet at the end of every loop, which for one row takes as long as a product does. So projections that
//! read the same input share one, with the low-rank updates' first factors: while one core computes, another one
//! may be reading. An input is brought into 8 bits once for all weights that want it so. Every output stays one
//! chain of its own: the bits are those of the products one after the other.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::ahead::Ahead;
use super::dispatch::Isa;
use super::halves::HalfPanels;
use super::integer::{Inputs, IntegerPanels};
use super::panels::{LANES, Panels};
use super::product::{Epilogue, Output, Packed, parallel, part, row_count};

/// Multiply-adds that are worth a task: about a microsecond.
const TASK_WORK: usize = 1 << 16;
/// Bytes of weights that are: as long to read.
const TASK_BYTES: usize = 1 << 14;
/// Of what a thread has to do, so that the last one to end hardly keeps the others waiting.
const SHARES: usize = 16;
/// Rows for each thread from which on a product in floats is divided well by itself.
const MANY_ROWS: usize = 24;

/// A packed weight, of whatever numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Weight<'a> {
    /// f32.
    Single(&'a Panels),
    /// bf16 or f16.
    Half(&'a HalfPanels),
    /// Blocks, multiplied with inputs in 8 bits.
    Integers(&'a IntegerPanels),
}

impl Weight<'_> {
    fn shape(self) -> (usize, usize) {
        match self {
            Self::Single(panels) => (panels.outputs(), panels.inputs()),
            Self::Half(panels) => (panels.outputs(), panels.inputs()),
            Self::Integers(panels) => (panels.outputs(), panels.inputs()),
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Single(panels) => panels.bytes(),
            Self::Half(panels) => panels.bytes(),
            Self::Integers(panels) => panels.bytes(),
        }
    }

    /// Adds the memory that it is read from, where that is one place.
    pub fn ask_for(self, ahead: &mut Ahead) {
        match self {
            Self::Single(panels) => ahead.push(panels.data()),
            Self::Half(panels) => ahead.push(panels.lines()),
            Self::Integers(_) => {}
        }
    }
}

/// One of several products: `x · Wᵀ` for `x: [rows, inputs]` into `y: [rows, outputs]`.
#[derive(Debug)]
pub(crate) struct Product<'a> {
    /// `[rows, inputs]`
    pub x: &'a [f32],
    /// `[outputs, inputs]`
    pub w: Weight<'a>,
    /// `[rows, outputs]`
    pub y: &'a mut [f32],
    /// What becomes of the sums.
    pub epilogue: Epilogue,
}

/// A product whose input is ready.
struct Ready<'a> {
    factors: Factors<'a>,
    output: Output,
    epilogue: Epilogue,
    rows: usize,
    outputs: usize,
    inputs: usize,
    bytes: usize,
}

enum Factors<'a> {
    Floats(&'a [f32], Packed<'a>),
    /// The number of the inputs in 8 bits.
    Integers(usize, &'a IntegerPanels),
}

/// All rows by some panels of one product.
struct Task {
    product: usize,
    panels: Range<usize>,
    /// Multiply-adds of whole numbers, of those of all tasks.
    work: Range<usize>,
}

/// Computes all products with the threads of the current rayon pool: the same bits as one after the other. They are
/// begun in this order, and those with weights in blocks ask for what is read `ahead`.
///
/// # Panics
/// The lengths of an `x` and its `y` do not belong to the same number of rows.
pub(crate) fn products(products: Vec<Product<'_>>, ahead: &Ahead) {
    let threads = rayon::current_num_threads();
    let mut quantised: Vec<(&[f32], Inputs)> = Vec::new();
    let few_rows = products
        .into_iter()
        .filter_map(|product| without_many_rows(product, threads));
    let ready: Vec<Ready<'_>> = few_rows
        .map(|product| ready(product, &mut quantised))
        .collect();
    let isa = Isa::detect();
    let tasks = tasks(&ready, threads);
    let whole = tasks.last().map_or(0, |task| task.work.end);
    let run = |task: &Task| {
        let Some(product) = ready.get(task.product) else {
            return;
        };
        let (output, panels) = (product.output, task.panels.clone());
        match &product.factors {
            Factors::Floats(x, w) => {
                part(
                    isa,
                    x,
                    *w,
                    output,
                    0..product.rows,
                    panels,
                    product.epilogue,
                );
            }
            Factors::Integers(number, w) => {
                if let Some((_, inputs)) = quantised.get(*number) {
                    let share = ahead.share(task.work.clone(), whole);
                    inputs.multiply(w, output, panels, product.epilogue, share);
                }
            }
        }
    };
    let work: usize = ready.iter().map(Ready::work).sum();
    let bytes: usize = ready.iter().map(|product| product.bytes).sum();
    if tasks.len() < 2 || (work < TASK_WORK && bytes < TASK_BYTES) {
        tasks.iter().for_each(run);
    } else {
        let next = AtomicUsize::new(0);
        let run_all = || {
            while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                run(task);
            }
        };
        let threads = (0..threads).into_par_iter().with_max_len(1);
        threads.for_each(|_| run_all());
    }
}

/// Computes a product in floats that has many rows, by itself; others come back.
fn without_many_rows(product: Product<'_>, threads: usize) -> Option<Product<'_>> {
    let (_, inputs) = product.w.shape();
    let weight = match product.w {
        Weight::Single(panels) => Packed::single(panels),
        Weight::Half(panels) => Packed::halves(panels),
        Weight::Integers(_) => return Some(product),
    };
    if product.x.len() < MANY_ROWS * threads * inputs {
        return Some(product);
    }
    parallel(product.x, weight, product.y, product.epilogue);
    None
}

/// Checks a product's lengths, and brings its input into 8 bits where no product before it did.
fn ready<'a>(product: Product<'a>, quantised: &mut Vec<(&'a [f32], Inputs)>) -> Ready<'a> {
    let Product { x, w, y, epilogue } = product;
    let (outputs, inputs) = w.shape();
    let rows = row_count(x, (outputs, inputs), y);
    let factors = match w {
        Weight::Single(panels) => Factors::Floats(x, Packed::single(panels)),
        Weight::Half(panels) => Factors::Floats(x, Packed::halves(panels)),
        Weight::Integers(panels) => {
            let known = quantised
                .iter()
                .position(|(other, inputs)| std::ptr::eq(*other, x) && inputs.fit(panels));
            let number = known.unwrap_or_else(|| {
                quantised.push((x, Inputs::of(x, panels)));
                quantised.len() - 1
            });
            Factors::Integers(number, panels)
        }
    };
    Ready {
        factors,
        output: Output::of(y, outputs),
        epilogue,
        rows,
        outputs,
        inputs,
        bytes: w.bytes(),
    }
}

/// What the threads divide among themselves. A product that is hardly worth a task is one: panels beside each other
/// share what a tile reads of the inputs.
fn tasks(products: &[Ready<'_>], threads: usize) -> Vec<Task> {
    let work: usize = products.iter().map(Ready::work).sum();
    let bytes: usize = products.iter().map(|product| product.bytes).sum();
    let task_work = TASK_WORK.max(work / (SHARES * threads));
    let task_bytes = TASK_BYTES.max(bytes / (SHARES * threads));
    let is_small = |product: &Ready<'_>| product.work() < task_work && product.bytes < task_bytes;
    let mut tasks = Vec::with_capacity(products.len());
    let mut whole = 0;
    for (number, product) in products.iter().enumerate() {
        let (rows, panels) = (product.rows, product.outputs.div_ceil(LANES));
        if rows == 0 {
            continue;
        }
        // By panels: each is read from memory once.
        let step = if threads < 2 || is_small(product) {
            panels
        } else {
            let worth = (task_work * panels)
                .div_ceil(product.work())
                .min((task_bytes * panels).div_ceil(product.bytes));
            let step = panels.div_ceil(4 * threads).max(worth);
            step.next_multiple_of(2)
        };
        tasks.extend((0..panels).step_by(step).map(|start| {
            let end = panels.min(start + step);
            let before = whole;
            if matches!(product.factors, Factors::Integers(..)) {
                whole += (end - start) * rows * product.inputs;
            }
            Task {
                product: number,
                panels: start..end,
                work: before..whole,
            }
        }));
    }
    tasks
}

impl Ready<'_> {
    /// Multiply-adds.
    fn work(&self) -> usize {
        self.rows * self.outputs * self.inputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{HalfWeight, product, product_halves, product_integers};
    use crate::quant::{BlockFormat, Blocks};
    use crate::random::Stream;

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let stream = Stream::new(seed, &[]);
        (0..count as u64).map(|i| stream.normal(i) as f32).collect()
    }

    struct Weights {
        single: Panels,
        half: HalfPanels,
        integers: Vec<IntegerPanels>,
        narrow: Panels,
    }

    fn weights(outputs: usize, inputs: usize) -> Weights {
        let weight = values(1, outputs * inputs);
        let formats = [BlockFormat::Q8_0, BlockFormat::Q4K, BlockFormat::Q8_0];
        let integers = formats.map(|format| {
            let blocks = Blocks::quantize(format, &weight, outputs, inputs).unwrap();
            IntegerPanels::pack(&blocks).unwrap()
        });
        Weights {
            single: Panels::pack(&weight, outputs, inputs),
            half: HalfPanels::pack(&HalfWeight::rounded(&weight), outputs, inputs),
            integers: integers.into(),
            narrow: Panels::pack(&values(2, 3 * inputs), 3, inputs),
        }
    }

    /// Each weight's product with an input, one after the other.
    fn plainly(
        weights: &Weights,
        x: &[f32],
        start: &[Vec<f32>],
        epilogue: Epilogue,
    ) -> Vec<Vec<f32>> {
        let mut outputs = start.to_vec();
        let [single, half, narrow, integers @ ..] = outputs.as_mut_slice() else {
            panic!("too few outputs");
        };
        product(x, &weights.single, single, epilogue);
        product_halves(x, &weights.half, half, epilogue);
        product(x, &weights.narrow, narrow, epilogue);
        for (w, y) in weights.integers.iter().zip(integers) {
            product_integers(x, w, y, epilogue);
        }
        outputs
    }

    #[test]
    fn products_beside_each_other_have_the_bits_of_one_after_the_other() {
        let (outputs, inputs) = (330, 512);
        let weights = weights(outputs, inputs);
        for rows in [1, 7, 32, 100] {
            let x = values(3, rows * inputs);
            let widths = [outputs, outputs, 3, outputs, outputs, outputs];
            let start = widths.map(|width| values(4, rows * width)).to_vec();
            for epilogue in [Epilogue::Store, Epilogue::Add, Epilogue::AddScaled(0.3)] {
                let expected = plainly(&weights, &x, &start, epilogue);
                for threads in [1, 2, 3] {
                    let pool = rayon::ThreadPoolBuilder::new()
                        .num_threads(threads)
                        .build()
                        .unwrap();
                    let mut y = start.clone();
                    let all = [
                        Weight::Single(&weights.single),
                        Weight::Half(&weights.half),
                        Weight::Single(&weights.narrow),
                    ];
                    let integers = weights.integers.iter().map(Weight::Integers);
                    let together = all.into_iter().chain(integers).zip(&mut y);
                    let together = together.map(|(w, y)| Product {
                        x: &x,
                        w,
                        y,
                        epilogue,
                    });
                    let together = together.collect();
                    let mut ahead = Ahead::default();
                    Weight::Single(&weights.single).ask_for(&mut ahead);
                    pool.install(|| products(together, &ahead));
                    assert!(
                        y == expected,
                        "{rows} rows, {threads} threads, {epilogue:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_input_is_brought_into_8_bits_once_for_weights_of_one_kind() {
        let weights = weights(32, 512);
        let (x, other) = (values(3, 512), values(4, 512));
        let mut y = vec![vec![0.0; 32]; 4];
        let mut quantised = Vec::new();
        let inputs = [&x, &x, &x, &other];
        let first = &weights.integers[0];
        let panels = weights.integers.iter().chain([first]);
        for ((x, panels), y) in inputs.into_iter().zip(panels).zip(&mut y) {
            let product = Product {
                x,
                w: Weight::Integers(panels),
                y,
                epilogue: Epilogue::Store,
            };
            ready(product, &mut quantised);
        }
        let of: Vec<&[f32]> = quantised.iter().map(|(x, _)| *x).collect();
        assert_eq!(of, [x.as_slice(), &x, &other], "Q8_0, Q4_K, and the other");
    }

    #[test]
    fn a_row_of_one_weight_is_divided_and_what_is_small_is_not() {
        let shapes = |outputs: usize, inputs: usize, rows: usize| {
            let panels = Panels::pack(&vec![0.0; outputs * inputs], outputs, inputs);
            let (x, mut y) = (vec![0.0; rows * inputs], vec![0.0; rows * outputs]);
            let product = Product {
                x: &x,
                w: Weight::Single(&panels),
                y: &mut y,
                epilogue: Epilogue::Store,
            };
            let tasks = tasks(&[ready(product, &mut Vec::new())], 2);
            let panels: Vec<usize> = tasks.iter().flat_map(|task| task.panels.clone()).collect();
            let all = if rows == 0 {
                0
            } else {
                outputs.div_ceil(LANES)
            };
            assert_eq!(panels, (0..all).collect::<Vec<_>>());
            tasks.len()
        };
        assert!(shapes(512, 1024, 1) >= 4);
        assert!(shapes(48, 1024, 1) >= 2);
        assert_eq!(shapes(16, 64, 3), 1);
        assert_eq!(shapes(48, 1024, 0), 0);
    }
}
