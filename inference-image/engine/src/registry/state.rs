//! The registry as a pure state machine: versions of the desired list, what is known about their
//! files, which adapters are in memory, and who waits for one.
//!
//! Generic over the adapter `A` in memory and over the waiting caller `W`, so that the rules can be
//! tested without files, weights or a runtime. Every method says what is to be done next as
//! [`Actions`]; nothing is done here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use graftwork_contract::Digest;

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
    /// Whether the headers fit.
    pub result: Result<(), Refusal>,
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
    /// Answer these callers.
    pub answers: Vec<(W, Result<Grant<A>, AcquireError>)>,
}

#[derive(Debug)]
struct File {
    stage: Stage,
    fingerprint: Fingerprint,
}

#[derive(Debug)]
struct Slot<A> {
    adapter: A,
    leases: usize,
    /// Greater is later.
    used: u64,
}

/// The state machine. See the module's documentation.
#[derive(Debug)]
pub struct Registry<A, W> {
    /// Adapters in memory at most.
    limit: usize,
    versions: Vec<Version>,
    files: BTreeMap<Source, File>,
    slots: BTreeMap<Digest, Slot<A>>,
    waiting: VecDeque<(Version, W)>,
    loading: Option<Source>,
    uses: u64,
    /// Whether the list was found to hold no version that is only registered, so that not every
    /// request walks through it again.
    all_verified: bool,
}

impl<A: Clone, W> Registry<A, W> {
    /// An empty registry that keeps at most `limit` (at least 1) adapters in memory.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            versions: Vec::new(),
            files: BTreeMap::new(),
            slots: BTreeMap::new(),
            waiting: VecDeque::new(),
            loading: None,
            uses: 0,
            all_verified: true,
        }
    }

    /// Replaces the desired list. Files that are new, and those refused before, are looked at.
    pub fn replace(&mut self, versions: Vec<Version>) -> Actions<A, W> {
        self.versions = versions;
        let mut read = Vec::new();
        for Version { source, .. } in &self.versions {
            let file = self.files.entry(source.clone()).or_insert_with(|| File {
                stage: Stage::Unread,
                fingerprint: Vec::new(),
            });
            let unread = matches!(file.stage, Stage::Unread | Stage::Refused(_));
            if unread && !read.contains(source) {
                read.push(source.clone());
            }
        }
        self.collect();
        self.all_verified = false;
        let mut actions = self.proceed();
        actions.read = read;
        actions
    }

    /// Sources of the list that were refused for something that may pass, to be looked at again.
    pub fn may_pass(&self) -> Vec<Source> {
        let sources: BTreeSet<&Source> = self
            .versions
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
        self.all_verified = false;
        if let Some(file) = self.files.get_mut(source) {
            let same = file.fingerprint == header.fingerprint;
            match &file.stage {
                Stage::Refused(refusal) if same && !refusal.may_pass => {}
                Stage::Unread | Stage::Refused(_) => {
                    file.fingerprint = header.fingerprint;
                    file.stage = match header.result {
                        Ok(()) => Stage::Registered,
                        Err(refusal) => Stage::Refused(refusal),
                    };
                }
                Stage::Registered | Stage::Verified => {}
            }
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
                let wanted = self.is_waited_for(&source.digest);
                let room = if wanted {
                    self.make_room()
                } else {
                    self.is_listed(&source.digest) && self.slots.len() < self.limit
                };
                if room {
                    self.uses += 1;
                    self.slots.entry(source.digest.clone()).or_insert(Slot {
                        adapter,
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
                answers: vec![(waiter, Err(error))],
            },
        }
    }

    /// A grant has ended.
    pub fn on_released(&mut self, digest: &Digest) -> Actions<A, W> {
        if let Some(slot) = self.slots.get_mut(digest) {
            slot.leases = slot.leases.saturating_sub(1);
            if slot.leases == 0 && !self.is_listed(digest) && !self.is_waited_for(digest) {
                self.slots.remove(digest);
            }
        }
        self.proceed()
    }

    /// Every version of the list with its standing.
    pub fn standings(&self) -> impl Iterator<Item = (&Version, Standing)> {
        self.versions.iter().map(|version| {
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

    /// Whether every file of the list was looked at.
    pub fn all_read(&self) -> bool {
        self.standings()
            .all(|(_, standing)| standing != Standing::Unread)
    }

    /// Adapters in memory.
    pub fn resident(&self) -> usize {
        self.slots.len()
    }

    /// Which version a target means.
    ///
    /// # Errors
    /// A name or a version that is not in the list.
    pub fn find(&self, target: &Target) -> Result<Version, AcquireError> {
        let found = match target {
            Target::Default(name) => self
                .versions
                .iter()
                .find(|version| version.name == *name && version.is_default)
                .ok_or_else(|| AcquireError::UnknownName(name.clone())),
            Target::Exactly(name, number) => self
                .versions
                .iter()
                .find(|version| version.name == *name && version.number == *number)
                .ok_or_else(|| AcquireError::NotHere {
                    name: name.clone(),
                    version: *number,
                    why: "it is not among this engine's versions".to_owned(),
                }),
        };
        found.cloned()
    }

    /// Forgets files and weights that neither the list nor a request needs any more.
    fn collect(&mut self) {
        let mut needed: BTreeSet<Source> = self.loading.iter().cloned().collect();
        needed.extend(self.versions.iter().map(|version| version.source.clone()));
        needed.extend(
            self.waiting
                .iter()
                .map(|(version, _)| version.source.clone()),
        );
        self.files.retain(|source, _| needed.contains(source));
        self.slots.retain(|digest, slot| {
            slot.leases > 0 || needed.iter().any(|source| source.digest == *digest)
        });
    }

    /// Answers whom it can and picks what to load next.
    fn proceed(&mut self) -> Actions<A, W> {
        let mut actions = Actions {
            read: Vec::new(),
            load: None,
            answers: self.answer_waiting(),
        };
        if self.loading.is_none() {
            self.loading = self.next_load();
            actions.load.clone_from(&self.loading);
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

    /// What someone waits for first, where there is room; then what was not verified yet, defaults
    /// first.
    fn next_load(&mut self) -> Option<Source> {
        let wanted = self.waiting.iter().find_map(|(version, _)| {
            let stage = self.files.get(&version.source).map(|file| &file.stage);
            matches!(stage, Some(Stage::Registered | Stage::Verified))
                .then(|| version.source.clone())
        });
        if let Some(source) = wanted
            && self.make_room()
        {
            return Some(source);
        }
        if self.all_verified {
            return None;
        }
        let next = self
            .versions
            .iter()
            .filter(|version| {
                let stage = self.files.get(&version.source).map(|file| &file.stage);
                stage == Some(&Stage::Registered)
            })
            .min_by_key(|version| !version.is_default)
            .map(|version| version.source.clone());
        self.all_verified = next.is_none();
        next
    }

    /// Whether one more adapter fits, after the one that was used longest ago went, if need be.
    fn make_room(&mut self) -> bool {
        if self.slots.len() < self.limit {
            return true;
        }
        let idle = self
            .slots
            .iter()
            .filter(|(digest, slot)| slot.leases == 0 && !self.is_waited_for(digest))
            .min_by_key(|(_, slot)| slot.used)
            .map(|(digest, _)| digest.clone());
        idle.is_some_and(|digest| self.slots.remove(&digest).is_some())
    }

    fn is_waited_for(&self, digest: &Digest) -> bool {
        self.waiting
            .iter()
            .any(|(version, _)| version.source.digest == *digest)
    }

    fn is_listed(&self, digest: &Digest) -> bool {
        self.versions
            .iter()
            .any(|version| version.source.digest == *digest)
    }
}
