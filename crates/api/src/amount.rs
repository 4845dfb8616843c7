//! Amounts of memory and disk, as Kubernetes writes them.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::schema::bounds;

/// An amount of bytes such as `512Mi` or `1.5Gi`. The text is kept as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Amount(String);

/// Pattern of an amount: whole or with a fraction, in bytes or with a unit up to tebibytes.
pub const PATTERN: &str = r"^[0-9]{1,12}(\.[0-9]{1,3})?(k|M|G|T|Ki|Mi|Gi|Ti)?$";

/// What every amount of the API has at least.
pub const MINIMUM: &str = "1Mi";

/// Units, longest suffix first.
const UNITS: [(&str, f64); 12] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("", 1.0),
];

/// What a Kubernetes quantity amounts to, in its base unit; none where the text is none.
pub fn value(text: &str) -> Option<f64> {
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let (number, factor) = UNITS
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)))?;
    number.parse::<f64>().ok().map(|number| number * factor)
}

/// The bytes of a Kubernetes quantity, rounded up; none where the text is none.
pub fn bytes(text: &str) -> Option<u64> {
    let bytes = value(text)?;
    bytes.is_finite().then(|| bytes.ceil() as u64)
}

impl Amount {
    /// Keeps the text as it is; [`Amount::bytes`] says whether it is an amount.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// An amount of at least so many bytes: the least one in whole kibibytes, in the largest unit that
    /// says it without a fraction.
    pub fn at_least(bytes: u64) -> Self {
        let kibibytes = bytes.div_ceil(1024);
        let zeros = if kibibytes == 0 {
            0
        } else {
            kibibytes.trailing_zeros()
        };
        let (unit, shift) = match zeros {
            0..10 => ("Ki", 0),
            10..20 => ("Mi", 10),
            20..30 => ("Gi", 20),
            _ => ("Ti", 30),
        };
        Self(format!("{}{unit}", kibibytes >> shift))
    }

    /// The text as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bytes, or none where the text is no amount.
    pub fn bytes(&self) -> Option<u64> {
        bytes(&self.0)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<&str> for Amount {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl JsonSchema for Amount {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let rule = format!("quantity(self).compareTo(quantity('{MINIMUM}')) >= 0");
        let message = format!("an amount of memory or disk is at least {MINIMUM}");
        json_schema!({
            "type": "string",
            "pattern": PATTERN,
            "maxLength": 20,
            "x-kubernetes-validations": bounds(&[(rule.as_str(), message.as_str())]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_the_least_amount_that_has_room_for_them() {
        for (bytes, expected) in [
            (0, "0Ki"),
            (1, "1Ki"),
            (1_572_864, "1536Ki"),
            (1_572_865, "1537Ki"),
            (1 << 20, "1Mi"),
            (3 << 30, "3Gi"),
            (2 << 40, "2Ti"),
        ] {
            let amount = Amount::at_least(bytes);
            assert_eq!(amount.as_str(), expected);
            assert!(amount.bytes().unwrap() >= bytes, "{amount}");
        }
    }

    #[test]
    fn amounts_are_read_as_kubernetes_reads_quantities() {
        for (text, expected) in [
            ("1Mi", Some(1 << 20)),
            ("1.5Gi", Some(3 << 29)),
            ("2G", Some(2_000_000_000)),
            ("1073741824", Some(1 << 30)),
            ("1e3", Some(1000)),
            ("1500m", Some(2)),
            ("0", Some(0)),
            ("-1Gi", None),
            ("Gi", None),
            ("many", None),
            ("inf", None),
            ("1 Gi", None),
        ] {
            assert_eq!(Amount::from(text).bytes(), expected, "{text}");
        }
    }
}
