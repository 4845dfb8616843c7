//! Streams an answer from an engine to the client, as fast as the client reads.
//!
//! Of server-sent events only whole ones go on, so that an engine which dies in the middle of one leaves
//! a stream that still parses: the rest is dropped and an error event takes its place.

use std::io;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::stream;
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::failure::Failure;
use crate::state::Account;

/// An event longer than this goes on in parts.
const LONGEST_EVENT_BYTES: usize = 1 << 20;

/// What comes from the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Server-sent events that end with `data: [DONE]`.
    Events,
    /// Anything else.
    Raw,
}

/// The body for the client, of an answer with `status`: `first` was read already, the rest comes from `upstream`. The request's
/// account is closed when it ends, and dropped (cancelled) when the client leaves.
pub fn relay(
    kind: Kind,
    status: StatusCode,
    first: Bytes,
    upstream: Incoming,
    account: Account,
) -> Body {
    let timeout = account.shared().limits.answer_timeout;
    let relay = Relay {
        kind,
        status,
        first: Some(first),
        upstream,
        account,
        timeout,
        cutter: Cutter::default(),
        over: false,
    };
    Body::from_stream(stream::unfold(relay, async |mut relay| {
        let item = relay.next().await?;
        Some((item, relay))
    }))
}

struct Relay {
    kind: Kind,
    status: StatusCode,
    first: Option<Bytes>,
    upstream: Incoming,
    account: Account,
    timeout: Duration,
    cutter: Cutter,
    over: bool,
}

impl Relay {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while !self.over {
            let data = if let Some(first) = self.first.take() {
                Ok(Some(first))
            } else {
                let last_call = self.account.shared().last_call.clone();
                tokio::select! {
                    data = next_data(&mut self.upstream, self.timeout) => data,
                    // This process ends soon: better an error event than a cut.
                    () = last_call.cancelled() => return Some(self.end_broken()),
                }
            };
            let out = match (data, self.kind) {
                (Ok(Some(data)), Kind::Raw) => data,
                (Ok(Some(data)), Kind::Events) => self.cutter.push(data),
                (Ok(None), _) => return self.end(),
                (Err(broken), _) => {
                    let reason = broken.to_string();
                    if let Some(place) = &self.account.place {
                        self.account.shared().note_failure(place.engine(), &reason);
                    }
                    return Some(self.end_broken());
                }
            };
            if !out.is_empty() {
                return Some(Ok(out));
            }
        }
        None
    }

    fn end(&mut self) -> Option<io::Result<Bytes>> {
        self.over = true;
        if self.kind == Kind::Raw {
            self.account.end(self.status);
            return None;
        }
        let rest = self.cutter.finish();
        match self.cutter.last {
            Last::Done => self.account.end(self.status),
            // The engine has said so itself.
            Last::Error => self.account.end_truncated(),
            Last::Other => return Some(self.end_broken()),
        }
        (!rest.is_empty()).then_some(Ok(rest))
    }

    fn end_broken(&mut self) -> io::Result<Bytes> {
        self.over = true;
        self.account.end_truncated();
        match self.kind {
            Kind::Events => Ok(Failure::Truncated.to_event()),
            // Without the last chunk the client sees that something is missing.
            Kind::Raw => Err(io::Error::other(Failure::Truncated)),
        }
    }
}

/// An engine's body that ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The connection.
    #[error("the connection broke: {0}")]
    Connection(String),
    /// Time.
    #[error("nothing came for {0} s")]
    Silent(u64),
}

/// The next non-empty piece of a body, `None` at its end.
///
/// # Errors
/// Where the connection breaks or nothing comes within `timeout`.
pub async fn next_data(body: &mut Incoming, timeout: Duration) -> Result<Option<Bytes>, Broken> {
    loop {
        match tokio::time::timeout(timeout, body.frame()).await {
            Err(_) => return Err(Broken::Silent(timeout.as_secs())),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(Broken::Connection(error.to_string())),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Cuts a byte stream after whole events and remembers what the last one was.
#[derive(Debug, Default)]
struct Cutter {
    held: BytesMut,
    last: Last,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Last {
    #[default]
    Other,
    Done,
    Error,
}

impl Cutter {
    /// Takes a piece, gives the whole events that are there now.
    fn push(&mut self, data: Bytes) -> Bytes {
        let out = if self.held.is_empty() && ends_event(&data) {
            data
        } else {
            self.held.extend_from_slice(&data);
            let whole = match last_event_end(&self.held) {
                0 if self.held.len() > LONGEST_EVENT_BYTES => self.held.len(),
                end => end,
            };
            self.held.split_to(whole).freeze()
        };
        self.look(&out);
        out
    }

    /// What is held at the end: the last event where its blank line is missing.
    fn finish(&mut self) -> Bytes {
        let rest = self.held.split().freeze();
        self.look(&rest);
        rest
    }

    fn look(&mut self, events: &[u8]) {
        let events = events.trim_ascii_end();
        let Some(line) = events
            .rsplit(|byte| *byte == b'\n')
            .next()
            .filter(|line| !line.is_empty())
        else {
            return;
        };
        self.last = match line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) {
            Some(b"[DONE]") => Last::Done,
            Some(data) if data.starts_with(br#"{"error":"#) => Last::Error,
            _ => Last::Other,
        };
    }
}

fn ends_event(data: &[u8]) -> bool {
    data.ends_with(b"\n\n") || data.ends_with(b"\r\n\r\n")
}

/// The position after the last blank line.
fn last_event_end(data: &[u8]) -> usize {
    (1..=data.len())
        .rev()
        .find(|end| data.get(..*end).is_some_and(ends_event))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(pieces: &[&[u8]]) -> (Vec<Bytes>, Bytes, Last) {
        let mut cutter = Cutter::default();
        let out = pieces
            .iter()
            .map(|piece| cutter.push(Bytes::copy_from_slice(piece)))
            .collect();
        let rest = cutter.finish();
        (out, rest, cutter.last)
    }

    #[test]
    fn only_whole_events_go_on() {
        let (out, rest, last) = cut(&[b"data: 1\n\ndata: 2", b"\n", b"\ndata: [DO", b"NE]\n\n"]);
        assert_eq!(out, ["data: 1\n\n", "", "data: 2\n\n", "data: [DONE]\n\n"]);
        assert!(rest.is_empty());
        assert_eq!(last, Last::Done);
    }

    #[test]
    fn the_last_event_is_recognised() {
        assert_eq!(cut(&[b"data: [DONE]\r\n\r\n"]).2, Last::Done);
        assert_eq!(cut(&[b"data: [DONE]"]).2, Last::Done);
        assert_eq!(cut(&[b"data: [DONE]\n\n", b"data: x\n\n"]).2, Last::Other);
        assert_eq!(cut(&[b"data: {\"error\": {}}\n\n"]).2, Last::Error);
        assert_eq!(cut(&[b"data: {\"text\": \"[DONE]\"}\n\n"]).2, Last::Other);
        assert_eq!(cut(&[]).2, Last::Other);
    }

    #[test]
    fn an_endless_event_is_not_held_for_ever() {
        let piece = vec![b'x'; LONGEST_EVENT_BYTES / 2 + 1];
        let (out, _, _) = cut(&[&piece, &piece]);
        assert_eq!(
            out.iter().map(Bytes::len).collect::<Vec<_>>(),
            [0, piece.len() * 2]
        );
    }

    proptest! {
        #[test]
        fn however_it_is_cut_nothing_is_lost(
            text in "(data: [a-z\n]{0,9}\n\n){0,6}[a-z\n]{0,5}",
            cuts in prop::collection::vec(0usize..60, 0..8),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> =
                cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            let (out, rest, _) = cut(&pieces);
            prop_assert!(out.iter().all(|out| out.is_empty() || ends_event(out)));
            let whole = [out.concat(), rest.to_vec()].concat();
            prop_assert_eq!(whole, text.into_bytes());
        }
    }
}
