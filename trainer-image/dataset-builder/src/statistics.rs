//! What a version's rows are like, in numbers: stored beside them as `statistics.json`, and drawn by
//! [`crate::report`]. It holds counts and lengths and, where classes are balanced, their names; texts
//! stand nowhere in it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use graftwork_artifacts::rows::Row;
use graftwork_contract::dataset::{
    BrokenRule, Classification, Leakage, RowCounts, SourceColumns, Split,
};
use graftwork_privacy::{Counts, Masker, mask};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::pins::masked;
use crate::spaces::words;
use crate::spill::Scratch;
use crate::spill::sorter::Sorter;
use crate::stored::{array, put_text, take_number, take_text};

/// File name in the version's folder.
pub const STATISTICS_FILE: &str = "statistics.json";
/// Classes that are named; the rest count as one.
const MAXIMUM_CLASSES: usize = 50;
/// Broken rules that are named.
const MAXIMUM_RULES: usize = 20;

/// Numbers of one version.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Name of the Dataset.
    pub dataset: String,
    /// How far the rows may go, and these numbers.
    pub classification: Option<Classification>,
    /// Rows by split, and those that were left out.
    pub rows: RowCounts,
    /// Rows of other splits that are trained on.
    pub leakage: Leakage,
    /// Each split's.
    pub splits: [SplitStatistics; 3],
    /// Personal data by type.
    pub findings: BTreeMap<String, u64>,
    /// Rules that rows broke, the most frequent first.
    pub rejected: Vec<(String, u64)>,
    /// Rows that were left out and had no value in a column, by column.
    pub nulls: BTreeMap<String, u64>,
    /// Rows of each source without a value in a column, by source and column.
    pub source_nulls: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Columns of a source whose nulls are told.
const NAMED_COLUMNS: usize = 100;

/// Rows without a value, by source and column. A name that is personal data is masked.
pub fn nulls(sources: &BTreeMap<String, SourceColumns>) -> BTreeMap<String, BTreeMap<String, u64>> {
    let nulls = |seen: &SourceColumns| -> BTreeMap<String, u64> {
        let columns = seen.columns.iter().take(NAMED_COLUMNS);
        columns
            .map(|(name, column)| (masked(name), seen.rows.saturating_sub(column.values)))
            .collect()
    };
    let named = sources.iter();
    named
        .map(|(name, seen)| (name.clone(), nulls(seen)))
        .collect()
}

/// Numbers of one split.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SplitStatistics {
    /// Rows.
    pub rows: u64,
    /// Characters of all texts.
    pub characters: u64,
    /// Words of all texts, as white space parts them.
    pub words: u64,
    /// Characters of the longest row.
    pub longest: u64,
    /// How many rows have fewer characters than each power of two, and not than the one before.
    pub lengths: BTreeMap<u64, u64>,
    /// Characters of each column.
    pub columns: BTreeMap<&'static str, u64>,
    /// Rows of each class, where classes are balanced; else of each label (see [`crate::labels`]).
    pub classes: BTreeMap<String, u64>,
    /// Rows of each likely language, of those that were looked at (see [`crate::languages`]).
    pub languages: BTreeMap<&'static str, u64>,
    /// Tokens of all rows, where a base model is named.
    pub tokens: u64,
    /// Tokens of the longest row.
    pub longest_tokens: u64,
    /// As `lengths`, in tokens.
    pub token_lengths: BTreeMap<u64, u64>,
}

impl SplitStatistics {
    /// Counts a row that comes so often. Its class is counted by [`Classes`].
    pub fn add(&mut self, row: &Row, times: u64) {
        if times == 0 {
            return;
        }
        let mut characters = 0;
        for (column, text) in row.texts() {
            let count = text.chars().count() as u64;
            characters += count;
            self.words += words(text) * times;
            *self.columns.entry(column).or_default() += count * times;
        }
        self.rows += times;
        self.characters += characters * times;
        self.longest = self.longest.max(characters);
        let below = (characters + 1).next_power_of_two();
        *self.lengths.entry(below).or_default() += times;
    }

    /// Counts the tokens of a row that comes so often.
    pub fn measure(&mut self, tokens: u32, times: u64) {
        if times == 0 {
            return;
        }
        let tokens = u64::from(tokens);
        self.tokens += tokens * times;
        self.longest_tokens = self.longest_tokens.max(tokens);
        let below = (tokens + 1).next_power_of_two();
        *self.token_lengths.entry(below).or_default() += times;
    }

    /// As if the rows that the other one counted had been counted here too.
    pub fn merge(&mut self, other: Self) {
        self.rows += other.rows;
        self.characters += other.characters;
        self.words += other.words;
        self.longest = self.longest.max(other.longest);
        add_all(&mut self.lengths, other.lengths);
        add_all(&mut self.columns, other.columns);
        add_all(&mut self.classes, other.classes);
        add_all(&mut self.languages, other.languages);
        self.tokens += other.tokens;
        self.longest_tokens = self.longest_tokens.max(other.longest_tokens);
        add_all(&mut self.token_lengths, other.token_lengths);
    }

    /// Counts a row in this language that comes so often.
    pub fn note_language(&mut self, code: &'static str, times: u64) {
        if times > 0 {
            *self.languages.entry(code).or_default() += times;
        }
    }

    fn to_json(&self) -> Value {
        let mut value = json!({
            "rows": self.rows,
            "characters": self.characters,
            "words": self.words,
            "longestCharacters": self.longest,
            "rowsByCharactersBelow": numbered(&self.lengths),
            "charactersByColumn": self.columns,
            "rowsByClass": self.classes,
            "rowsByLanguage": self.languages,
        });
        if !self.token_lengths.is_empty()
            && let Some(value) = value.as_object_mut()
        {
            value.insert("tokens".to_owned(), self.tokens.into());
            value.insert("longestTokens".to_owned(), self.longest_tokens.into());
            let lengths = numbered(&self.token_lengths);
            value.insert("rowsByTokensBelow".to_owned(), lengths.into());
        }
        value
    }
}

fn add_all<K: Ord>(counts: &mut BTreeMap<K, u64>, others: BTreeMap<K, u64>) {
    for (key, count) in others {
        *counts.entry(key).or_default() += count;
    }
}

/// Rows by class: names are sorted, and of each split only the most frequent ones are held.
#[derive(Debug)]
pub struct Classes {
    sorter: Sorter,
    record: Vec<u8>,
    masks: bool,
}

impl Classes {
    /// No rows yet. Names of classes are masked where `masks` says so.
    pub fn new(scratch: &Scratch, masks: bool) -> Self {
        Self {
            sorter: Sorter::new(scratch),
            record: Vec::new(),
            masks,
        }
    }

    /// Counts a row of a class that comes so often.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn add(&mut self, split: Split, class: &str, times: u64) -> Result<(), Failure> {
        if times == 0 {
            return Ok(());
        }
        self.record.clear();
        self.record.push(split as u8);
        put_text(Some(&named(class, self.masks)), &mut self.record);
        self.record.extend_from_slice(&times.to_be_bytes());
        self.sorter.push(&self.record)
    }

    /// Rows of the classes of each split.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn finish(self) -> Result<[BTreeMap<String, u64>; 3], Failure> {
        let mut splits: [MostFrequent; 3] = Default::default();
        let mut note = |(split, name, rows): (u8, String, u64)| {
            if let Some(classes) = splits.get_mut(usize::from(split)) {
                classes.add(name, rows);
            }
        };
        let sorted = self.sorter.finish()?;
        let mut records = sorted.records()?;
        let mut last: Option<(u8, String, u64)> = None;
        while let Some(mut record) = records.next_record()? {
            let [split] = array::<1>(&mut record)?;
            let name = take_text(&mut record)?.unwrap_or_default();
            let times = take_number(&mut record)?;
            match &mut last {
                Some((of, known, rows)) if *of == split && *known == name => *rows += times,
                _ => {
                    if let Some(done) = last.replace((split, name, times)) {
                        note(done);
                    }
                }
            }
        }
        if let Some(done) = last {
            note(done);
        }
        Ok(splits.map(MostFrequent::finish))
    }
}

/// The most frequent classes, and how many rows the others have.
#[derive(Debug, Default)]
struct MostFrequent {
    classes: BTreeSet<(Reverse<u64>, String)>,
    others: Option<u64>,
}

impl MostFrequent {
    /// Adds a class that was not added before.
    fn add(&mut self, name: String, rows: u64) {
        self.classes.insert((Reverse(rows), name));
        if self.classes.len() > MAXIMUM_CLASSES
            && let Some((Reverse(rows), _)) = self.classes.pop_last()
        {
            *self.others.get_or_insert(0) += rows;
        }
    }

    fn finish(self) -> BTreeMap<String, u64> {
        let named = self.classes.into_iter();
        let mut classes: BTreeMap<String, u64> =
            named.map(|(Reverse(rows), name)| (name, rows)).collect();
        if let Some(rows) = self.others {
            *classes.entry("(others)".to_owned()).or_default() += rows;
        }
        classes
    }
}

/// A class's name is a column's value like any other.
pub(crate) fn named(class: &str, masks: bool) -> String {
    let masked = masks.then(|| mask(class, &Masker::Redact, &mut Counts::default()));
    let name = masked.flatten().unwrap_or_else(|| class.to_owned());
    name.chars().take(80).collect()
}

/// The rules that rows broke, of all sources together.
pub fn rejected(rules: &[BrokenRule]) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for broken in rules {
        *counts.entry(&broken.first.rule).or_default() += broken.rows;
    }
    let mut sorted: Vec<(String, u64)> = counts
        .into_iter()
        .map(|(rule, rows)| (rule.to_owned(), rows))
        .collect();
    // The sort is stable: rules of the same frequency stay in the order of their names.
    sorted.sort_by_key(|(_, rows)| std::cmp::Reverse(*rows));
    sorted.truncate(MAXIMUM_RULES);
    sorted
}

impl Statistics {
    /// The splits with their names.
    pub fn named_splits(&self) -> impl Iterator<Item = (&'static str, &SplitStatistics)> {
        Split::ALL
            .iter()
            .map(|split| split.name())
            .zip(&self.splits)
    }

    /// As JSON, for machines.
    pub fn to_json(&self) -> Value {
        let splits: serde_json::Map<String, Value> = self
            .named_splits()
            .map(|(name, split)| (name.to_owned(), split.to_json()))
            .collect();
        let rejected: Vec<Value> = self
            .rejected
            .iter()
            .map(|(rule, rows)| json!({"rule": rule, "rows": rows}))
            .collect();
        json!({
            "dataset": self.dataset,
            "classification": self.classification,
            "rejectedRows": self.rows.rejected,
            "duplicateRows": self.rows.duplicates,
            "rowsBeyondWeight": self.rows.beyond_weight,
            "leakage": {"validation": self.leakage.validation, "test": self.leakage.test},
            "findings": self.findings,
            "rejectedByRule": rejected,
            "nullsByColumn": self.nulls,
            "nullsBySourceColumn": self.source_nulls,
            "splits": splits,
        })
    }
}

/// Keys of JSON are texts.
fn numbered(counts: &BTreeMap<u64, u64>) -> serde_json::Map<String, Value> {
    counts
        .iter()
        .map(|(below, rows)| (below.to_string(), Value::from(*rows)))
        .collect()
}

/// Numbers of rows that are all held, for the tests of other modules.
#[cfg(test)]
pub mod tests_support {
    use super::*;
    use crate::row::GoodRow;

    /// The numbers of rows of one split, which are all held.
    pub fn of<'a>(rows: impl Iterator<Item = &'a GoodRow>, masks: bool) -> SplitStatistics {
        let mut statistics = SplitStatistics::default();
        let mut classes: BTreeMap<String, u64> = BTreeMap::new();
        for row in rows {
            statistics.add(&row.row, 1);
            if let Some(class) = &row.class {
                *classes.entry(named(class, masks)).or_default() += 1;
            }
        }
        if classes.len() > MAXIMUM_CLASSES {
            let mut sorted: Vec<(String, u64)> = classes.into_iter().collect();
            sorted.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            let rest: u64 = sorted[MAXIMUM_CLASSES..].iter().map(|it| it.1).sum();
            sorted.truncate(MAXIMUM_CLASSES);
            classes = sorted.into_iter().collect();
            *classes.entry("(others)".to_owned()).or_default() += rest;
        }
        statistics.classes = classes;
        statistics
    }
}

#[cfg(test)]
mod tests {
    use super::tests_support::of;
    use super::*;
    use crate::row::GoodRow;
    use crate::row::tests_support::text_row;

    #[test]
    fn characters_words_and_lengths_are_counted() {
        let rows = [text_row("é b"), text_row("abcd"), text_row("one two three")];
        let statistics = of(rows.iter(), false);
        assert_eq!(
            (
                statistics.rows,
                statistics.characters,
                statistics.words,
                statistics.longest
            ),
            (3, 20, 6, 13)
        );
        // 3 and 4 characters are below 4 and 8, 13 below 16.
        assert_eq!(
            statistics.lengths,
            BTreeMap::from([(4, 1), (8, 1), (16, 1)])
        );
        assert_eq!(statistics.columns, BTreeMap::from([("text", 20)]));
    }

    #[test]
    fn rows_that_are_counted_apart_are_those_that_are_counted_together() {
        let mut rows: Vec<GoodRow> = (0..40).map(|n| text_row(&"é b ".repeat(n))).collect();
        rows[7].class = Some("seven".to_owned());
        rows[30].class = Some("seven".to_owned());
        let count = |rows: &[GoodRow]| {
            let mut counted = of(rows.iter(), false);
            for tokens in [3, 900, 5] {
                counted.measure(tokens, 2);
                counted.note_language("eng", 1);
            }
            counted
        };
        let mut merged = count(&rows[..20]);
        merged.merge(count(&rows[20..]));
        let mut together = of(rows.iter(), false);
        for tokens in [3, 900, 5] {
            together.measure(tokens, 4);
        }
        together.note_language("eng", 6);
        assert_eq!(merged, together);
        assert_eq!(merged.classes["seven"], 2);
    }

    #[test]
    fn words_of_ascii_are_those_of_all_texts() {
        let all: String = (0..128_u8).map(char::from).collect();
        for text in [
            all.as_str(),
            "",
            "  ",
            "a",
            " a\u{b}b\u{1c}c\td  ",
            "a\u{a0}b é",
        ] {
            assert_eq!(
                words(text),
                text.split_whitespace().count() as u64,
                "{text:?}"
            );
        }
    }

    #[test]
    fn tokens_are_counted_where_they_are_measured_and_stand_nowhere_else() {
        let mut statistics = of([text_row("a")].iter(), false);
        assert!(statistics.to_json().get("tokens").is_none());
        for (tokens, times) in [(3, 2), (4, 1), (900, 0)] {
            statistics.measure(tokens, times);
        }
        assert_eq!((statistics.tokens, statistics.longest_tokens), (10, 4));
        assert_eq!(statistics.token_lengths, BTreeMap::from([(4, 2), (8, 1)]));
        let json = statistics.to_json();
        assert_eq!(json["rowsByTokensBelow"], json!({"4": 2, "8": 1}));
    }

    #[test]
    fn a_row_that_comes_several_times_is_counted_as_often() {
        let (mut once, mut repeated) = (SplitStatistics::default(), SplitStatistics::default());
        let rows = [
            (text_row("a b"), 3),
            (text_row("abcdef"), 1),
            (text_row("x"), 0),
        ];
        for (row, times) in &rows {
            repeated.add(&row.row, *times);
            (0..*times).for_each(|_| once.add(&row.row, 1));
        }
        assert_eq!(repeated, once);
        assert_eq!(once.rows, 4);
    }

    #[test]
    fn many_classes_are_counted_together_and_masked_where_texts_are() {
        let dir = tempfile::tempdir().unwrap();
        let rows: Vec<String> = (0..200)
            .map(|n| match n {
                0..100 => "often".to_owned(),
                _ => format!("p{n}@example.com"),
            })
            .collect();
        let count = |masks| {
            // So little memory that names are sorted on disk.
            let mut classes = Classes::new(&Scratch::new(dir.path(), 0), masks);
            for class in &rows {
                classes.add(Split::Train, class, 1).unwrap();
            }
            classes.add(Split::Test, "other", 7).unwrap();
            classes.finish().unwrap()
        };
        let [train, validation, test] = count(false);
        assert_eq!(
            (train.len(), train["often"], train["(others)"]),
            (51, 100, 51)
        );
        assert!(validation.is_empty());
        assert_eq!(test, BTreeMap::from([("other".to_owned(), 7)]));
        let [masked, ..] = count(true);
        let expected =
            [("[EMAIL]", 100), ("often", 100)].map(|(name, rows)| (name.to_owned(), rows));
        assert_eq!(masked, BTreeMap::from(expected));
    }
}
