//! The gate: rules over a version's test metrics, judged with an interval at the gate's confidence.
//!
//! A rule passes when the near end of the interval keeps the limit, fails when the far end breaks
//! it, and is Inconclusive between the two: too little was measured to say.

use graftwork_contract::dataset::Split;
use graftwork_contract::ledger::{Created, RuleOutcome, Verdict};
use graftwork_contract::run::{LABEL_PREFIX, Metric as Measured};
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::validate::{Gate, Limit, Metric, Rule};

/// Points of one: rules about differences count in hundredths.
const POINTS: f64 = 100.0;
/// What a run without a version to compare with was compared with.
pub const BASE_REFERENCE: &str = "base";

/// The gate's judgement of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Fail where a rule fails, else Inconclusive where one is, else Pass.
    pub verdict: Verdict,
    /// Rule by rule.
    pub rules: Vec<RuleOutcome>,
}

/// Judges a version. `production` is the version that improvement is measured against; without one
/// it is the bare base model.
pub fn judge(gate: &Gate, created: &Created, production: Option<u32>) -> Judgement {
    let rules: Vec<_> = gate
        .rules
        .iter()
        .map(|rule| judge_rule(rule, gate.confidence, created, production))
        .collect();
    let has = |verdict| rules.iter().any(|rule| rule.verdict == verdict);
    let verdict = if has(Verdict::Fail) {
        Verdict::Fail
    } else if has(Verdict::Inconclusive) {
        Verdict::Inconclusive
    } else {
        Verdict::Pass
    };
    Judgement { verdict, rules }
}

/// What the message of a failed or undecided judgement says: the rules that did not pass.
pub fn explain(judgement: &Judgement) -> String {
    judgement
        .rules
        .iter()
        .filter(|rule| rule.verdict == judgement.verdict)
        .map(|rule| rule.message.as_str())
        .collect::<Vec<_>>()
        .join("; ")
}

fn judge_rule(
    rule: &Rule,
    confidence: f64,
    created: &Created,
    production: Option<u32>,
) -> RuleOutcome {
    let name = rule.metric.name();
    let measured = created
        .metrics
        .iter()
        .find(|measured| measured.name == name && measured.split == Split::Test);
    let Some(measured) = measured.filter(|measured| measured.samples > 0) else {
        let message = if created.training_run.is_none() {
            format!("{name} is not known: the version was imported and never evaluated")
        } else {
            not_measured(&rule.metric)
        };
        return undecided(name, message);
    };
    match rule.limit {
        Limit::Minimum(limit) => {
            judge_value(&rule.metric, measured, confidence, "minimum", limit, 1.0)
        }
        Limit::Maximum(limit) => {
            judge_value(&rule.metric, measured, confidence, "maximum", limit, -1.0)
        }
        Limit::MinimumImprovement(points) => {
            let wanted = Difference {
                key: "minimumImprovementPoints",
                limit: points,
                points,
            };
            judge_difference(
                &rule.metric,
                measured,
                confidence,
                created,
                production,
                &wanted,
            )
        }
        Limit::MaximumRegression(points) => {
            let wanted = Difference {
                key: "maximumRegressionPoints",
                limit: points,
                points: -points,
            };
            judge_difference(
                &rule.metric,
                measured,
                confidence,
                created,
                production,
                &wanted,
            )
        }
    }
}

fn not_measured(metric: &Metric) -> String {
    let name = metric.name();
    let place = match metric {
        Metric::MacroF1 => "ClassificationReport in the run's evaluation.metrics",
        Metric::Named(name) if name.starts_with(LABEL_PREFIX) => {
            "ClassificationReport in the run's evaluation.metrics, and a label of the test rows"
        }
        Metric::Named(_) => "the benchmark in the run's evaluation.benchmarks",
        _ => "it in the run's evaluation.metrics",
    };
    format!("{name} was not measured: name {place}")
}

fn undecided(name: &str, message: String) -> RuleOutcome {
    RuleOutcome {
        metric: name.to_owned(),
        value: None,
        reference: None,
        interval: None,
        verdict: Verdict::Inconclusive,
        message,
    }
}

/// `sign` is 1 where the value must be above the limit, and -1 where it must be below.
fn judge_value(
    metric: &Metric,
    measured: &Measured,
    confidence: f64,
    key: &str,
    limit: f64,
    sign: f64,
) -> RuleOutcome {
    let Some(half) = half_width(
        metric,
        measured.standard_error,
        measured.independent(),
        confidence,
    ) else {
        return too_few(metric, measured);
    };
    let (low, high) = clamp(metric, measured.value - half, measured.value + half);
    let (near, far) = if sign > 0.0 { (low, high) } else { (high, low) };
    let verdict = verdict(sign * (near - limit), sign * (far - limit));
    let relation = match (verdict, sign > 0.0) {
        (Verdict::Pass, _) => "keeps the",
        (Verdict::Fail, true) => "is below the",
        (Verdict::Fail, false) => "is above the",
        (Verdict::Inconclusive, _) => "can't be told from the",
    };
    RuleOutcome {
        metric: metric.name().to_owned(),
        value: Some(print(measured.value)),
        reference: None,
        interval: Some([print(low), print(high)]),
        verdict,
        message: format!(
            "{} {} [{}, {}] {relation} {key} {} over {} rows",
            metric.name(),
            print(measured.value),
            print(low),
            print(high),
            print(limit),
            measured.samples
        ),
    }
}

/// What a version must show against another one.
struct Difference {
    /// The rule's key, as in YAML.
    key: &'static str,
    /// Its value.
    limit: f64,
    /// Points that the version must be better by; negative: that it may be worse by.
    points: f64,
}

fn judge_difference(
    metric: &Metric,
    measured: &Measured,
    confidence: f64,
    created: &Created,
    production: Option<u32>,
    difference: &Difference,
) -> RuleOutcome {
    let wanted =
        production.map_or_else(|| BASE_REFERENCE.to_owned(), |version| version.to_string());
    let found = created.reference.as_deref().unwrap_or(BASE_REFERENCE);
    if found != wanted {
        return RuleOutcome {
            value: Some(print(measured.value)),
            reference: Some(print(measured.baseline)),
            ..undecided(
                metric.name(),
                format!(
                    "{} was compared with {} and production is {}: train again",
                    metric.name(),
                    describe_reference(found),
                    describe_reference(&wanted)
                ),
            )
        };
    }
    let half = half_width(
        metric,
        measured.difference_standard_error,
        measured.independent(),
        confidence,
    );
    let Some(half) = half else {
        return too_few(metric, measured);
    };
    let (low, high) = (measured.difference - half, measured.difference + half);
    let improvement = |difference: f64| POINTS * metric.sign() * difference;
    let (near, far) = if metric.sign() > 0.0 {
        (low, high)
    } else {
        (high, low)
    };
    let points = difference.points;
    let verdict = verdict(improvement(near) - points, improvement(far) - points);
    let relation = match verdict {
        Verdict::Pass => "keeps",
        Verdict::Fail => "breaks",
        Verdict::Inconclusive => "can't be told from",
    };
    let limit = format!("{} {}", difference.key, print(difference.limit));
    RuleOutcome {
        metric: metric.name().to_owned(),
        value: Some(print(measured.value)),
        reference: Some(print(measured.baseline)),
        interval: Some([print(low), print(high)]),
        verdict,
        message: format!(
            "{} {} against {} of {} (difference [{}, {}]) {relation} {limit} over {} rows",
            metric.name(),
            print(measured.value),
            print(measured.baseline),
            describe_reference(found),
            print(low),
            print(high),
            measured.samples
        ),
    }
}

fn describe_reference(reference: &str) -> String {
    if reference == BASE_REFERENCE {
        "the bare base model".to_owned()
    } else {
        format!("version {reference}")
    }
}

fn too_few(metric: &Metric, measured: &Measured) -> RuleOutcome {
    RuleOutcome {
        value: Some(print(measured.value)),
        ..undecided(
            metric.name(),
            format!(
                "{} over {} rows has no interval",
                metric.name(),
                measured.samples
            ),
        )
    }
}

/// `near` and `far` are what the two ends of the interval have over the limit.
fn verdict(near: f64, far: f64) -> Verdict {
    if near.is_nan() || far.is_nan() {
        Verdict::Inconclusive
    } else if near >= 0.0 {
        Verdict::Pass
    } else if far < 0.0 {
        Verdict::Fail
    } else {
        Verdict::Inconclusive
    }
}

/// Half the width of the two-sided interval: Student's t with n-1 degrees of freedom, where n counts
/// groups of rows that depend on each other once.
///
/// A share of which every row says the same has a standard error of 0, which is no certainty: its
/// interval is at least as wide as the one of a share of which no row was seen in n, -ln(a/2)/n
/// (the "rule of three": Hanley and Lippman-Hand 1983).
fn half_width(metric: &Metric, standard_error: f64, samples: u64, confidence: f64) -> Option<f64> {
    if samples < 2 || !standard_error.is_finite() || standard_error < 0.0 {
        return None;
    }
    let freedom = (samples - 1) as f64;
    let quantile = StudentsT::new(0.0, 1.0, freedom)
        .ok()?
        .inverse_cdf(f64::midpoint(1.0, confidence));
    let half = quantile * standard_error;
    if !metric.is_share() {
        return Some(half);
    }
    let unseen = -((1.0 - confidence) / 2.0).ln() / samples as f64;
    Some(half.max(unseen))
}

fn clamp(metric: &Metric, low: f64, high: f64) -> (f64, f64) {
    if metric.is_share() {
        (low.clamp(0.0, 1.0), high.clamp(0.0, 1.0))
    } else {
        (low, high)
    }
}

/// A number for people: four decimals.
pub fn print(value: f64) -> String {
    graftwork_api::Decimal::rounded(value, 4)
        .map_or_else(|| "not a number".to_owned(), |text| text.to_string())
}

#[cfg(test)]
mod tests {
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
            let judgement = judge(&gate(metric, limit), &created(vec![measured], None), None);
            assert_eq!(
                judgement.verdict, verdict,
                "{limit:?}: {}",
                judgement.rules[0].message
            );
        }
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
}
