//! One attempt: an engine is asked, and what it says is judged.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use graftwork_contract::endpoint::CODE_VERSION_NOT_HERE;
use graftwork_listen::clock;
use http::uri::Scheme;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header, response};
use http_body_util::Full;
use hyper::body::Incoming;

use super::Pinned;
use crate::client;
use crate::engine::{Engine, InFlight};
use crate::relay::{Broken, Kind, next_data};
use crate::state::Shared;

/// The reason of a setback before the engine saw anything.
pub(super) const CONNECT: &str = "connect";

/// Why an attempt gave nothing that the client should get, while another engine may.
pub(super) enum Setback {
    /// The connection broke before or within the answer.
    Broken {
        reason: &'static str,
        message: String,
    },
    /// 502 or 503, for which another engine may be better.
    Unavailable(Response<Bytes>),
    /// 429.
    Busy(Response<Bytes>),
    /// The engine does not have the version (yet, or any more).
    NotHere,
    /// Connected and silent: the time is spent, nothing more is tried.
    Silent,
}

pub(super) enum Answer {
    Whole(Response<Bytes>),
    /// The head, what was read of the body, and the rest.
    Begun(Kind, response::Parts, Bytes, Incoming),
}

/// An attempt that came to its end.
pub(super) struct Attempted {
    pub(super) engine: Arc<Engine>,
    pub(super) place: InFlight,
    pub(super) first_byte: Option<Instant>,
    pub(super) result: Result<Answer, Setback>,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Whole(response) => response.status(),
            Self::Begun(_, head, ..) => head.status,
        }
    }
}

impl Pinned {
    pub(super) async fn attempt(&self, shared: &Shared, engine: Arc<Engine>) -> Attempted {
        let place = engine.begin();
        let mut first_byte = None;
        let result = self.ask(shared, &engine, &mut first_byte).await;
        Attempted {
            engine,
            place,
            first_byte,
            result,
        }
    }

    async fn ask(
        &self,
        shared: &Shared,
        engine: &Engine,
        first_byte: &mut Option<Instant>,
    ) -> Result<Answer, Setback> {
        let failed = |reason: &'static str, message: String| {
            shared.note_failure(engine, &message);
            Setback::Broken { reason, message }
        };
        // An engine that hangs is no place for others, who would wait as long.
        let silent = |seconds: u64| {
            shared.note_failure(engine, &Broken::Silent(seconds).to_string());
            Setback::Silent
        };
        let timeout = shared.limits.answer_timeout;
        let response = match tokio::time::timeout(timeout, client::send(self.onward(engine))).await
        {
            Err(_) => return Err(silent(timeout.as_secs())),
            Ok(Err(error)) => {
                let reason = if error.is_connect() {
                    CONNECT
                } else {
                    "closed"
                };
                return Err(failed(reason, with_sources(&error)));
            }
            Ok(Ok(response)) => response,
        };
        let (head, mut upstream) = response.into_parts();
        if !head.status.is_server_error() {
            engine.note_answer();
        }
        if head.status.is_success() {
            engine.note_revision(&head.headers);
        }
        let broken = |broken: Broken| match broken {
            Broken::Silent(seconds) => silent(seconds),
            Broken::Connection(message) => failed("body", message),
        };
        let first = next_data(&mut upstream, timeout).await.map_err(broken)?;
        *first_byte = Some(clock::now());
        if head.status.is_success() && is_event_stream(&head.headers) {
            let first = first.ok_or_else(|| failed("body", "the stream is empty".to_owned()))?;
            return Ok(Answer::Begun(Kind::Events, head, first, upstream));
        }
        let mut held = BytesMut::from(first.unwrap_or_default());
        while let Some(data) = next_data(&mut upstream, timeout).await.map_err(broken)? {
            held.extend_from_slice(&data);
            if held.len() > shared.limits.answer_buffer_bytes {
                return Ok(Answer::Begun(Kind::Raw, head, held.freeze(), upstream));
            }
        }
        judge(engine, Response::from_parts(head, held.freeze()))
    }

    fn onward(&self, engine: &Engine) -> Request<Full<Bytes>> {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(engine.authority().clone());
        uri.path_and_query = Some(self.path.clone());
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = Method::POST;
        // All three parts are there and valid by their types.
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

impl Setback {
    pub(super) fn is_an_answer(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Busy(_))
    }

    /// Whether neither had room, and this one has none for longer: the client is told when the first has some.
    pub(super) fn is_longer_than(&self, last: Option<&Self>) -> bool {
        let seconds = |response: &Response<Bytes>| -> Option<u32> {
            let value = response.headers().get(header::RETRY_AFTER)?;
            value.to_str().ok()?.parse().ok()
        };
        let (Self::Busy(this), Some(Self::Busy(last))) = (self, last) else {
            return false;
        };
        seconds(last)
            .zip(seconds(this))
            .is_some_and(|(last, this)| this > last)
    }

    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Broken { reason, .. } => reason,
            Self::Unavailable(_) => "unavailable",
            Self::Busy(_) => "busy",
            Self::NotHere => "version_not_here",
            Self::Silent => "silent",
        }
    }
}

fn judge(engine: &Engine, response: Response<Bytes>) -> Result<Answer, Setback> {
    match response.status() {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => {
            Err(Setback::Unavailable(response))
        }
        StatusCode::TOO_MANY_REQUESTS => {
            engine.note_busy(clock::now());
            Err(Setback::Busy(response))
        }
        StatusCode::NOT_FOUND if says_version_not_here(response.body()) => Err(Setback::NotHere),
        _ => Ok(Answer::Whole(response)),
    }
}

fn says_version_not_here(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|body| {
        body.pointer("/error/code")
            .is_some_and(|code| code == CODE_VERSION_NOT_HERE)
    })
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(seconds: &'static str) -> Setback {
        let response = Response::builder().header(header::RETRY_AFTER, seconds);
        Setback::Busy(response.body(Bytes::new()).unwrap())
    }

    #[test]
    fn of_engines_without_room_the_one_that_has_some_first_is_passed_on() {
        assert!(busy("9").is_longer_than(Some(&busy("3"))));
        assert!(!busy("3").is_longer_than(Some(&busy("9"))));
        assert!(!busy("3").is_longer_than(Some(&busy("3"))));
        assert!(!busy("9").is_longer_than(None));
        assert!(!busy("9").is_longer_than(Some(&Setback::Silent)));
    }
}
