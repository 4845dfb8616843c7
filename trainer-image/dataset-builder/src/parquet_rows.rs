//! Rows of a Parquet file as JSON objects, a batch at a time. Only the columns that are wanted are
//! decoded.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float32Type, Float64Type, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::cast::cast;
use arrow_schema::{DataType, Field};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::RowGroupMetaData;
use serde_json::{Map, Value};

use crate::lines::MAXIMUM_LINE_BYTES;
use crate::streams::MAXIMUM_UNPACKED_BYTES;

/// Rows that are decoded at a time, at most.
const BATCH_ROWS: usize = 256;
/// Bytes of the wanted columns that are decoded at a time, as far as the footer tells how long rows are.
const BATCH_BYTES: u64 = 8 << 20;

/// The rows of one file.
pub struct ParquetRows {
    batches: ParquetRecordBatchReader,
}

impl ParquetRows {
    /// Opens a file for the columns in `wanted`, or for all that have a place in JSON; others are left alone.
    ///
    /// # Errors
    /// What is wrong with the file, in words and without data.
    pub fn open(file: File, wanted: Option<&[&str]>) -> Result<Self, String> {
        let open = || {
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
            let mask = ProjectionMask::roots(builder.parquet_schema(), indices.iter().copied());
            let batch = batch_rows(builder.metadata().row_groups(), &names)?;
            let batches = builder
                .with_projection(mask)
                .with_batch_size(batch)
                .build()
                .map_err(|error| words(&error))?;
            Ok(Self { batches })
        };
        guarded(open).unwrap_or_else(Err)
    }

    /// The next rows; none at the end.
    ///
    /// # Errors
    /// What is wrong with the file, in words and without data.
    pub fn next_rows(&mut self) -> Result<Option<Vec<Map<String, Value>>>, String> {
        let batch = guarded(|| self.batches.next())?;
        match batch {
            None => Ok(None),
            Some(Ok(batch)) => objects(&batch).map(Some),
            Some(Err(error)) => Err(words(&error)),
        }
    }
}

/// How many rows are decoded at a time: fewer where they are long.
///
/// # Errors
/// Rows that are longer on average than any may be.
fn batch_rows(groups: &[RowGroupMetaData], wanted: &[&str]) -> Result<usize, String> {
    let longest = groups.iter().map(|group| row_bytes(group, wanted)).max();
    let longest = longest.unwrap_or(0).max(1);
    if longest > MAXIMUM_LINE_BYTES as u64 {
        return Err(format!(
            "has rows of {longest} bytes on average; a row has at most {MAXIMUM_LINE_BYTES}"
        ));
    }
    let rows = usize::try_from(BATCH_BYTES / longest).unwrap_or(BATCH_ROWS);
    Ok(rows.clamp(1, BATCH_ROWS))
}

/// Bytes of the wanted columns of a row, on average of a group.
fn row_bytes(group: &RowGroupMetaData, wanted: &[&str]) -> u64 {
    let is_wanted = |name: &String| wanted.contains(&name.as_str());
    let bytes: u64 = group
        .columns()
        .iter()
        .filter(|column| column.column_path().parts().first().is_some_and(is_wanted))
        .map(|column| u64::try_from(column.uncompressed_size()).unwrap_or(0))
        .fold(0, u64::saturating_add);
    let rows = u64::try_from(group.num_rows()).unwrap_or(0);
    bytes / rows.max(1)
}

/// A decoder that gives up on bytes by panicking has found bad data, not a defect of ours.
fn guarded<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| "can't be decoded as Parquet".to_owned())
}

/// An error of the library; those quote sizes and names of columns, never values.
fn words(error: &dyn std::error::Error) -> String {
    format!("is not a Parquet file that can be read: {error}")
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
    use std::sync::Arc;

    use arrow_array::types::Int32Type;
    use arrow_array::{
        BinaryArray, DictionaryArray, Float64Array, Int32Array, LargeStringArray, ListArray,
        StringArray, TimestampSecondArray,
    };
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn column(name: &'static str, array: impl Array + 'static) -> (&'static str, ArrayRef) {
        (name, Arc::new(array))
    }

    fn write(columns: Vec<(&'static str, ArrayRef)>) -> tempfile::NamedTempFile {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer =
            ArrowWriter::try_new(file.reopen().unwrap(), batch.schema(), None).unwrap();
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

    #[test]
    fn long_rows_are_decoded_a_few_at_a_time_and_too_long_ones_not_at_all() {
        let batch = |length: usize, rows: usize| {
            let texts: Vec<String> = (0..rows).map(|n| format!("{n:x}").repeat(length)).collect();
            let file = write(vec![column("text", StringArray::from(texts))]);
            let file = File::open(file.path()).unwrap();
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            batch_rows(builder.metadata().row_groups(), &["text"])
        };
        assert_eq!(batch(10, 10), Ok(BATCH_ROWS));
        let few = batch(2 << 20, 10).unwrap();
        assert!((1..=4).contains(&few), "{few}");
        let problem = batch(5 << 20, 3).unwrap_err();
        assert!(problem.contains("at most 4194304"), "{problem}");
        let file = write(vec![column(
            "other",
            StringArray::from(vec!["x".repeat(5 << 20)]),
        )]);
        let open = File::open(file.path()).unwrap();
        let builder = ParquetRecordBatchReaderBuilder::try_new(open).unwrap();
        let unwanted = batch_rows(builder.metadata().row_groups(), &["text"]);
        assert_eq!(unwanted, Ok(BATCH_ROWS), "nobody decodes that column");
    }
}
