//! More questions about files than a keeper reads at one time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed step is a failed test"
)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use graftwork_artifacts::Store;
use graftwork_contract::keeper::KeeperConfig;
use graftwork_contract::proto::store::v1::keeper_client::KeeperClient;
use graftwork_contract::proto::store::v1::{DescribeBaseRequest, ListRequest};
use graftwork_model::fixture::{TinyShape, write_tiny_base};
use keeper::config::Gatekeeper;
use keeper::folders::Claims;
use keeper::server::{self, Keeper};
use keeper::turns::CALLS_PER_ADDRESS;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;

#[tokio::test]
async fn a_crowd_of_questions_is_refused_in_time_and_records_are_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("store")).unwrap();
    write_tiny_base(&path("claims/models/base"), &TinyShape::default(), 1).unwrap();
    let tokenizer = path("claims/models/base/tokenizer.json");
    fs::rename(&tokenizer, path("tokenizer.json")).unwrap();
    // A file that nobody writes to: who reads it waits.
    let made = Command::new("mkfifo").arg(&tokenizer).status();
    assert!(made.unwrap().success());
    let config = KeeperConfig {
        owner_uid: "namespace".into(),
        operator_keys: vec![],
    };
    fs::write(path("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();

    let gatekeeper = Gatekeeper::open(&path("config.json"), "pod".into()).unwrap();
    let store = Store::open(path("store")).unwrap();
    let keeper = Keeper::new(store, Claims::new(path("claims")), gatekeeper);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(server::serve(listener, keeper, stop.clone()));
    let mut client = KeeperClient::connect(format!("http://{address}"))
        .await
        .unwrap();

    let mut questions = JoinSet::new();
    for _ in 0..=CALLS_PER_ADDRESS {
        let mut client = client.clone();
        questions.spawn(async move {
            let request = DescribeBaseRequest {
                claim: "models".into(),
                path: "base".into(),
            };
            client.describe_base(request).await
        });
    }
    let patience = Duration::from_secs(30);
    let refused = tokio::time::timeout(patience, questions.join_next()).await;
    let listing = client.list(ListRequest {
        prefix: String::new(),
    });
    let listed = tokio::time::timeout(patience, listing).await;

    // Readers must go on before anything is said about them: the runtime waits for them at its end.
    // The one that has the file open reads nothing, and those after it read the real one.
    let writer = {
        let fifo = tokenizer.clone();
        let open = move || fs::File::options().write(true).open(fifo);
        tokio::task::spawn_blocking(open).await.unwrap().unwrap()
    };
    fs::rename(path("tokenizer.json"), &tokenizer).unwrap();
    drop(writer);

    let refused = refused.expect("nobody was refused").unwrap().unwrap();
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("ask again later"), "{refused}");
    assert!(listed.expect("records wait for the crowd").is_ok());
    let mut described = 0;
    while let Some(answer) = questions.join_next().await {
        let reply = answer.unwrap().unwrap().into_inner();
        described += usize::from(reply.problem.is_none());
    }
    assert_eq!(described, CALLS_PER_ADDRESS - 1, "all but the first reader");
    stop.cancel();
}
