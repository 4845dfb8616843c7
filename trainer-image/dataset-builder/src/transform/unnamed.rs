//! A file of the scratch volume that several readers read at once: each at its own place, because a file
//! without a name can't be opened again.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::Result;
use parquet::file::reader::{ChunkReader, Length};

/// A file whose position nobody uses.
#[derive(Debug, Clone)]
pub struct Unnamed(Arc<File>);

impl Unnamed {
    /// Wraps a file that is not written any more.
    pub fn new(file: File) -> Self {
        Self(Arc::new(file))
    }
}

impl Length for Unnamed {
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }
}

impl ChunkReader for Unnamed {
    type T = BufReader<Reader>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(BufReader::new(Reader {
            file: Arc::clone(&self.0),
            at: start,
        }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

/// One reader's place.
#[derive(Debug)]
pub struct Reader {
    file: Arc<File>,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn readers_do_not_move_each_other() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let file = Unnamed::new(file);
        let (mut one, mut other) = (file.get_read(1).unwrap(), file.get_read(5).unwrap());
        let (mut first, mut second) = ([0; 2], [0; 5]);
        one.read_exact(&mut first).unwrap();
        other.read_exact(&mut second).unwrap();
        assert_eq!((&first, &second), (b"12", b"56789"));
        one.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"34");
        assert_eq!(file.get_bytes(8, 2).unwrap(), "89");
        assert!(file.get_bytes(8, 3).is_err());
        assert_eq!(file.len(), 10);
    }
}
