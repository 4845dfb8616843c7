//! The keeper's binary: it serves, and ends when it is asked to.

use std::fs;
use std::io::BufRead as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use graftwork_contract::keeper::KeeperConfig;
use tonic::transport::Channel;

#[tokio::test]
async fn health_is_served_to_the_kubelet() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address, _log) = start_binary(dir.path());
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let reply = health.check(request).await.unwrap().into_inner();
    assert_eq!(reply.status(), ServingStatus::Serving);
    let pid = child.0.id().to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    assert_eq!(
        child.0.wait().unwrap().code(),
        Some(0),
        "SIGTERM is a good end"
    );
}

type Log = std::io::Lines<std::io::BufReader<std::process::ChildStderr>>;

/// A process that does not outlive its test, even one that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, and then neither does anything.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The real binary, the address that its log names, and the log, whose other end must stay open.
fn start_binary(dir: &Path) -> (Running, String, Log) {
    fs::create_dir(dir.join("store")).unwrap();
    let config = KeeperConfig {
        owner_uid: "namespace".into(),
        operator_keys: vec![],
        store: None,
    };
    fs::write(
        dir.join("config.json"),
        serde_json::to_vec(&config).unwrap(),
    )
    .unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_keeper"))
        .args(["--listen", "127.0.0.1:0", "--pod-uid", "pod"])
        .args([Path::new("--config"), &dir.join("config.json")])
        .args([Path::new("--store"), &dir.join("store")])
        .args([Path::new("--claims"), dir])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Running(child);
    let mut log = std::io::BufReader::new(child.0.stderr.take().unwrap()).lines();
    let address = log
        .find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            line.get("address")?.as_str().map(str::to_owned)
        })
        .unwrap();
    (child, address, log)
}
