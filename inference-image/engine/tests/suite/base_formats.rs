//! A base model in every form that the configuration can name, and what an engine may take.

use std::collections::BTreeSet;

use crate::harness::{Answer, BASE, Files, Server};
use engine::run::Running;
use futures::future::join_all;
use graftwork_contract::endpoint::{BaseFormat, KeyValueFormat};
use graftwork_model::fixture::TinyShape;
use serde_json::{Value, json};

const FORMATS: [Option<BaseFormat>; 5] = [
    None,
    Some(BaseFormat::Bf16),
    Some(BaseFormat::Q8_0),
    Some(BaseFormat::Q4_0),
    Some(BaseFormat::Q4K),
];

/// Of a width that every block format fits, but for one projection under `Q4_K`.
fn files() -> Files {
    let mut files = Files::with_shape(TinyShape {
        hidden: 256,
        intermediate: 320,
        ..TinyShape::default()
    });
    files.config.adapters = vec![files.adapter("a", 1, 1), files.adapter("b", 1, 2)];
    files
}

fn bodies() -> Vec<Value> {
    let prompts = ["hello", "a longer text, which is cut into pieces", "x"];
    let models = [BASE, "a", "b"];
    let bodies = models.iter().flat_map(|model| {
        prompts.iter().map(move |prompt| {
            json!({
                "model": model, "prompt": prompt, "max_tokens": 6, "temperature": 0, "echo": true,
                "logprobs": 3, "ignore_eos": true,
            })
        })
    });
    bodies.collect()
}

/// What does not differ between two answers to the same question: texts and log-probabilities.
fn content(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let json = answer.json();
    json!([json["choices"], json["usage"]])
}

async fn alone(server: &Server) -> Vec<Value> {
    let mut answers = Vec::new();
    for body in bodies() {
        answers.push(content(&server.complete(body).await));
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_the_base_gives_in_company_what_it_gives_alone() {
    let program = std::env::current_exe().unwrap();
    let (build, _) = graftwork_artifacts::digest_of_file(&program).unwrap();
    let mut revisions = BTreeSet::new();
    let mut of_forms = Vec::new();
    for format in FORMATS {
        let mut files = files();
        files.config.quantization = format;
        let server = files.start().await;
        let expected = alone(&server).await;
        let together = join_all(bodies().into_iter().map(|body| server.complete(body))).await;
        for (answer, expected) in together.iter().zip(&expected) {
            assert_eq!(content(answer), *expected, "{format:?}");
        }
        let revision = together[0].headers["x-graftwork-engine"].to_str().unwrap();
        assert!(revision.contains(build.short()), "{revision}");
        if let Some(format) = format {
            assert!(revision.ends_with(format.name()), "{revision}");
        }
        assert!(revisions.insert(revision.to_owned()), "{revision}");
        of_forms.push(expected);
    }
    // The folder's weights are bf16: to hold them so rounds nothing.
    assert_eq!(of_forms[0], of_forms[1]);
    for other in 2..of_forms.len() {
        assert_ne!(of_forms[0], of_forms[other], "{:?}", FORMATS[other]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_takes_what_its_configuration_says_and_not_what_its_flags_say() {
    let mut files = files();
    let plain = files.start().await;
    alone(&plain).await;
    let resident = "graftwork_engine_resident_adapters";
    plain.wait_for_metric(resident, 2.0).await;
    let both = plain
        .metric("graftwork_engine_resident_adapter_bytes")
        .await;
    let blocks = plain.metric("graftwork_engine_kv_blocks ").await;

    let cache = tempfile::tempdir().unwrap();
    files.config.adapter_memory_bytes = Some(both as u64 * 3 / 4);
    files.config.key_value_cache_bytes = Some(4 << 20);
    files.config.disk_cache_bytes = Some(1 << 30);
    let mut options = files.options();
    // Of a MiB; where the cache is mounted in a pod, a test may not write.
    options.adapter_cache = Some(cache.path().to_path_buf());
    options.adapter_cache_mib = 1;
    let bounded = files.start_with(options).await;
    alone(&bounded).await;
    bounded.wait_for_metric(resident, 1.0).await;
    assert!(bounded.metric("graftwork_engine_kv_blocks ").await < blocks);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kv_cache_in_f16_holds_twice_as_much_and_gives_in_company_what_it_gives_alone() {
    let mut files = files();
    // Less than all sequences together may fill.
    files.config.key_value_cache_bytes = Some(4 << 20);
    let wide = files.start().await;
    let blocks = "graftwork_engine_kv_blocks ";
    let held = wide.metric(blocks).await;
    let of_wide = alone(&wide).await;
    files.config.key_value_format = Some(KeyValueFormat::F16);
    let server = files.start().await;
    let twice = server.metric(blocks).await;
    assert!(twice == 2.0 * held || twice == 2.0 * held + 1.0, "{twice}");
    let expected = alone(&server).await;
    let together = join_all(bodies().into_iter().map(|body| server.complete(body))).await;
    for (answer, expected) in together.iter().zip(&expected) {
        assert_eq!(content(answer), *expected);
        let revision = answer.headers["x-graftwork-engine"].to_str().unwrap();
        assert!(revision.ends_with("-kv-f16"), "{revision}");
    }
    assert_ne!(
        of_wide, expected,
        "to round keys and values changes something"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kv_cache_that_holds_no_context_is_named_by_its_field() {
    let mut files = files();
    files.config.key_value_cache_bytes = Some(1 << 16);
    files.write_config();
    let error = Running::start(files.options()).await.unwrap_err();
    let said = format!("{error:#}");
    assert!(
        said.contains("spec.engine.keyValueCache of 65536 bytes") && said.contains("give it more"),
        "{said}"
    );
}
