//! `grpc.health.v1.Health` on the port of the API: what load balancers and clients ask.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use graftwork_contract::proto::inference::grpc_inference_service_server::SERVICE_NAME;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::IsReady;

/// How often who watches is told of a change.
const INTERVAL: Duration = Duration::from_millis(200);
/// Who watches what does not serve is sent away after so many intervals: a process that ends waits for nobody, and
/// clients watch again.
const PATIENCE: usize = 25;

/// Answers for the process as a whole and for the inference service.
pub(crate) struct Probe {
    is_ready: IsReady,
}

impl Probe {
    pub(crate) fn new(is_ready: IsReady) -> Self {
        Self { is_ready }
    }
}

#[tonic::async_trait]
impl Health for Probe {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        known(&request)?;
        Ok(Response::new(answer((self.is_ready)())))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        known(&request)?;
        let is_ready = IsReady::clone(&self.is_ready);
        let states: Self::WatchStream = Box::pin(async_stream::stream! {
            let mut said = None;
            let mut away = 0;
            while away < PATIENCE {
                let now = is_ready();
                if said != Some(now) {
                    said = Some(now);
                    yield Ok::<_, Status>(answer(now));
                }
                away = if now { 0 } else { away + 1 };
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Ok(Response::new(states))
    }
}

fn known(request: &Request<HealthCheckRequest>) -> Result<(), Status> {
    match request.get_ref().service.as_str() {
        "" | SERVICE_NAME => Ok(()),
        _ => Err(Status::not_found(format!(
            "only {SERVICE_NAME} is served here"
        ))),
    }
}

fn answer(is_ready: bool) -> HealthCheckResponse {
    let status = if is_ready {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    HealthCheckResponse {
        status: status.into(),
    }
}
