//! The constraint of answers that are JSON, a call of a tool, or text with calls of some tools alone.

use std::sync::Arc;

use serde_json::Value;

use super::Engine;
use crate::constraint::{CallForm, Constraint, ConstraintError};
use crate::openai::ApiError;
use crate::openai::tools::Forced;

const NO_GRAMMARS: ConstraintError =
    ConstraintError::Unsupported("this model's tokenizer allows no grammars");

/// What the answers of a request have to be.
pub(super) enum Asked {
    /// Any text.
    Text,
    /// JSON of this schema.
    Json(Value),
    /// One call, of one of these tools.
    Call(Vec<Forced>),
    /// Any text, with calls of the tools of these names alone.
    Among(Vec<String>),
}

impl Asked {
    /// By `response_format`'s schema, by what has to be called and by what alone may be; a request has one of them at
    /// most.
    pub(super) fn of(schema: Option<Value>, forced: Vec<Forced>, narrowed: Vec<String>) -> Self {
        match schema {
            Some(schema) => Self::Json(schema),
            None if !forced.is_empty() => Self::Call(forced),
            None if !narrowed.is_empty() => Self::Among(narrowed),
            None => Self::Text,
        }
    }
}

/// Makes the grammar and a constraint for each of so many answers, none for any text. Beside the reactor: a large schema
/// takes tens of milliseconds, and each copy of what it becomes takes a part of one.
///
/// # Errors
/// 400 where a schema can't be met or is too large, or the model's tokenizer allows no grammars.
pub(super) async fn compile(
    engine: &Arc<Engine>,
    asked: Asked,
    answers: usize,
) -> Result<Vec<Constraint>, ApiError> {
    if matches!(asked, Asked::Text) {
        return Ok(Vec::new());
    }
    let (engine, beside) = (Arc::clone(engine), &engine.beside);
    let compiled = beside.run(move || -> Result<Vec<Constraint>, ApiError> {
        let first = match asked {
            Asked::Text => return Ok(Vec::new()),
            Asked::Json(schema) => of_schema(&engine, &schema)?,
            Asked::Call(forced) => of_call(&engine, &forced)?,
            Asked::Among(names) => among(&engine, &names)?,
        };
        let mut all: Vec<Constraint> = (1..answers).map(|_| first.copy()).collect();
        all.push(first);
        Ok(all)
    });
    compiled.await?
}

fn of_schema(engine: &Engine, schema: &Value) -> Result<Constraint, ApiError> {
    let compiled = match &engine.grammars {
        Some(grammars) => grammars.constraint(schema),
        None => Err(NO_GRAMMARS),
    };
    compiled.map_err(|error| match error {
        ConstraintError::Unsupported(_) => ApiError::unsupported(
            "response_format",
            format!("response_format can't be had: {error}; leave it out"),
        ),
        ConstraintError::Schema(_) => ApiError::invalid(
            "response_format",
            format!("response_format.json_schema.schema can't be used: {error}"),
        ),
    })
}

/// No grammar is needed, so that any tokenizer will do; arguments are not looked at.
fn among(engine: &Engine, names: &[String]) -> Result<Constraint, ApiError> {
    let openings = engine.tokenizer.call_openings(names);
    let openings = openings.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Constraint::steered(openings, engine.vocabulary))
}

fn of_call(engine: &Engine, forced: &[Forced]) -> Result<Constraint, ApiError> {
    let unsupported = |error: ConstraintError| {
        ApiError::unsupported(
            "tool_choice",
            format!("tool_choice can't force a call: {error}; send \"auto\""),
        )
    };
    let Some(grammars) = &engine.grammars else {
        return Err(unsupported(NO_GRAMMARS));
    };
    let mut forms = Vec::with_capacity(forced.len());
    for tool in forced {
        let frame = engine.tokenizer.call_frame(&tool.name);
        let frame = frame.map_err(|error| ApiError::internal(error.to_string()))?;
        let Some(frame) = frame else {
            return Err(unsupported(ConstraintError::Unsupported(
                "the model's chat template has no calls",
            )));
        };
        forms.push(CallForm {
            frame,
            arguments: tool.arguments.clone(),
        });
    }
    grammars.call(forms).map_err(|(at, error)| match error {
        ConstraintError::Unsupported(_) => unsupported(error),
        ConstraintError::Schema(problem) => {
            let index = forced.get(at).map_or(at, |tool| tool.index);
            ApiError::arguments(index, &problem)
        }
    })
}
