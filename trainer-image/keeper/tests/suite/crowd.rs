//! More questions about files than a keeper reads at one time, about a folder that hangs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use graftwork_contract::keeper::KeeperConfig;
use graftwork_contract::proto::store::v1::keeper_client::KeeperClient;
use graftwork_contract::proto::store::v1::{DescribeBaseReply, DescribeBaseRequest, ListRequest};
use graftwork_model::fixture::{TinyShape, write_tiny_base};
use keeper::config::Gatekeeper;
use keeper::turns::CALLS_PER_ADDRESS;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::serving::serve;

const PATIENCE: Duration = Duration::from_secs(30);

type Answer = Result<Response<DescribeBaseReply>, Status>;

/// A keeper with two base models: `hanging`, whose tokenizer nobody can read to its end, and `fine`.
struct Bench {
    dir: tempfile::TempDir,
    client: KeeperClient<Channel>,
    questions: JoinSet<Answer>,
    stop: CancellationToken,
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("store")).unwrap();
        for (name, seed) in [("hanging", 1), ("fine", 2)] {
            let folder = path("claims/models").join(name);
            write_tiny_base(&folder, &TinyShape::default(), seed).unwrap();
        }
        let tokenizer = path("claims/models/hanging/tokenizer.json");
        fs::rename(&tokenizer, path("tokenizer.json")).unwrap();
        // A file that nobody writes to: who reads it waits.
        let made = Command::new("mkfifo").arg(&tokenizer).status();
        assert!(made.unwrap().success());
        let config = KeeperConfig {
            owner_uid: "namespace".into(),
            operator_keys: vec![],
            store: None,
        };
        fs::write(path("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();

        let gatekeeper = Gatekeeper::open(&path("config.json"), "pod".into()).unwrap();
        let (client, stop) = serve(dir.path(), gatekeeper).await;
        Self {
            dir,
            client,
            questions: JoinSet::new(),
            stop,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Asks about the folder that hangs once more than may be asked, and waits for the refusal:
    /// then all the others have come in.
    async fn crowd(&mut self) -> (Vec<AbortHandle>, Option<Answer>) {
        let mut asked = Vec::new();
        for _ in 0..=CALLS_PER_ADDRESS {
            let client = self.client.clone();
            asked.push(self.questions.spawn(describe(client, "hanging")));
        }
        let refused = tokio::time::timeout(PATIENCE, self.questions.join_next()).await;
        (asked, refused.ok().flatten().map(Result::unwrap))
    }

    /// Lets readers go on, which must be before anything is said about them: the runtime waits for
    /// them at its end. The one that has the file open reads nothing, and those after it read the
    /// real one.
    async fn let_go(&self) {
        let tokenizer = self.path("claims/models/hanging/tokenizer.json");
        let fifo = tokenizer.clone();
        let open = move || fs::File::options().write(true).open(fifo);
        let writer = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
        fs::rename(self.path("tokenizer.json"), &tokenizer).unwrap();
        drop(writer);
    }
}

async fn describe(mut client: KeeperClient<Channel>, path: &str) -> Answer {
    let request = DescribeBaseRequest {
        claim: "models".into(),
        path: path.into(),
    };
    client.describe_base(request).await
}

#[tokio::test]
async fn a_crowd_of_questions_is_refused_in_time_and_records_are_still_read() {
    let mut bench = Bench::start().await;
    let (_, refused) = bench.crowd().await;
    let listing = bench.client.list(ListRequest {
        prefix: String::new(),
    });
    let listed = tokio::time::timeout(PATIENCE, listing).await;
    bench.let_go().await;

    let refused = refused.expect("nobody was refused").unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("ask again later"), "{refused}");
    assert!(listed.expect("records wait for the crowd").is_ok());
    let mut described = 0;
    while let Some(answer) = bench.questions.join_next().await {
        let reply = answer.unwrap().unwrap().into_inner();
        described += usize::from(reply.problem.is_none());
    }
    assert_eq!(described, CALLS_PER_ADDRESS - 1, "all but the first reader");
    bench.stop.cancel();
}

#[tokio::test]
async fn a_folder_that_hangs_leaves_turns_for_the_others() {
    let mut bench = Bench::start().await;
    let (asked, refused) = bench.crowd().await;
    // Three leave, one of which may be the refused one and one the reader, which keeps its place: there
    // is a place again, and everybody else still waits for the folder that hangs.
    for question in asked.iter().rev().take(3) {
        question.abort();
    }
    let client = bench.client.clone();
    let other = async {
        loop {
            match describe(client.clone(), "fine").await {
                Err(status) if status.code() == Code::ResourceExhausted => {}
                answer => break answer,
            }
        }
    };
    let answer = tokio::time::timeout(PATIENCE, other).await;
    bench.let_go().await;

    assert!(refused.is_some(), "nobody was refused");
    let reply = answer.expect("it waits for the crowd").unwrap();
    assert_eq!(reply.into_inner().problem, None);
    bench.stop.cancel();
}
