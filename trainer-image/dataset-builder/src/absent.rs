//! A column that the spec asks rows for beside those of the format, and that a source does not have: said
//! once, with the columns that there are, and not row by row.

use std::collections::BTreeSet;

use graftwork_contract::dataset::{BuildConfig, RejectedRow};

use crate::near::{listed, nearest};
use crate::pins::masked;
use crate::sources::Collected;

/// What is said of such a column.
#[derive(Debug)]
pub struct Absent<'a> {
    /// The field, the column, and what to do.
    pub message: String,
    /// The first row that lacks it; all of its source do, by the same rule.
    pub first: &'a RejectedRow,
}

/// The column that no row of a source has a value in, where that is what is wrong with most of the bad rows.
pub fn absent<'a>(config: &BuildConfig, collected: &'a Collected) -> Option<Absent<'a>> {
    // What SQL does not return is refused before its first row.
    if config.transform.is_some() {
        return None;
    }
    let worst = collected.rules.iter().max_by_key(|broken| broken.rows)?;
    let first = &worst.first;
    let mut sources = config.sources.iter();
    let source = sources.find(|source| source.name == first.source)?;
    let (field, column) = asked(config)
        .into_iter()
        .filter_map(|(field, column)| Some((field, column?)))
        .find(|(field, _)| first.rule.starts_with(&format!("{field}: ")))?;
    let renamed = source.columns.get(column);
    let name = renamed.map_or(column, String::as_str);
    let seen = collected.columns.get(&source.name)?;
    let known = seen.columns.iter();
    let mut there: BTreeSet<&str> = known
        .filter(|(_, known)| known.values > 0)
        .map(|(name, _)| name.as_str())
        .collect();
    if seen.rows == 0 || there.contains(name) {
        return None;
    }
    let listing = collected.other_columns.get(&source.name);
    there.extend(listing.into_iter().flatten().map(String::as_str));
    let mut title = masked(name);
    if renamed.is_some() {
        title = format!("{title} (spec.sources[{}].columns.{column})", source.name);
    }
    if let Some(near) = nearest(name, there.iter().copied().filter(|near| *near != name)) {
        title = format!("{title} (did you mean {}?)", masked(near));
    }
    let message = format!(
        "{field}: no row of source {} has a value in column {title}; its columns are {}; name one of these, or \
         correct the source",
        source.name,
        listed(there.iter().copied())
    );
    Some(Absent { message, first })
}

/// The fields that ask for a column, with the column's name.
fn asked(config: &BuildConfig) -> [(&'static str, Option<&str>); 3] {
    let split = &config.split;
    let class = config.balance.as_ref().map(|it| it.column.as_str());
    [
        ("spec.split.groupColumn", split.group_column.as_deref()),
        ("spec.split.column", split.time_column.as_deref()),
        ("spec.balance.column", class),
    ]
}
