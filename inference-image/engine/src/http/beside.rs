//! Work that would hold a thread of the reactor for long: reading long bodies, templates, tokens, grammars.

use std::sync::Arc;

use axum::body::Bytes;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::openai::ApiError;

/// Bytes of a body that is read at once, within a millisecond; and of a prompt that waits for no longer ones.
pub(super) const SHORT: usize = 64 << 10;

/// Threads for such work, so many at one time: whoever sends much of it waits, and takes no core from the passes.
#[derive(Debug, Clone)]
pub struct Beside {
    permits: Arc<Semaphore>,
    /// One more thread, for what is short.
    short: Arc<Semaphore>,
}

impl Beside {
    /// For a process with so many cores: half of them, and two at least, so that one large schema holds no prompts up.
    pub fn of_cores(cores: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new((cores / 2).max(2))),
            short: Arc::new(Semaphore::new(1)),
        }
    }

    /// Waits for a thread and works there.
    ///
    /// # Errors
    /// 500 where the work panics.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        work_with(permit, work).await
    }

    /// As [`Self::run`], for work on so many bytes: what is short does not wait for what is long.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(super) async fn run_on<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes > SHORT {
            return self.run(work).await;
        }
        let permit = tokio::select! {
            permit = Arc::clone(&self.permits).acquire_owned() => permit,
            permit = Arc::clone(&self.short).acquire_owned() => permit,
        };
        work_with(permit, work).await
    }

    /// Reads a body: a short one here, a long one beside.
    ///
    /// # Errors
    /// The reader's.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        body: Bytes,
        parse: fn(&[u8]) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        if body.len() <= SHORT {
            return parse(&body);
        }
        self.run(move || parse(&body)).await?
    }
}

async fn work_with<T: Send + 'static>(
    permit: Result<OwnedSemaphorePermit, AcquireError>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let permit = permit.map_err(|error| ApiError::internal(error.to_string()))?;
    let task = tokio::task::spawn_blocking(move || {
        // Also where the client has left: the work goes on to its end.
        let _permit = permit;
        work()
    });
    task.await
        .map_err(|error| ApiError::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::{self, ThreadId};

    use super::*;

    #[tokio::test]
    async fn no_more_works_at_one_time_than_there_are_permits() {
        let beside = Beside::of_cores(5);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        // Nobody goes on without a second one at work.
        let pair = Arc::new(Barrier::new(2));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (beside, pair) = (beside.clone(), Arc::clone(&pair));
                let (now, most) = (Arc::clone(&now), Arc::clone(&most));
                tokio::spawn(async move {
                    let work = move || {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        pair.wait();
                        now.fetch_sub(1, Ordering::SeqCst);
                    };
                    beside.run(work).await.unwrap();
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn what_is_short_does_not_wait_for_what_is_long() {
        let beside = Beside::of_cores(2);
        let (end, ended) = tokio::sync::watch::channel(());
        let long = || {
            let mut ended = ended.clone();
            let work = move || drop(tokio::runtime::Handle::current().block_on(ended.changed()));
            let beside = beside.clone();
            tokio::spawn(async move { beside.run_on(SHORT + 1, work).await })
        };
        let long = [long(), long()];
        while beside.permits.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(beside.run_on(SHORT, || 7).await, Ok(7));
        end.send(()).unwrap();
        for task in long {
            task.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_short_body_is_read_at_once_and_a_long_one_beside() {
        let reader = |_: &[u8]| Ok::<ThreadId, ApiError>(thread::current().id());
        let beside = Beside::of_cores(2);
        let here = thread::current().id();
        let short = Bytes::from(vec![b' '; SHORT]);
        assert_eq!(beside.read(short, reader).await, Ok(here));
        let long = Bytes::from(vec![b' '; SHORT + 1]);
        assert_ne!(beside.read(long, reader).await, Ok(here));
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_its_thread_is_free_again() {
        fn defect() -> u32 {
            panic!("as in a defect")
        }
        let beside = Beside::of_cores(1);
        for _ in 0..3 {
            assert_eq!(beside.run(defect).await.unwrap_err().status, 500);
        }
        assert_eq!(beside.run(|| 7).await, Ok(7));
    }
}
