//! Tests of the shell against an API server that answers as a test says: order, time-outs,
//! conflicts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a failed step is a failed test, and tests watch the clock"
)]

mod admission;
mod binary;
mod carry_out;
mod children;
mod fake_api;
mod freshness;
mod keys;
mod lease;
mod metrics;
mod plan_only;
mod port_forward;
mod refusals;
mod rights;
mod taken_back;
mod values;
mod watches;
