//! A request's body, read whole within a size, a time and the memory that all of them may take.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::openai::ApiError;

/// Bytes of a request's body: several times the text that any context holds.
const MAXIMUM_BYTES: usize = 8 << 20;
/// How long a client may take to send it.
const TIME: Duration = Duration::from_secs(60);
/// Bytes of all bodies that are held at one time: as many as a router holds.
const ROOM_BYTES: usize = 128 << 20;
/// The room is counted in units of so many bytes.
const UNIT: usize = 1 << 10;

/// The memory that the bodies of all requests share, from their first byte until they are read. Whoever connects may
/// send one, long before it has a place.
#[derive(Debug, Clone)]
pub struct Room {
    units: Arc<Semaphore>,
    bytes: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self::of_bytes(ROOM_BYTES)
    }
}

impl Room {
    /// Of so many bytes.
    fn of_bytes(bytes: usize) -> Self {
        Self {
            units: Arc::new(Semaphore::new(bytes.div_ceil(UNIT))),
            bytes,
        }
    }

    /// So many units of it.
    ///
    /// # Errors
    /// 429 where so many are not free.
    fn take(&self, units: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Arc::clone(&self.units)
            .try_acquire_many_owned(units)
            .map_err(|_| ApiError::no_room(self.bytes))
    }
}

/// A body, and the room that it takes until nobody has it any more.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Takes more of a body.
    ///
    /// # Errors
    /// As [`Room::take`].
    fn append(&mut self, room: &Room, data: &[u8]) -> Result<(), ApiError> {
        let units = (self.bytes.len() + data.len()).div_ceil(UNIT);
        let taken = self
            .room
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let more = room.take(units.saturating_sub(taken))?;
        match self.room.as_mut() {
            Some(before) => before.merge(more),
            None => self.room = Some(more),
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads it. Its bytes keep their share of the room for as long as somebody has them.
///
/// # Errors
/// 400 where it breaks off, 408 where it takes too long, 413 where it is too large, 429 where there is no room.
pub(super) async fn read(room: &Room, body: Body) -> Result<Bytes, ApiError> {
    read_within(room, body, MAXIMUM_BYTES, TIME).await
}

async fn read_within(
    room: &Room,
    body: Body,
    most: usize,
    time: Duration,
) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(time, collect(room, body, most)).await;
    read.unwrap_or_else(|_| {
        Err(ApiError::refused(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!("the body did not arrive within {} s", time.as_secs()),
        ))
    })
}

async fn collect(room: &Room, mut body: Body, most: usize) -> Result<Bytes, ApiError> {
    let mut held = Held::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::bad_request(format!("the body did not arrive whole: {error}"))
        })?;
        // What is no data are trailers, which nobody needs.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if held.bytes.len() + data.len() > most {
            return Err(ApiError::refused(
                StatusCode::PAYLOAD_TOO_LARGE,
                "request_too_large",
                format!("the body has more than {most} bytes"),
            ));
        }
        held.append(room, &data)?;
    }
    Ok(Bytes::from_owner(held))
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
        let error = read_within(&Room::default(), body, 8, time)
            .await
            .unwrap_err();
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
        let read = read_within(&Room::default(), whole, 8, SECONDS)
            .await
            .unwrap();
        assert_eq!(read, "12345678");
        let longer = Body::from_stream(parts(["1234", "56789"]));
        assert_eq!(refusal(longer, SECONDS).await, (413, "request_too_large"));
        let longer = Body::from("123456789");
        assert_eq!(refusal(longer, SECONDS).await, (413, "request_too_large"));
    }

    #[tokio::test]
    async fn bodies_share_a_room_and_one_that_finds_none_is_a_429() {
        let room = Room::of_bytes(3 * UNIT);
        let free = || room.units.available_permits();
        let read = |body: Body| read_within(&room, body, 9 * UNIT, SECONDS);
        // In small parts a body takes no more than whole.
        let bytes = (0..=UNIT).map(|_| Part::Ok(Bytes::from_static(b" ")));
        let held = read(Body::from_stream(stream::iter(bytes))).await.unwrap();
        assert_eq!((held.len(), free()), (UNIT + 1, 1));
        let longer = [vec![b' '; UNIT], vec![b' ']].map(|part| Part::Ok(part.into()));
        let error = read(Body::from_stream(stream::iter(longer)))
            .await
            .unwrap_err();
        let seen = (error.status.as_u16(), error.code, error.retry_after);
        assert_eq!(seen, (429, Some("rate_limit_exceeded"), Some(1)));
        assert!(error.message.contains("3072 bytes"), "{error}");
        assert_eq!(free(), 1, "who is refused gives back what it had");
        let other = read(Body::from("x")).await.unwrap();
        let part = held.slice(..1);
        drop((held, other));
        assert_eq!(free(), 1, "somebody still has it");
        drop(part);
        assert_eq!(free(), 3);
    }
}
