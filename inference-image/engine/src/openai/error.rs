//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use graftwork_contract::endpoint::CODE_VERSION_NOT_HERE;
use serde_json::{Value, json};

/// No adapter and no base model of that name.
pub const CODE_MODEL_NOT_FOUND: &str = "model_not_found";

/// Most characters of a client's own text that an error repeats, as of a router's.
const SHOWN: usize = 100;

/// The text, cut where it is long.
pub fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}

/// An answer that is not 200.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// `type`, for example `invalid_request_error`.
    pub kind: &'static str,
    /// For people.
    pub message: String,
    /// The parameter that is wrong.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u32>,
}

impl ApiError {
    /// 400 about one parameter.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                message.into(),
            )
        }
    }

    /// 400 about a parameter, or a value of it, that this engine does not have.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: Some("unsupported_parameter"),
            ..Self::invalid(param, message)
        }
    }

    /// 400 about the schema of a tool's arguments, which a forced call can't be held to.
    pub fn arguments(tool: usize, problem: &str) -> Self {
        let param = format!("tools[{tool}].function.parameters");
        let message = format!(
            "{param} can't be kept to, as tool_choice asks: {problem}; change it, or send tool_choice = \"auto\""
        );
        Self::invalid(param, message)
    }

    /// 400 about the body as a whole, with the code that routers give it too.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self {
            code: Some("invalid_body"),
            ..Self::new(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                message.into(),
            )
        }
    }

    /// 404: no such model.
    pub fn model_not_found(model: &str) -> Self {
        Self {
            param: Some("model".to_owned()),
            code: Some(CODE_MODEL_NOT_FOUND),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!(
                    "the model {:?} does not exist; GET /v1/models lists what does",
                    cut(model)
                ),
            )
        }
    }

    /// 404: the model exists but this engine can't run that version.
    pub fn version_not_here(version: &str, why: &str) -> Self {
        Self {
            param: Some("model".to_owned()),
            code: Some(CODE_VERSION_NOT_HERE),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!("{} can't be served by this engine: {why}", cut(version)),
            )
        }
    }

    /// 400: prompt and answer do not fit. `input` is the field with the prompt, which is to blame where it leaves no
    /// room for any answer.
    pub fn context_length(limit: usize, prompt: usize, answer: usize, input: &str) -> Self {
        let fits_alone = prompt + answer.min(1) <= limit;
        Self {
            code: Some("context_length_exceeded"),
            ..Self::invalid(
                if fits_alone { "max_tokens" } else { input },
                format!(
                    "this model's context length is {limit} tokens, the request asks for {} ({prompt} in the prompt, {answer} for the answer); shorten one of them",
                    prompt + answer
                ),
            )
        }
    }

    /// 400: more answers at once than there are places.
    pub fn too_many_answers(prompts: usize, choices: usize, limit: usize) -> Self {
        let param = if prompts > 1 { "prompt" } else { "n" };
        Self::invalid(
            param,
            format!(
                "{prompts} prompts with n = {choices} are {} answers, this engine takes at most {limit} at once; send several requests",
                prompts * choices
            ),
        )
    }

    /// 429: no permit.
    pub fn overloaded(limit: usize, retry_after: u32) -> Self {
        Self {
            code: Some("rate_limit_exceeded"),
            retry_after: Some(retry_after),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "requests",
                format!(
                    "this engine already has its {limit} requests; try again in {retry_after} s"
                ),
            )
        }
    }

    /// 429: the bodies of other requests take all bytes that there are for them.
    pub fn no_room(limit_bytes: usize) -> Self {
        Self {
            code: Some("rate_limit_exceeded"),
            retry_after: Some(1),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "requests",
                format!(
                    "this engine already holds {limit_bytes} bytes of request bodies; try again in 1 s"
                ),
            )
        }
    }

    /// 500: a defect of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            message.into(),
        )
    }

    /// 503: this engine is stopping.
    pub fn stopping() -> Self {
        Self {
            code: Some("engine_stopping"),
            retry_after: Some(1),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                "this engine is stopping; try again".to_owned(),
            )
        }
    }

    /// Any other refusal of what a client sent, with the code that routers give it too.
    pub fn refused(status: StatusCode, code: &'static str, message: String) -> Self {
        Self {
            code: Some(code),
            ..Self::new(status, "invalid_request_error", message)
        }
    }

    /// Any other status.
    pub fn new(status: StatusCode, kind: &'static str, message: String) -> Self {
        Self {
            status,
            kind,
            message,
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// The body.
    pub fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
