//! Adapters: content-addressed generations behind names.
//!
//! [`state`] holds the rules without I/O, [`files`] reads and checks folders, and this module is the
//! actor between them: it owns the state and the guard of signed calls, and everybody else holds an
//! [`AdapterRegistry`] handle.

#[cfg(test)]
mod actor_tests;
mod bucket;
pub mod disk_cache;
pub mod files;
mod lease;
mod list;
mod pace;
#[cfg(test)]
mod properties;
pub mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use graftwork_contract::endpoint::EngineAdapter;
use graftwork_contract::proto::call::v1::SignedCall;
use graftwork_contract::proto::engine::v1 as proto;
use graftwork_contract::signing::{Admission, Fence, Guard, InvalidKey, Refusal as CallRefusal};
use graftwork_listen::clock;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

pub use lease::Lease;
use state::{
    AcquireError, Actions, Budget, Grant, HeaderRead, Refusal, Registry, Source, Standing, Target,
    Version,
};

use crate::metrics::Metrics;
use files::AdapterFiles;
use graftwork_model::lora::LoadedAdapter;

/// The method that a list is signed for.
pub const SYNC_METHOD: &str = "graftwork.engine.v1.Engine/Sync";
/// Commands that wait for the actor.
const COMMANDS: usize = 1024;
/// How often files are looked at again that the storage did not give: a volume that hiccups once must not take an
/// adapter down until its list changes.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often gauges follow at most: counting a long list takes a while.
const COUNT_AGAIN: Duration = Duration::from_millis(250);
/// How often series of versions that are gone are looked for.
const FORGET: Duration = Duration::from_secs(60);

/// Why a pushed list was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The call itself.
    #[error(transparent)]
    Refused(#[from] CallRefusal),
    /// What was signed is not a list.
    #[error("adapters[{index}]: {problem}")]
    Invalid {
        /// Position in the list.
        index: usize,
        /// What is wrong.
        problem: String,
    },
    /// What was signed is no message of this method.
    #[error("body is not a SyncRequest")]
    Body,
}

/// The registry has ended, which it does only with the process.
#[derive(Debug, thiserror::Error)]
#[error("the adapter registry has ended")]
pub struct Ended;

/// One name of `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// What a client names.
    pub name: String,
    /// The version that the name alone means.
    pub version: u32,
    /// Where its files are in the store.
    pub folder: String,
}

type Waiter = oneshot::Sender<Result<Lease, AcquireError>>;
type Adapter = Arc<LoadedAdapter>;

enum Command {
    Sync(
        Box<SignedCall>,
        oneshot::Sender<Result<proto::SyncReply, SyncError>>,
    ),
    Status(oneshot::Sender<proto::SyncReply>),
    /// The mounted list; answered when all its headers were read.
    Mounted(Vec<Version>, oneshot::Sender<()>),
    Keys(Vec<String>, oneshot::Sender<Result<(), InvalidKey>>),
    Acquire(Target, Waiter),
    Find(Target, oneshot::Sender<Result<Version, AcquireError>>),
    Cards(oneshot::Sender<Vec<Card>>),
    /// What a look at headers found, with its leave if they had been refused before.
    Headers(Vec<(Source, HeaderRead)>, Option<OwnedSemaphorePermit>),
    Loaded(Source, Result<Adapter, Refusal>),
    /// What a verification ended with.
    Verified(Source, Result<(), Refusal>),
}

/// A handle of the registry.
#[derive(Debug, Clone)]
pub struct AdapterRegistry {
    commands: mpsc::Sender<Command>,
}

/// What the registry is made with.
#[derive(Debug)]
pub struct Settings {
    /// Checks signed calls; knows this pod's UID.
    pub guard: Guard,
    /// A new one at every start of the process.
    pub boot_id: String,
    /// The base model's digest.
    pub base_digest: String,
    /// What may be in memory.
    pub budget: Budget,
    /// Reads folders.
    pub files: AdapterFiles,
    /// Gauges to keep current.
    pub metrics: Arc<Metrics>,
}

impl AdapterRegistry {
    /// Starts the actor on the current runtime.
    pub fn start(settings: Settings) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (released, releases) = mpsc::unbounded_channel();
        let actor = Actor::new(settings, commands.downgrade(), released);
        tokio::spawn(actor.run(inbox, releases));
        Self { commands }
    }

    /// Takes a pushed list; answers with the states once every header was read.
    ///
    /// # Errors
    /// [`SyncError`]; the list stays as it was.
    pub async fn sync(
        &self,
        call: SignedCall,
    ) -> Result<Result<proto::SyncReply, SyncError>, Ended> {
        self.ask(|reply| Command::Sync(Box::new(call), reply)).await
    }

    /// The states as they are.
    pub async fn status(&self) -> Result<proto::SyncReply, Ended> {
        self.ask(Command::Status).await
    }

    /// Takes the mounted list, unless one was pushed; returns once every header was read.
    pub async fn mounted(&self, adapters: &[EngineAdapter]) -> Result<(), Ended> {
        let versions = adapters.iter().map(Version::from).collect();
        self.ask(|reply| Command::Mounted(versions, reply)).await
    }

    /// Replaces the trusted keys.
    ///
    /// # Errors
    /// [`InvalidKey`]; the keys stay as they were.
    pub async fn trust(&self, keys: Vec<String>) -> Result<Result<(), InvalidKey>, Ended> {
        self.ask(|reply| Command::Keys(keys, reply)).await
    }

    /// Pins a version for one request; waits while its weights are loaded.
    pub async fn acquire(&self, target: Target) -> Result<Result<Lease, AcquireError>, Ended> {
        self.ask(|reply| Command::Acquire(target, reply)).await
    }

    /// Which version a target means, without loading it.
    pub async fn find(&self, target: Target) -> Result<Result<Version, AcquireError>, Ended> {
        self.ask(|reply| Command::Find(target, reply)).await
    }

    /// What `/v1/models` shows.
    pub async fn cards(&self) -> Result<Vec<Card>, Ended> {
        self.ask(Command::Cards).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Ended> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }
}

impl From<&EngineAdapter> for Version {
    fn from(adapter: &EngineAdapter) -> Self {
        Self {
            name: adapter.name.clone(),
            number: adapter.version,
            source: Source {
                digest: adapter.digest.clone(),
                folder: adapter.folder.clone(),
            },
            is_default: adapter.is_default,
        }
    }
}

/// Someone who is answered once every header of the newest list was read.
enum UnreadReply {
    Sync(oneshot::Sender<Result<proto::SyncReply, SyncError>>),
    Mounted(oneshot::Sender<()>),
}

struct Actor {
    registry: Registry<Adapter, Waiter>,
    settings: Settings,
    fence: Fence,
    /// Whether a list was pushed, after which the mounted one is of no interest.
    pushed: bool,
    unread_replies: Vec<UnreadReply>,
    /// Leave to look again at refused files, for one at a time: it comes back with what was found, or
    /// without it where the look broke.
    looks: Arc<Semaphore>,
    /// For the results of reads and loads; weak, so that the actor ends with its last handle.
    commands: mpsc::WeakSender<Command>,
    released: mpsc::UnboundedSender<graftwork_contract::Digest>,
    /// For the thread that verifies.
    unverified: std::sync::mpsc::Sender<Source>,
}

impl Actor {
    fn new(
        settings: Settings,
        commands: mpsc::WeakSender<Command>,
        released: mpsc::UnboundedSender<graftwork_contract::Digest>,
    ) -> Self {
        Self {
            registry: Registry::new(settings.budget),
            fence: Fence::default(),
            pushed: false,
            unread_replies: Vec::new(),
            looks: Arc::new(Semaphore::new(1)),
            unverified: verifier(settings.files.clone(), commands.clone()),
            commands,
            released,
            settings,
        }
    }

    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Command>,
        mut releases: mpsc::UnboundedReceiver<graftwork_contract::Digest>,
    ) {
        let mut again = tokio::time::interval(LOOK_AGAIN);
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = tokio::time::interval(COUNT_AGAIN);
        count.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut forget = tokio::time::interval(FORGET);
        forget.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_counted = true;
        loop {
            let resident = self.registry.resident();
            // Requests rarely change a state.
            let mut may_change = false;
            tokio::select! {
                _ = again.tick() => self.look_again(),
                _ = forget.tick() => self.settings.metrics.forget_gone(&self.registry, clock::now()),
                _ = count.tick(), if !is_counted => {
                    is_counted = true;
                    self.settings.metrics.set_adapters(&self.registry);
                }
                command = inbox.recv() => {
                    let Some(command) = command else { return };
                    may_change = !matches!(command, Command::Acquire(..) | Command::Find(..));
                    self.handle(command);
                }
                Some(digest) = releases.recv() => {
                    let actions = self.registry.on_released(&digest);
                    self.perform(actions);
                }
            }
            self.answer_read();
            is_counted &= !may_change && self.registry.resident() == resident;
        }
    }

    fn handle(&mut self, command: Command) {
        // A caller that has left needs no answer: failures to send are nobody's loss.
        match command {
            Command::Sync(call, reply) => match self.admit(&call) {
                Ok(versions) => {
                    self.pushed = true;
                    self.unread_replies.push(UnreadReply::Sync(reply));
                    if let Some(versions) = versions {
                        let actions = self.registry.replace(versions);
                        self.perform(actions);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "pushed list refused");
                    let _ = reply.send(Err(error));
                }
            },
            Command::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Command::Mounted(_, reply) if self.pushed => {
                let _ = reply.send(());
            }
            Command::Mounted(versions, reply) => {
                self.unread_replies.push(UnreadReply::Mounted(reply));
                let actions = self.registry.replace(versions);
                self.perform(actions);
            }
            Command::Keys(keys, reply) => {
                let _ = reply.send(self.settings.guard.replace_keys(&keys));
            }
            Command::Acquire(target, waiter) => {
                let actions = self.registry.acquire(&target, waiter);
                self.perform(actions);
            }
            Command::Find(target, reply) => {
                let _ = reply.send(self.registry.find(&target));
            }
            Command::Cards(reply) => {
                let cards = self.registry.standings().filter(|(version, standing)| {
                    version.is_default && !matches!(standing, Standing::Refused(_))
                });
                let _ = reply.send(cards.map(|(version, _)| Card::from(version)).collect());
            }
            Command::Headers(headers, _leave) => {
                for (source, header) in headers {
                    if let Err(refusal) = &header.result
                        && !self.registry.is_refused_for(&source, refusal)
                    {
                        log_refusal(&source, refusal);
                    }
                    let actions = self.registry.on_header(&source, header);
                    self.perform(actions);
                }
            }
            Command::Loaded(source, result) => {
                match &result {
                    Ok(adapter) => tracing::info!(
                        folder = source.folder,
                        bytes = adapter.bytes(),
                        "adapter verified"
                    ),
                    Err(refusal) => log_refusal(&source, refusal),
                }
                let actions = self.registry.on_loaded(&source, result);
                self.perform(actions);
            }
            Command::Verified(source, result) => {
                match &result {
                    Ok(()) => tracing::info!(folder = source.folder, "adapter verified"),
                    Err(refusal) => log_refusal(&source, refusal),
                }
                let actions = self.registry.on_verified(&source, result);
                self.perform(actions);
            }
        }
    }

    /// Checks a pushed list: signature and order by the guard, then each entry. None where it is the
    /// very call that was taken last, which makes the engine read nothing again.
    fn admit(&mut self, call: &SignedCall) -> Result<Option<Vec<Version>>, SyncError> {
        let now = clock::unix_seconds();
        let body = self.settings.guard.verify(call, SYNC_METHOD, now)?;
        let request = proto::SyncRequest::decode(body).map_err(|_| SyncError::Body)?;
        let versions = read_list(request)?;
        let admission = self.settings.guard.admit(call, SYNC_METHOD, now)?;
        self.fence = Fence::from(call);
        Ok((admission == Admission::New).then_some(versions))
    }

    fn perform(&mut self, actions: Actions<Adapter, Waiter>) {
        for (waiter, answer) in actions.answers {
            let answer = answer.map(|Grant { version, adapter }| {
                Lease::new(version, adapter, self.released.clone())
            });
            // Where the caller left, the lease comes back and ends here.
            let _ = waiter.send(answer);
        }
        self.read(actions.read, None);
        if let Some(source) = actions.load {
            let (files, commands) = (self.settings.files.clone(), self.commands.clone());
            tokio::task::spawn_blocking(move || {
                let result = files.load(&source).map(Arc::new);
                send_result(&commands, Command::Loaded(source, result));
            });
        }
        if let Some(source) = actions.verify {
            // The thread ends before its sender only by a panic, which the log has.
            let _ = self.unverified.send(source);
        }
    }

    /// Looks at files that may be there by now; one look at a time, since a volume that hangs holds each up.
    fn look_again(&self) {
        if let Ok(leave) = Arc::clone(&self.looks).try_acquire_owned() {
            self.read(self.registry.may_pass(), Some(leave));
        }
    }

    /// Looks at headers in the background.
    fn read(&self, sources: Vec<Source>, leave: Option<OwnedSemaphorePermit>) {
        if sources.is_empty() {
            return;
        }
        let (files, commands) = (self.settings.files.clone(), self.commands.clone());
        tokio::task::spawn_blocking(move || {
            let headers = sources
                .into_iter()
                .map(|source| {
                    let header = files.read_header(&source);
                    (source, header)
                })
                .collect();
            send_result(&commands, Command::Headers(headers, leave));
        });
    }

    fn answer_read(&mut self) {
        if self.unread_replies.is_empty() || !self.registry.all_read() {
            return;
        }
        for reply in std::mem::take(&mut self.unread_replies) {
            match reply {
                UnreadReply::Sync(reply) => {
                    let _ = reply.send(Ok(self.status()));
                }
                UnreadReply::Mounted(reply) => {
                    let _ = reply.send(());
                }
            }
        }
    }

    fn status(&self) -> proto::SyncReply {
        let adapters = self.registry.standings().map(|(version, standing)| {
            let (state, refusal) = match standing {
                Standing::Unread => (proto::AdapterState::Unspecified, None),
                Standing::Registered => (proto::AdapterState::Registered, None),
                Standing::Verified => (proto::AdapterState::Verified, None),
                Standing::Resident => (proto::AdapterState::Resident, None),
                Standing::Refused(refusal) => (proto::AdapterState::Refused, Some(refusal)),
            };
            proto::AdapterStatus {
                name: version.name.clone(),
                version: version.number,
                digest: version.source.digest.to_string(),
                state: state.into(),
                may_pass: refusal.as_ref().is_some_and(|refusal| refusal.may_pass),
                reason: refusal
                    .as_ref()
                    .map(|r| r.reason.to_owned())
                    .unwrap_or_default(),
                message: refusal.map(|r| r.message).unwrap_or_default(),
            }
        });
        proto::SyncReply {
            adapters: adapters.collect(),
            pod_uid: self.settings.guard.pod_uid().to_owned(),
            boot_id: self.settings.boot_id.clone(),
            lease_epoch: self.fence.lease_epoch,
            generation: self.fence.generation,
            base_digest: self.settings.base_digest.clone(),
        }
    }
}

impl From<&Version> for Card {
    fn from(version: &Version) -> Self {
        Self {
            name: version.name.clone(),
            version: version.number,
            folder: version.source.folder.clone(),
        }
    }
}

/// A thread that verifies what it is told of, one after the other, until its sender goes. It is none of the runtime's:
/// those do other work afterwards.
fn verifier(
    files: AdapterFiles,
    commands: mpsc::WeakSender<Command>,
) -> std::sync::mpsc::Sender<Source> {
    let (sender, sources) = std::sync::mpsc::channel::<Source>();
    thread::spawn(move || {
        pace::behind_passes();
        for source in sources {
            let result = files.verify(&source);
            send_result(&commands, Command::Verified(source, result));
        }
    });
    sender
}

fn log_refusal(source: &Source, refusal: &Refusal) {
    tracing::warn!(
        folder = source.folder,
        reason = refusal.reason,
        message = refusal.message,
        "adapter refused"
    );
}

fn send_result(commands: &mpsc::WeakSender<Command>, result: Command) {
    if let Some(commands) = commands.upgrade() {
        // Fails only where the actor has ended, and then nobody waits.
        let _ = commands.blocking_send(result);
    }
}

fn read_list(request: proto::SyncRequest) -> Result<Vec<Version>, SyncError> {
    let mut versions: Vec<Version> = Vec::with_capacity(request.adapters.len());
    // Of each name: its numbers, and its default.
    let mut known: BTreeMap<String, (BTreeSet<u32>, Option<u32>)> = BTreeMap::new();
    for (index, adapter) in request.adapters.into_iter().enumerate() {
        let invalid = |problem: String| SyncError::Invalid { index, problem };
        if adapter.name.is_empty() {
            return Err(invalid("name is empty".to_owned()));
        }
        let digest = adapter.digest.parse().map_err(
            |error: graftwork_contract::digest::InvalidDigest| invalid(error.to_string()),
        )?;
        let (numbers, default) = known.entry(adapter.name.clone()).or_default();
        if !numbers.insert(adapter.version) {
            return Err(invalid(format!(
                "{} version {} stands in the list twice",
                adapter.name, adapter.version
            )));
        }
        if adapter.is_default
            && let Some(other) = default.replace(adapter.version)
        {
            return Err(invalid(format!(
                "{} has two default versions, {other} and {}",
                adapter.name, adapter.version
            )));
        }
        versions.push(Version {
            name: adapter.name,
            number: adapter.version,
            source: Source {
                digest,
                folder: adapter.folder,
            },
            is_default: adapter.is_default,
        });
    }
    Ok(versions)
}
