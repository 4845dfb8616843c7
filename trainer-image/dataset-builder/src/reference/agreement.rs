//! Streaming gives what the slow way gives, whatever the memory.

use graftwork_contract::Digest;
use graftwork_contract::dataset::{
    Balance, BuildConfig, Duplicates, Format, HashSplit, Leakage, NearDuplicates, RowCounts, Split,
    SplitMethod, Validation,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

use crate::deal::deal;
use crate::order::order;
use crate::reference;
use crate::row::GoodRow;
use crate::row::tests_support::row_of;
use crate::spill::Scratch;
use crate::statistics::{Classes, SplitStatistics, tests_support};
use crate::stored::RowSorter;

/// All that a version says of its rows, and the rows of each split in order.
#[derive(Debug, PartialEq)]
struct Outcome {
    digest: Digest,
    counts: RowCounts,
    leakage: Leakage,
    rows: [Vec<String>; 3],
    statistics: [SplitStatistics; 3],
}

fn slow(config: &BuildConfig, rows: &[GoodRow]) -> Outcome {
    let mut good = rows.to_vec();
    let (clusters, duplicates) = reference::order(config, &mut good);
    let dealt = reference::deal(config, good, &clusters, duplicates, 3);
    Outcome {
        digest: dealt.digest,
        counts: dealt.counts,
        leakage: dealt.leakage,
        rows: dealt
            .splits
            .each_ref()
            .map(|rows| rows.iter().map(|(_, row)| row.canonical.clone()).collect()),
        statistics: dealt
            .splits
            .each_ref()
            .map(|rows| tests_support::of(rows.iter().map(|(_, row)| row), false)),
    }
}

fn streamed(config: &BuildConfig, rows: &[GoodRow], memory: u64) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(dir.path(), memory);
    let mut sorter = RowSorter::new(&scratch);
    for row in rows {
        sorter.push(row).unwrap();
    }
    let ordered = order(config, &scratch, sorter.finish().unwrap()).unwrap();
    let dealt = deal(config, &scratch, ordered, 3).unwrap();
    let mut rows: [Vec<String>; 3] = Default::default();
    let mut statistics: [SplitStatistics; 3] = Default::default();
    let mut classes = Classes::new(&scratch, false);
    dealt
        .for_each(|stored, split, times| {
            let (row, _) = stored.row(Format::Text, None)?;
            statistics[split as usize].add(&row, times);
            for _ in 0..times {
                let canonical = String::from_utf8(stored.canonical.to_vec());
                rows[split as usize].push(canonical.unwrap());
            }
            let class = stored.class.as_deref();
            class.map_or(Ok(()), |class| classes.add(split, class, times))
        })
        .unwrap();
    for (split, classes) in statistics.iter_mut().zip(classes.finish().unwrap()) {
        split.classes = classes;
    }
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "a spill file has a name");
    Outcome {
        digest: dealt.digest.clone(),
        counts: dealt.counts,
        leakage: dealt.leakage,
        rows,
        statistics,
    }
}

/// Few texts, so that many are equal, or nearly so: long ones with a word changed, and short ones.
fn text() -> impl Strategy<Value = String> {
    let long = (0_u32..4, 0_u32..4, any::<bool>()).prop_map(|(base, changed, upper)| {
        let word = |at: u32| format!("{:x}", (base * 100 + at).wrapping_mul(2_654_435_761));
        let mut words: Vec<String> = (0..40).map(word).collect();
        words[20] = format!("word{changed}");
        let text = words.join(" ");
        if upper { text.to_uppercase() } else { text }
    });
    let short = (0_u32..150).prop_map(|n| format!("row {n}"));
    prop_oneof![long, short]
}

fn rows() -> impl Strategy<Value = Vec<GoodRow>> {
    let row = (text(), 0_u32..12, 0_i64..9, 0_u32..5);
    prop::collection::vec(row, 0..220).prop_map(|rows| {
        let row = |(text, group, time, class): (String, u32, i64, u32)| {
            let group = format!("g{group}");
            let mut row = row_of(&text, Some(&group), Some(time));
            // One class is frequent, the others are not.
            row.class = Some(format!("c{}", class / 2));
            row
        };
        rows.into_iter().map(row).collect()
    })
}

/// Every way to deal.
fn config() -> impl Strategy<Value = BuildConfig> {
    let near = prop::sample::select(vec![
        NearDuplicates::Keep,
        NearDuplicates::Report,
        NearDuplicates::Group,
        NearDuplicates::Drop,
    ]);
    let equal = prop::sample::select(vec![Duplicates::Keep, Duplicates::Drop]);
    let method = prop::sample::select(vec![
        SplitMethod::Hash,
        SplitMethod::Random,
        SplitMethod::Time,
    ]);
    let balance = prop::option::of(1_u32..5);
    (near, equal, method, any::<bool>(), balance).prop_map(
        |(near_duplicates, duplicates, method, grouped, balance)| BuildConfig {
            dataset: "topics".into(),
            description: None,
            fingerprint: Digest::of(b"any"),
            format: Format::Text,
            reward: false,
            sources: Vec::new(),
            transform: None,
            validation: Validation {
                minimum_rows: 1,
                maximum_invalid_percent: "0".into(),
                duplicates,
                near_duplicates,
                maximum_tokens_per_row: None,
            },
            split: HashSplit {
                method,
                time_column: None,
                group_column: grouped.then(|| "id".into()),
                train_percent: 60,
                validation_percent: 20,
                test_percent: 20,
                seed: 7,
            },
            classification: None,
            privacy: None,
            pseudonym_key: None,
            balance: balance.map(|maximum_upsample| Balance {
                column: "class".into(),
                maximum_upsample,
            }),
            base_model: None,
            shards: None,
            allowed_hosts: Vec::new(),
            hub_endpoint: None,
            store: None,
        },
    )
}

/// Rows as the reader makes them for a configuration: only what it asks for is there.
fn asked_for(config: &BuildConfig, rows: Vec<GoodRow>) -> Vec<GoodRow> {
    let asked = |mut row: GoodRow| {
        if config.split.group_column.is_none() {
            let text = match &row.row {
                graftwork_artifacts::rows::Row::Text { text } => text.clone(),
                _ => panic!("another format"),
            };
            let class = row.class.take();
            row = row_of(&text, None, row.time);
            row.class = class;
        }
        row.time = row
            .time
            .filter(|_| config.split.method == SplitMethod::Time);
        row.class = row.class.filter(|_| config.balance.is_some());
        row
    };
    rows.into_iter().map(asked).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn streaming_gives_the_same_rows_numbers_and_digest_whatever_the_memory_and_the_order(
        config in config(),
        rows in rows(),
        turned in 0_usize..220,
    ) {
        let rows = asked_for(&config, rows);
        let expected = slow(&config, &rows);
        // The least memory is four kibibytes: every sort is on disk, and tables of more than 102 rows.
        for memory in [0, 40 << 10, 1 << 30] {
            prop_assert_eq!(&streamed(&config, &rows, memory), &expected);
        }
        let mut other = rows;
        other.reverse();
        let middle = turned.min(other.len());
        other.rotate_left(middle);
        prop_assert_eq!(&streamed(&config, &other, 0), &expected);
    }
}

#[test]
fn each_split_is_in_the_comparison() {
    // Else the property would hold of nothing.
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = [0_u64; 5];
    for _ in 0..400 {
        if seen.iter().all(|it| *it > 0) {
            break;
        }
        let config = config().new_tree(&mut runner).unwrap().current();
        let rows = rows().new_tree(&mut runner).unwrap().current();
        let counts = slow(&config, &asked_for(&config, rows));
        seen[0] += counts.counts.train;
        seen[1] += counts.counts.validation;
        seen[2] += counts.counts.test;
        seen[3] += counts.counts.duplicates;
        seen[4] += counts.leakage.test;
    }
    assert!(seen.iter().all(|it| *it > 0), "{seen:?}");
    assert_eq!(Split::ALL.map(|split| split as usize), [0, 1, 2]);
}
