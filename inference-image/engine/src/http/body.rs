//! A request's body, read whole within a size and a time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::openai::ApiError;

/// Bytes of a request's body: several times the text that any context holds.
const MAXIMUM_BYTES: usize = 8 << 20;
/// How long a client may take to send it.
const TIME: Duration = Duration::from_secs(60);

/// Reads it.
///
/// # Errors
/// 400 where it breaks off, 408 where it takes too long, 413 where it is too large.
pub(super) async fn read(body: Body) -> Result<Bytes, ApiError> {
    read_within(body, MAXIMUM_BYTES, TIME).await
}

async fn read_within(body: Body, most: usize, time: Duration) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(time, Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            format!("the body has more than {most} bytes"),
        )),
        Ok(Err(error)) => Err(ApiError::bad_request(format!(
            "the body did not arrive whole: {error}"
        ))),
        Err(_) => Err(ApiError::refused(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!("the body did not arrive within {} s", time.as_secs()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use futures::stream::{self, Stream, StreamExt as _};

    use super::*;

    const SECONDS: Duration = Duration::from_secs(20);

    type Part = Result<Bytes, std::io::Error>;

    fn parts<const N: usize>(texts: [&'static str; N]) -> impl Stream<Item = Part> {
        stream::iter(texts.map(|text| Part::Ok(Bytes::from_static(text.as_bytes()))))
    }

    async fn refusal(body: Body, time: Duration) -> (u16, &'static str) {
        let error = read_within(body, 8, time).await.unwrap_err();
        (error.status.as_u16(), error.code.unwrap())
    }

    #[tokio::test]
    async fn a_body_that_stops_half_way_is_a_408_and_one_that_breaks_off_a_400() {
        let begun = || parts(["{"]);
        let stops = Body::from_stream(begun().chain(stream::pending::<Part>()));
        let soon = Duration::from_millis(20);
        assert_eq!(refusal(stops, soon).await, (408, "request_timeout"));
        let broken = std::io::Error::other("gone");
        let breaks = Body::from_stream(begun().chain(stream::iter([Err(broken)])));
        assert_eq!(refusal(breaks, SECONDS).await, (400, "invalid_body"));
    }

    #[tokio::test]
    async fn a_body_of_a_byte_too_many_is_a_413_whatever_its_length_says() {
        let whole = Body::from_stream(parts(["1234", "5678"]));
        let read = read_within(whole, 8, SECONDS).await.unwrap();
        assert_eq!(read, "12345678");
        let longer = Body::from_stream(parts(["1234", "56789"]));
        assert_eq!(refusal(longer, SECONDS).await, (413, "request_too_large"));
        let longer = Body::from("123456789");
        assert_eq!(refusal(longer, SECONDS).await, (413, "request_too_large"));
    }
}
