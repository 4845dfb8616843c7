//! Content digests: `sha256:` and 64 hex digits over length-prefixed fields.

use std::io::Read;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// A SHA-256 over fields that can't run into each other: each is preceded by its length.
#[derive(Default)]
pub struct FieldHasher(Sha256);

impl FieldHasher {
    /// Adds one field.
    pub fn field(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Begins a field of so many bytes, which follow in pieces.
    pub fn begin(&mut self, bytes: usize) -> &mut Self {
        self.0.update((bytes as u64).to_le_bytes());
        self
    }

    /// A piece of the field that was begun.
    pub fn piece(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// `sha256:<hex>` of the fields so far.
    pub fn finish(self) -> String {
        format!("sha256:{}", hex::encode(self.0.finalize()))
    }
}

/// SHA-256 of a file's content, read in pieces, and its length in bytes.
pub fn hash_file(path: &Path) -> std::io::Result<([u8; 32], u64)> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 20];
    let mut length = 0;
    loop {
        let read = file.read(&mut buffer)?;
        let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else {
            break;
        };
        hasher.update(piece);
        length += read as u64;
    }
    Ok((hasher.finalize().into(), length))
}
