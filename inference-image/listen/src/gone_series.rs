//! Prometheus series of versions that are served no more: with a new version every night they would become more and more.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntCounterVec;
use prometheus::core::Collector as _;

/// How long the series of a version that is gone are still given out: every scrape has its last numbers by then.
pub const KEPT: Duration = Duration::from_secs(15 * 60);

/// Models and versions that have series and are served no more, and since when.
#[derive(Debug, Default)]
pub struct GoneSeries(Mutex<BTreeMap<[String; 2], Instant>>);

impl GoneSeries {
    /// Removes the series of `requests`, which are by `model`, `version` and `code`, whose version has not been live
    /// for [`KEPT`]. Gives these `[model, version]` back, for what else is counted by version.
    pub fn expire(
        &self,
        requests: &IntCounterVec,
        is_live: impl Fn(&[String; 2]) -> bool,
        now: Instant,
    ) -> Vec<[String; 2]> {
        let known = codes_by_version(requests);
        let mut gone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|version, _| known.contains_key(version) && !is_live(version));
        let mut expired = Vec::new();
        for (version, codes) in known {
            if is_live(&version) {
                continue;
            }
            let since = *gone.entry(version.clone()).or_insert(now);
            if now.duration_since(since) < KEPT {
                continue;
            }
            gone.remove(&version);
            let [model, number] = &version;
            for code in &codes {
                // A series that is not there is as good as removed.
                let _ = requests.remove_label_values(&[model, number, code]);
            }
            expired.push(version);
        }
        expired
    }
}

/// The codes that each `[model, version]` has series of.
fn codes_by_version(requests: &IntCounterVec) -> BTreeMap<[String; 2], Vec<String>> {
    let mut known: BTreeMap<[String; 2], Vec<String>> = BTreeMap::new();
    for family in requests.collect() {
        for metric in family.get_metric() {
            let value = |wanted: &str| {
                let label = metric.get_label().iter().find(|l| l.name() == wanted);
                label
                    .map(|label| label.value().to_owned())
                    .unwrap_or_default()
            };
            let version = [value("model"), value("version")];
            known.entry(version).or_default().push(value("code"));
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use prometheus::Opts;

    use super::*;
    use crate::clock;

    #[test]
    fn series_go_once_their_version_has_been_gone_for_long_enough() {
        let labels = ["model", "version", "code"];
        let requests = IntCounterVec::new(Opts::new("requests", "Requests."), &labels).unwrap();
        for (version, code) in [("v1", "200"), ("v1", "500"), ("v2", "200")] {
            requests.with_label_values(&["m", version, code]).inc();
        }
        let series = GoneSeries::default();
        let begun = clock::now();
        let is_live = |version: &[String; 2]| version[1] == "v2";
        assert!(series.expire(&requests, is_live, begun).is_empty());
        // It comes back, and leaves again: the time begins anew.
        let back = begun + Duration::from_secs(60);
        assert!(series.expire(&requests, |_| true, back).is_empty());
        assert!(series.expire(&requests, is_live, begun + KEPT).is_empty());
        let late = begun + KEPT + KEPT;
        let v1 = ["m".to_owned(), "v1".to_owned()];
        assert_eq!(series.expire(&requests, is_live, late), [v1]);
        let left = codes_by_version(&requests);
        assert_eq!(left.len(), 1);
        assert_eq!(left[&["m".to_owned(), "v2".to_owned()]], ["200"]);
    }
}
