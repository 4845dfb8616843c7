//! What a server sends, read as a file is: a piece at a time, and never more than one held.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::problem::Problem;

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
