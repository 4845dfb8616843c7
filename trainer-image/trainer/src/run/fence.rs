//! A number that tells attempts of one run apart: a trainer that sees a higher one than its own has
//! been replaced and writes nothing more.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use graftwork_artifacts::{Error as StoreError, Store};
use serde::{Deserialize, Serialize};

use super::patience::{self, PAUSES};
use crate::clock;
use crate::failure::{Failure, causes};
use crate::signals::StopFlag;

/// A look at the store is believed for so many times as long as it took: looks take at most a twentieth of the
/// time, and a step that is longer than that is begun only after one. Saves look again.
const LOOKS: u32 = 20;
/// The longest that a look is believed: one may have waited for a store that was away.
const LONGEST_TRUST: Duration = Duration::from_secs(10);

/// `fence/<epoch>.json`: who took the epoch. Two claims never have the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claim {
    pod: String,
    process: u32,
    unix_nanoseconds: u64,
}

/// This attempt's claim to the run.
#[derive(Debug)]
pub struct Fence<'a> {
    store: &'a Store,
    stop: &'a StopFlag,
    folder: String,
    /// This attempt's number.
    pub epoch: u32,
    looked: Instant,
    /// What the newest look between steps took.
    cost: Duration,
}

impl<'a> Fence<'a> {
    /// Takes the next epoch of `folder`, which fences off every earlier one.
    ///
    /// # Errors
    /// The store's.
    pub fn take(
        store: &'a Store,
        folder: String,
        pod: &str,
        stop: &'a StopFlag,
    ) -> Result<Self, StoreError> {
        let claim = Claim {
            pod: pod.to_owned(),
            process: std::process::id(),
            unix_nanoseconds: clock::unix_nanoseconds(),
        };
        let taken = patience::read(|| store.append_numbered(&folder, |_, _| Some(claim.clone())))?;
        Ok(Self {
            store,
            stop,
            folder,
            epoch: taken.number,
            looked: clock::monotonic(),
            cost: Duration::ZERO,
        })
    }

    /// Looks whether a newer attempt has come, unless it has just looked: before every step that takes longer
    /// than [`LOOKS`] looks.
    ///
    /// # Errors
    /// [`Failure`] with `Fenced`, or the store's.
    pub fn check_sometimes(&mut self) -> Result<(), Failure> {
        if clock::since(self.looked) < self.trust() {
            return Ok(());
        }
        let began = clock::monotonic();
        // Who comes next takes the next number. Asking for it is one request to a bucket; a list and the newest
        // claim are two.
        if !self.store.is_in_bucket() || self.has_successor()? {
            self.check()?;
        }
        self.looked = clock::monotonic();
        self.cost = clock::since(began);
        Ok(())
    }

    /// What a long piece of work between two steps asks again and again: whether the process is to stop, which ends
    /// it with `stopped`, and whether a newer attempt has come.
    pub fn watch(&mut self, stopped: &'static str) -> impl Fn() -> Result<(), Failure> {
        let fence = RefCell::new(self);
        move || {
            let mut fence = fence.borrow_mut();
            if fence.stop.is_set() {
                return Err(Failure::checkpointed(stopped));
            }
            fence.check_sometimes()
        }
    }

    /// How long the newest look is believed.
    fn trust(&self) -> Duration {
        (self.cost * LOOKS).min(LONGEST_TRUST)
    }

    fn has_successor(&self) -> Result<bool, Failure> {
        let path = format!("{}/{}.json", self.folder, self.epoch + 1);
        patience::tried(&PAUSES, &|| self.stop.is_set(), || {
            let found = self.store.get(&path);
            found.map_err(|error| Failure::unavailable(causes(&error)))
        })
        .map(|found| found.is_some())
    }

    /// Looks whether a newer attempt has come. A store that does not answer is asked again, and so is one
    /// without this attempt's own claim: an empty folder where the volume was would take any checkpoint.
    ///
    /// # Errors
    /// [`Failure`] with `Fenced`, or the store's.
    pub fn check(&mut self) -> Result<(), Failure> {
        let (newest, claim) = patience::tried(&PAUSES, &|| self.stop.is_set(), || self.newest())?;
        self.looked = clock::monotonic();
        if newest > self.epoch {
            return Err(Failure::fenced(format!(
                "attempt {} was taken over by attempt {newest} (pod {})",
                self.epoch, claim.pod
            )));
        }
        Ok(())
    }

    /// The newest claim: this attempt's or a later one.
    fn newest(&self) -> Result<(u32, Claim), Failure> {
        self.store
            .latest_numbered::<Claim>(&self.folder)
            .map_err(|error| Failure::unavailable(causes(&error)))?
            .filter(|(newest, _)| *newest >= self.epoch)
            .ok_or_else(|| {
                Failure::unavailable(format!(
                    "{}/{}.json is not in the store any more: its volume is gone, or is another one",
                    self.folder, self.epoch
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use graftwork_contract::exit::ExitCode;

    #[test]
    fn a_newer_attempt_fences_off_the_older_and_not_itself() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let stop = StopFlag::default();
        let take = || Fence::take(&store, "runs/r/fence".to_owned(), "pod", &stop).unwrap();
        let mut first = take();
        assert_eq!(first.check(), Ok(()));
        let mut second = take();
        assert_eq!((first.epoch, second.epoch), (1, 2));
        assert_eq!(first.check().unwrap_err().code, ExitCode::Fenced);
        assert_eq!(second.check(), Ok(()));
    }

    #[test]
    fn a_long_piece_of_work_ends_where_a_newer_attempt_has_come_or_a_stop_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let stop = StopFlag::default();
        let take = || Fence::take(&store, "runs/r/fence".to_owned(), "pod", &stop).unwrap();
        let mut first = take();
        let mut second = take();
        assert_eq!(second.watch("stopped")(), Ok(()));
        let fenced = first.watch("stopped")().unwrap_err();
        assert_eq!(fenced.code, ExitCode::Fenced);
        stop.set();
        let stopped = second.watch("stopped")().unwrap_err();
        assert_eq!(stopped.code, ExitCode::Checkpointed);
    }

    #[test]
    fn before_a_step_that_takes_longer_than_some_looks_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let stop = StopFlag::default();
        let take = || Fence::take(&store, "runs/r/fence".to_owned(), "pod", &stop).unwrap();
        let mut first = take();
        assert_eq!(first.check_sometimes(), Ok(()));
        let cost = first.cost;
        assert!(cost > Duration::ZERO, "it has looked");
        let second = take();
        assert!(first.has_successor().unwrap() && !second.has_successor().unwrap());
        // What is short against a look is not worth one, however slow the store is.
        for (cost, trust) in [
            (Duration::from_millis(100), 2),
            (Duration::from_secs(7), 10),
        ] {
            first.cost = cost;
            assert_eq!(first.trust(), Duration::from_secs(trust));
        }
        assert_eq!(first.check_sometimes(), Ok(()));
        first.cost = cost;
        clock::rest(first.trust(), &|| false);
        let failure = first.check_sometimes().unwrap_err();
        assert_eq!(failure.code, ExitCode::Fenced);
    }

    #[test]
    fn an_empty_folder_where_the_store_was_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let stop = StopFlag::default();
        let mut fence = Fence::take(&store, "runs/r/fence".to_owned(), "pod", &stop).unwrap();
        // Who is asked to stop does not wait between its tries.
        stop.set();
        assert_eq!(fence.check(), Ok(()));
        std::fs::rename(dir.path().join("runs"), dir.path().join("away")).unwrap();
        let failure = fence.check().unwrap_err();
        assert_eq!(failure.code, ExitCode::Unavailable);
        assert!(failure.message.contains("runs/r/fence/1.json"), "{failure}");
        std::fs::rename(dir.path().join("away"), dir.path().join("runs")).unwrap();
        assert_eq!(fence.check(), Ok(()));
    }

    #[test]
    fn racing_attempts_get_different_epochs() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let stop = StopFlag::default();
        let take = || Fence::take(&store, "f".into(), "pod", &stop).unwrap().epoch;
        let mut epochs: Vec<u32> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        epochs.sort_unstable();
        assert_eq!(epochs, (1..=8).collect::<Vec<_>>());
    }
}
