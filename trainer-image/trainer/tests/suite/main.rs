//! The trainer as its operator starts it, and beside what others train. One program: each is linked apart.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::type_complexity,
    clippy::disallowed_methods,
    reason = "a failed step is a failed test, and tests watch the clock"
)]

mod attempt;
mod parity;
mod pretrain;
