//! The gate: limits, differences, noise, and numbers that are none.

use graftwork_contract::Digest;
use proptest::prelude::*;

use super::*;

fn measured(name: &str, value: f64, baseline: f64, samples: u64) -> Measured {
    let error = |share: f64| (share * (1.0 - share) / samples as f64).sqrt();
    Measured {
        name: name.to_owned(),
        split: Split::Test,
        value,
        standard_error: error(value.clamp(0.0, 1.0)),
        baseline,
        difference: value - baseline,
        difference_standard_error: 0.01,
        difference_interval: None,
        samples,
        groups: None,
        excluded: 0,
    }
}

#[test]
fn rows_that_depend_on_each_other_count_once() {
    let rule = gate(Metric::TokenAccuracy, Limit::Minimum(0.80));
    let mut metric = measured("token_accuracy", 0.85, 0.1, 2000);
    metric.standard_error = 0.02;
    let verdict = |metric: &Measured| {
        let judgement = judge(&rule, &created(vec![metric.clone()], None), None);
        judgement.verdict
    };
    assert_eq!(verdict(&metric), Verdict::Pass);
    metric.groups = Some(4);
    assert_eq!(
        verdict(&metric),
        Verdict::Inconclusive,
        "four groups say little"
    );
}

fn created(metrics: Vec<Measured>, reference: Option<&str>) -> Created {
    Created {
        version: 2,
        digest: Digest::of(b"x"),
        rank: 8,
        size_bytes: 1,
        training_run: Some("run".to_owned()),
        imported_from: None,
        dataset: None,
        base: Digest::of(b"base"),
        metrics,
        precision: None,
        classification: None,
        reference: reference.map(str::to_owned),
        created_time: "2026-01-01T00:00:00Z".to_owned(),
    }
}

fn gate(metric: Metric, limit: Limit) -> Gate {
    Gate {
        rules: vec![Rule { metric, limit }],
        confidence: 0.95,
        manual: false,
        digest: Digest::of(b"gate"),
    }
}

#[test]
fn limits_pass_fail_and_stay_open() {
    let exact = |value| measured("exact_match", value, 0.40, 2000);
    let loss = |value| measured("loss", value, 2.0, 2000);
    let perplexity = |value| measured("perplexity", value, 8.0, 2000);
    for (metric, limit, measured, verdict) in [
        (
            Metric::ExactMatch,
            Limit::Minimum(0.30),
            exact(0.39),
            Verdict::Pass,
        ),
        (
            Metric::ExactMatch,
            Limit::Minimum(0.30),
            exact(0.13),
            Verdict::Fail,
        ),
        (
            Metric::ExactMatch,
            Limit::Minimum(0.30),
            exact(0.31),
            Verdict::Inconclusive,
        ),
        (
            Metric::ExactMatch,
            Limit::Maximum(0.30),
            exact(0.13),
            Verdict::Pass,
        ),
        (
            Metric::ExactMatch,
            Limit::Maximum(0.30),
            exact(0.39),
            Verdict::Fail,
        ),
        (Metric::Loss, Limit::Maximum(2.0), loss(1.5), Verdict::Pass),
        (Metric::Loss, Limit::Maximum(1.0), loss(1.5), Verdict::Fail),
        (
            Metric::Perplexity,
            Limit::Maximum(9.0),
            perplexity(6.0),
            Verdict::Pass,
        ),
    ] {
        assert_verdict(metric, limit, measured, verdict);
    }
}

#[test]
fn what_changed_since_the_reference_passes_fails_and_stays_open() {
    let exact = |value| measured("exact_match", value, 0.40, 2000);
    let loss = |value| measured("loss", value, 2.0, 2000);
    let perplexity = |value| measured("perplexity", value, 8.0, 2000);
    for (metric, limit, measured, verdict) in [
        (
            Metric::ExactMatch,
            Limit::MinimumImprovement(5.0),
            exact(0.52),
            Verdict::Pass,
        ),
        (
            Metric::ExactMatch,
            Limit::MinimumImprovement(5.0),
            exact(0.41),
            Verdict::Fail,
        ),
        (
            Metric::ExactMatch,
            Limit::MinimumImprovement(5.0),
            exact(0.46),
            Verdict::Inconclusive,
        ),
        (
            Metric::ExactMatch,
            Limit::MaximumRegression(5.0),
            exact(0.39),
            Verdict::Pass,
        ),
        (
            Metric::ExactMatch,
            Limit::MaximumRegression(5.0),
            exact(0.20),
            Verdict::Fail,
        ),
        (
            Metric::Perplexity,
            Limit::MaximumRegression(100.0),
            perplexity(10.0),
            Verdict::Fail,
        ),
        // Lower is better: a loss that fell by 0.5 improved by 50 points.
        (
            Metric::Loss,
            Limit::MinimumImprovement(40.0),
            loss(1.5),
            Verdict::Pass,
        ),
        (
            Metric::Loss,
            Limit::MinimumImprovement(60.0),
            loss(1.5),
            Verdict::Fail,
        ),
        (
            Metric::Loss,
            Limit::MaximumRegression(40.0),
            loss(2.5),
            Verdict::Fail,
        ),
    ] {
        assert_verdict(metric, limit, measured, verdict);
    }
}

fn assert_verdict(metric: Metric, limit: Limit, measured: Measured, verdict: Verdict) {
    let judgement = judge(&gate(metric, limit), &created(vec![measured], None), None);
    assert_eq!(
        judgement.verdict, verdict,
        "{limit:?}: {}",
        judgement.rules[0].message
    );
}

#[test]
fn a_message_has_value_interval_limit_and_rows() {
    let version = created(vec![measured("exact_match", 0.131, 0.4, 2000)], None);
    let judgement = judge(
        &gate(Metric::ExactMatch, Limit::Minimum(0.30)),
        &version,
        None,
    );
    assert_eq!(
        explain(&judgement),
        "exact_match 0.131 [0.1162, 0.1458] is below the minimum 0.3 over 2000 rows"
    );
}

#[test]
fn a_difference_of_0_is_said_by_the_rules_own_name() {
    for (limit, said) in [
        (Limit::MinimumImprovement(0.0), "minimumImprovementPoints 0"),
        (
            Limit::MinimumImprovement(1.5),
            "minimumImprovementPoints 1.5",
        ),
        (Limit::MaximumRegression(0.0), "maximumRegressionPoints 0"),
        (Limit::MaximumRegression(2.0), "maximumRegressionPoints 2"),
    ] {
        for value in [0.6, 0.4, 0.2] {
            let version = created(vec![measured("exact_match", value, 0.4, 2000)], None);
            let judgement = judge(&gate(Metric::ExactMatch, limit), &version, None);
            let message = &judgement.rules[0].message;
            assert!(message.contains(&format!(" {said} over")), "{message}");
        }
    }
}

#[test]
fn what_was_not_measured_is_inconclusive() {
    let rule = gate(Metric::ExactMatch, Limit::Minimum(0.3));
    let mut imported = created(vec![], None);
    imported.training_run = None;
    for version in [
        imported,
        created(vec![], None),
        created(vec![measured("exact_match", 1.0, 0.0, 1)], None),
    ] {
        assert_eq!(judge(&rule, &version, None).verdict, Verdict::Inconclusive);
    }
    let validation = Measured {
        split: Split::Validation,
        ..measured("exact_match", 0.9, 0.1, 500)
    };
    assert_eq!(
        judge(&rule, &created(vec![validation], None), None).verdict,
        Verdict::Inconclusive
    );
}

#[test]
fn a_benchmark_is_judged_by_its_own_name() {
    let rule = gate(
        Metric::Named("benchmark/critical".to_owned()),
        Limit::MaximumRegression(1.0),
    );
    let verdict = |metrics| judge(&rule, &created(metrics, None), None);
    let kept = verdict(vec![measured("benchmark/critical", 0.8, 0.7, 2000)]);
    assert_eq!(kept.verdict, Verdict::Pass);
    let other = verdict(vec![measured("benchmark/other", 0.8, 0.7, 2000)]);
    assert_eq!(other.verdict, Verdict::Inconclusive);
    assert_eq!(
        explain(&other),
        "benchmark/critical was not measured: name the benchmark in the run's evaluation.benchmarks"
    );
    let worse = verdict(vec![measured("benchmark/critical", 0.5, 0.7, 2000)]);
    assert_eq!(worse.verdict, Verdict::Fail);
}

#[test]
fn a_latency_that_the_machines_noise_covers_is_inconclusive() {
    let verdict = |percent, value, noise, rounds| {
        let mut latency = measured("latency_p95", value, 0.020, 640);
        latency.difference_standard_error = noise;
        latency.groups = Some(rounds);
        let rule = gate(Metric::LatencyP95, Limit::MaximumIncrease(percent));
        judge(&rule, &created(vec![latency], None), None).verdict
    };
    // Student's t of four degrees of freedom at 0.975 is 2.776: 0.0001 s of noise cover 1.4 %.
    for (percent, value, noise, expected) in [
        (5.0, 0.0204, 0.0001, Verdict::Pass),
        (5.0, 0.0180, 0.0001, Verdict::Pass),
        (5.0, 0.0230, 0.0001, Verdict::Fail),
        (5.0, 0.0208, 0.0001, Verdict::Inconclusive),
        (0.0, 0.0202, 0.0001, Verdict::Inconclusive),
        (0.0, 0.0204, 0.0001, Verdict::Fail),
        (5.0, 0.0230, 0.0020, Verdict::Inconclusive),
    ] {
        let got = verdict(percent, value, noise, 5);
        assert_eq!(got, expected, "{percent} % {value} s, {noise} s");
    }
    assert_eq!(verdict(5.0, 0.0204, 0.0001, 1), Verdict::Inconclusive);
}

#[test]
fn an_increase_over_nothing_is_inconclusive() {
    let rule = gate(Metric::LatencyP95, Limit::MaximumIncrease(5.0));
    let unknown = measured("latency_p95", 0.02, 0.0, 640);
    let judgement = judge(&rule, &created(vec![unknown], None), None);
    assert_eq!(judgement.verdict, Verdict::Inconclusive);
}

#[test]
fn improvement_is_against_production_and_nothing_else() {
    let rule = gate(Metric::ExactMatch, Limit::MinimumImprovement(1.0));
    let metrics = vec![measured("exact_match", 0.6, 0.3, 2000)];
    for (reference, production, verdict) in [
        (None, None, Verdict::Pass),
        (Some("base"), None, Verdict::Pass),
        (Some("1"), Some(1), Verdict::Pass),
        (Some("base"), Some(1), Verdict::Inconclusive),
        (Some("1"), Some(2), Verdict::Inconclusive),
    ] {
        let judgement = judge(&rule, &created(metrics.clone(), reference), production);
        assert_eq!(judgement.verdict, verdict, "{reference:?} {production:?}");
    }
}

#[test]
fn unanimous_rows_are_no_certainty() {
    let all_right = |samples| created(vec![measured("exact_match", 1.0, 0.0, samples)], None);
    let rule = gate(Metric::ExactMatch, Limit::Minimum(0.9));
    assert_eq!(
        judge(&rule, &all_right(10), None).verdict,
        Verdict::Inconclusive
    );
    assert_eq!(judge(&rule, &all_right(200), None).verdict, Verdict::Pass);
}

#[test]
fn no_rules_let_everything_through() {
    let mut open = gate(Metric::Loss, Limit::Maximum(1.0));
    open.rules.clear();
    assert_eq!(
        judge(&open, &created(vec![], None), None).verdict,
        Verdict::Pass
    );
}

#[test]
fn the_worst_rule_decides() {
    let mut both = gate(Metric::ExactMatch, Limit::Minimum(0.3));
    both.rules.push(Rule {
        metric: Metric::Loss,
        limit: Limit::Maximum(1.0),
    });
    let exact = measured("exact_match", 0.9, 0.1, 500);
    let version = created(vec![exact.clone()], None);
    assert_eq!(judge(&both, &version, None).verdict, Verdict::Inconclusive);
    let version = created(vec![exact, measured("loss", 2.0, 2.0, 500)], None);
    assert_eq!(judge(&both, &version, None).verdict, Verdict::Fail);
}

proptest! {
    /// What passes at a high confidence passes at a lower one; a stricter limit never helps.
    #[test]
    fn verdicts_are_monotonic(
        value in 0.0_f64..1.0,
        limit in 0.0_f64..1.0,
        samples in 2_u64..5000,
        stricter in 0.0_f64..0.5,
    ) {
        let version = created(vec![measured("exact_match", value, 0.5, samples)], None);
        let verdict = |confidence, limit| {
            let gate = Gate { confidence, ..gate(Metric::ExactMatch, Limit::Minimum(limit)) };
            judge(&gate, &version, None).verdict
        };
        if verdict(0.99, limit) == Verdict::Pass {
            prop_assert_eq!(verdict(0.8, limit), Verdict::Pass);
        }
        if verdict(0.95, limit) == Verdict::Fail {
            prop_assert_eq!(verdict(0.95, limit + stricter), Verdict::Fail);
        }
    }

    /// No number of a report makes the gate panic or pass by accident.
    #[test]
    fn odd_numbers_never_pass_a_strict_rule(
        value in prop::num::f64::ANY,
        error in prop::num::f64::ANY,
        samples in 0_u64..10,
    ) {
        let odd = Measured { value, standard_error: error, ..measured("loss", 0.0, 0.0, samples) };
        let rule = gate(Metric::Loss, Limit::Maximum(-1e300));
        let verdict = judge(&rule, &created(vec![odd], None), None).verdict;
        prop_assert!(verdict != Verdict::Pass || value <= -1e300);
    }
}
