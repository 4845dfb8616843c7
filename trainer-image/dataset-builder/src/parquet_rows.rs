//! Rows of a Parquet file as JSON objects, a batch at a time. Only the columns that are wanted are
//! decoded.

use std::collections::BTreeSet;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float32Type, Float64Type, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::cast::cast;
use arrow_schema::{DataType, Field};
use graftwork_contract::dataset::MAXIMUM_COLUMNS;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::lines::MAXIMUM_LINE_BYTES;
use crate::parquet_pages::{longest_word, walk};
use crate::pins::masked;
use crate::streams::MAXIMUM_UNPACKED_BYTES;

/// Rows that are decoded at a time, at most.
const BATCH_ROWS: usize = 256;
/// Of these so many become objects at a time, on each core.
const PIECE_ROWS: usize = 32;
/// Bytes of the wanted columns that are decoded at a time, as far as pages tell how long rows are.
const BATCH_BYTES: u64 = 8 << 20;
/// Bytes that a row may have where each of its texts were the longest of its column (256 MiB).
const MAXIMUM_ROW_BYTES: u64 = 256 << 20;

/// The rows of one file.
pub struct ParquetRows {
    batches: ParquetRecordBatchReader,
    names: Vec<String>,
}

impl ParquetRows {
    /// Opens a file for the columns in `wanted`, or for all that have a place in JSON; others are left alone.
    ///
    /// # Errors
    /// What is wrong with the file, in words and without data.
    pub fn open(file: File, wanted: Option<&[&str]>) -> Result<Self, String> {
        let open = || {
            let pages = Arc::new(file.try_clone().map_err(|error| words(&error))?);
            let builder =
                ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| words(&error))?;
            let groups = builder.metadata().row_groups();
            let claimed = groups.iter().try_fold(0_u64, |sum, group| {
                let bytes = u64::try_from(group.total_byte_size()).ok()?;
                sum.checked_add(bytes)
                    .filter(|sum| *sum <= MAXIMUM_UNPACKED_BYTES)
            });
            if claimed.is_none() {
                return Err(format!(
                    "unpacks to more than {MAXIMUM_UNPACKED_BYTES} bytes"
                ));
            }
            let fields = builder.schema().fields();
            let all = fields.iter().take(MAXIMUM_COLUMNS);
            let all: Vec<String> = all.map(|field| field.name().clone()).collect();
            let is_wanted = |field: &Field| match wanted {
                Some(names) => names.contains(&field.name().as_str()),
                None => has_place(field.data_type()),
            };
            let indices: Vec<usize> = (0..fields.len())
                .filter(|index| fields.get(*index).is_some_and(|field| is_wanted(field)))
                .collect();
            let names: Vec<&str> = indices
                .iter()
                .filter_map(|index| Some(fields.get(*index)?.name().as_str()))
                .collect();
            if let Some(name) = repeated(&names) {
                return Err(format!("has two columns named {:?}", masked(name)));
            }
            let mask = ProjectionMask::roots(builder.parquet_schema(), indices.iter().copied());
            let batch = batch_rows(&pages, builder.metadata().row_groups(), &names)?;
            let batches = builder
                .with_projection(mask)
                .with_batch_size(batch)
                .build()
                .map_err(|error| words(&error))?;
            Ok(Self {
                batches,
                names: all,
            })
        };
        guarded(open).unwrap_or_else(Err)
    }

    /// Names of the file's columns, also of those that are left alone; of very many the first.
    pub fn take_names(&mut self) -> Vec<String> {
        std::mem::take(&mut self.names)
    }

    /// The next rows; none at the end.
    ///
    /// # Errors
    /// What is wrong with the file, in words and without data.
    pub fn next_rows(&mut self) -> Result<Option<Vec<Map<String, Value>>>, String> {
        let batch = guarded(|| self.batches.next())?;
        match batch {
            None => Ok(None),
            Some(Ok(batch)) => pieces(&batch).map(Some),
            Some(Err(error)) => Err(words(&error)),
        }
    }
}

/// A name that stands twice.
fn repeated<'a>(names: &[&'a str]) -> Option<&'a str> {
    let mut seen = BTreeSet::new();
    let mut names = names.iter().copied();
    names.find(|name| !seen.insert(*name))
}

/// How many rows are decoded at a time: fewer where they are long. What the footer says of its pages is held
/// against the pages.
///
/// # Errors
/// Rows that are longer on average than any may be, pages that are too large, another number of rows than the
/// footer says.
fn batch_rows(
    file: &Arc<File>,
    groups: &[RowGroupMetaData],
    wanted: &[&str],
) -> Result<usize, String> {
    let mut longest = 1;
    for group in groups {
        let rows = u64::try_from(group.num_rows())
            .map_err(|_| "has a footer with fewer rows than none".to_owned())?;
        let mut group_bytes = 0_u64;
        let mut row_bytes = 0_u64;
        for column in looked_at(group, wanted) {
            let pages = walk(file, column)?;
            let repeats = column.column_descr().max_rep_level() > 0;
            let is_true = pages.values == rows || (repeats && pages.values > rows);
            if !is_true {
                return Err(format!(
                    "has a footer with {rows} rows and pages of column {} with {}",
                    column.column_path().string(),
                    pages.values
                ));
            }
            // Of a list as many as there are in a row on average.
            let values = pages.values.div_ceil(rows.max(1));
            let value_bytes = pages.densest.max(longest_word(file, column)?);
            group_bytes = group_bytes.saturating_add(pages.bytes);
            row_bytes = row_bytes.saturating_add(values.saturating_mul(value_bytes));
        }
        let average = group_bytes / rows.max(1);
        if average > MAXIMUM_LINE_BYTES as u64 {
            return Err(format!(
                "has rows of {average} bytes on average; a row has at most {MAXIMUM_LINE_BYTES}"
            ));
        }
        if row_bytes > MAXIMUM_ROW_BYTES {
            return Err(format!(
                "has rows that may unpack to {row_bytes} bytes; a row has at most {MAXIMUM_LINE_BYTES}"
            ));
        }
        longest = longest.max(row_bytes);
    }
    let rows = usize::try_from(BATCH_BYTES / longest).unwrap_or(BATCH_ROWS);
    Ok(rows.clamp(1, BATCH_ROWS))
}

/// The columns that are decoded; where there are none, the first, whose pages say how many rows there are.
fn looked_at<'a>(
    group: &'a RowGroupMetaData,
    wanted: &'a [&str],
) -> impl Iterator<Item = &'a ColumnChunkMetaData> {
    let is_wanted = move |column: &ColumnChunkMetaData| {
        let name = column.column_path().parts().first();
        name.is_some_and(|name| wanted.contains(&name.as_str()))
    };
    let is_any = group.columns().iter().any(is_wanted);
    let columns = group.columns().iter().enumerate();
    columns
        .filter(move |(index, column)| {
            if is_any {
                is_wanted(column)
            } else {
                *index == 0
            }
        })
        .map(|(_, column)| column)
}

/// A decoder that gives up on bytes by panicking has found bad data, not a defect of ours.
fn guarded<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| "can't be decoded as Parquet".to_owned())
}

/// An error of the library; those quote sizes and names of columns, never values.
fn words(error: &dyn std::error::Error) -> String {
    format!("is not a Parquet file that can be read: {error}")
}

/// Rows as objects, made on all cores.
fn pieces(batch: &RecordBatch) -> Result<Vec<Map<String, Value>>, String> {
    let rows = batch.num_rows();
    let starts: Vec<usize> = (0..rows).step_by(PIECE_ROWS).collect();
    let pieces: Vec<Vec<Map<String, Value>>> = starts
        .into_par_iter()
        .map(|start| objects(&batch.slice(start, PIECE_ROWS.min(rows - start))))
        .collect::<Result<_, _>>()?;
    Ok(pieces.into_iter().flatten().collect())
}

/// Rows as objects.
///
/// # Errors
/// A column of a type that has no place in JSON, with its name.
pub fn objects(batch: &RecordBatch) -> Result<Vec<Map<String, Value>>, String> {
    let mut rows = vec![Map::new(); batch.num_rows()];
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let name = field.name();
        let column = simple(column).map_err(|kind| format!("column {name} is of type {kind}"))?;
        for (index, row) in rows.iter_mut().enumerate() {
            let value = value(&column, index)
                .ok_or_else(|| format!("column {name} is of type {}", column.data_type()))?;
            row.insert(name.clone(), value);
        }
    }
    Ok(rows)
}

/// Whether values of a type have a place in JSON, see [`value`].
fn has_place(kind: &DataType) -> bool {
    match kind {
        DataType::List(item) | DataType::LargeList(item) => has_place(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| has_place(field.data_type())),
        DataType::Dictionary(_, inner) => has_place(inner),
        kind => {
            kind.is_null()
                || kind.is_integer()
                || kind.is_string()
                || kind.is_decimal()
                || matches!(
                    kind,
                    DataType::Boolean
                        | DataType::Float32
                        | DataType::Float64
                        | DataType::Date32
                        | DataType::Date64
                        | DataType::Timestamp(..)
                )
        }
    }
}

/// The column in one of the types that [`value`] knows. Times are written as in ISO 8601, in UTC, and
/// decimals as they are; bytes are refused.
fn simple(column: &ArrayRef) -> Result<ArrayRef, String> {
    let kind = column.data_type();
    let to = match kind {
        DataType::Int8 | DataType::Int16 | DataType::Int32 => DataType::Int64,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => DataType::UInt64,
        DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Date32
        | DataType::Date64
        | DataType::Timestamp(_, None)
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => DataType::Utf8,
        // The value counts from 1970 in UTC whatever the zone that it is shown in.
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, None),
        DataType::Dictionary(_, inner) => inner.as_ref().clone(),
        _ => return Ok(ArrayRef::clone(column)),
    };
    let cast = cast(column, &to).map_err(|_| kind.to_string())?;
    match kind {
        // What comes out may need a step of its own.
        DataType::Dictionary(..) | DataType::Timestamp(_, Some(_)) => simple(&cast),
        _ => Ok(cast),
    }
}

/// One value; none where its type has no place in JSON.
fn value(column: &ArrayRef, index: usize) -> Option<Value> {
    if column.is_null(index) {
        return Some(Value::Null);
    }
    Some(match column.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => Value::Bool(column.as_boolean_opt()?.value(index)),
        DataType::Int64 => column.as_primitive_opt::<Int64Type>()?.value(index).into(),
        DataType::UInt64 => column.as_primitive_opt::<UInt64Type>()?.value(index).into(),
        DataType::Float32 => column
            .as_primitive_opt::<Float32Type>()?
            .value(index)
            .into(),
        DataType::Float64 => column
            .as_primitive_opt::<Float64Type>()?
            .value(index)
            .into(),
        DataType::Utf8 => column.as_string_opt::<i32>()?.value(index).into(),
        DataType::List(_) => items(&column.as_list_opt::<i32>()?.value(index))?,
        DataType::LargeList(_) => items(&column.as_list_opt::<i64>()?.value(index))?,
        DataType::Struct(fields) => {
            let parts = column.as_struct_opt()?;
            let pairs = fields.iter().zip(parts.columns()).map(|(field, part)| {
                let part = simple(part).ok()?;
                Some((field.name().clone(), value(&part, index)?))
            });
            Value::Object(pairs.collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

fn items(list: &ArrayRef) -> Option<Value> {
    let list = simple(list).ok()?;
    let items = (0..list.len()).map(|index| value(&list, index));
    Some(Value::Array(items.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use arrow_array::builder::{ListBuilder, StringDictionaryBuilder};
    use arrow_array::types::Int32Type;
    use arrow_array::{
        BinaryArray, DictionaryArray, Float64Array, Int32Array, LargeStringArray, ListArray,
        StringArray, TimestampSecondArray,
    };
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, GzipLevel, ZstdLevel};
    use parquet::file::metadata::{
        ColumnChunkMetaDataBuilder, ParquetMetaDataReader, ParquetMetaDataWriter,
    };
    use parquet::file::properties::{EnabledStatistics, WriterProperties};

    use super::*;

    fn column(name: &'static str, array: impl Array + 'static) -> (&'static str, ArrayRef) {
        (name, Arc::new(array))
    }

    fn write(columns: Vec<(&'static str, ArrayRef)>) -> tempfile::NamedTempFile {
        write_with(WriterProperties::default(), columns)
    }

    fn write_with(
        properties: WriterProperties,
        columns: Vec<(&'static str, ArrayRef)>,
    ) -> tempfile::NamedTempFile {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let reopened = file.reopen().unwrap();
        let mut writer = ArrowWriter::try_new(reopened, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        file
    }

    fn read(file: &tempfile::NamedTempFile, wanted: &[&str]) -> Result<Vec<Value>, String> {
        read_some(file, Some(wanted))
    }

    fn read_some(
        file: &tempfile::NamedTempFile,
        wanted: Option<&[&str]>,
    ) -> Result<Vec<Value>, String> {
        let mut rows = ParquetRows::open(file.reopen().unwrap(), wanted)?;
        let mut all = Vec::new();
        while let Some(rows) = rows.next_rows()? {
            all.extend(rows.into_iter().map(Value::Object));
        }
        Ok(all)
    }

    #[test]
    fn values_of_many_types_become_json() {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None])]);
        let dictionary: DictionaryArray<Int32Type> = vec!["a"].into_iter().collect();
        let file = write(vec![
            column("text", StringArray::from(vec!["é"])),
            column("large", LargeStringArray::from(vec!["b"])),
            column("number", Int32Array::from(vec![Some(-7)])),
            column("none", Int32Array::from(vec![None])),
            column("float", Float64Array::from(vec![0.5])),
            column("time", TimestampSecondArray::from(vec![86_400])),
            column(
                "zoned",
                TimestampSecondArray::from(vec![0]).with_timezone("UTC"),
            ),
            column("list", list),
            column("word", dictionary),
            column("unwanted", BinaryArray::from(vec![&b"\x00"[..]])),
        ]);
        let wanted = [
            "text", "large", "number", "none", "float", "time", "zoned", "list", "word",
        ];
        let rows = read(&file, &wanted).unwrap();
        let expected = serde_json::json!({
            "text": "é", "large": "b", "number": -7, "none": null, "float": 0.5,
            "time": "1970-01-02T00:00:00", "zoned": "1970-01-01T00:00:00", "list": [1, null], "word": "a",
        });
        assert_eq!(rows, [expected]);
    }

    #[test]
    fn rows_of_several_pieces_and_batches_come_in_their_order() {
        let count = 2 * BATCH_ROWS + PIECE_ROWS + 7;
        let texts: Vec<String> = (0..count).map(|n| format!("row {n}")).collect();
        let lists = (0..i32::try_from(count).unwrap()).map(|n| Some(vec![Some(n); n as usize % 3]));
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
        let file = write(vec![
            column("text", StringArray::from(texts)),
            column("list", lists),
        ]);
        let rows = read(&file, &["text", "list"]).unwrap();
        let expected = (0..count)
            .map(|n| serde_json::json!({"text": format!("row {n}"), "list": vec![n; n % 3]}));
        assert!(rows.into_iter().eq(expected));
    }

    #[test]
    fn numbers_that_json_does_not_have_are_no_values() {
        let numbers = vec![0.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        let file = write(vec![column("number", Float64Array::from(numbers))]);
        let rows = read(&file, &["number"]).unwrap();
        let expected = [Some(0.5), None, None, None];
        assert_eq!(rows, expected.map(|it| serde_json::json!({"number": it})));
    }

    #[test]
    fn a_column_that_stands_twice_is_refused_where_it_is_wanted() {
        let text = |word: &str| StringArray::from(vec![word]);
        let file = write(vec![
            column("text", text("a")),
            column("other", text("b")),
            column("text", text("c")),
        ]);
        for wanted in [None, Some(["text"].as_slice())] {
            let problem = read_some(&file, wanted).unwrap_err();
            assert_eq!(problem, "has two columns named \"text\"");
        }
        let rows = read(&file, &["other"]).unwrap();
        assert_eq!(rows, [serde_json::json!({"other": "b"})]);
    }

    #[test]
    fn bytes_are_refused_with_the_columns_name() {
        let file = write(vec![column(
            "text",
            BinaryArray::from(vec![&b"SECRET"[..]]),
        )]);
        let problem = read(&file, &["text"]).unwrap_err();
        assert_eq!(problem, "column text is of type Binary");
    }

    #[test]
    fn where_all_columns_are_wanted_those_of_bytes_are_left_out() {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)])]);
        let file = write(vec![
            column("text", StringArray::from(vec!["a"])),
            column("image", BinaryArray::from(vec![&b"\x00"[..]])),
            column("list", list),
        ]);
        let rows = read_some(&file, None).unwrap();
        assert_eq!(rows, [serde_json::json!({"text": "a", "list": [1]})]);
    }

    #[test]
    fn a_footer_that_lies_and_a_file_that_is_cut_are_bad_data() {
        let texts: Vec<String> = (0..50).map(|n| format!("SECRET {n}")).collect();
        let file = write(vec![column("text", StringArray::from(texts))]);
        let whole = std::fs::read(file.path()).unwrap();
        // The last eight bytes are the footer's length and the magic.
        for at in whole.len() - 8..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            std::fs::write(file.path(), &bytes).unwrap();
            let problem = read(&file, &["text"]).unwrap_err();
            assert!(!problem.contains("SECRET"), "{problem}");
        }
        for length in [4, 8, 12, whole.len() / 2, whole.len() - 1] {
            std::fs::write(file.path(), &whole[..length]).unwrap();
            assert!(read(&file, &["text"]).is_err());
        }
    }

    fn planned(file: &tempfile::NamedTempFile) -> Result<usize, String> {
        let opened = File::open(file.path()).unwrap();
        let pages = Arc::new(opened.try_clone().unwrap());
        let builder = ParquetRecordBatchReaderBuilder::try_new(opened).unwrap();
        batch_rows(&pages, builder.metadata().row_groups(), &["text"])
    }

    #[test]
    fn long_rows_are_decoded_a_few_at_a_time_and_too_long_ones_not_at_all() {
        let batch = |length: usize, rows: usize| {
            let texts: Vec<String> = (0..rows).map(|n| format!("{n:x}").repeat(length)).collect();
            let plain = WriterProperties::builder().set_dictionary_enabled(false);
            let columns = vec![column("text", StringArray::from(texts))];
            planned(&write_with(plain.build(), columns))
        };
        assert_eq!(batch(10, 10), Ok(BATCH_ROWS));
        let few = batch(2 << 20, 10).unwrap();
        assert!((1..=4).contains(&few), "{few}");
        let problem = batch(5 << 20, 3).unwrap_err();
        assert!(problem.contains("at most 4194304"), "{problem}");
        let file = write(vec![
            column("other", StringArray::from(vec!["x".repeat(5 << 20)])),
            column("text", StringArray::from(vec!["x"])),
        ]);
        assert_eq!(planned(&file), Ok(BATCH_ROWS), "nobody decodes that column");
    }

    #[test]
    fn a_text_that_a_dictionary_has_once_is_as_long_in_every_row() {
        // What writers put into a dictionary has less than a mebibyte.
        let text = "x".repeat(900_000);
        let file = write(vec![column(
            "text",
            StringArray::from(vec![text.as_str(); 64]),
        )]);
        assert!(file.as_file().metadata().unwrap().len() < 4 << 20);
        let rows = planned(&file).unwrap();
        assert!((1..=9).contains(&rows), "{rows}");
        let mut builder = ListBuilder::new(StringDictionaryBuilder::<Int32Type>::new());
        for _ in 0..300 {
            builder.values().append_value(&text);
        }
        builder.append(true);
        let file = write(vec![column("text", builder.finish())]);
        let problem = planned(&file).unwrap_err();
        assert!(problem.contains("may unpack to"), "{problem}");
    }

    /// The file with another footer.
    fn with_footer(
        whole: &[u8],
        change: impl Fn(RowGroupMetaData) -> RowGroupMetaData,
    ) -> tempfile::NamedTempFile {
        let bytes = bytes::Bytes::copy_from_slice(whole);
        let metadata = ParquetMetaDataReader::new()
            .parse_and_finish(&bytes)
            .unwrap();
        let mut builder = metadata.into_builder();
        let groups = builder.take_row_groups().into_iter().map(change).collect();
        let metadata = builder.set_row_groups(groups).build();
        let length = whole.len() - 8;
        let footer = u32::from_le_bytes(whole[length..length + 4].try_into().unwrap());
        let mut lying = whole[..length - footer as usize].to_vec();
        ParquetMetaDataWriter::new(&mut lying, &metadata)
            .finish()
            .unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lying).unwrap();
        file
    }

    fn with_column(
        group: RowGroupMetaData,
        change: impl Fn(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder,
    ) -> RowGroupMetaData {
        let mut builder = group.into_builder();
        let columns = builder.take_columns().into_iter();
        let columns = columns.map(|column| change(column.into_builder()).build().unwrap());
        let columns = columns.collect();
        builder.set_column_metadata(columns).build().unwrap()
    }

    #[test]
    fn a_footer_that_can_be_read_and_lies_is_held_against_the_pages() {
        let texts: Vec<String> = (0..50).map(|n| format!("SECRET {n}")).collect();
        let file = write(vec![column("text", StringArray::from(texts))]);
        let whole = std::fs::read(file.path()).unwrap();
        let same = with_footer(&whole, |group| group);
        assert_eq!(read(&same, &["text"]).unwrap().len(), 50);
        type Lie = fn(RowGroupMetaData) -> RowGroupMetaData;
        let lies: [(&str, Lie); 7] = [
            ("a row more", |group| {
                group.into_builder().set_num_rows(51).build().unwrap()
            }),
            ("a row less", |group| {
                group.into_builder().set_num_rows(49).build().unwrap()
            }),
            ("rows without end", |group| {
                group.into_builder().set_num_rows(i64::MAX).build().unwrap()
            }),
            ("fewer than none", |group| {
                group.into_builder().set_num_rows(-1).build().unwrap()
            }),
            ("outside", |group| {
                with_column(group, |it| it.set_dictionary_page_offset(Some(1 << 40)))
            }),
            ("another page", |group| {
                with_column(group, |it| it.set_dictionary_page_offset(Some(9)))
            }),
            ("longer", |group| {
                with_column(group, |it| it.set_total_compressed_size(1 << 30))
            }),
        ];
        for (name, lie) in lies {
            let lying = with_footer(&whole, lie);
            // Also where no column of it is asked for, and the footer alone would count.
            for wanted in ["text", "absent"] {
                let problem = read(&lying, &[wanted]).unwrap_err();
                assert!(!problem.contains("SECRET"), "{name}: {problem}");
            }
        }
    }

    #[test]
    fn a_page_that_unpacks_to_more_than_the_footer_says_is_not_unpacked() {
        let zeros = "0".repeat((128 << 20) + 1);
        for packing in [
            Compression::ZSTD(ZstdLevel::default()),
            Compression::GZIP(GzipLevel::default()),
        ] {
            let batch = RecordBatch::try_from_iter([(
                "text",
                Arc::new(StringArray::from(vec![zeros.as_str()])) as ArrayRef,
            )])
            .unwrap();
            let properties = WriterProperties::builder()
                .set_compression(packing)
                .set_dictionary_enabled(false)
                .set_statistics_enabled(EnabledStatistics::None)
                .build();
            let mut whole = Vec::new();
            let mut writer =
                ArrowWriter::try_new(&mut whole, batch.schema(), Some(properties)).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
            let small = with_footer(&whole, |group| {
                let group = with_column(group, |it| it.set_total_uncompressed_size(9));
                let builder = group.into_builder();
                builder.set_total_byte_size(9).build().unwrap()
            });
            let problem = read(&small, &["text"]).unwrap_err();
            assert!(
                problem.contains("a page has at most 134217728"),
                "{problem}"
            );
        }
    }
}
