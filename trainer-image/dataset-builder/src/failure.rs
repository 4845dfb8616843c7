//! Why a build ends without a version: an exit code, a condition reason and a message for a person.

use graftwork_artifacts::{Category, Error as StoreError};
pub use graftwork_contract::causes::causes;
use graftwork_contract::dataset::{BuildSummary, RejectedRow, RowCounts};
use graftwork_contract::exit::ExitCode;

use crate::spill::{is_full, room};

/// Sources that a message about all of them names.
const NAMED_SOURCES: usize = 5;

/// A build without a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the process ends with.
    pub code: ExitCode,
    /// A condition reason of Dataset.
    pub reason: &'static str,
    /// What happened, with source, line, rule, value, limit and remedy; no data.
    pub message: String,
    /// Rows as far as the build came.
    pub rows: Option<RowCounts>,
    /// The first bad rows.
    pub rejected: Vec<RejectedRow>,
}

impl Failure {
    fn new(code: ExitCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            rows: None,
            rejected: Vec::new(),
        }
    }

    /// The configuration can't be used.
    pub fn bad_config(message: impl Into<String>) -> Self {
        Self::new(ExitCode::BadConfig, "InvalidSpec", message)
    }

    /// A source is not there. The operator looks again later: a volume does not tell when a file
    /// comes.
    pub fn source_not_found(message: impl Into<String>) -> Self {
        Self::new(ExitCode::BadData, "SourceNotFound", message)
    }

    /// The base model is not there. As with a source, the operator looks again later.
    pub fn base_not_found(message: impl Into<String>) -> Self {
        Self::new(ExitCode::BadData, "BaseModelNotFound", message)
    }

    /// A file of the base model can't be used.
    pub fn base_invalid(message: impl Into<String>) -> Self {
        Self::new(ExitCode::BadConfig, "BaseModelInvalid", message)
    }

    /// The rows can't be used.
    pub fn bad_data(message: impl Into<String>) -> Self {
        Self::new(ExitCode::BadData, "DataError", message)
    }

    /// A volume did not answer; worth another attempt.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Unavailable, "StorageUnavailable", message)
    }

    /// A database refuses who asks, or may not be asked at all. Its Secret or the chart's values have to
    /// change, and nobody tells the operator when they do.
    pub fn source_denied(message: impl Into<String>) -> Self {
        Self::new(ExitCode::BadConfig, "SourceDenied", message)
    }

    /// A database does not answer, or went away; worth another attempt.
    pub fn source_unavailable(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Unavailable, "SourceUnavailable", message)
    }

    /// A query can't be answered, or its answer can't be used: another query or limit is needed.
    pub fn query_failed(message: impl Into<String>) -> Self {
        Self::new(ExitCode::BadConfig, "QueryFailed", message)
    }

    /// A source holds other bytes than the build was planned for. Another attempt finds the two
    /// together: the operator plans again once it has seen the change, and the mount catches up.
    pub fn source_changed(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Unavailable, "BuildFailed", message)
    }

    /// A defect of ours.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Bug, "InternalError", message)
    }

    /// A volume that is full, with the sources whose rows were on their way; other failures as they are.
    #[must_use]
    pub fn while_reading<'a>(self, sources: impl Iterator<Item = &'a str>) -> Self {
        if !self.message.contains("is full") || self.message.contains("source ") {
            return self;
        }
        let names: Vec<&str> = sources.take(NAMED_SOURCES).collect();
        let plural = if names.len() == 1 { "" } else { "s" };
        Self {
            message: format!(
                "with the rows of source{plural} {}: {}",
                names.join(", "),
                self.message
            ),
            ..self
        }
    }

    /// The termination message.
    pub fn into_summary(self) -> BuildSummary {
        BuildSummary {
            reason: self.reason.to_owned(),
            message: self.message,
            version: None,
            digest: None,
            rows: self.rows,
            rejected: self.rejected,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = causes(&error);
        if let StoreError::Io { path, source, .. } = &error
            && is_full(source)
        {
            return Self::unavailable(format!(
                "{message}; the artifact store's volume is full ({}): make its claim larger, or keep fewer versions",
                room(path)
            ));
        }
        match (error.category(), &error) {
            (Category::Transient, _) => Self::unavailable(message),
            // The store holds what nobody of us writes: the rows are not to blame, people are
            // needed, and repeating changes nothing.
            (Category::Invalid, StoreError::DigestMismatch { .. }) => {
                Self::new(ExitCode::BadData, "DigestMismatch", message)
            }
            (Category::Invalid, _) => Self::new(ExitCode::BadData, "BuildFailed", message),
            (Category::Bug, _) => Self::bug(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_full_names_the_sources_once_and_other_failures_stay() {
        let full = || Failure::unavailable("the scratch volume is full");
        let one = full().while_reading(["faq"].into_iter());
        assert_eq!(
            one.message,
            "with the rows of source faq: the scratch volume is full"
        );
        assert_eq!(one.clone().while_reading(["x"].into_iter()), one);
        let two = full().while_reading(["faq", "notes"].into_iter());
        assert!(two.message.contains("sources faq, notes: the"), "{two}");
        let other = Failure::bad_data("0 rows");
        assert_eq!(other.clone().while_reading(["faq"].into_iter()), other);
    }

    #[test]
    fn a_full_store_is_named_with_its_size_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.parquet");
        let failure = Failure::from(StoreError::Io {
            action: "write",
            path: path.clone(),
            source: std::io::ErrorKind::StorageFull.into(),
        });
        assert_eq!(failure.reason, "StorageUnavailable");
        let path = path.display().to_string();
        for words in [
            path.as_str(),
            "it has ",
            " MiB free",
            "make its claim larger",
        ] {
            assert!(failure.message.contains(words), "{words}: {failure}");
        }
    }
}
