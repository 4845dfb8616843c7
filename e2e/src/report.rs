//! What a person sees: steps with the time they took, and a line on anything longer than a few seconds.

use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Prints one step: what it does, a line for each five seconds of silence while it runs, and how long it took.
pub async fn step<T>(
    what: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    say(&format!("-> {what}"));
    let result = ticking(work).await;
    match &result {
        Ok(_) => say(&format!("   done in {}", seconds(start.elapsed()))),
        Err(error) => say(&format!(
            "   FAILED after {}: {error:#}",
            seconds(start.elapsed())
        )),
    }
    result
}

/// Prints how long `work` has taken whenever nobody has said anything for five seconds.
pub async fn ticking<T>(work: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut spoken = (SPOKEN.load(Ordering::Relaxed), start);
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = tick.tick() => {
                let count = SPOKEN.load(Ordering::Relaxed);
                if count != spoken.0 {
                    spoken = (count, Instant::now());
                } else if spoken.1.elapsed() >= EVERY {
                    say(&format!("   ... {} s", start.elapsed().as_secs()));
                }
            }
        }
    }
}

/// How many lines have been said.
static SPOKEN: AtomicU64 = AtomicU64::new(0);

const EVERY: Duration = Duration::from_secs(5);

/// What a story could not prove where it was told.
static NOT_PROVED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Says what could not be proved here, at once and once more at the end: a story that passes did not show it.
pub fn not_proved(what: &str) {
    say(&format!("    NOT PROVED: {what}"));
    if let Ok(mut list) = NOT_PROVED.lock() {
        list.push(what.to_owned());
    }
}

/// Everything that was [`not_proved`].
pub fn all_not_proved() -> Vec<String> {
    NOT_PROVED
        .lock()
        .map(|list| list.clone())
        .unwrap_or_default()
}

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
    SPOKEN.fetch_add(1, Ordering::Relaxed);
    match SPEAKER.try_with(|speaker| *speaker) {
        Ok(speaker) => line
            .lines()
            .for_each(|line| println!("{speaker:<26} {line}")),
        Err(_) => println!("{line}"),
    }
}
