//! Folders on mounted claims. Nothing outside of a claim can be named, neither by `..` nor by a link,
//! nor do the files of a named folder lead out of it.

use std::path::{Component, Path, PathBuf};

use crate::problem::Failure;

/// Why a folder can't be used, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// The pod does not have its claim: one with the claim takes its place in a moment.
    #[error("{0}")]
    NotMounted(String),
    /// It is not there, or it or one of its files leads out of the claim.
    #[error("{0}")]
    Unusable(String),
}

impl FolderError {
    /// What passes by itself, or what lasts, as the caller names it.
    pub fn failure(self, lasting: impl FnOnce(String) -> Failure) -> Failure {
        match self {
            Self::NotMounted(message) => Failure::Unavailable(message),
            Self::Unusable(message) => lasting(message),
        }
    }
}

/// The mount point of all claims.
#[derive(Debug, Clone)]
pub struct Claims(PathBuf);

impl Claims {
    /// Claims are mounted below `root`, each under its name.
    pub fn new(root: PathBuf) -> Self {
        Self(root)
    }

    /// The folder `path` of `claim`. Links within the claim are fine: hub caches are made of them.
    ///
    /// # Errors
    /// What is wrong.
    pub fn folder(&self, claim: &str, path: &str) -> Result<PathBuf, FolderError> {
        let said = |text: &str| format!("pvc://{claim}/{path} {text}");
        let named = |text: &str| FolderError::Unusable(said(text));
        let plain = |text: &str| {
            Path::new(text)
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
        };
        if claim.is_empty() || claim.contains('/') || !plain(claim) || !plain(path) {
            return Err(named("is not a path within a claim"));
        }
        let root = self.0.join(claim);
        let root = root
            .canonicalize()
            .map_err(|_| FolderError::NotMounted(said("is on a claim that is not mounted yet")))?;
        let folder = root
            .join(path)
            .canonicalize()
            .map_err(|_| named("does not exist"))?;
        if !folder.starts_with(&root) {
            return Err(named("leads out of its claim by a link"));
        }
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => return Err(named(&format!("is not a folder that can be read: {error}"))),
        };
        for entry in entries.flatten() {
            let target = entry.path().canonicalize();
            if target.is_ok_and(|target| !target.starts_with(&root)) {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                return Err(named(&format!(
                    "has a file that leads out of its claim by a link: {name}"
                )));
            }
        }
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_its_claim() {
        let root = tempfile::tempdir().unwrap();
        let claim = root.path().join("models");
        let other = root.path().join("other");
        for folder in [
            claim.join("a/b"),
            claim.join("cache"),
            claim.join("bad"),
            other.clone(),
        ] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(other.join("secret"), "").unwrap();
        let link = |to: &Path, at: &str| std::os::unix::fs::symlink(to, claim.join(at)).unwrap();
        link(&other, "link");
        link(&other.join("secret"), "bad/config.json");
        link(&claim.join("a"), "cache/inside");
        let claims = Claims::new(root.path().to_path_buf());
        for path in ["a/b", "cache", "cache/inside"] {
            assert!(claims.folder("models", path).is_ok(), "{path}");
        }
        for (claim, path, word) in [
            ("models", "../other", "not a path within"),
            ("models", "/etc", "not a path within"),
            ("models", "a/../../other", "not a path within"),
            ("models", "link", "leads out"),
            ("models", "bad", "config.json"),
            ("models", "absent", "does not exist"),
            ("..", "models", "not a path within"),
            ("", "models/a", "not a path within"),
            ("models/a", "b", "not a path within"),
            ("absent", "a", "not mounted"),
        ] {
            let error = claims.folder(claim, path).unwrap_err();
            let passes = matches!(error, FolderError::NotMounted(_));
            assert_eq!(passes, claim == "absent", "{error:?}");
            assert!(error.to_string().contains(word), "{claim} {path}: {error}");
        }
    }
}
