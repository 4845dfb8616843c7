//! The dataset builder: one Job that turns files into one immutable version of a Dataset.
//!
//! It reads top to bottom in [`build::build`]: configuration -> sources, with personal data masked or
//! refused row by row -> judgement of the bad rows -> split and order -> files, manifest, number. The same rows in any order and in any number of
//! sources give the same digest; nothing of the outcome depends on when or where it ran.
//!
//! Killed at any instant and started again, it ends in the same state: files appear whole, a
//! number is given once, and what was finished before is found and not done again.
//!
//! It does not talk to Kubernetes or to any network, does not tokenise, and never prints data: logs
//! and messages name source, line and rule.
//!
//! Limits: a packed file unpacks to at most [`streams::MAXIMUM_UNPACKED_BYTES`], a line has at most [`lines::MAXIMUM_LINE_BYTES`], and all good rows are held in memory
//! until they are written (about the size of the sources plus 200 bytes a row).

#![forbid(unsafe_code)]

mod balance;
pub mod build;
pub mod cli;
mod clock;
pub mod config;
pub mod csv;
pub mod detect;
mod duplicates;
pub mod failure;
pub mod files;
pub mod lines;
pub mod parquet_rows;
pub mod privacy;
pub mod reader;
pub mod report;
pub mod row;
pub mod shapes;
pub mod sources;
mod split;
pub mod statistics;
pub mod streams;
pub mod termination;
