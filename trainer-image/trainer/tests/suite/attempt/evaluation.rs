//! What is scored: rows that nobody has seen, benchmarks, labels, and what is kept for people to read.

use graftwork_contract::dataset::Classification;
use graftwork_contract::run::{Metric, Precision, RowsUsed};

use super::*;

fn row(prompt: String, index: usize) -> Row {
    Row::Completion {
        prompt,
        completion: ANSWERS[index % 3].to_owned(),
    }
}

/// The configuration of a run on these rows.
fn on(world: &World, name: &str, splits: [Vec<Row>; 3]) -> Value {
    let store = Store::open(world.store()).unwrap();
    let digest = write_rows(&store, name, Format::Completion, splits);
    let mut config = world.config(name);
    config["resolved"]["dataset"] = json!({
        "name": name, "version": 1, "digest": digest, "format": "Completion",
    });
    config["hyperparameters"]["maximumSteps"] = json!(2);
    config
}

/// Makes of a run one that trains nothing and scores what another one has made.
fn score_alone(config: &mut Value, made: &RunResult) {
    config["evaluateOnly"] = json!(true);
    config["adapter"] = Value::Null;
    config["resolved"]["initial"] = json!({
        "adapter": "colours", "version": 1, "digest": made.digest,
    });
}

/// The answers that a run keeps for people to read.
pub(super) fn samples(world: &World, config: &Value) -> Vec<Value> {
    let path = world.run_folder(config).join("samples.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn rows_that_the_run_trains_on_are_left_out_and_counted() {
    let world = World::new();
    let train: Vec<Row> = (0..18).map(|index| row(prompt(index), index)).collect();
    let mut test = train[..4].to_vec();
    test.extend((0..6).map(|index| row(test_prompt(index), index)));
    let mut config = on(&world, "leaky", [train.clone(), vec![], test]);
    config["evaluation"]["metrics"] = json!(["Loss", "ExactMatch", "TokenAccuracy", "Perplexity"]);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    assert_eq!(result.metrics.len(), 4);
    let (loss, perplexity) = (&result.metrics[0], &result.metrics[3]);
    assert_eq!(perplexity.name, "perplexity");
    assert!((perplexity.value - loss.value.exp()).abs() < 1e-9);
    for metric in &result.metrics {
        assert_eq!((metric.samples, metric.excluded), (6, 4), "{metric:?}");
    }
    assert_eq!(
        result.test_rows,
        RowsUsed {
            rows: 6,
            cut: 0,
            dropped: 0
        }
    );
    let rows: Vec<u64> = samples(&world, &config)
        .iter()
        .map(|sample| sample["row"].as_u64().unwrap())
        .collect();
    assert_eq!(rows, [5, 6, 7, 8, 9, 10], "numbered as in the split");

    let known = on(&world, "known", [train.clone(), vec![], train]);
    let (code, reason, message) = world.failure(&known);
    assert_eq!((code, reason.as_str()), (65, "DataError"));
    assert!(message.contains("all 18 rows to score"), "{message}");
}

#[test]
fn rows_that_a_scored_version_was_trained_on_are_left_out_of_other_data_too() {
    let world = World::new();
    let made = world.config("made");
    assert_eq!(world.run(&made), 0);
    let mut test: Vec<Row> = (0..3).map(|index| row(prompt(index), index)).collect();
    test.extend((0..2).map(|index| row(test_prompt(index), index)));
    let mut config = on(&world, "others", [vec![], vec![], test]);
    score_alone(&mut config, &world.result(&made));
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    for metric in &world.result(&config).metrics {
        assert_eq!((metric.samples, metric.excluded), (2, 3), "{metric:?}");
    }
}

#[test]
fn preferences_whose_better_answers_were_trained_on_as_completions_are_left_out() {
    let world = World::new();
    let made = world.config_of_steps("made", 2);
    assert_eq!(world.run(&made), 0, "{:?}", world.summary(&made));
    let preference = |prompt: String, index: usize, better: usize| Row::Preference {
        prompt,
        chosen: ANSWERS[(index + better) % 3].to_owned(),
        rejected: ANSWERS[(index + 2) % 3].to_owned(),
    };
    // The better answer of the first three was learned. Of the next two it was not, though their prompt was.
    let mut test: Vec<Row> = (0..3)
        .map(|index| preference(prompt(index), index, 0))
        .collect();
    test.extend((0..2).map(|index| preference(prompt(index), index, 1)));
    let store = Store::open(world.store()).unwrap();
    let splits = [vec![], vec![], test];
    let digest = write_rows(&store, "preferred", Format::Preference, splits);
    let mut config = world.config("preferred");
    config["resolved"]["dataset"] = json!({
        "name": "preferred", "version": 1, "digest": digest, "format": "Preference",
    });
    score_alone(&mut config, &world.result(&made));
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    for metric in &world.result(&config).metrics {
        assert_eq!((metric.samples, metric.excluded), (2, 3), "{metric:?}");
    }
}

#[test]
fn answers_are_kept_where_no_metric_needs_them() {
    let world = World::with_test_rows(40);
    let mut config = world.config("read");
    config["hyperparameters"]["maximumSteps"] = json!(2);
    config["evaluation"]["metrics"] = json!(["Loss"]);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let samples = samples(&world, &config);
    assert_eq!(samples.len(), 25);
    assert_eq!(samples[0]["expected"], ANSWERS[0]);
    let names: Vec<String> = world
        .result(&config)
        .metrics
        .into_iter()
        .map(|metric| metric.name)
        .collect();
    assert_eq!(names, ["loss"]);
}

/// Notes down how far the rows of a run's dataset may go, as a build under that classification would.
fn classify(world: &World, config: &Value, classification: &str) {
    let digest: Digest =
        serde_json::from_value(config["resolved"]["dataset"]["digest"].clone()).unwrap();
    let name = config["resolved"]["dataset"]["name"].as_str().unwrap();
    let path = world
        .store()
        .join(paths::dataset(name, &digest))
        .join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["classification"] = json!(classification);
    std::fs::write(path, manifest.to_string()).unwrap();
}

#[test]
fn what_is_made_of_restricted_rows_is_restricted_whoever_says_so() {
    let world = World::new();
    let mut made = world.config("made");
    made["hyperparameters"]["maximumSteps"] = json!(2);
    // The version was built as Internal; the Dataset says Restricted by now.
    classify(&world, &made, "Internal");
    made["classification"] = json!("Restricted");
    assert_eq!(world.run(&made), 0, "{:?}", world.summary(&made));
    let result = world.result(&made);
    assert_eq!(result.classification, Some(Classification::Restricted));
    let samples_of = |config: &Value| samples(&world, config);
    for sample in samples_of(&made) {
        assert_eq!(sample["classification"], "Restricted");
    }
    let folder = world.store().join(&result.folder);
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("classification: Restricted"), "{card}");

    // Rows that anybody may see, and a start from that version.
    let rows: Vec<Row> = (0..8).map(|index| row(prompt(index), index)).collect();
    let test: Vec<Row> = (0..4).map(|index| row(test_prompt(index), index)).collect();
    let mut other = on(&world, "public", [rows.clone(), vec![], test.clone()]);
    classify(&world, &other, "Public");
    other["resolved"]["initial"] = json!({
        "adapter": "colours", "version": 1, "digest": result.digest,
    });
    assert_eq!(world.run(&other), 0, "{:?}", world.summary(&other));
    let result = world.result(&other);
    assert_eq!(result.classification, Some(Classification::Restricted));

    let plain = on(&world, "plain", [rows, vec![], test]);
    assert_eq!(world.run(&plain), 0, "{:?}", world.summary(&plain));
    assert_eq!(world.result(&plain).classification, None);
    let unmarked = samples_of(&plain);
    assert!(unmarked.iter().all(|it| it.get("classification").is_none()));
}

#[test]
fn labels_and_benchmarks_stand_among_the_metrics() {
    let world = World::new();
    let mut config = world.config("labelled");
    config["hyperparameters"]["maximumSteps"] = json!(400);
    config["evaluation"]["metrics"] = json!(["ExactMatch", "ClassificationReport"]);
    let file = world.dir.path().join("critical.jsonl");
    let lines: Vec<String> = (0..6)
        .map(|index| {
            let question = json!({
                "context": test_prompt(index), "choices": ANSWERS, "answer": index % 3, "delimiter": "",
            });
            question.to_string()
        })
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    config["evaluation"]["benchmarks"] =
        json!([{"name": "critical", "uri": "pvc://benchmarks/critical.jsonl", "path": file}]);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    let metric = |name: &str| result.metrics.iter().find(|it| it.name == name).unwrap();
    let critical = metric("benchmark/critical");
    assert_eq!(critical.samples, 6);
    assert!(critical.value > critical.baseline, "{critical:?}");
    assert_eq!(metric("benchmark/critical/acc_norm").samples, 6);
    // The mean recall of labels that are equally frequent is the share of right answers.
    let recalls: f64 = ANSWERS
        .iter()
        .map(|label| metric(&format!("label/{label}/recall")).value / 3.0)
        .sum();
    let exact = metric("exact_match");
    assert!((recalls - exact.value).abs() < 1e-9, "{recalls} {exact:?}");
    let f1: f64 = ANSWERS
        .iter()
        .map(|label| metric(&format!("label/{label}/f1")).value / 3.0)
        .sum();
    assert!((metric("macro_f1").value - f1).abs() < 1e-9);

    std::fs::write(&file, "{}").unwrap();
    config["run"] = json!("odd");
    config["key"] = json!(Digest::of(b"odd"));
    let (code, _, message) = world.failure(&config);
    assert_eq!(code, 65);
    assert!(
        message.starts_with("benchmark critical line 1: "),
        "{message}"
    );
}

#[test]
fn a_reward_is_earned_by_answering_as_the_row_does() {
    let world = World::new();
    let store = Store::open(world.store()).unwrap();
    let rows = |count: usize, prompt: fn(usize) -> String| -> Vec<Row> {
        (0..count).map(|index| row(prompt(index), index)).collect()
    };
    let splits = [rows(18, prompt), vec![], rows(6, test_prompt)];
    let columns = Columns {
        reward: Some(|_: usize| 2.5),
        ..Columns::default()
    };
    let digest = write_beside(&store, "rewarded", Format::Completion, splits, columns);
    let mut config = world.config("rewarded");
    config["resolved"]["dataset"] = json!({
        "name": "rewarded", "version": 1, "digest": digest, "format": "Completion",
    });
    config["hyperparameters"]["maximumSteps"] = json!(400);
    config["evaluation"]["metrics"] = json!(["ExactMatch", "MeanReward"]);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    let [exact, reward] = result.metrics.as_slice() else {
        panic!("two metrics: {:?}", result.metrics)
    };
    assert_eq!(
        (exact.name.as_str(), reward.name.as_str()),
        ("exact_match", "mean_reward")
    );
    assert!(
        (reward.value - 2.5 * exact.value).abs() < 1e-9,
        "{reward:?}"
    );
    assert!(reward.value > 0.0, "something was learnt: {reward:?}");

    let mut without = world.config("unrewarded");
    without["evaluation"]["metrics"] = json!(["MeanReward"]);
    let (code, reason, message) = world.failure(&without);
    assert_eq!((code, reason.as_str()), (65, "DataError"));
    assert!(message.contains("spec.format.reward"), "{message}");
}

#[test]
fn rows_of_one_group_are_one_observation_and_those_left_out_take_none_along() {
    let world = World::new();
    let store = Store::open(world.store()).unwrap();
    let train: Vec<Row> = (0..18).map(|index| row(prompt(index), index)).collect();
    // Groups of two rows, of which the first is known, and the second in part.
    let mut test = train[..3].to_vec();
    test.extend((0..7).map(|index| row(test_prompt(index), index)));
    let columns = Columns {
        group: Some(|index: usize| format!("claim {}", index / 2)),
        ..Columns::default()
    };
    let format = Format::Completion;
    let digest = write_beside(&store, "grouped", format, [train, vec![], test], columns);
    let mut config = world.config("grouped");
    config["resolved"]["dataset"] = json!({
        "name": "grouped", "version": 1, "digest": digest, "format": "Completion",
    });
    config["hyperparameters"]["maximumSteps"] = json!(2);
    config["evaluation"]["metrics"] = json!(["Loss", "ExactMatch"]);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let metrics = world.result(&config).metrics;
    assert_eq!(metrics.len(), 2);
    for metric in metrics {
        assert_eq!((metric.samples, metric.excluded), (7, 3), "{metric:?}");
        assert_eq!(metric.groups, Some(4), "{metric:?}");
    }
}

fn loss(result: &RunResult) -> &Metric {
    let mut metrics = result.metrics.iter();
    metrics.find(|it| it.name == "loss").unwrap()
}

#[test]
fn a_precision_is_scored_by_the_passes_that_serve_it_whatever_was_trained_on() {
    let world = World::new();
    let run = |name: &str, trained_on: Value, precision: Precision| {
        let mut config = world.config(name);
        config["hyperparameters"]["maximumSteps"] = json!(20);
        config["resolved"]["base"]["quantization"] = trained_on;
        config["evaluation"]["precision"] = json!(precision);
        assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
        world.result(&config)
    };
    let plain = run("plain", Value::Null, Precision::AsStored);
    let eight = run("eight", Value::Null, Precision::Q8_0);
    assert_eq!(plain.precision, Precision::AsStored);
    assert_eq!(eight.precision, Precision::Q8_0);
    // What is trained does not depend on how it is scored.
    assert_eq!(eight.digest, plain.digest);
    let (exact, off) = (loss(&plain), loss(&eight));
    assert_ne!(off.value.to_bits(), exact.value.to_bits());
    assert!(
        (off.baseline / exact.baseline - 1.0).abs() < 0.05,
        "{off:?} {exact:?}"
    );

    // The passes that train on the same blocks have exact inputs, and would give other bits.
    let served = run("served", json!("Q8_0"), Precision::Q8_0);
    let bare = |result: &RunResult| loss(result).baseline.to_bits();
    assert_eq!(bare(&served), bare(&eight));

    // Files in bf16 have the same bits in both kinds of passes: a run keeps the base that it trained on, one that
    // only scores reads it for serving.
    for (name, made) in [("scored-plain", &plain), ("scored-eight", &eight)] {
        let mut scored = world.config(name);
        score_alone(&mut scored, made);
        scored["evaluation"]["precision"] = json!(made.precision);
        assert_eq!(world.run(&scored), 0, "{:?}", world.summary(&scored));
        assert_eq!(world.result(&scored).metrics, made.metrics);
    }
}
