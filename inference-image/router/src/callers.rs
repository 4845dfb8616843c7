//! How errors and high latencies fall upon callers: samples of one caller are one cluster, and the operator's ranges
//! are as wide as the clusters say.

use graftwork_contract::proto::router::v1::ClusterSums;

use crate::counters::{Counted, Counters, bucket_at, count_from};

/// Samples of named callers that are told apart in one second for one version; more say nothing of clusters.
const TOLD_PER_SECOND: usize = 10_000;
/// Latencies at or above this quantile are what is looked for.
const HIGH: f64 = 0.95;
/// No latency was measured.
const NONE: u16 = u16::MAX;

/// The samples of one version by caller.
#[derive(Debug, Default)]
pub struct Callers {
    told: Vec<Told>,
    /// Each a caller of its own.
    nameless: Counters,
}

/// One sample of a named caller, small: a router keeps all those of a quarter of an hour.
#[derive(Debug, Clone, Copy)]
struct Told {
    caller: u32,
    latency: u16,
    first_byte: u16,
    error: bool,
}

/// The sums of a window.
#[derive(Debug, PartialEq)]
pub struct ByCaller {
    /// Errors among all samples.
    pub errors: ClusterSums,
    /// High latencies among those measured.
    pub latency: ClusterSums,
    /// High times to the first byte among those measured.
    pub first_byte: ClusterSums,
}

impl Callers {
    /// Adds a sample.
    pub fn add(&mut self, caller: Option<u32>, sample: Counted) {
        let small = |bucket: Option<u32>| bucket.and_then(|it| it.try_into().ok()).unwrap_or(NONE);
        match caller {
            Some(caller) if self.told.len() < TOLD_PER_SECOND => self.told.push(Told {
                caller,
                latency: small(sample.latency),
                first_byte: small(sample.first_byte),
                error: sample.error,
            }),
            Some(_) => {}
            None => self.nameless.add(sample),
        }
    }

    /// Adds another second's.
    pub fn merge(&mut self, other: &Self) {
        self.told.extend_from_slice(&other.told);
        self.nameless.merge(&other.nameless);
    }

    /// The sums, where `all` are all samples of the version.
    pub fn sums(&mut self, all: &Counters) -> ByCaller {
        self.told.sort_unstable_by_key(|told| told.caller);
        let nameless = &self.nameless;
        let high = |bucket: u16, from: u32| (bucket != NONE).then(|| u32::from(bucket) >= from);
        let slow = bucket_at(&all.latency, HIGH);
        let late = bucket_at(&all.first_byte, HIGH);
        let counts = |histogram, from| (count_from(histogram, 0), count_from(histogram, from));
        ByCaller {
            errors: self.sum((nameless.completed, nameless.errors), |told| {
                Some(told.error)
            }),
            latency: self.sum(counts(&nameless.latency, slow), |told| {
                high(told.latency, slow)
            }),
            first_byte: self.sum(counts(&nameless.first_byte, late), |told| {
                high(told.first_byte, late)
            }),
        }
    }

    /// Begins with `(samples, hits)` of the nameless. What was told has to be sorted by caller.
    fn sum(&self, (samples, hits): (u64, u64), hit: impl Fn(&Told) -> Option<bool>) -> ClusterSums {
        let mut sums = ClusterSums {
            callers: samples,
            samples,
            hits,
            samples_squared: samples,
            samples_times_hits: hits,
            hits_squared: hits,
        };
        for caller in self.told.chunk_by(|one, next| one.caller == next.caller) {
            let (samples, hits) = caller
                .iter()
                .filter_map(&hit)
                .fold((0, 0), |(samples, hits), hit| {
                    (samples + 1, hits + u64::from(hit))
                });
            sums.callers += u64::from(samples > 0);
            sums.samples += samples;
            sums.hits += hits;
            sums.samples_squared += samples * samples;
            sums.samples_times_hits += samples * hits;
            sums.hits_squared += hits * hits;
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(error: bool, latency: Option<u32>) -> Counted {
        Counted {
            error,
            latency,
            first_byte: latency.map(|it| it / 2),
        }
    }

    #[test]
    fn errors_and_high_latencies_are_summed_by_caller() {
        let (mut one, mut other, mut all) =
            (Callers::default(), Callers::default(), Counters::default());
        // Caller 7: 3 samples, 1 of them high; caller 9: 2, both errors; nobody: 15 low ones.
        for (caller, sample) in [
            (Some(7), sample(false, Some(10))),
            (Some(9), sample(true, None)),
        ] {
            one.add(caller, sample);
            all.add(sample);
        }
        for (caller, sample) in [
            (Some(7), sample(false, Some(10))),
            (Some(9), sample(true, None)),
            (Some(7), sample(false, Some(90))),
        ] {
            other.add(caller, sample);
            all.add(sample);
        }
        for _ in 0..15 {
            other.add(None, sample(false, Some(10)));
            all.add(sample(false, Some(10)));
        }
        one.merge(&other);
        let sums = one.sums(&all);
        let of = |sums: &ClusterSums| {
            [
                (sums.callers, sums.samples, sums.hits),
                (
                    sums.samples_squared,
                    sums.samples_times_hits,
                    sums.hits_squared,
                ),
            ]
        };
        assert_eq!(of(&sums.errors), [(17, 20, 2), (9 + 4 + 15, 4, 4)]);
        // The 95th percentile of 18 latencies is the highest one.
        assert_eq!(of(&sums.latency), [(16, 18, 1), (9 + 15, 3, 1)]);
        assert_eq!(sums.first_byte, sums.latency);
    }

    #[test]
    fn what_one_second_keeps_is_bounded() {
        let mut callers = Callers::default();
        for caller in 0..TOLD_PER_SECOND as u32 + 5 {
            callers.add(Some(caller), sample(false, None));
        }
        assert_eq!(callers.told.len(), TOLD_PER_SECOND);
        assert_eq!(size_of::<Told>(), 12);
    }
}
