//! A server that finds personal data that no rule does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decimal::Decimal;
use crate::schema::bounds;

/// Pattern of a score: an exact decimal.
const SCORE_PATTERN: &str = r"^[01](\.[0-9]{1,6})?$";

/// An analyser in the shape of Microsoft Presidio's, which finds what no rule does: names and addresses. It
/// gets the texts as they are, so that the chart's `dataSources.allow` has to name its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Analyzer {
    /// Where it is, such as `http://presidio-analyzer.privacy.svc:3000`; `/analyze` is below.
    #[schemars(length(min = 8, max = 1024), regex(pattern = r"^https?://[^/?#@]+/?$"))]
    pub url: String,
    /// Language of the texts, by its two letters; left out, `en`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2), regex(pattern = r"^[a-z]{2}$"))]
    pub language: Option<String>,
    /// Types that count, as the analyser calls them; left out, PERSON and LOCATION.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 63), regex(pattern = r"^[A-Z][A-Z0-9_]*$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub entities: Vec<String>,
    /// What the analyser is less sure of does not count, from 0 to 1; left out, 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "pattern" = SCORE_PATTERN,
        "x-kubernetes-validations" = bounds(&[(
            "double(self) <= 1.0",
            "minimumScore is at most 1",
        )]),
    ))]
    pub minimum_score: Option<Decimal>,
    /// Seconds that one answer may take; left out, 30. A text is asked about four times at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 60))]
    pub timeout_seconds: Option<u32>,
}
