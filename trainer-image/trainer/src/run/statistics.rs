//! Means with their standard errors, of one model and of the difference of two on the same rows.

use graftwork_contract::dataset::Split;
use graftwork_contract::run::{Metric, MetricKind};
use graftwork_model::random::Stream;
use rayon::prelude::*;

/// A measure of each row as a sum and a weight: the mean is all sums over all weights. A loss is
/// summed over tokens and weighs their number; an exact match is 0 or 1 and weighs 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// One sum per row.
    pub sums: Vec<f64>,
    /// One weight per row, the same for every model.
    pub weights: Vec<f64>,
}

impl Scores {
    /// Sums and weights of whole groups, each of which is one observation.
    fn by_group(&self, groups: &[usize]) -> Self {
        if groups.is_empty() {
            return self.clone();
        }
        let mut totals = std::collections::BTreeMap::new();
        for ((sum, weight), group) in self.sums.iter().zip(&self.weights).zip(groups) {
            let total: &mut (f64, f64) = totals.entry(group).or_default();
            total.0 += sum;
            total.1 += weight;
        }
        let (sums, weights) = totals.into_values().unzip();
        Self { sums, weights }
    }

    /// All sums over all weights; 0 without any.
    pub fn mean(&self) -> f64 {
        estimate(self).0
    }
}

/// Resamples of the bootstrap.
const RESAMPLES: u64 = 2000;

/// The metric of the new adapter (`value`), compared with its reference on the same rows. `groups`
/// numbers the group of each row; empty: every row is one.
pub fn metric(kind: MetricKind, value: &Scores, baseline: &Scores, groups: &[usize]) -> Metric {
    let differences = Scores {
        sums: value
            .sums
            .iter()
            .zip(&baseline.sums)
            .map(|(new, old)| new - old)
            .collect(),
        weights: value.weights.clone(),
    };
    let (value_totals, totals) = (value.by_group(groups), differences.by_group(groups));
    let (mean, standard_error) = estimate(&value_totals);
    let (difference, difference_standard_error) = estimate(&totals);
    Metric {
        name: kind.name().to_owned(),
        split: Split::Test,
        value: mean,
        standard_error,
        baseline: estimate(baseline).0,
        difference,
        difference_standard_error,
        difference_interval: bootstrap(&totals),
        samples: value.sums.len() as u64,
        groups: (!groups.is_empty()).then_some(totals.sums.len() as u64),
    }
}

/// The middle 95 % of the mean over resampled observations (Efron and Tibshirani 1993, chapter 13),
/// with the same draws every time; none of fewer than two observations.
fn bootstrap(scores: &Scores) -> Option<[f64; 2]> {
    let count = scores.sums.len();
    if count < 2 {
        return None;
    }
    let mut means: Vec<f64> = (0..RESAMPLES)
        .into_par_iter()
        .map(|resample| {
            let draws = Stream::new(0, &[resample]);
            let (mut sum, mut weight) = (0.0, 0.0);
            for draw in 0..count as u64 {
                let chosen = (draws.uniform(draw) * count as f64) as usize;
                sum += scores.sums.get(chosen).copied().unwrap_or_default();
                weight += scores.weights.get(chosen).copied().unwrap_or_default();
            }
            if weight > 0.0 { sum / weight } else { 0.0 }
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| {
        // Between the two nearest, as numpy's `linear`.
        let place = share * (means.len() - 1) as f64;
        let below = means.get(place.floor() as usize).copied()?;
        let above = means.get(place.ceil() as usize).copied()?;
        Some(below + (above - below) * place.fract())
    };
    Some([at(0.025)?, at(0.975)?])
}

/// Mean and standard error of a ratio of sums over independent observations, rows or groups of them
/// (Cochran 1977, Sampling Techniques, sections 6.3 and 9A.2); with equal weights the usual ones.
fn estimate(scores: &Scores) -> (f64, f64) {
    let rows = scores.sums.len() as f64;
    let weight: f64 = scores.weights.iter().sum();
    if rows < 1.0 || weight <= 0.0 {
        return (0.0, 0.0);
    }
    let mean = scores.sums.iter().sum::<f64>() / weight;
    if rows < 2.0 {
        return (mean, 0.0);
    }
    let squares: f64 = scores
        .sums
        .iter()
        .zip(&scores.weights)
        .map(|(sum, weight)| (sum - mean * weight).powi(2))
        .sum();
    (mean, (squares * rows / (rows - 1.0)).sqrt() / weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(sums: &[f64], weights: &[f64]) -> Scores {
        Scores {
            sums: sums.to_vec(),
            weights: weights.to_vec(),
        }
    }

    #[test]
    fn a_share_has_the_binomial_standard_error() {
        let new = scores(&[1.0, 1.0, 1.0, 0.0], &[1.0; 4]);
        let old = scores(&[1.0, 0.0, 0.0, 0.0], &[1.0; 4]);
        let metric = metric(MetricKind::ExactMatch, &new, &old, &[]);
        // sqrt(0.75 * 0.25 / (4 - 1)); differences 0, 1, 1, 0: sqrt(0.25 / 3).
        assert!((metric.value - 0.75).abs() < 1e-12);
        assert!((metric.standard_error - 0.25).abs() < 1e-12);
        assert!((metric.baseline - 0.25).abs() < 1e-12);
        assert!((metric.difference - 0.5).abs() < 1e-12);
        assert!((metric.difference_standard_error - (0.25_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(metric.samples, 4);
    }

    #[test]
    fn a_loss_is_weighed_by_tokens() {
        let (mean, error) = estimate(&scores(&[2.0, 12.0], &[1.0, 3.0]));
        assert!((mean - 3.5).abs() < 1e-12, "14 nats over 4 tokens");
        // Residuals -1.5 and 1.5: sqrt(4.5 * 2) / 4.
        assert!((error - 0.75).abs() < 1e-12, "{error}");
    }

    #[test]
    fn the_bootstraps_interval_is_that_of_the_normal_where_rows_are_many() {
        let count = 400;
        let new: Vec<f64> = (0..count)
            .map(|i| f64::from(u8::from(i % 4 != 0)))
            .collect();
        let old: Vec<f64> = (0..count)
            .map(|i| f64::from(u8::from(i % 2 == 0)))
            .collect();
        let (new, old) = (scores(&new, &[1.0; 400]), scores(&old, &[1.0; 400]));
        let metric = metric(MetricKind::ExactMatch, &new, &old, &[]);
        let [low, high] = metric.difference_interval.unwrap();
        let half = 1.96 * metric.difference_standard_error;
        assert!(
            (low - (metric.difference - half)).abs() < 0.1 * half,
            "{low}"
        );
        assert!(
            (high - (metric.difference + half)).abs() < 0.1 * half,
            "{high}"
        );
        assert_eq!((metric.samples, metric.groups), (400, None));
    }

    #[test]
    fn rows_of_one_group_are_one_observation() {
        // Ten groups of forty rows that all say the same.
        let groups: Vec<usize> = (0..400).map(|row| row / 40).collect();
        let new: Vec<f64> = groups
            .iter()
            .map(|g| f64::from(u8::from(g % 3 != 0)))
            .collect();
        let (new, old) = (scores(&new, &[1.0; 400]), scores(&[0.0; 400], &[1.0; 400]));
        let apart = metric(MetricKind::ExactMatch, &new, &old, &[]);
        let together = metric(MetricKind::ExactMatch, &new, &old, &groups);
        assert!((apart.value - together.value).abs() < 1e-12);
        assert_eq!((together.samples, together.groups), (400, Some(10)));
        // sqrt(0.6 * 0.4 / (10 - 1)), and of 400 independent rows sqrt(0.6 * 0.4 / 399).
        assert!((together.standard_error - (0.24_f64 / 9.0).sqrt()).abs() < 1e-12);
        assert!((apart.standard_error - (0.24_f64 / 399.0).sqrt()).abs() < 1e-12);
        let width = |metric: &Metric| {
            let [low, high] = metric.difference_interval.unwrap();
            high - low
        };
        assert!(width(&together) > 4.0 * width(&apart));
    }

    #[test]
    fn no_rows_and_one_row_are_no_error() {
        assert_eq!(estimate(&scores(&[], &[])), (0.0, 0.0));
        assert_eq!(estimate(&scores(&[3.0], &[2.0])), (1.5, 0.0));
    }
}
