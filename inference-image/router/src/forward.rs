//! The way of one request: read, choose the version, choose the engine, forward, retry.
//!
//! Retries happen only before the first byte of the answer went out, and only on another engine. For this
//! an answer that is no stream is held back until it is whole, and a stream until its first event.
//!
//! Where hedging is on, a slow attempt gets a second one beside it; the first answer counts.
//!
//! Where no engine gave an answer, a fallback of the table gets the request, once: the failure counts for the
//! version that was asked for, and the answer's header names the one that ran. The stand-in of a model that has no
//! version yet gets its requests at once.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use bytes::{Bytes, BytesMut};
use graftwork_contract::endpoint::{
    CODE_VERSION_NOT_HERE, HEADER_ADAPTER, HEADER_ENGINE, HEADER_REQUEST_ID,
};
use graftwork_listen::clock;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use crate::beginning::{Beginning, Turn, beginning};
use crate::cache::{Key, is_deterministic};
use crate::choice::{Side, choose};
use crate::engine::{Engine, InFlight, Wanted, pick};
use crate::failure::Failure;
use crate::places::conversation;
use crate::relay::{Broken, Kind, next_data, relay};
use crate::request::{Probe, caller, onward_headers, request_id, strip_hop_by_hop, wanted_side};
use crate::state::{Account, Shared};
use crate::table::{Table, Version};

/// So many other engines are tried.
pub const RETRIES: usize = 2;

/// The reason of a setback before the engine saw anything.
const CONNECT: &str = "connect";

/// Answers a completion, or whatever else an engine answers for a model.
pub async fn forward(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let arrived = clock::now();
    let request_id = request_id(request.headers());
    let answer = match Pinned::read(&shared, request, &request_id).await {
        Ok(pinned) => pinned.answer(shared, arrived).await,
        Err(failure) => {
            shared.metrics.refused(failure.status().as_str());
            axum::response::IntoResponse::into_response(failure)
        }
    };
    let mut answer = answer;
    answer.headers_mut().insert(HEADER_REQUEST_ID, request_id);
    answer
}

/// A request that is read whole and pinned to a version.
struct Pinned {
    path: PathAndQuery,
    headers: HeaderMap,
    body: Bytes,
    /// The body's share of the memory that all bodies may take.
    _room: OwnedSemaphorePermit,
    version: Arc<Version>,
    is_candidate: bool,
    /// What answers where the version is unavailable.
    fallback: Option<Arc<Version>>,
    /// Whether there is but one answer, and it may be kept.
    is_kept: bool,
    caller: Option<String>,
    /// How the text begins, where its caller does not keep it on one engine.
    beginning: Option<Beginning>,
}

/// What the table gives a request.
struct Chosen {
    version: Arc<Version>,
    is_candidate: bool,
    /// What answers where the version is unavailable.
    fallback: Option<Arc<Version>>,
}

impl Chosen {
    fn read(
        shared: &Shared,
        table: &Table,
        name: &str,
        side: Option<Side>,
        caller: Option<&str>,
    ) -> Result<Self, Failure> {
        let model = || name.to_owned();
        let Some(found) = table.models.get(name) else {
            let Some(version) = table.stand_in(name) else {
                return Err(Failure::UnknownModel { model: model() });
            };
            // Who asked for the candidate by name wants nothing else.
            if side == Some(Side::Candidate) {
                return Err(Failure::NoCandidate { model: model() });
            }
            shared.metrics.stand_in(name);
            return Ok(Self {
                version: version.clone(),
                is_candidate: false,
                fallback: None,
            });
        };
        let draw = || rand::random_range(0..100);
        let Ok(mut version) = choose(found, side, caller, clock::now(), draw) else {
            return Err(Failure::NoCandidate { model: model() });
        };
        let mut is_candidate = !Arc::ptr_eq(&version, &found.stable);
        // Traffic never points at what is not there: without an engine that has the candidate its share
        // stays on stable. Who asked for it by name is told so.
        if is_candidate && side != Some(Side::Candidate) && !table.anyone_has(&version) {
            version = found.stable.clone();
            is_candidate = false;
        }
        let fallback = match side {
            Some(Side::Candidate) => None,
            _ => table.fallback(found, &version),
        };
        Ok(Self {
            version,
            is_candidate,
            fallback,
        })
    }
}

/// How the search for an engine ended.
enum Sent {
    /// The client gets this.
    Answered(Response<Body>),
    /// No engine gave an answer; without a fallback the client gets this.
    Unavailable(Response<Body>),
}

/// Why an attempt gave nothing that the client should get, while another engine may.
enum Setback {
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

enum Answer {
    Whole(Response<Bytes>),
    /// The head, what was read of the body, and the rest.
    Begun(Kind, response::Parts, Bytes, Incoming),
}

/// An attempt that came to its end.
struct Attempted {
    engine: Arc<Engine>,
    place: InFlight,
    first_byte: Option<Instant>,
    result: Result<Answer, Setback>,
}

impl Answer {
    fn status(&self) -> StatusCode {
        match self {
            Self::Whole(response) => response.status(),
            Self::Begun(_, head, ..) => head.status,
        }
    }
}

impl Pinned {
    async fn read(
        shared: &Shared,
        request: Request<Body>,
        request_id: &HeaderValue,
    ) -> Result<Self, Failure> {
        let (head, body) = request.into_parts();
        let mut room = room(shared, &head.headers)?;
        let body = read_body(shared, body).await?;
        // Without a length the most was reserved.
        Shared::shrink(&mut room, body.len());
        let probe = Probe::read(&body).map_err(|unreadable| Failure::Json {
            reason: unreadable.reason,
            parameter: unreadable.parameter,
        })?;
        let side = wanted_side(&head.headers).map_err(|value| Failure::Side { value })?;
        let caller = caller(&head.headers, &probe);

        let table = shared.table.load();
        let Chosen {
            version,
            is_candidate,
            fallback,
        } = Chosen::read(shared, &table, &probe.model, side, caller)?;
        let beginning = match (&*version.digest, caller) {
            ("", Some(_)) => None,
            _ => beginning(&body),
        };
        Ok(Self {
            path: head
                .uri
                .path_and_query()
                .cloned()
                .unwrap_or(PathAndQuery::from_static("/")),
            headers: onward_headers(&head.headers, &version.header, request_id),
            caller: caller.map(str::to_owned),
            beginning,
            is_kept: shared.answers.is_on() && is_deterministic(&body),
            body,
            _room: room,
            version,
            is_candidate,
            fallback,
        })
    }

    /// All that the answer depends on where `revision` computes it.
    fn key(&self, revision: &HeaderValue) -> Key {
        Key::of(&[
            revision.as_bytes(),
            self.version.header.as_bytes(),
            self.version.digest.as_bytes(),
            self.path.as_str().as_bytes(),
            self.caller.as_deref().unwrap_or_default().as_bytes(),
            &self.body,
        ])
    }

    /// What was answered to this request before.
    fn kept(&self, shared: &Shared) -> Option<Response<Bytes>> {
        if !self.is_kept {
            return None;
        }
        shared.answers.get(self.key(&shared.agreed_revision()?))
    }

    /// Keeps the answer for the next such request.
    fn keep(&self, shared: &Shared, answer: &Answer) {
        if let (true, Answer::Whole(response)) = (self.is_kept, answer)
            && let Some(revision) = response.headers().get(HEADER_ENGINE)
            && response.headers().get(HEADER_ADAPTER) == Some(&self.version.header)
        {
            shared.answers.put(self.key(revision), response);
        }
    }

    /// Asks for the version, and for its fallback where it is unavailable.
    async fn answer(mut self, shared: Arc<Shared>, arrived: Instant) -> Response<Body> {
        let mut began = arrived;
        loop {
            let mut account = Account::open(
                shared.clone(),
                self.version.clone(),
                self.caller.as_deref(),
                began,
            );
            account.judges = self.generates();
            if let Some(kept) = self.kept(&shared) {
                // Its times say nothing about the version.
                account.judges = false;
                account.end(kept.status());
                shared.metrics.cache_hit();
                return kept.map(Body::from);
            }
            let answer = match self.send(account).await {
                Sent::Answered(answer) => return answer,
                Sent::Unavailable(answer) => answer,
            };
            let Some(fallback) = self.fallback.take() else {
                return answer;
            };
            shared.metrics.fallback(&self.version);
            tracing::info!(version = ?self.version.header, to = ?fallback.header, "fallback");
            self.headers.insert(HEADER_ADAPTER, fallback.header.clone());
            self.version = fallback;
            self.is_candidate = false;
            // What the other version cost says nothing about this one.
            began = clock::now();
        }
    }

    /// Whether the model runs for it: how long the tokenizer takes says nothing about a version.
    fn generates(&self) -> bool {
        self.path.path().starts_with("/v1/")
    }

    /// What its conversation with an adapter is known by. Those with the base go by their beginning alone.
    fn conversation(&self) -> Option<u64> {
        let is_one = |beginning: &Beginning| beginning.turn != Turn::Prompt;
        let beginning = self.beginning.filter(is_one)?;
        let is_cached = self.generates() && !self.version.digest.is_empty();
        is_cached.then(|| conversation(&self.version.digest, beginning.hash))
    }

    /// Where the conversation ran that it goes on with.
    fn before(&self, shared: &Shared) -> Option<Arc<Engine>> {
        self.beginning
            .filter(|beginning| beginning.turn == Turn::Later)?;
        shared.places.find(self.conversation()?)
    }

    async fn send(&self, mut account: Account) -> Sent {
        let shared = account.shared().clone();
        let mut tried = Vec::new();
        let mut outdone: Vec<Arc<Engine>> = Vec::new();
        let mut last = None;
        while tried.len() <= RETRIES {
            let Some(engine) = self.next(&shared, &tried) else {
                break;
            };
            if let Some(setback) = &last {
                if matches!(setback, Setback::Busy(_)) && !is_free(&engine) {
                    break;
                }
                shared.metrics.retry(setback.reason());
                tracing::info!(
                    reason = setback.reason(),
                    version = ?self.version.header,
                    engine = %engine.authority(),
                    "retry on another engine"
                );
            }
            let ended = self.attempts(&shared, engine, &mut tried).await;
            for attempted in ended {
                let setback = match attempted.result {
                    Ok(answer) => {
                        if answer.status().is_success() {
                            if let Some(conversation) = self.conversation() {
                                shared.places.note(conversation, &attempted.engine);
                            }
                            for engine in &outdone {
                                shared.note_outdone(engine);
                            }
                        }
                        self.keep(&shared, &answer);
                        account.begin(attempted.place, attempted.first_byte);
                        return Sent::Answered(self.deliver(answer, account));
                    }
                    Err(setback) => setback,
                };
                if matches!(setback, Setback::Unavailable(_)) {
                    outdone.push(attempted.engine);
                }
                // What an engine said tells the client more than that another one is gone; and after a silent one
                // nothing counts any more.
                let is_over = matches!(last, Some(Setback::Silent));
                if !is_over
                    && !setback.is_longer_than(last.as_ref())
                    && (matches!(setback, Setback::Silent)
                        || !last.as_ref().is_some_and(Setback::is_an_answer)
                        || setback.is_an_answer())
                {
                    last = Some(setback);
                }
            }
            if matches!(last, Some(Setback::Silent)) {
                break;
            }
        }
        // A busy engine is there, and after a silent one there is no time left.
        let is_over = matches!(last, Some(Setback::Busy(_) | Setback::Silent));
        let answer = self.give_up(last, shared.limits.answer_timeout);
        account.end(answer.status());
        if is_over {
            Sent::Answered(answer)
        } else {
            Sent::Unavailable(answer)
        }
    }

    /// The next engine, of the newest list: the engine of a table that was replaced may be gone.
    fn next(&self, shared: &Shared, tried: &[Arc<Engine>]) -> Option<Arc<Engine>> {
        let before = self.before(shared);
        pick(
            &shared.table.load(),
            &shared.found.load(),
            Wanted {
                version: &self.version,
                is_candidate: self.is_candidate,
                caller: self.caller.as_deref(),
                beginning: self.beginning.map(|beginning| beginning.hash),
                before: before.as_ref(),
            },
            tried,
        )
    }

    /// One attempt; where hedging is on and it is slow, another one beside it, on an engine that has less to do. Once
    /// one of them has an answer the other is given up. Those that ended, in that order.
    async fn attempts(
        &self,
        shared: &Shared,
        engine: Arc<Engine>,
        tried: &mut Vec<Arc<Engine>>,
    ) -> Vec<Attempted> {
        tried.push(engine.clone());
        let mut first = pin!(self.attempt(shared, engine.clone()));
        let Some(patience) = shared.limits.hedge_after else {
            return vec![first.await];
        };
        shared.hedges.earn();
        if let Ok(ended) = tokio::time::timeout(patience, &mut first).await {
            return vec![ended];
        }
        let has_less = |other: &Arc<Engine>| other.in_flight() < engine.in_flight();
        let other = self.next(shared, tried);
        let other = other.filter(|other| is_free(other) && has_less(other));
        let Some(other) = other.filter(|_| shared.hedges.spend()) else {
            return vec![first.await];
        };
        tried.push(other.clone());
        shared.metrics.hedge();
        let mut second = pin!(self.attempt(shared, other));
        let (ended, is_first) = tokio::select! {
            ended = &mut first => (ended, true),
            ended = &mut second => (ended, false),
        };
        if ended.result.is_ok() {
            return vec![ended];
        }
        let rest = if is_first { second.await } else { first.await };
        vec![ended, rest]
    }

    async fn attempt(&self, shared: &Shared, engine: Arc<Engine>) -> Attempted {
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
        let timeout = shared.limits.answer_timeout;
        let response =
            match tokio::time::timeout(timeout, shared.client.request(self.onward(engine))).await {
                Err(_) => return Err(Setback::Silent),
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
            Broken::Silent(_) => Setback::Silent,
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

    fn deliver(&self, answer: Answer, mut account: Account) -> Response<Body> {
        let (mut head, body) = match answer {
            Answer::Whole(response) => {
                account.end(response.status());
                let (head, body) = response.into_parts();
                (head, Body::from(body))
            }
            Answer::Begun(kind, head, first, upstream) => {
                let body = relay(kind, head.status, first, upstream, account);
                (head, body)
            }
        };
        strip_hop_by_hop(&mut head.headers);
        head.headers.remove(header::CONTENT_LENGTH);
        let said = head.headers.get(HEADER_ADAPTER);
        if head.status.is_success() && said != Some(&self.version.header) {
            tracing::error!(asked = ?self.version.header, ?said, "the engine answered for another version");
        }
        Response::from_parts(head, body)
    }

    fn give_up(&self, last: Option<Setback>, timeout: Duration) -> Response<Body> {
        let failure = match last {
            Some(Setback::Unavailable(response) | Setback::Busy(response)) => {
                let (mut head, body) = response.into_parts();
                strip_hop_by_hop(&mut head.headers);
                head.headers.remove(header::CONTENT_LENGTH);
                return Response::from_parts(head, Body::from(body));
            }
            Some(Setback::Broken { reason, message }) if reason != CONNECT => {
                Failure::Engine { reason: message }
            }
            Some(Setback::Silent) => Failure::Silent {
                seconds: timeout.as_secs(),
            },
            // Nobody was there: an engine that can't be reached did not break over this request.
            Some(Setback::Broken { .. } | Setback::NotHere) | None => Failure::NoEngine {
                version: String::from_utf8_lossy(self.version.header.as_bytes()).into_owned(),
            },
        };
        axum::response::IntoResponse::into_response(failure)
    }
}

impl Setback {
    fn is_an_answer(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Busy(_))
    }

    /// Whether neither had room, and this one has none for longer: the client is told when the first has some.
    fn is_longer_than(&self, last: Option<&Self>) -> bool {
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

    fn reason(&self) -> &'static str {
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

fn is_free(engine: &Engine) -> bool {
    !engine.is_ejected() && !engine.is_busy(clock::now())
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// Memory for the body, before a byte of it is read. Without a length it may become as long as is allowed.
fn room(shared: &Shared, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, Failure> {
    let limit_bytes = shared.limits.body_bytes;
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > limit_bytes) {
        return Err(Failure::TooLarge { limit_bytes });
    }
    shared
        .hold(length.unwrap_or(limit_bytes))
        .ok_or(Failure::Overloaded {
            limit_bytes: shared.limits.held_bytes,
        })
}

async fn read_body(shared: &Shared, body: Body) -> Result<Bytes, Failure> {
    let limit_bytes = shared.limits.body_bytes;
    let timeout = shared.limits.body_timeout;
    match tokio::time::timeout(timeout, Limited::new(body, limit_bytes).collect()).await {
        Err(_) => Err(Failure::BodyTimeout {
            seconds: timeout.as_secs(),
        }),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Failure::TooLarge { limit_bytes }),
        Ok(Err(error)) => Err(Failure::Body {
            reason: error.to_string(),
        }),
    }
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
