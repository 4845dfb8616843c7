//! Counters of the last 15 minutes in buckets of one second, per version, for the operator to judge.
//!
//! `completed` counts every answer that went to its end and every failure; `errors` counts 5xx, connection
//! failures and truncated streams among them. Latencies are those of answers with a status below 400: an
//! error that comes at once would make a bad version look fast. A client that leaves is not counted.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use graftwork_contract::latency;
use graftwork_contract::proto::router::v1 as wire;

use crate::callers::Callers;
use crate::counters::{Counted, Counters, Histogram};
use crate::table::Version;

/// How long buckets are kept.
pub const KEPT: Duration = Duration::from_secs(15 * 60);

/// How one request ended.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    /// 5xx, connection failure or truncated stream.
    pub error: bool,
    /// Arrival to last byte; `None` where the answer was an error of either side.
    pub latency: Option<Duration>,
    /// Arrival to first byte of the body; likewise.
    pub first_byte: Option<Duration>,
    /// The caller as [`Stats::caller`] made it; `None` where nobody was named.
    pub caller: Option<u32>,
}

#[derive(Debug, PartialEq, Eq, Hash, Clone)]
struct Key {
    model: Arc<str>,
    version: u32,
    digest: Arc<str>,
}

#[derive(Debug, Default)]
struct Cell {
    all: Counters,
    callers: Callers,
}

#[derive(Debug, Default)]
struct Second {
    index: u64,
    cells: HashMap<Key, Cell>,
}

/// The counters of this process.
#[derive(Debug)]
pub struct Stats {
    started: Instant,
    hasher: std::hash::RandomState,
    seconds: Mutex<VecDeque<Second>>,
}

/// What a window holds.
#[derive(Debug, Default, PartialEq)]
pub struct Window {
    /// Whether this process ran through the whole window and still remembers it.
    pub covered: bool,
    /// Versions that completed something, in order.
    pub versions: Vec<wire::VersionStats>,
}

impl Stats {
    /// Empty counters of a process that started now.
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            hasher: std::hash::RandomState::new(),
            seconds: Mutex::default(),
        }
    }

    /// The number under which a caller is counted.
    pub fn caller(&self, caller: &str) -> u32 {
        self.hasher.hash_one(caller) as u32
    }

    /// Counts one request that ended at `now`.
    pub fn record(&self, version: &Version, sample: Sample, now: Instant) {
        let index = now.saturating_duration_since(self.started).as_secs();
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = index.saturating_sub(KEPT.as_secs());
        while seconds.front().is_some_and(|second| second.index < oldest) {
            seconds.pop_front();
        }
        // Times of different threads may arrive slightly out of order: the newest second takes them.
        if seconds.back().is_none_or(|second| second.index < index) {
            seconds.push_back(Second {
                index,
                ..Second::default()
            });
        }
        let Some(second) = seconds.back_mut() else {
            return;
        };
        let key = Key {
            model: version.model.clone(),
            version: version.number.unwrap_or(0),
            digest: version.digest.clone(),
        };
        second.cells.entry(key).or_default().add(sample);
    }

    /// Sums the seconds that began in `[now - from, now - to)`.
    pub fn read(&self, from: Duration, to: Duration, now: Instant) -> Window {
        let up = now.saturating_duration_since(self.started);
        let begin = up.saturating_sub(from);
        let end = up.saturating_sub(to);
        let mut sums: BTreeMap<(Arc<str>, u32, Arc<str>), Cell> = BTreeMap::new();
        let seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let within = |second: &&Second| (begin..end).contains(&Duration::from_secs(second.index));
        for second in seconds.iter().filter(within) {
            for (key, cell) in &second.cells {
                let key = (key.model.clone(), key.version, key.digest.clone());
                sums.entry(key).or_default().merge(cell);
            }
        }
        drop(seconds);
        Window {
            covered: from <= up && from <= KEPT,
            versions: sums
                .into_iter()
                .map(|((model, version, digest), cell)| cell.print(&model, version, &digest))
                .collect(),
        }
    }
}

impl Cell {
    fn add(&mut self, sample: Sample) {
        let bucket =
            |time: Option<Duration>| time.map(|time| latency::bucket(time.as_secs_f64() * 1000.0));
        let counted = Counted {
            error: sample.error,
            latency: bucket(sample.latency),
            first_byte: bucket(sample.first_byte),
        };
        self.all.add(counted);
        self.callers.add(sample.caller, counted);
    }

    fn merge(&mut self, other: &Self) {
        self.all.merge(&other.all);
        self.callers.merge(&other.callers);
    }

    fn print(mut self, model: &str, version: u32, digest: &str) -> wire::VersionStats {
        let by_caller = self.callers.sums(&self.all);
        wire::VersionStats {
            model: model.to_owned(),
            version,
            digest: digest.to_owned(),
            completed: self.all.completed,
            errors: self.all.errors,
            latency: print(self.all.latency),
            first_byte: print(self.all.first_byte),
            errors_by_caller: Some(by_caller.errors),
            latency_by_caller: Some(by_caller.latency),
            first_byte_by_caller: Some(by_caller.first_byte),
        }
    }
}

fn print(histogram: Histogram) -> Vec<wire::HistogramBucket> {
    histogram
        .into_iter()
        .map(|(index, count)| wire::HistogramBucket { index, count })
        .collect()
}

#[cfg(test)]
mod tests {
    use graftwork_listen::clock;
    use http::HeaderValue;

    use super::*;

    fn version(number: u32) -> Version {
        Version {
            model: "m".into(),
            number: Some(number),
            digest: format!("sha256:{number}").into(),
            header: HeaderValue::from_static("m"),
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ok(milliseconds: u64, caller: Option<u32>) -> Sample {
        Sample {
            error: false,
            latency: Some(Duration::from_millis(milliseconds)),
            first_byte: Some(Duration::from_millis(milliseconds / 2)),
            caller,
        }
    }

    fn pairs(buckets: &[wire::HistogramBucket]) -> Vec<(u32, u64)> {
        buckets
            .iter()
            .map(|bucket| (bucket.index, bucket.count))
            .collect()
    }

    #[test]
    fn adjacent_windows_add_up_to_the_whole() {
        let start = clock::now();
        let stats = Stats::new(start);
        for second in 0..600 {
            let now = start + seconds(second) + Duration::from_millis(second % 10 * 100);
            stats.record(&version(1), ok(second, Some((second % 7) as u32)), now);
            if second % 10 == 0 {
                let failed = Sample {
                    error: true,
                    ..Sample::default()
                };
                stats.record(&version(2), failed, now);
            }
        }
        let now = start + seconds(600) + Duration::from_millis(350);
        let count = |from, to| {
            let window = stats.read(seconds(from), seconds(to), now);
            window
                .versions
                .iter()
                .map(|v| (v.completed, v.errors))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            count(600, 0),
            [(600 - 1, 0), (59, 59)],
            "second 0 began before the window"
        );
        assert_eq!(count(300, 0), [(299, 0), (29, 29)]);
        assert_eq!(count(600, 300), [(300, 0), (30, 30)]);
        assert_eq!(count(1, 0), [], "nothing began in the last second");
    }

    #[test]
    fn quantiles_come_out_within_a_bucket_and_errors_stay_out() {
        let start = clock::now();
        let stats = Stats::new(start);
        for milliseconds in 1..=1000 {
            stats.record(&version(1), ok(milliseconds, None), start);
            stats.record(
                &version(1),
                Sample {
                    error: true,
                    ..Sample::default()
                },
                start,
            );
        }
        let window = stats.read(seconds(900), seconds(0), start + seconds(900));
        let stats = &window.versions[0];
        assert_eq!((stats.completed, stats.errors), (2000, 1000));
        let p95 = latency::quantile(&pairs(&stats.latency), 0.95).unwrap();
        assert!((950.0..=950.0 * latency::GROWTH).contains(&p95), "{p95}");
        let first = latency::quantile(&pairs(&stats.first_byte), 0.5).unwrap();
        assert!(
            (250.0..=250.0 * latency::GROWTH).contains(&first),
            "{first}"
        );
    }

    #[test]
    fn a_caller_counts_once_in_a_window_and_the_nameless_each() {
        let start = clock::now();
        let stats = Stats::new(start);
        let (ann, bob) = (stats.caller("ann"), stats.caller("bob"));
        for second in 0..10 {
            for caller in [Some(ann), Some(bob), Some(ann), None] {
                stats.record(&version(1), ok(1, caller), start + seconds(second));
            }
        }
        let window = stats.read(seconds(10), seconds(0), start + seconds(10));
        let sums = window.versions[0].errors_by_caller.as_ref().unwrap();
        assert_eq!((sums.callers, sums.samples), (2 + 10, 40));
        assert_eq!(sums.samples_squared, 20 * 20 + 10 * 10 + 10);
    }

    #[test]
    fn a_window_that_was_not_lived_through_is_not_covered() {
        let start = clock::now();
        let stats = Stats::new(start);
        let covered = |from, at| {
            stats
                .read(seconds(from), seconds(0), start + seconds(at))
                .covered
        };
        assert!(!covered(60, 59));
        assert!(covered(60, 60));
        assert!(covered(900, 4000));
        assert!(!covered(901, 4000), "older seconds are forgotten");
    }

    #[test]
    fn old_seconds_are_dropped() {
        let start = clock::now();
        let stats = Stats::new(start);
        for second in 0..2000 {
            stats.record(&version(1), ok(1, None), start + seconds(second));
        }
        assert_eq!(stats.seconds.lock().unwrap().len(), 901);
        let window = stats.read(seconds(900), seconds(0), start + seconds(2000));
        assert_eq!(window.versions[0].completed, 900);
    }
}
