//! A store that is a folder on a mounted volume.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::path::{is_absent, resolve};
use crate::staging::{Session, clean_leftovers};
use crate::store::{Entry, Put, compare};
use crate::volume::Volume;
use crate::{Error, Result};

/// The folder. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    root: PathBuf,
    volume: Volume,
    session: Arc<Mutex<Option<Arc<Session>>>>,
}

impl Folder {
    /// Opens a folder, which must exist, for reading and writing. Removes what killed writers left behind.
    pub(crate) fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let store = Self::open_read_only(root)?;
        clean_leftovers(&store.root);
        Ok(store)
    }

    /// The same folder on another disk.
    pub(crate) fn on(self, volume: Volume) -> Self {
        Self {
            volume,
            session: Arc::default(),
            ..self
        }
    }

    /// Opens a folder where the volume is mounted read-only; writing to it fails with the volume's error.
    pub(crate) fn open_read_only(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let metadata = root
            .metadata()
            .map_err(Error::io("open the store", &root))?;
        if !metadata.is_dir() {
            return Err(Error::io("open the store", &root)(
                io::ErrorKind::NotADirectory.into(),
            ));
        }
        Ok(Self {
            root,
            volume: Volume::default(),
            session: Arc::default(),
        })
    }

    /// The folder on the disk.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where `path` stands on the disk, whether or not something is there. Refuses paths that leave the folder.
    pub(crate) fn locate(&self, path: &str) -> Result<PathBuf> {
        resolve(&self.root, path)
    }

    /// The bytes at `path`; `None` where nothing is there.
    pub(crate) fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let full = resolve(&self.root, path)?;
        match fs::read(&full) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::IsADirectory => {
                Ok(None)
            }
            Err(error) => Err(Error::io("read", &full)(error)),
        }
    }

    /// At most `limit` bytes at `path` with the whole file's size; `None` where nothing is there.
    pub(crate) fn get_up_to(&self, path: &str, limit: u64) -> Result<Option<(Vec<u8>, u64)>> {
        let full = resolve(&self.root, path)?;
        let read = || {
            let file = File::open(&full)?;
            let metadata = file.metadata()?;
            if metadata.is_dir() {
                return Err(io::ErrorKind::NotFound.into());
            }
            let mut bytes = Vec::new();
            file.take(limit).read_to_end(&mut bytes)?;
            Ok((bytes, metadata.len()))
        };
        match read() {
            Ok(found) => Ok(Some(found)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Error::io("read", &full)(error)),
        }
    }

    /// See [`crate::Store::put_new`].
    pub(crate) fn put_new(&self, path: &str, bytes: &[u8]) -> Result<Put> {
        let full = resolve(&self.root, path)?;
        // A common case in repeated reconciles; the decision below does not depend on it.
        if let Some(existing) = self.get(path)? {
            return compare(path, &existing, bytes);
        }
        let temp = self.session()?.file();
        let written = self
            .write_synced(&temp, bytes)
            .and_then(|()| self.make_parents(&full))
            .and_then(|()| self.name_once(&temp, &full));
        // Where the name was taken by a hard link the temporary one is left over.
        let _ = self.volume.remove_file(&temp);
        if written? {
            self.sync_parent(&full)?;
            return Ok(Put::Created);
        }
        match self.get(path)? {
            Some(existing) => compare(path, &existing, bytes),
            None => Err(Error::Conflict {
                path: path.to_owned(),
            }),
        }
    }

    /// See [`crate::Store::list`].
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let full = if folder.is_empty() && !prefix.starts_with('/') {
            self.root.clone()
        } else {
            resolve(&self.root, folder)?
        };
        let mut entries = Vec::new();
        walk(&full, folder, prefix, &mut entries)?;
        entries.sort();
        Ok(entries)
    }

    /// Takes a record away. Nothing there is fine.
    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        let full = resolve(&self.root, path)?;
        match self.volume.remove_file(&full) {
            Ok(()) => self.sync_parent(&full),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(Error::io("remove", &full)(error)),
        }
    }

    /// Takes a folder away: it disappears at once, then its files are removed. Nothing there is fine.
    pub(crate) fn remove_folder(&self, path: &str) -> Result<()> {
        let full = resolve(&self.root, path)?;
        let aside = self.session()?.file();
        match self.volume.rename(&full, &aside) {
            Ok(()) => {
                self.sync_parent(&full)?;
                self.volume
                    .remove_folder(&aside)
                    .map_err(Error::io("remove", &aside))
            }
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(Error::io("remove", &full)(error)),
        }
    }

    pub(crate) fn session(&self) -> Result<Arc<Session>> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = session.as_ref().filter(|session| session.is_there()) {
            return Ok(session.clone());
        }
        // On a volume whose locks don't reach other nodes, a writer that rested for long looks like a killed one, and
        // its folder may have been removed.
        let new = Arc::new(Session::begin(&self.root, &self.volume)?);
        *session = Some(new.clone());
        Ok(new)
    }

    /// Makes the folders above `full`, each synced into its own parent.
    pub(crate) fn make_parents(&self, full: &Path) -> Result<()> {
        let mut missing = Vec::new();
        let mut folder = full.parent();
        while let Some(path) = folder.filter(|path| *path != self.root && !path.exists()) {
            missing.push(path);
            folder = path.parent();
        }
        for path in missing.into_iter().rev() {
            match self.volume.create_folder(path) {
                Ok(()) => self.sync_parent(path)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", path)(error)),
            }
        }
        Ok(())
    }

    /// The disk, for what is written into a staged folder.
    pub(crate) fn volume(&self) -> &Volume {
        &self.volume
    }

    pub(crate) fn write_synced(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let volume = &self.volume;
        let mut file = volume
            .create_file(path)
            .map_err(Error::io("create", path))?;
        volume
            .write(&mut file, path, bytes)
            .map_err(Error::io("write", path))?;
        volume.sync(&file, path).map_err(Error::io("sync", path))
    }

    /// Gives the file at `temp` the name `full` unless that is taken. A hard link does it atomically
    /// on every file system that has links; where there are none, a rename that refuses to replace
    /// does.
    fn name_once(&self, temp: &Path, full: &Path) -> Result<bool> {
        let is_taken = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
        match self.volume.hard_link(temp, full) {
            Ok(()) => Ok(true),
            Err(error) if is_taken(&error) => Ok(false),
            Err(_) => match self.volume.rename_new(temp, full) {
                Ok(()) => Ok(true),
                Err(error) if is_taken(&error) => Ok(false),
                Err(error) => Err(Error::io("create", full)(error)),
            },
        }
    }

    /// Syncs the folder that holds `path`, so that the name survives a power cut.
    pub(crate) fn sync_parent(&self, path: &Path) -> Result<()> {
        self.sync_path(path.parent().unwrap_or(path))
    }

    /// Syncs a file or a folder.
    pub(crate) fn sync_path(&self, path: &Path) -> Result<()> {
        File::open(path)
            .and_then(|file| self.volume.sync(&file, path))
            .map_err(Error::io("sync", path))
    }
}

fn walk(full: &Path, relative: &str, prefix: &str, entries: &mut Vec<Entry>) -> Result<()> {
    let read = match fs::read_dir(full) {
        Ok(read) => read,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(Error::io("list", full)(error)),
    };
    for item in read {
        let item = item.map_err(Error::io("list", full))?;
        let Ok(name) = item.file_name().into_string() else {
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        let path = if relative.is_empty() {
            name
        } else {
            format!("{relative}/{name}")
        };
        // Not followed: the store makes no symbolic links.
        let metadata = match item.metadata() {
            Ok(metadata) => metadata,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(Error::io("look at", &item.path())(error)),
        };
        let on_the_way = path.starts_with(prefix) || prefix.starts_with(&format!("{path}/"));
        if metadata.is_dir() && on_the_way {
            walk(&item.path(), &path, prefix, entries)?;
        } else if metadata.is_file() && path.starts_with(prefix) {
            entries.push(Entry {
                path,
                size: metadata.len(),
                state: None,
            });
        }
    }
    Ok(())
}
