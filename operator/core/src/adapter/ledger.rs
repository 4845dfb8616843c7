//! The ledger of an adapter as read from the store: which versions there are, and what was decided
//! about each.

use std::collections::BTreeMap;

use graftwork_api::conditions::reason;
use graftwork_contract::ledger::{Approved, Created, Gate, RecordKind, Rejected};
use graftwork_contract::paths;

use crate::observed::{Record, UnreadableRecord};

/// All versions of one adapter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger {
    /// By number.
    pub versions: BTreeMap<u32, Version>,
    /// Records that are not what their path says. They are reported and otherwise not there.
    pub unreadable: Vec<UnreadableRecord>,
    /// The highest number that is taken, by whatever record.
    pub highest: u32,
}

/// What the ledger has about one version.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// It exists.
    pub created: Created,
    /// The first judgement of its gate.
    pub gate: Option<Gate>,
    /// It may be served.
    pub approved: Option<Approved>,
    /// It may not be served.
    pub rejected: Option<Rejected>,
    /// No endpoint may try it again, though it was only rolled back before.
    pub barred: Option<Rejected>,
}

impl Ledger {
    /// Reads the records below `adapters/<name>/versions/`.
    pub fn read(name: &str, records: &[Record]) -> Self {
        let mut ledger = Self::default();
        let by_path: BTreeMap<&str, &Record> = records
            .iter()
            .map(|record| (record.path.as_str(), record))
            .collect();
        for number in records
            .iter()
            .filter_map(|record| number(name, &record.path))
        {
            ledger.highest = ledger.highest.max(number);
            if ledger.versions.contains_key(&number) {
                continue;
            }
            let record = |kind| by_path.get(paths::adapter_record(name, number, kind).as_str());
            let Some(created) = ledger.take(record(RecordKind::Created).copied()) else {
                continue;
            };
            let version = Version {
                created,
                gate: ledger.take(record(RecordKind::Gate).copied()),
                approved: ledger.take(record(RecordKind::Approved).copied()),
                rejected: ledger.take(record(RecordKind::Rejected).copied()),
                barred: ledger.take(record(RecordKind::Barred).copied()),
            };
            ledger.versions.insert(number, version);
        }
        ledger
    }

    fn take<T: serde::de::DeserializeOwned>(&mut self, record: Option<&Record>) -> Option<T> {
        match record?.read() {
            Ok(value) => Some(value),
            Err(unreadable) => {
                if !self.unreadable.contains(&unreadable) {
                    self.unreadable.push(unreadable);
                }
                None
            }
        }
    }

    /// The version with that content.
    pub fn by_digest(&self, digest: &str) -> Option<&Version> {
        self.versions
            .values()
            .find(|version| version.created.digest.as_str() == digest)
    }

    /// The number that the next version gets.
    pub fn next(&self) -> u32 {
        self.highest + 1
    }
}

impl Version {
    /// Whether no endpoint may ever try it: a version that was only rolled back may be retried.
    pub fn is_rejected_for_good(&self) -> bool {
        let rejected = self.rejected.as_ref();
        self.barred.is_some()
            || rejected.is_some_and(|it| it.reason != reason::ROLLED_BACK_ON_ENDPOINT)
    }
}

/// The version that a path is about.
fn number(name: &str, path: &str) -> Option<u32> {
    let below = path
        .strip_prefix(&paths::adapter_versions(name))?
        .strip_prefix('/')?;
    below.split_once('/')?.0.parse().ok()
}
