//! Where a version of a dataset came from. None of it enters the version's digest.

use serde::{Deserialize, Serialize};

use super::{Privacy, SourceSchema, TokenizerProvenance, TransformProvenance};
use crate::Digest;

/// Where a version came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// What the data is, as the Dataset said when the version was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Each source with the SHA-256 of the bytes that were read.
    pub sources: Vec<SourceProvenance>,
    /// Version of the builder.
    pub code_version: String,
    /// What was done about personal data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<Privacy>,
    /// What rows were measured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerProvenance>,
    /// What was made of the sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transform: Option<TransformProvenance>,
    /// Over all of the spec that was built; none in versions of before sources had schemas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_digest: Option<Digest>,
    /// Over the names and states of everything that was read, where all of it has a state that tells of a
    /// change: a build of the same spec that finds the same need not read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<Digest>,
    /// What the columns of each source held; builds of the same spec are held to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<SourceSchema>,
    /// Version number of the dataset before this one.
    pub parent: Option<u32>,
    /// RFC 3339 time of the build.
    pub created_time: String,
}

/// `looks/<n>.json`: what the next build goes by, of a build that ended with the rows of a version that is there. That
/// version's manifest is never changed, and says it of the build that made it first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Look {
    /// The version's digest.
    pub digest: Digest,
    /// As [`Provenance::code_version`].
    pub code_version: String,
    /// As [`Provenance::spec_digest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_digest: Option<Digest>,
    /// As [`Provenance::listing`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<Digest>,
    /// As [`Provenance::schemas`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<SourceSchema>,
}

impl Look {
    /// Of the build that made the version of that digest first.
    pub fn first(digest: &Digest, made: &Provenance) -> Self {
        Self {
            digest: digest.clone(),
            code_version: made.code_version.clone(),
            spec_digest: made.spec_digest.clone(),
            listing: made.listing.clone(),
            schemas: made.schemas.clone(),
        }
    }
}

/// One source as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceProvenance {
    /// Name in the spec.
    pub name: String,
    /// Its URI.
    pub uri: String,
    /// SHA-256 of the bytes; of a query's rows as lines of JSON, in the order in which they came.
    pub digest: Digest,
    /// Number of bytes.
    pub size_bytes: u64,
    /// What the server calls this state of it, as it wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// What a database was asked, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<QueryProvenance>,
}

/// What a database was asked, and what it looked like then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryProvenance {
    /// SHA-256 of the query's text.
    pub digest: Digest,
    /// RFC 3339 time of the snapshot that the query saw, by the database's clock.
    pub snapshot_time: String,
    /// Rows of the answer.
    pub rows: u64,
}
