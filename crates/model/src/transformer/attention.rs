//! Attention of whole sequences, for training: each key head of each sequence is a task of its own, so that one long
//! sequence keeps every thread busy. What a task sums up is its own, in token order, whoever else works.

use std::ops::Range;

use rayon::prelude::*;

use super::weights::{Rotary, Weights};
use crate::kernel::{
    BLOCK_TOKENS, HeadBlocks, HeadQuery, HeadRows, QueryGradient, attend, attend_backward,
    write_token, write_transposed,
};

/// The rotated queries and keys, and the values, of one layer, and how far back its queries see.
pub(super) struct Projections<'a> {
    /// `[rows, heads · head_dim]`
    pub query: &'a [f32],
    /// `[rows, kv_heads · head_dim]`
    pub key: &'a [f32],
    /// `[rows, kv_heads · head_dim]`
    pub value: &'a [f32],
    /// Tokens that a query sees, itself included; none: all before it.
    pub window: Option<usize>,
}

/// Gradients of [`Projections`], of the same shapes.
pub(super) struct ProjectionGradients<'a> {
    pub query: &'a mut [f32],
    pub key: &'a mut [f32],
    pub value: &'a mut [f32],
}

/// Rotates the heads of all rows; `sign` is 1 forward and -1 backward.
pub(super) fn rotate_rows(
    rotary: &Rotary,
    segments: &[usize],
    rows: &mut [f32],
    width: usize,
    sign: f32,
) {
    let positions: Vec<usize> = segments.iter().flat_map(|tokens| 0..*tokens).collect();
    rows.par_chunks_mut(width)
        .zip(positions)
        .for_each(|(row, position)| {
            let (cos, sin) = rotary.at(position);
            crate::kernel::rotate(row, cos, sin, sign);
        });
}

/// One head of one sequence as blocks that stand one behind the other.
struct Blocks {
    storage: Vec<f32>,
    table: Vec<u32>,
    head_dim: usize,
}

impl Blocks {
    fn new(tokens: usize, head_dim: usize) -> Self {
        let blocks = tokens.div_ceil(BLOCK_TOKENS);
        let table = (0..u32::try_from(blocks).unwrap_or(u32::MAX)).collect();
        Self {
            storage: vec![0.0; blocks * HeadBlocks::head_size(head_dim)],
            table,
            head_dim,
        }
    }

    /// Writes every token's key and value by `write`.
    fn fill(
        &mut self,
        (keys, values): (&[f32], &[f32]),
        (stride, offset): (usize, usize),
        write: impl Fn(&mut [f32], usize, &[f32], &[f32]),
    ) {
        let size = HeadBlocks::head_size(self.head_dim);
        let rows = keys
            .chunks_exact(stride)
            .zip(values.chunks_exact(stride))
            .enumerate();
        for (token, (key, value)) in rows {
            let head = offset..offset + self.head_dim;
            let block = token / BLOCK_TOKENS * size;
            if let (Some(block), Some(key), Some(value)) = (
                self.storage.get_mut(block..block + size),
                key.get(head.clone()),
                value.get(head),
            ) {
                write(block, token % BLOCK_TOKENS, key, value);
            }
        }
    }

    fn head(&self) -> HeadBlocks<'_> {
        HeadBlocks {
            storage: &self.storage,
            table: &self.table,
            stride: HeadBlocks::head_size(self.head_dim),
            offset: 0,
            head_dim: self.head_dim,
        }
    }
}

/// The tokens that the query at `position` sees. The same for training and serving.
pub(super) fn seen(position: usize, window: Option<usize>) -> Range<usize> {
    let end = position + 1;
    window.map_or(0, |tokens| end.saturating_sub(tokens))..end
}

/// The queries of a row that read one key head, and where they answer: `out` is what that head has of the row.
pub(super) fn head_queries<'a>(
    row: &'a [f32],
    kv_head: usize,
    out: &'a mut [f32],
    dim: usize,
    keys: Range<usize>,
) -> impl Iterator<Item = HeadQuery<'a>> {
    let heads = kv_head * out.len()..(kv_head + 1) * out.len();
    let queries = row.get(heads).unwrap_or_default().chunks_exact(dim);
    let both = queries.zip(out.chunks_exact_mut(dim));
    both.map(move |(query, out)| HeadQuery {
        query,
        keys: keys.clone(),
        out,
        log_sum: 0.0,
    })
}

/// One key head of one sequence: a task of its own. Heads interleave in a row, so that a task has its part of
/// every token.
pub(super) struct Task<'a> {
    /// The sequence's first row.
    pub start: usize,
    pub kv_head: usize,
    /// Of every token what the task writes.
    pub parts: Vec<&'a mut [f32]>,
}

/// Cuts `[rows, kv_heads · width]` into the tasks of every sequence and key head.
pub(super) fn tasks<'a>(
    segments: &[usize],
    rows: &'a mut [f32],
    kv_heads: usize,
    width: usize,
) -> Vec<Task<'a>> {
    let mut tasks = Vec::with_capacity(segments.len() * kv_heads);
    let (mut rest, mut start) = (rows, 0);
    for tokens in segments {
        let (here, after) = rest.split_at_mut(tokens * kv_heads * width);
        let first = tasks.len();
        tasks.extend((0..kv_heads).map(|kv_head| Task {
            start,
            kv_head,
            parts: Vec::with_capacity(*tokens),
        }));
        for (number, part) in here.chunks_exact_mut(width).enumerate() {
            if let Some(task) = tasks.get_mut(first + number % kv_heads) {
                task.parts.push(part);
            }
        }
        (rest, start) = (after, start + tokens);
    }
    tasks
}

/// Causal attention within each sequence. `out` is `[rows, heads · head_dim]`, `log_sums` `[rows, heads]`.
pub(super) fn attend_segments(
    weights: &Weights,
    segments: &[usize],
    inputs: &Projections<'_>,
    out: &mut [f32],
    log_sums: &mut [f32],
) {
    let config = &weights.config;
    let (dim, group) = (config.head_dim, config.group_size());
    let (query_width, key_width) = (config.query_width(), config.key_width());
    let kv_heads = config.num_key_value_heads;
    let scale = config.score_scale();
    let outs = tasks(segments, out, kv_heads, group * dim);
    let sums = tasks(segments, log_sums, kv_heads, group);
    let tasks = outs.into_par_iter().with_max_len(1).zip(sums);
    tasks.for_each(|(task, sums)| {
        let Task {
            start,
            kv_head,
            parts,
        } = task;
        let tokens = parts.len();
        let query = slice(inputs.query, start, tokens, query_width);
        let key = slice(inputs.key, start, tokens, key_width);
        let value = slice(inputs.value, start, tokens, key_width);
        let mut blocks = Blocks::new(tokens, dim);
        blocks.fill((key, value), (key_width, kv_head * dim), write_token);
        let mut queries = Vec::with_capacity(tokens * group);
        let rows = query.chunks_exact(query_width).zip(parts).enumerate();
        for (token, (query, out)) in rows {
            let keys = seen(token, inputs.window);
            queries.extend(head_queries(query, kv_head, out, dim, keys));
        }
        attend(&mut queries, blocks.head(), scale, &mut Vec::new());
        let sums = sums.parts.into_iter().flatten();
        for (sum, query) in sums.zip(queries) {
            *sum = query.log_sum;
        }
    });
}

/// What backward knows of the forward pass.
pub(super) struct Attended<'a> {
    pub inputs: Projections<'a>,
    /// `[rows, heads · head_dim]`
    pub out: &'a [f32],
    /// `[rows, heads]`
    pub log_sums: &'a [f32],
}

/// Writes the gradients of [`attend_segments`], given that of its output.
pub(super) fn attend_segments_backward(
    weights: &Weights,
    segments: &[usize],
    forward: &Attended<'_>,
    dout: &[f32],
    gradients: ProjectionGradients<'_>,
) {
    let config = &weights.config;
    let (dim, group) = (config.head_dim, config.group_size());
    let kv_heads = config.num_key_value_heads;
    let queries = tasks(segments, gradients.query, kv_heads, group * dim);
    let keys = tasks(segments, gradients.key, kv_heads, dim);
    let values = tasks(segments, gradients.value, kv_heads, dim);
    let tasks = queries
        .into_par_iter()
        .with_max_len(1)
        .zip(keys)
        .zip(values);
    tasks.for_each(|((query, key), value)| {
        head_backward(weights, forward, dout, (query, key.parts, value.parts));
    });
}

/// The gradients of one key head of one sequence.
fn head_backward(
    weights: &Weights,
    forward: &Attended<'_>,
    dout: &[f32],
    (task, dkeys, dvalues): (Task<'_>, Vec<&mut [f32]>, Vec<&mut [f32]>),
) {
    let config = &weights.config;
    let (dim, group, heads) = (
        config.head_dim,
        config.group_size(),
        config.num_attention_heads,
    );
    let (query_width, key_width) = (config.query_width(), config.key_width());
    let scale = config.score_scale();
    let Task {
        start,
        kv_head,
        parts: mut dqueries,
    } = task;
    let tokens = dqueries.len();
    let offset = kv_head * dim;
    let query = slice(forward.inputs.query, start, tokens, query_width);
    let key = slice(forward.inputs.key, start, tokens, key_width);
    let value = slice(forward.inputs.value, start, tokens, key_width);
    let out = slice(forward.out, start, tokens, query_width);
    let dout = slice(dout, start, tokens, query_width);
    let log_sums = slice(forward.log_sums, start, tokens, heads);
    let mut blocks = Blocks::new(tokens, dim);
    let half = BLOCK_TOKENS * dim;
    blocks.fill(
        (key, value),
        (key_width, offset),
        |block, slot, key, value| {
            let (keys, values) = block.split_at_mut(half);
            write_transposed(keys, slot, key);
            write_transposed(values, slot, value);
        },
    );
    // Every query adds to the gradients of all keys that it sees: they stand together, and go where they belong
    // once they are whole.
    let (mut dkey, mut dvalue) = (vec![0.0; tokens * dim], vec![0.0; tokens * dim]);
    let keys: Vec<f32> = key
        .chunks_exact(key_width)
        .filter_map(|row| row.get(offset..offset + dim))
        .flatten()
        .copied()
        .collect();
    let keys = HeadRows {
        data: &keys,
        stride: dim,
    };
    for head in kv_head * group..(kv_head + 1) * group {
        let of_group = (head - kv_head * group) * dim;
        for (token, dquery) in dqueries.iter_mut().enumerate() {
            let range = token * query_width + head * dim..token * query_width + (head + 1) * dim;
            if let (Some(query), Some(dout), Some(out), Some(log_sum), Some(dquery)) = (
                query.get(range.clone()),
                dout.get(range.clone()),
                out.get(range),
                log_sums.get(token * heads + head),
                dquery.get_mut(of_group..of_group + dim),
            ) {
                let row = QueryGradient {
                    query,
                    dout,
                    out,
                    log_sum: *log_sum,
                    keys: seen(token, forward.inputs.window),
                    scale,
                };
                dquery.fill(0.0);
                attend_backward(row, blocks.head(), keys, &mut dkey, &mut dvalue, dquery);
            }
        }
    }
    for (parts, sums) in [(dkeys, &dkey), (dvalues, &dvalue)] {
        for (part, sum) in parts.into_iter().zip(sums.chunks_exact(dim)) {
            part.copy_from_slice(sum);
        }
    }
}

fn slice(rows: &[f32], start: usize, count: usize, width: usize) -> &[f32] {
    rows.get(start * width..(start + count) * width)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_head_of_each_sequence_is_a_task_with_its_part_of_every_token() {
        let (kv_heads, width, segments) = (3, 2, [4, 0, 1]);
        let mut rows = vec![0.0; 5 * kv_heads * width];
        let tasks = tasks(&segments, &mut rows, kv_heads, width);
        let found: Vec<_> = tasks
            .iter()
            .map(|task| (task.start, task.kv_head, task.parts.len()))
            .collect();
        let expected = [(0, 4), (4, 0), (4, 1)].into_iter();
        let expected: Vec<_> = expected
            .flat_map(|(start, tokens)| (0..3).map(move |head| (start, head, tokens)))
            .collect();
        assert_eq!(found, expected);
        for task in tasks {
            for (token, part) in task.parts.into_iter().enumerate() {
                part.fill((10 * (task.start + token) + task.kv_head) as f32);
            }
        }
        let expected = (0..5).flat_map(|row| (0..3).flat_map(move |head| [10 * row + head; 2]));
        assert_eq!(rows, expected.map(|value| value as f32).collect::<Vec<_>>());
    }
}
