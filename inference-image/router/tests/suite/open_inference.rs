//! The Open Inference Protocol: the endpoint's weights and errors hold for it as for HTTP.

use std::collections::BTreeMap;

use crate::rig::engine::{Behaviour, FakeEngine};
use crate::rig::{Rig, candidate, question, table, until};
use graftwork_contract::endpoint::{HEADER_ADAPTER, HEADER_CALLER, HEADER_VERSION};
use graftwork_contract::proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use graftwork_contract::proto::inference::model_infer_request::InferInputTensor;
use graftwork_contract::proto::inference::{
    InferTensorContents, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelReadyRequest, ServerReadyRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

async fn client(rig: &Rig) -> GrpcInferenceServiceClient<Channel> {
    let address = format!("http://{}", rig.router.http);
    GrpcInferenceServiceClient::connect(address).await.unwrap()
}

fn infer(model: &str) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.into(),
        inputs: vec![InferInputTensor {
            name: "text_input".into(),
            datatype: "BYTES".into(),
            shape: vec![1],
            contents: Some(InferTensorContents {
                bytes_contents: vec![b"x".to_vec()],
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

async fn ask(
    client: &mut GrpcInferenceServiceClient<Channel>,
    metadata: &[(&'static str, &str)],
) -> Result<ModelInferResponse, Status> {
    let mut request = Request::new(infer("m"));
    for (name, value) in metadata {
        let value = value.parse().unwrap();
        request.metadata_mut().insert(*name, value);
    }
    client
        .model_infer(request)
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test]
async fn calls_follow_the_weights_and_a_caller_stays_on_the_side_that_it_has_over_http() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(Some(candidate(50)), &[&engine])).await;
    let mut client = client(&rig).await;
    let mut sides = BTreeMap::new();
    for caller in 0..40 {
        let caller = format!("user-{caller}");
        let answer = ask(&mut client, &[(HEADER_CALLER, &caller)]).await.unwrap();
        let over_http = rig.ask(question(&caller)).await;
        assert_eq!(
            format!("{}@v{}", answer.model_name, answer.model_version),
            over_http.adapter()
        );
        *sides.entry(answer.model_version).or_insert(0) += 1;
    }
    assert_eq!(sides.len(), 2, "{sides:?}");
    let by_name = ask(&mut client, &[(HEADER_VERSION, "candidate")]).await;
    assert_eq!(by_name.unwrap().model_version, "2");

    rig.push(&table(None, &[&engine])).await;
    let stable = ask(&mut client, &[(HEADER_ADAPTER, "m@v9")]).await.unwrap();
    assert_eq!(stable.model_version, "1", "the endpoint decides");
    assert_eq!(
        stable.outputs[0].contents.as_ref().unwrap().bytes_contents,
        [b"from m@v1".to_vec()]
    );
}

#[tokio::test]
async fn an_engine_that_breaks_is_replaced_by_another_and_calls_are_counted() {
    let engines = [FakeEngine::start().await, FakeEngine::start().await];
    let mut rig = Rig::start(&[]).await;
    rig.push(&table(None, &[&engines[0], &engines[1]])).await;
    let mut client = client(&rig).await;
    engines[0].behave(Behaviour::Abort);
    for _ in 0..4 {
        ask(&mut client, &[]).await.unwrap();
    }
    assert_eq!(rig.counts().await, [(1, 4, 0, 4)]);
}

#[tokio::test]
async fn what_the_router_and_engines_refuse_has_its_status() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&["--body-limit-bytes", "1000"]).await;
    rig.push(&table(None, &[&engine])).await;
    let mut client = client(&rig).await;
    let unknown = client.model_infer(infer("x")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(
        unknown.metadata().get("error-code").unwrap(),
        "model_not_found"
    );
    let none = ask(&mut client, &[(HEADER_VERSION, "candidate")]).await;
    assert_eq!(none.unwrap_err().code(), Code::NotFound);
    let mut large = infer("m");
    large.inputs[0].contents.as_mut().unwrap().bytes_contents[0] = vec![b'x'; 1000];
    let large = client.model_infer(large).await.unwrap_err();
    assert_eq!(large.code(), Code::InvalidArgument);
    assert!(large.message().contains("limit of 1000 bytes"), "{large}");
    for (status, code) in [
        (400, Code::InvalidArgument),
        (500, Code::Internal),
        (429, Code::ResourceExhausted),
    ] {
        engine.behave_once(Behaviour::Status(status, "some_code"));
        let refused = ask(&mut client, &[]).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
}

#[tokio::test]
async fn models_are_ready_once_the_router_is() {
    let engine = FakeEngine::start().await;
    let mut rig = Rig::start(&[]).await;
    let mut client = client(&rig).await;
    let before = client.server_ready(ServerReadyRequest {}).await.unwrap();
    assert!(!before.into_inner().ready, "no engine has answered");
    rig.push(&table(None, &[&engine])).await;
    until("the router is ready", async || {
        rig.get(rig.router.metrics, "/readyz").await.status == 200
    })
    .await;
    for (name, expected) in [("m", true), ("tiny", true), ("x", false)] {
        let request = ModelReadyRequest {
            name: name.into(),
            version: String::new(),
        };
        let answer = client.model_ready(request).await.unwrap();
        assert_eq!(answer.into_inner().ready, expected, "{name}");
    }
    let request = ModelMetadataRequest {
        name: "m".into(),
        version: String::new(),
    };
    let model = client.model_metadata(request).await.unwrap().into_inner();
    assert_eq!(model.versions, ["1"]);
}
