//! The engines and routers of an endpoint: what each should have, and what it has.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_api::serving_endpoint::{AdapterEntry, FALLBACK_STABLE, RolloutState, ServedAdapter};
use graftwork_api::{ServingEndpoint, VersionedDigest};
use graftwork_contract::endpoint::{EngineAdapter, EngineConfig};
use graftwork_contract::proto::engine::v1::{AdapterState, AdapterVersion, SyncReply, SyncRequest};
use graftwork_contract::proto::router::v1::{
    Candidate as RoutedCandidate, EngineTarget, Model, RoutingTable, StandIn, Version,
};
use graftwork_contract::{Digest, paths, pod};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;

use super::observed::{EnginePod, Observed, RouterPod};
use super::rollout::{Engines, Routers, seconds_since};
use crate::observed::{Asked, Container, Pod, Problem, table_digest};

/// Engines and routers with the lists that derive from what is persisted.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet<'a> {
    /// Engines that are ready and stay.
    pub engines: Vec<&'a EnginePod>,
    /// Routers that are ready and stay.
    pub routers: Vec<&'a RouterPod>,
    /// Routers that have run, are not over, and are not ready or do not stay: nobody counts what they routed.
    uncounted: Vec<&'a RouterPod>,
    /// The table that every router should have.
    pub table: RoutingTable,
    /// Its digest.
    pub table_digest: Digest,
    /// The list that every engine should have.
    pub list: Vec<EngineAdapter>,
}

impl<'a> Fleet<'a> {
    /// Looks at pods and derives their lists from persisted status.
    pub fn new(cr: &ServingEndpoint, served: &[ServedAdapter], observed: &'a Observed) -> Self {
        let base_name = cr.spec.base_model.name.clone().unwrap_or_default();
        Self::with_base_name(cr, served, observed, base_name)
    }

    /// The same while the spec is not acted on: from what was persisted last, with the base's name as
    /// engines were configured with it.
    pub fn held(cr: &ServingEndpoint, observed: &'a Observed) -> Self {
        let served = cr
            .status
            .as_ref()
            .map_or(&[][..], |status| &status.adapters);
        let configured = read_configuration(observed.engine_configuration.ours());
        let base_name = configured.map_or_else(
            || cr.spec.base_model.name.clone(),
            |configured| configured.base_name,
        );
        Self::with_base_name(cr, served, observed, base_name.unwrap_or_default())
    }

    fn with_base_name(
        cr: &ServingEndpoint,
        served: &[ServedAdapter],
        observed: &'a Observed,
        base_name: String,
    ) -> Self {
        let engines: Vec<_> = observed
            .engines
            .iter()
            .filter(|engine| engine.pod.ready && engine.pod.target().is_some())
            .collect();
        let routers: Vec<_> = observed
            .routers
            .iter()
            .filter(|router| router.pod.ready && router.pod.target().is_some())
            .collect();
        let uncounted = observed
            .routers
            .iter()
            .filter(|router| has_run(&router.pod))
            .filter(|router| !router.pod.ready || router.pod.target().is_none())
            .collect();
        let table = routing_table(cr, served, &engines, base_name);
        let table_digest = table_digest(&table);
        let acknowledged = follow(&routers, &table_digest);
        let prior = configured(observed.engine_configuration.ours());
        let list = engine_list(&cr.spec.adapters, served, &prior, !acknowledged);
        Self {
            engines,
            routers,
            uncounted,
            table,
            table_digest,
            list,
        }
    }

    /// The routers, as a rollout sees them.
    pub fn routers_follow(&self) -> Routers {
        Routers {
            ready: self.routers.len(),
            acknowledged: follow(&self.routers, &self.table_digest),
        }
    }

    /// Why not all requests are counted, in words; none where they are. A pod that goes away is waited for as
    /// long as a candidate's lease: after that it routes nothing to one, wherever its node is.
    pub fn uncounted(&self, lease_seconds: u64, now: Timestamp) -> Option<String> {
        self.uncounted.iter().find_map(|router| {
            let pod = &router.pod;
            let name = &pod.name;
            match pod.deleting_since {
                Some(since) if seconds_since(since, now) > lease_seconds => None,
                Some(_) => Some(format!(
                    "router {name} is going away, and what it routed is not counted"
                )),
                None => {
                    let why = pod
                        .problem()
                        .map_or_else(String::new, |why| format!(" ({why})"));
                    Some(format!(
                        "router {name} is not ready{why}, and what it routed is not counted"
                    ))
                }
            }
        })
    }

    /// The engines, as the rollout of one version sees them.
    pub fn engines_with(&self, name: &str, digest: &str) -> Engines {
        let states = self
            .engines
            .iter()
            .map(|engine| (engine, state(engine, name, digest)));
        let mut engines = Engines {
            ready: self.engines.len(),
            ..Engines::default()
        };
        for (engine, state) in states {
            match state {
                Held::Verified => engines.verified += 1,
                Held::Refused(problem) => {
                    engines.refused.get_or_insert(Problem {
                        message: format!("{}: {}", engine.pod.name, problem.message),
                        reason: problem.reason,
                    });
                }
                Held::Registered | Held::Absent | Held::Unknown => {}
            }
        }
        engines
    }

    /// Whether an engine waits for files that its storage did not give.
    pub fn looks_again(&self) -> bool {
        self.engines.iter().any(|engine| {
            matches!(&engine.status, Asked::Answered(reply) if reply.adapters.iter().any(|adapter| {
                adapter.state() == AdapterState::Refused && adapter.may_pass
            }))
        })
    }

    /// The list as engines are sent it.
    pub fn request(&self) -> SyncRequest {
        SyncRequest {
            adapters: self
                .list
                .iter()
                .map(|adapter| AdapterVersion {
                    name: adapter.name.clone(),
                    version: adapter.version,
                    digest: adapter.digest.to_string(),
                    folder: adapter.folder.clone(),
                    is_default: adapter.is_default,
                })
                .collect(),
        }
    }
}

/// Whether a pod may have served: its process has run, and the pod is not over.
fn has_run(pod: &Pod) -> bool {
    let is_over = matches!(pod.phase.as_str(), "Succeeded" | "Failed");
    let ran = matches!(
        pod.container,
        Container::Running { .. } | Container::Terminated { .. }
    );
    !is_over && (ran || pod.restarts > 0)
}

/// How far an engine is with a version.
enum Held {
    Verified,
    Registered,
    Refused(Problem),
    Absent,
    /// It could not be asked.
    Unknown,
}

fn state(engine: &EnginePod, name: &str, digest: &str) -> Held {
    let Asked::Answered(SyncReply { adapters, .. }) = &engine.status else {
        return Held::Unknown;
    };
    let found = adapters
        .iter()
        .find(|adapter| adapter.name == name && adapter.digest == digest);
    let Some(found) = found else {
        return Held::Absent;
    };
    match found.state() {
        AdapterState::Verified | AdapterState::Resident => Held::Verified,
        AdapterState::Registered => Held::Registered,
        // A volume that hiccups condemns no version: the engine looks again, and a rollout waits for it.
        AdapterState::Refused if found.may_pass => Held::Absent,
        AdapterState::Refused => Held::Refused(Problem {
            reason: found.reason.clone(),
            message: found.message.clone(),
        }),
        AdapterState::Unspecified => Held::Absent,
    }
}

fn follow(routers: &[&RouterPod], table: &Digest) -> bool {
    !routers.is_empty()
        && routers.iter().all(|router| {
            router
                .acknowledged
                .as_ref()
                .is_some_and(|known| known.table == *table)
        })
}

/// Whether the candidate is in the routing table in that state.
fn is_routed(state: &RolloutState) -> bool {
    matches!(
        state,
        RolloutState::Stepping | RolloutState::Paused | RolloutState::Promoting
    )
}

fn routing_table(
    cr: &ServingEndpoint,
    served: &[ServedAdapter],
    engines: &[&EnginePod],
    base_name: String,
) -> RoutingTable {
    let version = |it: &VersionedDigest| Version {
        version: it.version,
        digest: it.digest.clone(),
    };
    let models: Vec<Model> = served
        .iter()
        .filter_map(|adapter| {
            let stable = adapter.stable.as_ref()?;
            let candidate = adapter
                .rollout
                .as_ref()
                .filter(|rollout| is_routed(&rollout.state))
                .zip(adapter.candidate.as_ref())
                .map(|(rollout, candidate)| RoutedCandidate {
                    version: Some(Version {
                        version: candidate.version,
                        digest: candidate.digest.clone(),
                    }),
                    weight: candidate.weight,
                    by_header: true,
                    lease_seconds: u32::try_from(cr.spec.rollout.candidate_lease_seconds)
                        .unwrap_or(u32::MAX),
                    salt: rollout.salt.clone().unwrap_or_default(),
                });
            Some(Model {
                name: adapter.name.clone(),
                stable: Some(version(stable)),
                candidate,
                fallback: fallback(&cr.spec.adapters, &adapter.name).unwrap_or_default(),
            })
        })
        .collect();
    let mut targets: Vec<EngineTarget> = engines
        .iter()
        .filter_map(|engine| {
            Some(EngineTarget {
                pod: engine.pod.name.clone(),
                address: format!(
                    "{}:{}",
                    bracketed(engine.pod.ip.as_deref()?),
                    pod::HTTP_PORT
                ),
                lacks: lacks(engine, &models),
            })
        })
        .collect();
    targets.sort_by(|a, b| a.pod.cmp(&b.pod));
    RoutingTable {
        models,
        engines: targets,
        base_name,
        stand_ins: stand_ins(&cr.spec.adapters, served),
    }
}

/// The model whose stable version answers where a model's own is unavailable; its own name for `Stable`.
pub fn fallback(entries: &[AdapterEntry], name: &str) -> Option<String> {
    let entry = entries.iter().find(|entry| entry.name == name)?;
    let fallback = entry.fallback.as_deref()?;
    let model = if fallback == FALLBACK_STABLE {
        name
    } else {
        fallback
    };
    Some(model.to_owned())
}

/// The models that have no stable version yet, with the one whose stable version answers for each.
pub fn stand_ins(entries: &[AdapterEntry], served: &[ServedAdapter]) -> Vec<StandIn> {
    served
        .iter()
        .filter(|adapter| adapter.stable.is_none())
        .filter_map(|adapter| {
            let name = adapter.name.clone();
            let model = fallback(entries, &name)?;
            (model != name).then_some(StandIn { name, model })
        })
        .collect()
}

/// An IPv6 address stands in brackets before a port.
fn bracketed(ip: &str) -> String {
    if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    }
}

/// Digests of the table that the engine must not be asked for. A stable version that is only
/// registered is loaded on demand; a candidate has to be verified. An engine that can't be asked
/// keeps its stable versions, or a cut between operator and engines would stop all traffic.
fn lacks(engine: &EnginePod, models: &[Model]) -> Vec<String> {
    let mut lacking = BTreeSet::new();
    for model in models {
        if let Some(stable) = &model.stable
            && matches!(
                state(engine, &model.name, &stable.digest),
                Held::Refused(_) | Held::Absent
            )
        {
            lacking.insert(stable.digest.clone());
        }
        if let Some(candidate) = model.candidate.as_ref().and_then(|it| it.version.as_ref())
            && !matches!(
                state(engine, &model.name, &candidate.digest),
                Held::Verified
            )
        {
            lacking.insert(candidate.digest.clone());
        }
    }
    lacking.into_iter().collect()
}

/// The versions that engines were told about last.
pub fn configured(configuration: Option<&ConfigMap>) -> Vec<EngineAdapter> {
    read_configuration(configuration)
        .map(|it| it.adapters)
        .unwrap_or_default()
}

/// The engines' configuration as it stands in the cluster.
pub fn read_configuration(configuration: Option<&ConfigMap>) -> Option<EngineConfig> {
    serde_json::from_str(configuration?.data.as_ref()?.get("config.json")?).ok()
}

/// Stable versions and candidates; and what was there before, until every router has a table without
/// it: up, ready, shift, down.
fn engine_list(
    entries: &[AdapterEntry],
    served: &[ServedAdapter],
    prior: &[EngineAdapter],
    keep_prior: bool,
) -> Vec<EngineAdapter> {
    let owners: BTreeMap<&str, &str> = entries
        .iter()
        .map(|entry| (entry.name.as_str(), entry.adapter_ref.name.as_str()))
        .collect();
    let known = |name: &str, digest: &str| {
        prior
            .iter()
            .find(|it| it.name == name && it.digest.as_str() == digest)
    };
    let mut list: Vec<EngineAdapter> = Vec::new();
    for adapter in served {
        let stable = adapter
            .stable
            .as_ref()
            .map(|it| (it.version, it.digest.as_str(), true));
        let first = stable.is_none();
        let candidate = adapter
            .candidate
            .as_ref()
            .map(|it| (it.version, it.digest.as_str(), first));
        for (version, digest, is_default) in stable.into_iter().chain(candidate) {
            let Ok(parsed) = digest.parse::<Digest>() else {
                continue;
            };
            // A folder once told stays, though the entry may name another LoRAAdapter by now.
            let folder = match (
                known(&adapter.name, digest),
                owners.get(adapter.name.as_str()),
            ) {
                (Some(known), _) => known.folder.clone(),
                (None, Some(owner)) => paths::adapter(owner, &parsed),
                (None, None) => continue,
            };
            list.push(EngineAdapter {
                name: adapter.name.clone(),
                version,
                digest: parsed,
                folder,
                is_default,
            });
        }
    }
    if keep_prior {
        let new: BTreeSet<(String, Digest)> = list
            .iter()
            .map(|it| (it.name.clone(), it.digest.clone()))
            .collect();
        list.extend(
            prior
                .iter()
                .filter(|it| !new.contains(&(it.name.clone(), it.digest.clone())))
                .map(|it| EngineAdapter {
                    is_default: false,
                    ..it.clone()
                }),
        );
    }
    list.sort_by(|a, b| (&a.name, a.version, &a.digest).cmp(&(&b.name, b.version, &b.digest)));
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fallback_names_the_model_whose_stable_version_answers() {
        let entry = |name: &str, fallback: Option<&str>| AdapterEntry {
            name: name.to_owned(),
            fallback: fallback.map(str::to_owned),
            ..AdapterEntry::default()
        };
        let entries = [
            entry("a", Some(FALLBACK_STABLE)),
            entry("b", Some("a")),
            entry("c", None),
        ];
        let names = ["a", "b", "c", "gone"].map(|name| fallback(&entries, name));
        assert_eq!(
            names,
            [Some("a".to_owned()), Some("a".to_owned()), None, None]
        );
    }

    #[test]
    fn a_model_without_a_version_is_answered_for_by_another_one() {
        let entry = |name: &str, fallback: Option<&str>| AdapterEntry {
            name: name.to_owned(),
            fallback: fallback.map(str::to_owned),
            ..AdapterEntry::default()
        };
        let served = |name: &str, version: Option<u32>| ServedAdapter {
            name: name.to_owned(),
            stable: version.map(|version| VersionedDigest {
                version,
                digest: "sha256:a".to_owned(),
            }),
            ..ServedAdapter::default()
        };
        let entries = [
            entry("own", Some(FALLBACK_STABLE)),
            entry("new", Some("old")),
            entry("old", Some("tiny")),
            entry("none", None),
        ];
        let adapters = [
            served("own", None),
            served("new", None),
            served("old", Some(1)),
            served("none", None),
        ];
        let expected = StandIn {
            name: "new".to_owned(),
            model: "old".to_owned(),
        };
        assert_eq!(stand_ins(&entries, &adapters), [expected]);
    }
}
