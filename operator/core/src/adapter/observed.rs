//! What a LoRAAdapter's surroundings look like, and what has to be asked to know it.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_api::uri::PvcUri;
use graftwork_api::{LoRAAdapter, ServingEndpoint};
use graftwork_contract::proto::store::v1::ImportRequest;
use graftwork_contract::{Digest, paths};
use jiff::Timestamp;

use super::ledger::Ledger;
use crate::observed::{Asked, ClaimState, DescribedBase, Problem, Record};
use crate::storage::StorageProblem;

/// What a LoRAAdapter's surroundings look like.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Why the namespace has no store.
    pub storage: Option<StorageProblem>,
    /// The claim of `spec.baseModel`.
    pub base_claim: ClaimState,
    /// The folder of `spec.baseModel`.
    pub base: Asked<DescribedBase>,
    /// The claim of `spec.import`, where there is one.
    pub import_claim: ClaimState,
    /// All records below [`paths::adapter_versions`].
    pub ledger: Asked<Vec<Record>>,
    /// `result.json` of the complete runs whose `adapterRef` names this adapter, by run.
    pub results: BTreeMap<String, Asked<Record>>,
    /// Answers to [`verifications`], by digest.
    pub verifications: BTreeMap<String, Asked<Result<Verified, Problem>>>,
    /// The answer to [`import`]'s request.
    pub import: Asked<Result<Verified, Problem>>,
    /// Versions that runs want to start from, or to score, and have not pinned yet.
    pub wanted: BTreeSet<u32>,
    /// The ServingEndpoints of the namespace.
    pub endpoints: Vec<ServingEndpoint>,
    /// Since when the keeper owes an answer ([`Observed::is_unanswered`]) without a break, as this
    /// process saw it.
    pub unanswered_since: Option<Timestamp>,
}

impl Observed {
    /// Whether the keeper owes an answer on which the condition `Ready` depends.
    pub fn is_unanswered(&self, cr: &LoRAAdapter) -> bool {
        if self.storage.is_some() {
            return false;
        }
        let Some(records) = self.ledger.answer() else {
            return true;
        };
        let base = self.base_claim == ClaimState::Bound && self.base.answer().is_none();
        base || self.owes_import(cr, records)
    }

    /// Whether there is something to import, and the keeper has not said how it went.
    pub fn owes_import(&self, cr: &LoRAAdapter, records: &[Record]) -> bool {
        self.import_claim == ClaimState::Bound
            && self.import.answer().is_none()
            && import(cr, records).is_some()
    }
}

/// What the keeper says of an adapter's files that are whole and fit the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Content.
    pub digest: Digest,
    /// LoRA's rank.
    pub rank: u32,
    /// Bytes of the files.
    pub size_bytes: u64,
}

/// A question to the keeper: are these files whole, and do they fit the adapter's base model?
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Verification {
    /// Expected content.
    pub digest: String,
    /// Folder in the store, relative to the namespace's folder.
    pub folder: String,
}

/// The versions about which nothing final is known: their files are to be verified. The answer for
/// a digest and a base never changes, so it may be kept.
pub fn verifications(cr: &LoRAAdapter, records: &[Record]) -> Vec<Verification> {
    let name = cr.metadata.name.as_deref().unwrap_or_default();
    let ledger = Ledger::read(name, records);
    ledger
        .versions
        .values()
        .filter(|version| version.approved.is_none() && version.rejected.is_none())
        .map(|version| Verification {
            digest: version.created.digest.to_string(),
            folder: paths::adapter(name, &version.created.digest),
        })
        .collect()
}

/// What the keeper is to import, where `spec.import` is not a version yet.
pub fn import(cr: &LoRAAdapter, records: &[Record]) -> Option<ImportRequest> {
    let name = cr.metadata.name.as_deref().unwrap_or_default();
    let import = cr.spec.import.as_ref()?;
    let from = PvcUri::parse(&import.uri).ok()?;
    let base = PvcUri::parse(&cr.spec.base_model.uri).ok()?;
    let is_there = Ledger::read(name, records)
        .versions
        .values()
        .any(|version| match &import.digest {
            Some(digest) => version.created.digest.as_str() == digest,
            None => version.created.imported_from.as_ref() == Some(&import.uri),
        });
    (!is_there).then(|| ImportRequest {
        adapter: name.to_owned(),
        claim: from.claim().to_owned(),
        path: from.path().to_owned(),
        digest: import.digest.clone().unwrap_or_default(),
        base_claim: base.claim().to_owned(),
        base_path: base.path().to_owned(),
    })
}
