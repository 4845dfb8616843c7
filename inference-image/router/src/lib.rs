//! The proxy in front of one endpoint's engines: it picks the adapter version and the engine of each
//! request, streams the answer through, and counts per version.
//!
//! A routing table says what there is: the mounted one (stable versions only) until the operator pushes
//! one over gRPC. Everything a request needs is in the snapshot it began with, so a new table applies to
//! every later request and running ones finish where they began.
//!
//! It does not run a model, knows no Kubernetes API, holds no artifact, judges no rollout (the operator
//! reads its counters and does), and never answers for a model other than the one that was named or its fallback.

#![forbid(unsafe_code)]

pub mod beginning;
pub mod cache;
pub mod callers;
pub mod choice;
pub mod client;
pub mod control;
pub mod counters;
pub mod engine;
pub mod failure;
pub mod forward;
pub mod hedging;
pub mod metrics;
pub mod mounted;
pub mod page;
pub mod places;
pub mod probe;
pub mod relay;
pub mod request;
pub mod server;
pub mod settings;
pub mod state;
pub mod stats;
pub mod table;
