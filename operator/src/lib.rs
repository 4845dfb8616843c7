//! The operator's shell: it observes objects, lets `graftwork-operator-core` plan, and carries plans
//! out.
//!
//! This crate decides nothing about an object. It holds nothing that is not in the API server or in
//! a namespace's store: a new process starts again from nothing.

#![forbid(unsafe_code)]

pub mod api;
pub mod apply;
pub mod background;
pub mod cache;
pub mod calls;
pub mod cli;
pub mod clock;
pub mod context;
pub mod controllers;
pub mod dial;
pub mod keys;
pub mod lease;
pub mod metrics;
pub mod observe;
pub mod plan_only;
pub mod progress;
pub mod run;
pub mod serve;
pub mod settings;
pub mod status;
pub mod trail;
