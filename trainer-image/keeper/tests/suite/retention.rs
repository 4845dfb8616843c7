//! Which versions of a dataset are removed, and what is left behind.

use graftwork_artifacts::Store;
use graftwork_contract::dataset::{BuildRecord, Format, Leakage, RowCounts, VersionRecord};
use graftwork_contract::ledger::{Created, DatasetVersion, Gate, RecordKind, Verdict};
use graftwork_contract::run::{Resolved, ResolvedBase, ResolvedDataset};
use graftwork_contract::{Digest, paths};
use keeper::retention::prune;

const NAME: &str = "topics";

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
}

fn rows(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// The inputs of a run on a version.
fn resolved(text: &str) -> Resolved {
    Resolved {
        base: ResolvedBase {
            uri: "pvc://models/tiny".into(),
            path: "/mnt/base".into(),
            digest: rows("base"),
            quantization: None,
        },
        dataset: ResolvedDataset {
            name: NAME.into(),
            version: 1,
            digest: rows(text),
            format: Format::Text,
        },
        reference: None,
        initial: None,
    }
}

impl Bench {
    /// A store with a version for each of these contents, each made by a build of its own.
    fn new(contents: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for (version, text) in (1..).zip(contents) {
            let digest = rows(text);
            let record = VersionRecord {
                version,
                digest: digest.clone(),
                schema_hash: rows("schema"),
                rows: RowCounts::default(),
                rejected: Vec::new(),
                size_bytes: 1,
                created_time: "2026-01-01T00:00:00Z".to_owned(),
                provenance_digest: rows("provenance"),
                findings: std::collections::BTreeMap::new(),
                leakage: Leakage::default(),
                tokens: None,
                parent: None,
            };
            let build = BuildRecord {
                fingerprint: rows(&format!("build {version}")),
                version,
                digest: digest.clone(),
            };
            let manifest = format!("{}/manifest.json", paths::dataset(NAME, &digest));
            store.put_new(&manifest, b"{}").unwrap();
            let path = paths::dataset_version(NAME, version);
            store.put_new_json(&path, &record).unwrap();
            let path = paths::dataset_build(NAME, &build.fingerprint);
            store.put_new_json(&path, &build).unwrap();
        }
        Self { _dir: dir, store }
    }

    /// What a run of this name writes before it trains on a version.
    fn train(&self, run: &str, text: &str) {
        let key = rows(run);
        self.store
            .put_new_json(&paths::run_resolved(run, &key), &resolved(text))
            .unwrap();
    }

    /// The records of an adapter's version that was trained on a version: its creation and what a gate found.
    fn create(&self, version: u32, text: &str) {
        let dataset = resolved(text).dataset;
        let created = Created {
            version,
            digest: rows("adapter"),
            rank: 8,
            size_bytes: 1,
            training_run: Some("gone".into()),
            imported_from: None,
            dataset: Some(DatasetVersion {
                name: dataset.name,
                version: dataset.version,
                digest: dataset.digest,
            }),
            base: rows("base"),
            metrics: Vec::new(),
            precision: None,
            classification: None,
            reference: Some("base".into()),
            created_time: "2026-01-01T00:00:00Z".into(),
        };
        let gate = Gate {
            rules_digest: rows("rules"),
            verdict: Verdict::Pass,
            rules: Vec::new(),
            time: "2026-01-01T00:00:00Z".into(),
        };
        let record = |kind| paths::adapter_record("expenses", version, kind);
        let path = record(RecordKind::Created);
        self.store.put_new_json(&path, &created).unwrap();
        self.store
            .put_new_json(&record(RecordKind::Gate), &gate)
            .unwrap();
    }

    /// Numbers of the versions that have a record, and whether their rows are there.
    fn left(&self) -> Vec<(u32, bool)> {
        (1..10)
            .filter_map(|number| {
                let path = paths::dataset_version(NAME, number);
                let record: VersionRecord = self.store.get_json(&path).unwrap()?;
                Some((number, self.has_rows(&record.digest)))
            })
            .collect()
    }

    fn has_rows(&self, digest: &Digest) -> bool {
        let manifest = format!("{}/manifest.json", paths::dataset(NAME, digest));
        self.store.get(&manifest).unwrap().is_some()
    }

    fn has_build(&self, version: u32) -> bool {
        let path = paths::dataset_build(NAME, &rows(&format!("build {version}")));
        self.store.get(&path).unwrap().is_some()
    }
}

#[test]
fn versions_go_with_their_rows_and_builds_and_the_newest_never_does() {
    let bench = Bench::new(&["a", "b", "c"]);
    assert_eq!(prune(&bench.store, NAME, &[1, 3, 7]).unwrap(), [1]);
    assert_eq!(bench.left(), [(2, true), (3, true)]);
    assert!(!bench.has_rows(&rows("a")));
    // The same spec and sources again are a build again, and not a version without rows.
    assert!(!bench.has_build(1) && bench.has_build(2) && bench.has_build(3));
    assert!(prune(&bench.store, NAME, &[1]).unwrap().is_empty());
    assert!(prune(&bench.store, "another", &[1]).unwrap().is_empty());
}

#[test]
fn what_a_record_of_a_run_or_an_adapter_refers_to_stays_whoever_asks() {
    let bench = Bench::new(&["a", "b", "c", "d", "e", "f"]);
    bench.train("nightly", "a");
    // A gate judges by what the run behind a version has scored: what the version was created from.
    bench.create(1, "b");
    bench.create(2, "d");
    let manifest = serde_json::json!({"provenance": {"resolved": resolved("e")}});
    let folder = "adapters/expenses/0b/manifest.json";
    bench.store.put_new_json(folder, &manifest).unwrap();
    assert_eq!(prune(&bench.store, NAME, &[1, 2, 3, 4, 5]).unwrap(), [3]);
    let left = [1, 2, 4, 5, 6].map(|version| (version, true));
    assert_eq!(bench.left(), left);
}

#[test]
fn rows_that_a_later_version_has_too_stay() {
    let bench = Bench::new(&["a", "b", "a"]);
    assert_eq!(prune(&bench.store, NAME, &[1, 2]).unwrap(), [1, 2]);
    assert_eq!(bench.left(), [(3, true)]);
    assert!(!bench.has_rows(&rows("b")));
}

#[test]
fn a_removal_that_was_cut_short_is_finished_by_the_next_one() {
    let bench = Bench::new(&["a", "b"]);
    let folder = paths::dataset(NAME, &rows("a"));
    bench.store.remove_folder(&folder).unwrap();
    assert_eq!(bench.left(), [(1, false), (2, true)]);
    assert_eq!(prune(&bench.store, NAME, &[1]).unwrap(), [1]);
    assert_eq!(bench.left(), [(2, true)]);
}
