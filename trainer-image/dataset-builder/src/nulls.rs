//! How often a column had no value, in rows that were left out: a row that is kept has all of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use graftwork_artifacts::rows::columns;
use graftwork_contract::dataset::REWARD_COLUMN;
use serde_json::{Map, Value};

use crate::row::Wanted;
use crate::shapes;

/// Rows without a value, by column. Several threads count at a time.
#[derive(Debug, Default)]
pub struct Nulls(Mutex<BTreeMap<String, u64>>);

impl Nulls {
    /// Looks at a row that was left out.
    pub fn look(&self, object: &Map<String, Value>, wanted: &Wanted<'_>) {
        let is_null = |name: &str| object.get(name).is_none_or(Value::is_null);
        // A row of another shape has other columns.
        let others = shapes::other_columns(wanted.format);
        let is_of_other_shape = others.iter().any(|name| !is_null(name));
        let format = columns(wanted.format)
            .iter()
            .filter(|_| !is_of_other_shape)
            .copied();
        let beside = [
            wanted.group_column,
            wanted.time_column,
            wanted.class_column,
            wanted.reward.then_some(REWARD_COLUMN),
        ];
        let mut names: Vec<&str> = format.chain(beside.into_iter().flatten()).collect();
        names.sort_unstable();
        names.dedup();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            if is_null(wanted.renamed.get(name).map_or(name, String::as_str)) {
                *counts.entry(name.to_owned()).or_default() += 1;
            }
        }
    }

    /// Rows without a value, by column.
    pub fn into_counts(self) -> BTreeMap<String, u64> {
        let counts = self.0.into_inner();
        counts.unwrap_or_else(PoisonError::into_inner)
    }
}
