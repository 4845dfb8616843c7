//! Threads that serve connections, each with a runtime of its own: all of a connection's work stays on its thread, and no
//! other thread wakes for it.

use std::io;
use std::num::NonZero;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The threads; they end, with what runs on them, once this is dropped.
#[derive(Debug)]
pub struct Crew {
    members: Vec<Handle>,
    _stop: DropGuard,
}

impl Crew {
    /// A thread for each core that this process may use.
    ///
    /// # Errors
    /// Where the system gives no thread, or nothing to wait for events with.
    pub fn start() -> io::Result<Self> {
        let stop = CancellationToken::new();
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let members = (0..count)
            .map(|number| member(number, stop.clone()))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            members,
            _stop: stop.drop_guard(),
        })
    }

    /// What runs each thread's tasks; one at least.
    pub fn members(&self) -> &[Handle] {
        &self.members
    }
}

fn member(number: usize, stop: CancellationToken) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name(format!("serve-{number}"))
        .spawn(move || runtime.block_on(stop.cancelled_owned()))?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_member_runs_stays_on_its_thread_and_ends_with_the_crew() {
        let crew = Crew::start().unwrap();
        let mut running = Vec::new();
        for member in crew.members() {
            let task = member.spawn(async {
                let before = thread::current().id();
                tokio::task::yield_now().await;
                (before, thread::current().id())
            });
            let (before, after) = task.await.unwrap();
            assert_eq!(before, after);
            assert_ne!(before, thread::current().id());
            running.push(member.spawn(std::future::pending::<()>()));
        }
        assert!(!running.is_empty());
        drop(crew);
        for task in running {
            assert!(task.await.unwrap_err().is_cancelled());
        }
    }
}
