//! Why a call to the store failed.

use std::io;
use std::path::{Path, PathBuf};

use graftwork_contract::Digest;

/// What a failure asks of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// The volume or the bucket did not do its part; the same call may succeed later.
    Transient,
    /// What is there, or what was asked for, can't be used; repeating changes nothing.
    Invalid,
    /// A defect of ours.
    Bug,
}

/// The result of a call to the store.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call to the store failed. Messages name the path, never its content.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path that the store does not accept.
    #[error("path {path:?} {problem}")]
    Path {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Another content stands there already.
    #[error("{path} exists with other content; records and versions are written once")]
    Conflict {
        /// Relative to the store.
        path: String,
    },
    /// Something that must be there is not.
    #[error("{path} does not exist in the store")]
    Missing {
        /// Relative to the store.
        path: String,
    },
    /// The bytes are not those that the manifest names.
    #[error(
        "{path} has digest {got}, its manifest says {expected}; the file was damaged or replaced"
    )]
    DigestMismatch {
        /// Relative to the store.
        path: String,
        /// By the manifest.
        expected: Digest,
        /// Of the bytes.
        got: Digest,
    },
    /// A record that is not the JSON it should be.
    #[error("{path} is not a valid record: {problem}")]
    Record {
        /// Relative to the store.
        path: String,
        /// Where and why.
        problem: String,
    },
    /// A file whose content is of a kind that the store does not take.
    #[error("{path} is {kind}; only safetensors, JSON, Markdown, Parquet and JSONL are accepted")]
    FileType {
        /// The file.
        path: String,
        /// What it is, with an article.
        kind: &'static str,
    },
    /// A file with more bytes than are taken.
    #[error("{path} has more than {limit} bytes, the most that is taken")]
    TooLarge {
        /// The file.
        path: String,
        /// Bytes.
        limit: u64,
    },
    /// Rows that can't be read or written as Parquet.
    #[error("{path} can't be used as Parquet rows: {problem}")]
    Rows {
        /// The file.
        path: String,
        /// The cause.
        problem: String,
    },
    /// A value of ours that can't be written as JSON.
    #[error("{path} can't be encoded as JSON: {problem}")]
    Encode {
        /// Relative to the store.
        path: String,
        /// The cause.
        problem: String,
    },
    /// A store in a bucket that can't be one. Those who installed it can mend it; no object of a user can.
    #[error("the store {url}: {problem}")]
    Bucket {
        /// Where it is said to be.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The bucket did not do its part.
    #[error("cannot {action} {url}: {problem}")]
    Remote {
        /// What was tried.
        action: &'static str,
        /// The object, or the store.
        url: String,
        /// What is known of the cause; nothing of a Secret.
        problem: String,
    },
    /// The volume answered with an error.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The volume's answer.
        source: io::Error,
    },
}

impl Error {
    /// What the failure asks of the caller.
    pub fn category(&self) -> Category {
        match self {
            Self::Path { .. }
            | Self::Conflict { .. }
            | Self::Missing { .. }
            | Self::DigestMismatch { .. }
            | Self::Record { .. }
            | Self::FileType { .. }
            | Self::TooLarge { .. }
            | Self::Rows { .. } => Category::Invalid,
            Self::Encode { .. } => Category::Bug,
            Self::Bucket { .. } | Self::Remote { .. } | Self::Io { .. } => Category::Transient,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
