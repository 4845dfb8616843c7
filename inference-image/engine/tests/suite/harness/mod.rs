//! A tiny model, adapters in a store, an engine in this process, and its clients.

pub mod process;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use engine::health::Readiness;
use engine::options::Options;
use engine::run::Running;
use engine::scheduler::Admission;
use graftwork_contract::Digest;
use graftwork_contract::adapter::{MANIFEST_FILE, Manifest, Provenance};
use graftwork_contract::endpoint::{EngineAdapter, EngineConfig, HEADER_ADAPTER, KeyValueFormat};
use graftwork_contract::proto::engine::v1::engine_client::EngineClient;
use graftwork_contract::proto::engine::v1::{
    AdapterState, AdapterStatus, AdapterVersion, SyncReply, SyncRequest,
};
use graftwork_contract::signing::{Addressee, Fence, print_key, sign};
use graftwork_model::base::base_digest;
use graftwork_model::config::LlamaConfig;
use graftwork_model::fixture::{TinyShape, random_adapter, write_tiny_base};
use graftwork_model::lora::{LoraConfig, Module};
use graftwork_model::targets::Targets;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const BASE: &str = "tiny";
pub const OWNER: &str = "endpoint-uid";
pub const POD: &str = "pod-uid";

/// The operator's key.
pub fn operator_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// Files of one endpoint.
pub struct Files {
    dir: tempfile::TempDir,
    model: LlamaConfig,
    pub config: EngineConfig,
}

impl Files {
    pub fn new() -> Self {
        Self::with_shape(TinyShape::default())
    }

    pub fn with_shape(shape: TinyShape) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        let model = write_tiny_base(&base, &shape, 11).unwrap();
        let config = EngineConfig {
            endpoint: "assistants".into(),
            owner_uid: OWNER.into(),
            operator_keys: vec![print_key(&operator_key().verifying_key())],
            base_digest: base_digest(&base).unwrap().parse().unwrap(),
            base_path: base.display().to_string(),
            base_name: Some(BASE.into()),
            maximum_batch_size: 8,
            maximum_loaded_adapters: 8,
            maximum_context_tokens: 512,
            adapters: vec![],
            threads: 2,
            vllm_metrics: false,
            quantization: None,
            adapter_memory_bytes: None,
            disk_cache_bytes: None,
            key_value_cache_bytes: None,
            key_value_format: None,
            store: None,
        };
        Self { dir, model, config }
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn folder(&self, adapter: &EngineAdapter) -> PathBuf {
        self.store().join(&adapter.folder)
    }

    /// Writes an adapter's folder; `seed` decides its weights.
    pub fn adapter(&self, name: &str, version: u32, seed: u64) -> EngineAdapter {
        let lora = LoraConfig {
            rank: 4,
            alpha: 16.0,
            dropout: 0.0,
            targets: Targets::of(&Module::ALL),
            use_rslora: false,
        };
        let adapter = random_adapter(&self.model, &lora, seed);
        let digest: Digest = adapter.digest().parse().unwrap();
        let folder = graftwork_contract::paths::adapter(name, &digest);
        let path = self.store().join(&folder);
        std::fs::create_dir_all(&path).unwrap();
        adapter.save(&path).unwrap();
        let provenance = Provenance::Imported {
            uri: "pvc://claim/adapter".into(),
            created_time: "2026-01-01T00:00:00Z".into(),
        };
        let manifest = Manifest {
            digest: digest.clone(),
            files: BTreeMap::new(),
            size_bytes: 0,
            rank: 4,
            provenance_digest: Digest::of_json(&provenance).unwrap(),
            provenance,
        };
        let text = serde_json::to_vec(&manifest).unwrap();
        std::fs::write(path.join(MANIFEST_FILE), text).unwrap();
        EngineAdapter {
            name: name.into(),
            version,
            digest,
            folder,
            is_default: true,
        }
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("config.json")
    }

    pub fn write_config(&self) {
        write_whole(
            &self.config_path(),
            &serde_json::to_vec(&self.config).unwrap(),
        );
    }

    pub fn options(&self) -> Options {
        let here: SocketAddr = ([127, 0, 0, 1], 0).into();
        Options {
            config: self.config_path(),
            store: self.store(),
            listen_http: here,
            listen_grpc: here,
            listen_metrics: here,
            pod_uid: POD.into(),
            pass_tokens: 64,
            admission: Admission::Fair,
            maximum_waiting: 64,
            kv_cache_mib: 64,
            kv_cache_format: KeyValueFormat::F32,
            adapter_memory_mib: None,
            adapter_cache: None,
            adapter_cache_mib: 64,
            vllm_metrics: false,
            termination_file: self.dir.path().join("termination-log"),
            drain_delay_seconds: 0,
            drain_limit_seconds: 20,
        }
    }

    pub async fn start(&self) -> Server {
        self.start_with(self.options()).await
    }

    pub async fn start_with(&self, options: Options) -> Server {
        self.write_config();
        let running = Running::start(options).await.unwrap();
        let mut readiness = running.health.watch();
        readiness
            .wait_for(|value| *value == Readiness::Ready)
            .await
            .unwrap();
        Server::new(running)
    }
}

/// Beside, then renamed, as the kubelet does it.
pub fn write_whole(path: &Path, bytes: &[u8]) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, bytes).unwrap();
    std::fs::rename(beside, path).unwrap();
}

/// A running engine.
pub struct Server {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub metrics: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    stop: Option<oneshot::Sender<()>>,
    pub ended: JoinHandle<anyhow::Result<()>>,
}

/// An answer that was read whole.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub fn adapter(&self) -> &str {
        self.headers
            .get(HEADER_ADAPTER)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The completion's or the message's text.
    pub fn content(&self) -> String {
        let json = self.json();
        let text = json
            .pointer("/choices/0/text")
            .or(json.pointer("/choices/0/message/content"));
        text.and_then(Value::as_str)
            .unwrap_or_else(|| panic!("{json}"))
            .to_owned()
    }

    pub fn error(&self, field: &str) -> Value {
        self.json()["error"][field].clone()
    }

    /// Data of server-sent events.
    pub fn events(&self) -> Vec<String> {
        self.text
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "))
            .map(str::to_owned)
            .collect()
    }
}

impl Server {
    fn new(running: Running) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self {
            http: running.http_address,
            grpc: running.grpc_address,
            metrics: running.metrics_address,
            client: Client::builder(TokioExecutor::new()).build_http(),
            stop: Some(stop),
            ended: tokio::spawn(running.until(async {
                let _ = stopped.await;
            })),
        }
    }

    /// What SIGTERM does.
    pub fn terminate(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, body, &[]).await
    }

    pub async fn post_with(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        read(self.open(path, body, headers).await).await
    }

    /// Sends a request and returns once the answer's head is here.
    pub async fn open(
        &self,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> axum::http::Response<Incoming> {
        let mut request = Request::post(format!("http://{}{path}", self.http))
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_string())).unwrap();
        self.client.request(request).await.unwrap()
    }

    pub async fn complete(&self, body: Value) -> Answer {
        self.post("/v1/completions", &body).await
    }

    pub async fn get(&self, address: SocketAddr, path: &str) -> Answer {
        let request = Request::get(format!("http://{address}{path}"))
            .body(Full::default())
            .unwrap();
        read(self.client.request(request).await.unwrap()).await
    }

    /// Sum of the samples of a metric whose line starts with `name`.
    pub async fn metric(&self, name: &str) -> f64 {
        let answer = self.get(self.metrics, "/metrics").await;
        answer
            .text
            .lines()
            .filter(|line| line.starts_with(name))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    pub async fn wait_for_metric(&self, name: &str, wanted: f64) {
        eventually(
            || async { (self.metric(name).await - wanted).abs() < 1e-9 },
            name,
        )
        .await;
    }

    pub async fn engine(&self) -> EngineClient<tonic::transport::Channel> {
        EngineClient::connect(format!("http://{}", self.grpc))
            .await
            .unwrap()
    }

    pub async fn status(&self) -> SyncReply {
        self.engine()
            .await
            .status(graftwork_contract::proto::engine::v1::StatusRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    /// Pushes a list as the operator does.
    pub async fn sync(
        &self,
        adapters: &[EngineAdapter],
        generation: u64,
    ) -> Result<SyncReply, tonic::Status> {
        let call = sign(
            &operator_key(),
            engine::registry::SYNC_METHOD,
            sync_body(adapters),
            &me(),
            fence(generation),
            now(),
        );
        let reply = self.engine().await.sync(call).await?;
        Ok(reply.into_inner())
    }

    /// Waits until every adapter is verified, in memory or refused.
    pub async fn settled(&self) -> Vec<AdapterStatus> {
        eventually(
            || async {
                let reply = self.status().await;
                reply.adapters.iter().all(|adapter| {
                    !matches!(
                        adapter.state(),
                        AdapterState::Unspecified | AdapterState::Registered
                    )
                })
            },
            "settled adapters",
        )
        .await;
        self.status().await.adapters
    }
}

pub async fn read(response: axum::http::Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        text: String::from_utf8(bytes.to_vec()).unwrap(),
    }
}

/// Polls until it holds, for 20 s.
pub async fn eventually<F: Future<Output = bool>>(mut holds: impl FnMut() -> F, what: &str) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < limit, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn me() -> Addressee {
    Addressee {
        pod_uid: POD.into(),
        owner_uid: OWNER.into(),
    }
}

pub fn fence(generation: u64) -> Fence {
    Fence {
        lease_epoch: 1,
        generation,
    }
}

pub fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

pub fn sync_body(adapters: &[EngineAdapter]) -> Vec<u8> {
    let adapters = adapters.iter().map(|adapter| AdapterVersion {
        name: adapter.name.clone(),
        version: adapter.version,
        digest: adapter.digest.to_string(),
        folder: adapter.folder.clone(),
        is_default: adapter.is_default,
    });
    prost::Message::encode_to_vec(&SyncRequest {
        adapters: adapters.collect(),
    })
}
