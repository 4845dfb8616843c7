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

mod attempt;
mod read;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use bytes::Bytes;
use graftwork_contract::endpoint::{HEADER_ADAPTER, HEADER_ENGINE, HEADER_REQUEST_ID};
use graftwork_listen::clock;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, header};

use crate::beginning::{Beginning, Turn};
use crate::cache::Key;
use crate::engine::{Engine, Wanted, pick};
use crate::failure::Failure;
use crate::places::conversation;
use crate::relay::relay;
use crate::request::{request_id, strip_hop_by_hop};
use crate::state::{Account, Shared};
use crate::table::Version;
use attempt::{Answer, Attempted, CONNECT, Setback};

/// So many other engines are tried.
pub const RETRIES: usize = 2;

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
    /// It keeps its share of the memory that all bodies may take.
    body: Bytes,
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

/// How the search for an engine ended.
enum Sent {
    /// The client gets this.
    Answered(Response<Body>),
    /// No engine gave an answer; without a fallback the client gets this.
    Unavailable(Response<Body>),
}

impl Pinned {
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

fn is_free(engine: &Engine) -> bool {
    !engine.is_ejected() && !engine.is_busy(clock::now())
}
