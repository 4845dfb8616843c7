//! Whether forward passes come to their ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;

/// No pass takes so long: a scheduler keeps them short enough for running streams.
const LIMIT: Duration = Duration::from_secs(300);

/// Counts beginnings and ends: while a pass is under way, the number is odd.
#[derive(Debug, Clone, Default)]
pub struct Passes(Arc<AtomicU64>);

impl Passes {
    /// A pass begins.
    pub fn begin(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended.
    pub fn end(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns once one pass has been under way for five minutes, ten at most: its threads stand still, and only a
    /// new process helps.
    pub async fn stuck(&self) {
        let mut seen = 0;
        loop {
            let now = self.0.load(Ordering::Relaxed);
            if now % 2 == 1 && now == seen {
                return;
            }
            seen = now;
            sleep(LIMIT).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_pass_without_an_end_is_found_and_an_engine_without_requests_is_not() {
        let passes = Passes::default();
        assert!(timeout(HOUR, passes.stuck()).await.is_err());
        passes.begin();
        passes.end();
        assert!(timeout(HOUR, passes.stuck()).await.is_err());
        passes.begin();
        assert!(timeout(3 * LIMIT, passes.stuck()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn passes_that_follow_each_other_are_not_taken_for_one() {
        let passes = Passes::default();
        let one_after_the_other = async {
            loop {
                passes.begin();
                sleep(LIMIT * 9 / 10).await;
                passes.end();
            }
        };
        tokio::select! {
            () = passes.stuck() => panic!("each of them came to its end"),
            _ = timeout(HOUR, one_after_the_other) => {}
        }
    }
}
