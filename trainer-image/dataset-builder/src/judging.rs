//! Rows judged on several cores: a piece of them on each. What a piece becomes follows from its rows alone, and
//! pieces are taken together in their order, so that the outcome is the same on any number of cores.

use std::collections::BTreeSet;

use graftwork_contract::dataset::{RejectedRow, Share, SourceColumns};
use graftwork_privacy::Counts;

use crate::lines::MAXIMUM_LINE_BYTES;
use crate::row::{self, Wanted};
use crate::stored::encode;
use crate::waiting::Waiter;

/// What rows are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// What is asked of a row.
    pub wanted: Wanted<'a>,
    /// How much of the source's rows is taken; none: all of them.
    pub share: Option<Share>,
    /// The columns whose shape is looked at, as the source names them; none: what is read is no source.
    pub shaped: Option<&'a BTreeSet<String>>,
}

/// What became of some rows.
#[derive(Debug, Default)]
pub struct Judged {
    /// Their columns, where they are a source's.
    pub columns: SourceColumns,
    /// What was found of personal data.
    pub findings: Counts,
    /// Good rows that were left out for their source's weight.
    pub beyond_weight: u64,
    /// Bad rows, in their order.
    pub rejected: Vec<RejectedRow>,
    /// Good rows as they are stored, in their order, one behind the other.
    records: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl Judged {
    /// Good rows as they are stored, in their order.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let ends = self.ends.iter().copied();
        starts
            .zip(ends)
            .map(move |(start, end)| self.records.get(start..end).unwrap_or_default())
    }
}

impl Judge<'_> {
    /// What becomes of these rows.
    pub fn judge(&self, rows: &[Waiter]) -> Judged {
        let mut judged = Judged::default();
        let mut record = Vec::new();
        for waiter in rows {
            let read = waiter.record();
            let found = match &*read {
                Ok(object) => Ok(object),
                Err(rule) => Err(rule),
            };
            if let (Some(shaped), Ok(object)) = (self.shaped, found) {
                judged.columns.note(object, |name, shape, value| {
                    if shaped.contains(name) {
                        shape.note_outside(value);
                    }
                });
            }
            let good = found.map_err(String::clone).and_then(|object| {
                // Lines and records of CSV are bounded before they are read; Parquet and SQL are not.
                row::read(object, self.wanted, &mut judged.findings)?.bounded(MAXIMUM_LINE_BYTES)
            });
            match good {
                Ok(row) if self.share.is_some_and(|it| !it.takes(&row.canonical)) => {
                    judged.beyond_weight += 1;
                }
                Ok(row) => {
                    encode(&row, &mut record);
                    judged.records.extend_from_slice(&record);
                    judged.ends.push(judged.records.len());
                }
                Err(rule) => {
                    let place = waiter.place.clone();
                    judged.rejected.push(RejectedRow { rule, ..place });
                }
            }
        }
        judged
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use graftwork_contract::dataset::Format;

    use super::*;
    use crate::nulls::Nulls;
    use crate::reader::Raw;
    use crate::waiting::Waiting;

    /// What becomes of these lines on so many threads: records, bad rows, columns and values that are not there.
    type Outcome = (
        Vec<Vec<u8>>,
        Vec<RejectedRow>,
        String,
        BTreeMap<String, u64>,
    );

    fn outcome(lines: &[String], threads: usize) -> Outcome {
        let (renamed, nulls) = (BTreeMap::new(), Nulls::default());
        let shaped = BTreeSet::from(["text".to_owned(), "n".to_owned()]);
        let judge = Judge {
            wanted: Wanted {
                format: Format::Text,
                group_column: None,
                time_column: None,
                class_column: None,
                reward: false,
                renamed: &renamed,
                screen: None,
                measured: None,
                nulls: Some(&nulls),
            },
            share: Some(Share { part: 3, whole: 4 }),
            shaped: Some(&shaped),
        };
        let mut waiting = Waiting::default();
        for (number, line) in (1..).zip(lines) {
            let place = RejectedRow {
                source: "s".to_owned(),
                file: None,
                line: number,
                rule: String::new(),
            };
            waiting.push(Raw::Line(line.as_bytes()), place);
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pieces = pool.build().unwrap().install(|| waiting.judge(judge));
        let mut columns = SourceColumns::default();
        let (mut records, mut rejected, mut beyond) = (Vec::new(), Vec::new(), 0);
        for piece in pieces {
            records.extend(piece.records().map(<[u8]>::to_vec));
            rejected.extend(piece.rejected);
            columns.add(piece.columns);
            beyond += piece.beyond_weight;
        }
        assert_eq!(
            records.len() as u64 + beyond + rejected.len() as u64,
            lines.len() as u64
        );
        (
            records,
            rejected,
            format!("{columns:?}"),
            nulls.into_counts(),
        )
    }

    #[test]
    fn rows_become_the_same_in_the_same_order_on_any_number_of_threads() {
        let line = |n: u32| match n % 10 {
            3 => "{\"text\": \"cut".to_owned(),
            7 => format!(r#"{{"text": null, "n": {n}}}"#),
            _ => format!(r#"{{"text": "row {n}", "n": {n}.5, "m": []}}"#),
        };
        let lines: Vec<String> = (0..3000).map(line).collect();
        let one = outcome(&lines, 1);
        assert_eq!(
            (one.1.len(), &one.3),
            (600, &BTreeMap::from([("text".to_owned(), 300)]))
        );
        assert_eq!(
            one.1.iter().map(|row| row.line).take(3).collect::<Vec<_>>(),
            [4, 8, 14]
        );
        assert!(
            (1600..2000).contains(&one.0.len()),
            "{} of 2400",
            one.0.len()
        );
        for threads in [2, 8] {
            assert_eq!(outcome(&lines, threads), one, "{threads} threads");
        }
        // Few rows are pieces too.
        assert_eq!(outcome(&lines[..5], 2), outcome(&lines[..5], 1));
    }
}
