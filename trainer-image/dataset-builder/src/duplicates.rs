//! Equal and nearly equal rows.
//!
//! Two rows are equal where their texts are, after case and white space are evened out. (Unicode's
//! other spellings of one letter are not.) Two rows are nearly equal where the sets of the 5 characters
//! that follow each other in those texts have a Jaccard similarity of at least 0.8. Candidates come from
//! `MinHash` (Broder 1997) with 20 bands of 6 values (Leskovec, Rajaraman and Ullman, Mining of Massive
//! Datasets, 3.4): a pair with similarity 0.8 is one with probability 0.998, with 0.5 with 0.27. Each
//! candidate is then compared exactly. Of a band's bucket the first 32 rows are compared with.
//!
//! Nearly equal is not transitive, clusters are: rows that a chain of nearly equal rows joins are one
//! cluster. Rows come in canonical order, so the first one of a cluster is the same everywhere.

use std::collections::HashMap;

use graftwork_artifacts::rows::Row;
use sha2::{Digest as _, Sha256};

use crate::row::GoodRow;

/// Characters that follow each other.
const SHINGLE: usize = 5;
/// Bands of a signature.
const BANDS: usize = 20;
/// Values of a band.
const BAND_ROWS: usize = 6;
/// The least similarity, in percent.
const SIMILAR_PERCENT: usize = 80;
/// Rows of a bucket that others are compared with.
const BUCKET: usize = 32;

/// Clusters of rows, by their position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clusters(Vec<usize>);

impl Clusters {
    /// Each row alone.
    pub fn single(rows: usize) -> Self {
        Self((0..rows).collect())
    }

    /// The first row of a row's cluster.
    pub fn first_of(&self, row: usize) -> usize {
        let mut at = row;
        while let Some(next) = self.0.get(at).filter(|next| **next != at) {
            at = *next;
        }
        at
    }

    /// Makes one cluster of two.
    pub fn join(&mut self, a: usize, b: usize) {
        let firsts = [self.first_of(a), self.first_of(b)];
        // The row that comes first stays the first; the others point at it, so that chains stay short.
        let first = firsts.into_iter().min().unwrap_or(a);
        for row in [a, b].into_iter().chain(firsts) {
            if let Some(of) = self.0.get_mut(row) {
                *of = first;
            }
        }
    }
}

/// What is the same for equal rows.
pub fn identity(row: &GoodRow) -> [u8; 32] {
    Sha256::digest(normal(row)).into()
}

/// Clusters of equal rows.
pub fn equal(rows: &[GoodRow]) -> Clusters {
    let mut clusters = Clusters::single(rows.len());
    let mut first: HashMap<[u8; 32], usize> = HashMap::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let known = *first.entry(identity(row)).or_insert(index);
        clusters.join(known, index);
    }
    clusters
}

/// Adds nearly equal rows to clusters.
pub fn near(rows: &[GoodRow], clusters: &mut Clusters) {
    let mut buckets: HashMap<(usize, u64), Vec<usize>> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        if clusters.first_of(index) != index {
            // An equal row stands for this one.
            continue;
        }
        let shingles = shingles(&normal(row));
        for (band, key) in bands(&shingles).into_iter().enumerate() {
            let bucket = buckets.entry((band, key)).or_default();
            for other in bucket.iter().copied() {
                let known = clusters.first_of(other) == clusters.first_of(index);
                let is_similar = || {
                    let other = rows.get(other).map(normal).unwrap_or_default();
                    similar(&shingles, &self::shingles(&other))
                };
                if !known && is_similar() {
                    clusters.join(other, index);
                }
            }
            if bucket.len() < BUCKET {
                bucket.push(index);
            }
        }
    }
}

/// The texts of a row, in lower case, with one space for all white space.
fn normal(row: &GoodRow) -> String {
    let texts: Vec<&str> = match &row.row {
        Row::Text { text } => vec![text],
        Row::Completion { prompt, completion } => vec![prompt, completion],
        Row::Preference {
            prompt,
            chosen,
            rejected,
        } => vec![prompt, chosen, rejected],
        Row::Chat { messages } => messages
            .iter()
            .flat_map(|message| [message.role.as_str(), message.content.as_str()])
            .collect(),
    };
    let words =
        |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_lowercase).collect() };
    let texts: Vec<String> = texts
        .into_iter()
        .map(|text| words(text).join(" "))
        .collect();
    texts.join("\u{1f}")
}

/// Hashes of each [`SHINGLE`] characters that follow each other, sorted, each once. A shorter text is
/// one.
fn shingles(text: &str) -> Vec<u64> {
    let letters: Vec<char> = text.chars().collect();
    let mut hashes: Vec<u64> = if letters.len() < SHINGLE {
        vec![hash(&letters)]
    } else {
        letters.windows(SHINGLE).map(hash).collect()
    };
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

/// FNV-1a over the letters, stirred.
fn hash(letters: &[char]) -> u64 {
    let hash = letters.iter().fold(0xcbf2_9ce4_8422_2325, |hash, letter| {
        (hash ^ u64::from(u32::from(*letter))).wrapping_mul(0x0000_0100_0000_01b3)
    });
    stir(hash)
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood 2014).
fn stir(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A key for each band of the signature.
fn bands(shingles: &[u64]) -> [u64; BANDS] {
    std::array::from_fn(|band| {
        (0..BAND_ROWS).fold(0, |key, row| {
            let seed = stir((band * BAND_ROWS + row + 1) as u64);
            let least = shingles.iter().map(|it| stir(it ^ seed)).min();
            stir(key ^ least.unwrap_or_default())
        })
    })
}

/// Whether two sorted lists share enough.
fn similar(a: &[u64], b: &[u64]) -> bool {
    let (mut left, mut right) = (a.iter().peekable(), b.iter().peekable());
    let mut both = 0;
    while let (Some(x), Some(y)) = (left.peek(), right.peek()) {
        match x.cmp(y) {
            std::cmp::Ordering::Less => {
                left.next();
            }
            std::cmp::Ordering::Greater => {
                right.next();
            }
            std::cmp::Ordering::Equal => {
                both += 1;
                left.next();
                right.next();
            }
        }
    }
    let either = a.len() + b.len() - both;
    both * 100 >= either * SIMILAR_PERCENT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::row::tests_support::text_row;

    fn firsts(texts: &[&str], with_near: bool) -> Vec<usize> {
        let rows: Vec<GoodRow> = texts.iter().map(|text| text_row(text)).collect();
        let mut clusters = equal(&rows);
        if with_near {
            near(&rows, &mut clusters);
        }
        (0..rows.len()).map(|row| clusters.first_of(row)).collect()
    }

    #[test]
    fn case_and_white_space_make_no_difference() {
        let texts = ["One two", "three", " one\n\tTWO ", "onetwo", "Three"];
        assert_eq!(firsts(&texts, false), [0, 1, 0, 3, 1]);
    }

    #[test]
    fn nearly_equal_rows_are_one_cluster_and_others_are_not() {
        let long =
            "The quick brown fox jumps over the lazy dog and runs away from the farmer's house";
        let near = long.replace("lazy", "idle");
        let chain = near.replace("house", "horse");
        let other = "A slow green turtle walks under the busy bridge and swims to its small island";
        let texts = [
            long,
            other,
            near.as_str(),
            chain.as_str(),
            "The quick brown fox",
        ];
        assert_eq!(firsts(&texts, true), [0, 1, 0, 0, 4]);
        assert_eq!(firsts(&texts, false), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn short_and_empty_texts_are_compared_too() {
        assert_eq!(firsts(&["ab", "AB", "cd", "abc"], true), [0, 0, 2, 3]);
    }

    #[test]
    fn buckets_find_nearly_all_pairs_above_the_limit() {
        // 300 texts of 60 words, each beside one with one word changed: similarity about 0.9.
        let word = |n: u64| format!("{:x}", stir(n) % 0x00ff_ffff);
        let text = |n: u64| -> Vec<String> { (0..60).map(|at| word(n * 1000 + at)).collect() };
        let texts: Vec<String> = (0..300)
            .flat_map(|n| {
                let mut changed = text(n);
                changed[30] = "changed".to_owned();
                [text(n).join(" "), changed.join(" ")]
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let found = firsts(&texts, true);
        let pairs = found.chunks(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(pairs >= 295, "{pairs} of 300");
        let wrong = found
            .iter()
            .enumerate()
            .filter(|(at, first)| **first / 2 != at / 2);
        assert_eq!(wrong.count(), 0);
    }

    proptest! {
        #[test]
        fn similarity_is_what_sets_say(a in prop::collection::btree_set(0_u64..40, 1..20),
                                       b in prop::collection::btree_set(0_u64..40, 1..20)) {
            let slow = a.intersection(&b).count() * 100 >= a.union(&b).count() * SIMILAR_PERCENT;
            let (a, b): (Vec<u64>, Vec<u64>) = (a.into_iter().collect(), b.into_iter().collect());
            prop_assert_eq!(similar(&a, &b), slow);
        }

        #[test]
        fn the_first_row_of_a_cluster_comes_before_the_others(
            joins in prop::collection::vec((0_usize..20, 0_usize..20), 0..30)
        ) {
            let mut clusters = Clusters::single(20);
            for (a, b) in &joins {
                clusters.join(*a, *b);
            }
            for (a, b) in joins {
                prop_assert_eq!(clusters.first_of(a), clusters.first_of(b));
                prop_assert!(clusters.first_of(a) <= a);
            }
        }
    }
}
