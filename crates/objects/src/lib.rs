//! Object stores of S3, Google Cloud Storage and Azure Blob Storage, and HTTP for them: what is connected to
//! is what the installation allows, and who asks is what a Secret says.
//!
//! Sources of datasets and the artifact store open their buckets here, and in no other way.
//!
//! This crate does not know what objects mean, nor Kubernetes: a Secret is a mounted folder.

#![forbid(unsafe_code)]

pub mod authorities;
pub mod client;
pub mod connect;
pub mod fixture;
pub mod problem;
pub mod secret;
pub mod stores;
