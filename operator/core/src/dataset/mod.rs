//! Dataset: a change of spec, of a source or of the refresh annotation is a new fingerprint, and so is a time
//! of the schedule that has come; a fingerprint that the store does not know is built by a Job.

mod analyzer;
mod children;
mod mix;
mod parts;
mod retention;
mod secrets;
mod status;
mod step;
mod timing;
mod validate;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use graftwork_api::{Dataset, DatasetStatus};
use graftwork_contract::Digest;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;

use crate::observed::{Asked, ClaimState, Found, Pod, Record};
use crate::plan::Plan;
use crate::settings::Settings;
use crate::sightings::Sightings;
use crate::storage::StorageProblem;

pub use validate::{Invalid, Valid, classification, read_format, validate};

/// Kind, as in YAML.
pub const KIND: &str = "Dataset";

/// What a Dataset's surroundings look like.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Every source of the spec, by name.
    pub sources: BTreeMap<String, SourceState>,
    /// The claim that holds the base model, where one is named.
    pub base_claim: ClaimState,
    /// Why the namespace has no store.
    pub storage: Option<StorageProblem>,
    /// The record of the build with the present fingerprint.
    pub build: Asked<Option<Record>>,
    /// The records of all versions.
    pub versions: Asked<Vec<Record>>,
    /// Versions that unfinished runs pin: they look them up in status.
    pub pinned: BTreeSet<u32>,
    /// Versions that a run or an adapter's version refers to.
    pub referenced: BTreeSet<u32>,
    /// Jobs of this Dataset.
    pub jobs: Vec<Job>,
    /// When they were first seen.
    pub sightings: Sightings,
    /// The Job of the next attempt has somebody else's name.
    pub foreign_job: bool,
    /// Pods of those Jobs.
    pub pods: Vec<Pod>,
    /// The configuration of the present fingerprint's build.
    pub configuration: Found<ConfigMap>,
    /// All configurations of this Dataset's builds.
    pub configurations: Vec<ConfigMap>,
}

/// What a source points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// There is no object of that name.
    Absent,
    /// The object is being deleted.
    Deleting,
    /// The `ConfigMap` has no such key.
    KeyAbsent,
    /// The claim has no volume.
    NotBound,
    /// It can be mounted, or is a Secret, which the operator may not look at; a `ConfigMap`'s key with the
    /// digest of its bytes.
    Present(Option<Digest>),
}

/// What decides a build's outcome as far as the operator can see it; none while a source is missing
/// or the spec is invalid.
pub fn fingerprint(cr: &Dataset, sources: &BTreeMap<String, SourceState>) -> Option<Digest> {
    let valid = validate(&cr.spec).ok()?;
    step::fingerprint(cr, &valid, sources)
}

/// Names of the objects that a build with this fingerprint would have next.
pub fn names(cr: &Dataset, fingerprint: &Digest, jobs: &[Job]) -> Names {
    let owner = cr.metadata.name.as_deref().unwrap_or_default();
    let next = step::attempts(owner, jobs, fingerprint) + 1;
    Names {
        configuration: children::configuration_name(owner, fingerprint),
        job: match cr.spec.shards {
            Some(2..) => children::parts_name(owner, fingerprint, next),
            _ => children::job_name(owner, fingerprint, next),
        },
    }
}

/// Names of a build's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Its configuration.
    pub configuration: String,
    /// The next attempt's Job.
    pub job: String,
}

/// What is to be done about a Dataset.
pub fn plan(
    cr: &Dataset,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Plan<DatasetStatus> {
    let valid = match validate(&cr.spec) {
        Ok(valid) => valid,
        Err(invalid) => return Plan::Act(status::invalid(cr, &invalid, now)),
    };
    let step = step::step(cr, &valid, observed, now);
    if let Some(decision) = timing::decide(cr, &valid, &step, now) {
        return Plan::Decide(decision);
    }
    let mut actions = status::report(cr, &step, observed, now);
    let means = children::Means {
        cr,
        valid: &valid,
        observed,
        settings,
    };
    children::build(means, &step, now, &mut actions);
    actions
        .calls
        .extend(retention::prune(cr, &valid, &step, observed));
    timing::wake(cr, now, &mut actions);
    Plan::Act(actions)
}
