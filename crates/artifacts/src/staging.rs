//! Things that are being written: invisible until they are whole.
//!
//! Every writing process has a folder `.tmp/<session>` with a lock that the kernel releases when
//! the process dies. A session is left over when its lock is free *and* nothing in it was touched
//! for a while; the second condition is for volumes whose locks do not reach other nodes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use graftwork_contract::Digest;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::bucket::Bucket;
use crate::clock;
use crate::folder::Folder;
use crate::store::{Put, decode, encode};
use crate::verify::digest_of_file;
use crate::volume::Volume;
use crate::{Error, Result};

/// Written into a folder last.
pub const MANIFEST_FILE: &str = "manifest.json";

const TEMP_DIR: &str = ".tmp";
const LOCK_FILE: &str = "lock";
/// A session with a free lock is left alone for this long after its last change.
const LEFTOVER_AGE: Duration = Duration::from_mins(15);

/// A process's folder for what it is writing.
#[derive(Debug)]
pub(crate) struct Session {
    dir: PathBuf,
    volume: Volume,
    next: AtomicU64,
    /// Held for the session's life; `None` where the volume has no locks.
    lock: Option<File>,
}

impl Session {
    pub(crate) fn begin(root: &Path, volume: &Volume) -> Result<Self> {
        let parent = root.join(TEMP_DIR);
        // Only this one folder: where the store itself is gone, none is made in its place.
        if let Err(error) = volume.create_folder(&parent)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(Error::io("create", &parent)(error));
        }
        // Pods share the volume and often the process number, so the time decides.
        let mut stamp = clock::wall()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let dir = loop {
            let dir = parent.join(format!("{}-{stamp}", std::process::id()));
            match volume.create_folder(&dir) {
                Ok(()) => break dir,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => stamp += 1,
                Err(error) => return Err(Error::io("create", &dir)(error)),
            }
        };
        let path = dir.join(LOCK_FILE);
        let file = volume
            .create_file(&path)
            .map_err(Error::io("create", &path))?;
        let lock = match file.try_lock() {
            Ok(()) => Some(file),
            Err(error) => {
                tracing::debug!(%error, "the store's volume has no file locks");
                None
            }
        };
        Ok(Self {
            dir,
            volume: volume.clone(),
            next: AtomicU64::new(0),
            lock,
        })
    }

    /// Whether the folder is still there.
    pub(crate) fn is_there(&self) -> bool {
        self.dir.is_dir()
    }

    /// A path that nobody else uses; nothing is there.
    pub(crate) fn file(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.dir.join(number.to_string())
    }

    /// A new empty folder.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        let path = self.file();
        self.volume
            .create_folder(&path)
            .map_err(Error::io("create", &path))?;
        Ok(path)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.volume.remove_folder(&self.dir);
        // Held to the end: nobody takes the folder for a killed writer's while it goes.
        drop(self.lock.take());
    }
}

/// Removes the sessions of writers that were killed. Best effort: what can't be removed now will be
/// tried by the next process.
pub(crate) fn clean_leftovers(root: &Path) {
    let Ok(sessions) = fs::read_dir(root.join(TEMP_DIR)) else {
        return;
    };
    for session in sessions.flatten() {
        let dir = session.path();
        if is_left_over(&dir, clock::wall()) {
            match fs::remove_dir_all(&dir) {
                Ok(()) => tracing::info!(path = %dir.display(), "removed a killed writer's files"),
                Err(error) => {
                    tracing::warn!(path = %dir.display(), %error, "cannot remove a killed writer's files");
                }
            }
        }
    }
}

fn is_left_over(dir: &Path, now: SystemTime) -> bool {
    let locked = File::open(dir.join(LOCK_FILE))
        .is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)));
    !locked
        && newest_change(dir).is_some_and(|changed| {
            now.duration_since(changed)
                .is_ok_and(|age| age >= LEFTOVER_AGE)
        })
}

fn newest_change(dir: &Path) -> Option<SystemTime> {
    let mut newest = dir.symlink_metadata().ok()?.modified().ok()?;
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries.flatten() {
            let changed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => newest_change(&entry.path()),
                _ => entry.metadata().ok().and_then(|m| m.modified().ok()),
            };
            newest = changed.map_or(newest, |changed| newest.max(changed));
        }
    }
    Some(newest)
}

/// The files of a staged folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StagedFiles {
    /// Name to SHA-256.
    pub digests: BTreeMap<String, Digest>,
    /// Bytes of all files.
    pub size_bytes: u64,
}

/// A folder that is being written. Dropped without [`Staged::publish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Staged {
    /// Where it is written: the store itself, or what is on its way to a bucket.
    folder: Folder,
    /// Where it goes, if that is a bucket.
    bucket: Option<Bucket>,
    target: String,
    temp: PathBuf,
    /// Digest and size of the files that were hashed while they were written.
    hashed: BTreeMap<String, (Digest, u64)>,
}

/// The part of every manifest that the store itself reads.
#[derive(serde::Deserialize)]
pub(crate) struct Identity {
    digest: Option<Digest>,
    /// Name to SHA-256.
    #[serde(default)]
    pub(crate) files: BTreeMap<String, Digest>,
}

impl Identity {
    /// Whether both are of the same content.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.digest, &other.digest) {
            (Some(one), Some(other)) => one == other,
            (None, None) => self.files == other.files,
            _ => false,
        }
    }
}

impl Staged {
    pub(crate) fn new(folder: Folder, bucket: Option<Bucket>, target: &str) -> Result<Self> {
        folder.locate(target)?;
        let temp = folder.session()?.folder()?;
        Ok(Self {
            folder,
            bucket,
            target: target.to_owned(),
            temp,
            hashed: BTreeMap::new(),
        })
    }

    /// The folder to write files into: plain files, no folders.
    pub fn dir(&self) -> &Path {
        &self.temp
    }

    /// Changes where the folder will appear, for a name that depends on its content.
    pub fn retarget(&mut self, path: &str) -> Result<()> {
        self.folder.locate(path)?;
        path.clone_into(&mut self.target);
        Ok(())
    }

    /// Copies one file of at most `limit` bytes from elsewhere, its bytes and nothing of its mode or
    /// times, and hashes it on the way.
    ///
    /// # Errors
    /// [`Error::TooLarge`] at the byte after the limit: a file that was looked at before may grow.
    pub fn copy(&mut self, name: &str, from: &Path, limit: u64) -> Result<()> {
        crate::path::check(name)?;
        let to = self.temp.join(name);
        let mut source = File::open(from).map_err(Error::io("open", from))?;
        let volume = self.folder.volume();
        let mut file = volume.create_file(&to).map_err(Error::io("create", &to))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0_u8; 1 << 18];
        let mut size = 0;
        loop {
            let read = source.read(&mut buffer).map_err(Error::io("copy", from))?;
            let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else {
                break;
            };
            size += read as u64;
            if size > limit {
                return Err(Error::TooLarge {
                    path: from.display().to_string(),
                    limit,
                });
            }
            hasher.update(piece);
            volume
                .write(&mut file, &to, piece)
                .map_err(Error::io("write", &to))?;
        }
        volume.sync(&file, &to).map_err(Error::io("sync", &to))?;
        let digest = Digest::from_sha256(hasher.finalize().into());
        self.hashed.insert(name.to_owned(), (digest, size));
        Ok(())
    }

    /// Writes one file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        crate::path::check(name)?;
        self.folder.write_synced(&self.temp.join(name), bytes)
    }

    /// Digest and size of every file written so far, for the manifest.
    pub fn files(&self) -> Result<StagedFiles> {
        let mut files = StagedFiles::default();
        for item in fs::read_dir(&self.temp).map_err(Error::io("list", &self.temp))? {
            let item = item.map_err(Error::io("list", &self.temp))?;
            let path = item.path();
            let name = item.file_name().into_string().unwrap_or_default();
            crate::path::check(&name)?;
            let kind = item.file_type().map_err(Error::io("look at", &path))?;
            if !kind.is_file() {
                return Err(Error::Path {
                    path: format!("{}/{name}", self.target),
                    problem: "is not a plain file",
                });
            }
            let (digest, size) = match self.hashed.get(&name) {
                Some(hashed) => hashed.clone(),
                None => digest_of_file(&path)?,
            };
            files.size_bytes += size;
            files.digests.insert(name, digest);
        }
        Ok(files)
    }

    /// Makes the folder appear with all its files and `manifest.json` (canonical JSON of `manifest`).
    ///
    /// [`Put::Existing`] where the folder is there, whole by its own manifest, and of the same
    /// `digest` (manifests without one: with the same files). Its provenance may differ: identity is
    /// content.
    ///
    /// # Errors
    /// [`Error::Conflict`] where another content stands there; [`Error::DigestMismatch`] where what
    /// stands there is damaged.
    pub fn publish<T: Serialize>(self, manifest: &T) -> Result<Put> {
        let path = format!("{}/{MANIFEST_FILE}", self.target);
        let manifest = encode(&path, manifest)?;
        match &self.bucket {
            Some(bucket) => bucket.publish(&self.temp, &self.target, manifest.as_bytes()),
            None => self.publish_in_folder(&path, manifest.as_bytes()),
        }
    }

    fn publish_in_folder(&self, path: &str, manifest: &[u8]) -> Result<Put> {
        self.sync_files()?;
        self.folder
            .write_synced(&self.temp.join(MANIFEST_FILE), manifest)?;
        self.folder.sync_path(&self.temp)?;
        let full = self.folder.locate(&self.target)?;
        self.folder.make_parents(&full)?;
        loop {
            // A rename replaces an empty folder and nothing else, so it is create-only: what we
            // publish is never empty.
            let error = match self.folder.volume().rename(&self.temp, &full) {
                Ok(()) => {
                    self.folder.sync_parent(&full)?;
                    return Ok(Put::Created);
                }
                Err(error) => error,
            };
            if !matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
            ) {
                return Err(Error::io("publish", &full)(error));
            }
            if let Some(existing) = self.folder.get(path)? {
                return self.compare(&decode(path, &existing)?, &decode(path, manifest)?);
            }
            // Without a manifest the folder does not exist, whoever made it.
            self.folder.remove_folder(&self.target)?;
        }
    }

    fn compare(&self, existing: &Identity, ours: &Identity) -> Result<Put> {
        if !existing.is_same(ours) {
            return Err(Error::Conflict {
                path: self.target.clone(),
            });
        }
        self.folder.verify(&self.target, &existing.files)?;
        Ok(Put::Existing)
    }

    fn sync_files(&self) -> Result<()> {
        for item in fs::read_dir(&self.temp).map_err(Error::io("list", &self.temp))? {
            let path = item.map_err(Error::io("list", &self.temp))?.path();
            self.folder.sync_path(&path)?;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = self.folder.volume().remove_folder(&self.temp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_writers_files_go_when_they_are_old_and_a_live_ones_stay() {
        let root = tempfile::tempdir().unwrap();
        let later = clock::wall() + 2 * LEFTOVER_AGE;
        let live = Session::begin(root.path(), &Volume::default()).unwrap();
        fs::write(live.file(), "x").unwrap();
        assert!(!is_left_over(&live.dir, later), "its lock is held");

        let killed = Session::begin(root.path(), &Volume::default()).unwrap();
        fs::write(killed.file(), "x").unwrap();
        let dir = killed.dir.clone();
        // A killed process runs no destructor, but the kernel closes its files.
        let mut killed = std::mem::ManuallyDrop::new(killed);
        drop(killed.lock.take());
        assert!(!is_left_over(&dir, clock::wall()), "just touched");
        assert!(is_left_over(&dir, later));
    }

    #[test]
    fn a_session_that_ends_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let session = Session::begin(root.path(), &Volume::default()).unwrap();
        let dir = session.dir.clone();
        drop(session);
        assert!(!dir.exists());
    }
}
