//! Columns that the spec asks for and that a source does not have.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use graftwork_contract::dataset::Balance;

use super::*;

/// Twenty rows, of which the first `with` have a column more.
fn rows(with: u32, column: &str) -> String {
    (0..20).fold(String::new(), |text, n| {
        let more = if n < with {
            format!(", \"{column}\": \"x{n}\"")
        } else {
            String::new()
        };
        text + &format!(
            "{{\"prompt\": \"p{n}\", \"completion\": \"c{n}\", \"claim_id\": \"{n}\"{more}}}\n"
        )
    })
}

fn asks_for(column: &str) -> [(&'static str, Bench); 3] {
    let bench = || {
        let mut bench = Bench::new(Format::Completion);
        bench.source("rows", &rows(0, ""));
        bench
    };
    let (mut group, mut time, mut class) = (bench(), bench(), bench());
    group.config.split.group_column = Some(column.to_owned());
    time.config.split.method = SplitMethod::Time;
    time.config.split.time_column = Some(column.to_owned());
    class.config.balance = Some(Balance {
        column: column.to_owned(),
        maximum_upsample: 4,
    });
    [
        ("spec.split.groupColumn", group),
        ("spec.split.column", time),
        ("spec.balance.column", class),
    ]
}

#[test]
fn a_column_that_no_row_has_is_said_once_with_the_field_and_those_that_there_are() {
    for (field, mut bench) in asks_for("claimid") {
        let (code, summary) = bench.build();
        assert_eq!((code, summary.reason.as_str()), (65, "DataError"));
        assert_eq!(
            summary.message,
            format!(
                "{field}: no row of source rows has a value in column claimid (did you mean claim_id?); its \
                 columns are claim_id, completion, prompt; name one of these, or correct the source"
            )
        );
        assert_eq!(summary.rejected, [], "not row by row");
        assert_eq!(summary.rows.unwrap().rejected, 20);

        bench.config.sources[0].columns = [("claimid".into(), "claim_no".into())].into();
        let (_, summary) = bench.build();
        let named =
            "in column claim_no (spec.sources[rows].columns.claimid) (did you mean claim_id?)";
        assert!(summary.message.contains(named), "{}", summary.message);
    }
}

#[test]
fn a_column_that_some_rows_have_is_missing_row_by_row() {
    for (_, mut bench) in asks_for("claimid") {
        bench.source("rows", &rows(5, "claimid"));
        let (code, summary) = bench.build();
        assert_eq!(code, 65);
        assert!(
            summary.message.contains("rows are invalid"),
            "{}",
            summary.message
        );
        assert!(!summary.rejected.is_empty());
    }
}

#[test]
fn columns_of_a_parquet_file_that_nobody_reads_are_among_those_that_there_are() {
    let column = |letter: &str| {
        let texts = (0..20).map(|n| format!("{letter}{n}"));
        Arc::new(StringArray::from_iter_values(texts)) as ArrayRef
    };
    let batch = RecordBatch::try_from_iter([
        ("prompt", column("p")),
        ("completion", column("c")),
        ("claim_id", column("i")),
    ])
    .unwrap();
    let mut bytes = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    for (_, mut bench) in asks_for("claimid") {
        bench.bytes("rows", &bytes);
        let (code, summary) = bench.build();
        assert_eq!(code, 65);
        let there = "(did you mean claim_id?); its columns are claim_id, completion, prompt;";
        assert!(summary.message.contains(there), "{}", summary.message);
    }
}
