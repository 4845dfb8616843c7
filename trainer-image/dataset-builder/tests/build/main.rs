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
mod failed;
mod feedback;
mod formats;
mod hostile;
mod killed;
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
mod versions;
mod web;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use graftwork_artifacts::Store;
use graftwork_artifacts::rows::{self, Row};
use graftwork_contract::dataset::{
    BuildConfig, BuildSummary, Duplicates, Format, HashSplit, NearDuplicates, Privacy, PrivacyMode,
    Source, Split, SplitMethod, Validation, VersionRecord,
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
