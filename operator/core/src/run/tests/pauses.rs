//! How long a run waits between two attempts.

use super::*;

/// Seconds between the end of each attempt and the start of the next one.
fn pauses(world: &mut World, ends: usize, end: impl Fn(&mut World)) -> Vec<i64> {
    world.cr.spec.limits.retries = 100;
    world.start();
    let mut pauses = vec![];
    for number in 1..=ends {
        end(world);
        let ended = world.seconds;
        world.reconcile();
        let (truth, why, message) = world.succeeded();
        assert_eq!(
            (truth.as_str(), why.as_str()),
            ("Unknown", reason::RESTARTING)
        );
        let written = world.writes;
        while world.created.len() == number {
            world.seconds += 1;
            world.reconcile();
            if world.created.len() == number {
                assert_eq!(world.succeeded().2, message);
                assert_eq!(world.writes, written, "waiting writes nothing");
            }
        }
        let announced = format!("attempt {} starts at {}; ", number + 1, at(world.seconds));
        assert!(message.starts_with(&announced), "{message} / {announced}");
        pauses.push(world.seconds - ended);
        world.start_pod();
    }
    pauses
}

#[test]
fn killed_attempts_and_failures_wait_longer_each_time_and_say_until_when() {
    for code in [137, 1, i32::from(ExitCode::Unavailable.code())] {
        let mut world = World::new();
        let summary = summary("Restarting", "the store is away");
        let got = pauses(&mut world, 7, |world| {
            world.end_pod(code, |pod| {
                if let Container::Terminated { message, .. } = &mut pod.container {
                    summary.clone_into(message);
                }
            });
        });
        assert_eq!(got, [10, 20, 40, 80, 160, 300, 300], "exit code {code}");
        assert_eq!(world.attempts(), (8, 7, 0));
    }
}

#[test]
fn evictions_wait_longer_each_time_unless_an_attempt_got_somewhere() {
    let taken = |pod: &mut Pod| pod.disrupted = Some("PreemptionByScheduler".to_owned());
    let mut world = World::new();
    let got = pauses(&mut world, 8, |world| world.end_pod(137, taken));
    assert_eq!(got, [2, 4, 8, 16, 32, 64, 120, 120]);
    assert_eq!(world.attempts(), (9, 0, 8));
    // Ten minutes of work are no part of a row of evictions.
    world.seconds += 600;
    world.end_pod(137, taken);
    world.reconcile();
    let last = world.cr.status.unwrap().last_attempt.unwrap();
    let next = last.next_attempt_time.unwrap().0;
    assert_eq!(next, at(world.seconds + 2));
}

#[test]
fn a_pause_is_no_longer_than_the_longest_whatever_clock_wrote_its_end() {
    let status = TrainingRunStatus {
        last_attempt: Some(graftwork_api::training_run::AttemptEnd {
            attempt: 1,
            reason: reason::RESTARTING.to_owned(),
            message: "killed".to_owned(),
            time: graftwork_api::Time(at(0)),
            next_attempt_time: Some(graftwork_api::Time(at(300))),
        }),
        ..TrainingRunStatus::default()
    };
    for (now, left) in [
        (0, Some(300)),
        (299, Some(1)),
        (300, None),
        (-1, None),
        (-3600, None),
    ] {
        let pause = crate::run::attempt::pause(Some(&status), at(now));
        assert_eq!(pause, left, "{now}");
    }
}
