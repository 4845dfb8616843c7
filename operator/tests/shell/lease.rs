//! At most one leader, and none that can't renew.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fake_api::{Answer, FakeApi};
use graftwork_operator::lease::{Elector, Term, Times};
use http::Method;
use serde_json::{Value, json};

const TIMES: Times = Times {
    lease: Duration::from_millis(600),
    renew_deadline: Duration::from_millis(400),
    retry: Duration::from_millis(50),
};

/// A lease under optimistic concurrency, and a switch that cuts the server off.
#[derive(Clone, Default)]
struct Server {
    lease: Arc<Mutex<Option<Value>>>,
    cut_off: Arc<AtomicBool>,
}

impl Server {
    fn api(&self) -> FakeApi {
        let server = self.clone();
        FakeApi::new(move |method, _, body| server.answer(method, body))
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
            *lease = Some(next.clone());
            Answer::Object(next)
        };
        match (method, &version) {
            (&Method::GET, None) => Answer::Status(404, "NotFound"),
            (&Method::GET, Some(_)) => Answer::Object(lease.clone().unwrap()),
            (&Method::POST, Some(_)) => Answer::Status(409, "AlreadyExists"),
            (&Method::POST, None) => store(&mut lease),
            (&Method::PUT, Some(known)) if *known == body["metadata"]["resourceVersion"] => {
                store(&mut lease)
            }
            _ => Answer::Status(409, "Conflict"),
        }
    }

    fn elector(&self, name: &str) -> (Elector, Arc<Term>) {
        let term = Term::new();
        let client = self.api().client();
        let elector = Elector::new(client, "ns", name.to_owned(), TIMES, Arc::clone(&term));
        (elector, term)
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
    let stop = AtomicBool::new(false);
    let lead = async {
        tokio::select! {
            () = one.acquire() => { one.keep(&stop).await; }
            () = two.acquire() => { two.keep(&stop).await; }
        }
    };
    let watch = async {
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!(one_term.holds() && two_term.holds()), "two leaders");
        }
        assert!(one_term.holds() || two_term.holds(), "no leader");
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(lead, watch);
}

#[tokio::test]
async fn a_leader_that_is_cut_off_ends_before_another_one_begins() {
    let server = Server::default();
    let (mut old, old_term) = server.elector("old");
    old.acquire().await;
    assert_eq!(old_term.epoch(), 1);
    let stop = AtomicBool::new(false);
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
        new.acquire().await;
        began = Some(started.elapsed());
    };
    gain.await;
    let (ended, began) = (ended.unwrap(), began.unwrap());
    assert!(
        ended <= TIMES.renew_deadline + Duration::from_millis(150),
        "{ended:?}"
    );
    assert!(began > ended && new_term.holds());
    assert_eq!(new_term.epoch(), 2, "another term");
    assert_eq!(server.holder(), "new");
}

#[tokio::test]
async fn a_lease_that_changes_is_not_taken_and_one_that_does_not_is() {
    let server = Server::default();
    let (mut leader, _term) = server.elector("leader");
    leader.acquire().await;
    let stop = AtomicBool::new(false);
    let (mut follower, follower_term) = server.elector("follower");
    let follow = async {
        let waited = tokio::time::timeout(Duration::from_millis(1500), follower.acquire()).await;
        assert!(waited.is_err(), "the leader renews");
        stop.store(true, Ordering::SeqCst);
    };
    let (given_back, ()) = tokio::join!(leader.keep(&stop), follow);
    assert!(given_back);
    let started = Instant::now();
    follower.acquire().await;
    assert!(
        started.elapsed() < Duration::from_millis(300),
        "a lease that was given back is free"
    );
    assert_eq!(follower_term.epoch(), 2);
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
    elector.acquire().await;
    let waited = started.elapsed();
    assert!(
        waited >= TIMES.lease,
        "{waited:?}: a full lease as seen from here"
    );
    assert!(waited < TIMES.lease * 2, "{waited:?}");
    assert_eq!(term.epoch(), 9);
}
