//! A part of a build: what one of several pods made of its share of the rows.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{RejectedRow, SourceColumns, SourceProvenance, TokenizerProvenance};
use crate::Digest;

/// `parts/<fingerprint>/<number>-of-<count>/manifest.json`: written last. Beside it stand the good rows of
/// the part, as the builder sorts them. The folder goes with the end of the build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartManifest {
    /// Over the names and states of everything that all sources have: equal in all parts of a snapshot.
    pub listing: Digest,
    /// The files of this folder: name to SHA-256 of the bytes.
    pub files: BTreeMap<String, Digest>,
    /// Good rows.
    pub good: u64,
    /// Good rows that were left out for their source's weight.
    pub beyond_weight: u64,
    /// What was read, as it was.
    pub sources: Vec<SourceProvenance>,
    /// What rows were measured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerProvenance>,
    /// The first bad rows.
    pub rejected: Vec<RejectedRow>,
    /// How often each rule was broken.
    pub rules: Vec<BrokenRule>,
    /// How often each type of personal data was found.
    pub findings: BTreeMap<String, u64>,
    /// Bad rows that had no value in a column, by column.
    pub nulls: BTreeMap<String, u64>,
    /// The columns of each source, as far as this part read it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, SourceColumns>,
    /// Names of all columns of each source's files that list them, also of those that nobody looks at.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub other_columns: BTreeMap<String, BTreeSet<String>>,
}

/// A rule that rows of a source broke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokenRule {
    /// The first row.
    pub first: RejectedRow,
    /// How many rows.
    pub rows: u64,
}
