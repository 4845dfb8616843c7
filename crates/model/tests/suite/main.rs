//! What others compute, and what anybody may send. One program: each is linked apart.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed step is a failed test"
)]

mod parity;
mod seeds;
