//! Products with the base that read the same input, and the low-rank updates that are added to them.
//!
//! Threads meet at the end of every parallel loop, which for one row takes as long as a product does. So projections
//! that read the same input, the updates' first factors and their second ones are one loop. Before anything is added,
//! a thread waits for those that still multiply a first factor, and computes panels of the base until then. An input is
//! brought into 8 bits once for all weights that want it so.
//!
//! The factors of many adapters are as many bytes as the base, each read for a row or two, while a product with the
//! base computes longer than it reads. So the base's panels are divided between first and second factors as their
//! bytes are, and a thread takes some panels together with some factors: it asks memory for the factors while it
//! multiplies the panels, and then finds them in its own cache. Every output stays one chain of its own, and what is
//! added to it comes after: the bits are those of the products one after the other.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::ahead::Ahead;
use super::dispatch::Isa;
use super::integer::{Inputs, IntegerPanels};
use super::panels::LANES;
use super::product::{Epilogue, Output, Packed, Rows, parallel, part, row_count};

/// Multiply-adds that are worth a task: about a microsecond.
const TASK_WORK: usize = 1 << 16;
/// Bytes of weights that are: as long to read.
const TASK_BYTES: usize = 1 << 14;
/// Of what a thread has to do, so that the last one to end hardly keeps the others waiting.
const SHARES: usize = 16;
/// Rows for each thread from which on a product with a base in floats is divided well by itself.
const MANY_ROWS: usize = 24;
/// Rows of a product with a first factor that are a job, so that threads can divide a long prompt among themselves.
const SHRUNK_ROWS: usize = 24;
/// Looks for the last ones before a thread lets another one of this machine run.
const LOOKS: u32 = 256;
/// Bytes of factors that a thread reads beside some panels of the base: a part of its cache, which holds them until
/// they are multiplied.
const BESIDE_BYTES: usize = 256 << 10;
/// Panels of the widest tile of one row.
const TILE_PANELS: usize = 8;

/// A weight of the base, packed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Weight<'a> {
    /// f32, bf16 or f16.
    Floats(Packed<'a>),
    /// Blocks, multiplied with inputs in 8 bits.
    Integers(&'a IntegerPanels),
}

/// A product with the base: `x · Wᵀ` for `x: [rows, inputs]` into `y: [rows, outputs]`.
#[derive(Debug)]
pub(crate) struct Base<'a> {
    /// `[rows, inputs]`
    pub x: &'a [f32],
    /// `[outputs, inputs]`; none: `y` holds the product already.
    pub w: Option<Weight<'a>>,
    /// `[rows, outputs]`
    pub y: &'a mut [f32],
    /// Columns of `y`.
    pub outputs: usize,
    /// What becomes of the sums.
    pub epilogue: Epilogue,
}

/// A product with a first factor beside them: `x · Wᵀ` for some rows of `x: [all rows, inputs]` into
/// `y: [rows, outputs]`.
#[derive(Debug)]
pub(crate) struct Beside<'a> {
    /// `[all rows, inputs]`
    pub x: &'a [f32],
    /// Those that it has for.
    pub rows: Range<usize>,
    /// `[outputs, inputs]`
    pub w: Weight<'a>,
    /// `[rows, outputs]`
    pub y: &'a mut [f32],
}

/// What is added to some rows of a product with the base: `y = y + scale (x · Wᵀ)`, where `x` are some columns of what
/// a first factor gives.
#[derive(Debug)]
pub(crate) struct Addition<'a> {
    /// The number of the product with the base.
    pub product: usize,
    /// Its rows.
    pub rows: Range<usize>,
    /// The number of the product with a first factor, which has as many rows.
    pub beside: usize,
    /// Where its columns begin.
    pub column: usize,
    /// `[outputs, inputs]`
    pub w: Packed<'a>,
    /// What the product is multiplied with.
    pub scale: f32,
}

/// Bytes that are read beside the base.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct FactorBytes {
    /// By what stands [beside](Beside) the products.
    beside: usize,
    /// By what is [added](Addition), with the outputs that it is added to.
    added: usize,
}

/// A product of which tasks compute some panels.
struct Job<'a> {
    factors: Factors<'a>,
    rows: usize,
    output: Output,
    epilogue: Epilogue,
}

enum Factors<'a> {
    Floats(Rows<'a>, Packed<'a>),
    /// So many rows that other jobs write.
    After(Output, usize, Packed<'a>),
    /// Some rows of the inputs.
    Integers(&'a Inputs, Range<usize>, &'a IntegerPanels),
}

/// All rows by some panels of one product.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Task {
    job: usize,
    panels: Range<usize>,
}

/// What one thread does at a time: some panels of the base, then what it has asked for meanwhile.
#[derive(Debug)]
struct Bundle {
    base: Option<Task>,
    then: Then,
}

#[derive(Debug, PartialEq, Eq)]
enum Then {
    /// Some of a list of tasks.
    Tasks(Range<usize>),
    /// Some jobs, each by the same panels.
    Jobs(Range<usize>, [Range<usize>; 2]),
}

impl Then {
    /// The jobs and their panels, in order.
    fn each<'t>(&'t self, tasks: &'t [Task]) -> impl Iterator<Item = (usize, Range<usize>)> + 't {
        let (tasks, jobs, panels) = match self {
            Self::Tasks(range) => (tasks.get(range.clone()).unwrap_or_default(), 0..0, &[][..]),
            Self::Jobs(jobs, panels) => (&[][..], jobs.clone(), panels.as_slice()),
        };
        let tasks = tasks.iter().map(|task| (task.job, task.panels.clone()));
        let jobs = jobs.flat_map(move |job| panels.iter().map(move |panels| (job, panels.clone())));
        tasks.chain(jobs).filter(|(_, panels)| !panels.is_empty())
    }
}

/// Computes the products with the base and those beside them, and what is added, with the threads of the current rayon
/// pool.
///
/// # Panics
/// The lengths of an `x` and its `y` do not belong to the same number of rows, or an addition's rows, inputs or outputs
/// are not there.
pub(crate) fn together(bases: Vec<Base<'_>>, beside: Vec<Beside<'_>>, additions: &[Addition<'_>]) {
    let added =
        |it: &Addition<'_>| it.w.bytes() + it.rows.len() * it.w.outputs() * size_of::<f32>();
    let factors = FactorBytes {
        beside: beside.iter().map(|it| it.w.bytes()).sum(),
        added: additions.iter().map(added).sum(),
    };
    divided(bases, beside, additions, factors);
}

/// [`together`], with the base divided as if so many bytes were read beside it.
fn divided(
    mut bases: Vec<Base<'_>>,
    beside: Vec<Beside<'_>>,
    additions: &[Addition<'_>],
    factors: FactorBytes,
) {
    let threads = rayon::current_num_threads();
    let quantised = quantised(&bases, &beside);
    let mut jobs = Vec::with_capacity(2 * bases.len() + beside.len() + additions.len());
    let mut products = Vec::with_capacity(bases.len());
    for base in &mut bases {
        let output = Output::of(base.y, base.outputs);
        let mut product = Product {
            output,
            panels: base.outputs.div_ceil(LANES),
            rows: base.y.len().checked_div(base.outputs).unwrap_or(0),
            job: None,
            later: base.outputs.div_ceil(LANES),
        };
        match base.w {
            Some(Weight::Floats(w)) if base.x.len() >= MANY_ROWS * threads * w.inputs() => {
                parallel(base.x, w, base.y, base.epilogue);
                // What was there before the call is not to be written through any more.
                product.output = Output::of(base.y, base.outputs);
            }
            Some(w) => {
                product.job = Some(jobs.len());
                if matches!(w, Weight::Integers(_)) {
                    product.later = first_panels(product.panels, factors);
                }
                jobs.push(base.job(w, output, &quantised));
            }
            None => {}
        }
        products.push(product);
    }
    let first = jobs.len();
    let mut inner = Vec::with_capacity(beside.len());
    for it in beside {
        let (outputs, inputs) = it.w.shape();
        let own = it.x.get(it.rows.start * inputs..it.rows.end * inputs);
        row_count(own.unwrap_or_default(), (outputs, inputs), it.y);
        let (values, y) = (it.y.len(), Output::of(it.y, outputs));
        inner.push((y, values));
        let starts = it.rows.clone().step_by(SHRUNK_ROWS);
        jobs.extend(starts.map(|start| {
            let rows = start..it.rows.end.min(start + SHRUNK_ROWS);
            Job {
                rows: rows.len(),
                output: y.at_row(start - it.rows.start),
                factors: factors_of(it.x, rows, it.w, &quantised),
                epilogue: Epilogue::Store,
            }
        }));
    }
    let beside: Vec<(usize, Range<usize>)> = (first..jobs.len())
        .map(|job| (job, 0..jobs.get(job).map_or(0, Job::panels)))
        .collect();
    let beside = tasks(&jobs, &beside, 0, threads);
    let shares: Vec<(usize, Range<usize>)> = products
        .iter()
        .filter_map(|product| Some((product.job?, 0..product.later)))
        .collect();
    let first = bundles(
        &jobs,
        tasks(&jobs, &shares, factors.beside, threads),
        &beside,
    );
    let second = additional(
        &mut jobs,
        &products,
        (additions, &inner),
        (factors.added, threads),
    );
    run(&jobs, (&first, &second), &beside, threads);
}

/// A product with the base on its way.
struct Product {
    output: Output,
    rows: usize,
    panels: usize,
    /// None: it is there already.
    job: Option<usize>,
    /// The panels that are computed beside what is added begin here.
    later: usize,
}

/// Each input in 8 bits, once for all weights that want it in the same way.
fn quantised<'a>(bases: &[Base<'a>], beside: &[Beside<'a>]) -> Vec<(&'a [f32], Inputs)> {
    let with_base = bases.iter().filter_map(|base| {
        let w = base.w?;
        row_count(base.x, w.shape(), base.y);
        assert_eq!(w.shape().0, base.outputs, "columns of y");
        Some((base.x, w))
    });
    let mut quantised: Vec<(&[f32], Inputs)> = Vec::new();
    for (x, w) in with_base.chain(beside.iter().map(|it| (it.x, it.w))) {
        if let Weight::Integers(panels) = w
            && known(&quantised, x, panels).is_none()
        {
            quantised.push((x, Inputs::of(x, panels)));
        }
    }
    quantised
}

/// Some rows of an input and a weight.
fn factors_of<'j>(
    x: &'j [f32],
    rows: Range<usize>,
    w: Weight<'j>,
    quantised: &'j [(&[f32], Inputs)],
) -> Factors<'j> {
    match w {
        Weight::Floats(w) => {
            let x = x.get(rows.start * w.inputs()..rows.end * w.inputs());
            Factors::Floats(Rows::beside(x.unwrap_or_default(), w.inputs()), w)
        }
        Weight::Integers(panels) => match known(quantised, x, panels) {
            Some(inputs) => Factors::Integers(inputs, rows, panels),
            None => unreachable!("`quantised` has brought every such input into 8 bits"),
        },
    }
}

/// Bundles of what is added, with the panels of the base that wait for it. Their jobs come to the others.
fn additional<'a>(
    jobs: &mut Vec<Job<'a>>,
    products: &[Product],
    (additions, inner): (&[Addition<'a>], &[(Output, usize)]),
    (bytes, threads): (usize, usize),
) -> Vec<Bundle> {
    let mut bundles = Vec::new();
    // By the number of their job: the panels that wait, and the jobs of what is added to them.
    let mut shares: Vec<(usize, Range<usize>)> = Vec::with_capacity(products.len());
    let mut added: Vec<Range<usize>> = Vec::with_capacity(products.len());
    for (number, product) in products.iter().enumerate() {
        let of_product = additions.iter().filter(|it| it.product == number);
        let start = jobs.len();
        jobs.extend(of_product.map(|addition| addition.job(product, inner)));
        let own = start..jobs.len();
        match product.job {
            Some(job) if product.later < product.panels => {
                shares.push((job, product.later..product.panels));
                added.push(own);
            }
            _ => bundles.extend(added_alone(jobs, own, threads)),
        }
    }
    for task in tasks(jobs, &shares, bytes, threads) {
        let mut shares = shares.iter().zip(&added);
        let Some(((_, waiting), added)) = shares.find(|((job, _), _)| *job == task.job) else {
            continue;
        };
        // And as large a share of the panels that are there already.
        let there = |panel: usize| {
            let share = (panel - waiting.start) * waiting.start / waiting.len();
            if panel == waiting.end {
                share
            } else {
                share / (TILE_PANELS / 2) * (TILE_PANELS / 2)
            }
        };
        let there = there(task.panels.start)..there(task.panels.end);
        let panels = [task.panels.clone(), there];
        bundles.push(Bundle {
            base: Some(task),
            then: Then::Jobs(added.clone(), panels),
        });
    }
    bundles
}

impl Weight<'_> {
    /// Outputs and inputs.
    fn shape(self) -> (usize, usize) {
        match self {
            Self::Floats(packed) => (packed.outputs(), packed.inputs()),
            Self::Integers(panels) => (panels.outputs(), panels.inputs()),
        }
    }

    /// Bytes held, whoever shares them.
    fn bytes(self) -> usize {
        match self {
            Self::Floats(packed) => packed.bytes(),
            Self::Integers(panels) => panels.bytes(),
        }
    }
}

impl Base<'_> {
    fn job<'j>(
        &'j self,
        w: Weight<'j>,
        output: Output,
        quantised: &'j [(&[f32], Inputs)],
    ) -> Job<'j> {
        let (_, inputs) = w.shape();
        let rows = self.x.len().checked_div(inputs).unwrap_or(0);
        Job {
            factors: factors_of(self.x, 0..rows, w, quantised),
            rows,
            output,
            epilogue: self.epilogue,
        }
    }
}

impl<'a> Addition<'a> {
    fn job(&self, product: &Product, inner: &[(Output, usize)]) -> Job<'a> {
        let Some((inner, values)) = inner.get(self.beside).copied() else {
            unreachable!("product {} of {} beside the base", self.beside, inner.len());
        };
        let (rows, outputs) = (self.rows.len(), self.w.outputs());
        assert!(
            self.rows.end <= product.rows && outputs == product.output.stride,
            "rows {:?} of {outputs} outputs",
            self.rows
        );
        assert!(
            rows * inner.stride <= values && self.column + self.w.inputs() <= inner.stride,
            "{rows} rows of {} inputs",
            self.w.inputs()
        );
        Job {
            factors: Factors::After(inner.at_column(self.column), rows, self.w),
            rows,
            output: product.output.at_row(self.rows.start),
            epilogue: Epilogue::AddScaled(self.scale),
        }
    }
}

impl Job<'_> {
    fn panels(&self) -> usize {
        let outputs = match &self.factors {
            Factors::Floats(_, w) | Factors::After(_, _, w) => w.outputs(),
            Factors::Integers(_, _, w) => w.outputs(),
        };
        outputs.div_ceil(LANES)
    }

    /// Multiply-adds of a panel.
    fn work(&self) -> usize {
        let inputs = match &self.factors {
            Factors::Floats(_, w) | Factors::After(_, _, w) => w.inputs(),
            Factors::Integers(_, _, w) => w.inputs(),
        };
        self.rows * inputs * LANES
    }

    /// Bytes of a panel.
    fn bytes(&self) -> usize {
        let bytes = match &self.factors {
            Factors::Floats(_, w) | Factors::After(_, _, w) => w.bytes(),
            Factors::Integers(_, _, w) => w.bytes(),
        };
        bytes / self.panels().max(1)
    }
}

/// An input in 8 bits, as a weight wants it.
fn known<'q>(
    quantised: &'q [(&[f32], Inputs)],
    x: &[f32],
    panels: &IntegerPanels,
) -> Option<&'q Inputs> {
    let mut known = quantised.iter();
    let known = known.find(|(other, inputs)| std::ptr::eq(*other, x) && inputs.fit(panels));
    known.map(|(_, inputs)| inputs)
}

/// How many panels of the base go with what stands beside it; the others wait for what is added.
fn first_panels(panels: usize, factors: FactorBytes) -> usize {
    if factors.added == 0 {
        return panels;
    }
    let share = panels * factors.beside / (factors.beside + factors.added);
    share / TILE_PANELS * TILE_PANELS
}

/// What the threads divide among themselves of these panels of jobs, beside which so many bytes are read.
fn tasks(
    jobs: &[Job<'_>],
    shares: &[(usize, Range<usize>)],
    beside: usize,
    threads: usize,
) -> Vec<Task> {
    let of = |job: usize| jobs.get(job).filter(|job| job.rows > 0);
    let sum = |of_panel: &dyn Fn(&Job<'_>) -> usize| {
        let each = shares
            .iter()
            .map(|(job, panels)| of(*job).map_or(0, |job| of_panel(job) * panels.len()));
        each.sum::<usize>()
    };
    let task_work = TASK_WORK.max(sum(&|job| job.work()) / (SHARES * threads));
    let task_bytes = TASK_BYTES.max(sum(&|job| job.bytes()) / (SHARES * threads));
    let all: usize = shares.iter().map(|(_, panels)| panels.len()).sum();
    let most = (all / beside.div_ceil(BESIDE_BYTES).max(1)).max(2);
    let mut tasks = Vec::new();
    for (number, panels) in shares {
        let Some(job) = of(*number) else {
            continue;
        };
        let is_small =
            job.work() * panels.len() < task_work && job.bytes() * panels.len() < task_bytes;
        let step = if threads < 2 || is_small {
            panels.len()
        } else {
            let work = task_work.div_ceil(job.work().max(1));
            let worth = work.min(task_bytes.div_ceil(job.bytes().max(1)));
            panels.len().div_ceil(4 * threads).max(worth)
        };
        let ranges = ranges(panels.clone(), step.min(most));
        tasks.extend(ranges.map(|panels| Task {
            job: *number,
            panels,
        }));
    }
    tasks
}

/// Bundles of what is added to the outputs of one product that is there.
fn added_alone(jobs: &[Job<'_>], added: Range<usize>, threads: usize) -> Vec<Bundle> {
    let of_product = jobs.get(added.clone()).unwrap_or_default();
    let panels = of_product.iter().map(Job::panels).max().unwrap_or(0);
    let work: usize = of_product.iter().map(Job::work).sum();
    let bytes: usize = of_product.iter().map(Job::bytes).sum();
    let is_small = work * panels < TASK_WORK && bytes * panels < TASK_BYTES;
    let step = if threads < 2 || is_small {
        panels
    } else {
        let work = TASK_WORK.div_ceil(work.max(1));
        let worth = work.min(TASK_BYTES.div_ceil(bytes.max(1)));
        panels.div_ceil(4 * threads).max(worth)
    };
    let bundle = |panels: Range<usize>| Bundle {
        base: None,
        then: Then::Jobs(added.clone(), [panels, 0..0]),
    };
    ranges(0..panels, step).map(bundle).collect()
}

/// Panels by so many, of which wide tiles are made.
fn ranges(panels: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let step = step.max(1);
    let step = step.next_multiple_of(if step < TILE_PANELS { 2 } else { TILE_PANELS });
    let end = panels.end;
    panels
        .step_by(step)
        .map(move |start| start..end.min(start + step))
}

/// Tasks in whole numbers, each with as large a share of the others, by bytes, as it has among its like. Other tasks
/// are bundles of their own.
fn bundles(jobs: &[Job<'_>], bases: Vec<Task>, beside: &[Task]) -> Vec<Bundle> {
    let of = |task: &Task| jobs.get(task.job);
    let is_asking =
        |task: &Task| of(task).is_some_and(|job| matches!(job.factors, Factors::Integers(..)));
    let bytes = |task: &Task| of(task).map_or(0, |job| job.bytes() * task.panels.len());
    let asking = bases.iter().filter(|task| is_asking(task)).count();
    let all: usize = beside.iter().map(bytes).sum();
    let (mut number, mut given, mut before) = (0, 0, 0);
    let mut bundles = Vec::with_capacity(bases.len() + beside.len());
    for base in bases {
        let start = given;
        if is_asking(&base) {
            number += 1;
            // As far as this one's share goes; the last one's is the rest.
            while given < beside.len() && (number == asking || before * asking < all * number) {
                before += beside.get(given).map_or(0, bytes);
                given += 1;
            }
        }
        bundles.push(Bundle {
            base: Some(base),
            then: Then::Tasks(start..given),
        });
    }
    bundles.extend((given..beside.len()).map(|task| Bundle {
        base: None,
        then: Then::Tasks(task..task + 1),
    }));
    bundles
}

/// Bundles that have not come to their end.
struct Left(AtomicUsize);

impl Left {
    /// Until there are none.
    fn wait(&self) {
        let mut looks = 0_u32;
        while self.0.load(Ordering::Acquire) > 0 {
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

/// One of them, which ends with this, also by a panic.
struct One<'a>(&'a Left);

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

/// Runs all bundles with the threads of the current rayon pool, and what the second ones add once the first ones are
/// there. They are taken in this order, so that somebody is at work on whatever a thread waits for.
fn run(jobs: &[Job<'_>], (first, second): (&[Bundle], &[Bundle]), tasks: &[Task], threads: usize) {
    let isa = Isa::detect();
    let left = Left(AtomicUsize::new(first.len()));
    let at = |number: usize| match first.get(number) {
        Some(bundle) => Some(bundle),
        None => second.get(number - first.len()),
    };
    let of = |(job, panels): (usize, Range<usize>)| Some((jobs.get(job)?, panels));
    let run = |number: usize| -> Option<()> {
        let bundle = at(number)?;
        let _one = (number < first.len()).then(|| One(&left));
        if let Some(Task { job, panels }) = bundle.base.clone() {
            let (job, panels) = of((job, panels))?;
            let ahead = ahead(jobs, at(number + 1), bundle.then.each(tasks).filter_map(of));
            compute(isa, job, panels, ahead);
        }
        if number >= first.len() {
            left.wait();
        }
        for (job, panels) in bundle.then.each(tasks).filter_map(of) {
            compute(isa, job, panels, Ahead::default());
        }
        Some(())
    };
    let sum = |of_panel: &dyn Fn(&Job<'_>) -> usize| {
        let each = jobs.iter().map(|job| of_panel(job) * job.panels());
        each.sum::<usize>()
    };
    let is_small = sum(&|job| job.work()) < TASK_WORK && sum(&|job| job.bytes()) < TASK_BYTES;
    let next = AtomicUsize::new(0);
    let run_all = || while run(next.fetch_add(1, Ordering::Relaxed)).is_some() {};
    if threads < 2 || first.len() + second.len() < 2 || is_small {
        return run_all();
    }
    let threads = (0..threads).into_par_iter().with_max_len(1);
    threads.for_each(|_| run_all());
}

/// What a bundle reads after its panels of the base, and the first panels of the next one, which nobody else asks for.
fn ahead<'j>(
    jobs: &[Job<'_>],
    next: Option<&Bundle>,
    then: impl Iterator<Item = (&'j Job<'j>, Range<usize>)>,
) -> Ahead {
    let mut ahead = Ahead::default();
    let next = next.and_then(|bundle| bundle.base.as_ref());
    if let Some((job, task)) = next.and_then(|task| Some((jobs.get(task.job)?, task)))
        && let Factors::Integers(_, _, w) = &job.factors
    {
        w.ask_for_first(task.panels.clone(), &mut ahead);
    }
    for (job, panels) in then {
        match &job.factors {
            Factors::Floats(_, w) | Factors::After(_, _, w) => w.ask_for(panels, &mut ahead),
            Factors::Integers(_, _, w) => w.ask_for(panels, &mut ahead),
        }
    }
    ahead
}

/// Computes some panels of a job. Those that write what it reads have come to their end.
fn compute(isa: Isa, job: &Job<'_>, panels: Range<usize>, mut ahead: Ahead) {
    let (output, epilogue) = (job.output, job.epilogue);
    let floats = |x, w| part(isa, x, w, output, 0..job.rows, panels.clone(), epilogue);
    match &job.factors {
        Factors::Floats(x, w) => floats(*x, *w),
        Factors::After(inner, rows, w) => {
            let Some(before) = rows.checked_sub(1) else {
                return;
            };
            #[expect(unsafe_code, reason = "other jobs have written what this one reads")]
            // SAFETY: `Addition::job` has found these rows in a slice that outlives the loop, and nobody writes there any
            // more: `run` computes what reads it after all that write it.
            let values = unsafe {
                std::slice::from_raw_parts(
                    inner.start.cast_const(),
                    before * inner.stride + w.inputs(),
                )
            };
            let stride = inner.stride;
            floats(Rows { values, stride }, *w);
        }
        Factors::Integers(x, rows, w) => {
            x.multiply(rows.clone(), w, output, panels, epilogue, &mut ahead);
        }
    }
}

#[cfg(test)]
mod tests;
