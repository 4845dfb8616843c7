//! At most one leader, and none that can't renew.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fake_api::{Answer, FakeApi};
use graftwork_operator::lease::{COUNTED_FROM, Candidate, Elector, Term, Times};
use graftwork_operator::metrics::Metrics;
use http::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// 64 zeros in base64.
const KEY: &str =
    "MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMA==";

const TIMES: Times = Times {
    lease: Duration::from_millis(600),
    renew_deadline: Duration::from_millis(400),
    retry: Duration::from_millis(50),
};

fn candidate(name: &str) -> Candidate {
    Candidate {
        namespace: "ns".to_owned(),
        identity: name.to_owned(),
        times: TIMES,
    }
}

/// A lease under optimistic concurrency, and a switch that cuts the server off.
#[derive(Clone, Default)]
struct Server {
    lease: Arc<Mutex<Option<Value>>>,
    cut_off: Arc<AtomicBool>,
    /// Leases that were made so far: each has a UID of its own.
    made: Arc<AtomicU64>,
    /// There is a signing key: somebody has led here.
    was_led: bool,
}

/// Waits until `elector` leads.
async fn lead(elector: &mut Elector) {
    assert!(elector.acquire(&CancellationToken::new()).await);
}

impl Server {
    fn api(&self) -> FakeApi {
        let server = self.clone();
        FakeApi::new(move |method, path, body| {
            if path.starts_with("secrets/") && !server.cut_off.load(Ordering::SeqCst) {
                assert_eq!(*method, Method::GET);
                server.secret()
            } else {
                server.answer(method, body)
            }
        })
    }

    /// The Secret of the signing key. Git may have brought an empty one.
    fn secret(&self) -> Answer {
        let seed = if self.was_led { KEY } else { "" };
        Answer::Object(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "graftwork-operator-signing-key"},
            "data": {"seed": seed},
        }))
    }

    fn answer(&self, method: &Method, body: &Value) -> Answer {
        if self.cut_off.load(Ordering::SeqCst) {
            return Answer::Silence;
        }
        let mut lease = self.lease.lock().unwrap();
        let version = lease
            .as_ref()
            .map(|it| it["metadata"]["resourceVersion"].clone());
        let store = |lease: &mut Option<Value>| {
            let number = version
                .as_ref()
                .and_then(|version| version.as_str()?.parse::<u64>().ok())
                .unwrap_or(0);
            let mut next = body.clone();
            next["metadata"]["resourceVersion"] = json!((number + 1).to_string());
            if lease.is_none() {
                let number = self.made.fetch_add(1, Ordering::SeqCst);
                next["metadata"]["uid"] = json!(format!("lease-{number}"));
            }
            *lease = Some(next.clone());
            Answer::Object(next)
        };
        match (method, &version) {
            (&Method::GET, None) => Answer::Status(404, "NotFound"),
            (&Method::GET, Some(_)) => Answer::Object(lease.clone().unwrap()),
            (&Method::POST, Some(_)) => Answer::Status(409, "AlreadyExists"),
            (&Method::POST, None) => store(&mut lease),
            // As the real one: an update of a Lease creates it, unless it names the one that it means.
            (&Method::PUT, None) if body["metadata"].get("uid").is_none() => store(&mut lease),
            (&Method::PUT, Some(known)) if *known == body["metadata"]["resourceVersion"] => {
                store(&mut lease)
            }
            _ => Answer::Status(409, "Conflict"),
        }
    }

    fn elector(&self, name: &str) -> (Elector, Arc<Term>) {
        self.counted(name, Metrics::new().unwrap())
    }

    fn counted(&self, name: &str, metrics: Metrics) -> (Elector, Arc<Term>) {
        let term = Term::new();
        let client = self.api().client();
        let elector = Elector::new(client, candidate(name), Arc::clone(&term), metrics);
        (elector, term)
    }

    /// A cluster whose Lease was lost, and whose leader may be there still.
    fn without_its_lease() -> Self {
        Self {
            was_led: true,
            ..Self::default()
        }
    }

    /// A lease that was given back after its eighth term: whoever comes next may begin at once.
    fn with_a_free_lease() -> Self {
        let server = Self::without_its_lease();
        *server.lease.lock().unwrap() = Some(json!({
            "metadata": {"name": "graftwork-operator", "resourceVersion": "5", "uid": "old"},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": 0, "leaseTransitions": 8}
        }));
        server
    }

    fn holder(&self) -> String {
        let lease = self.lease.lock().unwrap().clone().unwrap();
        lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn of_two_that_start_together_one_leads() {
    let server = Server::default();
    let (mut one, one_term) = server.elector("one");
    let (mut two, two_term) = server.elector("two");
    let stop = CancellationToken::new();
    let lead = async {
        tokio::select! {
            () = lead(&mut one) => { one.keep(&stop).await; }
            () = lead(&mut two) => { two.keep(&stop).await; }
        }
    };
    let watch = async {
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!(one_term.holds() && two_term.holds()), "two leaders");
        }
        assert!(one_term.holds() || two_term.holds(), "no leader");
        stop.cancel();
    };
    tokio::join!(lead, watch);
}

#[tokio::test]
async fn a_leader_that_is_cut_off_ends_before_another_one_begins() {
    let server = Server::with_a_free_lease();
    let (mut old, old_term) = server.elector("old");
    lead(&mut old).await;
    assert_eq!(old_term.epoch(), 9);
    let stop = CancellationToken::new();
    let (mut new, new_term) = server.elector("new");
    let mut ended = None;
    let mut began = None;
    let started = Instant::now();
    server.cut_off.store(true, Ordering::SeqCst);
    let lose = async {
        assert!(!old.keep(&stop).await, "the lease is lost, not given back");
        ended = Some(started.elapsed());
        assert!(!old_term.holds());
        // From here on the server answers again: only the other one asks.
        server.cut_off.store(false, Ordering::SeqCst);
    };
    lose.await;
    let gain = async {
        lead(&mut new).await;
        began = Some(started.elapsed());
    };
    gain.await;
    let (ended, began) = (ended.unwrap(), began.unwrap());
    assert!(
        ended <= TIMES.renew_deadline + Duration::from_millis(150),
        "{ended:?}"
    );
    assert!(began > ended && new_term.holds());
    assert_eq!(new_term.epoch(), 10, "another term");
    assert_eq!(server.holder(), "new");
}

#[tokio::test]
async fn a_lease_that_changes_is_not_taken_and_one_that_does_not_is() {
    let server = Server::with_a_free_lease();
    let (mut leader, _term) = server.elector("leader");
    lead(&mut leader).await;
    let stop = CancellationToken::new();
    let (mut follower, follower_term) = server.elector("follower");
    let follow = async {
        let waited = tokio::time::timeout(Duration::from_millis(1500), lead(&mut follower)).await;
        assert!(waited.is_err(), "the leader renews");
        stop.cancel();
    };
    let (given_back, ()) = tokio::join!(leader.keep(&stop), follow);
    assert!(given_back);
    let started = Instant::now();
    lead(&mut follower).await;
    assert!(
        started.elapsed() < Duration::from_millis(300),
        "a lease that was given back is free"
    );
    assert_eq!(follower_term.epoch(), 10);
}

#[tokio::test]
async fn the_clocks_of_others_do_not_matter() {
    let server = Server::default();
    *server.lease.lock().unwrap() = Some(json!({
        "metadata": {"name": "graftwork-operator", "resourceVersion": "5"},
        "spec": {
            "holderIdentity": "gone",
            "leaseDurationSeconds": 0,
            "leaseTransitions": 8,
            "renewTime": "2099-01-01T00:00:00.000000Z"
        }
    }));
    let (mut elector, term) = server.elector("me");
    let started = Instant::now();
    lead(&mut elector).await;
    let waited = started.elapsed();
    assert!(
        waited >= TIMES.lease,
        "{waited:?}: a full lease as seen from here"
    );
    assert!(waited < TIMES.lease * 2, "{waited:?}");
    assert_eq!(term.epoch(), 9);
}

#[tokio::test]
async fn who_makes_the_lease_begins_a_full_lease_later_above_every_epoch_that_can_have_been() {
    let server = Server::without_its_lease();
    let (mut elector, term) = server.elector("me");
    let began = Instant::now();
    let now = jiff::Timestamp::now().as_second() - COUNTED_FROM;
    lead(&mut elector).await;
    assert!(
        began.elapsed() >= TIMES.lease,
        "{:?}: the leader of a lost lease may have renewed a moment ago",
        began.elapsed()
    );
    assert!(began.elapsed() < TIMES.lease * 2);
    assert!(term.holds());
    assert!(
        term.epoch() >= u64::try_from(now).unwrap(),
        "{}",
        term.epoch()
    );
}

#[tokio::test]
async fn a_lease_is_waited_for_from_the_slow_answer_on_that_showed_it() {
    let late = TIMES.lease / 2;
    for (slow, server) in [
        (Method::GET, {
            let server = Server::with_a_free_lease();
            let mut lease = server.lease.lock().unwrap();
            lease.as_mut().unwrap()["spec"]["holderIdentity"] = json!("gone");
            drop(lease);
            server
        }),
        (Method::POST, Server::without_its_lease()),
    ] {
        let of_slow = slow.clone();
        let first = AtomicBool::new(true);
        let api = FakeApi::new(move |method, path, body| {
            if path.starts_with("secrets/") {
                return server.secret();
            }
            let answer = server.answer(method, body);
            if *method == of_slow && first.swap(false, Ordering::SeqCst) {
                Answer::Late(late, Box::new(answer))
            } else {
                answer
            }
        });
        let term = Term::new();
        let metrics = Metrics::new().unwrap();
        let me = candidate("me");
        let mut elector = Elector::new(api.client(), me, Arc::clone(&term), metrics);
        let began = Instant::now();
        lead(&mut elector).await;
        let waited = began.elapsed();
        assert!(waited >= late + TIMES.lease, "{slow}: {waited:?}");
        assert!(term.holds());
    }
}

#[tokio::test]
async fn the_first_installation_is_led_at_once() {
    let server = Server::default();
    let (mut elector, term) = server.elector("me");
    let began = Instant::now();
    lead(&mut elector).await;
    let waited = began.elapsed();
    assert!(waited < TIMES.lease / 2, "{waited:?}: nobody has led");
    assert!(term.holds());
    assert_eq!(server.holder(), "me");
    let (mut other, _) = server.elector("other");
    let follows = tokio::time::timeout(TIMES.lease / 2, lead(&mut other)).await;
    assert!(follows.is_err(), "it is held");
}

#[tokio::test]
async fn an_installation_whose_key_was_deleted_is_not_taken_for_the_first_one() {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "graftwork-keeper", "namespace": "team", "uid": "d", "resourceVersion": "1"},
    });
    let server = Server::default();
    let one = server.api().with("deployments", vec![deployment]);
    let unreadable = server.api().refusing("deployments", 403);
    for api in [one, unreadable] {
        *server.lease.lock().unwrap() = None;
        let metrics = Metrics::new().unwrap();
        let mut elector = Elector::new(api.client(), candidate("me"), Term::new(), metrics);
        let began = Instant::now();
        lead(&mut elector).await;
        let waited = began.elapsed();
        assert!(waited >= TIMES.lease, "{waited:?}");
        let reads = api.reads();
        let asked = reads.iter().find(|read| read.plural == "deployments");
        let query = &asked.unwrap().query;
        assert!(query.contains("managed-by"), "the operator's own: {query}");
    }
}

#[tokio::test]
async fn who_is_asked_to_stop_while_it_waits_does_not_hold_what_it_made() {
    let server = Server::without_its_lease();
    let (mut maker, term) = server.elector("maker");
    let stop = CancellationToken::new();
    let ask = async {
        // In the midst of the wait, which takes a lease.
        tokio::time::sleep(TIMES.lease / 2).await;
        assert_eq!(server.holder(), "maker");
        stop.cancel();
    };
    let (leads, ()) = tokio::join!(maker.acquire(&stop), ask);
    assert!(!leads && !term.holds());
    assert_eq!(server.holder(), "");
    // Nobody has led since the lease was lost: what its maker waited for is waited for still.
    let (mut next, next_term) = server.elector("next");
    let began = Instant::now();
    lead(&mut next).await;
    let waited = began.elapsed();
    assert!(waited >= TIMES.lease, "{waited:?}");
    assert!(next_term.epoch() > 9);
    // From here on it is a lease like any other.
    let stop = CancellationToken::new();
    stop.cancel();
    assert!(next.keep(&stop).await);
    let (mut last, _) = server.elector("last");
    let began = Instant::now();
    lead(&mut last).await;
    assert!(began.elapsed() < TIMES.lease / 2, "it was given back");
}

#[tokio::test]
async fn who_is_asked_to_stop_while_another_one_leads_leaves_the_lease_alone() {
    let server = Server::with_a_free_lease();
    let (mut leader, _) = server.elector("leader");
    lead(&mut leader).await;
    let (mut follower, _) = server.elector("follower");
    let stop = CancellationToken::new();
    let ask = async {
        // The leader renews meanwhile, and the follower looks again.
        tokio::time::sleep(TIMES.retry * 2).await;
        stop.cancel();
    };
    let (leads, ()) = tokio::join!(follower.acquire(&stop), ask);
    assert!(!leads);
    assert_eq!(server.holder(), "leader");
}

#[tokio::test]
async fn a_lease_that_was_had_as_the_process_was_asked_to_stop_is_given_back() {
    let stop = CancellationToken::new();
    let server = Server::with_a_free_lease();
    let asked = stop.clone();
    // The signal comes while the write is under way.
    let of_server = server.clone();
    let api = FakeApi::new(move |method, _, body| {
        if *method == Method::PUT {
            asked.cancel();
        }
        of_server.answer(method, body)
    });
    let term = Term::new();
    let me = candidate("me");
    let metrics = Metrics::new().unwrap();
    let mut elector = Elector::new(api.client(), me, Arc::clone(&term), metrics);
    assert!(!elector.acquire(&stop).await);
    assert!(!term.holds());
    assert_eq!(server.holder(), "");
    assert_eq!(api.lines().len(), 2, "taken and given back");
}

#[tokio::test]
async fn a_leader_that_is_asked_to_stop_between_renewals_gives_the_lease_back_at_once() {
    let server = Server::with_a_free_lease();
    let term = Term::new();
    let me = Candidate {
        times: Times {
            retry: Duration::from_mins(1),
            ..TIMES
        },
        ..candidate("me")
    };
    let metrics = Metrics::new().unwrap();
    let client = server.api().client();
    let mut elector = Elector::new(client, me, term, metrics);
    lead(&mut elector).await;
    let stop = CancellationToken::new();
    let ask = async {
        // Until it has renewed at least once.
        tokio::time::sleep(TIMES.retry).await;
        stop.cancel();
    };
    let both = async { tokio::join!(elector.keep(&stop), ask) };
    let (given_back, ()) = tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .unwrap();
    assert!(given_back);
    assert_eq!(server.holder(), "");
}

#[tokio::test]
async fn a_lease_that_cannot_be_given_back_the_first_time_is_given_back_the_second_time() {
    for (method, code) in [
        (Method::GET, 500),
        (Method::PUT, 500),
        // An earlier write came in between.
        (Method::PUT, 409),
    ] {
        let server = Server::with_a_free_lease();
        let fails = Arc::new(AtomicBool::new(false));
        let of_server = server.clone();
        let (of_fails, of_method) = (Arc::clone(&fails), method.clone());
        let api = FakeApi::new(move |method, _, body| {
            if *method == of_method && of_fails.swap(false, Ordering::SeqCst) {
                Answer::Status(code, "Failure")
            } else {
                of_server.answer(method, body)
            }
        });
        let metrics = Metrics::new().unwrap();
        let mut elector = Elector::new(api.client(), candidate("me"), Term::new(), metrics);
        lead(&mut elector).await;
        assert_eq!(server.holder(), "me");
        fails.store(true, Ordering::SeqCst);
        let stop = CancellationToken::new();
        stop.cancel();
        assert!(elector.keep(&stop).await);
        assert!(!fails.load(Ordering::SeqCst), "{method} {code}: it failed");
        assert_eq!(server.holder(), "", "{method} {code}");
    }
}

#[tokio::test]
async fn a_lease_that_is_being_made_is_not_taken_by_another_one() {
    let server = Server::without_its_lease();
    let (mut maker, _) = server.elector("maker");
    let (mut other, other_term) = server.elector("other");
    let first = tokio::time::timeout(TIMES.lease / 2, lead(&mut maker)).await;
    assert!(first.is_err(), "it waits");
    tokio::select! {
        () = lead(&mut maker) => {}
        () = lead(&mut other) => panic!("the maker renews while it waits"),
    }
    assert!(!other_term.holds());
    assert_eq!(server.holder(), "maker");
}

#[tokio::test]
async fn a_leader_whose_lease_is_gone_ends_at_once_and_the_next_epoch_is_higher() {
    let server = Server::with_a_free_lease();
    let (mut old, old_term) = server.elector("old");
    lead(&mut old).await;
    let (mut new, new_term) = server.elector("new");
    *server.lease.lock().unwrap() = None;
    let gone = Instant::now();
    let stop = CancellationToken::new();
    assert!(!old.keep(&stop).await);
    assert!(!old_term.holds(), "nothing is begun any more");
    assert!(
        gone.elapsed() < TIMES.renew_deadline,
        "{:?}: not at the deadline only",
        gone.elapsed()
    );
    assert!(
        server.lease.lock().unwrap().is_none(),
        "and it is not brought back"
    );
    lead(&mut new).await;
    assert!(new_term.epoch() > old_term.epoch());
}

#[tokio::test]
async fn a_leader_whose_lease_was_taken_ends_at_once() {
    let server = Server::with_a_free_lease();
    let (mut old, old_term) = server.elector("old");
    lead(&mut old).await;
    server.lease.lock().unwrap().as_mut().unwrap()["spec"]["holderIdentity"] = json!("another");
    let taken = Instant::now();
    let stop = CancellationToken::new();
    assert!(!old.keep(&stop).await);
    assert!(!old_term.holds());
    assert!(taken.elapsed() < TIMES.renew_deadline);
    assert_eq!(server.holder(), "another");
}

#[tokio::test]
async fn writes_of_the_lease_are_counted() {
    let server = Server::without_its_lease();
    let metrics = Metrics::new().unwrap();
    let (mut elector, _term) = server.counted("me", metrics.clone());
    lead(&mut elector).await;
    let text = metrics.print();
    let count = |verb: &str| {
        let start =
            format!("graftwork_api_writes_total{{kind=\"Lease\",outcome=\"ok\",verb=\"{verb}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    assert_eq!(count("create"), 1, "{text}");
    assert!(count("update") >= 1, "{text}");
}
