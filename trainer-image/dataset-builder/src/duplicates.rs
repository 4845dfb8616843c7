//! Equal and nearly equal rows.
//!
//! Two rows are equal where their texts are, after Unicode's other spellings of the same letters (NFKC:
//! composed and decomposed, full and half width, ligatures), case and white space are evened out. Two rows
//! are nearly equal where the sets of the 5 characters
//! that follow each other in those texts have a Jaccard similarity of at least 0.8. Candidates come from
//! `MinHash` (Broder 1997) with 20 bands of 6 values (Leskovec, Rajaraman and Ullman, Mining of Massive
//! Datasets, 3.4): a pair with similarity 0.8 is one with probability 0.998, with 0.5 with 0.27. Each
//! candidate is then compared exactly. Of a band's bucket the first 32 rows are compared with.
//!
//! Nearly equal is not transitive, clusters are: rows that a chain of nearly equal rows joins are one
//! cluster. Rows come in canonical order, so the first one of a cluster is the same everywhere.
//!
//! Hashes and keys of bands are sorted, on the scratch volume where they are many; texts that are compared
//! are read from there.

use graftwork_artifacts::rows::Row;
use graftwork_contract::dataset::Format;
use sha2::{Digest as _, Sha256};
use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfkc_quick};

use crate::clusters::Clusters;
use crate::failure::Failure;
use crate::spaces::is_even;
use crate::spill::Scratch;
use crate::spill::sorter::Sorter;
use crate::spill::texts::Texts;
use crate::stored::{Hash, Rows, array, take_number};

/// Characters that follow each other.
const SHINGLE: usize = 5;
/// Bands of a signature.
const BANDS: usize = 20;
/// Values of a band.
const BAND_ROWS: usize = 6;
/// The least similarity, in percent.
const SIMILAR_PERCENT: usize = 80;
/// Rows of a bucket that others are compared with.
pub const BUCKET: usize = 32;
/// Shingles of a bucket's rows that are held (16 MiB); those of longer rows are made anew each time.
const HELD_SHINGLES: usize = 2 << 20;

/// What is the same for equal rows.
pub fn identity(row: &Row) -> Hash {
    Sha256::digest(normal(row)).into()
}

/// Clusters of equal rows.
///
/// # Errors
/// Those of the scratch volume.
pub fn equal(scratch: &Scratch, rows: &Rows) -> Result<Clusters, Failure> {
    let mut sorter = Sorter::new(scratch);
    let mut reader = rows.read()?;
    while let Some((position, row)) = reader.next_row()? {
        sorter.push(&[&row.identity[..], &position.to_be_bytes()].concat())?;
    }
    let mut clusters = Clusters::single(scratch, rows.count())?;
    clusters.join_equal(&sorter.finish()?)?;
    Ok(clusters)
}

/// Adds nearly equal rows to clusters of equal ones, whose first rows stand for them.
///
/// # Errors
/// Those of the scratch volume.
pub fn near(
    scratch: &Scratch,
    rows: &Rows,
    format: Format,
    clusters: &mut Clusters,
) -> Result<(), Failure> {
    let mut texts = Texts::new(scratch, rows.count())?;
    let mut sorter = Sorter::new(scratch);
    let mut reader = rows.read()?;
    while let Some((position, row)) = reader.next_row()? {
        if clusters.first_of(position)? != position {
            continue;
        }
        let text = normal(&row.row(format, None)?.0);
        texts.add(position, &text)?;
        for (band, key) in bands(&shingles(&text)).into_iter().enumerate() {
            let band = [band as u8];
            let record = [&band[..], &key.to_be_bytes(), &position.to_be_bytes()];
            sorter.push(&record.concat())?;
        }
    }
    drop(reader);
    // Buckets come one after the other, and the rows of each in canonical order.
    let sorted = sorter.finish()?;
    let mut records = sorted.records()?;
    let mut bucket = Bucket::default();
    while let Some(mut record) = records.next_record()? {
        let key: BucketKey = array(&mut record)?;
        if bucket.key != Some(key) {
            bucket = Bucket {
                key: Some(key),
                ..Bucket::default()
            };
        }
        bucket.add(take_number(&mut record)?, &texts, clusters)?;
    }
    Ok(())
}

/// Number of a band and its key.
type BucketKey = [u8; 9];

/// The first rows of a bucket.
#[derive(Debug, Default)]
struct Bucket {
    key: Option<BucketKey>,
    /// Rows, each with its shingles where somebody asked for them and there was room.
    rows: Vec<(u64, Option<Vec<u64>>)>,
    /// Shingles that are held.
    held: usize,
}

impl Bucket {
    /// Compares a row with those that came before it, unless they are of one cluster already.
    fn add(&mut self, row: u64, texts: &Texts, clusters: &mut Clusters) -> Result<(), Failure> {
        let mut own: Option<Vec<u64>> = None;
        for (other, held) in &mut self.rows {
            if clusters.first_of(*other)? == clusters.first_of(row)? {
                continue;
            }
            if own.is_none() {
                own = Some(shingles(&texts.get(row)?));
            }
            let fresh = match held {
                Some(_) => None,
                None => Some(shingles(&texts.get(*other)?)),
            };
            let known = fresh.as_deref().or(held.as_deref()).unwrap_or_default();
            if similar(own.as_deref().unwrap_or_default(), known) {
                clusters.join(*other, row)?;
            }
            if let Some(fresh) = fresh.filter(|it| self.held + it.len() <= HELD_SHINGLES) {
                self.held += fresh.len();
                *held = Some(fresh);
            }
        }
        if self.rows.len() < BUCKET {
            self.rows.push((row, None));
        }
        Ok(())
    }
}

/// The texts of a row in one spelling, in lower case, with one space for all white space. Equal rows have the
/// same.
pub fn normal(row: &Row) -> String {
    let texts: Vec<&str> = match row {
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
    let mut all = String::with_capacity(row.text_bytes() + texts.len());
    for (index, text) in texts.into_iter().enumerate() {
        if index > 0 {
            all.push('\u{1f}');
        }
        plain(text, &mut all);
    }
    all
}

/// Most texts are spelled in one way already, and all of ASCII is.
fn plain(text: &str, all: &mut String) {
    if text.is_ascii() || is_nfkc_quick(text.chars()) == IsNormalized::Yes {
        words(text, all);
    } else {
        words(&text.nfkc().collect::<String>(), all);
    }
}

fn words(text: &str, all: &mut String) {
    if is_even(text) {
        return lower(text, all);
    }
    for (index, word) in text.split_whitespace().enumerate() {
        if index > 0 {
            all.push(' ');
        }
        lower(word, all);
    }
}

/// As [`str::to_lowercase`], without a text of its own for most.
fn lower(text: &str, all: &mut String) {
    // A sigma at a word's end has a form of its own.
    if !text.is_ascii() && text.contains('\u{3a3}') {
        return all.push_str(&text.to_lowercase());
    }
    let start = all.len();
    let mut rest = text;
    loop {
        let others = rest.bytes().position(|byte| !byte.is_ascii());
        let (run, others) = rest.split_at(others.unwrap_or(rest.len()));
        all.push_str(run);
        let mut letters = others.chars();
        let Some(letter) = letters.next() else {
            break;
        };
        letter.to_lowercase().for_each(|letter| all.push(letter));
        rest = letters.as_str();
    }
    if let Some(added) = all.get_mut(start..) {
        added.make_ascii_lowercase();
    }
}

/// Hashes of each [`SHINGLE`] characters that follow each other, sorted, each once. A shorter text is
/// one.
pub fn shingles(text: &str) -> Vec<u64> {
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
pub fn bands(shingles: &[u64]) -> [u64; BANDS] {
    std::array::from_fn(|band| {
        (0..BAND_ROWS).fold(0, |key, row| {
            let seed = stir((band * BAND_ROWS + row + 1) as u64);
            let least = shingles.iter().map(|it| stir(it ^ seed)).min();
            stir(key ^ least.unwrap_or_default())
        })
    })
}

/// Whether two sorted lists share enough.
pub fn similar(a: &[u64], b: &[u64]) -> bool {
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
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::row::tests_support::text_row;
    use crate::stored::RowSorter;

    /// For each text the first one of its cluster, whatever the memory.
    fn firsts(texts: &[&str], with_near: bool) -> Vec<usize> {
        let dir = tempfile::tempdir().unwrap();
        let [small, large] = [0, 1 << 30].map(|memory| {
            let scratch = Scratch::new(dir.path(), memory);
            let mut sorter = RowSorter::new(&scratch);
            for text in texts {
                sorter.push(&text_row(text)).unwrap();
            }
            let rows = sorter.finish().unwrap();
            let mut clusters = equal(&scratch, &rows).unwrap();
            if with_near {
                near(&scratch, &rows, Format::Text, &mut clusters).unwrap();
            }
            let mut of_text = HashMap::new();
            let mut reader = rows.read().unwrap();
            while let Some((position, row)) = reader.next_row().unwrap() {
                let first = clusters.first_of(position).unwrap();
                of_text.insert(row.canonical.to_owned(), first);
            }
            let cluster_of = |text: &&str| of_text[text_row(text).canonical.as_bytes()];
            let clusters: Vec<u64> = texts.iter().map(cluster_of).collect();
            let first = |it: &u64| clusters.iter().position(|other| other == it).unwrap();
            clusters.iter().map(first).collect::<Vec<usize>>()
        });
        assert_eq!(small, large);
        large
    }

    #[test]
    fn case_and_white_space_make_no_difference() {
        let texts = ["One two", "three", " one\n\tTWO ", "onetwo", "Three"];
        assert_eq!(firsts(&texts, false), [0, 1, 0, 3, 1]);
    }

    #[test]
    fn other_spellings_of_the_same_letters_make_no_difference() {
        let texts = [
            "Caf\u{e9} \u{fb01}ne",
            "cafe\u{301} fine",
            "\u{ff23}\u{ff21}\u{ff26}\u{c9}\u{a0}fine",
            "cafe fine",
            "stra\u{df}e",
            "strasse",
            "\u{ff76}\u{ff9e}",
            "\u{30ac}",
        ];
        assert_eq!(firsts(&texts, false), [0, 0, 0, 3, 4, 5, 6, 6]);
    }

    #[test]
    fn all_of_ascii_is_evened_out_and_a_sigma_at_a_words_end_is_its_own() {
        let all: String = (0..128_u8).map(char::from).collect();
        for text in [
            all.as_str(),
            "",
            " ",
            " A\u{b}b \t\r\n C\u{c}d\u{1c}E ",
            "AbC",
            "\u{39f}\u{394}\u{39f}\u{3a3} \u{3a3}\u{391}\u{3a3}",
        ] {
            let mut evened = "X ".to_owned();
            plain(text, &mut evened);
            let plainly: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
            assert_eq!(evened, format!("X {}", plainly.join(" ")), "{text:?}");
        }
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
        fn words_are_those_of_the_text_in_lower_case(text in "[a-zA-Z\\u{c0}-\\u{17f}\\u{391}-\\u{3c9}\\u{130} \\t]{0,30}|\\PC{0,20}") {
            let mut all = String::new();
            words(&text, &mut all);
            let plainly: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
            prop_assert_eq!(all, plainly.join(" "));
        }
    }
}
