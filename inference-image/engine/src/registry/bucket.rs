//! Adapter folders of a store in a bucket: copies on this machine's disk, read as mounted folders are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::time::UNIX_EPOCH;

use graftwork_artifacts::{Error as StoreError, Fetched, Store};
use graftwork_contract::Digest;
use graftwork_contract::adapter::{CONFIG_FILE, MANIFEST_FILE, Manifest, WEIGHTS_FILE};
use graftwork_contract::causes::causes;

use super::files::{
    MAXIMUM_MANIFEST_BYTES, REASON_DIGEST, REASON_INVALID, REASON_NOT_FOUND, REASON_UNREADABLE,
    refusal,
};
use super::state::Refusal;

/// What of a folder is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Of the weights their header: enough to tell whether they fit.
    Header,
    /// Every byte.
    Whole,
}

/// A copy of a folder with its manifest, configuration and weights. It goes with the answer.
///
/// # Errors
/// A [`Refusal`] naming the file.
pub(super) fn copy(store: &Store, folder: &str, depth: Depth) -> Result<Fetched, Refusal> {
    let path = format!("{folder}/{MANIFEST_FILE}");
    let (bytes, size) = store
        .get_up_to(&path, MAXIMUM_MANIFEST_BYTES)
        .map_err(|error| refuse(&error))?
        .ok_or_else(|| Refusal {
            reason: REASON_NOT_FOUND,
            message: format!("{MANIFEST_FILE} is not in the store"),
            may_pass: true,
        })?;
    if size > MAXIMUM_MANIFEST_BYTES {
        let message = format!("{MANIFEST_FILE} has more than {MAXIMUM_MANIFEST_BYTES} bytes");
        return Err(refusal(REASON_INVALID, message));
    }
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| refusal(REASON_INVALID, format!("{MANIFEST_FILE}: {error}")))?;
    let files: BTreeMap<String, Digest> = manifest
        .files
        .into_iter()
        .filter(|(name, _)| [CONFIG_FILE, WEIGHTS_FILE].contains(&name.as_str()))
        .collect();
    let fetched = match depth {
        Depth::Header => store.peek(folder, &files),
        Depth::Whole => store.fetch(folder, &files),
    };
    let fetched = fetched.map_err(|error| refuse(&error))?;
    write_manifest(&fetched, &bytes).map_err(|error| Refusal {
        reason: REASON_UNREADABLE,
        message: format!("{MANIFEST_FILE} can't be copied: {error}"),
        may_pass: true,
    })?;
    Ok(fetched)
}

/// The copies have the objects' times, by which it is seen that they changed; this one has the same time always.
fn write_manifest(fetched: &Fetched, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create_new(fetched.path().join(MANIFEST_FILE))?;
    file.write_all(bytes)?;
    file.set_modified(UNIX_EPOCH)
}

/// The reason by the kind of error; what the bucket did not give may come later.
fn refuse(error: &StoreError) -> Refusal {
    let (reason, may_pass) = match error {
        StoreError::Missing { .. } => (REASON_NOT_FOUND, true),
        StoreError::DigestMismatch { .. } => (REASON_DIGEST, false),
        StoreError::Bucket { .. } | StoreError::Remote { .. } | StoreError::Io { .. } => {
            (REASON_UNREADABLE, true)
        }
        StoreError::Path { .. }
        | StoreError::Conflict { .. }
        | StoreError::Record { .. }
        | StoreError::FileType { .. }
        | StoreError::TooLarge { .. }
        | StoreError::Rows { .. }
        | StoreError::Encode { .. } => (REASON_INVALID, false),
    };
    Refusal {
        reason,
        message: causes(error),
        may_pass,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use graftwork_contract::adapter::Provenance;
    use graftwork_model::fixture::{TinyShape, random_adapter, write_tiny_base};
    use graftwork_model::lora::{LoraConfig, Module};
    use graftwork_model::targets::Targets;
    use graftwork_objects::fixture::{KEY, Server};

    use super::super::disk_cache::DiskCache;
    use super::super::files::AdapterFiles;
    use super::super::state::Source;
    use super::*;

    const URL: &str = "s3://store/team";

    /// Publishes a random adapter, as a trainer does.
    fn publish(server: &Server, dir: &Path) -> Source {
        let model = write_tiny_base(&dir.join("base"), &TinyShape::default(), 1).unwrap();
        let lora = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets: Targets::of(&[Module::QProj, Module::VProj]),
            use_rslora: false,
        };
        let adapter = random_adapter(&model, &lora, 1);
        let scratch = dir.join("trainer");
        std::fs::create_dir(&scratch).unwrap();
        let store = Store::open_at(Some(&server.config(URL)), scratch).unwrap();
        let digest: Digest = adapter.digest().parse().unwrap();
        let source = Source {
            folder: format!("adapters/colours/{}", digest.hex()),
            digest,
        };
        let staged = store.stage(&source.folder).unwrap();
        adapter.save(staged.dir()).unwrap();
        let files = staged.files().unwrap();
        let provenance = Provenance::Imported {
            uri: "pvc://models/adapter".to_owned(),
            created_time: "2026-01-01T00:00:00Z".to_owned(),
        };
        let manifest = Manifest {
            digest: source.digest.clone(),
            files: files.digests,
            size_bytes: files.size_bytes,
            rank: 4,
            provenance_digest: Digest::of_json(&provenance).unwrap(),
            provenance,
        };
        staged.publish(&manifest).unwrap();
        source
    }

    fn files(server: &Server, dir: &Path, cache: Option<DiskCache>) -> AdapterFiles {
        let scratch = dir.join("engine");
        std::fs::create_dir_all(&scratch).unwrap();
        let store = Store::open_bucket_read_only(&server.config(URL), scratch).unwrap();
        let shape = Arc::new(TinyShape::default().config());
        AdapterFiles::in_bucket(store, Digest::of(b"base"), shape).with_cache(cache)
    }

    #[test]
    fn an_adapter_of_a_bucket_is_registered_loaded_and_kept_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let Some(server) = Server::start(dir.path(), "store").unwrap() else {
            return;
        };
        let source = publish(&server, dir.path());
        let cache = DiskCache::open(dir.path().join("cache"), 1 << 20).unwrap();
        let engine = files(&server, dir.path(), Some(cache));
        let header = engine.read_header(&source);
        assert!(header.result.unwrap() > 0);
        let again = engine.read_header(&source).fingerprint;
        assert_eq!(again, header.fingerprint, "nothing changed");
        engine.load(&source).unwrap();
        // Without the bucket the copy is enough.
        server.write_secret("wrong-hidden").unwrap();
        engine.load(&source).unwrap();
        let refusal = engine.read_header(&source).result.unwrap_err();
        assert!(refusal.may_pass, "{refusal:?}");
        assert!(refusal.message.contains(URL), "{refusal:?}");
    }

    #[test]
    fn what_is_not_there_may_come_and_what_was_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let Some(server) = Server::start(dir.path(), "store").unwrap() else {
            return;
        };
        let engine = files(&server, dir.path(), None);
        let absent = Source {
            digest: Digest::of(b"x"),
            folder: "adapters/colours/x".to_owned(),
        };
        let refusal = engine.read_header(&absent).result.unwrap_err();
        assert_eq!((refusal.reason, refusal.may_pass), (REASON_NOT_FOUND, true));

        let source = publish(&server, dir.path());
        engine.load(&source).unwrap();
        engine.verify(&source).unwrap();
        let weights = server.object(&format!("team/{}/{WEIGHTS_FILE}", source.folder));
        let mut bytes = std::fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&weights, bytes).unwrap();
        let refusal = engine.load(&source).unwrap_err();
        assert_eq!((refusal.reason, refusal.may_pass), (REASON_DIGEST, false));
        assert!(refusal.message.contains(WEIGHTS_FILE), "{refusal:?}");
        assert_eq!(engine.verify(&source).unwrap_err(), refusal);

        server.write_secret(KEY).unwrap();
        let outside = Source {
            folder: "../other".to_owned(),
            ..source
        };
        let refusal = engine.load(&outside).unwrap_err();
        assert_eq!(refusal.reason, super::super::files::REASON_FOLDER);
    }
}
