use super::*;
use crate::random::Stream;

/// A cache of nothing but this head.
fn one_head<'a, T>(storage: &'a [T], table: &'a [u32], head_dim: usize) -> HeadBlocks<'a, T> {
    HeadBlocks {
        storage,
        table,
        stride: HeadBlocks::head_size(head_dim),
        offset: 0,
        head_dim,
    }
}

#[test]
fn equals_softmax_in_double_precision() {
    let (dim, tokens, scale) = (24, 37, 0.2);
    let stream = Stream::new(5, &[]);
    let value = |i: usize| stream.normal(i as u64) as f32;
    let query: Vec<f32> = (0..dim).map(value).collect();
    let keys: Vec<f32> = (0..tokens * dim).map(|i| value(1000 + i)).collect();
    let values: Vec<f32> = (0..tokens * dim).map(|i| value(5000 + i)).collect();
    let size = HeadBlocks::head_size(dim);
    let table = [2, 0, 1];
    // What lies past the last token must not matter, not even NaN.
    let mut storage = vec![f32::NAN; 3 * size];
    for token in 0..tokens {
        let block = table[token / BLOCK_TOKENS] as usize * size;
        let range = token * dim..(token + 1) * dim;
        write_token(
            &mut storage[block..block + size],
            token % BLOCK_TOKENS,
            &keys[range.clone()],
            &values[range],
        );
    }
    let cache = one_head(&storage, &table, dim);
    let scores: Vec<f64> = keys
        .chunks_exact(dim)
        .map(|key| {
            let dot: f64 = key
                .iter()
                .zip(&query)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum();
            (dot * f64::from(scale)).exp()
        })
        .collect();
    // All tokens, a window from within a block, one from a block's start, a single token.
    for (start, end) in [(0, tokens), (11, tokens), (16, 31), (36, 37)] {
        let mut out = vec![0.0; dim];
        let mut queries = [HeadQuery {
            query: &query,
            keys: start..end,
            out: &mut out,
            log_sum: 0.0,
        }];
        attend(&mut queries, cache, scale, &mut Vec::new());
        let log_sum = queries[0].log_sum;
        let sum: f64 = scores[start..end].iter().sum();
        assert!((f64::from(log_sum) - sum.ln()).abs() < 1e-5);
        for d in 0..dim {
            let exact: f64 = (start..end)
                .map(|t| scores[t] * f64::from(values[t * dim + d]))
                .sum::<f64>()
                / sum;
            assert!((f64::from(out[d]) - exact).abs() < 1e-5, "{start}, {d}");
        }
    }
}

#[test]
fn a_cache_in_f16_has_the_bits_of_its_values_in_f32() {
    for dim in [8, 16, 24, 48, 64, 120, 128] {
        let (tokens, stream) = (37, Stream::new(6, &[dim as u64]));
        let value = |i: usize| stream.normal(i as u64) as f32;
        let query: Vec<f32> = (0..dim).map(value).collect();
        let size = HeadBlocks::head_size(dim);
        let table = [2, 0, 1];
        let (mut wide, mut narrow) = (vec![0.0; 3 * size], vec![0_u16; 3 * size]);
        for token in 0..tokens {
            let vector = |first: usize| -> Vec<f32> {
                (0..dim).map(|i| value(first + token * dim + i)).collect()
            };
            let rounded = |vector: &[f32]| -> Vec<f32> {
                let bits = vector.iter().map(|value| u16::of(*value));
                bits.map(Stored::widened).collect()
            };
            let (key, of_key) = (vector(1000), vector(9000));
            let place = table[token / BLOCK_TOKENS] as usize * size;
            let (place, slot) = (place..place + size, token % BLOCK_TOKENS);
            write_token_f16(&mut narrow[place.clone()], slot, &key, &of_key);
            write_token(&mut wide[place], slot, &rounded(&key), &rounded(&of_key));
        }
        let blocks = one_head(&wide, &table, dim);
        let halves = one_head(&narrow, &table, dim);
        for keys in [0..tokens, 11..tokens, 16..31, 36..37] {
            let (mut out, mut of_halves) = (vec![0.0; dim], vec![0.0; dim]);
            let of = |out| HeadQuery {
                query: &query,
                keys: keys.clone(),
                out,
                log_sum: 0.0,
            };
            let (mut wide, mut narrow) = ([of(&mut out)], [of(&mut of_halves)]);
            attend(&mut wide, blocks, 0.2, &mut Vec::new());
            attend_f16(&mut narrow, halves, 0.2, &mut Vec::new());
            let (sum, other) = (wide[0].log_sum, narrow[0].log_sum);
            assert_eq!(sum.to_bits(), other.to_bits(), "{dim} {keys:?}");
            let bits = |values: &[f32]| -> Vec<u32> {
                values.iter().map(|value| value.to_bits()).collect()
            };
            assert_eq!(bits(&out), bits(&of_halves), "{dim} {keys:?}");
        }
    }
}

#[test]
fn queries_together_have_the_bits_of_each_alone() {
    for dim in [8, 24, 64, 72, 128] {
        let (tokens, stream) = (70, Stream::new(7, &[dim as u64]));
        let vector = |number: usize| -> Vec<f32> {
            let from = (number * dim) as u64;
            (0..dim as u64)
                .map(|i| stream.normal(from + i) as f32)
                .collect()
        };
        let size = HeadBlocks::head_size(dim);
        let table = [4, 2, 0, 1, 3];
        // What nobody has written yet is read by none of them, not even beside one that reads on.
        let mut storage = vec![f32::NAN; 5 * size];
        for token in 0..tokens {
            let block = table[token / BLOCK_TOKENS] as usize * size;
            let block = &mut storage[block..block + size];
            let (key, value) = (vector(1000 + token), vector(2000 + token));
            write_token(block, token % BLOCK_TOKENS, &key, &value);
        }
        let cache = one_head(&storage, &table, dim);
        // Two heads of each row; of rows one after the other, with a window, and of rows far apart.
        let rows = (58..tokens).map(|row| (0, row + 1));
        let windows = (30..50).map(|row| (row - 20, row + 1));
        let apart = [(0, 1), (0, 70), (0, 17), (40, 41), (0, 64), (0, 65)];
        let keys: Vec<Range<usize>> = rows
            .chain(windows)
            .chain(apart)
            .flat_map(|(start, end)| [start..end, start..end])
            .collect();
        let vectors: Vec<Vec<f32>> = (0..keys.len()).map(vector).collect();
        let answers = |together: usize| -> Vec<(u32, Vec<u32>)> {
            let mut outs = vec![vec![0.0; dim]; keys.len()];
            let mut queries: Vec<HeadQuery<'_>> = vectors
                .iter()
                .zip(&mut outs)
                .zip(&keys)
                .map(|((query, out), keys)| HeadQuery {
                    query,
                    keys: keys.clone(),
                    out,
                    log_sum: 0.0,
                })
                .collect();
            for queries in queries.chunks_mut(together) {
                attend(queries, cache, 0.2, &mut Vec::new());
            }
            let bits = |query: HeadQuery<'_>| {
                let out = query.out.iter().map(|value| value.to_bits());
                (query.log_sum.to_bits(), out.collect())
            };
            queries.into_iter().map(bits).collect()
        };
        let alone = answers(1);
        assert!(
            alone
                .iter()
                .all(|(sum, _)| f32::from_bits(*sum).is_finite())
        );
        for together in [2, 3, 4, 7, 100] {
            assert!(answers(together) == alone, "{dim}, {together} together");
        }
    }
}

#[test]
fn every_f16_is_loaded_as_what_it_is_and_what_is_too_large_is_the_largest() {
    for bits in 0..=u16::MAX {
        if !f16::from_bits(bits).is_finite() {
            continue;
        }
        let mut lanes = [0.0_f32; LANES];
        <[f32; LANES]>::load_f16(&[bits; LANES]).store(&mut lanes);
        assert_eq!(lanes[3].to_bits(), f16::from_bits(bits).to_f32().to_bits());
        assert_eq!(u16::of(lanes[3]), bits);
    }
    assert_eq!(u16::of(1.0e9).widened().to_bits(), 65504.0_f32.to_bits());
    assert_eq!(
        u16::of(f32::NEG_INFINITY).widened().to_bits(),
        (-65504.0_f32).to_bits()
    );
}

/// One token after the other, each with all of its columns.
fn backward_plainly(
    row: &QueryGradient<'_>,
    (keys, values): (&[f32], &[f32]),
    [dkeys, dvalues, dquery]: [&mut [f32]; 3],
) {
    type Plain = [f32; LANES];
    let dim = row.query.len();
    let add = |a: f32, x: &[f32], y: &mut [f32]| {
        for (y, x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    };
    let shared: f32 = row
        .dout
        .iter()
        .zip(row.out)
        .fold(0.0, |sum, (d, o)| sum + d * o);
    for token in row.keys.clone() {
        let range = token * dim..(token + 1) * dim;
        // A block whose first column is this token.
        let column = |vector: &[f32]| -> Vec<f32> {
            let lines = vector
                .iter()
                .map(|value| [[*value].as_slice(), &[0.0; 15]].concat());
            lines.collect::<Vec<_>>().concat()
        };
        let key = &keys[range.clone()];
        let [[score, ..]] = dot_columns::<Plain, f32, 1>([row.query], &column(key));
        let [[by_value, ..]] =
            dot_columns::<Plain, f32, 1>([row.dout], &column(&values[range.clone()]));
        let weight = exp(score * row.scale - row.log_sum);
        let gradient = weight * (by_value - shared) * row.scale;
        add(gradient, key, dquery);
        add(gradient, row.query, &mut dkeys[range.clone()]);
        add(weight, row.dout, &mut dvalues[range]);
    }
}

#[test]
fn gradients_have_the_bits_of_those_made_token_by_token() {
    for dim in [8, 16, 24, 48, 64, 120, 128] {
        let tokens = 37;
        let stream = Stream::new(5, &[dim as u64]);
        let values = |first: usize, count: usize| -> Vec<f32> {
            (first..first + count)
                .map(|i| stream.normal(i as u64) as f32)
                .collect()
        };
        let (query, dout, out) = (values(0, dim), values(1000, dim), values(2000, dim));
        let (keys, vals) = (values(3000, tokens * dim), values(9000, tokens * dim));
        let size = HeadBlocks::head_size(dim);
        let mut storage = vec![0.0; 3 * size];
        for token in 0..tokens {
            let block = &mut storage[token / BLOCK_TOKENS * size..][..size];
            let (to_keys, to_values) = block.split_at_mut(size / 2);
            let range = token * dim..(token + 1) * dim;
            write_transposed(to_keys, token % BLOCK_TOKENS, &keys[range.clone()]);
            write_transposed(to_values, token % BLOCK_TOKENS, &vals[range]);
        }
        let cache = HeadBlocks {
            storage: &storage,
            table: &[0, 1, 2],
            stride: size,
            offset: 0,
            head_dim: dim,
        };
        for seen in [0..tokens, 11..tokens, 16..31, 36..37] {
            let row = QueryGradient {
                query: &query,
                dout: &dout,
                out: &out,
                log_sum: 3.0,
                keys: seen.clone(),
                scale: 0.2,
            };
            let start = values(20_000, (2 * tokens + 1) * dim);
            let (mut expected, mut got) = (start.clone(), start);
            let parts = |all: &mut Vec<f32>| -> [Vec<f32>; 3] {
                let dquery = all.split_off(2 * tokens * dim);
                let dvalues = all.split_off(tokens * dim);
                [std::mem::take(all), dvalues, dquery]
            };
            let [mut dkeys, mut dvalues, mut dquery] = parts(&mut expected);
            backward_plainly(
                &row,
                (&keys, &vals),
                [&mut dkeys, &mut dvalues, &mut dquery],
            );
            let rows = HeadRows {
                data: &keys,
                stride: dim,
            };
            let [mut fast_keys, mut fast_values, mut fast_query] = parts(&mut got);
            attend_backward_lanes::<[f32; LANES]>(
                row,
                cache,
                rows,
                &mut fast_keys,
                &mut fast_values,
                &mut fast_query,
            );
            assert_eq!(fast_keys, dkeys, "{dim} {seen:?}");
            assert_eq!(fast_values, dvalues, "{dim} {seen:?}");
            assert_eq!(fast_query, dquery, "{dim} {seen:?}");
        }
    }
}
