//! Files in and out of volumes: the seeding Job's copy, and the export of an adapter's folder as text.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use clap::Args;
use graftwork_contract::adapter::MANIFEST_FILE;

/// Copies folders into a volume; what is there already with the same size is left alone.
#[derive(Debug, Args)]
pub struct Seed {
    /// What to copy: FROM=TO, both folders. Repeatable.
    #[arg(long = "copy", value_name = "FROM=TO", required = true, value_parser = parse_pair)]
    copies: Vec<(PathBuf, PathBuf)>,
}

fn parse_pair(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (from, to) = text.split_once('=').ok_or("expected FROM=TO")?;
    Ok((from.into(), to.into()))
}

impl Seed {
    /// Copies.
    pub fn run(&self) -> anyhow::Result<()> {
        for (from, to) in &self.copies {
            copy(from, to)
                .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        // A mounted ConfigMap holds links to a hidden folder of data; the links are what is meant.
        if entry.file_name().to_string_lossy().starts_with("..") {
            continue;
        }
        let target = to.join(entry.file_name());
        let kind = fs::metadata(entry.path())?;
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else if fs::metadata(&target).map(|there| there.len()).ok() != Some(kind.len()) {
            let beside = target.with_extension("part");
            fs::copy(entry.path(), &beside)?;
            fs::rename(&beside, &target)?;
        }
    }
    Ok(())
}

/// Prints an adapter's files as one JSON object `{file: base64}`, for small adapters.
#[derive(Debug, Args)]
pub struct Export {
    /// The store's folder.
    root: PathBuf,
    /// The digest's hexadecimal digits: the name of the adapter's folder, wherever it is.
    #[arg(long)]
    adapter: String,
}

impl Export {
    /// Prints.
    #[expect(clippy::print_stdout, reason = "this is the command's output")]
    pub fn run(&self) -> anyhow::Result<()> {
        let folder = find(&self.root, &self.adapter)?
            .with_context(|| format!("no folder {} below {}", self.adapter, self.root.display()))?;
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // The manifest is the store's own: an adapter from elsewhere has none.
            if name != MANIFEST_FILE {
                files.insert(name, BASE64_STANDARD.encode(fs::read(entry.path())?));
            }
        }
        println!("{}", serde_json::to_string(&files)?);
        Ok(())
    }
}

fn find(folder: &Path, name: &str) -> anyhow::Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        if entry.file_name().to_string_lossy() == name {
            return Ok(Some(entry.path()));
        }
        if let Some(found) = find(&entry.path(), name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_copy_changes_nothing_and_a_first_one_copies_all() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        fs::create_dir(from.path().join("sub")).unwrap();
        fs::write(from.path().join("sub/file"), "text").unwrap();
        let target = to.path().join("deep/folder");
        copy(from.path(), &target).unwrap();
        let first = fs::metadata(target.join("sub/file"))
            .unwrap()
            .modified()
            .unwrap();
        copy(from.path(), &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("sub/file")).unwrap(), "text");
        assert_eq!(
            fs::metadata(target.join("sub/file"))
                .unwrap()
                .modified()
                .unwrap(),
            first
        );
    }
}
