//! Broken adapters, all at once, beside one that is whole.

use std::time::Duration;

use crate::harness::Files;
use graftwork_contract::adapter::{MANIFEST_FILE, WEIGHTS_FILE};
use graftwork_contract::proto::engine::v1::AdapterState;
use graftwork_model::fixture::malformed::MALFORMED;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn malformed_adapters_are_refused_by_reason_and_others_are_served_meanwhile() {
    let files = Files::new();
    let good = files.adapter("good", 1, 1);
    let mut list = vec![good];
    for (seed, case) in (2..).zip(MALFORMED) {
        let adapter = files.adapter(case.name, 1, seed);
        case.damage(&files.folder(&adapter)).unwrap();
        list.push(adapter);
    }
    let server = files.start().await;
    server.sync(&list[..1], 1).await.unwrap();
    let body = json!({"model": "good", "prompt": "x", "max_tokens": 4, "temperature": 0});
    let before = server.complete(body.clone()).await;
    assert_eq!(before.status, 200, "{}", before.text);

    let answers = async {
        let mut answers = vec![];
        for _ in 0..20 {
            answers.push(server.complete(body.clone()).await);
        }
        answers
    };
    let refused = async {
        server.sync(&list, 2).await.unwrap();
        // Only to end a hang: how long it takes depends on who else uses the machine, and is `make bench-serve`'s.
        tokio::time::timeout(Duration::from_secs(60), server.settled())
            .await
            .expect("every reason is named")
    };
    let (answers, statuses) = tokio::join!(answers, refused);
    for answer in answers {
        assert_eq!(answer.json()["choices"], before.json()["choices"]);
    }
    assert_eq!(statuses.len(), list.len());
    for status in &statuses {
        if status.name == "good" {
            assert_eq!(status.state(), AdapterState::Resident);
            continue;
        }
        assert_eq!(status.state(), AdapterState::Refused, "{}", status.name);
        assert!(
            !status.reason.is_empty() && !status.message.is_empty(),
            "{}",
            status.name
        );
        let body = json!({"model": status.name, "prompt": "x", "max_tokens": 1});
        let answer = server.complete(body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.error("code")),
            (404, json!("version_not_here")),
            "{}",
            status.name
        );
    }
    assert_eq!(server.complete(body).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_out_of_the_store_and_pipes_are_refused_by_name() {
    let mut files = Files::new();
    let linked = files.adapter("linked", 1, 1);
    let outside = tempfile::tempdir().unwrap();
    let weights = files.folder(&linked).join(WEIGHTS_FILE);
    let elsewhere = outside.path().join("weights");
    std::fs::rename(&weights, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &weights).unwrap();

    let inside = files.adapter("inside", 1, 2);
    let weights = files.folder(&inside).join(WEIGHTS_FILE);
    let beside = weights.with_extension("beside");
    std::fs::rename(&weights, &beside).unwrap();
    std::os::unix::fs::symlink(&beside, &weights).unwrap();

    let piped = files.adapter("piped", 1, 3);
    let manifest = files.folder(&piped).join(MANIFEST_FILE);
    std::fs::remove_file(&manifest).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&manifest).status();
    assert!(made.unwrap().success());

    files.config.adapters = vec![linked, inside, piped];
    let server = files.start().await;
    let statuses = server.settled().await;
    let reasons: Vec<(&str, &str)> = statuses
        .iter()
        .map(|status| (status.name.as_str(), status.reason.as_str()))
        .collect();
    assert_eq!(
        reasons,
        [
            ("linked", "InvalidFolder"),
            ("inside", ""),
            ("piped", "AdapterFilesInvalid"),
        ]
    );
    assert!(statuses[0].message.contains(WEIGHTS_FILE));
    assert!(statuses[2].message.contains(MANIFEST_FILE));
}
