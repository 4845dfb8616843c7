//! The time that decisions see: the wall clock at the process's start, and monotonic from there, so
//! that a clock that jumps promotes nothing.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the module that reads clocks"
)]

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use jiff::{SignedDuration, Timestamp};

static START: OnceLock<(Timestamp, Instant)> = OnceLock::new();

/// Now.
pub fn now() -> Timestamp {
    let (wall, monotonic) = START.get_or_init(|| (Timestamp::now(), Instant::now()));
    let passed = SignedDuration::try_from(monotonic.elapsed()).unwrap_or(SignedDuration::MAX);
    wall.checked_add(passed).unwrap_or(*wall)
}

/// Now, for durations.
pub fn monotonic() -> Instant {
    Instant::now()
}

/// Now by the runtime's clock, which tests can stop.
pub fn of_runtime() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// The wall clock, for what people and other processes read.
pub fn wall() -> Timestamp {
    Timestamp::now()
}

/// Seconds since the Unix epoch by the wall clock.
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
