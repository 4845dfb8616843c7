//! What this process wrote to its objects and its caches do not have yet: an object that is older
//! than the last decision about it must not be acted on.
//!
//! Resource versions are opaque, so none is compared with another one for order. Every write of
//! status names the version that it changes; while the cache shows a version that a write of ours
//! has replaced, it is behind, and any other version is that write or a later event.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;

/// How long to wait for a cache before the API server itself is asked.
pub const WAIT: Duration = Duration::from_secs(3);
/// How often the cache is looked at meanwhile, where its watch says nothing.
pub const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Trails of objects that nobody looks at any more are forgotten after this long.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);

struct Written {
    /// Versions that writes of ours have replaced.
    replaced: Vec<String>,
    last: Instant,
}

/// Whether a cached object may be acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It is what was last written, or newer.
    Current,
    /// The cache does not have the last write yet, and may get it any moment.
    Behind,
    /// The cache has not got it for so long that the API server has to be asked.
    Stuck,
}

/// The writes of this process, by UID of the object.
#[derive(Default)]
pub struct Trail(Mutex<HashMap<String, Written>>);

impl Trail {
    /// Version `old` of the object was replaced by `new`.
    pub fn wrote(&self, uid: &str, old: &str, new: &str) {
        if old == new {
            // The API server found nothing to change: there will be no event.
            return;
        }
        let Ok(mut trails) = self.0.lock() else {
            return;
        };
        trails.retain(|_, written| written.last.elapsed() < FORGOTTEN_AFTER);
        let written = trails.entry(uid.to_owned()).or_insert(Written {
            replaced: Vec::new(),
            last: clock::of_runtime(),
        });
        written.replaced.push(old.to_owned());
        written.last = clock::of_runtime();
    }

    /// A write to version `old` of the object had no answer: it may have been done.
    pub fn lost_answer(&self, uid: &str, old: &str) {
        self.wrote(uid, old, "");
    }

    /// The API server has the version that the cache has.
    pub fn caught_up(&self, uid: &str) {
        if let Ok(mut trails) = self.0.lock() {
            trails.remove(uid);
        }
    }

    /// How a cached version of the object stands to what was written.
    pub fn freshness(&self, uid: &str, cached: &str) -> Freshness {
        let Ok(mut trails) = self.0.lock() else {
            return Freshness::Stuck;
        };
        let Some(written) = trails.get(uid) else {
            return Freshness::Current;
        };
        if written.replaced.iter().any(|replaced| replaced == cached) {
            return if written.last.elapsed() < WAIT {
                Freshness::Behind
            } else {
                Freshness::Stuck
            };
        }
        trails.remove(uid);
        Freshness::Current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_behind_until_it_has_the_last_of_our_writes_or_a_later_event() {
        let trail = Trail::default();
        assert_eq!(trail.freshness("u", "5"), Freshness::Current);
        trail.wrote("u", "5", "8");
        trail.wrote("u", "8", "9");
        for old in ["5", "8", "5"] {
            assert_eq!(trail.freshness("u", old), Freshness::Behind, "{old}");
        }
        assert_eq!(trail.freshness("other", "5"), Freshness::Current);
        assert_eq!(trail.freshness("u", "12"), Freshness::Current);
        assert_eq!(trail.freshness("u", "13"), Freshness::Current);
    }

    #[test]
    fn a_write_that_changes_nothing_is_not_waited_for() {
        let trail = Trail::default();
        trail.wrote("u", "5", "5");
        assert_eq!(trail.freshness("u", "5"), Freshness::Current);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cache_that_stays_behind_is_stuck() {
        let trail = Trail::default();
        trail.wrote("u", "5", "8");
        tokio::time::advance(WAIT).await;
        assert_eq!(trail.freshness("u", "5"), Freshness::Stuck);
        assert_eq!(trail.freshness("u", "8"), Freshness::Current);
    }
}
