//! The routing table: models, their versions, and the engines of one endpoint.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use graftwork_contract::endpoint::{RouterConfig, adapter_header, base_header};
use graftwork_contract::proto::router::v1 as wire;
use graftwork_contract::signing::Fence;
use http::HeaderValue;
use http::uri::Authority;

use crate::engine::{Engine, Registry};

/// What a request is pinned to: one version of one model.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// What the client names in `model`.
    pub model: Arc<str>,
    /// Number; `None` for the bare base model.
    pub number: Option<u32>,
    /// Content; empty for the bare base model.
    pub digest: Arc<str>,
    /// How engines are told: `<name>@v<version>` or `<name>@base`.
    pub header: HeaderValue,
}

/// A version that takes part of the traffic until its lease ends.
#[derive(Debug)]
pub struct Candidate {
    /// The version.
    pub version: Arc<Version>,
    /// Percent of callers, 0 to 100.
    pub weight: u32,
    /// Whether `x-graftwork-version: candidate` reaches it whatever the weight.
    pub by_header: bool,
    /// Differs between rollouts, so that the same callers are not always first.
    pub salt: String,
    /// From here on it gets nothing.
    pub lease_ends: Instant,
}

impl Candidate {
    /// Whether the lease still runs and something leads here.
    pub fn is_open(&self, now: Instant) -> bool {
        now < self.lease_ends && (self.by_header || self.weight > 0)
    }

    /// The weight that counts now.
    pub fn live_weight(&self, now: Instant) -> u32 {
        if now < self.lease_ends {
            self.weight
        } else {
            0
        }
    }
}

/// One model.
#[derive(Debug)]
pub struct Model {
    /// What everybody gets who is not the candidate's.
    pub stable: Arc<Version>,
    /// The version on trial.
    pub candidate: Option<Candidate>,
    /// Whose stable version answers where the version of a request is unavailable; its own name means its own.
    pub fallback: Option<String>,
}

/// One engine that the operator named.
#[derive(Debug, Clone)]
pub struct Target {
    /// The pod's name, for logs.
    pub pod: String,
    /// Its state, which outlives tables.
    pub engine: Arc<Engine>,
    /// Digests that this engine has not verified.
    pub lacks: HashSet<String>,
}

/// A whole table.
#[derive(Debug, Default)]
pub struct Table {
    /// By name.
    pub models: BTreeMap<String, Model>,
    /// The bare base model's name.
    pub base_name: Option<String>,
    /// Models that have no version yet, by name, and whose stable version answers for each.
    pub stand_ins: BTreeMap<String, String>,
    /// Engines that the operator named; empty in a mounted table.
    pub engines: Vec<Target>,
    /// Of the push; `None` for a mounted table.
    pub fence: Option<Fence>,
}

/// A table that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTable {
    /// A name that no header can carry.
    #[error("model name {name:?} is empty or holds characters outside visible ASCII")]
    Name {
        /// The name.
        name: String,
    },
    /// The same name twice.
    #[error("model {name:?} is listed twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// More than everything.
    #[error("model {name:?}: the candidate's weight is {weight}, the limit is 100")]
    Weight {
        /// The model.
        name: String,
        /// Its candidate's weight.
        weight: u32,
    },
    /// A candidate without a lease would never serve.
    #[error("model {name:?}: the candidate's lease_seconds is 0, it must be 1 or more")]
    Lease {
        /// The model.
        name: String,
    },
    /// A candidate that names no version, or has nothing to be compared with.
    #[error("model {name:?}: a candidate needs its own version and a stable one")]
    Candidate {
        /// The model.
        name: String,
    },
    /// An adapter's version 0 or without a digest.
    #[error("model {name:?}: version {version} with digest {digest:?} is none")]
    Version {
        /// The model.
        name: String,
        /// Number.
        version: u32,
        /// Content.
        digest: String,
    },
    /// An engine's address that is none.
    #[error("engine {pod:?}: address {address:?} is not host:port")]
    Address {
        /// The pod.
        pod: String,
        /// Its address.
        address: String,
    },
}

impl Table {
    /// The table of the mounted configuration: stable versions, no engines.
    ///
    /// # Errors
    /// See [`InvalidTable`].
    pub fn from_config(config: &RouterConfig) -> Result<Self, InvalidTable> {
        let mut table = Self {
            stand_ins: config.stand_ins.clone(),
            ..Self::default()
        };
        for model in &config.models {
            let stable = adapter_version(&model.name, model.version, model.digest.as_str())?;
            table.insert(
                &model.name,
                Model {
                    stable,
                    candidate: None,
                    fallback: model.fallback.clone(),
                },
            )?;
        }
        table.offer_base(config.base_name.as_deref().unwrap_or_default())?;
        Ok(table)
    }

    /// The table of a push that arrived at `now`.
    ///
    /// # Errors
    /// See [`InvalidTable`].
    pub fn from_push(
        push: &wire::RoutingTable,
        fence: Fence,
        registry: &Registry,
        now: Instant,
    ) -> Result<Self, InvalidTable> {
        let stand_ins = push.stand_ins.iter();
        let mut table = Self {
            stand_ins: stand_ins
                .map(|it| (it.name.clone(), it.model.clone()))
                .collect(),
            fence: Some(fence),
            ..Self::default()
        };
        for model in &push.models {
            table.insert(&model.name, model_from_push(model, now)?)?;
        }
        table.offer_base(&push.base_name)?;
        for target in &push.engines {
            let invalid = || InvalidTable::Address {
                pod: target.pod.clone(),
                address: target.address.clone(),
            };
            let authority: Authority = target.address.parse().map_err(|_| invalid())?;
            authority.port_u16().ok_or_else(invalid)?;
            table.engines.push(Target {
                pod: target.pod.clone(),
                engine: registry.engine(&authority),
                lacks: target.lacks.iter().cloned().collect(),
            });
        }
        Ok(table)
    }

    /// What answers where `version` of `model` is unavailable. Only one step: a fallback has none itself. A name
    /// that the table lacks leads nowhere, so that a table may come before its models do.
    pub fn fallback(&self, model: &Model, version: &Version) -> Option<Arc<Version>> {
        let stable = &self.models.get(model.fallback.as_deref()?)?.stable;
        (**stable != *version).then(|| stable.clone())
    }

    /// The stable version that answers for a model that has no version yet. Only one step here, too.
    pub fn stand_in(&self, name: &str) -> Option<&Arc<Version>> {
        let model = self.models.get(self.stand_ins.get(name)?)?;
        Some(&model.stable)
    }

    /// Whether some engine of the operator's list has `version` (in a mounted table nobody knows: yes).
    pub fn anyone_has(&self, version: &Version) -> bool {
        self.fence.is_none() || self.engines.iter().any(|target| target.has(version))
    }

    fn insert(&mut self, name: &str, model: Model) -> Result<(), InvalidTable> {
        match self.models.insert(name.to_owned(), model) {
            Some(_) => Err(InvalidTable::Twice {
                name: name.to_owned(),
            }),
            None => Ok(()),
        }
    }

    fn offer_base(&mut self, name: &str) -> Result<(), InvalidTable> {
        if name.is_empty() {
            return Ok(());
        }
        self.base_name = Some(name.to_owned());
        // A push may list the base among the models too.
        if self
            .models
            .get(name)
            .is_none_or(|model| model.stable.number.is_some())
        {
            self.insert(
                name,
                Model {
                    stable: base_version(name)?,
                    candidate: None,
                    fallback: None,
                },
            )?;
        }
        Ok(())
    }
}

impl Target {
    /// Whether this engine may get requests for `version`.
    pub fn has(&self, version: &Version) -> bool {
        version.digest.is_empty() || !self.lacks.contains(&*version.digest)
    }
}

fn model_from_push(model: &wire::Model, now: Instant) -> Result<Model, InvalidTable> {
    let name = &model.name;
    let stable = match &model.stable {
        Some(stable) => adapter_version(name, stable.version, &stable.digest)?,
        None => base_version(name)?,
    };
    let fallback = (!model.fallback.is_empty()).then(|| model.fallback.clone());
    let Some(candidate) = &model.candidate else {
        return Ok(Model {
            stable,
            candidate: None,
            fallback,
        });
    };
    let (Some(_), Some(version)) = (&model.stable, &candidate.version) else {
        return Err(InvalidTable::Candidate { name: name.clone() });
    };
    if candidate.weight > 100 {
        return Err(InvalidTable::Weight {
            name: name.clone(),
            weight: candidate.weight,
        });
    }
    if candidate.lease_seconds == 0 {
        return Err(InvalidTable::Lease { name: name.clone() });
    }
    let candidate = Candidate {
        version: adapter_version(name, version.version, &version.digest)?,
        weight: candidate.weight,
        by_header: candidate.by_header,
        salt: candidate.salt.clone(),
        lease_ends: now + Duration::from_secs(candidate.lease_seconds.into()),
    };
    Ok(Model {
        stable,
        candidate: Some(candidate),
        fallback,
    })
}

fn adapter_version(name: &str, number: u32, digest: &str) -> Result<Arc<Version>, InvalidTable> {
    if number == 0 || digest.is_empty() {
        return Err(InvalidTable::Version {
            name: name.to_owned(),
            version: number,
            digest: digest.to_owned(),
        });
    }
    version(name, Some(number), digest, adapter_header(name, number))
}

fn base_version(name: &str) -> Result<Arc<Version>, InvalidTable> {
    version(name, None, "", base_header(name))
}

fn version(
    name: &str,
    number: Option<u32>,
    digest: &str,
    header: String,
) -> Result<Arc<Version>, InvalidTable> {
    let invalid = || InvalidTable::Name {
        name: name.to_owned(),
    };
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(invalid());
    }
    Ok(Arc::new(Version {
        model: name.into(),
        number,
        digest: digest.into(),
        header: HeaderValue::try_from(header).map_err(|_| invalid())?,
    }))
}

#[cfg(test)]
mod tests {
    use graftwork_listen::clock;

    use super::*;

    fn candidate(weight: u32, lease_seconds: u32) -> wire::Candidate {
        wire::Candidate {
            version: Some(wire::Version {
                version: 2,
                digest: "sha256:b".into(),
            }),
            weight,
            by_header: false,
            lease_seconds,
            salt: "s".into(),
        }
    }

    fn push(candidate: Option<wire::Candidate>) -> wire::RoutingTable {
        wire::RoutingTable {
            models: vec![wire::Model {
                name: "m".into(),
                stable: Some(wire::Version {
                    version: 1,
                    digest: "sha256:a".into(),
                }),
                candidate,
                fallback: String::new(),
            }],
            engines: vec![wire::EngineTarget {
                pod: "e-0".into(),
                address: "10.0.0.1:8080".into(),
                lacks: vec!["sha256:b".into()],
            }],
            base_name: "tiny".into(),
            stand_ins: vec![],
        }
    }

    fn read(push: &wire::RoutingTable) -> Result<Table, InvalidTable> {
        Table::from_push(push, Fence::default(), &Registry::default(), clock::now())
    }

    #[test]
    fn a_push_becomes_versions_with_headers_and_engines() {
        let table = read(&push(Some(candidate(10, 120)))).unwrap();
        let model = &table.models["m"];
        assert_eq!(model.stable.header, "m@v1");
        let candidate = &model.candidate.as_ref().unwrap().version;
        assert_eq!(candidate.header, "m@v2");
        assert_eq!(table.models["tiny"].stable.header, "tiny@base");
        assert!(table.anyone_has(&model.stable));
        assert!(!table.anyone_has(candidate));
    }

    #[test]
    fn a_fallback_is_one_step_to_another_version_that_the_table_has() {
        let mut push = push(Some(candidate(10, 120)));
        let to = |push: &mut wire::RoutingTable, name: &str, of_candidate: bool| {
            push.models[0].fallback = name.to_owned();
            let table = read(push).unwrap();
            let model = &table.models["m"];
            let version = match &model.candidate {
                Some(candidate) if of_candidate => &candidate.version,
                _ => &model.stable,
            };
            let fallback = table.fallback(model, version)?;
            Some(fallback.header.to_str().unwrap().to_owned())
        };
        for (name, of_stable, of_candidate) in [
            ("", None, None),
            ("m", None, Some("m@v1")),
            ("tiny", Some("tiny@base"), Some("tiny@base")),
            ("nobody", None, None),
        ] {
            assert_eq!(to(&mut push, name, false).as_deref(), of_stable, "{name}");
            assert_eq!(to(&mut push, name, true).as_deref(), of_candidate, "{name}");
        }
    }

    #[test]
    fn a_stand_in_is_one_step_to_a_stable_version_that_the_table_has() {
        let mut push = push(Some(candidate(100, 120)));
        push.stand_ins = [("new", "m"), ("newer", "new"), ("lost", "nobody")]
            .map(|(name, model)| wire::StandIn {
                name: name.into(),
                model: model.into(),
            })
            .into();
        let table = read(&push).unwrap();
        assert_eq!(table.stand_in("new").unwrap().header, "m@v1");
        for name in ["newer", "lost", "m", "nobody"] {
            assert_eq!(table.stand_in(name), None, "{name}");
        }
    }

    #[test]
    fn a_lease_ends_by_itself() {
        let table = read(&push(Some(candidate(10, 5)))).unwrap();
        let candidate = table.models["m"].candidate.as_ref().unwrap();
        let end = candidate.lease_ends;
        assert!(candidate.is_open(end.checked_sub(Duration::from_millis(1)).unwrap()));
        assert!(!candidate.is_open(end));
        assert_eq!(candidate.live_weight(end), 0);
    }

    #[test]
    fn unusable_tables_name_the_field() {
        let error = |push: &wire::RoutingTable| read(push).unwrap_err().to_string();
        assert!(error(&push(Some(candidate(101, 1)))).contains("weight is 101, the limit is 100"));
        assert!(error(&push(Some(candidate(1, 0)))).contains("lease_seconds is 0"));
        let mut alone = push(Some(candidate(1, 1)));
        alone.models[0].stable = None;
        assert!(error(&alone).contains("needs its own version and a stable one"));
        let mut twice = push(None);
        twice.models.push(twice.models[0].clone());
        assert!(error(&twice).contains("listed twice"));
        let mut address = push(None);
        address.engines[0].address = "10.0.0.1".into();
        assert!(error(&address).contains("not host:port"));
        let mut name = push(None);
        name.models[0].name = "a b\n".into();
        assert!(error(&name).contains("visible ASCII"));
        let mut zero = push(None);
        zero.models[0].stable.as_mut().unwrap().version = 0;
        assert!(error(&zero).contains("version 0"));
        let mut adapter_as_base = push(None);
        adapter_as_base.base_name = "m".into();
        assert!(error(&adapter_as_base).contains("listed twice"));
    }
}
