//! The bytes of one call, read whole within a size, a time and the memory that all calls may take, before anything is
//! made of them.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Buf as _, Bytes};
use graftwork_listen::body::{self, Room, Unread};
use prost::encoding::{WireType, decode_key, decode_varint};
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
/// Tensors, parameters and other parts of one message, counted at its top level; without a bound, two bytes each would
/// take hundreds.
const MAXIMUM_PARTS: usize = 512;

/// The memory that all calls share.
pub(crate) fn room() -> Room {
    Room::of_bytes(ROOM_BYTES).weighing(WEIGHT)
}

/// Reads a call's message, then lets the service see it.
pub(crate) async fn read_first(State(room): State<Room>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match collect(body, &room).await {
        // They take their share of the room until the service has read them.
        Ok(bytes) => {
            let held = bytes.clone();
            let answer = next.run(Request::from_parts(head, Body::from(bytes)));
            let answer = answer.await;
            drop(held);
            answer
        }
        Err(status) => status.into_http(),
    }
}

async fn collect(body: Body, room: &Room) -> Result<Bytes, Status> {
    let read = body::read(room, body, MAXIMUM_BYTES + HEAD_BYTES, TIME).await;
    let bytes = read.map_err(|unread| match unread {
        Unread::Broken { reason } => Status::cancelled(format!("the message broke off: {reason}")),
        Unread::Late { seconds } => {
            Status::deadline_exceeded(format!("the message did not arrive within {seconds} s"))
        }
        Unread::TooLarge { .. } => Status::invalid_argument(format!(
            "the message is larger than the limit of {MAXIMUM_BYTES} bytes"
        )),
        Unread::NoRoom { .. } => {
            Status::resource_exhausted("the calls that wait here take all their memory; try again")
        }
    })?;
    let message = bytes.get(HEAD_BYTES..).unwrap_or_default();
    match parts(message) {
        Some(count) if count > MAXIMUM_PARTS => Err(Status::invalid_argument(format!(
            "the message has {count} tensors, parameters and other parts, the limit is {MAXIMUM_PARTS}"
        ))),
        // What can't be read is said by who reads it.
        _ => Ok(bytes),
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
        let room = Room::of_bytes(1 << 10).weighing(WEIGHT);
        let held = collect(framed(&with_inputs(3)), &room).await.unwrap();
        assert!(held.len() > HEAD_BYTES);
        let status = collect(framed(&with_inputs(3)), &room).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        drop(held);
        assert!(collect(framed(&with_inputs(3)), &room).await.is_ok());
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
