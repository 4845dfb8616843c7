//! Rows of many sequences and adapters in one pass over the paged KV cache.
//!
//! The base product runs once for all rows; rows of one adapter stand together and add their own low-rank part
//! (`segments.rs`).
//! Every operation is row-wise with a fixed order, so that a row's bits do not depend on its company.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::attention::{head_queries, seen, tasks};
use super::awake::awake;
use super::forward::{activate_into, rms_norm, rms_norm_into};
use super::gpu::{GpuCache, GpuStep, GpuWeights, SequenceRows};
use super::memory::Memory;
use super::segments::{Segment, Updates};
use super::weights::{Llama, Place, Rotary, Weights};
use super::{ModelError, check_tokens};
use crate::config::LlamaConfig;
use crate::kernel::{self, Base, Epilogue, together};
use crate::kv::{CachedToken, KV_BLOCK_TOKENS, KvError, KvFormat, KvPool, KvSequence};
use crate::lora::{LoadedAdapter, Module};

/// Which of a step's rows the caller wants logits of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// None: a part of a prompt.
    None,
    /// The last one.
    Last,
    /// All.
    All,
}

/// What one sequence does in one pass: its next tokens, which continue where its cache ends.
#[derive(Debug)]
pub struct SequenceStep<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// The sequence's cache; it grows by the tokens.
    pub kv: &'a mut KvSequence,
    /// Its adapter; none: the bare base model.
    pub adapter: Option<&'a LoadedAdapter>,
    /// Which logits are wanted.
    pub logits: LogitRows,
}

/// Logits of one step. Cheap to clone: those of a pass share their memory.
#[derive(Debug, Clone)]
pub struct RowLogits {
    /// Of all steps.
    values: Arc<Vec<f32>>,
    /// Where this step's are.
    range: Range<usize>,
    vocabulary: usize,
}

impl PartialEq for RowLogits {
    fn eq(&self, other: &Self) -> bool {
        self.vocabulary == other.vocabulary && self.values() == other.values()
    }
}

impl RowLogits {
    fn values(&self) -> &[f32] {
        self.values.get(self.range.clone()).unwrap_or_default()
    }

    /// Rows that were asked for.
    pub fn rows(&self) -> usize {
        self.range.len() / self.vocabulary.max(1)
    }

    /// Logits of one of them, `[vocab_size]`; empty where it was not asked for.
    pub fn row(&self, row: usize) -> &[f32] {
        self.values()
            .get(row * self.vocabulary..(row + 1) * self.vocabulary)
            .unwrap_or_default()
    }

    /// Logits of the last row; empty where none was asked for.
    pub fn last(&self) -> &[f32] {
        self.rows().checked_sub(1).map_or(&[], |row| self.row(row))
    }
}

/// Where each row stands: which step it belongs to and its position in that sequence.
struct Row {
    step: usize,
    position: usize,
}

/// All rows of a pass. Rows of one adapter stand together; the order of steps within it is the caller's.
struct PassRows<'a> {
    rows: Vec<Row>,
    tokens: Vec<u32>,
    segments: Vec<Segment<'a>>,
}

impl<'a> PassRows<'a> {
    fn of(steps: &[SequenceStep<'a>]) -> Self {
        let mut order: Vec<usize> = (0..steps.len()).collect();
        let address = |step: &SequenceStep<'_>| step.adapter.map_or(0, LoadedAdapter::address);
        order.sort_by_key(|index| steps.get(*index).map_or(0, address));
        let (mut rows, mut tokens, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        for index in order {
            let Some(step) = steps.get(index) else {
                continue;
            };
            let start = rows.len();
            let past = step.kv.len();
            rows.extend((0..step.tokens.len()).map(|i| Row {
                step: index,
                position: past + i,
            }));
            tokens.extend_from_slice(step.tokens);
            if let Some(adapter) = step.adapter {
                match segments.last_mut() {
                    Some(Segment {
                        rows: range,
                        adapter: last,
                    }) if last.address() == adapter.address() => range.end = rows.len(),
                    _ => segments.push(Segment {
                        rows: start..rows.len(),
                        adapter,
                    }),
                }
            }
        }
        Self {
            rows,
            tokens,
            segments,
        }
    }

    /// The rows whose logits are wanted, each with its step, once the caches have grown.
    fn wanted(&self, steps: &[SequenceStep<'_>]) -> Vec<(usize, usize)> {
        let is_wanted = |row: &Row| {
            steps.get(row.step).is_some_and(|step| {
                let last = row.position + 1 == step.kv.len();
                step.logits == LogitRows::All || (step.logits == LogitRows::Last && last)
            })
        };
        let rows = self.rows.iter().enumerate();
        rows.filter(|(_, row)| is_wanted(row))
            .map(|(index, row)| (index, row.step))
            .collect()
    }
}

struct Batch<'a> {
    weights: &'a Weights,
    rows: &'a [Row],
    segments: &'a [Segment<'a>],
    /// What layers have let go of this pass.
    memory: &'a Memory,
}

impl Batch<'_> {
    /// The norm of every row.
    fn norm(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut y = self.memory.take(x.len());
        rms_norm_into(x, weight, self.weights.config.rms_norm_eps, &mut y);
        y
    }

    /// The norm of every row; without weights the rows as they are.
    fn optional_norm(&self, rows: Vec<f32>, weight: &[f32]) -> Vec<f32> {
        if weight.is_empty() {
            return rows;
        }
        let y = self.norm(&rows, weight);
        self.memory.give(rows);
        y
    }

    /// The gated activation of every row.
    fn activate(&self, gate: Vec<f32>, up: Vec<f32>) -> Vec<f32> {
        let mut y = self.memory.take(gate.len());
        activate_into(&self.weights.config, (&gate, &up), &mut y);
        self.memory.give(gate);
        self.memory.give(up);
        y
    }

    /// `y = W x + b + s B A x` for modules that read the same input, each row with its own adapter.
    fn project<const N: usize>(
        &self,
        layer: usize,
        modules: [Module; N],
        x: &[f32],
    ) -> [Vec<f32>; N] {
        let Some(weights) = self.weights.layers.get(layer) else {
            return modules.map(|_| Vec::new());
        };
        let rows = self.rows.len();
        let mut outputs = modules.map(|it| weights.linear(it).before(rows, self.memory));
        let mut updates = Updates::new(self.segments, layer, &modules);
        let bases = modules
            .iter()
            .zip(&mut outputs)
            .map(|(module, (y, epilogue))| {
                let linear = weights.linear(*module);
                let w = linear.weight(rows);
                if w.is_none() {
                    linear.forward(x, y, *epilogue);
                }
                Base {
                    x,
                    w,
                    y,
                    outputs: linear.outputs(),
                    epilogue: *epilogue,
                }
            });
        let additions = updates.expand(&modules);
        together(bases.collect(), updates.shrink(x), &additions);
        outputs.map(|(y, _)| y)
    }

    fn rotate(&self, rotary: &Rotary, rows: &mut [f32], width: usize) {
        /// A task has at least so many: each takes less than a microsecond.
        const ROWS: usize = 8;
        let rows = rows.par_chunks_exact_mut(width).zip(self.rows);
        rows.with_min_len(ROWS).for_each(|(values, row)| {
            let (cos, sin) = rotary.at(row.position);
            kernel::rotate(values, cos, sin, 1.0);
        });
    }

    fn attend(
        &self,
        layer: usize,
        query: &[f32],
        caches: &[&KvSequence],
        pool: &KvPool,
    ) -> Vec<f32> {
        let config = &self.weights.config;
        let (dim, group) = (config.head_dim, config.group_size());
        let scale = config.score_scale();
        let window = config.window(layer);
        let mut out = self.memory.take(query.len());
        let tasks = tasks(
            &self.stretches(),
            &mut out,
            config.num_key_value_heads,
            group * dim,
        );
        tasks
            .into_par_iter()
            .for_each_init(Vec::new, |scores, task| {
                let queries = query.chunks_exact(config.query_width());
                // Each side by itself: both together would step over every row before.
                let rows = self.rows.iter().skip(task.start);
                let rows = rows.zip(queries.skip(task.start)).zip(task.parts);
                let mut cache = None;
                let mut queries = Vec::new();
                for ((row, query), out) in rows {
                    cache = caches.get(row.step);
                    let keys = seen(row.position, window);
                    queries.extend(head_queries(query, task.kv_head, out, dim, keys));
                }
                if let Some(cache) = cache {
                    let blocks = pool.head(cache, layer, task.kv_head);
                    blocks.attend(&mut queries, scale, scores);
                }
            });
        out
    }

    /// Rows that stand together and read the same cache, a few at a time: each is a task for every key head.
    fn stretches(&self) -> Vec<usize> {
        /// So many read a head's keys while they are near, and are no more than a core should have alone.
        const MOST: usize = 32;
        let steps = self.rows.chunk_by(|row, next| row.step == next.step);
        let stretches = steps.flat_map(|rows| rows.chunks(MOST));
        stretches.map(<[Row]>::len).collect()
    }
}

impl Llama {
    /// One pass over the next tokens of each sequence; logits in the order of `steps`.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, positions past the model's, an adapter of another shape, or a full cache:
    /// then every sequence is as it was.
    pub fn forward_rows(
        &self,
        steps: &mut [SequenceStep<'_>],
        pool: &mut KvPool,
    ) -> Result<Vec<RowLogits>, ModelError> {
        check(steps, self.config(), pool)?;
        reserve(steps, pool)?;
        let rows = PassRows::of(steps);
        match &self.place {
            Place::Host(weights) => Ok(awake(|| on_host(weights, steps, &rows, pool))),
            Place::Gpu(weights) => on_gpu(weights, steps, &rows, pool),
        }
    }

    /// A pool of `blocks` KV blocks where this model computes, all memory taken at once.
    ///
    /// # Errors
    /// A GPU's memory is too small.
    pub fn kv_pool(&self, blocks: usize) -> Result<KvPool, ModelError> {
        self.kv_pool_of(blocks, KvFormat::F32)
    }

    /// The same with keys and values in this format, but on a GPU, whose cache is in bf16 whatever is asked for.
    ///
    /// # Errors
    /// A GPU's memory is too small.
    pub fn kv_pool_of(&self, blocks: usize, format: KvFormat) -> Result<KvPool, ModelError> {
        match &self.place {
            Place::Host(weights) => Ok(KvPool::of_format(&weights.config, blocks, format)),
            Place::Gpu(weights) => {
                let pool = KvPool::on_gpu(weights.config(), blocks, weights.accelerator());
                Ok(pool?)
            }
        }
    }

    /// Bytes of one block of such a pool.
    pub fn kv_block_bytes(&self, format: KvFormat) -> usize {
        match &self.place {
            Place::Host(weights) => KvPool::block_bytes_of(&weights.config, format),
            Place::Gpu(weights) => {
                KV_BLOCK_TOKENS * GpuCache::token_bytes(weights.config(), weights.accelerator())
            }
        }
    }
}

fn on_host(
    weights: &Weights,
    steps: &mut [SequenceStep<'_>],
    rows: &PassRows<'_>,
    pool: &mut KvPool,
) -> Vec<RowLogits> {
    let config = &weights.config;
    let memory = Memory::default();
    let batch = Batch {
        weights,
        rows: &rows.rows,
        segments: &rows.segments,
        memory: &memory,
    };
    let mut stream = weights.embed(rows.tokens.iter().copied());
    for (index, layer) in weights.layers.iter().enumerate() {
        let normed = batch.norm(&stream, &layer.input_norm);
        let modules = [Module::QProj, Module::KProj, Module::VProj];
        let [query, key, value] = batch.project(index, modules, &normed);
        memory.give(normed);
        let mut query = batch.optional_norm(query, &layer.query_norm);
        let mut key = batch.optional_norm(key, &layer.key_norm);
        batch.rotate(&layer.rotary, &mut query, config.query_width());
        batch.rotate(&layer.rotary, &mut key, config.key_width());
        let caches: Vec<&KvSequence> = steps.iter().map(|step| &*step.kv).collect();
        let vectors = key
            .chunks_exact(config.key_width())
            .zip(value.chunks_exact(config.key_width()));
        let tokens = batch.rows.iter().zip(vectors).map(|(row, (keys, values))| {
            let token = CachedToken {
                position: row.position,
                keys,
                values,
            };
            Some((*caches.get(row.step)?, token))
        });
        pool.write(index, tokens.flatten());
        let attended = batch.attend(index, &query, &caches, pool);
        for vector in [query, key, value] {
            memory.give(vector);
        }
        let [attention] = batch.project(index, [Module::OProj], &attended);
        memory.give(attended);
        let mut middle = batch.optional_norm(attention, &layer.attention_output_norm);
        kernel::add(&stream, &mut middle);
        let normed = batch.norm(&middle, &layer.post_norm);
        let modules = [Module::GateProj, Module::UpProj];
        let [gate, up] = batch.project(index, modules, &normed);
        memory.give(normed);
        let activated = batch.activate(gate, up);
        let [output] = batch.project(index, [Module::DownProj], &activated);
        memory.give(activated);
        memory.give(stream);
        stream = batch.optional_norm(output, &layer.feed_forward_output_norm);
        kernel::add(&middle, &mut stream);
        memory.give(middle);
    }
    advance(steps);
    let wanted = rows.wanted(steps);
    let width = config.hidden_size;
    let hidden: Vec<f32> = wanted
        .iter()
        .flat_map(|(row, _)| {
            stream
                .get(row * width..(row + 1) * width)
                .unwrap_or_default()
        })
        .copied()
        .collect();
    let normed = rms_norm(&hidden, &weights.final_norm, config.rms_norm_eps);
    let mut values = vec![0.0; wanted.len() * config.vocab_size];
    weights
        .output
        .forward(&normed, &mut values, Epilogue::Store);
    by_step(steps.len(), &wanted, values, config.vocab_size)
}

fn on_gpu(
    weights: &GpuWeights,
    steps: &mut [SequenceStep<'_>],
    rows: &PassRows<'_>,
    pool: &KvPool,
) -> Result<Vec<RowLogits>, ModelError> {
    let Some(cache) = pool.gpu() else {
        return Err(ModelError::ForeignPool);
    };
    let mut sequences: Vec<SequenceRows> = Vec::new();
    for (index, row) in rows.rows.iter().enumerate() {
        let Some(step) = steps.get(row.step) else {
            continue;
        };
        // A step's rows stand together, and its first one continues where its cache ends.
        if row.position == step.kv.len() {
            sequences.push(SequenceRows {
                rows: index..index + 1,
                places: step.kv.places(step.kv.len() + step.tokens.len()),
            });
        } else if let Some(sequence) = sequences.last_mut() {
            sequence.rows.end = index + 1;
        }
    }
    let adapters = rows
        .segments
        .iter()
        .map(|segment| -> Result<_, ModelError> {
            let updates = segment.adapter.on_gpu(weights.accelerator())?;
            Ok((segment.rows.clone(), updates))
        });
    let step = GpuStep {
        weights,
        cache,
        sequences,
        adapters: adapters.collect::<Result<_, _>>()?,
    };
    if rows.rows.is_empty() {
        return Ok(by_step(
            steps.len(),
            &[],
            Vec::new(),
            weights.config().vocab_size,
        ));
    }
    let hidden = step.run(&rows.tokens)?;
    advance(steps);
    let wanted = rows.wanted(steps);
    let values = step.logits(&hidden, wanted.iter().map(|(row, _)| *row as u32).collect())?;
    let vocabulary = weights.config().vocab_size;
    Ok(by_step(steps.len(), &wanted, values, vocabulary))
}

fn advance(steps: &mut [SequenceStep<'_>]) {
    for step in steps {
        step.kv.advance(step.tokens.len());
    }
}

fn check(
    steps: &[SequenceStep<'_>],
    config: &LlamaConfig,
    pool: &KvPool,
) -> Result<(), ModelError> {
    for step in steps {
        check_tokens(step.tokens, config)?;
        let tokens = step.kv.len() + step.tokens.len();
        if tokens > config.max_position_embeddings {
            return Err(ModelError::Length {
                tokens,
                limit: config.max_position_embeddings,
            });
        }
        if !pool.owns(step.kv) {
            return Err(ModelError::ForeignSequence);
        }
        if step.adapter.is_some_and(|adapter| !adapter.fits(config)) {
            return Err(ModelError::ForeignAdapter);
        }
    }
    Ok(())
}

/// Makes room for all steps, or for none.
fn reserve(steps: &mut [SequenceStep<'_>], pool: &KvPool) -> Result<(), ModelError> {
    let total = |step: &SequenceStep<'_>| step.kv.len() + step.tokens.len();
    let needed = steps
        .iter()
        .map(|step| step.kv.missing_blocks(total(step)))
        .sum();
    let free = pool.free_blocks();
    if needed > free {
        return Err(KvError::Exhausted { needed, free }.into());
    }
    for step in steps {
        let tokens = total(step);
        step.kv.reserve(tokens)?;
    }
    Ok(())
}

/// The logits of the wanted rows, `[rows, vocabulary]`, by the step that wants them. A step's rows stand together.
fn by_step(
    steps: usize,
    wanted: &[(usize, usize)],
    values: Vec<f32>,
    vocabulary: usize,
) -> Vec<RowLogits> {
    let values = Arc::new(values);
    let none = || RowLogits {
        values: Arc::clone(&values),
        range: 0..0,
        vocabulary,
    };
    let mut out: Vec<RowLogits> = std::iter::repeat_with(none).take(steps).collect();
    for (row, (_, step)) in wanted.iter().enumerate() {
        if let Some(logits) = out.get_mut(*step) {
            let start = if logits.range.is_empty() {
                row * vocabulary
            } else {
                logits.range.start
            };
            logits.range = start..(row + 1) * vocabulary;
        }
    }
    out
}
