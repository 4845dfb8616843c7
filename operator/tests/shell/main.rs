//! Tests of the shell against an API server that answers as a test says: order, time-outs,
//! conflicts.

mod carry_out;
mod fake_api;
mod lease;
