//! Work in the background that takes no core from requests for long.

use std::cell::Cell;
use std::time::{Duration, Instant};

use graftwork_listen::clock;
use rustix::process::setpriority_process;

/// The least of Linux: a thread of a pass that wants the same core gets it for seventy times as long.
const NICE: i32 = 19;
/// Work at a time: little of what a pass takes, whose threads wait for the one that has lost its core.
const WORK: Duration = Duration::from_micros(500);
/// How long it rests then. Not by how long it worked: a pass may have had the core for most of that.
const REST: Duration = Duration::from_micros(1500);

/// Puts this thread behind those of passes, for good: to raise a priority again takes a privilege.
pub(super) fn behind_passes() {
    // On Linux, none is this thread.
    if let Err(error) = setpriority_process(None, NICE) {
        tracing::warn!(%error, "adapters are verified at the priority of requests");
    }
}

/// The pace of one thread's work.
pub(super) struct Pace {
    /// When it went on.
    since: Cell<Instant>,
}

impl Pace {
    /// One that begins now.
    pub fn new() -> Self {
        Self {
            since: Cell::new(clock::now()),
        }
    }

    /// Rests where it is time. To be called often.
    #[expect(
        clippy::disallowed_methods,
        reason = "it waits for nothing: the time is what it gives to others"
    )]
    pub fn breathe(&self) {
        if clock::now().duration_since(self.since.get()) >= WORK {
            std::thread::sleep(REST);
            self.since.set(clock::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn it_rests_once_it_has_worked_for_a_while() {
        let pace = Pace::new();
        let begun = clock::now();
        pace.since.set(begun.checked_sub(WORK).unwrap());
        pace.breathe();
        assert!(clock::now().duration_since(begun) >= REST);
        assert!(pace.since.get() > begun);
    }

    #[test]
    fn the_thread_alone_stands_behind_passes() {
        let before = getpriority_process(None).unwrap();
        let thread = thread::spawn(|| {
            behind_passes();
            getpriority_process(None).unwrap()
        });
        assert_eq!(thread.join().unwrap(), NICE);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
