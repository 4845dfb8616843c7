//! How the latest version was made by the newest build that ended with its rows. Spec and files may change while the
//! rows do not, and a manifest never does.

use graftwork_artifacts::rows;
use graftwork_artifacts::{Error as StoreError, Store};
use graftwork_contract::dataset::{BuildConfig, Look, Manifest, VersionRecord};
use graftwork_contract::{Digest, paths};

use crate::failure::Failure;

/// The latest version.
#[derive(Debug)]
pub struct Latest {
    /// Its number.
    pub version: u32,
    /// Its record.
    pub record: VersionRecord,
    /// Its manifest.
    pub manifest: Manifest,
    /// How it was made last.
    pub made: Look,
}

/// The latest version; none where there is none, or its folder is gone.
///
/// # Errors
/// Those of the store.
pub fn latest(config: &BuildConfig, store: &Store) -> Result<Option<Latest>, Failure> {
    let versions = paths::dataset_versions(&config.dataset);
    let Some((version, record)) = store.latest_numbered::<VersionRecord>(&versions)? else {
        return Ok(None);
    };
    let manifest = match rows::manifest(store, &config.dataset, &record.digest) {
        Ok(manifest) => manifest,
        Err(StoreError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let made = match newest(config, store, &record.digest)? {
        Some(look) => look,
        None => Look::first(&record.digest, &manifest.provenance),
    };
    Ok(Some(Latest {
        version,
        record,
        manifest,
        made,
    }))
}

/// Writes down how a version was made now, where that differs from what is known of it.
///
/// # Errors
/// Those of the store.
pub fn note(
    config: &BuildConfig,
    store: &Store,
    manifest: &Manifest,
    now: &Look,
) -> Result<(), Failure> {
    let known = newest(config, store, &now.digest)?;
    let known = known.unwrap_or_else(|| Look::first(&now.digest, &manifest.provenance));
    if known != *now {
        let folder = paths::dataset_looks(&config.dataset);
        let added = store.append_numbered(&folder, |_, _: Option<&Look>| Some(now.clone()))?;
        // Nobody reads those before; another builder may be reading the last one.
        if let Some(old) = added.number.checked_sub(2) {
            store.remove(&format!("{folder}/{old}.json"))?;
        }
    }
    Ok(())
}

/// The newest one, where it is of that version.
fn newest(config: &BuildConfig, store: &Store, digest: &Digest) -> Result<Option<Look>, Failure> {
    let newest = store.latest_numbered::<Look>(&paths::dataset_looks(&config.dataset))?;
    Ok(newest
        .map(|(_, look)| look)
        .filter(|look| look.digest == *digest))
}
