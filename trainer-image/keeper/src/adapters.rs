//! Whether an adapter's files are whole and fit a base model; PEFT folders made elsewhere become
//! folders of the store.

use std::collections::BTreeMap;
use std::path::Path;

use graftwork_artifacts::content::{self, Kind};
use graftwork_artifacts::{Error as StoreError, MANIFEST_FILE, Store};
use graftwork_contract::adapter::{CARD_FILE, CONFIG_FILE, Manifest, Provenance, WEIGHTS_FILE};
use graftwork_contract::proto::store::v1::{ImportReply, Problem, VerifyReply};
use graftwork_contract::{Digest, paths};
use graftwork_model::config::LlamaConfig;
use graftwork_model::peft::{Adapter, AdapterHeader};

use crate::problem::{Failure, causes};

/// Longest configuration and card of an adapter: far above any real one.
const MAXIMUM_TEXT_BYTES: u64 = 1 << 20;

/// What was found in a folder that is whole and fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The adapter's content digest.
    pub digest: Digest,
    /// LoRA's rank; the largest where modules differ.
    pub rank: u32,
    /// Modules that are adapted.
    pub target_modules: Vec<String>,
    /// Bytes of the files that the store keeps.
    pub size_bytes: u64,
}

/// The files of an adapter that the store takes, in a folder.
fn files(folder: &Path) -> impl Iterator<Item = &'static str> + '_ {
    [WEIGHTS_FILE, CONFIG_FILE, CARD_FILE]
        .into_iter()
        .filter(|name| folder.join(name).is_file())
}

/// Refuses a folder with a file that the store would never take, whether or not it is one that is
/// copied: a folder with a pickle in it is not one to trust. Reads little, however large the files are.
fn check_contents(folder: &Path) -> Result<(), Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::Unavailable(format!("cannot list {}: {error}", folder.display()))
    };
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            // A link to nowhere.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(unreadable(error)),
        };
        if !metadata.is_file() {
            continue;
        }
        let is = |name| path.file_name().is_some_and(|file| file == name);
        if (is(CONFIG_FILE) || is(CARD_FILE)) && metadata.len() > MAXIMUM_TEXT_BYTES {
            return Err(StoreError::TooLarge {
                path: path.display().to_string(),
                limit: MAXIMUM_TEXT_BYTES,
            }
            .into());
        }
        let kind = content::kind_of(&path)?;
        let fits = match kind {
            _ if is(WEIGHTS_FILE) => kind == Kind::Safetensors,
            _ if is(CONFIG_FILE) => kind == Kind::Json,
            _ => true,
        };
        if !fits {
            let message = format!("{} holds {kind:?} by its content", path.display());
            return Err(Failure::problem("AdapterInvalid", message));
        }
    }
    Ok(())
}

/// What the configuration and the header of the weights say, where they fit the base model: with
/// that, the weights have no more bytes than such an adapter of that base has.
fn check_header(folder: &Path, base: &LlamaConfig) -> Result<AdapterHeader, Failure> {
    let header = AdapterHeader::read(folder)?;
    header.verify_shapes(base)?;
    Ok(header)
}

/// Verifies a folder against a base model: content of each file, shapes, rank, modules,
/// finiteness, digest.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(
    folder: &Path,
    expected: Option<&Digest>,
    base: &LlamaConfig,
) -> Result<Verified, Failure> {
    // By content and before anything else reads it: what looks like weights may be a program.
    check_contents(folder)?;
    let size_bytes = files(folder)
        .filter_map(|name| std::fs::metadata(folder.join(name)).ok())
        .map(|metadata| metadata.len())
        .sum();
    let header = check_header(folder, base)?;
    let adapter = Adapter::load(folder)?;
    adapter.verify(base)?;
    let digest: Digest = adapter
        .digest()
        .parse()
        .map_err(|error| Failure::Bug(causes(&error)))?;
    if let Some(expected) = expected
        && *expected != digest
    {
        let message = format!("the adapter's files have digest {digest}, expected {expected}");
        return Err(Failure::problem("DigestMismatch", message));
    }
    Ok(Verified {
        digest,
        rank: header.rank() as u32,
        target_modules: header
            .modules()
            .into_iter()
            .map(|module| module.name().to_owned())
            .collect(),
        size_bytes,
    })
}

/// Verifies a folder of the store, its manifest's digests included.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify_stored(
    store: &Store,
    folder: &str,
    expected: Option<&Digest>,
    base: &LlamaConfig,
) -> Result<Verified, Failure> {
    let missing = || {
        let message = format!("{folder} does not exist in the store");
        Failure::problem("AdapterNotFound", message)
    };
    let manifest: Manifest = store
        .get_json(&format!("{folder}/{MANIFEST_FILE}"))?
        .ok_or_else(missing)?;
    let fetched = store.fetch(folder, &manifest.files)?;
    verify(
        fetched.path(),
        Some(expected.unwrap_or(&manifest.digest)),
        base,
    )
}

/// A folder elsewhere that becomes one of the store.
#[derive(Debug, Clone, Copy)]
pub struct Import<'a> {
    /// Name of the LoRAAdapter.
    pub adapter: &'a str,
    /// Where the files are, for provenance.
    pub uri: &'a str,
    /// The folder.
    pub folder: &'a Path,
    /// The digest that was stated.
    pub expected: Option<&'a Digest>,
    /// RFC 3339.
    pub now: &'a str,
}

/// Copies an adapter into the store. Importing the same again changes nothing.
///
/// # Errors
/// What is wrong with the files, or with the store.
pub fn import(store: &Store, import: &Import<'_>, base: &LlamaConfig) -> Result<Verified, Failure> {
    check_contents(import.folder)?;
    for name in [CONFIG_FILE, WEIGHTS_FILE] {
        if !import.folder.join(name).is_file() {
            let message = format!("{} has no {name}", import.uri);
            return Err(Failure::problem("ImportFailed", message));
        }
    }
    // What headers and sizes tell is told before a byte is copied.
    let header = check_header(import.folder, base)?;
    // The copy is what is verified and kept: the source may change meanwhile. Where it will stand is
    // known when its digest is.
    let mut staged = store.stage(&format!("adapters/{}/import", import.adapter))?;
    for name in files(import.folder) {
        let limit = if name == WEIGHTS_FILE {
            header.bytes
        } else {
            MAXIMUM_TEXT_BYTES
        };
        staged.copy(name, &import.folder.join(name), limit)?;
    }
    let verified = verify(staged.dir(), import.expected, base)
        .map_err(|failure| failure.naming(staged.dir(), import.uri))?;
    staged.retarget(&paths::adapter(import.adapter, &verified.digest))?;
    let staged_files = staged.files()?;
    let files: BTreeMap<_, _> = staged_files.digests;
    let provenance = Provenance::Imported {
        uri: import.uri.to_owned(),
        created_time: import.now.to_owned(),
    };
    let manifest = Manifest {
        digest: verified.digest.clone(),
        files,
        size_bytes: staged_files.size_bytes,
        rank: verified.rank,
        provenance_digest: Digest::of_json(&provenance)
            .map_err(|error| Failure::Bug(causes(&error)))?,
        provenance,
    };
    staged.publish(&manifest)?;
    Ok(verified)
}

/// As an answer.
pub fn verify_reply(result: Result<Verified, Problem>) -> VerifyReply {
    match result {
        Ok(found) => VerifyReply {
            digest: found.digest.to_string(),
            rank: found.rank,
            target_modules: found.target_modules,
            size_bytes: found.size_bytes,
            ..VerifyReply::default()
        },
        Err(problem) => VerifyReply {
            problem: Some(problem),
            ..VerifyReply::default()
        },
    }
}

/// As an answer.
pub fn import_reply(result: Result<Verified, Problem>) -> ImportReply {
    match result {
        Ok(found) => ImportReply {
            digest: found.digest.to_string(),
            rank: found.rank,
            target_modules: found.target_modules,
            size_bytes: found.size_bytes,
            ..ImportReply::default()
        },
        Err(problem) => ImportReply {
            problem: Some(problem),
            ..ImportReply::default()
        },
    }
}
