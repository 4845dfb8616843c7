//! Sources that are a question to a database. What differs between databases is behind [`Database`].

mod login;
mod postgres;

use graftwork_contract::Digest;
use graftwork_contract::address::Guard;
use graftwork_contract::dataset::{
    BuildConfig, DatabaseKind, Query, QueryProvenance, Source, SourceProvenance,
};
use graftwork_contract::digest::canonical_object;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use postgres::Postgres;

/// A row as an object with the names of the query's columns, or the rule that it breaks: in words and
/// without data.
pub type Record = Result<Map<String, Value>, String>;

/// What takes rows, one after the other. Where it fails, no more are asked for.
pub type Take<'a> = dyn FnMut(Record) -> Result<(), Failure> + 'a;

/// A database. Another kind is one more implementation.
///
/// All rows are of one snapshot, nothing is changed, and only so many are in memory at a time as arrive
/// together. An error names no value of a row and nothing of the Secret but its name.
pub trait Database {
    /// Asks, and hands over each row of the answer: the RFC 3339 time of the snapshot, by the database's
    /// clock.
    ///
    /// # Errors
    /// A database that does not answer or refuses, a query that can't be answered in its time, a column
    /// of a type that has no place in JSON, and what `take` fails with.
    fn ask(&self, query: &Query, take: &mut Take<'_>) -> Result<String, Failure>;
}

/// What takes the rows of a source, each with its number in the answer, from 1.
pub type TakeRow<'a> = dyn FnMut(u64, Record) -> Result<(), Failure> + 'a;

/// Reads a source that is a query, row by row: what it was asked, when, and the digest of the answer.
///
/// # Errors
/// See [`Database::ask`]; too many rows. Bad rows are no error.
pub fn read(
    config: &BuildConfig,
    source: &Source,
    query: &Query,
    take: &mut TakeRow<'_>,
) -> Result<SourceProvenance, Failure> {
    let database = open(source, query.database, &config.allowed_hosts)?;
    read_from(database.as_ref(), source, query, take)
}

/// The database of a source, which is connected to with the first question: where its Secret says, if that
/// is a public address or one of `allowed`.
///
/// # Errors
/// A Secret that is not there or can't be used.
pub fn open(
    source: &Source,
    kind: DatabaseKind,
    allowed: &[String],
) -> Result<Box<dyn Database>, Failure> {
    let guard = Guard::parse(allowed)
        .map_err(|error| Failure::bad_config(format!("dataSources.allow: {error}")))?;
    let login = login::read(source, kind)?;
    Ok(match kind {
        DatabaseKind::Postgres => Box::new(Postgres::new(source.name.clone(), login, guard)),
    })
}

fn read_from(
    database: &dyn Database,
    source: &Source,
    query: &Query,
    take: &mut TakeRow<'_>,
) -> Result<SourceProvenance, Failure> {
    let (mut rows, mut size_bytes) = (0_u64, 0_u64);
    let mut hasher = Sha256::new();
    let snapshot_time = database.ask(query, &mut |record| {
        rows += 1;
        if rows > query.maximum_rows {
            return Err(Failure::query_failed(format!(
                "source {}: the query has more than {} rows, which is spec.sources[{}].maximumRows; ask for fewer, or raise it",
                source.name, query.maximum_rows, source.name
            )));
        }
        if let Ok(object) = &record {
            // Keys are sorted: the same row is the same line, whatever order the query names columns in.
            let line = canonical_object(object);
            hasher.update(line.as_bytes());
            hasher.update(b"\n");
            size_bytes += line.len() as u64 + 1;
        }
        take(rows, record)
    })?;
    Ok(SourceProvenance {
        name: source.name.clone(),
        uri: source.uri.clone(),
        digest: Digest::from_sha256(hasher.finalize().into()),
        size_bytes,
        etag: None,
        query: Some(QueryProvenance {
            digest: Digest::of(query.text.as_bytes()),
            snapshot_time,
            rows,
        }),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use graftwork_contract::exit::ExitCode;
    use serde_json::json;

    use super::*;

    /// A database with these rows in this order.
    struct Rows(Vec<Record>);

    impl Database for Rows {
        fn ask(&self, _: &Query, take: &mut Take<'_>) -> Result<String, Failure> {
            for row in &self.0 {
                take(row.clone())?;
            }
            Ok("2026-11-20T01:00:00Z".to_owned())
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "as a database hands rows over")]
    fn text(text: Value) -> Record {
        Ok(Map::from_iter([("text".to_owned(), text)]))
    }

    fn source() -> Source {
        Source {
            name: "decisions".to_owned(),
            uri: "secret://warehouse/url".to_owned(),
            path: "/nowhere".to_owned(),
            root: None,
            columns: BTreeMap::new(),
            digest: None,
            query: None,
            remote: None,
            share: None,
        }
    }

    /// The numbers of the rows that were taken, good ones and those that break a rule.
    type Taken = (Vec<u64>, Vec<(u64, String)>);

    fn read(rows: Vec<Record>, maximum_rows: u64) -> (Taken, Result<SourceProvenance, Failure>) {
        let query = Query {
            database: DatabaseKind::Postgres,
            text: "SELECT text FROM decisions".to_owned(),
            timeout_seconds: 60,
            maximum_rows,
        };
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        let outcome = read_from(&Rows(rows), &source(), &query, &mut |number, record| {
            match record {
                Ok(_) => good.push(number),
                Err(rule) => bad.push((number, rule)),
            }
            Ok(())
        });
        ((good, bad), outcome)
    }

    #[test]
    fn rows_are_numbered_and_one_that_breaks_a_rule_does_not_end_the_answer() {
        let rule = "column at is no finite time";
        let rows = vec![text(json!("a")), Err(rule.to_owned()), text(json!("b"))];
        let ((good, bad), outcome) = read(rows, 10);
        assert_eq!(good, [1, 3]);
        assert_eq!(bad, [(2, rule.to_owned())]);
        let query = outcome.unwrap().query.unwrap();
        assert_eq!(query.digest, Digest::of(b"SELECT text FROM decisions"));
        assert_eq!(
            (query.rows, query.snapshot_time.as_str()),
            (3, "2026-11-20T01:00:00Z")
        );
    }

    #[test]
    fn one_row_more_than_the_cap_ends_the_build_with_the_field() {
        let rows = || vec![text(json!("a")), text(json!("b"))];
        assert!(read(rows(), 2).1.is_ok());
        let failure = read(rows(), 1).1.unwrap_err();
        assert_eq!(
            (failure.code, failure.reason),
            (ExitCode::BadConfig, "QueryFailed")
        );
        assert!(
            failure
                .message
                .contains("more than 1 rows, which is spec.sources[decisions].maximumRows"),
            "{failure}"
        );
    }

    #[test]
    fn lineage_tells_other_rows_from_the_same_ones() {
        let digest = |rows: &[&str]| {
            let rows = rows.iter().map(|it| text(json!(it))).collect();
            let provenance = read(rows, 10).1.unwrap();
            (provenance.digest, provenance.size_bytes)
        };
        assert_eq!(digest(&["a", "b"]), digest(&["a", "b"]));
        assert_ne!(digest(&["a", "b"]), digest(&["a", "c"]));
        assert_eq!(digest(&["a"]).0, Digest::of(b"{\"text\":\"a\"}\n"));
        assert_eq!(digest(&["a"]).1, 13);
    }
}
