//! Builds with less memory than rows.

use graftwork_contract::dataset::Balance;

use super::*;

/// The least that a build takes.
const LITTLE: u64 = 4096;

/// Rows with a class, some of them equal or nearly so.
fn rows(count: u32) -> String {
    (0..count).fold(String::new(), |text, n| {
        let (kind, class) = (n % 400, if n % 9 == 0 { "rare" } else { "common" });
        let more = if n % 5 == 0 { " too" } else { "" };
        let words = format!(
            "the {kind} quick brown foxes jump over {kind} lazy dogs of house {kind}{more}"
        );
        let (words, id) = if n % 7 == 0 {
            (words.to_uppercase(), n % 40)
        } else {
            (words, n % 50)
        };
        text + &format!(
            "{{\"text\": \"{words}\", \"id\": {id}, \"class\": \"{class}\", \"day\": {n}}}\n"
        )
    })
}

/// Files of the newest version that hold no time: name and bytes.
fn files(bench: &Bench, digest: &Digest) -> BTreeMap<String, Vec<u8>> {
    let folder = bench.store_dir().join(paths::dataset("topics", digest));
    fs::read_dir(folder)
        .unwrap()
        .map(Result::unwrap)
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(name, _)| name != "manifest.json")
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect()
}

#[test]
fn every_file_is_the_same_with_little_memory_and_with_much() {
    for (near, method, group) in [
        (NearDuplicates::Keep, SplitMethod::Hash, None),
        (NearDuplicates::Drop, SplitMethod::Random, Some("id")),
        (NearDuplicates::Group, SplitMethod::Time, Some("id")),
    ] {
        let built = [None, Some(LITTLE)].map(|memory| {
            let mut bench = Bench::new(Format::Text);
            bench.memory = memory;
            bench.config.validation.near_duplicates = near;
            bench.config.split.method = method;
            bench.config.split.time_column = Some("day".into());
            bench.config.split.group_column = group.map(str::to_owned);
            bench.config.balance = Some(Balance {
                column: "class".into(),
                maximum_upsample: 3,
            });
            bench.source("rows", &rows(1500));
            let (code, summary) = bench.build();
            assert_eq!(code, 0, "{summary:?}");
            let digest = summary.digest.unwrap();
            let files = files(&bench, &digest);
            assert_eq!(files.len(), 5, "{:?}", files.keys());
            (digest, summary.rows, files)
        });
        let [much, little] = built;
        assert_eq!((&much.0, much.1), (&little.0, little.1), "{method:?}");
        assert!(much.2 == little.2, "a file has other bytes, {method:?}");
    }
}

#[test]
fn rows_that_are_judged_while_others_are_read_are_all_kept_and_bad_ones_in_their_order() {
    // Several times as many as are judged at a time.
    let lines = (1..=20_000).map(|n| match n % 1500 {
        0 => format!("{{\"words\": {n}}}\n"),
        _ => format!("{{\"text\": \"row {n} of many\"}}\n"),
    });
    let lines: Vec<String> = lines.collect();
    let built = |lines: Vec<&str>| {
        let mut bench = Bench::new(Format::Text);
        bench.source("rows", &lines.concat());
        let (code, summary) = bench.build();
        assert_eq!(code, 0, "{summary:?}");
        summary
    };
    let summary = built(lines.iter().map(String::as_str).collect());
    let places: Vec<u64> = summary.rejected.iter().map(|row| row.line).collect();
    assert_eq!(places, (1..=13).map(|n| n * 1500).collect::<Vec<u64>>());
    let rows = summary.rows.unwrap();
    assert_eq!(rows.train + rows.validation + rows.test, 20_000 - 13);
    // In another order others are judged together.
    let other = built(lines.iter().rev().map(String::as_str).collect());
    assert_eq!((other.digest, other.rows), (summary.digest, Some(rows)));
}

#[test]
fn a_killed_build_leaves_nothing_on_the_scratch_volume() {
    let mut bench = Bench::new(Format::Text);
    bench.memory = Some(LITTLE);
    bench.config.validation.near_duplicates = NearDuplicates::Group;
    bench.source("rows", &rows(3000));
    let started = std::time::Instant::now();
    assert_eq!(bench.build().0, 0);
    let whole = started.elapsed();
    // Each earlier than the one before: how long a build takes depends on who else uses the machine.
    let (mut killed, mut delay) = (0, whole);
    for attempt in 0..16 {
        delay = delay * 2 / 3;
        bench.fingerprint(&format!("attempt {attempt}"));
        let mut child = bench.start();
        std::thread::sleep(delay);
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().code().is_none());
        let left: Vec<_> = fs::read_dir(bench.scratch_dir()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        if killed == 4 {
            break;
        }
    }
    assert!(killed > 1, "only {killed} builds were caught alive");
}

#[test]
fn a_scratch_volume_that_can_not_be_used_is_named_and_tried_again() {
    let mut bench = Bench::new(Format::Text);
    bench.source("rows", &rows(100));
    fs::remove_dir(bench.scratch_dir()).unwrap();
    assert_eq!(bench.build().0, 0, "rows that fit in memory need none");
    bench.fingerprint("little");
    bench.memory = Some(LITTLE);
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (69, "StorageUnavailable"));
    let dir = bench.scratch_dir().display().to_string();
    assert!(summary.message.contains(&dir), "{}", summary.message);
}

#[test]
fn a_row_of_parquet_is_as_long_as_a_line_at_most() {
    let mut texts: Vec<String> = (0..40).map(|n| format!("short {n}")).collect();
    texts.push("x".repeat(5 << 20));
    let column = arrow_array::StringArray::from(texts);
    let column = std::sync::Arc::new(column) as arrow_array::ArrayRef;
    let batch = arrow_array::RecordBatch::try_from_iter([("text", column)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let mut bench = Bench::new(Format::Text);
    bench.bytes("rows", &bytes);
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    assert_eq!(summary.rows.unwrap().rejected, 1);
    assert_eq!(summary.rejected[0].line, 41);
    assert_eq!(summary.rejected[0].rule, "is longer than 4194304 bytes");
}
