//! CSV (RFC 4180) with a header, of bounded size, over [`Lines`]: a field in quotes may go on in the next
//! line. Delimiters are the comma, the semicolon, the tab and the bar.

use std::io::{self, BufRead};

use serde_json::{Map, Value};

use crate::lines::{Line, Lines, MAXIMUM_LINE_BYTES};

/// Delimiters that are known.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// Letters of a column's name, where a header is guessed.
const MAXIMUM_NAME: usize = 63;

/// The columns of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    delimiter: u8,
    names: Vec<String>,
}

impl Header {
    /// Reads a file's first line as a header that names one of `wanted`; none where it is something
    /// else.
    pub fn read(line: &[u8], wanted: &[&str]) -> Option<Self> {
        DELIMITERS
            .iter()
            .filter_map(|delimiter| Self::split(line, *delimiter))
            .find(|header| {
                let mut names = header.names.iter();
                names.any(|name| wanted.contains(&name.as_str()))
            })
    }

    /// The first name of a line that is one of `wanted` but for its case, with that one.
    pub fn alike(line: &[u8], wanted: &[&str]) -> Option<(String, String)> {
        DELIMITERS
            .iter()
            .filter_map(|delimiter| Self::split(line, *delimiter))
            .flat_map(|header| header.names)
            .find_map(|name| {
                let alike = wanted.iter().find(|it| it.eq_ignore_ascii_case(&name))?;
                Some((name, (*alike).to_owned()))
            })
    }

    /// Reads a file's first line as a header where nobody says what its columns are called: names, as
    /// many as a delimiter gives; none where it is something else.
    pub fn guess(line: &[u8]) -> Option<Self> {
        DELIMITERS
            .iter()
            .rev()
            .filter_map(|delimiter| Self::split(line, *delimiter))
            .filter(|header| header.names.iter().all(|name| is_name(name)))
            .max_by_key(|header| header.names.len())
    }

    /// What stands between the delimiters of a line; none where it breaks a rule, or goes on in the next one.
    fn split(line: &[u8], delimiter: u8) -> Option<Self> {
        let mut record = Record::new(delimiter);
        if !record.add(line).ok()? {
            return None;
        }
        let names = record.take().into_iter();
        Some(Self {
            delimiter,
            names: names.map(|name| name.trim().to_owned()).collect(),
        })
    }

    /// A column that stands twice.
    pub fn repeated(&self) -> Option<&str> {
        let again = self
            .names
            .iter()
            .enumerate()
            .find(|(index, name)| self.names.iter().take(*index).any(|other| other == *name));
        again.map(|(_, name)| name.as_str())
    }

    /// The next record with the number of its first line; blank lines are skipped. A record of one line that
    /// breaks a rule comes as that rule.
    ///
    /// # Errors
    /// Those of the file.
    pub fn next<R: BufRead>(&self, lines: &mut Lines<R>) -> io::Result<Option<(u64, Next)>> {
        let mut record = Record::new(self.delimiter);
        let mut first = None;
        loop {
            let Some((number, line)) = lines.next_line()? else {
                return Ok(first.map(|first| (first, Next::Lost)));
            };
            let line = match line {
                Line::Whole(line) if first.is_none() && line.trim_ascii().is_empty() => continue,
                Line::Whole(line) => line,
                Line::TooLong => {
                    let rule = format!("is longer than {MAXIMUM_LINE_BYTES} bytes");
                    return Ok(Some(Next::broken(first, number, rule)));
                }
            };
            match record.add(line) {
                Ok(false) => first = first.or(Some(number)),
                Ok(true) => {
                    let record = self.object(record.take());
                    return Ok(Some((first.unwrap_or(number), Next::Record(record))));
                }
                Err(rule) => return Ok(Some(Next::broken(first, number, rule))),
            }
        }
    }

    fn object(&self, fields: Vec<String>) -> Parsed {
        if fields.len() != self.names.len() {
            return Err(format!(
                "has {} fields, the header has {}",
                fields.len(),
                self.names.len()
            ));
        }
        let values = fields.into_iter().map(Value::String);
        Ok(self.names.iter().cloned().zip(values).collect())
    }
}

/// Whether a text looks like a column's name, and not like JSON or prose.
fn is_name(text: &str) -> bool {
    let is_first = |letter: char| letter.is_alphabetic() || letter == '_';
    let is_next = |letter: char| letter.is_alphanumeric() || "_-. ".contains(letter);
    text.starts_with(is_first)
        && text.chars().all(is_next)
        && text.chars().count() <= MAXIMUM_NAME
        && !["true", "false", "null"].contains(&text)
}

/// A record, or the rule that it breaks.
pub type Parsed = Result<Map<String, Value>, String>;

/// What stands next in a file.
#[derive(Debug)]
pub enum Next {
    /// A record.
    Record(Parsed),
    /// A quote that is not closed, or not where it should be: from its line on nobody can tell a record from the next.
    Lost,
}

impl Next {
    /// A rule is broken in the line of this number, of a record that began in the line `first`, or in this one.
    fn broken(first: Option<u64>, number: u64, rule: String) -> (u64, Self) {
        match first {
            Some(first) => (first, Self::Lost),
            None => (number, Self::Record(Err(rule))),
        }
    }
}

/// A record on its way, line by line.
#[derive(Debug)]
struct Record {
    delimiter: u8,
    fields: Vec<String>,
    field: Vec<u8>,
    bytes: usize,
    quoted: bool,
}

impl Record {
    fn new(delimiter: u8) -> Self {
        Self {
            delimiter,
            fields: Vec::new(),
            field: Vec::new(),
            bytes: 0,
            quoted: false,
        }
    }

    /// Adds a line; whether the record is whole then.
    fn add(&mut self, line: &[u8]) -> Result<bool, String> {
        self.bytes += line.len() + 1;
        if self.bytes > MAXIMUM_LINE_BYTES {
            return Err(format!(
                "has a field in quotes that makes it longer than {MAXIMUM_LINE_BYTES} bytes"
            ));
        }
        if self.quoted {
            self.field.push(b'\n');
        }
        let mut bytes = line.iter().copied().peekable();
        let mut after_quote = false;
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' if self.quoted && bytes.peek() == Some(&b'"') => {
                    bytes.next();
                    self.field.push(b'"');
                }
                b'"' if self.quoted => {
                    self.quoted = false;
                    after_quote = true;
                }
                _ if self.quoted => self.field.push(byte),
                _ if byte == self.delimiter => {
                    self.end_field()?;
                    after_quote = false;
                }
                _ if after_quote => {
                    return Err("has text between a closing quote and the next field".to_owned());
                }
                b'"' if self.field.is_empty() => self.quoted = true,
                b'"' => return Err("has a quote within a field that has none".to_owned()),
                _ => self.field.push(byte),
            }
        }
        if self.quoted {
            return Ok(false);
        }
        self.end_field()?;
        Ok(true)
    }

    fn end_field(&mut self) -> Result<(), String> {
        let field = String::from_utf8(std::mem::take(&mut self.field)).map_err(|error| {
            let byte = error.utf8_error().valid_up_to() + 1;
            let number = self.fields.len() + 1;
            format!("is not UTF-8 (byte {byte} of field {number})")
        })?;
        self.fields.push(field);
        Ok(())
    }

    fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &[u8]) -> Vec<(u64, Result<String, String>)> {
        let mut lines = Lines::new(text);
        let header = match lines.next_line().unwrap() {
            Some((_, Line::Whole(line))) => Header::read(line, &["prompt"]).unwrap(),
            _ => panic!("no header"),
        };
        let mut rows = Vec::new();
        while let Some((number, next)) = header.next(&mut lines).unwrap() {
            let Next::Record(row) = next else {
                rows.push((number, Err("lost".to_owned())));
                break;
            };
            rows.push((number, row.map(|row| Value::Object(row).to_string())));
        }
        rows
    }

    #[test]
    fn quotes_delimiters_and_lines_within_fields_are_kept() {
        let text = "prompt,n\r\n\"a, \"\"b\"\"\r\nc\",1\r\n\r\nplain,\"\"\r\nü,2";
        assert_eq!(
            rows(text.as_bytes()),
            [
                (2, Ok(r#"{"prompt":"a, \"b\"\nc","n":"1"}"#.to_owned())),
                (5, Ok(r#"{"prompt":"plain","n":""}"#.to_owned())),
                (6, Ok(r#"{"prompt":"ü","n":"2"}"#.to_owned())),
            ]
        );
    }

    #[test]
    fn the_delimiter_is_the_one_with_which_the_header_names_a_column() {
        for line in [
            "prompt",
            "a;prompt",
            "prompt\tb",
            "x| prompt |y",
            "\"prompt\",\"a,b\"",
        ] {
            assert!(
                Header::read(line.as_bytes(), &["prompt"]).is_some(),
                "{line}"
            );
        }
        for line in ["prompts,a", "{\"prompt\": 1}", "", "\"prompt"] {
            assert_eq!(Header::read(line.as_bytes(), &["prompt"]), None, "{line}");
        }
        let header = Header::read(b"prompt,a,a", &["prompt"]).unwrap();
        assert_eq!(header.repeated(), Some("a"));
    }

    #[test]
    fn where_nobody_names_columns_a_header_is_what_looks_like_names() {
        let guess = |line: &str| Header::guess(line.as_bytes()).map(|it| (it.delimiter, it.names));
        for (line, delimiter, names) in [
            ("code,title", b',', vec!["code", "title"]),
            ("\"Claim id\";été;b_2", b';', vec!["Claim id", "été", "b_2"]),
            ("text", b',', vec!["text"]),
        ] {
            let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
            assert_eq!(guess(line), Some((delimiter, names)), "{line}");
        }
        for line in [
            r#"{"code": 1}"#,
            "[1, 2]",
            "true",
            "7,8",
            "code,",
            "What is this?",
            "\"a",
            "",
        ] {
            assert_eq!(guess(line), None, "{line}");
        }
    }

    #[test]
    fn broken_records_are_named_by_their_rule_and_the_next_ones_are_read() {
        let text = b"prompt,n\na\nb,1,2\n\"c\"x,1\nd\"e,1\n\xff,1\nok,1\n\"open,1\nend";
        let rules: Vec<_> = rows(text)
            .into_iter()
            .map(|(number, row)| (number, row.unwrap_or_else(|rule| rule)))
            .collect();
        let expected = [
            (2, "has 1 fields, the header has 2"),
            (3, "has 3 fields, the header has 2"),
            (4, "has text between a closing quote and the next field"),
            (5, "has a quote within a field that has none"),
            (6, "is not UTF-8 (byte 1 of field 1)"),
            (7, r#"{"prompt":"ok","n":"1"}"#),
            (8, "lost"),
        ];
        let expected: Vec<_> = expected
            .map(|(number, rule)| (number, rule.to_owned()))
            .into();
        assert_eq!(rules, expected);
    }

    #[test]
    fn a_quote_that_never_closes_takes_no_more_than_the_limit() {
        let mut text = b"prompt\n\"".to_vec();
        let line = vec![b'x'; 1 << 20];
        for _ in 0..6 {
            text.extend(&line);
            text.push(b'\n');
        }
        assert_eq!(rows(&text), [(2, Err("lost".to_owned()))]);
        let mut text = b"prompt\n\"a\n".to_vec();
        text.extend(vec![b'x'; MAXIMUM_LINE_BYTES + 1]);
        assert_eq!(rows(&text), [(2, Err("lost".to_owned()))]);
    }

    #[test]
    fn a_quote_that_another_record_closes_is_told_from_a_bad_line() {
        let text = b"prompt,n\n\"open,1\n\"next\",2\nlast,3\n";
        assert_eq!(rows(text), [(2, Err("lost".to_owned()))]);
    }
}
