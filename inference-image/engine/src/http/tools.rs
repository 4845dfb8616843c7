//! Whether and how the base model calls tools.
//!
//! A choice that the request forces, or narrows, is the constraint's business ([`super::json`]).

use graftwork_model::tokenizer::ChatMessage;
use graftwork_model::tool_calls::{ToolFormat, ToolUse};
use serde_json::Value;

use super::Engine;
use crate::openai::ApiError;
use crate::openai::tools::{Forced, Tools};

/// What a request's tools lead to.
#[derive(Default)]
pub(super) struct ToolPlan {
    /// What the template prints.
    pub(super) list: Vec<Value>,
    /// What is looked for in the answers.
    pub(super) wanted: Option<ToolUse>,
    /// What the answers have to call.
    pub(super) forced: Vec<Forced>,
    /// The only tools that the answers may call where they call any; none: all of them.
    pub(super) narrowed: Vec<String>,
}

/// What the template prints, what is looked for in the answers, and what they have to be.
///
/// # Errors
/// As [`tool_format`].
pub(super) fn tool_use(
    engine: &Engine,
    messages: &[ChatMessage],
    tools: Option<Tools>,
) -> Result<ToolPlan, ApiError> {
    let format = tool_format(engine, messages, tools.is_some())?;
    let (Some(format), Some(tools)) = (format, tools) else {
        return Ok(ToolPlan::default());
    };
    let narrowed = if tools.is_narrowed() {
        tools.names.clone()
    } else {
        Vec::new()
    };
    let wanted = ToolUse {
        format,
        names: tools.names,
        only_one: tools.only_one,
    };
    Ok(ToolPlan {
        list: tools.list,
        wanted: Some(wanted),
        forced: tools.forced,
        narrowed,
    })
}

/// How the model calls tools.
///
/// # Errors
/// 400 where a request is about tools and the model's template knows none.
pub(super) fn tool_format(
    engine: &Engine,
    messages: &[ChatMessage],
    has_tools: bool,
) -> Result<Option<ToolFormat>, ApiError> {
    let format = engine.tokenizer.tool_format();
    if format.is_some() {
        return Ok(format);
    }
    let is_about_tools =
        |message: &ChatMessage| !message.tool_calls.is_empty() || message.tool_call_id.is_some();
    let param = if has_tools {
        "tools".to_owned()
    } else if let Some(index) = messages.iter().position(is_about_tools) {
        format!("messages[{index}]")
    } else {
        return Ok(None);
    };
    let message = format!(
        "{param} can't be told to this model: its chat template has no tools in a format that this engine reads (Llama 3, Mistral, Hermes as in Qwen); leave tools and their calls out"
    );
    Err(ApiError::unsupported(param, message))
}
