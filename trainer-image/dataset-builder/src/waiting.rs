//! Rows that wait until there are enough of them: to be judged on all cores, and before that, where there is an
//! analyser, to be asked about in one go.

use std::borrow::Cow;
use std::collections::BTreeSet;

use graftwork_contract::dataset::RejectedRow;
use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::judging::{Judge, Judged};
use crate::query::Record;
use crate::reader::Raw;
use crate::row::{self, Wanted, screened_texts};

/// How many rows wait at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    rows: usize,
    /// Bytes that they take, about, but for the last row's.
    bytes: usize,
}

/// Rows that are judged at a time, while as many are read. What they become takes a few times as much.
pub const JUDGED: Limits = Limits {
    rows: 4096,
    bytes: 8 << 20,
};
/// Rows that an analyser is asked about at a time.
pub const ASKED: Limits = Limits {
    rows: 256,
    bytes: 4 << 20,
};
/// Bytes that a value takes beside what it says, about: its place in an object, and that of its name. A row of a
/// thousand numbers takes many times what they say.
const VALUE_BYTES: usize = 128;
/// Into so many pieces, about, rows that wait are cut, whatever machine judges them.
const PIECES: usize = 32;
/// Rows of a piece, at most.
const PIECE_ROWS: usize = 64;

/// What waits, as its reader came by it.
#[derive(Debug)]
enum Found {
    Line(Vec<u8>),
    Record(Record),
}

/// A row that waits, in its source's order.
#[derive(Debug)]
pub struct Waiter {
    found: Found,
    /// Where it was, without a rule.
    pub place: RejectedRow,
}

impl Waiter {
    /// The row, or the rule that it breaks.
    pub fn record(&self) -> Cow<'_, Record> {
        match &self.found {
            Found::Line(line) => Cow::Owned(row::object(line)),
            Found::Record(record) => Cow::Borrowed(record),
        }
    }
}

/// Rows that wait.
#[derive(Debug, Default)]
pub struct Waiting {
    rows: Vec<Waiter>,
    bytes: usize,
}

impl Waiting {
    /// One more.
    pub fn push(&mut self, raw: Raw<'_>, place: RejectedRow) {
        let found = match raw {
            Raw::Line(line) => {
                self.bytes += line.len();
                Found::Line(line.to_vec())
            }
            Raw::Record(record) => {
                if let Ok(object) = &record {
                    self.bytes += object_bytes(object);
                }
                Found::Record(record)
            }
        };
        self.rows.push(Waiter { found, place });
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether there are enough.
    pub fn is_full(&self, limits: Limits) -> bool {
        self.rows.len() >= limits.rows || self.bytes >= limits.bytes
    }

    /// Texts that are screened, each once, of rows that are objects already.
    pub fn texts(&self, wanted: Wanted<'_>) -> BTreeSet<String> {
        let objects = self.rows.iter().filter_map(|row| match &row.found {
            Found::Record(Ok(object)) => Some(object),
            Found::Record(Err(_)) | Found::Line(_) => None,
        });
        objects
            .flat_map(|object| screened_texts(object, wanted))
            .collect()
    }

    /// What becomes of the rows, in the order in which they came.
    pub fn judge(&self, judge: Judge<'_>) -> Vec<Judged> {
        self.pieces(|rows| judge.judge(rows))
    }

    /// What `make` makes of pieces of the rows, in the order in which they came. It does so on all cores; how
    /// the pieces are cut follows from the number of rows alone.
    pub fn pieces<T: Send>(&self, make: impl Fn(&[Waiter]) -> T + Send + Sync) -> Vec<T> {
        let rows = (self.rows.len() / PIECES).clamp(1, PIECE_ROWS);
        self.rows.par_chunks(rows).map(make).collect()
    }
}

/// Bytes that an object takes, about.
fn object_bytes(object: &Map<String, Value>) -> usize {
    let values = object.iter();
    values
        .map(|(name, value)| name.len() + value_bytes(value))
        .sum()
}

fn value_bytes(value: &Value) -> usize {
    VALUE_BYTES
        + match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(value_bytes).sum(),
            Value::Object(object) => object_bytes(object),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// How many such rows wait until there are enough.
    fn full_after(row: &Value, limits: Limits, is_line: bool) -> usize {
        let mut waiting = Waiting::default();
        let mut count = 0;
        while !waiting.is_full(limits) {
            let place = RejectedRow {
                source: "s".to_owned(),
                file: None,
                line: 1,
                rule: String::new(),
            };
            let line = row.to_string();
            let raw = if is_line {
                Raw::Line(line.as_bytes())
            } else {
                Raw::Record(Ok(row.as_object().unwrap().clone()))
            };
            waiting.push(raw, place);
            count += 1;
        }
        count
    }

    #[test]
    fn neither_rows_nor_bytes_wait_without_limit() {
        let row = |text: &str| json!({"messages": [{"content": text}], "n": 1});
        let (short, long) = (row("short"), row(&"x".repeat(1 << 20)));
        for is_line in [false, true] {
            assert_eq!(full_after(&short, ASKED, is_line), 256);
            assert_eq!(full_after(&long, ASKED, is_line), 4);
            assert_eq!(full_after(&short, JUDGED, is_line), 4096);
            assert_eq!(full_after(&long, JUDGED, is_line), 8);
        }
    }

    #[test]
    fn many_values_take_room_however_little_they_say() {
        let columns: Map<String, Value> = (0..1024)
            .map(|n| (format!("c{n}"), json!(n % 10)))
            .collect();
        let count = full_after(&Value::Object(columns), JUDGED, false);
        assert!((50..80).contains(&count), "{count} rows of 1,024 numbers");
    }
}
