//! gRPC calls to pods: deadlines, signatures, and that the pod that answers is the one that was
//! called.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use graftwork_contract::proto::call::v1::SignedCall;
use graftwork_contract::proto::engine::v1 as engine;
use graftwork_contract::proto::engine::v1::engine_client::EngineClient;
use graftwork_contract::proto::router::v1 as router;
use graftwork_contract::proto::router::v1::router_client::RouterClient;
use graftwork_contract::proto::store::v1 as store;
use graftwork_contract::proto::store::v1::keeper_client::KeeperClient;
use graftwork_contract::signing::{Addressee, Fence, sign};
use graftwork_contract::{Digest, pod};
use graftwork_operator_core::endpoint::list_digest;
use graftwork_operator_core::observed::{Acknowledgement, Record, table_digest};
use graftwork_operator_core::plan::Target;
use jiff::Timestamp;
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::clock;
use crate::dial::Dialer;
use crate::keys::Keys;
use crate::lease::Term;
use crate::metrics::Metrics;

/// Deadline of calls that read or write a little.
const SHORT: Duration = Duration::from_secs(10);
/// Deadline of calls to engines and routers: a rollback waits for nobody for long.
const PROMPT: Duration = Duration::from_secs(3);
/// Deadline of calls that read model files.
const LONG: Duration = Duration::from_mins(10);
/// Deadline of copies.
const COPY: Duration = Duration::from_mins(30);
/// Largest answer.
const LARGEST: usize = 64 << 20;

/// Why a call had no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No connection, no answer in time.
    #[error("pod {pod} does not answer: {why}")]
    Unreachable {
        /// Name of the pod.
        pod: String,
        /// Why.
        why: String,
    },
    /// The pod said no.
    #[error("pod {pod} refused {method}: {why}")]
    Refused {
        /// Name of the pod.
        pod: String,
        /// The method.
        method: &'static str,
        /// Why.
        why: String,
    },
    /// Another pod has its address.
    #[error("pod {pod} was called and another one answered")]
    WrongPod {
        /// Name of the pod.
        pod: String,
    },
    /// The leader's term is over.
    #[error("this process does not lead any more")]
    NotLeading,
}

/// A pod to call, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its namespace.
    pub namespace: String,
    /// The pod.
    pub target: Target,
    /// UID of the object that it belongs to: a namespace's for keepers.
    pub owner_uid: String,
}

/// Calls pods.
pub struct Calls {
    dialer: Dialer,
    keys: Keys,
    term: Arc<Term>,
    metrics: Metrics,
    generation: AtomicU64,
    /// One push to a pod at a time: a later one must not overtake an earlier one.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    acknowledged: Mutex<HashMap<String, (i32, Acknowledgement)>>,
}

/// Fence of calls whose order does not matter within a term, because what they write is create-only.
const UNORDERED: u64 = 0;

impl Calls {
    /// Calls that are signed with `keys` within `term`.
    pub fn new(dialer: Dialer, keys: Keys, term: Arc<Term>, metrics: Metrics) -> Self {
        Self {
            dialer,
            keys,
            term,
            metrics,
            generation: AtomicU64::new(0),
            turns: Mutex::default(),
            acknowledged: Mutex::default(),
        }
    }

    /// The public keys that pods are to trust.
    pub fn public_keys(&self) -> &[String] {
        &self.keys.public
    }

    /// A connection to a trainer's gRPC port.
    ///
    /// # Errors
    /// Where there is none.
    pub async fn connect(&self, peer: &Peer) -> Result<Channel, CallError> {
        self.dialer
            .channel(&peer.namespace, &peer.target, pod::GRPC_PORT)
            .await
            .map_err(|error| CallError::Unreachable {
                pod: peer.target.pod.clone(),
                why: error.to_string(),
            })
    }

    /// Forgets what belongs to pods that are gone.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        self.dialer.keep_only(&exists);
        if let Ok(mut turns) = self.turns.lock() {
            turns.retain(|uid, _| exists(uid));
        }
        if let Ok(mut acknowledged) = self.acknowledged.lock() {
            acknowledged.retain(|uid, _| exists(uid));
        }
    }

    async fn ask<T>(
        &self,
        peer: &Peer,
        method: &'static str,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
        pod_uid: impl FnOnce(&T) -> &str,
    ) -> Result<T, CallError> {
        let answer = tokio::time::timeout(deadline, call).await;
        let name = || peer.target.pod.clone();
        let outcome = match answer {
            Err(_) => Err(CallError::Unreachable {
                pod: name(),
                why: format!("no answer within {} s", deadline.as_secs()),
            }),
            Ok(Err(status)) if is_transport(&status) => Err(CallError::Unreachable {
                pod: name(),
                why: status.message().to_owned(),
            }),
            Ok(Err(status)) => Err(CallError::Refused {
                pod: name(),
                method,
                why: format!("{}: {}", status.code(), status.message()),
            }),
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                if pod_uid(&answer) == peer.target.uid {
                    Ok(answer)
                } else {
                    Err(CallError::WrongPod { pod: name() })
                }
            }
        };
        let label = match &outcome {
            Ok(_) => "ok",
            Err(CallError::Unreachable { .. }) => "unreachable",
            Err(CallError::WrongPod { .. }) => "wrong_pod",
            Err(CallError::Refused { .. }) => "refused",
            Err(CallError::NotLeading) => "not_leading",
        };
        self.metrics.call(method, label);
        if matches!(
            outcome,
            Err(CallError::Unreachable { .. } | CallError::WrongPod { .. })
        ) {
            self.dialer.forget(&peer.target.uid);
        }
        outcome
    }

    fn signed(
        &self,
        peer: &Peer,
        method: &str,
        body: Vec<u8>,
        generation: u64,
    ) -> Result<SignedCall, CallError> {
        if !self.term.holds() {
            return Err(CallError::NotLeading);
        }
        let now = clock::unix_seconds();
        Ok(sign(
            &self.keys.signing,
            method,
            body,
            &Addressee {
                pod_uid: peer.target.uid.clone(),
                owner_uid: peer.owner_uid.clone(),
            },
            Fence {
                lease_epoch: self.term.epoch(),
                generation,
            },
            now,
        ))
    }

    async fn keeper(&self, peer: &Peer) -> Result<KeeperClient<Channel>, CallError> {
        let channel = self.connect(peer).await?;
        Ok(KeeperClient::new(channel).max_decoding_message_size(LARGEST))
    }

    /// The records below a prefix.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn list(&self, peer: &Peer, prefix: String) -> Result<Vec<Record>, CallError> {
        const METHOD: &str = "graftwork.store.v1.Keeper/List";
        let mut client = self.keeper(peer).await?;
        let call = client.list(store::ListRequest { prefix });
        let reply = self
            .ask(peer, METHOD, SHORT, call, |it| &it.pod_uid)
            .await?;
        Ok(reply.records.into_iter().map(record).collect())
    }

    /// One record; none where there is none.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get(&self, peer: &Peer, path: String) -> Result<Option<Record>, CallError> {
        const METHOD: &str = "graftwork.store.v1.Keeper/Get";
        let mut client = self.keeper(peer).await?;
        let uid = peer.target.uid.clone();
        let call = async {
            match client.get(store::GetRequest { path }).await {
                Err(status) if status.code() == Code::NotFound => {
                    Ok(Response::new(store::GetReply {
                        record: None,
                        pod_uid: uid,
                    }))
                }
                other => other,
            }
        };
        let reply = self
            .ask(peer, METHOD, SHORT, call, |it| &it.pod_uid)
            .await?;
        Ok(reply.record.map(record))
    }

    /// Identity and shape of a base model's folder.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn describe_base(
        &self,
        peer: &Peer,
        request: store::DescribeBaseRequest,
    ) -> Result<store::DescribeBaseReply, CallError> {
        const METHOD: &str = "graftwork.store.v1.Keeper/DescribeBase";
        let mut client = self.keeper(peer).await?;
        let call = client.describe_base(request);
        self.ask(peer, METHOD, LONG, call, |it| &it.pod_uid).await
    }

    /// Whether an adapter's files are whole and fit a base model.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn verify(
        &self,
        peer: &Peer,
        request: store::VerifyRequest,
    ) -> Result<store::VerifyReply, CallError> {
        const METHOD: &str = "graftwork.store.v1.Keeper/Verify";
        let mut client = self.keeper(peer).await?;
        let call = client.verify(request);
        self.ask(peer, METHOD, LONG, call, |it| &it.pod_uid).await
    }

    /// Writes a record, create-only.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn publish(
        &self,
        peer: &Peer,
        request: &store::PublishRequest,
    ) -> Result<(), CallError> {
        const METHOD: &str = "graftwork.store.v1.Keeper/Publish";
        let mut client = self.keeper(peer).await?;
        let call = self.signed(peer, METHOD, request.encode_to_vec(), UNORDERED)?;
        let call = client.publish(call);
        self.ask(peer, METHOD, SHORT, call, |it| &it.pod_uid)
            .await?;
        Ok(())
    }

    /// Copies a PEFT folder into the store.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn import(
        &self,
        peer: &Peer,
        request: &store::ImportRequest,
    ) -> Result<store::ImportReply, CallError> {
        const METHOD: &str = "graftwork.store.v1.Keeper/Import";
        let mut client = self.keeper(peer).await?;
        let call = self.signed(peer, METHOD, request.encode_to_vec(), UNORDERED)?;
        let call = client.import(call);
        self.ask(peer, METHOD, COPY, call, |it| &it.pod_uid).await
    }

    /// Removes versions of a dataset that nothing in the store refers to.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn prune(
        &self,
        peer: &Peer,
        request: &store::PruneRequest,
    ) -> Result<store::PruneReply, CallError> {
        const METHOD: &str = "graftwork.store.v1.Keeper/Prune";
        let mut client = self.keeper(peer).await?;
        let call = self.signed(peer, METHOD, request.encode_to_vec(), UNORDERED)?;
        let call = client.prune(call);
        self.ask(peer, METHOD, SHORT, call, |it| &it.pod_uid).await
    }

    async fn engine(&self, peer: &Peer) -> Result<EngineClient<Channel>, CallError> {
        let channel = self.connect(peer).await?;
        Ok(EngineClient::new(channel).max_decoding_message_size(LARGEST))
    }

    /// What an engine has.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn engine_status(&self, peer: &Peer) -> Result<engine::SyncReply, CallError> {
        const METHOD: &str = "graftwork.engine.v1.Engine/Status";
        let mut client = self.engine(peer).await?;
        let call = client.status(engine::StatusRequest {});
        let reply = self
            .ask(peer, METHOD, PROMPT, call, |it| &it.pod_uid)
            .await?;
        self.check_boot(&peer.target.uid, &reply.boot_id);
        Ok(reply)
    }

    /// Gives an engine its list, and remembers that it has it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn sync_engine(
        &self,
        peer: &Peer,
        request: &engine::SyncRequest,
    ) -> Result<(), CallError> {
        const METHOD: &str = "graftwork.engine.v1.Engine/Sync";
        let mut client = self.engine(peer).await?;
        let turn = self.turn(&peer.target.uid);
        let _turn = turn.lock().await;
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let call = self.signed(peer, METHOD, request.encode_to_vec(), generation)?;
        let at = clock::now();
        let call = client.sync(call);
        let reply = self
            .ask(peer, METHOD, PROMPT, call, |it| &it.pod_uid)
            .await?;
        self.acknowledge(peer, reply.boot_id, list_digest(request), at);
        Ok(())
    }

    async fn router(&self, peer: &Peer) -> Result<RouterClient<Channel>, CallError> {
        let channel = self.connect(peer).await?;
        Ok(RouterClient::new(channel).max_decoding_message_size(LARGEST))
    }

    /// Counters of a router's window.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn router_stats(
        &self,
        peer: &Peer,
        request: router::StatsRequest,
    ) -> Result<router::StatsReply, CallError> {
        const METHOD: &str = "graftwork.router.v1.Router/Stats";
        let mut client = self.router(peer).await?;
        let call = client.stats(request);
        let reply = self
            .ask(peer, METHOD, PROMPT, call, |it| &it.pod_uid)
            .await?;
        self.check_boot(&peer.target.uid, &reply.boot_id);
        Ok(reply)
    }

    /// Gives a router its table, and remembers that it has it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn sync_router(
        &self,
        peer: &Peer,
        table: &router::RoutingTable,
    ) -> Result<(), CallError> {
        const METHOD: &str = "graftwork.router.v1.Router/Sync";
        let mut client = self.router(peer).await?;
        let turn = self.turn(&peer.target.uid);
        let _turn = turn.lock().await;
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let call = self.signed(peer, METHOD, table.encode_to_vec(), generation)?;
        // The candidate's lease starts when the router gets the table, which is not before now.
        let at = clock::now();
        let call = client.sync(call);
        let reply = self
            .ask(peer, METHOD, PROMPT, call, |it| &it.pod_uid)
            .await?;
        self.acknowledge(peer, reply.boot_id, table_digest(table), at);
        Ok(())
    }

    fn acknowledge(&self, peer: &Peer, boot_id: String, table: Digest, at: Timestamp) {
        let acknowledgement = Acknowledgement { boot_id, table, at };
        if let Ok(mut acknowledged) = self.acknowledged.lock() {
            acknowledged.insert(
                peer.target.uid.clone(),
                (peer.target.restarts, acknowledgement),
            );
        }
    }

    /// What the present process of an engine or router has acknowledged to this one.
    pub fn acknowledged(&self, target: &Target) -> Option<Acknowledgement> {
        let acknowledged = self.acknowledged.lock().ok()?;
        let (restarts, acknowledgement) = acknowledged.get(&target.uid)?;
        (*restarts == target.restarts).then(|| acknowledgement.clone())
    }

    fn check_boot(&self, uid: &str, boot_id: &str) {
        if let Ok(mut acknowledged) = self.acknowledged.lock()
            && acknowledged
                .get(uid)
                .is_some_and(|(_, known)| known.boot_id != boot_id)
        {
            acknowledged.remove(uid);
        }
    }

    fn turn(&self, uid: &str) -> Arc<tokio::sync::Mutex<()>> {
        match self.turns.lock() {
            Ok(mut turns) => turns.entry(uid.to_owned()).or_default().clone(),
            Err(_) => Arc::default(),
        }
    }
}

fn is_transport(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded
    ) || std::error::Error::source(status).is_some()
}

fn record(record: store::Record) -> Record {
    Record {
        path: record.path,
        content: (!record.truncated).then_some(record.content),
    }
}

/// The key under which a long call's answer is kept.
pub fn request_key(peer: &Peer, request: &impl prost::Message) -> String {
    format!(
        "{}/{}",
        peer.target.uid,
        Digest::of(&request.encode_to_vec()).hex()
    )
}
