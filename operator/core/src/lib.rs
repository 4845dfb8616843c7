//! The pure half of the operator: for every kind, `validate`, `step` and `plan` turn a custom
//! resource, what was observed and the time into a [`plan::Plan`].
//!
//! This crate does no I/O, reads no clock, and knows no client: `graftwork-operator` observes and
//! carries plans out. It depends on the API types and on the words of the contract crate only.

#![forbid(unsafe_code)]

pub mod adapter;
pub mod bucket;
pub mod conditions;
pub mod dataset;
pub mod endpoint;
pub mod hindered;
pub mod jobs;
mod measured;
pub mod observed;
pub mod plan;
pub mod run;
pub mod schedule;
pub mod secret_volume;
pub mod settings;
pub mod sightings;
pub mod storage;
pub mod workload;

#[cfg(test)]
mod fixtures;
