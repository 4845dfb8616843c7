//! What the operator calls: `graftwork.router.v1.Router`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use graftwork_contract::endpoint::RouterConfig;
use graftwork_contract::proto::call::v1::SignedCall;
use graftwork_contract::proto::router::v1 as wire;
use graftwork_contract::proto::router::v1::router_server::Router;
use graftwork_contract::signing::{Addressee, Admission, Fence, Guard, InvalidKey, Refusal};
use graftwork_listen::clock;
use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::state::Shared;
use crate::table::{InvalidTable, Table};

/// The method that a push is signed for.
pub const SYNC: &str = "graftwork.router.v1.Router/Sync";

/// Replaces the table: by pushes, and by the mounted file until the first push.
#[derive(Debug, Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
    /// Held while a table is replaced, so that two pushes can't overtake each other between the check of
    /// their order and the swap.
    guard: Arc<Mutex<Guard>>,
    pod_uid: String,
}

impl Publisher {
    /// Trusts the keys of `config`, for the pod `pod_uid`.
    ///
    /// # Errors
    /// Where a key can't be read.
    pub fn new(
        shared: Arc<Shared>,
        config: &RouterConfig,
        pod_uid: &str,
    ) -> Result<Self, InvalidKey> {
        let me = Addressee {
            pod_uid: pod_uid.to_owned(),
            owner_uid: config.owner_uid.clone(),
        };
        let guard = Guard::new(me, &config.operator_keys)?;
        Ok(Self {
            shared,
            guard: Arc::new(Mutex::new(guard)),
            pod_uid: pod_uid.to_owned(),
        })
    }

    /// The mounted file changed: its keys count always, its table until something is pushed.
    ///
    /// # Errors
    /// Where keys or table are unusable; what was there stays.
    pub fn remount(&self, config: &RouterConfig) -> Result<(), RemountError> {
        let table = Table::from_config(config)?;
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        guard.replace_keys(&config.operator_keys)?;
        if self.shared.table.load().fence.is_none() {
            self.shared.table.store(Arc::new(table));
        }
        Ok(())
    }

    fn push(&self, call: &SignedCall) -> Result<Fence, Status> {
        let fence = Fence::from(call);
        let now = clock::unix_seconds();
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        let body = guard.verify(call, SYNC, now).map_err(refused)?;
        let push = wire::RoutingTable::decode(body).map_err(|error| {
            Status::invalid_argument(format!("body is no RoutingTable: {error}"))
        })?;
        let table = Table::from_push(&push, fence, &self.shared.registry, clock::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if guard.admit(call, SYNC, now).map_err(refused)? == Admission::Again {
            // Taking it again would renew the leases, which whoever saw it go by could then do for as
            // long as it is valid.
            return Ok(fence);
        }
        let engines = table.engines.len();
        self.shared.table.store(Arc::new(table));
        tracing::info!(
            lease_epoch = fence.lease_epoch,
            generation = fence.generation,
            models = push.models.len(),
            engines,
            "routing table replaced"
        );
        Ok(fence)
    }
}

/// A changed mounted file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RemountError {
    /// Its table.
    #[error(transparent)]
    Table(#[from] InvalidTable),
    /// Its keys.
    #[error(transparent)]
    Key(#[from] InvalidKey),
}

#[tonic::async_trait]
impl Router for Publisher {
    async fn sync(
        &self,
        request: Request<SignedCall>,
    ) -> Result<Response<wire::SyncReply>, Status> {
        let fence = self.push(request.get_ref())?;
        Ok(Response::new(wire::SyncReply {
            pod_uid: self.pod_uid.clone(),
            boot_id: self.shared.boot_id.clone(),
            lease_epoch: fence.lease_epoch,
            generation: fence.generation,
        }))
    }

    async fn stats(
        &self,
        request: Request<wire::StatsRequest>,
    ) -> Result<Response<wire::StatsReply>, Status> {
        let (from, to) = (
            request.get_ref().from_milliseconds_ago,
            request.get_ref().to_milliseconds_ago,
        );
        if from <= to {
            return Err(Status::invalid_argument(format!(
                "from_milliseconds_ago is {from}, it must be above to_milliseconds_ago ({to})"
            )));
        }
        let (from, to) = (Duration::from_millis(from), Duration::from_millis(to));
        let shared = Arc::clone(&self.shared);
        // Hundreds of thousands of samples are sorted: no thread of the requests' does it.
        let read = move || shared.stats.read(from, to, clock::now());
        let window = tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::StatsReply {
            pod_uid: self.pod_uid.clone(),
            boot_id: self.shared.boot_id.clone(),
            covered: window.covered,
            versions: window.versions,
        }))
    }
}

fn refused(refusal: Refusal) -> Status {
    tracing::warn!(%refusal, "push refused");
    match refusal {
        Refusal::Method { .. } | Refusal::Expired { .. } | Refusal::Signature { .. } => {
            Status::unauthenticated(refusal.to_string())
        }
        Refusal::Pod { .. } | Refusal::Owner { .. } | Refusal::Stale { .. } => {
            Status::failed_precondition(refusal.to_string())
        }
    }
}
