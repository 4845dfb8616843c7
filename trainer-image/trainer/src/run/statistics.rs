//! Means with their standard errors, of one model and of the difference of two on the same rows.

use graftwork_contract::dataset::Split;
use graftwork_contract::run::{Metric, MetricKind};

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
    /// All sums over all weights; 0 without any.
    pub fn mean(&self) -> f64 {
        estimate(self).0
    }
}

/// The metric of the new adapter (`value`), compared with its reference on the same rows.
pub fn metric(kind: MetricKind, value: &Scores, baseline: &Scores) -> Metric {
    let differences = Scores {
        sums: value
            .sums
            .iter()
            .zip(&baseline.sums)
            .map(|(new, old)| new - old)
            .collect(),
        weights: value.weights.clone(),
    };
    let (mean, standard_error) = estimate(value);
    let (difference, difference_standard_error) = estimate(&differences);
    Metric {
        name: kind.name().to_owned(),
        split: Split::Test,
        value: mean,
        standard_error,
        baseline: estimate(baseline).0,
        difference,
        difference_standard_error,
        samples: value.sums.len() as u64,
    }
}

/// Mean and standard error of a ratio of sums over independent rows (Cochran 1977, Sampling
/// Techniques, section 6.3); with equal weights the usual ones.
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
        let metric = metric(MetricKind::ExactMatch, &new, &old);
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
    fn no_rows_and_one_row_are_no_error() {
        assert_eq!(estimate(&scores(&[], &[])), (0.0, 0.0));
        assert_eq!(estimate(&scores(&[3.0], &[2.0])), (1.5, 0.0));
    }
}
