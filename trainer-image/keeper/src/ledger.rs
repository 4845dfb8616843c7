//! Which records may be written: the ledger of adapter versions and the pinned inputs of runs, each of its own type.

use graftwork_contract::ledger::{
    Approved, Created, Gate, PRODUCTION, Production, REJECTED, Rejected, number_of,
};
use graftwork_contract::run::Resolved;
use serde::de::DeserializeOwned;

/// Why a record is not written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// Not a path of the ledger.
    #[error(
        "{0:?} is not a record that may be written; those are adapters/NAME/versions/N/(created|gate|approved|rejected|barred|production-K|rejected-K).json and runs/NAME/KEY/resolved.json"
    )]
    Path(String),
    /// Not the content that belongs there.
    #[error("{path} is not such a record: {problem}")]
    Content {
        /// Where it should stand.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// Checks path and content of a record.
///
/// # Errors
/// See [`RecordError`].
pub fn check(path: &str, content: &[u8]) -> Result<(), RecordError> {
    let refused = || RecordError::Path(path.to_owned());
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["adapters", name, "versions", version, record] if is_name(name) => {
            let number: u32 = version.parse().map_err(|_| refused())?;
            if number == 0 || number.to_string() != *version {
                return Err(refused());
            }
            match *record {
                "created.json" => {
                    let created: Created = parse(path, content)?;
                    if created.version == number {
                        return Ok(());
                    }
                    let problem = format!("it is of version {}, not of {number}", created.version);
                    Err(RecordError::Content {
                        path: path.to_owned(),
                        problem,
                    })
                }
                "gate.json" => parse::<Gate>(path, content).map(drop),
                "approved.json" => parse::<Approved>(path, content).map(drop),
                "rejected.json" | "barred.json" => parse::<Rejected>(path, content).map(drop),
                _ if number_of(record, PRODUCTION).is_some() => {
                    parse::<Production>(path, content).map(drop)
                }
                // The first rollback is rejected.json.
                _ if number_of(record, REJECTED).is_some_and(|number| number > 1) => {
                    parse::<Rejected>(path, content).map(drop)
                }
                _ => Err(refused()),
            }
        }
        ["runs", name, key, "resolved.json"] if is_name(name) && is_hex(key) => {
            parse::<Resolved>(path, content).map(drop)
        }
        _ => Err(refused()),
    }
}

fn parse<T: DeserializeOwned>(path: &str, content: &[u8]) -> Result<T, RecordError> {
    serde_json::from_slice(content).map_err(|error| RecordError::Content {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

/// The name of an object.
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
    };
    !text.is_empty() && text.len() <= 253 && text.bytes().all(plain) && !text.starts_with('.')
}

fn is_hex(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const APPROVED: &[u8] = br#"{"by": "gate", "reason": "", "time": "2026-01-01T00:00:00Z"}"#;

    #[test]
    fn records_of_the_ledger_are_accepted() {
        assert_eq!(
            check("adapters/expenses/versions/7/approved.json", APPROVED),
            Ok(())
        );
        let rejected = br#"{"reason": "RejectedByUser", "message": "", "by": "ann", "time": "2026-01-01T00:00:00Z"}"#;
        for record in ["rejected", "barred", "rejected-2"] {
            let path = format!("adapters/expenses/versions/7/{record}.json");
            assert_eq!(check(&path, rejected), Ok(()));
        }
        let production = br#"{"endpoint": "assistants", "adapter": "expenses", "rollbacks": 1, "time": "2026-01-01T00:00:00Z"}"#;
        let path = "adapters/expenses/versions/7/production-12.json";
        assert_eq!(check(path, production), Ok(()));
    }

    #[test]
    fn everything_else_is_refused() {
        for path in [
            "adapters/expenses/versions/0/approved.json",
            "adapters/expenses/versions/07/approved.json",
            "adapters/expenses/versions/7/other.json",
            "adapters/expenses/versions/7/production.json",
            "adapters/expenses/versions/7/production-0.json",
            "adapters/expenses/versions/7/production-01.json",
            "adapters/expenses/versions/7/rejected-1.json",
            "adapters/expenses/versions/7/approved-2.json",
            "adapters/../versions/7/approved.json",
            "adapters/Expenses/versions/7/approved.json",
            "datasets/a/versions/1.json",
            "runs/a/b/resolved.json",
            "/etc/passwd",
            "",
        ] {
            assert!(
                matches!(check(path, APPROVED), Err(RecordError::Path(_))),
                "{path}"
            );
        }
        for record in ["approved", "production-1", "rejected-2"] {
            let wrong = check(
                &format!("adapters/expenses/versions/7/{record}.json"),
                b"{}",
            );
            assert!(
                matches!(wrong, Err(RecordError::Content { .. })),
                "{record}"
            );
        }
    }
}
