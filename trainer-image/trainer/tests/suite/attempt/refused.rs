//! What is wrong with configuration, data and files ends an attempt with its own exit code.

use super::*;

#[test]
fn what_is_wrong_is_named_with_its_exit_code() {
    let world = World::new();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut config = world.config("wrong");
        change(&mut config);
        world.failure(&config)
    };
    let cases: [(&dyn Fn(&mut Value), i32, &str, &[&str]); 9] = [
        (
            &|c| c["lora"]["rank"] = json!(0),
            64,
            "InvalidSpec",
            &["lora.rank is 0"],
        ),
        (
            &|c| c["lora"]["rank"] = json!(4096),
            64,
            "InvalidSpec",
            &["lora.rank is 4096", "hidden size"],
        ),
        (
            &|c| c["lora"]["targetModules"] = json!(["q_proj", "mixer"]),
            64,
            "InvalidSpec",
            &["\"mixer\"", "q_proj, k_proj", "down_proj"],
        ),
        (
            &|c| c["hyperparameters"]["learningRate"] = json!(0.0),
            64,
            "InvalidSpec",
            &["learningRate is 0, must be above 0"],
        ),
        (
            &|c| c["hyperparameters"]["maximumSequenceLength"] = json!(100_000),
            64,
            "InvalidSpec",
            &["maximumSequenceLength is 100000", "context"],
        ),
        (
            &|c| c["resolved"]["base"]["digest"] = json!(Digest::of(b"other")),
            64,
            "InvalidSpec",
            &[
                "pvc://models/tiny has digest sha256:",
                "the folder was changed",
            ],
        ),
        (
            &|c| c["resolved"]["base"]["path"] = json!("/nowhere"),
            64,
            "InvalidSpec",
            &["baseModel pvc://models/tiny"],
        ),
        (
            &|c| c["resolved"]["dataset"]["digest"] = json!(Digest::of(b"other")),
            65,
            "DataError",
            &["dataset colours version 1", "does not exist"],
        ),
        (
            &|c| c["lora"]["alpha"] = json!(1e39),
            66,
            "Diverged",
            &["of step", "learningRate"],
        ),
    ];
    for (index, (change, code, reason, words)) in cases.into_iter().enumerate() {
        // Another run each time: pinned inputs are not changed.
        let (got, got_reason, message) = with(&|config| {
            config["key"] = json!(Digest::of(&[index as u8]));
            change(config);
        });
        assert_eq!(
            (got, got_reason.as_str()),
            (code, reason),
            "case {index}: {message}"
        );
        let mut left = std::fs::read_dir(world.store().join("runs/wrong"))
            .into_iter()
            .flatten()
            .flatten();
        assert!(
            !world.store().join("adapters").exists()
                && !left.any(|folder| folder.path().join("result.json").exists()),
            "case {index}: something came of it"
        );
        for word in words {
            assert!(
                message.contains(word),
                "case {index}: {message:?} lacks {word:?}"
            );
        }
    }
}

#[test]
fn a_warm_up_that_is_longer_than_the_run_is_refused_with_both_numbers() {
    let world = World::new();
    for (run, most, steps, words) in [
        (
            "epochs",
            Value::Null,
            7,
            [
                "spec.hyperparameters.warmupSteps is 7, must be at most the 6 steps of epochs 1 over 48 train \
                 rows at batchSize 8",
                "lower it, or raise epochs",
            ],
        ),
        (
            "steps",
            json!(40),
            41,
            [
                "spec.hyperparameters.warmupSteps is 41, must be at most maximumSteps 40",
                "lower it, or raise maximumSteps",
            ],
        ),
    ] {
        let mut config = world.config(run);
        config["hyperparameters"]["maximumSteps"] = most;
        config["hyperparameters"]["warmupSteps"] = json!(steps);
        config["warmupIsNamed"] = json!(true);
        let (code, reason, message) = world.failure(&config);
        assert_eq!((code, reason.as_str()), (64, "InvalidSpec"), "{message}");
        for word in words {
            assert!(message.contains(word), "{message}");
        }
    }
}

#[test]
fn a_warm_up_may_take_every_step_and_one_that_nobody_named_takes_no_more() {
    let world = World::new();
    let digests = [("named", 6, true), ("usual", 10, false)].map(|(run, steps, is_named)| {
        let mut config = world.config(run);
        config["hyperparameters"]["maximumSteps"] = Value::Null;
        config["hyperparameters"]["warmupSteps"] = json!(steps);
        config["warmupIsNamed"] = json!(is_named);
        assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
        let result = world.result(&config);
        assert_eq!(result.steps, 6);
        result.digest
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn damaged_data_and_an_absent_store_are_told_apart() {
    let world = World::new();
    let config = world.config("damaged");
    let file = world
        .store()
        .join(paths::dataset("colours", &world.dataset))
        .join("train.parquet");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (code, reason, message) = world.failure(&config);
    assert_eq!((code, reason.as_str()), (65, "DataError"));
    assert!(message.contains("train.parquet has digest"), "{message}");

    std::fs::rename(world.store(), world.dir.path().join("gone")).unwrap();
    let (code, _, message) = world.failure(&config);
    assert_eq!(code, 69, "{message}");
}

#[test]
fn a_run_whose_checkpoints_are_all_damaged_ends_and_names_each() {
    let world = World::new();
    let config = world.config("torn");
    let checkpoints = world.run_folder(&config).join("checkpoints");
    let named = checkpoints
        .strip_prefix(world.store())
        .unwrap()
        .display()
        .to_string();
    let folder = checkpoints.join("1/2");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("manifest.json"), "{").unwrap();
    let (code, reason, message) = world.failure(&config);
    assert_eq!((code, reason.as_str()), (65, "DataError"));
    assert!(message.contains("1/2: "), "{message}");
    assert!(message.contains(&named), "{message}");
    assert!(message.contains("to train from step 0"), "{message}");

    std::fs::remove_dir_all(checkpoints).unwrap();
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
}

#[test]
fn a_base_model_that_the_volume_does_not_give_is_worth_another_attempt_and_a_bad_one_is_not() {
    let world = World::new();
    let base = world.dir.path().join("base");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let path = base.join(file);
        let bytes = std::fs::read(&path).unwrap();
        let attempt = |what: &str| {
            let mut config = world.config(&format!("{what}-{file}"));
            if let Ok(digest) = base_digest(&base) {
                config["resolved"]["base"]["digest"] = json!(digest);
            }
            world.failure(&config)
        };
        let expect = |(code, reason, message): (i32, String, String), wanted: (i32, &str)| {
            assert_eq!((code, reason.as_str()), wanted, "{file}: {message}");
            assert!(message.contains("baseModel pvc://models/tiny"), "{message}");
            assert!(message.contains(file), "{file}: {message}");
        };
        std::fs::remove_file(&path).unwrap();
        expect(attempt("missing"), (64, "InvalidSpec"));
        std::fs::write(&path, "{").unwrap();
        expect(attempt("malformed"), (64, "InvalidSpec"));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        expect(attempt("folder"), (64, "InvalidSpec"));
        std::fs::remove_dir(&path).unwrap();
        // Nothing is mapped at address 0: reading it is an input/output error.
        std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
        expect(attempt("unreadable"), (69, "Restarting"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn an_unreadable_configuration_is_a_bad_one() {
    let world = World::new();
    let config = json!({"run": "odd"});
    let (code, reason, message) = world.failure(&config);
    assert_eq!((code, reason.as_str()), (64, "InvalidSpec"));
    assert!(message.contains("missing field `resolved`"), "{message}");
}
