//! What went wrong between us and PostgreSQL, in words and with a verdict: whether another attempt may
//! help. The server's own text is repeated only where it is about names: elsewhere it may quote a value.

use std::error::Error as _;
use std::io::ErrorKind;

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, ErrorPosition};

use crate::failure::{Failure, causes};

/// Most letters of a line of the query that a message repeats.
const MAXIMUM_LINE: usize = 120;

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum During<'a> {
    /// The connection was being made.
    Login,
    /// The server was reading this query, and had seen no row yet.
    Prepare(&'a str),
    /// Rows were coming: so many came.
    Rows {
        /// `timeoutSeconds` of the source.
        timeout_seconds: u32,
        /// How many.
        rows: u64,
    },
}

/// The failure of a source by this error.
pub fn failure(source: &str, error: &Error, during: During<'_>) -> Failure {
    match error.as_db_error() {
        Some(said) => refused(source, said, during),
        None => broken(source, error, during),
    }
}

/// The server answered with an error.
fn refused(source: &str, said: &DbError, during: During<'_>) -> Failure {
    let code = said.code().code();
    let field = format!("spec.sources[{source}].postgres");
    let class = code.get(..2).unwrap_or_default();
    match (class, code) {
        ("28", _) => Failure::source_denied(format!(
            "source {source}: the database refuses user and password (SQLSTATE {code}); correct the Secret in {field}.secretRef, then change the annotation graftwork.dev/refresh"
        )),
        ("3D", _) => Failure::source_denied(format!(
            "source {source}: the server has no such database (SQLSTATE {code}); correct the Secret in {field}.secretRef, then change the annotation graftwork.dev/refresh"
        )),
        (_, "42501") => Failure::source_denied(format!(
            "source {source}: {} (SQLSTATE {code}); grant it to the user of {field}.secretRef, then change the annotation graftwork.dev/refresh",
            said.message()
        )),
        // Connections, resources, an operator's intervention other than a cancelled query, a standby's
        // conflict, the server's own disk.
        ("08" | "53" | "58", _)
        | (_, "57P01" | "57P02" | "57P03" | "57P04" | "40001" | "55P03") => {
            Failure::source_unavailable(format!(
                "source {source}: the database went away or has no room{}: {} (SQLSTATE {code})",
                after(during),
                said.message()
            ))
        }
        (_, "57014") => {
            let limit = match during {
                During::Rows {
                    timeout_seconds, ..
                } => {
                    format!(" {timeout_seconds} s, which is spec.sources[{source}].timeoutSeconds")
                }
                During::Login | During::Prepare(_) => {
                    format!(" spec.sources[{source}].timeoutSeconds allows")
                }
            };
            Failure::query_failed(format!(
                "source {source}: the query was cancelled{}: it took longer than{limit}, or somebody cancelled it; ask for less, or raise the limit",
                after(during)
            ))
        }
        _ => match during {
            During::Prepare(query) => Failure::query_failed(format!(
                "source {source}: {field}.query{}: {}{} (SQLSTATE {code})",
                place(query, said.position()),
                said.message(),
                said.hint()
                    .map_or_else(String::new, |hint| format!("; {hint}"))
            )),
            // Names of what is missing, of what is not allowed in a read-only transaction, of what is not
            // implemented.
            _ if ["42", "25", "0A"].contains(&class) => Failure::query_failed(format!(
                "source {source}: {field}.query failed{}: {} (SQLSTATE {code})",
                after(during),
                said.message()
            )),
            During::Login | During::Rows { .. } => Failure::query_failed(format!(
                "source {source}: {field}.query failed{} (SQLSTATE {code}); the database's log says more",
                after(during)
            )),
        },
    }
}

/// The server did not answer, or with what is no answer.
fn broken(source: &str, error: &Error, during: During<'_>) -> Failure {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<std::io::Error>());
    let gone = match cause {
        // What TLS and the handshake make of bytes that are wrong.
        Some(cause) => !matches!(
            cause.kind(),
            ErrorKind::InvalidData | ErrorKind::InvalidInput
        ),
        None => error.is_closed(),
    };
    if gone {
        return Failure::source_unavailable(format!(
            "source {source}: the database went away{}: {}",
            after(during),
            causes(error)
        ));
    }
    if during == During::Login {
        return Failure::source_denied(format!(
            "source {source}: no connection to the database: {}; correct the Secret in spec.sources[{source}].postgres.secretRef, then change the annotation graftwork.dev/refresh",
            causes(error)
        ));
    }
    Failure::bug(format!(
        "source {source}: the database's answer can't be read{}: {error}",
        after(during)
    ))
}

fn after(during: During<'_>) -> String {
    match during {
        During::Rows { rows, .. } => format!(" after {rows} rows"),
        During::Login | During::Prepare(_) => String::new(),
    }
}

/// Line and column of a position in the query, and the line itself.
fn place(query: &str, position: Option<&ErrorPosition>) -> String {
    let Some(ErrorPosition::Original(position)) = position else {
        return String::new();
    };
    // Letters are counted, from 1.
    let before: String = query
        .chars()
        .take((*position as usize).saturating_sub(1))
        .collect();
    let line = before.matches('\n').count();
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let column = before.get(start..).unwrap_or_default().chars().count() + 1;
    let text = query.split('\n').nth(line).unwrap_or_default().trim();
    let shown: String = text.chars().take(MAXIMUM_LINE).collect();
    let more = if shown.len() < text.len() { "..." } else { "" };
    format!(", line {}, column {column} ({shown}{more})", line + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_a_line_and_a_column_of_letters() {
        let query = "SELECT é,\n  promt\nFROM decisions";
        let at = |position| place(query, Some(&ErrorPosition::Original(position)));
        assert_eq!(at(8), ", line 1, column 8 (SELECT é,)");
        assert_eq!(at(13), ", line 2, column 3 (promt)");
        assert_eq!(at(19), ", line 3, column 1 (FROM decisions)");
        assert_eq!(place(query, None), "");
        let long = "x".repeat(500);
        let told = place(&long, Some(&ErrorPosition::Original(1)));
        assert!(told.len() < 160 && told.ends_with("...)"), "{told}");
        assert_eq!(at(9999), ", line 3, column 15 (FROM decisions)");
    }
}
