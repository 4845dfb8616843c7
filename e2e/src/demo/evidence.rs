//! What status has to have shown for a step of the walk-through to count.

use anyhow::{Context as _, ensure};
use graftwork_api::training_run::Metric;

/// Fails where the candidate's weights, as status showed them, never fell to less and were not each of `steps` in turn.
pub fn ensure_climbed(weights: &[u32], steps: &[u32]) -> anyhow::Result<()> {
    ensure!(
        weights.is_sorted() && steps.iter().all(|step| weights.contains(step)),
        "the candidate's weight did not climb by {steps:?} %: status showed {weights:?}"
    );
    Ok(())
}

/// Fails where a gate's message does not tell the metric's name and value, the rule's `minimum`, and the rows.
pub fn ensure_says_value_limit_and_rows(
    message: &str,
    metric: &Metric,
    minimum: &str,
) -> anyhow::Result<()> {
    let value = metric.value.value().context("a metric without a number")?;
    let minimum: f64 = minimum.parse()?;
    let numbers: Vec<f64> = message
        .split_whitespace()
        .filter_map(|word| word.trim_matches(['[', ']', ',', ';', '.']).parse().ok())
        .collect();
    // Both are rounded, perhaps not alike.
    let says = |wanted: f64| numbers.iter().any(|it| (it - wanted).abs() < 1e-3);
    ensure!(
        message.contains(&metric.name)
            && message.contains("minimum")
            && says(value)
            && says(minimum)
            && says(metric.samples as f64),
        "{} of {value} over {} rows, or the minimum {minimum}, is not told: {message:?}",
        metric.name,
        metric.samples
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use graftwork_api::Decimal;

    use super::*;

    #[test]
    fn the_weight_climbs_by_every_step_and_never_falls() {
        assert!(ensure_climbed(&[0, 0, 10, 10, 50, 100], &[10, 50]).is_ok());
        for other in [
            &[0, 10, 100][..],
            &[0, 50, 100],
            &[0, 50, 10],
            &[10, 0, 10, 50],
            &[],
        ] {
            assert!(ensure_climbed(other, &[10, 50]).is_err(), "{other:?}");
        }
    }

    #[test]
    fn a_verdict_tells_its_numbers() {
        let metric = Metric {
            name: "exact_match".to_owned(),
            value: Decimal::rounded(0.131, 4).unwrap(),
            samples: 2000,
            ..Metric::default()
        };
        let told = "exact_match 0.131 [0.1162, 0.1458] is below the minimum 0.3 over 2000 rows";
        assert!(ensure_says_value_limit_and_rows(told, &metric, "0.30").is_ok());
        for number in ["0.131", "0.3 ", "2000", "exact_match", "minimum"] {
            let less = told.replace(number, "some ");
            assert!(
                ensure_says_value_limit_and_rows(&less, &metric, "0.30").is_err(),
                "{less}"
            );
        }
    }
}
