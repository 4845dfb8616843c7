//! What samples are worth that come from few callers: those of one caller are one cluster, for they may fail together.

use graftwork_contract::proto::router::v1::ClusterSums;
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::analysis::{CONFIDENCE, Z};

/// Sums over callers, as all routers counted them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Clusters {
    routers: u32,
    /// Of the router that told the most apart: one caller may come by all of them.
    callers: u64,
    samples: f64,
    hits: f64,
    samples_squared: f64,
    samples_times_hits: f64,
    hits_squared: f64,
}

impl Clusters {
    /// Adds what one router counted; one that does not tell callers apart adds nothing.
    pub fn add(&mut self, sums: Option<&ClusterSums>) {
        let Some(sums) = sums.filter(|sums| sums.samples > 0) else {
            return;
        };
        self.routers += 1;
        self.callers = self.callers.max(sums.callers);
        self.samples += sums.samples as f64;
        self.hits += sums.hits as f64;
        self.samples_squared += sums.samples_squared as f64;
        self.samples_times_hits += sums.samples_times_hits as f64;
        self.hits_squared += sums.hits_squared as f64;
    }

    /// How many independent samples say as much about a share as these `samples` do, 1 at least: the effective sample
    /// size of Korn and Graubard (1998), from the variance of a ratio between clusters (Cochran, Sampling Techniques,
    /// 6.4) and with the degrees of freedom that so many clusters leave. Never more than `samples`, and as many
    /// where no router tells callers apart.
    pub fn independent(&self, samples: u64) -> f64 {
        let all = samples as f64;
        if self.callers == 0 {
            return all;
        }
        let callers = self.callers as f64;
        let Some(quantile) = quantile(callers - 1.0) else {
            return 1.0;
        };
        let worth = match self.design_effect() {
            Some(effect) => all / effect * (Z / quantile).powi(2),
            // All alike: nothing shows whether the samples of one caller could differ.
            None => callers,
        };
        worth.clamp(1.0, all.max(1.0))
    }

    /// By how much the variance of the share is above that of as many independent samples, 1 at least; none where
    /// all samples are alike.
    fn design_effect(&self) -> Option<f64> {
        let share = self.hits / self.samples;
        let binomial = share * (1.0 - share) * self.samples;
        if binomial <= 0.0 {
            return None;
        }
        let residuals = self.hits_squared - 2.0 * share * self.samples_times_hits
            + share * share * self.samples_squared;
        let callers = self.callers as f64;
        let excess = residuals * callers / (callers - 1.0) / binomial - 1.0;
        // Each router sees its part of a caller's samples, and what those have in common grows with their number.
        Some(1.0 + f64::from(self.routers) * excess.max(0.0))
    }
}

/// Student's quantile; none without a degree of freedom.
fn quantile(freedom: f64) -> Option<f64> {
    let student = StudentsT::new(0.0, 1.0, freedom).ok()?;
    Some(student.inverse_cdf(CONFIDENCE).max(Z))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `(samples, hits)` of each caller at one router.
    fn sums(callers: &[(u64, u64)]) -> ClusterSums {
        let sum = |of: fn(&(u64, u64)) -> u64| callers.iter().map(of).sum();
        ClusterSums {
            callers: callers.len() as u64,
            samples: sum(|it| it.0),
            hits: sum(|it| it.1),
            samples_squared: sum(|it| it.0 * it.0),
            samples_times_hits: sum(|it| it.0 * it.1),
            hits_squared: sum(|it| it.1 * it.1),
        }
    }

    fn independent(routers: &[&[(u64, u64)]]) -> f64 {
        let mut clusters = Clusters::default();
        let mut samples = 0;
        for callers in routers {
            let sums = sums(callers);
            samples += sums.samples;
            clusters.add(Some(&sums));
        }
        clusters.independent(samples)
    }

    #[test]
    fn requests_of_a_caller_each_count_in_full() {
        let mut callers = vec![(1, 0); 760];
        callers.extend([(1, 1); 40]);
        let worth = independent(&[&callers]);
        assert!((790.0..=800.0).contains(&worth), "{worth}");
    }

    #[test]
    fn errors_that_fall_upon_all_callers_alike_count_in_full() {
        let worth = independent(&[&[(40, 4); 20]]);
        assert!((700.0..=800.0).contains(&worth), "{worth}");
    }

    #[test]
    fn errors_of_one_caller_count_little() {
        let mut callers = vec![(40, 0); 19];
        callers.push((40, 40));
        let worth = independent(&[&callers]);
        assert!((10.0..=20.0).contains(&worth), "{worth}");
    }

    #[test]
    fn one_caller_is_one_sample() {
        assert!((independent(&[&[(5000, 100)]]) - 1.0).abs() < 1e-9);
        assert!((independent(&[&[(5000, 5000)]]) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn where_all_samples_are_alike_callers_are_counted() {
        assert!((independent(&[&[(100, 100); 7]]) - 7.0).abs() < 1e-9);
    }

    #[test]
    fn a_caller_that_comes_by_two_routers_stays_one() {
        let mut whole = vec![(40, 0); 18];
        whole.extend([(40, 40); 2]);
        let half: Vec<_> = whole.iter().map(|(n, hits)| (n / 2, hits / 2)).collect();
        let (one, two) = (independent(&[&whole]), independent(&[&half, &half]));
        assert!((one / two - 1.0).abs() < 0.05, "{one} {two}");
    }

    #[test]
    fn without_callers_every_sample_counts() {
        let mut clusters = Clusters::default();
        clusters.add(None);
        clusters.add(Some(&ClusterSums::default()));
        assert!((clusters.independent(812) - 812.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn samples_are_worth_no_more_than_they_are(
            callers in proptest::collection::vec((1_u64..200, 0_u64..200), 1..50),
        ) {
            let callers: Vec<_> = callers.into_iter().map(|(n, hits)| (n, hits.min(n))).collect();
            let samples: u64 = callers.iter().map(|it| it.0).sum();
            let worth = independent(&[&callers]);
            prop_assert!((1.0..=samples as f64).contains(&worth), "{worth} of {samples}");
        }
    }
}
