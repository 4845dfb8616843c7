//! Measurements as statuses show them.

use graftwork_api::Decimal;
use graftwork_api::training_run::Metric;
use graftwork_contract::dataset::Classification;
use graftwork_contract::run::Metric as Measured;

/// The first `most` of those that data of that classification lets a status show.
pub fn shown(
    measured: &[Measured],
    classification: Option<Classification>,
    most: usize,
) -> Vec<Metric> {
    measured
        .iter()
        .filter(|metric| metric.is_shown(classification))
        .filter_map(|metric| {
            Some(Metric {
                name: metric.name.clone(),
                split: metric.split.name().to_owned(),
                value: Decimal::rounded(metric.value, 6)?,
                baseline: Decimal::rounded(metric.baseline, 6),
                interval: metric.difference_interval.and_then(|ends| {
                    ends.map(|end| Decimal::rounded(end, 6))
                        .into_iter()
                        .collect()
                }),
                samples: metric.samples,
                excluded: Some(metric.excluded).filter(|rows| *rows > 0),
            })
        })
        .take(most)
        .collect()
}
