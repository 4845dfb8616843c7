//! What a version's rows are like, in numbers: stored beside them as `statistics.json`, and drawn by
//! [`crate::report`]. It holds counts and lengths and, where classes are balanced, their names; texts
//! stand nowhere in it.

use std::collections::BTreeMap;

use graftwork_artifacts::rows::Row;
use graftwork_contract::dataset::{Leakage, RowCounts, Split};
use graftwork_privacy::{Counts, Masker, mask};
use serde_json::{Value, json};

use crate::row::GoodRow;
use crate::sources::BrokenRule;

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
    /// Rows of each class, where classes are balanced.
    pub classes: BTreeMap<String, u64>,
}

impl SplitStatistics {
    /// Of the rows of one split. Names of classes are masked where `masks` says so.
    pub fn of<'a>(rows: impl Iterator<Item = &'a GoodRow>, masks: bool) -> Self {
        let mut statistics = Self::default();
        for row in rows {
            let mut characters = 0;
            for (column, text) in texts(&row.row) {
                let count = text.chars().count() as u64;
                characters += count;
                statistics.words += text.split_whitespace().count() as u64;
                *statistics.columns.entry(column).or_default() += count;
            }
            statistics.rows += 1;
            statistics.characters += characters;
            statistics.longest = statistics.longest.max(characters);
            let below = (characters + 1).next_power_of_two();
            *statistics.lengths.entry(below).or_default() += 1;
            if let Some(class) = &row.class {
                *statistics.classes.entry(named(class, masks)).or_default() += 1;
            }
        }
        statistics.classes = most_frequent(statistics.classes);
        statistics
    }
}

/// A class's name is a column's value like any other.
fn named(class: &str, masks: bool) -> String {
    let masked = masks.then(|| mask(class, &Masker::Redact, &mut Counts::default()));
    let name = masked.flatten().unwrap_or_else(|| class.to_owned());
    name.chars().take(80).collect()
}

fn most_frequent(classes: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    if classes.len() <= MAXIMUM_CLASSES {
        return classes;
    }
    let mut sorted: Vec<(String, u64)> = classes.into_iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let rest: u64 = sorted
        .iter()
        .skip(MAXIMUM_CLASSES)
        .map(|(_, rows)| rows)
        .sum();
    sorted.truncate(MAXIMUM_CLASSES);
    let mut classes: BTreeMap<String, u64> = sorted.into_iter().collect();
    *classes.entry("(others)".to_owned()).or_default() += rest;
    classes
}

fn texts(row: &Row) -> Vec<(&'static str, &str)> {
    match row {
        Row::Text { text } => vec![("text", text)],
        Row::Completion { prompt, completion } => {
            vec![("prompt", prompt), ("completion", completion)]
        }
        Row::Preference {
            prompt,
            chosen,
            rejected,
        } => vec![
            ("prompt", prompt),
            ("chosen", chosen),
            ("rejected", rejected),
        ],
        Row::Chat { messages } => messages
            .iter()
            .map(|message| ("messages", message.content.as_str()))
            .collect(),
    }
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
            .map(|(name, split)| {
                let value = json!({
                    "rows": split.rows,
                    "characters": split.characters,
                    "words": split.words,
                    "longestCharacters": split.longest,
                    "rowsByCharactersBelow": numbered(&split.lengths),
                    "charactersByColumn": split.columns,
                    "rowsByClass": split.classes,
                });
                (name.to_owned(), value)
            })
            .collect();
        let rejected: Vec<Value> = self
            .rejected
            .iter()
            .map(|(rule, rows)| json!({"rule": rule, "rows": rows}))
            .collect();
        json!({
            "dataset": self.dataset,
            "rejectedRows": self.rows.rejected,
            "duplicateRows": self.rows.duplicates,
            "leakage": {"validation": self.leakage.validation, "test": self.leakage.test},
            "findings": self.findings,
            "rejectedByRule": rejected,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::tests_support::text_row;

    #[test]
    fn characters_words_and_lengths_are_counted() {
        let rows = [text_row("é b"), text_row("abcd"), text_row("one two three")];
        let statistics = SplitStatistics::of(rows.iter(), false);
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
    fn many_classes_are_counted_together_and_masked_where_texts_are() {
        let rows: Vec<GoodRow> = (0..200)
            .map(|n| {
                let mut row = text_row("x");
                row.class = Some(match n {
                    0..100 => "often".to_owned(),
                    _ => format!("p{n}@example.com"),
                });
                row
            })
            .collect();
        let plain = SplitStatistics::of(rows.iter(), false).classes;
        assert_eq!(
            (plain.len(), plain["often"], plain["(others)"]),
            (51, 100, 51)
        );
        let masked = SplitStatistics::of(rows.iter(), true).classes;
        let expected =
            [("[EMAIL]", 100), ("often", 100)].map(|(name, rows)| (name.to_owned(), rows));
        assert_eq!(masked, BTreeMap::from(expected));
    }
}
