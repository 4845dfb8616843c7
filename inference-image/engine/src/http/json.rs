//! The constraint of answers that are JSON.

use std::sync::Arc;

use serde_json::Value;

use super::Engine;
use crate::constraint::{Constraint, ConstraintError};
use crate::openai::ApiError;

/// Makes a grammar of a schema, beside the reactor: a large one takes tens of milliseconds.
///
/// # Errors
/// 400 where the schema can't be met or is too large, or the model's tokenizer allows no grammars.
pub(super) async fn compile(
    engine: &Arc<Engine>,
    schema: Option<Value>,
) -> Result<Option<Constraint>, ApiError> {
    let Some(schema) = schema else {
        return Ok(None);
    };
    let engine = Arc::clone(engine);
    let compiled = tokio::task::spawn_blocking(move || match &engine.grammars {
        Some(grammars) => grammars.constraint(&schema),
        None => Err(ConstraintError::Unsupported(
            "this model's tokenizer allows no grammars",
        )),
    });
    let compiled = compiled
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    compiled.map(Some).map_err(|error| match error {
        ConstraintError::Unsupported(_) => ApiError::unsupported(
            "response_format",
            format!("response_format can't be had: {error}; leave it out"),
        ),
        ConstraintError::Schema(_) | ConstraintError::Step(_) => ApiError::invalid(
            "response_format",
            format!("response_format.json_schema.schema can't be used: {error}"),
        ),
    })
}
