//! Attention of whole sequences, for training: each sequence is a task of its own.

use std::ops::Range;

use rayon::prelude::*;

use super::weights::{Rotary, Weights};
use crate::kernel::{
    BLOCK_TOKENS, HeadBlocks, HeadRows, QueryGradient, attend, attend_backward, write_token,
    write_transposed,
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

/// Causal attention within each sequence. `out` is `[rows, heads · head_dim]`, `log_sums` `[rows, heads]`.
pub(super) fn attend_segments(
    weights: &Weights,
    segments: &[usize],
    inputs: &Projections<'_>,
    out: &mut [f32],
    log_sums: &mut [f32],
) {
    let config = &weights.config;
    let (dim, group, heads) = (
        config.head_dim,
        config.group_size(),
        config.num_attention_heads,
    );
    let (query_width, key_width) = (config.query_width(), config.key_width());
    let scale = config.score_scale();
    let mut tasks = Vec::with_capacity(segments.len());
    let (mut out, mut log_sums) = (out, log_sums);
    let mut start = 0;
    for tokens in segments {
        let (out_here, out_rest) = out.split_at_mut(tokens * query_width);
        let (sums_here, sums_rest) = log_sums.split_at_mut(tokens * heads);
        tasks.push((start, *tokens, out_here, sums_here));
        (out, log_sums) = (out_rest, sums_rest);
        start += tokens;
    }
    tasks
        .into_par_iter()
        .for_each(|(start, tokens, out, log_sums)| {
            let query = slice(inputs.query, start, tokens, query_width);
            let key = slice(inputs.key, start, tokens, key_width);
            let value = slice(inputs.value, start, tokens, key_width);
            let mut blocks = Blocks::new(tokens, dim);
            let mut scores = Vec::new();
            for kv_head in 0..config.num_key_value_heads {
                blocks.fill((key, value), (key_width, kv_head * dim), write_token);
                for head in kv_head * group..(kv_head + 1) * group {
                    let rows = query
                        .chunks_exact(query_width)
                        .zip(out.chunks_exact_mut(query_width));
                    for (token, ((query, out), sums)) in
                        rows.zip(log_sums.chunks_exact_mut(heads)).enumerate()
                    {
                        let range = head * dim..(head + 1) * dim;
                        if let (Some(query), Some(out), Some(sum)) = (
                            query.get(range.clone()),
                            out.get_mut(range),
                            sums.get_mut(head),
                        ) {
                            let keys = seen(token, inputs.window);
                            *sum = attend(query, blocks.head(), keys, scale, &mut scores, out);
                        }
                    }
                }
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

/// Adds the gradients of [`attend_segments`], given that of its output.
pub(super) fn attend_segments_backward(
    weights: &Weights,
    segments: &[usize],
    forward: &Attended<'_>,
    dout: &[f32],
    gradients: ProjectionGradients<'_>,
) {
    let config = &weights.config;
    let (dim, group, heads) = (
        config.head_dim,
        config.group_size(),
        config.num_attention_heads,
    );
    let (query_width, key_width) = (config.query_width(), config.key_width());
    let scale = config.score_scale();
    let mut tasks = Vec::with_capacity(segments.len());
    let ProjectionGradients {
        mut query,
        mut key,
        mut value,
    } = gradients;
    let mut start = 0;
    for tokens in segments {
        let (query_here, query_rest) = query.split_at_mut(tokens * query_width);
        let (key_here, key_rest) = key.split_at_mut(tokens * key_width);
        let (value_here, value_rest) = value.split_at_mut(tokens * key_width);
        tasks.push((start, *tokens, query_here, key_here, value_here));
        (query, key, value) = (query_rest, key_rest, value_rest);
        start += tokens;
    }
    tasks
        .into_par_iter()
        .for_each(|(start, tokens, dquery, dkey, dvalue)| {
            let query = slice(forward.inputs.query, start, tokens, query_width);
            let key = slice(forward.inputs.key, start, tokens, key_width);
            let value = slice(forward.inputs.value, start, tokens, key_width);
            let out = slice(forward.out, start, tokens, query_width);
            let dout = slice(dout, start, tokens, query_width);
            let log_sums = slice(forward.log_sums, start, tokens, heads);
            let mut blocks = Blocks::new(tokens, dim);
            let half = BLOCK_TOKENS * dim;
            for kv_head in 0..config.num_key_value_heads {
                let offset = kv_head * dim;
                blocks.fill(
                    (key, value),
                    (key_width, offset),
                    |block, slot, key, value| {
                        let (keys, values) = block.split_at_mut(half);
                        write_transposed(keys, slot, key);
                        write_transposed(values, slot, value);
                    },
                );
                let keys = HeadRows {
                    data: key.get(offset..).unwrap_or_default(),
                    stride: key_width,
                };
                for head in kv_head * group..(kv_head + 1) * group {
                    for token in 0..tokens {
                        let range = token * query_width + head * dim
                            ..token * query_width + (head + 1) * dim;
                        if let (
                            Some(query),
                            Some(dout),
                            Some(out),
                            Some(log_sum),
                            Some(dquery),
                            Some(dkey),
                            Some(dvalue),
                        ) = (
                            query.get(range.clone()),
                            dout.get(range.clone()),
                            out.get(range.clone()),
                            log_sums.get(token * heads + head),
                            dquery.get_mut(range),
                            dkey.get_mut(offset..),
                            dvalue.get_mut(offset..),
                        ) {
                            let row = QueryGradient {
                                query,
                                dout,
                                out,
                                log_sum: *log_sum,
                                keys: seen(token, forward.inputs.window),
                                scale,
                            };
                            attend_backward(row, blocks.head(), keys, dkey, dvalue, dquery);
                        }
                    }
                }
            }
        });
}

fn slice(rows: &[f32], start: usize, count: usize, width: usize) -> &[f32] {
    rows.get(start * width..(start + count) * width)
        .unwrap_or_default()
}
