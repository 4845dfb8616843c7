//! An attempt whose store is in a bucket of a real S3 server.

use graftwork_objects::fixture;

use super::*;

/// The run's configuration with a store in the server's bucket.
fn in_bucket(config: &Value, server: &fixture::Server) -> Value {
    let mut config = config.clone();
    config["store"] = serde_json::to_value(server.config("s3://store/team")).unwrap();
    config
}

#[test]
fn a_run_in_a_bucket_killed_and_resumed_ends_with_the_bits_of_one_on_a_volume() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = fixture::Server::start(dir.path(), "store").unwrap() else {
        return;
    };
    let world = World::new();
    let on_volume = world.config("bucket");
    assert_eq!(world.run(&on_volume), 0, "{:?}", world.summary(&on_volume));
    let expected = world.result(&on_volume);

    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let config = in_bucket(&on_volume, &server);
    let store = Store::open_at(Some(&server.config("s3://store/team")), &scratch).unwrap();
    assert_eq!(write_dataset(&store, 24, 9), world.dataset);

    let read: TrainerConfig = serde_json::from_value(config.clone()).unwrap();
    let run = server.object(&format!("team/{}", paths::run(&read.run, &read.key)));
    let mut child = world.start(&config);
    wait_until(&mut child, || has_checkpoint(&run));
    child.kill().unwrap();
    child.wait().unwrap();

    let (code, told) = world.told(&config);
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("rows read"), "{told}");
    assert!(!told.contains(fixture::KEY), "{told}");
    let result: RunResult = store
        .get_json(&paths::run_result(&read.run, &read.key))
        .unwrap()
        .unwrap();
    assert_eq!(result.digest, expected.digest);
    assert_eq!(result.steps, expected.steps);
    let fences = store.list(&format!("{}/", paths::run_fence(&read.run, &read.key)));
    assert_eq!(fences.unwrap().len(), 2, "two attempts");
    let adapter = paths::adapter("colours", &result.digest);
    assert!(store.is_published(&adapter).unwrap());
    let left = store.list(&format!(
        "{}/",
        paths::run_checkpoints(&read.run, &read.key)
    ));
    assert!(left.unwrap().is_empty(), "a finished run keeps none");
}

#[test]
fn in_a_bucket_a_newer_attempt_fences_the_older_off_between_two_saves() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = fixture::Server::start(dir.path(), "store").unwrap() else {
        return;
    };
    let world = World::new();
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let mut config = in_bucket(&world.config("fenced"), &server);
    config["hyperparameters"]["maximumSteps"] = json!(1_000_000);
    config["checkpoint"]["everySteps"] = json!(1_000_000);
    let store = Store::open_at(Some(&server.config("s3://store/team")), &scratch).unwrap();
    assert_eq!(write_dataset(&store, 24, 9), world.dataset);
    let read: TrainerConfig = serde_json::from_value(config.clone()).unwrap();
    let fence = paths::run_fence(&read.run, &read.key);
    let mut child = world.start(&config);
    wait_until(&mut child, || {
        !store.list(&format!("{fence}/")).unwrap().is_empty()
    });
    let claim = json!({"pod": "other", "process": 1, "unixNanoseconds": 1});
    let put = store.put_new(&format!("{fence}/2.json"), claim.to_string().as_bytes());
    put.unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(76));
    let summary = world.summary(&config);
    assert!(summary.message.contains("attempt 2"), "{}", summary.message);
}

#[test]
fn a_bucket_that_refuses_is_worth_another_try_and_named_without_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = fixture::Server::start(dir.path(), "store").unwrap() else {
        return;
    };
    server.write_secret("wrong-hidden").unwrap();
    let world = World::new();
    let config = in_bucket(&world.config("refused"), &server);
    let (code, told) = world.told(&config);
    assert_eq!(code, 69, "{told}");
    let message = world.summary(&config).message;
    assert!(message.contains("s3://store/team"), "{message}");
    assert!(message.contains("SignatureDoesNotMatch"), "{message}");
    assert!(!told.contains("wrong-hidden"), "{told}");
}
