//! Every weight trained: a model folder on a claim.

use graftwork_contract::run::Precision;

use super::*;

/// A run that trains every weight and writes to `claim/made/NAME`.
fn full(world: &World, run: &str) -> Value {
    let mut config = world.config(run);
    let root = world.dir.path().join("claim");
    std::fs::create_dir_all(&root).unwrap();
    config["adapter"] = Value::Null;
    config["output"] = json!({
        "uri": format!("pvc://claim/made/{run}"), "root": root, "folder": format!("made/{run}"),
    });
    config["hyperparameters"]["learningRate"] = json!(0.005);
    config["hyperparameters"]["maximumSteps"] = json!(100);
    config
}

fn folder(world: &World, run: &str) -> PathBuf {
    world.dir.path().join("claim/made").join(run)
}

#[test]
fn a_model_of_which_every_weight_was_trained_is_a_base_model() {
    let world = World::new();
    let config = full(&world, "whole");
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    let made = folder(&world, "whole");
    assert_eq!(result.folder, "pvc://claim/made/whole");
    assert_eq!(result.digest.to_string(), base_digest(&made).unwrap());
    let loss = result.metrics.iter().find(|it| it.name == "loss").unwrap();
    assert!(loss.value < 0.8 * loss.baseline, "{loss:?}");
    let card = std::fs::read_to_string(made.join("README.md")).unwrap();
    assert!(card.contains("library_name: transformers"), "{card}");
    assert!(!world.run_folder(&config).join("checkpoints").exists());

    // It is a base model like any other: an adapter is trained for it.
    let mut adapter = world.config("adapter");
    adapter["resolved"]["base"]["path"] = json!(made);
    adapter["resolved"]["base"]["digest"] = json!(result.digest);
    adapter["hyperparameters"]["maximumSteps"] = json!(2);
    assert_eq!(world.run(&adapter), 0, "{:?}", world.summary(&adapter));
    let of_base = world.result(&adapter).metrics;
    let of_base = of_base.iter().find(|it| it.name == "loss").unwrap();
    assert!(
        (of_base.baseline - loss.value).abs() < 1e-9,
        "it scores as it did when it was made"
    );
}

#[test]
fn a_model_is_scored_as_it_will_be_served() {
    let world = World::new();
    let mut config = full(&world, "whole");
    config["hyperparameters"]["maximumSteps"] = json!(4);
    config["evaluation"]["precision"] = json!("Q8_0");
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    assert_eq!(result.precision, Precision::Q8_0);
    let loss = result.metrics.iter().find(|it| it.name == "loss").unwrap();

    // An adapter's run scores the bare model in the same precision beside it.
    let mut adapter = world.config("adapter");
    adapter["resolved"]["base"]["path"] = json!(folder(&world, "whole"));
    adapter["resolved"]["base"]["digest"] = json!(result.digest);
    adapter["hyperparameters"]["maximumSteps"] = json!(2);
    let mut in_eight = adapter.clone();
    in_eight["run"] = json!("in-eight");
    in_eight["key"] = json!(Digest::of(b"in-eight"));
    in_eight["evaluation"]["precision"] = json!("Q8_0");
    let baseline = |config: &Value| {
        assert_eq!(world.run(config), 0, "{:?}", world.summary(config));
        let metrics = world.result(config).metrics;
        let loss = metrics.iter().find(|it| it.name == "loss").unwrap();
        loss.baseline
    };
    assert!((baseline(&in_eight) - loss.value).abs() < 1e-9);
    assert!((baseline(&adapter) - loss.value).abs() > 1e-9);
}

#[test]
fn every_weight_goes_on_with_the_same_bits_after_it_was_killed() {
    let world = World::new();
    let config_of = |run: &str| {
        let mut config = full(&world, run);
        config["hyperparameters"]["validateEverySteps"] = json!(20);
        config["checkpoint"]["keepBest"] = json!(true);
        config
    };
    let whole = config_of("whole");
    assert_eq!(world.run(&whole), 0, "{:?}", world.summary(&whole));
    let killed = config_of("killed");
    for _ in 0..3 {
        world.kill_once_it_saved(&killed);
    }
    assert_eq!(world.run(&killed), 0, "{:?}", world.summary(&killed));
    assert_eq!(world.result(&killed).digest, world.result(&whole).digest);
}

#[test]
fn a_model_replaces_nothing_and_an_attempt_finds_what_an_earlier_one_published() {
    let world = World::new();
    let config = full(&world, "placed");
    let made = folder(&world, "placed");
    std::fs::create_dir_all(&made).unwrap();
    std::fs::write(made.join("model.safetensors"), "somebody's").unwrap();
    let (code, reason, message) = world.failure(&config);
    assert_eq!((code, reason.as_str()), (64, "InvalidSpec"));
    assert!(
        message.contains("pvc://claim/made/placed") && message.contains("replaces nothing"),
        "{message}"
    );
    let text = std::fs::read_to_string(made.join("model.safetensors")).unwrap();
    assert_eq!(text, "somebody's");
    std::fs::remove_file(made.join("model.safetensors")).unwrap();

    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let first = world.result(&config);
    // As if the attempt had died between the model and the run's record.
    std::fs::remove_file(world.run_folder(&config).join("result.json")).unwrap();
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    assert_eq!(world.result(&config).digest, first.digest);

    let mut other = full(&world, "other");
    other["output"] = config["output"].clone();
    assert_eq!(world.failure(&other).0, 64, "it is another run's");
}

#[test]
fn every_weight_is_trained_of_what_is_not_quantised_alone() {
    let world = World::new();
    let mut config = full(&world, "quantised");
    config["resolved"]["base"]["quantization"] = json!("Q8_0");
    let (code, reason, message) = world.failure(&config);
    assert_eq!((code, reason.as_str()), (64, "InvalidSpec"));
    assert!(message.contains("quantization"), "{message}");
    let mut config = full(&world, "away");
    config["output"]["root"] = json!("/nowhere");
    assert_eq!(world.failure(&config).0, 69);
}
