//! What a run leaves: a digest, figures, an adapter.

use graftwork_contract::run::RowsUsed;
use graftwork_model::peft::Adapter;

use super::*;

#[test]
fn a_run_learns_is_scored_and_leaves_a_peft_folder() {
    let world = World::new();
    let mut config = world.config("learn");
    config["hyperparameters"]["maximumSteps"] = json!(400);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    let summary = world.summary(&config);
    assert_eq!(summary.reason, "Completed");
    assert_eq!((summary.step, summary.total_steps), (400, 400));
    assert_eq!(summary.digest.as_ref(), Some(&result.digest));

    let metric = |name: &str| result.metrics.iter().find(|m| m.name == name).unwrap();
    let loss = metric("loss");
    assert!(loss.value < 0.5 * loss.baseline, "{loss:?}");
    assert!((loss.difference - (loss.value - loss.baseline)).abs() < 1e-9);
    assert_eq!(loss.samples, 24);
    let exact = metric("exact_match");
    assert!(exact.value > exact.baseline + 0.2, "{exact:?} {loss:?}");

    let folder = world.store().join(&result.folder);
    let adapter = Adapter::load(&folder).unwrap();
    assert_eq!(adapter.digest(), result.digest.as_str());
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("base_model: \"pvc://models/tiny\""), "{card}");
    assert!(card.contains(config["resolved"]["dataset"]["digest"].as_str().unwrap()));
    assert!(card.contains("\"learningRate\":0.02"), "{card}");
    for metric in [loss, exact] {
        let shown = format!("| {} | {:.4} ± ", metric.name, metric.value);
        assert!(card.contains(&shown), "{shown} is not in\n{card}");
        let in_front = format!("\"name\":\"{}\"", metric.name);
        let matter = card.split("\n---\n").next().unwrap_or_default();
        assert!(matter.contains(&in_front), "{in_front} is not in\n{matter}");
    }
    let sizes = std::fs::read_dir(&folder)
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.file_name() != "manifest.json")
        .map(|entry| entry.metadata().unwrap().len());
    assert_eq!(result.size_bytes, sizes.sum::<u64>());
    let figures: usize = std::fs::read_dir(world.run_folder(&config).join("metrics"))
        .unwrap()
        .map(|file| {
            std::fs::read_to_string(file.unwrap().path())
                .unwrap()
                .lines()
                .count()
        })
        .sum();
    assert_eq!(figures, 400, "one line for every step");
    assert_eq!(
        result.train_rows,
        RowsUsed {
            rows: 48,
            cut: 0,
            dropped: 0
        }
    );
    assert_eq!(
        result.test_rows,
        RowsUsed {
            rows: 24,
            cut: 0,
            dropped: 0
        }
    );

    // Nobody goes on from a checkpoint of a run that has its result, and one that a killed attempt
    // left behind goes with the next.
    let checkpoints = world.run_folder(&config).join("checkpoints");
    assert!(!checkpoints.exists(), "the checkpoints are removed");
    std::fs::create_dir_all(checkpoints.join("1/4")).unwrap();

    // The result is there: nothing is read any more, not even a base model that has gone.
    std::fs::remove_dir_all(world.dir.path().join("base")).unwrap();
    assert_eq!(world.run(&config), 0);
    assert_eq!(world.summary(&config).digest, Some(result.digest));
    assert!(!checkpoints.exists());
}

#[test]
fn rows_that_are_too_long_are_cut_and_counted() {
    let world = World::new();
    let mut config = world.config("long");
    config["hyperparameters"]["maximumSteps"] = json!(2);
    // A prompt is 8 bytes, the answers are 3 and 4, and tokens are bytes and two marks.
    config["hyperparameters"]["maximumSequenceLength"] = json!(13);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    assert_eq!(
        result.train_rows,
        RowsUsed {
            rows: 48,
            cut: 16,
            dropped: 0
        }
    );
    assert_eq!(
        result.test_rows,
        RowsUsed {
            rows: 24,
            cut: 8,
            dropped: 0
        }
    );
}

#[test]
fn rows_that_are_too_long_are_left_out_or_end_the_run_where_that_is_asked_for() {
    let world = World::new();
    let config_of = |run: &str, truncation: &str| {
        let mut config = world.config(run);
        config["hyperparameters"]["maximumSteps"] = json!(2);
        config["hyperparameters"]["maximumSequenceLength"] = json!(13);
        config["hyperparameters"]["truncation"] = json!(truncation);
        config
    };
    let config = config_of("dropped", "Drop");
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let used = world.result(&config).train_rows;
    assert_eq!((used.rows, used.cut, used.dropped), (48, 0, 16));
    // What is scored is cut, whatever is trained on.
    let used = world.result(&config).test_rows;
    assert_eq!((used.rows, used.cut, used.dropped), (24, 8, 0));

    let (code, reason, message) = world.failure(&config_of("refused", "Error"));
    assert_eq!((code, reason.as_str()), (65, "DataError"));
    assert!(
        message.starts_with("train.parquet: row ") && message.contains("truncation is Error"),
        "{message}"
    );
    let mut config = config_of("empty", "Drop");
    config["hyperparameters"]["maximumSequenceLength"] = json!(4);
    let (code, _, message) = world.failure(&config);
    assert_eq!(code, 65);
    assert!(message.starts_with("all 48 rows"), "{message}");
}

#[test]
fn the_digest_depends_on_neither_name_nor_threads_nor_memory_nor_time() {
    let world = World::new();
    let one = world.config("one");
    let mut two = world.config("two");
    two["threads"] = json!(2);
    two["adapter"] = Value::Null;
    assert_eq!(world.run(&one), 0);
    assert_eq!(world.run_with_activation_bytes(&two, 0), 0);
    let (one, two) = (world.result(&one), world.result(&two));
    assert_eq!(one.digest, two.digest);
    assert!(
        one.folder.starts_with("adapters/colours/"),
        "{}",
        one.folder
    );
    assert!(two.folder.starts_with("runs/two/"), "{}", two.folder);
}

#[test]
fn no_row_of_any_format_reaches_the_log_or_the_summary_of_a_run_that_ends_well_or_not() {
    let world = World::new();
    let configs = [
        world.config("quiet"),
        super::formats::conversations(&world, 6),
        super::methods::preferences(&world, "preferred", 8),
    ];
    for mut config in configs {
        let run = config["run"].clone();
        for (alpha, ends) in [(8.0, 0), (1e39, 66)] {
            config["lora"]["alpha"] = json!(alpha);
            config["key"] = json!(Digest::of(format!("{run} {ends}").as_bytes()));
            let (code, told) = world.told(&config);
            assert_eq!(code, ends, "{run}: {told}");
            assert!(told.contains("rows read"), "{told}");
            // Of prompts, and of the answers.
            for words in ["Item ", ANSWERS[2], ANSWERS[1]] {
                assert!(!told.contains(words), "{run}: {words:?} in {told}");
            }
        }
    }
}

#[test]
fn a_second_run_is_compared_with_a_version_of_the_adapter() {
    let world = World::new();
    let first = world.config("first");
    assert_eq!(world.run(&first), 0);
    let first = world.result(&first);
    let mut second = world.config("second");
    second["hyperparameters"]["maximumSteps"] = json!(2);
    second["resolved"]["reference"] =
        json!({"adapter": "colours", "version": 1, "digest": first.digest});
    assert_eq!(world.run(&second), 0, "{:?}", world.summary(&second));
    let second = world.result(&second);
    for (new, old) in second.metrics.iter().zip(&first.metrics) {
        assert_eq!(new.name, old.name);
        assert!(
            (new.baseline - old.value).abs() < 1e-12,
            "the reference scores as it did"
        );
    }
}
