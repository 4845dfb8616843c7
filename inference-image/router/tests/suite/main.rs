//! A router before engines, over real connections.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a failed step is a failed test, and tests watch the clock"
)]

mod failing_engines;
mod hedging;
mod open_inference;
mod response_cache;
mod rig;
mod routing;
mod weights;
