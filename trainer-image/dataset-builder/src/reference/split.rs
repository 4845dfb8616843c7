//! Which split each row belongs to.

use graftwork_contract::dataset::{HashSplit, Split, SplitMethod};
use sha2::{Digest as _, Sha256};

use super::Clusters;
use crate::row::GoodRow;

/// Rows that must not be parted.
#[derive(Debug)]
struct Bundle<'a> {
    /// What decides: the split key of its first row.
    key: &'a str,
    /// The time of its latest row.
    time: i64,
    rows: Vec<usize>,
}

/// The split of each row. Rows of one cluster, and rows of one group, stay together.
///
/// - Hash: by the key alone, see [`HashSplit::split_of`]; where clusters or groups were joined, by that of
///   their first row.
/// - Random: in the order of `SHA-256(seed, key)`, cut at the percents of all rows.
/// - Time: in the order of time, cut at the percents of all rows; equal times stay together, and what
///   stays together goes by its latest row. No row is later than one of a later split, but for rows that
///   follow a later one.
pub fn split(config: &HashSplit, rows: &[GoodRow], clusters: &Clusters) -> Vec<Split> {
    let mut bundles = bundles(rows, clusters);
    let mut splits = vec![Split::Train; rows.len()];
    let mut place = |bundle: &Bundle<'_>, split: Split| {
        for row in &bundle.rows {
            if let Some(of) = splits.get_mut(*row) {
                *of = split;
            }
        }
    };
    let order = |bundle: &Bundle<'_>| -> [u8; 32] {
        Sha256::new()
            .chain_update(config.seed.to_le_bytes())
            .chain_update(bundle.key)
            .finalize()
            .into()
    };
    match config.method {
        SplitMethod::Hash => {
            for bundle in &bundles {
                place(bundle, config.split_of(bundle.key));
            }
        }
        SplitMethod::Random => {
            bundles.sort_by_cached_key(order);
            cut(config, rows.len(), &bundles, |_, _| false, place);
        }
        SplitMethod::Time => {
            bundles.sort_by_cached_key(|bundle| (bundle.time, order(bundle)));
            let same = |a: &Bundle<'_>, b: &Bundle<'_>| a.time == b.time;
            cut(config, rows.len(), &bundles, same, place);
        }
    }
    splits
}

/// Rows that a cluster or a group joins, in the order of their first rows.
fn bundles<'a>(rows: &'a [GoodRow], clusters: &Clusters) -> Vec<Bundle<'a>> {
    let mut joined = clusters.clone();
    let mut first = std::collections::HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        joined.join(*first.entry(row.split_key()).or_insert(index), index);
    }
    let mut bundles: std::collections::BTreeMap<usize, Bundle<'a>> =
        std::collections::BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        let bundle = bundles.entry(joined.first_of(index)).or_insert(Bundle {
            key: row.split_key(),
            time: i64::MIN,
            rows: Vec::new(),
        });
        bundle.time = bundle.time.max(row.time.unwrap_or(i64::MIN));
        bundle.rows.push(index);
    }
    bundles.into_values().collect()
}

/// Cuts an order at the percents. Bundles that are the `same` as the one before stay with it.
fn cut<'a>(
    config: &HashSplit,
    all: usize,
    bundles: &[Bundle<'a>],
    same: impl Fn(&Bundle<'a>, &Bundle<'a>) -> bool,
    mut place: impl FnMut(&Bundle<'a>, Split),
) {
    let share = |percent: u32| (all as u64 * u64::from(percent) + 50) / 100;
    let train = share(config.train_percent);
    let validation = share(config.train_percent + config.validation_percent);
    let mut before = 0;
    let mut last: Option<(&Bundle<'a>, Split)> = None;
    for bundle in bundles {
        let split = match last {
            Some((other, split)) if same(other, bundle) => split,
            _ if before < train => Split::Train,
            _ if before < validation => Split::Validation,
            _ => Split::Test,
        };
        place(bundle, split);
        before += bundle.rows.len() as u64;
        last = Some((bundle, split));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::reference::equal;
    use crate::row::tests_support::{row_of, text_row};

    fn config(method: SplitMethod) -> HashSplit {
        HashSplit {
            method,
            time_column: None,
            group_column: None,
            train_percent: 80,
            validation_percent: 10,
            test_percent: 10,
            seed: 7,
        }
    }

    fn rows(count: usize) -> Vec<GoodRow> {
        (0..count).map(|n| text_row(&format!("row {n}"))).collect()
    }

    fn counts(splits: &[Split]) -> [usize; 3] {
        Split::ALL.map(|split| splits.iter().filter(|it| **it == split).count())
    }

    #[test]
    fn a_random_split_has_exactly_its_shares_whatever_the_order_of_the_rows() {
        let rows = rows(1000);
        let alone = Clusters::single(rows.len());
        let splits = split(&config(SplitMethod::Random), &rows, &alone);
        assert_eq!(counts(&splits), [800, 100, 100]);
        let of: BTreeMap<_, _> = rows.iter().map(|row| &row.canonical).zip(&splits).collect();
        let turned: Vec<GoodRow> = rows.iter().rev().cloned().collect();
        let again = split(&config(SplitMethod::Random), &turned, &alone);
        for (row, split) in turned.iter().zip(&again) {
            assert_eq!(of[&row.canonical], split);
        }
        let mut other = config(SplitMethod::Random);
        other.seed = 8;
        assert_ne!(split(&other, &rows, &alone), splits);
    }

    #[test]
    fn a_hash_split_goes_by_the_row_alone() {
        let rows = rows(200);
        let config = config(SplitMethod::Hash);
        let splits = split(&config, &rows, &Clusters::single(rows.len()));
        for (row, split) in rows.iter().zip(splits) {
            assert_eq!(config.split_of(&row.canonical), split);
        }
    }

    #[test]
    fn no_later_row_is_in_an_earlier_split_and_equal_times_stay_together() {
        // Times 0, 0, 1, 1, 2, 2, ...: the cut at 80 % falls within none.
        let rows: Vec<GoodRow> = (0..105)
            .map(|n| row_of(&format!("row {n}"), None, Some(n / 7)))
            .collect();
        let splits = split(
            &config(SplitMethod::Time),
            &rows,
            &Clusters::single(rows.len()),
        );
        let times = |wanted: Split| -> Vec<i64> {
            let of = rows
                .iter()
                .zip(&splits)
                .filter(|(_, split)| **split == wanted);
            of.map(|(row, _)| row.time.unwrap()).collect()
        };
        let [train, validation, test] = Split::ALL.map(times);
        assert!(train.iter().max() < validation.iter().min());
        assert!(validation.iter().max() < test.iter().min());
        assert_eq!((train.len(), validation.len(), test.len()), (84, 14, 7));
    }

    #[test]
    fn a_group_follows_its_latest_row() {
        let mut rows: Vec<GoodRow> = (0..100)
            .map(|n| row_of(&format!("row {n}"), None, Some(n)))
            .collect();
        rows.push(row_of("early", Some("claim"), Some(0)));
        rows.push(row_of("late", Some("claim"), Some(1000)));
        let splits = split(
            &config(SplitMethod::Time),
            &rows,
            &Clusters::single(rows.len()),
        );
        assert_eq!(splits[100..], [Split::Test, Split::Test]);
        assert_eq!(splits[0], Split::Train);
    }

    #[test]
    fn a_cluster_and_the_groups_that_it_joins_stay_in_one_split() {
        let mut rows = rows(300);
        // Each hundred rows that are equal but for their case, in two groups.
        for n in 0..40 {
            let text = if n % 2 == 0 { "Same" } else { "SAME" };
            let group = format!("group {}", n % 4);
            rows.push(row_of(text, Some(&group), Some(0)));
        }
        let clusters = equal(&rows);
        for method in [SplitMethod::Hash, SplitMethod::Random, SplitMethod::Time] {
            let splits = split(&config(method), &rows, &clusters);
            assert!(
                splits[300..].iter().all(|it| *it == splits[300]),
                "{method:?}"
            );
        }
    }
}
