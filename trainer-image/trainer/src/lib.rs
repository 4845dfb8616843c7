//! The trainer: one attempt of a training run as a Job of the cluster (`trainer run`), and the
//! pre-training of a small base model on any machine (`trainer pretrain`).
//!
//! [`run`] reads top to bottom: config -> base model -> dataset -> tokens -> packed batches -> train
//! -> evaluate -> package -> report.
//!
//! What this crate does *not* do: it computes no forward pass (that is `graftwork-model`, shared
//! with the engine), talks to no API server, decides on no retry and publishes no version.

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod cli;
mod clock;
pub mod failure;
pub mod optimizer;
pub mod order;
pub mod pretrain;
pub mod run;
pub mod schedule;
pub mod signals;
pub mod state_file;
pub mod train;
