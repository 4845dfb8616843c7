//! The ledger of an adapter's versions: small records, each written once and never changed.
//! Stage, number and rejection of a version, and what each endpoint served, come back from here when
//! status is lost.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::dataset::Classification;
use crate::run::{Metric, Precision};

/// Which record of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKind {
    /// The version exists.
    Created,
    /// The gate's verdict.
    Gate,
    /// It may be served.
    Approved,
    /// It may not be served.
    Rejected,
    /// A person's no to a version that was rolled back before, and is on record as rejected for that:
    /// no endpoint may try it again.
    Barred,
}

impl RecordKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Created,
        Self::Gate,
        Self::Approved,
        Self::Rejected,
        Self::Barred,
    ];

    /// The file name without `.json`.
    pub const fn file_stem(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Gate => "gate",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Barred => "barred",
        }
    }
}

/// Stem of the records that say what an endpoint serves: `production-<k>.json`. They are numbered
/// through all versions of an adapter, so that the highest of an endpoint is the newest.
pub const PRODUCTION: &str = "production";
/// Stem of the records of rollbacks after one that was undone: `rejected-<k>.json`, from 2.
pub const REJECTED: &str = RecordKind::Rejected.file_stem();

/// The number of a record of which there may be many: 7 of `production-7.json`, for that stem.
pub fn number_of(file: &str, stem: &str) -> Option<u32> {
    let digits = file
        .strip_prefix(stem)?
        .strip_prefix('-')?
        .strip_suffix(".json")?;
    let number: u32 = digits.parse().ok()?;
    (number > 0 && number.to_string() == digits).then_some(number)
}

/// `created.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Created {
    /// Number, from 1.
    pub version: u32,
    /// Content.
    pub digest: Digest,
    /// LoRA's rank.
    pub rank: u32,
    /// Bytes of the files.
    pub size_bytes: u64,
    /// The TrainingRun that made it; none: imported.
    pub training_run: Option<String>,
    /// The URI that it was imported from; none: a run made it.
    #[serde(default)]
    pub imported_from: Option<String>,
    /// The data it was trained on.
    pub dataset: Option<DatasetVersion>,
    /// Digest of the base model that it belongs to.
    pub base: Digest,
    /// Test metrics of the run; empty for an import.
    pub metrics: Vec<Metric>,
    /// What the base model was held in while they were measured; none: nothing was, for an import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// How far they may go, and the version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// What the metrics were compared with: `base` or a version's number.
    pub reference: Option<String>,
    /// RFC 3339.
    pub created_time: String,
}

/// A dataset's version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatasetVersion {
    /// Name of the Dataset.
    pub name: String,
    /// Number.
    pub version: u32,
    /// Content.
    pub digest: Digest,
}

/// A verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// The rule holds.
    Pass,
    /// It does not.
    Fail,
    /// There is not enough evidence.
    Inconclusive,
}

/// `gate.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// Digest of the gate's rules and confidence: another gate judges again.
    pub rules_digest: Digest,
    /// Of all rules together.
    pub verdict: Verdict,
    /// Each rule with its numbers.
    pub rules: Vec<RuleOutcome>,
    /// RFC 3339.
    pub time: String,
}

/// One rule with its numbers, as decimal strings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleOutcome {
    /// Name of the metric.
    pub metric: String,
    /// Of the version.
    pub value: Option<String>,
    /// Of the reference.
    pub reference: Option<String>,
    /// Of the difference (or of the value), at the gate's confidence.
    pub interval: Option<[String; 2]>,
    /// The verdict.
    pub verdict: Verdict,
    /// In words, with value and limit.
    pub message: String,
}

/// `approved.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Approved {
    /// `gate` or the user's name.
    pub by: String,
    /// The user's reason.
    pub reason: String,
    /// The judgement that it rests on, where the gate is another one than that of `gate.json`, which
    /// is written once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// RFC 3339.
    pub time: String,
}

/// `rejected.json`, `rejected-<k>.json` and `barred.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejected {
    /// A condition reason, for example `GateFailed`, `RejectedByUser`, `RolledBack`.
    pub reason: String,
    /// In words, with value and limit.
    pub message: String,
    /// `gate`, an endpoint's name, or the user's name.
    pub by: String,
    /// RFC 3339.
    pub time: String,
}

/// `production-<k>.json`: from here on an endpoint serves the version as the stable one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Production {
    /// Name of the ServingEndpoint.
    pub endpoint: String,
    /// The adapter's name on it.
    pub adapter: String,
    /// Rollbacks of the version that were on record then: it serves in spite of them, so they are
    /// undone.
    #[serde(default)]
    pub rollbacks: u32,
    /// RFC 3339.
    pub time: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numbered_record_has_one_name() {
        assert_eq!(number_of("production-7.json", PRODUCTION), Some(7));
        assert_eq!(number_of("rejected-2.json", REJECTED), Some(2));
        for other in [
            "production.json",
            "production-0.json",
            "production-07.json",
            "production-+7.json",
            "production-7",
            "production-.json",
            "rejected-2.json",
        ] {
            assert_eq!(number_of(other, PRODUCTION), None, "{other}");
        }
    }
}
