//! Rows that are written and read back, and files that are none of ours.

use proptest::prelude::*;

use super::*;

fn row(format: Format) -> BoxedStrategy<Row> {
    match format {
        Format::Text => ".*".prop_map(|text| Row::Text { text }).boxed(),
        Format::Completion => (".*", ".*")
            .prop_map(|(prompt, completion)| Row::Completion { prompt, completion })
            .boxed(),
        Format::Preference => (".*", ".*", ".*")
            .prop_map(|(prompt, chosen, rejected)| Row::Preference {
                prompt,
                chosen,
                rejected,
            })
            .boxed(),
        Format::Chat => prop::collection::vec(
            (".*", ".*").prop_map(|(role, content)| Message { role, content }),
            0..4,
        )
        .prop_map(|messages| Row::Chat { messages })
        .boxed(),
    }
}

fn rows() -> impl Strategy<Value = (Format, Vec<Row>)> {
    prop::sample::select(vec![
        Format::Text,
        Format::Completion,
        Format::Chat,
        Format::Preference,
    ])
    .prop_flat_map(|format| (Just(format), prop::collection::vec(row(format), 0..20)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn rows_are_read_back_as_they_were_written(
        (format, rows) in rows(),
        group in prop::sample::select(vec![None, Some("synset"), Some("prompt")]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.parquet");
        let mut writer = RowWriter::create(&path, format, Beside::grouped(group)).unwrap();
        for row in &rows {
            writer.push(row.clone(), group, None).unwrap();
        }
        writer.finish().unwrap();
        let read: Result<Vec<_>> = RowReader::open(&path, format).unwrap().collect();
        prop_assert_eq!(read.unwrap(), rows);
    }
}

proptest! {
    #[test]
    fn texts_stand_with_the_columns_of_their_format_and_can_be_changed(
        (format, rows) in rows(),
    ) {
        for mut row in rows {
            let count = row.texts().len();
            prop_assert!(row.texts().iter().all(|(column, _)| columns(format).contains(column)));
            for (index, (_, text)) in row.texts_mut().into_iter().enumerate() {
                *text = index.to_string();
            }
            let changed = row.texts().into_iter().map(|(_, text)| text.to_owned());
            let changed: Vec<String> = changed.collect();
            let expected: Vec<String> = (0..count).map(|index| index.to_string()).collect();
            prop_assert_eq!(changed, expected);
        }
    }
}

#[test]
fn more_rows_than_a_batch_keep_their_order_and_the_bytes_are_the_same_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<Row> = (0..=3 * BATCH_ROWS)
        .map(|n| Row::Text {
            text: n.to_string(),
        })
        .collect();
    let write = |name: &str| {
        let path = dir.path().join(name);
        let mut writer =
            RowWriter::create(&path, Format::Text, Beside::grouped(Some("id"))).unwrap();
        for row in &rows {
            writer.push(row.clone(), Some("g"), None).unwrap();
        }
        writer.finish().unwrap();
        path
    };
    let (a, b) = (write("a"), write("b"));
    let read: Result<Vec<_>> = RowReader::open(&a, Format::Text).unwrap().collect();
    assert_eq!(read.unwrap(), rows);
    assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
}

#[test]
fn a_reader_of_which_nobody_asks_for_more_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    let mut writer = RowWriter::create(&path, Format::Text, Beside::default()).unwrap();
    let text = |n: usize| Row::Text {
        text: format!("row {n}"),
    };
    for n in 0..20 * BATCH_ROWS {
        writer.push(text(n), None, None).unwrap();
    }
    writer.finish().unwrap();
    for taken in [0, 1, BATCH_ROWS + 1, 20 * BATCH_ROWS] {
        let reader = RowReader::open(&path, Format::Text).unwrap();
        let rows: Vec<Row> = reader.map(Result::unwrap).take(taken).collect();
        assert!(rows.into_iter().eq((0..taken).map(text)), "{taken} rows");
    }
}

#[test]
fn long_rows_are_written_in_several_groups_of_bounded_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    let mut writer = RowWriter::create(&path, Format::Text, Beside::default()).unwrap();
    // Letters that zstd can't shorten to nothing: a hash for each sixteen.
    let text = |n: u64| -> String {
        (0..1 << 16)
            .map(|at: u64| {
                format!(
                    "{:016x}",
                    (n << 32 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                )
            })
            .collect()
    };
    for n in 0..200 {
        let held = writer.writer.in_progress_size();
        assert!(held < ROW_GROUP_BYTES + 2 * BATCH_BYTES, "{held} bytes");
        writer
            .push(Row::Text { text: text(n) }, None, None)
            .unwrap();
    }
    writer.finish().unwrap();
    let file = File::open(&path).unwrap();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    assert!(builder.metadata().num_row_groups() > 1);
    let read = RowReader::open(&path, Format::Text).unwrap();
    assert_eq!(read.map(Result::unwrap).count(), 200);
}

#[test]
fn groups_are_read_where_they_have_a_column_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    for (name, column, expected) in [
        ("own", Some("claim"), vec!["a", "b", "a"]),
        ("text", Some("text"), vec![]),
        ("none", None, vec![]),
    ] {
        let path = dir.path().join(name);
        let mut writer = RowWriter::create(&path, Format::Text, Beside::grouped(column)).unwrap();
        for group in ["a", "b", "a"] {
            let text = group.to_owned();
            writer
                .push(Row::Text { text }, column.map(|_| group), None)
                .unwrap();
        }
        writer.finish().unwrap();
        let reader = RowReader::open(&path, Format::Text).unwrap();
        assert_eq!(read_groups(reader).unwrap(), expected, "{name}");
    }
}

#[test]
fn rewards_are_read_back_beside_groups_and_rows() {
    let dir = tempfile::tempdir().unwrap();
    let both = Beside {
        group: Some("claim"),
        reward: true,
    };
    for (name, beside, expected) in [
        ("both", both, vec![0.0, -1.5, 3.0]),
        ("none", Beside::grouped(Some("claim")), vec![]),
        ("namesake", Beside::grouped(Some(REWARD_COLUMN)), vec![]),
    ] {
        let path = dir.path().join(name);
        let mut writer = RowWriter::create(&path, Format::Text, beside).unwrap();
        for reward in [0.0, -1.5, 3.0] {
            let text = "a".to_owned();
            let row = Row::Text { text };
            writer.push(row, Some("g"), Some(reward)).unwrap();
        }
        writer.finish().unwrap();
        let open = || RowReader::open(&path, Format::Text).unwrap();
        let read: Vec<String> = read_rewards(open())
            .unwrap()
            .iter()
            .map(f64::to_string)
            .collect();
        let expected: Vec<String> = expected.iter().map(f64::to_string).collect();
        assert_eq!(read, expected, "{name}");
        assert_eq!(read_groups(open()).unwrap(), ["g"; 3], "{name}");
        assert_eq!(open().count(), 3, "{name}");
    }
    let path = dir.path().join("lacking");
    let mut writer = RowWriter::create(&path, Format::Text, both).unwrap();
    let row = Row::Text { text: "a".into() };
    assert!(writer.push(row, Some("g"), None).is_err());
}

#[test]
fn a_file_of_another_format_is_an_error_that_names_the_columns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    let mut writer = RowWriter::create(&path, Format::Text, Beside::default()).unwrap();
    writer
        .push(Row::Text { text: "a".into() }, None, None)
        .unwrap();
    writer.finish().unwrap();
    let error = RowReader::open(&path, Format::Completion)
        .unwrap()
        .next()
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("completion"), "{error}");
}

#[test]
fn a_schema_hash_depends_on_format_and_group_column() {
    let mut hashes: Vec<_> = [
        (Format::Text, None),
        (Format::Completion, None),
        (Format::Completion, Some("synset")),
        (Format::Chat, None),
        (Format::Preference, None),
    ]
    .into_iter()
    .map(|(format, group)| schema_hash(format, Beside::grouped(group)))
    .collect();
    let same = schema_hash(Format::Completion, Beside::grouped(Some("prompt")));
    assert_eq!(same, hashes[1], "the group column adds none");
    let rewarded = Beside {
        group: Some("synset"),
        reward: true,
    };
    hashes.push(schema_hash(Format::Completion, rewarded));
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 6);
}
