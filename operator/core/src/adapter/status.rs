//! A LoRAAdapter's status: what is said about each version, and about the adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::lora_adapter::{
    AdapterColumns, AdapterVersion, GateResult, GateRuleResult, Production, Verdict,
    VersionDataset, VersionStage,
};
use graftwork_api::training_run::ResolvedBaseModel;
use graftwork_api::uri::PvcUri;
use graftwork_api::{AnswerOutcome, Decimal, LoRAAdapter, LoRAAdapterStatus, Time};
use graftwork_contract::ledger;
use jiff::{SignedDuration, Timestamp};

use super::command;
use super::gate::Judgement;
use super::ledger::Ledger;
use super::listing::listed;
use super::observed::Observed;
use super::production;
use super::step::{VersionView, View};
use super::validate::Invalid;
use crate::conditions::{self, Conditions, Moving, Truth, shorten};
use crate::jobs::seconds_between;
use crate::measured;
use crate::observed::{Asked, ClaimState};
use crate::plan::{Actions, Event, NAME_TAKEN_PAUSE};
use crate::storage::StorageProblem;

/// Longest wait before the keeper is asked again about what people may mend meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// How long an answer about a version that status does not list stays to be read.
const KEPT_ANSWER: SignedDuration = SignedDuration::from_hours(1);
/// How long a keeper that does not answer takes nothing back: it may be starting anew on another
/// node, or reading a large base model for the first time.
const PATIENCE_SECONDS: u64 = 120;
/// What `Ready` says of a folder that can't be imported.
const OF_IMPORTS: [&str; 5] = [
    reason::IMPORT_FAILED,
    reason::DIGEST_MISMATCH,
    reason::FILE_TYPE_REFUSED,
    reason::ADAPTER_INVALID,
    reason::ADAPTER_INCOMPATIBLE,
];
/// Measurements that a version's status has room for.
const MOST_METRICS: usize = 16;
/// Wait for something that is under way.
pub const SOON: Duration = Duration::from_secs(2);

/// What is said about the adapter as a whole.
struct Said {
    truth: Truth,
    reason: String,
    message: String,
    moving: Moving,
}

impl Said {
    fn new(
        truth: Truth,
        reason: impl Into<String>,
        message: impl Into<String>,
        moving: Moving,
    ) -> Self {
        Self {
            truth,
            reason: reason.into(),
            message: message.into(),
            moving,
        }
    }
}

/// A spec that can't work: versions stay where they are.
pub fn invalid(cr: &LoRAAdapter, invalid: &Invalid, now: Timestamp) -> Actions<LoRAAdapterStatus> {
    let message = format!("{}: {}", invalid.field, invalid.message);
    let said = Said::new(Truth::False, reason::INVALID_SPEC, message, Moving::Stalled);
    say(cr, cr.status.clone().unwrap_or_default(), said, now)
}

/// A namespace without a store.
pub fn no_storage(
    cr: &LoRAAdapter,
    problem: &StorageProblem,
    now: Timestamp,
) -> Actions<LoRAAdapterStatus> {
    let (said, requeue_after) = match problem {
        StorageProblem::NotOurs(message) => (
            Said::new(
                Truth::False,
                reason::OBJECT_NOT_OURS,
                message,
                Moving::Stalled,
            ),
            Some(NAME_TAKEN_PAUSE),
        ),
        StorageProblem::Unavailable(message) => (
            Said::new(
                Truth::False,
                reason::STORAGE_UNAVAILABLE,
                message,
                Moving::Rests,
            ),
            None,
        ),
    };
    Actions {
        requeue_after,
        ..say(cr, cr.status.clone().unwrap_or_default(), said, now)
    }
}

/// A keeper that is away for a moment takes nothing back. What the API server alone shows is said all
/// the same.
pub fn keeper_away(
    cr: &LoRAAdapter,
    observed: &Observed,
    why: &str,
    now: Timestamp,
) -> Actions<LoRAAdapterStatus> {
    let old = cr.status.clone().unwrap_or_default();
    if let Some(said) = base_problem(cr, observed).or_else(|| import_problem(cr, observed)) {
        return Actions {
            requeue_after: Some(LOOK_AGAIN),
            ..say(cr, old, said, now)
        };
    }
    let mut actions = if settled(cr, observed, now).is_some() {
        Actions::default()
    } else {
        let said = Said::new(
            Truth::Unknown,
            reason::STORAGE_UNAVAILABLE,
            why,
            Moving::Reconciling,
        );
        say(cr, old, said, now)
    };
    actions.requeue_after = Some(SOON);
    actions
}

/// What status already says of the present spec, for as long as an answer that the keeper owes may
/// take.
fn settled(cr: &LoRAAdapter, observed: &Observed, now: Timestamp) -> Option<Said> {
    let status = cr.status.as_ref()?;
    if status.observed_generation != cr.metadata.generation
        || seconds_between(observed.unanswered_since, Some(now)) >= PATIENCE_SECONDS
    {
        return None;
    }
    let ready = conditions::find(&status.conditions, condition::READY)?;
    // These are seen without the keeper: they hold no longer, or the plan does not come here.
    let passed = [
        reason::STORAGE_UNAVAILABLE,
        reason::OBJECT_NOT_OURS,
        reason::INVALID_SPEC,
    ];
    if passed.contains(&ready.reason.as_str()) {
        return None;
    }
    let truth = match ready.status.as_str() {
        "True" => Truth::True,
        "False" => Truth::False,
        _ => return None,
    };
    let said = Said::new(truth, &ready.reason, &ready.message, Moving::Rests);
    Some(said)
}

/// Everything that is known, said.
pub fn report(
    cr: &LoRAAdapter,
    ledger: &Ledger,
    view: &View,
    observed: &Observed,
    now: Timestamp,
) -> Actions<LoRAAdapterStatus> {
    let mut next = cr.status.clone().unwrap_or_default();
    next.versions = listed(view).into_iter().map(print_version).collect();
    next.production = view.production.map(|version| Production {
        version,
        endpoints: view
            .production_endpoints
            .iter()
            .take(100)
            .cloned()
            .collect(),
    });
    next.last_served = production::last_served(ledger);
    next.approved = view.approved;
    if let Asked::Answered(Ok(base)) = &observed.base {
        next.base_model = Some(ResolvedBaseModel {
            digest: base.digest.to_string(),
        });
    }
    forget_answers(&mut next, now);
    next.columns = Some(columns(view));
    let turned = turned_versions(cr.status.as_ref(), &next.versions);
    let said = ready(cr, ledger, observed, now);
    let waits = match said.moving {
        Moving::Reconciling => Some(SOON),
        _ if observed.is_unanswered(cr) => Some(SOON),
        Moving::Rests if said.truth != Truth::True => Some(LOOK_AGAIN),
        _ if is_unsettled(view) => Some(SOON),
        _ if waits_for_files(view) => Some(LOOK_AGAIN),
        _ => None,
    };
    let mut actions = say(cr, next, said, now);
    say_available(cr, view, &mut actions, now);
    actions.events.extend(turned);
    actions.requeue_after = waits;
    actions
}

/// Whether the keeper still owes an answer about a version.
fn is_unsettled(view: &View) -> bool {
    view.versions.values().any(|version| {
        let open = version.ledger.approved.is_none() && version.ledger.rejected.is_none();
        version.reason == reason::GATE_PENDING || (open && version.verified.is_none())
    })
}

/// Whether there is a version whose files can't be verified as they are, and may be later.
fn waits_for_files(view: &View) -> bool {
    view.versions.values().any(|version| {
        version.stage == VersionStage::Candidate && matches!(version.verified, Some(Err(_)))
    })
}

/// What was said about versions that status does not list, or that never were, goes once people had
/// time to read the answer: a new version always finds room for a command.
fn forget_answers(status: &mut LoRAAdapterStatus, now: Timestamp) {
    let listed: BTreeSet<u32> = status.versions.iter().map(|it| it.version).collect();
    let answers = &status.answers;
    status.commands.retain(|target, command| {
        let has_target = command::version_of(target).is_some_and(|it| listed.contains(&it));
        has_target
            || !answers.get(target).is_some_and(|answer| {
                answer.id == command.id
                    && answer.outcome != AnswerOutcome::Accepted
                    && now.duration_since(answer.time.0) >= KEPT_ANSWER
            })
    });
    let (commands, accepted) = (&status.commands, &status.accepted);
    status
        .answers
        .retain(|target, _| commands.contains_key(target) || accepted.contains_key(target));
}

/// Rules in order: the first that holds says whether the adapter is ready.
fn ready(cr: &LoRAAdapter, ledger: &Ledger, observed: &Observed, now: Timestamp) -> Said {
    if let Some(said) = base_problem(cr, observed) {
        return said;
    }
    match &observed.base {
        Asked::Answered(Err(problem)) => {
            let message = format!("spec.baseModel.uri: {}", problem.message);
            return Said::new(Truth::False, &problem.reason, message, Moving::Rests);
        }
        Asked::Unreachable(_) | Asked::NotAsked => {
            let why = match &observed.base {
                Asked::Unreachable(why) => why,
                _ => "the base model is being looked at",
            };
            return settled(cr, observed, now).unwrap_or_else(|| {
                Said::new(
                    Truth::Unknown,
                    reason::STORAGE_UNAVAILABLE,
                    why,
                    Moving::Reconciling,
                )
            });
        }
        Asked::Answered(Ok(_)) => {}
    }
    if let Some(said) = import_problem(cr, observed) {
        return said;
    }
    if let Asked::Answered(Err(problem)) = &observed.import {
        let field = match problem.reason.as_str() {
            reason::DIGEST_MISMATCH => "spec.import.digest",
            _ => "spec.import.uri",
        };
        let message = format!("{field}: {}", problem.message);
        return Said::new(Truth::False, &problem.reason, message, Moving::Rests);
    }
    let owed = observed
        .ledger
        .answer()
        .is_some_and(|records| observed.owes_import(cr, records));
    if let Some(said) =
        settled(cr, observed, now).filter(|said| owed && OF_IMPORTS.contains(&said.reason.as_str()))
    {
        return said;
    }
    if let Some(unreadable) = ledger.unreadable.first() {
        return Said::new(
            Truth::False,
            reason::INTERNAL_ERROR,
            unreadable.to_string(),
            Moving::Rests,
        );
    }
    Said::new(
        Truth::True,
        reason::READY,
        "the spec is accepted",
        Moving::Rests,
    )
}

/// What is known to be wrong with the base model, in words: nothing can be approved for it.
pub fn base_trouble(cr: &LoRAAdapter, observed: &Observed) -> Option<String> {
    let of_claim = base_problem(cr, observed).map(|said| said.message);
    of_claim.or_else(|| match &observed.base {
        Asked::Answered(Err(problem)) => Some(format!("spec.baseModel.uri: {}", problem.message)),
        _ => None,
    })
}

/// The claim of the base model can't be mounted.
fn base_problem(cr: &LoRAAdapter, observed: &Observed) -> Option<Said> {
    let problem = claim_problem(&cr.spec.base_model.uri, observed.base_claim)?;
    let message = format!("spec.baseModel.uri: {problem}");
    Some(Said::new(
        Truth::False,
        reason::BASE_MODEL_NOT_FOUND,
        message,
        Moving::Rests,
    ))
}

/// The claim of the import can't be mounted.
fn import_problem(cr: &LoRAAdapter, observed: &Observed) -> Option<Said> {
    let import = cr.spec.import.as_ref()?;
    let problem = claim_problem(&import.uri, observed.import_claim)?;
    let message = format!("spec.import.uri: {problem}");
    Some(Said::new(
        Truth::False,
        reason::IMPORT_FAILED,
        message,
        Moving::Rests,
    ))
}

fn claim_problem(uri: &str, state: ClaimState) -> Option<String> {
    state.problem(PvcUri::parse(uri).ok()?.claim())
}

fn say_available(
    cr: &LoRAAdapter,
    view: &View,
    actions: &mut Actions<LoRAAdapterStatus>,
    now: Timestamp,
) {
    let Some(status) = &mut actions.status else {
        return;
    };
    let mut conditions = Conditions::new(&status.conditions, cr.metadata.generation, now);
    let newest = view.versions.values().next_back();
    match (view.approved, newest) {
        (Some(version), _) => conditions.set(
            condition::VERSION_AVAILABLE,
            Truth::True,
            reason::VERSION_APPROVED,
            format!("version {version} may see traffic"),
        ),
        (None, Some(newest)) => conditions.set(
            condition::VERSION_AVAILABLE,
            Truth::False,
            reason::NO_VERSION_APPROVED,
            format!(
                "the newest version {} is {}: {}",
                newest.ledger.created.version, newest.stage, newest.message
            ),
        ),
        (None, None) => conditions.set(
            condition::VERSION_AVAILABLE,
            Truth::False,
            reason::NO_VERSIONS,
            "no run has published a version, and none was imported",
        ),
    }
    status.conditions = conditions.into_list();
}

fn columns(view: &View) -> AdapterColumns {
    let newest = view.versions.values().next_back();
    let waiting = newest.filter(|newest| newest.stage != VersionStage::Production);
    AdapterColumns {
        candidate: waiting.map_or_else(
            || "-".to_owned(),
            |version| format!("{} {}", version.ledger.created.version, version.stage),
        ),
        gate: newest
            .and_then(|newest| newest.judgement.as_ref())
            .map_or_else(
                || "-".to_owned(),
                |judgement| print_verdict(judgement.verdict).to_string(),
            ),
    }
}

fn print_version(view: &VersionView) -> AdapterVersion {
    let created = &view.ledger.created;
    AdapterVersion {
        version: created.version,
        digest: created.digest.to_string(),
        stage: view.stage.clone(),
        reason: Some(view.reason.clone()),
        message: Some(shorten(&view.message)),
        training_run: created.training_run.clone(),
        imported_from: created.imported_from.clone(),
        dataset: created.dataset.as_ref().map(|dataset| VersionDataset {
            name: dataset.name.clone(),
            version: dataset.version,
            digest: dataset.digest.to_string(),
        }),
        rank: Some(created.rank),
        metrics: measured::shown(&created.metrics, created.classification, MOST_METRICS),
        precision: created
            .precision
            .map(|precision| precision.name().to_owned()),
        gate: view.judgement.as_ref().map(print_judgement),
        created_time: Time(
            created
                .created_time
                .parse()
                .unwrap_or(Timestamp::UNIX_EPOCH),
        ),
    }
}

fn print_judgement(judgement: &Judgement) -> GateResult {
    GateResult {
        verdict: print_verdict(judgement.verdict),
        rules: judgement
            .rules
            .iter()
            .take(16)
            .map(|rule| GateRuleResult {
                metric: rule.metric.clone(),
                value: rule.value.as_deref().map(Decimal::from),
                reference: rule.reference.as_deref().map(Decimal::from),
                interval: rule
                    .interval
                    .as_ref()
                    .map(|ends| ends.iter().map(|end| Decimal::from(end.as_str())).collect()),
                verdict: print_verdict(rule.verdict),
                message: shorten(&rule.message),
            })
            .collect(),
    }
}

fn print_verdict(verdict: ledger::Verdict) -> Verdict {
    match verdict {
        ledger::Verdict::Pass => Verdict::Pass,
        ledger::Verdict::Fail => Verdict::Fail,
        ledger::Verdict::Inconclusive => Verdict::Inconclusive,
    }
}

/// An event for each version whose stage is another one than before. An older one that is listed
/// again did not turn.
fn turned_versions(old: Option<&LoRAAdapterStatus>, versions: &[AdapterVersion]) -> Vec<Event> {
    let before: BTreeMap<u32, &VersionStage> = old
        .iter()
        .flat_map(|status| &status.versions)
        .map(|version| (version.version, &version.stage))
        .collect();
    let highest = before.keys().next_back().copied();
    versions
        .iter()
        .filter(|version| match before.get(&version.version) {
            Some(stage) => **stage != version.stage,
            None => highest.is_none_or(|highest| version.version > highest),
        })
        .map(|version| {
            let note = shorten(&format!(
                "version {} is {}: {}",
                version.version,
                version.stage,
                version.message.as_deref().unwrap_or_default()
            ));
            let reason = version.reason.clone().unwrap_or_default();
            if version.stage == VersionStage::Rejected {
                Event::warning(reason, note)
            } else {
                Event::normal(reason, note)
            }
        })
        .collect()
}

fn say(
    cr: &LoRAAdapter,
    mut next: LoRAAdapterStatus,
    said: Said,
    now: Timestamp,
) -> Actions<LoRAAdapterStatus> {
    let old = cr
        .status
        .as_ref()
        .map(|status| status.conditions.clone())
        .unwrap_or_default();
    let mut conditions = Conditions::new(&next.conditions, cr.metadata.generation, now);
    conditions.set(condition::READY, said.truth, &said.reason, &said.message);
    if conditions::find(&next.conditions, condition::VERSION_AVAILABLE).is_none() {
        conditions.set(
            condition::VERSION_AVAILABLE,
            Truth::Unknown,
            &said.reason,
            &said.message,
        );
    }
    conditions.set_moving(said.moving, &said.reason, &said.message);
    next.conditions = conditions.into_list();
    next.observed_generation = cr.metadata.generation;
    let event = conditions::turned(&old, &next.conditions, condition::READY, said.moving);
    Actions {
        status: Some(next),
        events: event.into_iter().collect(),
        ..Actions::default()
    }
}
