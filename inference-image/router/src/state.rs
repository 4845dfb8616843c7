//! What all requests of a router share, and the account of one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use graftwork_listen::body::Room;
use graftwork_listen::clock;
use http::{HeaderValue, StatusCode};
use tokio_util::sync::CancellationToken;

use crate::cache::AnswerCache;
use crate::client::{EngineClient, client};
use crate::engine::{Engine, InFlight, Registry};
use crate::hedging::HedgeBudget;
use crate::metrics::Metrics;
use crate::places::Places;
use crate::stats::{Sample, Stats};
use crate::table::{Table, Version};

/// Bounds of one request.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest request body in bytes.
    pub body_bytes: usize,
    /// All request bodies that are held at one time, in bytes; beyond it 429.
    pub held_bytes: usize,
    /// How long a client may take to send it.
    pub body_timeout: Duration,
    /// An answer that is not a stream is held back until it is whole, up to so many bytes.
    pub answer_buffer_bytes: usize,
    /// An engine that sends nothing for so long is given up.
    pub answer_timeout: Duration,
    /// A request without an answer for so long is sent to another engine too; none: never.
    pub hedge_after: Option<Duration>,
    /// Bytes of answers that are kept; 0: none.
    pub cache_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 8 << 20,
            held_bytes: 128 << 20,
            body_timeout: Duration::from_secs(60),
            answer_buffer_bytes: 16 << 20,
            answer_timeout: Duration::from_secs(300),
            hedge_after: None,
            cache_bytes: 0,
        }
    }
}

/// A client that leaves later than this has waited so long for its answer, at least: it counts in the latencies, or a
/// version that hangs would look well as long as nobody waits for it. Earlier ones changed their minds.
const CANCELLED_COUNTS_AFTER: Duration = Duration::from_secs(10);

/// What all requests share.
#[derive(Debug)]
pub struct Shared {
    /// The table for requests that arrive now.
    pub table: ArcSwap<Table>,
    /// Engines that DNS names.
    pub found: ArcSwap<Vec<Arc<Engine>>>,
    /// Engines by address.
    pub registry: Registry,
    /// Windowed counters.
    pub stats: Stats,
    /// Prometheus.
    pub metrics: Metrics,
    /// Connections to engines, for what is no client's request.
    pub client: EngineClient,
    /// Answers that were given before.
    pub answers: AnswerCache,
    /// Where conversations ran last.
    pub places: Places,
    /// Second attempts that are left.
    pub hedges: HedgeBudget,
    /// Bounds.
    pub limits: Limits,
    /// Cancelled when what still runs has to end, late in a drain.
    pub last_call: CancellationToken,
    /// Memory of the bodies of all requests.
    pub bodies: Room,
    /// This process, unlike any other.
    pub boot_id: String,
    /// Unix seconds of the start: `created` of models.
    pub started_unix_seconds: u64,
    was_ready: AtomicBool,
    draining: AtomicBool,
}

impl Shared {
    /// The state of a process of that endpoint which starts now with `table`.
    ///
    /// # Errors
    /// Where a metric's name is invalid.
    pub fn new(endpoint: &str, table: Table, limits: Limits) -> Result<Self, prometheus::Error> {
        Ok(Self {
            table: ArcSwap::from_pointee(table),
            found: ArcSwap::default(),
            registry: Registry::default(),
            stats: Stats::new(clock::now()),
            metrics: Metrics::new(endpoint)?,
            client: client(),
            answers: AnswerCache::new(limits.cache_bytes),
            places: Places::default(),
            hedges: HedgeBudget::default(),
            bodies: Room::of_bytes(limits.held_bytes),
            limits,
            last_call: CancellationToken::new(),
            boot_id: format!("{:032x}", rand::random::<u128>()),
            started_unix_seconds: clock::unix_seconds(),
            was_ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        })
    }

    /// Every engine, each once.
    pub fn engines(&self) -> Vec<Arc<Engine>> {
        let mut engines: Vec<_> = self
            .table
            .load()
            .engines
            .iter()
            .map(|target| target.engine.clone())
            .collect();
        for engine in self.found.load().iter() {
            if !engines.iter().any(|known| Arc::ptr_eq(known, engine)) {
                engines.push(engine.clone());
            }
        }
        engines
    }

    /// What computes, where all engines that may answer say the same of themselves.
    pub fn agreed_revision(&self) -> Option<HeaderValue> {
        let engines = self.engines();
        let mut revisions = engines
            .iter()
            .filter(|engine| !engine.is_ejected())
            .map(|engine| engine.revision());
        let first = revisions.next()??;
        revisions
            .all(|other| other.as_ref() == Some(&first))
            .then_some(first)
    }

    /// Ready from the first answer of an engine until the drain begins. An engine must have answered, so
    /// that a rolling update never replaces a router that serves by one that can't reach anything. Once
    /// ready it stays so though all engines go: a router that says 503 serves clients better than an
    /// address that refuses connections.
    pub fn is_ready(&self) -> bool {
        if self.is_draining() {
            return false;
        }
        if !self.was_ready.load(Ordering::Relaxed)
            && self.engines().iter().any(|engine| engine.is_proven())
        {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        self.was_ready.load(Ordering::Relaxed)
    }

    /// Readiness ends for good.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether this process is about to end.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// `engine` failed a request that another one answered. While half of the engines are out already, nobody
    /// follows for that: a slow failure is better than none left to share the load.
    pub fn note_outdone(&self, engine: &Engine) {
        let engines = self.engines();
        let ejected = engines.iter().filter(|engine| engine.is_ejected()).count();
        if 2 * (ejected + 1) <= engines.len() && engine.note_outdone(clock::now()) {
            self.metrics.ejection();
            tracing::warn!(engine = %engine.authority(), "engine ejected: others answer what it fails");
        }
    }

    /// A connection to `engine` failed.
    pub fn note_failure(&self, engine: &Engine, reason: &str) {
        if engine.note_failure(clock::now()) {
            self.metrics.ejection();
            tracing::warn!(engine = %engine.authority(), reason, "engine ejected");
        }
    }
}

/// The account of one request: it is counted once, as cancelled where it is dropped before its end.
#[derive(Debug)]
pub struct Account {
    shared: Arc<Shared>,
    version: Arc<Version>,
    caller: Option<u32>,
    arrived: Instant,
    first_byte: Option<Instant>,
    ended: bool,
    /// Whether the request says something about the version: it is counted for rollouts and in latencies.
    pub judges: bool,
    /// The request's place on its engine, once it has one.
    pub place: Option<InFlight>,
}

impl Account {
    /// Opens the account of a request that arrived at `arrived` and got `version`.
    pub fn open(
        shared: Arc<Shared>,
        version: Arc<Version>,
        caller: Option<&str>,
        arrived: Instant,
    ) -> Self {
        shared.metrics.begin();
        let caller = caller.map(|caller| shared.stats.caller(caller));
        Self {
            shared,
            version,
            caller,
            arrived,
            first_byte: None,
            ended: false,
            judges: true,
            place: None,
        }
    }

    /// The version.
    pub fn version(&self) -> &Arc<Version> {
        &self.version
    }

    /// What all requests share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The client gets an answer that runs at `place`, and whose body began then.
    pub fn begin(&mut self, place: InFlight, first_byte: Option<Instant>) {
        self.place = Some(place);
        self.first_byte = first_byte;
    }

    /// The answer went to its end.
    pub fn end(&mut self, status: StatusCode) {
        let good = status.as_u16() < 400;
        self.close(status.as_str(), status.is_server_error(), good);
    }

    /// The answer broke after it began.
    pub fn end_truncated(&mut self) {
        self.close("truncated", true, false);
    }

    fn close(&mut self, code: &str, error: bool, good: bool) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.place = None;
        let now = clock::now();
        let total = now - self.arrived;
        let first = self.first_byte.map_or(total, |first| first - self.arrived);
        self.shared.metrics.end(&self.version, code);
        if !self.judges {
            return;
        }
        if good {
            self.shared.metrics.observe(&self.version, total, first);
        }
        let sample = Sample {
            error,
            latency: good.then_some(total),
            first_byte: good.then_some(first),
            caller: self.caller,
        };
        self.shared.stats.record(&self.version, sample, now);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.shared.metrics.end(&self.version, "cancelled");
        let now = clock::now();
        let waited = now - self.arrived;
        if self.judges && waited >= CANCELLED_COUNTS_AFTER {
            let first = self.first_byte.map_or(waited, |first| first - self.arrived);
            let sample = Sample {
                error: false,
                latency: Some(waited),
                first_byte: Some(first),
                caller: self.caller,
            };
            self.shared.stats.record(&self.version, sample, now);
        }
    }
}
