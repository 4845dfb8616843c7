//! A request's body, read whole within a size, a time and the memory that all of them may take.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use graftwork_listen::body::{self, Room, Unread};

use crate::openai::ApiError;

/// Bytes of a request's body: several times the text that any context holds.
const MAXIMUM_BYTES: usize = 8 << 20;
/// How long a client may take to send it.
const TIME: Duration = Duration::from_secs(60);
/// Bytes of all bodies that are held at one time: as many as a router holds.
const ROOM_BYTES: usize = 128 << 20;

/// The memory that all bodies share until they are read.
pub fn room() -> Room {
    Room::of_bytes(ROOM_BYTES)
}

/// Reads it.
///
/// # Errors
/// 400 where it breaks off, 408 where it takes too long, 413 where it is too large, 429 where there is no room.
pub(super) async fn read(room: &Room, body: Body) -> Result<Bytes, ApiError> {
    let read = body::read(room, body, MAXIMUM_BYTES, TIME).await;
    read.map_err(refusal)
}

fn refusal(unread: Unread) -> ApiError {
    match unread {
        Unread::Broken { reason } => {
            ApiError::bad_request(format!("the body did not arrive whole: {reason}"))
        }
        Unread::Late { seconds } => ApiError::refused(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!("the body did not arrive within {seconds} s"),
        ),
        Unread::TooLarge { bytes } => ApiError::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            format!("the body has more than {bytes} bytes"),
        ),
        Unread::NoRoom { bytes } => ApiError::no_room(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_not_read_has_a_status_and_a_code() {
        let reason = "gone".to_owned();
        for (unread, status, code, said) in [
            (Unread::Broken { reason }, 400, "invalid_body", "gone"),
            (Unread::Late { seconds: 60 }, 408, "request_timeout", "60 s"),
            (
                Unread::TooLarge { bytes: 8 },
                413,
                "request_too_large",
                "8 bytes",
            ),
            (
                Unread::NoRoom { bytes: 9 },
                429,
                "rate_limit_exceeded",
                "9 bytes",
            ),
        ] {
            let error = refusal(unread);
            assert_eq!((error.status.as_u16(), error.code), (status, Some(code)));
            assert!(error.message.contains(said), "{error}");
            assert_eq!(error.retry_after, (status == 429).then_some(1));
        }
    }
}
