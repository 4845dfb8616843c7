//! Rows that wait for what an analyser says of their texts, so that many are asked about at a time.

use std::collections::BTreeSet;

use graftwork_contract::dataset::RejectedRow;
use serde_json::Value;

use crate::query::Record;
use crate::row::{Wanted, screened_texts};

/// Rows that wait at most.
const MAXIMUM_ROWS: usize = 256;
/// Bytes of texts that wait at most, but for the last row's.
const MAXIMUM_BYTES: usize = 4 << 20;

/// A row that waits, in its source's order.
#[derive(Debug)]
pub struct Waiter {
    /// The row, or the rule that it broke.
    pub record: Record,
    /// Where it was, without a rule.
    pub place: RejectedRow,
}

/// Rows that wait.
#[derive(Debug, Default)]
pub struct Waiting {
    rows: Vec<Waiter>,
    bytes: usize,
}

impl Waiting {
    /// One more.
    pub fn push(&mut self, record: Record, place: RejectedRow) {
        if let Ok(object) = &record {
            self.bytes += object.values().map(text_bytes).sum::<usize>();
        }
        self.rows.push(Waiter { record, place });
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether there are enough.
    pub fn is_full(&self) -> bool {
        self.rows.len() >= MAXIMUM_ROWS || self.bytes >= MAXIMUM_BYTES
    }

    /// Their texts that are screened, each once.
    pub fn texts(&self, wanted: Wanted<'_>) -> BTreeSet<String> {
        let objects = self.rows.iter().filter_map(|row| row.record.as_ref().ok());
        objects
            .flat_map(|object| screened_texts(object, wanted))
            .collect()
    }

    /// The rows, in the order in which they came.
    pub fn into_rows(self) -> Vec<Waiter> {
        self.rows
    }
}

fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(object) => object.values().map(text_bytes).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn full_after(text: &str) -> usize {
        let mut waiting = Waiting::default();
        let mut count = 0;
        while !waiting.is_full() {
            let row = json!({"messages": [{"content": text}], "n": 1});
            let place = RejectedRow {
                source: "s".to_owned(),
                file: None,
                line: 1,
                rule: String::new(),
            };
            waiting.push(Ok(row.as_object().unwrap().clone()), place);
            count += 1;
        }
        count
    }

    #[test]
    fn neither_rows_nor_bytes_wait_without_limit() {
        assert_eq!(full_after("short"), MAXIMUM_ROWS);
        assert_eq!(full_after(&"x".repeat(1 << 20)), 4);
    }
}
