//! Builds in parts: an Indexed Job whose pods read the rows, and after it the Job that does the rest. Both are
//! one attempt, and bear its number.

use graftwork_api::DatasetSpec;
use graftwork_api::dataset::PrivacyMode;
use graftwork_contract::Digest;
use k8s_openapi::api::batch::v1::Job;

use super::children::attempt_of;
use super::step::is_of;
use super::validate::{Invalid, read_format};
use crate::jobs::{self, JobState};

/// Most pods of a build.
const MAXIMUM: u32 = 64;

/// Reads `spec.shards`. None where one pod does all.
///
/// # Errors
/// A number that is out of bounds; SQL over the sources, which sees all rows at once; a column that
/// names classes and is masked elsewhere: parts lie in the store for a while, and hold it as the source has it.
pub fn read(spec: &DatasetSpec) -> Result<Option<u32>, Invalid> {
    let Some(shards) = spec.shards else {
        return Ok(None);
    };
    let invalid = |message: String| Invalid::new("spec.shards", message);
    if !(1..=MAXIMUM).contains(&shards) {
        return Err(invalid(format!("is {shards}, must be from 1 to {MAXIMUM}")));
    }
    if shards == 1 {
        return Ok(None);
    }
    if spec.transform.is_some() {
        return Err(invalid(format!(
            "is {shards}, and spec.transform is one query over all rows, which one pod runs; \
             leave spec.shards out, or spec.transform"
        )));
    }
    let masking = spec
        .privacy
        .as_ref()
        .filter(|privacy| privacy.mode != PrivacyMode::Allow);
    let class = spec.balance.as_ref().map(|balance| &balance.column);
    if let Some(column) = class {
        let own = spec.split.group_column.as_ref() == Some(column);
        let is_masked = masking.is_some_and(|privacy| {
            // Left out, columns are those of the format and the group's.
            let all = privacy.columns.is_empty();
            privacy.columns.contains(column) || (all && (own || is_of_format(spec, column)))
        });
        if is_masked {
            return Err(invalid(format!(
                "is {shards}, and column \"{column}\" names classes and is masked: parts would hold it as it is; \
                 leave it out of spec.privacy.columns, or spec.shards out"
            )));
        }
    }
    Ok(Some(shards))
}

fn is_of_format(spec: &DatasetSpec, column: &str) -> bool {
    read_format(spec).is_ok_and(|format| format.columns().contains(&column))
}

/// Whether a Job makes parts.
pub fn makes_parts(job: &Job) -> bool {
    let spec = job.spec.as_ref();
    spec.and_then(|spec| spec.completion_mode.as_deref()) == Some(jobs::INDEXED)
}

/// What an attempt has come to.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The Job that makes its parts.
    pub parts: Option<&'a Job>,
    /// The Job that does the rest, or all.
    pub rest: Option<&'a Job>,
}

impl<'a> Attempt<'a> {
    /// The Jobs of an attempt at a fingerprint.
    pub fn of(owner: &str, jobs: &'a [Job], fingerprint: &Digest, number: u32) -> Self {
        let mut attempt = Self {
            parts: None,
            rest: None,
        };
        for job in jobs {
            if is_of(job, fingerprint) && attempt_of(owner, fingerprint, job) == Some(number) {
                if makes_parts(job) {
                    attempt.parts = Some(job);
                } else {
                    attempt.rest = Some(job);
                }
            }
        }
        attempt
    }

    /// The Job that the attempt's end is read from.
    pub fn last(self) -> Option<&'a Job> {
        self.rest.or(self.parts)
    }

    /// Whether all parts are made and the rest was not begun.
    pub fn waits_for_rest(self) -> bool {
        let is_complete = |job: &Job| jobs::state(job) == JobState::Complete;
        self.rest.is_none() && self.parts.is_some_and(is_complete)
    }
}
