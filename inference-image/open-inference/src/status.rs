//! What an HTTP error is in gRPC.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

/// Most characters of a message: it travels in a header.
const MAXIMUM_CHARACTERS: usize = 1000;
/// Metadata: `error.code` of the HTTP API.
const ERROR_CODE: &str = "error-code";

#[derive(Debug, Default, Deserialize)]
struct Refusal {
    error: ErrorBody,
}

#[derive(Debug, Default, Deserialize)]
struct ErrorBody {
    message: String,
    code: Option<String>,
}

/// The status that says the same as an answer of the HTTP API that is not 200.
pub(crate) fn status_of(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Status {
    let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
    let message = match refusal.error.message.as_str() {
        "" => format!("HTTP status {status}"),
        message => cut(message),
    };
    let mut metadata = passed_on(headers);
    let code = refusal.error.code.map(HeaderValue::try_from);
    if let Some(Ok(code)) = code {
        metadata.insert(HeaderName::from_static(ERROR_CODE), code);
    }
    if let Some(seconds) = headers.get(header::RETRY_AFTER) {
        metadata.insert(header::RETRY_AFTER, seconds.clone());
    }
    Status::with_metadata(
        code_of(status),
        message,
        MetadataMap::from_headers(metadata),
    )
}

/// What goes on from one side to the other: our own names, and those of others that begin like them.
pub(crate) fn passed_on(headers: &HeaderMap) -> HeaderMap {
    headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The text, without its end where it is long.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(MAXIMUM_CHARACTERS).collect()
}

fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        408 | 504 => Code::DeadlineExceeded,
        // Clients come back after this one, and must not after a message that is too large.
        429 => Code::ResourceExhausted,
        502 | 503 => Code::Unavailable,
        400..=499 => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_message_its_code_and_when_to_come_back() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("retry-after", "1"),
            ("x-request-id", "abc"),
            ("content-length", "9"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let body = br#"{"error": {"message": "full", "code": "rate_limit_exceeded"}}"#;
        let status = status_of(StatusCode::TOO_MANY_REQUESTS, &headers, body);
        assert_eq!(
            (status.code(), status.message()),
            (Code::ResourceExhausted, "full")
        );
        let metadata = status.metadata();
        assert_eq!(metadata.get("error-code").unwrap(), "rate_limit_exceeded");
        assert_eq!(metadata.get("retry-after").unwrap(), "1");
        assert_eq!(metadata.get("x-request-id").unwrap(), "abc");
        assert!(metadata.get("content-length").is_none());
    }

    #[test]
    fn every_status_of_the_http_api_has_a_code() {
        for (status, code) in [
            (400, Code::InvalidArgument),
            (404, Code::NotFound),
            (408, Code::DeadlineExceeded),
            (413, Code::InvalidArgument),
            (429, Code::ResourceExhausted),
            (500, Code::Internal),
            (502, Code::Unavailable),
            (503, Code::Unavailable),
            (504, Code::DeadlineExceeded),
        ] {
            assert_eq!(code_of(StatusCode::from_u16(status).unwrap()), code);
        }
    }

    #[test]
    fn a_body_of_another_shape_and_a_long_message_are_borne() {
        let none = HeaderMap::new();
        let status = status_of(StatusCode::BAD_GATEWAY, &none, b"<html>");
        assert_eq!(status.message(), "HTTP status 502 Bad Gateway");
        let body = format!(r#"{{"error": {{"message": "{}"}}}}"#, "ä".repeat(5000));
        let status = status_of(StatusCode::BAD_REQUEST, &none, body.as_bytes());
        assert_eq!(status.message().chars().count(), MAXIMUM_CHARACTERS);
    }
}
