//! The build's configuration: read, then trusted.

use std::path::Path;

use graftwork_artifacts::rows::columns;
use graftwork_contract::dataset::{
    BuildConfig, Classification, Format, Percent, PrivacyMode, REWARD_COLUMN,
};

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
    if config.reward && split.group_column.as_deref() == Some(REWARD_COLUMN) {
        return Err(Failure::bad_config(
            "spec.split.groupColumn: reward is kept as a number and can't group rows",
        ));
    }
    let masked = config
        .privacy
        .as_ref()
        .is_some_and(|privacy| privacy.mode != PrivacyMode::Allow);
    if config.classification == Some(Classification::Restricted) && !masked {
        return Err(Failure::bad_config(
            "spec.classification is Restricted: spec.privacy needs a mode other than Allow",
        ));
    }
    percent(&config.validation.maximum_invalid_percent)?;
    let has_parts = config.shards.is_some_and(|count| count > 1);
    if has_parts && config.transform.is_some() {
        return Err(Failure::bad_config(
            "spec.shards: spec.transform is one query over all rows, which one pod runs; leave spec.shards out, or spec.transform",
        ));
    }
    if has_parts && let Some(column) = unmasked(config) {
        return Err(Failure::bad_config(format!(
            "spec.shards: parts would hold the unmasked text of column {column:?}, which names classes; leave it out of spec.privacy.columns, or shards out"
        )));
    }
    Ok(())
}

/// A column of classes that is masked elsewhere. A part of a build lies in the store for a while, and holds it
/// as the source has it, since statistics name classes; of a masked group it holds the hash.
fn unmasked(config: &BuildConfig) -> Option<&str> {
    let privacy = config.privacy.as_ref();
    let privacy = privacy.filter(|it| it.mode != PrivacyMode::Allow)?;
    let class = config.balance.as_ref().map(|it| it.column.as_str());
    class.filter(|column| privacy.columns.iter().any(|masked| masked == column))
}

/// Reads `spec.validation.maximumInvalidPercent`.
///
/// # Errors
/// A failure that names the field and its value.
pub fn percent(text: &str) -> Result<Percent, Failure> {
    Percent::parse(text).ok_or_else(|| {
        Failure::bad_config(format!(
            "spec.validation.maximumInvalidPercent is {text:?}; it must be a decimal from 0 to 100"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_percentage_is_refused_with_the_field_and_the_value() {
        assert_eq!(percent("2.5").unwrap(), Percent::parse("2.5").unwrap());
        let failure = percent("1e3").unwrap_err();
        for part in ["spec.validation.maximumInvalidPercent", "\"1e3\""] {
            assert!(failure.message.contains(part), "{failure}");
        }
    }
}
