//! The description of the HTTP API that engines and routers serve at `/openapi.json`. It is written by
//! hand; the engine's tests compare its paths and its request fields with what the code reads.

/// `OpenAPI` 3.1, JSON.
pub const DOCUMENT: &str = include_str!("openapi.json");
