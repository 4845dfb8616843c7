//! A run's status: what is said about each step.

use std::time::Duration;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::training_run::{
    CheckpointStatus, Progress, RunResult as RunResultStatus, RunStage,
};
use graftwork_api::{Decimal, Time, TrainingRun, TrainingRunStatus};
use graftwork_contract::run::RunResult;
use jiff::{SignedDuration, Timestamp};

use super::attempt;
use super::inputs;
use super::step::{Phase, Step, pod_of};
use super::{Invalid, Observed, Referenced, Report};
use crate::conditions::{self, Conditions, Moving, Truth};
use crate::hindered::LOOK_FOR_POD_SECONDS;
use crate::jobs::{self, seconds_between};
use crate::measured;
use crate::plan::{Actions, Decision, Event, NAME_TAKEN_PAUSE, Plan};

/// Seconds between two writes of progress: what status says is at most five seconds old, with room for the way.
const PROGRESS_SECONDS: u64 = 2;
/// The largest whole number that a status takes: what every reader of JSON can tell from the next one.
const LARGEST: u64 = (1 << 53) - 1;
/// Measurements that a status has room for.
const MOST_METRICS: usize = 64;

/// Whether the run is over, well or badly.
pub fn is_finished(cr: &TrainingRun) -> bool {
    cr.status
        .as_ref()
        .is_some_and(|status| conditions::is_true(&status.conditions, condition::FINISHED))
}

/// A run that is over: all that may still come is the number that its adapter gave the result.
pub fn finished(cr: &TrainingRun, observed: &Observed) -> Actions<TrainingRunStatus> {
    let mut status = cr.status.clone().unwrap_or_default();
    status.observed_generation = cr.metadata.generation;
    number_result(&mut status, observed);
    Actions {
        status: Some(status),
        ..Actions::default()
    }
}

fn number_result(status: &mut TrainingRunStatus, observed: &Observed) {
    let (Some(result), Referenced::There(adapter)) = (&mut status.result, &observed.adapter) else {
        return;
    };
    let versions = adapter.status.as_ref().map(|status| status.versions.iter());
    // Identity is content: the version may come from another run, or from an import.
    let version = versions
        .into_iter()
        .flatten()
        .find(|version| version.digest == result.digest);
    if let Some(version) = version {
        result.adapter_version = Some(version.version);
    }
}

/// A spec that can't work: it can't be changed either, so the run is over.
pub fn invalid(cr: &TrainingRun, invalid: &Invalid, now: Timestamp) -> Plan<TrainingRunStatus> {
    let message = format!("{}: {}", invalid.field, invalid.message);
    let status = cr.status.clone().unwrap_or_default();
    Plan::Act(say(
        cr,
        status,
        &Said::over(Truth::False, reason::INVALID_SPEC, message),
        now,
    ))
}

struct Said {
    truth: Truth,
    reason: &'static str,
    message: String,
    finished: bool,
    moving: Moving,
}

impl Said {
    fn under_way(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            truth: Truth::Unknown,
            reason,
            message: message.into(),
            finished: false,
            moving: Moving::Reconciling,
        }
    }

    fn over(truth: Truth, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            truth,
            reason,
            message: message.into(),
            finished: true,
            moving: if truth == Truth::False {
                Moving::Stalled
            } else {
                Moving::Rests
            },
        }
    }
}

/// Status and events of a step.
pub fn report(
    cr: &TrainingRun,
    step: &Step,
    observed: &Observed,
    now: Timestamp,
) -> Plan<TrainingRunStatus> {
    let status = cr.status.clone().unwrap_or_default();
    let act = |status, said: &Said, seconds: Option<u64>| {
        let mut actions = say(cr, status, said, now);
        actions.requeue_after = seconds.map(Duration::from_secs);
        Plan::Act(actions)
    };
    match step {
        Step::Invalid(bad) => invalid(cr, bad, now),
        Step::Wait(waiting) => {
            let mut said = Said::under_way(waiting.reason, waiting.message.clone());
            said.moving = if is_stalled(waiting.reason) {
                Moving::Stalled
            } else {
                Moving::Rests
            };
            act(status, &said, Some(wait_seconds(waiting.reason)))
        }
        Step::Pin(_) | Step::Open(_) | Step::Close(..) => decide(cr, status, step, now),
        Step::Store(_) => act(
            status,
            &Said::under_way(reason::STARTING, "the run's inputs are pinned"),
            Some(1),
        ),
        Step::Complete(result) => Plan::Act(complete(cr, status, result, observed, now)),
        Step::Suspended => {
            let mut status = status;
            forget_estimate(&mut status);
            let mut said = Said::under_way(reason::SUSPENDED, "spec.suspend is set");
            said.moving = Moving::Rests;
            act(status, &said, None)
        }
        Step::Make(number, _) => {
            let mut status = status;
            // Its Job may have run before, and have vanished.
            attempt::lose_active(&mut status, now);
            let said = Said::under_way(reason::STARTING, format!("attempt {number} starts"));
            act(status, &said, Some(5))
        }
        Step::Stopping => {
            let last = status.last_attempt.as_ref();
            let was_suspended = last.is_some_and(|last| last.reason == reason::SUSPENDED);
            let reason = if was_suspended {
                reason::STARTING
            } else {
                reason::RESTARTING
            };
            let message = "the pod of the attempt before is still stopping";
            act(status, &Said::under_way(reason, message), Some(5))
        }
        Step::Pause(seconds) => {
            let message = status.last_attempt.as_ref().map(attempt::describe);
            let said = Said::under_way(reason::RESTARTING, message.unwrap_or_default());
            act(status, &said, Some(*seconds))
        }
        Step::Watch(phase) => watch(cr, status, phase, observed, now),
    }
}

/// Whether somebody has to do something before a run goes on. It is not over, so `Succeeded` stays
/// Unknown: False is an end, beside which stands `Finished`.
fn is_stalled(reason: &str) -> bool {
    matches!(
        reason,
        reason::COMPUTE_PROFILE_NOT_FOUND
            | reason::OBJECT_NOT_OURS
            | reason::CLAIM_NOT_FOUND
            | reason::BASE_MODEL_NOT_FOUND
            | reason::BASE_MODEL_INVALID
            | reason::BASE_MODEL_UNSUPPORTED
            | reason::BASE_MODEL_MISMATCH
    )
}

/// Objects of the API come by watch; what the keeper reads has to be looked at again.
fn wait_seconds(reason: &str) -> u64 {
    match reason {
        reason::STORAGE_UNAVAILABLE => 2,
        reason::OBJECT_NOT_OURS => NAME_TAKEN_PAUSE.as_secs(),
        reason::BASE_MODEL_NOT_FOUND
        | reason::BASE_MODEL_INVALID
        | reason::BASE_MODEL_UNSUPPORTED => 5,
        _ => 60,
    }
}

fn decide(
    cr: &TrainingRun,
    mut status: TrainingRunStatus,
    step: &Step,
    now: Timestamp,
) -> Plan<TrainingRunStatus> {
    let said = match step {
        Step::Pin(resolved) => {
            status.resolved = Some(resolved.clone());
            Said::under_way(reason::STARTING, "the run's inputs are pinned")
        }
        Step::Open(number) => {
            attempt::open(&mut status, *number);
            Said::under_way(reason::STARTING, format!("attempt {number} starts"))
        }
        Step::Close(number, closing) => {
            forget_estimate(&mut status);
            let retries = cr.spec.limits.retries;
            let over = attempt::close(&mut status, *number, closing, retries, now);
            match over {
                Some((reason, message)) => Said::over(Truth::False, reason, message),
                None if closing.reason == reason::SUSPENDED => {
                    Said::under_way(reason::SUSPENDED, "spec.suspend is set")
                }
                None => {
                    let message = status.last_attempt.as_ref().map(attempt::describe);
                    Said::under_way(reason::RESTARTING, message.unwrap_or_default())
                }
            }
        }
        _ => return Plan::say(status, Vec::new(), None),
    };
    let actions = say(cr, status, &said, now);
    Plan::Decide(Decision {
        status: actions.status.unwrap_or_default(),
        events: actions.events,
    })
}

/// Nobody works towards the time that was estimated any more.
fn forget_estimate(status: &mut TrainingRunStatus) {
    if let Some(progress) = &mut status.progress {
        progress.estimated_completion_time = None;
        progress.evaluated_percent = None;
    }
}

fn watch(
    cr: &TrainingRun,
    mut status: TrainingRunStatus,
    phase: &Phase,
    observed: &Observed,
    now: Timestamp,
) -> Plan<TrainingRunStatus> {
    let (said, seconds) = match phase {
        Phase::Queued(message) => (Said::under_way(reason::QUEUED, message), 30),
        Phase::Starting(message) => (
            Said::under_way(reason::STARTING, message),
            LOOK_FOR_POD_SECONDS,
        ),
        Phase::ImageUnavailable(message) => {
            (Said::under_way(reason::IMAGE_UNAVAILABLE, message), 10)
        }
        Phase::Reading => (
            Said::under_way(reason::EVALUATING, "the result is being read"),
            1,
        ),
        Phase::Ended => (as_before(&status, "the run's pod has ended"), 1),
        Phase::Running { remaining_seconds } => {
            let job = observed.job.ours();
            if let Some(pod) = job.and_then(|job| pod_of(job, &observed.pods)) {
                attempt::note_active(&mut status, pod, now);
            }
            let (said, pending) = match &observed.report {
                Some(report) => take_report(&mut status, report, now),
                None => (as_before(&status, "the trainer reads model and data"), None),
            };
            let next = pending.unwrap_or(30).min(remaining_seconds + 1);
            (said, next)
        }
    };
    let mut actions = say(cr, status, &said, now);
    actions.requeue_after = Some(Duration::from_secs(seconds));
    Plan::Act(actions)
}

/// What was said of the attempt goes on being said: a trainer whose stream is cut, or whose pod is going, has not begun
/// anew.
fn as_before(status: &TrainingRunStatus, else_starting: &str) -> Said {
    let known = conditions::find(&status.conditions, condition::SUCCEEDED);
    let under_way = [reason::TRAINING, reason::EVALUATING];
    let said = known.and_then(|known| {
        let reason = under_way.into_iter().find(|it| *it == known.reason)?;
        Some(Said::under_way(reason, known.message.as_str()))
    });
    said.unwrap_or_else(|| Said::under_way(reason::STARTING, else_starting))
}

/// Takes a report over into status, not more often than every few seconds. Returns what to say, and
/// the seconds until what was left out may be written.
fn take_report(
    status: &mut TrainingRunStatus,
    report: &Report,
    now: Timestamp,
) -> (Said, Option<u64>) {
    let said = &report.progress;
    let stage = RunStage::from(said.stage.as_str());
    let (reason, doing) = match stage {
        RunStage::Train => (reason::TRAINING, "the trainer takes optimizer steps"),
        RunStage::Evaluate => (reason::EVALUATING, "the trainer measures on the test rows"),
        RunStage::Package => (reason::EVALUATING, "the trainer writes the result"),
        RunStage::Prepare | RunStage::Other(_) => {
            (reason::STARTING, "the trainer reads model and data")
        }
    };
    let verdict = Said::under_way(reason, doing);
    let written = status
        .progress
        .as_ref()
        .and_then(|it| it.last_update_time.as_ref());
    // What lies ahead was written by a clock that is ahead of ours: it is no reason to wait for it.
    let before = written.map(|time| time.0).filter(|time| *time <= now);
    let waited = seconds_between(before, Some(now));
    let is_new = written.map(|time| time.0) != Some(report.at);
    if !is_new {
        return (verdict, None);
    }
    if before.is_some() && waited < PROGRESS_SECONDS && status.stage.as_ref() == Some(&stage) {
        return (verdict, Some(PROGRESS_SECONDS - waited));
    }
    let evaluates = stage == RunStage::Evaluate && said.rows_to_evaluate > 0;
    status.stage = Some(stage);
    status.progress = Some(Progress {
        step: said.step.min(LARGEST),
        total_steps: said.total_steps.min(LARGEST),
        percent: percent(said.step, said.total_steps),
        evaluated_percent: evaluates.then(|| percent(said.evaluated_rows, said.rows_to_evaluate)),
        epoch: Decimal::rounded(said.epoch, 2),
        loss: said.loss.and_then(|loss| Decimal::rounded(loss, 4)),
        best_validation_loss: said
            .best_validation_loss
            .and_then(|loss| Decimal::rounded(loss, 4)),
        tokens_per_second: Some((said.tokens_per_second.max(0.0).round() as u64).min(LARGEST)),
        estimated_completion_time: said
            .remaining_seconds
            .and_then(|seconds| i64::try_from(seconds).ok())
            .and_then(|seconds| {
                report
                    .at
                    .checked_add(SignedDuration::from_secs(seconds))
                    .ok()
            })
            .map(Time),
        last_update_time: Some(Time(report.at)),
    });
    if said.checkpoint_step > 0 {
        let saved = i64::try_from(said.checkpoint_saved_unix_seconds).unwrap_or_default();
        status.checkpoint = Some(CheckpointStatus {
            step: said.checkpoint_step.min(LARGEST),
            saved_time: Time(Timestamp::from_second(saved).unwrap_or(report.at)),
        });
    }
    (verdict, None)
}

fn percent(step: u64, total: u64) -> u32 {
    if total == 0 {
        return 0;
    }
    u32::try_from(step.saturating_mul(100) / total)
        .unwrap_or(100)
        .min(100)
}

fn complete(
    cr: &TrainingRun,
    mut status: TrainingRunStatus,
    result: &RunResult,
    observed: &Observed,
    now: Timestamp,
) -> Actions<TrainingRunStatus> {
    if let Some(attempts) = &mut status.attempts
        && attempts.started > attempts.ended
    {
        attempts.ended = attempts.started;
        let job = observed.job.ours();
        let end = job.and_then(|job| jobs::end(job, &observed.pods, &observed.sightings, now));
        attempts.active_seconds += end.map_or(0, |end| end.active_seconds);
    }
    attempt::forget_active(&mut status);
    let old = status.resolved.take();
    let (image, profile) = old.map_or_else(
        || (String::new(), cr.spec.compute.profile.clone()),
        |old| (old.image, old.profile),
    );
    status.resolved = Some(inputs::print(&result.resolved, &image, &profile));
    status.stage = None;
    status.progress = Some(Progress {
        step: result.steps,
        total_steps: result.steps,
        percent: 100,
        evaluated_percent: None,
        epoch: status.progress.as_ref().and_then(|it| it.epoch.clone()),
        loss: Decimal::rounded(result.final_loss, 4),
        best_validation_loss: status
            .progress
            .as_ref()
            .and_then(|it| it.best_validation_loss.clone()),
        tokens_per_second: status.progress.as_ref().and_then(|it| it.tokens_per_second),
        estimated_completion_time: None,
        last_update_time: result.finished_time.parse().ok().map(Time),
    });
    status.metrics = measured::shown(&result.metrics, result.classification, MOST_METRICS);
    status.result = Some(RunResultStatus {
        digest: result.digest.to_string(),
        size_bytes: result.size_bytes,
        adapter_version: None,
    });
    number_result(&mut status, observed);
    // The trainer removes its checkpoints once the result stands.
    status.checkpoint = None;
    let done = if cr.spec.method.subject.is_some() {
        "nothing was trained".to_owned()
    } else {
        format!("{} steps, loss {:.4}", result.steps, result.final_loss)
    };
    let what = match &cr.spec.method.output {
        Some(output) => format!("the model at {} is", output.uri),
        None => "the adapter is".to_owned(),
    };
    let message = format!(
        "{done}; {what} {}{}",
        result.digest.short(),
        cut_rows(cr, result)
    );
    say(
        cr,
        status,
        &Said::over(Truth::True, reason::COMPLETED, message),
        now,
    )
}

/// How many rows were longer than the run takes, and were cut or left out; nothing where none was.
fn cut_rows(cr: &TrainingRun, result: &RunResult) -> String {
    let (train, test) = (result.train_rows, result.test_rows);
    let looked_at = result.validation_rows;
    let counts: Vec<String> = [
        (train.cut, train.rows, "train", "cut"),
        (looked_at.cut, looked_at.rows, "validation", "cut"),
        (test.cut, test.rows, "test", "cut"),
        (train.dropped, train.rows, "train", "left out"),
        (looked_at.dropped, looked_at.rows, "validation", "left out"),
    ]
    .into_iter()
    .filter(|(count, ..)| *count > 0)
    .map(|(count, rows, split, what)| format!("{count} of {rows} {split} rows were {what}"))
    .collect();
    if counts.is_empty() {
        return String::new();
    }
    format!(
        "; {}, because they are longer than spec.hyperparameters.maximumSequenceLength {}",
        counts.join(" and "),
        cr.spec.hyperparameters.maximum_sequence_length
    )
}

fn say(
    cr: &TrainingRun,
    mut next: TrainingRunStatus,
    said: &Said,
    now: Timestamp,
) -> Actions<TrainingRunStatus> {
    let old = cr.status.as_ref().map(|it| it.conditions.clone());
    let old = old.unwrap_or_default();
    let mut list = Conditions::new(&next.conditions, cr.metadata.generation, now);
    list.set(condition::SUCCEEDED, said.truth, said.reason, &said.message);
    list.set(
        condition::FINISHED,
        Truth::from(said.finished),
        said.reason,
        if said.finished {
            "the run is over"
        } else {
            "the run is not over"
        },
    );
    list.set_moving(said.moving, said.reason, &said.message);
    next.conditions = list.into_list();
    next.observed_generation = cr.metadata.generation;
    let is_first = conditions::find(&old, condition::SUCCEEDED).is_none();
    let is_warning = said.moving == Moving::Stalled
        || said.truth == Truth::False
        || said.reason == reason::RESTARTING
        // A namespace's first object waits for its keeper.
        || (said.reason == reason::STORAGE_UNAVAILABLE && !is_first);
    let events = if conditions::has_turned(&old, &next.conditions, condition::SUCCEEDED) {
        let note = conditions::shorten(&said.message);
        vec![if is_warning {
            Event::warning(said.reason, note)
        } else {
            Event::normal(said.reason, note)
        }]
    } else {
        Vec::new()
    };
    Actions {
        status: Some(next),
        events,
        ..Actions::default()
    }
}
