//! Engines and routers that are processes of their own, as in a pod.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use super::{BASE, Files, OWNER, POD, fence, me, now, operator_key, write_whole};
use graftwork_contract::endpoint::{EngineAdapter, RouterConfig};
use graftwork_contract::proto::router::v1::router_client::RouterClient;
use graftwork_contract::proto::router::v1::{EngineTarget, Model, RoutingTable, Version};
use graftwork_contract::signing::sign;
use prost::Message as _;
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, Command};
use tonic::transport::Channel;

const ENGINE: &str = env!("CARGO_BIN_EXE_engine");

/// A process of ours. It does not outlive its test.
pub struct Process {
    pub child: Child,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub metrics: SocketAddr,
    /// What it printed of panics.
    panics: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts it on free ports, and returns once it logs `ready`.
    async fn start(binary: &Path, config: &Path, arguments: &[&str], ready: &str) -> Self {
        let here = "127.0.0.1:0";
        let mut command = Command::new(binary);
        command
            .args(["--pod-uid", POD, "--config"])
            .arg(config)
            .args(["--listen-http", here, "--listen-grpc", here])
            .args(["--listen-metrics", here])
            .args(arguments)
            .env("RUST_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let panics = Arc::new(Mutex::new(vec![]));
        tokio::spawn(watch(
            BufReader::new(child.stderr.take().unwrap()).lines(),
            Arc::clone(&panics),
        ));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut addresses, mut is_ready) = (None, false);
        while !is_ready || addresses.is_none() {
            let line = lines.next_line().await.unwrap();
            let line: Value = serde_json::from_str(&line.expect("it ended at its start")).unwrap();
            let fields = &line["fields"];
            is_ready |= fields["message"] == ready;
            if fields["http_address"].is_string() {
                let address = |name: &str| {
                    fields[name]
                        .as_str()
                        .unwrap()
                        .parse::<SocketAddr>()
                        .unwrap()
                };
                addresses = Some(["http_address", "grpc_address", "metrics_address"].map(address));
            }
        }
        tokio::spawn(watch(lines, Arc::clone(&panics)));
        let [http, grpc, metrics] = addresses.unwrap();
        Self {
            child,
            http,
            grpc,
            metrics,
            panics,
        }
    }

    pub async fn engine(files: &Files) -> Self {
        let store = files.store();
        let store = ["--store", store.to_str().unwrap()];
        Self::start(Path::new(ENGINE), &files.config_path(), &store, "ready").await
    }

    /// A router of the same endpoint, which is told nothing yet.
    pub async fn router(files: &Files) -> Self {
        Self::router_that_keeps(files, 0).await
    }

    /// The same, with a response cache of so many bytes.
    pub async fn router_that_keeps(files: &Files, bytes: u64) -> Self {
        let config = RouterConfig {
            endpoint: files.config.endpoint.clone(),
            owner_uid: OWNER.into(),
            operator_keys: files.config.operator_keys.clone(),
            engines_host: "nowhere".into(),
            base_name: Some(BASE.into()),
            models: vec![],
            stand_ins: [].into(),
            response_cache_bytes: bytes,
        };
        let path = files.dir.path().join("router.json");
        write_whole(&path, &serde_json::to_vec(&config).unwrap());
        Self::start(&router_binary(), &path, &[], "router started").await
    }

    /// A router's end for the operator.
    pub async fn control(&self) -> RouterClient<Channel> {
        RouterClient::connect(format!("http://{}", self.grpc))
            .await
            .unwrap()
    }

    /// The most bytes that it had in memory at a time.
    pub fn peak_bytes(&self) -> usize {
        let path = format!("/proc/{}/status", self.child.id().expect("it runs"));
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.unwrap().trim().parse::<usize>().unwrap() * 1024
    }

    /// It runs on, and nothing in it panicked.
    pub fn assert_unharmed(&mut self) {
        assert_eq!(self.child.try_wait().unwrap(), None, "it ended");
        let panics = self.panics.lock().unwrap();
        assert!(panics.is_empty(), "{panics:?}");
    }
}

/// Reads on, or a full pipe would hold the process up.
async fn watch(mut lines: Lines<impl AsyncBufRead + Unpin>, panics: Arc<Mutex<Vec<String>>>) {
    while let Ok(Some(line)) = lines.next_line().await {
        // Its log is JSON; what is none says why it ended.
        if !line.starts_with('{') {
            eprintln!("{line}");
        }
        if line.contains("panicked") {
            panics.lock().unwrap().push(line);
        }
    }
}

/// The router's binary, which a test of the whole workspace builds beside the engine's.
fn router_binary() -> PathBuf {
    let binary = Path::new(ENGINE).with_file_name("router");
    assert!(
        binary.exists(),
        "{} is not there: run `make build` before this test alone",
        binary.display()
    );
    binary
}

/// Tells the router of these engines, as the operator does.
pub async fn push(
    router: &mut RouterClient<Channel>,
    adapters: &[EngineAdapter],
    engines: &[SocketAddr],
    generation: u64,
) {
    let model = |adapter: &EngineAdapter| Model {
        name: adapter.name.clone(),
        stable: Some(Version {
            version: adapter.version,
            digest: adapter.digest.to_string(),
        }),
        candidate: None,
        fallback: String::new(),
    };
    let engine = |engine: &SocketAddr| EngineTarget {
        pod: engine.to_string(),
        address: engine.to_string(),
        lacks: vec![],
    };
    let table = RoutingTable {
        models: adapters.iter().map(model).collect(),
        engines: engines.iter().map(engine).collect(),
        base_name: BASE.into(),
        stand_ins: vec![],
    };
    let call = sign(
        &operator_key(),
        "graftwork.router.v1.Router/Sync",
        table.encode_to_vec(),
        &me(),
        fence(generation),
        now(),
    );
    router.sync(call).await.unwrap();
}
