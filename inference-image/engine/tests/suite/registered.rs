//! A list as long as an engine has to stand.

use std::path::Path;

use crate::harness::{BASE, Files};
use graftwork_contract::adapter::{CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE};
use graftwork_contract::endpoint::EngineAdapter;
use graftwork_contract::paths;
use graftwork_contract::proto::engine::v1::AdapterState;
use serde_json::json;

const ADAPTERS: usize = 10_000;

/// One more name for the same files, in a folder of its own.
fn linked(files: &Files, first: &EngineAdapter, index: usize) -> EngineAdapter {
    let name = format!("adapter-{index}");
    let adapter = EngineAdapter {
        folder: paths::adapter(&name, &first.digest),
        name,
        ..first.clone()
    };
    let (from, to) = (files.folder(first), files.folder(&adapter));
    std::fs::create_dir_all(&to).unwrap();
    let link = |file: &Path| std::fs::hard_link(from.join(file), to.join(file)).unwrap();
    for file in [MANIFEST_FILE, CONFIG_FILE, WEIGHTS_FILE] {
        link(Path::new(file));
    }
    adapter
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_adapters_in_one_push_are_registered_and_others_are_served_meanwhile() {
    let files = Files::new();
    let first = files.adapter("first", 1, 1);
    let mut list = vec![first.clone()];
    list.extend((1..ADAPTERS).map(|index| linked(&files, &first, index)));
    let server = files.start().await;
    let ask = |model: &str| json!({"model": model, "prompt": "x", "max_tokens": 2});

    let pushed = async { server.sync(&list, 1).await.unwrap() };
    let served = async {
        for _ in 0..50 {
            assert_eq!(server.complete(ask(BASE)).await.status, 200);
        }
    };
    let (reply, ()) = tokio::join!(pushed, served);
    assert_eq!(reply.adapters.len(), ADAPTERS);
    for adapter in &reply.adapters {
        assert!(
            !matches!(
                adapter.state(),
                AdapterState::Unspecified | AdapterState::Refused
            ),
            "{}: {}",
            adapter.name,
            adapter.message
        );
    }
    // Long before all of them were verified.
    for name in ["first", "adapter-1", "adapter-9999"] {
        let answer = server.complete(ask(name)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.adapter(), format!("{name}@v1"));
    }
}
