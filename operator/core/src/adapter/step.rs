//! Where every version of an adapter stands, recomputed each time from the ledger, the gate, the
//! keeper's answers and the endpoints; and the records that are still to be written.

use std::collections::BTreeMap;

use graftwork_api::conditions::reason;
use graftwork_api::lora_adapter::VersionStage;
use graftwork_api::{LoRAAdapter, ServingEndpoint};
use graftwork_contract::ledger::{
    Approved, Created, DatasetVersion, Gate, RecordKind, Rejected, Verdict,
};
use graftwork_contract::proto::store::v1::PublishRequest;
use graftwork_contract::run::RunResult;
use graftwork_contract::{Digest, digest, paths};
use jiff::Timestamp;

use super::command::{Accepted, Verb};
use super::gate::{self, Judgement};
use super::ledger::{Ledger, Version};
use super::observed::{Observed, Verified};
use super::production::{self, served_as, stable_on};
use super::validate::Valid;
use crate::observed::{Asked, Problem};

/// `by` of an approval without a person.
const BY_GATE: &str = "gate";
/// `by` of a rejection for what the files are.
const BY_KEEPER: &str = "keeper";

/// Everything that is known about an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Versions by number.
    pub versions: BTreeMap<u32, VersionView>,
    /// The newest version that is stable on an endpoint; the last one that was, where none is now.
    pub production: Option<u32>,
    /// Endpoints on which that version is stable.
    pub production_endpoints: Vec<String>,
    /// The newest version that may see traffic.
    pub approved: Option<u32>,
}

/// One version.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionView {
    /// What the ledger has.
    pub ledger: Version,
    /// Where it stands.
    pub stage: VersionStage,
    /// Why.
    pub reason: String,
    /// Why, in words.
    pub message: String,
    /// The gate's judgement; none before the files are verified.
    pub judgement: Option<Judgement>,
    /// Whether the files are whole and fit; none while that is not known.
    pub verified: Option<Result<(), Problem>>,
    /// Whether it was made for the base model of the spec; none while that model's digest is not
    /// known: nothing may be decided about the version then.
    pub fits_base: Option<bool>,
    /// Endpoints on which it is stable.
    pub stable_on: Vec<String>,
    /// The rollback that took it from its last endpoint.
    pub rolled_back: Option<RolledBack>,
    /// An endpoint pins it, is rolling it out or served it last, or a run waits for it.
    pub is_named: bool,
}

/// A rollback on an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledBack {
    /// Name of the endpoint.
    pub endpoint: String,
    /// Why, in words.
    pub message: String,
}

/// The digest of the spec's base model.
#[derive(Clone, Copy)]
struct BaseDigest<'a> {
    /// As the keeper says now: decisions need it.
    now: Option<&'a Digest>,
    /// As status has it, from when the keeper last said it: enough to go on showing what was shown.
    last: Option<&'a str>,
    /// Why there is none, as the keeper says now.
    problem: Option<&'a Problem>,
}

impl BaseDigest<'_> {
    fn shown(&self) -> Option<&str> {
        self.now.map(Digest::as_str).or(self.last)
    }
}

/// Looks at all versions.
pub fn view(cr: &LoRAAdapter, valid: &Valid, ledger: &Ledger, observed: &Observed) -> View {
    let name = cr.metadata.name.as_deref().unwrap_or_default();
    let status = cr.status.as_ref();
    let described = observed.base.answer();
    let last = status.and_then(|status| status.base_model.as_ref());
    let base = BaseDigest {
        now: described
            .and_then(|described| described.as_ref().ok())
            .map(|base| &base.digest),
        last: last.map(|base| base.digest.as_str()),
        problem: described.and_then(|described| described.as_ref().err()),
    };
    let stable_on: BTreeMap<u32, Vec<String>> = ledger
        .versions
        .iter()
        .map(|(number, version)| {
            (
                *number,
                stable_on(name, version.created.digest.as_str(), &observed.endpoints),
            )
        })
        .collect();
    let production = stable_on
        .iter()
        .rev()
        .find(|(_, endpoints)| !endpoints.is_empty())
        .map(|(number, _)| *number)
        .or_else(|| last_production(cr, ledger, base));
    let versions: BTreeMap<u32, VersionView> = ledger
        .versions
        .iter()
        .map(|(number, version)| {
            let stable_on = stable_on.get(number).cloned().unwrap_or_default();
            let rolled_back =
                rolled_back(name, version.created.digest.as_str(), &observed.endpoints);
            let digest = version.created.digest.as_str();
            let is_named = is_named(name, *number, digest, &observed.endpoints)
                || observed.wanted.contains(number)
                || ledger.served.values().any(|it| it.version == *number);
            let verified = verified(version, observed);
            // A gate is on record only for files that were verified: while the keeper owes the
            // answer, what was judged stays judged.
            let judgement = verified
                .as_ref()
                .map_or(version.gate.is_some(), Result::is_ok)
                .then(|| judgement(valid, version, production));
            let mut view = VersionView {
                ledger: version.clone(),
                stage: VersionStage::Candidate,
                reason: String::new(),
                message: String::new(),
                judgement,
                verified,
                fits_base: base.now.map(|digest| *digest == version.created.base),
                stable_on,
                rolled_back,
                is_named,
            };
            (view.stage, view.reason, view.message) = stage(&view, valid, base);
            (*number, view)
        })
        .collect();
    let before = status.and_then(|status| status.approved);
    let may_see_traffic = |view: &VersionView| {
        matches!(
            view.stage,
            VersionStage::Approved | VersionStage::Production
        ) && view
            .ledger
            .rejection()
            .is_none_or(|rejected| is_undone(view, rejected))
            // Nothing becomes eligible before the base is known, and what was eligible stays.
            && view
                .fits_base
                .unwrap_or(before == Some(view.ledger.created.version))
    };
    let approved = versions
        .iter()
        .rev()
        .find(|(_, view)| may_see_traffic(view))
        .map(|(number, _)| *number);
    let production_endpoints = production
        .and_then(|number| versions.get(&number))
        .map(|view| view.stable_on.clone());
    View {
        production,
        production_endpoints: production_endpoints.unwrap_or_default(),
        approved,
        versions,
    }
}

/// The version that was in production when the last endpoint of the adapter went, where nothing speaks
/// against it: an endpoint that is made anew goes on from there. Where status was lost, the ledger says
/// it.
fn last_production(cr: &LoRAAdapter, ledger: &Ledger, base: BaseDigest<'_>) -> Option<u32> {
    let of_status = cr.status.as_ref().and_then(|it| it.production.as_ref());
    let of_ledger = ledger.served.values().max_by_key(|served| served.number);
    let number = of_status
        .map(|production| production.version)
        .or_else(|| of_ledger.map(|served| served.version))?;
    let version = ledger.versions.get(&number)?;
    let of_base = version.created.base.as_str();
    let fits = base.shown().is_none_or(|base| base == of_base);
    (fits && version.rejection().is_none()).then_some(number)
}

/// A rollback that a person undid, whether the ledger says so yet or not: the version is stable
/// somewhere again.
fn is_undone(view: &VersionView, rejected: &Rejected) -> bool {
    view.stage == VersionStage::Production && rejected.reason == reason::ROLLED_BACK_ON_ENDPOINT
}

/// The first judgement stands as long as the gate is the same: what production is later does not
/// change what was measured then. The one that a version was approved by stands whatever the gate is now.
fn judgement(valid: &Valid, version: &Version, production: Option<u32>) -> Judgement {
    let approved = version.approved.as_ref();
    let recorded = [
        approved.and_then(|it| it.gate.as_ref()),
        version.gate.as_ref(),
    ];
    let stands = approved.is_some() && version.rejection().is_none();
    recorded
        .into_iter()
        .flatten()
        .find(|gate| stands || gate.rules_digest == valid.gate.digest)
        .map_or_else(
            || gate::judge(&valid.gate, &version.created, production),
            |gate| Judgement {
                verdict: gate.verdict,
                rules: gate.rules.clone(),
            },
        )
}

fn verified(version: &Version, observed: &Observed) -> Option<Result<(), Problem>> {
    if version.approved.is_some() {
        // It was verified before it was approved.
        return Some(Ok(()));
    }
    let answer = observed
        .verifications
        .get(version.created.digest.as_str())?
        .answer()?;
    Some(answer.as_ref().map(|_| ()).map_err(Clone::clone))
}

/// Rules in order: the first that holds says where the version stands.
fn stage(
    view: &VersionView,
    valid: &Valid,
    base: BaseDigest<'_>,
) -> (VersionStage, String, String) {
    let said = |stage, reason: &str, message: String| (stage, reason.to_owned(), message);
    let created = &view.ledger.created;
    if !view.stable_on.is_empty() {
        let message = format!("stable on {}", view.stable_on.join(", "));
        return said(
            VersionStage::Production,
            reason::STABLE_ON_ENDPOINT,
            message,
        );
    }
    if let Some(rejected) = view.ledger.rejection() {
        return said(
            VersionStage::Rejected,
            &rejected.reason,
            rejected.message.clone(),
        );
    }
    let Some(shown) = base.shown() else {
        let message = match base.problem {
            Some(problem) => format!("the base model that it has to fit: {}", problem.message),
            None => "the base model that it has to fit is being looked at".to_owned(),
        };
        return said(VersionStage::Candidate, reason::GATE_PENDING, message);
    };
    if shown != created.base.as_str() {
        let message = format!(
            "the version was made for base model {}, and spec.baseModel is {shown}",
            created.base
        );
        return said(VersionStage::Rejected, reason::BASE_MODEL_MISMATCH, message);
    }
    if let Some(approved) = &view.ledger.approved {
        return if approved.by == BY_GATE {
            said(
                VersionStage::Approved,
                reason::GATE_PASSED,
                "every rule passed".to_owned(),
            )
        } else {
            let message = said_by("approved", &approved.by, &approved.reason);
            said(VersionStage::Approved, reason::APPROVED_BY_USER, message)
        };
    }
    if let Some(Err(problem)) = &view.verified {
        let message = problem.message.clone();
        return if is_lasting(problem) {
            said(VersionStage::Rejected, &problem.reason, message)
        } else if problem.reason == reason::ADAPTER_NOT_FOUND {
            said(VersionStage::Candidate, reason::FILES_NOT_FOUND, message)
        } else {
            said(VersionStage::Candidate, &problem.reason, message)
        };
    }
    let Some(judgement) = &view.judgement else {
        let message = "the keeper is looking at the version's files".to_owned();
        return said(VersionStage::Candidate, reason::GATE_PENDING, message);
    };
    match judgement.verdict {
        Verdict::Fail => said(
            VersionStage::Rejected,
            reason::GATE_FAILED,
            gate::explain(judgement),
        ),
        Verdict::Inconclusive if valid.gate.manual => {
            let message = format!("a person has to approve: {}", gate::explain(judgement));
            said(VersionStage::Candidate, reason::AWAITING_APPROVAL, message)
        }
        Verdict::Inconclusive => {
            let message = format!("a person may approve: {}", gate::explain(judgement));
            said(VersionStage::Candidate, reason::GATE_INCONCLUSIVE, message)
        }
        Verdict::Pass if valid.gate.manual => {
            let message = "every rule passed; a person has to approve".to_owned();
            said(VersionStage::Candidate, reason::AWAITING_APPROVAL, message)
        }
        Verdict::Pass => {
            let message = "every rule passed; the approval is being written".to_owned();
            said(VersionStage::Candidate, reason::GATE_PENDING, message)
        }
    }
}

/// Whether what the keeper found is about the files themselves, which never change. Whatever else
/// it says may pass: a folder that is missing may come back with a backup, and is looked for again.
fn is_lasting(problem: &Problem) -> bool {
    [
        reason::ADAPTER_INVALID,
        reason::ADAPTER_INCOMPATIBLE,
        reason::FILE_TYPE_REFUSED,
        reason::DIGEST_MISMATCH,
    ]
    .contains(&problem.reason.as_str())
}

/// Whether an endpoint pins that version, or is rolling that content out.
fn is_named(adapter: &str, number: u32, digest: &str, endpoints: &[ServingEndpoint]) -> bool {
    endpoints.iter().any(|endpoint| {
        let going = endpoint.metadata.deletion_timestamp.is_some();
        let mut entries = endpoint.spec.adapters.iter();
        let pinned =
            entries.any(|entry| entry.adapter_ref.name == adapter && entry.version == Some(number));
        let rolled_out = served_as(adapter, endpoint).any(|alias| {
            let mut served = endpoint.status.iter().flat_map(|status| &status.adapters);
            served.any(|served| {
                let candidate = served.candidate.as_ref();
                served.name == alias && candidate.is_some_and(|it| it.digest == digest)
            })
        });
        !going && (pinned || rolled_out)
    })
}

/// The newest rollback of that content that no endpoint is trying to undo.
fn rolled_back(adapter: &str, digest: &str, endpoints: &[ServingEndpoint]) -> Option<RolledBack> {
    let entries = endpoints.iter().flat_map(|endpoint| {
        let status = endpoint.status.as_ref();
        served_as(adapter, endpoint).flat_map(move |alias| {
            status
                .into_iter()
                .flat_map(|status| &status.rejected)
                .filter(move |rejected| rejected.adapter == alias && rejected.digest == digest)
                .map(move |rejected| (endpoint, rejected))
        })
    });
    let (endpoint, rejected) = entries.max_by_key(|(_, rejected)| rejected.time.0)?;
    let name = endpoint.metadata.name.clone()?;
    let message = format!(
        "rolled back on {name}: {}: {}",
        rejected.reason, rejected.message
    );
    Some(RolledBack {
        endpoint: name,
        message,
    })
}

/// What records derive from.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The adapter.
    pub cr: &'a LoRAAdapter,
    /// Its spec, read.
    pub valid: &'a Valid,
    /// What is on record.
    pub ledger: &'a Ledger,
    /// Its surroundings.
    pub observed: &'a Observed,
}

/// The records that are to be written now. Each is create-only and derives from what was observed,
/// so that writing one again changes nothing.
pub fn publications(
    facts: Facts<'_>,
    view: &View,
    accepted: &[Accepted],
    now: Timestamp,
) -> Vec<PublishRequest> {
    let Facts {
        cr,
        valid,
        ledger,
        observed,
    } = facts;
    let name = cr.metadata.name.as_deref().unwrap_or_default();
    let mut requests = Vec::new();
    if let Some(created) = next_version(name, cr, ledger, observed, now) {
        let path = paths::adapter_record(name, created.version, RecordKind::Created);
        requests.extend(request(path, &created));
    }
    for (number, version) in &view.versions {
        let records = &version.ledger;
        if let (None, Some(judgement)) = (&records.gate, &version.judgement) {
            let gate = record_judgement(valid, judgement, now);
            let path = paths::adapter_record(name, *number, RecordKind::Gate);
            requests.extend(request(path, &gate));
        }
        if let Some(approved) = approval(valid, *number, version, accepted, now) {
            let path = paths::adapter_record(name, *number, RecordKind::Approved);
            requests.extend(request(path, &approved));
        }
        if let Some((path, rejected)) = rejection(name, *number, version, accepted, now) {
            requests.extend(request(path, &rejected));
        }
    }
    let endpoints = &observed.endpoints;
    requests.extend(production::publications(name, ledger, endpoints, now));
    requests
}

/// A record to be written.
pub fn request<T: serde::Serialize>(path: String, record: &T) -> Option<PublishRequest> {
    // Records are plain structs with string keys: they always are JSON.
    let value = serde_json::to_value(record).ok()?;
    Some(PublishRequest {
        path,
        content: digest::canonical_json(&value).into_bytes(),
    })
}

/// One new version at a time, so that numbers stay dense: the oldest result that is none yet, then
/// the import.
fn next_version(
    name: &str,
    cr: &LoRAAdapter,
    ledger: &Ledger,
    observed: &Observed,
    now: Timestamp,
) -> Option<Created> {
    let is_new = |digest: &Digest| ledger.by_digest(digest.as_str()).is_none();
    let mut results: Vec<RunResult> = observed
        .results
        .values()
        .filter_map(|record| record.answer()?.read::<RunResult>().ok())
        .filter(|result| result.folder == paths::adapter(name, &result.digest))
        .filter(|result| is_new(&result.digest))
        .collect();
    results.sort_by(|a, b| (&a.finished_time, &a.run).cmp(&(&b.finished_time, &b.run)));
    if let Some(result) = results.into_iter().next() {
        return Some(trained(ledger.next(), result));
    }
    let Asked::Answered(Ok(Verified {
        digest,
        rank,
        size_bytes,
    })) = &observed.import
    else {
        return None;
    };
    let base = observed.base.answer()?.as_ref().ok()?;
    is_new(digest).then(|| Created {
        version: ledger.next(),
        digest: digest.clone(),
        rank: *rank,
        size_bytes: *size_bytes,
        training_run: None,
        imported_from: cr.spec.import.as_ref().map(|import| import.uri.clone()),
        dataset: None,
        base: base.digest.clone(),
        metrics: Vec::new(),
        precision: None,
        classification: None,
        reference: None,
        created_time: now.to_string(),
    })
}

fn trained(version: u32, result: RunResult) -> Created {
    let reference = result
        .resolved
        .reference
        .as_ref()
        .map(|reference| reference.version.to_string());
    Created {
        version,
        digest: result.digest,
        rank: result.rank,
        size_bytes: result.size_bytes,
        training_run: Some(result.run),
        imported_from: None,
        dataset: Some(DatasetVersion {
            name: result.resolved.dataset.name,
            version: result.resolved.dataset.version,
            digest: result.resolved.dataset.digest,
        }),
        base: result.resolved.base.digest,
        metrics: result.metrics,
        precision: Some(result.precision),
        classification: result.classification,
        reference: Some(reference.unwrap_or_else(|| gate::BASE_REFERENCE.to_owned())),
        created_time: result.finished_time,
    }
}

fn approval(
    valid: &Valid,
    number: u32,
    version: &VersionView,
    accepted: &[Accepted],
    now: Timestamp,
) -> Option<Approved> {
    let records = &version.ledger;
    let open = records.approved.is_none() && records.rejected.is_none();
    let fits = version.fits_base == Some(true) && matches!(version.verified, Some(Ok(())));
    if !open || !fits || version.stage != VersionStage::Candidate {
        return None;
    }
    // The record of the first gate is written once: what another gate said goes with the approval.
    let judged_anew = records
        .gate
        .as_ref()
        .filter(|gate| gate.rules_digest != valid.gate.digest)
        .and(version.judgement.as_ref())
        .map(|judgement| record_judgement(valid, judgement, now));
    if let Some(command) = accepted
        .iter()
        .find(|command| command.version == number && command.verb == Verb::Approve)
    {
        return Some(Approved {
            by: command.user.clone(),
            reason: command.reason.clone(),
            gate: judged_anew,
            time: now.to_string(),
        });
    }
    let passed = version
        .judgement
        .as_ref()
        .is_some_and(|it| it.verdict == Verdict::Pass);
    // The judgement is on record before what follows from it.
    (passed && !valid.gate.manual && records.gate.is_some()).then(|| Approved {
        by: BY_GATE.to_owned(),
        reason: reason::GATE_PASSED.to_owned(),
        gate: judged_anew,
        time: now.to_string(),
    })
}

fn record_judgement(valid: &Valid, judgement: &Judgement, now: Timestamp) -> Gate {
    Gate {
        rules_digest: valid.gate.digest.clone(),
        verdict: judgement.verdict,
        rules: judgement.rules.clone(),
        time: now.to_string(),
    }
}

/// A rejection that is to be put on record, and where.
fn rejection(
    name: &str,
    number: u32,
    version: &VersionView,
    accepted: &[Accepted],
    now: Timestamp,
) -> Option<(String, Rejected)> {
    let ledger = &version.ledger;
    if ledger.is_rejected_for_good() || !version.stable_on.is_empty() {
        return None;
    }
    let time = now.to_string();
    if let Some(command) = accepted
        .iter()
        .find(|command| command.version == number && command.verb == Verb::Reject)
    {
        // A rollback that is on record leaves a person's no to a record of its own.
        let kind = if ledger.rejected.is_some() {
            RecordKind::Barred
        } else {
            RecordKind::Rejected
        };
        let rejected = Rejected {
            reason: reason::REJECTED_BY_USER.to_owned(),
            message: said_by("rejected", &command.user, &command.reason),
            by: command.user.clone(),
            time,
        };
        return Some((paths::adapter_record(name, number, kind), rejected));
    }
    if ledger.rejection().is_some() {
        return None;
    }
    if let Some(rolled_back) = &version.rolled_back {
        let rejected = Rejected {
            reason: reason::ROLLED_BACK_ON_ENDPOINT.to_owned(),
            message: rolled_back.message.clone(),
            by: rolled_back.endpoint.clone(),
            time,
        };
        let path = if ledger.rollbacks == 0 {
            paths::adapter_record(name, number, RecordKind::Rejected)
        } else {
            paths::adapter_rollback(name, number, ledger.rollbacks + 1)
        };
        return Some((path, rejected));
    }
    // Files never change, and neither does what is wrong with them; another base, or one that is not
    // known, is another matter.
    let fits = version.fits_base == Some(true);
    match &version.verified {
        Some(Err(problem)) if is_lasting(problem) && fits && ledger.approved.is_none() => {
            let rejected = Rejected {
                reason: problem.reason.clone(),
                message: problem.message.clone(),
                by: BY_KEEPER.to_owned(),
                time,
            };
            let path = paths::adapter_record(name, number, RecordKind::Rejected);
            Some((path, rejected))
        }
        _ => None,
    }
}

/// Who said it, and why where they said that.
fn said_by(what: &str, who: &str, why: &str) -> String {
    if why.is_empty() {
        format!("{what} by {who}")
    } else {
        format!("{what} by {who}: {why}")
    }
}
