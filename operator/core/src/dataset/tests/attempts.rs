//! Builds that end without a version, and what follows.

use graftwork_contract::dataset::{BuildConfig, UNDER_WAY};

use super::*;
use crate::sightings::Sighting;

#[test]
fn a_build_that_may_end_otherwise_is_tried_again_with_growing_pauses_for_as_long_as_it_takes() {
    let unavailable = i32::from(ExitCode::Unavailable.code());
    type Change = fn(&mut Pod);
    let evicted: Change = |pod| pod.disrupted = Some("EvictionByEvictionAPI".to_owned());
    let node_lost: Change = |pod| {
        pod.reason = Some("NodeLost".to_owned());
        pod.container = Container::Unknown;
    };
    for (code, change) in [
        (unavailable, (|_| {}) as Change),
        (137, |_| {}),
        (137, evicted),
        (137, node_lost),
        (i32::from(ExitCode::Bug.code()), |_| {}),
    ] {
        let mut world = World::from_config_map();
        let mut starts = vec![];
        for _ in 0..2400 {
            if !world.reconcile().create.is_empty() {
                starts.push(world.seconds);
                world.end_job(code, None);
                if let Some(pod) = world.observed.pods.last_mut() {
                    change(pod);
                }
            }
            world.seconds += 1;
        }
        let pauses: Vec<_> = starts.windows(2).map(|two| two[1] - two[0]).collect();
        let growing = [5, 10, 20, 40, 80, 160, 300, 300, 300];
        assert_eq!(pauses[..9], growing, "exit code {code}");
        assert!(
            world.observed.jobs.len() <= 3,
            "attempts that are long over are cleared away"
        );
        // The store is back.
        world.publish(1);
        world.reconcile();
        assert_eq!(world.ready().0, "True");
    }
}

#[test]
fn neither_labels_nor_names_that_are_none_of_ours_change_the_number_of_an_attempt() {
    for value in ["", "-1", "0", "4294967295", "99999999999999", "x"] {
        let mut world = World::from_config_map();
        world.reconcile();
        let job = &mut world.observed.jobs[0];
        let first = job.metadata.name.clone().unwrap();
        let labels = job.metadata.labels.as_mut().unwrap();
        labels.insert(graftwork_api::labels::ATTEMPT.to_owned(), value.to_owned());
        let mut other = job.clone();
        other.metadata.name = Some(format!("{first}-{value}"));
        world.observed.jobs.insert(0, other);
        assert!(world.reconcile().create.is_empty(), "{value}");
        world.end_job(i32::from(ExitCode::Unavailable.code()), None);
        world.seconds += 5;
        let create = world.reconcile().create;
        let names: Vec<_> = create.into_iter().map(|job| job.metadata.name).collect();
        assert_eq!(names, [Some(format!("{first}-2"))], "{value}");
    }
}

#[test]
fn the_number_of_an_attempt_is_read_back_from_the_names_of_its_jobs() {
    let fingerprint = Digest::of(b"rows");
    let long = format!("{}.7", "a".repeat(251));
    for owner in ["topics", "topics-2", "7", "a.b-2", &long] {
        for number in [1, 2, 10, 4096] {
            for name in [
                children::job_name(owner, &fingerprint, number),
                children::parts_name(owner, &fingerprint, number),
            ] {
                let mut job = Job::default();
                job.metadata.name = Some(name.clone());
                let read = children::attempt_of(owner, &fingerprint, &job);
                assert_eq!(read, Some(number), "{name}");
            }
        }
    }
}

#[test]
fn a_pause_counts_from_when_the_end_was_seen_whatever_clock_stamped_it() {
    for ahead in [-3600, 0, 3600] {
        let mut world = World::from_config_map();
        world.reconcile();
        world.end_job(i32::from(ExitCode::Unavailable.code()), None);
        let job = &mut world.observed.jobs[0];
        job.metadata.uid = Some("job".to_owned());
        let conditions = job.status.as_mut().unwrap().conditions.as_mut().unwrap();
        conditions[0].last_transition_time = Some(Time(at(world.seconds + ahead)));
        let seen = Sighting {
            made: at(world.seconds),
            ended: Some(at(world.seconds)),
        };
        world.observed.sightings = [("job".to_owned(), seen)].into_iter().collect();
        world.seconds += 4;
        assert!(world.reconcile().create.is_empty(), "{ahead}");
        world.seconds += 1;
        assert_eq!(world.reconcile().create.len(), 1, "{ahead}");
    }
}

#[test]
fn what_keeps_failing_is_said_once_with_the_time_of_the_next_attempt() {
    let mut world = World::from_config_map();
    let mut turns = vec![];
    for _ in 0..400 {
        let actions = world.reconcile();
        turns.extend(actions.events.into_iter().map(|event| event.reason));
        if !actions.create.is_empty() {
            world.end_job(i32::from(ExitCode::Unavailable.code()), None);
        }
        world.seconds += 1;
    }
    assert_eq!(turns, [reason::BUILDING, reason::BUILD_FAILED]);
    let (status, _, message) = world.ready();
    assert_eq!(status, "False");
    assert_eq!(
        message,
        format!(
            "attempt 8 starts at {}; attempt 7 ended: the builder ended with exit code 69",
            at(5 + 10 + 20 + 40 + 80 + 160 + 300)
        )
    );
    let writes = world.writes;
    world.reconcile();
    assert_eq!(world.writes, writes, "waiting writes nothing");
}

#[test]
fn what_is_away_or_full_is_the_reason_from_the_first_attempt_on() {
    for why in [reason::SOURCE_UNAVAILABLE, reason::STORAGE_UNAVAILABLE] {
        let mut world = World::from_config_map();
        world.reconcile();
        let summary = BuildSummary {
            reason: why.to_owned(),
            message: "source faq: the scratch volume /tmp is full".to_owned(),
            version: None,
            digest: None,
            rows: None,
            rejected: vec![],
        };
        let code = i32::from(ExitCode::Unavailable.code());
        world.end_job(code, Some(&summary));
        let events = world.reconcile().events;
        assert_eq!(events.len(), 1, "{events:?}");
        // The pause, the next attempt, and the pause after it.
        for attempt in 1..=2 {
            let (status, said, message) = world.ready();
            assert_eq!((status.as_str(), said.as_str()), ("Unknown", why));
            assert!(message.contains("source faq"), "{message}");
            world.seconds += 60;
            assert_eq!(world.reconcile().create.len(), 1, "after {attempt}");
            let (status, said, _) = world.ready();
            assert_eq!((status.as_str(), said.as_str()), ("Unknown", why));
            world.end_job(code, Some(&summary));
            assert!(world.reconcile().events.is_empty(), "it was said");
        }
    }
}

#[test]
fn a_builder_that_does_not_start_says_why() {
    let mut world = World::from_config_map();
    world.reconcile();
    let job = world.observed.jobs[0].metadata.name.clone().unwrap();
    for (why, words) in [
        ("ContainerCreating", "a version is being built"),
        (
            "CreateContainerConfigError",
            "a version is being built; its pod waits: CreateContainerConfigError: secret \"x\" not found",
        ),
    ] {
        world.observed.pods = vec![Pod {
            name: "builder".to_owned(),
            labels: [(JOB_NAME_LABEL.to_owned(), job.clone())].into(),
            phase: "Pending".to_owned(),
            container: Container::Waiting {
                reason: why.to_owned(),
                message: "secret \"x\" not found".to_owned(),
            },
            ..Pod::default()
        }];
        world.reconcile();
        let said = ("Unknown", reason::BUILDING, words);
        let (truth, reason, message) = world.ready();
        assert_eq!((truth.as_str(), reason.as_str(), message.as_str()), said);
    }
}

#[test]
fn a_builder_on_a_lost_node_is_forced_out_and_the_build_goes_on_elsewhere() {
    let mut world = World::from_config_map();
    world.reconcile();
    let job = world.observed.jobs[0].metadata.name.clone().unwrap();
    world.observed.pods.push(Pod {
        name: "lost".to_owned(),
        labels: [(JOB_NAME_LABEL.to_owned(), job)].into(),
        phase: "Running".to_owned(),
        deleting_since: Some(at(world.seconds)),
        ..Pod::default()
    });
    world.seconds += 30;
    assert!(world.reconcile().delete.is_empty(), "it may still stop");
    world.seconds += 1;
    assert_eq!(world.reconcile().delete[0].grace_seconds, Some(0));
    world.end_job(137, None);
    world.observed.pods.clear();
    world.seconds += 5;
    assert_eq!(world.reconcile().create.len(), 1);
}

#[test]
fn bad_rows_and_too_little_memory_wait_for_another_source_or_spec() {
    for (code, why) in [
        (ExitCode::BadData.code(), "Error"),
        (ExitCode::BadConfig.code(), "Error"),
        (137, "OOMKilled"),
    ] {
        let mut world = World::from_config_map();
        world.reconcile();
        world.end_job(i32::from(code), None);
        if let Container::Terminated { reason, .. } = &mut world.observed.pods[0].container {
            *reason = why.to_owned();
        }
        for _ in 0..1000 {
            assert!(world.reconcile().create.is_empty(), "exit code {code}");
            world.seconds += 1;
        }
        assert_eq!(world.ready().0, "False");
        let content = SourceState::Present(Some(Digest::of(b"two")));
        world.observed.sources.insert("faq".to_owned(), content);
        assert_eq!(world.reconcile().create.len(), 1);
        assert_eq!(world.ready().1, reason::BUILDING);
    }
}

#[test]
fn a_builder_that_was_killed_is_told_with_what_it_was_at() {
    let summary = BuildSummary {
        reason: UNDER_WAY.to_owned(),
        message: "while source bulk was read".to_owned(),
        version: None,
        digest: None,
        rows: None,
        rejected: vec![],
    };
    for (code, why, words) in [
        (
            137,
            "OOMKilled",
            "ran out of memory while source bulk was read: raise",
        ),
        (
            137,
            "Error",
            "ended with exit code 137 while source bulk was read",
        ),
    ] {
        let mut world = World::from_config_map();
        world.reconcile();
        world.end_job(code, Some(&summary));
        if let Container::Terminated { reason, .. } = &mut world.observed.pods[0].container {
            *reason = why.to_owned();
        }
        world.reconcile();
        let (_, reason, message) = world.ready();
        assert_ne!(reason, UNDER_WAY);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn a_file_that_is_not_on_its_volume_is_looked_for_again() {
    let mut world = World::from_claim();
    world.reconcile();
    let summary = BuildSummary {
        reason: reason::SOURCE_NOT_FOUND.to_owned(),
        message: "source bulk: there is no file at pvc://text/rows.jsonl".to_owned(),
        version: None,
        digest: None,
        rows: None,
        rejected: vec![],
    };
    world.end_job(i32::from(ExitCode::BadData.code()), Some(&summary));
    assert!(world.reconcile().create.is_empty());
    let (status, why, message) = world.ready();
    assert_eq!(
        (status.as_str(), why.as_str()),
        ("False", reason::SOURCE_NOT_FOUND),
        "the first look says so"
    );
    assert!(message.ends_with(&summary.message), "{message}");
    world.seconds += 5;
    assert_eq!(world.reconcile().create.len(), 1);
    assert_eq!(
        world.ready().1,
        reason::SOURCE_NOT_FOUND,
        "until it is there"
    );
    world.end_job(0, None);
    world.publish(1);
    world.reconcile();
    assert_eq!(world.ready().0, "True");
}

/// The configuration that the newest build was given.
fn config(actions: &Actions<DatasetStatus>) -> BuildConfig {
    let Child::ConfigMap(map) = &actions.apply[0] else {
        unreachable!("a build has a configuration")
    };
    serde_json::from_str(&map.data.as_ref().unwrap()["config.json"]).unwrap()
}

#[test]
fn a_config_map_that_changes_while_a_build_starts_is_planned_again_under_its_own_fingerprint() {
    let mut world = World::from_config_map();
    let first = config(&world.reconcile());
    assert_eq!(first.sources[0].digest, Some(Digest::of(b"one")));
    // The builder saw other bytes than those, and the watch has not told of them yet.
    let summary = BuildSummary {
        reason: reason::BUILD_FAILED.to_owned(),
        message: "source faq (configmap://faq/rows.jsonl) changed while the build started"
            .to_owned(),
        version: None,
        digest: None,
        rows: None,
        rejected: vec![],
    };
    world.end_job(i32::from(ExitCode::Unavailable.code()), Some(&summary));
    assert!(world.reconcile().create.is_empty());
    assert_eq!(world.ready().0, "Unknown");
    let content = SourceState::Present(Some(Digest::of(b"two")));
    world.observed.sources.insert("faq".to_owned(), content);
    let second = config(&world.reconcile());
    assert_ne!(second.fingerprint, first.fingerprint);
    assert_eq!(second.sources[0].digest, Some(Digest::of(b"two")));
}

#[test]
fn a_volumes_file_has_no_planned_digest_and_may_not_leave_its_claim() {
    let config = config(&World::from_claim().reconcile());
    assert_eq!(config.sources[0].digest, None);
    let root = config.sources[0].root.as_deref().unwrap();
    assert_eq!(root, graftwork_contract::pod::claim_dir("text"));
    assert!(config.sources[0].path.starts_with(root));
}
