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
    let evidence = Evidence {
        metric: &rule.metric,
        measured,
        confidence,
    };
    match rule.limit {
        Limit::Minimum(limit) => judge_value(evidence, "minimum", limit, 1.0),
        Limit::Maximum(limit) => judge_value(evidence, "maximum", limit, -1.0),
        Limit::MinimumImprovement(points) => {
            let wanted = Difference {
                key: "minimumImprovementPoints",
                limit: points,
                better_by: points,
                per: Per::Point,
            };
            judge_difference(evidence, created, production, &wanted)
        }
        Limit::MaximumRegression(points) => {
            let wanted = Difference {
                key: "maximumRegressionPoints",
                limit: points,
                better_by: -points,
                per: Per::Point,
            };
            judge_difference(evidence, created, production, &wanted)
        }
        Limit::MaximumIncrease(percent) => {
            let wanted = Difference {
                key: "maximumIncreasePercent",
                limit: percent,
                better_by: -percent,
                per: Per::Percent,
            };
            judge_difference(evidence, created, production, &wanted)
        }
    }
}

fn not_measured(metric: &Metric) -> String {
    let name = metric.name();
    let place = match metric {
        Metric::LatencyP50 | Metric::LatencyP95 => "Latency in the run's evaluation.metrics",
        Metric::MeanReward => "MeanReward in the run's evaluation.metrics",
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

/// What a rule is held against.
#[derive(Clone, Copy)]
struct Evidence<'a> {
    metric: &'a Metric,
    measured: &'a Measured,
    /// Share of intervals that hold the true value.
    confidence: f64,
}

/// `sign` is 1 where the value must be above the limit, and -1 where it must be below.
fn judge_value(evidence: Evidence<'_>, key: &str, limit: f64, sign: f64) -> RuleOutcome {
    let Evidence {
        metric,
        measured,
        confidence,
    } = evidence;
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

/// What a difference is counted in.
#[derive(Clone, Copy)]
enum Per {
    /// Hundredths of the metric; up is better or down, as the metric says.
    Point,
    /// Hundredths of the reference's value; down is better.
    Percent,
}

/// What a version must show against another one.
struct Difference {
    /// The rule's key, as in YAML.
    key: &'static str,
    /// Its value.
    limit: f64,
    /// How much the version must be better by; negative: how much it may be worse by.
    better_by: f64,
    /// Of what.
    per: Per,
}

impl Difference {
    /// What a difference of 1 is worth; no number where the reference has no value to compare with.
    fn worth(&self, metric: &Metric, baseline: f64) -> f64 {
        match self.per {
            Per::Point => POINTS * metric.sign(),
            Per::Percent if baseline > 0.0 => -POINTS / baseline,
            Per::Percent => f64::NAN,
        }
    }
}

fn judge_difference(
    evidence: Evidence<'_>,
    created: &Created,
    production: Option<u32>,
    difference: &Difference,
) -> RuleOutcome {
    let Evidence {
        metric,
        measured,
        confidence,
    } = evidence;
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
    let worth = difference.worth(metric, measured.baseline);
    let (near, far) = if worth > 0.0 {
        (low, high)
    } else {
        (high, low)
    };
    let better_by = difference.better_by;
    let verdict = verdict(worth * near - better_by, worth * far - better_by);
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
                "{} over {} rows has no interval: measure on more test rows, or more groups of them",
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
mod tests;
