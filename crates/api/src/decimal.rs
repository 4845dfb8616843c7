//! Fractions as decimal strings: JSON numbers lose digits on their way through clients.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A fraction written as a decimal string, such as `"0.05"` or `"8e-5"`.
///
/// The text is kept as it was written: `"0.50"` stays `"0.50"`, so that a re-written object
/// equals the one in Git.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(String);

/// Pattern of a decimal that may be negative.
pub const SIGNED_PATTERN: &str = r"^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$";
/// Pattern of a decimal that may not be negative.
pub const UNSIGNED_PATTERN: &str = r"^[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$";
/// Pattern of a percentage: an exact decimal, as `graftwork_contract::dataset::Percent` reads it.
pub const PERCENT_PATTERN: &str = r"^[0-9]+(\.[0-9]{1,18})?$";

impl Decimal {
    /// Keeps the text as it is; [`Decimal::value`] says whether it is a number.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number, or none where the text is not a finite one.
    pub fn value(&self) -> Option<f64> {
        self.0.parse().ok().filter(|value: &f64| value.is_finite())
    }

    /// A number with at most `digits` decimal places, without trailing zeros; none where it is not
    /// finite.
    pub fn rounded(value: f64, digits: usize) -> Option<Self> {
        if !value.is_finite() {
            return None;
        }
        let text = format!("{value:.digits$}");
        let text = if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.')
        } else {
            &text
        };
        Some(Self(if text == "-0" { "0" } else { text }.to_owned()))
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<&str> for Decimal {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl JsonSchema for Decimal {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": SIGNED_PATTERN, "maxLength": 32})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_kept_and_read() {
        for (text, value) in [
            ("0.50", Some(0.5)),
            ("8e-5", Some(8e-5)),
            ("-3", Some(-3.0)),
            ("1e999", None),
            ("x", None),
            ("", None),
        ] {
            let decimal: Decimal = serde_json::from_value(serde_json::json!(text)).unwrap();
            assert_eq!(decimal.value(), value, "{text}");
            assert_eq!(decimal.to_string(), text);
        }
    }

    #[test]
    fn rounding_drops_noise_only() {
        for (value, digits, text) in [
            (0.812_345, 4, "0.8123"),
            (10.0, 2, "10"),
            (100.0, 0, "100"),
            (-0.0001, 2, "0"),
            (0.5, 3, "0.5"),
        ] {
            assert_eq!(Decimal::rounded(value, digits).unwrap().as_str(), text);
        }
        assert_eq!(Decimal::rounded(f64::NAN, 2), None);
        assert_eq!(Decimal::rounded(f64::INFINITY, 2), None);
    }
}
