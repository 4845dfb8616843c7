//! The end-to-end program's parts. It talks to a cluster as its users do (apply, get, watch, patch, helm)
//! and to endpoints by HTTP; it depends on the API's types and the contract only, never on the operator.

#![forbid(unsafe_code)]
#![allow(
    clippy::large_futures,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a program of tests: it waits and measures, and absent members of JSON are null"
)]

pub mod cluster;
pub mod demo;
pub mod install;
pub mod load;
pub mod manifests;
pub mod namespaces;
pub mod report;
pub mod seed;
pub mod story;
