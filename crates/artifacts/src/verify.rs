//! Checks before use: the bytes are those that the manifest names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use graftwork_contract::Digest;
use sha2::{Digest as _, Sha256};

use crate::folder::Folder;
use crate::{Error, Result, Store};

/// SHA-256 of a file's bytes, read in pieces, and their number.
pub fn digest_of_file(path: &Path) -> Result<(Digest, u64)> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 18];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer).map_err(Error::io("read", path))?;
        let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else {
            return Ok((Digest::from_sha256(hasher.finalize().into()), size));
        };
        hasher.update(piece);
        size += read as u64;
    }
}

impl Folder {
    /// See [`Store::verify`].
    pub(crate) fn verify(&self, folder: &str, files: &BTreeMap<String, Digest>) -> Result<()> {
        for (name, expected) in files {
            let path = format!("{folder}/{name}");
            let full = self.locate(&path)?;
            if !full.is_file() {
                return Err(Error::Missing { path });
            }
            let (got, _) = digest_of_file(&full)?;
            if got != *expected {
                return Err(Error::DigestMismatch {
                    path,
                    expected: expected.clone(),
                    got,
                });
            }
        }
        Ok(())
    }
}

impl Store {
    /// The bytes at `path`, which have this digest.
    pub fn get_verified(&self, path: &str, expected: &Digest) -> Result<Vec<u8>> {
        let bytes = self.get(path)?.ok_or_else(|| Error::Missing {
            path: path.to_owned(),
        })?;
        let got = Digest::of(&bytes);
        if got == *expected {
            Ok(bytes)
        } else {
            Err(Error::DigestMismatch {
                path: path.to_owned(),
                expected: expected.clone(),
                got,
            })
        }
    }
}
