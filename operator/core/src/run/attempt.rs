//! The accounts of a run's attempts: facts that exist nowhere else, kept in status.

use graftwork_api::conditions::reason;
use graftwork_api::training_run::{AttemptEnd, Attempts};
use graftwork_api::{Time, TrainingRun, TrainingRunStatus};
use graftwork_contract::exit::{AfterExit, ExitCode};
use graftwork_contract::run::RunSummary;
use jiff::Timestamp;

use super::inputs::known_reason;
use crate::jobs::{Cause, End, seconds_between};
use crate::observed::Pod;

/// Seconds before the attempt after the first failure; each later one waits twice as long.
const FIRST_PAUSE_SECONDS: i64 = 10;
/// Longest pause after a failure.
const LONGEST_PAUSE_SECONDS: i64 = 300;
/// Seconds before the attempt after the first eviction; each later one waits twice as long.
const FIRST_EVICTION_PAUSE_SECONDS: i64 = 2;
/// Longest pause after an eviction.
const LONGEST_EVICTION_PAUSE_SECONDS: i64 = 120;
/// An attempt that was active for longer got somewhere: its eviction is no part of a row of them.
const FRUITFUL_SECONDS: u64 = 600;

/// The accounts so far.
pub fn attempts(cr: &TrainingRun) -> Attempts {
    cr.status
        .as_ref()
        .and_then(|status| status.attempts)
        .unwrap_or_default()
}

/// How an attempt is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// What it counts as.
    pub counts: Counts,
    /// A condition's reason.
    pub reason: &'static str,
    /// Why it ended.
    pub message: String,
    /// Seconds that it was active.
    pub active_seconds: u64,
}

/// What an attempt's end counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// Suspended: as nothing.
    Nothing,
    /// Its pod was taken away: costs no retry.
    Evicted,
    /// A failure that another attempt may not have.
    Failed,
    /// A failure that every attempt would have.
    Final,
}

/// How a Job's end closes its attempt.
pub fn closing(end: &End) -> Closing {
    let summary: Option<RunSummary> = serde_json::from_str(&end.summary).ok();
    let said = summary
        .as_ref()
        .filter(|summary| summary.reason != reason::COMPLETED)
        .and_then(|summary| known_reason(&summary.reason));
    let words = summary
        .as_ref()
        .map(|summary| summary.message.clone())
        .filter(|words| !words.is_empty());
    let (counts, reason, message) = match &end.cause {
        Cause::Exit(ExitCode::Done) => (
            Counts::Failed,
            reason::INTERNAL_ERROR,
            "the trainer ended well and left no result in the store".to_owned(),
        ),
        Cause::Exit(code) => {
            let counts = match code.after() {
                AfterExit::Fail => Counts::Final,
                AfterExit::Again => Counts::Evicted,
                AfterExit::Complete | AfterExit::Retry => Counts::Failed,
            };
            let message = words.unwrap_or_else(|| match code {
                // Of a pod that is gone, only the code is left.
                ExitCode::Checkpointed => format!(
                    "its pod was taken away; it saved a checkpoint first (exit code {}), and no retry is spent",
                    code.code()
                ),
                _ => format!("exit code {}", code.code()),
            });
            (counts, said.unwrap_or_else(|| reason_of(*code)), message)
        }
        Cause::Killed(code) => (
            Counts::Failed,
            reason::RESTARTING,
            words.unwrap_or_else(|| format!("the trainer ended with exit code {code}")),
        ),
        Cause::OutOfMemory => (
            Counts::Final,
            reason::OUT_OF_MEMORY,
            "the trainer needed more memory than its compute profile gives".to_owned(),
        ),
        Cause::TakenAway(why) => (
            Counts::Evicted,
            reason::RESTARTING,
            format!("the trainer's pod was taken away: {why}"),
        ),
    };
    Closing {
        counts,
        reason,
        message,
        active_seconds: end.active_seconds,
    }
}

const fn reason_of(code: ExitCode) -> &'static str {
    match code {
        ExitCode::BadConfig => reason::INVALID_SPEC,
        ExitCode::BadData => reason::DATA_ERROR,
        ExitCode::Diverged => reason::DIVERGED,
        ExitCode::Unavailable => reason::STORAGE_UNAVAILABLE,
        ExitCode::Checkpointed => reason::RESTARTING,
        ExitCode::Done | ExitCode::Bug | ExitCode::Fenced => reason::INTERNAL_ERROR,
    }
}

/// The accounts with attempt `number` begun, and all before it over.
pub fn open(status: &mut TrainingRunStatus, number: u32) {
    forget_active(status);
    let attempts = status.attempts.get_or_insert_default();
    attempts.started = number;
    attempts.ended = number.saturating_sub(1);
}

/// The accounts with attempt `number` closed. Returns the condition's reason and message where the
/// run is over with it.
pub fn close(
    status: &mut TrainingRunStatus,
    number: u32,
    closing: &Closing,
    retries: u32,
    now: Timestamp,
) -> Option<(&'static str, String)> {
    forget_active(status);
    let attempts = status.attempts.get_or_insert_default();
    attempts.ended = number;
    attempts.active_seconds += closing.active_seconds;
    match closing.counts {
        Counts::Nothing => {}
        Counts::Evicted => attempts.evicted += 1,
        Counts::Failed | Counts::Final => attempts.failed += 1,
    }
    let failed = attempts.failed;
    let pause = pause_after(closing, *attempts);
    let over = over(closing, failed, retries);
    status.last_attempt = Some(AttemptEnd {
        attempt: number,
        reason: closing.reason.to_owned(),
        message: crate::conditions::shorten(&closing.message),
        time: Time(now),
        // In whole seconds, as the API server keeps it.
        next_attempt_time: pause
            .filter(|_| over.is_none())
            .and_then(|pause| Timestamp::from_second(now.as_second() + pause).ok())
            .map(Time),
    });
    over
}

/// Notes that the attempt under way runs, in this pod. What lies ahead was noted by a clock that was ahead of ours: it
/// goes, and the next look notes it anew, because a status in which only a time differs is not written.
pub fn note_active(status: &mut TrainingRunStatus, pod: &Pod, now: Timestamp) {
    match active_since(status, pod) {
        Some(since) if since <= now => {}
        Some(_) => forget_active(status),
        None => {
            // In whole seconds, as the API server keeps it.
            let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
            status.active_pod = Some(pod.uid.clone());
            status.active_since = Some(Time(seconds));
        }
    }
}

/// Notes that what ran is gone without an end that anybody saw: its time counts up to its last report, or where it made
/// none, up to now.
pub fn lose_active(status: &mut TrainingRunStatus, now: Timestamp) {
    if let Some(since) = status.active_since.as_ref().map(|time| time.0) {
        let reported = status.progress.as_ref();
        let reported = reported.and_then(|it| it.last_update_time.as_ref().map(|time| time.0));
        let until = reported.filter(|time| (since..now).contains(time));
        let seconds = seconds_between(Some(since), Some(until.unwrap_or(now)));
        status.attempts.get_or_insert_default().active_seconds += seconds;
    }
    forget_active(status);
}

/// Notes that nothing runs.
pub fn forget_active(status: &mut TrainingRunStatus) {
    status.active_pod = None;
    status.active_since = None;
}

/// Seconds that this pod of the attempt under way has been active: from when its trainer was first seen running, since
/// a node's clock may not be ours.
pub fn active_seconds(status: Option<&TrainingRunStatus>, pod: &Pod, now: Timestamp) -> u64 {
    let since = status.and_then(|status| active_since(status, pod));
    seconds_between(since, Some(now))
}

/// What is noted of this pod. A queue that takes a Job back and lets it in again has another pod made for the same
/// attempt, and an operator that knows nothing of these notes leaves those of an earlier attempt.
fn active_since(status: &TrainingRunStatus, pod: &Pod) -> Option<Timestamp> {
    let noted = status.active_pod.as_deref() == Some(pod.uid.as_str());
    let since = status.active_since.as_ref().filter(|_| noted);
    since.map(|time| time.0)
}

/// Seconds between the end of an attempt and the next one; none where nothing was wrong.
fn pause_after(closing: &Closing, attempts: Attempts) -> Option<i64> {
    let growing = |first: i64, count: u32, longest: i64| {
        let doublings = count.saturating_sub(1).min(16);
        (first << doublings).min(longest)
    };
    match closing.counts {
        Counts::Nothing => None,
        Counts::Evicted if closing.active_seconds >= FRUITFUL_SECONDS => {
            Some(FIRST_EVICTION_PAUSE_SECONDS)
        }
        Counts::Evicted => Some(growing(
            FIRST_EVICTION_PAUSE_SECONDS,
            attempts.evicted,
            LONGEST_EVICTION_PAUSE_SECONDS,
        )),
        Counts::Failed | Counts::Final => Some(growing(
            FIRST_PAUSE_SECONDS,
            attempts.failed,
            LONGEST_PAUSE_SECONDS,
        )),
    }
}

/// The condition's reason and message where the run is over with this end.
fn over(closing: &Closing, failed: u32, retries: u32) -> Option<(&'static str, String)> {
    match closing.counts {
        Counts::Final => Some((closing.reason, closing.message.clone())),
        Counts::Failed if failed > retries => Some((
            reason::RETRIES_EXHAUSTED,
            format!(
                "{failed} attempts failed, spec.limits.retries is {retries}; the last one: {}",
                closing.message
            ),
        )),
        Counts::Nothing | Counts::Evicted | Counts::Failed => None,
    }
}

/// Seconds until the next attempt; none where it need not wait. No pause is longer than the longest: a time
/// that is further away was written by a clock that was ahead.
pub fn pause(status: Option<&TrainingRunStatus>, now: Timestamp) -> Option<u64> {
    let until = status?.last_attempt.as_ref()?.next_attempt_time.as_ref()?.0;
    let seconds = until.duration_since(now).as_secs();
    let waits = now < until && seconds <= LONGEST_PAUSE_SECONDS;
    waits.then(|| u64::try_from(seconds).unwrap_or_default().max(1))
}

/// How the newest attempt ended and when the next one starts, in words.
pub fn describe(last: &AttemptEnd) -> String {
    let ended = format!("attempt {} ended: {}", last.attempt, last.message);
    match &last.next_attempt_time {
        // First, because a long message is cut at its end.
        Some(next) => format!("attempt {} starts at {}; {ended}", last.attempt + 1, next.0),
        None => ended,
    }
}
