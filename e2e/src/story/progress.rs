//! What a run's status says of its progress while it trains, and how old that is by then.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use graftwork_api::training_run::{Progress, RunStage};
use graftwork_api::{Decimal, Time, TrainingRun, TrainingRunStatus};
use k8s_openapi::jiff::Timestamp;

use super::Stage;
use super::stage::condition;

/// How old progress in status may be.
const WITHIN_MILLISECONDS: i64 = 5000;
/// How far apart two reports may be: between them status is as old as the first.
const APART_MILLISECONDS: i64 = 5000;
/// The trainer says in whole seconds when it saved a checkpoint, and takes the time before the disk has it.
const SAVING_MILLISECONDS: i64 = 3000;
/// A run that said less was too short to prove anything.
const REPORTS: usize = 2;

/// What was seen of a run while it took optimizer steps.
#[derive(Debug, Default)]
pub struct Watched {
    /// Each report, with the time at which status had it.
    reports: Vec<(Progress, Timestamp)>,
    /// Steps of the checkpoints that status named.
    checkpoints: BTreeSet<u64>,
    /// From a checkpoint, by the trainer's clock, until status named it: the longest.
    checkpoint_milliseconds: i64,
}

impl Stage {
    /// Watches a run until it is Finished.
    pub async fn watch_run(&self, name: &str, timeout: Duration) -> anyhow::Result<Watched> {
        let mut watched = Watched::default();
        self.world
            .cluster
            .wait_for::<TrainingRun, _>(&self.namespace, name, timeout, "Finished=True", |run| {
                let status = run?.status.as_ref()?;
                watched.note(status, Timestamp::now());
                let finished = condition(&status.conditions, "Finished")?;
                (finished.status == "True").then_some(())
            })
            .await?;
        Ok(watched)
    }
}

impl Watched {
    fn note(&mut self, status: &TrainingRunStatus, now: Timestamp) {
        if status.stage != Some(RunStage::Train) {
            return;
        }
        if let Some(checkpoint) = &status.checkpoint
            && self.checkpoints.insert(checkpoint.step)
        {
            let age = milliseconds(&checkpoint.saved_time, now);
            self.checkpoint_milliseconds = self.checkpoint_milliseconds.max(age);
        }
        let last = self.reports.last().map(|(report, _)| report);
        if let Some(progress) = &status.progress
            && progress.step > 0
            && last != Some(progress)
        {
            self.reports.push((progress.clone(), now));
        }
    }

    /// Fails unless every report was whole and in status in time; in words, what was seen.
    ///
    /// Reports and checkpoints carry the trainer's own time, and come by the same stream.
    pub fn ensure_timely(&self) -> anyhow::Result<String> {
        ensure!(
            self.reports.len() >= REPORTS && self.checkpoints.len() > 1,
            "too few reports to judge by: {self:?}"
        );
        let mut oldest = 0;
        let mut before: Option<(&Progress, &Time)> = None;
        for (report, seen) in &self.reports {
            let at = report.last_update_time.as_ref().context("no time")?;
            oldest = oldest.max(milliseconds(at, *seen));
            if let Some((earlier, time)) = before {
                ensure!(
                    milliseconds(time, at.0) <= APART_MILLISECONDS,
                    "no report between {earlier:?} and {report:?}"
                );
                ensure!(
                    earlier.step <= report.step,
                    "back from {earlier:?} to {report:?}"
                );
                // The very first steps tell nothing of the speed.
                ensure_whole(report)?;
            }
            before = Some((report, at));
        }
        ensure!(
            oldest <= WITHIN_MILLISECONDS,
            "a report was {oldest} ms old: {self:?}"
        );
        ensure!(
            self.checkpoint_milliseconds <= WITHIN_MILLISECONDS + SAVING_MILLISECONDS,
            "a checkpoint was {} ms old: {self:?}",
            self.checkpoint_milliseconds
        );
        Ok(format!(
            "{} reports, at most {oldest} ms old; {} checkpoints, at most {} ms after they were saved",
            self.reports.len(),
            self.checkpoints.len(),
            self.checkpoint_milliseconds
        ))
    }
}

fn milliseconds(from: &Time, until: Timestamp) -> i64 {
    until.as_millisecond() - from.0.as_millisecond()
}

/// Percent, loss, speed, and an end that lies ahead.
fn ensure_whole(report: &Progress) -> anyhow::Result<()> {
    let percent = report.step * 100 / report.total_steps.max(1);
    let loss = report.loss.as_ref().and_then(Decimal::value);
    let ahead = report
        .estimated_completion_time
        .as_ref()
        .zip(report.last_update_time.as_ref())
        .is_some_and(|(end, now)| end.0 >= now.0);
    ensure!(
        report.total_steps > 0
            && u64::from(report.percent) == percent
            && loss.is_some_and(|loss| loss > 0.0)
            && report.tokens_per_second > Some(0)
            && ahead,
        "not whole: {report:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_800_000_000_000;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(START + milliseconds).unwrap()
    }

    /// A status of a training at 10 steps a second, as the operator had it after so many milliseconds.
    fn status(milliseconds: i64, change: impl FnOnce(&mut Progress)) -> TrainingRunStatus {
        let step = u64::try_from(milliseconds / 100).unwrap();
        let mut progress = Progress {
            step,
            total_steps: 200,
            percent: u32::try_from(step / 2).unwrap(),
            loss: Decimal::rounded(1.5, 4),
            tokens_per_second: Some(900),
            estimated_completion_time: Some(Time(at(20_000))),
            last_update_time: Some(Time(at(milliseconds))),
            ..Progress::default()
        };
        change(&mut progress);
        TrainingRunStatus {
            stage: Some(RunStage::Train),
            progress: Some(progress),
            checkpoint: Some(graftwork_api::training_run::CheckpointStatus {
                step,
                saved_time: Time(at(milliseconds / 1000 * 1000)),
            }),
            ..TrainingRunStatus::default()
        }
    }

    fn watched(last: TrainingRunStatus, seen: i64) -> anyhow::Result<String> {
        let mut watched = Watched::default();
        for milliseconds in [3000, 6500] {
            watched.note(&status(milliseconds, |_| {}), at(milliseconds + 200));
        }
        watched.note(&last, at(seen));
        watched.ensure_timely()
    }

    #[test]
    fn a_report_that_is_late_or_lacks_something_fails() {
        watched(status(10_000, |_| {}), 10_400).unwrap();
        for (what, last, seen) in [
            ("late", status(10_000, |_| {}), 15_001),
            ("after a gap", status(11_600, |_| {}), 11_700),
            ("percent", status(10_000, |it| it.percent = 3), 10_400),
            ("loss", status(10_000, |it| it.loss = None), 10_400),
            (
                "speed",
                status(10_000, |it| it.tokens_per_second = Some(0)),
                10_400,
            ),
            (
                "end",
                status(10_000, |it| it.estimated_completion_time = None),
                10_400,
            ),
            ("back", status(10_000, |it| it.step = 1), 10_400),
        ] {
            assert!(watched(last, seen).is_err(), "{what}");
        }
        let mut old = status(10_000, |_| {});
        old.checkpoint.as_mut().unwrap().saved_time = Time(at(2000));
        assert!(watched(old, 10_400).is_err(), "checkpoint");
        assert!(Watched::default().ensure_timely().is_err());
    }
}
