//! What the API server shows, kept at hand by watches, and which objects a change concerns.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use graftwork_api::{Dataset, LoRAAdapter, ServingEndpoint, TrainingRun, labels};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Service};
use kube::api::{Api, PartialObjectMeta};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource, ResourceExt as _};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::api::WATCH_SECONDS;
use crate::cache::related::Related;

mod related;

/// A kind of reconciled object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Dataset.
    Dataset,
    /// `TrainingRun`.
    Run,
    /// `LoRAAdapter`.
    Adapter,
    /// `ServingEndpoint`.
    Endpoint,
    /// A namespace's storage.
    Storage,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Dataset,
        Self::Run,
        Self::Adapter,
        Self::Endpoint,
        Self::Storage,
    ];

    /// For logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dataset => "Dataset",
            Self::Run => "TrainingRun",
            Self::Adapter => "LoRAAdapter",
            Self::Endpoint => "ServingEndpoint",
            Self::Storage => "Namespace",
        }
    }
}

/// An object that should be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Touch {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace (for storage: itself).
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A custom resource as it is cached: one that this version can't read does not hide the others.
pub type Guarded<K> = DeserializeGuard<K>;

/// Everything that is watched.
#[derive(Clone)]
pub struct Caches {
    /// All Datasets.
    pub datasets: Store<Guarded<Dataset>>,
    /// All runs.
    pub runs: Store<Guarded<TrainingRun>>,
    /// All adapters.
    pub adapters: Store<Guarded<LoRAAdapter>>,
    /// All endpoints.
    pub endpoints: Store<Guarded<ServingEndpoint>>,
    /// Ours.
    pub deployments: Store<Deployment>,
    /// Ours.
    pub services: Store<Service>,
    /// Ours.
    pub config_maps: Store<ConfigMap>,
    /// Ours.
    pub jobs: Store<Job>,
    /// Ours.
    pub pods: Store<Pod>,
    /// All: sources of data and names that are taken.
    pub all_config_maps: Store<PartialObjectMeta<ConfigMap>>,
    /// All: base models, sources, imports.
    pub claims: Store<PersistentVolumeClaim>,
    /// All.
    pub namespaces: Store<Namespace>,
}

/// Where touches go while this process leads. An object that waits to be looked at is not queued
/// again.
#[derive(Clone)]
pub struct Touches {
    senders: Arc<[UnboundedSender<Touch>; 5]>,
    pending: Arc<Mutex<HashSet<Touch>>>,
    active: Arc<AtomicBool>,
}

impl Touches {
    pub(crate) fn new() -> (Self, [UnboundedReceiver<Touch>; 5]) {
        let channels = Kind::ALL.map(|_| unbounded_channel());
        let mut senders = Vec::with_capacity(channels.len());
        let receivers = channels.map(|(sender, receiver)| {
            senders.push(sender);
            receiver
        });
        let mut senders = senders.into_iter();
        // As many senders as kinds: one was pushed for each.
        let senders =
            std::array::from_fn(|_| senders.next().unwrap_or_else(|| unbounded_channel().0));
        let touches = Self {
            senders: Arc::new(senders),
            pending: Arc::default(),
            active: Arc::new(AtomicBool::new(false)),
        };
        (touches, receivers)
    }

    /// From now on touches are passed on: this process leads.
    pub fn activate(&self) {
        self.active.store(true, Ordering::Release);
    }

    /// Asks for an object to be looked at.
    pub fn send(&self, touch: Touch) {
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        let is_new = self
            .pending
            .lock()
            .is_ok_and(|mut pending| pending.insert(touch.clone()));
        if !is_new {
            return;
        }
        let index = Kind::ALL.iter().position(|kind| *kind == touch.kind);
        if let Some(sender) = index.and_then(|index| self.senders.get(index)) {
            // A receiver that is gone is a process that stops.
            let _ = sender.send(touch);
        }
    }

    /// The object is being looked at now: whatever changes from here on queues it again.
    pub fn take(&self, touch: &Touch) {
        if let Ok(mut pending) = self.pending.lock() {
            pending.remove(touch);
        }
    }

    /// How many objects of a kind wait.
    pub fn waiting(&self, kind: Kind) -> usize {
        self.pending.lock().map_or(0, |pending| {
            pending.iter().filter(|it| it.kind == kind).count()
        })
    }
}

impl Caches {
    /// Starts all watches.
    pub fn start(client: &Client) -> (Self, Touches, [UnboundedReceiver<Touch>; 5]) {
        let (touches, receivers) = Touches::new();
        let mine = watcher::Config::default()
            .labels(&format!("{}={}", labels::MANAGED_BY, labels::OPERATOR))
            .timeout(WATCH_SECONDS);
        let all = watcher::Config::default().timeout(WATCH_SECONDS);

        let (datasets, datasets_writer) = store();
        let (runs, runs_writer) = store();
        let (adapters, adapters_writer) = store();
        let (endpoints, endpoints_writer) = store();
        let (deployments, deployments_writer) = store();
        let (services, services_writer) = store();
        let (config_maps, config_maps_writer) = store();
        let (jobs, jobs_writer) = store();
        let (pods, pods_writer) = store();
        let (all_config_maps, all_config_maps_writer) = store();
        let (claims, claims_writer) = store();
        let (namespaces, namespaces_writer) = store();
        let caches = Self {
            datasets,
            runs,
            adapters,
            endpoints,
            deployments,
            services,
            config_maps,
            jobs,
            pods,
            all_config_maps,
            claims,
            namespaces,
        };
        let sink = |caches: &Self| Sink {
            caches: caches.clone(),
            touches: touches.clone(),
        };

        follow(client, &all, datasets_writer, sink(&caches));
        follow(client, &all, runs_writer, sink(&caches));
        follow(client, &all, adapters_writer, sink(&caches));
        follow(client, &all, endpoints_writer, sink(&caches));
        follow(client, &mine, deployments_writer, sink(&caches));
        follow(client, &mine, services_writer, sink(&caches));
        follow(client, &mine, config_maps_writer, sink(&caches));
        follow(client, &mine, jobs_writer, sink(&caches));
        follow(client, &mine, pods_writer, sink(&caches));
        follow(client, &all, claims_writer, sink(&caches));
        follow(client, &all, namespaces_writer, sink(&caches));
        follow_metadata(client, &all, all_config_maps_writer, sink(&caches));
        (caches, touches, receivers)
    }

    /// Waits until every cache was filled once.
    pub async fn ready(&self) {
        let _ = tokio::join!(
            self.datasets.wait_until_ready(),
            self.runs.wait_until_ready(),
            self.adapters.wait_until_ready(),
            self.endpoints.wait_until_ready(),
            self.deployments.wait_until_ready(),
            self.services.wait_until_ready(),
            self.config_maps.wait_until_ready(),
            self.jobs.wait_until_ready(),
            self.pods.wait_until_ready(),
            self.all_config_maps.wait_until_ready(),
            self.claims.wait_until_ready(),
            self.namespaces.wait_until_ready(),
        );
    }

    /// Kinds whose caches were not filled yet.
    pub fn unfilled(&self) -> Vec<String> {
        use futures::FutureExt as _;
        fn kind<K>(store: &Store<K>) -> Option<String>
        where
            K: Resource<DynamicType = ()> + Clone + 'static,
        {
            let filled = store.wait_until_ready().now_or_never().is_some();
            (!filled).then(|| K::kind(&()).into_owned())
        }
        let kinds = [
            kind(&self.datasets),
            kind(&self.runs),
            kind(&self.adapters),
            kind(&self.endpoints),
            kind(&self.deployments),
            kind(&self.services),
            kind(&self.config_maps).or_else(|| kind(&self.all_config_maps)),
            kind(&self.jobs),
            kind(&self.pods),
            kind(&self.claims),
            kind(&self.namespaces),
        ];
        kinds.into_iter().flatten().collect()
    }

    /// Every object that is reconciled.
    pub fn everything(&self) -> Vec<Touch> {
        fn touches<K>(kind: Kind, store: &Store<K>) -> impl Iterator<Item = Touch>
        where
            K: Resource<DynamicType = ()> + Clone + 'static,
        {
            store.state().into_iter().map(move |object| Touch {
                kind,
                namespace: object.namespace().unwrap_or_else(|| object.name_any()),
                name: object.name_any(),
            })
        }
        touches(Kind::Dataset, &self.datasets)
            .chain(touches(Kind::Run, &self.runs))
            .chain(touches(Kind::Adapter, &self.adapters))
            .chain(touches(Kind::Endpoint, &self.endpoints))
            .chain(touches(Kind::Storage, &self.namespaces))
            .collect()
    }
}

/// Objects of a store in one namespace.
pub fn in_namespace<K>(store: &Store<K>, namespace: &str) -> Vec<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.state_filter(|object| object.meta().namespace.as_deref() == Some(namespace))
}

/// One object of a store.
pub fn find<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(namespace))
}

/// One readable custom resource of a store.
pub fn find_readable<K>(store: &Store<Guarded<K>>, namespace: &str, name: &str) -> Option<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    find(store, namespace, name)?.0.clone().ok()
}

struct Sink {
    caches: Caches,
    touches: Touches,
}

fn follow<K>(
    client: &Client,
    config: &watcher::Config,
    writer: kube::runtime::reflector::store::Writer<K>,
    sink: Sink,
) where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + Related
        + 'static,
{
    let watch = watcher::watcher(Api::<K>::all(client.clone()), config.clone());
    drive(watch.boxed(), writer, sink);
}

/// Follows nothing but metadata: what is in these objects is never sent. Annotations, one of which
/// may repeat the whole object, are not kept.
fn follow_metadata<K>(
    client: &Client,
    config: &watcher::Config,
    writer: kube::runtime::reflector::store::Writer<PartialObjectMeta<K>>,
    sink: Sink,
) where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
    PartialObjectMeta<K>: Related,
{
    // An `Api` of nothing but metadata asks for nothing else.
    let api = Api::<PartialObjectMeta<K>>::all(client.clone());
    let watch = watcher::watcher(api, config.clone());
    let watch = watch.modify(|object| {
        object.metadata.annotations = None;
        object.metadata.managed_fields = None;
    });
    drive(watch.boxed(), writer, sink);
}

/// Applies a watch to its cache for as long as the process lives, and touches what each change
/// concerns; objects that vanished during a break in the watch as well.
fn drive<K>(
    watch: futures::stream::BoxStream<'static, watcher::Result<Event<K>>>,
    mut writer: kube::runtime::reflector::store::Writer<K>,
    sink: Sink,
) where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + Related + 'static,
    K::DynamicType: Hash + Eq,
{
    tokio::spawn(async move {
        let mut watch = watch.default_backoff().boxed();
        let reader = writer.as_reader();
        while let Some(event) = watch.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    let kind = K::kind(&()).into_owned();
                    tracing::warn!(kind, %error, "a watch broke and is begun again");
                    continue;
                }
            };
            let before = if matches!(event, Event::InitDone) {
                reader.state()
            } else {
                Vec::new()
            };
            writer.apply_watcher_event(&event);
            let concerned = match &event {
                Event::Apply(object) | Event::Delete(object) => object.related(&sink.caches),
                Event::Init | Event::InitApply(_) => Vec::new(),
                Event::InitDone => reader
                    .state()
                    .iter()
                    .chain(&before)
                    .flat_map(|object| object.related(&sink.caches))
                    .collect(),
            };
            for touch in concerned {
                sink.touches.send(touch);
            }
        }
    });
}
