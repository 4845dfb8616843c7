//! Every call that changes the disk, in one place: a test can enumerate them, let one fail, or end a
//! writer in front of it.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat_with};

type Before = dyn Fn(&'static str, &Path) -> io::Result<()> + Send + Sync;

/// The disk below a store. Cheap to clone.
#[derive(Clone, Default)]
pub struct Volume(Option<Arc<Before>>);

impl fmt::Debug for Volume {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.0.is_some() { "asking" } else { "plain" };
        write!(formatter, "Volume({name})")
    }
}

impl Volume {
    /// A disk in front of each of whose changes `before` is asked, with the call and its path. Where it
    /// answers with an error, the call fails with it and nothing is changed.
    pub fn asking(
        before: impl Fn(&'static str, &Path) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(before)))
    }

    fn ask(&self, call: &'static str, path: &Path) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |before| before(call, path))
    }

    pub(crate) fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.ask("create folder", path)?;
        fs::create_dir(path)
    }

    pub(crate) fn create_file(&self, path: &Path) -> io::Result<File> {
        self.ask("create file", path)?;
        File::create_new(path)
    }

    pub(crate) fn write(&self, file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.ask("write", path)?;
        file.write_all(bytes)
    }

    pub(crate) fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.ask("sync", path)?;
        file.sync_all()
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask("rename", to)?;
        fs::rename(from, to)
    }

    pub(crate) fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask("link", to)?;
        fs::hard_link(from, to)
    }

    /// A rename that refuses to replace.
    pub(crate) fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask("rename new", to)?;
        Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
    }

    pub(crate) fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.ask("remove file", path)?;
        fs::remove_file(path)
    }

    pub(crate) fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.ask("remove folder", path)?;
        fs::remove_dir_all(path)
    }
}
