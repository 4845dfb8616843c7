//! Lengths of rows in the tokens of the model that they are for.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// The folder of a base model, of which the tokenizer is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BaseModel {
    /// As in the spec.
    pub uri: String,
    /// The mounted folder.
    pub path: String,
}

/// Tokens of the rows that are kept, as the base model's tokenizer has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenCounts {
    /// Of rows to train on.
    pub train: u64,
    /// Of rows to validate on.
    pub validation: u64,
    /// Of rows to test on.
    pub test: u64,
    /// Of the longest row.
    pub longest_row: u64,
}

/// A base model's tokenizer as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenizerProvenance {
    /// The base model's URI.
    pub uri: String,
    /// Over the names and bytes of the tokenizer's files.
    pub digest: Digest,
}
