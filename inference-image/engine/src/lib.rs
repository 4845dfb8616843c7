//! The engine: one base model, many LoRA adapters, OpenAI's HTTP API and the Open Inference Protocol.
//!
//! | module | holds |
//! |---|---|
//! | [`options`], [`mounted`] | command line; the mounted configuration |
//! | [`run`] | start, drain, end: reads top to bottom |
//! | [`registry`] | adapters: what is registered, verified, in memory, refused; pushed lists |
//! | [`scheduler`] | continuous batching as a pure state machine |
//! | [`device`], [`passes`] | the one thread that computes; whether it goes on |
//! | [`ended`] | how fast answers end, and when a refused client may come back |
//! | [`openai`], [`http`] | the API: reading and writing; serving |
//! | [`constraint`] | answers that are JSON of a schema, or a call: which tokens may come next |
//! | [`transcript`], [`stop`] | from tokens to an answer's text |
//! | [`grpc`], [`health`], [`metrics`], [`vllm`] | what the operator, the kubelet and Prometheus ask |
//!
//! What this crate does *not* do: it picks no version (the router does), knows no Kubernetes API,
//! writes nothing to the store, and keeps no answers.

#![forbid(unsafe_code)]

pub mod constraint;
pub mod device;
pub mod ended;
pub mod grpc;
pub mod health;
pub mod http;
pub mod metrics;
pub mod mounted;
pub mod openai;
pub mod options;
pub mod passes;
pub mod registry;
mod revision;
pub mod run;
pub mod scheduler;
pub mod stop;
pub mod transcript;
pub mod vllm;
