//! The loop of every kind: look, plan, decide or act, say so, and look again.

use std::collections::HashMap;
use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{FutureExt as _, StreamExt as _};
use graftwork_api::{Dataset, LoRAAdapter, ServingEndpoint, TrainingRun};
use graftwork_operator_core::plan::{Actions, Call, Decision, Event, Plan};
use graftwork_operator_core::settings::Settings;
use graftwork_operator_core::{adapter, dataset, endpoint, run, storage};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use kube::core::DeserializeGuard;
use kube::core::object::HasStatus;
use kube::runtime::controller::{self, Action, Config};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::api::{ApiError, Class};
use crate::apply::reference;
use crate::cache::{Guarded, Kind, Touch};
use crate::calls::{CallError, Peer, request_key};
use crate::clock;
use crate::context::Context;
use crate::observe;
use crate::status::Compare;

/// Every object is looked at this often without a reason.
const RESYNC: Duration = Duration::from_mins(10);
/// Decisions that one look may lead to.
const MOST_DECISIONS: usize = 6;
/// Objects of one kind that are looked at at once.
const CONCURRENCY: u16 = 16;
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

/// A custom resource with its observation and its plan.
pub trait Reconciled:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + HasStatus<Status: Serialize + Clone + Send + Sync>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Which kind it is.
    const KIND: Kind;
    /// What its plan needs.
    type Observed: Send + Sync;

    /// All reads.
    fn observe(
        context: &Context,
        object: &Self,
        now: Timestamp,
    ) -> impl Future<Output = Result<Self::Observed, ApiError>> + Send;

    /// What is to be done.
    fn plan(
        &self,
        observed: &Self::Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Plan<Self::Status>;
}

impl Reconciled for Dataset {
    const KIND: Kind = Kind::Dataset;
    type Observed = dataset::Observed;

    async fn observe(
        context: &Context,
        object: &Self,
        _: Timestamp,
    ) -> Result<Self::Observed, ApiError> {
        observe::dataset::observe(context, object).await
    }

    fn plan(
        &self,
        observed: &Self::Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Plan<Self::Status> {
        dataset::plan(self, observed, settings, now)
    }
}

impl Reconciled for TrainingRun {
    const KIND: Kind = Kind::Run;
    type Observed = run::Observed;

    async fn observe(
        context: &Context,
        object: &Self,
        _: Timestamp,
    ) -> Result<Self::Observed, ApiError> {
        observe::run::observe(context, object).await
    }

    fn plan(
        &self,
        observed: &Self::Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Plan<Self::Status> {
        run::plan(self, observed, settings, now)
    }
}

impl Reconciled for LoRAAdapter {
    const KIND: Kind = Kind::Adapter;
    type Observed = adapter::Observed;

    async fn observe(
        context: &Context,
        object: &Self,
        _: Timestamp,
    ) -> Result<Self::Observed, ApiError> {
        observe::adapter::observe(context, object).await
    }

    fn plan(
        &self,
        observed: &Self::Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Plan<Self::Status> {
        adapter::plan(self, observed, settings, now)
    }
}

impl Reconciled for ServingEndpoint {
    const KIND: Kind = Kind::Endpoint;
    type Observed = endpoint::Observed;

    async fn observe(
        context: &Context,
        object: &Self,
        now: Timestamp,
    ) -> Result<Self::Observed, ApiError> {
        observe::endpoint::observe(context, object, now).await
    }

    fn plan(
        &self,
        observed: &Self::Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Plan<Self::Status> {
        endpoint::plan(self, observed, settings, now)
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
        match object.plan(&observed, &context.settings, now) {
            Plan::Decide(decision) => match decide(context, &object, &decision).await? {
                Some(written) => object = written,
                None => return Err(Failure::Bug("a decision changes nothing".to_owned())),
            },
            Plan::Act(actions) => return carry_out(context, &object, &actions).await,
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
    if let Some(status) = &actions.status {
        say(
            context,
            object,
            status,
            &actions.events,
            Compare::ApartFromTimes,
        )
        .await?;
    }
    match failure {
        Some(failure) => {
            if failure.class() == Class::Invalid {
                let what = failure.to_string();
                complain(context, &reference(object), "WriteRefused", &what).await;
            }
            Err(failure.into())
        }
        None => Ok(next),
    }
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
    let written: Option<K> = context
        .writer
        .write_status(object.meta(), &old, &json(next)?, compare)
        .await?;
    if written.is_some() {
        let regarding = reference(object);
        for event in events {
            context.writer.event(event, &regarding).await;
        }
    }
    Ok(written)
}

/// Carries actions out up to the first write that fails; calls are made in any case where all
/// writes succeeded.
async fn act<S>(
    context: &Context,
    namespace: &str,
    owner: &str,
    touch: Touch,
    actions: &Actions<S>,
) -> (Option<Duration>, Option<ApiError>) {
    let mut next = actions.requeue_after;
    if let Err(error) = write(context, namespace, actions).await {
        return (next, Some(error));
    }
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
    (next, None)
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
            if context.imports.known(&key, problem).is_some() {
                // It was tried a moment ago.
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

/// Looks at a namespace's storage.
async fn reconcile_storage(
    context: &Context,
    namespace: &Namespace,
) -> Result<Option<Duration>, Failure> {
    let observed = observe::storage::observe(context, namespace).await?;
    let Plan::Act(actions) = storage::plan(&observed, &context.settings) else {
        return Ok(None);
    };
    let name = namespace.name_any();
    let touch = Touch {
        kind: Kind::Storage,
        namespace: name.clone(),
        name: name.clone(),
    };
    let (next, failure) = act(context, &name, &observed.namespace_uid, touch, &actions).await;
    match failure {
        Some(failure) => Err(failure.into()),
        None => Ok(next),
    }
}

/// Consecutive failures by object: pauses grow.
#[derive(Default)]
struct Pauses(Mutex<HashMap<Touch, u32>>);

impl Pauses {
    fn clear(&self, touch: &Touch) {
        if let Ok(mut failures) = self.0.lock() {
            failures.remove(touch);
        }
    }

    fn after(&self, touch: &Touch, failure: &Failure) -> Duration {
        if matches!(failure, Failure::Api(error) if error.class() == Class::Conflict) {
            return jitter(Duration::from_millis(200));
        }
        let count = self.0.lock().map_or(1, |mut failures| {
            let count = failures.entry(touch.clone()).or_default();
            *count = count.saturating_add(1);
            *count
        });
        let seconds = 1_u64 << count.saturating_sub(1).min(8);
        jitter(Duration::from_secs(seconds.min(300)))
    }
}

/// Up to a fifth more or less.
fn jitter(duration: Duration) -> Duration {
    duration.mul_f64(0.8 + 0.4 * rand::random::<f64>())
}

/// One look under the panic boundary, counted and logged.
async fn guarded(
    context: &Context,
    touch: &Touch,
    look: impl Future<Output = Result<Option<Duration>, Failure>>,
) -> Result<Option<Duration>, Failure> {
    let started = Instant::now();
    let outcome = match AssertUnwindSafe(look).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("panic");
            Err(Failure::Bug(text.to_owned()))
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    context.metrics.reconciled(touch.kind, seconds);
    match &outcome {
        Ok(next) => tracing::debug!(seconds, ?next, "looked"),
        Err(failure) => {
            context.metrics.failed(touch.kind, failure.category());
            match failure {
                Failure::Api(error) if error.class() == Class::Conflict => {
                    tracing::debug!(%error, "the object changed meanwhile");
                }
                failure => {
                    tracing::warn!(category = failure.category(), error = %failure, "failed")
                }
            }
        }
    }
    outcome
}

/// A stored object that can be looked at.
trait Stored: Resource<DynamicType = ()> + Clone + Send + Sync + 'static {
    const KIND: Kind;
    fn look(
        context: Arc<Context>,
        object: Arc<Self>,
    ) -> impl Future<Output = Result<Option<Duration>, Failure>> + Send;
}

impl<K: Reconciled> Stored for Guarded<K> {
    const KIND: Kind = K::KIND;

    async fn look(context: Arc<Context>, object: Arc<Self>) -> Result<Option<Duration>, Failure> {
        let DeserializeGuard(readable) = &*object;
        match readable {
            Ok(object) if object.meta().deletion_timestamp.is_some() => Ok(None),
            Ok(object) => reconcile(&context, object.clone()).await,
            Err(invalid) => {
                let failure = Failure::Unreadable(invalid.error.clone());
                let what = failure.to_string();
                complain(&context, &reference(&*object), "Unreadable", &what).await;
                Err(failure)
            }
        }
    }
}

impl Stored for Namespace {
    const KIND: Kind = Kind::Storage;

    async fn look(context: Arc<Context>, object: Arc<Self>) -> Result<Option<Duration>, Failure> {
        reconcile_storage(&context, &object).await
    }
}

fn touch_of<K: Stored>(object: &K) -> Touch {
    let name = object.name_any();
    Touch {
        kind: K::KIND,
        namespace: object.namespace().unwrap_or_else(|| name.clone()),
        name,
    }
}

/// Runs one kind until `stop`.
async fn drive<K: Stored + Debug>(
    context: Arc<Context>,
    store: Store<K>,
    touches: UnboundedReceiver<Touch>,
    stop: CancellationToken,
) {
    let queue = tokio_stream::wrappers::UnboundedReceiverStream::new(touches)
        .take_until(stop.cancelled_owned())
        .map(|touch| {
            let object = if K::KIND == Kind::Storage {
                ObjectRef::<K>::new(&touch.name)
            } else {
                ObjectRef::<K>::new(&touch.name).within(&touch.namespace)
            };
            Ok::<_, std::convert::Infallible>((object, touch))
        });
    let taken = Arc::clone(&context);
    let known = store.clone();
    // An object that is gone is not looked at: it must not count as waiting.
    let queue = queue.filter_map(move |item| {
        let item = item.map(|(object, touch)| {
            if known.get(&object).is_none() {
                taken.touches.take(&touch);
                return None;
            }
            Some(object)
        });
        std::future::ready(item.transpose())
    });
    let pauses = Arc::new(Pauses::default());
    let after_failure = Arc::clone(&pauses);
    let newest = store.clone();
    let reconciler = move |object: Arc<K>, context: Arc<Context>| {
        let pauses = Arc::clone(&pauses);
        let newest = newest.clone();
        let touch = touch_of(&*object);
        let span = tracing::info_span!(
            "reconcile",
            kind = touch.kind.name(),
            namespace = touch.namespace,
            name = touch.name
        );
        async move {
            context.touches.take(&touch);
            // What is cached now: a change until here is seen, one from here on queues again.
            let object = newest.get(&ObjectRef::from_obj(&*object)).unwrap_or(object);
            let look = K::look(Arc::clone(&context), object);
            let next = guarded(&context, &touch, look).await?;
            pauses.clear(&touch);
            let next = next.map_or_else(|| jitter(RESYNC), |next| next.min(RESYNC));
            Ok(Action::requeue(next))
        }
        .instrument(span)
        .boxed()
    };
    let policy = move |object: Arc<K>, failure: &Failure, _: Arc<Context>| {
        Action::requeue(after_failure.after(&touch_of(&*object), failure))
    };
    controller::applier(
        reconciler,
        policy,
        context,
        store,
        queue,
        Config::default().concurrency(CONCURRENCY),
    )
    .for_each(|_| std::future::ready(()))
    .await;
}

/// Runs all kinds until `stop`, then waits for what is being done.
pub async fn run_all(
    context: Arc<Context>,
    receivers: [UnboundedReceiver<Touch>; 5],
    stop: CancellationToken,
) {
    let caches = context.caches.clone();
    let [datasets, runs, adapters, endpoints, namespaces] = receivers;
    context.touches.activate();
    for touch in caches.everything() {
        context.touches.send(touch);
    }
    tokio::join!(
        drive(
            Arc::clone(&context),
            caches.datasets,
            datasets,
            stop.clone()
        ),
        drive(Arc::clone(&context), caches.runs, runs, stop.clone()),
        drive(
            Arc::clone(&context),
            caches.adapters,
            adapters,
            stop.clone()
        ),
        drive(
            Arc::clone(&context),
            caches.endpoints,
            endpoints,
            stop.clone()
        ),
        drive(
            Arc::clone(&context),
            caches.namespaces,
            namespaces,
            stop.clone()
        ),
    );
}

/// Looks at one object of any kind, for `--plan-only`.
pub async fn plan_once<K: Reconciled>(
    context: &Context,
    object: &K,
) -> Result<Plan<K::Status>, ApiError> {
    let now = clock::now();
    let observed = K::observe(context, object, now).await?;
    Ok(object.plan(&observed, &context.settings, now))
}
