//! The only module that reads clocks.
#![expect(clippy::disallowed_methods, reason = "this is that module")]

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since the Unix epoch.
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// RFC 3339 in UTC, in whole seconds.
pub fn rfc3339() -> String {
    jiff::Timestamp::from_second(unix_seconds().cast_signed())
        .unwrap_or_default()
        .to_string()
}
