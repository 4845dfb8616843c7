//! Attempts that are killed, stopped or fenced off.

use graftwork_model::random::Stream;

use super::*;

#[test]
fn lora_killed_at_random_times_ends_with_the_same_bits() {
    let world = World::new();
    killed_at_random_times(&world, |run| world.config(run));
}

#[test]
fn qlora_killed_at_random_times_ends_with_the_same_bits() {
    let world = World::new();
    killed_at_random_times(&world, |run| {
        let mut config = world.config(run);
        config["resolved"]["base"]["quantization"] = json!("Q8_0");
        config
    });
}

#[test]
fn dpo_killed_at_random_times_ends_with_the_same_bits() {
    let world = World::new();
    killed_at_random_times(&world, |run| super::methods::preferences(&world, run, 2));
}

#[test]
fn two_threads_killed_at_random_times_end_with_the_same_bits() {
    // So wide that products are split between threads.
    let shape = TinyShape {
        hidden: 128,
        intermediate: 256,
        ..TinyShape::default()
    };
    let world = World::of_shape(&shape, 24, 9);
    killed_at_random_times(&world, |run| {
        let mut config = world.config(run);
        config["threads"] = json!(2);
        config["hyperparameters"]["microBatchSize"] = json!(8);
        config
    });
}

/// Kills of a run in all.
const KILLS: u64 = 20;

/// Kills a run twenty times, or as often as it takes to its end, and then another one: in turn some time after its
/// start, wherever it is by then, and some time after it has saved something, which is how it gets on at all. The
/// times are others on every run of the test; the seed that is printed, as `GRAFTWORK_SEED`, gives the same ones.
fn killed_at_random_times(world: &World, config_of: impl Fn(&str) -> Value) {
    let config_of = |run: &str| {
        let mut config = config_of(run);
        config["hyperparameters"]["maximumSteps"] = json!(200);
        config["checkpoint"]["everySteps"] = json!(2);
        config
    };
    let whole = config_of("whole");
    assert_eq!(world.run(&whole), 0, "{:?}", world.summary(&whole));
    let expected = world.result(&whole);

    let given = std::env::var("GRAFTWORK_SEED").ok();
    let seed = given.map_or_else(
        || {
            let now = std::time::SystemTime::now();
            let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
            since.as_nanos() as u64
        },
        |seed| seed.parse().unwrap(),
    );
    println!("GRAFTWORK_SEED={seed}");
    let (mut kills, mut round, mut runs, mut went_on) = (0, 0, 0, false);
    while kills < KILLS {
        runs += 1;
        let broken = config_of(&format!("broken-{runs}"));
        let folder = world.run_folder(&broken);
        while kills < KILLS && !folder.join("result.json").exists() {
            round += 1;
            assert!(round < 200, "it gets nowhere: {:?}", world.summary(&broken));
            let random = Stream::new(seed, &[round]).uniform(0);
            kills += u64::from(is_killed(world, &broken, round % 2 == 1, random));
        }
        assert_eq!(world.run(&broken), 0, "{:?}", world.summary(&broken));
        let got = world.result(&broken);
        assert_eq!(got.digest, expected.digest);
        assert_eq!(got.metrics, expected.metrics);
        assert_eq!(got.final_loss.to_bits(), expected.final_loss.to_bits());
        went_on |= first_step_of_the_last_attempt(&folder) > 1;
    }
    assert_eq!(kills, KILLS);
    assert!(
        went_on,
        "every one began anew instead of going on from a checkpoint"
    );
}

/// Starts an attempt and kills it some time after its start, or after it has saved something. False where it came
/// to its end before.
fn is_killed(world: &World, config: &Value, at_the_start: bool, random: f64) -> bool {
    let folder = world.run_folder(config);
    let before = checkpoint_steps(&folder);
    let mut child = world.start(config);
    let delay = if at_the_start {
        Duration::from_millis(250).mul_f64(random)
    } else {
        let deadline = Instant::now() + Duration::from_secs(60);
        while checkpoint_steps(&folder) == before && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "nothing is saved");
            std::thread::yield_now();
        }
        Duration::from_millis(8).mul_f64(random)
    };
    let end = Instant::now() + delay;
    while Instant::now() < end && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let is_running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    is_running
}

/// The step of the first figures that the newest attempt wrote.
fn first_step_of_the_last_attempt(run: &Path) -> u64 {
    let numbers = |path: &Path| {
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (epoch, part) = stem.split_once('-').unwrap();
        let numbers: (u64, u64) = (epoch.parse().unwrap(), part.parse().unwrap());
        numbers
    };
    let files = std::fs::read_dir(run.join("metrics")).unwrap();
    let files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    let last = files.iter().map(|file| numbers(file).0).max().unwrap();
    let first = files
        .iter()
        .filter(|file| numbers(file).0 == last)
        .min_by_key(|file| numbers(file))
        .unwrap();
    let text = std::fs::read_to_string(first).unwrap();
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    line["step"].as_u64().unwrap()
}

#[test]
fn stopped_on_request_it_saves_and_goes_on_with_the_same_bits() {
    let world = World::new();
    let whole = world.config("whole");
    assert_eq!(world.run(&whole), 0);

    let mut stopped = world.config("stopped");
    stopped["checkpoint"]["everySteps"] = json!(3);
    for round in 0..3 {
        let mut child = world.start_until_it_saves(&stopped);
        terminate(&child);
        let code = child.wait().unwrap().code();
        if code == Some(0) {
            assert!(round > 0, "it was too fast to be stopped even once");
            break;
        }
        assert_eq!(code, Some(75));
        let summary = world.summary(&stopped);
        assert_eq!(summary.reason, "Restarting");
        assert_eq!(
            summary.checkpoint_step,
            Some(summary.step),
            "nothing is lost"
        );
    }
    assert_eq!(world.run(&stopped), 0);
    assert_eq!(world.result(&stopped).digest, world.result(&whole).digest);
}

#[test]
fn stopped_in_the_midst_of_a_batch_it_goes_on_there_with_the_same_bits() {
    let world = World::new();
    let config_of = |run: &str| {
        let mut config = world.config(run);
        config["hyperparameters"]["batchSize"] = json!(48);
        config["hyperparameters"]["microBatchSize"] = json!(1);
        config["checkpoint"]["everySteps"] = json!(4);
        config
    };
    let whole = config_of("whole");
    assert_eq!(world.run(&whole), 0);
    let stopped = config_of("stopped");
    let folder = world.run_folder(&stopped);
    let is_in_the_midst = |place: &PathBuf| {
        place
            .to_string_lossy()
            .rsplit('/')
            .next()
            .unwrap()
            .contains('-')
    };
    let mut in_the_midst = 0;
    for _ in 0..8 {
        let mut child = world.start_until_it_saves(&stopped);
        // Past what follows a save, and into the next batch.
        let end = Instant::now() + Duration::from_millis(5);
        while Instant::now() < end {
            std::thread::yield_now();
        }
        let asked = Instant::now();
        terminate(&child);
        if child.wait().unwrap().code() == Some(0) {
            break;
        }
        assert!(asked.elapsed() < STOP, "{:?}", asked.elapsed());
        assert_eq!(world.summary(&stopped).reason, "Restarting");
        in_the_midst += checkpoint_steps(&folder)
            .iter()
            .filter(|it| is_in_the_midst(it))
            .count();
    }
    assert!(in_the_midst > 0, "every stop came between two batches");
    assert_eq!(world.run(&stopped), 0);
    assert_eq!(world.result(&stopped).digest, world.result(&whole).digest);
}

fn terminate(child: &Child) {
    let sent = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

/// Longest time that an attempt may take to stop: this is a tiny model.
const STOP: Duration = Duration::from_secs(10);

impl World {
    /// Asks an attempt to stop, which it does at once and without a failure; its summary.
    fn stop(&self, mut child: Child, config: &Value) -> RunSummary {
        let asked = Instant::now();
        terminate(&child);
        assert_eq!(child.wait().unwrap().code(), Some(75));
        assert!(asked.elapsed() < STOP, "{:?}", asked.elapsed());
        let summary = self.summary(config);
        assert_eq!(summary.reason, "Restarting");
        summary
    }
}

#[test]
fn stopped_while_it_scores_it_leaves_at_once_and_the_next_attempt_only_scores() {
    // So many rows that scoring takes some seconds at least.
    let world = World::with_test_rows(6000);
    let mut config = world.config_of_steps("scoring", 2);
    config["checkpoint"]["everySteps"] = json!(2);
    config["evaluation"]["maximumNewTokens"] = json!(400);
    // Its last step is saved: it scores.
    let child = world.start_until_it_saves(&config);
    let summary = world.stop(child, &config);
    assert_eq!((summary.step, summary.checkpoint_step), (2, Some(2)));
    assert!(has_checkpoint(&world.run_folder(&config)));

    config["evaluation"]["maximumRows"] = json!(8);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
}

#[test]
fn stopped_while_it_reads_its_inputs_it_leaves_at_once() {
    let world = World::new();
    let config = world.config("reading");
    // A file that nobody ever writes to: who reads it waits for ever.
    let file = world.dir.path().join("base/tokenizer.json");
    std::fs::remove_file(&file).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&file)
            .status()
            .unwrap()
            .success()
    );
    let mut child = world.start(&config);
    wait_until(&mut child, || {
        world.run_folder(&config).join("fence/1.json").exists()
    });
    let summary = world.stop(child, &config);
    assert_eq!(
        summary.message,
        "stopped on request before the first step; nothing is lost"
    );
    assert_eq!(summary.checkpoint_step, None);
}

#[test]
fn a_newer_attempt_fences_the_older_off() {
    let world = World::new();
    let config = world.config_of_steps("fenced", 1_000_000);
    let folder = world.run_folder(&config);
    let mut child = world.start_until_it_saves(&config);
    let claim = json!({"pod": "other", "process": 1, "unixNanoseconds": 1});
    std::fs::write(folder.join("fence/2.json"), claim.to_string()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(76));
    let summary = world.summary(&config);
    assert!(summary.message.contains("attempt 2"), "{}", summary.message);
    assert!(!folder.join("result.json").exists());
}

#[test]
fn of_two_trainers_on_one_run_the_newer_wins_and_the_result_is_right() {
    let world = World::new();
    let (whole, both) = world.whole_beside("both", 1500);
    let folder = world.run_folder(&both);
    let mut older = world.start_as(&both, "older");
    wait_until(&mut older, || has_checkpoint(&folder));
    let mut newer = world.start_as(&both, "newer");
    wait_until(&mut newer, || folder.join("fence/2.json").exists());
    assert_eq!(older.wait().unwrap().code(), Some(76));
    assert_eq!(newer.wait().unwrap().code(), Some(0));
    assert_eq!(world.result(&both).digest, world.result(&whole).digest);
    let summary = std::fs::read_to_string(world.summary_file("older")).unwrap();
    assert!(summary.contains("attempt 2"), "{summary}");
}

#[test]
fn a_store_that_comes_back_in_time_is_waited_for_and_one_that_stays_away_ends_the_attempt() {
    let world = World::new();
    let (whole, back) = world.whole_beside("back", 400);
    let gone = world.config_of_steps("gone", 400);
    let away = world.dir.path().join("away");
    for (config, stays_away) in [(back, false), (gone, true)] {
        let mut child = world.start_until_it_saves(&config);
        std::fs::rename(world.store(), &away).unwrap();
        let code = if stays_away {
            let code = child.wait().unwrap().code();
            std::fs::rename(&away, world.store()).unwrap();
            code
        } else {
            let back = Instant::now() + Duration::from_millis(1500);
            while Instant::now() < back {
                assert!(child.try_wait().unwrap().is_none(), "it did not wait");
                std::thread::yield_now();
            }
            std::fs::rename(&away, world.store()).unwrap();
            child.wait().unwrap().code()
        };
        let expected = if stays_away { 69 } else { 0 };
        assert_eq!(code, Some(expected), "{}", config["run"]);
        if stays_away {
            assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
        }
        assert_eq!(world.result(&config).digest, world.result(&whole).digest);
    }
}

#[test]
fn a_store_that_hangs_ends_the_attempt_in_time_and_nothing_is_lost() {
    let world = World::new();
    let (whole, config) = world.whole_beside("hangs", 400);
    let folder = world.run_folder(&config);
    world.kill_once_it_saved(&config);

    let states = checkpoint_steps(&folder);
    let states = states.iter().map(|place| place.join("state.safetensors"));
    let pinned = vec![folder.join("resolved.json")];
    for files in [pinned, states.collect::<Vec<PathBuf>>()] {
        // Nobody ever writes to them: who reads them waits for ever.
        for file in &files {
            std::fs::rename(file, file.with_extension("aside")).unwrap();
            let made = Command::new("mkfifo").arg(file).status().unwrap();
            assert!(made.success());
        }
        let mut command = world.command(&config, "hangs");
        command.args(["--store-seconds", "2"]);
        assert_eq!(command.status().unwrap().code(), Some(69), "{files:?}");
        let message = world.summary(&config).message;
        assert!(message.contains("has not answered for 2 s"), "{message}");
        for file in &files {
            std::fs::rename(file.with_extension("aside"), file).unwrap();
        }
    }
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    assert_eq!(world.result(&config).digest, world.result(&whole).digest);
    assert!(first_step_of_the_last_attempt(&folder) > 1);
}

/// Trains on a small disk until something is saved, fills it, makes it read-only, then gives room again. The exit
/// codes stand in files.
const ON_A_SMALL_DISK: &str = r#"
store=$0; out=$1; shift
cp -a "$store" "$out/copy" || exit 200
mount -t tmpfs -o size=8m tmpfs "$store" || exit 200
cp -a "$out/copy/." "$store" || exit 200
"$@" &
trainer=$!
running() { state=$(cut -d ' ' -f 3 "/proc/$trainer/stat") && [ "$state" != Z ]; }
until ls "$store"/runs/*/*/checkpoints/*/*/manifest.json; do
    running || exit 201
done
# Again and again: what the trainer prunes is room.
while running; do
    cat /dev/zero >> "$store/filler"
    sleep 0.01
done
wait "$trainer"
echo $? > "$out/full"
mount -o remount,ro "$store" || exit 202
"$@"
echo $? > "$out/read-only"
mount -o remount,rw "$store" || exit 203
rm "$store/filler"
"$@"
echo $? > "$out/roomy"
cp -a "$store/runs" "$out/runs" || exit 204
"#;

#[test]
fn a_disk_that_fills_or_turns_read_only_ends_the_attempt_and_costs_no_bits() {
    let world = World::new();
    let (whole, config) = world.whole_beside("small", 1500);
    // What is there of the other run would take the room.
    std::fs::remove_dir_all(world.run_folder(&whole).join("metrics")).unwrap();
    let out = world.dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let inner = world.command(&config, "small");
    let status = Command::new("unshare")
        .args(["-rm", "sh", "-c", ON_A_SMALL_DISK])
        .args([world.store().as_os_str(), out.as_os_str()])
        .arg(inner.get_program())
        .args(inner.get_args())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status.ok().and_then(|status| status.code()) {
        Some(0) => {}
        None | Some(1 | 200) => {
            graftwork_model::fixture::skipped("no small disk that may be mounted");
            return;
        }
        Some(code) => panic!("the disk's script ended with {code}"),
    }
    let code = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert_eq!(code("full").trim(), "69");
    assert_eq!(code("read-only").trim(), "69");
    assert_eq!(code("roomy").trim(), "0");
    let read: TrainerConfig = serde_json::from_value(config).unwrap();
    let path = out.join(paths::run_result(&read.run, &read.key));
    let result: RunResult = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(result.digest, world.result(&whole).digest);
    let moved = out.join(paths::run(&read.run, &read.key));
    assert!(first_step_of_the_last_attempt(&moved) > 1);
}

#[test]
fn a_store_that_gives_its_checkpoints_late_is_waited_for_and_none_is_passed_over() {
    let world = World::new();
    let (whole, config) = world.whole_beside("late", 400);
    let folder = world.run_folder(&config);
    world.kill_once_it_saved(&config);

    // What is there and can't be opened is what a volume's error looks like.
    let socket = world.dir.path().join("socket");
    let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let states: Vec<PathBuf> = checkpoint_steps(&folder)
        .iter()
        .map(|place| place.join("state.safetensors"))
        .collect();
    for state in &states {
        std::fs::rename(state, state.with_extension("aside")).unwrap();
        std::fs::hard_link(&socket, state).unwrap();
    }
    let mut child = world.start(&config);
    wait_until(&mut child, || folder.join("fence/2.json").exists());
    let back = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < back {
        assert!(child.try_wait().unwrap().is_none(), "it did not wait");
        std::thread::yield_now();
    }
    for state in &states {
        std::fs::rename(state.with_extension("aside"), state).unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(world.result(&config).digest, world.result(&whole).digest);
    assert!(
        first_step_of_the_last_attempt(&folder) > 1,
        "it began anew instead of going on from a checkpoint"
    );
}
