//! The bytes of one call, read whole within a size, a time and the memory that all calls may take, before anything is
//! made of them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use prost::encoding::{WireType, decode_key, decode_varint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// Bytes of one message, as of a body over HTTP.
pub(crate) const MAXIMUM_BYTES: usize = 8 << 20;
/// What stands before a message: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;
/// How long a client may take to send it.
const TIME: Duration = Duration::from_secs(60);
/// A message of nothing but small parts takes so many times its bytes once it is read.
const WEIGHT: usize = 16;
/// Memory of all messages that are held at one time.
const ROOM_BYTES: usize = 256 << 20;
/// The room is counted in units of so many bytes.
const UNIT: usize = 1 << 10;
/// Tensors, parameters and other parts of one message, counted at its top level; without a bound, two bytes each would
/// take hundreds.
const MAXIMUM_PARTS: usize = 512;

/// The memory that all calls share.
pub(crate) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ROOM_BYTES / UNIT))
}

/// Reads a call's message, then lets the service see it.
pub(crate) async fn read_first(
    State(room): State<Arc<Semaphore>>,
    request: Request,
    next: Next,
) -> Response {
    let (head, body) = request.into_parts();
    match tokio::time::timeout(TIME, collect(body, &room)).await {
        Ok(Ok((bytes, _held))) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Err(status)) => status.into_http(),
        Err(_) => Status::deadline_exceeded(format!(
            "the message did not arrive within {} s",
            TIME.as_secs()
        ))
        .into_http(),
    }
}

/// The bytes, and their share of the room.
async fn collect(
    mut body: Body,
    room: &Arc<Semaphore>,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Status> {
    let mut bytes = BytesMut::new();
    let mut held: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Status::cancelled(format!("the message broke off: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > MAXIMUM_BYTES + HEAD_BYTES {
            return Err(Status::invalid_argument(format!(
                "the message is larger than the limit of {MAXIMUM_BYTES} bytes"
            )));
        }
        let units = u32::try_from((data.len() * WEIGHT).div_ceil(UNIT)).unwrap_or(u32::MAX);
        let more = Arc::clone(room)
            .try_acquire_many_owned(units)
            .map_err(|_| {
                Status::resource_exhausted(
                    "the calls that wait here take all their memory; try again",
                )
            })?;
        match held.as_mut() {
            Some(before) => before.merge(more),
            None => held = Some(more),
        }
        bytes.extend_from_slice(&data);
    }
    let message = bytes.get(HEAD_BYTES..).unwrap_or_default();
    match parts(message) {
        Some(count) if count > MAXIMUM_PARTS => Err(Status::invalid_argument(format!(
            "the message has {count} tensors, parameters and other parts, the limit is {MAXIMUM_PARTS}"
        ))),
        // What can't be read is said by who reads it.
        _ => Ok((bytes.freeze(), held)),
    }
}

/// Fields at the top level of a message; `None` where it is none.
fn parts(mut message: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !message.is_empty() {
        let (_, wire_type) = decode_key(&mut message).ok()?;
        let length = match wire_type {
            WireType::Varint => {
                decode_varint(&mut message).ok()?;
                0
            }
            WireType::LengthDelimited => decode_varint(&mut message).ok()?,
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let length = usize::try_from(length).ok()?;
        if length > message.len() {
            return None;
        }
        message.advance(length);
        count += 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use graftwork_contract::proto::inference::ModelInferRequest;
    use graftwork_contract::proto::inference::model_infer_request::InferInputTensor;
    use prost::Message as _;

    use super::*;

    /// A message as gRPC sends it.
    fn framed(request: &ModelInferRequest) -> Body {
        let message = request.encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&message);
        Body::from(bytes)
    }

    fn with_inputs(count: usize) -> ModelInferRequest {
        ModelInferRequest {
            model_name: "m".into(),
            inputs: vec![InferInputTensor::default(); count],
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn a_message_is_held_in_the_room_and_gives_it_back() {
        let room = Arc::new(Semaphore::new(100));
        let (bytes, held) = collect(framed(&with_inputs(3)), &room).await.unwrap();
        assert!(bytes.len() > HEAD_BYTES && room.available_permits() < 100);
        drop(held);
        assert_eq!(room.available_permits(), 100);
        let full = Arc::new(Semaphore::new(0));
        let status = collect(framed(&with_inputs(3)), &full).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn a_message_of_too_many_parts_or_bytes_is_refused_with_the_limit() {
        let room = room();
        for (body, limit) in [
            (framed(&with_inputs(MAXIMUM_PARTS)), "limit is 512"),
            (Body::from(vec![0_u8; MAXIMUM_BYTES + 6]), "8388608 bytes"),
        ] {
            let status = collect(body, &room).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(limit), "{status}");
        }
        let fits = collect(framed(&with_inputs(MAXIMUM_PARTS - 1)), &room).await;
        assert!(fits.is_ok());
    }

    #[test]
    fn what_is_no_message_has_no_parts() {
        for bytes in [&[0x0a, 5, 1][..], &[0xff], &[0x0b], &[0]] {
            assert_eq!(parts(bytes), None, "{bytes:?}");
        }
        assert_eq!(parts(&[]), Some(0));
        assert_eq!(parts(&[0x08, 1, 0x12, 1, 7]), Some(2));
    }
}
