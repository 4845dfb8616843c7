//! When Jobs and their ends were first seen, by our clock.
//!
//! Jobs and pods are stamped by the clocks of the API server, of its controllers and of nodes. Those may be any
//! time ahead of ours or behind it: a wait that counted from such a stamp would end at once, or not for hours.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

use crate::jobs;

/// When a Job was first seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// At all, or, where a queue held it back, let in.
    pub made: Timestamp,
    /// At its end; none while it goes on.
    pub ended: Option<Timestamp>,
}

/// Sightings of Jobs, by UID. Of a Job that nobody noted its stamps count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sightings(BTreeMap<String, Sighting>);

impl Sightings {
    /// When the Job was made, or was let in by its queue.
    pub fn made(&self, job: &Job) -> Option<Timestamp> {
        match self.of(job) {
            Some(seen) => Some(seen.made),
            None => job.metadata.creation_timestamp.as_ref().map(|time| time.0),
        }
    }

    /// When the Job ended; none while it goes on.
    pub fn ended(&self, job: &Job) -> Option<Timestamp> {
        let seen = self.of(job).and_then(|seen| seen.ended);
        seen.or_else(|| jobs::finished_at(job))
    }

    fn of(&self, job: &Job) -> Option<&Sighting> {
        self.0.get(job.metadata.uid.as_deref()?)
    }
}

impl FromIterator<(String, Sighting)> for Sightings {
    fn from_iter<I: IntoIterator<Item = (String, Sighting)>>(sightings: I) -> Self {
        Self(sightings.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures::at;

    #[test]
    fn a_job_counts_from_when_it_was_seen_whatever_its_stamps_say() {
        for hours in [-1, 0, 1] {
            let stamp = at(hours * 3600).to_string();
            let job: Job = serde_json::from_value(json!({
                "metadata": {"name": "x", "uid": "u", "creationTimestamp": stamp},
                "status": {"conditions": [{
                    "type": "Failed", "status": "True", "lastTransitionTime": stamp,
                }]},
            }))
            .unwrap();
            let seen = Sighting {
                made: at(5),
                ended: Some(at(9)),
            };
            let sightings: Sightings = [("u".to_owned(), seen)].into_iter().collect();
            assert_eq!(sightings.made(&job), Some(at(5)));
            assert_eq!(sightings.ended(&job), Some(at(9)));
            let nobody = Sightings::default();
            assert_eq!(nobody.made(&job), Some(at(hours * 3600)));
            assert_eq!(nobody.ended(&job), Some(at(hours * 3600)));
        }
    }
}
