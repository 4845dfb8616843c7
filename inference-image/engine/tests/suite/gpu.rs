//! An engine on a GPU, teacher forced beside what the CPU computes.

use std::path::Path;

use graftwork_model::lora::LoadedAdapter;
use graftwork_model::peft::Adapter;
use graftwork_model::transformer::{Accelerator, Held, Llama, PackedBatch};
use serde_json::json;

use crate::harness::{BASE, Files};

/// Of a token's log-probability, in nats: bf16 keeps eight bits of a value.
const NATS: f64 = 0.2;

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_on_a_gpu_gives_each_token_the_probability_that_the_cpu_gives_it() {
    let Ok(Some(gpu)) = Accelerator::first() else {
        graftwork_model::fixture::skipped("no GPU");
        return;
    };
    let mut files = Files::new();
    let adapters = [files.adapter("a", 1, 1), files.adapter("b", 1, 2)];
    files.config.adapters = adapters.to_vec();
    let server = files.start().await;
    let llama = Llama::load_served(Path::new(&files.config.base_path), Held::AsStored).unwrap();
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + i * i * 3) % 250).collect();
    let mut batch = PackedBatch::new();
    batch.push(&tokens, &vec![true; tokens.len()]);

    let named = adapters.iter().map(|it| (it.name.as_str(), Some(it)));
    for (model, adapter) in [(BASE, None)].into_iter().chain(named) {
        let loaded = adapter.map(|adapter| {
            let adapter = Adapter::load(&files.folder(adapter)).unwrap();
            LoadedAdapter::new(&adapter, llama.config()).unwrap()
        });
        let expected = llama.score(&batch, loaded.as_ref()).unwrap();
        let answer = server
            .complete(json!({
                "model": model, "prompt": tokens, "max_tokens": 0, "echo": true, "logprobs": 1,
            }))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let engine = answer.headers["x-graftwork-engine"].to_str().unwrap();
        let kernels = gpu
            .name()
            .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        assert!(engine.contains(&kernels), "{engine}");
        let json = answer.json();
        let given = json["choices"][0]["logprobs"]["token_logprobs"].as_array();
        let given = &given.unwrap()[1..];
        assert_eq!(given.len(), expected.len());
        for (given, expected) in given.iter().zip(&expected) {
            let apart = (given.as_f64().unwrap() + f64::from(expected.nll)).abs();
            assert!(apart <= NATS, "{model}, row {}: {apart}", expected.row);
        }
    }
}
