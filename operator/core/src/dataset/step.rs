//! Where a Dataset is, recomputed every time from its spec, its sources, the store and its Jobs.

use std::collections::BTreeMap;

use graftwork_api::conditions::reason;
use graftwork_api::{Dataset, labels};
use graftwork_contract::Digest;
use graftwork_contract::dataset::{BuildRecord, BuildSummary, VersionRecord};
use graftwork_contract::exit::{AfterExit, ExitCode};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

use super::validate::{Place, Valid};
use super::{Observed, SourceState, status};
use crate::jobs::{self, Cause, JobState};
use crate::observed::Asked;
use crate::storage::StorageProblem;

/// Attempts at one fingerprint before a build counts as failed.
pub const MAXIMUM_ATTEMPTS: u32 = 4;
/// Seconds before the second attempt; each later one waits twice as long.
const FIRST_PAUSE_SECONDS: u64 = 5;

/// Where a Dataset is.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A source is not there.
    SourceMissing {
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
    },
    /// The next attempt waits.
    Pause {
        /// The present fingerprint.
        fingerprint: Digest,
        /// Seconds until then.
        seconds: u64,
        /// Why the last one ended.
        message: String,
    },
    /// The build failed for good.
    Failed {
        /// The present fingerprint.
        fingerprint: Digest,
        /// A condition's reason.
        reason: String,
        /// Why.
        message: String,
        /// What the last attempt said, where that is still known.
        summary: Option<BuildSummary>,
    },
    /// The next Job's name belongs to somebody else.
    NameTaken {
        /// Which.
        message: String,
    },
}

/// The step of a Dataset with a valid spec.
pub fn step(cr: &Dataset, valid: &Valid, observed: &Observed, now: Timestamp) -> Step {
    if let Some(message) = missing_source(valid, &observed.sources) {
        return Step::SourceMissing { message };
    }
    if let Some(problem) = &observed.storage {
        return Step::NoStorage(problem.clone());
    }
    let Some(fingerprint) = fingerprint(valid, status::refresh(cr), &observed.sources) else {
        return Step::SourceMissing {
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
                    summary: None,
                },
            }
        }
        (Asked::Answered(None), Asked::Answered(_)) => attempt(fingerprint, observed, now),
        (Asked::Unreachable(message), _) | (_, Asked::Unreachable(message)) => Step::KeeperAway {
            message: message.clone(),
        },
        (Asked::NotAsked, _) | (_, Asked::NotAsked) => Step::KeeperAway {
            message: "the keeper was not asked yet".to_owned(),
        },
    }
}

fn ready(fingerprint: Digest, record: BuildRecord, mut versions: Vec<VersionRecord>) -> Step {
    versions.sort_by(|a, b| b.version.cmp(&a.version));
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

/// The number of an attempt's Job.
fn attempt_of(job: &Job) -> u32 {
    job.metadata
        .labels
        .iter()
        .flatten()
        .find(|(key, _)| *key == labels::ATTEMPT)
        .and_then(|(_, number)| number.parse().ok())
        .unwrap_or(0)
}

/// How many attempts there were at a fingerprint.
pub fn attempts(jobs: &[Job], fingerprint: &Digest) -> u32 {
    jobs_of(jobs, fingerprint)
        .map(attempt_of)
        .max()
        .unwrap_or(0)
}

fn attempt(fingerprint: Digest, observed: &Observed, now: Timestamp) -> Step {
    let last = jobs_of(&observed.jobs, &fingerprint).max_by_key(|job| attempt_of(job));
    let Some(job) = last else {
        return start(fingerprint, 1, observed);
    };
    let number = attempt_of(job);
    if matches!(jobs::state(job), JobState::Active | JobState::Suspended) {
        return Step::Build {
            fingerprint,
            attempt: number,
        };
    }
    let Some(end) = jobs::end(job, &observed.pods, now) else {
        return Step::Build {
            fingerprint,
            attempt: number,
        };
    };
    let summary: Option<BuildSummary> = serde_json::from_str(&end.summary).ok();
    let message = describe(&end.cause, summary.as_ref());
    let (again, why) = match &end.cause {
        Cause::Exit(code) => (
            !matches!(code.after(), AfterExit::Fail),
            failure_reason(*code, summary.as_ref()),
        ),
        Cause::OutOfMemory => (false, reason::BUILD_FAILED.to_owned()),
        Cause::Killed(_) | Cause::TakenAway(_) => (true, reason::BUILD_FAILED.to_owned()),
    };
    let pause = FIRST_PAUSE_SECONDS << number.saturating_sub(1).min(8);
    let waited = jobs::seconds_between(jobs::finished_at(job), Some(now));
    if !again || number >= MAXIMUM_ATTEMPTS {
        Step::Failed {
            fingerprint,
            reason: why,
            message,
            summary,
        }
    } else if waited < pause {
        Step::Pause {
            fingerprint,
            seconds: pause - waited,
            message,
        }
    } else {
        start(fingerprint, number + 1, observed)
    }
}

fn start(fingerprint: Digest, attempt: u32, observed: &Observed) -> Step {
    if observed.foreign_job || observed.configuration.is_foreign() {
        return Step::NameTaken {
            message: "the build's Job or ConfigMap has a name that belongs to somebody else"
                .to_owned(),
        };
    }
    Step::Build {
        fingerprint,
        attempt,
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
    if let Some(summary) = summary.filter(|it| it.reason != reason::COMPLETED) {
        return summary.message.clone();
    }
    match cause {
        Cause::Exit(ExitCode::Done) => {
            "the builder ended well and left no record in the store".to_owned()
        }
        Cause::Exit(code) => format!("the builder ended with exit code {}", code.code()),
        Cause::Killed(code) => format!("the builder ended with exit code {code}"),
        Cause::OutOfMemory => {
            "the builder ran out of memory: raise datasetBuilder.resources in the chart's values"
                .to_owned()
        }
        Cause::TakenAway(why) => format!("the builder's pod was taken away: {why}"),
    }
}

fn missing_source(valid: &Valid, states: &BTreeMap<String, SourceState>) -> Option<String> {
    valid.sources.iter().find_map(|source| {
        let state = states.get(&source.name).unwrap_or(&SourceState::Absent);
        let (field, object) = match &source.place {
            Place::Key { config_map, .. } => {
                ("configMapRef.name", format!("ConfigMap \"{config_map}\""))
            }
            Place::File(uri) => ("uri", format!("PersistentVolumeClaim \"{}\"", uri.claim())),
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

/// Of everything that decides the outcome; none while a `ConfigMap`'s content is not known.
pub fn fingerprint(
    valid: &Valid,
    refresh: Option<&str>,
    states: &BTreeMap<String, SourceState>,
) -> Option<Digest> {
    let mut hasher = graftwork_contract::digest::PartsHasher::new();
    hasher
        .part("graftwork/build/v1")
        .part(Digest::of_json(&valid.format).ok()?.as_str())
        .part(Digest::of_json(&valid.validation).ok()?.as_str())
        .part(Digest::of_json(&valid.split).ok()?.as_str())
        .part(refresh.unwrap_or_default());
    for source in &valid.sources {
        let Some(SourceState::Present(content)) = states.get(&source.name) else {
            return None;
        };
        hasher.part(&source.name).part(uri(&source.place));
        match (content, &source.place) {
            (Some(digest), Place::Key { .. }) => hasher.part(digest.as_str()),
            (None, Place::Key { .. }) => return None,
            (_, Place::File(_)) => hasher.part(""),
        };
    }
    Some(hasher.finish())
}

/// A source as provenance writes it.
pub fn uri(place: &Place) -> String {
    match place {
        Place::Key { config_map, key } => format!("configmap://{config_map}/{key}"),
        Place::File(uri) => uri.to_string(),
    }
}
