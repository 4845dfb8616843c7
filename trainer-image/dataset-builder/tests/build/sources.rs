//! Files of every kind, alone and by pattern.

use std::io::Write as _;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};

use super::*;

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The same rows as [`completions`], as CSV.
fn csv(numbers: std::ops::Range<u32>) -> String {
    numbers.fold("completion;ignored;prompt\r\n".to_owned(), |text, n| {
        let topic = n % 5;
        text + &format!("topic {topic};;\"definition {n}\"\r\n")
    })
}

/// The same rows, as Parquet.
pub(super) fn parquet(numbers: std::ops::Range<u32>) -> Vec<u8> {
    let prompts = numbers.clone().map(|n| format!("definition {n}"));
    let topics = numbers.map(|n| format!("topic {}", n % 5));
    let batch = RecordBatch::try_from_iter([
        (
            "prompt",
            Arc::new(StringArray::from_iter_values(prompts)) as ArrayRef,
        ),
        (
            "completion",
            Arc::new(StringArray::from_iter_values(topics)) as ArrayRef,
        ),
    ])
    .unwrap();
    let mut bytes = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn the_log_counts_the_rows_of_each_source_by_itself() {
    let mut bench = Bench::new(Format::Completion);
    let first = format!("{}{{\"prompt\": 1}}\n", completions(0..100));
    bench.source("first", &first);
    bench.source("second", &completions(100..130));
    let mut command = bench.command();
    let output = command
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .output();
    let log = String::from_utf8(output.unwrap().stdout).unwrap();
    let counts: Vec<_> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|mut line| line["fields"].take())
        .filter(|fields| fields["message"] == "source read")
        .map(|fields| {
            let source = fields["source"].as_str().unwrap().to_owned();
            (source, fields["good"].as_u64(), fields["rejected"].as_u64())
        })
        .collect();
    let expected = [("first", 100, 1), ("second", 30, 0)];
    let expected = expected.map(|(name, good, bad)| (name.to_owned(), Some(good), Some(bad)));
    assert_eq!(counts, expected);
}

#[test]
fn the_same_rows_are_the_same_version_however_their_files_are_written() {
    let rows = completions(0..100);
    let mut bench = Bench::new(Format::Completion);
    bench.source("rows", &rows);
    let (_, first) = bench.build();
    for (name, bytes) in [
        ("gzip", gzip(rows.as_bytes())),
        (
            "zstd",
            zstd::stream::encode_all(rows.as_bytes(), 3).unwrap(),
        ),
        ("csv", csv(0..100).into_bytes()),
        ("packed csv", gzip(csv(0..100).as_bytes())),
        ("parquet", parquet(0..100)),
    ] {
        bench.fingerprint(name);
        bench.bytes("rows", &bytes);
        bench.planned_bytes("rows", &bytes);
        let (code, summary) = bench.build();
        assert_eq!(code, 0, "{name}: {summary:?}");
        assert_eq!(summary.digest, first.digest, "{name}");
    }
}

#[test]
fn all_files_of_a_pattern_are_read_and_each_is_in_the_provenance() {
    let mut bench = Bench::new(Format::Completion);
    bench.source("rows", &completions(0..100));
    let (_, first) = bench.build();
    bench.fingerprint("files");
    bench.volume(
        "**/*.part",
        &[
            ("b/2.part", csv(40..70).into_bytes()),
            ("a.part", parquet(0..40)),
            ("b/1.part", gzip(completions(70..100).as_bytes())),
            ("b/1.txt", b"not this".to_vec()),
        ],
    );
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let digest = summary.digest.unwrap();
    assert_eq!(digest, first.digest.unwrap());
    bench.fingerprint("one row more");
    let more = [("c.part", completions(100..101).into_bytes())];
    bench.volume("**/*.part", &more);
    let digest = bench.build().1.digest.unwrap();
    let manifest = rows::manifest(&bench.store(), "topics", &digest).unwrap();
    let uris: Vec<_> = manifest
        .provenance
        .sources
        .iter()
        .map(|it| it.uri.as_str())
        .collect();
    let expected = ["a.part", "b/1.part", "b/2.part", "c.part"];
    assert_eq!(uris, expected.map(|name| format!("pvc://text/{name}")));
}

#[test]
fn a_bad_row_of_several_files_is_named_with_its_file_and_line() {
    let mut bench = Bench::new(Format::Completion);
    let shifted = "prompt,completion\n\"a\nb\",c\nSECRET\n";
    bench.volume(
        "*.csv",
        &[("1.csv", csv(0..9).into_bytes()), ("2.csv", shifted.into())],
    );
    bench.config.validation.maximum_invalid_percent = "0".into();
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (65, "DataError"));
    let place = "source bulk file 2.csv line 4: has 1 fields, the header has 2";
    assert!(summary.message.contains(place), "{}", summary.message);
    assert_eq!(summary.rejected[0].to_string(), place);
    assert!(!format!("{summary:?}").contains("SECRET"));
}

#[test]
fn files_that_are_nothing_of_what_is_read_end_the_build_with_their_name() {
    let rows = completions(0..100);
    let packed = gzip(rows.as_bytes());
    let mut lying = parquet(0..10);
    let at = lying.len() - 6;
    lying[at] ^= 0xff;
    for (bytes, words) in [
        (b"PK\x03\x04rest".to_vec(), "a zip archive"),
        (gzip(b"PK\x03\x04rest"), "holds, packed, a zip archive"),
        (gzip(&parquet(0..3)), "holds, packed, Parquet"),
        (gzip(&packed), "holds, packed, a gzip archive"),
        (
            packed[..packed.len() / 2].to_vec(),
            "is damaged or too large",
        ),
        (lying, "is not a Parquet file"),
        (
            b"\x10\0\0\0\0\0\0\0{\"a\":{}}  \n".to_vec(),
            "is no text in UTF-8 (byte 2 is 0)",
        ),
        (
            b"[\n{\"prompt\": \"a\", \"completion\": \"b\"}\n]\n".to_vec(),
            "is one JSON array: write each of its objects in a line of its own",
        ),
        (
            b"Prompt,Completion\na,b\n".to_vec(),
            "has \"Prompt\" where \"prompt\" is read",
        ),
        (
            b"prompt,completion,prompt\na,b,c\n".to_vec(),
            "two columns named \"prompt\"",
        ),
    ] {
        let mut bench = Bench::new(Format::Completion);
        bench.volume("one.file", &[("one.file", bytes)]);
        let (code, summary) = bench.build();
        assert_eq!(
            (code, summary.reason.as_str()),
            (65, "DataError"),
            "{words}"
        );
        assert!(
            summary
                .message
                .contains("source bulk: spec.sources[bulk].uri: pvc://text/one.file"),
            "{summary:?}"
        );
        assert!(
            summary.message.contains(words),
            "{words}: {}",
            summary.message
        );
        assert!(bench.store().list("").unwrap().is_empty());
    }
}

#[test]
fn what_is_as_it_was_is_not_read_again_and_what_changed_is() {
    let mut bench = Bench::new(Format::Completion);
    let files = [
        ("1.jsonl", completions(0..50).into_bytes()),
        ("2.jsonl", completions(50..80).into_bytes()),
    ];
    bench.volume("*.jsonl", &files);
    assert_eq!(bench.build().0, 0);
    // Whether it was read, the log says.
    let again = |bench: &mut Bench, what: &str| {
        bench.fingerprint(what);
        let mut command = bench.command();
        let output = command.env("RUST_LOG", "info").stdout(Stdio::piped());
        let output = output.output().unwrap();
        let summary = read_summary(&bench.summary_file());
        assert!(output.status.success(), "{what}: {summary:?}");
        let log = String::from_utf8(output.stdout).unwrap();
        let path = paths::dataset_build("topics", &bench.config.fingerprint);
        assert!(bench.store().get(&path).unwrap().is_some(), "{what}");
        (summary.version.unwrap(), log.contains("source read"))
    };
    assert_eq!(again(&mut bench, "the same"), (1, false));
    let path = bench.dir.path().join("claim/2.jsonl");
    fs::write(&path, completions(50..80)).unwrap();
    assert_eq!(again(&mut bench, "written anew"), (1, true));
    assert_eq!(again(&mut bench, "as it was written"), (1, false));
    fs::write(&path, completions(50..81)).unwrap();
    assert_eq!(again(&mut bench, "a row more"), (2, true));
    assert_eq!(again(&mut bench, "no more"), (2, false));
    fs::write(bench.dir.path().join("claim/3.jsonl"), completions(81..90)).unwrap();
    assert_eq!(again(&mut bench, "a file more"), (3, true));
    bench.config.validation.duplicates = Duplicates::Drop;
    assert_eq!(again(&mut bench, "another spec"), (3, true));
    assert_eq!(again(&mut bench, "that spec"), (3, false));
    bench.privacy(PrivacyMode::Pseudonymise, &["prompt"]);
    bench.key("a key of more than sixteen bytes");
    assert_eq!(again(&mut bench, "with a key"), (3, true));
    assert_eq!(again(&mut bench, "a key may change"), (3, true));
}
