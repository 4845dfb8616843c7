//! Lines of a source, one at a time and of bounded size.

use std::io::{self, BufRead};

/// The longest line that is read, in bytes (4 MiB), without its end.
pub const MAXIMUM_LINE_BYTES: usize = 4 << 20;

/// One line of a source.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Its bytes without `\n` or `\r\n`.
    Whole(&'a [u8]),
    /// More than [`MAXIMUM_LINE_BYTES`]; its bytes are not kept.
    TooLong,
}

/// Splits a source into lines.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// Lines of `reader`.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: Vec::new(),
            number: 0,
        }
    }

    /// The next line with its number, from 1; `None` at the end.
    pub fn next_line(&mut self) -> io::Result<Option<(u64, Line<'_>)>> {
        self.buffer.clear();
        let mut length = 0_usize;
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                if length == 0 {
                    return Ok(None);
                }
                break;
            }
            let newline = memchr::memchr(b'\n', chunk);
            let taken = chunk.split_at(newline.map_or(chunk.len(), |at| at + 1)).0;
            length += taken.len();
            // Two bytes above the limit hold the line's end; more is never needed.
            let room = (MAXIMUM_LINE_BYTES + 2).saturating_sub(self.buffer.len());
            let kept = taken.get(..room).unwrap_or(taken);
            self.buffer.extend_from_slice(kept);
            let taken = taken.len();
            self.reader.consume(taken);
            if newline.is_some() {
                break;
            }
        }
        self.number += 1;
        let line = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let too_long = line.len() > MAXIMUM_LINE_BYTES || length > self.buffer.len();
        // Some editors begin a UTF-8 file with a byte order mark.
        let line = match line.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) if self.number == 1 => rest,
            _ => line,
        };
        let line = if too_long {
            Line::TooLong
        } else {
            Line::Whole(line)
        };
        Ok(Some((self.number, line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<(u64, Option<Vec<u8>>)> {
        // A small buffer, so that lines span pieces.
        let mut lines = Lines::new(io::BufReader::with_capacity(7, bytes));
        let mut all = Vec::new();
        while let Some((number, line)) = lines.next_line().unwrap() {
            let line = match line {
                Line::Whole(bytes) => Some(bytes.to_vec()),
                Line::TooLong => None,
            };
            all.push((number, line));
        }
        all
    }

    #[test]
    fn ends_of_lines_and_a_byte_order_mark_are_taken_off() {
        let some = |number, text: &str| (number, Some(text.as_bytes().to_vec()));
        assert_eq!(
            lines(b"\xef\xbb\xbfone\r\n\ntwo and more\nlast"),
            [
                some(1, "one"),
                some(2, ""),
                some(3, "two and more"),
                some(4, "last")
            ]
        );
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"\n"), [some(1, "")]);
    }

    #[test]
    fn a_line_above_the_limit_is_skipped_and_the_next_one_is_read() {
        let mut bytes = vec![b'x'; MAXIMUM_LINE_BYTES];
        bytes.extend(b"\r\n");
        bytes.extend(vec![b'x'; MAXIMUM_LINE_BYTES + 1]);
        bytes.extend(b"\n");
        bytes.extend(vec![b'x'; 3 * MAXIMUM_LINE_BYTES]);
        bytes.extend(b"\nend");
        let lines = lines(&bytes);
        assert_eq!(lines[0].1.as_ref().map(Vec::len), Some(MAXIMUM_LINE_BYTES));
        assert_eq!((&lines[1].1, &lines[2].1), (&None, &None));
        assert_eq!(lines[3], (4, Some(b"end".to_vec())));
    }

    #[test]
    fn a_line_of_a_gibibyte_is_passed_over_without_being_held() {
        use std::io::Read as _;
        let line = io::repeat(b'x').take(1 << 30);
        let mut lines = Lines::new(io::BufReader::with_capacity(
            1 << 18,
            line.chain(&b"\nend"[..]),
        ));
        assert_eq!(lines.next_line().unwrap(), Some((1, Line::TooLong)));
        let held = lines.buffer.capacity();
        assert!(held <= 4 * MAXIMUM_LINE_BYTES, "{held} bytes");
        assert_eq!(lines.next_line().unwrap(), Some((2, Line::Whole(b"end"))));
    }
}
