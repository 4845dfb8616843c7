//! The keeper over a real socket: what it writes, what it refuses, what it says about files.

mod bucket;
mod imports;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ed25519_dalek::SigningKey;
use graftwork_artifacts::Store;
use graftwork_contract::keeper::KeeperConfig;
use graftwork_contract::proto::call::v1::SignedCall;
use graftwork_contract::proto::store::v1::keeper_client::KeeperClient;
use graftwork_contract::proto::store::v1::{
    DescribeBaseReply, DescribeBaseRequest, GetRequest, ImportReply, ImportRequest, ListRequest,
    PruneRequest, PublishReply, PublishRequest, VerifyReply, VerifyRequest,
};
use graftwork_contract::signing::{Addressee, Fence, print_key, sign};
use graftwork_model::fixture::{TinyShape, random_adapter, write_tiny_base};
use graftwork_model::lora::{LoraConfig, Module};
use graftwork_model::targets::Targets;
use keeper::config::Gatekeeper;
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::serving::serve_store;

const PUBLISH: &str = "graftwork.store.v1.Keeper/Publish";
const IMPORT: &str = "graftwork.store.v1.Keeper/Import";
const PRUNE: &str = "graftwork.store.v1.Keeper/Prune";

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn me() -> Addressee {
    Addressee {
        pod_uid: "pod".into(),
        owner_uid: "namespace".into(),
    }
}

fn write_config(path: &Path, keys: &[SigningKey]) {
    let config = KeeperConfig {
        owner_uid: me().owner_uid,
        operator_keys: keys
            .iter()
            .map(|key| print_key(&key.verifying_key()))
            .collect(),
        store: None,
    };
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

/// A keeper with a store and a claim `models` that holds a base model and an adapter for it.
struct Bench {
    dir: tempfile::TempDir,
    client: KeeperClient<Channel>,
    stop: CancellationToken,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn shape() -> TinyShape {
    TinyShape::default()
}

fn lora() -> LoraConfig {
    LoraConfig {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        targets: Targets::of(&[Module::QProj, Module::VProj]),
        use_rslora: false,
    }
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Self::on(dir, store).await
    }

    /// A keeper of this store.
    async fn on(dir: tempfile::TempDir, store: Store) -> Self {
        let path = |name: &str| dir.path().join(name);
        let model = write_tiny_base(&path("claims/models/base"), &shape(), 1).unwrap();
        let adapter = random_adapter(&model, &lora(), 1);
        adapter.save(&path("claims/models/adapter")).unwrap();
        write_config(&path("config.json"), &[key(1)]);

        let gatekeeper = Gatekeeper::open(&path("config.json"), me().pod_uid).unwrap();
        tokio::spawn(gatekeeper.clone().follow());
        let (client, stop) = serve_store(dir.path(), store, gatekeeper).await;
        Self { dir, client, stop }
    }

    fn claim(&self) -> PathBuf {
        self.dir.path().join("claims/models")
    }

    fn store(&self) -> Store {
        Store::open(self.dir.path().join("store")).unwrap()
    }

    async fn send(&mut self, call: SignedCall) -> Result<PublishReply, Status> {
        Ok(self.client.publish(call).await?.into_inner())
    }

    async fn publish(&mut self, path: &str, content: &str) -> Result<PublishReply, Status> {
        self.send(published(path, content)).await
    }

    async fn import(&mut self, path: &str, digest: &str) -> Result<ImportReply, Status> {
        let request = ImportRequest {
            adapter: "expenses".into(),
            claim: "models".into(),
            path: path.into(),
            digest: digest.into(),
            base_claim: "models".into(),
            base_path: "base".into(),
        };
        let call = signed(&key(1), IMPORT, request.encode_to_vec(), &me(), 1);
        Ok(self.client.import(call).await?.into_inner())
    }

    async fn refused_import(&mut self, path: &str, digest: &str) -> (String, String) {
        let problem = self.import(path, digest).await.unwrap().problem.unwrap();
        let mounted = self.dir.path().display().to_string();
        assert!(!problem.message.contains(&mounted), "{}", problem.message);
        (problem.reason, problem.message)
    }

    async fn verify(&mut self, digest: &str, base: &str) -> Result<VerifyReply, Status> {
        let hex = digest.trim_start_matches("sha256:");
        let request = VerifyRequest {
            folder: format!("adapters/expenses/{hex}"),
            digest: digest.into(),
            base_claim: "models".into(),
            base_path: base.into(),
        };
        Ok(self.client.verify(request).await?.into_inner())
    }

    async fn describe(&mut self, claim: &str, path: &str) -> DescribeBaseReply {
        let request = DescribeBaseRequest {
            claim: claim.into(),
            path: path.into(),
        };
        self.client
            .describe_base(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn get(&mut self, path: &str) -> Result<Vec<u8>, Status> {
        let reply = self
            .client
            .get(GetRequest { path: path.into() })
            .await?
            .into_inner();
        assert_eq!(reply.pod_uid, "pod");
        Ok(reply.record.unwrap().content)
    }
}

fn signed(
    key: &SigningKey,
    method: &str,
    body: Vec<u8>,
    to: &Addressee,
    lease_epoch: u64,
) -> SignedCall {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let fence = Fence {
        lease_epoch,
        generation: 1,
    };
    sign(key, method, body, to, fence, now)
}

fn record_body(path: &str, content: &str) -> Vec<u8> {
    PublishRequest {
        path: path.into(),
        content: content.into(),
    }
    .encode_to_vec()
}

fn published(path: &str, content: &str) -> SignedCall {
    signed(&key(1), PUBLISH, record_body(path, content), &me(), 1)
}

const APPROVED_PATH: &str = "adapters/expenses/versions/7/approved.json";
const APPROVED: &str = r#"{"by":"gate","reason":"","time":"2026-01-01T00:00:00Z"}"#;

#[tokio::test]
async fn a_record_is_written_once_and_read_back() {
    let mut bench = Bench::start().await;
    let first = bench.publish(APPROVED_PATH, APPROVED).await.unwrap();
    assert_eq!((first.created, first.pod_uid.as_str()), (true, "pod"));
    assert!(
        !bench
            .publish(APPROVED_PATH, APPROVED)
            .await
            .unwrap()
            .created
    );
    let other = APPROVED.replace("gate", "anna");
    let refused = bench.publish(APPROVED_PATH, &other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains(APPROVED_PATH), "{refused}");

    assert_eq!(bench.get(APPROVED_PATH).await.unwrap(), APPROVED.as_bytes());
    let absent = bench
        .get("adapters/expenses/versions/8/approved.json")
        .await
        .unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    let outside = bench.get("../config.json").await.unwrap_err();
    assert_eq!(outside.code(), Code::InvalidArgument);

    let prefix = "adapters/expenses/versions/".to_owned();
    let listed = bench
        .client
        .list(ListRequest { prefix })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.records.len(), 1);
    assert_eq!(listed.records[0].path, APPROVED_PATH);
    assert_eq!(listed.records[0].content, APPROVED.as_bytes());
}

#[tokio::test]
async fn calls_that_are_not_the_operators_change_nothing() {
    let mut bench = Bench::start().await;
    let body = record_body(APPROVED_PATH, APPROVED);
    let with = |method: &str, to: &Addressee| signed(&key(1), method, body.clone(), to, 1);
    let other_pod = Addressee {
        pod_uid: "another".into(),
        ..me()
    };
    let other_owner = Addressee {
        owner_uid: "another".into(),
        ..me()
    };
    let mut unsigned = with(PUBLISH, &me());
    unsigned.signature.clear();
    let mut changed = with(PUBLISH, &me());
    changed.body = record_body(APPROVED_PATH, &APPROVED.replace("gate", "eve"));
    let mut expired = with(PUBLISH, &me());
    expired.expires_unix_seconds = 1;
    for (call, code, word) in [
        (unsigned, Code::Unauthenticated, "operator keys"),
        (changed, Code::Unauthenticated, "operator keys"),
        (
            signed(&key(9), PUBLISH, body.clone(), &me(), 1),
            Code::Unauthenticated,
            "operator keys",
        ),
        (with(PUBLISH, &other_pod), Code::FailedPrecondition, "pod"),
        (
            with(PUBLISH, &other_owner),
            Code::FailedPrecondition,
            "owner",
        ),
        (with(IMPORT, &me()), Code::FailedPrecondition, "method"),
        (expired, Code::FailedPrecondition, "expired"),
    ] {
        let refused = bench.send(call).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(word), "{refused}");
    }
    assert!(bench.store().list("").unwrap().is_empty());
}

#[tokio::test]
async fn an_old_leader_writes_nothing_after_a_new_one() {
    let mut bench = Bench::start().await;
    let call =
        |path: &str, epoch| signed(&key(1), PUBLISH, record_body(path, APPROVED), &me(), epoch);
    let old = call("adapters/a/versions/2/approved.json", 3);
    bench
        .send(call("adapters/a/versions/1/approved.json", 4))
        .await
        .unwrap();
    let refused = bench.send(old).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("lease epoch 3"), "{refused}");
    assert_eq!(bench.store().list("").unwrap().len(), 1);
}

#[tokio::test]
async fn only_records_of_the_ledger_are_written() {
    let mut bench = Bench::start().await;
    for path in [
        "datasets/d/versions/1.json",
        "../escape.json",
        "adapters/a/versions/1/x.json",
    ] {
        let refused = bench.publish(path, APPROVED).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{path}: {refused}");
    }
    let refused = bench
        .publish(APPROVED_PATH, r#"{"by": 1}"#)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(bench.store().list("").unwrap().is_empty());
}

#[tokio::test]
async fn a_changed_key_is_taken_over_from_the_mounted_file() {
    let mut bench = Bench::start().await;
    let call = || {
        signed(
            &key(2),
            PUBLISH,
            record_body(APPROVED_PATH, APPROVED),
            &me(),
            1,
        )
    };
    assert_eq!(
        bench.send(call()).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    write_config(&bench.dir.path().join("config.json"), &[key(2)]);
    let accepted = async {
        while bench.send(call()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), accepted)
        .await
        .unwrap();
    let old = bench.publish(APPROVED_PATH, APPROVED).await.unwrap_err();
    assert_eq!(old.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn versions_are_removed_for_the_operator_and_for_nobody_else() {
    let mut bench = Bench::start().await;
    let body = |dataset: &str| {
        let request = PruneRequest {
            dataset: dataset.into(),
            versions: vec![1],
        };
        request.encode_to_vec()
    };
    for (seed, method, dataset, expected) in [
        (2, PRUNE, "topics", Code::Unauthenticated),
        (1, PUBLISH, "topics", Code::FailedPrecondition),
        (1, PRUNE, "../runs", Code::InvalidArgument),
    ] {
        let call = signed(&key(seed), method, body(dataset), &me(), 1);
        let refused = bench.client.prune(call).await.unwrap_err();
        assert_eq!(refused.code(), expected, "{dataset}: {refused}");
    }
    let call = signed(&key(1), PRUNE, body("topics"), &me(), 1);
    let reply = bench.client.prune(call).await.unwrap().into_inner();
    assert_eq!((reply.pod_uid.as_str(), reply.removed.len()), ("pod", 0));
}

#[tokio::test]
async fn a_base_model_is_described_or_its_problem_is() {
    let mut bench = Bench::start().await;
    let base = bench.describe("models", "base").await;
    assert_eq!(base.problem, None);
    let expected = graftwork_model::base::base_digest(&bench.claim().join("base")).unwrap();
    assert_eq!(base.digest, expected);
    assert_eq!(base.hidden_size as usize, shape().hidden);
    // Keys and values of 16 tokens in 4 bytes each.
    let width = shape().kv_heads * shape().hidden / shape().heads;
    assert_eq!(
        (base.key_value_block_tokens, base.key_value_block_bytes),
        (16, (2 * shape().layers * width * 16 * 4) as u64)
    );
    for path in ["absent", "../models/base"] {
        let problem = bench.describe("models", path).await.problem.unwrap();
        assert_eq!(problem.reason, "BaseModelNotFound", "{}", problem.message);
        assert!(problem.message.contains(path), "{}", problem.message);
    }
    // The pod that has the claim takes this one's place: nothing is said of the model.
    let request = DescribeBaseRequest {
        claim: "absent".into(),
        path: "base".into(),
    };
    let away = bench.client.describe_base(request).await.unwrap_err();
    assert_eq!(away.code(), tonic::Code::Unavailable);
    assert!(away.message().contains("not mounted yet"), "{away}");
    fs::create_dir(bench.claim().join("empty")).unwrap();
    let problem = bench.describe("models", "empty").await.problem.unwrap();
    assert_eq!(
        problem.message,
        "config.json not found in pvc://models/empty: a base model is a Hugging Face folder"
    );
    let config = r#"{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}"#;
    fs::create_dir(bench.claim().join("other-kind")).unwrap();
    fs::write(bench.claim().join("other-kind/config.json"), config).unwrap();
    let problem = bench
        .describe("models", "other-kind")
        .await
        .problem
        .unwrap();
    assert_eq!(problem.reason, "BaseModelUnsupported");
    assert!(problem.message.contains("mamba"), "{}", problem.message);
}
