//! The only module that reads clocks. No time enters a result's digest.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the module that reads clocks"
)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Now, for measuring durations.
pub fn monotonic() -> Instant {
    Instant::now()
}

/// Time since `start`.
pub fn since(start: Instant) -> Duration {
    start.elapsed()
}

/// Seconds since `start`.
pub fn seconds_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

/// Wall time in seconds since 1970.
pub fn unix_seconds() -> u64 {
    unix().as_secs()
}

/// Wall time in milliseconds since 1970.
pub fn unix_milliseconds() -> u64 {
    unix().as_millis() as u64
}

/// Wall time in nanoseconds since 1970.
pub fn unix_nanoseconds() -> u64 {
    unix().as_nanos() as u64
}

/// Rests for `time`, or until `is_over` says so.
pub fn rest(time: Duration, is_over: &dyn Fn() -> bool) {
    const LOOK: Duration = Duration::from_millis(100);
    let start = monotonic();
    while !is_over() {
        let Some(left) = time
            .checked_sub(since(start))
            .filter(|left| !left.is_zero())
        else {
            return;
        };
        // Nobody unparks this thread; a spurious wake-up only looks again.
        std::thread::park_timeout(left.min(LOOK));
    }
}

fn unix() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Wall time as RFC 3339 in UTC, for example `2026-11-21T04:05:06Z`.
pub fn rfc3339() -> String {
    jiff::Timestamp::from_second(unix_seconds().cast_signed())
        .unwrap_or_default()
        .to_string()
}
