//! Tests of the shell against an API server that answers as a test says: order, time-outs,
//! conflicts.

mod admission;
mod carry_out;
mod fake_api;
mod freshness;
mod keys;
mod lease;
mod metrics;
mod plan_only;
mod port_forward;
mod refusals;
mod watches;
