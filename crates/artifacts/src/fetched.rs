//! Files of the store, to be read from the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::staging::Session;

/// A folder with files of the store. Copies in it go with this value.
#[derive(Debug)]
pub struct Fetched {
    path: PathBuf,
    /// Whose copies they are; none where the files stand there.
    copies: Option<Arc<Session>>,
}

impl Fetched {
    /// Files where they stand.
    pub(crate) const fn standing(path: PathBuf) -> Self {
        Self { path, copies: None }
    }

    /// Copies in a folder of the session's.
    pub(crate) const fn copies(path: PathBuf, session: Arc<Session>) -> Self {
        Self {
            path,
            copies: Some(session),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if self.copies.is_some() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
