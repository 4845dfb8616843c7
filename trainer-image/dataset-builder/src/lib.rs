//! The dataset builder: one Job that turns files and answers of databases into one immutable version of a Dataset.
//!
//! It reads top to bottom in [`build::build`]: configuration -> sources, with personal data masked or
//! refused row by row -> order and duplicates -> judgement of the bad rows -> splits and balance ->
//! files, manifest, number. The same rows in any order and in any number of sources give the same digest;
//! nothing of the outcome depends on when or where it ran.
//!
//! Killed at any instant and started again, it ends in the same state: files appear whole, a
//! number is given once, and what was finished before is found and not done again.
//!
//! With `shards`, several pods read, judge, mask and measure rows ([`parts`]), and one puts them in order and
//! goes on from there: what they make is the same for any number of them.
//!
//! It does not talk to Kubernetes, and to no network but the databases, stores and servers that sources
//! name, and the analyser of personal data where one is named; it counts tokens and keeps texts, and never prints data: logs and messages name source, line and
//! rule.
//!
//! Rows are judged, masked and measured on all cores, some thousands at a time, and taken together in their order.
//!
//! Rows stream: whatever the size of the sources, memory holds at most [`spill::DEFAULT_MEMORY_BYTES`] of
//! rows and tables (`--memory-bytes`), [`spill::QUERY_BYTES`] of a query over the sources, what decoders and
//! Parquet need, and less than a byte a row. The rest is sorted on the scratch volume. The outcome is the same
//! whatever the memory.
//!
//! Limits: a packed file unpacks to at most [`streams::MAXIMUM_UNPACKED_BYTES`], a line has at most
//! [`lines::MAXIMUM_LINE_BYTES`].

#![forbid(unsafe_code)]

mod absent;
mod balance;
pub mod build;
pub mod cli;
mod clock;
mod clusters;
pub mod config;
pub mod csv;
mod deal;
pub mod dealing;
pub mod detect;
mod digits;
mod duplicates;
pub mod failure;
pub mod files;
mod judging;
mod labels;
pub mod languages;
pub mod lines;
mod looks;
mod near;
pub mod nulls;
mod order;
mod parquet_pages;
pub mod parquet_rows;
pub mod parts;
pub mod pins;
pub mod privacy;
pub mod query;
pub mod reader;
#[cfg(test)]
mod reference;
mod remote;
pub mod report;
pub mod row;
mod secret;
pub mod shapes;
pub mod sources;
mod spaces;
pub mod spill;
mod split;
pub mod statistics;
mod stored;
pub mod streams;
pub mod termination;
pub mod tokens;
mod transform;
mod waiting;
mod writing;
