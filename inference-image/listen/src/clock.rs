//! The only module of engine and router that reads clocks, so that whoever looks for a jump of time looks
//! here.
#![expect(clippy::disallowed_methods, reason = "this is that module")]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Now, for durations.
pub fn now() -> Instant {
    Instant::now()
}

/// Seconds since the Unix epoch by the wall clock.
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
