//! The keeper: the one long-lived writer of a namespace's artifact store. The operator reads the store through it, has
//! ledger records written by it, and asks it about files: what a base model is, whether an adapter fits it.
//!
//! It has no API token and no opinion: it decides nothing, judges no gate, numbers no version, and deletes nothing but the
//! versions of datasets that it is told to and that nothing in the store refers to.

#![forbid(unsafe_code)]

pub mod adapters;
pub mod base;
pub mod cli;
mod clock;
pub mod config;
pub mod folders;
pub mod ledger;
pub mod problem;
pub mod retention;
pub mod server;
pub mod turns;
