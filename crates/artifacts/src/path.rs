//! Paths inside the store: relative, plain, and never through a symbolic link.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Longest name that Linux file systems take, in bytes.
const MAXIMUM_SEGMENT_BYTES: usize = 255;

/// Checks the words of a path without looking at the disk. Names that begin with a dot are the
/// store's own.
pub(crate) fn check(path: &str) -> Result<()> {
    let refuse = |problem| {
        Err(Error::Path {
            path: path.to_owned(),
            problem,
        })
    };
    if path.is_empty() {
        return refuse("is empty");
    }
    if path.starts_with('/') {
        return refuse("is absolute; paths are relative to the store");
    }
    for segment in path.split('/') {
        if segment.is_empty() {
            return refuse("has an empty segment");
        }
        if segment.starts_with('.') {
            return refuse("has a segment that begins with a dot");
        }
        if segment.len() > MAXIMUM_SEGMENT_BYTES {
            return refuse("has a segment of more than 255 bytes");
        }
        if segment.chars().any(|c| c.is_control() || c == '\\') {
            return refuse("has a control character or a backslash");
        }
    }
    Ok(())
}

/// The path on the disk. Refuses symbolic links on the way: the store makes none, so one that is
/// there would lead elsewhere.
pub(crate) fn resolve(root: &Path, path: &str) -> Result<PathBuf> {
    check(path)?;
    let mut full = root.to_path_buf();
    let mut missing = false;
    for segment in path.split('/') {
        full.push(segment);
        if missing {
            continue;
        }
        match full.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => {
                return Err(Error::Path {
                    path: path.to_owned(),
                    problem: "goes through a symbolic link",
                });
            }
            Ok(_) => {}
            Err(error) if is_absent(&error) => missing = true,
            Err(error) => return Err(Error::io("look at", &full)(error)),
        }
    }
    Ok(full)
}

/// Nothing stands at a path, or a file stands where a folder would lead to it.
pub(crate) fn is_absent(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_relative_paths_are_accepted() {
        for path in [
            "datasets/topics/versions/1.json",
            "a",
            "runs/x.y/result.json",
        ] {
            assert!(check(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "a/../b",
            "a/..",
            "./a",
            "a//b",
            "a/",
            ".tmp/x",
            "a\\b",
            "a\0b",
            "a\nb",
        ] {
            assert!(check(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_symbolic_link_on_the_way_is_refused() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("f"), "secret").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("f"), root.path().join("file")).unwrap();
        for path in ["link/f", "file", "link"] {
            let error = resolve(root.path(), path).unwrap_err();
            assert!(error.to_string().contains("symbolic link"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_stays_below_the_root(path in "[a./\\\\ -]{0,12}") {
            let root = Path::new("/nonexistent/root");
            if let Ok(full) = resolve(root, &path) {
                prop_assert!(full.starts_with(root) && full != root);
                prop_assert!(full.components().all(|c| c != std::path::Component::ParentDir));
            }
        }
    }
}
