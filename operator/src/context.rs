//! What a reconcile works with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use graftwork_operator_core::settings::Settings;
use kube::Client;

use crate::apply::Writer;
use crate::cache::{Caches, Touch, Touches};
use crate::calls::Calls;
use crate::metrics::Metrics;
use crate::progress::ProgressStreams;
use graftwork_contract::proto::store::v1::{DescribeBaseReply, ImportReply, VerifyReply};

/// Everything that reconciles share.
pub struct Context {
    /// For reads that no cache has.
    pub client: Client,
    /// What the API server shows.
    pub caches: Caches,
    /// Asks for objects to be looked at.
    pub touches: Touches,
    /// The installation's settings.
    pub settings: Settings,
    /// Writes to the API server.
    pub writer: Writer,
    /// Calls pods.
    pub calls: Arc<Calls>,
    /// Progress of trainers.
    pub progress: ProgressStreams,
    /// Counters.
    pub metrics: Metrics,
    /// Descriptions of base models.
    pub bases: Background<DescribeBaseReply>,
    /// Verifications of adapters.
    pub verifications: Background<VerifyReply>,
    /// Imports of adapters.
    pub imports: Background<ImportReply>,
    /// Contents of `ConfigMaps` that are sources: digests by UID, resource version and key.
    pub contents: Mutex<HashMap<(String, String, String), Option<graftwork_contract::Digest>>>,
}

/// How long to wait for an answer before going on without it.
const PATIENCE: Duration = Duration::from_secs(3);

enum Entry<A> {
    Running,
    Done(Result<A, String>, Instant),
}

/// Calls that may take long: each is made once, in the background, and its answer is kept for a
/// while.
pub struct Background<A> {
    entries: Arc<Mutex<HashMap<String, Entry<A>>>>,
    good_for: Duration,
    bad_for: Duration,
}

impl<A: Clone + Send + 'static> Background<A> {
    /// Keeps answers for `good_for`, problems and failures for `bad_for`.
    pub fn new(good_for: Duration, bad_for: Duration) -> Self {
        Self {
            entries: Arc::default(),
            good_for,
            bad_for,
        }
    }

    /// The answer to the call of that key, where it is there and still good.
    pub fn known(&self, key: &str, is_problem: impl Fn(&A) -> bool) -> Option<Result<A, String>> {
        let entries = self.entries.lock().ok()?;
        let Entry::Done(answer, at) = entries.get(key)? else {
            return None;
        };
        let good = answer.as_ref().is_ok_and(|answer| !is_problem(answer));
        let age = if good { self.good_for } else { self.bad_for };
        (at.elapsed() < age).then(|| answer.clone())
    }

    /// Makes the call unless it is running; `touch` is looked at when the answer is there.
    ///
    /// Returns the answer where it comes within a few seconds.
    pub async fn ask(
        &self,
        key: String,
        touches: &Touches,
        touch: Touch,
        call: impl Future<Output = Result<A, String>> + Send + 'static,
    ) -> Option<Result<A, String>> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        {
            let mut entries = self.entries.lock().ok()?;
            if matches!(entries.get(&key), Some(Entry::Running)) {
                return None;
            }
            let limit = self.good_for.max(self.bad_for);
            entries.retain(|_, entry| match entry {
                Entry::Running => true,
                Entry::Done(_, at) => at.elapsed() < limit,
            });
            entries.insert(key.clone(), Entry::Running);
        }
        let entries = Arc::clone(&self.entries);
        let touches = touches.clone();
        tokio::spawn(async move {
            let answer = call.await;
            if let Ok(mut entries) = entries.lock() {
                entries.insert(key, Entry::Done(answer.clone(), Instant::now()));
            }
            // Nobody waits any more where this fails: then the object is looked at again.
            if sender.send(answer).is_err() {
                touches.send(touch);
            }
        });
        tokio::time::timeout(PATIENCE, receiver).await.ok()?.ok()
    }
}
