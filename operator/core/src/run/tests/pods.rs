//! The Job, its pod, and what they say while they run.

use graftwork_contract::pod;

use super::*;

#[test]
fn progress_reaches_status_and_is_not_written_at_every_report() {
    let mut world = World::new();
    world.start();
    let mut writes = vec![];
    for second in 0..12_i64 {
        world.seconds += 1;
        world.observed.report = Some(Report {
            progress: Progress {
                stage: "Train".to_owned(),
                step: u64::try_from(second).unwrap(),
                total_steps: 100,
                loss: Some(1.5),
                best_validation_loss: Some(1.75),
                tokens_per_second: 900.4,
                remaining_seconds: Some(60),
                checkpoint_step: 5,
                ..Progress::default()
            },
            at: at(world.seconds),
        });
        let before = world.cr.status.clone().unwrap().progress;
        world.reconcile();
        let after = world.cr.status.clone().unwrap().progress;
        if before != after {
            writes.push(second);
        }
    }
    assert_eq!(world.succeeded().1, reason::TRAINING);
    assert_eq!(writes, [0, 2, 4, 6, 8, 10]);
    let status = world.cr.status.unwrap();
    let progress = status.progress.unwrap();
    assert_eq!(progress.loss.unwrap().as_str(), "1.5");
    assert_eq!(progress.best_validation_loss.unwrap().as_str(), "1.75");
    assert_eq!(progress.tokens_per_second, Some(900));
    assert_eq!(status.checkpoint.unwrap().step, 5);
}

#[test]
fn progress_says_how_much_is_evaluated_while_it_is() {
    let mut world = World::new();
    world.start();
    let mut shown = vec![];
    for (stage, rows, of) in [
        ("Train", 0, 0),
        ("Evaluate", 0, 0),
        ("Evaluate", 30, 120),
        ("Evaluate", 120, 120),
        ("Package", 120, 120),
    ] {
        world.seconds += 5;
        world.observed.report = Some(Report {
            progress: Progress {
                stage: stage.to_owned(),
                step: 100,
                total_steps: 100,
                evaluated_rows: rows,
                rows_to_evaluate: of,
                ..Progress::default()
            },
            at: at(world.seconds),
        });
        world.reconcile();
        let progress = world.cr.status.clone().unwrap().progress.unwrap();
        shown.push(progress.evaluated_percent);
    }
    assert_eq!(shown, [None, None, Some(25), Some(100), None]);
}

#[test]
fn progress_goes_on_where_an_operator_was_ahead_of_the_clock() {
    let mut world = World::new();
    world.start();
    for (step, ahead) in [(1, 3600), (2, 0)] {
        world.seconds += 1;
        world.observed.report = Some(Report {
            progress: Progress {
                stage: "Train".to_owned(),
                step,
                total_steps: 100,
                ..Progress::default()
            },
            at: at(world.seconds + ahead),
        });
        world.reconcile();
        let progress = world.cr.status.clone().unwrap().progress.unwrap();
        assert_eq!(progress.step, step);
    }
}

#[test]
fn what_the_trainer_does_is_the_reason() {
    for (stage, why, words) in [
        ("Prepare", reason::STARTING, "reads model and data"),
        ("Train", reason::TRAINING, "takes optimizer steps"),
        ("Evaluate", reason::EVALUATING, "measures on the test rows"),
        ("Package", reason::EVALUATING, "writes the result"),
        ("Dance", reason::STARTING, "reads model and data"),
    ] {
        let mut world = World::new();
        world.start();
        world.seconds += 1;
        world.observed.report = Some(Report {
            progress: Progress {
                stage: stage.to_owned(),
                ..Progress::default()
            },
            at: at(world.seconds),
        });
        world.reconcile();
        let (truth, reason, message) = world.succeeded();
        assert_eq!((truth.as_str(), reason.as_str()), ("Unknown", why));
        assert_eq!(message, format!("the trainer {words}"), "{stage}");
    }
    // Between its pod's end and what it left in the store.
    let mut world = World::new();
    world.start();
    world.end_pod(0, |_| {});
    world.reconcile();
    let (truth, reason, message) = world.succeeded();
    assert_eq!(
        (truth.as_str(), reason.as_str(), message.as_str()),
        ("Unknown", reason::EVALUATING, "the result is being read")
    );
}

#[test]
fn a_trainer_that_is_going_or_not_heard_of_for_a_moment_has_not_begun_anew() {
    let mut world = World::new();
    world.start();
    world.observed.report = Some(Report {
        progress: Progress {
            stage: "Train".to_owned(),
            step: 7,
            total_steps: 100,
            ..Progress::default()
        },
        at: at(world.seconds),
    });
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::TRAINING);
    // Its stream is cut.
    world.observed.report = None;
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::TRAINING);
    // Its pod has ended, its Job does not say so yet.
    for pod in &mut world.observed.pods {
        pod.container = Container::Terminated {
            exit_code: 137,
            reason: "Error".to_owned(),
            message: String::new(),
            started: None,
            finished: None,
        };
    }
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::TRAINING);
    assert_eq!(world.succeeded().2, "the trainer takes optimizer steps");
}

#[test]
fn a_run_that_nobody_works_on_has_no_estimate_of_its_end() {
    for suspend in [true, false] {
        let mut world = World::new();
        world.start();
        world.seconds += 1;
        world.observed.report = Some(Report {
            progress: Progress {
                stage: "Train".to_owned(),
                step: 7,
                total_steps: 100,
                remaining_seconds: Some(60),
                ..Progress::default()
            },
            at: at(world.seconds),
        });
        world.reconcile();
        let progress = |world: &World| world.cr.status.clone().unwrap().progress.unwrap();
        assert!(progress(&world).estimated_completion_time.is_some());
        if suspend {
            world.cr.spec.suspend = true;
        } else {
            world.end_pod(137, |_| {});
        }
        world.seconds += 1;
        world.reconcile();
        assert_eq!(progress(&world).estimated_completion_time, None);
        assert_eq!(progress(&world).step, 7, "what was done stays");
    }
}

#[test]
fn a_gpu_profile_shapes_the_job() {
    let mut world = World::new();
    world.cr.spec.compute.profile = "nvidia-l40s".to_owned();
    world.cr.metadata.labels =
        Some([("kueue.x-k8s.io/queue-name".to_owned(), "q".to_owned())].into());
    world.start();
    let job = &world.observed.jobs[0];
    assert_eq!(
        job.metadata.labels.as_ref().unwrap()["kueue.x-k8s.io/queue-name"],
        "q"
    );
    let spec = job.spec.as_ref().unwrap();
    assert_eq!(spec.suspend, None, "a queue owns suspend");
    assert_eq!(spec.backoff_limit, Some(0));
    let pod = spec.template.spec.as_ref().unwrap();
    let limits = pod.containers[0]
        .resources
        .as_ref()
        .unwrap()
        .limits
        .as_ref()
        .unwrap();
    assert_eq!(limits["nvidia.com/gpu"].0, "1");
    assert_eq!(pod.node_selector.as_ref().unwrap()["accelerator"], "l40s");
    assert_eq!(
        pod.tolerations.as_ref().unwrap()[0].key.as_deref(),
        Some("nvidia.com/gpu")
    );
    assert_eq!(pod.runtime_class_name.as_deref(), Some("nvidia"));
    assert_eq!(
        pod.containers[0].image.as_deref(),
        Some("registry/trainer:1-cuda89")
    );
}

#[test]
fn a_run_on_spot_nodes_goes_to_others_after_so_many_evictions() {
    let placed = |world: &World| {
        let (name, mut jobs) = (world.active_job(), world.observed.jobs.iter());
        let job = jobs.find(|job| job.metadata.name == name).unwrap();
        let pod = job.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        let selector = pod.node_selector.clone().unwrap();
        let tolerated = pod.tolerations.iter().flatten();
        let keys: Vec<String> = tolerated.filter_map(|it| it.key.clone()).collect();
        assert_eq!(selector["accelerator"], "l40s");
        (selector.get("capacity").cloned(), keys)
    };
    let on_spot = (
        Some("spot".to_owned()),
        vec!["nvidia.com/gpu".to_owned(), "spot".to_owned()],
    );
    let on_demand = (None, vec!["nvidia.com/gpu".to_owned()]);
    let mut world = World::new();
    world.cr.spec.compute.profile = "nvidia-l40s".to_owned();
    world.cr.spec.compute.spot = Some(graftwork_api::training_run::Spot {
        enabled: true,
        on_demand_after_evictions: 2,
    });
    world.start();
    for (attempt, place) in [&on_spot, &on_spot, &on_demand, &on_demand]
        .iter()
        .enumerate()
    {
        assert_eq!(world.created.len(), attempt + 1);
        assert_eq!(placed(&world), **place, "attempt {}", attempt + 1);
        world.end_pod(137, |pod| {
            pod.disrupted = Some("DeletionByTaintManager".to_owned());
        });
        world.reconcile();
        while world.created.len() == attempt + 1 {
            world.seconds += 1;
            world.reconcile();
        }
        world.start_pod();
    }

    world = World::new();
    world.cr.spec.compute.profile = "nvidia-l40s".to_owned();
    world.cr.spec.compute.spot = Some(graftwork_api::training_run::Spot::default());
    world.start();
    assert_eq!(placed(&world), on_demand, "it is not enabled");
}

#[test]
fn a_trainers_pod_lives_longer_after_sigterm_than_its_trainer_needs() {
    let mut world = World::new();
    world.start();
    let template = &world.observed.jobs[0].spec.as_ref().unwrap().template;
    let grace = template
        .spec
        .as_ref()
        .unwrap()
        .termination_grace_period_seconds;
    assert_eq!(grace, Some(i64::from(pod::TRAINER_GRACE_SECONDS)));
    assert!(grace > Some(i64::from(pod::TRAINER_STOP_SECONDS)));
}

#[test]
fn pods_that_do_not_start_say_why() {
    let mut world = World::new();
    world.start();
    let pod = &mut world.observed.pods[0];
    pod.unschedulable = Some("0/1 nodes: Insufficient nvidia.com/gpu".to_owned());
    pod.container = Container::Unknown;
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::QUEUED);
    let pod = &mut world.observed.pods[0];
    pod.unschedulable = None;
    for (why, words) in [
        ("ContainerCreating", "the run's pod is starting"),
        (
            "CreateContainerConfigError",
            "the run's pod waits: CreateContainerConfigError: secret \"x\" not found",
        ),
    ] {
        world.observed.pods[0].container = Container::Waiting {
            reason: why.to_owned(),
            message: "secret \"x\" not found".to_owned(),
        };
        world.reconcile();
        assert_eq!(world.succeeded().1, reason::STARTING);
        assert_eq!(world.succeeded().2, words);
    }
    let pod = &mut world.observed.pods[0];
    pod.container = Container::Waiting {
        reason: "ErrImagePull".to_owned(),
        message: "registry/trainer:1 not found".to_owned(),
    };
    pod.image_missing_since = Some(at(world.seconds));
    world.reconcile();
    assert_eq!(world.succeeded().0, "Unknown");
    assert_eq!(world.succeeded().1, reason::IMAGE_UNAVAILABLE);
    world.seconds += 200;
    world.reconcile();
    assert_eq!(world.succeeded().0, "False");
    assert_eq!(world.succeeded().1, reason::IMAGE_UNAVAILABLE);
}

#[test]
fn a_queue_that_holds_the_job_back_is_left_alone() {
    let mut world = World::new();
    world.start();
    world.observed.pods.clear();
    world.observed.jobs[0].spec.as_mut().unwrap().suspend = Some(true);
    let actions = world.reconcile();
    assert_eq!(world.succeeded().1, reason::QUEUED);
    assert!(actions.delete.is_empty() && actions.create.is_empty());
}

#[test]
fn a_keeper_that_is_away_does_not_disturb_a_running_attempt() {
    let mut world = World::new();
    world.start();
    world.observed.resolved = Asked::Unreachable("refused".to_owned());
    world.observed.result = Asked::Unreachable("refused".to_owned());
    let actions = world.reconcile();
    assert!(actions.delete.is_empty());
    assert_eq!(world.succeeded().1, reason::STARTING);
}
