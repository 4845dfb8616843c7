//! What is wrong with the SQL, or with what it does to the rows: for a person, and without data. Before the
//! first row is read, an error quotes the SQL alone; after it, it may quote a row and is never repeated.

use std::collections::BTreeMap;

use datafusion::arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::sql::sqlparser::parser::ParserError;

use super::table::Table;
use super::windows::WINDOW;
use crate::failure::Failure;
use crate::near::{listed, nearest};
use crate::pins::masked;
use crate::spill::Scratch;

/// SQL that is refused: `problem` goes on after the field's name.
pub fn refused(problem: &str) -> Failure {
    Failure::query_failed(format!("spec.transform {problem}"))
}

/// A column that rows are made of and that the result does not have, with the field that asks for it.
pub fn missing(name: &str, field: &str, columns: &[&str]) -> Failure {
    let near = nearest(name, columns.iter().copied());
    let near = near.map_or_else(String::new, |near| {
        format!(" (did you mean {}?)", masked(near))
    });
    refused(&format!(
        "returns no column {name}{near}, which {field} asks for; it returns {}",
        listed(columns.iter().copied())
    ))
}

/// What is wrong before a row was read.
pub fn planning(error: &DataFusionError, tables: &BTreeMap<String, Table>) -> Failure {
    let span = error.diagnostic().and_then(|it| it.span.as_ref());
    let place = span.map(|span| (span.start.line, span.start.column));
    let root = error.find_root();
    // A table that can't give what is asked of it says itself why.
    if let DataFusionError::External(error) = root
        && let Some(failure) = error.downcast_ref::<Failure>()
    {
        return failure.clone();
    }
    let (problem, place) = match root {
        DataFusionError::SQL(error, _) => syntax(error),
        DataFusionError::SchemaError(error, _) => (schema(error), place),
        DataFusionError::Internal(text) => return Failure::bug(format!("spec.transform: {text}")),
        other => (unknown_name(&other.message(), tables), place),
    };
    let place = place.map_or_else(String::new, |(line, column)| {
        format!(" (line {line}, column {column})")
    });
    let empty = tables
        .iter()
        .find(|(_, table)| table.columns().next().is_none());
    match empty {
        // An answer of a database that is empty today has columns tomorrow.
        Some((name, _)) if matches!(root, DataFusionError::SchemaError(..)) => {
            Failure::bad_data(format!(
                "spec.transform: {problem}{place}; source {name} has no rows, and so no columns"
            ))
        }
        _ => Failure::query_failed(format!("spec.transform: {problem}{place}")),
    }
}

/// A text that is no SQL: `expected x, found: y at Line: 1, Column: 8`.
fn syntax(error: &ParserError) -> (String, Option<(u64, u64)>) {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
        ParserError::RecursionLimitExceeded => return ("is nested too deeply".to_owned(), None),
    };
    let Some((problem, place)) = text.rsplit_once(" at Line: ") else {
        return (text.to_owned(), None);
    };
    let place = place
        .split_once(", Column: ")
        .and_then(|(line, column)| Some((line.parse().ok()?, column.parse().ok()?)));
    (problem.to_owned(), place)
}

fn schema(error: &SchemaError) -> String {
    match error {
        SchemaError::FieldNotFound {
            field,
            valid_fields,
        } => {
            let names: Vec<String> = valid_fields
                .iter()
                .map(datafusion::common::Column::flat_name)
                .collect();
            let bare = valid_fields.iter().map(|field| field.name.as_str());
            let near = match nearest(&field.name, bare) {
                Some(near) => format!("; did you mean {}?", masked(near)),
                None => String::new(),
            };
            let columns = match names.as_slice() {
                [] => String::new(),
                names => format!("; columns are {}", listed(names.iter().map(String::as_str))),
            };
            format!("there is no column {}{near}{columns}", field.flat_name())
        }
        other => other.to_string(),
    }
}

/// A table that is not there, with those that are. Other messages stay.
fn unknown_name(message: &str, tables: &BTreeMap<String, Table>) -> String {
    let first = message.replace('\n', " ");
    let name = first
        .strip_prefix("table '")
        .and_then(|rest| rest.strip_suffix("' not found"))
        .map(|name| name.strip_prefix("datafusion.public.").unwrap_or(name));
    let Some(name) = name else {
        return first;
    };
    let names = tables.keys().map(String::as_str);
    let near = match nearest(name, names.clone()) {
        Some(near) => format!("; did you mean {near}?"),
        None => String::new(),
    };
    format!(
        "there is no source {name}{near}; sources are {}, and a name with - stands in double quotes",
        listed(names)
    )
}

/// What went wrong with rows. No text of the engine is repeated: it may quote them.
pub fn running(error: &DataFusionError, scratch: &Scratch, memory: usize) -> Failure {
    let bad = |what: &str| {
        Failure::bad_data(format!(
            "spec.transform: {what}; its value is data and is not shown"
        ))
    };
    match error.find_root() {
        DataFusionError::ResourcesExhausted(text) => exhausted(text, memory),
        DataFusionError::IoError(error) => scratch.failed(error),
        DataFusionError::External(error) => match error.downcast_ref::<Failure>() {
            Some(failure) => failure.clone(),
            None => bad("the query failed on a row"),
        },
        DataFusionError::ArrowError(error, _) => match error.as_ref() {
            ArrowError::IoError(_, error) => scratch.failed(error),
            ArrowError::DivideByZero => bad("a row divides by zero; NULLIF(x, 0) gives null"),
            ArrowError::ArithmeticOverflow(_) => bad("a number is too large for its type"),
            ArrowError::CastError(text) => bad(&format!(
                "a value can't be CAST{}; TRY_CAST gives null in its place",
                target(text).map_or_else(String::new, |kind| format!(" to {kind}"))
            )),
            ArrowError::ParseError(_) => {
                bad("a text can't be read as the number or time that is asked for")
            }
            _ => bad("the query failed on a row"),
        },
        DataFusionError::NotImplemented(_) => refused("asks for what the engine can't do"),
        DataFusionError::Internal(_) | DataFusionError::ExecutionJoin(_) => {
            Failure::bug("spec.transform: the query engine failed")
        }
        _ => bad("the query failed on a row"),
    }
}

/// The type that a value could not become: what stands last in `... to value of Int64 type`.
fn target(text: &str) -> Option<&str> {
    let (_, kind) = text.rsplit_once(" to value of ")?;
    let kind = kind.strip_suffix(" type")?;
    kind.bytes()
        .all(|byte| byte.is_ascii_alphanumeric())
        .then_some(kind)
}

/// Memory that is not enough: what it was for, and whether a disk could have helped.
fn exhausted(text: &str, memory: usize) -> Failure {
    // What is sorted for a window may be the first to ask for more than the window leaves.
    let name = match largest(text) {
        Some(name) if name.starts_with(WINDOW) => WINDOW,
        _ => consumer(text),
    };
    let limit = memory >> 10;
    let kept = match name {
        name if name.starts_with("HashJoin") => "NOT IN, or a subquery in a condition,",
        name if name.starts_with("CrossJoin") => "a join without a condition",
        name if name.starts_with("NestedLoopJoin") || name.starts_with("PiecewiseMergeJoin") => {
            "a join whose condition has no equality"
        }
        name if name.starts_with("SMJ") => "a join, of the rows that share one key,",
        name if name.starts_with("TopK") || name.starts_with("PartitionedTopK") => {
            "ORDER BY with LIMIT"
        }
        name if name.starts_with("AggregateStream") => "an aggregate over all rows",
        name if name.starts_with(WINDOW) => "a window function (OVER), of the rows of its frame,",
        name if name.contains("Aggregate") || name.contains("Sort") => {
            return Failure::query_failed(format!(
                "spec.transform: {name} spills to the scratch volume and still needs more than the {limit} KiB of memory that every query has; sort and group by shorter values"
            ));
        }
        _ => "an operator",
    };
    Failure::query_failed(format!(
        "spec.transform: {kept} holds more than the {limit} KiB in memory that every query has, and can't spill to the scratch volume ({name}); write the query without it, or have it hold fewer rows"
    ))
}

/// Who holds most of the memory, by the engine's name.
fn largest(text: &str) -> Option<&str> {
    let (_, list) = text.split_once(" (across reservations) as:")?;
    Some(list.trim_start())
}

/// Who asked for the memory, by the engine's name.
fn consumer(text: &str) -> &str {
    let tracked = text
        .split_once("Additional allocation failed for ")
        .and_then(|(_, rest)| rest.split_once(" with top memory"));
    let plain = || {
        let (_, rest) = text.split_once(" for ")?;
        rest.split_once(" with ")
    };
    let name = tracked.or_else(plain).map_or("", |(name, _)| name);
    // `ExternalSorter[0]`, or with an id `ExternalSorter#3(can spill: true)`.
    let end = name.find(['[', '#', '(']).unwrap_or(name.len());
    name.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_are_there_are_listed_without_personal_data() {
        let failure = missing("prompt", "spec.format.type", &["claim", "jane@example.com"]);
        let words =
            "returns no column prompt, which spec.format.type asks for; it returns claim, [EMAIL]";
        assert!(failure.message.contains(words), "{failure}");
    }

    #[test]
    fn a_place_in_the_text_is_read_from_the_parsers_words() {
        let error = ParserError::ParserError(
            "Expected: an expression, found: FROM at Line: 2, Column: 8".to_owned(),
        );
        let expected = "Expected: an expression, found: FROM".to_owned();
        assert_eq!(syntax(&error), (expected, Some((2, 8))));
    }

    #[test]
    fn who_needs_more_memory_is_named_with_whether_it_can_spill() {
        let tracked = |name: &str| {
            format!(
                "Additional allocation failed for {name} with top memory consumers (across reservations) as:\n  x\nError: Failed"
            )
        };
        let crossed = exhausted(&tracked("CrossJoinExec"), 1 << 20);
        assert_eq!(crossed.reason, "QueryFailed");
        for words in ["a join without a condition", "1024 KiB", "can't spill"] {
            assert!(crossed.message.contains(words), "{crossed}");
        }
        let window = exhausted(&tracked("Window#7(can spill: false)"), 1 << 20);
        let beside = tracked("ExternalSorterMerge[0]#8(can spill: false)");
        let beside = beside.replace(
            "  x\n",
            "  Window#7(can spill: false) consumed 9.0 MB, peak 9.0 MB.\n",
        );
        for window in [window, exhausted(&beside, 1 << 20)] {
            for words in ["a window function (OVER)", "can't spill"] {
                assert!(window.message.contains(words), "{window}");
            }
        }
        let plain = "Failed to allocate additional 1 KB for ExternalSorter[0] with 2 B already allocated for this reservation";
        let sorted = exhausted(plain, 1 << 20);
        assert!(sorted.message.contains("ExternalSorter spills"), "{sorted}");
        assert_eq!(
            consumer(&tracked("HashJoinInput#2(can spill: false)")),
            "HashJoinInput"
        );
    }

    #[test]
    fn a_value_that_breaks_the_query_is_not_repeated() {
        let scratch = Scratch::new(std::path::Path::new("/nowhere"), 0);
        let errors = [
            ArrowError::CastError("Cannot cast string 'SECRET' to value of Int64 type".to_owned()),
            ArrowError::CastError("Cannot cast ' to value of SECRET' to Int64".to_owned()),
            ArrowError::ParseError("SECRET".to_owned()),
            ArrowError::ComputeError("SECRET".to_owned()),
        ];
        let errors = errors.map(DataFusionError::from);
        let others = [DataFusionError::Execution("SECRET".to_owned())];
        for (index, error) in errors.into_iter().chain(others).enumerate() {
            let failure = running(&error, &scratch, 0);
            assert_eq!(failure.reason, "DataError");
            assert!(!failure.message.contains("SECRET"), "{failure}");
            assert_eq!(
                failure.message.contains("CAST to Int64"),
                index == 0,
                "{failure}"
            );
        }
    }
}
