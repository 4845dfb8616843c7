//! A router with real local HTTP servers as engines.

pub mod engine;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser as _;
use ed25519_dalek::SigningKey;
use graftwork_contract::Digest;
use graftwork_contract::endpoint::{HEADER_ADAPTER, RouterConfig, RouterModel};
use graftwork_contract::proto::call::v1::SignedCall;
use graftwork_contract::proto::router::v1 as wire;
use graftwork_contract::proto::router::v1::router_client::RouterClient;
use graftwork_contract::signing::{Addressee, Fence, print_key, sign};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message as _;
use router::control::SYNC;
use router::server::{Running, start};
use router::settings::Settings;
use serde_json::{Value, json};
use tonic::transport::Channel;

use engine::FakeEngine;

pub struct Rig {
    pub router: Running,
    pub grpc: RouterClient<Channel>,
    pub client: Client<HttpConnector, Full<Bytes>>,
    pub folder: tempfile::TempDir,
    pub generation: u64,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
    /// Whether the body came to its proper end.
    pub whole: bool,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub fn adapter(&self) -> &str {
        self.headers
            .get(HEADER_ADAPTER)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

pub fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub fn digest(version: u32) -> Digest {
    Digest::of(&version.to_le_bytes())
}

pub fn config(engines_host: &str) -> RouterConfig {
    RouterConfig {
        endpoint: "assistants".into(),
        owner_uid: "owner".into(),
        operator_keys: vec![print_key(&key().verifying_key())],
        engines_host: engines_host.into(),
        base_name: Some("tiny".into()),
        models: vec![RouterModel {
            name: "m".into(),
            version: 1,
            digest: digest(1),
            fallback: None,
        }],
        stand_ins: [].into(),
        response_cache_bytes: 0,
    }
}

/// A candidate `m@v2`.
pub fn candidate(weight: u32) -> wire::Candidate {
    wire::Candidate {
        version: Some(wire::Version {
            version: 2,
            digest: digest(2).to_string(),
        }),
        weight,
        by_header: false,
        lease_seconds: 120,
        salt: "salt".into(),
    }
}

pub fn table(candidate: Option<wire::Candidate>, engines: &[&FakeEngine]) -> wire::RoutingTable {
    wire::RoutingTable {
        models: vec![wire::Model {
            name: "m".into(),
            stable: Some(wire::Version {
                version: 1,
                digest: digest(1).to_string(),
            }),
            candidate,
            fallback: String::new(),
        }],
        engines: engines
            .iter()
            .enumerate()
            .map(|(index, engine)| wire::EngineTarget {
                pod: format!("engine-{index}"),
                address: engine.address.to_string(),
                lacks: Vec::new(),
            })
            .collect(),
        base_name: "tiny".into(),
        stand_ins: vec![],
    }
}

pub fn call(table: &wire::RoutingTable, fence: Fence) -> SignedCall {
    let to = Addressee {
        pod_uid: "pod".into(),
        owner_uid: "owner".into(),
    };
    sign(
        &key(),
        SYNC,
        table.encode_to_vec(),
        &to,
        fence,
        graftwork_listen::clock::unix_seconds(),
    )
}

impl Rig {
    /// A router whose name for engines leads nowhere.
    pub async fn start(flags: &[&str]) -> Self {
        // Without a port it is never looked up.
        Self::start_with(&config("nowhere"), flags).await
    }

    pub async fn start_with(config: &RouterConfig, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, serde_json::to_vec(config).unwrap()).unwrap();
        let path = path.to_str().unwrap().to_owned();
        let mut arguments = vec!["router", "--pod-uid", "pod", "--config", &path];
        for flag in ["--listen-http", "--listen-grpc", "--listen-metrics"] {
            arguments.extend([flag, "127.0.0.1:0"]);
        }
        arguments.extend(flags);
        let router = start(&Settings::parse_from(arguments)).await.unwrap();
        let grpc = RouterClient::connect(format!("http://{}", router.grpc))
            .await
            .unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self {
            router,
            grpc,
            client,
            folder,
            generation: 0,
        }
    }

    pub fn write_config(&self, config: &RouterConfig) {
        // Replaced as the kubelet does: never half there.
        let next = self.folder.path().join("next.json");
        std::fs::write(&next, serde_json::to_vec(config).unwrap()).unwrap();
        std::fs::rename(next, self.folder.path().join("config.json")).unwrap();
    }

    pub async fn push(&mut self, table: &wire::RoutingTable) {
        self.generation += 1;
        let fence = Fence {
            lease_epoch: 1,
            generation: self.generation,
        };
        let reply = self
            .grpc
            .sync(call(table, fence))
            .await
            .unwrap()
            .into_inner();
        assert_eq!((reply.lease_epoch, reply.generation), (1, self.generation));
        assert_eq!(reply.pod_uid, "pod");
    }

    pub async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        self.client.request(request).await.unwrap()
    }

    pub async fn ask(&self, body: Value) -> Answer {
        self.ask_with(body, &[]).await
    }

    pub async fn ask_with(&self, body: Value, headers: &[(&str, &str)]) -> Answer {
        read(self.open(self.chat(&body, headers)).await).await
    }

    pub fn chat(&self, body: &Value, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
        let mut request = Request::post(format!("http://{}/v1/chat/completions", self.router.http))
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::from(body.to_string())).unwrap()
    }

    pub async fn get(&self, address: SocketAddr, path: &str) -> Answer {
        let request = Request::get(format!("http://{address}{path}"))
            .body(Full::default())
            .unwrap();
        read(self.open(request).await).await
    }

    /// Versions of all counters of the last 15 minutes: `(version, completed, errors, callers)`.
    pub async fn counts(&mut self) -> Vec<(u32, u64, u64, u64)> {
        let request = wire::StatsRequest {
            from_milliseconds_ago: 900_000,
            to_milliseconds_ago: 0,
        };
        let reply = self.grpc.stats(request).await.unwrap().into_inner();
        let count = |v: wire::VersionStats| {
            let callers = v.errors_by_caller.map_or(0, |sums| sums.callers);
            (v.version, v.completed, v.errors, callers)
        };
        reply.versions.into_iter().map(count).collect()
    }

    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get(self.router.metrics, "/metrics").await.text;
        text.lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter_map(|rest| rest.rsplit_once(' '))
            .map(|(_, value)| value.parse::<f64>().unwrap())
            .sum()
    }
}

pub async fn read(response: Response<Incoming>) -> Answer {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    let whole = loop {
        match body.frame().await {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
        }
    };
    let text = String::from_utf8(bytes).unwrap();
    Answer {
        status: head.status,
        headers: head.headers,
        text,
        whole,
    }
}

/// Waits for `condition`, at most 10 s.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "waited in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn question(user: &str) -> Value {
    json!({"model": "m", "user": user, "messages": [{"role": "user", "content": "hi"}]})
}

pub fn stream_question(user: &str) -> Value {
    let mut question = question(user);
    question["stream"] = json!(true);
    question
}
