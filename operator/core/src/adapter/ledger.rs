//! The ledger of an adapter as read from the store: which versions there are, and what was decided
//! about each.

use std::collections::BTreeMap;

use graftwork_api::conditions::reason;
use graftwork_contract::ledger::{
    Approved, Created, Gate, PRODUCTION, Production, REJECTED, RecordKind, Rejected, number_of,
};
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
    /// What each endpoint serves as stable, or served last, by its name and the adapter's name there.
    pub served: BTreeMap<(String, String), Served>,
    /// The highest number of a record of production that is taken.
    pub productions: u32,
}

/// What an endpoint serves as stable, or served last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// The version.
    pub version: u32,
    /// Number of the record: the highest is the newest.
    pub number: u32,
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
    /// The newest rollback after one that was undone.
    pub again: Option<Rejected>,
    /// Rollbacks on record: `rejected.json`, then `rejected-2.json` and so on.
    pub rollbacks: u32,
    /// How many of them are undone: an endpoint served the version in spite of them.
    pub undone: u32,
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
            .filter_map(|record| Some(place(name, &record.path)?.0))
        {
            ledger.highest = ledger.highest.max(number);
            if ledger.versions.contains_key(&number) {
                continue;
            }
            let record = |kind| by_path.get(paths::adapter_record(name, number, kind).as_str());
            let Some(created) = ledger.take(record(RecordKind::Created).copied()) else {
                continue;
            };
            let rejected: Option<Rejected> = ledger.take(record(RecordKind::Rejected).copied());
            let version = Version {
                created,
                gate: ledger.take(record(RecordKind::Gate).copied()),
                approved: ledger.take(record(RecordKind::Approved).copied()),
                barred: ledger.take(record(RecordKind::Barred).copied()),
                again: None,
                rollbacks: rejected.as_ref().is_some_and(is_rollback).into(),
                undone: 0,
                rejected,
            };
            ledger.versions.insert(number, version);
        }
        for record in records {
            ledger.read_numbered(name, record);
        }
        ledger
    }

    /// Reads a record of which a version may have many.
    fn read_numbered(&mut self, name: &str, record: &Record) {
        let Some((version, file)) = place(name, &record.path) else {
            return;
        };
        if let Some(number) = number_of(file, PRODUCTION) {
            // A number is taken, whatever its record holds.
            self.productions = self.productions.max(number);
            if let Some(production) = self.take::<Production>(Some(record)) {
                self.note(version, number, production);
            }
        } else if let Some(number) = number_of(file, REJECTED) {
            let rejected: Option<Rejected> = self.take(Some(record));
            if let Some(known) = self.versions.get_mut(&version)
                && number > known.rollbacks
            {
                known.rollbacks = number;
                known.again = rejected.or(known.again.take());
            }
        }
    }

    fn note(&mut self, version: u32, number: u32, production: Production) {
        let Some(known) = self.versions.get_mut(&version) else {
            return;
        };
        known.undone = known.undone.max(production.rollbacks);
        let key = (production.endpoint, production.adapter);
        let served = Served { version, number };
        let newest = self.served.entry(key).or_insert(served);
        if newest.number < number {
            *newest = served;
        }
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
        self.barred.is_some() || rejected.is_some_and(|it| !is_rollback(it))
    }

    /// Why no endpoint may follow it, where something on record says so: rollbacks after which it was
    /// in production do not.
    pub fn rejection(&self) -> Option<&Rejected> {
        let rejected = self.barred.as_ref().or(self.rejected.as_ref())?;
        if self.is_rejected_for_good() {
            return Some(rejected);
        }
        self.is_rolled_back()
            .then(|| self.again.as_ref().unwrap_or(rejected))
    }

    /// Whether a rollback is on record that nothing undid.
    pub const fn is_rolled_back(&self) -> bool {
        self.rollbacks > self.undone
    }
}

fn is_rollback(rejected: &Rejected) -> bool {
    rejected.reason == reason::ROLLED_BACK_ON_ENDPOINT
}

/// The version that a path is about, and the file's name.
fn place<'a>(name: &str, path: &'a str) -> Option<(u32, &'a str)> {
    let below = path
        .strip_prefix(&paths::adapter_versions(name))?
        .strip_prefix('/')?;
    let (version, file) = below.split_once('/')?;
    Some((version.parse().ok()?, file))
}
