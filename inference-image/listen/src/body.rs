//! A request's body, read whole within a size, a time and the memory that all of them may take.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The room is counted in units of so many bytes.
const UNIT: usize = 1 << 10;

/// The memory that the bodies of all requests share, each for the bytes of it that have come. Whoever connects may send
/// one, long before it has a place; who only says that it will takes none.
#[derive(Debug, Clone)]
pub struct Room {
    units: Arc<Semaphore>,
    bytes: usize,
    weight: usize,
}

/// Why a body was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// It broke off.
    Broken {
        /// What happened.
        reason: String,
    },
    /// It did not arrive in time.
    Late {
        /// The limit.
        seconds: u64,
    },
    /// It is larger than one may be.
    TooLarge {
        /// The limit.
        bytes: usize,
    },
    /// Others take the room.
    NoRoom {
        /// All of it.
        bytes: usize,
    },
}

impl Room {
    /// Of so many bytes.
    pub fn of_bytes(bytes: usize) -> Self {
        Self {
            units: Arc::new(Semaphore::new(bytes.div_ceil(UNIT))),
            bytes,
            weight: 1,
        }
    }

    /// For bodies of which each byte takes so many once it is read.
    #[must_use]
    pub fn weighing(self, weight: usize) -> Self {
        Self { weight, ..self }
    }

    fn take(&self, units: usize) -> Result<OwnedSemaphorePermit, Unread> {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Arc::clone(&self.units)
            .try_acquire_many_owned(units)
            .map_err(|_| Unread::NoRoom { bytes: self.bytes })
    }
}

/// A body, and the room that it takes until nobody has it any more.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
}

impl Held {
    fn append(&mut self, room: &Room, data: &[u8]) -> Result<(), Unread> {
        let units = ((self.bytes.len() + data.len()) * room.weight).div_ceil(UNIT);
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
/// [`Unread`]; who says at once that it is too large is not read.
pub async fn read(room: &Room, body: Body, most: usize, time: Duration) -> Result<Bytes, Unread> {
    let read = tokio::time::timeout(time, collect(room, body, most)).await;
    read.unwrap_or(Err(Unread::Late {
        seconds: time.as_secs(),
    }))
}

async fn collect(room: &Room, mut body: Body, most: usize) -> Result<Bytes, Unread> {
    let too_large = Unread::TooLarge { bytes: most };
    if body.size_hint().lower() > most as u64 {
        return Err(too_large);
    }
    let mut held = Held::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Unread::Broken {
            reason: error.to_string(),
        })?;
        // What is no data are trailers, which nobody needs.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if held.bytes.len() + data.len() > most {
            return Err(too_large);
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

    async fn read_8(body: Body, time: Duration) -> Result<Bytes, Unread> {
        read(&Room::of_bytes(UNIT), body, 8, time).await
    }

    #[tokio::test]
    async fn a_body_that_stops_half_way_is_late_and_one_that_breaks_off_broken() {
        let begun = || parts(["{"]);
        let stops = Body::from_stream(begun().chain(stream::pending::<Part>()));
        let soon = Duration::from_millis(20);
        assert_eq!(read_8(stops, soon).await, Err(Unread::Late { seconds: 0 }));
        let broken = std::io::Error::other("gone");
        let breaks = Body::from_stream(begun().chain(stream::iter([Err(broken)])));
        let error = read_8(breaks, SECONDS).await.unwrap_err();
        assert!(matches!(error, Unread::Broken { reason } if reason.contains("gone")));
    }

    #[tokio::test]
    async fn a_body_of_a_byte_too_many_is_too_large_whatever_its_length_says() {
        let whole = Body::from_stream(parts(["1234", "5678"]));
        assert_eq!(read_8(whole, SECONDS).await.unwrap(), "12345678");
        let longer = Body::from_stream(parts(["1234", "56789"]));
        for longer in [longer, Body::from("123456789")] {
            let error = read_8(longer, SECONDS).await.unwrap_err();
            assert_eq!(error, Unread::TooLarge { bytes: 8 });
        }
    }

    #[tokio::test]
    async fn bodies_share_a_room_each_for_what_has_come_of_it() {
        let room = Room::of_bytes(3 * UNIT);
        let free = || room.units.available_permits();
        let read = |body: Body| read(&room, body, 9 * UNIT, SECONDS);
        // In small parts a body takes no more than whole.
        let bytes = (0..=UNIT).map(|_| Part::Ok(Bytes::from_static(b" ")));
        let held = read(Body::from_stream(stream::iter(bytes))).await.unwrap();
        assert_eq!((held.len(), free()), (UNIT + 1, 1));
        let longer = [vec![b' '; UNIT], vec![b' ']].map(|part| Part::Ok(part.into()));
        let error = read(Body::from_stream(stream::iter(longer)))
            .await
            .unwrap_err();
        assert_eq!(error, Unread::NoRoom { bytes: 3 * UNIT });
        assert_eq!(free(), 1, "who is refused gives back what it had");
        let other = read(Body::from("x")).await.unwrap();
        let part = held.slice(..1);
        drop((held, other));
        assert_eq!(free(), 1, "somebody still has it");
        drop(part);
        assert_eq!(free(), 3);
    }

    #[tokio::test]
    async fn a_weight_takes_several_times_the_room() {
        let room = Room::of_bytes(8 * UNIT).weighing(8);
        let held = read(&room, Body::from(vec![b' '; UNIT]), UNIT, SECONDS)
            .await
            .unwrap();
        assert_eq!(room.units.available_permits(), 0);
        let error = read(&room, Body::from("x"), UNIT, SECONDS).await;
        assert_eq!(error, Err(Unread::NoRoom { bytes: 8 * UNIT }));
        drop(held);
        assert_eq!(room.units.available_permits(), 8);
    }
}
