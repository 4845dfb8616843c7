//! The protocol's service.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, Request as HttpRequest, StatusCode, Uri, header};
use graftwork_contract::endpoint::{HEADER_ADAPTER, HEADER_REQUEST_ID, parse_adapter_header};
use graftwork_contract::proto::inference::grpc_inference_service_server::GrpcInferenceService;
use graftwork_contract::proto::inference::model_metadata_response::TensorMetadata;
use graftwork_contract::proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ServerLiveRequest, ServerLiveResponse,
    ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use serde::Deserialize;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tower::ServiceExt as _;

use crate::IsReady;
use crate::answer::write;
use crate::request::{
    Asked, BYTES, FINISH_REASON, Invalid, SAMPLING_PARAMETERS, TEXT_INPUT, TEXT_OUTPUT, no_version,
    read,
};
use crate::status::{cut, passed_on, status_of};

const PLATFORM: &str = "graftwork";
/// Bytes of an answer, which is read whole.
const MAXIMUM_ANSWER: usize = 64 << 20;

/// Asks the routes.
pub(crate) struct Service {
    routes: Router,
    is_ready: IsReady,
}

/// An answer of the HTTP API.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// What `/v1/models` says about one.
#[derive(Debug, Deserialize)]
struct Card {
    root: String,
}

impl Service {
    pub(crate) fn new(routes: Router, is_ready: IsReady) -> Self {
        Self { routes, is_ready }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        mut headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, Status> {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        let mut request = HttpRequest::new(Body::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = path
            .parse::<Uri>()
            .map_err(|_| Status::internal(format!("no path: {path}")))?;
        *request.headers_mut() = headers;
        let Ok(response) = self.routes.clone().oneshot(request).await;
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, MAXIMUM_ANSWER)
            .await
            .map_err(|error| Status::unavailable(format!("the answer broke off: {error}")))?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    /// The model's card; `None` where there is no such model.
    async fn card(&self, name: &str, metadata: &MetadataMap) -> Result<Option<Card>, Status> {
        let path = format!("/v1/models/{}", escaped(name));
        let headers = passed_on(metadata.as_ref());
        let answer = self.ask(Method::GET, &path, headers, Vec::new()).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => serde_json::from_slice(&answer.body)
                .map(Some)
                .map_err(|error| Status::internal(format!("the model's card: {error}"))),
            status => Err(status_of(status, &answer.headers, &answer.body)),
        }
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = (self.is_ready)();
        Ok(Response::new(ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        no_version(&request.version).map_err(refused)?;
        let is_known = self.card(&request.name, &metadata).await?.is_some();
        let ready = is_known && (self.is_ready)();
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: PLATFORM.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: Vec::new(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        no_version(&request.version).map_err(refused)?;
        let card = self.card(&request.name, &metadata).await?;
        let card = card.ok_or_else(|| {
            Status::not_found(cut(&format!("the model {:?} does not exist", request.name)))
        })?;
        // Routers name the stable version; an engine's root is a folder.
        let version = parse_adapter_header(&card.root).and_then(|(_, version)| version);
        Ok(Response::new(ModelMetadataResponse {
            name: request.name,
            versions: version
                .map(|version| version.to_string())
                .into_iter()
                .collect(),
            platform: PLATFORM.to_owned(),
            inputs: vec![tensor(TEXT_INPUT, -1), tensor(SAMPLING_PARAMETERS, 1)],
            outputs: vec![tensor(TEXT_OUTPUT, -1), tensor(FINISH_REASON, -1)],
        }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let id = request.id.clone();
        let Asked {
            body,
            outputs,
            is_raw,
        } = read(request).map_err(refused)?;
        let mut headers = passed_on(metadata.as_ref());
        // The id names the request in logs, too, unless the client has another name for it there.
        if let Some(value) = as_request_id(&id) {
            headers.entry(HEADER_REQUEST_ID).or_insert(value);
        }
        let body = body.to_string().into_bytes();
        let answer = self
            .ask(Method::POST, "/v1/completions", headers, body)
            .await?;
        if !answer.status.is_success() {
            return Err(status_of(answer.status, &answer.headers, &answer.body));
        }
        let ran = answer
            .headers
            .get(HEADER_ADAPTER)
            .and_then(|value| value.to_str().ok());
        let message = write(&answer.body, ran, &outputs, is_raw, id)
            .map_err(|error| Status::internal(format!("the completion can't be read: {error}")))?;
        let mut response = Response::new(message);
        *response.metadata_mut() = MetadataMap::from_headers(passed_on(&answer.headers));
        Ok(response)
    }
}

fn refused(reason: Invalid) -> Status {
    Status::invalid_argument(cut(&reason.to_string()))
}

/// The id as a header, where it is as plain as those are.
fn as_request_id(id: &str) -> Option<HeaderValue> {
    let is_plain = (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    is_plain.then(|| HeaderValue::from_str(id).ok()).flatten()
}

fn tensor(name: &str, length: i64) -> TensorMetadata {
    TensorMetadata {
        name: name.to_owned(),
        datatype: BYTES.to_owned(),
        shape: vec![length],
    }
}

/// A name as a part of a path.
fn escaped(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_part_of_a_path_whatever_it_holds() {
        assert_eq!(escaped("topics-2_b"), "topics-2_b");
        assert_eq!(escaped("../a b?é"), "%2E%2E%2Fa%20b%3F%C3%A9");
    }

    #[test]
    fn only_a_short_and_plain_id_goes_into_a_header() {
        assert_eq!(as_request_id("a-1").unwrap(), "a-1");
        for odd in ["", "a b", "ä", "a\n", &"x".repeat(129)] {
            assert_eq!(as_request_id(odd), None, "{odd}");
        }
    }
}
