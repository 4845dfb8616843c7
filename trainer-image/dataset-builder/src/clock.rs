//! The only module that reads the clock. No time enters a digest.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the module that reads clocks"
)]

use std::time::{SystemTime, UNIX_EPOCH};

/// Now as RFC 3339 in UTC, to the second.
pub(crate) fn rfc3339() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    jiff::Timestamp::from_second(seconds.cast_signed())
        .unwrap_or_default()
        .to_string()
}
