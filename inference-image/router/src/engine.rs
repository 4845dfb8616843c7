//! Engines as the router sees them: how much runs there, whether they answer, and which one is next.

use std::collections::HashMap;
use std::hash::{Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use graftwork_contract::endpoint::HEADER_ENGINE;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue};

use crate::table::{Table, Version};

/// Back-off of the first ejection; each failed probe doubles it.
pub const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
/// The longest back-off: a container that comes back at the same address waits no longer.
pub const LAST_BACK_OFF: Duration = Duration::from_secs(15);
/// So many requests in a row that failed here and were answered elsewhere eject an engine.
pub const STRIKES: u32 = 3;
/// How long an engine that answered 429 counts as busy: others are asked before it. What it told the client is longer,
/// since places become free all the time, and who is told has many others beside.
pub const BUSY: Duration = Duration::from_millis(250);

/// One engine's address and state. It outlives tables that name the same address.
#[derive(Debug)]
pub struct Engine {
    authority: Authority,
    in_flight: AtomicUsize,
    proven: AtomicBool,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    /// Requests in a row that failed here and were answered elsewhere.
    strikes: u32,
    probe_at: Option<Instant>,
    busy_until: Option<Instant>,
    /// What it said of itself with its last answer.
    revision: Option<HeaderValue>,
}

/// One request that runs on an engine; counted until dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Engine>);

impl Engine {
    fn new(authority: Authority) -> Self {
        Self {
            authority,
            in_flight: AtomicUsize::new(0),
            proven: AtomicBool::new(false),
            health: Mutex::default(),
        }
    }

    /// Host and port.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Requests that run there through this router.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request until the result is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Whether it has answered anything yet.
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Whether it failed and has not answered a probe since.
    pub fn is_ejected(&self) -> bool {
        self.health().probe_at.is_some()
    }

    /// Whether it said lately that it has no room.
    pub fn is_busy(&self, now: Instant) -> bool {
        self.health().busy_until.is_some_and(|until| now < until)
    }

    /// It had no room.
    pub fn note_busy(&self, now: Instant) {
        self.health().busy_until = Some(now + BUSY);
    }

    /// What computes there, by its last answer; none: it has not said so since it failed.
    pub fn revision(&self) -> Option<HeaderValue> {
        self.health().revision.clone()
    }

    /// It answered with these headers.
    pub fn note_revision(&self, headers: &HeaderMap) {
        self.health().revision = headers.get(HEADER_ENGINE).cloned();
    }

    /// A request was answered: all is forgotten.
    pub fn note_answer(&self) {
        self.proven.store(true, Ordering::Relaxed);
        let mut health = self.health();
        health.failures = 0;
        health.strikes = 0;
        health.probe_at = None;
    }

    /// It answered a request with 502 or 503 that another engine answered well: so it was not the request's
    /// or its version's fault. Returns whether this ejected the engine. One that answers probes and still
    /// fails requests goes at its next strike, for longer each time.
    pub fn note_outdone(&self, now: Instant) -> bool {
        let mut health = self.health();
        health.strikes = health.strikes.saturating_add(1);
        if health.probe_at.is_some() || health.strikes < STRIKES {
            return false;
        }
        health.failures += 1;
        health.probe_at = Some(now + back_off(health.failures));
        true
    }

    /// A connection failed. Returns whether this ejected the engine: many requests that fail by the same
    /// death count once.
    pub fn note_failure(&self, now: Instant) -> bool {
        let mut health = self.health();
        // Another process may come back in its place.
        health.revision = None;
        if health.probe_at.is_some() {
            return false;
        }
        health.failures += 1;
        health.probe_at = Some(now + back_off(health.failures));
        true
    }

    /// Whether a probe is due: it is ejected and its back-off is over, or nothing is known yet.
    pub fn wants_probe(&self, now: Instant) -> bool {
        self.health()
            .probe_at
            .map_or(!self.is_proven(), |at| at <= now)
    }

    /// The probe's result. A good one ends the ejection but keeps the count of failures until a request is
    /// answered, so that an engine which fails under requests alone stays away longer each time. A bad one
    /// ejects an engine that nothing is known of yet.
    pub fn note_probe(&self, answered: bool, now: Instant) {
        let mut health = self.health();
        if answered {
            self.proven.store(true, Ordering::Relaxed);
            health.probe_at = None;
        } else {
            health.failures += 1;
            health.probe_at = Some(now + back_off(health.failures));
        }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn back_off(failures: u32) -> Duration {
    FIRST_BACK_OFF
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(LAST_BACK_OFF)
}

/// Engines by address, as long as a table or a request holds them.
#[derive(Debug, Default)]
pub struct Registry(Mutex<HashMap<Authority, Weak<Engine>>>);

impl Registry {
    /// The engine at `authority`, with the state it has.
    pub fn engine(&self, authority: &Authority) -> Arc<Engine> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = known.get(authority).and_then(Weak::upgrade) {
            return engine;
        }
        known.retain(|_, engine| engine.strong_count() > 0);
        let engine = Arc::new(Engine::new(authority.clone()));
        known.insert(authority.clone(), Arc::downgrade(&engine));
        engine
    }
}

/// What an engine is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What is to run.
    pub version: &'a Version,
    /// Whether it is on trial.
    pub is_candidate: bool,
    /// Who asks, where somebody is named.
    pub caller: Option<&'a str>,
    /// How the request's text begins: [`crate::beginning`].
    pub beginning: Option<u64>,
    /// Where the conversation that it goes on with ran last: [`crate::places`].
    pub before: Option<&'a Arc<Engine>>,
}

/// What requests are kept together by.
#[derive(Clone, Copy)]
enum Kept<'a> {
    /// An adapter's digest, or a caller.
    By(&'a str),
    /// A conversation.
    Beginning(u64),
}

/// Picks the engine for a request that was not `tried` yet.
///
/// Engines of the operator's list that have the version come first. Those that DNS alone knows (`found`)
/// help out where none of the list is left, and for stable versions only: they hold the mounted
/// configuration. Ejected ones are the last resort.
pub fn pick(
    table: &Table,
    found: &[Arc<Engine>],
    wanted: Wanted<'_>,
    tried: &[Arc<Engine>],
) -> Option<Arc<Engine>> {
    let untried = |engine: &&Arc<Engine>| !tried.iter().any(|tried| Arc::ptr_eq(tried, engine));
    let listed: Vec<_> = table
        .engines
        .iter()
        .filter(|target| target.has(wanted.version))
        .map(|target| &target.engine)
        .filter(untried)
        .collect();
    let others: Vec<_> = found
        .iter()
        .filter(|_| !wanted.is_candidate)
        .filter(untried)
        .filter(|engine| {
            !table
                .engines
                .iter()
                .any(|target| Arc::ptr_eq(&target.engine, engine))
        })
        .collect();
    let healthy = |engines: &[&Arc<Engine>]| -> Vec<Arc<Engine>> {
        engines
            .iter()
            .filter(|engine| !engine.is_ejected())
            .map(|engine| (*engine).clone())
            .collect()
    };
    let tiers = [healthy(&listed), healthy(&others)];
    tiers
        .iter()
        .find_map(|engines| balance(engines, wanted))
        .or_else(|| {
            balance(
                &[listed, others]
                    .concat()
                    .into_iter()
                    .cloned()
                    .collect::<Vec<_>>(),
                wanted,
            )
        })
}

/// The engine that this version always goes to (rendezvous hashing, so that few versions move when engines
/// come and go, and each engine keeps few adapters warm), unless it carries more than 1.25 times the
/// average: then the next in the version's own order that does not, where it was sent before in such a case
/// (Mirrokni et al. 2018, arXiv:1608.01350). A conversation that ran on another engine goes on there, while that
/// carries no more either: the adapter is warm there, too, and the text is known. The bare base is warm everywhere: its
/// callers, and the conversations of who is not named, have orders of their own, so that an engine still knows what
/// they began with. The rest goes to the least loaded.
fn balance(engines: &[Arc<Engine>], wanted: Wanted<'_>) -> Option<Arc<Engine>> {
    let kept = match (&*wanted.version.digest, wanted.caller, wanted.beginning) {
        ("", Some(caller), _) => Kept::By(caller),
        ("", None, Some(beginning)) => Kept::Beginning(beginning),
        ("", None, None) => {
            let least = engines.iter().min_by_key(|engine| engine.in_flight());
            return least.cloned();
        }
        (digest, ..) => Kept::By(digest),
    };
    let running: usize = engines.iter().map(|engine| engine.in_flight()).sum();
    // In quarters, with this request counted in: load <= ceil(1.25 * (running + 1) / engines). Not all can be there.
    let limit = (5 * (running + 1)).div_ceil(4 * engines.len().max(1));
    if let Some(before) = wanted.before
        && before.in_flight() < limit
        && engines.iter().any(|engine| Arc::ptr_eq(engine, before))
    {
        return Some(before.clone());
    }
    engines
        .iter()
        .max_by_key(|engine| (engine.in_flight() < limit, score(engine, kept)))
        .cloned()
}

fn score(engine: &Engine, kept: Kept<'_>) -> u64 {
    // Fixed keys: every router of an endpoint comes to the same order.
    let mut hasher = std::hash::DefaultHasher::new();
    engine.authority.as_str().hash(&mut hasher);
    match kept {
        Kept::By(name) => name.hash(&mut hasher),
        Kept::Beginning(beginning) => beginning.hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use graftwork_contract::proto::router::v1 as wire;
    use graftwork_contract::signing::Fence;
    use graftwork_listen::clock;

    fn table(registry: &Registry, engines: usize, lacking: &[usize]) -> Table {
        let push = wire::RoutingTable {
            models: (1..=40)
                .map(|number| wire::Model {
                    name: format!("m{number}"),
                    stable: Some(wire::Version {
                        version: 1,
                        digest: format!("sha256:{number}"),
                    }),
                    candidate: None,
                    fallback: String::new(),
                })
                .collect(),
            engines: (0..engines)
                .map(|index| wire::EngineTarget {
                    pod: format!("e-{index}"),
                    address: format!("10.0.0.{index}:8080"),
                    lacks: lacking
                        .iter()
                        .filter(|lacking| **lacking == index)
                        .map(|_| "sha256:1".to_owned())
                        .collect(),
                })
                .collect(),
            base_name: "tiny".into(),
            stand_ins: vec![],
        };
        Table::from_push(&push, Fence::default(), registry, clock::now()).unwrap()
    }

    fn stable<'a>(table: &'a Table, model: &str) -> Wanted<'a> {
        Wanted {
            version: &table.models[model].stable,
            is_candidate: false,
            caller: None,
            beginning: None,
            before: None,
        }
    }

    fn home(table: &Table, model: &str, tried: &[Arc<Engine>]) -> Option<Arc<Engine>> {
        pick(table, &[], stable(table, model), tried)
    }

    #[test]
    fn a_version_stays_on_its_engine_and_few_move_when_one_goes() {
        let registry = Registry::default();
        let (four, three) = (table(&registry, 4, &[]), table(&registry, 3, &[]));
        let mut used = std::collections::HashSet::new();
        for name in four.models.keys().filter(|name| *name != "tiny") {
            let before = home(&four, name, &[]).unwrap();
            used.insert(before.authority().clone());
            assert!(Arc::ptr_eq(&before, &home(&four, name, &[]).unwrap()));
            if before.authority() != "10.0.0.3:8080" {
                assert!(
                    Arc::ptr_eq(&before, &home(&three, name, &[]).unwrap()),
                    "{name} moved"
                );
            }
        }
        assert_eq!(used.len(), 4, "40 versions use all 4 engines");
    }

    #[test]
    fn load_above_the_bound_goes_to_the_least_loaded() {
        let registry = Registry::default();
        let table = table(&registry, 4, &[]);
        let mut running = Vec::new();
        for _ in 0..100 {
            running.push(home(&table, "m1", &[]).unwrap().begin());
        }
        let loads: Vec<_> = table
            .engines
            .iter()
            .map(|target| target.engine.in_flight())
            .collect();
        let top = *loads.iter().max().unwrap();
        assert_eq!(loads.iter().sum::<usize>(), 100);
        assert!(top <= 32, "25 on average, 32 at most: {loads:?}");
        drop(running);
        assert_eq!(table.engines[0].engine.in_flight(), 0);
    }

    #[test]
    fn what_overflows_goes_where_it_overflowed_before() {
        let registry = Registry::default();
        let table = table(&registry, 8, &[]);
        let mut order = Vec::new();
        while let Some(next) = home(&table, "m1", &order) {
            order.push(next);
        }
        // Every engine is busy but the last in this version's order.
        let _others: Vec<_> = order.iter().take(7).map(Engine::begin).collect();
        for _ in 0..20 {
            let mut running = Vec::new();
            for expected in order.iter().take(3) {
                let engine = home(&table, "m1", &[]).unwrap();
                assert!(Arc::ptr_eq(&engine, expected));
                running.push(engine.begin());
            }
        }
    }

    #[test]
    fn a_conversation_with_an_adapter_goes_on_where_it_was_while_there_is_room() {
        let registry = Registry::default();
        let table = table(&registry, 4, &[]);
        let usual = home(&table, "m1", &[]).unwrap();
        let mut engines = table.engines.iter().map(|target| &target.engine);
        let other = engines.find(|engine| !Arc::ptr_eq(engine, &usual)).unwrap();
        let wanted = Wanted {
            before: Some(other),
            ..stable(&table, "m1")
        };
        let picked = || pick(&table, &[], wanted, &[]).unwrap();
        assert!(Arc::ptr_eq(&picked(), other));
        let running: Vec<_> = (0..3).map(|_| other.begin()).collect();
        assert!(Arc::ptr_eq(&picked(), &usual), "it has too much");
        drop(running);
        assert!(Arc::ptr_eq(&picked(), other));
        other.note_failure(clock::now());
        assert!(Arc::ptr_eq(&picked(), &usual), "it is ejected");
    }

    #[test]
    fn a_caller_of_the_base_stays_on_its_engine_while_there_is_room() {
        let registry = Registry::default();
        let table = table(&registry, 4, &[]);
        let engine = |caller: &str| {
            let wanted = Wanted {
                caller: Some(caller),
                ..stable(&table, "tiny")
            };
            pick(&table, &[], wanted, &[]).unwrap()
        };
        let used: std::collections::HashSet<_> = (0..40)
            .map(|n| engine(&format!("user-{n}")).authority().clone())
            .collect();
        assert_eq!(used.len(), 4, "40 callers use all 4 engines");
        let before = engine("ann");
        assert!(Arc::ptr_eq(&before, &engine("ann")));
        let _running: Vec<_> = (0..3).map(|_| before.begin()).collect();
        assert!(!Arc::ptr_eq(&before, &engine("ann")), "it has too much");
    }

    #[test]
    fn a_conversation_of_nobody_stays_on_one_engine_while_there_is_room() {
        let registry = Registry::default();
        let table = table(&registry, 4, &[]);
        let engine = |beginning| {
            let wanted = Wanted {
                beginning: Some(beginning),
                ..stable(&table, "tiny")
            };
            pick(&table, &[], wanted, &[]).unwrap()
        };
        let used: std::collections::HashSet<_> = (0..40)
            .map(|conversation| engine(conversation).authority().clone())
            .collect();
        assert_eq!(used.len(), 4, "40 conversations use all 4 engines");
        let before = engine(7);
        assert!(Arc::ptr_eq(&before, &engine(7)));
        let _running: Vec<_> = (0..3).map(|_| before.begin()).collect();
        assert!(!Arc::ptr_eq(&before, &engine(7)), "it has too much");
    }

    #[test]
    fn the_base_goes_to_the_least_loaded() {
        let registry = Registry::default();
        let table = table(&registry, 3, &[]);
        let _running: Vec<_> = (0..9)
            .map(|_| home(&table, "tiny", &[]).unwrap().begin())
            .collect();
        assert!(
            table
                .engines
                .iter()
                .all(|target| target.engine.in_flight() == 3)
        );
    }

    #[test]
    fn an_engine_that_lacks_the_digest_gets_nothing_of_it() {
        let registry = Registry::default();
        let table = table(&registry, 2, &[0]);
        for _ in 0..10 {
            assert_eq!(
                home(&table, "m1", &[]).unwrap().authority(),
                "10.0.0.1:8080"
            );
        }
        let tried = [home(&table, "m1", &[]).unwrap()];
        assert!(home(&table, "m1", &tried).is_none());
    }

    #[test]
    fn engines_of_dns_help_out_for_stable_versions_only() {
        let registry = Registry::default();
        let table = table(&registry, 1, &[0]);
        let found = [registry.engine(&"10.0.0.9:8080".parse().unwrap())];
        let wanted = stable(&table, "m1");
        let picked = pick(&table, &found, wanted, &[]).unwrap();
        assert_eq!(picked.authority(), "10.0.0.9:8080");
        let candidate = Wanted {
            is_candidate: true,
            ..wanted
        };
        assert!(pick(&table, &found, candidate, &[]).is_none());
        let listed = pick(&table, &found, stable(&table, "m2"), &[]).unwrap();
        assert_eq!(
            listed.authority(),
            "10.0.0.0:8080",
            "the operator's list comes first"
        );
        listed.note_failure(clock::now());
        let picked = pick(&table, &found, stable(&table, "m2"), &[]).unwrap();
        assert_eq!(picked.authority(), "10.0.0.9:8080");
    }

    #[test]
    fn an_ejected_engine_comes_back_by_a_probe_and_waits_longer_each_time() {
        let registry = Registry::default();
        let table = table(&registry, 2, &[]);
        let engine = home(&table, "m1", &[]).unwrap();
        let mut now = clock::now();
        assert!(engine.note_failure(now));
        assert!(!engine.note_failure(now), "one death counts once");
        assert!(!Arc::ptr_eq(&engine, &home(&table, "m1", &[]).unwrap()));
        let mut waits = Vec::new();
        for _ in 0..7 {
            let began = now;
            while !engine.wants_probe(now) {
                now += Duration::from_millis(100);
            }
            waits.push((now - began).as_millis());
            engine.note_probe(false, now);
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 15000, 15000]);
        engine.note_probe(true, now);
        assert!(Arc::ptr_eq(&engine, &home(&table, "m1", &[]).unwrap()));
        engine.note_failure(now);
        assert!(
            !engine.wants_probe(now + Duration::from_secs(14)),
            "failures are remembered"
        );
        engine.note_answer();
        engine.note_failure(now);
        assert!(
            engine.wants_probe(now + FIRST_BACK_OFF),
            "an answer makes it forget"
        );
    }

    #[test]
    fn an_engine_that_others_outdo_three_times_in_a_row_is_ejected() {
        let registry = Registry::default();
        let table = table(&registry, 2, &[]);
        let engine = home(&table, "m1", &[]).unwrap();
        let now = clock::now();
        assert!(!engine.note_outdone(now));
        assert!(!engine.note_outdone(now));
        engine.note_answer();
        assert!(!engine.note_outdone(now), "an answer makes it forget");
        assert!(!engine.note_outdone(now));
        assert!(engine.note_outdone(now));
        assert!(!engine.note_outdone(now), "it is out already");
        assert!(!Arc::ptr_eq(&engine, &home(&table, "m1", &[]).unwrap()));
        engine.note_probe(true, now);
        assert!(Arc::ptr_eq(&engine, &home(&table, "m1", &[]).unwrap()));
        assert!(
            engine.note_outdone(now),
            "a probe is no request: the next failure is enough"
        );
        assert!(!engine.wants_probe(now + FIRST_BACK_OFF), "and for longer");
    }

    #[test]
    fn where_all_are_ejected_one_is_tried_all_the_same() {
        let registry = Registry::default();
        let table = table(&registry, 2, &[]);
        for target in &table.engines {
            target.engine.note_failure(clock::now());
        }
        let first = home(&table, "m1", &[]).unwrap();
        let second = home(&table, "m1", std::slice::from_ref(&first)).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(home(&table, "m1", &[first, second]).is_none());
    }

    #[test]
    fn a_new_table_keeps_an_engines_state() {
        let registry = Registry::default();
        let before = table(&registry, 1, &[]);
        before.engines[0].engine.note_failure(clock::now());
        assert!(table(&registry, 1, &[]).engines[0].engine.is_ejected());
    }
}
