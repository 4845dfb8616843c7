//! Copies of adapter folders on the node's own disk, within a budget, in front of a store that may be far away.
//!
//! The key is the content's digest, and whoever loads a copy checks that digest as if it came from the store: a copy
//! can be cut, changed or gone at any time, and costs a read of the store then. So nothing here is synced, and no
//! failure is an error.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use graftwork_contract::Digest;
use graftwork_contract::adapter::{CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE};

const FILES: [&str; 3] = [MANIFEST_FILE, CONFIG_FILE, WEIGHTS_FILE];
/// A folder that is being written; one that is found was never finished.
const UNFINISHED: &str = "new-";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    bytes: u64,
    /// Greater is later.
    used: u64,
}

/// What is there, by the hexadecimal digits of the digest.
#[derive(Debug, Default)]
struct Index {
    entries: BTreeMap<String, Entry>,
    uses: u64,
    /// Bytes of copies that are being written.
    writing: u64,
}

impl Index {
    fn note(&mut self, name: &str, bytes: u64) {
        self.uses += 1;
        let used = self.uses;
        self.entries.insert(name.to_owned(), Entry { bytes, used });
    }

    fn touch(&mut self, name: &str) -> bool {
        self.uses += 1;
        let used = self.uses;
        let entry = self.entries.get_mut(name);
        entry.map(|entry| entry.used = used).is_some()
    }

    /// Takes out what was used longest ago until `bytes` more fit; what was taken out.
    fn make_room(&mut self, bytes: u64, budget: u64) -> Vec<String> {
        let kept: u64 = self.entries.values().map(|entry| entry.bytes).sum();
        let mut total = kept.saturating_add(self.writing);
        let mut gone = Vec::new();
        while total.saturating_add(bytes) > budget {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some((name, entry)) = oldest.map(|(name, entry)| (name.clone(), *entry)) else {
                break;
            };
            total -= entry.bytes;
            self.entries.remove(&name);
            gone.push(name);
        }
        gone
    }

    /// Takes room for a copy that is about to be written, so that several at a time stay within the budget
    /// together. What was taken out for it, or none where there is no room.
    fn reserve(&mut self, bytes: u64, budget: u64) -> Option<Vec<String>> {
        if self.writing.saturating_add(bytes) > budget {
            return None;
        }
        let gone = self.make_room(bytes, budget);
        self.writing += bytes;
        Some(gone)
    }
}

/// The cache.
#[derive(Debug)]
pub struct DiskCache {
    dir: PathBuf,
    budget: u64,
    index: Mutex<Index>,
}

impl DiskCache {
    /// A cache in `dir`, with the copies that an earlier process left there, of at most `budget` bytes.
    ///
    /// # Errors
    /// Where the folder can't be made or listed.
    pub fn open(dir: PathBuf, budget: u64) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let mut index = Index::default();
        for entry in std::fs::read_dir(&dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let folder = dir.join(name);
            if name.starts_with(UNFINISHED) {
                forget(&folder);
            } else if name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                index.note(name, size(&folder).unwrap_or(0));
            }
        }
        for name in index.make_room(0, budget) {
            forget(&dir.join(name));
        }
        Ok(Self {
            dir,
            budget,
            index: Mutex::new(index),
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // The index is whole after every statement: a panic elsewhere can't tear it.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the copy of an adapter is, if there is one.
    pub fn get(&self, digest: &Digest) -> Option<PathBuf> {
        let is_here = self.index().touch(digest.hex());
        is_here.then(|| self.dir.join(digest.hex()))
    }

    /// Keeps a copy of a folder, after what was used longest ago went, if need be.
    pub fn put(&self, digest: &Digest, folder: &Path) {
        if let Err(error) = self.copy(digest.hex(), folder) {
            tracing::warn!(%error, %digest, "no copy of the adapter is kept on disk");
        }
    }

    fn copy(&self, name: &str, folder: &Path) -> io::Result<()> {
        let bytes = size(folder)?;
        let Some(gone) = self.index().reserve(bytes, self.budget) else {
            return Ok(());
        };
        for gone in gone {
            forget(&self.dir.join(gone));
        }
        let unfinished = self.dir.join(format!("{UNFINISHED}{name}"));
        let target = self.dir.join(name);
        forget(&unfinished);
        forget(&target);
        let copied = std::fs::create_dir(&unfinished)
            .and_then(|()| {
                FILES.iter().try_for_each(|file| {
                    std::fs::copy(folder.join(file), unfinished.join(file)).map(|_| ())
                })
            })
            .and_then(|()| std::fs::rename(&unfinished, &target));
        if copied.is_err() {
            forget(&unfinished);
        }
        let mut index = self.index();
        index.writing -= bytes;
        if copied.is_ok() {
            index.note(name, bytes);
        }
        copied
    }

    /// A copy turned out to be none.
    pub fn remove(&self, digest: &Digest) {
        self.index().entries.remove(digest.hex());
        forget(&self.dir.join(digest.hex()));
    }
}

/// Bytes of an adapter's files.
fn size(folder: &Path) -> io::Result<u64> {
    FILES.iter().try_fold(0, |sum, file| {
        Ok(sum + std::fs::metadata(folder.join(file))?.len())
    })
}

/// Removes a folder; one that stays is overwritten when its place is needed.
fn forget(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, folder = %folder.display(), "can't be removed from the disk cache");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::of(&[n])
    }

    /// A folder of three files with 10 bytes each.
    fn folder(dir: &Path, n: u8) -> PathBuf {
        let folder = dir.join(format!("store-{n}"));
        std::fs::create_dir_all(&folder).unwrap();
        for file in FILES {
            std::fs::write(folder.join(file), [n; 10]).unwrap();
        }
        folder
    }

    fn here(cache: &DiskCache) -> Vec<u8> {
        (0..10)
            .filter(|n| cache.index().entries.contains_key(digest(*n).hex()))
            .collect()
    }

    #[test]
    fn a_copy_has_the_files_of_the_folder_and_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("cache");
        let cache = DiskCache::open(at.clone(), 100).unwrap();
        assert_eq!(cache.get(&digest(1)), None);
        cache.put(&digest(1), &folder(dir.path(), 1));
        let copy = cache.get(&digest(1)).unwrap();
        for file in FILES {
            assert_eq!(std::fs::read(copy.join(file)).unwrap(), [1; 10]);
        }
        std::fs::create_dir(at.join("new-half")).unwrap();
        let again = DiskCache::open(at.clone(), 100).unwrap();
        assert_eq!(again.get(&digest(1)), Some(copy));
        assert!(!at.join("new-half").exists(), "what was not finished goes");
        let smaller = DiskCache::open(at, 29).unwrap();
        assert_eq!(smaller.get(&digest(1)), None);
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path().join("cache"), 90).unwrap();
        for n in 0..3 {
            cache.put(&digest(n), &folder(dir.path(), n));
        }
        assert!(cache.get(&digest(0)).is_some());
        cache.put(&digest(3), &folder(dir.path(), 3));
        assert_eq!(here(&cache), [0, 2, 3]);
        assert!(!dir.path().join("cache").join(digest(1).hex()).exists());
        cache.remove(&digest(2));
        assert_eq!(here(&cache), [0, 3]);
    }

    #[test]
    fn copies_that_are_written_at_the_same_time_stay_within_the_budget_together() {
        let mut index = Index::default();
        index.note("old", 40);
        assert_eq!(index.reserve(60, 100), Some(vec![]));
        assert_eq!(index.reserve(30, 100), Some(vec!["old".to_owned()]));
        assert_eq!(index.reserve(20, 100), None, "90 of 100 are being written");
        index.writing -= 60;
        assert_eq!(index.reserve(20, 100), Some(vec![]));
    }

    #[test]
    fn a_copy_that_fails_gives_its_room_back() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path().join("cache"), 40).unwrap();
        let from = folder(dir.path(), 1);
        std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
        cache.put(&digest(1), &from);
        assert_eq!(cache.index().writing, 0);
    }

    #[test]
    fn what_is_larger_than_the_budget_or_is_not_there_leaves_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path().join("cache"), 40).unwrap();
        cache.put(&digest(1), &folder(dir.path(), 1));
        let large = folder(dir.path(), 2);
        std::fs::write(large.join(WEIGHTS_FILE), [0; 100]).unwrap();
        cache.put(&digest(2), &large);
        cache.put(&digest(3), &dir.path().join("nowhere"));
        assert_eq!(here(&cache), [1]);
    }
}
