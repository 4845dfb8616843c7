//! What is left of a load: a line for each request and numbers for all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::{Answer, Request};
use super::judge::Outcome;
use crate::load::Versions;
use graftwork_contract::latency;

/// One request.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Since the start of the load.
    pub begun_milliseconds: u64,
    /// Number of the caller.
    pub caller: u64,
    /// `user`.
    pub user: String,
    /// `model`.
    pub model: String,
    /// Whether as a stream.
    pub stream: bool,
    /// Value of the version header.
    pub version: Option<String>,
    /// HTTP status.
    pub status: Option<u16>,
    /// How it ended.
    pub outcome: Outcome,
    /// Until the first byte of the body.
    pub first_byte_milliseconds: Option<f64>,
    /// Until the last byte.
    pub milliseconds: f64,
    /// The text's first characters.
    pub text: String,
    /// Why there is no whole answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Record {
    /// Of a finished request.
    pub fn new(begun: Duration, request: Request, answer: Answer, outcome: Outcome) -> Self {
        Self {
            begun_milliseconds: begun.as_millis() as u64,
            caller: request.caller,
            user: request.user,
            model: request.model,
            stream: request.stream,
            version: answer.version,
            status: answer.status,
            outcome,
            first_byte_milliseconds: answer.first_byte_milliseconds,
            milliseconds: answer.milliseconds,
            text: answer.text.chars().take(60).collect(),
            error: answer.error,
        }
    }
}

/// Numbers of the whole load (the Job's termination message).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// Requests.
    pub total: u64,
    /// Those that failed; streams that ended in an error event are not among them.
    pub failed: u64,
    /// Streams that ended in an error event.
    pub stream_errors: u64,
    /// Requests by how they ended.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Answers by version header.
    pub versions: Versions,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// Length of the load.
    pub seconds: f64,
    /// Distinct users.
    pub users: u64,
    /// Longest time without the end of a request.
    pub longest_gap_milliseconds: u64,
    /// Whether it ended because it was told to, and not by a limit of its own.
    pub told: bool,
    /// Users until the end of the load.
    #[serde(skip)]
    seen: BTreeSet<String>,
    /// End of the newest request, since the start of the load.
    #[serde(skip)]
    newest_end_milliseconds: u64,
}

/// Numbers of one version.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VersionSummary {
    /// Answers.
    pub requests: u64,
    /// Median latency.
    pub p50_milliseconds: f64,
    /// 95th percentile of the latency.
    pub p95_milliseconds: f64,
    /// Latencies until the end of the load.
    #[serde(skip)]
    buckets: BTreeMap<u32, u64>,
}

/// How many failures are told.
const TOLD: usize = 5;

impl Summary {
    /// Counts one request.
    pub fn add(&mut self, record: &Record) {
        self.total += 1;
        if !self.seen.contains(&record.user) {
            self.seen.insert(record.user.clone());
        }
        // Records come almost in the order of their ends; a late one closes no gap that was there.
        let end = record.begun_milliseconds + record.milliseconds as u64;
        let gap = end.saturating_sub(self.newest_end_milliseconds);
        self.longest_gap_milliseconds = self.longest_gap_milliseconds.max(gap);
        self.newest_end_milliseconds = self.newest_end_milliseconds.max(end);
        *self.outcomes.entry(record.outcome).or_default() += 1;
        if record.outcome == Outcome::StreamError {
            self.stream_errors += 1;
        }
        if record.outcome.is_failure() {
            self.failed += 1;
            if self.failures.len() < TOLD {
                let mut line = serde_json::to_string(record).unwrap_or_default();
                line.truncate(line.floor_char_boundary(400));
                self.failures.push(line);
            }
        }
        if let Some(version) = &record.version {
            let seen = self.versions.entry(version.clone()).or_default();
            seen.requests += 1;
            *seen
                .buckets
                .entry(latency::bucket(record.milliseconds))
                .or_default() += 1;
        }
    }

    /// Computes what needs all requests.
    pub fn finish(&mut self, elapsed: Duration) {
        self.seconds = elapsed.as_secs_f64();
        self.users = self.seen.len() as u64;
        for seen in self.versions.values_mut() {
            let buckets: Vec<_> = seen
                .buckets
                .iter()
                .map(|(bucket, count)| (*bucket, *count))
                .collect();
            seen.p50_milliseconds = latency::quantile(&buckets, 0.5).unwrap_or_default().round();
            seen.p95_milliseconds = latency::quantile(&buckets, 0.95)
                .unwrap_or_default()
                .round();
        }
    }

    /// Answers of `version`.
    pub fn of(&self, version: &str) -> u64 {
        self.versions.get(version).map_or(0, |seen| seen.requests)
    }

    /// Whether every answer came from `version`.
    pub fn only(&self, version: &str) -> bool {
        self.versions.len() == 1 && self.versions.contains_key(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(begun_milliseconds: u64, milliseconds: f64, user: &str) -> Record {
        Record {
            begun_milliseconds,
            caller: 0,
            user: user.to_owned(),
            model: "m".to_owned(),
            stream: false,
            version: Some("m@v1".to_owned()),
            status: Some(200),
            outcome: Outcome::Ok,
            first_byte_milliseconds: None,
            milliseconds,
            text: String::new(),
            error: None,
        }
    }

    #[test]
    fn a_time_without_an_answer_is_seen_and_users_are_counted_once() {
        let mut summary = Summary::default();
        for (begun, took, user) in [
            (0, 10.0, "a"),
            (12, 8.0, "b"),
            (5, 4.0, "c"),
            (4000, 20.0, "a"),
            (100, 3930.0, "b"),
        ] {
            summary.add(&record(begun, took, user));
        }
        summary.finish(Duration::from_secs(5));
        assert_eq!(summary.longest_gap_milliseconds, 4000);
        assert_eq!((summary.users, summary.of("m@v1")), (3, 5));
        assert_eq!(summary.of("m@v2"), 0);
    }
}
