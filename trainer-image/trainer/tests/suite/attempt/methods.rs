//! What is trained and from where: a quantised base, preferences, a version that is there; and what
//! validation does on the way.

use candle_core::quantized::GgmlDType;
use graftwork_model::fixture::write_tiny_gguf;
use graftwork_model::lora::{LoraConfig, LoraParams};
use graftwork_model::peft::Adapter;
use graftwork_model::targets::{Names, TargetModules, Targets};

use super::*;

/// Kills a run after each of three checkpoints, and lets it end with the bits of one that was left alone.
fn killed_thrice_it_ends_as(world: &World, killed: &Value, whole: &Value) {
    for _ in 0..3 {
        world.kill_once_it_saved(killed);
    }
    assert_eq!(world.run(killed), 0);
    assert_eq!(world.result(killed).digest, world.result(whole).digest);
}

#[test]
fn a_quantised_base_is_trained_on_and_named_in_the_provenance() {
    let world = World::new();
    let mut config = world.config("quantised");
    config["resolved"]["base"]["quantization"] = json!("Q4_K");
    config["hyperparameters"]["maximumSteps"] = json!(200);
    assert_eq!(world.run(&config), 0);
    let result = world.result(&config);
    let loss = result.metrics.iter().find(|it| it.name == "loss").unwrap();
    assert!(loss.value < 0.8 * loss.baseline, "{loss:?}");
    let manifest = world.store().join(&result.folder).join("manifest.json");
    let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    let named = manifest.pointer("/provenance/trained/resolved/base/quantization");
    assert_eq!(named, Some(&json!("Q4_K")));

    let mut plain = world.config("plain");
    plain["hyperparameters"]["maximumSteps"] = json!(200);
    assert_eq!(world.run(&plain), 0);
    assert_ne!(world.result(&plain).digest, result.digest);
}

#[test]
fn a_base_in_gguf_blocks_is_trained_on_with_the_bits_of_the_same_blocks_made_at_load() {
    // All inputs fit blocks of 32.
    let shape = TinyShape {
        intermediate: 64,
        ..TinyShape::default()
    };
    let world = World::of_shape(&shape, 24, 9);
    let mut made = world.config("made");
    made["resolved"]["base"]["quantization"] = json!("Q8_0");
    made["evaluation"]["precision"] = json!("Q8_0");
    assert_eq!(world.run(&made), 0, "{:?}", world.summary(&made));

    let base = world.dir.path().join("base");
    let read = BaseModel::load(&base).unwrap();
    write_tiny_gguf(&base, &read, GgmlDType::Q8_0).unwrap();
    std::fs::remove_file(base.join("model.safetensors")).unwrap();
    let mut found = world.config("found");
    found["resolved"]["base"]["digest"] = json!(base_digest(&base).unwrap());
    assert_ne!(found["resolved"]["base"]["digest"], json!(world.base));
    assert_eq!(world.run(&found), 0, "{:?}", world.summary(&found));
    let (made, found) = (world.result(&made), world.result(&found));
    assert_eq!(found.digest, made.digest);
    assert_eq!(found.metrics, made.metrics);
}

/// The steps' figures that a run has left, by step.
fn figures(world: &World, config: &Value) -> Vec<Value> {
    let folder = world.run_folder(config).join("metrics");
    let files = std::fs::read_dir(folder).unwrap().flatten();
    let mut figures: Vec<Value> = files
        .flat_map(|file| {
            let text = std::fs::read_to_string(file.path()).unwrap();
            let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
            lines.collect::<Vec<Value>>()
        })
        .collect();
    figures.sort_by_key(|figure| figure["step"].as_u64());
    figures
}

#[test]
fn training_ends_where_validation_gets_no_better_and_its_best_step_is_the_result() {
    let world = World::new();
    let mut config = world.config("early");
    config["hyperparameters"]["schedule"] = json!("Constant");
    config["hyperparameters"]["maximumSteps"] = json!(400);
    config["hyperparameters"]["validateEverySteps"] = json!(3);
    config["hyperparameters"]["patience"] = json!(4);
    config["checkpoint"]["keepBest"] = json!(true);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    assert!(result.steps < 400, "{}", result.steps);
    let validated: Vec<(u64, f64)> = figures(&world, &config)
        .iter()
        .filter_map(|it| Some((it["step"].as_u64()?, it.get("validationLoss")?.as_f64()?)))
        .collect();
    let best = validated.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
    let (best_step, _) = best.unwrap();
    assert!(validated.iter().all(|(step, _)| step % 3 == 0));
    assert_eq!(result.steps, best_step + 4 * 3, "{validated:?}");

    // The same run that ends at its best step has the same adapter.
    let mut shorter = config.clone();
    shorter["run"] = json!("shorter");
    shorter["key"] = json!(Digest::of(b"shorter"));
    shorter["hyperparameters"]["maximumSteps"] = json!(best_step);
    assert_eq!(world.run(&shorter), 0);
    assert_eq!(world.result(&shorter).digest, result.digest);
}

#[test]
fn a_run_that_validates_goes_on_with_the_same_bits_after_it_was_killed() {
    let world = World::new();
    let config_of = |run: &str| {
        let mut config = world.config(run);
        config["hyperparameters"]["validateEverySteps"] = json!(5);
        config["checkpoint"]["keepBest"] = json!(true);
        config
    };
    let whole = config_of("whole");
    assert_eq!(world.run(&whole), 0);
    let killed = config_of("killed");
    killed_thrice_it_ends_as(&world, &killed, &whole);
}

#[test]
fn validation_without_rows_to_learn_from_is_refused() {
    let world = World::with_splits(24, 0);
    let mut config = world.config("blind");
    config["hyperparameters"]["validateEverySteps"] = json!(5);
    let (code, _, message) = world.failure(&config);
    assert_eq!(code, 65);
    assert!(message.contains("validation split"), "{message}");
    config["hyperparameters"]["validateEverySteps"] = Value::Null;
    config["checkpoint"]["keepBest"] = json!(true);
    let (code, _, message) = world.failure(&config);
    assert_eq!(code, 64);
    assert!(message.contains("validateEverySteps"), "{message}");
}

#[test]
fn a_run_starts_from_the_version_that_it_names() {
    let world = World::new();
    let mut cold = world.config("cold");
    cold["hyperparameters"]["maximumSteps"] = json!(200);
    assert_eq!(world.run(&cold), 0);
    let mut warm = world.config("warm");
    warm["resolved"]["initial"] = json!({
        "adapter": "colours", "version": 1, "digest": world.result(&cold).digest,
    });
    assert_eq!(world.run(&warm), 0, "{:?}", world.summary(&warm));
    let loss = |config: &Value, at: usize| figures(&world, config)[at]["loss"].as_f64().unwrap();
    assert!(
        loss(&warm, 0) < 0.8 * loss(&cold, 0),
        "what was learnt is there"
    );
    assert_ne!(world.result(&warm).digest, world.result(&cold).digest);

    let mut other = warm.clone();
    other["run"] = json!("other");
    other["lora"]["alpha"] = json!(8.0);
    let (code, reason, message) = world.failure(&other);
    assert_eq!((code, reason.as_str()), (64, "InvalidSpec"));
    assert!(
        message.contains("initialAdapterRef colours version 1"),
        "{message}"
    );
    other["run"] = json!("gone");
    other["resolved"]["initial"]["digest"] = json!(Digest::of(b"gone"));
    let (code, _, message) = world.failure(&other);
    assert_eq!(code, 64);
    assert!(message.contains("does not exist"), "{message}");
}

/// Publishes an adapter that was made elsewhere as a version. Its digest.
fn import(world: &World, lora: &LoraConfig) -> String {
    let base = BaseModel::load(&world.dir.path().join("base")).unwrap();
    let params = LoraParams::init(lora, base.config(), 9).unwrap();
    let adapter = params.to_adapter("somewhere/else").unwrap();
    let digest: Digest = adapter.digest().parse().unwrap();
    let store = Store::open(world.store()).unwrap();
    let staged = store.stage(&paths::adapter("colours", &digest)).unwrap();
    adapter.save(staged.dir()).unwrap();
    let files = staged.files().unwrap();
    let provenance = graftwork_contract::adapter::Provenance::Imported {
        uri: "pvc://elsewhere/adapter".into(),
        created_time: "2026-01-01T00:00:00Z".into(),
    };
    let manifest = graftwork_contract::adapter::Manifest {
        digest: digest.clone(),
        files: files.digests,
        size_bytes: files.size_bytes,
        rank: adapter.rank() as u32,
        provenance_digest: Digest::of_json(&provenance).unwrap(),
        provenance,
    };
    staged.publish(&manifest).unwrap();
    digest.to_string()
}

#[test]
fn a_run_that_starts_from_a_version_made_elsewhere_keeps_its_rslora_patterns_and_modules() {
    let world = World::new();
    let lora = LoraConfig {
        rank: 6,
        alpha: 9.0,
        dropout: 0.1,
        targets: Targets {
            modules: TargetModules::Named(Names::Pattern(r".*\.(q_proj|down_proj)".into())),
            rank_pattern: vec![("q_proj".into(), 3)],
            alpha_pattern: vec![("down_proj".into(), 5.0)],
            ..Targets::of(&[])
        },
        use_rslora: true,
    };
    let digest = import(&world, &lora);
    let mut config = world.config("imported");
    config["resolved"]["initial"] = json!({
        "adapter": "colours", "version": 1, "digest": digest,
    });
    config["hyperparameters"]["maximumSteps"] = json!(200);
    let mut named = config.clone();
    named["run"] = json!("named");
    let (code, _, message) = world.failure(&named);
    assert_eq!(code, 64);
    assert!(message.contains("has rank 6, alpha 9"), "{message}");

    config["shapeOfInitial"] = json!(true);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    assert_eq!(result.rank, 6);
    let folder = world.store().join(&result.folder);
    let made = Adapter::load(&folder).unwrap();
    let expected = LoraConfig {
        dropout: 0.05,
        ..lora
    };
    assert_eq!(made.config, expected);
    let base = BaseModel::load(&world.dir.path().join("base")).unwrap();
    made.verify(base.config()).unwrap();
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(
        card.contains("Rank 6, alpha 9, dropout 0.05, modules q_proj, down_proj"),
        "{card}"
    );
    let loss = result.metrics.iter().find(|it| it.name == "loss").unwrap();
    assert!(loss.value < 0.9 * loss.baseline, "{loss:?}");
}

/// A run that learns which of two answers is the better one.
pub fn preferences(world: &World, run: &str, microbatch: u32) -> Value {
    let store = Store::open(world.store()).unwrap();
    let rows = |count: usize, prompt: fn(usize) -> String| -> Vec<Row> {
        let row = |index: usize| Row::Preference {
            prompt: prompt(index),
            chosen: ANSWERS[index % 3].to_owned(),
            rejected: ANSWERS[(index + 1) % 3].to_owned(),
        };
        (0..count).map(row).collect()
    };
    let splits = [rows(48, prompt), rows(6, prompt), rows(12, test_prompt)];
    let digest = Digest::of(b"preferred");
    if !world
        .store()
        .join(paths::dataset("preferred", &digest))
        .exists()
    {
        write_rows(&store, "preferred", Format::Preference, splits);
    }
    let mut config = world.config(run);
    config["resolved"]["dataset"] = json!({
        "name": "preferred", "version": 1, "digest": digest, "format": "Preference",
    });
    config["objective"] = json!({"type": "DPO", "beta": 0.5});
    config["lora"]["dropout"] = json!(0.0);
    config["hyperparameters"]["microBatchSize"] = json!(microbatch);
    config["hyperparameters"]["validateEverySteps"] = json!(10);
    config["evaluation"]["metrics"] = json!(["Loss"]);
    config
}

#[test]
fn preferences_are_learnt_from_ln_2_down_whatever_the_base_is_held_in() {
    let world = World::new();
    let digests = [("dpo", None), ("dpo-in-eight", Some("Q8_0"))].map(|(run, quantization)| {
        let mut config = preferences(&world, run, 8);
        config["resolved"]["base"]["quantization"] = json!(quantization);
        config["hyperparameters"]["maximumSteps"] = json!(300);
        assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
        let figures = figures(&world, &config);
        let first = figures[0]["loss"].as_f64().unwrap();
        assert!((first - std::f64::consts::LN_2).abs() < 1e-5, "{first}");
        let last = figures.last().unwrap()["loss"].as_f64().unwrap();
        assert!(last < 0.8 * first, "{last}");
        let validated = figures.last().unwrap()["validationLoss"].as_f64().unwrap();
        assert!(validated < 0.8 * first, "{validated}");
        let result = world.result(&config);
        let manifest = world.store().join(&result.folder).join("manifest.json");
        let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        let objective = manifest.pointer("/provenance/trained/objective").unwrap();
        assert_eq!(objective, &json!({"type": "DPO", "beta": 0.5}));
        result.digest
    });
    assert_ne!(digests[0], digests[1], "another base");
}

#[test]
fn preferences_learnt_from_a_version_have_it_as_their_reference() {
    let world = World::new();
    let first = world.config("first");
    assert_eq!(world.run(&first), 0);
    let mut config = preferences(&world, "warm", 8);
    config["resolved"]["initial"] = json!({
        "adapter": "colours", "version": 1, "digest": world.result(&first).digest,
    });
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let loss = figures(&world, &config)[0]["loss"].as_f64().unwrap();
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-5, "{loss}");
}

#[test]
fn preferences_need_rows_of_their_format() {
    let world = World::new();
    let mut config = world.config("completions");
    config["objective"] = json!({"type": "DPO", "beta": 0.1});
    let (code, reason, message) = world.failure(&config);
    assert_eq!((code, reason.as_str()), (64, "InvalidSpec"));
    assert!(
        message.contains("needs a dataset of format Preference"),
        "{message}"
    );
}

#[test]
fn preferences_are_not_learnt_with_dropout_which_the_reference_has_not() {
    let world = World::new();
    let mut config = preferences(&world, "dropped", 8);
    config["lora"]["dropout"] = json!(0.05);
    let (code, reason, message) = world.failure(&config);
    assert_eq!((code, reason.as_str()), (64, "InvalidSpec"));
    assert!(message.contains("dropout is 0.05"), "{message}");
}

#[test]
fn every_metric_is_measured_on_the_same_answers_and_some_are_kept() {
    let world = World::new();
    let mut config = world.config("measured");
    config["hyperparameters"]["maximumSteps"] = json!(200);
    config["evaluation"]["metrics"] = json!(["Loss", "TokenAccuracy", "ExactMatch", "RougeL"]);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    let metric = |name: &str| result.metrics.iter().find(|it| it.name == name).unwrap();
    let (accuracy, exact, rouge) = (
        metric("token_accuracy"),
        metric("exact_match"),
        metric("rouge_l"),
    );
    assert!(accuracy.value > accuracy.baseline, "{accuracy:?}");
    // One word each: an answer has all of it or nothing.
    assert!(
        (rouge.value - exact.value).abs() < 0.2,
        "{rouge:?} {exact:?}"
    );
    for metric in &result.metrics {
        let [low, high] = metric.difference_interval.unwrap();
        assert!(
            low <= metric.difference && metric.difference <= high,
            "{metric:?}"
        );
    }
    let samples = world.run_folder(&config).join("samples.jsonl");
    let samples = std::fs::read_to_string(samples).unwrap();
    let samples: Vec<Value> = samples
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(samples.len(), 24, "there are no more rows");
    assert_eq!(samples[1]["row"], 2);
    assert_eq!(samples[1]["expected"], ANSWERS[1]);
    assert!(samples[1]["prompt"].as_str().unwrap().contains("Item 3 1"));
}

#[test]
fn a_version_is_scored_without_training_as_it_was_when_it_was_made() {
    let world = World::new();
    let made = world.config("made");
    assert_eq!(world.run(&made), 0);
    let made = world.result(&made);
    let mut config = world.config("scored");
    config["evaluateOnly"] = json!(true);
    config["adapter"] = Value::Null;
    let (code, _, message) = world.failure(&config);
    assert_eq!(code, 64);
    assert!(message.contains("names no version"), "{message}");

    config["run"] = json!("scored-again");
    config["resolved"]["initial"] = json!({
        "adapter": "colours", "version": 1, "digest": made.digest,
    });
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let scored = world.result(&config);
    assert_eq!((scored.steps, &scored.digest), (0, &made.digest));
    assert_eq!(scored.metrics, made.metrics);
    assert!(!world.run_folder(&config).join("checkpoints").exists());
}
