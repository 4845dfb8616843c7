//! Builds by the real binary: what it leaves in the store, what it ends with, and that a kill at
//! any instant changes nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a failed step is a failed test, and tests watch the clock"
)]

mod absent;
mod analyzer;
mod dealing;
mod feedback;
mod hostile;
mod measured;
mod page;
mod parts;
mod postgres;
mod privacy;
mod s3;
mod signing;
mod sources;
mod spilling;
mod streaming;
mod transform;
mod uris;
mod web;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use graftwork_artifacts::Store;
use graftwork_artifacts::rows::{self, Row};
use graftwork_contract::dataset::{
    BuildConfig, BuildRecord, BuildSummary, Duplicates, Format, HashSplit, NearDuplicates, Privacy,
    PrivacyMode, Source, Split, SplitMethod, Validation, VersionRecord,
};
use graftwork_contract::{Digest, paths};

/// A folder with sources, a store and a configuration.
struct Bench {
    dir: tempfile::TempDir,
    config: BuildConfig,
    /// Bytes that may be held in memory; none: as many as a Job's builder may.
    memory: Option<u64>,
    /// Bytes that a query may hold; none: as many as in every build.
    query_memory: Option<u64>,
}

impl Bench {
    fn new(format: Format) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        fs::create_dir(dir.path().join("scratch")).unwrap();
        let config = BuildConfig {
            dataset: "topics".into(),
            description: Some("What was asked & answered".into()),
            fingerprint: Digest::of(b"first"),
            format,
            reward: false,
            sources: Vec::new(),
            transform: None,
            validation: Validation {
                minimum_rows: 1,
                maximum_invalid_percent: "10".into(),
                duplicates: Duplicates::Keep,
                near_duplicates: NearDuplicates::Keep,
                maximum_tokens_per_row: None,
            },
            split: HashSplit {
                method: SplitMethod::Hash,
                time_column: None,
                group_column: None,
                train_percent: 80,
                validation_percent: 10,
                test_percent: 10,
                seed: 7,
            },
            classification: None,
            privacy: None,
            pseudonym_key: None,
            balance: None,
            base_model: None,
            shards: None,
            allowed_hosts: Vec::new(),
            hub_endpoint: None,
            store: None,
        };
        Self {
            dir,
            config,
            memory: None,
            query_memory: None,
        }
    }

    fn source(&mut self, name: &str, text: &str) {
        self.bytes(name, text.as_bytes());
    }

    /// A source of any bytes. Its name says that it is JSONL, whatever it is.
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        let path = self.dir.path().join(format!("{name}.jsonl"));
        fs::write(&path, bytes).unwrap();
        self.config.sources.retain(|source| source.name != name);
        let uri = format!("configmap://{name}/rows.jsonl");
        self.config.sources.push(source_at(name, &uri, &path));
    }

    /// A source of all files of a volume that match.
    fn volume(&mut self, pattern: &str, files: &[(&str, Vec<u8>)]) {
        let root = self.dir.path().join("claim");
        for (name, bytes) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        self.config.sources = vec![Source {
            root: Some(root.to_str().unwrap().into()),
            ..source_at(
                "bulk",
                &format!("pvc://text/{pattern}"),
                &root.join(pattern),
            )
        }];
    }

    /// The build is planned for these bytes of a source.
    fn planned(&mut self, name: &str, text: &str) {
        self.planned_bytes(name, text.as_bytes());
    }

    fn planned_bytes(&mut self, name: &str, bytes: &[u8]) {
        let source = self.config.sources.iter_mut().find(|it| it.name == name);
        source.unwrap().digest = Some(Digest::of(bytes));
    }

    fn fingerprint(&mut self, text: &str) {
        self.config.fingerprint = Digest::of(text.as_bytes());
    }

    fn store_dir(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn store(&self) -> Store {
        Store::open(self.store_dir()).unwrap()
    }

    fn privacy(&mut self, mode: PrivacyMode, columns: &[&str]) {
        self.config.privacy = Some(Privacy {
            mode,
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            analyzer: None,
        });
    }

    /// The key of pseudonyms.
    fn key(&self, key: &str) {
        fs::write(self.dir.path().join("key"), key).unwrap();
    }

    fn command(&self) -> Command {
        let path = self.dir.path().join("config.json");
        fs::write(&path, serde_json::to_vec(&self.config).unwrap()).unwrap();
        let mut command = command(&path, &self.store_dir(), &self.summary_file());
        command.args([Path::new("--scratch"), self.scratch_dir().as_path()]);
        if let Some(bytes) = self.memory {
            command.args(["--memory-bytes", &bytes.to_string()]);
        }
        if let Some(bytes) = self.query_memory {
            command.args(["--query-memory-bytes", &bytes.to_string()]);
        }
        command
    }

    fn start(&self) -> Child {
        self.command().spawn().unwrap()
    }

    fn scratch_dir(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    fn summary_file(&self) -> PathBuf {
        self.dir.path().join("summary.json")
    }

    /// Builds to the end: the exit code and the termination message.
    fn build(&self) -> (i32, BuildSummary) {
        let _ = fs::remove_file(self.summary_file());
        let code = self.start().wait().unwrap().code().unwrap();
        (code, read_summary(&self.summary_file()))
    }

    fn rows(&self, digest: &Digest, split: Split) -> Vec<Row> {
        rows::read(&self.store(), "topics", digest, split).unwrap()
    }

    /// The completions of all splits' rows.
    fn answers(&self, digest: &Digest) -> Vec<String> {
        let rows = Split::ALL
            .iter()
            .flat_map(|split| self.rows(digest, *split));
        rows.map(|row| match row {
            Row::Completion { completion, .. } => completion,
            _ => panic!("another format"),
        })
        .collect()
    }

    /// What stands in the store.
    fn stored(&self) -> Vec<String> {
        let entries = self.store().list("").unwrap();
        entries.into_iter().map(|entry| entry.path).collect()
    }

    fn version(&self, number: u32) -> Option<VersionRecord> {
        let path = paths::dataset_version("topics", number);
        self.store().get_json(&path).unwrap()
    }
}

/// A source of the files at a path, of which nothing else is said.
fn source_at(name: &str, uri: &str, path: &Path) -> Source {
    Source {
        name: name.into(),
        uri: uri.into(),
        path: path.to_str().unwrap().into(),
        root: None,
        columns: BTreeMap::new(),
        digest: None,
        query: None,
        remote: None,
        share: None,
    }
}

fn command(config: &Path, store: &Path, summary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dataset-builder"));
    command
        .args([Path::new("--config"), config, Path::new("--store"), store])
        .args([Path::new("--termination-file"), summary])
        .args([
            Path::new("--pseudonym-key"),
            store.with_file_name("key").as_path(),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn read_summary(path: &Path) -> BuildSummary {
    let bytes = fs::read(path).unwrap();
    assert!(bytes.len() <= 4096, "{} bytes", bytes.len());
    serde_json::from_slice(&bytes).unwrap()
}

fn completions(numbers: std::ops::Range<u32>) -> String {
    numbers.fold(String::new(), |text, n| {
        let topic = n % 5;
        text + &format!("{{\"prompt\": \"definition {n}\", \"completion\": \"topic {topic}\"}}\n")
    })
}

#[test]
fn a_build_leaves_rows_manifest_version_and_record() {
    let mut bench = Bench::new(Format::Completion);
    bench.source(
        "rows",
        &format!("{}{{\"prompt\": 1}}\n\n", completions(0..200)),
    );
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    assert_eq!(
        (summary.reason.as_str(), summary.version),
        ("Completed", Some(1))
    );
    let digest = summary.digest.unwrap();

    let counts = summary.rows.unwrap();
    assert_eq!(
        (
            counts.train + counts.validation + counts.test,
            counts.rejected
        ),
        (200, 1)
    );
    for (split, count) in Split::ALL
        .iter()
        .zip([counts.train, counts.validation, counts.test])
    {
        let rows = bench.rows(&digest, *split);
        assert_eq!(rows.len() as u64, count);
        for row in rows {
            let Row::Completion { prompt, completion } = row else {
                panic!("another format");
            };
            let key = format!(r#"{{"completion":"{completion}","prompt":"{prompt}"}}"#);
            assert_eq!(bench.config.split.split_of(&key), *split, "{key}");
        }
    }
    let manifest = rows::manifest(&bench.store(), "topics", &digest).unwrap();
    let source = fs::read(bench.dir.path().join("rows.jsonl")).unwrap();
    assert_eq!(manifest.provenance.sources[0].digest, Digest::of(&source));
    assert_eq!(manifest.provenance.description, bench.config.description);
    let folder = bench.store_dir().join(paths::dataset("topics", &digest));
    let report = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(report.contains("<p>What was asked &amp; answered</p>"));
    assert_eq!(manifest.files.len(), 5);
    let record = bench.version(1).unwrap();
    assert_eq!(record.digest, digest);
    assert_eq!(
        record.provenance_digest,
        Digest::of_json(&manifest.provenance).unwrap()
    );
    assert_eq!(record.rejected[0].line, 201);
    assert_eq!(record.rejected[0].rule, "prompt is not a string");
    let done: BuildRecord = bench
        .store()
        .get_json(&paths::dataset_build("topics", &bench.config.fingerprint))
        .unwrap()
        .unwrap();
    assert_eq!((done.version, done.digest), (1, digest));
}

#[test]
fn the_same_rows_in_another_order_or_in_two_sources_are_the_same_version() {
    let mut bench = Bench::new(Format::Completion);
    bench.source("rows", &completions(0..100));
    let (_, first) = bench.build();

    bench.fingerprint("reversed");
    let text = completions(0..60);
    let reversed: Vec<&str> = text.lines().rev().collect();
    bench.source("rows", &reversed.join("\r\n"));
    bench.source("more", &completions(60..100));
    let (code, second) = bench.build();
    assert_eq!(
        (code, second.version, &second.digest),
        (0, Some(1), &first.digest)
    );
    assert_eq!(bench.version(2), None);
    let record = paths::dataset_build("topics", &bench.config.fingerprint);
    assert!(bench.store().get(&record).unwrap().is_some());

    bench.fingerprint("changed");
    bench.source("more", &completions(60..101));
    let (_, third) = bench.build();
    assert_eq!(third.version, Some(2));
    assert_ne!(third.digest, first.digest);
    let manifest = rows::manifest(&bench.store(), "topics", &third.digest.unwrap()).unwrap();
    assert_eq!(manifest.provenance.parent, Some(1));

    bench.fingerprint("back");
    bench.source("more", &completions(60..100));
    let (_, fourth) = bench.build();
    assert_eq!((fourth.version, &fourth.digest), (Some(3), &first.digest));
}

#[test]
fn rows_of_a_group_stay_together_and_another_seed_is_another_version() {
    let mut bench = Bench::new(Format::Text);
    bench.config.split.group_column = Some("id".into());
    bench.config.split.train_percent = 50;
    bench.config.split.test_percent = 40;
    let text = (0..300).fold(String::new(), |text, n| {
        text + &format!("{{\"text\": \"t{n}\", \"id\": {}}}\n", n % 30)
    });
    bench.source("rows", &text);
    let (_, first) = bench.build();
    let digest = first.digest.unwrap();
    for split in Split::ALL {
        for row in bench.rows(&digest, split) {
            let Row::Text { text } = row else {
                panic!("another format");
            };
            let id = text[1..].parse::<u32>().unwrap() % 30;
            assert_eq!(bench.config.split.split_of(&id.to_string()), split);
        }
    }
    bench.fingerprint("seed");
    bench.config.split.seed = 8;
    let (_, second) = bench.build();
    assert_ne!(second.digest.unwrap(), digest);
}

/// Rows that every format can read, with two columns to group by.
fn any_format(numbers: std::ops::Range<u32>) -> String {
    numbers.fold(String::new(), |text, n| {
        let messages = format!(r#"[{{"role": "assistant", "content": "{n}"}}]"#);
        text + &format!(
            "{{\"text\": \"{n}\", \"prompt\": \"{n}\", \"completion\": \"{n}\", \
             \"messages\": {messages}, \"id\": {n}, \"kind\": \"k{n}\"}}\n"
        )
    })
}

#[test]
fn the_schema_hash_changes_with_the_schema_and_with_nothing_else() {
    let build = |format, group_column: Option<&str>, rows: u32, seed| {
        let mut bench = Bench::new(format);
        bench.config.split.group_column = group_column.map(str::to_owned);
        bench.config.split.seed = seed;
        bench.source("rows", &any_format(0..rows));
        let (code, summary) = bench.build();
        assert_eq!(code, 0, "{summary:?}");
        let record = bench.version(1).unwrap();
        let manifest = rows::manifest(&bench.store(), "topics", &record.digest).unwrap();
        assert_eq!(manifest.schema_hash, record.schema_hash);
        (
            rows::schema(format, rows::Beside::grouped(group_column)),
            record.schema_hash,
            record.digest,
        )
    };
    let built = [
        build(Format::Text, None, 20, 7),
        // Other rows, another seed, a group column that is one of the format's: the same columns.
        build(Format::Text, None, 30, 7),
        build(Format::Text, None, 20, 8),
        build(Format::Text, Some("text"), 20, 7),
        build(Format::Text, Some("id"), 20, 7),
        build(Format::Text, Some("kind"), 20, 7),
        build(Format::Completion, None, 20, 7),
        build(Format::Completion, Some("id"), 20, 7),
        build(Format::Chat, None, 20, 7),
    ];
    for (index, one) in built.iter().enumerate() {
        for (other_index, other) in built.iter().enumerate() {
            assert_eq!(one.1 == other.1, one.0 == other.0, "{index} {other_index}");
        }
    }
    let hashes: std::collections::BTreeSet<&str> =
        built.iter().map(|(_, hash, _)| hash.as_str()).collect();
    assert_eq!(hashes.len(), 6);
    assert_ne!(built[0].2, built[1].2, "other rows are another version");
}

#[test]
fn the_size_of_a_version_is_that_of_its_files() {
    let mut bench = Bench::new(Format::Completion);
    let mut sizes = Vec::new();
    for (number, rows) in [(1, 50), (2, 500)] {
        bench.fingerprint(&rows.to_string());
        bench.source("rows", &completions(0..rows));
        assert_eq!(bench.build().0, 0);
        let record = bench.version(number).unwrap();
        let manifest = rows::manifest(&bench.store(), "topics", &record.digest).unwrap();
        let folder = bench
            .store_dir()
            .join(paths::dataset("topics", &record.digest));
        let bytes: u64 = fs::read_dir(folder)
            .unwrap()
            .map(Result::unwrap)
            .filter(|entry| entry.file_name() != "manifest.json")
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        assert_eq!(record.size_bytes, bytes);
        assert_eq!(manifest.size_bytes, bytes);
        sizes.push(bytes);
    }
    assert!(sizes[0] < sizes[1], "{sizes:?}");
}

#[test]
fn conversations_are_built_too() {
    let mut bench = Bench::new(Format::Chat);
    let row = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}"#;
    bench.config.split.train_percent = 100;
    bench.config.split.validation_percent = 0;
    bench.config.split.test_percent = 0;
    bench.source("rows", &format!("{row}\n{row}\n"));
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let rows = bench.rows(&summary.digest.unwrap(), Split::Train);
    assert_eq!(rows.len(), 2, "equal rows stay");
    assert!(matches!(&rows[0], Row::Chat { messages } if messages[1].content == "ho"));
}

#[test]
fn preferences_are_built_with_both_answers_and_columns_of_another_name() {
    let mut bench = Bench::new(Format::Preference);
    let text = (0..40).fold(String::new(), |text, n| {
        text + &format!(
            "{{\"question\": \"q{n}\", \"chosen\": \"c{n}\", \"rejected\": \"r{n}\"}}\n"
        )
    });
    bench.source("rows", &text);
    bench.config.sources[0].columns = [("prompt".into(), "question".into())].into();
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let digest = summary.digest.unwrap();
    let rows = Split::ALL
        .iter()
        .flat_map(|split| bench.rows(&digest, *split));
    let mut count = 0;
    for row in rows {
        let Row::Preference {
            prompt,
            chosen,
            rejected,
        } = row
        else {
            panic!("another format");
        };
        let number = &prompt[1..];
        assert_eq!(
            (chosen, rejected),
            (format!("c{number}"), format!("r{number}"))
        );
        count += 1;
    }
    assert_eq!(count, 40);
}

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

/// Every file of the store with its digest, apart from those that hold times.
fn state(bench: &Bench) -> Vec<(String, Option<Digest>)> {
    let store = bench.store();
    let entries = store.list("").unwrap();
    entries
        .into_iter()
        .map(|entry| {
            let timed = entry.path.ends_with("manifest.json") || entry.path.contains("/versions/");
            let bytes = store.get(&entry.path).unwrap().unwrap();
            (entry.path, (!timed).then(|| Digest::of(&bytes)))
        })
        .collect()
}

#[test]
fn a_build_that_is_killed_at_any_instant_ends_the_same_when_it_is_repeated() {
    let text = completions(0..4000);
    let bench = || {
        let mut bench = Bench::new(Format::Completion);
        bench.source("rows", &text);
        bench
    };
    let calm = bench();
    let started = std::time::Instant::now();
    assert_eq!(calm.build().0, 0);
    let whole = started.elapsed();
    let expected = state(&calm);
    assert_eq!(expected.len(), 8, "{expected:?}");
    let mut killed = 0;
    for round in 0..12_u32 {
        let bench = bench();
        // Two kills, spread over the whole build and a little beyond.
        for part in [round, round + 1] {
            let mut child = bench.start();
            std::thread::sleep(whole * part / 12 + Duration::from_micros(u64::from(round) * 137));
            child.kill().unwrap();
            killed += u32::from(child.wait().unwrap().code().is_none());
        }
        let store = bench.store();
        let versions = store.list("datasets/topics/versions/").unwrap();
        for entry in &versions {
            let record: VersionRecord = store.get_json(&entry.path).unwrap().unwrap();
            rows::read(&store, "topics", &record.digest, Split::Train).unwrap();
        }
        let (code, summary) = bench.build();
        assert_eq!((code, summary.version), (0, Some(1)), "{summary:?}");
        assert_eq!(state(&bench), expected, "round {round}");
    }
    assert!(killed > 4, "only {killed} builds were caught alive");
}
