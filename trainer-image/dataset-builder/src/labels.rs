//! Labels: completions of few kinds, as a classifier learns them. They are counted without being asked for,
//! where what they say is no text that just one row has.

use std::collections::BTreeMap;

use graftwork_artifacts::rows::Row;
use graftwork_contract::dataset::{BuildConfig, Classification, Split};

use crate::statistics::named;

/// With more kinds, completions are answers and no labels.
const MAXIMUM_LABELS: usize = 50;
/// A longer completion is an answer.
const MAXIMUM_CHARACTERS: usize = 100;
/// The least rows of a label, on average.
const ROWS_OF_A_LABEL: u64 = 5;

/// Rows of each label on their way; none once they are no labels.
#[derive(Debug)]
pub struct Labels {
    splits: Option<[BTreeMap<String, u64>; 3]>,
    masks: bool,
}

impl Labels {
    /// No rows yet. Where classes are balanced those are counted, and of Restricted rows nothing is told.
    pub fn new(config: &BuildConfig) -> Self {
        let is_restricted = config.classification == Some(Classification::Restricted);
        let is_asked = config.balance.is_none() && !is_restricted;
        Self {
            splits: is_asked.then(Default::default),
            masks: config.privacy.is_some(),
        }
    }

    /// Counts a row that comes so often.
    pub fn note(&mut self, row: &Row, split: Split, times: u64) {
        let Some(splits) = &mut self.splits else {
            return;
        };
        let Row::Completion { completion, .. } = row else {
            self.splits = None;
            return;
        };
        let is_short = completion.chars().nth(MAXIMUM_CHARACTERS).is_none();
        if let Some(labels) = splits.get_mut(split as usize).filter(|_| is_short) {
            match labels.get_mut(completion) {
                Some(rows) => *rows += times,
                None => {
                    labels.insert(completion.clone(), times);
                }
            }
            if labels.len() <= MAXIMUM_LABELS {
                return;
            }
        }
        self.splits = None;
    }

    /// Rows of the labels of each split, where these are labels.
    pub fn finish(self) -> Option<[BTreeMap<String, u64>; 3]> {
        let splits = self.splits?;
        let (kinds, rows) = {
            let mut all: BTreeMap<&str, u64> = BTreeMap::new();
            for (label, rows) in splits.iter().flatten() {
                *all.entry(label.as_str()).or_default() += rows;
            }
            (all.len(), all.values().sum::<u64>())
        };
        if kinds > MAXIMUM_LABELS || rows < kinds as u64 * ROWS_OF_A_LABEL {
            return None;
        }
        let masks = self.masks;
        Some(splits.map(|labels| {
            let mut named_labels = BTreeMap::new();
            for (label, rows) in labels {
                *named_labels.entry(named(&label, masks)).or_default() += rows;
            }
            named_labels
        }))
    }
}

#[cfg(test)]
mod tests {
    use graftwork_contract::Digest;
    use serde_json::json;

    use super::*;

    fn counted(
        extra: serde_json::Value,
        completions: impl Iterator<Item = String>,
    ) -> Option<[BTreeMap<String, u64>; 3]> {
        let mut config = json!({
            "dataset": "topics",
            "fingerprint": Digest::of(b"any"),
            "format": "Completion",
            "sources": [],
            "validation": {"minimumRows": 1, "maximumInvalidPercent": "0"},
            "split": {"groupColumn": null, "trainPercent": 80, "validationPercent": 10, "testPercent": 10, "seed": 7},
        });
        for (name, value) in extra.as_object().unwrap() {
            config[name] = value.clone();
        }
        let mut labels = Labels::new(&serde_json::from_value(config).unwrap());
        for completion in completions {
            let prompt = "a claim".to_owned();
            let row = Row::Completion { prompt, completion };
            labels.note(&row, Split::Train, 1);
            labels.note(&row, Split::Test, 2);
        }
        labels.finish()
    }

    fn of_kinds(kinds: u32) -> impl Iterator<Item = String> {
        (0..100).map(move |n| format!("topic {}", n % kinds))
    }

    #[test]
    fn completions_of_few_kinds_are_counted_and_answers_are_not() {
        let [train, validation, test] = counted(json!({}), of_kinds(4)).unwrap();
        assert_eq!(
            (train.len(), train["topic 3"], test["topic 3"]),
            (4, 25, 50)
        );
        assert!(validation.is_empty());
        assert!(counted(json!({}), of_kinds(50)).is_some());
        for answers in [
            of_kinds(100).collect::<Vec<String>>(),
            vec!["only once".to_owned()],
            vec!["x".repeat(101); 100],
        ] {
            assert_eq!(counted(json!({}), answers.into_iter()), None);
        }
    }

    #[test]
    fn of_restricted_rows_nothing_is_told_and_names_are_masked_where_texts_are() {
        let restricted = json!({"classification": "Restricted"});
        assert_eq!(counted(restricted, of_kinds(4)), None);
        let masked = json!({"privacy": {"mode": "Redact", "columns": ["prompt"]}});
        let names = (0..50).map(|n| format!("ask p{}@example.com", n % 2));
        let [train, ..] = counted(masked, names).unwrap();
        assert_eq!(train, BTreeMap::from([("ask [EMAIL]".to_owned(), 50)]));
    }
}
