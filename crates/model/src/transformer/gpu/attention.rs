//! Causal attention of one sequence in tiles of queries: no `[T, T]` tensor is ever whole. Backward computes each
//! tile's scores again (Dao et al. 2022, arXiv:2205.14135, section 3.1, without its fused kernel).

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use crate::config::LlamaConfig;

/// Scores of one tile at most, over all heads: 256 MiB in f32.
const TILE_SCORES: usize = 1 << 26;
/// Queries of one tile at least.
const TILE_QUERIES: usize = 16;
/// How the values of a row are cut into heads, and how far back queries see.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadCut {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: Option<usize>,
    /// What scores are multiplied with.
    scale: f64,
    /// Scores of one tile at most.
    tile_scores: usize,
}

/// Queries that are computed together, and the keys that one of them sees.
struct Tile {
    /// The first query's row.
    first: usize,
    queries: usize,
    /// The first query's position.
    position: usize,
    keys: Range<usize>,
}

/// One sequence's rotated queries and keys, and its values: `[rows, width]` each. The queries are of the last rows.
#[derive(Clone, Copy)]
pub(super) struct Projected<'a> {
    pub query: &'a Tensor,
    pub key: &'a Tensor,
    pub value: &'a Tensor,
}

impl HeadCut {
    /// What is added to a score to hide a key from a query.
    pub const HIDDEN: f64 = -1e30;

    pub fn new(config: &LlamaConfig, window: Option<usize>) -> Self {
        Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            dim: config.head_dim,
            window,
            scale: f64::from(config.score_scale()),
            tile_scores: TILE_SCORES,
        }
    }

    fn tiles(self, queries: usize, past: usize) -> impl Iterator<Item = Tile> {
        let affordable = self.tile_scores / (self.heads * (past + queries)).max(1);
        let size = affordable.max(TILE_QUERIES);
        (0..queries).step_by(size).map(move |first| {
            let (position, queries) = (past + first, size.min(queries - first));
            let oldest = |window| (position + 1).saturating_sub(window);
            Tile {
                first,
                queries,
                position,
                keys: self.window.map_or(0, oldest)..position + queries,
            }
        })
    }

    /// `[rows, kv_heads · dim]` as `[kv_heads, rows, dim]`.
    fn by_head(self, x: &Tensor) -> Result<Tensor> {
        let (rows, _) = x.dims2()?;
        x.reshape((rows, self.kv_heads, self.dim))?
            .transpose(0, 1)?
            .contiguous()
    }

    /// The way back from [`Self::by_head`].
    fn by_row(self, x: &Tensor) -> Result<Tensor> {
        let (_, rows, _) = x.dims3()?;
        x.transpose(0, 1)?
            .contiguous()?
            .reshape((rows, self.kv_heads * self.dim))
    }

    /// `[rows, heads · dim]` as `[kv_heads, group · rows, dim]`: the heads that share a key stand together.
    fn grouped(self, x: &Tensor) -> Result<Tensor> {
        let (rows, _) = x.dims2()?;
        let group = self.heads / self.kv_heads;
        x.reshape((rows, self.kv_heads, group, self.dim))?
            .permute((1, 2, 0, 3))?
            .contiguous()?
            .reshape((self.kv_heads, group * rows, self.dim))
    }

    /// The way back from [`Self::grouped`].
    fn ungrouped(self, x: &Tensor, rows: usize) -> Result<Tensor> {
        let group = self.heads / self.kv_heads;
        x.reshape((self.kv_heads, group, rows, self.dim))?
            .permute((2, 0, 1, 3))?
            .contiguous()?
            .reshape((rows, self.heads * self.dim))
    }

    /// Scaled scores in f32 `[heads, queries, keys]`, of what is not seen [`Self::HIDDEN`].
    fn scores(self, tile: &Tile, query: &Tensor, key: &Tensor) -> Result<Tensor> {
        let scores = self.products(tile, query, key)?;
        let scores = scores.affine(self.scale, 0.0)?;
        match self.mask(tile, query.device())? {
            Some(mask) => scores.broadcast_add(&mask),
            None => Ok(scores),
        }
    }

    /// `a · bᵀ` of a tile's grouped rows with its keys' or values', in f32 `[heads, queries, keys]`.
    fn products(self, tile: &Tile, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        a.matmul(&b.transpose(1, 2)?)?
            .to_dtype(DType::F32)?
            .reshape((self.heads, tile.queries, tile.keys.len()))
    }

    /// What hides each key from each query, `[queries, keys]`; none where all see all.
    fn mask(self, tile: &Tile, device: &Device) -> Result<Option<Tensor>> {
        if tile.queries == 1 {
            return Ok(None);
        }
        let numbers =
            |range: Range<usize>| Tensor::arange(range.start as f32, range.end as f32, device);
        let queries = numbers(tile.position..tile.position + tile.queries)?.unsqueeze(1)?;
        let keys = numbers(tile.keys.clone())?.unsqueeze(0)?;
        let mut hidden = keys.broadcast_gt(&queries)?;
        if let Some(window) = self.window {
            let oldest = queries.affine(1.0, -(window as f64))?;
            // No key is both too new and too old.
            hidden = hidden.add(&keys.broadcast_le(&oldest)?)?;
        }
        hidden
            .to_dtype(DType::F32)?
            .affine(Self::HIDDEN, 0.0)
            .map(Some)
    }

    /// A tile's weights or their gradients as its products take them, `[kv_heads, group · queries, keys]`.
    fn regrouped(self, x: &Tensor, tile: &Tile, dtype: DType) -> Result<Tensor> {
        let rows = self.heads / self.kv_heads * tile.queries;
        x.to_dtype(dtype)?
            .reshape((self.kv_heads, rows, tile.keys.len()))
    }

    /// What the queries' rows get, `[queries, heads · dim]`, and the logarithm of each softmax's sum, tile by tile.
    pub fn attend(self, inputs: Projected<'_>) -> Result<(Tensor, Vec<Tensor>)> {
        let (queries, _) = inputs.query.dims2()?;
        let (tokens, _) = inputs.key.dims2()?;
        let (key, value) = (self.by_head(inputs.key)?, self.by_head(inputs.value)?);
        let dtype = inputs.query.dtype();
        let (mut parts, mut log_sums) = (Vec::new(), Vec::new());
        for tile in self.tiles(queries, tokens.saturating_sub(queries)) {
            let query = self.grouped(&inputs.query.narrow(0, tile.first, tile.queries)?)?;
            let (start, count) = (tile.keys.start, tile.keys.len());
            let scores = self.scores(&tile, &query, &key.narrow(1, start, count)?)?;
            let most = scores.max_keepdim(2)?;
            let weights = scores.broadcast_sub(&most)?.exp()?;
            let sum = weights.sum_keepdim(2)?;
            let weights = self.regrouped(&weights.broadcast_div(&sum)?, &tile, dtype)?;
            let out = weights.matmul(&value.narrow(1, start, count)?)?;
            parts.push(self.ungrouped(&out, tile.queries)?);
            log_sums.push(most.add(&sum.log()?)?);
        }
        Ok((Tensor::cat(&parts, 0)?, log_sums))
    }

    /// One query of each of several sequences, `[sequences, heads · dim]`, over their keys and values, `tokens` rows of
    /// each. The mask hides what is not the sequence's.
    pub fn attend_next(
        self,
        inputs: Projected<'_>,
        tokens: usize,
        mask: &Tensor,
    ) -> Result<Tensor> {
        let (sequences, _) = inputs.query.dims2()?;
        let group = self.heads / self.kv_heads;
        let by_head = |x: &Tensor| {
            x.reshape((sequences, tokens, self.kv_heads, self.dim))?
                .transpose(1, 2)?
                .contiguous()
        };
        let query = (sequences, self.kv_heads, group, self.dim);
        let query = inputs.query.reshape(query)?;
        let (key, value) = (by_head(inputs.key)?, by_head(inputs.value)?);
        let scores = query.matmul(&key.transpose(2, 3)?)?;
        let scores = scores
            .to_dtype(DType::F32)?
            .affine(self.scale, 0.0)?
            .broadcast_add(mask)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(3)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(3)?)?;
        weights
            .to_dtype(inputs.query.dtype())?
            .matmul(&value)?
            .reshape((sequences, self.heads * self.dim))
    }

    /// The gradients of queries, keys and values, given what [`Self::attend`] made of them and the gradient of that.
    pub fn attend_backward(
        self,
        inputs: Projected<'_>,
        (out, log_sums): (&Tensor, &[Tensor]),
        dout: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let (tokens, _) = inputs.key.dims2()?;
        let dtype = inputs.query.dtype();
        let (key, value) = (self.by_head(inputs.key)?, self.by_head(inputs.value)?);
        let mut dkey = key.to_dtype(DType::F32)?.zeros_like()?;
        let mut dvalue = dkey.clone();
        let mut dqueries = Vec::new();
        for (tile, log_sum) in self.tiles(tokens, 0).zip(log_sums) {
            let rows = |x: &Tensor| x.narrow(0, tile.first, tile.queries);
            let (start, count) = (tile.keys.start, tile.keys.len());
            let seen = |x: &Tensor| x.narrow(1, start, count);
            let whole = |x: &Tensor| {
                x.to_dtype(DType::F32)?
                    .pad_with_zeros(1, start, tokens - tile.keys.end)
            };
            let (query, dout) = (self.grouped(&rows(inputs.query)?)?, rows(dout)?);
            let shared = self.shared(&rows(out)?, &dout)?;
            let dout = self.grouped(&dout)?;
            let weights = self.scores(&tile, &query, &seen(&key)?)?;
            let weights = weights.broadcast_sub(log_sum)?.exp()?;
            let dweights = self.products(&tile, &dout, &seen(&value)?)?;
            let dscores = dweights.broadcast_sub(&shared)?.mul(&weights)?;
            let dscores = dscores.affine(self.scale, 0.0)?;
            let dscores = self.regrouped(&dscores, &tile, dtype)?;
            let weights = self.regrouped(&weights, &tile, dtype)?;
            dvalue = dvalue.add(&whole(&weights.transpose(1, 2)?.matmul(&dout)?)?)?;
            dkey = dkey.add(&whole(&dscores.transpose(1, 2)?.matmul(&query)?)?)?;
            dqueries.push(self.ungrouped(&dscores.matmul(&seen(&key)?)?, tile.queries)?);
        }
        Ok([
            Tensor::cat(&dqueries, 0)?,
            self.by_row(&dkey)?.to_dtype(dtype)?,
            self.by_row(&dvalue)?.to_dtype(dtype)?,
        ])
    }

    /// `Σ out · dout` of every head and query, `[heads, queries, 1]`: what softmax's gradient subtracts.
    fn shared(self, out: &Tensor, dout: &Tensor) -> Result<Tensor> {
        let (rows, _) = out.dims2()?;
        out.to_dtype(DType::F32)?
            .mul(&dout.to_dtype(DType::F32)?)?
            .reshape((rows, self.heads, self.dim))?
            .sum_keepdim(2)?
            .transpose(0, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    const TOKENS: usize = 50;

    /// Grouped heads, in tiles of so many scores.
    fn heads(window: Option<usize>, tile_scores: usize) -> HeadCut {
        HeadCut {
            heads: 4,
            kv_heads: 2,
            dim: 8,
            window,
            scale: 0.3,
            tile_scores,
        }
    }

    fn rows(seed: u64, width: usize) -> Tensor {
        let stream = Stream::new(seed, &[]);
        let values: Vec<f32> = (0..(TOKENS * width) as u64)
            .map(|i| stream.normal(i) as f32)
            .collect();
        Tensor::from_vec(values, (TOKENS, width), &Device::Cpu).unwrap()
    }

    fn apart(a: &Tensor, b: &Tensor) -> f32 {
        let difference = a.sub(b).unwrap().abs().unwrap();
        let values = difference.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().fold(0.0, f32::max)
    }

    #[test]
    fn tiles_give_what_the_whole_gives() {
        let (query, key, value) = (rows(1, 32), rows(2, 16), rows(3, 16));
        let dout = rows(4, 32);
        let inputs = Projected {
            query: &query,
            key: &key,
            value: &value,
        };
        for window in [None, Some(7), Some(30)] {
            let (whole, tiled) = (heads(window, TILE_SCORES), heads(window, 0));
            assert_eq!(whole.tiles(TOKENS, 0).count(), 1);
            assert_eq!(tiled.tiles(TOKENS, 0).count(), 4);
            let (expected, sums) = whole.attend(inputs).unwrap();
            let (out, tiled_sums) = tiled.attend(inputs).unwrap();
            assert!(apart(&out, &expected) < 1e-5, "{window:?}");
            let expected = whole
                .attend_backward(inputs, (&expected, &sums), &dout)
                .unwrap();
            let gradients = tiled
                .attend_backward(inputs, (&out, &tiled_sums), &dout)
                .unwrap();
            for (gradient, expected) in gradients.iter().zip(&expected) {
                assert!(apart(gradient, expected) < 1e-4, "{window:?}");
            }
        }
    }

    #[test]
    fn a_later_query_sees_what_it_sees_among_all() {
        let (query, key, value) = (rows(1, 32), rows(2, 16), rows(3, 16));
        for window in [None, Some(7)] {
            let heads = heads(window, 0);
            let whole = Projected {
                query: &query,
                key: &key,
                value: &value,
            };
            let (expected, _) = heads.attend(whole).unwrap();
            for start in [1, 20, TOKENS - 1] {
                let count = TOKENS - start;
                let later = Projected {
                    query: &query.narrow(0, start, count).unwrap(),
                    ..whole
                };
                let (out, _) = heads.attend(later).unwrap();
                let expected = expected.narrow(0, start, count).unwrap();
                assert!(apart(&out, &expected) < 1e-5, "{window:?} from {start}");
            }
        }
    }
}
