//! Work in the background that takes no core from requests for long.

use std::cell::Cell;
use std::time::{Duration, Instant};

use graftwork_listen::clock;

/// Work at a time: a tenth of what a pass takes, whose threads wait for the one that has lost its core.
const WORK: Duration = Duration::from_millis(2);
/// How long it rests then, in times that it worked.
const REST: u32 = 3;

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
        let worked = clock::now().duration_since(self.since.get());
        if worked >= WORK {
            std::thread::sleep(worked * REST);
            self.since.set(clock::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_three_times_as_long_as_it_worked() {
        let pace = Pace::new();
        let begun = clock::now();
        pace.since.set(begun.checked_sub(2 * WORK).unwrap());
        pace.breathe();
        assert!(clock::now().duration_since(begun) >= 2 * WORK * REST);
        assert!(pace.since.get() > begun);
    }
}
