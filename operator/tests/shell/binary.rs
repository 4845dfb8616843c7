//! The binary itself, against an API server on a socket: what it prints, and how it ends.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::carry_out::{dataset, take};
use crate::fake_api::{Answer, FakeApi};

const OPERATOR: &str = env!("CARGO_BIN_EXE_operator");
/// Longest wait for anything.
const WITHIN: Duration = Duration::from_secs(30);

fn namespace() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "team", "uid": "n", "resourceVersion": "1"},
    })
}

fn with_a_dataset(api: FakeApi) -> FakeApi {
    api.with("namespaces", vec![namespace()])
        .with("datasets", vec![serde_json::to_value(dataset()).unwrap()])
}

/// A server that keeps Leases and Secrets, of which there are `kept` by plural, and treats everything
/// else as `rule` says.
fn keeping(
    kept: HashMap<String, Value>,
    rule: impl Fn(&Method, &str, &Value) -> Answer + Send + Sync + 'static,
) -> FakeApi {
    let kept = Mutex::new(kept);
    FakeApi::new(move |method, path, body| {
        let plural = path.split('/').next().unwrap_or_default();
        if plural != "leases" && plural != "secrets" {
            return rule(method, path, body);
        }
        let mut kept = kept.lock().unwrap();
        let found = kept.get(plural).cloned();
        if *method == Method::GET {
            return found.map_or(Answer::Status(404, "NotFound"), Answer::Object);
        }
        let version = found.and_then(|it| it["metadata"]["resourceVersion"].as_str()?.parse().ok());
        let version: u64 = version.unwrap_or(0);
        let mut object = body.clone();
        object["metadata"]["uid"] = json!(plural);
        object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        kept.insert(plural.to_owned(), object.clone());
        Answer::Object(object)
    })
}

/// Takes every write; nothing can be read.
fn takes(method: &Method, path: &str, body: &Value) -> Answer {
    if *method == Method::GET {
        Answer::Status(404, "NotFound")
    } else {
        take(method, path, body)
    }
}

/// A process that runs `operator run`.
struct Operator {
    process: Child,
    files: TempDir,
}

impl Operator {
    async fn start(api: &FakeApi, more: &[&str]) -> Self {
        let files = TempDir::new().unwrap();
        let server = api.serve().await;
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{server}")}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        let settings = json!({
            "images": {"trainer": "t", "inference": "i"},
            "computeProfiles": {"default": {}},
            "leaderElection": {"leaseSeconds": 15, "renewDeadlineSeconds": 10, "retrySeconds": 1},
        });
        let write = |name: &str, content: &Value| {
            let path = files.path().join(name);
            std::fs::write(&path, content.to_string()).unwrap();
            path
        };
        let output = |name: &str| std::fs::File::create(files.path().join(name)).unwrap();
        let mut command = Command::new(OPERATOR);
        for name in ["RUST_LOG", "HTTPS_PROXY", "https_proxy"] {
            command.env_remove(name);
        }
        let process = command
            .args(["run", "--namespace", "ns", "--identity", "me"])
            .arg("--settings")
            .arg(write("settings.json", &settings))
            .arg("--kubeconfig")
            .arg(write("kubeconfig", &kubeconfig))
            .args(["--listen", "127.0.0.1:0"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(output("stdout"))
            .stderr(output("stderr"))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { process, files }
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.files.path().join(name)).unwrap()
    }

    /// The lines of its log with that message.
    fn said(&self, message: &str) -> Vec<Value> {
        let log = self.read("stderr");
        let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|line: &Value| line["message"] == message)
            .collect()
    }

    async fn ended(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(WITHIN, self.process.wait()).await;
        ended
            .unwrap_or_else(|_| panic!("it does not end: {}", self.read("stderr")))
            .unwrap()
    }

    /// SIGTERM, as the kubelet sends it.
    async fn ask_to_stop(&self) {
        let process = self.process.id().unwrap();
        let kill = format!("kill -TERM {process}");
        let sent = Command::new("sh").args(["-c", &kill]).status().await;
        assert!(sent.unwrap().success());
    }

    /// Where it shows its metrics, as its log says; none until then.
    fn listens(&self) -> Option<SocketAddr> {
        let log = self.read("stderr");
        let mut lines = log.lines().filter(|line| line.contains("\"listen\""));
        // The line may be half written.
        let line: Value = serde_json::from_str(lines.next()?).ok()?;
        line["listen"].as_str()?.parse().ok()
    }

    /// Headers and body; none where nothing answers.
    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.listens()?).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// Waits until it `shows` what is waited for.
    async fn wait_until(&self, what: &str, shows: impl AsyncFn() -> bool) {
        let waiting = async {
            while !shows().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let seen = tokio::time::timeout(WITHIN, waiting).await;
        assert!(seen.is_ok(), "waited for {what}: {}", self.read("stderr"));
    }
}

fn holder(write: &Value) -> &str {
    write["spec"]["holderIdentity"].as_str().unwrap()
}

#[test]
fn crds_prints_the_definitions_that_the_repository_has() {
    let printed = std::process::Command::new(OPERATOR)
        .arg("crds")
        .output()
        .unwrap();
    assert!(printed.status.success());
    let text = String::from_utf8(printed.stdout).unwrap();
    let printed: BTreeSet<String> = text.split("---\n").skip(1).map(str::to_owned).collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds");
    let committed: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(committed.len(), 4);
    assert!(printed == committed, "crds/ differs from {text}");
}

#[tokio::test]
async fn plan_only_prints_a_line_for_each_object_and_writes_nothing() {
    let api = with_a_dataset(keeping(HashMap::new(), takes));
    let mut operator = Operator::start(&api, &["--plan-only"]).await;
    let status = operator.ended().await;
    assert!(status.success(), "{}", operator.read("stderr"));
    let lines: Vec<Value> = operator
        .read("stdout")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<_> = lines.iter().map(|line| line["kind"].clone()).collect();
    assert_eq!(kinds, ["Namespace", "Dataset"]);
    assert_eq!(lines[1]["name"], "x");
    assert_eq!(api.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn plan_only_fails_where_the_definitions_are_missing_and_says_what_to_do() {
    let api = keeping(HashMap::new(), takes).refusing("datasets", 404);
    let mut operator = Operator::start(&api, &["--plan-only"]).await;
    assert_eq!(operator.ended().await.code(), Some(1));
    assert_eq!(operator.read("stdout"), "");
    let said = operator.read("stderr");
    for part in ["datasets.graftwork.dev", "operator crds"] {
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test]
async fn a_leader_that_is_asked_to_stop_finishes_what_it_does_and_gives_the_lease_back() {
    let claim = "persistentvolumeclaims";
    let answers = CancellationToken::new();
    let of_claim = answers.clone();
    let api = with_a_dataset(keeping(HashMap::new(), move |method, path, body| {
        if *method == Method::POST && path.starts_with(claim) {
            Answer::Held(of_claim.clone(), Box::new(take(method, path, body)))
        } else {
            takes(method, path, body)
        }
    }));
    let mut operator = Operator::start(&api, &[]).await;
    let find = |what: &str| api.writes().iter().position(|it| it.path.starts_with(what));
    operator
        .wait_until("the first look", async || find(claim).is_some())
        .await;
    operator
        .wait_until("its metrics", async || {
            let metrics = operator.get("/metrics").await.unwrap_or_default();
            metrics.contains("graftwork_leader 1")
        })
        .await;
    assert_eq!(find("deployments"), None, "the claim is not answered yet");
    operator.ask_to_stop().await;
    operator
        .wait_until("its stop", async || {
            operator.read("stderr").contains("is finished first")
        })
        .await;
    answers.cancel();
    let status = operator.ended().await;
    let log = operator.read("stderr");
    assert!(status.success(), "{log}");
    assert!(!log.contains("gave up"), "{log}");
    assert!(
        find("deployments").is_some(),
        "what had begun was finished: {:?}",
        api.lines()
    );
    let writes = api.writes();
    let last = writes.last().unwrap();
    assert_eq!(last.line(), "PUT leases/graftwork-operator");
    assert_eq!(holder(&last.body), "", "the lease is free");
    let of_lease = writes.iter().find(|it| it.path.starts_with("leases"));
    assert!(holder(&of_lease.unwrap().body).starts_with("me-"));
}

#[tokio::test]
async fn a_line_of_the_log_says_which_object_was_looked_at() {
    let api = with_a_dataset(keeping(HashMap::new(), takes));
    let mut operator = Operator::start(&api, &[]).await;
    let deployments = || {
        api.writes()
            .iter()
            .any(|it| it.path.starts_with("deployments"))
    };
    operator
        .wait_until("the keeper", async || deployments())
        .await;
    operator.ask_to_stop().await;
    let status = operator.ended().await;
    assert!(status.success(), "{}", operator.read("stderr"));
    let created = operator.said("created");
    let of_claim = created
        .iter()
        .find(|line| line["kind"] == "PersistentVolumeClaim");
    let span = &of_claim.unwrap()["span"];
    // The store is looked at for its namespace.
    let expected = json!({
        "kind": "Namespace", "namespace": "team", "object": "team", "name": "reconcile",
    });
    assert_eq!(*span, expected);
}

#[tokio::test]
async fn a_follower_that_is_asked_to_stop_ends_and_leaves_the_leaders_lease_alone() {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "graftwork-operator", "uid": "leases", "resourceVersion": "7"},
        "spec": {"holderIdentity": "another", "leaseDurationSeconds": 3600, "leaseTransitions": 3},
    });
    let kept = HashMap::from([("leases".to_owned(), lease)]);
    let api = with_a_dataset(keeping(kept, takes));
    let mut operator = Operator::start(&api, &[]).await;
    operator
        .wait_until("its caches", async || {
            let ready = operator.get("/readyz").await.unwrap_or_default();
            ready.starts_with("HTTP/1.1 200")
        })
        .await;
    operator.ask_to_stop().await;
    let status = operator.ended().await;
    assert!(status.success(), "{}", operator.read("stderr"));
    assert_eq!(api.lines(), Vec::<String>::new());
}
