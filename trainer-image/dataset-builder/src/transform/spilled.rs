//! What operators spill: files of the scratch volume without a name, which go with the process. They are read
//! on the query's own thread, so that nothing depends on when a disk answers.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SpillFile, SpillWriter, TempFileFactory};
use futures::{Stream, future, stream};

use crate::spill::Scratch;

/// Bytes that are read at a time.
const PIECE: usize = 128 << 10;

/// Makes the files, and counts them.
#[derive(Debug)]
pub struct Spills {
    scratch: Scratch,
    count: AtomicU64,
}

impl Spills {
    /// None yet.
    pub fn new(scratch: &Scratch) -> Self {
        Self {
            scratch: scratch.clone(),
            count: AtomicU64::new(0),
        }
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl TempFileFactory for Spills {
    fn create_temp_file(&self, _description: &str) -> Result<Arc<dyn SpillFile>> {
        let file = self
            .scratch
            .file()
            .map_err(|failure| DataFusionError::External(Box::new(failure)))?;
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Spilled(Arc::new(file))))
    }
}

/// One file.
#[derive(Debug)]
struct Spilled(Arc<File>);

impl Spilled {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl SpillFile for Spilled {
    fn size(&self) -> Option<u64> {
        self.bytes().ok()
    }

    fn read_stream(&self) -> Result<Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>> {
        let file = Arc::clone(&self.0);
        Ok(Box::pin(stream::try_unfold(0, move |at| {
            future::ready(piece(&file, at).map_err(DataFusionError::IoError))
        })))
    }

    fn open_writer(&self) -> Result<Box<dyn SpillWriter>> {
        Ok(Box::new(Appending {
            file: Arc::clone(&self.0),
            at: self.bytes()?,
        }))
    }
}

/// The bytes from a place on, with the place after them; none at the end.
fn piece(file: &File, at: u64) -> io::Result<Option<(Bytes, u64)>> {
    let mut bytes = vec![0; PIECE];
    let count = loop {
        match file.read_at(&mut bytes, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => break outcome?,
        }
    };
    bytes.truncate(count);
    Ok((count > 0).then(|| (Bytes::from(bytes), at + count as u64)))
}

/// Writes at the end of a file.
struct Appending {
    file: Arc<File>,
    at: u64,
}

impl Write for Appending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write_at(bytes, self.at)?;
        self.at += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SpillWriter for Appending {
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    #[test]
    fn what_was_written_is_read_as_often_as_one_likes_and_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let spills = Spills::new(&Scratch::new(dir.path(), 0));
        let file = spills.create_temp_file("a sort").unwrap();
        let bytes: Vec<u8> = (0..3 * PIECE / 2).map(|n| n as u8).collect();
        let (first, second) = bytes.split_at(1000);
        for part in [first, second] {
            let mut writer = file.open_writer().unwrap();
            writer.write_all(part).unwrap();
            writer.finish().unwrap();
        }
        assert_eq!(file.size(), Some(bytes.len() as u64));
        for _ in 0..2 {
            let pieces: Vec<Bytes> =
                futures::executor::block_on(file.read_stream().unwrap().try_collect()).unwrap();
            assert_eq!(pieces.concat(), bytes);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(spills.count(), 1);
    }

    #[test]
    fn a_volume_that_is_not_there_is_named() {
        let spills = Spills::new(&Scratch::new(std::path::Path::new("/nowhere/scratch"), 0));
        let Err(DataFusionError::External(error)) = spills.create_temp_file("a sort") else {
            panic!("a file in no folder");
        };
        assert!(error.to_string().contains("/nowhere/scratch"), "{error}");
    }
}
