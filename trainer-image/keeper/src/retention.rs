//! Versions of a dataset that nobody needs any more.
//!
//! A run names the version that it is for in `resolved.json` before it starts, and an adapter's version in its
//! manifest and in `created.json`: what such a record refers to stays, and so does the newest version. Who asks
//! may know less.

use std::collections::BTreeSet;

use graftwork_artifacts::{Error, Store};
use graftwork_contract::dataset::{BuildRecord, VersionRecord};
use graftwork_contract::paths;

/// Records that are held at a time.
const READ_AT_ONCE: usize = 64;

/// Removes those of `versions` that may go: their numbers.
///
/// First goes what a build would find a version by, then its rows, last its record: a keeper that is killed in
/// between is asked again for as long as the record stands.
///
/// # Errors
/// Those of the store; a record that can't be read.
pub fn prune(store: &Store, dataset: &str, versions: &[u32]) -> Result<Vec<u32>, Error> {
    let mut records: Vec<VersionRecord> = read_all(store, &paths::dataset_versions(dataset))?;
    let newest = records.iter().map(|record| record.version).max();
    let candidates: Vec<VersionRecord> = records
        .iter()
        .filter(|record| versions.contains(&record.version) && Some(record.version) != newest)
        .cloned()
        .collect();
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let needed = referred_to(store, &candidates)?;
    let builds: Vec<BuildRecord> = read_all(store, &paths::dataset_builds(dataset))?;
    let mut removed = Vec::new();
    for candidate in candidates {
        let (number, digest) = (candidate.version, &candidate.digest);
        if needed.contains(digest.hex()) {
            continue;
        }
        for build in builds.iter().filter(|build| build.version == number) {
            store.remove(&paths::dataset_build(dataset, &build.fingerprint))?;
        }
        records.retain(|record| record.version != number);
        // A later version may have the same rows.
        if records.iter().all(|record| record.digest != *digest) {
            store.remove_folder(&paths::dataset(dataset, digest))?;
        }
        store.remove(&paths::dataset_version(dataset, number))?;
        removed.push(number);
    }
    Ok(removed)
}

/// The records of a folder.
fn read_all<T: serde::de::DeserializeOwned>(store: &Store, folder: &str) -> Result<Vec<T>, Error> {
    let mut all = Vec::new();
    for entry in store.list(&format!("{folder}/"))? {
        // One that disappears meanwhile was somebody's to remove.
        all.extend(store.get_json(&entry.path)?);
    }
    Ok(all)
}

/// Digests of those versions that a record of a run or an adapter has in it, whatever kind of record it is.
fn referred_to(store: &Store, versions: &[VersionRecord]) -> Result<BTreeSet<String>, Error> {
    let mut found = BTreeSet::new();
    for prefix in ["runs/", "adapters/"] {
        let mut entries = store.list(prefix)?;
        entries.retain(|entry| crate::server::is_record(&entry.path));
        for some in entries.chunks(READ_AT_ONCE) {
            for (content, _) in store.get_listed(some, u64::MAX)?.into_iter().flatten() {
                let text = String::from_utf8_lossy(&content);
                for version in versions {
                    let hex = version.digest.hex();
                    if text.contains(hex) {
                        found.insert(hex.to_owned());
                    }
                }
            }
        }
    }
    Ok(found)
}
