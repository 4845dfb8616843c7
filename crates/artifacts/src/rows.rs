//! The rows of datasets as Parquet: what the dataset builder writes and the trainer reads.
//!
//! | format | columns |
//! |---|---|
//! | Text | `text: Utf8` |
//! | Completion | `prompt: Utf8`, `completion: Utf8` |
//! | Chat | `messages: List<Struct<role: Utf8, content: Utf8>>` |
//! | Preference | `prompt: Utf8`, `chosen: Utf8`, `rejected: Utf8` |
//!
//! and, where the split has a group column that is none of these, that column as `Utf8`, and, where the
//! dataset keeps rewards, `reward: Float64`.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray as _;
use arrow_array::types::Float64Type;
use arrow_array::{ArrayRef, Float64Array, ListArray, RecordBatch, StringArray, StructArray};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use graftwork_contract::Digest;
use graftwork_contract::dataset::{Format, Manifest, REWARD_COLUMN, Split};
use graftwork_contract::paths;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::{Error, Fetched, MANIFEST_FILE, Result, Store};
use ahead::Ahead;

mod ahead;

/// Rows that are encoded or decoded at a time.
const BATCH_ROWS: usize = 1024;
/// Text that is encoded at a time, in bytes.
const BATCH_BYTES: usize = 8 << 20;
/// Encoded bytes of a row group: a writer holds one (64 MiB). Parquet's own limit counts rows alone, and a
/// million long ones are gigabytes.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// One example.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Row {
    /// Text to continue.
    Text {
        /// All of it is learned.
        text: String,
    },
    /// A question and its answer.
    Completion {
        /// Given.
        prompt: String,
        /// Learned.
        completion: String,
    },
    /// A question with a better and a worse answer.
    Preference {
        /// Given.
        prompt: String,
        /// The better one.
        chosen: String,
        /// The worse one.
        rejected: String,
    },
    /// A conversation.
    Chat {
        /// In order; the assistant's are learned.
        messages: Vec<Message>,
    },
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Row {
    /// The format that the row belongs to.
    pub const fn format(&self) -> Format {
        match self {
            Self::Text { .. } => Format::Text,
            Self::Completion { .. } => Format::Completion,
            Self::Chat { .. } => Format::Chat,
            Self::Preference { .. } => Format::Preference,
        }
    }

    /// Bytes of text.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::Text { text } => text.len(),
            Self::Completion { prompt, completion } => prompt.len() + completion.len(),
            Self::Preference {
                prompt,
                chosen,
                rejected,
            } => prompt.len() + chosen.len() + rejected.len(),
            Self::Chat { messages } => messages
                .iter()
                .map(|m| m.role.len() + m.content.len())
                .sum(),
        }
    }

    /// The texts, each with its column; of a conversation what was said.
    pub fn texts(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::Text { text } => vec![("text", text)],
            Self::Completion { prompt, completion } => {
                vec![("prompt", prompt), ("completion", completion)]
            }
            Self::Preference {
                prompt,
                chosen,
                rejected,
            } => vec![
                ("prompt", prompt),
                ("chosen", chosen),
                ("rejected", rejected),
            ],
            Self::Chat { messages } => messages
                .iter()
                .map(|message| ("messages", message.content.as_str()))
                .collect(),
        }
    }

    /// The same, to be changed.
    pub fn texts_mut(&mut self) -> Vec<(&'static str, &mut String)> {
        match self {
            Self::Text { text } => vec![("text", text)],
            Self::Completion { prompt, completion } => {
                vec![("prompt", prompt), ("completion", completion)]
            }
            Self::Preference {
                prompt,
                chosen,
                rejected,
            } => vec![
                ("prompt", prompt),
                ("chosen", chosen),
                ("rejected", rejected),
            ],
            Self::Chat { messages } => messages
                .iter_mut()
                .map(|message| ("messages", &mut message.content))
                .collect(),
        }
    }
}

/// The columns of a format.
pub const fn columns(format: Format) -> &'static [&'static str] {
    format.columns()
}

/// The file of a split.
pub fn file_name(split: Split) -> String {
    format!("{}.parquet", split.name())
}

fn message_fields() -> Fields {
    Fields::from(vec![
        Field::new("role", DataType::Utf8, false),
        Field::new("content", DataType::Utf8, false),
    ])
}

fn message_item() -> Arc<Field> {
    Arc::new(Field::new(
        "item",
        DataType::Struct(message_fields()),
        false,
    ))
}

/// Columns beside those of the format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beside<'a> {
    /// The column that groups rows.
    pub group: Option<&'a str>,
    /// Whether there are rewards.
    pub reward: bool,
}

impl<'a> Beside<'a> {
    /// A group column at most.
    pub const fn grouped(group: Option<&'a str>) -> Self {
        Self {
            group,
            reward: false,
        }
    }

    /// The group column that needs a column of its own.
    fn own_group(self, format: Format) -> Option<&'a str> {
        self.group.filter(|name| !columns(format).contains(name))
    }
}

/// The schema of a dataset's files.
pub fn schema(format: Format, beside: Beside<'_>) -> Schema {
    let mut fields: Vec<Field> = columns(format)
        .iter()
        .map(|name| {
            let kind = match format {
                Format::Chat => DataType::List(message_item()),
                Format::Text | Format::Completion | Format::Preference => DataType::Utf8,
            };
            Field::new(*name, kind, false)
        })
        .collect();
    if let Some(name) = beside.own_group(format) {
        fields.push(Field::new(name, DataType::Utf8, false));
    }
    if beside.reward {
        fields.push(Field::new(REWARD_COLUMN, DataType::Float64, false));
    }
    Schema::new(fields)
}

/// Identity of a schema: format, column names and column types, independent of library versions.
pub fn schema_hash(format: Format, beside: Beside<'_>) -> Digest {
    let kind = match format {
        Format::Chat => "list<role: utf8, content: utf8>",
        Format::Text | Format::Completion | Format::Preference => "utf8",
    };
    let mut hasher = graftwork_contract::digest::PartsHasher::new();
    hasher.part("graftwork/schema/v1");
    for name in columns(format) {
        hasher.part(name).part(kind);
    }
    if let Some(name) = beside.own_group(format) {
        hasher.part(name).part("utf8");
    }
    if beside.reward {
        hasher.part(REWARD_COLUMN).part("float64");
    }
    hasher.finish()
}

/// Writes one file of rows. Memory is bounded by one batch and what Parquet buffers of a row group.
#[derive(Debug)]
pub struct RowWriter {
    name: String,
    format: Format,
    schema: SchemaRef,
    has_group: bool,
    has_reward: bool,
    writer: ArrowWriter<File>,
    rows: Vec<Row>,
    groups: Vec<String>,
    rewards: Vec<f64>,
    pending_bytes: usize,
}

impl RowWriter {
    /// Creates the file at `path`, which must not exist.
    pub fn create(path: &Path, format: Format, beside: Beside<'_>) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::create_new(path).map_err(Error::io("create", path))?;
        let schema = Arc::new(schema(format, beside));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .build();
        let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))
            .map_err(unusable(&name))?;
        Ok(Self {
            name,
            format,
            has_group: beside.own_group(format).is_some(),
            has_reward: beside.reward,
            schema,
            writer,
            rows: Vec::new(),
            groups: Vec::new(),
            rewards: Vec::new(),
            pending_bytes: 0,
        })
    }

    /// Adds a row, with the text of its group column and with its reward where the schema has them.
    pub fn push(&mut self, row: Row, group: Option<&str>, reward: Option<f64>) -> Result<()> {
        let lacks = (self.has_group && group.is_none()) || (self.has_reward && reward.is_none());
        if row.format() != self.format || lacks {
            return Err(misfit(&self.name, self.format));
        }
        self.pending_bytes += row.text_bytes();
        self.rows.push(row);
        if let Some(group) = group.filter(|_| self.has_group) {
            self.groups.push(group.to_owned());
        }
        self.rewards.extend(reward.filter(|_| self.has_reward));
        if self.rows.len() >= BATCH_ROWS || self.pending_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what is left and the file's footer.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.writer.close().map_err(unusable(&self.name))?;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut arrays = encode(self.format, &self.rows);
        if self.has_group {
            arrays.push(Arc::new(StringArray::from_iter_values(&self.groups)));
        }
        if self.has_reward {
            let rewards = self.rewards.iter().copied();
            arrays.push(Arc::new(Float64Array::from_iter_values(rewards)));
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), arrays)
            .map_err(|error| unusable(&self.name)(error.into()))?;
        self.writer.write(&batch).map_err(unusable(&self.name))?;
        if self.writer.in_progress_size() >= ROW_GROUP_BYTES {
            self.writer.flush().map_err(unusable(&self.name))?;
        }
        self.rows.clear();
        self.groups.clear();
        self.rewards.clear();
        self.pending_bytes = 0;
        Ok(())
    }
}

fn encode(format: Format, rows: &[Row]) -> Vec<ArrayRef> {
    let (mut first, mut second) = (StringBuilder::new(), StringBuilder::new());
    let mut third = StringBuilder::new();
    let mut lengths = Vec::new();
    for row in rows {
        match row {
            Row::Text { text } => first.append_value(text),
            Row::Completion { prompt, completion } => {
                first.append_value(prompt);
                second.append_value(completion);
            }
            Row::Preference {
                prompt,
                chosen,
                rejected,
            } => {
                first.append_value(prompt);
                second.append_value(chosen);
                third.append_value(rejected);
            }
            Row::Chat { messages } => {
                for message in messages {
                    first.append_value(&message.role);
                    second.append_value(&message.content);
                }
                lengths.push(messages.len());
            }
        }
    }
    let (first, second): (ArrayRef, ArrayRef) =
        (Arc::new(first.finish()), Arc::new(second.finish()));
    match format {
        Format::Text => vec![first],
        Format::Completion => vec![first, second],
        Format::Preference => vec![first, second, Arc::new(third.finish())],
        Format::Chat => {
            let messages = StructArray::new(message_fields(), vec![first, second], None);
            let offsets = OffsetBuffer::from_lengths(lengths);
            let list = ListArray::new(message_item(), offsets, Arc::new(messages), None);
            vec![Arc::new(list)]
        }
    }
}

/// The rows of one file, in order, decoded a batch at a time, and the next ones meanwhile.
#[derive(Debug)]
pub struct RowReader {
    name: String,
    format: Format,
    batches: Ahead,
    rows: std::vec::IntoIter<Row>,
    /// What keeps a copy on the disk.
    _held: Option<Fetched>,
}

impl RowReader {
    /// Opens a file of rows of a known format. Does not verify its digest: [`open`] does.
    pub fn open(path: &Path, format: Format) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(Error::io("open", path))?;
        let batches = ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(|builder| builder.with_batch_size(BATCH_ROWS).build())
            .map_err(unusable(&name))?;
        Ok(Self {
            name,
            format,
            batches: Ahead::start(batches).map_err(Error::io("decode", path))?,
            rows: Vec::new().into_iter(),
            _held: None,
        })
    }
}

impl Iterator for RowReader {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.next() {
                return Some(Ok(row));
            }
            let batch = match self.batches.next()? {
                Ok(batch) => batch,
                Err(error) => return Some(Err(unusable(&self.name)(error.into()))),
            };
            let Some(rows) = decode(self.format, &batch) else {
                return Some(Err(misfit(&self.name, self.format)));
            };
            self.rows = rows.into_iter();
        }
    }
}

/// The rows of a batch; `None` where its columns are not those of the format.
fn decode(format: Format, batch: &RecordBatch) -> Option<Vec<Row>> {
    let strings = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
    match format {
        Format::Text => Some(
            texts(strings("text")?)
                .map(|text| Row::Text { text })
                .collect(),
        ),
        Format::Completion => Some(
            texts(strings("prompt")?)
                .zip(texts(strings("completion")?))
                .map(|(prompt, completion)| Row::Completion { prompt, completion })
                .collect(),
        ),
        Format::Preference => Some(
            texts(strings("prompt")?)
                .zip(texts(strings("chosen")?))
                .zip(texts(strings("rejected")?))
                .map(|((prompt, chosen), rejected)| Row::Preference {
                    prompt,
                    chosen,
                    rejected,
                })
                .collect(),
        ),
        Format::Chat => {
            let list = batch.column_by_name("messages")?.as_list_opt::<i32>()?;
            let messages = list.values().as_struct_opt()?;
            let role = messages.column_by_name("role")?.as_string_opt::<i32>()?;
            let content = messages.column_by_name("content")?.as_string_opt::<i32>()?;
            // The messages of all rows lie one behind the other.
            let offsets = list.value_offsets();
            let first = usize::try_from(*offsets.first()?).ok()?;
            let mut said = texts(role)
                .zip(texts(content))
                .map(|(role, content)| Message { role, content })
                .skip(first);
            let rows = offsets.windows(2).map(|ends| {
                let [start, end] = ends else { return None };
                let count = usize::try_from(end - start).ok()?;
                let messages = said.by_ref().take(count).collect();
                Some(Row::Chat { messages })
            });
            rows.collect()
        }
    }
}

/// The values; the schema has no nulls, a foreign file's read as empty.
fn texts(array: &StringArray) -> impl Iterator<Item = String> + '_ {
    array
        .iter()
        .map(|value| value.unwrap_or_default().to_owned())
}

/// The manifest of a dataset version.
///
/// # Errors
/// [`Error::Missing`] where the version does not exist; [`Error::DigestMismatch`] where the
/// manifest names another digest than its folder.
pub fn manifest(store: &Store, dataset: &str, digest: &Digest) -> Result<Manifest> {
    let path = format!("{}/{MANIFEST_FILE}", paths::dataset(dataset, digest));
    let manifest: Manifest = store
        .get_json(&path)?
        .ok_or_else(|| Error::Missing { path: path.clone() })?;
    if manifest.digest == *digest {
        Ok(manifest)
    } else {
        Err(Error::DigestMismatch {
            path,
            expected: digest.clone(),
            got: manifest.digest,
        })
    }
}

/// The rows of one split of a dataset version. The file's SHA-256 is checked before the first row.
pub fn open(store: &Store, dataset: &str, digest: &Digest, split: Split) -> Result<RowReader> {
    let manifest = manifest(store, dataset, digest)?;
    let name = file_name(split);
    let folder = paths::dataset(dataset, digest);
    let path = format!("{folder}/{name}");
    let Some((name, expected)) = manifest.files.get_key_value(&name) else {
        return Err(Error::Missing { path });
    };
    let file = std::collections::BTreeMap::from([(name.clone(), expected.clone())]);
    let fetched = store.fetch(&folder, &file)?;
    let reader = RowReader::open(&fetched.path().join(name), manifest.format)?;
    Ok(RowReader {
        _held: Some(fetched),
        ..reader
    })
}

/// All rows of one split, see [`open`].
pub fn read(store: &Store, dataset: &str, digest: &Digest, split: Split) -> Result<Vec<Row>> {
    open(store, dataset, digest, split)?.collect()
}

/// The group of each row of one split, where the split has a column of groups that is none of the
/// format's; empty where it has none. The file's SHA-256 is checked before.
pub fn groups(store: &Store, dataset: &str, digest: &Digest, split: Split) -> Result<Vec<String>> {
    read_groups(open(store, dataset, digest, split)?)
}

fn read_groups(reader: RowReader) -> Result<Vec<String>> {
    let format = reader.format;
    let mut groups = Vec::new();
    for batch in reader.batches {
        let batch = batch.map_err(|error| unusable(&reader.name)(error.into()))?;
        let schema = batch.schema();
        let is_own = |field: &Arc<Field>| {
            *field.data_type() == DataType::Utf8
                && !columns(format).contains(&field.name().as_str())
        };
        let Some(own) = schema.fields().iter().position(is_own) else {
            return Ok(Vec::new());
        };
        let column = batch.column(own).as_string_opt::<i32>();
        groups.extend(texts(column.ok_or_else(|| misfit(&reader.name, format))?));
    }
    Ok(groups)
}

/// The reward of each row of one split; empty where the dataset keeps none. The file's SHA-256 is checked before.
pub fn rewards(store: &Store, dataset: &str, digest: &Digest, split: Split) -> Result<Vec<f64>> {
    read_rewards(open(store, dataset, digest, split)?)
}

fn read_rewards(reader: RowReader) -> Result<Vec<f64>> {
    let mut rewards = Vec::new();
    for batch in reader.batches {
        let batch = batch.map_err(|error| unusable(&reader.name)(error.into()))?;
        let Some(column) = batch.column_by_name(REWARD_COLUMN) else {
            return Ok(Vec::new());
        };
        // A group column may have this name; it is text.
        let Some(column) = column.as_primitive_opt::<Float64Type>() else {
            return Ok(Vec::new());
        };
        rewards.extend(column.values().iter().copied());
    }
    Ok(rewards)
}

fn misfit(path: &str, format: Format) -> Error {
    Error::Rows {
        path: path.to_owned(),
        problem: format!("columns {:?} are expected", columns(format)),
    }
}

/// An error of the Parquet library: the volume's where that is its cause, else the file's.
fn unusable(path: &str) -> impl FnOnce(ParquetError) -> Error {
    move |error| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                let copy = std::io::Error::new(io.kind(), io.to_string());
                return Error::io("read or write", Path::new(path))(copy);
            }
            cause = error.source();
        }
        Error::Rows {
            path: path.to_owned(),
            problem: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
