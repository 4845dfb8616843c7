//! What a reconcile works with.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use graftwork_contract::proto::store::v1::{DescribeBaseReply, ImportReply, VerifyReply};
use graftwork_operator_core::observed::Record;
use graftwork_operator_core::settings::Settings;
use kube::Client;

use crate::apply::Writer;
use crate::cache::{Caches, Touch, Touches};
use crate::calls::Calls;
use crate::metrics::Metrics;
use crate::progress::ProgressStreams;

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
    /// Complaints that were made: UID and resource version of the object, and what was said.
    pub complaints: Mutex<HashSet<(String, String, String)>>,
    /// Results of complete runs, by the run's UID: they never change.
    pub results: Mutex<HashMap<String, Record>>,
}

/// How long to wait for an answer before going on without it.
const PATIENCE: Duration = Duration::from_secs(3);

struct Entry<A> {
    running: bool,
    answer: Option<(Result<A, String>, Instant)>,
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
        let (answer, at) = entries.get(key)?.answer.as_ref()?;
        let good = answer.as_ref().is_ok_and(|answer| !is_problem(answer));
        let age = if good { self.good_for } else { self.bad_for };
        (at.elapsed() < age).then(|| answer.clone())
    }

    /// The last answer to the call of that key, however old.
    pub fn last(&self, key: &str) -> Option<Result<A, String>> {
        let entries = self.entries.lock().ok()?;
        let (answer, _) = entries.get(key)?.answer.as_ref()?;
        Some(answer.clone())
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
            let limit = 2 * self.good_for.max(self.bad_for);
            entries.retain(|_, entry| {
                let answered = entry.answer.as_ref();
                entry.running || answered.is_some_and(|(_, at)| at.elapsed() < limit)
            });
            let entry = entries.entry(key.clone()).or_insert(Entry {
                running: false,
                answer: None,
            });
            if entry.running {
                return None;
            }
            entry.running = true;
        }
        let entries = Arc::clone(&self.entries);
        let touches = touches.clone();
        tokio::spawn(async move {
            let answer = call.await;
            if let Ok(mut entries) = entries.lock() {
                let entry = Entry {
                    running: false,
                    answer: Some((answer.clone(), Instant::now())),
                };
                entries.insert(key, entry);
            }
            // Nobody waits any more where this fails: then the object is looked at again.
            if sender.send(answer).is_err() {
                touches.send(touch);
            }
        });
        tokio::time::timeout(PATIENCE, receiver).await.ok()?.ok()
    }
}
