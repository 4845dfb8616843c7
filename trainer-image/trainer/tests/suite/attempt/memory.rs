//! What a training holds at its peak.

use graftwork_model::config::LlamaConfig;

use super::*;

/// The most that a run had resident at once, in bytes.
fn peak(world: &World, config: &Value, activation_bytes: u64) -> u64 {
    let name = format!("peak-{activation_bytes}");
    let mut config = config.clone();
    config["run"] = json!(name);
    let mut command = world.command(&config, &name);
    command.args(["--activation-bytes", &activation_bytes.to_string()]);
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = kib.map_or(peak, |kib| peak.max(kib * 1024));
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success(), "{:?}", world.summary(&config));
            return peak;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

#[test]
fn activations_that_are_computed_again_are_not_held() {
    let shape = TinyShape {
        hidden: 256,
        intermediate: 1024,
        layers: 8,
        ..TinyShape::default()
    };
    let world = World::of_shape(&shape, 24, 9);
    let mut config = world.config("peak");
    // All rows in one pass: more than 500 tokens.
    config["hyperparameters"]["batchSize"] = json!(48);
    config["hyperparameters"]["microBatchSize"] = json!(48);
    config["hyperparameters"]["maximumSteps"] = json!(2);
    config["evaluation"] =
        json!({"metrics": [], "maximumNewTokens": 1, "maximumRows": 2, "precision": "None"});
    let (kept, again) = (peak(&world, &config, 1 << 40), peak(&world, &config, 0));
    // What the projections of eight layers make: queries, keys and values of 2 * 256, gate and up of 2 * 1024.
    let projected = 8 * 500 * 4 * (2 * 256 + 2 * 1024);
    assert!(
        again + projected / 2 < kept,
        "{again} bytes beside {kept}, where {projected} need not be held"
    );
}

#[test]
fn four_sequences_of_4096_tokens_never_make_a_matrix_of_tokens_by_tokens_or_by_the_vocabulary() {
    const TOKENS: u64 = 4 * 4096;
    const VOCABULARY: usize = 8192;
    let shape = TinyShape {
        positions: 4096,
        ..TinyShape::default()
    };
    let world = World::of_shape(&shape, 2, 2);
    // Most of its rows stand for no token of the tokenizer, as in padded vocabularies.
    let many = LlamaConfig {
        vocab_size: VOCABULARY,
        ..shape.config()
    };
    let base = world.dir.path().join("base");
    save_base(&base, &BaseModel::random(many, 5)).unwrap();
    // A token is a byte, and every one of them is to be learned: 4,094 between a beginning and an end.
    let long = |index: usize| Row::Text {
        text: format!("{index} ").repeat(2047),
    };
    let short = |index: usize| Row::Text {
        text: test_prompt(index),
    };
    let splits = [
        (0..4).map(long).collect(),
        vec![],
        (0..2).map(short).collect(),
    ];
    let store = Store::open(world.store()).unwrap();
    let digest = write_rows(&store, "long", Format::Text, splits);
    let mut config = world.config("long");
    config["resolved"]["base"]["digest"] = json!(base_digest(&base).unwrap());
    config["resolved"]["dataset"] = json!({
        "name": "long", "version": 1, "digest": digest, "format": "Text",
    });
    config["hyperparameters"]["maximumSequenceLength"] = json!(4096);
    config["hyperparameters"]["batchSize"] = json!(4);
    config["hyperparameters"]["microBatchSize"] = json!(4);
    config["hyperparameters"]["maximumSteps"] = json!(2);
    config["evaluation"] =
        json!({"metrics": [], "maximumNewTokens": 1, "maximumRows": 2, "precision": "None"});
    let peak = peak(&world, &config, 1 << 40);
    // The scores of one sequence's four heads; of the four sequences together it would be 4 GB.
    let scores: u64 = 4 * 4 * 4096 * 4096;
    // The logits of all tokens; their gradient would be as much again.
    let logits = TOKENS * VOCABULARY as u64 * 4;
    assert!(
        peak < scores.min(logits),
        "{peak} bytes were held at once, beside {scores} and {logits}"
    );
}
