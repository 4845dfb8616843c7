//! An engine as its callers meet it: a real tiny model behind real connections. One program, since each
//! that links the engine compiles for half a minute.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "a failed step is a failed test, and tests watch the clock"
)]

mod adapters;
mod base_formats;
mod drain;
mod gpu;
mod harness;
mod hostile;
mod killed;
mod malformed;
mod open_inference;
mod registered;
mod requests;
mod reuse;
mod right_adapter;
mod seeds;
mod serving;
mod structured;
mod tools;
