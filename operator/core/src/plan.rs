//! What a reconcile ends with: either one decision to write down, or everything to do.
//!
//! A plan is a value. The shell (`graftwork-operator`) carries it out in a fixed order: configuration,
//! storage, workload, Jobs, prune, nudges, calls, observed status, events.

use std::time::Duration;

use graftwork_contract::proto::{engine, router, store};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Service};

/// When to look again at a name that somebody else has. Caches hold our own objects only: nobody
/// tells when such a name becomes free.
pub const NAME_TAKEN_PAUSE: Duration = Duration::from_secs(7);

/// The outcome of one reconcile of an object with status `S` (`()` where there is none).
#[derive(Debug, Clone, PartialEq)]
pub enum Plan<S> {
    /// A fact that exists nowhere else changes. It is written to status with the observed
    /// `resourceVersion`; then the reconcile starts again, and effects derive from what was written.
    Decide(Decision<S>),
    /// Nothing is to be decided: bring the world in line with spec and persisted status.
    Act(Actions<S>),
}

/// A change of persistent facts.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision<S> {
    /// The whole next status: the one that was read, with the decision in it.
    pub status: S,
    /// Sent once the status is written.
    pub events: Vec<Event>,
}

/// Everything that one reconcile does.
#[derive(Debug, Clone, PartialEq)]
pub struct Actions<S> {
    /// Created, then kept by server-side apply, in the order of [`Child::stage`]; written only where
    /// they differ.
    pub apply: Vec<Child>,
    /// Created, never changed; one that exists is left alone.
    pub create: Vec<Job>,
    /// Deleted if the UID is still the same.
    pub delete: Vec<Delete>,
    /// Pods whose mounted configuration should be looked at now.
    pub nudge: Vec<Nudge>,
    /// gRPC calls, in order. A failed one does not stop the others; it shows in the next
    /// observation.
    pub calls: Vec<Call>,
    /// The whole status as observed now; none leaves the status alone.
    pub status: Option<S>,
    /// Sent once the status is written; not at all where it did not change.
    pub events: Vec<Event>,
    /// When to look again without an event.
    pub requeue_after: Option<Duration>,
}

impl<S> Default for Actions<S> {
    fn default() -> Self {
        Self {
            apply: Vec::new(),
            create: Vec::new(),
            delete: Vec::new(),
            nudge: Vec::new(),
            calls: Vec::new(),
            status: None,
            events: Vec::new(),
            requeue_after: None,
        }
    }
}

impl<S> Plan<S> {
    /// A plan that only says something in status.
    pub fn say(status: S, events: Vec<Event>, requeue_after: Option<Duration>) -> Self {
        Self::Act(Actions {
            status: Some(status),
            events,
            requeue_after,
            ..Actions::default()
        })
    }
}

/// An object that is kept as we want it. Its `metadata` has name, namespace, labels and owner
/// reference.
#[derive(Debug, Clone, PartialEq)]
pub enum Child {
    /// Configuration of pods.
    ConfigMap(Box<ConfigMap>),
    /// The namespace's store.
    Claim(Box<PersistentVolumeClaim>),
    /// A name for pods.
    Service(Box<Service>),
    /// Keepers, engines and routers.
    Deployment(Box<Deployment>),
}

/// Children are written stage by stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// What pods mount.
    Configuration,
    /// Where pods write.
    Storage,
    /// Pods and their names.
    Workload,
}

impl Child {
    /// When the child is written.
    pub const fn stage(&self) -> Stage {
        match self {
            Self::ConfigMap(_) => Stage::Configuration,
            Self::Claim(_) => Stage::Storage,
            Self::Service(_) | Self::Deployment(_) => Stage::Workload,
        }
    }

    /// The child's kind.
    pub const fn kind(&self) -> ChildKind {
        match self {
            Self::ConfigMap(_) => ChildKind::ConfigMap,
            Self::Claim(_) => ChildKind::PersistentVolumeClaim,
            Self::Service(_) => ChildKind::Service,
            Self::Deployment(_) => ChildKind::Deployment,
        }
    }

    /// `metadata.name`; empty where a builder forgot it.
    pub fn name(&self) -> &str {
        let metadata = match self {
            Self::ConfigMap(object) => &object.metadata,
            Self::Claim(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::Deployment(object) => &object.metadata,
        };
        metadata.name.as_deref().unwrap_or_default()
    }
}

/// Kinds of objects that we make or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChildKind {
    /// core/v1
    ConfigMap,
    /// core/v1
    PersistentVolumeClaim,
    /// core/v1
    Service,
    /// apps/v1
    Deployment,
    /// batch/v1
    Job,
    /// core/v1; only ever deleted by us
    Pod,
}

impl ChildKind {
    /// The kind as in YAML.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::Service => "Service",
            Self::Deployment => "Deployment",
            Self::Job => "Job",
            Self::Pod => "Pod",
        }
    }
}

/// An object to delete, if it is still the one that was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// Its kind.
    pub kind: ChildKind,
    /// Its name.
    pub name: String,
    /// Its UID: a precondition.
    pub uid: String,
    /// Seconds of grace; none: the object's own. Zero forces a pod out.
    pub grace_seconds: Option<u32>,
}

/// A pod whose kubelet should refresh mounted `ConfigMaps` now: an annotation that differs is
/// written (without it a change took 72-85 s to arrive, with it under 1 s).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nudge {
    /// Name of the pod.
    pub pod: String,
    /// Its UID.
    pub uid: String,
    /// Digest of the configuration that the pod should see.
    pub configuration: String,
}

/// A pod to call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Its name.
    pub pod: String,
    /// Its UID: calls are signed for it, and its answer must name it.
    pub uid: String,
    /// Its IP address.
    pub ip: String,
    /// Restarts of the container: another process is behind the same UID.
    pub restarts: i32,
}

/// A call that changes something; the shell signs it with lease epoch and generation.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// Writes a record of the ledger through the namespace's keeper, create-only.
    Publish(store::v1::PublishRequest),
    /// Copies a PEFT folder into the namespace's store through its keeper. It may take long: it runs
    /// in the background, and the answer comes with the next observation.
    Import(store::v1::ImportRequest),
    /// Removes versions of a dataset through the namespace's keeper, which keeps those that the store refers to.
    Prune(store::v1::PruneRequest),
    /// Gives an engine its full list.
    SyncEngine(Target, engine::v1::SyncRequest),
    /// Gives a router its full table.
    SyncRouter(Target, router::v1::RoutingTable),
}

impl Call {
    /// The gRPC method, for signatures and metrics.
    pub const fn method(&self) -> &'static str {
        match self {
            Self::Publish(_) => "graftwork.store.v1.Keeper/Publish",
            Self::Import(_) => "graftwork.store.v1.Keeper/Import",
            Self::Prune(_) => "graftwork.store.v1.Keeper/Prune",
            Self::SyncEngine(..) => "graftwork.engine.v1.Engine/Sync",
            Self::SyncRouter(..) => "graftwork.router.v1.Router/Sync",
        }
    }
}

/// An event about the object that is reconciled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whether a person should look.
    pub kind: EventKind,
    /// A condition's reason.
    pub reason: String,
    /// What the operator did or tried, for example `Reconcile`.
    pub action: String,
    /// In words; at most 1,024 bytes.
    pub note: String,
}

/// Severity of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Expected.
    Normal,
    /// A person should look.
    Warning,
}

impl Event {
    /// An expected event.
    pub fn normal(reason: impl Into<String>, note: impl Into<String>) -> Self {
        Self::new(EventKind::Normal, reason, note)
    }

    /// An event that a person should look at.
    pub fn warning(reason: impl Into<String>, note: impl Into<String>) -> Self {
        Self::new(EventKind::Warning, reason, note)
    }

    fn new(kind: EventKind, reason: impl Into<String>, note: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
            action: "Reconcile".to_owned(),
            note: note.into(),
        }
    }
}
