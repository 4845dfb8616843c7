//! Objects in buckets of S3, Google Cloud Storage and Azure Blob Storage.
//!
//! Who asks is what the Secret says: see [`graftwork_objects::stores`].

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use graftwork_contract::uri::ObjectStore as Kind;
use graftwork_objects::client::Client;
use graftwork_objects::stores::{self, bare};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore};
use tokio::time::timeout;

use super::problem::{Problem, of_store};
use super::{Answer, Listed, Matching};
use crate::failure::Failure;
use crate::secret::Mounted;

/// Time for one page of a list, with what is tried again.
const PAGE_TIME: Duration = Duration::from_secs(180);

/// A bucket, and what of it the source names.
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    root: String,
    key: String,
}

impl Bucket {
    /// A bucket. Nothing is asked yet.
    ///
    /// # Errors
    /// A Secret that can't be used.
    pub fn open(
        client: &Client,
        secret: &Mounted<'_>,
        kind: Kind,
        bucket: String,
        key: String,
    ) -> Result<Self, Failure> {
        Ok(Self {
            store: stores::open(client, secret, kind, &bucket)?,
            root: format!("{}://{bucket}/", stores::scheme(kind)),
            key,
        })
    }

    /// The bucket's URI, and the key or pattern.
    pub fn root(&self) -> (String, &str) {
        (self.root.clone(), &self.key)
    }

    /// Shows every object of the pattern's folder.
    pub async fn list(&self, matching: &mut Matching) -> Result<(), Problem> {
        let folder = matching.folder();
        let folder = if folder.is_empty() {
            None
        } else {
            Some(path(&folder)?)
        };
        let mut objects = self.store.list(folder.as_ref());
        loop {
            let next = timeout(PAGE_TIME, objects.next()).await.map_err(|_| {
                Problem::Away(format!(
                    "the store lists nothing for {} s",
                    PAGE_TIME.as_secs()
                ))
            })?;
            match next {
                None => return Ok(()),
                Some(Ok(object)) => {
                    // A server may not know the state of what was laid there behind its back.
                    let etag = object.e_tag.filter(|etag| !bare(etag).is_empty());
                    matching.see(object.location.as_ref(), etag)?;
                }
                Some(Err(error)) => return Err(of_store(&error)),
            }
        }
    }

    /// Asks for an object, in the state that it was listed in.
    pub async fn get(&self, listed: &Listed) -> Result<Answer, Problem> {
        let options = GetOptions {
            if_match: listed.etag.as_deref().map(quoted),
            ..GetOptions::default()
        };
        let answer = self
            .store
            .get_opts(&path(&listed.path)?, options)
            .await
            .map_err(|error| of_store(&error))?;
        // Not every server looks at what was asked for.
        let (before, now) = (&listed.etag, &answer.meta.e_tag);
        if before.is_some() && before.as_deref().map(bare) != now.as_deref().map(bare) {
            return Err(Problem::Changed);
        }
        let etag = answer.meta.e_tag.clone();
        Ok(Answer {
            etag: etag.filter(|etag| !bare(etag).is_empty()),
            pieces: answer
                .into_stream()
                .map(|piece| piece.map_err(|error| of_store(&error)))
                .boxed(),
        })
    }
}

fn quoted(etag: &str) -> String {
    if etag.ends_with('"') {
        return etag.to_owned();
    }
    format!("\"{etag}\"")
}

fn path(key: &str) -> Result<Path, Problem> {
    Path::parse(key).map_err(|_| Problem::Wrong(format!("{key:?} is no key")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_the_same_with_quotes_and_without() {
        for etag in ["\"0x8D\"", "0x8D", "W/\"0x8D\""] {
            assert_eq!(bare(etag), "0x8D");
        }
        assert_eq!(quoted("0x8D"), "\"0x8D\"");
        assert_eq!(quoted("\"0x8D\""), "\"0x8D\"");
    }
}
