//! The registry as a pure state machine: versions of the desired list, what is known about their
//! files, which adapters are in memory, and who waits for one.
//!
//! Generic over the adapter `A` in memory and over the waiting caller `W`, so that the rules can be
//! tested without files, weights or a runtime. Every method says what is to be done next as
//! [`Actions`]; nothing is done here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use graftwork_contract::Digest;

use super::list::List;

/// Rank, target modules or shapes do not fit the base model, or the adapter not the engine's memory.
pub const REASON_INCOMPATIBLE: &str = "AdapterIncompatible";

/// What may be in memory at once. While a version is only verified, its file may be there besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Adapters; at least 1.
    pub adapters: usize,
    /// Bytes of their packed weights.
    pub bytes: u64,
}

/// One version of the desired list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// What a client names.
    pub name: String,
    /// Number.
    pub number: u32,
    /// Where its files are.
    pub source: Source,
    /// Whether the name alone means this one.
    pub is_default: bool,
}

/// A folder and what should be in it. Two names may share one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Content.
    pub digest: Digest,
    /// Relative to the store.
    pub folder: String,
}

/// When a source is verified in the background, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    /// Who climbs waits for it; defaults are loaded when they are asked for.
    is_default: bool,
    /// What the last list has added is what somebody looks at now.
    was_there: bool,
    /// In the list.
    place: usize,
}

/// Why files can't be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A condition reason.
    pub reason: &'static str,
    /// File, field, value and limit.
    pub message: String,
    /// Whether the same files may do later (a storage that did not answer).
    pub may_pass: bool,
}

/// Times and sizes of an adapter's files: refused files are looked at again only when these change.
pub type Fingerprint = Vec<(u128, u64)>;

/// What the cheap look at an adapter's files found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderRead {
    /// At the time of the look.
    pub fingerprint: Fingerprint,
    /// Where the headers fit, the bytes that the adapter takes in memory.
    pub result: Result<u64, Refusal>,
}

/// What is known about a source's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Nothing yet.
    Unread,
    /// Manifest and headers fit.
    Registered,
    /// Every byte was checked.
    Verified,
    /// Can't be served.
    Refused(Refusal),
}

/// What a status answer says about a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Files not looked at yet.
    Unread,
    /// See [`Stage::Registered`].
    Registered,
    /// See [`Stage::Verified`].
    Verified,
    /// Verified and in memory.
    Resident,
    /// See [`Stage::Refused`].
    Refused(Refusal),
}

/// What a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The default version of a name.
    Default(String),
    /// One version of a name.
    Exactly(String, u32),
}

impl Target {
    /// What the client named.
    pub fn name(&self) -> &str {
        match self {
            Self::Default(name) | Self::Exactly(name, _) => name,
        }
    }
}

/// Why a request gets no adapter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// No such name in the list.
    #[error("no adapter is called {0:?}")]
    UnknownName(String),
    /// The version is not in the list, or refused.
    #[error("{name}@v{version}: {why}")]
    NotHere {
        /// The adapter.
        name: String,
        /// Its version.
        version: u32,
        /// What is the matter with it.
        why: String,
    },
}

/// A pinned version with its weights; to be given back by [`Registry::on_released`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant<A> {
    /// Which version.
    pub version: Version,
    /// Its weights.
    pub adapter: A,
}

/// What the caller of a method has to do.
#[derive(Debug)]
pub struct Actions<A, W> {
    /// Look at these files' headers.
    pub read: Vec<Source>,
    /// Load and verify this one; one at a time.
    pub load: Option<Source>,
    /// Verify this one, which nobody waits for and memory has no room for; one at a time, beside a load, and
    /// without haste.
    pub verify: Option<Source>,
    /// Answer these callers.
    pub answers: Vec<(W, Result<Grant<A>, AcquireError>)>,
}

#[derive(Debug)]
struct File {
    stage: Stage,
    fingerprint: Fingerprint,
    /// In memory; 0 until the headers were read.
    bytes: u64,
}

#[derive(Debug)]
struct Slot<A> {
    adapter: A,
    bytes: u64,
    leases: usize,
    /// Greater is later.
    used: u64,
}

/// The state machine. See the module's documentation.
#[derive(Debug)]
pub struct Registry<A, W> {
    budget: Budget,
    list: List,
    files: BTreeMap<Source, File>,
    /// How many of the files nobody looked at yet.
    unread: usize,
    slots: BTreeMap<Digest, Slot<A>>,
    waiting: VecDeque<(Version, W)>,
    loading: Option<Source>,
    verifying: Option<Source>,
    uses: u64,
    /// When each source of the list is verified.
    turns: BTreeMap<Source, Turn>,
    /// Sources that may only be registered.
    unverified: BTreeSet<(Turn, Source)>,
}

impl<A: Clone, W> Registry<A, W> {
    /// An empty registry that keeps adapters in memory within the budget.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget: Budget {
                adapters: budget.adapters.max(1),
                ..budget
            },
            list: List::default(),
            files: BTreeMap::new(),
            unread: 0,
            slots: BTreeMap::new(),
            waiting: VecDeque::new(),
            loading: None,
            verifying: None,
            uses: 0,
            turns: BTreeMap::new(),
            unverified: BTreeSet::new(),
        }
    }

    /// Replaces the desired list. Files that are new, and those refused before, are looked at.
    pub fn replace(&mut self, versions: Vec<Version>) -> Actions<A, W> {
        self.list = List::new(versions);
        self.turns.clear();
        let (mut read, mut seen) = (Vec::new(), BTreeSet::new());
        for (
            place,
            Version {
                source, is_default, ..
            },
        ) in self.list.iter().enumerate()
        {
            let turn = Turn {
                is_default: *is_default,
                was_there: self.files.contains_key(source),
                place,
            };
            let first = self.turns.entry(source.clone()).or_insert(turn);
            *first = turn.min(*first);
            let to_read = match self.files.get(source) {
                Some(file) => matches!(file.stage, Stage::Unread | Stage::Refused(_)),
                None => {
                    let file = File {
                        stage: Stage::Unread,
                        fingerprint: Vec::new(),
                        bytes: 0,
                    };
                    self.files.insert(source.clone(), file);
                    true
                }
            };
            if to_read && seen.insert(source) {
                read.push(source.clone());
            }
        }
        self.collect();
        let unread = self.files.values();
        self.unread = unread.filter(|file| file.stage == Stage::Unread).count();
        let turns = self.turns.iter();
        self.unverified = turns
            .filter(|(source, _)| self.is_registered(source))
            .map(|(source, turn)| (*turn, source.clone()))
            .collect();
        let mut actions = self.proceed();
        actions.read = read;
        actions
    }

    /// Sources of the list that were refused for something that may pass, to be looked at again.
    pub fn may_pass(&self) -> Vec<Source> {
        let sources: BTreeSet<&Source> = self
            .list
            .iter()
            .map(|version| &version.source)
            .filter(|source| {
                matches!(
                    self.files.get(*source).map(|file| &file.stage),
                    Some(Stage::Refused(refusal)) if refusal.may_pass
                )
            })
            .collect();
        sources.into_iter().cloned().collect()
    }

    /// Whether the source is refused already, for the same reason in the same words.
    pub fn is_refused_for(&self, source: &Source, refusal: &Refusal) -> bool {
        matches!(
            self.files.get(source).map(|file| &file.stage),
            Some(Stage::Refused(known)) if known == refusal
        )
    }

    /// Takes in what a look at the headers found.
    pub fn on_header(&mut self, source: &Source, header: HeaderRead) -> Actions<A, W> {
        let limit = self.budget.bytes;
        if let Some(file) = self.files.get_mut(source) {
            let same = file.fingerprint == header.fingerprint;
            if file.stage == Stage::Unread {
                self.unread = self.unread.saturating_sub(1);
            }
            match &file.stage {
                Stage::Refused(refusal) if same && !refusal.may_pass => {}
                Stage::Unread | Stage::Refused(_) => {
                    file.fingerprint = header.fingerprint;
                    file.stage = match header.result {
                        Ok(bytes) if bytes > limit => Stage::Refused(too_large(bytes, limit)),
                        Ok(bytes) => {
                            file.bytes = bytes;
                            Stage::Registered
                        }
                        Err(refusal) => Stage::Refused(refusal),
                    };
                }
                Stage::Registered | Stage::Verified => {}
            }
        }
        if self.is_registered(source)
            && let Some(turn) = self.turns.get(source)
        {
            self.unverified.insert((*turn, source.clone()));
        }
        self.proceed()
    }

    /// Takes in what loading ended with.
    pub fn on_loaded(&mut self, source: &Source, result: Result<A, Refusal>) -> Actions<A, W> {
        if self.loading.as_ref() == Some(source) {
            self.loading = None;
        }
        match result {
            Ok(adapter) => {
                if let Some(file) = self.files.get_mut(source) {
                    file.stage = Stage::Verified;
                }
                let bytes = self.files.get(source).map_or(0, |file| file.bytes);
                let room = if self.slots.contains_key(&source.digest) {
                    // Another folder's, with the same content.
                    false
                } else if self.is_waited_for(&source.digest) {
                    self.make_room(bytes)
                } else {
                    self.list.has(&source.digest) && self.fits(bytes)
                };
                if room {
                    self.uses += 1;
                    self.slots.entry(source.digest.clone()).or_insert(Slot {
                        adapter,
                        bytes,
                        leases: 0,
                        used: self.uses,
                    });
                }
            }
            Err(refusal) => {
                if let Some(file) = self.files.get_mut(source) {
                    file.stage = Stage::Refused(refusal);
                }
            }
        }
        self.proceed()
    }

    /// Takes in what verifying ended with.
    pub fn on_verified(&mut self, source: &Source, result: Result<(), Refusal>) -> Actions<A, W> {
        if self.verifying.as_ref() == Some(source) {
            self.verifying = None;
        }
        // A load beside it may have found out already.
        if let Some(file) = self.files.get_mut(source)
            && file.stage == Stage::Registered
        {
            file.stage = match result {
                Ok(()) => Stage::Verified,
                Err(refusal) => Stage::Refused(refusal),
            };
        }
        self.proceed()
    }

    /// A request wants an adapter: it is answered now or once its weights are in memory.
    pub fn acquire(&mut self, target: &Target, waiter: W) -> Actions<A, W> {
        match self.find(target) {
            Ok(version) => {
                self.waiting.push_back((version, waiter));
                self.proceed()
            }
            Err(error) => Actions {
                read: Vec::new(),
                load: None,
                verify: None,
                answers: vec![(waiter, Err(error))],
            },
        }
    }

    /// A grant has ended.
    pub fn on_released(&mut self, digest: &Digest) -> Actions<A, W> {
        if let Some(slot) = self.slots.get_mut(digest) {
            slot.leases = slot.leases.saturating_sub(1);
            if slot.leases == 0 && !self.list.has(digest) && !self.is_waited_for(digest) {
                self.slots.remove(digest);
            }
        }
        self.proceed()
    }

    /// Every version of the list with its standing.
    pub fn standings(&self) -> impl Iterator<Item = (&Version, Standing)> {
        self.list.iter().map(|version| {
            let stage = self.files.get(&version.source).map(|file| &file.stage);
            let standing = match stage {
                None | Some(Stage::Unread) => Standing::Unread,
                Some(Stage::Refused(refusal)) => Standing::Refused(refusal.clone()),
                Some(Stage::Registered) => Standing::Registered,
                Some(Stage::Verified) if self.slots.contains_key(&version.source.digest) => {
                    Standing::Resident
                }
                Some(Stage::Verified) => Standing::Verified,
            };
            (version, standing)
        })
    }

    /// Whether every file of the list was looked at, and of what requests wait for.
    pub fn all_read(&self) -> bool {
        self.unread == 0
    }

    /// Adapters in memory.
    pub fn resident(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of the adapters in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.slots.values().map(|slot| slot.bytes).sum()
    }

    /// Which version a target means.
    ///
    /// # Errors
    /// A name or a version that is not in the list.
    pub fn find(&self, target: &Target) -> Result<Version, AcquireError> {
        self.list.find(target).cloned()
    }

    /// Forgets files and weights that neither the list nor a request needs any more.
    fn collect(&mut self) {
        let mut needed: BTreeSet<&Source> = self.loading.iter().collect();
        needed.extend(self.list.iter().map(|version| &version.source));
        needed.extend(self.waiting.iter().map(|(version, _)| &version.source));
        let verifying = self.verifying.as_ref();
        self.files
            .retain(|source, _| needed.contains(source) || verifying == Some(source));
        let digests: BTreeSet<&Digest> = needed.iter().map(|source| &source.digest).collect();
        self.slots
            .retain(|digest, slot| slot.leases > 0 || digests.contains(digest));
    }

    /// Answers whom it can and picks what to load and to verify next.
    fn proceed(&mut self) -> Actions<A, W> {
        let mut actions = Actions {
            read: Vec::new(),
            load: None,
            verify: None,
            answers: self.answer_waiting(),
        };
        if self.loading.is_none() {
            self.loading = self.next_wanted();
            actions.load.clone_from(&self.loading);
        }
        if self.verifying.is_none()
            && let Some(source) = self.next_unverified()
        {
            // What fits is loaded at once, so that it need not be read again.
            if !self.would_stay(&source) {
                self.unverified.pop_first();
                self.verifying = Some(source.clone());
                actions.verify = Some(source);
            } else if self.loading.is_none() {
                self.unverified.pop_first();
                self.loading = Some(source.clone());
                actions.load = Some(source);
            }
        }
        actions
    }

    fn answer_waiting(&mut self) -> Vec<(W, Result<Grant<A>, AcquireError>)> {
        let mut answers = Vec::new();
        let mut still = VecDeque::new();
        while let Some((version, waiter)) = self.waiting.pop_front() {
            if let Some(slot) = self.slots.get_mut(&version.source.digest) {
                self.uses += 1;
                slot.used = self.uses;
                slot.leases += 1;
                let adapter = slot.adapter.clone();
                answers.push((waiter, Ok(Grant { version, adapter })));
                continue;
            }
            let file = self.files.get(&version.source);
            if let Some(Stage::Refused(refusal)) = file.map(|file| &file.stage) {
                let error = AcquireError::NotHere {
                    name: version.name,
                    version: version.number,
                    why: refusal.message.clone(),
                };
                answers.push((waiter, Err(error)));
                continue;
            }
            still.push_back((version, waiter));
        }
        self.waiting = still;
        answers
    }

    /// What someone waits for first, where there is room.
    fn next_wanted(&mut self) -> Option<Source> {
        let (source, bytes) = self.waiting.iter().find_map(|(version, _)| {
            let file = self.files.get(&version.source)?;
            matches!(file.stage, Stage::Registered | Stage::Verified)
                .then(|| (version.source.clone(), file.bytes))
        })?;
        self.make_room(bytes).then_some(source)
    }

    /// The source that is to be verified next.
    fn next_unverified(&mut self) -> Option<Source> {
        while let Some((_, source)) = self.unverified.first() {
            let is_begun = self.loading.as_ref() == Some(source);
            if self.is_registered(source) && !is_begun {
                return Some(source.clone());
            }
            self.unverified.pop_first();
        }
        None
    }

    /// Whether an adapter that nobody waits for would be kept once it is loaded.
    fn would_stay(&self, source: &Source) -> bool {
        let bytes = self.files.get(source).map_or(0, |file| file.bytes);
        !self.slots.contains_key(&source.digest)
            && self.list.has(&source.digest)
            && self.fits(bytes)
    }

    fn is_registered(&self, source: &Source) -> bool {
        let stage = self.files.get(source).map(|file| &file.stage);
        stage == Some(&Stage::Registered)
    }

    /// Whether one more adapter of this size fits beside those in memory.
    fn fits(&self, bytes: u64) -> bool {
        self.slots.len() < self.budget.adapters
            && self.resident_bytes().saturating_add(bytes) <= self.budget.bytes
    }

    /// Whether one more adapter of this size fits, after those went that were used longest ago, if need be.
    /// Nobody goes in vain.
    fn make_room(&mut self, bytes: u64) -> bool {
        let kept = self
            .slots
            .iter()
            .filter(|(digest, slot)| slot.leases > 0 || self.is_waited_for(digest))
            .map(|(_, slot)| slot.bytes);
        let kept_bytes: u64 = kept.clone().sum();
        if kept.count() >= self.budget.adapters
            || kept_bytes.saturating_add(bytes) > self.budget.bytes
        {
            return false;
        }
        while !self.fits(bytes) {
            let idle = self
                .slots
                .iter()
                .filter(|(digest, slot)| slot.leases == 0 && !self.is_waited_for(digest))
                .min_by_key(|(_, slot)| slot.used)
                .map(|(digest, _)| digest.clone());
            if idle.is_none_or(|digest| self.slots.remove(&digest).is_none()) {
                return false;
            }
        }
        true
    }

    fn is_waited_for(&self, digest: &Digest) -> bool {
        self.waiting
            .iter()
            .any(|(version, _)| version.source.digest == *digest)
    }
}

fn too_large(bytes: u64, limit: u64) -> Refusal {
    Refusal {
        reason: REASON_INCOMPATIBLE,
        message: format!(
            "the adapter takes {bytes} bytes in memory, the engine has {limit} for adapters; raise \
             spec.engine.adapterMemory or lower the adapter's rank"
        ),
        may_pass: false,
    }
}
