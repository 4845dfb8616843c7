//! What a file is, by its content and not by its name. Pickled Python, archives and programs are
//! code that runs when it is opened: the store never takes them.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::{Error, Result};

/// A kind of content that the store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A header of JSON and raw numbers.
    Safetensors,
    /// One JSON value.
    Json,
    /// One JSON value in each line.
    JsonLines,
    /// Columns.
    Parquet,
    /// UTF-8 text, for example Markdown.
    Text,
}

/// Longest text, which is read to its end: far above any tokenizer, far below what keeps a reader busy.
const MAXIMUM_TEXT_BYTES: u64 = 64 << 20;

/// Bytes from which all that is refused can be told.
pub const HEAD_BYTES: usize = 512;

/// Beginnings of what is refused, with the words for it. Those that are words too are longer than a word.
const FOREIGN: [(&[u8], &str); 27] = [
    (b"\x80\x02", "pickled Python"),
    (b"\x80\x03", "pickled Python"),
    (b"\x80\x04", "pickled Python"),
    (b"\x80\x05", "pickled Python"),
    (b"PK\x03\x04", "a zip archive (PyTorch files are)"),
    (b"PK\x05\x06", "a zip archive (PyTorch files are)"),
    (b"\x7fELF", "an ELF program"),
    (b"MZ", "a Windows program"),
    (b"\xcf\xfa\xed\xfe", "a Mach-O program"),
    (b"\xce\xfa\xed\xfe", "a Mach-O program"),
    (b"\xca\xfe\xba\xbe", "a Java class or a Mach-O program"),
    (b"#!", "a script"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x04\x22\x4d\x18", "an lz4 archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"MSCF\0\0\0\0", "a cabinet archive"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"%PDF-", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"Obj\x01", "an Avro file"),
    (b"ARROW1\0", "an Arrow file"),
];
/// What is told by bytes further on: where they are, and the words for it.
const FOREIGN_INSIDE: [(usize, &[u8], &str); 2] = [
    (257, b"ustar", "a tar archive"),
    (4, b"1AY&SY", "a bzip2 archive"),
];

/// What a file with this beginning is, where the store never takes such. A tar archive is told by the first
/// [`HEAD_BYTES`], the rest by 16.
pub fn foreign(head: &[u8]) -> Option<&'static str> {
    let first = FOREIGN
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map(|(_, kind)| *kind);
    let inside = || {
        let is_there = |(at, magic, _): &&(usize, &[u8], &str)| {
            head.get(*at..).is_some_and(|rest| rest.starts_with(magic))
        };
        let found = FOREIGN_INSIDE.iter().find(is_there);
        found.map(|(_, _, kind)| *kind)
    };
    first.or_else(inside)
}

/// The kind of the file at `path`. Of large files only head and tail are read.
///
/// # Errors
/// [`Error::FileType`] for everything that is not one of [`Kind`]; [`Error::TooLarge`] where telling
/// takes reading more than 64 MiB.
pub fn kind_of(path: &Path) -> Result<Kind> {
    let refuse = |kind| Error::FileType {
        path: path.display().to_string(),
        kind,
    };
    let io = |error| Error::io("read", path)(error);
    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let mut head = Vec::new();
    (&mut file)
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(io)?;
    if is_safetensors(&head, length) {
        return Ok(Kind::Safetensors);
    }
    if head.starts_with(b"PAR1") && length >= 12 {
        let mut tail = [0; 4];
        file.seek(SeekFrom::End(-4)).map_err(io)?;
        file.read_exact(&mut tail).map_err(io)?;
        return if &tail == b"PAR1" {
            Ok(Kind::Parquet)
        } else {
            Err(refuse("a cut Parquet file"))
        };
    }
    if let Some(kind) = foreign(&head) {
        return Err(refuse(kind));
    }
    if length > MAXIMUM_TEXT_BYTES {
        return Err(Error::TooLarge {
            path: path.display().to_string(),
            limit: MAXIMUM_TEXT_BYTES,
        });
    }
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    if !is_text(&mut file).map_err(io)? {
        return Err(refuse("of an unknown binary kind"));
    }
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut values = serde_json::Deserializer::from_reader(BufReader::new(file))
        .into_iter::<serde::de::IgnoredAny>();
    Ok(match (values.next(), values.next()) {
        (Some(Ok(_)), None) => Kind::Json,
        (Some(Ok(_)), Some(Ok(_))) => Kind::JsonLines,
        _ => Kind::Text,
    })
}

/// Eight little-endian bytes of a header length that fits the file, then a JSON object.
fn is_safetensors(head: &[u8], length: u64) -> bool {
    let (Some(prefix), Some(b'{')) = (head.first_chunk::<8>(), head.get(8)) else {
        return false;
    };
    u64::from_le_bytes(*prefix)
        .checked_add(8)
        .is_some_and(|end| end <= length)
}

/// Whether the file is UTF-8 without NUL, read in pieces.
fn is_text(file: &mut File) -> std::io::Result<bool> {
    let mut buffer = Vec::new();
    loop {
        let kept = buffer.len();
        file.take((1 << 18) - kept as u64)
            .read_to_end(&mut buffer)?;
        let at_end = buffer.len() == kept;
        if buffer.contains(&0) {
            return Ok(false);
        }
        match std::str::from_utf8(&buffer) {
            Ok(_) => buffer.clear(),
            // A character may be cut by the end of a piece.
            Err(error) if error.error_len().is_none() && !at_end => {
                buffer.drain(..error.valid_up_to());
            }
            Err(_) => return Ok(false),
        }
        if at_end {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(bytes: &[u8]) -> Result<Kind> {
        let dir = tempfile::tempdir().unwrap();
        // The name lies on purpose.
        let path = dir.path().join("adapter_model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        kind_of(&path)
    }

    #[test]
    fn what_is_taken_is_known_by_content() {
        let mut tensors = 2_u64.to_le_bytes().to_vec();
        tensors.extend(b"{}");
        let long = "é".repeat(1 << 18);
        for (bytes, expected) in [
            (tensors.as_slice(), Kind::Safetensors),
            (br#"{"r": 8}"#, Kind::Json),
            (b"{\"text\":\"a\"}\n{\"text\":\"b\"}\n", Kind::JsonLines),
            (b"PAR1........PAR1", Kind::Parquet),
            (b"# A card\n", Kind::Text),
            (long.as_bytes(), Kind::Text),
        ] {
            assert_eq!(kind(bytes).unwrap(), expected);
        }
    }

    #[test]
    fn archives_and_databases_are_named_by_what_they_begin_with() {
        let mut tar = vec![0; HEAD_BYTES];
        tar[..10].copy_from_slice(b"rows.jsonl");
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, word) in [
            (tar.as_slice(), "tar"),
            (b"BZh91AY&SY\x12\x34", "bzip2"),
            (b"\xfd7zXZ\0\0\x04", "xz"),
            (b"7z\xbc\xaf\x27\x1c\0\x04", "7z"),
            (b"Rar!\x1a\x07\x01\0", "RAR"),
            (b"SQLite format 3\0\x10\0", "SQLite"),
            (b"%PDF-1.7\n", "PDF"),
            (b"Obj\x01\x04\x14avro.codec", "Avro"),
            (b"\x04\x22\x4d\x18\x64\x40", "lz4"),
        ] {
            let kind = foreign(bytes).unwrap_or_default();
            assert!(kind.contains(word), "{word}: {kind}");
        }
        // Words, and rows that speak of them, are texts.
        for text in ["Rar!", "BZh", "PDF,n\n", "Obj,n\n", "ustar", "1AY&SY"] {
            assert_eq!(foreign(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_text_without_end_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("README.md");
        // A hole: reading it would take minutes and say that it is binary.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let error = kind_of(&path).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains("README.md"), "{error}");
    }

    #[test]
    fn code_and_archives_are_refused_whatever_their_name() {
        for (bytes, word) in [
            (&b"\x80\x04\x95\x00\x00"[..], "pickled Python"),
            (b"PK\x03\x04rest", "zip"),
            (b"\x7fELF\x02\x01\x01\x00", "ELF"),
            (b"#!/bin/sh\n", "script"),
            (b"\xff\xfe\x00rest", "unknown binary"),
            (b"text with a \0", "unknown binary"),
            (b"cut \xc3", "unknown binary"),
        ] {
            let error = kind(bytes).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
