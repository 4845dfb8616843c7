//! gRPC for clients: the Open Inference Protocol, version 2, with health and reflection, in front of routes that speak
//! OpenAI's HTTP API.
//!
//! Every call becomes a request to these routes within the process. So whatever holds for HTTP holds here: limits,
//! errors, the endpoint's weights, who stays on which side of a rollout, retries, counters.
//!
//! | module | holds |
//! |---|---|
//! | `request`, `answer`, `status` | between the protocol and the HTTP API: pure |
//! | `body` | a call's bytes, within bounds |
//! | `service`, `health` | the services |
//!
//! It generates nothing, knows no adapter and opens no port.

#![forbid(unsafe_code)]

mod answer;
mod body;
mod health;
mod request;
mod service;
mod status;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use futures::StreamExt as _;
use graftwork_contract::proto::inference;
use graftwork_contract::proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::Builder;

use crate::health::Probe;
use crate::service::Service;

/// How long one conversation about reflection may take: nobody's end waits for it longer.
const REFLECTION_TIME: Duration = Duration::from_secs(10);

/// Whether the process takes requests.
type IsReady = Arc<dyn Fn() -> bool + Send + Sync>;

/// These routes with the gRPC services beside them.
///
/// # Errors
/// Where the descriptors that reflection shows can't be read.
pub fn serve(
    routes: Router,
    is_ready: impl Fn() -> bool + Send + Sync + 'static,
) -> Result<Router, tonic_reflection::server::Error> {
    let is_ready: IsReady = Arc::new(is_ready);
    let service = Service::new(routes.clone(), Arc::clone(&is_ready));
    let service =
        GrpcInferenceServiceServer::new(service).max_decoding_message_size(body::MAXIMUM_BYTES);
    let inference = Routes::from(Router::new())
        .add_service(service)
        .into_axum_router()
        .layer(from_fn_with_state(body::room(), body::read_first));
    let health = Routes::from(Router::new())
        .add_service(HealthServer::new(Probe::new(is_ready)))
        .into_axum_router();
    // Older clients ask for v1alpha.
    let reflection = Routes::from(Router::new())
        .add_service(shown().build_v1()?)
        .add_service(shown().build_v1alpha()?)
        .into_axum_router()
        .layer(from_fn(for_a_while));
    Ok(routes.merge(inference).merge(health).merge(reflection))
}

/// What reflection shows.
fn shown() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(inference::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Ends the client's side of a conversation, and with it the conversation.
async fn for_a_while(request: Request, next: Next) -> Response {
    let request = request.map(|body| {
        let data = body.into_data_stream();
        Body::from_stream(data.take_until(tokio::time::sleep(REFLECTION_TIME)))
    });
    next.run(request).await
}
