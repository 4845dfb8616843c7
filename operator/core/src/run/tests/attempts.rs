//! How attempts end, are counted and follow each other.

use serde_json::json;

use super::*;

#[test]
fn ends_are_counted_by_their_cause() {
    let taken = |pod: &mut Pod| pod.disrupted = Some("EvictionByEvictionAPI".to_owned());
    let no_memory = |pod: &mut Pod| {
        if let Container::Terminated { reason, .. } = &mut pod.container {
            *reason = "OOMKilled".to_owned();
        }
    };
    let nothing = |_: &mut Pod| {};
    let code = |code: ExitCode| i32::from(code.code());
    type Change = fn(&mut Pod);
    for (exit, change, attempts, over) in [
        (137, taken as Change, (2, 0, 1), None),
        (code(ExitCode::Checkpointed), nothing, (2, 0, 1), None),
        (137, nothing, (2, 1, 0), None),
        (code(ExitCode::Unavailable), nothing, (2, 1, 0), None),
        (code(ExitCode::Bug), nothing, (2, 1, 0), None),
        (137, no_memory, (1, 1, 0), Some(reason::OUT_OF_MEMORY)),
        (
            code(ExitCode::BadData),
            nothing,
            (1, 1, 0),
            Some(reason::DATA_ERROR),
        ),
        (
            code(ExitCode::BadConfig),
            nothing,
            (1, 1, 0),
            Some(reason::INVALID_SPEC),
        ),
        (
            code(ExitCode::Diverged),
            nothing,
            (1, 1, 0),
            Some(reason::DIVERGED),
        ),
        (
            code(ExitCode::Fenced),
            nothing,
            (1, 1, 0),
            Some(reason::INTERNAL_ERROR),
        ),
    ] {
        let mut world = World::new();
        world.start();
        world.end_pod(exit, change);
        for _ in 0..10 {
            world.seconds += 10;
            world.reconcile();
        }
        assert_eq!(world.attempts(), attempts, "exit code {exit}");
        match over {
            Some(over) => assert_eq!(world.succeeded().1, over),
            None => assert_eq!(world.created, ["nightly-1", "nightly-2"]),
        }
        assert_eq!(world.is_finished(), over.is_some());
    }
}

#[test]
fn the_trainers_last_words_become_the_condition() {
    let mut world = World::new();
    world.start();
    world.end_pod(i32::from(ExitCode::BadData.code()), |pod| {
        if let Container::Terminated { message, .. } = &mut pod.container {
            *message = summary(
                "DataError",
                "dataset topics version 2 has no rows in its train split",
            );
        }
    });
    world.reconcile();
    assert_eq!(
        world.succeeded(),
        (
            "False".to_owned(),
            reason::DATA_ERROR.to_owned(),
            "dataset topics version 2 has no rows in its train split".to_owned()
        )
    );
}

#[test]
fn retries_run_out() {
    let mut world = World::new();
    world.cr.spec.limits.retries = 2;
    for _ in 0..3 {
        world.start();
        world.end_pod(1, |_| {});
        world.reconcile();
    }
    assert_eq!(world.succeeded().1, reason::RETRIES_EXHAUSTED);
    assert_eq!(
        world.succeeded().2,
        "3 attempts failed, spec.limits.retries is 2; the last one: the trainer ended with exit code 1"
    );
    assert_eq!(world.created.len(), 3);
}

#[test]
fn active_time_is_summed_over_attempts() {
    let mut world = World::new();
    world.cr.spec.limits.duration_seconds = 100;
    world.start();
    world.seconds += 70;
    world.end_pod(137, |pod| {
        pod.disrupted = Some("PreemptionByScheduler".to_owned());
    });
    world.start();
    world.reconcile();
    world.seconds += 20;
    world.reconcile();
    assert!(!world.is_finished());
    world.seconds += 20;
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::DEADLINE_EXCEEDED);
    world.reconcile();
    assert_eq!(world.active_job(), None, "the Job does not go on");
}

#[test]
fn suspend_deletes_the_job_and_resume_makes_the_next_attempt() {
    let mut world = World::new();
    world.start();
    world.reconcile();
    world.seconds += 30;
    world.cr.spec.suspend = true;
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::SUSPENDED);
    assert_eq!(world.active_job(), None);
    assert_eq!(attempt::attempts(&world.cr).active_seconds, 30);
    let writes = world.writes;
    world.seconds += 1;
    world.reconcile();
    assert_eq!(world.writes, writes);
    world.cr.spec.suspend = false;
    world.reconcile();
    assert_eq!(world.active_job(), None, "the old pod is still stopping");
    assert_eq!(
        world.succeeded().1,
        reason::STARTING,
        "nothing went wrong, so nothing is restarting"
    );
    world.observed.pods.clear();
    world.start();
    assert_eq!(world.created, ["nightly-1", "nightly-2"]);
    assert_eq!(world.attempts(), (2, 0, 0));
}

#[test]
fn a_label_that_somebody_changed_changes_no_attempt() {
    let values = ["-1", "0", "7", "4294967295", "99999999999999", "x"];
    for value in values.map(Some).into_iter().chain([None]) {
        let mut world = World::new();
        world.start();
        let labels = world.observed.jobs[0].metadata.labels.as_mut().unwrap();
        labels.remove(graftwork_api::labels::ATTEMPT).unwrap();
        if let Some(value) = value {
            labels.insert(graftwork_api::labels::ATTEMPT.to_owned(), value.to_owned());
        }
        let actions = world.reconcile();
        assert!(actions.delete.is_empty(), "{value:?}");
        world.end_pod(137, |_| {});
        world.reconcile();
        world.start();
        assert_eq!(world.created, ["nightly-1", "nightly-2"], "{value:?}");
        assert_eq!(world.attempts(), (2, 1, 0), "{value:?}");
    }
}

#[test]
fn the_number_of_an_attempt_is_read_back_from_the_name_of_its_job() {
    let mut cr = World::new().cr;
    let long = format!("{}.7", "a".repeat(251));
    for run in ["nightly", "nightly-1", "7", "a.b-2", &long] {
        cr.metadata.name = Some(run.to_owned());
        for number in [1, 9, 10, 4096] {
            let mut job = Job::default();
            let name = children::job_name(&cr, number);
            job.metadata.name = Some(name.clone());
            assert_eq!(children::attempt_of(&cr, &job), Some(number), "{name}");
        }
    }
}

/// A run whose first attempt has failed, beside whose Job there is another one of that name, which runs.
fn beside(name: &str) -> World {
    let mut world = World::new();
    world.start();
    world.end_pod(137, |_| {});
    world.reconcile();
    let mut other = world.observed.jobs[0].clone();
    other.metadata.name = Some(name.to_owned());
    other.metadata.uid = Some(format!("uid of {name}"));
    other.status = None;
    world.observed.jobs.push(other);
    world
}

#[test]
fn a_job_that_is_called_as_no_attempt_is_left_alone() {
    for name in [
        "nightly-0",
        "nightly-007",
        "nightly--1",
        "nightly-4294967295",
        "nightly-99999999999999",
        "nightly-x",
        "weekly-7",
    ] {
        for status_is_lost in [false, true] {
            let mut world = beside(name);
            if status_is_lost {
                world.cr.status = None;
            }
            for _ in 0..10 {
                world.seconds += 10;
                world.reconcile();
            }
            assert_eq!(world.created, ["nightly-1", "nightly-2"], "{name}");
            assert_eq!(world.attempts().0, 2, "{name}");
            let mut names = world.observed.jobs.iter().map(|job| &job.metadata.name);
            assert!(names.any(|known| known.as_deref() == Some(name)), "{name}");
        }
    }
}

#[test]
fn a_job_under_the_name_of_a_later_attempt_is_named_and_no_attempt_is_skipped() {
    let mut world = beside("nightly-7");
    for _ in 0..10 {
        world.seconds += 10;
        world.reconcile();
    }
    let (truth, why, message) = world.succeeded();
    assert_eq!(
        (truth.as_str(), why.as_str()),
        ("Unknown", reason::OBJECT_NOT_OURS)
    );
    assert!(message.contains("Job \"nightly-7\""), "{message}");
    assert_eq!(world.attempts(), (1, 1, 0));
    world.observed.jobs.pop();
    world.start();
    assert_eq!(world.created, ["nightly-1", "nightly-2"]);
}

#[test]
fn a_job_under_the_name_of_the_next_attempt_ends_none_that_is_under_way() {
    for is_over in [false, true] {
        let mut world = World::new();
        world.start();
        let mut other = world.observed.jobs[0].clone();
        other.metadata.name = Some("nightly-2".to_owned());
        other.metadata.uid = Some("uid of nightly-2".to_owned());
        if is_over {
            let failed = json!({"conditions": [{"type": "Failed", "status": "True"}]});
            other.status = serde_json::from_value(failed).unwrap();
        }
        world.observed.jobs.insert(0, other);
        let actions = world.reconcile();
        assert!(actions.delete.is_empty(), "{is_over}");
        assert_eq!(world.attempts(), (1, 0, 0), "{is_over}");
    }
}

#[test]
fn where_status_was_lost_the_jobs_know_how_often_it_was_tried() {
    let mut world = World::new();
    for _ in 0..2 {
        world.start();
        world.end_pod(137, |_| {});
        world.reconcile();
    }
    world.cr.status = None;
    world.start();
    assert_eq!(world.created, ["nightly-1", "nightly-2", "nightly-3"]);
}

#[test]
fn an_unfinished_job_that_vanished_is_made_again_and_a_finished_one_is_not() {
    let mut world = World::new();
    world.start();
    world.observed.jobs.clear();
    world.observed.pods.clear();
    world.reconcile();
    assert_eq!(world.created, ["nightly-1", "nightly-1"]);
    assert_eq!(world.attempts(), (1, 0, 0));
    world.publish_result();
    world.observed.jobs.clear();
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::COMPLETED);
    assert_eq!(world.created.len(), 2);
}

#[test]
fn the_time_of_a_job_that_vanished_counts() {
    let mut world = World::new();
    world.start();
    world.reconcile();
    world.seconds += 30;
    world.observed.jobs.clear();
    world.observed.pods.clear();
    world.reconcile();
    world.reconcile();
    assert_eq!(attempt::attempts(&world.cr).active_seconds, 30);
    assert_eq!(world.created.len(), 2);
}

#[test]
fn an_attempt_whose_profile_went_before_it_has_a_job_says_so_and_goes_on_once_it_is_back() {
    let mut world = World::new();
    world.start();
    world.observed.jobs.clear();
    world.observed.pods.clear();
    let profile = world.cr.spec.compute.profile.clone();
    let settings = world.settings.compute_profiles.clone();
    world.settings.compute_profiles.remove(&profile);
    world.reconcile();
    let (truth, why, message) = world.succeeded();
    assert_eq!(
        (truth.as_str(), why.as_str()),
        ("Unknown", reason::COMPUTE_PROFILE_NOT_FOUND)
    );
    assert!(message.starts_with("spec.compute.profile: "), "{message}");
    assert_eq!(world.created.len(), 1);
    world.settings.compute_profiles = settings;
    world.reconcile();
    assert_eq!(world.created, ["nightly-1", "nightly-1"]);
}

#[test]
fn a_pod_on_a_lost_node_is_forced_out_before_the_next_attempt() {
    let mut world = World::new();
    world.start();
    world.cr.spec.suspend = true;
    world.reconcile();
    world.cr.spec.suspend = false;
    world.seconds += 20;
    world.reconcile();
    assert_eq!(world.observed.pods.len(), 1);
    world.seconds += 20;
    world.reconcile();
    assert!(world.observed.pods.is_empty());
    world.start();
    assert_eq!(world.attempts(), (2, 0, 0));
}
