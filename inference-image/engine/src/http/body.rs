//! A request's body, read whole within a size and a time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;

use crate::openai::ApiError;

/// Bytes of a request's body: several times the text that any context holds.
const MAXIMUM_BYTES: usize = 8 << 20;
/// How long a client may take to send it.
const TIME: Duration = Duration::from_secs(60);

/// Reads it.
///
/// # Errors
/// 413 where it is too large or breaks off, 408 where it takes too long.
pub(super) async fn read(body: Body) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(TIME, axum::body::to_bytes(body, MAXIMUM_BYTES)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            format!("the body did not arrive whole, or has more than {MAXIMUM_BYTES} bytes"),
        )),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            format!("the body did not arrive within {} s", TIME.as_secs()),
        )),
    }
}
