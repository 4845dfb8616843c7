//! Words that the operator, the data plane and the tests share: configuration files, reports, exit
//! codes, store paths, digests, signed calls and the gRPC contracts.
//!
//! This crate does no I/O, knows nothing of Kubernetes and nothing of tensors. The generated gRPC
//! clients and servers are behind the feature `grpc`, so that pure crates can use the words alone.
//!
//! Compatibility: operator N speaks the contract of N-1. Fields are added with a default, never
//! renamed; a reader keeps what it does not know where it writes the value back.

#![forbid(unsafe_code)]

pub mod adapter;
pub mod address;
pub mod causes;
pub mod dataset;
pub mod digest;
pub mod endpoint;
pub mod exit;
pub mod feedback;
pub mod glob;
pub mod keeper;
pub mod key_values;
pub mod latency;
pub mod ledger;
pub mod openapi;
pub mod paths;
pub mod pod;
pub mod remote;
pub mod run;
pub mod signing;
pub mod store;
pub mod uri;

/// Generated messages and, with the feature `grpc`, clients and servers.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    /// Signed envelope shared by all services.
    pub mod call {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/graftwork.call.v1.rs"));
        }
    }
    /// The keeper: the long-lived writer of a namespace's store.
    pub mod store {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/graftwork.store.v1.rs"));
        }
    }
    /// The trainer's progress.
    pub mod trainer {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/graftwork.trainer.v1.rs"));
        }
    }
    /// The engine's adapters.
    pub mod engine {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/graftwork.engine.v1.rs"));
        }
    }
    /// The router's table and counters.
    pub mod router {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/graftwork.router.v1.rs"));
        }
    }
    /// The Open Inference Protocol, as its clients know it.
    pub mod inference {
        include!(concat!(env!("OUT_DIR"), "/inference.rs"));

        /// What gRPC reflection shows of it.
        pub const FILE_DESCRIPTOR_SET: &[u8] =
            include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));
    }
}

pub use digest::Digest;
