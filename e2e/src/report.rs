//! What a person sees: steps with the time they took, and a line on anything longer than a few seconds.

use std::future::Future;
use std::time::{Duration, Instant};

/// Prints one step: what it does, a line each five seconds while it runs, and how long it took.
pub async fn step<T>(
    what: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    say(&format!("-> {what}"));
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + EVERY, EVERY);
    tokio::pin!(work);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = tick.tick() => say(&format!("   ... {} s", start.elapsed().as_secs())),
        }
    };
    match &result {
        Ok(_) => say(&format!("   done in {}", seconds(start.elapsed()))),
        Err(error) => say(&format!(
            "   FAILED after {}: {error:#}",
            seconds(start.elapsed())
        )),
    }
    result
}

const EVERY: Duration = Duration::from_secs(5);

/// A duration with one decimal.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

tokio::task_local! {
    /// Who speaks, where several do at once.
    static SPEAKER: &'static str;
}

/// What `work` says carries the name of its `speaker`.
pub async fn as_speaker<T>(speaker: &'static str, work: impl Future<Output = T>) -> T {
    SPEAKER.scope(speaker, work).await
}

/// One line for people, with the speaker's name where there is one.
#[expect(clippy::print_stdout, reason = "this is the program's output")]
pub fn say(line: &str) {
    match SPEAKER.try_with(|speaker| *speaker) {
        Ok(speaker) => line
            .lines()
            .for_each(|line| println!("{speaker:<26} {line}")),
        Err(_) => println!("{line}"),
    }
}
