//! The table of judgements as its contract says it: what is written by it is what the builder reads.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt32Array,
};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use dataset_builder::parquet_rows::ParquetRows;
use graftwork_contract::dataset::Classification;
use graftwork_contract::feedback::{COLUMNS, ColumnType, FeedbackRow, SCHEMA_KEY, SCHEMA_VERSION};
use serde_json::{Map, Value};

use super::transform::sql;
use super::*;

fn row(number: u32, id: &str, answer: &str, rating: Option<f64>) -> FeedbackRow {
    FeedbackRow {
        id: id.to_owned(),
        time: format!("2026-11-20T01:00:{number:02}.250Z"),
        request: format!("request-{number}"),
        caller: number.is_multiple_of(2).then(|| "caller".to_owned()),
        endpoint: "helpdesk".to_owned(),
        adapter: "expenses".to_owned(),
        version: Some(7),
        digest: Some(Digest::of(b"seven")),
        messages: format!("[{{\"role\": \"user\", \"content\": \"question {number}\"}}]"),
        answer: answer.to_owned(),
        rating,
        correction: rating.is_none().then(|| format!("better {number}")),
        classification: Some(Classification::Internal),
    }
}

/// Rows as the contract's columns say.
fn written(rows: &[FeedbackRow]) -> Vec<u8> {
    let objects: Vec<Map<String, Value>> = rows
        .iter()
        .map(|row| match serde_json::to_value(row).unwrap() {
            Value::Object(object) => object,
            other => panic!("{other}"),
        })
        .collect();
    let columns = COLUMNS.map(|column| {
        let values = objects.iter().map(|row| row.get(column.name));
        let zone: Option<Arc<str>> = Some("UTC".into());
        let (kind, array): (DataType, ArrayRef) = match column.kind {
            ColumnType::Text => (
                DataType::Utf8,
                Arc::new(values.map(|it| it?.as_str()).collect::<StringArray>()),
            ),
            ColumnType::Number => (
                DataType::UInt32,
                Arc::new(
                    values
                        .map(|it| Some(it?.as_u64()? as u32))
                        .collect::<UInt32Array>(),
                ),
            ),
            ColumnType::Fraction => (
                DataType::Float64,
                Arc::new(values.map(|it| it?.as_f64()).collect::<Float64Array>()),
            ),
            ColumnType::Time => {
                let times = values.map(|it| {
                    let time: jiff::Timestamp = it?.as_str()?.parse().ok()?;
                    Some(time.as_millisecond())
                });
                let times = times.collect::<TimestampMillisecondArray>();
                (
                    DataType::Timestamp(TimeUnit::Millisecond, zone),
                    Arc::new(times.with_timezone("UTC")),
                )
            }
        };
        (Field::new(column.name, kind, column.is_optional), array)
    });
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
    let metadata = [(SCHEMA_KEY.to_owned(), SCHEMA_VERSION.to_owned())].into();
    let schema = Arc::new(Schema::new(fields).with_metadata(metadata));
    // A column that may not be null and is would be refused here.
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn judgements_come_back_from_parquet_as_they_were() {
    let rows = [
        row(1, "a", "good", Some(1.0)),
        row(2, "b", "bad", None),
        row(3, "c", "fair", Some(0.25)),
    ];
    assert!(rows.iter().all(|row| row.problem().is_none()));
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &written(&rows)).unwrap();
    let mut read = ParquetRows::open(file, None).unwrap();
    let mut back: Vec<FeedbackRow> = Vec::new();
    while let Some(batch) = read.next_rows().unwrap() {
        for mut object in batch {
            // Times come in UTC without its letter.
            let time = format!("{}Z", object["time"].as_str().unwrap());
            object.insert("time".to_owned(), time.into());
            back.push(serde_json::from_value(Value::Object(object)).unwrap());
        }
    }
    assert_eq!(back, rows);
}

#[test]
fn of_judgements_with_one_name_sql_takes_the_newest() {
    let mut bench = Bench::new(Format::Completion);
    let table = written(&[
        row(1, "a", "first", Some(1.0)),
        row(2, "b", "bad", Some(0.0)),
        row(3, "a", "second", Some(0.5)),
        row(4, "c", "wrong", None),
    ]);
    let file = "feedback/helpdesk/expenses/2026-11-20/1763600401250-0.parquet";
    bench.volume(file, &[(file, table)]);
    sql(
        &mut bench,
        "SELECT messages AS prompt, coalesce(correction, answer) AS completion FROM ( \
           SELECT *, row_number() OVER (PARTITION BY id ORDER BY \"time\" DESC) AS turn FROM bulk \
         ) newest WHERE turn = 1 AND (rating >= 0.5 OR correction IS NOT NULL)",
    );
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let digest = summary.digest.unwrap();
    let mut answers = bench.answers(&digest);
    answers.sort();
    assert_eq!(answers, ["better 4", "second"]);
}
