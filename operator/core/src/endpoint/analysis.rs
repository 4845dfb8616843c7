//! Analysis: the judgement of live traffic, candidate against limits and against the stable version
//! in the same window, from the routers' own counters.
//!
//! A rule fails only where the numbers say so beyond their own noise, and passes where the value
//! itself keeps the limit. Between the two, and wherever a source is missing, it is Inconclusive:
//! the weight is held while more requests come.

use graftwork_api::Decimal;
use graftwork_api::lora_adapter::Verdict;
use graftwork_api::serving_endpoint::AnalysisResult;
use graftwork_contract::latency;
use graftwork_contract::proto::router::v1::{
    ClusterSums, HistogramBucket, StatsReply, VersionStats,
};
use statrs::distribution::{Beta, ContinuousCDF};

use super::cluster::Clusters;
use super::observed::RouterPod;
use super::validate::{Analysis, Limit, Metric, Rule};
use crate::conditions::shorten;
use crate::observed::Asked;

/// Of one-sided ranges.
pub(super) const CONFIDENCE: f64 = 0.95;
/// The standard normal distribution's quantile at it.
pub(super) const Z: f64 = 1.645;
/// Share of requests that the latency metric leaves above itself.
const TAIL: f64 = 0.95;
/// Rounding of limits and bucket bounds never decides.
const TOLERANCE: f64 = 1e-9;

/// The judgement of one window.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Fail where a rule fails, else Inconclusive where one is, else Pass.
    pub verdict: Verdict,
    /// Rule by rule.
    pub results: Vec<AnalysisResult>,
    /// The reason and the words of a rollback, where a rule failed.
    pub failure: Option<(&'static str, String)>,
    /// A router did not run through the whole window: it has to begin anew.
    pub gap: bool,
}

impl Judgement {
    /// The same while some of the traffic is not counted, for the reason `why`: it passes nothing. What fails
    /// fails, for the numbers that there are say so.
    #[must_use]
    pub fn of_a_part(mut self, why: &str) -> Self {
        for result in &mut self.results {
            if result.verdict == Verdict::Pass {
                let message = result.message.take().unwrap_or_default();
                result.verdict = Verdict::Inconclusive;
                result.message = Some(shorten(&format!("{why} (without it {message})")));
            }
        }
        if self.verdict == Verdict::Pass {
            self.verdict = Verdict::Inconclusive;
        }
        self
    }
}

/// What all routers counted for one version.
#[derive(Debug, Clone, Default, PartialEq)]
struct Counts {
    completed: u64,
    errors: u64,
    errors_by_caller: Clusters,
    latency: Latencies,
    first_byte: Latencies,
}

/// A histogram, and how the highest of it fall upon callers.
#[derive(Debug, Clone, Default, PartialEq)]
struct Latencies {
    buckets: Vec<(u32, u64)>,
    by_caller: Clusters,
}

impl Counts {
    fn add(&mut self, stats: &VersionStats) {
        self.completed += stats.completed;
        self.errors += stats.errors;
        self.errors_by_caller.add(stats.errors_by_caller.as_ref());
        self.latency
            .add(&stats.latency, stats.latency_by_caller.as_ref());
        self.first_byte
            .add(&stats.first_byte, stats.first_byte_by_caller.as_ref());
    }
}

impl Latencies {
    fn add(&mut self, buckets: &[HistogramBucket], by_caller: Option<&ClusterSums>) {
        self.buckets
            .extend(buckets.iter().map(|bucket| (bucket.index, bucket.count)));
        self.by_caller.add(by_caller);
    }
}

/// Judges the window that the routers were asked about; none where they were not asked.
pub fn judge(
    analysis: &Analysis,
    model: &str,
    stable: Option<&str>,
    candidate: &str,
    routers: &[&RouterPod],
) -> Option<Judgement> {
    if routers
        .iter()
        .all(|router| !router.stats.contains_key(model))
        && !routers.is_empty()
    {
        return None;
    }
    let replies = match read(model, routers) {
        Ok(replies) => replies,
        Err(missing) => return Some(undecided(analysis, &missing.message, missing.gap)),
    };
    let count = |digest: &str| {
        let mut counts = Counts::default();
        replies
            .iter()
            .flat_map(|reply| &reply.versions)
            .filter(|stats| stats.model == model && stats.digest == digest)
            .for_each(|stats| counts.add(stats));
        counts
    };
    let of_stable = stable.map(count).unwrap_or_default();
    let of_candidate = count(candidate);
    let judged: Vec<_> = analysis
        .rules
        .iter()
        .map(|rule| judge_rule(*rule, analysis.minimum_requests, &of_stable, &of_candidate))
        .collect();
    Some(summarise(&analysis.rules, judged))
}

struct Missing {
    message: String,
    gap: bool,
}

/// The replies of all routers, or why they do not make a whole.
fn read<'a>(model: &str, routers: &[&'a RouterPod]) -> Result<Vec<&'a StatsReply>, Missing> {
    if routers.is_empty() {
        return Err(Missing {
            message: "no router is ready".to_owned(),
            gap: false,
        });
    }
    routers
        .iter()
        .map(|router| match router.stats.get(model) {
            Some(Asked::Answered(reply)) if reply.covered => Ok(reply),
            Some(Asked::Answered(_)) => Err(Missing {
                message: format!("router {} started within the window", router.pod.name),
                gap: true,
            }),
            Some(Asked::Unreachable(why)) => Err(Missing {
                message: format!("router {} does not answer: {why}", router.pod.name),
                gap: false,
            }),
            Some(Asked::NotAsked) | None => Err(Missing {
                message: format!("router {} was not asked", router.pod.name),
                gap: false,
            }),
        })
        .collect()
}

fn undecided(analysis: &Analysis, message: &str, gap: bool) -> Judgement {
    let results = analysis
        .rules
        .iter()
        .map(|rule| AnalysisResult {
            metric: rule.metric.name().to_owned(),
            stable: None,
            candidate: None,
            samples: 0,
            verdict: Verdict::Inconclusive,
            message: Some(shorten(message)),
        })
        .collect();
    Judgement {
        verdict: Verdict::Inconclusive,
        results,
        failure: None,
        gap,
    }
}

fn summarise(rules: &[Rule], results: Vec<AnalysisResult>) -> Judgement {
    let failure = rules
        .iter()
        .zip(&results)
        .find(|(_, result)| result.verdict == Verdict::Fail)
        .map(|(rule, result)| {
            (
                rule.metric.reason(),
                result.message.clone().unwrap_or_default(),
            )
        });
    let verdict = if failure.is_some() {
        Verdict::Fail
    } else if results.iter().all(|result| result.verdict == Verdict::Pass) {
        Verdict::Pass
    } else {
        Verdict::Inconclusive
    };
    Judgement {
        verdict,
        results,
        failure,
        gap: false,
    }
}

/// A value with the range in which the true one lies.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    value: f64,
    low: f64,
    high: f64,
    /// As many samples of callers of their own would leave that range.
    independent: f64,
}

fn estimate(metric: Metric, counts: &Counts) -> Option<Estimate> {
    match metric {
        Metric::ErrorRate => error_rate(counts),
        Metric::LatencyP95 => p95(&counts.latency),
        Metric::TimeToFirstTokenP95 => p95(&counts.first_byte),
    }
}

/// Share of errors with the exact interval of Clopper and Pearson (1934), over as many samples as those of the callers
/// are worth (Korn and Graubard 1998).
fn error_rate(counts: &Counts) -> Option<Estimate> {
    if counts.completed == 0 {
        return None;
    }
    let n = counts.errors_by_caller.independent(counts.completed);
    let share = (counts.errors as f64 / counts.completed as f64).min(1.0);
    let (errors, good) = (share * n, (1.0 - share) * n);
    Some(Estimate {
        value: share,
        low: beta_quantile(errors, good + 1.0, 1.0 - CONFIDENCE).unwrap_or(0.0),
        high: beta_quantile(errors + 1.0, good, CONFIDENCE).unwrap_or(1.0),
        independent: n,
    })
}

/// None where a parameter is 0: then the interval has no end of its own there.
fn beta_quantile(a: f64, b: f64, share: f64) -> Option<f64> {
    Some(Beta::new(a, b).ok()?.inverse_cdf(share))
}

/// 95th percentile in seconds. The range is that of the order statistics around it: the number of
/// samples below a quantile is binomial (David and Nagaraja, Order Statistics, 7.1), over as many samples as those of
/// the callers are worth (Woodruff 1952).
fn p95(latencies: &Latencies) -> Option<Estimate> {
    let samples: u64 = latencies.buckets.iter().map(|(_, count)| count).sum();
    let n = latencies.by_caller.independent(samples);
    let spread = Z * (TAIL * (1.0 - TAIL) / n).sqrt();
    let at = |share: f64| Some(latency::quantile(&latencies.buckets, share)? / 1000.0);
    Some(Estimate {
        value: at(TAIL)?,
        low: at(TAIL - spread)?,
        high: at(TAIL + spread)?,
        independent: n,
    })
}

fn judge_rule(rule: Rule, minimum: u64, stable: &Counts, candidate: &Counts) -> AnalysisResult {
    let of_stable = estimate(rule.metric, stable);
    let of_candidate = estimate(rule.metric, candidate);
    let (verdict, message) = match (of_candidate, of_stable, rule.limit) {
        (None, ..) => too_few("the candidate", candidate.completed, minimum),
        _ if candidate.completed < minimum => {
            too_few("the candidate", candidate.completed, minimum)
        }
        (Some(candidate_value), _, Limit::Maximum(limit)) => {
            against_maximum(rule.metric, candidate_value, limit, candidate.completed)
        }
        (_, None, _) => too_few("the stable version", stable.completed, minimum),
        _ if stable.completed < minimum => too_few("the stable version", stable.completed, minimum),
        (Some(candidate_value), Some(stable_value), Limit::MaximumIncreasePercent(percent)) => {
            let samples = candidate.completed;
            against_stable(rule.metric, candidate_value, stable_value, percent, samples)
        }
    };
    AnalysisResult {
        metric: rule.metric.name().to_owned(),
        stable: of_stable.and_then(|estimate| Decimal::rounded(estimate.value, 4)),
        candidate: of_candidate.and_then(|estimate| Decimal::rounded(estimate.value, 4)),
        samples: candidate.completed,
        verdict,
        message: Some(shorten(&message)),
    }
}

fn too_few(whose: &str, completed: u64, minimum: u64) -> (Verdict, String) {
    (
        Verdict::Inconclusive,
        format!("{whose} completed {completed} requests of minimumRequests {minimum}"),
    )
}

fn against_maximum(
    metric: Metric,
    candidate: Estimate,
    limit: f64,
    samples: u64,
) -> (Verdict, String) {
    let verdict = verdict(
        candidate.value <= limit + TOLERANCE,
        candidate.low > limit + TOLERANCE,
    );
    let relation = relation(&verdict);
    let worth = worth(&verdict, candidate, samples);
    (
        verdict,
        format!(
            "{} {} {relation} {} over {samples} requests{worth}",
            metric.name(),
            print(candidate.value),
            print(limit)
        ),
    )
}

fn against_stable(
    metric: Metric,
    candidate: Estimate,
    stable: Estimate,
    percent: f64,
    samples: u64,
) -> (Verdict, String) {
    let factor = 1.0 + percent / 100.0 + TOLERANCE;
    let verdict = verdict(
        candidate.value <= stable.value * factor,
        candidate.low > stable.high * factor,
    );
    let relation = relation(&verdict);
    let worth = worth(&verdict, candidate, samples);
    (
        verdict,
        format!(
            "{} {} {relation} {} of the stable version + {} % over {samples} requests{worth}",
            metric.name(),
            print(candidate.value),
            print(stable.value),
            print(percent)
        ),
    )
}

fn verdict(keeps: bool, breaks: bool) -> Verdict {
    if keeps {
        Verdict::Pass
    } else if breaks {
        Verdict::Fail
    } else {
        Verdict::Inconclusive
    }
}

fn relation(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "<=",
        Verdict::Fail => ">",
        _ => "is, within its noise, at",
    }
}

/// Why so many requests do not decide, where it is that few callers made them.
fn worth(verdict: &Verdict, of: Estimate, samples: u64) -> String {
    let independent = of.independent.floor();
    if *verdict != Verdict::Inconclusive || independent * 2.0 > samples as f64 {
        return String::new();
    }
    format!(
        " (they come from so few callers that they say as much as {independent} of a caller each)"
    )
}

fn print(value: f64) -> String {
    Decimal::rounded(value, 4).map_or_else(|| "not a number".to_owned(), |text| text.to_string())
}

#[cfg(test)]
mod tests {
    use graftwork_contract::proto::router::v1::HistogramBucket;
    use proptest::prelude::*;

    use super::*;

    fn stats(digest: &str, completed: u64, errors: u64, milliseconds: &[f64]) -> VersionStats {
        VersionStats {
            model: "m".to_owned(),
            version: 1,
            digest: digest.to_owned(),
            completed,
            errors,
            latency: milliseconds
                .iter()
                .map(|it| HistogramBucket {
                    index: latency::bucket(*it),
                    count: 1,
                })
                .collect(),
            ..VersionStats::default()
        }
    }

    fn router(versions: Vec<VersionStats>) -> RouterPod {
        let reply = StatsReply {
            covered: true,
            versions,
            ..StatsReply::default()
        };
        RouterPod {
            stats: [("m".to_owned(), Asked::Answered(reply))].into(),
            ..RouterPod::default()
        }
    }

    fn analysis(metric: Metric, limit: Limit) -> Analysis {
        Analysis {
            interval_seconds: 10,
            minimum_requests: 50,
            rules: vec![Rule { metric, limit }],
            failure_limit: 0,
        }
    }

    fn ruled(metric: Metric, limit: Limit, router: &RouterPod) -> Judgement {
        judge(&analysis(metric, limit), "m", Some("old"), "new", &[router]).unwrap()
    }

    #[test]
    fn errors_are_judged_beyond_their_noise() {
        let limit = Limit::Maximum(0.01);
        for (completed, errors, verdict) in [
            (49, 49, Verdict::Inconclusive),
            (50, 0, Verdict::Pass),
            (50, 1, Verdict::Inconclusive),
            (812, 8, Verdict::Pass),
            (812, 65, Verdict::Fail),
        ] {
            let judgement = ruled(
                Metric::ErrorRate,
                limit,
                &router(vec![stats("new", completed, errors, &[])]),
            );
            assert_eq!(judgement.verdict, verdict, "{errors} of {completed}");
        }
        let judgement = ruled(
            Metric::ErrorRate,
            limit,
            &router(vec![stats("new", 812, 65, &[])]),
        );
        assert_eq!(
            judgement.failure,
            Some((
                graftwork_api::conditions::reason::ERROR_RATE_ABOVE_LIMIT,
                "error_rate 0.08 > 0.01 over 812 requests".to_owned()
            ))
        );
    }

    #[test]
    fn latency_is_compared_in_the_same_window() {
        let spread =
            |factor: f64| -> Vec<f64> { (1..=200).map(|it| f64::from(it) * factor).collect() };
        let limit = Limit::MaximumIncreasePercent(10.0);
        let both = |factor| {
            router(vec![
                stats("old", 200, 0, &spread(1.0)),
                stats("new", 200, 0, &spread(factor)),
            ])
        };
        assert_eq!(
            ruled(Metric::LatencyP95, limit, &both(1.0)).verdict,
            Verdict::Pass
        );
        assert_eq!(
            ruled(Metric::LatencyP95, limit, &both(1.15)).verdict,
            Verdict::Inconclusive
        );
        let slow = ruled(Metric::LatencyP95, limit, &both(5.0));
        assert_eq!(slow.verdict, Verdict::Fail);
        let (reason, message) = slow.failure.unwrap();
        assert_eq!(
            reason,
            graftwork_api::conditions::reason::LATENCY_ABOVE_LIMIT
        );
        assert!(message.ends_with("+ 10 % over 200 requests"), "{message}");
    }

    /// 20 callers with 40 requests each; so many errors of each.
    fn by_callers(errors: [u64; 20]) -> VersionStats {
        let sum = |of: fn(u64) -> u64| errors.iter().map(|it| of(*it)).sum();
        VersionStats {
            errors_by_caller: Some(ClusterSums {
                callers: 20,
                samples: 800,
                hits: sum(|it| it),
                samples_squared: 20 * 40 * 40,
                samples_times_hits: sum(|it| it * 40),
                hits_squared: sum(|it| it * it),
            }),
            ..stats("new", 800, sum(|it| it), &[])
        }
    }

    #[test]
    fn errors_of_one_caller_hold_where_as_many_of_all_callers_fail() {
        let limit = Limit::Maximum(0.01);
        let judged = |stats| ruled(Metric::ErrorRate, limit, &router(vec![stats]));
        assert_eq!(judged(by_callers([2; 20])).verdict, Verdict::Fail);
        let mut one = [0; 20];
        one[7] = 40;
        let judgement = judged(by_callers(one));
        assert_eq!(judgement.verdict, Verdict::Inconclusive);
        let message = judgement.results[0].message.as_deref().unwrap();
        assert!(
            message
                .starts_with("error_rate 0.05 is, within its noise, at 0.01 over 800 requests (")
                && message.ends_with(" of a caller each)"),
            "{message}"
        );
    }

    #[test]
    fn a_first_token_is_judged_apart_from_the_last() {
        let version = |digest, last: f64, first: f64| VersionStats {
            first_byte: stats(digest, 0, 0, &[first; 100]).latency,
            ..stats(digest, 100, 0, &[last; 100])
        };
        let slow_to_begin = router(vec![
            version("old", 900.0, 20.0),
            version("new", 900.0, 500.0),
        ]);
        let limit = Limit::MaximumIncreasePercent(50.0);
        let verdict = |metric| ruled(metric, limit, &slow_to_begin).verdict;
        assert_eq!(verdict(Metric::LatencyP95), Verdict::Pass);
        assert_eq!(verdict(Metric::TimeToFirstTokenP95), Verdict::Fail);
    }

    #[test]
    fn a_comparison_wants_as_many_of_the_stable_version() {
        let few = router(vec![
            stats("old", 10, 0, &[1.0; 10]),
            stats("new", 100, 0, &[1.0; 100]),
        ]);
        let judgement = ruled(
            Metric::LatencyP95,
            Limit::MaximumIncreasePercent(10.0),
            &few,
        );
        assert_eq!(judgement.verdict, Verdict::Inconclusive);
        assert_eq!(
            judgement.results[0].message.as_deref(),
            Some("the stable version completed 10 requests of minimumRequests 50")
        );
        assert_eq!(
            ruled(Metric::LatencyP95, Limit::Maximum(1.0), &few).verdict,
            Verdict::Pass
        );
    }

    #[test]
    fn missing_sources_hold() {
        let good = router(vec![stats("new", 500, 0, &[])]);
        let rules = analysis(Metric::ErrorRate, Limit::Maximum(0.5));
        let mut restarted = good.clone();
        restarted
            .stats
            .insert("m".to_owned(), Asked::Answered(StatsReply::default()));
        let mut away = good.clone();
        away.stats
            .insert("m".to_owned(), Asked::Unreachable("timed out".to_owned()));
        let silent = RouterPod::default();
        for (routers, gap) in [
            (vec![&good, &restarted], true),
            (vec![&good, &away], false),
            (vec![&good, &silent], false),
            (vec![], false),
        ] {
            let judgement = judge(&rules, "m", Some("old"), "new", &routers).unwrap();
            assert_eq!(
                (judgement.verdict, judgement.gap),
                (Verdict::Inconclusive, gap)
            );
        }
        assert_eq!(
            judge(&rules, "m", Some("old"), "new", &[&good])
                .unwrap()
                .verdict,
            Verdict::Pass
        );
        assert_eq!(
            judge(&rules, "m", Some("old"), "new", &[&silent]),
            None,
            "nothing was asked"
        );
    }

    #[test]
    fn what_a_router_says_at_length_fits_into_a_status() {
        let good = router(vec![stats("new", 500, 0, &[])]);
        let rules = analysis(Metric::ErrorRate, Limit::Maximum(0.5));
        let judgement = judge(&rules, "m", Some("old"), "new", &[&good]).unwrap();
        let judgement = judgement.of_a_part(&"last words ".repeat(400));
        assert_eq!(judgement.verdict, Verdict::Inconclusive);
        let message = judgement.results[0].message.as_deref().unwrap();
        assert!(message.starts_with("last words") && message.len() <= 1024);
    }

    #[test]
    fn routers_are_summed() {
        let one = router(vec![stats("new", 30, 0, &[])]);
        let other = router(vec![stats("new", 30, 0, &[]), stats("old", 900, 900, &[])]);
        let rules = analysis(Metric::ErrorRate, Limit::Maximum(0.01));
        let judgement = judge(&rules, "m", Some("old"), "new", &[&one, &other]).unwrap();
        assert_eq!(judgement.verdict, Verdict::Pass);
        assert_eq!(judgement.results[0].samples, 60);
    }

    proptest! {
        #[test]
        fn ranges_hold_their_value(completed in 1_u64..5000, errors in 0_u64..5000) {
            let counts = Counts { completed, errors: errors.min(completed), ..Counts::default() };
            let estimate = error_rate(&counts).unwrap();
            prop_assert!(estimate.low <= estimate.value + TOLERANCE);
            prop_assert!(estimate.high >= estimate.value - TOLERANCE);
        }

        #[test]
        fn more_errors_never_help(completed in 50_u64..3000, errors in 0_u64..3000, more in 1_u64..100) {
            let errors = errors.min(completed);
            let verdict = |errors: u64| {
                ruled(Metric::ErrorRate, Limit::Maximum(0.05), &router(vec![stats("new", completed, errors, &[])])).verdict
            };
            if verdict(errors) == Verdict::Fail {
                prop_assert_eq!(verdict((errors + more).min(completed)), Verdict::Fail);
            }
            if verdict((errors + more).min(completed)) == Verdict::Pass {
                prop_assert_eq!(verdict(errors), Verdict::Pass);
            }
        }
    }
}
