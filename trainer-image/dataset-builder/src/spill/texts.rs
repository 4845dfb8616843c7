//! Texts by a row's position, in no order: the newest in memory, the rest on the scratch volume.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::numbers::Numbers;
use super::{Scratch, damaged};
use crate::failure::Failure;

/// Bytes of a text's length, in front of it.
const LENGTH: usize = 8;

/// Texts of some rows.
#[derive(Debug)]
pub struct Texts {
    scratch: Scratch,
    /// Where each row's text begins.
    starts: Numbers,
    /// Texts that are not on the volume yet; whole ones.
    held: Vec<u8>,
    file: Option<File>,
    /// Bytes of the file.
    written: u64,
}

impl Texts {
    /// No texts, of so many rows.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn new(scratch: &Scratch, rows: u64) -> Result<Self, Failure> {
        Ok(Self {
            scratch: scratch.clone(),
            starts: Numbers::new(scratch, rows)?,
            held: Vec::new(),
            file: None,
            written: 0,
        })
    }

    /// Keeps a row's text.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn add(&mut self, row: u64, text: &str) -> Result<(), Failure> {
        let size = self.held.len() + LENGTH + text.len();
        if size > self.scratch.share_bytes() && !self.held.is_empty() {
            let file = match self.file.take() {
                Some(file) => file,
                None => self.scratch.file()?,
            };
            file.write_all_at(&self.held, self.written)
                .map_err(|error| self.scratch.failed(&error))?;
            self.file = Some(file);
            self.written += self.held.len() as u64;
            self.held.clear();
        }
        self.starts
            .set(row, self.written + self.held.len() as u64)?;
        self.held
            .extend_from_slice(&(text.len() as u64).to_le_bytes());
        self.held.extend_from_slice(text.as_bytes());
        Ok(())
    }

    /// The text of a row that has one.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn get(&self, row: u64) -> Result<String, Failure> {
        let start = self.starts.get(row)?;
        let bytes = match (start.checked_sub(self.written), &self.file) {
            (Some(start), _) => self.held_text(start).ok_or_else(damaged)?,
            (None, Some(file)) => read(file, start).map_err(|error| self.scratch.failed(&error))?,
            (None, None) => return Err(damaged()),
        };
        String::from_utf8(bytes).map_err(|_| damaged())
    }

    fn held_text(&self, start: u64) -> Option<Vec<u8>> {
        let rest = self.held.get(usize::try_from(start).ok()?..)?;
        let (length, rest) = rest.split_first_chunk::<LENGTH>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        rest.get(..length).map(<[u8]>::to_vec)
    }
}

fn read(file: &File, start: u64) -> io::Result<Vec<u8>> {
    let mut length = [0; LENGTH];
    file.read_exact_at(&mut length, start)?;
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, start + LENGTH as u64)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_found_in_memory_and_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        for memory in [0, 1 << 30] {
            let mut texts = Texts::new(&Scratch::new(dir.path(), memory), 500).unwrap();
            let text = |row: u64| "é".repeat(usize::try_from(row * 37 % 211).unwrap());
            for row in (0..500).rev() {
                texts.add(row, &text(row)).unwrap();
            }
            assert_eq!(texts.file.is_some(), memory == 0);
            for row in 0..500 {
                assert_eq!(texts.get(row).unwrap(), text(row), "{row}");
            }
        }
    }
}
