//! When the sources of a Dataset are looked at by itself. A time that has come is a decision: it is written to
//! status, enters the fingerprint from there, and what follows is a build like any other.

use graftwork_api::dataset::DatasetStatus;
use graftwork_api::schedule::{MissedRuns, Schedule as Asked, ScheduleTimes};
use graftwork_api::{Dataset, DatasetSpec, Time};
use jiff::Timestamp;

use super::step::Step;
use super::validate::{Invalid, Valid, unknown};
use crate::plan::{Actions, Decision, Event};
use crate::schedule::{Missed, Schedule, ScheduleProblem, Times, Turn};

/// Reason of the event about a time that has come.
const SCHEDULED: &str = "Scheduled";
/// Reason of the event about one that came and went.
const MISSED: &str = "ScheduleMissed";

/// A schedule that can be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    schedule: Schedule,
    missed: Missed,
}

/// Reads `spec.schedule`.
///
/// # Errors
/// The part that is no schedule.
pub fn read(spec: &DatasetSpec) -> Result<Option<Timing>, Invalid> {
    let Some(Asked {
        cron,
        time_zone,
        missed_runs,
    }) = &spec.schedule
    else {
        return Ok(None);
    };
    let schedule = Schedule::parse(cron, time_zone.as_deref().unwrap_or("UTC"));
    let schedule = schedule.map_err(|problem| {
        let field = match problem {
            ScheduleProblem::Cron(_) => "spec.schedule.cron",
            ScheduleProblem::TimeZone(_) => "spec.schedule.timeZone",
        };
        Invalid::new(field, problem.to_string())
    })?;
    let missed = match missed_runs {
        None | Some(MissedRuns::RunOnce) => Missed::RunOnce,
        Some(MissedRuns::Skip) => Missed::Skip,
        Some(MissedRuns::Other(other)) => {
            return Err(unknown(
                "spec.schedule.missedRuns",
                other,
                MissedRuns::KNOWN,
            ));
        }
    };
    Ok(Some(Timing { schedule, missed }))
}

/// The newest time that was answered: part of the fingerprint, also after the schedule went.
pub fn answered(cr: &Dataset) -> Option<Timestamp> {
    known(cr).last
}

fn known(cr: &Dataset) -> Times {
    let times = cr.status.as_ref().and_then(|it| it.schedule.as_ref());
    let time = |time: Option<&Time>| time.map(|time| time.0);
    Times {
        last: time(times.and_then(|it| it.last_time.as_ref())),
        next: time(times.and_then(|it| it.next_time.as_ref())),
    }
}

/// What the clock decides, if anything. A time that comes while a build is under way, between two attempts, or
/// while there is nothing to build with, waits for the end of that.
pub fn decide(
    cr: &Dataset,
    valid: &Valid,
    step: &Step,
    now: Timestamp,
) -> Option<Decision<DatasetStatus>> {
    let known = known(cr);
    let Some(timing) = &valid.timing else {
        // It went; what it answered stays.
        let forgotten = Times {
            next: None,
            ..known
        };
        return (known != forgotten).then(|| decision(cr, forgotten, Vec::new()));
    };
    match timing.schedule.turn(known, timing.missed, now) {
        Turn::Waits => None,
        Turn::Set(times) => Some(decision(cr, times, Vec::new())),
        Turn::Due(_) | Turn::Skipped(..) if !is_at_rest(step) => None,
        // Nothing can be new that the operator does not see anyway.
        Turn::Due(times) if valid.is_seen_whole() => Some(decision(cr, times, Vec::new())),
        Turn::Due(times) => {
            let at = times.last.unwrap_or(now);
            let note = format!("{at} of spec.schedule has come: the sources are looked at again");
            Some(decision(cr, times, vec![Event::normal(SCHEDULED, note)]))
        }
        Turn::Skipped(at, times) => {
            let note = format!(
                "{at} of spec.schedule was missed, and spec.schedule.missedRuns is Skip: the next time is {}",
                times.next.map(|next| next.to_string()).unwrap_or_default()
            );
            Some(decision(cr, times, vec![Event::warning(MISSED, note)]))
        }
    }
}

/// Whether a look at the sources could begin, and would not end another one.
fn is_at_rest(step: &Step) -> bool {
    match step {
        Step::Ready { .. } | Step::Failed { .. } => true,
        Step::SourceMissing { .. }
        | Step::NoStorage(_)
        | Step::KeeperAway { .. }
        | Step::Build { .. }
        | Step::Pause { .. }
        | Step::NameTaken { .. } => false,
    }
}

fn decision(cr: &Dataset, times: Times, events: Vec<Event>) -> Decision<DatasetStatus> {
    let mut status = cr.status.clone().unwrap_or_default();
    status.schedule = Some(ScheduleTimes {
        last_time: times.last.map(Time),
        next_time: times.next.map(Time),
    });
    Decision { status, events }
}

/// Looks again when the next time comes.
pub fn wake(cr: &Dataset, now: Timestamp, actions: &mut Actions<DatasetStatus>) {
    let until = known(cr)
        .next
        .and_then(|next| std::time::Duration::try_from(next.duration_since(now)).ok())
        .filter(|until| !until.is_zero());
    actions.requeue_after = match (actions.requeue_after, until) {
        (Some(known), Some(until)) => Some(known.min(until)),
        (known, until) => known.or(until),
    };
}
