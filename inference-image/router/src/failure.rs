//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use graftwork_listen::body::Unread;
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

/// What the router itself answers with where it can't let an engine answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A path that is not served.
    #[error("{path} is not served here; GET /openapi.json lists what is")]
    UnknownPath {
        /// The path.
        path: String,
    },
    /// A method that the path does not take.
    #[error("{path} does not take {method}")]
    Method {
        /// The path.
        path: String,
        /// The method.
        method: String,
    },
    /// The body is above the limit.
    #[error("the request body is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// All bodies together are above the limit.
    #[error("the requests that wait here hold {limit_bytes} bytes, which is the limit; try again")]
    Overloaded {
        /// The limit.
        limit_bytes: usize,
    },
    /// The body did not arrive in time.
    #[error("the request body did not arrive within {seconds} s")]
    BodyTimeout {
        /// The limit.
        seconds: u64,
    },
    /// The connection broke while the body was read.
    #[error("the request body can't be read: {reason}")]
    Body {
        /// What happened.
        reason: String,
    },
    /// The body is not what the API takes.
    #[error("the request body can't be understood: {reason}")]
    Json {
        /// Position and reason.
        reason: String,
        /// The field that is wrong, where it is one field.
        parameter: Option<&'static str>,
    },
    /// `x-graftwork-version` holds something else.
    #[error("x-graftwork-version is {value:?}; it takes candidate or stable")]
    Side {
        /// The header's value.
        value: String,
    },
    /// Nobody serves that name.
    #[error("the model {:?} does not exist; GET /v1/models lists what does", shown(.model))]
    UnknownModel {
        /// The name.
        model: String,
    },
    /// The header asks for a candidate where there is none.
    #[error("the model {model:?} has no candidate at the moment; leave x-graftwork-version out")]
    NoCandidate {
        /// The name.
        model: String,
    },
    /// No engine can take it.
    #[error("no engine has {version} at the moment; try again")]
    NoEngine {
        /// `<name>@v<version>`.
        version: String,
    },
    /// Every engine that was tried broke.
    #[error("the engine broke before it answered: {reason}")]
    Engine {
        /// What happened.
        reason: String,
    },
    /// The engine is connected but silent.
    #[error("the engine sent nothing for {seconds} s")]
    Silent {
        /// The limit.
        seconds: u64,
    },
    /// The engine broke after it began to answer.
    #[error("the engine broke while it answered; the text above is not complete")]
    Truncated,
}

/// Most characters of a client's own text that an answer repeats.
const SHOWN: usize = 100;

/// The text, cut where it is long.
fn shown(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}

impl From<Unread> for Failure {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Broken { reason } => Self::Body { reason },
            Unread::Late { seconds } => Self::BodyTimeout { seconds },
            Unread::TooLarge { bytes } => Self::TooLarge { limit_bytes: bytes },
            Unread::NoRoom { bytes } => Self::Overloaded { limit_bytes: bytes },
        }
    }
}

impl Failure {
    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::UnknownPath { .. } | Self::UnknownModel { .. } | Self::NoCandidate { .. } => {
                StatusCode::NOT_FOUND
            }
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Body { .. } | Self::Json { .. } | Self::Side { .. } => StatusCode::BAD_REQUEST,
            Self::NoEngine { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Engine { .. } | Self::Truncated => StatusCode::BAD_GATEWAY,
            Self::Silent { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// `error.code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownPath { .. } => "unknown_url",
            Self::Method { .. } => "method_not_allowed",
            Self::TooLarge { .. } => "request_too_large",
            Self::Overloaded { .. } => "rate_limit_exceeded",
            Self::BodyTimeout { .. } => "request_timeout",
            Self::Body { .. } | Self::Json { .. } => "invalid_body",
            Self::Side { .. } => "invalid_version",
            Self::UnknownModel { .. } => "model_not_found",
            Self::NoCandidate { .. } => "no_candidate",
            Self::NoEngine { .. } => "no_engine",
            Self::Engine { .. } => "engine_failed",
            Self::Silent { .. } => "engine_silent",
            Self::Truncated => "stream_truncated",
        }
    }

    fn parameter(&self) -> Option<&'static str> {
        match self {
            Self::UnknownModel { .. } => Some("model"),
            Self::Json { parameter, .. } => *parameter,
            Self::Side { .. } | Self::NoCandidate { .. } => Some("x-graftwork-version"),
            _ => None,
        }
    }

    /// The body.
    pub fn to_json(&self) -> String {
        let kind = match self.status() {
            StatusCode::TOO_MANY_REQUESTS => "requests",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.to_string(),
            "type": kind,
            "param": self.parameter(),
            "code": self.code(),
        }})
        .to_string()
    }

    /// The body as the last event of a stream.
    pub fn to_event(&self) -> Bytes {
        format!("data: {}\n\n", self.to_json()).into()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let json = [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )];
        let mut response = (self.status(), json, self.to_json()).into_response();
        if matches!(self, Self::NoEngine { .. } | Self::Overloaded { .. }) {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_not_repeated_whole() {
        let message = |model: String| Failure::UnknownModel { model }.to_string();
        let name = "é".repeat(SHOWN);
        assert_eq!(
            message(name.clone()),
            format!("the model \"{name}\" does not exist; GET /v1/models lists what does")
        );
        assert_eq!(
            message("é".repeat(10_000)),
            format!("the model \"{name}…\" does not exist; GET /v1/models lists what does")
        );
    }

    #[test]
    fn a_field_of_another_type_is_named() {
        let failure = Failure::Json {
            reason: "`stream` is a string".to_owned(),
            parameter: Some("stream"),
        };
        let body: serde_json::Value = serde_json::from_str(&failure.to_json()).unwrap();
        assert_eq!(body["error"]["param"], "stream");
        assert_eq!(body["error"]["code"], "invalid_body");
    }

    #[test]
    fn an_error_has_openais_shape_in_a_body_and_in_a_stream() {
        let failure = Failure::UnknownModel {
            model: "x\"y".into(),
        };
        let body: serde_json::Value = serde_json::from_str(&failure.to_json()).unwrap();
        assert_eq!(
            body,
            json!({"error": {
                "message": "the model \"x\\\"y\" does not exist; GET /v1/models lists what does",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }})
        );
        let event = Failure::Truncated.to_event();
        let line = std::str::from_utf8(&event)
            .unwrap()
            .strip_suffix("\n\n")
            .unwrap();
        assert!(!line.contains('\n'));
        let body: serde_json::Value =
            serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(body["error"]["type"], "server_error");
    }
}
