//! SIGTERM and SIGINT as a flag that the training thread looks at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Set once the process was asked to stop.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<Flag>);

#[derive(Debug, Default)]
struct Flag {
    is_set: AtomicBool,
    changed: Notify,
}

impl StopFlag {
    /// Whether the process was asked to stop.
    pub fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::SeqCst)
    }

    /// Asks it to stop.
    pub fn set(&self) {
        self.0.is_set.store(true, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// Returns once the process was asked to stop.
    pub async fn asked(&self) {
        loop {
            // Listens before it looks, so that nothing falls in between.
            let changed = self.0.changed.notified();
            if self.is_set() {
                return;
            }
            changed.await;
        }
    }

    /// Sets the flag at the first SIGTERM or SIGINT. To be called within a tokio runtime; returns
    /// when the handlers stand.
    ///
    /// # Errors
    /// The operating system refuses a handler.
    pub fn listen(&self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let flag = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("asked to stop: saving a checkpoint");
            flag.set();
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_told_and_who_comes_later_does_not_wait() {
        let flag = StopFlag::default();
        let waits = tokio::spawn({
            let flag = flag.clone();
            async move { flag.asked().await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        flag.set();
        waits.await.unwrap();
        flag.asked().await;
        assert!(flag.is_set());
    }
}
