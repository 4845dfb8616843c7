//! The build's configuration: read, then trusted.

use std::path::Path;

use graftwork_artifacts::rows::columns;
use graftwork_contract::dataset::{BuildConfig, Format};

use crate::failure::Failure;

/// Reads and checks the configuration.
///
/// # Errors
/// A failure that names the field.
pub fn load(path: &Path) -> Result<BuildConfig, Failure> {
    let bytes = std::fs::read(path).map_err(|error| {
        Failure::bad_config(format!(
            "cannot read configuration {}: {error}",
            path.display()
        ))
    })?;
    let config: BuildConfig = serde_json::from_slice(&bytes).map_err(|error| {
        Failure::bad_config(format!("configuration {}: {error}", path.display()))
    })?;
    validate(&config)?;
    Ok(config)
}

fn validate(config: &BuildConfig) -> Result<(), Failure> {
    if config.sources.is_empty() {
        return Err(Failure::bad_config(
            "spec.sources is empty; name at least one source",
        ));
    }
    let split = &config.split;
    let sum = [
        split.train_percent,
        split.validation_percent,
        split.test_percent,
    ]
    .iter()
    .fold(0_u32, |sum, percent| sum.saturating_add(*percent));
    if sum != 100 {
        return Err(Failure::bad_config(format!(
            "spec.split: trainPercent, validationPercent and testPercent add up to {sum}; they must add up to 100"
        )));
    }
    if config.format == Format::Chat
        && split
            .group_column
            .as_deref()
            .is_some_and(|name| columns(Format::Chat).contains(&name))
    {
        return Err(Failure::bad_config(
            "spec.split.groupColumn: messages is a list and can't group rows; name a column of text",
        ));
    }
    Percent::parse(&config.validation.maximum_invalid_percent)?;
    Ok(())
}

/// A decimal percentage as an exact fraction, so that a limit of 0.1 is not 0.1000000000000000055.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percent {
    numerator: u128,
    denominator: u128,
}

impl Percent {
    /// Most digits after the point.
    const MAXIMUM_DECIMALS: usize = 18;

    /// Reads `spec.validation.maximumInvalidPercent`: a decimal from 0 to 100.
    ///
    /// # Errors
    /// A failure that names the field and its value.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits = format!("{whole}{decimals}");
        let parsed = digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse::<u128>().ok())
            .flatten()
            .filter(|_| !whole.is_empty() && decimals.len() <= Self::MAXIMUM_DECIMALS)
            .map(|numerator| Self {
                numerator,
                denominator: 10_u128.pow(decimals.len() as u32),
            })
            .filter(|percent| percent.numerator <= 100 * percent.denominator);
        parsed.ok_or_else(|| {
            Failure::bad_config(format!(
                "spec.validation.maximumInvalidPercent is {text:?}; it must be a decimal from 0 to 100"
            ))
        })
    }

    /// Whether `part` of `whole` is more than this.
    pub fn is_exceeded_by(self, part: u64, whole: u64) -> bool {
        u128::from(part) * 100 * self.denominator > u128::from(whole) * self.numerator
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_compared_exactly() {
        let tenth = Percent::parse("0.1").unwrap();
        assert!(!tenth.is_exceeded_by(1, 1000));
        assert!(tenth.is_exceeded_by(1, 999));
        assert!(Percent::parse("0").unwrap().is_exceeded_by(1, u64::MAX));
        assert!(
            !Percent::parse("100")
                .unwrap()
                .is_exceeded_by(u64::MAX, u64::MAX)
        );
        assert!(
            !Percent::parse("33.333333333333333333")
                .unwrap()
                .is_exceeded_by(0, 0)
        );
    }

    #[test]
    fn what_is_not_a_percentage_is_refused() {
        for text in [
            "",
            ".",
            "-1",
            "1e3",
            "100.1",
            "5%",
            " 5",
            "+5",
            "0.1234567890123456789",
        ] {
            let failure = Percent::parse(text).unwrap_err();
            assert!(
                failure.message.contains("maximumInvalidPercent"),
                "{failure}"
            );
        }
    }
}
