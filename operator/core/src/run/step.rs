//! Where a run is, recomputed every time from its spec, the accounts in status, the store, and its
//! Job.

use graftwork_api::TrainingRun;
use graftwork_api::conditions::reason;
use graftwork_api::training_run::ResolvedInputs;
use graftwork_contract::proto::store::v1::PublishRequest;
use graftwork_contract::run::{Resolved, RunResult};
use graftwork_contract::{Digest, digest, paths};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

use super::attempt::{self, Closing, Counts};
use super::inputs::{self, Waiting};
use super::validate::Valid;
use super::{Observed, children, claims, rows};
use crate::jobs::{self, End, JobState, seconds_between};
use crate::observed::{Asked, Container, Found, Pod, Record};
use crate::settings::{ComputeProfile, Settings};
use crate::storage::StorageProblem;

/// Seconds that a pod may fail to pull its image before the run fails.
const IMAGE_PATIENCE_SECONDS: u64 = 120;
/// Seconds between a Job's good end and its result being read back.
const RESULT_PATIENCE_SECONDS: u64 = 20;

/// Where a run is.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Something is not there yet.
    Wait(Waiting),
    /// A field can't work with the base model.
    Invalid(super::Invalid),
    /// Decision: this is what the references mean.
    Pin(ResolvedInputs),
    /// The pin goes to the store, where it outlives status.
    Store(PublishRequest),
    /// The store has the result.
    Complete(Box<RunResult>),
    /// No attempt is wanted.
    Suspended,
    /// Decision: an attempt begins.
    Open(u32),
    /// Decision: an attempt is over.
    Close(u32, Closing),
    /// The attempt's Job is to be made.
    Make(u32, Box<Resolved>),
    /// The attempt is under way.
    Watch(Phase),
    /// The pod of an earlier attempt is still stopping.
    Stopping,
    /// The next attempt waits this many seconds.
    Pause(u64),
}

/// What the attempt under way does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It waits for a node or for a queue.
    Queued(String),
    /// Its pod starts.
    Starting(String),
    /// Its image can't be pulled yet.
    ImageUnavailable(String),
    /// Its container runs.
    Running {
        /// Seconds until its time is over.
        remaining_seconds: u64,
    },
    /// Its Job is complete; the result is being read.
    Reading,
    /// Its pod ended otherwise; what that counts as is not known before the Job says so.
    Ended,
}

/// The step of a run with a valid spec that is not over.
pub fn step(
    cr: &TrainingRun,
    valid: &Valid,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Step {
    let attempts = attempt::attempts(cr);
    if let Some(newest) = begun(cr, observed) {
        return Step::Open(newest);
    }
    let under_way = attempts.started > attempts.ended;
    let at_rest = match observed.job.ours() {
        Some(job) if under_way => {
            !matches!(jobs::state(job), JobState::Active | JobState::Suspended)
        }
        _ => true,
    };
    if at_rest && let Some(step) = stored_result(observed) {
        return step;
    }
    if under_way {
        let number = attempts.started;
        if cr.spec.suspend {
            return Step::Close(number, suspension(cr, observed, now));
        }
        match &observed.job {
            Found::Ours(job) => watch(cr, number, job, observed, now),
            Found::Absent => match profile(cr, settings) {
                // The chart's values may have changed since the attempt was opened.
                Err(waiting) => waiting,
                Ok(_) => intruder(cr, observed).unwrap_or_else(|| make(number, observed)),
            },
            Found::Foreign => name_taken("Job", &super::job_name(cr)),
        }
    } else {
        begin(cr, valid, observed, settings, now)
    }
}

/// The newest attempt that has a Job and that status does not know of. Where status was lost the Jobs know better;
/// else an attempt is written before its Job is made: no Job is more than one ahead, and none while an attempt is
/// under way.
fn begun(cr: &TrainingRun, observed: &Observed) -> Option<u32> {
    let known = cr.status.as_ref().and_then(|status| status.attempts);
    let started = known.map_or(0, |known| known.started);
    let most = known.map_or(u32::MAX, |known| {
        let is_over = known.started <= known.ended;
        known.started.saturating_add(u32::from(is_over))
    });
    let jobs = observed.jobs.iter();
    jobs.filter_map(|job| children::attempt_of(cr, job))
        .filter(|number| *number > started && *number <= most)
        .max()
}

/// A Job that runs under the name of an attempt that is not begun: nothing is run beside it.
fn intruder(cr: &TrainingRun, observed: &Observed) -> Option<Step> {
    let started = attempt::attempts(cr).started;
    let is_ahead = |job: &&Job| {
        let runs = matches!(jobs::state(job), JobState::Active | JobState::Suspended);
        runs && children::attempt_of(cr, job).is_some_and(|number| number > started)
    };
    let job = observed.jobs.iter().find(is_ahead)?;
    let name = job.metadata.name.as_deref()?;
    Some(waiting(
        reason::OBJECT_NOT_OURS,
        format!(
            "Job \"{name}\" runs under the name of an attempt that this run has not begun \
             (status.attempts.started is {started}); delete it, and the run goes on"
        ),
    ))
}

fn stored_result(observed: &Observed) -> Option<Step> {
    let record = observed.result.answer()?.as_ref()?;
    Some(match record.read() {
        Ok(result) => Step::Complete(Box::new(result)),
        Err(unreadable) => waiting(reason::INTERNAL_ERROR, unreadable.to_string()),
    })
}

fn waiting(reason: &'static str, message: impl Into<String>) -> Step {
    Step::Wait(Waiting {
        reason,
        message: message.into(),
    })
}

fn name_taken(kind: &str, name: &str) -> Step {
    waiting(
        reason::OBJECT_NOT_OURS,
        format!("{kind} \"{name}\" exists and does not belong to this run"),
    )
}

/// Nothing is under way: what is still missing before the next attempt?
fn begin(
    cr: &TrainingRun,
    valid: &Valid,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Step {
    if cr.spec.suspend {
        return Step::Suspended;
    }
    match &observed.storage {
        Some(StorageProblem::NotOurs(message)) => {
            return waiting(reason::OBJECT_NOT_OURS, message);
        }
        Some(StorageProblem::Unavailable(message)) => {
            return waiting(reason::STORAGE_UNAVAILABLE, message);
        }
        None => {}
    }
    let profile = match profile(cr, settings) {
        Ok(profile) => profile,
        Err(waiting) => return waiting,
    };
    let image = settings.trainer_image(profile);
    if let Some(missing) = claims::missing(cr, observed) {
        return Step::Wait(missing);
    }
    let stored = match pin(cr, valid, image, observed) {
        Ok(stored) => stored,
        // The keeper may be minutes away; what nobody needs it for is said at once.
        Err(step) if is_keeper_away(&step) => {
            return inputs::visible(cr, observed).map_or_else(Step::Wait, |()| step);
        }
        Err(step) => return step,
    };
    let status = cr.status.as_ref();
    let pinned = status.and_then(|status| status.resolved.as_ref());
    let image = pinned.map_or(image, |pinned| pinned.image.as_str());
    let printed = inputs::print(&stored, image, &cr.spec.compute.profile);
    if pinned != Some(&printed) {
        return Step::Pin(printed);
    }
    if observed.job.is_foreign() {
        return name_taken("Job", &super::job_name(cr));
    }
    if observed.configuration.is_foreign() {
        return name_taken("ConfigMap", &children::configuration_name(cr));
    }
    if observed.pods.iter().any(|pod| !has_ended(pod)) {
        return Step::Stopping;
    }
    if let Some(step) = intruder(cr, observed) {
        return step;
    }
    match attempt::pause(status, now) {
        None => Step::Open(attempt::attempts(cr).started + 1),
        Some(seconds) => Step::Pause(seconds),
    }
}

/// The profile that the run names, as the chart describes it now.
fn profile<'a>(cr: &TrainingRun, settings: &'a Settings) -> Result<&'a ComputeProfile, Step> {
    let not_found = |message| Err(waiting(reason::COMPUTE_PROFILE_NOT_FOUND, message));
    let name = &cr.spec.compute.profile;
    let profile = match settings.profile(name) {
        Ok(profile) => profile,
        Err(unknown) => return not_found(format!("spec.compute.profile: {unknown}")),
    };
    if children::is_for_spot(cr) && profile.spot.is_none() {
        return not_found(format!(
            "spec.compute.spot: compute profile \"{name}\" has no spot nodes in this installation; set \
             computeProfiles.{name}.spot in the chart's values, or leave spot out in a new run"
        ));
    }
    Ok(profile)
}

fn is_keeper_away(step: &Step) -> bool {
    matches!(step, Step::Wait(waiting) if waiting.reason == reason::STORAGE_UNAVAILABLE)
}

/// The stored pin, or what is to be done until there is one.
fn pin(
    cr: &TrainingRun,
    valid: &Valid,
    image: &str,
    observed: &Observed,
) -> Result<Resolved, Step> {
    let digest = match inputs::pinned_base(cr) {
        Some(digest) => digest,
        None => describe_base(valid, observed)?,
    };
    match &observed.resolved {
        Asked::Answered(Some(stored)) => read_pin(stored),
        Asked::Answered(None) => {
            let resolved =
                inputs::resolve(cr, valid, digest.clone(), observed).map_err(Step::Wait)?;
            let profile = &cr.spec.compute.profile;
            let pinned = cr.status.as_ref().and_then(|it| it.resolved.as_ref());
            let image = pinned.map_or(image, |pinned| pinned.image.as_str());
            let printed = inputs::print(&resolved, image, profile);
            if pinned == Some(&printed) {
                return Err(Step::Store(publish_request(cr, valid, &digest, &resolved)));
            }
            let refused = match pinned {
                None => rows::refused(valid, &resolved.dataset, observed),
                Some(_) => None,
            };
            Err(refused.map_or(Step::Pin(printed), Step::Invalid))
        }
        Asked::Unreachable(why) => Err(waiting(reason::STORAGE_UNAVAILABLE, why)),
        Asked::NotAsked => Err(waiting(
            reason::STORAGE_UNAVAILABLE,
            "the keeper was not asked yet",
        )),
    }
}

fn describe_base(valid: &Valid, observed: &Observed) -> Result<Digest, Step> {
    let base = inputs::base(observed).map_err(Step::Wait)?;
    let rank = valid.lora.rank;
    if rank > base.hidden_size {
        return Err(Step::Invalid(super::Invalid::new(
            "spec.method.lora.rank",
            format!(
                "{rank} is above the base model's hidden size {}; lower it in a new run",
                base.hidden_size
            ),
        )));
    }
    let known = &base.target_modules;
    let mut named = valid.lora.target_modules.iter();
    if let Some(unknown) = named.find(|name| !known.is_empty() && !known.contains(name)) {
        return Err(Step::Invalid(super::Invalid::new(
            "spec.method.lora.targetModules",
            format!(
                "\"{unknown}\" is no module of the base model that can be adapted; these are: {}",
                known.join(", ")
            ),
        )));
    }
    let length = valid.hyperparameters.maximum_sequence_length;
    if length > base.maximum_positions {
        return Err(Step::Invalid(super::Invalid::new(
            "spec.hyperparameters.maximumSequenceLength",
            format!(
                "{length} is above the base model's {} positions; lower it in a new run",
                base.maximum_positions
            ),
        )));
    }
    Ok(base.digest.clone())
}

fn read_pin(stored: &Record) -> Result<Resolved, Step> {
    stored
        .read()
        .map_err(|unreadable| waiting(reason::INTERNAL_ERROR, unreadable.to_string()))
}

fn publish_request(
    cr: &TrainingRun,
    valid: &Valid,
    base: &Digest,
    resolved: &Resolved,
) -> PublishRequest {
    let name = cr.metadata.name.as_deref().unwrap_or_default();
    let path = inputs::key(valid, cr, base)
        .map(|key| paths::run_resolved(name, &key))
        .unwrap_or_default();
    let content = serde_json::to_value(resolved)
        .map(|value| digest::canonical_json(&value).into_bytes())
        .unwrap_or_default();
    PublishRequest { path, content }
}

fn make(number: u32, observed: &Observed) -> Step {
    match &observed.resolved {
        Asked::Answered(Some(stored)) => match read_pin(stored) {
            Ok(resolved) => Step::Make(number, Box::new(resolved)),
            Err(step) => step,
        },
        Asked::Answered(None) => waiting(
            reason::STORAGE_UNAVAILABLE,
            "the store has lost the pin of this run's inputs",
        ),
        Asked::Unreachable(why) => waiting(reason::STORAGE_UNAVAILABLE, why),
        Asked::NotAsked => waiting(reason::STORAGE_UNAVAILABLE, "the keeper was not asked yet"),
    }
}

/// The pod of a Job.
pub fn pod_of<'a>(job: &Job, pods: &'a [Pod]) -> Option<&'a Pod> {
    let name = job.metadata.name.as_deref()?;
    pods.iter()
        .filter(|pod| pod.labels.get(jobs::JOB_NAME_LABEL).map(String::as_str) == Some(name))
        .max_by_key(|pod| pod.created)
}

fn has_ended(pod: &Pod) -> bool {
    matches!(pod.phase.as_str(), "Succeeded" | "Failed")
}

fn watch(cr: &TrainingRun, number: u32, job: &Job, observed: &Observed, now: Timestamp) -> Step {
    if job.metadata.deletion_timestamp.is_some() {
        return Step::Stopping;
    }
    match jobs::state(job) {
        JobState::Suspended => Step::Watch(Phase::Queued(
            "the queue has not let the run's Job in yet".to_owned(),
        )),
        JobState::Active => under_way(cr, number, job, observed, now),
        JobState::Complete => {
            let since = seconds_between(observed.sightings.ended(job), Some(now));
            match (&observed.result, end_of(job, observed, now)) {
                (Asked::Answered(None), Some(end)) if since > RESULT_PATIENCE_SECONDS => {
                    Step::Close(number, attempt::closing(&end))
                }
                _ => Step::Watch(Phase::Reading),
            }
        }
        JobState::Failed => match end_of(job, observed, now) {
            Some(end) => Step::Close(number, attempt::closing(&end)),
            None => Step::Watch(Phase::Ended),
        },
    }
}

fn end_of(job: &Job, observed: &Observed, now: Timestamp) -> Option<End> {
    jobs::end(job, &observed.pods, &observed.sightings, now)
}

fn under_way(
    cr: &TrainingRun,
    number: u32,
    job: &Job,
    observed: &Observed,
    now: Timestamp,
) -> Step {
    let Some(pod) = pod_of(job, &observed.pods) else {
        return Step::Watch(Phase::Starting("the run's pod is being made".to_owned()));
    };
    if let Some(message) = pod.image_problem() {
        let waited = seconds_between(pod.image_missing_since, Some(now));
        return if waited > IMAGE_PATIENCE_SECONDS {
            Step::Close(
                number,
                Closing {
                    counts: Counts::Final,
                    reason: reason::IMAGE_UNAVAILABLE,
                    message: message.to_owned(),
                    active_seconds: 0,
                },
            )
        } else {
            Step::Watch(Phase::ImageUnavailable(message.to_owned()))
        };
    }
    if let Some(message) = &pod.unschedulable {
        let missing = claims::missing(cr, observed).map(|waiting| waiting.message);
        let said = missing.unwrap_or_else(|| format!("the run's pod has no node: {message}"));
        return Step::Watch(Phase::Queued(said));
    }
    match &pod.container {
        Container::Running { .. } => {
            let active = attempt::active_seconds(cr.status.as_ref(), pod, now);
            let limit = cr.spec.limits.duration_seconds;
            let spent = attempt::attempts(cr).active_seconds + active;
            if spent > limit {
                Step::Close(
                    number,
                    Closing {
                        counts: Counts::Final,
                        reason: reason::DEADLINE_EXCEEDED,
                        message: format!(
                            "the attempts were active for {spent} s, spec.limits.durationSeconds is {limit}"
                        ),
                        active_seconds: active,
                    },
                )
            } else {
                Step::Watch(Phase::Running {
                    remaining_seconds: limit - spent,
                })
            }
        }
        Container::Terminated { exit_code: 0, .. } => Step::Watch(Phase::Reading),
        Container::Terminated { .. } => Step::Watch(Phase::Ended),
        Container::Waiting { .. } | Container::Unknown => {
            let waits = pod.waiting_problem();
            let said = waits.map_or_else(
                || "the run's pod is starting".to_owned(),
                |why| format!("the run's pod waits: {why}"),
            );
            Step::Watch(Phase::Starting(said))
        }
    }
}

fn suspension(cr: &TrainingRun, observed: &Observed, now: Timestamp) -> Closing {
    let pod = observed
        .job
        .ours()
        .and_then(|job| pod_of(job, &observed.pods));
    let active_seconds = pod.map_or(0, |pod| match &pod.container {
        Container::Running { .. } => attempt::active_seconds(cr.status.as_ref(), pod, now),
        Container::Terminated {
            started, finished, ..
        } => seconds_between(*started, *finished),
        Container::Waiting { .. } | Container::Unknown => 0,
    });
    Closing {
        counts: Counts::Nothing,
        reason: reason::SUSPENDED,
        message: "spec.suspend was set".to_owned(),
        active_seconds,
    }
}
