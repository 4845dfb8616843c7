//! Whether an adapter's files are whole and fit a base model; PEFT folders made elsewhere become folders of the store.

use std::collections::BTreeMap;
use std::path::Path;

use graftwork_artifacts::{Store, content};
use graftwork_contract::Digest;
use graftwork_contract::adapter::{CARD_FILE, CONFIG_FILE, Manifest, Provenance, WEIGHTS_FILE};
use graftwork_contract::proto::store::v1::{ImportReply, Problem, VerifyReply};
use graftwork_model::config::LlamaConfig;
use graftwork_model::peft::{Adapter, AdapterHeader};

use crate::problem::{causes, of_adapter, problem};

/// What was found in a folder that is whole and fits.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The adapter's content digest.
    pub digest: Digest,
    /// LoRA's rank.
    pub rank: u32,
    /// Modules that are adapted.
    pub target_modules: Vec<String>,
    /// Bytes of the files.
    pub size_bytes: u64,
}

/// The files of an adapter that the store takes, in a folder.
fn files(folder: &Path) -> impl Iterator<Item = &'static str> + '_ {
    [WEIGHTS_FILE, CONFIG_FILE, CARD_FILE].into_iter().filter(|name| folder.join(name).is_file())
}

/// Verifies a folder against a base model: content of each file, shapes, rank, modules, finiteness, digest.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(folder: &Path, expected: Option<&Digest>, base: &LlamaConfig) -> Result<Verified, Problem> {
    let mut size_bytes = 0;
    for name in files(folder) {
        let path = folder.join(name);
        // By content and before anything else reads it: what looks like weights may be a program.
        content::kind_of(&path).map_err(|error| problem("FileTypeRefused", causes(&error)))?;
        size_bytes += std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    }
    let header = AdapterHeader::read(folder).map_err(|error| of_adapter(&error))?;
    header.verify_shapes(base).map_err(|error| of_adapter(&error))?;
    let adapter = Adapter::load(folder).map_err(|error| of_adapter(&error))?;
    adapter.verify(base).map_err(|error| of_adapter(&error))?;
    let digest: Digest = adapter.digest().parse().map_err(|error| problem("InternalError", causes(&error)))?;
    if let Some(expected) = expected
        && *expected != digest
    {
        return Err(problem("DigestMismatch", format!("the adapter's files have digest {digest}, expected {expected}")));
    }
    Ok(Verified {
        digest,
        rank: header.config.rank as u32,
        target_modules: header.config.target_modules.iter().map(|module| module.name().to_owned()).collect(),
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
) -> Result<Verified, Problem> {
    let manifest: Manifest = store
        .get_json(&format!("{folder}/manifest.json"))
        .map_err(|error| problem("AdapterInvalid", causes(&error)))?
        .ok_or_else(|| problem("AdapterNotFound", format!("{folder} does not exist in the store")))?;
    store.verify(folder, &manifest.files).map_err(|error| problem("AdapterInvalid", causes(&error)))?;
    let path = store.locate(folder).map_err(|error| problem("AdapterInvalid", causes(&error)))?;
    verify(&path, expected, base)
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
pub fn import(store: &Store, import: &Import<'_>, base: &LlamaConfig) -> Result<Verified, Problem> {
    let storage = |error: graftwork_artifacts::Error| problem("StorageUnavailable", causes(&error));
    verify(import.folder, None, base)?;
    // The copy is what is verified and kept: the source may change meanwhile.
    let staged = store.stage(&format!("adapters/{}/{}", import.adapter, "import")).map_err(storage)?;
    for name in files(import.folder) {
        let from = import.folder.join(name);
        std::fs::copy(&from, staged.dir().join(name))
            .map_err(|error| problem("StorageUnavailable", format!("cannot copy {}: {error}", from.display())))?;
    }
    let verified = verify(staged.dir(), import.expected, base)?;
    let target = graftwork_contract::paths::adapter(import.adapter, &verified.digest);
    let renamed = store.stage(&target).map_err(storage)?;
    for name in files(staged.dir()) {
        std::fs::copy(staged.dir().join(name), renamed.dir().join(name))
            .map_err(|error| problem("StorageUnavailable", format!("cannot copy {name}: {error}")))?;
    }
    let staged_files = renamed.files().map_err(storage)?;
    let files: BTreeMap<_, _> = staged_files.digests;
    let provenance = Provenance::Imported { uri: import.uri.to_owned(), created_time: import.now.to_owned() };
    let manifest = Manifest {
        digest: verified.digest.clone(),
        files,
        size_bytes: staged_files.size_bytes,
        rank: verified.rank,
        provenance_digest: Digest::of_json(&provenance).map_err(|error| problem("InternalError", causes(&error)))?,
        provenance,
    };
    renamed.publish(&manifest).map_err(storage)?;
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
        Err(problem) => VerifyReply { problem: Some(problem), ..VerifyReply::default() },
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
        Err(problem) => ImportReply { problem: Some(problem), ..ImportReply::default() },
    }
}
