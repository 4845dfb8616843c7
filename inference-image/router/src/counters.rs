//! What is counted of a number of samples.

use std::collections::BTreeMap;

use graftwork_contract::latency;

/// Samples by the bucket of a time, as [`latency::bucket`] numbers them.
pub type Histogram = BTreeMap<u32, u64>;

/// A sample as it is counted.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    /// 5xx, connection failure or truncated stream.
    pub error: bool,
    /// Bucket of the time to the last byte, where that was measured.
    pub latency: Option<u32>,
    /// Bucket of the time to the first byte; likewise.
    pub first_byte: Option<u32>,
}

/// Sums of samples.
#[derive(Debug, Default)]
pub struct Counters {
    /// All samples.
    pub completed: u64,
    /// Errors among them.
    pub errors: u64,
    /// Times to the last byte.
    pub latency: Histogram,
    /// Times to the first byte.
    pub first_byte: Histogram,
}

impl Counters {
    /// Adds one.
    pub fn add(&mut self, sample: Counted) {
        self.completed += 1;
        self.errors += u64::from(sample.error);
        for (histogram, bucket) in [
            (&mut self.latency, sample.latency),
            (&mut self.first_byte, sample.first_byte),
        ] {
            if let Some(bucket) = bucket {
                *histogram.entry(bucket).or_default() += 1;
            }
        }
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        self.completed += other.completed;
        self.errors += other.errors;
        for (sum, part) in [
            (&mut self.latency, &other.latency),
            (&mut self.first_byte, &other.first_byte),
        ] {
            for (bucket, count) in part {
                *sum.entry(*bucket).or_default() += count;
            }
        }
    }
}

/// The bucket that holds the `quantile`; one above all where there are no samples.
pub fn bucket_at(histogram: &Histogram, quantile: f64) -> u32 {
    let buckets: Vec<_> = histogram
        .iter()
        .map(|(bucket, count)| (*bucket, *count))
        .collect();
    latency::quantile_bucket(&buckets, quantile).unwrap_or(u32::MAX)
}

/// Samples in the bucket `from` and those above it.
pub fn count_from(histogram: &Histogram, from: u32) -> u64 {
    histogram.range(from..).map(|(_, count)| count).sum()
}
