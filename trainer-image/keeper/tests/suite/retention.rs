//! Which versions of a dataset are removed, and what is left behind.

use graftwork_artifacts::Store;
use graftwork_contract::dataset::{BuildRecord, Leakage, RowCounts, VersionRecord};
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

    fn refer(&self, path: &str, text: &str) {
        let record = format!(r#"{{"dataset": {{"digest": "{}"}}}}"#, rows(text));
        self.store.put_new(path, record.as_bytes()).unwrap();
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
    let bench = Bench::new(&["a", "b", "c", "d", "e", "f", "g"]);
    bench.refer("runs/nightly/0a/resolved.json", "a");
    bench.refer("adapters/expenses/versions/1/created.json", "b");
    bench.refer("adapters/expenses/0b/manifest.json", "c");
    // What a gate went by, and a run that has scored it.
    bench.refer("adapters/expenses/versions/1/gate.json", "d");
    bench.refer("runs/evaluation/0c/result.json", "e");
    assert_eq!(prune(&bench.store, NAME, &[1, 2, 3, 4, 5, 6]).unwrap(), [6]);
    let left = [1, 2, 3, 4, 5, 7].map(|version| (version, true));
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
