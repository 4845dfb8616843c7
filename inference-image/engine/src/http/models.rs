//! `GET /v1/models` and `GET /v1/models/{model}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::Engine;
use crate::openai::ApiError;

pub(super) async fn list(State(engine): State<Arc<Engine>>) -> Result<Json<Value>, ApiError> {
    let data = cards(&engine).await?;
    Ok(Json(json!({"object": "list", "data": data})))
}

pub(super) async fn one(
    State(engine): State<Arc<Engine>>,
    Path(model): Path<String>,
) -> Result<Json<Value>, ApiError> {
    cards(&engine)
        .await?
        .into_iter()
        .find(|card| card.get("id").and_then(Value::as_str) == Some(&model))
        .map(Json)
        .ok_or_else(|| ApiError::model_not_found(&model))
}

/// The base model, where it is offered, then every adapter with a default version. `root` says where
/// an adapter's files are in the store, `parent` what it was made for.
async fn cards(engine: &Engine) -> Result<Vec<Value>, ApiError> {
    let base = engine.base_name.as_deref();
    let adapters = engine
        .registry
        .cards()
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let base_card = base.map(|name| card(engine, name, name, None));
    let adapter_cards = adapters
        .iter()
        .map(|adapter| card(engine, &adapter.name, &adapter.folder, base));
    Ok(base_card.into_iter().chain(adapter_cards).collect())
}

fn card(engine: &Engine, id: &str, root: &str, parent: Option<&str>) -> Value {
    json!({
        "id": id,
        "object": "model",
        "created": engine.started,
        "owned_by": "graftwork",
        "root": root,
        "parent": parent,
        "max_model_len": engine.context_tokens,
    })
}
