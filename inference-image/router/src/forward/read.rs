//! Reading a request whole, and what the table gives it.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use graftwork_listen::{body, clock};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request};

use super::Pinned;
use crate::beginning::beginning;
use crate::cache::is_deterministic;
use crate::choice::{Side, choose};
use crate::failure::Failure;
use crate::request::{Probe, caller, onward_headers, wanted_side};
use crate::state::Shared;
use crate::table::{Table, Version};

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

impl Pinned {
    pub(super) async fn read(
        shared: &Shared,
        request: Request<Body>,
        request_id: &HeaderValue,
    ) -> Result<Self, Failure> {
        let (head, body) = request.into_parts();
        let body = read_body(shared, body).await?;
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
        } = Chosen::read(shared, &table, &probe.model, side, caller.as_deref())?;
        let beginning = match (&*version.digest, &caller) {
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
            caller: caller.map(Cow::into_owned),
            beginning,
            is_kept: shared.answers.is_on() && is_deterministic(&body),
            body,
            version,
            is_candidate,
            fallback,
        })
    }
}

async fn read_body(shared: &Shared, body: Body) -> Result<Bytes, Failure> {
    let limits = &shared.limits;
    let read = body::read(&shared.bodies, body, limits.body_bytes, limits.body_timeout);
    Ok(read.await?)
}
