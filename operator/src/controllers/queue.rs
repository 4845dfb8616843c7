//! The queues: which object is looked at when, one at a time, and what a failure costs it.

use std::collections::HashMap;
use std::fmt::Debug;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Namespace;
use kube::core::{DeserializeGuard, DynamicObject};
use kube::runtime::controller::{self, Action, Config};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt as _};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Failure, Freshest, Reconciled, complain, freshest, reconcile, reconcile_storage};
use crate::api::Class;
use crate::apply::reference;
use crate::cache::{Guarded, Kind, Touch, Touches};
use crate::clock;
use crate::context::Context;

/// Every object is looked at this often without a reason.
const RESYNC: Duration = Duration::from_mins(10);
/// Objects of one kind that are looked at at once.
const CONCURRENCY: u16 = 16;
/// Longest pause after failures, in seconds.
const LONGEST_PAUSE: u64 = 300;
/// Longest pause after a refusal, in seconds: no watch tells when a quota or a policy changes.
const LONGEST_AFTER_REFUSAL: u64 = 30;

/// Consecutive failures by object: pauses grow.
#[derive(Default)]
struct Pauses(Mutex<HashMap<Touch, u32>>);

/// What became of a look that did not fail.
#[derive(Debug)]
enum Looked {
    /// It was done; when to look again.
    Done(Option<Duration>),
    /// Nothing was tried yet.
    Later(Duration),
}

impl Pauses {
    /// When to look again. Only what was tried and went well ends a row of failures.
    fn next(&self, touch: &Touch, looked: &Looked) -> Duration {
        match looked {
            Looked::Later(pause) => *pause,
            Looked::Done(next) => {
                self.clear(touch);
                next.map_or_else(|| jitter(RESYNC), |next| next.min(RESYNC))
            }
        }
    }

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
        let refused = matches!(failure, Failure::Api(error) if error.class() == Class::Invalid);
        let longest = if refused {
            LONGEST_AFTER_REFUSAL
        } else {
            LONGEST_PAUSE
        };
        jitter(Duration::from_secs(seconds.min(longest)))
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
    look: impl Future<Output = Result<Looked, Failure>>,
) -> Result<Looked, Failure> {
    let started = clock::monotonic();
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
        Ok(looked) => tracing::debug!(seconds, ?looked, "looked"),
        Err(failure) => {
            context.metrics.failed(touch.kind, failure.category());
            match failure {
                Failure::Api(error) if error.class() == Class::Conflict => {
                    tracing::debug!(%error, "the object changed meanwhile");
                }
                failure => {
                    tracing::warn!(category = failure.category(), error = %failure, "failed");
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
    ) -> impl Future<Output = Result<Looked, Failure>> + Send;
}

impl<K: Reconciled> Stored for Guarded<K> {
    const KIND: Kind = K::KIND;

    async fn look(context: Arc<Context>, object: Arc<Self>) -> Result<Looked, Failure> {
        let DeserializeGuard(readable) = &*object;
        match readable {
            Ok(object) if object.meta().deletion_timestamp.is_some() => Ok(Looked::Done(None)),
            Ok(object) => match freshest(&context, object).await? {
                Freshest::Object(object) => reconcile(&context, *object).await.map(Looked::Done),
                Freshest::Later(pause) => Ok(Looked::Later(pause)),
                Freshest::Gone => Ok(Looked::Done(None)),
            },
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

    async fn look(context: Arc<Context>, object: Arc<Self>) -> Result<Looked, Failure> {
        reconcile_storage(&context, &object).await.map(Looked::Done)
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
                // One that came between the two lines sent no touch of its own.
                known.get(&object)?;
            }
            Some(object)
        });
        std::future::ready(item.transpose())
    });
    let pauses = Arc::new(Pauses::default());
    let after_failure = Arc::clone(&pauses);
    let newest = store.clone();
    let (again, present) = (Arc::clone(&context), store.clone());
    let reconciler = move |object: Arc<K>, context: Arc<Context>| {
        let pauses = Arc::clone(&pauses);
        let newest = newest.clone();
        let touch = touch_of(&*object);
        // `name` is the span's own in a line of JSON.
        let span = tracing::info_span!(
            "reconcile",
            kind = touch.kind.name(),
            namespace = touch.namespace,
            object = touch.name
        );
        async move {
            context.touches.take(&touch);
            // What is cached now: a change until here is seen, one from here on queues again.
            let object = newest.get(&ObjectRef::from_obj(&*object)).unwrap_or(object);
            let look = K::look(Arc::clone(&context), object);
            let looked = guarded(&context, &touch, look).await?;
            Ok(Action::requeue(pauses.next(&touch, &looked)))
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
    .for_each(move |outcome| {
        if let Err(controller::Error::ObjectNotFound(missing)) = outcome {
            forget_missing(&again.touches, &present, &missing);
        }
        std::future::ready(())
    })
    .await;
}

/// An object went while it waited for its look, which therefore was not begun: it waits no longer. One of the same name
/// may have come since, and its touch was taken for the old one's.
fn forget_missing<K: Stored>(
    touches: &Touches,
    store: &Store<K>,
    missing: &ObjectRef<DynamicObject>,
) {
    let touch = Touch {
        kind: K::KIND,
        namespace: missing
            .namespace
            .clone()
            .unwrap_or_else(|| missing.name.clone()),
        name: missing.name.clone(),
    };
    touches.take(&touch);
    let mut object = ObjectRef::<K>::new(&missing.name);
    object.namespace.clone_from(&missing.namespace);
    if store.get(&object).is_some() {
        touches.send(touch);
    }
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

#[cfg(test)]
mod tests {
    use kube::runtime::{reflector, watcher};

    use super::*;

    fn namespace() -> Namespace {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some("team".to_owned());
        namespace
    }

    #[test]
    fn a_look_that_tried_nothing_ends_no_row_of_failures() {
        let pauses = Pauses::default();
        let touch = touch_of(&namespace());
        let fail = || pauses.after(&touch, &Failure::Bug("x".to_owned()));
        let around = |seconds: u64| {
            let exact = Duration::from_secs(seconds);
            exact.mul_f64(0.79)..exact.mul_f64(1.21)
        };
        for seconds in [1, 2, 4] {
            assert!(around(seconds).contains(&fail()), "after {seconds} s");
        }
        let soon = Duration::from_millis(100);
        assert_eq!(pauses.next(&touch, &Looked::Later(soon)), soon);
        assert!(around(8).contains(&fail()), "nothing was tried meanwhile");
        let resync = pauses.next(&touch, &Looked::Done(None));
        assert!(around(RESYNC.as_secs()).contains(&resync));
        assert!(around(1).contains(&fail()), "it went well meanwhile");
    }

    #[test]
    fn an_object_that_comes_again_is_looked_at_though_the_old_one_went_while_it_waited() {
        let (touches, mut receivers) = Touches::new();
        touches.activate();
        let place = Kind::ALL
            .iter()
            .position(|kind| *kind == Kind::Storage)
            .unwrap();
        let received = &mut receivers[place];
        let (store, mut writer) = reflector::store();
        let object = ObjectRef::from_obj(&namespace());
        let touch = touch_of(&namespace());

        // The old one waits and goes; the new one's touch is taken for the old one's.
        touches.send(touch.clone());
        assert!(received.try_recv().is_ok());
        touches.send(touch.clone());
        assert!(received.try_recv().is_err());
        forget_missing(&touches, &store, &object.clone().erase());
        assert_eq!(touches.waiting(Kind::Storage), 0);
        touches.send(touch.clone());
        assert!(received.try_recv().is_ok(), "the new one's touch counts");

        writer.apply_watcher_event(&watcher::Event::Apply(namespace()));
        forget_missing(&touches, &store, &object.erase());
        assert!(
            received.try_recv().is_ok(),
            "one that is there by now is looked at"
        );
    }
}
