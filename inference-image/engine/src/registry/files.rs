//! Adapter folders in the store: the cheap look at headers, and the whole check.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use graftwork_artifacts::{Fetched, Store};
use graftwork_contract::Digest;
use graftwork_contract::adapter::{CONFIG_FILE, MANIFEST_FILE, Manifest, Provenance, WEIGHTS_FILE};
use graftwork_contract::causes::causes;
use graftwork_model::config::LlamaConfig;
use graftwork_model::lora::{FirstFactors, LoadedAdapter};
use graftwork_model::peft::{AdapterError, AdapterHeader};
use graftwork_model::stored_adapter::StoredAdapter;
use graftwork_model::tensor_file::TensorFileError;

use super::bucket::{self, Depth};
use super::disk_cache::DiskCache;
use super::pace::Pace;
pub use super::state::REASON_INCOMPATIBLE;
use super::state::{Fingerprint, HeaderRead, Refusal, Source};

/// The folder is not one of the store's.
pub const REASON_FOLDER: &str = "InvalidFolder";
/// A file is not there.
pub const REASON_NOT_FOUND: &str = "AdapterFilesNotFound";
/// A file can't be read.
pub const REASON_UNREADABLE: &str = "AdapterFilesUnreadable";
/// A file is not what it should be.
pub const REASON_INVALID: &str = "AdapterFilesInvalid";
/// The files are others than the list says.
pub const REASON_DIGEST: &str = "DigestMismatch";
/// The adapter was trained for another base model.
pub const REASON_BASE: &str = "BaseModelMismatch";

/// The longest manifest that is read: it lists a handful of files.
pub(super) const MAXIMUM_MANIFEST_BYTES: u64 = 4 << 20;

/// Contents of which [`Known`] knows something.
const MAXIMUM_KNOWN: usize = 1 << 14;

/// Where a store is.
#[derive(Debug, Clone)]
enum Place {
    /// Mounted here.
    Folder(PathBuf),
    /// In a bucket: what is read is a copy.
    Bucket(Store),
}

/// An adapter's folder on this machine's disk.
enum Folder {
    /// The store's own.
    Mounted(PathBuf),
    /// A copy, which goes with this value.
    Copy(Fetched),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Mounted(path) => path,
            Self::Copy(fetched) => fetched.path(),
        }
    }
}

/// [`StoredAdapter::stored_digest`] of contents that were checked once, by their digest: another load of the same
/// files is checked in half of the time.
#[derive(Debug, Default)]
struct Known(Mutex<BTreeMap<Digest, String>>);

impl Known {
    fn digests(&self) -> MutexGuard<'_, BTreeMap<Digest, String>> {
        // The map is whole after every statement: a panic elsewhere can't tear it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, digest: &Digest) -> Option<String> {
        self.digests().get(digest).cloned()
    }

    /// Where there are too many, all are forgotten, which costs each adapter one longer load.
    fn note(&self, digest: &Digest, stored: String) {
        let mut digests = self.digests();
        if digests.len() >= MAXIMUM_KNOWN {
            digests.clear();
        }
        digests.insert(digest.clone(), stored);
    }
}

/// Reads adapters of one store for one base model.
#[derive(Debug, Clone)]
pub struct AdapterFiles {
    store: Place,
    base_digest: Digest,
    config: Arc<LlamaConfig>,
    first_factors: FirstFactors,
    cache: Option<Arc<DiskCache>>,
    known: Arc<Known>,
}

impl AdapterFiles {
    /// Reads below `store`, for the base model with this digest and configuration.
    pub fn new(store: PathBuf, base_digest: Digest, config: Arc<LlamaConfig>) -> Self {
        Self {
            store: Place::Folder(store),
            base_digest,
            config,
            first_factors: FirstFactors::default(),
            cache: None,
            known: Arc::default(),
        }
    }

    /// Reads from a store in a bucket.
    pub fn in_bucket(store: Store, base_digest: Digest, config: Arc<LlamaConfig>) -> Self {
        Self {
            store: Place::Bucket(store),
            base_digest,
            config,
            first_factors: FirstFactors::default(),
            cache: None,
            known: Arc::default(),
        }
    }

    /// With first factors as the base model wants them.
    #[must_use]
    pub fn with_first_factors(self, first_factors: FirstFactors) -> Self {
        Self {
            first_factors,
            ..self
        }
    }

    /// With copies on the node's own disk.
    #[must_use]
    pub fn with_cache(self, cache: Option<DiskCache>) -> Self {
        Self {
            cache: cache.map(Arc::new),
            ..self
        }
    }

    /// Looks at manifest, configuration and the weights' header.
    pub fn read_header(&self, source: &Source) -> HeaderRead {
        match self.folder(source, Depth::Header) {
            Ok(folder) => HeaderRead {
                fingerprint: fingerprint(folder.path()),
                result: self
                    .check_inside(folder.path())
                    .and_then(|()| self.check_header(folder.path(), source)),
            },
            Err(refusal) => HeaderRead {
                fingerprint: Vec::new(),
                result: Err(refusal),
            },
        }
    }

    /// Reads and checks every byte, and packs the weights for inference.
    ///
    /// # Errors
    /// A [`Refusal`] naming the file.
    pub fn load(&self, source: &Source) -> Result<LoadedAdapter, Refusal> {
        self.read_whole(source, |folder| self.load_from(folder, source))
    }

    /// Reads and checks every byte, and keeps nothing of it: on one thread, which rests most of the time. A thousand
    /// adapters must not take a core from requests for a minute, nor one of them for the time of a pass.
    ///
    /// # Errors
    /// A [`Refusal`] naming the file.
    pub fn verify(&self, source: &Source) -> Result<(), Refusal> {
        let pace = Pace::new();
        self.read_whole(source, |folder| self.verify_in(folder, source, &pace))
    }

    /// Reads a folder: a copy on the node's disk, or the store's, of which a copy is kept.
    fn read_whole<T>(
        &self,
        source: &Source,
        read: impl Fn(&Path) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        if let Some(cache) = &self.cache
            && let Some(copy) = cache.get(&source.digest)
        {
            match read(&copy) {
                Ok(found) => return Ok(found),
                Err(refusal) => {
                    let reason = refusal.message;
                    tracing::warn!(digest = %source.digest, reason, "the copy on disk is not used");
                    cache.remove(&source.digest);
                }
            }
        }
        let folder = self.folder(source, Depth::Whole)?;
        self.check_inside(folder.path())?;
        let found = read(folder.path())?;
        if let Some(cache) = &self.cache {
            cache.put(&source.digest, folder.path());
        }
        Ok(found)
    }

    fn load_from(&self, folder: &Path, source: &Source) -> Result<LoadedAdapter, Refusal> {
        // The files may have changed since the header was read.
        self.check_manifest(folder, source)?;
        let stored = StoredAdapter::read(folder).map_err(|error| refuse(&error))?;
        // A digest takes as long as all the rest, so that both are made beside each other.
        let known = self.known.get(&source.digest);
        let is_known = known.is_some();
        let (identity, (loaded, stored_digest)) = rayon::join(
            || match known {
                Some(known) if known == stored.stored_digest(&|| ()) => Ok(()),
                _ => check_digest(&stored, source, &|| ()),
            },
            || {
                let digest = source.digest.as_str();
                let loaded = stored.load(digest, &self.config, self.first_factors);
                let wanted = !is_known && stored.has_halves();
                (loaded, wanted.then(|| stored.stored_digest(&|| ())))
            },
        );
        identity?;
        if let Some(stored_digest) = stored_digest {
            self.known.note(&source.digest, stored_digest);
        }
        loaded.map_err(|error| refuse(&error))
    }

    fn verify_in(&self, folder: &Path, source: &Source, pace: &Pace) -> Result<(), Refusal> {
        let breathe = || pace.breathe();
        self.check_manifest(folder, source)?;
        let stored = StoredAdapter::read_slowly(folder, &breathe);
        let stored = stored.map_err(|error| refuse(&error))?;
        check_digest(&stored, source, &breathe)?;
        if stored.has_halves() {
            let digest = stored.stored_digest(&breathe);
            self.known.note(&source.digest, digest);
        }
        let verified = stored.verify(&self.config, &breathe);
        verified.map_err(|error| refuse(&error))
    }

    fn folder(&self, source: &Source, depth: Depth) -> Result<Folder, Refusal> {
        let relative = Path::new(&source.folder);
        let inside = !source.folder.is_empty()
            && relative
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(refusal(
                REASON_FOLDER,
                format!(
                    "folder {:?} is not a relative path below the store",
                    source.folder
                ),
            ));
        }
        match &self.store {
            Place::Folder(store) => Ok(Folder::Mounted(store.join(relative))),
            Place::Bucket(store) => bucket::copy(store, &source.folder, depth).map(Folder::Copy),
        }
    }

    /// The files are the store's own: a link could show any file of this machine.
    fn check_inside(&self, folder: &Path) -> Result<(), Refusal> {
        let Place::Folder(store) = &self.store else {
            // A copy has files that were written a moment ago, and no links.
            return Ok(());
        };
        let Ok(store) = store.canonicalize() else {
            // The store is away: reading says so.
            return Ok(());
        };
        for file in [MANIFEST_FILE, CONFIG_FILE, WEIGHTS_FILE] {
            let target = folder.join(file).canonicalize();
            if target.is_ok_and(|target| !target.starts_with(&store)) {
                return Err(refusal(
                    REASON_FOLDER,
                    format!("{file} is a link that leads outside of the store"),
                ));
            }
        }
        Ok(())
    }

    fn check_manifest(&self, folder: &Path, source: &Source) -> Result<(), Refusal> {
        let manifest = read_manifest(folder)?;
        if manifest.digest != source.digest {
            return Err(refusal(
                REASON_DIGEST,
                format!(
                    "{MANIFEST_FILE} says digest {}, the list says {}",
                    manifest.digest, source.digest
                ),
            ));
        }
        if let Provenance::Trained { resolved, .. } = &manifest.provenance
            && resolved.base.digest != self.base_digest
        {
            return Err(refusal(
                REASON_BASE,
                format!(
                    "the adapter was trained for base model {}, this engine runs {}",
                    resolved.base.digest, self.base_digest
                ),
            ));
        }
        Ok(())
    }

    /// The bytes that the adapter takes in memory.
    fn check_header(&self, folder: &Path, source: &Source) -> Result<u64, Refusal> {
        self.check_manifest(folder, source)?;
        let header = AdapterHeader::read(folder).map_err(|error| refuse(&error))?;
        header
            .verify_shapes(&self.config)
            .map_err(|error| refuse(&error))?;
        let bytes = header.packed_bytes(&self.config);
        Ok(bytes.map_err(|error| refuse(&error))? as u64)
    }
}

fn check_digest(
    stored: &StoredAdapter,
    source: &Source,
    breathe: &dyn Fn(),
) -> Result<(), Refusal> {
    let digest = stored.digest(breathe);
    if digest == source.digest.as_str() {
        return Ok(());
    }
    Err(refusal(
        REASON_DIGEST,
        format!(
            "{WEIGHTS_FILE} and {CONFIG_FILE} have digest {digest}, the list says {}",
            source.digest
        ),
    ))
}

/// The manifest is written last: without it the folder does not exist.
fn read_manifest(folder: &Path) -> Result<Manifest, Refusal> {
    let failed = |error: std::io::Error| {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => REASON_NOT_FOUND,
            _ => REASON_UNREADABLE,
        };
        Refusal {
            reason,
            message: format!("{MANIFEST_FILE} can't be read: {error}"),
            may_pass: true,
        }
    };
    let path = folder.join(MANIFEST_FILE);
    let metadata = std::fs::metadata(&path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAXIMUM_MANIFEST_BYTES {
        return Err(refusal(
            REASON_INVALID,
            format!(
                "{MANIFEST_FILE} is not a regular file of at most {MAXIMUM_MANIFEST_BYTES} bytes"
            ),
        ));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| refusal(REASON_INVALID, format!("{MANIFEST_FILE}: {error}")))
}

pub(super) fn refusal(reason: &'static str, message: String) -> Refusal {
    Refusal {
        reason,
        message,
        may_pass: false,
    }
}

/// The reason by the kind of error; what the storage did not give may come later.
fn refuse(error: &AdapterError) -> Refusal {
    let (reason, may_pass) = match error {
        AdapterError::Missing { .. } => (REASON_NOT_FOUND, true),
        AdapterError::Io { .. } | AdapterError::File(TensorFileError::Read { .. }) => {
            (REASON_UNREADABLE, true)
        }
        AdapterError::File(_)
        | AdapterError::Unusable { .. }
        | AdapterError::Json(_)
        | AdapterError::NotFinite { .. }
        | AdapterError::Tensor(_) => (REASON_INVALID, false),
        AdapterError::Invalid { .. }
        | AdapterError::Unsupported { .. }
        | AdapterError::UnknownModule(_)
        | AdapterError::OutOfRange { .. }
        | AdapterError::MissingTensor(_)
        | AdapterError::UnexpectedTensor(_)
        | AdapterError::Shape { .. } => (REASON_INCOMPATIBLE, false),
    };
    Refusal {
        reason,
        message: causes(error),
        may_pass,
    }
}

/// Modification time in nanoseconds and size of each file; a missing file has neither.
fn fingerprint(folder: &Path) -> Fingerprint {
    [MANIFEST_FILE, CONFIG_FILE, WEIGHTS_FILE]
        .iter()
        .map(|file| {
            let metadata = std::fs::metadata(folder.join(file)).ok();
            metadata.map_or((0, 0), |metadata| {
                let modified = metadata.modified().ok();
                let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                (since.map_or(0, |since| since.as_nanos()), metadata.len())
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_contents_is_bounded() {
        let known = Known::default();
        let digest = |n: usize| Digest::of(&n.to_le_bytes());
        for n in 0..=MAXIMUM_KNOWN {
            known.note(&digest(n), n.to_string());
        }
        assert_eq!(known.get(&digest(0)), None);
        let last = Some(MAXIMUM_KNOWN.to_string());
        assert_eq!(known.get(&digest(MAXIMUM_KNOWN)), last);
        assert_eq!(known.digests().len(), 1);
    }
}
