//! Good rows as records that sort in canonical order: by the hash of the canonical row, and among equal
//! ones by what decides their split. Which of them comes first must not depend on the order of sources.

use graftwork_artifacts::rows::{Message, Row, columns};
use graftwork_contract::dataset::{Format, REWARD_COLUMN};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::duplicates::identity;
use crate::failure::Failure;
use crate::row::GoodRow;
use crate::spill::sorter::{Records, Sorted, Sorter};
use crate::spill::{Scratch, damaged};

/// Bytes of a hash.
const HASH: usize = 32;

/// A SHA-256.
pub type Hash = [u8; HASH];

/// Writes the record of a row. Options and texts are written so that their order is that of the bytes.
pub fn encode(row: &GoodRow, record: &mut Vec<u8>) {
    record.clear();
    let hash: Hash = Sha256::digest(&row.canonical).into();
    record.extend_from_slice(&hash);
    put_text(row.source_group(), record);
    match row.time {
        None => record.push(0),
        Some(time) => {
            record.push(1);
            record.extend_from_slice(&sortable(time));
        }
    }
    put_text(row.class.as_deref(), record);
    match row.tokens {
        None => record.push(0),
        Some(tokens) => {
            record.push(1);
            record.extend_from_slice(&tokens.to_be_bytes());
        }
    }
    record.extend_from_slice(&identity(&row.row));
    record.extend_from_slice(row.canonical.as_bytes());
}

/// A number as bytes in the order of numbers: negative ones come first.
pub fn sortable(number: i64) -> [u8; 8] {
    (number ^ i64::MIN).to_be_bytes()
}

/// The number of [`sortable`] bytes.
pub fn number(bytes: [u8; 8]) -> i64 {
    i64::from_be_bytes(bytes) ^ i64::MIN
}

/// A text ends with two zeros, and a zero within it is followed by 255: a text comes before a longer one
/// that begins with it.
pub fn put_text(text: Option<&str>, record: &mut Vec<u8>) {
    let Some(text) = text else {
        record.push(0);
        return;
    };
    record.push(1);
    for byte in text.bytes() {
        record.push(byte);
        if byte == 0 {
            record.push(0xff);
        }
    }
    record.extend_from_slice(&[0, 0]);
}

/// A row as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<'a> {
    /// Of the canonical row.
    pub hash: Hash,
    /// The group as the source has it.
    pub source_group: Option<String>,
    /// Milliseconds since 1970.
    pub time: Option<i64>,
    /// The class.
    pub class: Option<String>,
    /// Length in the base model's tokens.
    pub tokens: Option<u32>,
    /// What is the same for equal rows, see [`identity`].
    pub identity: Hash,
    /// The kept columns as canonical JSON, which most who go through the rows do not read.
    pub canonical: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Reads a record.
    ///
    /// # Errors
    /// A record that [`encode`] has not written.
    pub fn decode(record: &'a [u8]) -> Result<Self, Failure> {
        let mut rest = record;
        Ok(Self {
            hash: array(&mut rest)?,
            source_group: take_text(&mut rest)?,
            time: match array::<1>(&mut rest)? {
                [0] => None,
                _ => Some(number(array(&mut rest)?)),
            },
            class: take_text(&mut rest)?,
            tokens: match array::<1>(&mut rest)? {
                [0] => None,
                _ => Some(u32::from_be_bytes(array(&mut rest)?)),
            },
            identity: array(&mut rest)?,
            canonical: rest,
        })
    }

    /// What decides the row's split: its group, or all of it.
    pub fn split_key(&self) -> &[u8] {
        let group = self.source_group.as_ref();
        group.map_or(self.canonical, String::as_bytes)
    }

    /// The row, with the text of the column `group` where the format has none of that name.
    ///
    /// # Errors
    /// A row of another format.
    pub fn row(
        &self,
        format: Format,
        group: Option<&str>,
    ) -> Result<(Row, Option<String>), Failure> {
        read_row(self.canonical, format, group)
    }
}

/// The row of kept columns that were written as canonical JSON, with the text of the column `group` where the
/// format has none of that name.
///
/// # Errors
/// A row of another format.
pub fn read_row(
    canonical: &[u8],
    format: Format,
    group: Option<&str>,
) -> Result<(Row, Option<String>), Failure> {
    let row = row(canonical, format).map_err(|_| damaged())?;
    let own = group.filter(|name| !columns(format).contains(name));
    let group = match own {
        Some(name) => {
            let kept: Value = serde_json::from_slice(canonical).map_err(|_| damaged())?;
            let text = kept.get(name).and_then(Value::as_str);
            Some(text.ok_or_else(damaged)?.to_owned())
        }
        None => None,
    };
    Ok((row, group))
}

/// The number in the column of rewards of kept columns.
///
/// # Errors
/// A row that has none.
pub fn read_reward(canonical: &[u8]) -> Result<f64, Failure> {
    let kept: Value = serde_json::from_slice(canonical).map_err(|_| damaged())?;
    let reward = kept.get(REWARD_COLUMN).and_then(Value::as_f64);
    reward.ok_or_else(damaged)
}

/// The next bytes of a record.
///
/// # Errors
/// A record that is too short.
pub fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Failure> {
    let (bytes, after) = rest.split_first_chunk::<N>().ok_or_else(damaged)?;
    *rest = after;
    Ok(*bytes)
}

/// The next number of a record, which was written with its highest byte first.
///
/// # Errors
/// A record that is too short.
pub fn take_number(rest: &mut &[u8]) -> Result<u64, Failure> {
    array(rest).map(u64::from_be_bytes)
}

/// The next text of a record, see [`put_text`].
///
/// # Errors
/// A record that holds something else.
pub fn take_text(rest: &mut &[u8]) -> Result<Option<String>, Failure> {
    if array::<1>(rest)? == [0] {
        return Ok(None);
    }
    let mut text = Vec::new();
    loop {
        match array::<1>(rest)? {
            [0] => match array::<1>(rest)? {
                [0] => return String::from_utf8(text).map(Some).map_err(|_| damaged()),
                _ => text.push(0),
            },
            [byte] => text.push(byte),
        }
    }
}

#[derive(Deserialize)]
struct TextColumns {
    text: String,
}

#[derive(Deserialize)]
struct CompletionColumns {
    prompt: String,
    completion: String,
}

#[derive(Deserialize)]
struct PreferenceColumns {
    prompt: String,
    chosen: String,
    rejected: String,
}

#[derive(Deserialize)]
struct ChatColumns {
    messages: Vec<MessageColumns>,
}

#[derive(Deserialize)]
struct MessageColumns {
    role: String,
    content: String,
}

/// The columns of the format; others are passed over.
fn row(canonical: &[u8], format: Format) -> serde_json::Result<Row> {
    Ok(match format {
        Format::Text => {
            let TextColumns { text } = serde_json::from_slice(canonical)?;
            Row::Text { text }
        }
        Format::Completion => {
            let CompletionColumns { prompt, completion } = serde_json::from_slice(canonical)?;
            Row::Completion { prompt, completion }
        }
        Format::Preference => {
            let PreferenceColumns {
                prompt,
                chosen,
                rejected,
            } = serde_json::from_slice(canonical)?;
            Row::Preference {
                prompt,
                chosen,
                rejected,
            }
        }
        Format::Chat => {
            let ChatColumns { messages } = serde_json::from_slice(canonical)?;
            let messages = messages.into_iter().map(|it| Message {
                role: it.role,
                content: it.content,
            });
            Row::Chat {
                messages: messages.collect(),
            }
        }
    })
}

/// Takes good rows in any order.
#[derive(Debug)]
pub struct RowSorter {
    sorter: Sorter,
    count: u64,
}

impl RowSorter {
    /// No rows yet.
    pub fn new(scratch: &Scratch) -> Self {
        Self {
            sorter: Sorter::of_rows(scratch),
            count: 0,
        }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// Those of the scratch volume.
    #[cfg(test)]
    pub fn push(&mut self, row: &GoodRow) -> Result<(), Failure> {
        let mut record = Vec::new();
        encode(row, &mut record);
        self.push_encoded(&record)
    }

    /// Adds a row as [`encode`] has just written it.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn push_encoded(&mut self, record: &[u8]) -> Result<(), Failure> {
        self.sorter.push(record)?;
        self.count += 1;
        Ok(())
    }

    /// Adds a row as [`Rows::records`] gives it.
    ///
    /// # Errors
    /// Those of the scratch volume; a record that is none of ours.
    pub fn push_record(&mut self, record: &[u8]) -> Result<(), Failure> {
        Stored::decode(record)?;
        self.push_encoded(record)
    }

    /// How many there are so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All rows in canonical order.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn finish(self) -> Result<Rows, Failure> {
        Ok(Rows {
            sorted: self.sorter.finish()?,
            count: self.count,
        })
    }
}

/// Good rows in canonical order. Their position is their number in it, from 0.
#[derive(Debug)]
pub struct Rows {
    sorted: Sorted,
    count: u64,
}

impl Rows {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All rows from the first, as they were stored.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn records(&self) -> Result<Records<'_>, Failure> {
        self.sorted.records()
    }

    /// All rows from the first.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn read(&self) -> Result<RowsReader<'_>, Failure> {
        Ok(RowsReader {
            records: self.sorted.records()?,
            next: 0,
        })
    }
}

/// Rows on their way.
pub struct RowsReader<'a> {
    records: Records<'a>,
    next: u64,
}

impl RowsReader<'_> {
    /// The next row with its position; none at the end.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn next_row(&mut self) -> Result<Option<(u64, Stored<'_>)>, Failure> {
        let position = self.next;
        self.next += 1;
        match self.records.next_record()? {
            None => Ok(None),
            Some(record) => Ok(Some((position, Stored::decode(record)?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::row::tests_support::row_of;

    fn record(row: &GoodRow) -> Vec<u8> {
        let mut record = Vec::new();
        encode(row, &mut record);
        record
    }

    fn rows() -> impl Strategy<Value = GoodRow> {
        let group = prop::option::of("[\\x00ab\u{ff}]{0,3}");
        let class = prop::option::of("[\\x00ab]{0,3}");
        (
            "[ab\"\\x01é]{1,2}",
            group,
            prop::option::of(-2_i64..3),
            class,
        )
            .prop_map(|(text, group, time, class)| {
                let mut row = row_of(&text, group.as_deref(), time);
                row.class = class;
                row
            })
    }

    proptest! {
        #[test]
        fn bytes_have_the_order_of_rows(a in rows(), b in rows()) {
            let key = |row: &GoodRow| {
                let hash: Hash = Sha256::digest(&row.canonical).into();
                (hash, row.source_group().map(str::to_owned), row.time, row.class.clone())
            };
            prop_assert_eq!(record(&a).cmp(&record(&b)), key(&a).cmp(&key(&b)));
        }

        #[test]
        fn a_row_is_read_back_as_it_was_stored(row in rows()) {
            let record = record(&row);
            let stored = Stored::decode(&record).unwrap();
            prop_assert_eq!(stored.split_key(), row.split_key().as_bytes());
            prop_assert_eq!((stored.time, &stored.class), (row.time, &row.class));
            prop_assert_eq!(stored.identity, identity(&row.row));
            prop_assert_eq!(stored.row(Format::Text, None).unwrap(), (row.row, None));
        }
    }

    #[test]
    fn the_group_column_is_read_from_the_row_where_it_is_its_own() {
        let mut row = row_of("a", Some("unmasked"), None);
        row.canonical = r#"{"id":"masked","text":"a"}"#.to_owned();
        let record = record(&row);
        let stored = Stored::decode(&record).unwrap();
        let (_, group) = stored.row(Format::Text, Some("id")).unwrap();
        assert_eq!(group.as_deref(), Some("masked"));
        assert_eq!(stored.row(Format::Text, Some("text")).unwrap().1, None);
        assert!(stored.row(Format::Completion, None).is_err());
    }

    #[test]
    fn a_length_is_read_back() {
        let mut row = row_of("a", Some("g"), Some(-1));
        for tokens in [None, Some(0), Some(7), Some(u32::MAX)] {
            row.tokens = tokens;
            let record = record(&row);
            let stored = Stored::decode(&record).unwrap();
            assert_eq!(stored.tokens, tokens);
            assert_eq!(stored.canonical, row.canonical.as_bytes());
        }
    }

    #[test]
    fn a_reward_is_read_from_the_row_that_has_one() {
        let mut row = row_of("a", None, None);
        let reward = |row: &GoodRow| {
            let record = record(row);
            read_reward(Stored::decode(&record).unwrap().canonical).ok()
        };
        assert_eq!(reward(&row), None);
        row.canonical = r#"{"reward":-1.5,"text":"a"}"#.to_owned();
        assert_eq!(reward(&row), Some(-1.5));
        // A parser in a hurry makes another last digit of it.
        row.canonical = r#"{"reward":31.245270191439438,"text":"a"}"#.to_owned();
        let read = reward(&row).map(f64::to_bits);
        assert_eq!(read, "31.245270191439438".parse().ok().map(f64::to_bits));
    }

    #[test]
    fn conversations_are_read_back_in_order() {
        let message = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let messages = vec![message("user", "\u{0}\"é"), message("assistant", "b")];
        let mut row = row_of("a", None, None);
        row.canonical = serde_json::json!({"messages": [
            {"content": "\u{0}\"é", "role": "user"}, {"content": "b", "role": "assistant"}
        ]})
        .to_string();
        let record = record(&row);
        let (read, _) = Stored::decode(&record)
            .unwrap()
            .row(Format::Chat, None)
            .unwrap();
        assert_eq!(read, Row::Chat { messages });
    }
}
