//! Entries of a mounted Secret, read as files. Nothing of them is ever said.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

/// Longest entry that is read, in bytes: certificates of a few authorities.
pub const MAXIMUM_ENTRY_BYTES: u64 = 256 << 10;

/// Why an entry can't be read.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The file system.
    #[error("can't be read: {0}")]
    Read(io::Error),
    /// Longer than any may be.
    #[error("is longer than {} bytes", MAXIMUM_ENTRY_BYTES)]
    TooLong,
}

/// An entry of the Secret that is mounted at `folder`; none where it is not there.
///
/// # Errors
/// See [`EntryError`].
pub fn entry(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, EntryError> {
    let file = match File::open(folder.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(EntryError::Read(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAXIMUM_ENTRY_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(EntryError::Read)?;
    if bytes.len() as u64 > MAXIMUM_ENTRY_BYTES {
        return Err(EntryError::TooLong);
    }
    Ok(Some(bytes))
}

/// An entry's text without the line's end that editors leave; none where it is empty.
///
/// # Errors
/// One that is not UTF-8.
pub fn text(bytes: Vec<u8>) -> Result<Option<String>, std::string::FromUtf8Error> {
    let text = String::from_utf8(bytes)?;
    let text = text.trim_end_matches(['\n', '\r']);
    Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
}
