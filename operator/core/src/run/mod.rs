//! `TrainingRun`: waits for its inputs, pins them, and makes one Job for each attempt until the
//! store holds a result or the run has failed.

mod attempt;
mod children;
mod claims;
mod inputs;
mod rows;
mod status;
mod step;
mod validate;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use graftwork_api::{Dataset, LoRAAdapter, TrainingRun, TrainingRunStatus};
use graftwork_contract::proto::trainer::v1::Progress;
use graftwork_contract::{Digest, paths};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;

use crate::observed::{Asked, ClaimState, DescribedBase, Found, Pod, Record};
use crate::plan::Plan;
use crate::settings::Settings;
use crate::sightings::Sightings;
use crate::storage::StorageProblem;

pub use claims::claims;
pub use inputs::{Initial, initial_version};
pub use step::pod_of;
pub use validate::{Invalid, Valid, validate};

/// Kind, as in YAML.
pub const KIND: &str = "TrainingRun";

/// What a run's surroundings look like.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Why the namespace has no store.
    pub storage: Option<StorageProblem>,
    /// The Dataset of `datasetRef`.
    pub dataset: Referenced<Dataset>,
    /// The adapter of `adapterRef`.
    pub adapter: Referenced<LoRAAdapter>,
    /// The adapter of `initialAdapterRef`, or of `method.subject`.
    pub initial: Referenced<LoRAAdapter>,
    /// The claim of the base model.
    pub base_claim: ClaimState,
    /// The other claims that the spec names (see [`claims()`]).
    pub claims: BTreeMap<String, ClaimState>,
    /// The base model, where it is not pinned yet.
    pub base: Asked<DescribedBase>,
    /// The stored pin of the run's inputs.
    pub resolved: Asked<Option<Record>>,
    /// The stored result.
    pub result: Asked<Option<Record>>,
    /// The trainer's configuration.
    pub configuration: Found<ConfigMap>,
    /// The Job of the attempt under way, or of the next one.
    pub job: Found<Job>,
    /// All Jobs of the run.
    pub jobs: Vec<Job>,
    /// When they were first seen.
    pub sightings: Sightings,
    /// Their pods.
    pub pods: Vec<Pod>,
    /// What the trainer of the newest attempt last reported.
    pub report: Option<Report>,
}

/// An object that the spec names.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Referenced<T> {
    /// The spec names none, or there is none of that name.
    #[default]
    Absent,
    /// It is being deleted.
    Deleting,
    /// It is there, but not as this version of the API writes it.
    Unreadable,
    /// It is there.
    There(Box<T>),
}

/// Progress as a trainer reported it.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What it said.
    pub progress: Progress,
    /// When it became so, by the trainer's clock; when it arrived, where that clock can't be right.
    pub at: Timestamp,
}

/// The version of an adapter that the run waits to pin: it has to be listed until then.
pub fn wanted_version(cr: &TrainingRun) -> Option<graftwork_contract::run::AdapterVersion> {
    let is_pinned = cr.status.as_ref().is_some_and(|it| it.resolved.is_some());
    if is_pinned || status::is_finished(cr) {
        return None;
    }
    initial_version(&cr.spec).map(|initial| initial.version)
}

/// Claim and path of the base model, where the run still has to know it.
pub fn base_to_describe(cr: &TrainingRun) -> Option<graftwork_api::uri::PvcUri> {
    if status::is_finished(cr) || inputs::pinned_base(cr).is_some() {
        return None;
    }
    validate(&cr.spec).ok().map(|valid| valid.base)
}

/// Paths of the stored pin and of the stored result; none while the base model is not known, or
/// where the run is over.
pub fn records_to_read(cr: &TrainingRun, base: &Asked<DescribedBase>) -> Option<(String, String)> {
    if status::is_finished(cr) {
        return None;
    }
    let key = key(cr, base)?;
    let name = cr.metadata.name.as_deref()?;
    Some((
        paths::run_resolved(name, &key),
        paths::run_result(name, &key),
    ))
}

/// Digest of what decides the run's result: names its folder in the store.
pub fn key(cr: &TrainingRun, base: &Asked<DescribedBase>) -> Option<Digest> {
    let valid = validate(&cr.spec).ok()?;
    let digest = inputs::base_digest(cr, base)?;
    inputs::key(&valid, cr, &digest)
}

/// Name of the Job of the attempt under way, or of the next one.
pub fn job_name(cr: &TrainingRun) -> String {
    let attempts = attempt::attempts(cr);
    let number = if attempts.started > attempts.ended {
        attempts.started
    } else {
        attempts.started + 1
    };
    children::job_name(cr, number)
}

/// Name of the trainer's configuration.
pub fn configuration_name(cr: &TrainingRun) -> String {
    children::configuration_name(cr)
}

/// Whether a trainer may be running whose progress is of interest.
pub fn is_under_way(cr: &TrainingRun) -> bool {
    let attempts = attempt::attempts(cr);
    !status::is_finished(cr) && attempts.started > attempts.ended
}

/// What is to be done about a run.
pub fn plan(
    cr: &TrainingRun,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Plan<TrainingRunStatus> {
    if status::is_finished(cr) {
        let mut actions = status::finished(cr, observed);
        children::prune(cr, observed, now, &mut actions);
        return Plan::Act(actions);
    }
    let valid = match validate(&cr.spec) {
        Ok(valid) => valid,
        Err(invalid) => return status::invalid(cr, &invalid, now),
    };
    let step = step::step(cr, &valid, observed, settings, now);
    let mut plan = status::report(cr, &step, observed, now);
    if let Plan::Act(actions) = &mut plan {
        let means = children::Means {
            cr,
            valid: &valid,
            observed,
            settings,
        };
        children::build(means, &step, now, actions);
    }
    plan
}
