//! Folders on mounted claims. Nothing outside of a claim can be named, neither by `..` nor by a link.

use std::path::{Component, Path, PathBuf};

use graftwork_contract::proto::store::v1::Problem;

use crate::problem::problem;

/// The mount point of all claims.
#[derive(Debug, Clone)]
pub struct Claims(PathBuf);

impl Claims {
    /// Claims are mounted below `root`, each under its name.
    pub fn new(root: PathBuf) -> Self {
        Self(root)
    }

    /// The folder `path` of `claim`.
    ///
    /// # Errors
    /// A folder that is not there (with the given reason), or that leads out of the claim.
    pub fn folder(&self, claim: &str, path: &str, missing: &str) -> Result<PathBuf, Problem> {
        let named = |text: &str| format!("pvc://{claim}/{path} {text}");
        let plain = |text: &str| Path::new(text).components().all(|part| matches!(part, Component::Normal(_)));
        if claim.contains('/') || !plain(claim) || !plain(path) {
            return Err(problem(missing, named("is not a path within a claim")));
        }
        let root = self.0.join(claim);
        let root = root.canonicalize().map_err(|_| problem(missing, named("is on a claim that is not mounted yet")))?;
        let folder = root.join(path).canonicalize().map_err(|_| problem(missing, named("does not exist")))?;
        if !folder.starts_with(&root) {
            return Err(problem(missing, named("leads out of its claim by a link")));
        }
        if folder.is_dir() { Ok(folder) } else { Err(problem(missing, named("is not a folder"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_its_claim() {
        let root = tempfile::tempdir().unwrap();
        let claim = root.path().join("models");
        std::fs::create_dir_all(claim.join("a/b")).unwrap();
        std::fs::create_dir_all(root.path().join("other")).unwrap();
        std::os::unix::fs::symlink(root.path().join("other"), claim.join("link")).unwrap();
        let claims = Claims::new(root.path().to_path_buf());
        assert!(claims.folder("models", "a/b", "X").is_ok());
        for (claim, path) in [
            ("models", "../other"),
            ("models", "/etc"),
            ("models", "a/../../other"),
            ("models", "link"),
            ("models", "absent"),
            ("..", "models"),
            ("models/a", "b"),
            ("absent", "a"),
        ] {
            let problem = claims.folder(claim, path, "X").unwrap_err();
            assert_eq!(problem.reason, "X", "{claim} {path}");
        }
    }
}
