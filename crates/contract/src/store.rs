//! An artifact store in a bucket: what processes are told of it.

use serde::{Deserialize, Serialize};

use crate::glob::is_pattern;
use crate::uri::{DataUri, ObjectStore, UriError};

/// The namespace's part of a store in a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketStore {
    /// `s3://BUCKET/PREFIX/NAMESPACE`, or the same with `gs` or `az`; see [`Place`].
    pub url: String,
    /// The Secret whose entries say who asks, for messages; none: the pod's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// The folder with the entries of that Secret, named as [`crate::remote`] says.
    pub path: String,
    /// Networks and names that the store may be at beside what everybody reaches (see [`crate::address`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<String>,
}

/// Where in which bucket a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whose bucket.
    pub store: ObjectStore,
    /// The bucket or container.
    pub bucket: String,
    /// What every key begins with, without a slash at its end; empty: nothing.
    pub prefix: String,
}

/// Why a text is not the URL of a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Not a URI that we read.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// Another scheme.
    #[error("is not s3://, gs:// or az:// with a bucket")]
    Scheme,
    /// A pattern names many.
    #[error("has a pattern in it")]
    Pattern,
    /// Names that begin with a dot are the store's own.
    #[error("has a part that begins with a dot")]
    Hidden,
}

impl Place {
    /// Reads `SCHEME://BUCKET` or `SCHEME://BUCKET/PREFIX`; one slash at the end means nothing.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn parse(url: &str) -> Result<Self, PlaceError> {
        // With an object in it, it is the URI of one.
        let DataUri::Object { store, bucket, key } = DataUri::parse(&of_namespace(url, "x"))?
        else {
            return Err(PlaceError::Scheme);
        };
        let prefix = key.rsplit_once('/').map_or("", |(prefix, _)| prefix);
        if is_pattern(prefix) {
            return Err(PlaceError::Pattern);
        }
        if prefix.split('/').any(|part| part.starts_with('.')) {
            return Err(PlaceError::Hidden);
        }
        Ok(Self {
            store,
            bucket,
            prefix: prefix.to_owned(),
        })
    }
}

/// The URL of a namespace's part of a store.
pub fn of_namespace(url: &str, namespace: &str) -> String {
    format!("{}/{namespace}", url.strip_suffix('/').unwrap_or(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_bucket_with_or_without_a_prefix() {
        for (url, bucket, prefix) in [
            ("s3://models", "models", ""),
            ("s3://models/", "models", ""),
            ("gs://models/ml/graftwork", "models", "ml/graftwork"),
            ("az://models/graftwork/", "models", "graftwork"),
        ] {
            let place = Place::parse(url).unwrap();
            assert_eq!((&*place.bucket, &*place.prefix), (bucket, prefix), "{url}");
        }
        assert_eq!(of_namespace("s3://models/", "team"), "s3://models/team");
        assert_eq!(of_namespace("s3://models/a", "team"), "s3://models/a/team");
    }

    #[test]
    fn what_is_no_store_is_refused() {
        for url in [
            "",
            "s3://",
            "models",
            "https://models/a",
            "hf://org/name@main",
            "s3://models/*",
            "s3://models/a/../b",
            "s3://models/a//b",
            "s3://models/.tmp",
            "s3://key:secret@models/a",
            "s3://models/a?versionId=1",
            "file:///etc",
        ] {
            assert!(Place::parse(url).is_err(), "{url:?}");
        }
    }
}
