//! The latency histogram that routers fill and the operator reads: buckets that grow by 5 %.

/// Each bucket's upper bound is this times the one before.
pub const GROWTH: f64 = 1.05;
/// Upper bound of bucket 0, in milliseconds.
pub const FIRST_UPPER_BOUND_MILLISECONDS: f64 = 1.0;
/// The last bucket: about 33 minutes and everything above.
pub const LAST_BUCKET: u32 = 297;

/// The bucket of a latency in milliseconds: the first whose upper bound is not below it.
pub fn bucket(milliseconds: f64) -> u32 {
    if milliseconds.is_nan() || milliseconds <= FIRST_UPPER_BOUND_MILLISECONDS {
        return 0;
    }
    let index = ((milliseconds / FIRST_UPPER_BOUND_MILLISECONDS).ln() / GROWTH.ln()).ceil();
    (index as u32).min(LAST_BUCKET)
}

/// Upper bound of a bucket in milliseconds.
pub fn upper_bound(bucket: u32) -> f64 {
    FIRST_UPPER_BOUND_MILLISECONDS * GROWTH.powi(bucket.min(LAST_BUCKET).cast_signed())
}

/// The `quantile` (0 to 1) in milliseconds of `(bucket, count)` pairs in any order, as the upper
/// bound of the bucket that holds it; `None` where there are no samples.
pub fn quantile(buckets: &[(u32, u64)], quantile: f64) -> Option<f64> {
    quantile_bucket(buckets, quantile).map(upper_bound)
}

/// The bucket that holds the `quantile` (0 to 1) of `(bucket, count)` pairs in any order; `None` where there are no
/// samples.
pub fn quantile_bucket(buckets: &[(u32, u64)], quantile: f64) -> Option<u32> {
    let total: u64 = buckets.iter().map(|(_, count)| count).sum();
    if total == 0 {
        return None;
    }
    let mut sorted = buckets.to_vec();
    sorted.sort_unstable();
    let rank = (quantile.clamp(0.0, 1.0) * total as f64).ceil().max(1.0) as u64;
    let mut seen = 0;
    for (index, count) in sorted {
        seen += count;
        if seen >= rank {
            return Some(index);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_its_bounds_say() {
        for milliseconds in [0.0, 0.5, 1.0, 1.01, 7.3, 250.0, 9_999.0, 60_000.0] {
            let index = bucket(milliseconds);
            assert!(
                milliseconds <= upper_bound(index) * (1.0 + 1e-9),
                "{milliseconds}"
            );
            if index > 0 {
                assert!(
                    milliseconds > upper_bound(index - 1) * (1.0 - 1e-9),
                    "{milliseconds}"
                );
            }
        }
        assert_eq!(bucket(f64::INFINITY), LAST_BUCKET);
        assert_eq!(bucket(f64::NAN), 0);
    }

    #[test]
    fn quantiles_are_within_one_bucket() {
        let buckets: Vec<_> = (1..=100).map(|ms| (bucket(f64::from(ms)), 1)).collect();
        let p95 = quantile(&buckets, 0.95).unwrap();
        assert!((95.0..=95.0 * GROWTH).contains(&p95), "{p95}");
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile_bucket(&[(7, 1), (3, 19)], 0.95), Some(3));
    }
}
