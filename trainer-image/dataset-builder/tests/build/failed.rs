//! Builds that end with an error: what is named, and that nothing is left behind.

use super::*;

#[test]
fn bad_rows_end_the_build_with_source_line_rule_and_limit() {
    let mut bench = Bench::new(Format::Completion);
    let bad = "{\"prompt\": \"SECRET\"}\nSECRET\n\u{fffd}\n".repeat(20);
    bench.source("rows", &format!("{}{bad}", completions(0..10)));
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (65, "DataError"));
    for words in [
        "60 of 70 rows are invalid (85.71 %)",
        "spec.validation.maximumInvalidPercent allows 10 %",
        "source rows line 11: completion is missing (20 rows)",
    ] {
        assert!(summary.message.contains(words), "{}", summary.message);
    }
    assert!(!format!("{summary:?}").contains("SECRET"));
    assert_eq!(summary.rejected.len(), 20);
    assert_eq!(summary.rows.unwrap().rejected, 60);
    assert!(
        bench.store().list("").unwrap().is_empty(),
        "nothing is left behind"
    );

    let mut bench = Bench::new(Format::Completion);
    bench.config.validation.minimum_rows = 11;
    bench.source("rows", &completions(0..10));
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (65, "DataError"));
    assert!(
        summary
            .message
            .contains("10 of 10 rows are valid, spec.validation.minimumRows asks for 11"),
        "{}",
        summary.message
    );
}

#[test]
fn what_is_missing_or_wrong_is_named_with_its_reason() {
    let mut bench = Bench::new(Format::Text);
    bench.source("rows", "");
    fs::remove_file(bench.dir.path().join("rows.jsonl")).unwrap();
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (65, "SourceNotFound"));
    assert!(
        summary.message.contains("configmap://rows/rows.jsonl"),
        "{}",
        summary.message
    );

    fs::create_dir(bench.dir.path().join("rows.jsonl")).unwrap();
    let (code, summary) = bench.build();
    assert_eq!(
        (code, summary.reason.as_str()),
        (64, "InvalidSpec"),
        "another attempt would find a folder again"
    );
    assert!(
        summary.message.contains("rows.jsonl is a folder"),
        "{}",
        summary.message
    );
    fs::remove_dir(bench.dir.path().join("rows.jsonl")).unwrap();

    bench.source("rows", "{\"text\": \"a\"}\n");
    bench.config.split.train_percent = 81;
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (64, "InvalidSpec"));
    assert!(
        summary.message.contains("add up to 101"),
        "{}",
        summary.message
    );

    bench.config.split.train_percent = 80;
    fs::remove_dir_all(bench.store_dir()).unwrap();
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (69, "StorageUnavailable"));

    let nowhere = bench.dir.path().join("absent.json");
    let code = command(&nowhere, &bench.store_dir(), &bench.summary_file())
        .spawn()
        .unwrap()
        .wait()
        .unwrap()
        .code();
    assert_eq!(code, Some(64));
    assert_eq!(read_summary(&bench.summary_file()).reason, "InvalidSpec");
}

#[test]
fn a_source_that_changed_while_the_build_started_is_not_recorded_under_the_old_fingerprint() {
    let mut bench = Bench::new(Format::Completion);
    let (first, second) = (completions(0..50), completions(0..60));
    bench.source("rows", &second);
    bench.planned("rows", &first);
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (69, "BuildFailed"));
    for words in [
        "source rows (configmap://rows/rows.jsonl) changed while the build started",
        Digest::of(second.as_bytes()).as_str(),
        Digest::of(first.as_bytes()).as_str(),
    ] {
        assert!(summary.message.contains(words), "{}", summary.message);
    }
    assert!(
        bench.store().list("").unwrap().is_empty(),
        "the store has no record of either"
    );
    // Bad rows of bytes that the build was not planned for are no data error.
    bench.source("rows", "no JSON\n");
    bench.planned("rows", &first);
    assert_eq!(bench.build().0, 69);

    bench.fingerprint("planned again");
    bench.source("rows", &second);
    bench.planned("rows", &second);
    let (code, summary) = bench.build();
    assert_eq!((code, summary.version), (0, Some(1)), "{summary:?}");
}

#[test]
fn a_damaged_version_is_not_built_upon() {
    let mut bench = Bench::new(Format::Completion);
    bench.source("rows", &completions(0..50));
    let (_, summary) = bench.build();
    let folder = paths::dataset("topics", &summary.digest.unwrap());
    fs::write(
        bench.store_dir().join(&folder).join("train.parquet"),
        "PAR1",
    )
    .unwrap();
    bench.fingerprint("again");
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (65, "DigestMismatch"));
    assert!(
        summary.message.contains("train.parquet"),
        "{}",
        summary.message
    );
}
