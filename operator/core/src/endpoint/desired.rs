//! Which version of each adapter an endpoint should serve, from its spec and the LoRAAdapters.

use std::collections::BTreeMap;

use graftwork_api::conditions::reason;
use graftwork_api::lora_adapter::{AdapterVersion, Gate, LastServed, Verdict, VersionStage};
use graftwork_api::serving_endpoint::{AdapterEntry, BaseQuantization, Rollout};
use graftwork_api::{LoRAAdapter, VersionedDigest};
use graftwork_contract::Digest;
use serde::Serialize;
use serde_json::{Value, json};

/// What an entry of `spec.adapters` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired {
    /// This version.
    Version(VersionedDigest),
    /// Nothing that can be served now; what serves goes on.
    Pending {
        /// A condition's reason.
        reason: &'static str,
        /// In words.
        message: String,
    },
}

/// What an entry asks for. `base` is the digest of the endpoint's base model, `held` what its engines hold it in.
pub fn desired(
    entry: &AdapterEntry,
    adapters: &BTreeMap<String, LoRAAdapter>,
    base: Option<&Digest>,
    held: &BaseQuantization,
) -> Desired {
    let name = &entry.adapter_ref.name;
    let pending = |reason, message| Desired::Pending { reason, message };
    let Usable {
        approved, versions, ..
    } = match usable(name, adapters, base) {
        Ok(usable) => usable,
        Err((reason, message)) => {
            let field = format!("spec.adapters[{}].adapterRef.name", entry.name);
            return pending(reason, format!("{field}: {message}"));
        }
    };
    let Some(number) = entry.version.or(approved) else {
        return pending(
            reason::WAITING_FOR_VERSION,
            format!("LoRAAdapter \"{name}\" has no approved version"),
        );
    };
    match versions.iter().find(|version| version.version == number) {
        None => pending(
            reason::VERSION_NOT_FOUND,
            format!(
                "spec.adapters[{}].version: LoRAAdapter \"{name}\" lists no version {number}",
                entry.name
            ),
        ),
        Some(version) if may_be_served(version) => match scored_otherwise(name, version, held) {
            None => Desired::Version(version.versioned_digest()),
            Some(message) => pending(reason::PRECISION_MISMATCH, message),
        },
        Some(version) => pending(reason::VERSION_NOT_APPROVED, describe(name, version)),
    }
}

/// The version that the endpoint of that name begins with while it serves none of the adapter: the one
/// that it served last itself, whatever the spec names by now; or, where it follows an adapter that it
/// never served, the one in production. What is newer climbs there as everywhere. None where there is no
/// such version, or where it may not see traffic, or was scored in another precision.
pub fn first(
    endpoint: &str,
    entry: &AdapterEntry,
    adapters: &BTreeMap<String, LoRAAdapter>,
    base: Option<&Digest>,
    held: &BaseQuantization,
) -> Option<VersionedDigest> {
    let name = &entry.adapter_ref.name;
    let usable = usable(name, adapters, base).ok()?;
    let that_may_see_traffic = |number: u32| {
        let is_meant = |version: &&AdapterVersion| {
            let may_see_traffic = matches!(
                version.stage,
                VersionStage::Approved | VersionStage::Production
            );
            version.version == number && may_see_traffic
        };
        usable.versions.iter().find(is_meant)
    };
    let own = usable
        .last_served
        .iter()
        .find(|last| last.endpoint == endpoint && last.adapter == entry.name)
        .and_then(|last| that_may_see_traffic(last.version));
    let elsewhere = || {
        let followed = usable.production.filter(|_| entry.version.is_none());
        let version = followed.and_then(that_may_see_traffic);
        version.filter(|version| scored_otherwise(name, version, held).is_none())
    };
    Some(own.or_else(elsewhere)?.versioned_digest())
}

/// An adapter whose versions fit the endpoint's base model.
struct Usable<'a> {
    /// The newest version that may see traffic.
    approved: Option<u32>,
    /// The version in production, or the last that was.
    production: Option<u32>,
    /// What each endpoint served last.
    last_served: &'a [LastServed],
    /// Those that its status lists.
    versions: &'a [AdapterVersion],
}

/// The adapter of that name, or a condition's reason and in words why it has nothing for this
/// endpoint. Where a base model is not known, nothing is said about it.
fn usable<'a>(
    name: &str,
    adapters: &'a BTreeMap<String, LoRAAdapter>,
    base: Option<&Digest>,
) -> Result<Usable<'a>, (&'static str, String)> {
    let adapter = adapters.get(name).ok_or_else(|| {
        let message = format!("there is no LoRAAdapter \"{name}\"");
        (reason::ADAPTER_NOT_FOUND, message)
    })?;
    if adapter.metadata.deletion_timestamp.is_some() {
        let message = format!("LoRAAdapter \"{name}\" is being deleted");
        return Err((reason::ADAPTER_NOT_FOUND, message));
    }
    let Some(status) = &adapter.status else {
        return Ok(Usable {
            approved: None,
            production: None,
            last_served: &[],
            versions: &[],
        });
    };
    if let Some((of_adapter, base)) = status.base_model.as_ref().zip(base)
        && of_adapter.digest != base.as_str()
    {
        let message = format!(
            "LoRAAdapter \"{name}\" is for base model {}, and the endpoint's is {base}",
            of_adapter.digest
        );
        return Err((reason::BASE_MODEL_MISMATCH, message));
    }
    Ok(Usable {
        approved: status.approved,
        production: status.production.as_ref().map(|it| it.version),
        last_served: &status.last_served,
        versions: &status.versions,
    })
}

fn describe(name: &str, version: &AdapterVersion) -> String {
    format!(
        "version {} of LoRAAdapter \"{name}\" is {}: {}",
        version.version,
        version.stage,
        version.message.as_deref().unwrap_or_default()
    )
}

/// Why a version is not rolled out to engines that hold the base model so: its scores are those of another
/// precision. None where they are of this one, or where it was imported and has none.
fn scored_otherwise(
    name: &str,
    version: &AdapterVersion,
    held: &BaseQuantization,
) -> Option<String> {
    let scored = version.precision.as_deref()?;
    (scored != held.as_str()).then(|| {
        format!(
            "version {} of LoRAAdapter \"{name}\" was scored in precision {scored}, and \
             spec.engine.quantization is {held}",
            version.version
        )
    })
}

/// Why a candidate may not be served any more; none where it may. Asked in every state of a rollout,
/// whatever the spec names by then: a version that is rejected while it climbs is not promoted.
pub fn withdrawn(
    entry: &AdapterEntry,
    adapters: &BTreeMap<String, LoRAAdapter>,
    base: Option<&Digest>,
    digest: &str,
) -> Option<String> {
    let name = &entry.adapter_ref.name;
    let versions = match usable(name, adapters, base) {
        Ok(usable) => usable.versions,
        Err((_, message)) => return Some(message),
    };
    match versions.iter().find(|version| version.digest == digest) {
        None => Some(format!(
            "LoRAAdapter \"{name}\" lists no version of digest {digest}"
        )),
        Some(version) if may_be_served(version) => None,
        Some(version) => Some(describe(name, version)),
    }
}

/// Approved versions, and those that were rolled back somewhere: whether one may be tried here again
/// is for the endpoint's own list to say.
fn may_be_served(version: &AdapterVersion) -> bool {
    match version.stage {
        VersionStage::Approved | VersionStage::Production => true,
        VersionStage::Rejected => {
            version.reason.as_deref() == Some(reason::ROLLED_BACK_ON_ENDPOINT)
        }
        VersionStage::Candidate | VersionStage::Other(_) => false,
    }
}

/// What there is of an entry's adapter that may be served.
fn servable<'a>(
    entry: &AdapterEntry,
    adapters: &'a BTreeMap<String, LoRAAdapter>,
    base: Option<&Digest>,
) -> impl Iterator<Item = &'a AdapterVersion> {
    let usable = usable(&entry.adapter_ref.name, adapters, base);
    let versions = usable.map_or(&[][..], |usable| usable.versions);
    versions.iter().filter(|version| may_be_served(version))
}

/// The versions that a person may name in Retry and Rollback.
pub fn eligible(
    entry: &AdapterEntry,
    adapters: &BTreeMap<String, LoRAAdapter>,
    base: Option<&Digest>,
) -> Vec<VersionedDigest> {
    let versions = servable(entry, adapters, base);
    versions.map(AdapterVersion::versioned_digest).collect()
}

/// Of those, the ones that were rolled back on some endpoint: all that is left of an endpoint's own list where it
/// was deleted and applied again.
pub fn rolled_back(
    entry: &AdapterEntry,
    adapters: &BTreeMap<String, LoRAAdapter>,
    base: Option<&Digest>,
) -> Vec<VersionedDigest> {
    servable(entry, adapters, base)
        .filter(|version| version.stage == VersionStage::Rejected)
        .map(AdapterVersion::versioned_digest)
        .collect()
}

/// Of those, the ones that the adapter's gate, as it is now, does not fail, scored in the precision that engines hold
/// the base model in.
pub fn taken_back(
    entry: &AdapterEntry,
    adapters: &BTreeMap<String, LoRAAdapter>,
    base: Option<&Digest>,
    held: &BaseQuantization,
) -> Vec<VersionedDigest> {
    let name = &entry.adapter_ref.name;
    // A status that has not seen the newest gate says nothing of it.
    let is_seen = adapters.get(name).is_some_and(|adapter| {
        let seen = adapter
            .status
            .as_ref()
            .and_then(|status| status.observed_generation);
        seen == adapter.metadata.generation
    });
    let fails = |version: &AdapterVersion| {
        let gate = version.gate.as_ref();
        gate.is_some_and(|gate| gate.verdict == Verdict::Fail)
    };
    servable(entry, adapters, base)
        .filter(|version| {
            is_seen
                && version.stage == VersionStage::Rejected
                && !fails(version)
                && scored_otherwise(name, version, held).is_none()
        })
        .map(AdapterVersion::versioned_digest)
        .collect()
}

/// Hash of what decides whether a rejected version may be tried again by itself: the entry, how it
/// is rolled out, and the adapter's gate. What is left at its default does not enter it: a field that
/// a later operator knows is no change of the spec.
pub fn settings_hash(entry: &AdapterEntry, rollout: &Rollout, gate: Option<&Gate>) -> String {
    let decides = json!({"entry": entry, "rollout": said(rollout), "gate": gate.map(said)});
    let text = graftwork_contract::digest::canonical_json(&decides);
    Digest::of(text.as_bytes()).short().to_owned()
}

/// The fields that are not as they are by default.
fn said<T: Serialize + Default>(settings: &T) -> Value {
    let (mut settings, default) = (json!(settings), json!(T::default()));
    if let Value::Object(fields) = &mut settings {
        fields.retain(|name, value| default.get(name) != Some(value));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(stage: &str, why: &str) -> LoRAAdapter {
        serde_json::from_value(json!({
            "apiVersion": "graftwork.dev/v1alpha1",
            "kind": "LoRAAdapter",
            "metadata": {"name": "a"},
            "spec": {"baseModel": {"uri": "pvc://models/tiny"}},
            "status": {
                "baseModel": {"digest": Digest::of(b"base")},
                "approved": 1,
                "versions": [
                    {"version": 2, "digest": "two", "stage": stage, "reason": why, "createdTime": "2026-01-01T00:00:00Z"},
                    {"version": 1, "digest": "one", "stage": "Approved", "createdTime": "2026-01-01T00:00:00Z"},
                ],
            },
        }))
        .unwrap()
    }

    fn entry(version: Option<u32>) -> AdapterEntry {
        AdapterEntry {
            name: "alias".to_owned(),
            adapter_ref: graftwork_api::ObjectReference::new("a"),
            version,
            fallback: None,
        }
    }

    fn served(adapter: LoRAAdapter, base: &[u8]) -> Vec<VersionedDigest> {
        let adapters = [("a".to_owned(), adapter)].into();
        eligible(&entry(None), &adapters, Some(&Digest::of(base)))
    }

    fn ask(version: Option<u32>, adapter: LoRAAdapter, base: &[u8]) -> Result<u32, &'static str> {
        match desired(
            &entry(version),
            &[("a".to_owned(), adapter)].into(),
            Some(&Digest::of(base)),
            &BaseQuantization::AsStored,
        ) {
            Desired::Version(version) => Ok(version.version),
            Desired::Pending { reason, .. } => Err(reason),
        }
    }

    #[test]
    fn approved_is_followed_and_a_pin_is_kept() {
        let candidate = adapter("Candidate", "GatePending");
        assert_eq!(ask(None, candidate.clone(), b"base"), Ok(1));
        assert_eq!(ask(Some(1), candidate.clone(), b"base"), Ok(1));
        assert_eq!(
            ask(Some(2), candidate.clone(), b"base"),
            Err(reason::VERSION_NOT_APPROVED)
        );
        assert_eq!(
            ask(Some(3), candidate.clone(), b"base"),
            Err(reason::VERSION_NOT_FOUND)
        );
        assert_eq!(
            ask(None, candidate, b"other"),
            Err(reason::BASE_MODEL_MISMATCH)
        );
        assert_eq!(ask(Some(2), adapter("Production", ""), b"base"), Ok(2));
    }

    #[test]
    fn a_version_that_was_scored_in_another_precision_is_not_rolled_out() {
        let scored = |precision: Option<&str>| {
            let mut adapter = adapter("Production", "");
            let status = adapter.status.as_mut().unwrap();
            status.versions[0].precision = precision.map(str::to_owned);
            status.production = Some(graftwork_api::lora_adapter::Production {
                version: 2,
                endpoints: vec![],
            });
            BTreeMap::from([("a".to_owned(), adapter)])
        };
        let base = Digest::of(b"base");
        let ask = |precision, held: &BaseQuantization| {
            desired(&entry(Some(2)), &scored(precision), Some(&base), held)
        };
        let begins = |precision, held: &BaseQuantization| {
            let adapters = scored(precision);
            first("new", &entry(None), &adapters, Some(&base), held).map(|it| it.version)
        };
        for (precision, held) in [
            (None, BaseQuantization::Q4K),
            (Some("Q4_K"), BaseQuantization::Q4K),
            (Some("None"), BaseQuantization::AsStored),
        ] {
            assert!(matches!(ask(precision, &held), Desired::Version(_)));
            assert_eq!(begins(precision, &held), Some(2));
        }
        let (precision, held) = (Some("Q4_K"), BaseQuantization::AsStored);
        assert_eq!(
            ask(precision, &held),
            Desired::Pending {
                reason: reason::PRECISION_MISMATCH,
                message: "version 2 of LoRAAdapter \"a\" was scored in precision Q4_K, and \
                          spec.engine.quantization is None"
                    .to_owned(),
            }
        );
        assert_eq!(begins(precision, &held), None);
    }

    #[test]
    fn an_endpoint_begins_with_what_is_in_production_where_that_may_see_traffic() {
        let ask = |pin, production: Option<u32>, stage, base: &[u8]| {
            let mut adapter = adapter(stage, "");
            let status = adapter.status.as_mut().unwrap();
            status.approved = Some(3);
            status.production = production.map(|version| graftwork_api::lora_adapter::Production {
                version,
                endpoints: vec![],
            });
            let adapters = [("a".to_owned(), adapter)].into();
            let base = Digest::of(base);
            let held = &BaseQuantization::AsStored;
            first("one", &entry(pin), &adapters, Some(&base), held).map(|it| it.version)
        };
        assert_eq!(ask(None, Some(2), "Approved", b"base"), Some(2));
        assert_eq!(ask(None, Some(2), "Production", b"base"), Some(2));
        assert_eq!(ask(None, Some(1), "Candidate", b"base"), Some(1));
        for (pin, production, stage, base) in [
            (Some(1), Some(2), "Approved", b"base"),
            (None, None, "Approved", b"base"),
            (None, Some(2), "Rejected", b"base"),
            (None, Some(2), "Candidate", b"base"),
            (None, Some(9), "Approved", b"base"),
            (None, Some(2), "Approved", b"else"),
        ] {
            assert_eq!(
                ask(pin, production, stage, base),
                None,
                "{production:?} {stage}"
            );
        }
    }

    #[test]
    fn an_endpoint_begins_with_what_it_served_last_itself_whatever_serves_elsewhere() {
        let ask = |endpoint, pin, stage| {
            let mut adapter = adapter(stage, "");
            let status = adapter.status.as_mut().unwrap();
            let production = json!({"version": 1, "endpoints": []});
            status.production = serde_json::from_value(production).unwrap();
            status.last_served = serde_json::from_value(json!([
                {"endpoint": "mine", "adapter": "alias", "version": 2},
                {"endpoint": "mine", "adapter": "another", "version": 1},
                {"endpoint": "theirs", "adapter": "alias", "version": 1},
            ]))
            .unwrap();
            let adapters = [("a".to_owned(), adapter)].into();
            let base = Digest::of(b"base");
            let held = &BaseQuantization::AsStored;
            first(endpoint, &entry(pin), &adapters, Some(&base), held).map(|it| it.version)
        };
        assert_eq!(ask("mine", None, "Approved"), Some(2));
        assert_eq!(ask("mine", Some(1), "Approved"), Some(2), "the pin climbs");
        assert_eq!(ask("theirs", None, "Approved"), Some(1));
        assert_eq!(ask("new", None, "Approved"), Some(1));
        assert_eq!(ask("new", Some(2), "Approved"), None);
        assert_eq!(ask("mine", None, "Rejected"), Some(1), "what else serves");
        assert_eq!(ask("mine", Some(2), "Rejected"), None);
    }

    #[test]
    fn what_was_rolled_back_can_be_pinned_and_what_the_gate_rejected_cannot() {
        let rolled_back = adapter("Rejected", reason::ROLLED_BACK_ON_ENDPOINT);
        assert_eq!(ask(Some(2), rolled_back.clone(), b"base"), Ok(2));
        assert_eq!(served(rolled_back.clone(), b"base").len(), 2);
        let taken_back = |adapter: &LoRAAdapter| {
            let adapters = [("a".to_owned(), adapter.clone())].into();
            super::rolled_back(&entry(None), &adapters, Some(&Digest::of(b"base")))
        };
        let digests: Vec<_> = taken_back(&rolled_back)
            .into_iter()
            .map(|version| version.digest)
            .collect();
        assert_eq!(digests, ["two"]);
        assert_eq!(taken_back(&adapter("Approved", "")), []);
        assert_eq!(
            served(rolled_back, b"other"),
            [],
            "made for another base, nothing may be named"
        );
        let failed = adapter("Rejected", reason::GATE_FAILED);
        assert_eq!(
            ask(Some(2), failed.clone(), b"base"),
            Err(reason::VERSION_NOT_APPROVED)
        );
        assert_eq!(served(failed, b"base").len(), 1);
    }

    #[test]
    fn a_candidate_is_withdrawn_for_a_rejection_another_base_or_an_adapter_that_goes() {
        let why = |adapter: Option<LoRAAdapter>, base: Option<&[u8]>, digest: &str| {
            let adapters = adapter.map(|it| ("a".to_owned(), it)).into_iter().collect();
            let base = base.map(Digest::of);
            withdrawn(&entry(Some(2)), &adapters, base.as_ref(), digest)
        };
        let base = Some(&b"base"[..]);
        let approved = adapter("Approved", "");
        assert_eq!(why(Some(approved.clone()), base, "two"), None);
        assert_eq!(
            why(Some(approved.clone()), None, "two"),
            None,
            "a base that is not known is none that differs"
        );
        let rolled_back = adapter("Rejected", reason::ROLLED_BACK_ON_ENDPOINT);
        assert_eq!(
            why(Some(rolled_back), base, "two"),
            None,
            "Retry may try it"
        );
        let mut going = approved.clone();
        going.metadata.deletion_timestamp = Some(graftwork_api::Time(crate::fixtures::at(0)));
        let mut empty = approved.clone();
        empty.status = None;
        for (adapter, base, digest, part) in [
            (
                Some(adapter("Rejected", reason::REJECTED_BY_USER)),
                base,
                "two",
                "version 2 of LoRAAdapter \"a\" is Rejected",
            ),
            (
                Some(adapter("Candidate", reason::GATE_PENDING)),
                base,
                "two",
                "is Candidate",
            ),
            (
                Some(approved.clone()),
                Some(&b"x"[..]),
                "two",
                "is for base model",
            ),
            (
                Some(approved),
                base,
                "three",
                "lists no version of digest three",
            ),
            (Some(going), base, "two", "is being deleted"),
            (Some(empty), base, "two", "lists no version"),
            (None, base, "two", "there is no LoRAAdapter"),
        ] {
            let found = why(adapter, base, digest).unwrap();
            assert!(found.contains(part), "{found}");
        }
    }

    #[test]
    fn what_is_not_there_or_goes_away_is_pending() {
        let mut going = adapter("Approved", "");
        going.metadata.deletion_timestamp = Some(graftwork_api::Time(crate::fixtures::at(0)));
        assert_eq!(ask(None, going, b"base"), Err(reason::ADAPTER_NOT_FOUND));
        let mut empty = adapter("Candidate", "");
        empty.status = None;
        assert_eq!(ask(None, empty, b"base"), Err(reason::WAITING_FOR_VERSION));
        let entry = AdapterEntry::default();
        assert!(matches!(
            desired(&entry, &BTreeMap::new(), None, &BaseQuantization::AsStored),
            Desired::Pending {
                reason: reason::ADAPTER_NOT_FOUND,
                ..
            }
        ));
    }

    #[test]
    fn another_gate_rollout_or_pin_may_try_again() {
        let entry = AdapterEntry::default();
        let rollout = Rollout::default();
        let plain = settings_hash(&entry, &rollout, None);
        assert_eq!(plain, settings_hash(&entry, &rollout, None));
        let pinned = AdapterEntry {
            version: Some(4),
            ..entry.clone()
        };
        assert_ne!(plain, settings_hash(&pinned, &rollout, None));
        assert_ne!(
            plain,
            settings_hash(&entry, &rollout, Some(&Gate::default()))
        );
        let slower = Rollout {
            progress_deadline_seconds: 1200,
            ..rollout
        };
        assert_ne!(plain, settings_hash(&entry, &slower, None));
    }
}
