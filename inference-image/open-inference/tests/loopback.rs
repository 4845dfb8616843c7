//! The services over a real connection, in front of routes that say what they were asked.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed step is a failed test"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures::StreamExt as _;
use graftwork_contract::proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use graftwork_contract::proto::inference::infer_parameter::ParameterChoice;
use graftwork_contract::proto::inference::model_infer_request::InferInputTensor;
use graftwork_contract::proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelMetadataRequest,
    ModelReadyRequest, ServerLiveRequest, ServerMetadataRequest, ServerReadyRequest,
};
use graftwork_listen::Listener;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

/// Answers with what it was asked; some prompts make it do something else.
async fn completion(headers: HeaderMap, body: String, open: Arc<AtomicUsize>) -> Response {
    let asked: Value = serde_json::from_str(&body).unwrap();
    match asked["prompt"].as_str() {
        Some("busy") => {
            let error = json!({"error": {"message": "full", "code": "rate_limit_exceeded"}});
            let wait = [("retry-after", "1")];
            return (StatusCode::TOO_MANY_REQUESTS, wait, error.to_string()).into_response();
        }
        Some("hang") => {
            let _open = Open::new(open);
            return std::future::pending().await;
        }
        _ => {}
    }
    let caller = headers
        .get("x-graftwork-caller")
        .map_or("", |value| value.to_str().unwrap());
    let id = headers
        .get("x-request-id")
        .map_or("", |value| value.to_str().unwrap());
    let text = format!("{caller} asked {asked}");
    let answer = json!({
        "model": "m",
        "choices": [{"index": 0, "text": text, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5},
    });
    let head = [("x-graftwork-adapter", "m@v4"), ("x-request-id", id)];
    (head, answer.to_string()).into_response()
}

/// Counts until dropped.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Server {
    address: SocketAddr,
    channel: Channel,
    is_ready: Arc<AtomicBool>,
    /// Completions that run.
    open: Arc<AtomicUsize>,
    listener: Listener,
}

impl Server {
    async fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let open = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&open);
        let routes = Router::new()
            .route(
                "/v1/completions",
                post(move |headers: HeaderMap, body: String| completion(headers, body, counted)),
            )
            .route(
                "/v1/models/m",
                get(async || json!({"id": "m", "root": "m@v4", "parent": "tiny"}).to_string()),
            )
            .fallback(async || (StatusCode::NOT_FOUND, "{}"))
            .layer(DefaultBodyLimit::disable());
        let is_ready = Arc::new(AtomicBool::new(true));
        let readiness = Arc::clone(&is_ready);
        let routes =
            graftwork_open_inference::serve(routes, move || readiness.load(Ordering::SeqCst))
                .unwrap();
        let listener = Listener::new(CancellationToken::new());
        listener.serve(socket, routes);
        let channel = Channel::from_shared(format!("http://{address}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        Self {
            address,
            channel,
            is_ready,
            open,
            listener,
        }
    }

    fn client(&self) -> GrpcInferenceServiceClient<Channel> {
        GrpcInferenceServiceClient::new(self.channel.clone())
    }
}

fn asking(prompt: &str) -> ModelInferRequest {
    let tokens = InferParameter {
        parameter_choice: Some(ParameterChoice::Int64Param(8)),
    };
    ModelInferRequest {
        model_name: "m".into(),
        id: "id-1".into(),
        parameters: [("max_tokens".to_owned(), tokens)].into(),
        inputs: vec![InferInputTensor {
            name: "text_input".into(),
            datatype: "BYTES".into(),
            shape: vec![1],
            contents: Some(InferTensorContents {
                bytes_contents: vec![prompt.as_bytes().to_vec()],
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Waits for it, at most 10 s.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    assert!(ended.is_ok(), "waited in vain until {what}");
}

#[tokio::test]
async fn a_call_becomes_a_completion_and_its_answer_comes_back() {
    let server = Server::start().await;
    let mut request = Request::new(asking("x"));
    let caller = "ann".parse().unwrap();
    request.metadata_mut().insert("x-graftwork-caller", caller);
    let answer = server.client().model_infer(request).await.unwrap();
    let metadata = answer.metadata().clone();
    assert_eq!(metadata.get("x-graftwork-adapter").unwrap(), "m@v4");
    assert_eq!(metadata.get("x-request-id").unwrap(), "id-1");
    let answer = answer.into_inner();
    assert_eq!(
        (&*answer.model_name, &*answer.model_version, &*answer.id),
        ("m", "4", "id-1")
    );
    let contents = answer.outputs[0].contents.clone().unwrap();
    let asked = json!({"max_tokens": 8, "model": "m", "prompt": "x"});
    assert_eq!(
        String::from_utf8(contents.bytes_contents[0].clone()).unwrap(),
        format!("ann asked {asked}")
    );
}

#[tokio::test]
async fn an_error_of_the_http_api_is_a_status_with_its_message() {
    let server = Server::start().await;
    let status = server
        .client()
        .model_infer(asking("busy"))
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, "full")
    );
    assert_eq!(status.metadata().get("retry-after").unwrap(), "1");
    let mut without = asking("x");
    without.inputs.clear();
    let status = server.client().model_infer(without).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("text_input"), "{status}");
}

#[tokio::test]
async fn a_message_above_four_mebibytes_arrives_and_one_above_eight_is_refused() {
    let server = Server::start().await;
    let mut client = server.client().max_decoding_message_size(16 << 20);
    let answer = client.model_infer(asking(&"x".repeat(5 << 20))).await;
    assert!(answer.is_ok(), "{:?}", answer.err());
    let status = client
        .model_infer(asking(&"x".repeat(9 << 20)))
        .await
        .unwrap_err();
    // Where the client still sends, it may see the stream's end in place of the reason.
    assert_ne!(status.code(), Code::Ok);
    assert!(client.model_infer(asking("x")).await.is_ok());
}

#[tokio::test]
async fn a_caller_that_leaves_ends_its_completion() {
    let server = Server::start().await;
    let mut client = server.client();
    let call = tokio::spawn(async move { client.model_infer(asking("hang")).await });
    until("it runs", || server.open.load(Ordering::SeqCst) == 1).await;
    call.abort();
    until("it has ended", || server.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn the_server_and_its_models_say_whether_they_are_ready() {
    let server = Server::start().await;
    let mut client = server.client();
    let live = client.server_live(ServerLiveRequest {}).await.unwrap();
    assert!(live.into_inner().live);
    let ready = async |client: &mut GrpcInferenceServiceClient<Channel>, name: &str| {
        let server = client.server_ready(ServerReadyRequest {}).await.unwrap();
        let request = ModelReadyRequest {
            name: name.to_owned(),
            version: String::new(),
        };
        let model = client.model_ready(request).await.unwrap();
        (server.into_inner().ready, model.into_inner().ready)
    };
    assert_eq!(ready(&mut client, "m").await, (true, true));
    assert_eq!(ready(&mut client, "x/../m").await, (true, false));
    server.is_ready.store(false, Ordering::SeqCst);
    assert_eq!(ready(&mut client, "m").await, (false, false));
}

#[tokio::test]
async fn metadata_says_what_a_model_takes_and_gives() {
    let server = Server::start().await;
    let mut client = server.client();
    let about = client
        .server_metadata(ServerMetadataRequest {})
        .await
        .unwrap();
    assert_eq!(about.into_inner().name, "graftwork");
    let asking = |name: &str| ModelMetadataRequest {
        name: name.into(),
        version: String::new(),
    };
    let model = client.model_metadata(asking("m")).await.unwrap();
    let model = model.into_inner();
    assert_eq!((&*model.name, model.versions), ("m", vec!["4".to_owned()]));
    let names: Vec<_> = model.inputs.iter().chain(&model.outputs).collect();
    let names: Vec<_> = names.iter().map(|tensor| &*tensor.name).collect();
    assert_eq!(
        names,
        [
            "text_input",
            "sampling_parameters",
            "text_output",
            "finish_reason"
        ]
    );
    let status = client.model_metadata(asking("x")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let versioned = ModelMetadataRequest {
        version: "4".into(),
        ..asking("m")
    };
    let status = client.model_metadata(versioned).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn health_is_told_to_who_asks_and_to_who_watches() {
    let server = Server::start().await;
    let mut client = HealthClient::new(server.channel.clone());
    let of = |service: &str| HealthCheckRequest {
        service: service.into(),
    };
    for service in ["", "inference.GRPCInferenceService"] {
        let answer = client.check(of(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    let status = client.check(of("x")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let mut states = client.watch(of("")).await.unwrap().into_inner();
    let first = states.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    server.is_ready.store(false, Ordering::SeqCst);
    let next = states.message().await.unwrap().unwrap();
    assert_eq!(next.status(), ServingStatus::NotServing);
    // Nobody who watches keeps the process from its end.
    let finished = tokio::time::timeout(Duration::from_secs(20), server.listener.finish()).await;
    assert!(finished.is_ok(), "who watches is waited for");
}

#[tokio::test]
async fn reflection_shows_the_services() {
    let server = Server::start().await;
    let mut client = ServerReflectionClient::new(server.channel.clone());
    let asked = |message: MessageRequest| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message),
    };
    let questions = futures::stream::iter([
        asked(MessageRequest::ListServices(String::new())),
        asked(MessageRequest::FileContainingSymbol(
            "inference.GRPCInferenceService.ModelInfer".into(),
        )),
    ]);
    let answers = client
        .server_reflection_info(questions)
        .await
        .unwrap()
        .into_inner();
    let answers: Vec<_> = answers
        .map(|answer| answer.unwrap().message_response.unwrap())
        .collect()
        .await;
    let MessageResponse::ListServicesResponse(list) = &answers[0] else {
        panic!("{:?}", answers[0]);
    };
    let names: Vec<_> = list.service.iter().map(|one| &*one.name).collect();
    for name in ["inference.GRPCInferenceService", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(matches!(
        answers[1],
        MessageResponse::FileDescriptorResponse(_)
    ));
}

#[tokio::test]
async fn the_http_api_stays_where_it_was() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let server = Server::start().await;
    let mut stream = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    stream
        .write_all(b"GET /v1/models/m HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.contains("200 OK") && answer.contains("m@v4"),
        "{answer}"
    );
}
