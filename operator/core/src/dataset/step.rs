//! Where a Dataset is, recomputed every time from its spec, its sources, the store and its Jobs.

use std::collections::BTreeMap;

use graftwork_api::conditions::reason;
use graftwork_api::{Dataset, labels};
use graftwork_contract::Digest;
use graftwork_contract::dataset::{BuildRecord, BuildSummary, Share, UNDER_WAY, VersionRecord};
use graftwork_contract::exit::{AfterExit, ExitCode};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;

use super::parts::Attempt;
use super::validate::{Place, Valid};
use super::{Observed, SourceState, children, status, timing};
use crate::jobs::{self, Cause, End, JobState};
use crate::observed::Asked;
use crate::storage::StorageProblem;

/// Attempts at one fingerprint that may end early before the Dataset is said to be at fault. It is
/// tried again all the same.
pub const QUIET_ATTEMPTS: u32 = 3;
/// Seconds before the second attempt; each later one waits twice as long.
const FIRST_PAUSE_SECONDS: i64 = 5;
/// Longest pause between attempts.
const LONGEST_PAUSE_SECONDS: i64 = 300;
/// Invalid rows that a message names one by one.
const NAMED_ROWS: usize = 10;

/// Where a Dataset is.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A source is not there, or the base model is not.
    SourceMissing {
        /// A condition's reason.
        reason: &'static str,
        /// Which field, and what is missing.
        message: String,
    },
    /// The store can't be used.
    NoStorage(StorageProblem),
    /// The keeper does not answer; what was known stays.
    KeeperAway {
        /// Why.
        message: String,
    },
    /// The store has the version.
    Ready {
        /// The present fingerprint.
        fingerprint: Digest,
        /// The build's record.
        record: BuildRecord,
        /// All versions, newest first.
        versions: Vec<VersionRecord>,
    },
    /// An attempt runs or is to be started now.
    Build {
        /// The present fingerprint.
        fingerprint: Digest,
        /// Which attempt, from 1.
        attempt: u32,
        /// How the one before it ended.
        after: Option<Ended>,
    },
    /// The next attempt waits.
    Pause {
        /// The present fingerprint.
        fingerprint: Digest,
        /// How the last one ended.
        after: Ended,
        /// When the next one starts.
        until: Timestamp,
        /// Seconds until then.
        seconds: u64,
    },
    /// The build failed for good: another source, spec or refresh annotation is needed.
    Failed {
        /// The present fingerprint.
        fingerprint: Digest,
        /// A condition's reason.
        reason: String,
        /// Why.
        message: String,
    },
    /// The next Job's name belongs to somebody else.
    NameTaken {
        /// Which.
        message: String,
    },
}

/// An attempt that ended early and is followed by another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which attempt, from 1.
    pub attempt: u32,
    /// A condition's reason.
    pub reason: String,
    /// Why, in words.
    pub message: String,
}

impl Ended {
    /// Whether people should hear of it: what is not there, or what keeps failing.
    pub fn is_fault(&self) -> bool {
        self.attempt > QUIET_ATTEMPTS || may_come(&self.reason)
    }

    /// Whether something outside of the build did not answer, or was full.
    pub fn is_away(&self) -> bool {
        [reason::SOURCE_UNAVAILABLE, reason::STORAGE_UNAVAILABLE].contains(&self.reason.as_str())
    }
}

/// The step of a Dataset with a valid spec.
pub fn step(cr: &Dataset, valid: &Valid, observed: &Observed, now: Timestamp) -> Step {
    if let Some(message) = missing_source(valid, &observed.sources) {
        return Step::SourceMissing {
            reason: reason::SOURCE_NOT_FOUND,
            message,
        };
    }
    if let Some(message) = missing_base(valid, observed) {
        return Step::SourceMissing {
            reason: reason::BASE_MODEL_NOT_FOUND,
            message,
        };
    }
    if let Some(problem) = &observed.storage {
        return Step::NoStorage(problem.clone());
    }
    let Some(fingerprint) = fingerprint(cr, valid, &observed.sources) else {
        return Step::SourceMissing {
            reason: reason::SOURCE_NOT_FOUND,
            message: "sources are being looked at".to_owned(),
        };
    };
    match (&observed.build, &observed.versions) {
        (Asked::Answered(Some(record)), Asked::Answered(versions)) => {
            let versions = versions.iter().map(crate::observed::Record::read).collect();
            match (record.read(), versions) {
                (Ok(record), Ok(versions)) => ready(fingerprint, record, versions),
                (Err(unreadable), _) | (_, Err(unreadable)) => Step::Failed {
                    fingerprint,
                    reason: reason::INTERNAL_ERROR.to_owned(),
                    message: unreadable.to_string(),
                },
            }
        }
        (Asked::Answered(None), Asked::Answered(_)) => attempt(cr, fingerprint, observed, now),
        (Asked::Unreachable(message), _) | (_, Asked::Unreachable(message)) => Step::KeeperAway {
            message: message.clone(),
        },
        (Asked::NotAsked, _) | (_, Asked::NotAsked) => Step::KeeperAway {
            message: "the keeper was not asked yet".to_owned(),
        },
    }
}

fn ready(fingerprint: Digest, record: BuildRecord, mut versions: Vec<VersionRecord>) -> Step {
    versions.sort_by_key(|version| std::cmp::Reverse(version.version));
    Step::Ready {
        fingerprint,
        record,
        versions,
    }
}

/// Jobs of a fingerprint.
fn jobs_of<'a>(jobs: &'a [Job], fingerprint: &'a Digest) -> impl Iterator<Item = &'a Job> {
    jobs.iter().filter(move |job| is_of(job, fingerprint))
}

/// Whether a Job builds this fingerprint.
pub fn is_of(job: &Job, fingerprint: &Digest) -> bool {
    job.metadata
        .annotations
        .iter()
        .flatten()
        .any(|(key, value)| key == labels::CONTENT_HASH_ANNOTATION && value == fingerprint.hex())
}

/// How many attempts there were at a fingerprint.
pub fn attempts(owner: &str, jobs: &[Job], fingerprint: &Digest) -> u32 {
    jobs_of(jobs, fingerprint)
        .filter_map(|job| children::attempt_of(owner, fingerprint, job))
        .max()
        .unwrap_or(0)
}

fn attempt(cr: &Dataset, fingerprint: Digest, observed: &Observed, now: Timestamp) -> Step {
    let owner = cr.metadata.name.as_deref().unwrap_or_default();
    let number = attempts(owner, &observed.jobs, &fingerprint);
    let last = Attempt::of(owner, &observed.jobs, &fingerprint, number);
    let Some(job) = last.last() else {
        return start(fingerprint, None, observed);
    };
    let under_way = matches!(jobs::state(job), JobState::Active | JobState::Suspended);
    let end_of = |job: &Job| jobs::end(job, &observed.pods, &observed.sightings, now);
    let end = end_of(job).filter(|_| !under_way && !last.waits_for_rest());
    let Some(end) = end else {
        let before = number.checked_sub(1).and_then(|before| {
            let job = Attempt::of(owner, &observed.jobs, &fingerprint, before).last()?;
            Some(ended(before, &end_of(job)?))
        });
        return Step::Build {
            fingerprint,
            attempt: number,
            after: before,
        };
    };
    let after = ended(number, &end);
    if !is_worth_another(&end.cause, &after.reason) {
        return Step::Failed {
            fingerprint,
            reason: after.reason,
            message: after.message,
        };
    }
    let finished = observed.sightings.ended(job);
    let until = finished.and_then(|end| end.checked_add(pause(number)).ok());
    match until.filter(|until| now < *until) {
        Some(until) => Step::Pause {
            fingerprint,
            after,
            until,
            seconds: jobs::seconds_between(Some(now), Some(until)).max(1),
        },
        None => start(fingerprint, Some(after), observed),
    }
}

/// Between the end of attempt `number` and the next one.
fn pause(number: u32) -> SignedDuration {
    let doublings = number.saturating_sub(1).min(16);
    SignedDuration::from_secs((FIRST_PAUSE_SECONDS << doublings).min(LONGEST_PAUSE_SECONDS))
}

fn ended(attempt: u32, end: &End) -> Ended {
    let summary: Option<BuildSummary> = serde_json::from_str(&end.summary).ok();
    Ended {
        attempt,
        reason: match &end.cause {
            Cause::Exit(code) => failure_reason(*code, summary.as_ref()),
            Cause::OutOfMemory | Cause::Killed(_) | Cause::TakenAway(_) => {
                reason::BUILD_FAILED.to_owned()
            }
        },
        message: describe(&end.cause, summary.as_ref()),
    }
}

/// Whether a build ended for something that is not there yet.
fn may_come(why: &str) -> bool {
    [reason::SOURCE_NOT_FOUND, reason::BASE_MODEL_NOT_FOUND].contains(&why)
}

/// Whether another attempt at the same sources may end otherwise. Rows stay as bad as they are; a
/// file that is not there yet may come, and volumes don't tell.
fn is_worth_another(cause: &Cause, why: &str) -> bool {
    match cause {
        Cause::Exit(code) => !matches!(code.after(), AfterExit::Fail) || may_come(why),
        Cause::OutOfMemory => false,
        Cause::Killed(_) | Cause::TakenAway(_) => true,
    }
}

fn start(fingerprint: Digest, after: Option<Ended>, observed: &Observed) -> Step {
    if observed.foreign_job || observed.configuration.is_foreign() {
        return Step::NameTaken {
            message: "the build's Job or ConfigMap has a name that belongs to somebody else"
                .to_owned(),
        };
    }
    Step::Build {
        fingerprint,
        attempt: after.as_ref().map_or(1, |ended| ended.attempt + 1),
        after,
    }
}

fn failure_reason(code: ExitCode, summary: Option<&BuildSummary>) -> String {
    let known = |name: &str| {
        graftwork_api::conditions::REASONS
            .iter()
            .any(|entry| entry.name == name)
    };
    match summary {
        Some(summary) if known(&summary.reason) && summary.reason != reason::COMPLETED => {
            summary.reason.clone()
        }
        _ => match code {
            ExitCode::BadData => reason::DATA_ERROR,
            ExitCode::BadConfig => reason::INVALID_SPEC,
            _ => reason::BUILD_FAILED,
        }
        .to_owned(),
    }
}

fn describe(cause: &Cause, summary: Option<&BuildSummary>) -> String {
    let said = summary.filter(|it| ![reason::COMPLETED, UNDER_WAY].contains(&it.reason.as_str()));
    if let Some(summary) = said {
        return with_rows(summary);
    }
    let doing = summary.filter(|it| it.reason == UNDER_WAY);
    let doing = doing.map_or_else(String::new, |it| format!(" {}", it.message));
    match cause {
        Cause::Exit(ExitCode::Done) => {
            "the builder ended well and left no record in the store".to_owned()
        }
        Cause::Exit(code) => format!("the builder ended with exit code {}", code.code()),
        Cause::Killed(code) => format!("the builder ended with exit code {code}{doing}"),
        Cause::OutOfMemory => format!(
            "the builder ran out of memory{doing}: raise datasetBuilder.resources in the chart's values, then change \
             the annotation graftwork.dev/refresh"
        ),
        Cause::TakenAway(why) => format!("the builder's pod was taken away{doing}: {why}"),
    }
}

/// The builder's message, which has the first row of each rule that was broken, and the other rows
/// that it named.
fn with_rows(summary: &BuildSummary) -> String {
    let rows: Vec<String> = summary
        .rejected
        .iter()
        .map(ToString::to_string)
        .filter(|row| !summary.message.contains(row))
        .take(NAMED_ROWS)
        .collect();
    if rows.is_empty() {
        return summary.message.clone();
    }
    format!("{}; also {}", summary.message, rows.join("; "))
}

fn missing_source(valid: &Valid, states: &BTreeMap<String, SourceState>) -> Option<String> {
    valid.sources.iter().find_map(|source| {
        let state = states.get(&source.name).unwrap_or(&SourceState::Absent);
        let (field, object) = match &source.place {
            Place::Key { config_map, .. } => {
                ("configMapRef.name", format!("ConfigMap \"{config_map}\""))
            }
            Place::File(uri) => ("uri", format!("PersistentVolumeClaim \"{}\"", uri.claim())),
            // The operator may not look at Secrets: the builder says what is missing.
            Place::Query { secret, .. } => {
                ("postgres.secretRef", format!("Secret \"{}\"", secret.name))
            }
            Place::Remote { text, .. } => ("uri", format!("\"{text}\"")),
        };
        let at = |field: &str| format!("spec.sources[{}].{field}", source.name);
        match (state, &source.place) {
            (SourceState::Present(_), _) => None,
            (SourceState::KeyAbsent, Place::Key { key, .. }) => Some(format!(
                "{}: {object} has no key \"{key}\"",
                at("configMapRef.key")
            )),
            (SourceState::Absent | SourceState::KeyAbsent, _) => {
                Some(format!("{}: {object} does not exist", at(field)))
            }
            (SourceState::Deleting, _) => Some(format!("{}: {object} is being deleted", at(field))),
            (SourceState::NotBound, _) => {
                Some(format!("{}: {object} is not bound to a volume", at(field)))
            }
        }
    })
}

fn missing_base(valid: &Valid, observed: &Observed) -> Option<String> {
    let claim = valid.base.as_ref()?.claim();
    let problem = observed.base_claim.problem(claim)?;
    Some(format!("spec.baseModel.uri: {problem}"))
}

/// Of everything that decides the outcome; none while a `ConfigMap`'s content is not known.
pub fn fingerprint(
    cr: &Dataset,
    valid: &Valid,
    states: &BTreeMap<String, SourceState>,
) -> Option<Digest> {
    let mut hasher = graftwork_contract::digest::PartsHasher::new();
    hasher
        .part("graftwork/build/v1")
        .part(Digest::of_json(&valid.format).ok()?.as_str())
        .part(Digest::of_json(&valid.validation).ok()?.as_str())
        .part(Digest::of_json(&valid.split).ok()?.as_str())
        .part(status::refresh(cr).unwrap_or_default());
    // What was built before there was such a thing keeps its fingerprint.
    if valid.reward {
        hasher.part("reward");
    }
    if let Some(time) = timing::answered(cr).filter(|_| !valid.is_seen_whole()) {
        hasher.part("schedule").part(time.to_string());
    }
    if let Some(privacy) = &valid.privacy {
        hasher
            .part("privacy")
            .part(Digest::of_json(privacy).ok()?.as_str());
    }
    if let Some(balance) = &valid.balance {
        hasher
            .part("balance")
            .part(Digest::of_json(balance).ok()?.as_str());
    }
    if let Some(sql) = &valid.transform {
        hasher.part("transform").part(sql);
    }
    if let Some(base) = &valid.base {
        hasher.part("base model").part(base.to_string());
    }
    if let Some(key) = &valid.pseudonym_key {
        hasher.part("pseudonym key").part(&key.name).part(&key.key);
    }
    for source in &valid.sources {
        let Some(SourceState::Present(content)) = states.get(&source.name) else {
            return None;
        };
        hasher.part(&source.name).part(uri(&source.place));
        match (content, &source.place) {
            (Some(digest), Place::Key { .. }) => hasher.part(digest.as_str()),
            (None, Place::Key { .. }) => return None,
            (_, Place::File(_)) => hasher.part(""),
            (_, Place::Query { query, .. }) => hasher
                .part("query")
                .part(Digest::of_json(query).ok()?.as_str()),
            (_, Place::Remote { secret, .. }) => hasher
                .part("remote")
                .part(secret.as_deref().unwrap_or_default()),
        };
        if let Some(Share { part, whole }) = source.share {
            hasher.part("share").part(format!("{part}/{whole}"));
        }
        if !source.columns.is_empty() {
            hasher
                .part("columns")
                .part(Digest::of_json(&source.columns).ok()?.as_str());
        }
    }
    Some(hasher.finish())
}

/// A source as provenance writes it.
pub fn uri(place: &Place) -> String {
    match place {
        Place::Key { config_map, key } => format!("configmap://{config_map}/{key}"),
        Place::File(uri) => uri.to_string(),
        Place::Remote { text, .. } => text.clone(),
        Place::Query { secret, .. } => match &secret.key {
            Some(key) => format!("secret://{}/{key}", secret.name),
            None => format!("secret://{}", secret.name),
        },
    }
}
