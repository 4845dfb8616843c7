//! What a server sends, read as a file is: a piece at a time, and never more than one held.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::problem::{OfSource as _, Problem};

/// Longest silence in the midst of an answer.
const SILENCE: Duration = Duration::from_secs(120);

/// The pieces of an answer.
pub type Pieces = BoxStream<'static, Result<Bytes, Problem>>;

/// An answer on its way. Its errors wrap a [`crate::failure::Failure`].
pub struct Body {
    runtime: Arc<Runtime>,
    pieces: Pieces,
    piece: Bytes,
    title: String,
    received: u64,
}

impl Body {
    /// The answer that comes in these pieces, named in messages by `title`.
    pub fn new(runtime: Arc<Runtime>, pieces: Pieces, title: String) -> Self {
        Self {
            runtime,
            pieces,
            piece: Bytes::new(),
            title,
            received: 0,
        }
    }

    /// The next piece; none at the end.
    fn advance(&mut self) -> Result<Option<Bytes>, Problem> {
        let pieces = &mut self.pieces;
        let next = self
            .runtime
            .block_on(async { timeout(SILENCE, pieces.next()).await });
        match next {
            Ok(piece) => piece.transpose(),
            Err(_) => Err(Problem::Away(format!(
                "nothing came for {} s",
                SILENCE.as_secs()
            ))),
        }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.advance() {
                Ok(Some(piece)) => {
                    self.received += piece.len() as u64;
                    self.piece = piece;
                }
                Ok(None) => return Ok(0),
                Err(problem) => {
                    let title = format!("{} after {} bytes", self.title, self.received);
                    return Err(io::Error::other(problem.failure(&title)));
                }
            }
        }
        let count = self.piece.len().min(buffer.len());
        let taken = self.piece.split_to(count);
        if let Some(place) = buffer.get_mut(..count) {
            place.copy_from_slice(&taken);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use graftwork_contract::exit::ExitCode;

    use super::*;
    use crate::failure::Failure;
    use crate::streams::{Packing, unpacked};

    fn body(pieces: Vec<Result<Bytes, Problem>>) -> Body {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let pieces = stream::iter(pieces).boxed();
        Body::new(
            Arc::new(runtime),
            pieces,
            "source faq (s3://b/k)".to_owned(),
        )
    }

    #[test]
    fn pieces_of_any_length_are_one_text() {
        let pieces = ["one ", "", "two ", "three"];
        let pieces = pieces.map(|piece| Ok(Bytes::from_static(piece.as_bytes())));
        let mut text = String::new();
        let mut body = body(pieces.to_vec());
        let mut some = [0; 3];
        body.read_exact(&mut some).unwrap();
        body.read_to_string(&mut text).unwrap();
        assert_eq!((&some, text.as_str()), (b"one", " two three"));
    }

    #[test]
    fn what_the_network_could_not_bring_is_said_through_every_decoder() {
        let text = b"some text, and more of it".repeat(1000);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        std::io::Write::write_all(&mut encoder, &text).unwrap();
        let gzip = encoder.finish().unwrap();
        let zstd = zstd::stream::encode_all(&text[..], 1).unwrap();
        for packed in [text.clone(), gzip, zstd] {
            let half = Bytes::copy_from_slice(&packed[..packed.len() / 2]);
            let gone = Problem::Away("the server went away".to_owned());
            let body = body(vec![Ok(half.clone()), Err(gone)]);
            let (mut reader, _) = unpacked(body, Packing::of(&packed)).unwrap();
            let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
            let inner = error.get_ref().unwrap();
            let failure = inner.downcast_ref::<Failure>().unwrap();
            assert_eq!(failure.code, ExitCode::Unavailable);
            let place = format!("source faq (s3://b/k) after {} bytes: ", half.len());
            assert!(failure.message.starts_with(&place), "{failure}");
        }
    }
}
