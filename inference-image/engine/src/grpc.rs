//! gRPC for the operator and the kubelet: `graftwork.engine.v1.Engine` and `grpc.health.v1.Health`. What clients call
//! over gRPC is on the port of the HTTP API.

use graftwork_contract::proto::call::v1::SignedCall;
use graftwork_contract::proto::engine::v1::engine_server::{Engine, EngineServer, SERVICE_NAME};
use graftwork_contract::proto::engine::v1::{StatusRequest, SyncReply};
use graftwork_contract::signing::Refusal;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::health::{Health, Readiness};
use crate::registry::{AdapterRegistry, Ended, SyncError};

/// Bytes of one call: 1,000 adapters take about 200 KB.
const MAXIMUM_CALL_BYTES: usize = 4 << 20;

struct Service {
    registry: AdapterRegistry,
}

#[tonic::async_trait]
impl Engine for Service {
    async fn sync(&self, request: Request<SignedCall>) -> Result<Response<SyncReply>, Status> {
        match self.registry.sync(request.into_inner()).await {
            Ok(Ok(reply)) => Ok(Response::new(reply)),
            Ok(Err(error)) => Err(status_of(&error)),
            Err(Ended) => Err(Status::unavailable(Ended.to_string())),
        }
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<SyncReply>, Status> {
        match self.registry.status().await {
            Ok(reply) => Ok(Response::new(reply)),
            Err(Ended) => Err(Status::unavailable(Ended.to_string())),
        }
    }
}

fn status_of(error: &SyncError) -> Status {
    let message = error.to_string();
    match error {
        SyncError::Refused(Refusal::Signature { .. }) => Status::unauthenticated(message),
        SyncError::Refused(
            Refusal::Method { .. }
            | Refusal::Pod { .. }
            | Refusal::Owner { .. }
            | Refusal::Expired { .. }
            | Refusal::Stale { .. },
        ) => Status::failed_precondition(message),
        SyncError::Invalid { .. } | SyncError::Body => Status::invalid_argument(message),
    }
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// Where the server breaks.
pub async fn serve(
    listener: TcpListener,
    registry: AdapterRegistry,
    health: Health,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let mut readiness = health.watch();
    // Before the first connection: a reporter starts out as serving.
    let now = *readiness.borrow_and_update();
    report(&reporter, now).await;
    let following = tokio::spawn(async move {
        while readiness.changed().await.is_ok() {
            let now = *readiness.borrow_and_update();
            report(&reporter, now).await;
        }
    });
    let engine =
        EngineServer::new(Service { registry }).max_decoding_message_size(MAXIMUM_CALL_BYTES);
    let served = Server::builder()
        .add_service(health_service)
        .add_service(engine)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stop.cancelled_owned(),
        )
        .await;
    following.abort();
    served
}

/// Says the same for the process as a whole and for its own service.
async fn report(reporter: &HealthReporter, readiness: Readiness) {
    let status = match readiness {
        Readiness::Ready => ServingStatus::Serving,
        _ => ServingStatus::NotServing,
    };
    for service in ["", SERVICE_NAME] {
        reporter.set_service_status(service, status).await;
    }
}
