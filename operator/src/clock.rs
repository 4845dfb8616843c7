//! The time that decisions see: the wall clock at the process's start, and monotonic from there, so
//! that a clock that jumps promotes nothing.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the module that reads clocks"
)]

use std::sync::OnceLock;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

static START: OnceLock<(Timestamp, Instant)> = OnceLock::new();

/// Now.
pub fn now() -> Timestamp {
    let (wall, monotonic) = START.get_or_init(|| (Timestamp::now(), Instant::now()));
    let passed = SignedDuration::try_from(monotonic.elapsed()).unwrap_or(SignedDuration::MAX);
    wall.checked_add(passed).unwrap_or(*wall)
}
