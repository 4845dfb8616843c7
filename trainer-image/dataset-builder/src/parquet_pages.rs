//! What the pages of a Parquet file unpack to, by their own headers. A footer may say anything of its file, and
//! a decoder sets aside what a page's header asks for: both are held to limits before anything is unpacked.
//! Headers are Thrift's compact protocol, of which only numbers are read (parquet-format, `parquet.thrift`).

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use parquet::basic::{Compression, Type};
use parquet::column::page::{Page, PageReader as _};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;

/// Most bytes that a page may unpack to (128 MiB).
pub const MAXIMUM_PAGE_BYTES: u64 = 128 << 20;
/// Longest header of a page; statistics of long values stand in it.
const MAXIMUM_HEADER_BYTES: u64 = 16 << 20;
/// How much is read for a header at first.
const HEADER_BYTES: u64 = 512;
/// How deeply what is skipped may be nested.
const MAXIMUM_DEPTH: u8 = 8;
/// The kind of a page that is a dictionary, and of one that is an index.
const DICTIONARY: i64 = 2;
const INDEX: i64 = 1;

/// The pages of one column of a row group.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// Values and nulls of all pages.
    pub values: u64,
    /// Bytes that they unpack to, without the dictionary.
    pub bytes: u64,
    /// Bytes of a value, on average of the page where that is most.
    pub densest: u64,
}

/// Goes through the headers of a column's pages.
///
/// # Errors
/// A page that is too large, lies outside of the file, or is none: in words and without data.
pub fn walk(file: &File, column: &ColumnChunkMetaData) -> Result<Pages, String> {
    let name = column.column_path().string();
    let outside = || format!("has a footer by which column {name} lies outside of the file");
    let no_page = || format!("has no page of column {name} where its footer says");
    let unread = |error: io::Error| format!("can't be read: {error}");
    let length = file.metadata().map_err(unread)?.len();
    let start = column.dictionary_page_offset();
    let start = start.unwrap_or_else(|| column.data_page_offset());
    let mut at = u64::try_from(start).map_err(|_| outside())?;
    let size = u64::try_from(column.compressed_size()).map_err(|_| outside())?;
    let end = at.checked_add(size).filter(|end| *end <= length);
    let end = end.ok_or_else(outside)?;
    let mut pages = Pages::default();
    while at < end {
        let header = header(file, at, end).map_err(unread)?.ok_or_else(no_page)?;
        at += header.length;
        if header.packed > end.saturating_sub(at) {
            return Err(no_page());
        }
        let mut unpacked = header.unpacked;
        if matches!(column.compression(), Compression::GZIP(_)) && header.is_packed {
            // Its decoder unpacks to the end, whatever the header says.
            unpacked = unpacked.max(gunzipped(file, at, &header).map_err(unread)?);
        }
        if unpacked > MAXIMUM_PAGE_BYTES {
            return Err(format!(
                "has a page of column {name} that unpacks to {unpacked} bytes or more; a page has at most {MAXIMUM_PAGE_BYTES}"
            ));
        }
        at += header.packed;
        if header.kind != DICTIONARY && header.kind != INDEX {
            pages.values = pages.values.saturating_add(header.values);
            pages.bytes = pages.bytes.saturating_add(header.unpacked);
            pages.densest = pages.densest.max(header.unpacked / header.values.max(1));
        }
    }
    Ok(pages)
}

/// Bytes of the longest text of a column's dictionary: pages name it by its number, as often as they like. Only
/// for columns that [`walk`] has gone through.
///
/// # Errors
/// A dictionary that can't be unpacked.
pub fn longest_word(file: &Arc<File>, column: &ColumnChunkMetaData) -> Result<u64, String> {
    if column.dictionary_page_offset().is_none() || column.column_type() != Type::BYTE_ARRAY {
        return Ok(0);
    }
    let first = SerializedPageReader::new(Arc::clone(file), column, 0, None)
        .and_then(|mut pages| pages.get_next_page());
    let first = first.map_err(|error| format!("has a dictionary that can't be read: {error}"))?;
    let Some(Page::DictionaryPage { buf, .. }) = first else {
        return Ok(0);
    };
    // Each text with its length before it.
    let mut left: &[u8] = &buf;
    let mut longest = 0;
    while let Some((length, rest)) = left.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length);
        longest = longest.max(u64::from(length));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        left = rest.get(length..).unwrap_or_default();
    }
    Ok(longest)
}

/// Bytes that a gzipped page unpacks to, as far as they matter.
fn gunzipped(file: &File, at: u64, header: &Header) -> io::Result<u64> {
    let levels = header.levels.min(header.packed);
    let packed = Piece {
        file,
        at: at + levels,
        left: header.packed - levels,
    };
    let decoder = MultiGzDecoder::new(BufReader::with_capacity(1 << 16, packed));
    let unpacked = io::copy(&mut decoder.take(MAXIMUM_PAGE_BYTES + 1), &mut io::sink());
    match unpacked {
        Ok(bytes) => Ok(levels + bytes),
        // What is damaged is for the decoder to say.
        Err(error) if error.raw_os_error().is_none() => Ok(0),
        Err(error) => Err(error),
    }
}

/// Bytes of a file from a place on.
struct Piece<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Piece<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let room = room.min(buffer.len());
        let count = match buffer.get_mut(..room) {
            Some(buffer) => self.file.read_at(buffer, self.at)?,
            None => 0,
        };
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// What a page says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Header {
    kind: i64,
    unpacked: u64,
    packed: u64,
    values: u64,
    /// Bytes before what is packed.
    levels: u64,
    is_packed: bool,
    /// Its own bytes.
    length: u64,
}

/// The header at a place; none where there is something else.
fn header(file: &File, at: u64, end: u64) -> io::Result<Option<Header>> {
    let mut size = HEADER_BYTES;
    loop {
        let room = size.min(end.saturating_sub(at));
        let mut bytes = Vec::new();
        let mut piece = Piece {
            file,
            at,
            left: room,
        };
        piece.read_to_end(&mut bytes)?;
        match page_header(&bytes) {
            Ok(header) => return Ok(Some(header)),
            Err(Broken::Short) if room == size && size < MAXIMUM_HEADER_BYTES => size *= 16,
            Err(Broken::Short | Broken::Wrong) => return Ok(None),
        }
    }
}

/// Bytes that are no header.
#[derive(Debug)]
enum Broken {
    /// They end too early.
    Short,
    /// They are something else.
    Wrong,
}

fn page_header(bytes: &[u8]) -> Result<Header, Broken> {
    let mut compact = Compact { bytes, at: 0 };
    let mut header = Header {
        kind: -1,
        is_packed: true,
        ..Header::default()
    };
    let size = |number: i64| u64::try_from(number).map_err(|_| Broken::Wrong);
    let mut last = 0;
    while let Some((id, kind)) = compact.field(&mut last)? {
        match (id, kind) {
            (1, NUMBER) => header.kind = compact.number()?,
            (2, NUMBER) => header.unpacked = size(compact.number()?)?,
            (3, NUMBER) => header.packed = size(compact.number()?)?,
            // Of a data page, a dictionary, and a data page of version 2.
            (5 | 7 | 8, STRUCT) => {
                let mut last = 0;
                while let Some((inner, kind)) = compact.field(&mut last)? {
                    match (id, inner, kind) {
                        (_, 1, NUMBER) => header.values = size(compact.number()?)?,
                        (8, 5 | 6, NUMBER) => {
                            header.levels = header.levels.saturating_add(size(compact.number()?)?);
                        }
                        (8, 7, FALSE) => header.is_packed = false,
                        _ => compact.skip(kind, MAXIMUM_DEPTH)?,
                    }
                }
            }
            _ => compact.skip(kind, MAXIMUM_DEPTH)?,
        }
    }
    if header.kind < 0 {
        return Err(Broken::Wrong);
    }
    header.length = compact.at as u64;
    Ok(header)
}

/// Types of Thrift's compact protocol.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const SHORT_NUMBER: u8 = 4;
const NUMBER: u8 = 5;
const LONG_NUMBER: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// Bytes of Thrift's compact protocol.
struct Compact<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Compact<'_> {
    fn byte(&mut self) -> Result<u8, Broken> {
        let byte = self.bytes.get(self.at).copied().ok_or(Broken::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn pass(&mut self, count: u64) -> Result<(), Broken> {
        let count = usize::try_from(count).map_err(|_| Broken::Wrong)?;
        let at = self.at.checked_add(count).ok_or(Broken::Wrong)?;
        if at > self.bytes.len() {
            return Err(Broken::Short);
        }
        self.at = at;
        Ok(())
    }

    /// Seven bits a byte, the lowest first.
    fn varint(&mut self) -> Result<u64, Broken> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Broken::Wrong)
    }

    /// Zigzag: the sign stands in the lowest bit.
    fn number(&mut self) -> Result<i64, Broken> {
        let number = self.varint()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    /// Number and type of the next field of a struct; none at its end.
    fn field(&mut self, last: &mut i64) -> Result<Option<(i64, u8)>, Broken> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        *last = match byte >> 4 {
            0 => self.number()?,
            more => last.saturating_add(i64::from(more)),
        };
        Ok(Some((*last, byte & 0xf)))
    }

    fn skip(&mut self, kind: u8, depth: u8) -> Result<(), Broken> {
        let depth = depth.checked_sub(1).ok_or(Broken::Wrong)?;
        match kind {
            TRUE | FALSE => Ok(()),
            BYTE => self.pass(1),
            SHORT_NUMBER | NUMBER | LONG_NUMBER => self.varint().map(|_| ()),
            DOUBLE => self.pass(8),
            BINARY => {
                let length = self.varint()?;
                self.pass(length)
            }
            LIST | SET => {
                let byte = self.byte()?;
                let count = match byte >> 4 {
                    15 => self.varint()?,
                    count => u64::from(count),
                };
                for _ in 0..count {
                    self.skip_item(byte & 0xf, depth)?;
                }
                Ok(())
            }
            MAP => {
                let count = self.varint()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                for _ in 0..count {
                    self.skip_item(kinds >> 4, depth)?;
                    self.skip_item(kinds & 0xf, depth)?;
                }
                Ok(())
            }
            STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth)?;
                }
                Ok(())
            }
            _ => Err(Broken::Wrong),
        }
    }

    /// In lists, true and false are a byte each.
    fn skip_item(&mut self, kind: u8, depth: u8) -> Result<(), Broken> {
        match kind {
            TRUE | FALSE => self.pass(1),
            kind => self.skip(kind, depth),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_past_what_nobody_asks_for() {
        // type 0, 300 bytes, 200 packed; a data page of 7 values with a struct, a list of booleans and a text.
        let bytes = [
            0x15, 0x00, 0x15, 0xd8, 0x04, 0x15, 0x90, 0x03, 0x2c, 0x15, 0x0e, 0x4c, 0x18, 0x03,
            b'm', b'a', b'x', 0x19, 0x21, 0x01, 0x02, 0x00, 0x00, 0x00,
        ];
        let header = page_header(&bytes).unwrap();
        assert_eq!((header.kind, header.unpacked, header.packed), (0, 300, 200));
        assert_eq!((header.values, header.length), (7, bytes.len() as u64));
        for cut in 0..bytes.len() {
            let outcome = page_header(&bytes[..cut]);
            assert!(matches!(outcome, Err(Broken::Short)), "{cut}");
        }
    }

    #[test]
    fn what_is_no_header_ends_at_once() {
        let deep = [0x1c; 100];
        let endless = [0xff; 100];
        let negative = [0x15, 0x00, 0x15, 0x01, 0x00];
        let empty = [0x00];
        for bytes in [&deep[..], &endless[..], &negative[..], &empty[..]] {
            assert!(
                matches!(page_header(bytes), Err(Broken::Wrong)),
                "{bytes:?}"
            );
        }
        // A list of more booleans than there are bytes in the world.
        let many = [0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(matches!(page_header(&many), Err(Broken::Short)));
    }
}
