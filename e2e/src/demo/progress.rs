//! What a run's status tells while it trains, as lines for people.

use std::time::Instant;

use anyhow::ensure;

use crate::report::{say, seconds};
use crate::story::stage::condition;

/// What has been printed of a run's progress.
#[derive(Default)]
pub struct Shown {
    reason: String,
    tenth: Option<u32>,
    /// How often status told of a loss and an estimated end in the middle of the training.
    while_training: u32,
    /// When the first step and the last were seen.
    training: Option<(Instant, Instant)>,
}

impl Shown {
    /// A line for each reason and for every tenth of the steps.
    pub fn see(&mut self, status: &graftwork_api::TrainingRunStatus) {
        let reason = condition(&status.conditions, "Succeeded")
            .map_or("", |condition| condition.reason.as_str());
        let Some(progress) = &status.progress else {
            return;
        };
        if reason == "Training" && progress.step > 0 {
            let now = Instant::now();
            self.training = Some((self.training.map_or(now, |(first, _)| first), now));
        }
        let tenth = Some(progress.percent / 10);
        if self.reason == reason && self.tenth == tenth {
            return;
        }
        reason.clone_into(&mut self.reason);
        self.tenth = tenth;
        let in_the_middle = progress.step > 0 && progress.step < progress.total_steps;
        if in_the_middle && progress.loss.is_some() && progress.estimated_completion_time.is_some()
        {
            self.while_training += 1;
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

    /// Says how long the training took, and fails where status told nothing meanwhile.
    pub fn of_the_training(&self, name: &str) -> anyhow::Result<()> {
        ensure!(
            self.while_training > 0,
            "{name}: status told of no loss and no estimated end while it trained"
        );
        if let Some((first, last)) = self.training {
            say(&format!(
                "   first to last step in {}",
                seconds(last - first)
            ));
        }
        Ok(())
    }
}
