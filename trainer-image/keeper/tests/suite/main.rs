//! A keeper as the operator meets it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a failed step is a failed test, and tests watch the clock"
)]

mod binary;
mod crowd;
mod retention;
mod service;
mod serving;
