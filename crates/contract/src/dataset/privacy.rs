//! What happens to personal data, and who is asked for what no rule finds, such as names: a server that
//! answers as Presidio's analyser does.

use serde::{Deserialize, Serialize};

/// What happens to personal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PrivacyMode {
    /// Its type stands in its place.
    Redact,
    /// A keyed pseudonym stands in its place.
    Pseudonymise,
    /// Its row is invalid.
    Reject,
    /// It stays, and is counted.
    Allow,
}

/// Where personal data is looked for, and what happens to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Privacy {
    /// What happens to it.
    pub mode: PrivacyMode,
    /// The columns that are looked at: of the format, or the split's group column.
    pub columns: Vec<String>,
    /// Who is asked for what no rule of ours finds; none: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analyzer: Option<Analyzer>,
}

/// A key of a Secret, by its name: what is under it only the build's pod has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    pub name: String,
    /// Key in its `data`.
    pub key: String,
}

/// What is asked of an analyser, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Analyzer {
    /// Where it is, as [`crate::uri::Endpoint`] reads it; `/analyze` is below.
    pub url: String,
    /// Language of the texts, by its two letters.
    pub language: String,
    /// Types that count, as the analyser calls them.
    pub entities: Vec<String>,
    /// What is less sure does not count: a decimal from 0 to 1, as it was written.
    pub minimum_score: String,
    /// Seconds that one answer may take.
    pub timeout_seconds: u32,
}

impl Analyzer {
    /// Names, and where people live or are.
    pub const USUAL_ENTITIES: [&'static str; 2] = ["PERSON", "LOCATION"];

    /// Reads [`Self::minimum_score`]; none where it is no decimal from 0 to 1.
    pub fn score(text: &str) -> Option<f64> {
        let is_plain = |byte: u8| byte.is_ascii_digit() || byte == b'.';
        let score = text.parse::<f64>().ok()?;
        (text.bytes().all(is_plain) && score <= 1.0).then_some(score)
    }

    /// The name of a type in manifests and status: `US_PASSPORT` is `usPassport`.
    pub fn type_name(entity: &str) -> String {
        let mut words = entity.split('_').filter(|word| !word.is_empty());
        let mut name = words.next().unwrap_or_default().to_ascii_lowercase();
        for word in words {
            let (first, rest) = word.split_at_checked(1).unwrap_or((word, ""));
            name.push_str(&first.to_ascii_uppercase());
            name.push_str(&rest.to_ascii_lowercase());
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_named_as_our_own_are() {
        for (entity, name) in [
            ("PERSON", "person"),
            ("US_PASSPORT", "usPassport"),
            ("IP_ADDRESS", "ipAddress"),
            ("_A__B_", "aB"),
        ] {
            assert_eq!(Analyzer::type_name(entity), name);
        }
    }

    #[test]
    fn a_score_is_a_plain_decimal_from_zero_to_one() {
        assert_eq!(Analyzer::score("0.35"), Some(0.35));
        assert_eq!(Analyzer::score("1"), Some(1.0));
        for wrong in ["", ".", "-0", "1.1", "NaN", "1e-1", "inf"] {
            assert_eq!(Analyzer::score(wrong), None, "{wrong}");
        }
    }
}
