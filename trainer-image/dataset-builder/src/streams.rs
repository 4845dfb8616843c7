//! Bytes on their way: hashed as they lie on the volume, unpacked, and bounded.

use std::cell::RefCell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};

use flate2::bufread::MultiGzDecoder;
use graftwork_contract::Digest;
use sha2::{Digest as _, Sha256};

/// Most bytes that one file may unpack to (64 GiB).
pub const MAXIMUM_UNPACKED_BYTES: u64 = 64 << 30;
/// Most bytes that a byte of a packed file may unpack to, once there are many. Text of one letter packs
/// better than that, and nobody trains on it.
const MAXIMUM_RATIO: u64 = 400;
/// Unpacked bytes from which on the ratio counts.
const RATIO_COUNTS_FROM: u64 = 256 << 20;

/// How a file is packed, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Packing {
    /// The packing of a file that begins with `head`.
    pub fn of(head: &[u8]) -> Self {
        if head.starts_with(b"\x1f\x8b") {
            Self::Gzip
        } else if head.starts_with(b"\x28\xb5\x2f\xfd") {
            Self::Zstd
        } else {
            Self::Plain
        }
    }
}

/// Bytes of a file that are hashed where they are read; of a longer one the rest has a thread of its own.
const HASHED_HERE: u64 = 1 << 20;
/// Pieces that wait for that thread at most, each as long as what is read at a time.
const WAITING: usize = 16;

/// What was read of a file so far.
#[derive(Debug, Clone, Default)]
pub struct Seen(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    hasher: Hasher,
    bytes: u64,
}

/// Who hashes.
#[derive(Debug)]
enum Hasher {
    Here(Sha256),
    Thread {
        pieces: SyncSender<Vec<u8>>,
        thread: JoinHandle<Sha256>,
    },
}

impl Default for Hasher {
    fn default() -> Self {
        Self::Here(Sha256::new())
    }
}

impl Hasher {
    fn update(&mut self, more: &[u8]) {
        match self {
            Self::Here(hasher) => hasher.update(more),
            // A thread that is gone says why when it is waited for.
            Self::Thread { pieces, .. } => drop(pieces.send(more.to_vec())),
        }
    }

    /// Goes on in a thread, where there is one to be had.
    fn apart(self) -> Self {
        let hasher = match self {
            Self::Here(hasher) => hasher,
            other @ Self::Thread { .. } => return other,
        };
        let (pieces, waiting) = mpsc::sync_channel::<Vec<u8>>(WAITING);
        let mut inner = hasher.clone();
        let thread = thread::Builder::new().spawn(move || {
            for piece in waiting {
                inner.update(&piece);
            }
            inner
        });
        match thread {
            Ok(thread) => Self::Thread { pieces, thread },
            Err(_) => Self::Here(hasher),
        }
    }

    /// Waits for everything to be hashed.
    fn ended(self) -> Sha256 {
        match self {
            Self::Here(hasher) => hasher,
            Self::Thread { pieces, thread } => {
                drop(pieces);
                match thread.join() {
                    Ok(hasher) => hasher,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        }
    }
}

impl Seen {
    /// SHA-256 and number of the bytes.
    pub fn finish(&self) -> (Digest, u64) {
        let state = &mut *self.0.borrow_mut();
        let hasher = std::mem::take(&mut state.hasher).ended();
        state.hasher = Hasher::Here(hasher.clone());
        (Digest::from_sha256(hasher.finalize().into()), state.bytes)
    }

    /// Notes more bytes: how many there are by now.
    pub fn add(&self, more: &[u8]) -> u64 {
        let state = &mut *self.0.borrow_mut();
        if state.bytes > HASHED_HERE && matches!(state.hasher, Hasher::Here(_)) {
            state.hasher = std::mem::take(&mut state.hasher).apart();
        }
        state.hasher.update(more);
        state.bytes += more.len() as u64;
        state.bytes
    }

    fn bytes(&self) -> u64 {
        self.0.borrow().bytes
    }
}

/// Notes down what passes.
struct Hashing<R> {
    reader: R,
    seen: Seen,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.seen.add(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// Ends with an error where more comes than may.
struct Bounded<R> {
    reader: R,
    seen: Seen,
    unpacked: u64,
    limit: u64,
    ratio_from: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.unpacked += count as u64;
        let limit = self.limit;
        let ratio = self.unpacked / self.seen.bytes().max(1);
        if self.unpacked > limit {
            return Err(io::Error::other(format!(
                "unpacks to more than {limit} bytes"
            )));
        }
        if self.unpacked > self.ratio_from && ratio > MAXIMUM_RATIO {
            return Err(io::Error::other(format!(
                "unpacks to more than {MAXIMUM_RATIO} times its size"
            )));
        }
        Ok(count)
    }
}

/// The unpacked bytes of a file, and what is seen of it on the way.
///
/// # Errors
/// Where there is no memory for a decoder.
pub fn unpacked(
    reader: impl Read + 'static,
    packing: Packing,
) -> io::Result<(Box<dyn Read>, Seen)> {
    bounded(reader, packing, MAXIMUM_UNPACKED_BYTES, RATIO_COUNTS_FROM)
}

fn bounded(
    reader: impl Read + 'static,
    packing: Packing,
    limit: u64,
    ratio_from: u64,
) -> io::Result<(Box<dyn Read>, Seen)> {
    let seen = Seen::default();
    let hashing = BufReader::with_capacity(
        1 << 18,
        Hashing {
            reader,
            seen: seen.clone(),
        },
    );
    let reader: Box<dyn Read> = match packing {
        // Of a file that is not packed every byte lies on the volume already.
        Packing::Plain => return Ok((Box::new(hashing), seen)),
        Packing::Gzip => Box::new(MultiGzDecoder::new(hashing)),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(hashing)?),
    };
    let bounded = Bounded {
        reader,
        seen: seen.clone(),
        unpacked: 0,
        limit,
        ratio_from,
    };
    Ok((Box::new(bounded), seen))
}

/// SHA-256 and number of the bytes of a file.
///
/// # Errors
/// Those of the volume.
pub fn hash(reader: impl Read) -> io::Result<(Digest, u64)> {
    let seen = Seen::default();
    let mut hashing = BufReader::with_capacity(
        1 << 18,
        Hashing {
            reader,
            seen: seen.clone(),
        },
    );
    io::copy(&mut hashing, &mut io::sink())?;
    Ok(seen.finish())
}

/// Whether an error is the volume's, for which another attempt may be worth it; others say that the
/// bytes are wrong.
pub fn is_of_volume(error: &io::Error) -> bool {
    error.raw_os_error().is_some()
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write as _};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 3).unwrap()
    }

    fn read(packed: Vec<u8>, limit: u64, ratio_from: u64) -> io::Result<Vec<u8>> {
        let digest = Digest::of(&packed);
        let (packing, length) = (Packing::of(&packed), packed.len() as u64);
        let (mut reader, seen) = bounded(Cursor::new(packed), packing, limit, ratio_from)?;
        let mut all = Vec::new();
        reader.read_to_end(&mut all)?;
        assert_eq!(seen.finish(), (digest, length));
        Ok(all)
    }

    #[test]
    fn packed_bytes_come_out_and_are_hashed_as_they_lie_there() {
        let text = b"some text, and more of it".repeat(100);
        let two = [gzip(&text[..700]), gzip(&text[700..])].concat();
        let frames = [zstd(&text[..700]), zstd(&text[700..])].concat();
        for packed in [text.clone(), gzip(&text), two, zstd(&text), frames] {
            assert_eq!(read(packed, 1 << 20, 1 << 20).unwrap(), text);
        }
    }

    #[test]
    fn long_files_are_hashed_in_a_thread_to_the_last_byte() {
        let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        for length in [1 << 20, (1 << 20) + 1, bytes.len()] {
            let seen = Seen::default();
            for piece in bytes[..length].chunks(100_000) {
                seen.add(piece);
            }
            let expected = (Digest::of(&bytes[..length]), length as u64);
            assert_eq!(seen.finish(), expected);
            assert_eq!(seen.finish(), expected, "asked again");
            let more = seen.add(b"more");
            assert_eq!(more, length as u64 + 4);
            let whole = [&bytes[..length], b"more"].concat();
            assert_eq!(seen.finish().0, Digest::of(&whole));
        }
        assert_eq!(hash(bytes.as_slice()).unwrap().0, Digest::of(&bytes));
    }

    #[test]
    fn bombs_end_early_with_their_limit() {
        let zeros = vec![b'0'; 1 << 20];
        for packed in [gzip(&zeros), zstd(&zeros)] {
            let error = read(packed.clone(), 1000, 1 << 30).unwrap_err();
            assert_eq!(error.to_string(), "unpacks to more than 1000 bytes");
            let error = read(packed, 1 << 30, 1 << 10).unwrap_err();
            assert_eq!(error.to_string(), "unpacks to more than 400 times its size");
            assert!(!is_of_volume(&error));
        }
    }

    #[test]
    fn cut_and_damaged_files_are_errors_of_the_bytes() {
        let text = b"some text, and more of it".repeat(100);
        for packed in [gzip(&text), zstd(&text)] {
            let cut = packed[..packed.len() / 2].to_vec();
            let mut damaged = packed.clone();
            let middle = damaged.len() / 2;
            damaged[middle] ^= 0xff;
            for bytes in [cut, damaged] {
                match read(bytes, 1 << 20, 1 << 20) {
                    Err(error) => assert!(!is_of_volume(&error), "{error}"),
                    // A frame without a checksum can't tell.
                    Ok(all) => assert_ne!(all, text),
                }
            }
        }
    }
}
