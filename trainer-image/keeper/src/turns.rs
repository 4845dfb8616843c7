//! Turns of those who make the keeper read large files. Such calls change nothing and are not signed
//! (`operator run --plan-only` and people ask too), so every address has its share of the reading and a
//! queue that ends: whoever floods the keeper waits for itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls that read at one time.
const READERS: usize = 8;
/// Calls of one address that read at one time.
const READERS_PER_ADDRESS: usize = 4;
/// Calls of one address that read or wait. Below the 200 that one connection may have under way, so
/// that records can still be asked for.
pub const CALLS_PER_ADDRESS: usize = 128;

/// An address has too many calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this address has {CALLS_PER_ADDRESS} calls that read models or adapters, the most at one time; ask again later"
)]
pub struct TooManyCalls;

/// Gives turns.
#[derive(Debug, Clone)]
pub struct Turns {
    readers: Arc<Semaphore>,
    callers: Callers,
}

/// By address; those without a call are not there.
type Callers = Arc<Mutex<HashMap<Option<IpAddr>, Caller>>>;

#[derive(Debug)]
struct Caller {
    /// Reading or waiting.
    calls: usize,
    readers: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            readers: Arc::new(Semaphore::new(READERS)),
            callers: Callers::default(),
        }
    }
}

/// A call that reads or waits, and takes its turns one after the other.
#[derive(Debug)]
pub struct Call {
    own: Arc<Semaphore>,
    of_all: Arc<Semaphore>,
    place: Arc<Place>,
}

/// Counts a call until it and its turns have ended.
#[derive(Debug)]
struct Place {
    address: Option<IpAddr>,
    callers: Callers,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(caller) = callers.get_mut(&self.address) {
            caller.calls -= 1;
            if caller.calls == 0 {
                callers.remove(&self.address);
            }
        }
    }
}

/// Leave to read, until it is dropped.
#[derive(Debug)]
#[must_use = "the turn ends where it is dropped"]
pub struct Turn {
    _own: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
    // A call that left may still read: its address keeps its count until that ends.
    _place: Arc<Place>,
}

impl Call {
    /// Waits for a turn. Whoever has one waits for nobody: what others are reading is waited for
    /// before, or what hangs in one place would take every turn.
    pub async fn turn(&self) -> Turn {
        // First its own, so that no address has more than its share of the common queue. Neither is
        // ever closed, which is the only error.
        let own = Arc::clone(&self.own).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.of_all).acquire_owned().await.ok();
        Turn {
            _own: own,
            _of_all: of_all,
            _place: Arc::clone(&self.place),
        }
    }
}

impl Turns {
    /// Counts a call of `address`.
    ///
    /// # Errors
    /// Where that address has too many already.
    pub fn enter(&self, address: Option<IpAddr>) -> Result<Call, TooManyCalls> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let caller = callers.entry(address).or_insert_with(|| Caller {
            calls: 0,
            readers: Arc::new(Semaphore::new(READERS_PER_ADDRESS)),
        });
        if caller.calls == CALLS_PER_ADDRESS {
            return Err(TooManyCalls);
        }
        caller.calls += 1;
        let place = Place {
            address,
            callers: Arc::clone(&self.callers),
        };
        Ok(Call {
            own: Arc::clone(&caller.readers),
            of_all: Arc::clone(&self.readers),
            place: Arc::new(place),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ONE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));
    const OTHER: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)));

    async fn take(turns: &Turns, address: Option<IpAddr>) -> Result<Turn, TooManyCalls> {
        Ok(turns.enter(address)?.turn().await)
    }

    /// A turn that is free now.
    async fn now(turns: &Turns, address: Option<IpAddr>) -> Option<Turn> {
        // A task that did much is made to wait, free turn or not.
        tokio::task::yield_now().await;
        let turn = tokio::time::timeout(Duration::ZERO, take(turns, address)).await;
        turn.ok().map(Result::unwrap)
    }

    #[tokio::test]
    async fn who_asks_for_much_waits_for_itself() {
        let turns = Turns::default();
        let mut taken = Vec::new();
        for _ in 0..READERS_PER_ADDRESS {
            taken.extend(now(&turns, ONE).await);
        }
        assert_eq!(taken.len(), READERS_PER_ADDRESS);
        assert!(now(&turns, ONE).await.is_none());
        let others = now(&turns, OTHER).await;
        assert!(others.is_some());
        drop(taken.pop());
        taken.extend(now(&turns, ONE).await);
        assert_eq!(taken.len(), READERS_PER_ADDRESS);
    }

    #[tokio::test]
    async fn all_addresses_together_have_their_limit() {
        let turns = Turns::default();
        let mut taken = Vec::new();
        for last in 0..=u8::try_from(READERS).unwrap() {
            let address = Some(IpAddr::from([10, 0, 1, last]));
            taken.extend(now(&turns, address).await);
        }
        assert_eq!(taken.len(), READERS);
    }

    #[tokio::test]
    async fn a_queue_ends_and_those_who_leave_make_room() {
        let turns = Turns::default();
        let mut waiting = Vec::new();
        for _ in 0..CALLS_PER_ADDRESS {
            let mut call = Box::pin(take(&turns, ONE));
            // Polled once: it has its place, and some have their turn.
            let answered = tokio::time::timeout(Duration::ZERO, &mut call).await;
            waiting.push((call, answered));
        }
        assert_eq!(turns.enter(ONE).unwrap_err(), TooManyCalls);
        assert!(now(&turns, OTHER).await.is_some());
        // The last one waits, and leaves without its turn.
        waiting.pop();
        let refused = tokio::time::timeout(Duration::ZERO, take(&turns, ONE)).await;
        assert!(refused.is_err(), "there is a place again, and it waits");
        drop(waiting);
        assert!(turns.callers.lock().unwrap().is_empty());
        assert!(now(&turns, ONE).await.is_some());
    }
}
