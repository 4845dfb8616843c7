//! One file of a source: JSONL, CSV with a header, or Parquet; plain or packed. Its content says which.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek as _, Write as _};

use graftwork_artifacts::content::{HEAD_BYTES, foreign};
use graftwork_contract::Digest;
use graftwork_contract::dataset::{RejectedRow, Source};

use crate::csv::{Header, Next};
use crate::dealing::Dealing;
use crate::failure::Failure;
use crate::files::{SourceFile, open};
use crate::lines::{Line, Lines, MAXIMUM_LINE_BYTES};
use crate::parquet_rows::ParquetRows;
use crate::pins::masked;
use crate::query::Record;
use crate::remote::Found;
use crate::row;
use crate::spill::Scratch;
use crate::streams::{MAXIMUM_UNPACKED_BYTES, Packing, Seen, hash, is_of_volume, unpacked};

/// What a Parquet file begins with.
const PARQUET: &[u8] = b"PAR1";
/// What is read.
const KINDS: &str = "sources are JSONL, CSV or Parquet, plain, .gz or .zst";

/// A record as a reader comes by it.
#[derive(Debug)]
pub enum Raw<'a> {
    /// A line of JSON that nobody has looked into yet.
    Line(&'a [u8]),
    /// An object, or the rule that it breaks.
    Record(Record),
}

impl Raw<'_> {
    /// The object, or the rule that it breaks.
    ///
    /// # Errors
    /// The broken rule, in words and without data.
    pub fn record(self) -> Record {
        match self {
            Self::Line(line) => row::object(line),
            Self::Record(record) => record,
        }
    }
}

/// What takes the records of a source, one after the other.
pub trait Take {
    /// The columns that are looked at, as the source names them; none: all of them.
    fn columns(&self) -> Option<Vec<&str>>;

    /// Which files and rows are taken: others are another part's.
    fn dealing(&mut self) -> &mut Dealing;

    /// Hears of all columns of a file that lists them before its rows, also of those that nobody looks at.
    fn hear_of(&mut self, _columns: Vec<String>) {}

    /// Takes a record, or the rule that it breaks and where.
    ///
    /// # Errors
    /// Those of the scratch volume. A bad row is no error.
    fn take(&mut self, raw: Raw<'_>, at: &dyn Fn(String) -> RejectedRow) -> Result<(), Failure>;
}

/// A file of a source, as messages name it.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    source: &'a Source,
    uri: &'a str,
    /// Its path, where a pattern found it.
    name: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn of_file(source: &'a Source, file: &'a SourceFile) -> Self {
        Self {
            source,
            uri: &file.uri,
            name: file.name.as_deref(),
        }
    }

    fn row(&self, line: u64, rule: String) -> RejectedRow {
        RejectedRow {
            source: self.source.name.clone(),
            file: self.name.map(str::to_owned),
            line,
            rule,
        }
    }

    /// A file whose bytes are wrong, after so many lines.
    fn bad(&self, line: u64, problem: &str) -> Failure {
        let (source, uri) = (&self.source.name, self.uri);
        let after = if line == 0 {
            String::new()
        } else {
            format!(" after line {line}")
        };
        Failure::bad_data(format!(
            "source {source}: spec.sources[{source}].uri: {uri}{after} {problem}"
        ))
    }

    /// An error of the volume, of the network, or of the bytes.
    fn failed(&self, line: u64, error: &io::Error) -> Failure {
        let (source, uri) = (&self.source.name, self.uri);
        // What the network could not bring says itself why.
        let known = error.get_ref().and_then(|it| it.downcast_ref::<Failure>());
        if let Some(failure) = known {
            failure.clone()
        } else if is_of_volume(error) {
            Failure::unavailable(format!(
                "source {source}: spec.sources[{source}].uri: {uri} can't be read: {error}"
            ))
        } else {
            self.bad(line, &format!("is damaged or too large: {error}"))
        }
    }
}

/// Reads a file to its end: SHA-256 and number of its bytes as they lie on the volume.
///
/// # Errors
/// A volume that does not answer, or bytes that are nothing of what is read. Bad rows are no error.
pub fn read(
    source: &Source,
    file: &SourceFile,
    take: &mut dyn Take,
) -> Result<(Digest, u64), Failure> {
    let place = Place::of_file(source, file);
    let bytes = |line| move |error: io::Error| place.failed(line, &error);
    let mut opened = open(source, file)?;
    let mut head = Vec::new();
    (&mut opened)
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .and_then(|_| opened.rewind())
        .map_err(bytes(0))?;
    if head.starts_with(PARQUET) {
        let again = opened.try_clone().map_err(bytes(0))?;
        read_parquet(place, again, take)?;
        opened.rewind().map_err(bytes(0))?;
        return hash(opened).map_err(bytes(0));
    }
    read_text(place, opened, &head, take)
}

/// Reads what comes from the network, as [`read`] reads a file. Parquet, which begins at its end, is laid on
/// the scratch volume first; the rest is not.
///
/// # Errors
/// A server that goes away, a full scratch volume, or bytes that are nothing of what is read. Bad rows are no
/// error.
pub fn read_stream(
    (source, found): (&Source, &Found),
    mut stream: impl Read + 'static,
    scratch: &Scratch,
    take: &mut dyn Take,
) -> Result<(Digest, u64), Failure> {
    let place = Place {
        source,
        uri: &found.uri,
        name: found.name.as_deref(),
    };
    let mut head = Vec::new();
    (&mut stream)
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(|error| place.failed(0, &error))?;
    let whole = Cursor::new(head.clone()).chain(stream);
    if head.starts_with(PARQUET) {
        let (file, seen) = laid_down(place, whole, scratch)?;
        read_parquet(place, file, take)?;
        return Ok(seen.finish());
    }
    read_text(place, whole, &head, take)
}

/// A stream as a file of the scratch volume.
fn laid_down(
    place: Place<'_>,
    mut stream: impl Read,
    scratch: &Scratch,
) -> Result<(File, Seen), Failure> {
    let mut file = scratch.file()?;
    let seen = Seen::default();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(place.failed(0, &error)),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        if seen.add(bytes) > MAXIMUM_UNPACKED_BYTES {
            let problem = format!("is Parquet of more than {MAXIMUM_UNPACKED_BYTES} bytes");
            return Err(place.bad(0, &problem));
        }
        file.write_all(bytes)
            .map_err(|error| scratch.failed(&error))?;
    }
    file.rewind().map_err(|error| scratch.failed(&error))?;
    Ok((file, seen))
}

/// Reads JSONL or CSV, plain or packed, that begins with `head`.
fn read_text(
    place: Place<'_>,
    stream: impl Read + 'static,
    head: &[u8],
    take: &mut dyn Take,
) -> Result<(Digest, u64), Failure> {
    let bytes = |line| move |error: io::Error| place.failed(line, &error);
    let packing = Packing::of(head);
    if let Some(kind) = foreign(head).filter(|_| packing == Packing::Plain) {
        return Err(place.bad(0, &format!("is {kind}; {KINDS}")));
    }
    let (mut reader, seen) = unpacked(stream, packing).map_err(bytes(0))?;
    let mut begin = Vec::new();
    if packing != Packing::Plain {
        (&mut reader)
            .take(HEAD_BYTES as u64)
            .read_to_end(&mut begin)
            .map_err(bytes(0))?;
        let inner = foreign(&begin).or_else(|| begin.starts_with(PARQUET).then_some("Parquet"));
        if let Some(kind) = inner {
            return Err(place.bad(0, &format!("holds, packed, {kind}; {KINDS}")));
        }
    }
    let text = if packing == Packing::Plain {
        head
    } else {
        &begin
    };
    if let Some(at) = text.iter().position(|byte| *byte == 0) {
        let problem = format!("is no text in UTF-8 (byte {} is 0); {KINDS}", at + 1);
        return Err(place.bad(0, &problem));
    }
    let reader = Cursor::new(begin).chain(reader);
    let mut lines = Lines::new(BufReader::with_capacity(1 << 18, reader));
    let Some((number, first)) = first_line(&mut lines).map_err(bytes(0))? else {
        return Ok(seen.finish());
    };
    let first = match first {
        Some(first) => first,
        None => {
            let rule = format!("is longer than {MAXIMUM_LINE_BYTES} bytes");
            hand_over(place, number, take, Raw::Record(Err(rule)))?;
            Vec::new()
        }
    };
    let header = match take.columns() {
        None => Header::guess(&first),
        Some(wanted) => {
            let header = Header::read(&first, &wanted);
            if header.is_none()
                && let Some((name, wanted)) = Header::alike(&first, &wanted)
            {
                let problem = format!(
                    "begins with a CSV header that has {name:?} where {wanted:?} is read: call it so there, or name it as \
                     it is in spec.sources[{}].columns",
                    place.source.name
                );
                return Err(place.bad(0, &problem));
            }
            header
        }
    };
    match header {
        Some(header) => read_csv(place, &header, &mut lines, take)?,
        None => {
            if is_array_over_lines(&first) {
                let problem = format!(
                    "is one JSON array: write each of its objects in a line of its own, without commas between them; {KINDS}"
                );
                return Err(place.bad(0, &problem));
            }
            if !first.is_empty() {
                hand_over(place, number, take, Raw::Line(&first))?;
            }
            read_jsonl(place, &mut lines, take)?;
        }
    }
    Ok(seen.finish())
}

/// Whether a first line only begins an array.
fn is_array_over_lines(first: &[u8]) -> bool {
    first.trim_ascii_start().starts_with(b"[")
        && serde_json::from_slice::<serde::de::IgnoredAny>(first).is_err()
}

/// A line's number with its bytes; none where it is longer than the limit.
type FirstLine = (u64, Option<Vec<u8>>);

/// The first line that is not blank.
fn first_line(lines: &mut Lines<impl BufRead>) -> io::Result<Option<FirstLine>> {
    while let Some((number, line)) = lines.next_line()? {
        match line {
            Line::Whole(line) if line.trim_ascii().is_empty() => {}
            Line::Whole(line) => return Ok(Some((number, Some(line.to_vec())))),
            Line::TooLong => return Ok(Some((number, None))),
        }
    }
    Ok(None)
}

/// Has the next record taken, unless it is another part's.
fn hand_over(
    place: Place<'_>,
    number: u64,
    take: &mut dyn Take,
    raw: Raw<'_>,
) -> Result<(), Failure> {
    if !take.dealing().takes_row() {
        return Ok(());
    }
    take.take(raw, &|rule| place.row(number, rule))
}

fn read_jsonl(
    place: Place<'_>,
    lines: &mut Lines<impl BufRead>,
    take: &mut dyn Take,
) -> Result<(), Failure> {
    let mut last = 0;
    while let Some((number, line)) = lines
        .next_line()
        .map_err(|error| place.failed(last, &error))?
    {
        last = number;
        match line {
            Line::Whole(line) if line.trim_ascii().is_empty() => {}
            Line::Whole(line) => hand_over(place, number, take, Raw::Line(line))?,
            Line::TooLong => {
                let rule = format!("is longer than {MAXIMUM_LINE_BYTES} bytes");
                hand_over(place, number, take, Raw::Record(Err(rule)))?;
            }
        }
    }
    Ok(())
}

fn read_csv(
    place: Place<'_>,
    header: &Header,
    lines: &mut Lines<impl BufRead>,
    take: &mut dyn Take,
) -> Result<(), Failure> {
    if let Some(name) = header.repeated() {
        let name = masked(name);
        return Err(place.bad(0, &format!("has two columns named {name:?}")));
    }
    let mut last = 0;
    while let Some((number, next)) = header
        .next(lines)
        .map_err(|error| place.failed(last, &error))?
    {
        last = number;
        let Next::Record(record) = next else {
            let problem = "has a quote in its next record that is not closed where its field ends: from there on no \
                           record can be told from the next";
            return Err(place.bad(number.saturating_sub(1), problem));
        };
        hand_over(place, number, take, Raw::Record(record))?;
    }
    Ok(())
}

fn read_parquet(place: Place<'_>, file: File, take: &mut dyn Take) -> Result<(), Failure> {
    let mut number = 0;
    let mut rows = ParquetRows::open(file, take.columns().as_deref())
        .map_err(|problem| place.bad(number, &problem))?;
    take.hear_of(rows.take_names());
    while let Some(batch) = rows
        .next_rows()
        .map_err(|problem| place.bad(number, &problem))?
    {
        for record in batch {
            number += 1;
            hand_over(place, number, take, Raw::Record(Ok(record)))?;
        }
    }
    Ok(())
}
