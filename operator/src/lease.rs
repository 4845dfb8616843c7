//! Leader election over one Lease.
//!
//! Expiry is judged by this process's own monotonic clock: a lease is free when it did not change
//! for its duration as seen from here, counted from the answer that showed it. The leader's term ends at its renew deadline, counted from
//! the start of the last renewal that succeeded; then the process exits, even where the API server
//! can't be reached, and nothing is begun after it.
//!
//! Receivers refuse what comes from a lower epoch than they have seen. A Lease that was deleted has
//! taken its count with it, so a new one starts above every count that can have been reached: at the
//! number of seconds since [`COUNTED_FROM`]. Its maker does not begin before a full lease has passed:
//! the leader of the lost Lease may have renewed a moment before it went. Nor does who finds a Lease whose
//! maker went away before that. The first installation begins at once: there is no signing key, which a
//! leader makes before anything else, and no Deployment of the operator's in any namespace. Both can be
//! gone where somebody has led: who deletes the Lease, the key and every Deployment within the renew
//! deadline, under a leader, may have two leaders until that deadline. The older one signs with a key that
//! the newer one's pods do not know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use graftwork_api::labels;
use graftwork_operator_core::settings::LeaderElection;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use tokio_util::sync::CancellationToken;

use crate::api::{self, ApiError};
use crate::metrics::Metrics;
use crate::{clock, keys};

/// Name of the Lease in the operator's namespace.
pub const LEASE: &str = "graftwork-operator";

/// Annotation of a Lease whose maker has not begun: a full lease has to pass, whoever holds it by then.
const NOT_BEGUN: &str = "graftwork.dev/not-begun";

/// Epochs of new Leases are counted in seconds from 2026-01-01T00:00:00Z: `leaseTransitions` has 32
/// bits, which last until 2094.
pub const COUNTED_FROM: i64 = 1_767_225_600;

/// The term of a leader: shared by everything that writes.
#[derive(Debug)]
pub struct Term {
    start: Instant,
    /// Milliseconds after `start` at which the term ends; 0: there is none.
    ends: AtomicU64,
    epoch: AtomicU64,
}

impl Term {
    /// No term yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: clock::monotonic(),
            ends: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
        })
    }

    /// A term that never ends, for processes that write nothing.
    pub fn forever() -> Arc<Self> {
        let term = Self::new();
        term.ends.store(u64::MAX, Ordering::Release);
        term
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn extend(&self, from: Instant, by: Duration) {
        let end = from.saturating_duration_since(self.start) + by;
        let end = u64::try_from(end.as_millis()).unwrap_or(u64::MAX);
        self.ends.store(end, Ordering::Release);
    }

    fn end(&self) {
        self.ends.store(0, Ordering::Release);
    }

    /// Whether something may be begun now.
    pub fn holds(&self) -> bool {
        self.milliseconds() < self.ends.load(Ordering::Acquire)
    }

    /// Time until the term ends.
    pub fn remaining(&self) -> Duration {
        let ends = self.ends.load(Ordering::Acquire);
        Duration::from_millis(ends.saturating_sub(self.milliseconds()))
    }

    /// Number of the term: the Lease's transitions.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Runs one write within the term.
    ///
    /// # Errors
    /// [`ApiError::NotLeading`] where the term is over, and those of the call.
    pub async fn write<T>(
        &self,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        if !self.holds() {
            return Err(ApiError::NotLeading);
        }
        api::call(request).await
    }
}

/// Times of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// A lease that did not change for this long is free.
    pub lease: Duration,
    /// The leader's term ends when it could not renew for this long.
    pub renew_deadline: Duration,
    /// Between attempts.
    pub retry: Duration,
}

impl From<LeaderElection> for Times {
    fn from(settings: LeaderElection) -> Self {
        let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
        Self {
            lease: seconds(settings.lease_seconds),
            renew_deadline: seconds(settings.renew_deadline_seconds),
            retry: seconds(settings.retry_seconds),
        }
    }
}

/// Who stands for leadership, and where.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The Lease's namespace.
    pub namespace: String,
    /// What the Lease calls its holder.
    pub identity: String,
    /// Those of the Lease.
    pub times: Times,
}

/// A candidate for leadership.
pub struct Elector {
    api: Api<Lease>,
    secrets: Api<Secret>,
    /// Of all namespaces.
    deployments: Api<Deployment>,
    identity: String,
    times: Times,
    term: Arc<Term>,
    metrics: Metrics,
    /// The lease as last seen, and when it last changed.
    seen: Option<(String, Instant)>,
    /// The highest epoch of any lease that was seen.
    highest: i32,
    /// The lease that this process made, by its UID, and when: its term begins a full lease later.
    made: Option<(String, Instant)>,
}

/// Why an attempt did not make this process the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Attempt {
    Leads,
    Waits,
}

impl Elector {
    /// A candidate that has seen nothing yet.
    pub fn new(
        client: kube::Client,
        candidate: Candidate,
        term: Arc<Term>,
        metrics: Metrics,
    ) -> Self {
        let Candidate {
            namespace,
            identity,
            times,
        } = candidate;
        Self {
            api: Api::namespaced(client.clone(), &namespace),
            secrets: Api::namespaced(client.clone(), &namespace),
            deployments: Api::all(client),
            identity,
            times,
            term,
            metrics,
            seen: None,
            highest: 0,
            made: None,
        }
    }

    /// Waits until this process leads, or until `stop`: then it gives back what it holds by then.
    /// Returns whether it leads.
    pub async fn acquire(&mut self, stop: &CancellationToken) -> bool {
        while !stop.is_cancelled() {
            // An attempt is not cut short: its write could be done after the lease was given back.
            match self.attempt().await {
                Ok(Attempt::Leads) if !stop.is_cancelled() => return true,
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the lease can't be had"),
            }
            tokio::select! {
                () = tokio::time::sleep(self.times.retry) => {}
                () = stop.cancelled() => {}
            }
        }
        self.release().await;
        false
    }

    async fn attempt(&mut self) -> Result<Attempt, ApiError> {
        let started = clock::monotonic();
        let Some(lease) = api::call(self.api.get_opt(LEASE)).await? else {
            return self.make(started).await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or(0);
        self.highest = self.highest.max(transitions);
        if let Some((uid, since)) = &self.made
            && lease.metadata.uid.as_ref() == Some(uid)
            && spec.holder_identity.as_deref() == Some(self.identity.as_str())
        {
            let begins = since.elapsed() >= self.times.lease;
            let mut next = self.next(Some(&lease), transitions);
            if !begins {
                next.metadata.annotations = Some(not_begun());
            }
            let renewed = self.replace(&next).await;
            return if begins {
                self.take(renewed, started)
            } else {
                Self::wait(renewed)
            };
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let held = spec
            .holder_identity
            .as_deref()
            .is_some_and(|it| !it.is_empty());
        let marks = lease.metadata.annotations.as_ref();
        let begun = marks.is_none_or(|marks| !marks.contains_key(NOT_BEGUN));
        let changed = self.seen.as_ref().is_none_or(|(seen, _)| *seen != version);
        if changed {
            // From the answer on: what it says may have been written as late as that.
            self.seen = Some((version, clock::monotonic()));
        }
        let waited = self.seen.as_ref().map(|(_, since)| since.elapsed());
        // The holder's own settings count where they are longer: an upgrade may change them.
        let theirs = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.times.lease, Duration::from_secs);
        let duration = theirs.max(self.times.lease);
        if (held || !begun) && waited.is_none_or(|waited| waited < duration) {
            return Ok(Attempt::Waits);
        }
        let next = self.next(Some(&lease), self.highest.saturating_add(1));
        let answer = self.replace(&next).await;
        self.take(answer, started)
    }

    /// Makes the lease where there is none.
    async fn make(&mut self, started: Instant) -> Result<Attempt, ApiError> {
        let seconds = clock::wall().as_second().saturating_sub(COUNTED_FROM);
        let epoch = i32::try_from(seconds)
            .unwrap_or(i32::MAX)
            .max(self.highest.saturating_add(1));
        let first = self.seen.is_none() && !self.may_have_been_led().await;
        let mut lease = self.next(None, epoch);
        if !first {
            lease.metadata.annotations = Some(not_begun());
        }
        let made = self
            .written(
                "create",
                api::call(self.api.create(&PostParams::default(), &lease)),
            )
            .await;
        if first {
            return self.take(made, started);
        }
        if let Ok(lease) = &made {
            tracing::info!(epoch, "made the lease: begins when a full one has passed");
            let uid = lease.metadata.uid.clone().unwrap_or_default();
            // From the answer on: the lost Lease may have been renewed while the request was under way.
            self.made = Some((uid, clock::monotonic()));
            self.highest = epoch;
        }
        Self::wait(made)
    }

    /// Whether there are traces of a leader: its key, or a Deployment, which every store and endpoint has.
    /// What can't be looked at may be there.
    async fn may_have_been_led(&self) -> bool {
        if keys::may_exist(&self.secrets).await {
            return true;
        }
        let ours = format!("{}={}", labels::MANAGED_BY, labels::OPERATOR);
        let one = ListParams::default().labels(&ours).limit(1);
        let found = api::call(self.deployments.list_metadata(&one)).await;
        !found.is_ok_and(|found| found.items.is_empty())
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, ApiError> {
        let parameters = PostParams::default();
        let call = self.api.replace(LEASE, &parameters, lease);
        self.written("update", api::call(call)).await
    }

    /// Counts a write.
    async fn written<T>(
        &self,
        verb: &str,
        write: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let answer = write.await;
        self.metrics.wrote("Lease", verb, answer.as_ref().err());
        answer
    }

    fn wait(answer: Result<Lease, ApiError>) -> Result<Attempt, ApiError> {
        match answer {
            Err(error) if error.class() != api::Class::Conflict => Err(error),
            _ => Ok(Attempt::Waits),
        }
    }

    fn take(
        &mut self,
        answer: Result<Lease, ApiError>,
        started: Instant,
    ) -> Result<Attempt, ApiError> {
        match answer {
            Ok(lease) => {
                let transitions = lease.spec.and_then(|spec| spec.lease_transitions);
                let epoch = transitions.and_then(|it| u64::try_from(it).ok());
                self.term.epoch.store(epoch.unwrap_or(1), Ordering::Release);
                self.term.extend(started, self.times.renew_deadline);
                Ok(Attempt::Leads)
            }
            Err(error) if error.class() == api::Class::Conflict => Ok(Attempt::Waits),
            Err(error) => Err(error),
        }
    }

    fn next(&self, old: Option<&Lease>, transitions: i32) -> Lease {
        let now = MicroTime(clock::wall());
        let acquired = old
            .and_then(|lease| lease.spec.clone())
            .filter(|spec| spec.holder_identity.as_deref() == Some(self.identity.as_str()))
            .and_then(|spec| spec.acquire_time);
        Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                // This lease and no later one of its name: an update must not bring it back.
                uid: old.and_then(|lease| lease.metadata.uid.clone()),
                resource_version: old.and_then(|lease| lease.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(self.times.lease.as_secs()).ok(),
                acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Renews until the term is lost or until `stop`; gives the lease back in the latter case, at once
    /// where no renewal is under way. Returns whether it was asked to stop.
    pub async fn keep(&mut self, stop: &CancellationToken) -> bool {
        let transitions = i32::try_from(self.term.epoch()).unwrap_or(i32::MAX);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.release().await;
                    return true;
                }
                () = tokio::time::sleep(self.times.retry) => {}
            }
            if !self.term.holds() {
                return false;
            }
            let started = clock::monotonic();
            let renewal = tokio::time::timeout(self.term.remaining(), self.renew(transitions));
            match renewal.await.unwrap_or(Err(ApiError::Deadline)) {
                Ok(true) => self.term.extend(started, self.times.renew_deadline),
                Ok(false) => {
                    // At once, and not at the deadline: another leader may begin any moment.
                    self.term.end();
                    tracing::error!("the lease is gone, or somebody else holds it");
                    return false;
                }
                Err(error) => tracing::warn!(%error, "the lease could not be renewed"),
            }
        }
    }

    /// Whether the lease is still this process's.
    async fn renew(&self, transitions: i32) -> Result<bool, ApiError> {
        let Some(lease) = api::call(self.api.get_opt(LEASE)).await? else {
            return Ok(false);
        };
        let holder = lease
            .spec
            .as_ref()
            .and_then(|it| it.holder_identity.as_deref());
        if holder != Some(self.identity.as_str()) {
            return Ok(false);
        }
        let next = self.next(Some(&lease), transitions);
        match self.replace(&next).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            // A conflict is looked at again: the holder then says whose lease it is.
            Err(error) => Err(error),
        }
    }

    /// Gives the lease back where it is this process's; else the next leader waits for a full one. One
    /// failure is not the end of it: an earlier write may have come in between.
    async fn release(&self) {
        self.term.end();
        let Err(error) = self.give_back().await else {
            return;
        };
        tracing::warn!(%error, "the lease could not be given back: tries once more");
        tokio::time::sleep(self.times.retry).await;
        if let Err(error) = self.give_back().await {
            tracing::warn!(%error, "the lease could not be given back");
        }
    }

    async fn give_back(&self) -> Result<(), ApiError> {
        let Some(mut lease) = api::call(self.api.get_opt(LEASE)).await? else {
            return Ok(());
        };
        let Some(spec) = &mut lease.spec else {
            return Ok(());
        };
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.renew_time = Some(MicroTime(clock::wall()));
        self.replace(&lease).await.map(|_| ())
    }
}

fn not_begun() -> BTreeMap<String, String> {
    [(NOT_BEGUN.to_owned(), "true".to_owned())].into()
}

/// Ends the process when the term is over. It runs on a thread of its own, so that a busy runtime
/// does not delay it.
#[expect(clippy::disallowed_methods, reason = "a thread that only waits")]
pub fn exit_at_the_end_of(term: Arc<Term>, stopping: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(50));
            if stopping.load(Ordering::Acquire) {
                return;
            }
            if !term.holds() {
                tracing::error!("the lease was not renewed in time: this process ends");
                std::process::exit(1);
            }
        }
    });
}
