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
            spells: Spells::default(),
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
    /// What is waited for: keepers' answers, and what others stamp by clocks of their own.
    pub spells: Spells,
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

/// Since when something has been so without a break, as this process saw it: by UID of the object and what it is about.
/// A process that starts counts anew: what is waited for then takes longer, and is never given up early.
#[derive(Default)]
pub struct Spells(Mutex<HashMap<(String, String), Timestamp>>);

impl Spells {
    /// Notes whether it is so now. Returns since when it has been, in whole seconds, as the API server's stamps are.
    pub fn note(&self, uid: &str, what: &str, is_so: bool, now: Timestamp) -> Option<Timestamp> {
        let mut spells = self.0.lock().ok()?;
        let key = (uid.to_owned(), what.to_owned());
        if is_so {
            let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
            return Some(*spells.entry(key).or_insert(seconds));
        }
        spells.remove(&key);
        None
    }

    /// Forgets objects that are gone.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        if let Ok(mut spells) = self.0.lock() {
            spells.retain(|(uid, _), _| exists(uid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spell_counts_from_its_first_second_and_ends_with_a_break_or_with_the_object() {
        let at = |milliseconds| Timestamp::from_millisecond(milliseconds).unwrap();
        let spells = Spells::default();
        let note = |what, is_so, now| spells.note("u", what, is_so, at(now));
        assert_eq!(note("made", true, 10_700), Some(at(10_000)));
        assert_eq!(note("ended", true, 20_000), Some(at(20_000)));
        assert_eq!(note("made", true, 30_000), Some(at(10_000)));
        assert_eq!(note("made", false, 35_000), None);
        assert_eq!(note("made", true, 40_000), Some(at(40_000)));
        assert_eq!(note("ended", true, 40_000), Some(at(20_000)));
        spells.keep_only(|uid| uid != "u");
        assert_eq!(note("made", true, 50_000), Some(at(50_000)));
    }
}
