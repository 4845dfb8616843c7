//! What endpoints serve as stable, and served: it is read from their status while that is there, and
//! written to the ledger, from where it comes back when status is lost.

use graftwork_api::ServingEndpoint;
use graftwork_api::lora_adapter::LastServed;
use graftwork_contract::ledger::Production;
use graftwork_contract::paths;
use graftwork_contract::proto::store::v1::PublishRequest;
use jiff::Timestamp;

use super::ledger::Ledger;
use super::step::request;

/// Entries of endpoints that status lists.
const LISTED: usize = 100;

/// What an entry of an endpoint serves as stable.
struct Stable<'a> {
    /// Name of the endpoint.
    endpoint: &'a str,
    /// The adapter's name on it.
    alias: &'a str,
    /// Content.
    digest: &'a str,
}

/// What the endpoints serve of the adapter as stable.
fn stable<'a>(
    adapter: &'a str,
    endpoints: &'a [ServingEndpoint],
) -> impl Iterator<Item = Stable<'a>> {
    endpoints.iter().flat_map(move |endpoint| {
        served_as(adapter, endpoint).filter_map(move |alias| {
            let mut served = endpoint.status.iter().flat_map(|status| &status.adapters);
            let stable = served.find(|it| it.name == alias)?.stable.as_ref()?;
            Some(Stable {
                endpoint: endpoint.metadata.name.as_deref()?,
                alias,
                digest: &stable.digest,
            })
        })
    })
}

/// Names of the endpoints on which that content of this adapter is stable.
pub fn stable_on(adapter: &str, digest: &str, endpoints: &[ServingEndpoint]) -> Vec<String> {
    let mut names: Vec<String> = stable(adapter, endpoints)
        .filter(|it| it.digest == digest)
        .map(|it| it.endpoint.to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The names under which an endpoint that is not going away serves the adapter.
pub fn served_as<'a>(
    adapter: &'a str,
    endpoint: &'a ServingEndpoint,
) -> impl Iterator<Item = &'a str> {
    let going = endpoint.metadata.deletion_timestamp.is_some();
    endpoint
        .spec
        .adapters
        .iter()
        .filter(move |entry| !going && entry.adapter_ref.name == adapter)
        .map(|entry| entry.name.as_str())
}

/// The records of what endpoints serve as stable and the ledger does not say yet. An endpoint's
/// status, from which they derive, is its decision.
pub fn publications(
    name: &str,
    ledger: &Ledger,
    endpoints: &[ServingEndpoint],
    now: Timestamp,
) -> Vec<PublishRequest> {
    let mut number = ledger.productions;
    let mut requests = Vec::new();
    for stable in stable(name, endpoints) {
        let Some(version) = ledger.by_digest(stable.digest) else {
            continue;
        };
        let key = (stable.endpoint.to_owned(), stable.alias.to_owned());
        let known = ledger.served.get(&key);
        let is_known = known.is_some_and(|it| it.version == version.created.version);
        if is_known && !version.is_rolled_back() {
            continue;
        }
        number += 1;
        let record = Production {
            endpoint: key.0,
            adapter: key.1,
            rollbacks: version.rollbacks,
            time: now.to_string(),
        };
        let path = paths::adapter_production(name, version.created.version, number);
        requests.extend(request(path, &record));
    }
    requests
}

/// What each endpoint served last, for status: the newest where there are too many.
pub fn last_served(ledger: &Ledger) -> Vec<LastServed> {
    let mut newest: Vec<_> = ledger.served.iter().collect();
    newest.sort_by_key(|(_, served)| std::cmp::Reverse(served.number));
    newest.truncate(LISTED);
    newest.sort_by_key(|(key, _)| *key);
    newest
        .into_iter()
        .map(|((endpoint, adapter), served)| LastServed {
            endpoint: endpoint.clone(),
            adapter: adapter.clone(),
            version: served.version,
        })
        .collect()
}
