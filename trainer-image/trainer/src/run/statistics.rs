//! Means with their standard errors, of one model and of the difference of two on the same rows.

use graftwork_contract::dataset::Split;
use graftwork_contract::run::Metric;
use graftwork_model::random::Stream;
use rayon::prelude::*;

/// A measure of each row as a sum and a weight: the mean is all sums over all weights. A loss is
/// summed over tokens and weighs their number; an exact match is 0 or 1 and weighs 1; a label's
/// precision is 0 or 1 and weighs 1 where the label was predicted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// One sum per row.
    pub sums: Vec<f64>,
    /// One weight per row.
    pub weights: Vec<f64>,
}

impl Scores {
    /// Rows that weigh the same.
    pub fn of_rows(sums: Vec<f64>) -> Self {
        Self {
            weights: vec![1.0; sums.len()],
            sums,
        }
    }

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
        ratio(self.sums.iter().sum(), self.weights.iter().sum())
    }
}

/// Resamples of the bootstrap.
const RESAMPLES: u64 = 2000;
/// Nats whose exponential is told; of more, this one's.
const LARGEST_LOSS: f64 = 100.0;

/// The metric of the new adapter (`value`), compared with its reference on the same rows: the mean of
/// these scores' means, of which all metrics but averages over labels have one. `groups` numbers the
/// group of each row; empty: every row is one.
pub fn metric(name: &str, value: &[Scores], baseline: &[Scores], groups: &[usize]) -> Metric {
    measure(name, value, baseline, groups, Scale::Mean)
}

/// As [`metric`], of the exponential of one mean loss in nats. Standard errors are those of the first-order
/// expansion (the delta method); the bootstrap's interval needs none.
pub fn perplexity(name: &str, value: &Scores, baseline: &Scores, groups: &[usize]) -> Metric {
    let [value, baseline] = [value, baseline].map(std::slice::from_ref);
    measure(name, value, baseline, groups, Scale::Exponential)
}

/// What is told of a mean.
#[derive(Clone, Copy)]
enum Scale {
    /// Itself.
    Mean,
    /// Its exponential.
    Exponential,
}

impl Scale {
    fn of(self, mean: f64) -> f64 {
        match self {
            Self::Mean => mean,
            // JSON has no infinity.
            Self::Exponential => mean.min(LARGEST_LOSS).exp(),
        }
    }

    fn of_estimate(self, estimate: Estimate) -> Estimate {
        let mean = self.of(estimate.mean);
        let slope = match self {
            Self::Mean => 1.0,
            Self::Exponential => mean,
        };
        let residuals = estimate.residuals.into_iter().map(|it| it * slope);
        Estimate {
            mean,
            residuals: residuals.collect(),
        }
    }
}

fn measure(
    name: &str,
    value: &[Scores],
    baseline: &[Scores],
    groups: &[usize],
    scale: Scale,
) -> Metric {
    let samples = value.first().map_or(0, |scores| scores.sums.len());
    let by_group = |scores: &[Scores]| -> Vec<Scores> {
        scores.iter().map(|it| it.by_group(groups)).collect()
    };
    let (value, baseline) = (by_group(value), by_group(baseline));
    let [new, old] = [&value, &baseline].map(|scores| scale.of_estimate(Estimate::of(scores)));
    let differences = new.residuals.iter().zip(&old.residuals);
    let differences: Vec<f64> = differences.map(|(new, old)| new - old).collect();
    Metric {
        name: name.to_owned(),
        split: Split::Test,
        value: new.mean,
        standard_error: standard_error(&new.residuals),
        baseline: old.mean,
        difference: new.mean - old.mean,
        difference_standard_error: standard_error(&differences),
        difference_interval: bootstrap(&value, &baseline, scale),
        samples: samples as u64,
        groups: (!groups.is_empty()).then_some(new.residuals.len() as u64),
        excluded: 0,
    }
}

/// The middle 95 % of the difference over resampled observations, the same ones of both models (Efron
/// and Tibshirani 1993, chapter 13), with the same draws every time; none of fewer than two
/// observations.
fn bootstrap(value: &[Scores], baseline: &[Scores], scale: Scale) -> Option<[f64; 2]> {
    let count = value.first().map_or(0, |scores| scores.sums.len());
    if count < 2 {
        return None;
    }
    let mut differences: Vec<f64> = (0..RESAMPLES)
        .into_par_iter()
        .map(|resample| {
            let draws = Stream::new(0, &[resample]);
            let chosen: Vec<usize> = (0..count as u64)
                .map(|draw| (draws.uniform(draw) * count as f64) as usize)
                .collect();
            scale.of(mean_of(value, &chosen)) - scale.of(mean_of(baseline, &chosen))
        })
        .collect();
    differences.sort_by(f64::total_cmp);
    let at = |share: f64| {
        // Between the two nearest, as numpy's `linear`.
        let place = share * (differences.len() - 1) as f64;
        let below = differences.get(place.floor() as usize).copied()?;
        let above = differences.get(place.ceil() as usize).copied()?;
        Some(below + (above - below) * place.fract())
    };
    Some([at(0.025)?, at(0.975)?])
}

/// The mean of the scores' means over the chosen observations.
fn mean_of(scores: &[Scores], chosen: &[usize]) -> f64 {
    let total = |values: &[f64]| -> f64 { chosen.iter().filter_map(|it| values.get(*it)).sum() };
    let means = scores
        .iter()
        .map(|it| ratio(total(&it.sums), total(&it.weights)));
    ratio(means.sum(), scores.len() as f64)
}

/// 0 over nothing.
fn ratio(sum: f64, weight: f64) -> f64 {
    if weight > 0.0 { sum / weight } else { 0.0 }
}

/// The mean of ratios of sums over independent observations, rows or groups of them, and what each
/// observation moves it by (Cochran 1977, Sampling Techniques, sections 6.3 and 9A.2); with one ratio of
/// equal weights the usual ones.
struct Estimate {
    mean: f64,
    residuals: Vec<f64>,
}

impl Estimate {
    fn of(scores: &[Scores]) -> Self {
        let observations = scores.first().map_or(0, |it| it.sums.len());
        let mut residuals = vec![0.0; observations];
        let mut mean = 0.0;
        let share = 1.0 / scores.len().max(1) as f64;
        for it in scores {
            let own = it.mean();
            mean += own * share;
            let weight: f64 = it.weights.iter().sum();
            for (residual, (sum, each)) in residuals.iter_mut().zip(it.sums.iter().zip(&it.weights))
            {
                *residual += ratio(sum - own * each, weight) * share;
            }
        }
        Self { mean, residuals }
    }
}

/// The standard error of what has these residuals; 0 of fewer than two.
fn standard_error(residuals: &[f64]) -> f64 {
    let count = residuals.len() as f64;
    if count < 2.0 {
        return 0.0;
    }
    let squares: f64 = residuals.iter().map(|residual| residual.powi(2)).sum();
    (squares * count / (count - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(new: &Scores, old: &Scores, groups: &[usize]) -> Metric {
        let (new, old) = (std::slice::from_ref(new), std::slice::from_ref(old));
        super::metric("exact_match", new, old, groups)
    }

    fn estimate(scores: &Scores) -> (f64, f64) {
        let estimate = Estimate::of(std::slice::from_ref(scores));
        (estimate.mean, standard_error(&estimate.residuals))
    }

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
        let metric = metric(&new, &old, &[]);
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
        let metric = metric(&new, &old, &[]);
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
        let apart = metric(&new, &old, &[]);
        let together = metric(&new, &old, &groups);
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
    fn a_mean_of_ratios_takes_each_by_its_own_weights() {
        // 1 of 2, and 1 of 4: their mean is 3/8.
        let halves = scores(&[1.0, 0.0, 0.0, 0.0], &[1.0, 1.0, 0.0, 0.0]);
        let quarters = scores(&[0.0, 0.0, 0.0, 1.0], &[1.0; 4]);
        let estimate = Estimate::of(&[halves.clone(), quarters.clone()]);
        assert!((estimate.mean - 0.375).abs() < 1e-12);
        // (1 - 0.5) / 2 and (0 - 0.25) / 4, and half of their sum.
        let first = f64::midpoint(0.25, -0.0625);
        assert!((estimate.residuals[0] - first).abs() < 1e-12);
        let both = [halves, quarters];
        let same = super::metric("macro_f1", &both, &both, &[]);
        assert!(same.difference.abs() < 1e-12);
        assert!(same.difference_standard_error.abs() < 1e-12);
        let [low, high] = same.difference_interval.unwrap();
        assert!(
            low.abs() < 1e-12 && high.abs() < 1e-12,
            "the same rows of both"
        );
    }

    #[test]
    fn two_models_with_other_weights_are_compared_by_their_ratios() {
        // Precision: 2 of 4 predictions were right, and 1 of 1.
        let new = scores(&[1.0, 1.0, 0.0, 0.0], &[1.0; 4]);
        let old = scores(&[1.0, 0.0, 0.0, 0.0], &[1.0, 0.0, 0.0, 0.0]);
        let metric = metric(&new, &old, &[]);
        assert!((metric.value - 0.5).abs() < 1e-12);
        assert!((metric.baseline - 1.0).abs() < 1e-12);
        assert!((metric.difference + 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_perplexity_is_the_exponential_of_the_mean_loss_and_its_interval_goes_along() {
        let count = 400_u32;
        let nats: Vec<f64> = (0..count).map(|i| f64::from(i % 7) + 3.0).collect();
        let smaller: Vec<f64> = (0..count).map(|i| f64::from(i % 5) + 2.0).collect();
        let tokens = [2.0; 400];
        let (new, old) = (scores(&smaller, &tokens), scores(&nats, &tokens));
        let loss = metric(&new, &old, &[]);
        let perplexity = perplexity("perplexity", &new, &old, &[]);
        assert!((perplexity.value - loss.value.exp()).abs() < 1e-12);
        assert!((perplexity.baseline - loss.baseline.exp()).abs() < 1e-12);
        let difference = loss.value.exp() - loss.baseline.exp();
        assert!((perplexity.difference - difference).abs() < 1e-12);
        let expected = loss.standard_error * loss.value.exp();
        assert!((perplexity.standard_error - expected).abs() < 1e-12);
        // The bootstrap knows nothing of the expansion: both say the same of many rows.
        let [low, high] = perplexity.difference_interval.unwrap();
        let half = 1.96 * perplexity.difference_standard_error;
        assert!(
            ((high - low) / 2.0 / half - 1.0).abs() < 0.1,
            "{low} {high}"
        );
        assert!(low < difference && difference < high);
        let diverged = scores(&[1e6], &[1.0]);
        let huge = super::perplexity("perplexity", &diverged, &diverged, &[]);
        assert!(huge.value.is_finite() && huge.standard_error.is_finite());
    }

    #[test]
    fn no_rows_and_one_row_are_no_error() {
        assert_eq!(estimate(&scores(&[], &[])), (0.0, 0.0));
        assert_eq!(estimate(&scores(&[3.0], &[2.0])), (1.5, 0.0));
    }
}
