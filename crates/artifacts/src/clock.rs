//! The only module that reads clocks.
#![expect(clippy::disallowed_methods, reason = "this is that module")]

use std::time::SystemTime;

/// The wall clock, to be compared with files' times.
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}
