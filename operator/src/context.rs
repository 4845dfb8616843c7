//! What a reconcile works with.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use graftwork_contract::proto::store::v1::{DescribeBaseReply, ImportReply, VerifyReply};
use graftwork_operator_core::observed::Record;
use graftwork_operator_core::settings::Settings;
use graftwork_operator_core::workload::STORE_CLAIM;
use jiff::Timestamp;
use kube::Client;

use crate::api::Clients;
use crate::apply::Writer;
use crate::background::Background;
use crate::cache::{Caches, Touches, find};
use crate::calls::Calls;
use crate::dial::Dialer;
use crate::keys::Keys;
use crate::lease::Term;
use crate::metrics::Metrics;
use crate::progress::ProgressStreams;
use crate::trail::Trail;

/// What a process has before it leads.
pub struct Parts {
    /// Connections to the API server.
    pub clients: Clients,
    /// What the API server shows.
    pub caches: Caches,
    /// Asks for objects to be looked at.
    pub touches: Touches,
    /// The installation's settings.
    pub settings: Settings,
    /// Counters.
    pub metrics: Metrics,
    /// Name of this process in the Lease and in events.
    pub identity: String,
}

impl Parts {
    /// What reconciles share in this term, whose calls are signed with `keys`.
    pub fn context(self, keys: Keys, term: Arc<Term>) -> Context {
        let Self {
            clients,
            caches,
            touches,
            settings,
            metrics,
            identity,
        } = self;
        let forward = (!clients.in_cluster).then_some(clients.streams);
        let client = clients.client;
        let minute = Duration::from_mins(1);
        let soon = Duration::from_secs(3);
        Context {
            client: client.clone(),
            caches,
            touches,
            settings,
            writer: Writer::new(client, Arc::clone(&term), metrics.clone(), identity),
            calls: Arc::new(Calls::new(
                Dialer::new(forward),
                keys,
                term,
                metrics.clone(),
            )),
            progress: ProgressStreams::default(),
            metrics,
            bases: Background::new(5 * minute, soon),
            verifications: Background::new(30 * minute, soon),
            imports: Background::new(30 * minute, 10 * soon),
            contents: Mutex::default(),
            complaints: Mutex::default(),
            results: Mutex::default(),
            trail: Trail::default(),
            unanswered: Spells::default(),
            first_seen: FirstSeen::default(),
            refused_storage: Mutex::default(),
        }
    }
}

/// Everything that reconciles share.
pub struct Context {
    /// For reads that no cache has.
    pub client: Client,
    /// What the API server shows.
    pub caches: Caches,
    /// Asks for objects to be looked at.
    pub touches: Touches,
    /// The installation's settings.
    pub settings: Settings,
    /// Writes to the API server.
    pub writer: Writer,
    /// Calls pods.
    pub calls: Arc<Calls>,
    /// Progress of trainers.
    pub progress: ProgressStreams,
    /// Counters.
    pub metrics: Metrics,
    /// Descriptions of base models.
    pub bases: Background<DescribeBaseReply>,
    /// Verifications of adapters.
    pub verifications: Background<VerifyReply>,
    /// Imports of adapters.
    pub imports: Background<ImportReply>,
    /// Contents of `ConfigMaps` that are sources: digests by UID, resource version and key.
    pub contents: Mutex<HashMap<(String, String, String), Option<graftwork_contract::Digest>>>,
    /// Complaints that were made: UID and resource version of the object, and what was said.
    pub complaints: Mutex<HashSet<(String, String, String)>>,
    /// Results of complete runs, by the run's UID: they never change.
    pub results: Mutex<HashMap<String, Record>>,
    /// What this process wrote to status and its caches do not have yet.
    pub trail: Trail,
    /// Objects to which a keeper owes an answer.
    pub unanswered: Spells,
    /// What others stamp by clocks of their own.
    pub first_seen: FirstSeen,
    /// Namespaces whose storage the API server refuses, with its words.
    pub refused_storage: Mutex<HashMap<String, String>>,
}

impl Context {
    /// The settings as they hold in a namespace: of its store's claim, as it is, and not as the chart
    /// would make it today.
    pub fn settings_in(&self, namespace: &str) -> Cow<'_, Settings> {
        let claim = find(&self.caches.claims, namespace, STORE_CLAIM);
        let spec = claim.as_ref().and_then(|claim| claim.spec.as_ref());
        let modes = spec.and_then(|spec| spec.access_modes.as_deref());
        self.settings.with_access_modes(modes)
    }
}

/// Since when something has been so without a break, by UID of the object. A process that starts
/// counts anew.
#[derive(Default)]
pub struct Spells(Mutex<HashMap<String, Timestamp>>);

impl Spells {
    /// Notes whether it is so now. Returns since when it has been.
    pub fn note(&self, uid: &str, is_so: bool, now: Timestamp) -> Option<Timestamp> {
        let mut spells = self.0.lock().ok()?;
        if is_so {
            return Some(*spells.entry(uid.to_owned()).or_insert(now));
        }
        spells.remove(uid);
        None
    }

    /// Forgets objects that are gone.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        if let Ok(mut spells) = self.0.lock() {
            spells.retain(|uid, _| exists(uid));
        }
    }
}

/// When this process first saw something, by UID of the object and what it is about. A process that starts counts
/// anew: what is waited for then takes longer, and is never given up early.
#[derive(Default)]
pub struct FirstSeen(Mutex<HashMap<(String, String), Timestamp>>);

impl FirstSeen {
    /// Notes that it is so now. Returns when that was seen first, in whole seconds, as the API server's stamps are.
    pub fn note(&self, uid: &str, what: &str, now: Timestamp) -> Timestamp {
        let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let Ok(mut seen) = self.0.lock() else {
            return seconds;
        };
        let key = (uid.to_owned(), what.to_owned());
        *seen.entry(key).or_insert(seconds)
    }

    /// Notes that it is so no longer.
    pub fn forget(&self, uid: &str, what: &str) {
        if let Ok(mut seen) = self.0.lock() {
            seen.remove(&(uid.to_owned(), what.to_owned()));
        }
    }

    /// Forgets objects that are gone.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        if let Ok(mut seen) = self.0.lock() {
            seen.retain(|(uid, _), _| exists(uid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spell_counts_from_its_first_moment_and_ends_with_a_break() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let spells = Spells::default();
        assert_eq!(spells.note("u", true, at(10)), Some(at(10)));
        assert_eq!(spells.note("u", true, at(20)), Some(at(10)));
        assert_eq!(spells.note("u", false, at(30)), None);
        assert_eq!(spells.note("u", true, at(40)), Some(at(40)));
        spells.keep_only(|uid| uid != "u");
        assert_eq!(spells.note("u", true, at(50)), Some(at(50)));
    }

    #[test]
    fn what_was_seen_first_stays_until_the_object_is_gone() {
        let at = |milliseconds| Timestamp::from_millisecond(milliseconds).unwrap();
        let seen = FirstSeen::default();
        assert_eq!(seen.note("u", "made", at(10_700)), at(10_000));
        assert_eq!(seen.note("u", "ended", at(20_000)), at(20_000));
        assert_eq!(seen.note("u", "made", at(30_000)), at(10_000));
        seen.forget("u", "made");
        assert_eq!(seen.note("u", "made", at(30_000)), at(30_000));
        assert_eq!(seen.note("u", "ended", at(30_000)), at(20_000));
        seen.keep_only(|uid| uid != "u");
        assert_eq!(seen.note("u", "made", at(40_000)), at(40_000));
    }
}
