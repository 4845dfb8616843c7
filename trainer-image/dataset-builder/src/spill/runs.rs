//! Sorted runs of records in one file without a name, packed with zstd, and their merge.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{
    self, BufRead as _, BufReader, BufWriter, IntoInnerError, Read, Seek as _, Write as _,
};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use zstd::stream::read::Decoder;
use zstd::stream::write::Encoder;

use super::Scratch;
use crate::failure::Failure;

/// Runs are read once or a few times: speed counts for more than size.
const LEVEL: i32 = 1;
/// Bytes that are read or written at a time.
const BUFFER_BYTES: usize = 1 << 16;
/// What an open run needs: its buffers and the decoder's window.
const OPEN_RUN_BYTES: usize = 1 << 20;
/// Runs that are merged at a time, at least and at most.
const FAN_IN: (usize, usize) = (4, 64);

/// Runs of records, each sorted, one behind the other in a file.
#[derive(Debug)]
pub struct Runs {
    scratch: Scratch,
    file: Arc<File>,
    /// Where each run ends.
    ends: Vec<u64>,
    /// Bytes of the longest record.
    longest: usize,
}

impl Runs {
    /// No runs yet.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn new(scratch: &Scratch) -> Result<Self, Failure> {
        Ok(Self {
            scratch: scratch.clone(),
            file: Arc::new(scratch.file()?),
            ends: Vec::new(),
            longest: 0,
        })
    }

    /// Adds a run of records that come in their order.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn add<'a>(&mut self, records: impl Iterator<Item = &'a [u8]>) -> Result<(), Failure> {
        let (end, longest) =
            write(&self.file, records).map_err(|error| self.scratch.failed(&error))?;
        self.ends.push(end);
        self.longest = self.longest.max(longest);
        Ok(())
    }

    /// Merges runs until few enough are left to be read at the same time within a share of the memory.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn reduced(mut self) -> Result<Self, Failure> {
        let (least, most) = FAN_IN;
        let fan_in = self.scratch.share_bytes() / (OPEN_RUN_BYTES + self.longest);
        let fan_in = fan_in.clamp(least, most);
        while self.ends.len() > fan_in {
            let mut merged = Self::new(&self.scratch)?;
            merged.longest = self.longest;
            let mut first = 0;
            while first < self.ends.len() {
                let mut merge = self.merge(first, fan_in)?;
                let mut writer =
                    RunWriter::new(&merged.file).map_err(|error| self.scratch.failed(&error))?;
                while let Some(record) = merge.next_record()? {
                    writer
                        .push(record)
                        .map_err(|error| self.scratch.failed(&error))?;
                }
                let end = writer
                    .finish()
                    .map_err(|error| self.scratch.failed(&error))?;
                merged.ends.push(end);
                first += fan_in;
            }
            // The file of the runs that were merged goes with them.
            self = merged;
        }
        Ok(self)
    }

    /// All records in order.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn records(&self) -> Result<Merge, Failure> {
        self.merge(0, self.ends.len())
    }

    fn merge(&self, first: usize, count: usize) -> Result<Merge, Failure> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let mut heads = BinaryHeap::with_capacity(count.min(self.ends.len()));
        for (start, end) in starts
            .zip(self.ends.iter().copied())
            .skip(first)
            .take(count)
        {
            let section = Section {
                file: Arc::clone(&self.file),
                at: start,
                end,
            };
            let head = Head::open(section).map_err(|error| self.scratch.failed(&error))?;
            heads.extend(head);
        }
        Ok(Merge {
            scratch: self.scratch.clone(),
            heads,
            is_handed_out: false,
        })
    }
}

/// Where the run ends, and the bytes of its longest record.
fn write<'a>(file: &File, records: impl Iterator<Item = &'a [u8]>) -> io::Result<(u64, usize)> {
    let mut writer = RunWriter::new(file)?;
    let mut longest = 0;
    for record in records {
        longest = longest.max(record.len());
        writer.push(record)?;
    }
    Ok((writer.finish()?, longest))
}

struct RunWriter<'a>(BufWriter<Encoder<'static, &'a File>>);

impl<'a> RunWriter<'a> {
    fn new(file: &'a File) -> io::Result<Self> {
        let encoder = Encoder::new(file, LEVEL)?;
        Ok(Self(BufWriter::with_capacity(BUFFER_BYTES, encoder)))
    }

    fn push(&mut self, record: &[u8]) -> io::Result<()> {
        self.0.write_all(&(record.len() as u64).to_le_bytes())?;
        self.0.write_all(record)
    }

    /// Where the run ends.
    fn finish(self) -> io::Result<u64> {
        let encoder = self.0.into_inner().map_err(IntoInnerError::into_error)?;
        let mut file = encoder.finish()?;
        file.stream_position()
    }
}

/// The bytes of one run.
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let (buffer, _) = buffer.split_at_mut(left.min(buffer.len()));
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// A run with its next record.
struct Head {
    reader: BufReader<Decoder<'static, BufReader<Section>>>,
    record: Vec<u8>,
}

impl Head {
    /// None where the run is empty.
    fn open(section: Section) -> io::Result<Option<Self>> {
        let decoder = Decoder::with_buffer(BufReader::with_capacity(BUFFER_BYTES, section))?;
        let mut head = Self {
            reader: BufReader::with_capacity(BUFFER_BYTES, decoder),
            record: Vec::new(),
        };
        Ok(head.advance()?.then_some(head))
    }

    /// Reads the next record; whether there was one.
    fn advance(&mut self) -> io::Result<bool> {
        if self.reader.fill_buf()?.is_empty() {
            return Ok(false);
        }
        let mut length = [0; 8];
        self.reader.read_exact(&mut length)?;
        self.record.clear();
        let length = u64::from_le_bytes(length);
        let read = (&mut self.reader)
            .take(length)
            .read_to_end(&mut self.record)?;
        if read as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(true)
    }
}

// The heap's greatest is the least record.
impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        other.record.cmp(&self.record)
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.record == other.record
    }
}

impl Eq for Head {}

/// The records of several runs in order.
pub struct Merge {
    scratch: Scratch,
    heads: BinaryHeap<Head>,
    /// The first head's record was given to the caller, who may still be looking at it.
    is_handed_out: bool,
}

impl Merge {
    /// The next record; none at the end.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn next_record(&mut self) -> Result<Option<&[u8]>, Failure> {
        if self.is_handed_out
            && let Some(mut head) = self.heads.peek_mut()
        {
            let more = head
                .advance()
                .map_err(|error| self.scratch.failed(&error))?;
            if !more {
                drop(PeekMut::pop(head));
            }
        }
        self.is_handed_out = true;
        Ok(self.heads.peek().map(|head| head.record.as_slice()))
    }
}
