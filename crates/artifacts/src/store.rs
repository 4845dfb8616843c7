//! The store: records by path, in a folder or in a bucket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use graftwork_contract::Digest;
use graftwork_contract::digest::canonical_json;
use graftwork_contract::store::BucketStore;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bucket::Bucket;
use crate::fetched::Fetched;
use crate::folder::Folder;
use crate::objects::Content;
use crate::staging::{MANIFEST_FILE, Staged};
use crate::volume::Volume;
use crate::{Error, Result};

/// The artifact store of one namespace. Cheap to clone; may be used from many threads.
#[derive(Debug, Clone)]
pub struct Store(Place);

#[derive(Debug, Clone)]
enum Place {
    Folder(Folder),
    Bucket(Bucket),
}

/// What a create-only write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Created,
    /// The same content stood there before.
    Existing,
}

/// A file of the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Relative to the store.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// What a bucket calls the state of its bytes.
    pub(crate) state: Option<String>,
}

impl Store {
    /// Opens the store for reading and writing: `root` is the namespace's folder and must exist.
    /// Removes what killed writers left behind.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        Folder::open(root).map(Place::Folder).map(Self)
    }

    /// Opens the store that a configuration names: in `bucket`, with `folder` for what is on its way, or in
    /// `folder` itself. A bucket is not asked anything yet.
    pub fn open_at(bucket: Option<&BucketStore>, folder: impl Into<PathBuf>) -> Result<Self> {
        match bucket {
            None => Self::open(folder),
            Some(bucket) => {
                let bucket = Bucket::open(bucket.clone(), Folder::open(folder)?, false)?;
                Ok(Self(Place::Bucket(bucket)))
            }
        }
    }

    /// Opens a store in a bucket for reading; writing to it fails. It is not asked anything yet. `folder` takes
    /// what is fetched.
    pub fn open_bucket_read_only(bucket: &BucketStore, folder: impl Into<PathBuf>) -> Result<Self> {
        let bucket = Bucket::open(bucket.clone(), Folder::open(folder)?, true)?;
        Ok(Self(Place::Bucket(bucket)))
    }

    /// The same store on another disk: for tests of what its failures do.
    #[must_use]
    pub fn on(self, volume: Volume) -> Self {
        Self(match self.0 {
            Place::Folder(folder) => Place::Folder(folder.on(volume)),
            Place::Bucket(bucket) => Place::Bucket(bucket.on(volume)),
        })
    }

    /// Opens the store where the volume is mounted read-only; writing to it fails with the volume's
    /// error.
    pub fn open_read_only(root: impl Into<PathBuf>) -> Result<Self> {
        Folder::open_read_only(root).map(Place::Folder).map(Self)
    }

    /// Whether the store is in a bucket: every look at it is a request then.
    pub const fn is_in_bucket(&self) -> bool {
        matches!(self.0, Place::Bucket(_))
    }

    /// The folder on the disk: the store itself, or where what is on its way to and from a bucket is.
    pub fn root(&self) -> &Path {
        match &self.0 {
            Place::Folder(folder) => folder.root(),
            Place::Bucket(bucket) => bucket.scratch().root(),
        }
    }

    /// Where `path` stands on the disk, whether or not something is there. Refuses paths that leave the store.
    ///
    /// # Errors
    /// Also where the store is in a bucket: [`Store::fetch`] brings what is there.
    pub fn locate(&self, path: &str) -> Result<PathBuf> {
        match &self.0 {
            Place::Folder(folder) => folder.locate(path),
            Place::Bucket(_) => Err(Error::Path {
                path: path.to_owned(),
                problem: "is in a bucket and on no disk",
            }),
        }
    }

    /// Files of a folder with these digests, to be read from the disk: where they stand, or copies that go with
    /// the answer. Every byte is checked before.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::DigestMismatch`] for the first file that is not as it should be.
    pub fn fetch(&self, folder: &str, files: &BTreeMap<String, Digest>) -> Result<Fetched> {
        match &self.0 {
            Place::Folder(place) => {
                place.verify(folder, files)?;
                place.locate(folder).map(Fetched::standing)
            }
            Place::Bucket(bucket) => bucket.fetch(folder, files),
        }
    }

    /// Files of a folder for a look at what they say of themselves, which reads little however large they are.
    /// Of safetensors in a bucket there is the header alone, in a file as long as the whole; other files are
    /// checked as [`Store::fetch`] does. In a folder nothing is read and nothing is checked.
    ///
    /// # Errors
    /// As for [`Store::fetch`].
    pub fn peek(&self, folder: &str, files: &BTreeMap<String, Digest>) -> Result<Fetched> {
        match &self.0 {
            Place::Folder(place) => place.locate(folder).map(Fetched::standing),
            Place::Bucket(bucket) => bucket.peek(folder, files),
        }
    }

    /// Checks that every file of `folder` that `files` names is there with that SHA-256.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::DigestMismatch`] for the first file that is not.
    pub fn verify(&self, folder: &str, files: &BTreeMap<String, Digest>) -> Result<()> {
        match &self.0 {
            Place::Folder(place) => place.verify(folder, files),
            Place::Bucket(bucket) => bucket.verify(folder, files),
        }
    }

    /// Whether a folder with a manifest is at `path`.
    pub fn is_published(&self, path: &str) -> Result<bool> {
        match &self.0 {
            Place::Folder(folder) => Ok(folder.locate(path)?.exists()),
            Place::Bucket(bucket) => bucket.exists(&format!("{path}/{MANIFEST_FILE}")),
        }
    }

    /// The bytes at `path`; `None` where nothing is there.
    pub fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match &self.0 {
            Place::Folder(folder) => folder.get(path),
            Place::Bucket(bucket) => Ok(bucket.get_up_to(path, u64::MAX)?.map(|(bytes, _)| bytes)),
        }
    }

    /// At most `limit` bytes at `path` with the whole file's size; `None` where nothing is there.
    pub fn get_up_to(&self, path: &str, limit: u64) -> Result<Option<(Vec<u8>, u64)>> {
        match &self.0 {
            Place::Folder(folder) => folder.get_up_to(path, limit),
            Place::Bucket(bucket) => bucket.get_up_to(path, limit),
        }
    }

    /// [`Store::get_up_to`] for each entry of a list, in its order. What is known of a bucket's entries in the
    /// state that the list says is not asked for again.
    pub fn get_listed(&self, entries: &[Entry], limit: u64) -> Result<Vec<Option<Content>>> {
        match &self.0 {
            Place::Folder(folder) => entries
                .iter()
                .map(|entry| folder.get_up_to(&entry.path, limit))
                .collect(),
            Place::Bucket(bucket) => bucket.get_listed(entries, limit),
        }
    }

    /// The record at `path`; `None` where nothing is there.
    pub fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        self.get(path)?
            .map(|bytes| decode(path, &bytes))
            .transpose()
    }

    /// Writes `bytes` at `path` if nothing is there. Of racing writers exactly one creates; the same
    /// bytes again are [`Put::Existing`], other bytes are [`Error::Conflict`].
    pub fn put_new(&self, path: &str, bytes: &[u8]) -> Result<Put> {
        match &self.0 {
            Place::Folder(folder) => folder.put_new(path, bytes),
            Place::Bucket(bucket) => bucket.put_new(path, bytes),
        }
    }

    /// [`Store::put_new`] with the canonical JSON of `record`.
    pub fn put_new_json<T: Serialize>(&self, path: &str, record: &T) -> Result<Put> {
        self.put_new(path, encode(path, record)?.as_bytes())
    }

    /// Every file whose path begins with `prefix`, in the order of paths. As in object stores the
    /// prefix is text: end it with `/` to mean a folder. The empty prefix is the whole store.
    pub fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        match &self.0 {
            Place::Folder(folder) => folder.list(prefix),
            Place::Bucket(bucket) => bucket.list(prefix),
        }
    }

    /// Begins a folder that will appear at `path` when it is published.
    pub fn stage(&self, path: &str) -> Result<Staged> {
        match &self.0 {
            Place::Folder(folder) => Staged::new(folder.clone(), None, path),
            Place::Bucket(bucket) => {
                Staged::new(bucket.scratch().clone(), Some(bucket.clone()), path)
            }
        }
    }

    /// Takes a record away. Nothing there is fine.
    pub fn remove(&self, path: &str) -> Result<()> {
        match &self.0 {
            Place::Folder(folder) => folder.remove(path),
            Place::Bucket(bucket) => bucket.remove(path),
        }
    }

    /// Takes a folder away: it disappears at once, then its files are removed. Nothing there is fine.
    pub fn remove_folder(&self, path: &str) -> Result<()> {
        match &self.0 {
            Place::Folder(folder) => folder.remove_folder(path),
            Place::Bucket(bucket) => bucket.remove_folder(path),
        }
    }
}

pub(crate) fn encode<T: Serialize>(path: &str, record: &T) -> Result<String> {
    serde_json::to_value(record)
        .map(|value| canonical_json(&value))
        .map_err(|error| Error::Encode {
            path: path.to_owned(),
            problem: error.to_string(),
        })
}

pub(crate) fn decode<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::Record {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

pub(crate) fn compare(path: &str, existing: &[u8], wanted: &[u8]) -> Result<Put> {
    if existing == wanted {
        Ok(Put::Existing)
    } else {
        Err(Error::Conflict {
            path: path.to_owned(),
        })
    }
}
