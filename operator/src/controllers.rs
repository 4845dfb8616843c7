//! The loop of every kind: look, plan, decide or act, say so, and look again.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use graftwork_operator_core::hindered::{self, Hindrance, Judged};
use graftwork_operator_core::plan::{Actions, Call, Decision, Event, Plan};
use graftwork_operator_core::storage;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use kube::ResourceExt as _;
use kube::api::Api;

use crate::api::{self, ApiError, Class};
use crate::apply::reference;
use crate::cache::{Kind, Touch};
use crate::calls::{CallError, Peer, request_key};
use crate::clock;
use crate::context::Context;
use crate::observe;
use crate::status::Compare;
use crate::trail::{self, Freshness};

mod kinds;
mod queue;

pub use kinds::Reconciled;
pub use queue::run_all;

/// Decisions that one look may lead to.
const MOST_DECISIONS: usize = 6;
/// Time before a look after a call that failed.
const AFTER_FAILED_CALL: Duration = Duration::from_secs(2);

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// This version can't read the object.
    #[error("this version of graftwork can't read the object: {0}")]
    Unreadable(String),
    /// A bug.
    #[error("bug: {0}")]
    Bug(String),
}

impl Failure {
    fn category(&self) -> &'static str {
        match self {
            Self::Api(error) => error.category(),
            Self::Unreadable(_) => "unreadable",
            Self::Bug(_) => "bug",
        }
    }
}

/// An object that may be acted on.
#[derive(Debug)]
pub enum Freshest<K> {
    /// This one.
    Object(Box<K>),
    /// None yet: the cache does not have this process's last write.
    Later(Duration),
    /// There is none any more.
    Gone,
}

/// The cached object, unless it is older than what this process last wrote to it: a decision that was
/// taken must not be acted against. A cache that does not catch up is passed by.
///
/// # Errors
/// Those of the API server, where it has to be asked.
pub async fn freshest<K: Reconciled>(
    context: &Context,
    cached: &K,
) -> Result<Freshest<K>, ApiError> {
    let uid = cached.uid().unwrap_or_default();
    let version = cached.resource_version().unwrap_or_default();
    match context.trail.freshness(&uid, &version) {
        Freshness::Current => Ok(Freshest::Object(Box::new(cached.clone()))),
        Freshness::Behind => Ok(Freshest::Later(trail::LOOK_AGAIN)),
        Freshness::Stuck => {
            let (namespace, name) = observe::place(cached);
            tracing::warn!(
                namespace,
                name,
                "the cache is behind: the API server is asked"
            );
            let api: Api<K> = Api::namespaced(context.client.clone(), &namespace);
            let live = api::call(api.get_opt(&name)).await?;
            if live
                .as_ref()
                .is_some_and(|live| live.meta().resource_version == cached.meta().resource_version)
            {
                // The write whose answer was lost was not done.
                context.trail.caught_up(&uid);
            }
            // One that is being deleted is left alone, as a cached one is.
            let live = live.filter(|live| live.meta().deletion_timestamp.is_none());
            Ok(live.map_or(Freshest::Gone, |live| Freshest::Object(Box::new(live))))
        }
    }
}

/// Looks at one object until no decision is left, and acts. Returns when to look again.
async fn reconcile<K: Reconciled>(
    context: &Context,
    mut object: K,
) -> Result<Option<Duration>, Failure> {
    for _ in 0..MOST_DECISIONS {
        let now = clock::now();
        let observed = K::observe(context, &object, now).await?;
        let settings = context.settings_in(&object.namespace().unwrap_or_default());
        match object.plan(&observed, &settings, now) {
            Plan::Decide(decision) => match decide(context, &object, &decision).await? {
                Some(written) => object = written,
                None => return Err(Failure::Bug("a decision changes nothing".to_owned())),
            },
            Plan::Act(mut actions) => {
                let hindrance = object.hindrance(context, &observed, now).await;
                if let (Some(hindrance), Some(status)) = (hindrance, &mut actions.status) {
                    let judged = K::conditions(status);
                    if !graftwork_operator_core::conditions::is_true(judged, K::JUDGED) {
                        hinder(&object, status, &mut actions.events, &hindrance);
                    }
                }
                return carry_out(context, &object, &actions).await;
            }
        }
    }
    Err(Failure::Bug(
        "decisions follow each other without end".to_owned(),
    ))
}

/// Does what a plan says: writes and calls, then status, then events. Returns when to look again.
///
/// # Errors
/// The first write that failed; status is written all the same.
pub async fn carry_out<K: Reconciled>(
    context: &Context,
    object: &K,
    actions: &Actions<K::Status>,
) -> Result<Option<Duration>, Failure> {
    let (namespace, name) = observe::place(object);
    let owner = object.uid().unwrap_or_default();
    let touch = Touch {
        kind: K::KIND,
        namespace: namespace.clone(),
        name,
    };
    let (next, failure) = act(context, &namespace, &owner, touch, actions).await;
    let refusal = failure
        .as_ref()
        .filter(|failure| failure.class() == Class::Invalid)
        .map(ToString::to_string);
    let mut status = actions.status.clone();
    let mut events = actions.events.clone();
    if let Some(message) = refusal {
        let hindrance = Hindrance {
            refused: true,
            message,
        };
        status = status.or_else(|| object.status().cloned());
        let said = status
            .as_mut()
            .is_some_and(|status| hinder(object, status, &mut events, &hindrance));
        if !said {
            let regarding = reference(object);
            complain(context, &regarding, "WriteRefused", &hindrance.message).await;
        }
    }
    if let Some(status) = &status {
        say(context, object, status, &events, Compare::ApartFromTimes).await?;
    }
    match failure {
        Some(failure) => Err(failure.into()),
        None => Ok(next),
    }
}

/// Puts what is in the way into a planned status. Returns whether there was a place for it.
fn hinder<K: Reconciled>(
    object: &K,
    status: &mut K::Status,
    events: &mut Vec<Event>,
    hindrance: &Hindrance,
) -> bool {
    let mut old = object.status().cloned();
    let old = old.as_mut().map(|old| K::conditions(old).clone());
    let old = old.unwrap_or_default();
    let next = K::conditions(status);
    let judged = Judged {
        condition: K::JUDGED,
        generation: object.meta().generation,
        old: &old,
    };
    hindered::say(judged, hindrance, next, events, clock::now())
}

/// Writes a decision down. Returns the object with it.
///
/// # Errors
/// A conflict where the object is no longer the one that the decision is about.
pub async fn decide<K: Reconciled>(
    context: &Context,
    object: &K,
    decision: &Decision<K::Status>,
) -> Result<Option<K>, Failure> {
    let written = say(
        context,
        object,
        &decision.status,
        &decision.events,
        Compare::Exactly,
    )
    .await?;
    if written.is_some() {
        let (namespace, name) = observe::place(object);
        tracing::debug!(namespace, name, "decided");
    }
    Ok(written)
}

/// Writes status where it differs, and then sends events.
async fn say<K: Reconciled>(
    context: &Context,
    object: &K,
    next: &K::Status,
    events: &[Event],
    compare: Compare,
) -> Result<Option<K>, Failure> {
    let json = |status| {
        serde_json::to_value(status).map_err(|error| Failure::Bug(format!("status: {error}")))
    };
    let old = object.status().map(json).transpose()?.unwrap_or_default();
    let answer = context
        .writer
        .write_status(object.meta(), &old, &json(next)?, compare)
        .await;
    let version = |object: &K| object.resource_version().unwrap_or_default();
    let uid = object.uid().unwrap_or_default();
    match answer
        .as_ref()
        .err()
        .map(|error| (error.class(), error.to_string()))
    {
        // It can't be said in status, then.
        Some((Class::Invalid, why)) => {
            let what = format!("status can't be written: {why}");
            complain(context, &reference(object), "WriteRefused", &what).await;
        }
        Some((Class::Transient, _)) => context.trail.lost_answer(&uid, &version(object)),
        Some((Class::Conflict, _)) | None => {}
    }
    let written: Option<K> = answer?;
    if let Some(written) = &written {
        let (old, new) = (version(object), version(written));
        context.trail.wrote(&uid, &old, &new);
        let regarding = reference(object);
        for event in events {
            context.writer.event(event, &regarding).await;
        }
    }
    Ok(written)
}

/// Carries actions out up to the first write that fails. Calls are made where all writes succeeded, and also where the
/// API server refuses one for good: pods that serve must not lose a lease, or wait for a rollback, because of it.
async fn act<S>(
    context: &Context,
    namespace: &str,
    owner: &str,
    touch: Touch,
    actions: &Actions<S>,
) -> (Option<Duration>, Option<ApiError>) {
    let mut next = actions.requeue_after;
    let refused = match write(context, namespace, actions).await {
        Ok(()) => None,
        Err(error) if error.class() == Class::Invalid => Some(error),
        Err(error) => return (next, Some(error)),
    };
    // Calls of one kind go out together: a pod that hangs holds nobody else up.
    for calls in actions
        .calls
        .chunk_by(|one, other| one.method() == other.method())
    {
        let made = calls
            .iter()
            .map(|call| make_call(context, namespace, owner, &touch, call));
        for (call, outcome) in calls.iter().zip(join_all(made).await) {
            match outcome {
                // What was published is read back at once.
                Ok(true) => next = Some(Duration::from_millis(10)),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(method = call.method(), %error, "a call failed");
                    next = Some(next.map_or(AFTER_FAILED_CALL, |it| it.min(AFTER_FAILED_CALL)));
                }
            }
        }
    }
    (next, refused)
}

async fn write<S>(
    context: &Context,
    namespace: &str,
    actions: &Actions<S>,
) -> Result<(), ApiError> {
    let mut children: Vec<_> = actions.apply.iter().collect();
    children.sort_by_key(|child| child.stage());
    for child in children {
        context
            .writer
            .apply(child, namespace, &context.caches)
            .await?;
    }
    for job in &actions.create {
        context
            .writer
            .create(job, namespace, &context.caches)
            .await?;
    }
    for delete in &actions.delete {
        context.writer.delete(delete, namespace).await?;
    }
    for nudge in &actions.nudge {
        context
            .writer
            .nudge(nudge, namespace, &context.caches)
            .await?;
    }
    Ok(())
}

/// Makes one call. Returns whether its effect should be looked at now.
async fn make_call(
    context: &Context,
    namespace: &str,
    owner: &str,
    touch: &Touch,
    call: &Call,
) -> Result<bool, CallError> {
    let keeper = || {
        observe::keeper::peer(context, namespace).map_err(|why| CallError::Unreachable {
            pod: storage::KEEPER.to_owned(),
            why,
        })
    };
    let peer = |target: &graftwork_operator_core::plan::Target| Peer {
        namespace: namespace.to_owned(),
        target: target.clone(),
        owner_uid: owner.to_owned(),
    };
    match call {
        Call::Publish(request) => {
            context.calls.publish(&keeper()?, request).await?;
            Ok(true)
        }
        Call::Import(request) => {
            let peer = keeper()?;
            let key = request_key(&peer, request);
            let problem =
                |reply: &graftwork_contract::proto::store::v1::ImportReply| reply.problem.is_some();
            if context.imports.known(&key, problem).is_some() || context.imports.is_running(&key) {
                // It was tried a moment ago, or is under way.
                return Ok(false);
            }
            let calls = Arc::clone(&context.calls);
            let request = request.clone();
            let import = async move {
                let answer = calls.import(&peer, &request).await;
                answer.map_err(|error| error.to_string())
            };
            let answer = context
                .imports
                .ask(key, &context.touches, touch.clone(), import)
                .await;
            Ok(answer.is_some())
        }
        Call::Prune(request) => {
            let reply = context.calls.prune(&keeper()?, request).await?;
            Ok(!reply.removed.is_empty())
        }
        Call::SyncEngine(target, request) => {
            context.calls.sync_engine(&peer(target), request).await?;
            Ok(false)
        }
        Call::SyncRouter(target, table) => {
            context.calls.sync_router(&peer(target), table).await?;
            Ok(false)
        }
    }
}

/// Complaints that are remembered.
const REMEMBERED_COMPLAINTS: usize = 4096;

/// Tells the object's owner what is wrong, once for each version of the object.
async fn complain(context: &Context, regarding: &ObjectReference, reason: &str, what: &str) {
    let key = (
        regarding.uid.clone().unwrap_or_default(),
        regarding.resource_version.clone().unwrap_or_default(),
        what.to_owned(),
    );
    let is_new = context.complaints.lock().is_ok_and(|mut complaints| {
        if complaints.len() >= REMEMBERED_COMPLAINTS {
            complaints.clear();
        }
        complaints.insert(key)
    });
    if is_new {
        let note = graftwork_operator_core::conditions::shorten(what);
        context
            .writer
            .event(&Event::warning(reason, note), regarding)
            .await;
    }
}

/// Looks at a namespace's storage. Returns when to look again.
///
/// # Errors
/// The first write that failed. What the API server refuses is told to the namespace's objects by
/// [`observe::keeper::peer`].
pub async fn reconcile_storage(
    context: &Context,
    namespace: &Namespace,
) -> Result<Option<Duration>, Failure> {
    let observed = observe::storage::observe(context, namespace).await?;
    let Plan::Act(actions) = storage::plan(&observed, &context.settings_in(&observed.namespace))
    else {
        return Ok(None);
    };
    let name = namespace.name_any();
    let touch = Touch {
        kind: Kind::Storage,
        namespace: name.clone(),
        name: name.clone(),
    };
    let (next, failure) = act(context, &name, &observed.namespace_uid, touch, &actions).await;
    let refusal = failure
        .as_ref()
        .filter(|failure| failure.class() == Class::Invalid);
    if let Ok(mut refused) = context.refused_storage.lock() {
        // A namespace has no conditions of ours: its objects say it.
        match refusal {
            Some(refusal) => refused.insert(name, refusal.to_string()),
            None => refused.remove(&name),
        };
    }
    match failure {
        Some(failure) => Err(failure.into()),
        None => Ok(next),
    }
}

/// Looks at one object of any kind, for `--plan-only`.
pub async fn plan_once<K: Reconciled>(
    context: &Context,
    object: &K,
) -> Result<Plan<K::Status>, ApiError> {
    let now = clock::now();
    let observed = K::observe(context, object, now).await?;
    let settings = context.settings_in(&object.namespace().unwrap_or_default());
    Ok(object.plan(&observed, &settings, now))
}
