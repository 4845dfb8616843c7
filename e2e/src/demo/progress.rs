//! What a run's status tells while it trains, as lines for people.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::processors::Moment;
use crate::report::{say, seconds};
use crate::story::stage::condition;

/// How long a training of the demo may take on two processors that it has for itself.
const TRAINING: Duration = Duration::from_secs(60);
/// The trainer's process.
const TRAINER: &str = "trainer";

/// A moment of a training; with the processors' time where the trainer is on this machine.
#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    processors: Option<Moment>,
}

/// What has been printed of a run's progress.
#[derive(Default)]
pub struct Shown {
    reason: String,
    tenths: Option<(u32, Option<u32>)>,
    /// How often status told of a loss and an estimated end in the middle of the training.
    while_training: u32,
    /// When the first step and the last were seen.
    training: Option<(Seen, Seen)>,
}

impl Shown {
    /// A line for each reason and for every tenth of the steps and of the evaluation.
    pub fn see(&mut self, status: &graftwork_api::TrainingRunStatus) {
        let reason = condition(&status.conditions, "Succeeded")
            .map_or("", |condition| condition.reason.as_str());
        let Some(progress) = &status.progress else {
            return;
        };
        if reason == "Training" && progress.step > 0 {
            let now = Seen {
                at: Instant::now(),
                processors: Moment::now(TRAINER),
            };
            self.training = Some((self.training.map_or(now, |(first, _)| first), now));
        }
        let evaluated = progress.evaluated_percent;
        let tenths = Some((progress.percent / 10, evaluated.map(|percent| percent / 10)));
        if self.reason == reason && self.tenths == tenths {
            return;
        }
        reason.clone_into(&mut self.reason);
        self.tenths = tenths;
        let in_the_middle = progress.step > 0 && progress.step < progress.total_steps;
        if in_the_middle && progress.loss.is_some() && progress.estimated_completion_time.is_some()
        {
            self.while_training += 1;
        }
        if let Some(percent) = evaluated {
            say(&format!("   {reason}: {percent} % of the evaluation"));
            return;
        }
        say(&format!(
            "   {reason}: step {}/{} ({} %), loss {}, {} tokens/s, done at {}",
            progress.step,
            progress.total_steps,
            progress.percent,
            progress.loss.as_ref().map_or("-", |loss| loss.as_str()),
            progress
                .tokens_per_second
                .map_or_else(|| "-".to_owned(), |rate| rate.to_string()),
            progress
                .estimated_completion_time
                .as_ref()
                .map_or_else(|| "-".to_owned(), |time| time.0.to_string()),
        ));
    }

    /// Says how long the training took, and fails where status told nothing meanwhile, or where it took longer than it
    /// may: from the first step that status showed to the last, less what other programs took of the processors. Where
    /// the trainer is on another machine, nobody knows what others took, and the time is only said.
    pub fn of_the_training(&self, name: &str) -> anyhow::Result<()> {
        ensure!(
            self.while_training > 0,
            "{name}: status told of no loss and no estimated end while it trained"
        );
        if let Some((first, last)) = self.training {
            let took = seconds(last.at - first.at);
            let Some((first, last)) = first.processors.zip(last.processors) else {
                say(&format!(
                    "   first to last step in {took} (not judged: the trainer is not on this machine)"
                ));
                return Ok(());
            };
            let own = last.since(&first);
            say(&format!(
                "   first to last step in {took}, {} without what others took of the processors",
                seconds(own)
            ));
            ensure!(
                own <= TRAINING,
                "{name} trained for {} of the processors' own time, not {} at most: this machine is slower than \
                 two cores that the demo is made for, or the trainer is",
                seconds(own),
                seconds(TRAINING)
            );
        }
        Ok(())
    }
}
