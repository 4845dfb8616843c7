//! Checkpoints: a training's state in a folder of its own, believed only after its digest matched.
//!
//! ```text
//! <root>/<fencing epoch>/<step>[-<micro-batch>]/{state.safetensors, manifest.json}
//! ```
//! The micro-batch is that of the batch under way, where training was left in the midst of one.
//! The store makes a folder appear with all its files at once, so whatever instant the process dies
//! at, there is either the new checkpoint or the one before it. One that was damaged later is passed
//! over, and goes with the first save after it. Where every one is damaged, nobody begins from nothing unasked: that is
//! an error.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use graftwork_artifacts::{Category, Error as StoreError, MANIFEST_FILE, Store};
use graftwork_contract::Digest;
use serde::{Deserialize, Serialize};

use crate::failure::causes;
use crate::optimizer::AdamWConfig;
use crate::state_file::{self, StateFileError};
use crate::train::State;

const STATE_FILE: &str = "state.safetensors";

/// What the bits of a step depend on beside the state: a resumed training on a machine where these
/// differ is still right, but not bit for bit what it would have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Environment {
    /// Compute threads.
    pub threads: usize,
    /// The kernels that the machine's instruction set chose, or the GPU's name.
    pub kernels: String,
    /// Version of the trainer.
    pub code_version: String,
}

/// `manifest.json` of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Finished optimiser steps.
    pub step: u64,
    /// Micro-batches of the next step that the state holds.
    pub micro_batch: u64,
    /// The files of the folder: name to SHA-256.
    pub files: BTreeMap<String, Digest>,
    /// Digest of everything that decides the result; a state is not taken over into another plan.
    pub plan: Digest,
    /// Where it was computed.
    pub environment: Environment,
    /// When it was saved, in seconds since the Unix epoch.
    pub saved_unix_seconds: u64,
}

/// Where a checkpoint is. The order is that of the work in it, and of two attempts' same work the
/// newer one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    step: u64,
    micro_batch: u64,
    epoch: u64,
}

/// A checkpoint that can't be saved or gone on from.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There are some, and none can be used.
    #[error(
        "none of the {} checkpoints in {root} of the artifact store can be used: {}. Put their files back, or delete \
         that folder to train from step 0",
        problems.len(),
        problems.join("; ")
    )]
    Unusable {
        /// The folder that they are in.
        root: String,
        /// Each with what is wrong with it, the newest first.
        problems: Vec<String>,
    },

    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state's bytes.
    #[error(transparent)]
    State(#[from] StateFileError),
}

impl CheckpointError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.category() == Category::Transient,
            Self::State(_) | Self::Unusable { .. } => false,
        }
    }
}

/// Why a checkpoint is not gone on from.
enum Unread {
    /// It can't be used, now or later.
    Damaged(String),
    /// The store does not give it now.
    Absent(StoreError),
}

/// The checkpoints of one run.
#[derive(Debug)]
pub struct Checkpoints<'a> {
    store: &'a Store,
    root: String,
    plan: Digest,
    names: Vec<String>,
    /// Those that this process wrote or read back whole.
    sound: RefCell<BTreeSet<Place>>,
}

/// A checkpoint that was read back whole.
#[derive(Debug)]
pub struct Restored {
    /// The state.
    pub state: State,
    /// Its record.
    pub record: Record,
}

impl Environment {
    /// This process, with `threads` compute threads (0: as many as it may use).
    pub fn new(threads: usize) -> Self {
        let threads = match threads {
            0 => rayon::current_num_threads(),
            threads => threads,
        };
        Self {
            threads,
            kernels: graftwork_model::kernel::Isa::detect().name().to_owned(),
            code_version: graftwork_artifacts::code_version(env!("CARGO_PKG_VERSION")),
        }
    }

    /// The same where a GPU of this name computes.
    #[must_use]
    pub fn on_gpu(self, gpu: Option<String>) -> Self {
        Self {
            kernels: gpu.unwrap_or(self.kernels),
            ..self
        }
    }
}

impl<'a> Checkpoints<'a> {
    /// The checkpoints below `root` of a training with this plan and these parameter names.
    pub fn new(store: &'a Store, root: String, plan: Digest, names: Vec<String>) -> Self {
        Self {
            store,
            root,
            plan,
            names,
            sound: RefCell::default(),
        }
    }

    /// Saves `state` under fencing epoch `epoch`. A sound checkpoint of the same epoch, step and
    /// micro-batch holds the same, and stays.
    ///
    /// # Errors
    /// The store's.
    pub fn save(
        &self,
        epoch: u64,
        state: &State,
        environment: &Environment,
        now: u64,
    ) -> Result<(), CheckpointError> {
        let place = Place {
            step: state.step,
            micro_batch: state.micro_batch,
            epoch,
        };
        let folder = self.folder(place);
        if self.store.is_published(&folder)? {
            if self.sound.borrow().contains(&place) {
                return Ok(());
            }
            // Damaged, or not known to have reached the disk.
            self.store.remove_folder(&folder)?;
        }
        let staged = self.store.stage(&folder)?;
        staged.write(STATE_FILE, &state_file::encode(state, &self.names)?)?;
        let record = Record {
            step: state.step,
            micro_batch: state.micro_batch,
            files: staged.files()?.digests,
            plan: self.plan.clone(),
            environment: environment.clone(),
            saved_unix_seconds: now,
        };
        staged.publish(&record)?;
        self.sound.borrow_mut().insert(place);
        Ok(())
    }

    /// The checkpoint with the most work in it that can be read back whole; torn and foreign ones
    /// are passed over with a warning. None where nothing was saved yet.
    ///
    /// # Errors
    /// Every checkpoint is torn or foreign. The store does not answer. A checkpoint that it does not give is not a
    /// damaged one: who passed it over would begin from older work, or from nothing.
    pub fn newest(&self, optimizer: AdamWConfig) -> Result<Option<Restored>, CheckpointError> {
        let mut places = self.list()?;
        loop {
            let problems = match self.newest_of(&places, optimizer)? {
                Ok(restored) => return Ok(Some(restored)),
                Err(problems) => problems,
            };
            // An attempt that does not know yet that it was taken over may have saved and pruned meanwhile.
            let now = self.list()?;
            if now == places {
                if problems.is_empty() {
                    return Ok(None);
                }
                let root = self.root.clone();
                return Err(CheckpointError::Unusable { root, problems });
            }
            places = now;
        }
    }

    /// The newest, or what is wrong with each.
    fn newest_of(
        &self,
        places: &BTreeSet<Place>,
        optimizer: AdamWConfig,
    ) -> Result<Result<Restored, Vec<String>>, StoreError> {
        let mut problems = Vec::with_capacity(places.len());
        for place in places.iter().rev() {
            let folder = self.folder(*place);
            match self.read(&folder, optimizer) {
                Ok(restored) => {
                    self.sound.borrow_mut().insert(*place);
                    return Ok(Ok(restored));
                }
                Err(Unread::Absent(error)) => return Err(error),
                Err(Unread::Damaged(problem)) => {
                    tracing::warn!(folder, problem, "checkpoint can't be used");
                    let name = folder.strip_prefix(&self.root).unwrap_or(&folder);
                    problems.push(format!("{}: {problem}", name.trim_start_matches('/')));
                }
            }
        }
        Ok(Err(problems))
    }

    /// Removes all but the newest `keep` of the checkpoints that this process, of fencing epoch `epoch`, wrote or
    /// read back whole. A damaged one is not among them, however much work it claims to hold: it would take the
    /// place of one that can be used. What a newer epoch saved stays, so that an attempt that does not know yet
    /// that it was taken over takes nothing from its successor.
    ///
    /// # Errors
    /// The store's.
    pub fn prune(&self, epoch: u64, keep: usize) -> Result<(), CheckpointError> {
        let all = self.list()?;
        let mut sound = self.sound.borrow_mut();
        sound.retain(|place| all.contains(place));
        let kept: BTreeSet<Place> = sound.iter().rev().take(keep).copied().collect();
        for place in all {
            if place.epoch <= epoch && !kept.contains(&place) {
                self.store.remove_folder(&self.folder(place))?;
                sound.remove(&place);
            }
        }
        Ok(())
    }

    fn folder(&self, place: Place) -> String {
        let Place { step, epoch, .. } = place;
        match place.micro_batch {
            0 => format!("{}/{epoch}/{step}", self.root),
            micro_batch => format!("{}/{epoch}/{step}-{micro_batch}", self.root),
        }
    }

    /// Every checkpoint with a record, in ascending order of the work in it.
    fn list(&self) -> Result<BTreeSet<Place>, StoreError> {
        let prefix = format!("{}/", self.root);
        let found = self.store.list(&prefix)?;
        Ok(found
            .iter()
            .filter_map(|entry| {
                let folder = entry
                    .path
                    .strip_prefix(&prefix)?
                    .strip_suffix(MANIFEST_FILE)?;
                let (epoch, name) = folder.trim_end_matches('/').split_once('/')?;
                let (step, micro_batch) = name.split_once('-').unwrap_or((name, "0"));
                Some(Place {
                    step: step.parse().ok()?,
                    micro_batch: micro_batch.parse().ok()?,
                    epoch: epoch.parse().ok()?,
                })
            })
            .collect())
    }

    fn read(&self, folder: &str, optimizer: AdamWConfig) -> Result<Restored, Unread> {
        let record: Option<Record> = self.store.get_json(&format!("{folder}/{MANIFEST_FILE}"))?;
        let record = record.ok_or_else(|| Unread::damaged("its manifest is gone"))?;
        if record.plan != self.plan {
            return Err(Unread::damaged("it belongs to another configuration"));
        }
        let digest = record
            .files
            .get(STATE_FILE)
            .ok_or_else(|| Unread::damaged("its manifest names no state"))?;
        let bytes = self
            .store
            .get_verified(&format!("{folder}/{STATE_FILE}"), digest)?;
        let state = state_file::decode(&bytes, &self.names, optimizer)
            .map_err(|error| Unread::Damaged(causes(&error)))?;
        Ok(Restored { state, record })
    }
}

impl Unread {
    fn damaged(problem: &str) -> Self {
        Self::Damaged(problem.to_owned())
    }
}

impl From<StoreError> for Unread {
    fn from(error: StoreError) -> Self {
        match error.category() {
            Category::Transient => Self::Absent(error),
            Category::Invalid | Category::Bug => Self::Damaged(causes(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use graftwork_artifacts::Volume;

    use super::*;
    use crate::optimizer::AdamW;

    fn state(step: u64) -> State {
        let list = vec![vec![step as f32, 2.0]];
        State {
            step,
            micro_batch: 0,
            batch_loss: 0.0,
            tokens: 5,
            losses: vec![1.5],
            parameters: list.clone(),
            gradients: vec![vec![0.0; 2]],
            optimizer: AdamW::restore(AdamWConfig::default(), list.clone(), list),
            validation: None,
        }
    }

    fn checkpoints(store: &Store, plan: &[u8]) -> Checkpoints<'static> {
        let store: &'static Store = Box::leak(Box::new(store.clone()));
        Checkpoints::new(
            store,
            "run/checkpoints".into(),
            Digest::of(plan),
            vec!["w".into()],
        )
    }

    fn newest(checkpoints: &Checkpoints<'_>) -> Option<u64> {
        let restored = checkpoints.newest(AdamWConfig::default()).unwrap()?;
        assert_eq!(restored.state, state(restored.record.step));
        Some(restored.record.step)
    }

    #[test]
    fn the_newest_whole_one_counts_whatever_its_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let checkpoints = checkpoints(&store, b"plan");
        let environment = Environment::new(1);
        assert_eq!(newest(&checkpoints), None);
        for (epoch, step) in [(1, 10), (1, 20), (2, 15)] {
            checkpoints
                .save(epoch, &state(step), &environment, 0)
                .unwrap();
        }
        assert_eq!(newest(&checkpoints), Some(20));
        let torn = dir.path().join("run/checkpoints/1/20/state.safetensors");
        let bytes = std::fs::read(&torn).unwrap();
        std::fs::write(&torn, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(newest(&checkpoints), Some(15));
        std::fs::write(dir.path().join("run/checkpoints/2/15/manifest.json"), "{").unwrap();
        assert_eq!(newest(&checkpoints), Some(10));
    }

    /// What a save and the pruning after it do to the disk: how many calls, and the outcome where `at`
    /// says that a call fails.
    fn save_on(
        dir: &std::path::Path,
        at: impl Fn(usize) -> Option<io::ErrorKind> + Send + Sync + 'static,
    ) -> (usize, bool) {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let volume = Volume::asking(
            move |_, _| match at(counted.fetch_add(1, Ordering::SeqCst)) {
                None => Ok(()),
                Some(kind) => Err(kind.into()),
            },
        );
        let store = Store::open_read_only(dir).unwrap().on(volume);
        let checkpoints = checkpoints(&store, b"plan");
        let saved = checkpoints
            .save(1, &state(20), &Environment::new(1), 0)
            .and_then(|()| checkpoints.prune(1, 1));
        (calls.load(Ordering::SeqCst), saved.is_ok())
    }

    /// A store with a checkpoint of step 10.
    fn with_a_checkpoint() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        checkpoints(&store, b"plan")
            .save(1, &state(10), &Environment::new(1), 0)
            .unwrap();
        dir
    }

    /// The step that a new attempt goes on from, which then saves as if nothing had happened.
    fn next_attempt(dir: &std::path::Path) -> Option<u64> {
        let store = Store::open(dir).unwrap();
        let checkpoints = checkpoints(&store, b"plan");
        let found = newest(&checkpoints);
        checkpoints
            .save(2, &state(30), &Environment::new(1), 0)
            .unwrap();
        checkpoints.prune(2, 1).unwrap();
        assert_eq!(newest(&checkpoints), Some(30));
        assert_eq!(checkpoints.list().unwrap().len(), 1);
        found
    }

    #[test]
    fn a_writer_that_dies_before_any_of_its_calls_leaves_a_whole_checkpoint() {
        let (calls, saved) = save_on(with_a_checkpoint().path(), |_| None);
        assert!(saved && calls > 12, "{calls} calls");
        let mut found = BTreeSet::new();
        for death in 0..calls {
            let dir = with_a_checkpoint();
            // The dead make no further calls, not even to clean up.
            let dead = move |call| (call >= death).then_some(io::ErrorKind::Other);
            save_on(dir.path(), dead);
            let step = next_attempt(dir.path());
            assert!([Some(10), Some(20)].contains(&step), "{death}: {step:?}");
            found.extend(step);
        }
        assert_eq!(
            found,
            BTreeSet::from([10, 20]),
            "before and after the rename"
        );
    }

    #[test]
    fn a_full_or_read_only_disk_leaves_what_was_there_and_later_saves_succeed() {
        let (calls, _) = save_on(with_a_checkpoint().path(), |_| None);
        for kind in [
            io::ErrorKind::StorageFull,
            io::ErrorKind::ReadOnlyFilesystem,
        ] {
            for failing in 0..calls {
                let dir = with_a_checkpoint();
                let (_, saved) = save_on(dir.path(), move |call| (call == failing).then_some(kind));
                let step = newest(&checkpoints(&Store::open(dir.path()).unwrap(), b"plan"));
                // Only what cleans up behind a save may fail unnoticed.
                assert!(!saved || step == Some(20), "{kind} at {failing}: {step:?}");
                assert!([Some(10), Some(20)].contains(&step), "{kind} at {failing}");
                assert!(save_on(dir.path(), |_| None).1, "{kind} at {failing}");
                assert_eq!(next_attempt(dir.path()), Some(20), "{kind} at {failing}");
            }
            let dir = with_a_checkpoint();
            assert!(!save_on(dir.path(), move |_| Some(kind)).1);
            assert_eq!(next_attempt(dir.path()), Some(10));
        }
    }

    #[test]
    fn damaged_swapped_and_missing_files_are_passed_over() {
        let file = |step: u64, name: &str| format!("run/checkpoints/1/{step}/{name}");
        type Damage = fn(&std::path::Path, &std::path::Path);
        let damages: [Damage; 5] = [
            |newer, _| std::fs::remove_file(newer).unwrap(),
            |newer, _| std::fs::write(newer, "").unwrap(),
            |newer, _| {
                let mut bytes = std::fs::read(newer).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(newer, bytes).unwrap();
            },
            // Reordered: the newer folder has an older file.
            |newer, older| {
                std::fs::copy(older, newer).unwrap();
            },
            |newer, _| {
                std::fs::remove_file(newer).unwrap();
                std::fs::create_dir(newer).unwrap();
            },
        ];
        for name in [STATE_FILE, MANIFEST_FILE] {
            for (number, damage) in damages.iter().enumerate() {
                // A manifest that still reads names the state's digest, which decides.
                if name == MANIFEST_FILE && number == 2 {
                    continue;
                }
                let dir = with_a_checkpoint();
                let store = Store::open(dir.path()).unwrap();
                let checkpoints = checkpoints(&store, b"plan");
                checkpoints
                    .save(1, &state(20), &Environment::new(1), 0)
                    .unwrap();
                damage(
                    &dir.path().join(file(20, name)),
                    &dir.path().join(file(10, name)),
                );
                assert_eq!(newest(&checkpoints), Some(10), "{name}, damage {number}");
            }
        }
    }

    #[test]
    fn one_that_the_store_does_not_give_now_is_not_taken_for_a_damaged_one() {
        let dir = with_a_checkpoint();
        let store = Store::open(dir.path()).unwrap();
        let checkpoints = checkpoints(&store, b"plan");
        checkpoints
            .save(1, &state(20), &Environment::new(1), 0)
            .unwrap();
        let file = dir.path().join("run/checkpoints/1/20").join(STATE_FILE);
        let aside = dir.path().join("aside");
        std::fs::rename(&file, &aside).unwrap();
        // It is there and can't be opened: what a volume's error looks like.
        let socket = dir.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::fs::rename(&socket, &file).unwrap();
        let error = checkpoints.newest(AdamWConfig::default()).unwrap_err();
        assert!(error.is_transient(), "{error}");
        std::fs::rename(&aside, &file).unwrap();
        assert_eq!(newest(&checkpoints), Some(20));
    }

    #[test]
    fn another_plans_state_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        checkpoints(&store, b"one")
            .save(1, &state(10), &Environment::new(1), 0)
            .unwrap();
        let error = checkpoints(&store, b"two").newest(AdamWConfig::default());
        assert_eq!(
            error.unwrap_err().to_string(),
            "none of the 1 checkpoints in run/checkpoints of the artifact store can be used: 1/10: it belongs to \
             another configuration. Put their files back, or delete that folder to train from step 0"
        );
        assert_eq!(newest(&checkpoints(&store, b"one")), Some(10));
    }

    #[test]
    fn only_the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let checkpoints = checkpoints(&store, b"plan");
        for step in [10, 100, 20, 9] {
            checkpoints
                .save(1, &state(step), &Environment::new(1), 0)
                .unwrap();
        }
        checkpoints.prune(1, 2).unwrap();
        let left = checkpoints.list().unwrap();
        let steps: Vec<u64> = left.iter().map(|place| place.step).collect();
        assert_eq!(steps, [20, 100]);
    }

    #[test]
    fn a_batch_that_was_left_in_its_midst_is_saved_beside_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let checkpoints = checkpoints(&store, b"plan");
        let save = |micro_batch| {
            let state = State {
                micro_batch,
                gradients: vec![vec![micro_batch as f32; 2]],
                ..state(10)
            };
            checkpoints
                .save(1, &state, &Environment::new(1), 0)
                .unwrap();
        };
        for micro_batch in [0, 3, 12] {
            save(micro_batch);
            let restored = checkpoints.newest(AdamWConfig::default()).unwrap().unwrap();
            assert_eq!(restored.state.micro_batch, micro_batch);
            assert_eq!(
                restored.state.gradients[0][0].to_bits(),
                (micro_batch as f32).to_bits()
            );
        }
        checkpoints.prune(1, 1).unwrap();
        assert_eq!(checkpoints.list().unwrap().len(), 1);
    }

    #[test]
    fn a_damaged_one_with_more_work_in_it_never_takes_the_place_of_what_is_saved_after_it() {
        for (torn, keep) in [(vec![20], 1), (vec![20, 30], 2), (vec![20], 2)] {
            let dir = with_a_checkpoint();
            let store = Store::open(dir.path()).unwrap();
            let earlier = checkpoints(&store, b"plan");
            for step in &torn {
                earlier
                    .save(1, &state(*step), &Environment::new(1), 0)
                    .unwrap();
                let file = format!("run/checkpoints/1/{step}/{STATE_FILE}");
                std::fs::write(dir.path().join(file), "torn").unwrap();
            }
            let attempt = checkpoints(&store, b"plan");
            assert_eq!(newest(&attempt), Some(10));
            for step in [12, 14] {
                attempt
                    .save(2, &state(step), &Environment::new(1), 0)
                    .unwrap();
                attempt.prune(2, keep).unwrap();
                let next = checkpoints(&store, b"plan");
                assert_eq!(newest(&next), Some(step), "{torn:?}, {keep} kept");
                let left = next.list().unwrap();
                assert_eq!(left.len(), keep, "{torn:?}: {left:?}");
            }
        }
    }

    #[test]
    fn a_damaged_one_of_the_same_epoch_and_step_is_written_again() {
        let dir = with_a_checkpoint();
        let store = Store::open(dir.path()).unwrap();
        let file = format!("run/checkpoints/1/10/{STATE_FILE}");
        std::fs::write(dir.path().join(file), "torn").unwrap();
        let attempt = checkpoints(&store, b"plan");
        attempt
            .save(1, &state(10), &Environment::new(1), 0)
            .unwrap();
        assert_eq!(newest(&checkpoints(&store, b"plan")), Some(10));
    }

    #[test]
    fn where_all_are_damaged_nobody_begins_from_nothing() {
        let dir = with_a_checkpoint();
        let store = Store::open(dir.path()).unwrap();
        let attempt = checkpoints(&store, b"plan");
        attempt
            .save(2, &state(20), &Environment::new(1), 0)
            .unwrap();
        let damaged = dir.path().join("run/checkpoints");
        std::fs::write(damaged.join("1/10").join(STATE_FILE), "torn").unwrap();
        std::fs::write(damaged.join("2/20").join(MANIFEST_FILE), "{").unwrap();
        let error = attempt.newest(AdamWConfig::default()).unwrap_err();
        assert!(!error.is_transient());
        let CheckpointError::Unusable { root, problems } = error else {
            unreachable!("{error}");
        };
        assert_eq!((root.as_str(), problems.len()), ("run/checkpoints", 2));
        assert!(problems[0].starts_with("2/20: "), "{problems:?}");
        assert!(problems[1].starts_with("1/10: "), "{problems:?}");
        // Both are there still, for who can mend them.
        assert_eq!(attempt.list().unwrap().len(), 2);
        std::fs::remove_dir_all(damaged).unwrap();
        assert_eq!(newest(&attempt), None);
    }

    #[test]
    fn who_was_taken_over_removes_nothing_of_its_successor() {
        let dir = with_a_checkpoint();
        let store = Store::open(dir.path()).unwrap();
        let (older, newer) = (checkpoints(&store, b"plan"), checkpoints(&store, b"plan"));
        assert_eq!((newest(&older), newest(&newer)), (Some(10), Some(10)));
        let environment = Environment::new(1);
        newer.save(2, &state(12), &environment, 0).unwrap();
        newer.prune(2, 1).unwrap();
        older.save(1, &state(14), &environment, 0).unwrap();
        older.prune(1, 1).unwrap();
        let steps: Vec<u64> = newer.list().unwrap().iter().map(|it| it.step).collect();
        assert_eq!(steps, [12, 14]);
    }
}
