//! gRPC: `graftwork.store.v1.Keeper` and `grpc.health.v1.Health`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use graftwork_artifacts::{Category, Put, Store};
use graftwork_contract::Digest;
use graftwork_contract::keeper::MAXIMUM_RECORD_BYTES;
use graftwork_contract::proto::call::v1::SignedCall;
use graftwork_contract::proto::store::v1 as proto;
use graftwork_contract::proto::store::v1::keeper_server::KeeperServer;
use graftwork_contract::signing::Refusal;
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::adapters::{self, Import, Verified};
use crate::base::{self, Base, BaseModels};
use crate::clock;
use crate::config::Gatekeeper;
use crate::folders::Claims;
use crate::ledger::{self, RecordError};
use crate::problem::{Failure, causes, problem};
use crate::retention;
use crate::turns::{Call, Turns};

/// Records of one listing; a prefix names one object's, which has far fewer.
const MAXIMUM_RECORDS: usize = 10_000;
/// Content of one listing (16 MiB), well below what the operator's client takes.
const MAXIMUM_REPLY_BYTES: u64 = 16 << 20;

/// The service.
#[derive(Clone)]
pub struct Keeper {
    store: Store,
    claims: Claims,
    gatekeeper: Gatekeeper,
    bases: BaseModels,
    turns: Turns,
    /// Held while a record is written that may refer to a dataset's version, and while versions are removed that
    /// none refers to.
    references: Arc<Mutex<()>>,
}

impl Keeper {
    /// A keeper of `store`.
    pub fn new(store: Store, claims: Claims, gatekeeper: Gatekeeper) -> Self {
        Self {
            store,
            claims,
            gatekeeper,
            bases: BaseModels::default(),
            turns: Turns::default(),
            references: Arc::default(),
        }
    }

    /// Runs what touches files on a thread that may wait.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let keeper = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&keeper)).await;
        done.map_err(|error| Status::internal(error.to_string()))
    }

    /// Counts a call that makes the keeper read large files for anybody who asks.
    fn enter(&self, caller: Option<SocketAddr>) -> Result<Call, Status> {
        let call = self.turns.enter(caller.map(|address| address.ip()));
        call.map_err(|error| Status::resource_exhausted(error.to_string()))
    }

    /// What a base model is; `call`, where there is one, takes a turn for it.
    async fn base(
        &self,
        call: Option<&Call>,
        claim: &str,
        path: &str,
    ) -> Result<Result<Base, Failure>, Status> {
        let leave = self.bases.leave(claim, path, call).await;
        let (claim, path) = (claim.to_owned(), path.to_owned());
        self.blocking(move |keeper| {
            let folder = keeper.claims.folder(&claim, &path);
            let base = folder
                .map_err(|error| {
                    error.failure(|message| Failure::Base(problem("BaseModelNotFound", message)))
                })
                .and_then(|folder| {
                    let uri = format!("pvc://{claim}/{path}");
                    let base = keeper.bases.read(&folder);
                    base.map_err(|failure| failure.naming(&folder, uri.trim_end_matches('/')))
                });
            // Not before: a caller that leaves stops no thread.
            drop(leave);
            base
        })
        .await
    }

    fn list(&self, prefix: &str) -> Result<proto::ListReply, Status> {
        let entries = self.store.list(prefix).map_err(|error| status(&error))?;
        let entries: Vec<_> = entries
            .into_iter()
            .filter(|entry| is_record(&entry.path))
            .collect();
        let contents: u64 = entries
            .iter()
            .map(|entry| entry.size)
            .filter(|size| *size <= MAXIMUM_RECORD_BYTES)
            .sum();
        if entries.len() > MAXIMUM_RECORDS || contents > MAXIMUM_REPLY_BYTES {
            return Err(Status::resource_exhausted(format!(
                "{prefix:?} names {} records of {contents} bytes; one listing has at most {MAXIMUM_RECORDS} and {MAXIMUM_REPLY_BYTES}: name a longer prefix",
                entries.len()
            )));
        }
        let contents = self
            .store
            .get_listed(&entries, MAXIMUM_RECORD_BYTES)
            .map_err(|error| status(&error))?;
        let records = entries.iter().zip(contents);
        Ok(proto::ListReply {
            records: records
                .filter_map(|(entry, found)| found.map(|found| record(&entry.path, found)))
                .collect(),
            pod_uid: self.gatekeeper.pod_uid(),
        })
    }

    fn record(&self, path: &str) -> Result<Option<proto::Record>, Status> {
        let found = self
            .store
            .get_up_to(path, MAXIMUM_RECORD_BYTES)
            .map_err(|error| status(&error))?;
        Ok(found.map(|found| record(path, found)))
    }

    async fn describe_base(
        &self,
        call: &Call,
        request: &proto::DescribeBaseRequest,
    ) -> Result<proto::DescribeBaseReply, Status> {
        let base = self.base(Some(call), &request.claim, &request.path);
        let described = match base.await? {
            Ok(base) => Ok(base),
            Err(Failure::Base(problem)) => Err(problem),
            Err(failure) => Err(failure.into_problem()?),
        };
        Ok(proto::DescribeBaseReply {
            pod_uid: self.gatekeeper.pod_uid(),
            ..base::reply(described)
        })
    }

    async fn verify(
        &self,
        call: &Call,
        request: proto::VerifyRequest,
    ) -> Result<proto::VerifyReply, Status> {
        let expected = digest(&request.digest)?;
        let base = self.base(Some(call), &request.base_claim, &request.base_path);
        let result = match base.await? {
            Ok(base) => {
                let turn = call.turn().await;
                self.blocking(move |keeper| {
                    let (folder, expected) = (&request.folder, expected.as_ref());
                    let result =
                        adapters::verify_stored(&keeper.store, folder, expected, &base.config);
                    drop(turn);
                    result
                })
                .await?
            }
            Err(failure) => Err(failure),
        };
        let reply = adapters::verify_reply(or_problem(result)?);
        Ok(proto::VerifyReply {
            pod_uid: self.gatekeeper.pod_uid(),
            ..reply
        })
    }

    fn publish(&self, request: &proto::PublishRequest) -> Result<proto::PublishReply, Status> {
        ledger::check(&request.path, &request.content).map_err(|error| match error {
            RecordError::Path(_) => Status::permission_denied(error.to_string()),
            RecordError::Content { .. } => Status::invalid_argument(error.to_string()),
        })?;
        let put = {
            let _held = self
                .references
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            self.store
                .put_new(&request.path, &request.content)
                .map_err(|error| status(&error))?
        };
        tracing::info!(
            path = request.path,
            created = put == Put::Created,
            "published"
        );
        Ok(proto::PublishReply {
            created: put == Put::Created,
            pod_uid: self.gatekeeper.pod_uid(),
        })
    }

    fn prune(&self, request: &proto::PruneRequest) -> Result<proto::PruneReply, Status> {
        let dataset = &request.dataset;
        if !ledger::is_name(dataset) {
            return Err(Status::invalid_argument(format!(
                "{dataset:?} is not the name of a Dataset"
            )));
        }
        let removed = {
            let _held = self
                .references
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            retention::prune(&self.store, dataset, &request.versions)
                .map_err(|error| status(&error))?
        };
        tracing::info!(dataset, ?removed, "pruned");
        Ok(proto::PruneReply {
            removed,
            pod_uid: self.gatekeeper.pod_uid(),
        })
    }

    async fn import(&self, request: proto::ImportRequest) -> Result<proto::ImportReply, Status> {
        if !ledger::is_name(&request.adapter) {
            return Err(Status::invalid_argument(format!(
                "{:?} is not the name of a LoRAAdapter",
                request.adapter
            )));
        }
        let expected = digest(&request.digest)?;
        // Signed: only the operator asks, and it waits for no turn.
        let base = self.base(None, &request.base_claim, &request.base_path);
        let result = match base.await? {
            Ok(base) => {
                self.blocking(move |keeper| keeper.import_files(&request, expected.as_ref(), &base))
                    .await?
            }
            Err(failure) => Err(failure),
        };
        Ok(proto::ImportReply {
            pod_uid: self.gatekeeper.pod_uid(),
            ..adapters::import_reply(or_problem(result)?)
        })
    }

    fn import_files(
        &self,
        request: &proto::ImportRequest,
        expected: Option<&Digest>,
        base: &Base,
    ) -> Result<Verified, Failure> {
        let folder = self.claims.folder(&request.claim, &request.path);
        let folder = folder
            .map_err(|error| error.failure(|message| Failure::problem("ImportFailed", message)))?;
        let uri = format!("pvc://{}/{}", request.claim, request.path);
        let import = Import {
            adapter: &request.adapter,
            uri: &uri,
            folder: &folder,
            expected,
            now: &clock::rfc3339(),
        };
        let found = adapters::import(&self.store, &import, &base.config)
            .map_err(|failure| failure.naming(&folder, &uri))?;
        tracing::info!(adapter = request.adapter, digest = %found.digest, "imported");
        Ok(found)
    }

    /// The body of a signed call.
    fn admitted<T: Message + Default>(&self, call: &SignedCall, method: &str) -> Result<T, Status> {
        let body = self.gatekeeper.admit(call, method).map_err(|refusal| {
            let message = refusal.to_string();
            tracing::warn!(method, message, "a call was refused");
            match refusal {
                Refusal::Signature { .. } => Status::unauthenticated(message),
                _ => Status::failed_precondition(message),
            }
        })?;
        T::decode(body.as_slice()).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// A record by what was read of it and its size; one that is longer comes without its content.
fn record(path: &str, (content, size): (Vec<u8>, u64)) -> proto::Record {
    let truncated = size > content.len() as u64;
    proto::Record {
        path: path.to_owned(),
        content: if truncated { Vec::new() } else { content },
        truncated,
    }
}

/// Records are JSON; weights and rows are not listed.
pub(crate) fn is_record(path: &str) -> bool {
    std::path::Path::new(path)
        .extension()
        .is_some_and(|extension| extension == "json")
}

/// What an answer may say; everything else is a status.
fn or_problem<T>(result: Result<T, Failure>) -> Result<Result<T, proto::Problem>, Status> {
    match result {
        Ok(found) => Ok(Ok(found)),
        Err(failure) => failure.into_problem().map(Err),
    }
}

fn digest(text: &str) -> Result<Option<Digest>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|error: graftwork_contract::digest::InvalidDigest| {
            Status::invalid_argument(error.to_string())
        })
}

fn status(error: &graftwork_artifacts::Error) -> Status {
    let message = causes(error);
    match error.category() {
        _ if matches!(error, graftwork_artifacts::Error::Conflict { .. }) => {
            Status::already_exists(message)
        }
        Category::Transient => Status::unavailable(message),
        Category::Invalid => Status::invalid_argument(message),
        Category::Bug => Status::internal(message),
    }
}

#[tonic::async_trait]
impl proto::keeper_server::Keeper for Keeper {
    async fn list(
        &self,
        request: Request<proto::ListRequest>,
    ) -> Result<Response<proto::ListReply>, Status> {
        let request = request.into_inner();
        self.blocking(move |keeper| keeper.list(&request.prefix))
            .await?
            .map(Response::new)
    }

    async fn get(
        &self,
        request: Request<proto::GetRequest>,
    ) -> Result<Response<proto::GetReply>, Status> {
        let path = request.into_inner().path;
        self.blocking(move |keeper| {
            if !is_record(&path) {
                return Err(Status::invalid_argument(format!(
                    "{path} is not a record: only .json files are read"
                )));
            }
            let record = keeper.record(&path)?;
            let record = record
                .ok_or_else(|| Status::not_found(format!("{path} does not exist in the store")))?;
            Ok(proto::GetReply {
                record: Some(record),
                pod_uid: keeper.gatekeeper.pod_uid(),
            })
        })
        .await?
        .map(Response::new)
    }

    async fn describe_base(
        &self,
        request: Request<proto::DescribeBaseRequest>,
    ) -> Result<Response<proto::DescribeBaseReply>, Status> {
        let call = self.enter(request.remote_addr())?;
        let reply = self.describe_base(&call, request.get_ref()).await?;
        Ok(Response::new(reply))
    }

    async fn verify(
        &self,
        request: Request<proto::VerifyRequest>,
    ) -> Result<Response<proto::VerifyReply>, Status> {
        let call = self.enter(request.remote_addr())?;
        let reply = self.verify(&call, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    async fn publish(
        &self,
        request: Request<SignedCall>,
    ) -> Result<Response<proto::PublishReply>, Status> {
        let request = self.admitted(&request.into_inner(), "graftwork.store.v1.Keeper/Publish")?;
        self.blocking(move |keeper| keeper.publish(&request))
            .await?
            .map(Response::new)
    }

    async fn import(
        &self,
        request: Request<SignedCall>,
    ) -> Result<Response<proto::ImportReply>, Status> {
        let request = self.admitted(&request.into_inner(), "graftwork.store.v1.Keeper/Import")?;
        self.import(request).await.map(Response::new)
    }

    async fn prune(
        &self,
        request: Request<SignedCall>,
    ) -> Result<Response<proto::PruneReply>, Status> {
        let request = self.admitted(&request.into_inner(), "graftwork.store.v1.Keeper/Prune")?;
        self.blocking(move |keeper| keeper.prune(&request))
            .await?
            .map(Response::new)
    }
}

/// How long running calls may take to end after a stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves until `stop` is cancelled, then lets running calls end for a while.
///
/// # Errors
/// Where the server breaks.
pub async fn serve(
    listener: TcpListener,
    keeper: Keeper,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<KeeperServer<Keeper>>().await;
    let serving = Server::builder()
        .add_service(health)
        .add_service(KeeperServer::new(keeper))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stop.clone().cancelled_owned(),
        );
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = serving => ended,
        () = late => {
            tracing::warn!("calls are still running; they are cut off");
            Ok(())
        }
    }
}
