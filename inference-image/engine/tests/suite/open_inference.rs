//! The Open Inference Protocol, with a real tiny model.

use crate::harness::{BASE, Files, Server};
use graftwork_contract::proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use graftwork_contract::proto::inference::infer_parameter::ParameterChoice;
use graftwork_contract::proto::inference::model_infer_request::InferInputTensor;
use graftwork_contract::proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelReadyRequest, ServerReadyRequest,
};
use graftwork_model::fixture::TinyShape;
use serde_json::json;
use tonic::Code;
use tonic::transport::Channel;

async fn client(server: &Server) -> GrpcInferenceServiceClient<Channel> {
    GrpcInferenceServiceClient::connect(format!("http://{}", server.http))
        .await
        .unwrap()
}

fn infer(
    model: &str,
    prompts: &[&str],
    parameters: &[(&str, ParameterChoice)],
) -> ModelInferRequest {
    let parameters = parameters.iter().map(|(name, choice)| {
        let parameter_choice = Some(choice.clone());
        ((*name).to_owned(), InferParameter { parameter_choice })
    });
    ModelInferRequest {
        model_name: model.into(),
        parameters: parameters.collect(),
        inputs: vec![InferInputTensor {
            name: "text_input".into(),
            datatype: "BYTES".into(),
            shape: vec![i64::try_from(prompts.len()).unwrap()],
            contents: Some(InferTensorContents {
                bytes_contents: prompts
                    .iter()
                    .map(|text| text.as_bytes().to_vec())
                    .collect(),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn tokens(count: i64) -> (&'static str, ParameterChoice) {
    ("max_tokens", ParameterChoice::Int64Param(count))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_generates_what_the_same_completion_does() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 3, 1)];
    let server = files.start().await;
    let mut client = client(&server).await;
    for (model, version) in [("a", "3"), (BASE, "")] {
        let parameters = [
            tokens(12),
            ("temperature", ParameterChoice::DoubleParam(0.9)),
            ("seed", ParameterChoice::Int64Param(7)),
            ("n", ParameterChoice::Int64Param(2)),
        ];
        let prompts = ["hello", "a large feline"];
        let answer = client
            .model_infer(infer(model, &prompts, &parameters))
            .await
            .unwrap();
        let ran = answer
            .metadata()
            .get("x-graftwork-adapter")
            .unwrap()
            .clone();
        let answer = answer.into_inner();
        let over_http = server
            .complete(json!({
                "model": model, "prompt": prompts, "max_tokens": 12, "temperature": 0.9, "seed": 7, "n": 2,
            }))
            .await;
        assert_eq!(ran.to_str().unwrap(), over_http.adapter());
        assert_eq!(
            (&*answer.model_name, &*answer.model_version),
            (model, version)
        );
        let texts: Vec<Vec<u8>> = over_http.json()["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|choice| choice["text"].as_str().unwrap().as_bytes().to_vec())
            .collect();
        let output = &answer.outputs[0];
        assert_eq!((&*output.name, &*output.shape), ("text_output", &[4][..]));
        assert_eq!(output.contents.as_ref().unwrap().bytes_contents, texts);
        let used = over_http.json()["usage"]["prompt_tokens"].as_i64().unwrap();
        assert_eq!(
            answer.parameters["prompt_tokens"].parameter_choice,
            Some(ParameterChoice::Int64Param(used))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_http_refuses_is_refused_with_the_same_words() {
    // Large enough that an answer takes a while.
    let mut files = Files::with_shape(TinyShape {
        hidden: 128,
        intermediate: 512,
        layers: 6,
        ..TinyShape::default()
    });
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    files.config.maximum_batch_size = 1;
    let mut options = files.options();
    options.maximum_waiting = 0;
    let server = files.start_with(options).await;
    let mut client = client(&server).await;
    for (model, name, value, code) in [
        ("b", "seed", json!(1), Code::NotFound),
        ("a", "temperature", json!(9.5), Code::InvalidArgument),
        ("a", "max_tokens", json!(0), Code::InvalidArgument),
        ("a", "max_tokens", json!(600), Code::InvalidArgument),
        ("a", "guided_regex", json!("a"), Code::InvalidArgument),
    ] {
        let parameter = ParameterChoice::StringParam(value.to_string());
        let request = infer(model, &["x"], &[(name, parameter)]);
        let status = client.model_infer(request).await.unwrap_err();
        let mut body = json!({"model": model, "prompt": "x"});
        body[name] = value;
        let over_http = server.complete(body).await;
        assert_eq!(status.code(), code, "{status}");
        assert_eq!(json!(status.message()), over_http.error("message"));
    }
    // One place, and it is taken.
    let mut long = json!({"model": "a", "prompt": "x", "max_tokens": 400, "stream": true});
    long["ignore_eos"] = json!(true);
    let running = server.open("/v1/completions", &long, &[]).await;
    let status = client
        .model_infer(infer("a", &["x"], &[tokens(1)]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.metadata().get("retry-after").is_some());
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_ready_as_soon_as_they_are_listed() {
    let mut files = Files::new();
    files.config.adapters = vec![files.adapter("a", 1, 1)];
    let server = files.start().await;
    let mut client = client(&server).await;
    let ready = client.server_ready(ServerReadyRequest {}).await.unwrap();
    assert!(ready.into_inner().ready);
    for (name, expected) in [("a", true), (BASE, true), ("b", false)] {
        let request = ModelReadyRequest {
            name: name.into(),
            version: String::new(),
        };
        let answer = client.model_ready(request).await.unwrap();
        assert_eq!(answer.into_inner().ready, expected, "{name}");
    }
}
