//! What a request names: the router's header before `model`, and never the base model for an unknown
//! name.

use axum::http::HeaderMap;
use graftwork_contract::endpoint::{HEADER_ADAPTER, adapter_header, parse_adapter_header};

use super::Engine;
use crate::openai::ApiError;
use crate::registry::state::{AcquireError, Target};

/// What is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// The bare base model, under its name.
    Base(String),
    /// An adapter.
    Adapter(Target),
}

/// Reads header and `model`.
///
/// # Errors
/// 400 for a header that can't be read, 404 for a base model that is not offered.
pub(super) fn named(engine: &Engine, headers: &HeaderMap, model: &str) -> Result<Named, ApiError> {
    let base = engine.base_name.as_deref();
    let Some(value) = headers.get(HEADER_ADAPTER) else {
        return Ok(if base == Some(model) {
            Named::Base(model.to_owned())
        } else {
            Named::Adapter(Target::Default(model.to_owned()))
        });
    };
    let value = value.to_str().unwrap_or_default();
    match parse_adapter_header(value) {
        Some((name, Some(version))) => {
            Ok(Named::Adapter(Target::Exactly(name.to_owned(), version)))
        }
        Some((name, None)) if base == Some(name) => Ok(Named::Base(name.to_owned())),
        Some((_, None)) => Err(ApiError::version_not_here(
            value,
            "its base model is not offered under that name",
        )),
        None => Err(ApiError::invalid(
            HEADER_ADAPTER,
            format!("header {HEADER_ADAPTER} must be <adapter>@v<version> or <base>@base"),
        )),
    }
}

/// Why an adapter can't be had.
pub(super) fn refused(error: AcquireError) -> ApiError {
    match error {
        AcquireError::UnknownName(name) => ApiError::model_not_found(&name),
        AcquireError::NotHere { name, version, why } => {
            ApiError::version_not_here(&adapter_header(&name, version), &why)
        }
    }
}
