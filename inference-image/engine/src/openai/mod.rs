//! The OpenAI HTTP API: reading requests strictly, writing answers.
//!
//! Field names, defaults and shapes are those of OpenAI's API reference (Completions, Chat
//! Completions, Models, Errors). A request field is either used, or harmless at the given value, or
//! answered with a 400 that names it.

pub mod answer;
pub mod chat;
pub mod completion;
pub mod error;
pub mod fields;
pub mod format;
pub mod messages;
pub mod parameters;
pub mod tokens;
pub mod tools;

#[cfg(test)]
mod described;
#[cfg(test)]
mod properties;

pub use error::ApiError;
