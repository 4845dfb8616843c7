//! What is made of a dataset's sources by SQL.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// SQL over the sources, each a table by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transform {
    /// One SELECT, whose columns are those of the rows.
    pub sql: String,
    /// Whether a key of pseudonyms is mounted for it.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub pseudonym_key: bool,
    /// RFC 3339 time that `now()` is where no source is a query: when the build was decided, the same in every
    /// attempt at it. None: the time of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
}

/// The SQL that made the rows of the sources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransformProvenance {
    /// SHA-256 of the text.
    pub digest: Digest,
    /// The text.
    pub text: String,
    /// RFC 3339 time that `now()` was: of the latest snapshot of a database, or else of the
    /// decision to build.
    pub now: String,
}
