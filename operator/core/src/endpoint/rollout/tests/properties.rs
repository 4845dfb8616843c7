//! What holds for any course of events, and that every one of them comes to rest.

use graftwork_api::serving_endpoint::Candidate;
use proptest::prelude::*;

use super::*;

fn verdicts() -> impl proptest::strategy::Strategy<Value = Option<Verdict>> {
    prop_oneof![
        Just(None),
        Just(Some(Verdict::Pass)),
        Just(Some(Verdict::Fail)),
        Just(Some(Verdict::Inconclusive)),
    ]
}

fn verbs() -> impl proptest::strategy::Strategy<Value = Option<(EndpointVerb, u32)>> {
    let verb = prop_oneof![
        Just(EndpointVerb::Promote),
        Just(EndpointVerb::Abort),
        Just(EndpointVerb::Pause),
        Just(EndpointVerb::Resume),
        Just(EndpointVerb::Retry),
        Just(EndpointVerb::Rollback),
    ];
    prop_oneof![4 => Just(None), 1 => (verb, 1_u32..5).prop_map(Some)]
}

fn strategies() -> impl proptest::strategy::Strategy<Value = Moves> {
    prop_oneof![
        Just(canary()),
        Just(Moves::Canary(vec![
            Step::SetWeight(5),
            Step::SetWeight(100)
        ])),
        (any::<bool>(), 0_u64..100, 0_u64..100).prop_map(
            |(auto_promote, preview_seconds, delay_seconds)| {
                Moves::BlueGreen {
                    auto_promote,
                    preview_seconds,
                    delay_seconds,
                }
            }
        ),
        Just(Moves::Immediate),
    ]
}

/// Any persisted facts, also such as no run of the machine leaves behind.
fn facts() -> impl proptest::strategy::Strategy<Value = ServedAdapter> {
    let state = prop_oneof![
        Just(settled()),
        Just(RolloutState::Preparing),
        Just(RolloutState::Stepping),
        Just(RolloutState::Paused),
        Just(RolloutState::Promoting),
        Just(RolloutState::RollingBack),
        Just(RolloutState::RolledBack),
        Just(RolloutState::from("Unheard")),
    ];
    let by = prop_oneof![
        Just(None),
        Just(Some(PausedBy::Step)),
        Just(Some(PausedBy::Command)),
        Just(Some(PausedBy::Analysis)),
    ];
    let rollout = (state, 0_u32..6, 0_i64..500, by, 0_u32..3, any::<bool>()).prop_map(
        |(state, step, since, paused_by, failures, timed)| {
            graftwork_api::serving_endpoint::AdapterRollout {
                state,
                step,
                since: graftwork_api::Time(at(since)),
                step_since: timed.then(|| graftwork_api::Time(at(since))),
                paused_by,
                commanded: timed,
                failures,
                window_since: timed.then(|| graftwork_api::Time(at(since))),
                last_analysis_time: None,
                salt: None,
                reason: None,
                message: None,
                analysis: Vec::new(),
            }
        },
    );
    (
        proptest::option::of(1_u32..5),
        proptest::option::of((1_u32..5, 0_u32..=100)),
        proptest::option::of(rollout),
    )
        .prop_map(|(stable, candidate, rollout)| ServedAdapter {
            name: "a".to_owned(),
            stable: stable.map(version),
            candidate: candidate.map(|(number, weight)| Candidate {
                version: number,
                digest: version(number).digest,
                weight,
            }),
            rollout,
            ..ServedAdapter::default()
        })
}

#[derive(Debug, Clone)]
struct Moment {
    seconds: i64,
    ready: usize,
    missing: usize,
    routers: Routers,
    verdict: Option<Verdict>,
    verb: Option<(EndpointVerb, u32)>,
    wanted: Option<u32>,
    withdrawn: bool,
}

fn moments() -> impl proptest::strategy::Strategy<Value = Vec<Moment>> {
    let moment = (
        0_i64..200,
        0_usize..3,
        0_usize..3,
        0_usize..3,
        any::<bool>(),
        verdicts(),
        verbs(),
        proptest::option::of(1_u32..5),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(seconds, ready, missing, routers, acknowledged, verdict, verb, wanted, withdrawn)| {
                Moment {
                    seconds,
                    ready,
                    missing,
                    routers: Routers {
                        ready: routers,
                        acknowledged: acknowledged && routers > 0,
                    },
                    verdict,
                    verb,
                    wanted,
                    withdrawn,
                }
            },
        );
    proptest::collection::vec(moment, 1..40)
}

proptest! {
    /// Whatever happens: traffic only ever goes to what every ready engine has, a rejected version is
    /// begun by a person only, a failed judgement beyond the limit ends the rollout, times never run
    /// backwards.
    #[test]
    fn no_course_of_events_breaks_the_rules(
        strategy in strategies(),
        start in facts(),
        moments in moments(),
        limit in 0_u32..2,
    ) {
        let mut world = World::new(judged(policy(strategy), limit));
        world.adapter = start;
        for moment in moments {
            world.now += moment.seconds;
            world.engines = Engines {
                ready: moment.ready,
                verified: moment.ready.saturating_sub(moment.missing),
                refused: None,
            };
            world.routers = moment.routers;
            world.judgement = moment.verdict.as_ref().map(judgement);
            world.command = moment.verb.clone().map(|(verb, number)| command(verb, number, None));
            world.wanted = moment.wanted.map(version);
            world.withdrawn = moment.withdrawn.then(|| "rejected by ann".to_owned());
            let before = world.adapter.clone();
            let barred: Vec<String> = world.rejected.iter().map(|it| it.digest.clone()).collect();
            let failing = moment.verdict == Some(Verdict::Fail);
            let Some(change) = world.step() else { continue };
            let weight = |it: &ServedAdapter| it.candidate.as_ref().map_or(0, |it| it.weight);
            let after = &change.adapter;
            if moment.withdrawn && before.candidate.is_some() {
                prop_assert!(weight(after) <= weight(&before), "more traffic to what was withdrawn");
                prop_assert!(
                    after.stable == before.stable,
                    "what was withdrawn took over: {after:?}"
                );
            }
            if weight(after) > weight(&before) {
                prop_assert!(world.engines.have_candidate(), "traffic to engines that lack it");
                prop_assert!(world.routers.ready > 0);
                let commanded = matches!(moment.verb, Some((EndpointVerb::Promote, _)));
                prop_assert!(world.routers.acknowledged || commanded);
            }
            let begun = after.candidate.as_ref().filter(|candidate| {
                before.candidate.as_ref().is_none_or(|known| known.digest != candidate.digest)
            });
            if let Some(begun) = begun {
                let commanded = matches!(
                    moment.verb,
                    Some((EndpointVerb::Retry | EndpointVerb::Rollback, _))
                );
                prop_assert!(!barred.contains(&begun.digest) || commanded);
                prop_assert_eq!(begun.weight, 0);
            }
            let refused = change.answer.as_ref().is_some_and(|(outcome, _)| *outcome == AnswerOutcome::Refused);
            if refused {
                prop_assert_eq!(&before, after);
            }
            if let (Some(old), Some(new)) = (&before.rollout, &after.rollout) {
                prop_assert!(new.since.0 >= old.since.0 || old.since.0 > at(world.now));
                let judged = failing && moment.verb.is_none() && new.failures > old.failures;
                if judged && new.failures > limit {
                    prop_assert_eq!(&new.state, &RolloutState::RollingBack);
                    prop_assert_eq!(weight(after), 0);
                }
            }
            if after.candidate.is_none() && !refused {
                let state = after.rollout.as_ref().map(|rollout| &rollout.state);
                prop_assert!(state.is_none() || state == Some(&RolloutState::RolledBack));
            }
        }
    }

    /// From any facts, in a world that holds still, the machine comes to rest and then writes no more.
    #[test]
    fn every_start_comes_to_rest(
        strategy in strategies(),
        start in facts(),
        wanted in proptest::option::of(1_u32..5),
        passes in any::<bool>(),
        good_engines in any::<bool>(),
    ) {
        let mut world = World::new(judged(policy(strategy), 0));
        world.adapter = start;
        world.now = 1000;
        world.wanted = wanted.map(version);
        if !good_engines {
            world.engines.verified = 1;
        }
        for _ in 0..300 {
            world.now += 60;
            let open = world.adapter.candidate.is_some();
            world.judgement = (open && passes).then(|| judgement(&Verdict::Pass));
            world.settle();
        }
        let rested = world.adapter.clone();
        world.now += 100_000;
        world.judgement = None;
        prop_assert_eq!(world.step(), None);
        let under_way = rested.rollout.as_ref().is_some_and(|rollout| is_active(&rollout.state));
        let held = rested.rollout.as_ref().is_some_and(|rollout| {
            matches!(rollout.state, RolloutState::Paused | RolloutState::Stepping)
                || (rollout.state == RolloutState::Preparing && rested.stable.is_none())
                || (rollout.state == RolloutState::Promoting && !good_engines)
        });
        prop_assert!(!under_way || held, "{rested:?}");
        if let (Some(wanted), true, true) = (wanted, passes, good_engines && !under_way) {
            let rejected = !world.rejected.is_empty();
            prop_assert!(rejected || rested.stable == Some(version(wanted)));
        }
    }
}
